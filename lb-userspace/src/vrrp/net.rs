//! The sockets of VRRP: advertisements out and in, on one interface.
//!
//! A raw socket of protocol 112 is bound to the interface. Without peers it speaks
//! to the group and listens there (RFC 9568, sections 5.1.1.2 and 5.1.2.2); with
//! peers it speaks to each of them, and hears nobody else.
//!
//! What the checks of section 7.1 need is taken from where it cannot be lost: over
//! IPv4 a raw socket gives the whole packet; over IPv6 the hop limit and the
//! destination come beside it, as ancillary data. Going out, an IPv4 header is
//! written here, because a raw socket that were bound to its source address would
//! hear nothing that is sent to the group; over IPv6 it may be bound.

use std::io::{self, IoSliceMut, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use thiserror::Error;

use super::announce::Mac;
use super::packet::{
    Advertisement, Checksum, Envelope, Expected, GROUP_V4, GROUP_V6, HOP_LIMIT, PROTOCOL, Rejected,
    open_v4, parse,
};
use crate::address::in_subnet;
use crate::host;

/// The longest packet that is looked at: 255 addresses over IPv6 take 4,088 bytes.
const MOST: usize = 4_608;

/// Internetwork control (RFC 2474, section 4.2.2.2): routers and queues let it pass
/// first.
const TRAFFIC_CLASS: u8 = 0xc0;

/// The family by which nodes speak to each other; that of the advertised addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// That of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    const fn group(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(GROUP_V4),
            Self::V6 => IpAddr::V6(GROUP_V6),
        }
    }
}

/// What is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The interface's name.
    pub interface: String,
    /// By which family.
    pub family: Family,
    /// To whom, if not to the group.
    pub peers: Vec<IpAddr>,
    /// Addresses that move with the role, so none to speak from.
    pub protected: Vec<IpAddr>,
}

/// Why there can be no advertisements on an interface now.
#[derive(Debug, Error)]
pub enum PortError {
    /// There is none of that name.
    #[error(transparent)]
    Interface(#[from] host::InterfaceError),
    /// It is down, or has no carrier.
    #[error("interface {0} is down or has no carrier")]
    Down(String),
    /// It has no address of its own to speak from.
    #[error(
        "interface {interface} has no {} address of its own{}: give it one that is no service's",
        family.word(),
        near.map(|peer| format!(" in the network of the peer {peer}")).unwrap_or_default()
    )]
    NoAddress {
        /// The interface.
        interface: String,
        /// Of which family.
        family: Family,
        /// Near whom, if that was asked.
        near: Option<IpAddr>,
    },
    /// The kernel refused a socket.
    #[error(
        "cannot open a socket for VRRP on {interface}: {source}; it needs root, or CAP_NET_RAW"
    )]
    Socket {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Where advertisements go out and come in.
#[derive(Debug)]
pub struct Port {
    socket: Socket,
    /// From where it speaks.
    pub source: IpAddr,
    /// The interface's index.
    pub index: u32,
    destinations: Vec<IpAddr>,
    peers: Vec<IpAddr>,
}

/// What came in.
pub type Received = Result<(Advertisement, Checksum, IpAddr), Rejected>;

impl Port {
    /// Opens what is wanted, in the calling thread's network namespace.
    pub fn open(wanted: &Wanted) -> Result<Self, PortError> {
        let index = host::ifindex(&wanted.interface)?;
        let unopened = |source: io::Error| PortError::Socket {
            interface: wanted.interface.clone(),
            source,
        };
        let seen = Seen::look(&wanted.interface).map_err(unopened)?;
        if !seen.running {
            return Err(PortError::Down(wanted.interface.clone()));
        }
        let source = seen.source(wanted).ok_or_else(|| PortError::NoAddress {
            interface: wanted.interface.clone(),
            family: wanted.family,
            near: wanted.peers.first().copied(),
        })?;
        let socket = match wanted.family {
            Family::V4 => open_socket_v4(&wanted.interface, index),
            Family::V6 => open_socket_v6(&wanted.interface, index, source),
        };
        let destinations = if wanted.peers.is_empty() {
            vec![wanted.family.group()]
        } else {
            wanted.peers.clone()
        };
        Ok(Self {
            socket: socket.map_err(unopened)?,
            source,
            index,
            destinations,
            peers: wanted.peers.clone(),
        })
    }

    /// Sends to the group or to every peer. One peer that cannot be reached does not
    /// keep the others from it; it fails if nobody could be.
    pub fn send(&self, advertisement: &Advertisement, checksum: Checksum) -> io::Result<()> {
        let mut outcome = Err(io::ErrorKind::NotConnected.into());
        for &destination in &self.destinations {
            let sent = self.send_to(destination, advertisement, checksum);
            if outcome.is_err() {
                outcome = sent;
            }
        }
        outcome
    }

    fn send_to(
        &self,
        destination: IpAddr,
        advertisement: &Advertisement,
        checksum: Checksum,
    ) -> io::Result<()> {
        let message = advertisement
            .write(self.source, destination, checksum)
            .map_err(io::Error::other)?;
        match (self.source, destination) {
            (IpAddr::V4(source), IpAddr::V4(to)) => {
                let packet = wrap_v4(source, to, &message);
                let end = SocketAddr::new(destination, 0);
                self.socket.send_to(&packet, &end.into()).map(drop)
            }
            (_, IpAddr::V6(to)) => {
                let end = SocketAddrV6::new(to, 0, 0, self.index);
                self.socket.send_to(&message, &end.into()).map(drop)
            }
            (IpAddr::V6(_), IpAddr::V4(_)) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// The next packet that is there, if there is one.
    pub fn receive(&self, expected: Expected) -> io::Result<Option<Received>> {
        let mut buffer = [0; MOST];
        let read = match self.source {
            IpAddr::V4(_) => (&self.socket)
                .read(&mut buffer)
                .map(|length| open_v4(&buffer[..length])),
            IpAddr::V6(_) => receive_v6(&self.socket, &mut buffer),
        };
        match read {
            Ok(Ok((envelope, message))) => Ok(Some(self.judge(&envelope, message, expected))),
            Ok(Err(rejected)) => Ok(Some(Err(rejected))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn judge(&self, envelope: &Envelope, message: &[u8], expected: Expected) -> Received {
        if envelope.source == self.source {
            return Err(Rejected::Reflected);
        }
        if !self.peers.is_empty() && !self.peers.contains(&envelope.source) {
            return Err(Rejected::Stranger);
        }
        let (advertisement, checksum) = parse(message, envelope, expected)?;
        Ok((advertisement, checksum, envelope.source))
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An interface as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is up and has a carrier.
    pub running: bool,
    /// Its link-layer address, if it has one as Ethernet has them.
    pub mac: Option<Mac>,
    /// Its addresses, with the lengths of their prefixes, in the kernel's order.
    addresses: Vec<(IpAddr, u8)>,
}

impl Seen {
    /// The interface of this name, in the calling thread's network namespace.
    pub fn look(interface: &str) -> io::Result<Self> {
        let mut seen = Self::default();
        for entry in getifaddrs()?.filter(|entry| entry.interface_name == interface) {
            let flags = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
            seen.running = entry.flags.contains(flags);
            let Some(address) = entry.address else {
                continue;
            };
            if let Some(link) = address.as_link_addr() {
                seen.mac = link.addr();
            } else if let Some(own) = ip(&address) {
                let mask = entry.netmask.as_ref().and_then(ip);
                seen.addresses.push((own, mask.map_or(0, prefix)));
            }
        }
        Ok(seen)
    }

    /// From which address it speaks: over IPv6 to its own link by its link-local
    /// one (RFC 9568, section 5.1.2.1), else by one in the network of its first
    /// peer, else by its first.
    fn source(&self, wanted: &Wanted) -> Option<IpAddr> {
        let near = wanted.peers.first().copied();
        let own = self.addresses.iter().filter(|(address, _)| {
            Family::of(*address) == wanted.family && !wanted.protected.contains(address)
        });
        let on_link = |address: IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let by_link = wanted.family == Family::V6 && near.is_none_or(on_link);
        let mut candidates = own.filter(|(address, _)| on_link(*address) == by_link);
        match near {
            Some(peer) if !by_link => {
                candidates.find(|(address, length)| in_subnet(peer, *address, *length))
            }
            Some(_) | None => candidates.next(),
        }
        .map(|(address, _)| *address)
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = || address.as_sockaddr_in().map(|address| address.ip().into());
    let v6 = || address.as_sockaddr_in6().map(|address| address.ip().into());
    v4().or_else(v6)
}

fn prefix(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().count_ones(),
        IpAddr::V6(mask) => mask.to_bits().count_ones(),
    };
    // There are 128 bits at most.
    ones as u8
}

fn raw(domain: Domain, interface: &str) -> io::Result<Socket> {
    let protocol = Protocol::from(i32::from(PROTOCOL));
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    Ok(socket)
}

fn open_socket_v4(interface: &str, index: u32) -> io::Result<Socket> {
    let socket = raw(Domain::IPV4, interface)?;
    // With the header come TTL and traffic class.
    socket.set_header_included_v4(true)?;
    socket.set_multicast_loop_v4(false)?;
    socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index))?;
    Ok(socket)
}

fn open_socket_v6(interface: &str, index: u32, source: IpAddr) -> io::Result<Socket> {
    let socket = raw(Domain::IPV6, interface)?;
    let hops = u32::from(HOP_LIMIT);
    socket.set_multicast_hops_v6(hops)?;
    socket.set_unicast_hops_v6(hops)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    socket.set_tclass_v6(u32::from(TRAFFIC_CLASS))?;
    socket.set_recv_hoplimit_v6(true)?;
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    socket.join_multicast_v6(&GROUP_V6, index)?;
    if let IpAddr::V6(source) = source {
        socket.bind(&SocketAddrV6::new(source, 0, 0, index).into())?;
    }
    Ok(socket)
}

/// One packet, and what the kernel says of its header.
fn receive_v6<'b>(
    socket: &Socket,
    buffer: &'b mut [u8; MOST],
) -> io::Result<Result<(Envelope, &'b [u8]), Rejected>> {
    let mut space = nix::cmsg_space!(libc::in6_pktinfo, libc::c_int);
    let (length, source, hop_limit, destination) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrIn6>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::empty(),
        )?;
        let (mut hop_limit, mut destination) = (None, None);
        for told in message.cmsgs()? {
            match told {
                ControlMessageOwned::Ipv6HopLimit(limit) => hop_limit = u8::try_from(limit).ok(),
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                }
                _ => {}
            }
        }
        let source = message.address.map(|address| address.ip());
        (message.bytes, source, hop_limit, destination)
    };
    let (Some(source), Some(hop_limit), Some(destination)) = (source, hop_limit, destination)
    else {
        return Ok(Err(Rejected::Truncated));
    };
    let envelope = Envelope {
        source: source.into(),
        destination: destination.into(),
        hop_limit,
    };
    Ok(Ok((envelope, &buffer[..length])))
}

/// An IPv4 header in front of a message. Its checksum and its identification the
/// kernel fills in.
fn wrap_v4(source: Ipv4Addr, destination: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    // A message has at most 1,028 bytes.
    let total = (20 + message.len()) as u16;
    let mut packet = vec![0x45, TRAFFIC_CLASS];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0, HOP_LIMIT, PROTOCOL, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(message);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(addresses: &[(&str, u8)]) -> Seen {
        let addresses = addresses
            .iter()
            .map(|(address, length)| (address.parse().unwrap(), *length))
            .collect();
        Seen {
            running: true,
            mac: None,
            addresses,
        }
    }

    fn source(seen: &Seen, family: Family, peers: &[&str], protected: &[&str]) -> Option<String> {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let wanted = Wanted {
            interface: "eth0".into(),
            family,
            peers: ips(peers),
            protected: ips(protected),
        };
        seen.source(&wanted).map(|address| address.to_string())
    }

    #[test]
    fn it_speaks_from_an_address_of_its_own() {
        let seen = seen(&[
            ("203.0.113.10", 32),
            ("10.0.0.2", 24),
            ("10.1.0.2", 24),
            ("2001:db8::2", 64),
            ("fe80::2", 64),
        ]);
        let vip = &["203.0.113.10"];
        let of = |family, peers| source(&seen, family, peers, vip);
        assert_eq!(of(Family::V4, &[]).as_deref(), Some("10.0.0.2"));
        assert_eq!(of(Family::V4, &["10.1.0.3"]).as_deref(), Some("10.1.0.2"));
        assert_eq!(of(Family::V4, &["10.9.0.3"]), None);
        assert_eq!(of(Family::V6, &[]).as_deref(), Some("fe80::2"));
        assert_eq!(of(Family::V6, &["fe80::3"]).as_deref(), Some("fe80::2"));
        assert_eq!(
            of(Family::V6, &["2001:db8::3"]).as_deref(),
            Some("2001:db8::2")
        );
    }

    #[test]
    fn the_loopback_interface_is_seen_as_it_is() {
        let seen = Seen::look("lo").unwrap();
        assert!(seen.running);
        assert!(seen.addresses.contains(&(Ipv4Addr::LOCALHOST.into(), 8)));
    }
}
