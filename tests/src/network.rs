//! The network around the balancer, as data.
//!
//! The kernel's routing table is made from it (commands for `ip`, in a network
//! namespace of its own, see [`crate::kernel`]), and the host's stand-in for
//! that table reads it ([`hop`]). Interfaces have fixed indices and link
//! addresses, so both give the same hops.
//!
//! ```text
//!  clients 198.51.100.0/24 ── wan ┐            ┌ lan ── backends 10.0.1.0/24, and through
//!  (and through a router,         ├─ balancer ─┤        a router clients 192.0.2.0/24,
//!   192.0.2.0/24: one-arm)        ┘            │        who come and go by one arm
//!                                              ├ aside   not attached
//!                                              ├ narrow  MTU 1280
//!                                              └ halted  forwarding switched off
//! ```
//!
//! Two more stand for what the kernel of the tests may lack: `vlan` for VLAN 10
//! of `lan`, and `stacked` for VLAN 30 within VLAN 20 of `wan`. To the routing
//! table they are interfaces like others; the program is told which frames are
//! theirs ([`interfaces`], [`exits`]), and frames come and go by `lan` and `wan`.
//! And `member` stands for a part of a bond, whose name is `bond`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use lb_common::Verdict;
use lb_common::abi::Tagged;
use lb_ebpf::{Hop, LinkAddress, RouteQuery};

use crate::frame::Link;

/// An interface of the balancer.
#[derive(Debug)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// Its index.
    pub index: u32,
    /// The last byte of its link address, and of that of the router behind it.
    pub number: u8,
    /// Its addresses.
    pub addresses: [&'static str; 2],
    /// Its MTU.
    pub mtu: u16,
    /// Whether the balancer is attached to it.
    pub attached: bool,
    /// Whether the kernel forwards what comes in by it.
    pub forwards: bool,
}

impl Device {
    const fn new(name: &'static str, number: u8, addresses: [&'static str; 2]) -> Self {
        Self {
            name,
            index: 100 + number as u32,
            number,
            addresses,
            mtu: 1500,
            attached: true,
            forwards: true,
        }
    }

    /// Its link address.
    pub const fn link(&self) -> Link {
        [0x02, 0, 0, 0, self.number, 0]
    }

    /// The link address of a neighbour, by the last byte of the IP address.
    pub const fn neighbour(&self, last: u8) -> Link {
        [0x02, 0, 0, 0, self.number, last]
    }

    /// The link addresses of a frame that leaves here for this neighbour.
    pub const fn to(&self, last: u8) -> [Link; 2] {
        [self.link(), self.neighbour(last)]
    }
}

/// Where the backends are.
pub static LAN: Device = Device::new("lan", 1, ["10.0.1.1/24", "fd00:1::1/64"]);
/// Where most clients are.
pub static WAN: Device = Device::new("wan", 2, ["198.51.100.1/24", "2001:db8:100::1/64"]);
/// An interface to which the balancer is not attached.
pub static ASIDE: Device = Device {
    attached: false,
    ..Device::new("aside", 3, ["10.0.3.1/24", "fd00:3::1/64"])
};
/// An interface with the smallest MTU that IPv6 allows.
pub static NARROW: Device = Device {
    mtu: 1280,
    ..Device::new("narrow", 4, ["10.0.4.1/24", "fd00:4::1/64"])
};
/// An interface with forwarding switched off.
pub static HALTED: Device = Device {
    forwards: false,
    ..Device::new("halted", 5, ["10.0.5.1/24", "fd00:5::1/64"])
};

/// VLAN 10 of [`LAN`].
pub static VLAN: Device = Device {
    attached: false,
    ..Device::new("vlan", 6, ["10.0.6.1/24", "fd00:6::1/64"])
};
/// VLAN 30 within VLAN 20 of [`WAN`].
pub static STACKED: Device = Device {
    attached: false,
    ..Device::new("stacked", 7, ["10.0.7.1/24", "fd00:7::1/64"])
};
/// A bond.
pub static BOND: Device = Device {
    attached: false,
    ..Device::new("bond", 8, ["10.0.8.1/24", "fd00:8::1/64"])
};
/// A member of [`BOND`], which has no addresses that matter.
pub static MEMBER: Device = Device::new("member", 9, ["10.0.9.1/24", "fd00:9::1/64"]);

/// All interfaces.
pub static DEVICES: [&Device; 9] = [
    &LAN, &WAN, &ASIDE, &NARROW, &HALTED, &VLAN, &STACKED, &BOND, &MEMBER,
];

/// The tag of [`VLAN`], and the two of [`STACKED`], as they stand in a frame.
pub const VLAN_TAG: [u8; 4] = [0x81, 0x00, 0x00, 10];
/// See [`VLAN_TAG`].
pub const STACKED_TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0x00, 20], [0x81, 0x00, 0x00, 30]];

/// Frames with tags: the device, the tags, and the interface.
fn tagged() -> [(Tagged, &'static Device); 3] {
    let on = |device: &Device, outer: [u8; 4], inner: [u8; 4]| Tagged {
        device: device.index,
        outer: u32::from_ne_bytes(outer),
        inner: u32::from_ne_bytes(inner),
        zero: 0,
    };
    let [outer, inner] = STACKED_TAGS;
    [
        (on(&LAN, VLAN_TAG, [0; 4]), &VLAN),
        (on(&WAN, outer, inner), &STACKED),
        (on(&MEMBER, [0; 4], [0; 4]), &BOND),
    ]
}

/// The `INTERFACES` table as the controller would write it.
pub fn interfaces() -> BTreeMap<Tagged, u32> {
    tagged()
        .map(|(frames, device)| (frames, device.index))
        .into()
}

/// The `EXITS` table as the controller would write it.
pub fn exits() -> BTreeMap<u32, Tagged> {
    tagged()
        .map(|(frames, device)| (device.index, frames))
        .into()
}

/// The last byte of the addresses of the hosts on every link whose link
/// address is known; nobody else's is.
pub const KNOWN: [u8; 5] = [7, 11, 12, 13, 254];

/// The prefixes behind the router (`.254`, `::fe`) of [`LAN`].
const BEHIND_LAN: [(&str, u8); 2] = [("192.0.2.0", 24), ("2001:db8:200::", 64)];

/// The prefixes that lead nowhere, and how.
const NOWHERE: [(&str, (&str, u8)); 6] = [
    ("blackhole", ("10.0.66.0", 24)),
    ("unreachable", ("10.0.67.0", 24)),
    ("prohibit", ("10.0.68.0", 24)),
    ("blackhole", ("fd00:66::", 64)),
    ("unreachable", ("fd00:67::", 64)),
    ("prohibit", ("fd00:68::", 64)),
];

/// What the kernel's table says, by this file: the next hop, or why there is
/// none. The order of the questions is the kernel's (`bpf_fib_lookup`).
pub fn hop(query: &mut RouteQuery) -> Result<Hop, Verdict> {
    let destination = query.dst.ip();
    let came_by = (DEVICES.iter()).find(|device| device.index == query.ingress);
    if came_by.is_some_and(|device| !device.forwards) {
        return Err(Verdict::ForwardingDisabled);
    }
    if NOWHERE
        .iter()
        .any(|(_, prefix)| covers(prefix, destination))
    {
        return Err(Verdict::NoRoute);
    }
    let routed = BEHIND_LAN.iter().any(|prefix| covers(prefix, destination));
    let (device, host) = if routed {
        (&LAN, Host::Known(254))
    } else {
        let on_link = DEVICES.iter().find(|device| {
            device
                .addresses
                .iter()
                .any(|address| covers(&split(address), destination))
        });
        // Without a route the kernel's answer is that of a local destination:
        // "not forwarded".
        let device = *on_link.ok_or(Verdict::LocalDestination)?;
        (device, Host::of(destination))
    };
    let last = match host {
        Host::Here => return Err(Verdict::LocalDestination),
        _ if query.length > u32::from(device.mtu) => {
            query.mtu = u32::from(device.mtu);
            return Err(Verdict::TooBig);
        }
        Host::Unknown => return Err(Verdict::NeighbourPending),
        Host::Known(last) => last,
    };
    query.mtu = u32::from(device.mtu);
    let [src_link, dst_link] = device.to(last);
    Ok(Hop {
        egress: device.index,
        router: u32::from(routed),
        src_link: LinkAddress::new(src_link),
        dst_link: LinkAddress::new(dst_link),
    })
}

/// Who has an address on a link.
enum Host {
    /// The balancer, or everybody (IPv4's broadcast), or every router (IPv6's
    /// anycast, RFC 4291, section 2.6.1): not forwarded.
    Here,
    /// A host whose link address is known.
    Known(u8),
    /// A host whose link address is not.
    Unknown,
}

impl Host {
    fn of(address: IpAddr) -> Self {
        let number = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => match address.octets() {
                [.., 0, 0, 0, 0, 0, 0, 0, 0] => 255,
                [.., 0, 0, 0, 0, 0, 0, 0, 0xfe] => 254,
                // Host 11 is `::11`, for the eye.
                [.., 0, 0, 0, 0, 0, 0, 0, byte] if byte < 0x99 => (byte >> 4) * 10 + (byte & 15),
                _ => 0,
            },
        };
        match number {
            1 | 255 => Self::Here,
            number if KNOWN.contains(&number) => Self::Known(number),
            _ => Self::Unknown,
        }
    }
}

fn split(address: &'static str) -> (&'static str, u8) {
    let (address, length) = address.split_once('/').expect("an address has its length");
    (address, length.parse().expect("a length is a number"))
}

fn covers(prefix: &(&str, u8), address: IpAddr) -> bool {
    let network: IpAddr = prefix.0.parse().expect("a prefix is an address");
    let same = |whole: u32, a: u128, b: u128| (a ^ b) >> (whole - u32::from(prefix.1)) == 0;
    match (network, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(32, a.to_bits().into(), b.to_bits().into()),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(128, a.to_bits(), b.to_bits()),
        _ => false,
    }
}

/// The commands for `ip -batch` that make it.
pub fn commands() -> String {
    let mut lines = String::from("link set lo up\n");
    let mut say = |line: std::fmt::Arguments<'_>| {
        writeln!(lines, "{line}").expect("a string takes any text");
    };
    for device in DEVICES {
        let Device {
            name, index, mtu, ..
        } = device;
        let link = spell(device.link());
        say(format_args!(
            "link add name {name} index {index} address {link} mtu {mtu} type veth peer name {name}-far mtu {mtu}"
        ));
        say(format_args!("link set {name}-far up"));
        say(format_args!("link set {name} up"));
        for address in device.addresses {
            let flags = if address.contains(':') { " nodad" } else { "" };
            say(format_args!("address add {address} dev {name}{flags}"));
            for last in KNOWN {
                let host = match (last, address.contains(':')) {
                    (254, true) => String::from("fe"),
                    _ => last.to_string(),
                };
                let link = spell(device.neighbour(last));
                say(format_args!(
                    "neighbour add {}{host} lladdr {link} dev {name} nud permanent",
                    before_host(address)
                ));
            }
        }
    }
    for ((prefix, length), router) in BEHIND_LAN.iter().zip(["10.0.1.254", "fd00:1::fe"]) {
        say(format_args!(
            "route add {prefix}/{length} via {router} dev lan"
        ));
    }
    for (kind, (prefix, length)) in NOWHERE {
        say(format_args!("route add {kind} {prefix}/{length}"));
    }
    lines
}

/// `10.0.1.` of `10.0.1.1/24`.
fn before_host(address: &str) -> &str {
    let (address, _) = address.split_once('/').expect("an address has its length");
    address.strip_suffix('1').expect("the balancer is host 1")
}

fn spell(link: Link) -> String {
    link.map(|byte| format!("{byte:02x}")).join(":")
}
