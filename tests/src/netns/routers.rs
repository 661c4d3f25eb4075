//! A client that is elsewhere: two routers between it and the balancer, and
//! between them a link that can be made narrow.
//!
//! ```text
//!   client ────────── far ══════════ near ── br0 ── balancer, …
//!       10.9.2.0/24       10.9.3.0/24   └─── br1, with two arms
//!        fd09:2::/64       fd09:3::/64
//! ```
//!
//! Both ends of each cable have the same MTU: a veth drops what is larger than
//! its own without telling anybody, and here a router is to tell.

use std::net::IpAddr;

use anyhow::Result;

use super::{Arms, Family, Host, Net, beyond_v4, beyond_v6};

/// The name of the narrow link at either router.
const MIDDLE: &str = "mid";

/// See the module.
#[derive(Clone, Debug)]
pub struct Routers {
    /// The balancer's.
    pub near: Host,
    /// The client's.
    pub far: Host,
}

impl Routers {
    /// Changes the MTU of the link between them.
    pub fn narrow_to(&self, mtu: u16) -> Result<()> {
        for host in [&self.near, &self.far] {
            host.run("ip", &["link", "set", MIDDLE, "mtu", &mtu.to_string()])?;
        }
        Ok(())
    }

    /// The address of the near router that a traceroute of the client shows.
    pub fn middle_of_near(&self, family: Family) -> IpAddr {
        middle(family, 1)
    }

    /// Commands for `ip`.
    pub(super) fn cables(&self, net: &Net) -> String {
        let mut text = String::new();
        let mut say = |line: String| text = format!("{text}{line}\n");
        let Self { near, far } = self;
        let client = &net.client;
        for (interface, host, other) in [("eth0", client, far), (MIDDLE, near, far)] {
            say(format!(
                "link add {interface} netns {} type veth peer name {interface} netns {}",
                host.namespace, other.namespace
            ));
        }
        let ends = Family::ALL.into_iter().flat_map(|family| {
            [
                (client, "eth0", client.address(family)),
                (far, "eth0", far.address(family)),
                (far, MIDDLE, middle(family, 2)),
                (near, MIDDLE, middle(family, 1)),
            ]
        });
        for (host, interface, address) in ends {
            let length = if address.is_ipv4() { "24" } else { "64 nodad" };
            let (length, flags) = length.split_once(' ').unwrap_or((length, ""));
            let namespace = &host.namespace;
            say(format!(
                "-n {namespace} addr add {address}/{length} dev {interface} {flags}"
            ));
            say(format!("-n {namespace} link set {interface} up"));
        }
        for family in Family::ALL {
            let clients = match family {
                Family::V4 => "10.9.2.0/24",
                Family::V6 => "fd09:2::/64",
            };
            for (host, to, via) in [
                (client, "default", far.address(family)),
                (far, "default", middle(family, 1)),
                (near, clients, middle(family, 2)),
                (&net.balancer, "default", near.address(family)),
            ] {
                say(format!("-n {} route add {to} via {via}", host.namespace));
            }
        }
        text
    }

    /// They forward, and leave nobody untold.
    pub(super) fn build(&self) -> Result<()> {
        for host in [&self.near, &self.far] {
            for (setting, value) in [
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv4/icmp_ratelimit", "0"),
                ("ipv6/icmp/ratelimit", "0"),
                ("ipv4/conf/all/send_redirects", "0"),
                ("ipv4/conf/eth0/send_redirects", "0"),
            ] {
                host.sysctl(setting, value)?;
            }
        }
        Ok(())
    }
}

impl Net {
    /// The backends' way back to a client beyond the routers leads where a
    /// service with this `forward` needs it: through the balancer (`nat`), or
    /// past it (`dsr`, `tunnel`). With `full-nat` they need none.
    pub fn lead_answers(&self, forward: &str) -> Result<()> {
        let Some(routers) = &self.routers else {
            return Ok(());
        };
        let through = match forward {
            "full-nat" => return Ok(()),
            "nat" => &self.balancer,
            _ => &routers.near,
        };
        for family in Family::ALL {
            let via = match (self.arms, family) {
                (Arms::One, family) => through.address(family),
                (Arms::Two, Family::V4) => beyond_v4(through).into(),
                (Arms::Two, Family::V6) => beyond_v6(through).into(),
            };
            let via = via.to_string();
            for backend in &self.backends {
                backend.run("ip", &["route", "replace", "default", "via", &via])?;
            }
        }
        Ok(())
    }
}

fn middle(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => [10, 9, 3, last].into(),
        Family::V6 => [0xfd09, 3, 0, 0, 0, 0, 0, u16::from(last)].into(),
    }
}
