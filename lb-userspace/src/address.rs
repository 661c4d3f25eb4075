//! The addresses of services on this host's interfaces, over rtnetlink.
//!
//! A service's address is put on an interface so that the host answers for it
//! (ARP, neighbour discovery, ping); the packets themselves are taken by the
//! XDP program before the host's stack sees them. It must never become an
//! address from which the host itself speaks:
//!
//! - IPv4: it is added as a /32 of global scope. The kernel chooses a source
//!   from a route's own preferred source, else the address of the interface
//!   whose subnet holds the next hop, else the interface's first address of
//!   sufficient scope. A /32 holds no next hop, and an address of global scope
//!   is put behind those that are there; one of a narrower scope would be put
//!   before them and be chosen for neighbours on the link. What is left is an
//!   interface with no IPv4 address of its own: give it one.
//! - IPv6: it is added as a /128, deprecated from the start (a preferred
//!   lifetime of 0), which RFC 6724, section 5, rule 3 makes the last choice,
//!   and without duplicate address detection, so that it answers at once and
//!   a peer that still holds it cannot veto it.
//!
//! Ours and the host's own must not be mixed up: what an administrator put
//! there is never taken away. What this program adds carries [`MARK`] as its
//! protocol (`ip address show` prints it as `proto 0x4c`), so that a daemon
//! started after a `kill -9` knows its own again. Kernels before 5.18 do not
//! keep the mark: there an address left behind counts as the host's own, and
//! stays until it is removed by hand.
//!
//! No gratuitous ARP is sent here: on a lone balancer nobody else held the
//! address; a pair announces when an address moves, which is its own concern.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, CacheInfo,
};
use rustix::io::Errno;
use thiserror::Error;
use tokio::task::JoinHandle;

use crate::host;

/// The protocol (`IFA_PROTO`) of the addresses that this program added: an `L`.
pub const MARK: u8 = b'L';

/// A lifetime without end (`INFINITY_LIFE_TIME` in the kernel).
const FOREVER: u32 = u32::MAX;

/// What [`Addresses::add`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It was nowhere; now it is there, and ours to remove.
    Added,
    /// An earlier run of this program put it there; it is ours to remove.
    Ours,
    /// The host has it of its own accord; it is not ours to remove.
    AlreadyThere,
}

/// An address on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The interface's index.
    pub index: u32,
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// The length of its subnet's prefix.
    pub prefix: u8,
    /// Whether this program added it (see [`MARK`]).
    pub ours: bool,
}

/// Why addresses could not be read or changed.
#[derive(Debug, Error)]
pub enum AddressError {
    /// The interface is not there.
    #[error(transparent)]
    Interface(#[from] host::InterfaceError),
    /// No netlink socket.
    #[error("cannot speak to the kernel about addresses (netlink): {0}")]
    Connect(#[source] io::Error),
    /// The list could not be read.
    #[error("cannot list the addresses of this host: {0}")]
    List(#[source] io::Error),
    /// The address could not be added.
    #[error("cannot add {address} to {interface}: {source}; {}", advice(*address, .source))]
    Add {
        /// The address.
        address: IpAddr,
        /// Where it was to go.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The address could not be removed.
    #[error(
        "cannot remove {address} from {interface}: {source}; it is still there, remove it by `ip address del {address} dev {interface}`"
    )]
    Remove {
        /// The address.
        address: IpAddr,
        /// Where it is.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
}

fn advice(address: IpAddr, error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM) => "run as root, or with CAP_NET_ADMIN",
        Some(Errno::ACCESS | Errno::INVAL | Errno::OPNOTSUPP) if address.is_ipv6() => {
            "IPv6 may be off on it: set the sysctl net.ipv6.conf.INTERFACE.disable_ipv6 to 0"
        }
        _ => "try the same by `ip address add` for details",
    }
}

/// A netlink connection for addresses; closed when dropped.
#[derive(Debug)]
pub struct Addresses {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Drop for Addresses {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Addresses {
    /// Opens the connection, in the calling thread's network namespace
    /// (called within a tokio runtime).
    pub fn connect() -> Result<Self, AddressError> {
        let (connection, handle, _messages) =
            rtnetlink::new_connection().map_err(AddressError::Connect)?;
        let connection = tokio::spawn(connection);
        Ok(Self { handle, connection })
    }

    /// Every address of this host.
    pub async fn list(&self) -> Result<Vec<Listed>, AddressError> {
        let mut messages = self.handle.address().get().execute();
        let mut listed = Vec::new();
        let mut names = BTreeMap::new();
        let failed = |error| AddressError::List(into_io(error));
        while let Some(message) = messages.try_next().await.map_err(failed)? {
            let index = message.header.index;
            let name = names
                .entry(index)
                .or_insert_with(|| host::interface_name(index).ok());
            // An interface that vanished since has no addresses any more.
            if let Some(interface) = name.clone() {
                listed.extend(listed_from(&message, interface));
            }
        }
        Ok(listed)
    }

    /// Puts `address` on `interface`, unless the host has it, on whichever
    /// interface and with whatever prefix.
    pub async fn add(&self, interface: &str, address: IpAddr) -> Result<Added, AddressError> {
        let listed = self.list().await?;
        match listed.iter().find(|there| there.address == address) {
            Some(there) if there.ours => Ok(Added::Ours),
            Some(_) => Ok(Added::AlreadyThere),
            None => self.add_new(interface, address).await,
        }
    }

    /// Puts an address that is not in the list ([`Self::list`]) on `interface`:
    /// who adds many of them reads the list once.
    pub async fn add_new(&self, interface: &str, address: IpAddr) -> Result<Added, AddressError> {
        let index = host::ifindex(interface)?;
        let mut request = self
            .handle
            .address()
            .add(index, address, full_prefix(address));
        request.message_mut().attributes.extend(nature(address));
        match request.execute().await.map_err(into_io) {
            Ok(()) => Ok(Added::Added),
            // Somebody else was faster since the list was read.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::EXIST) => {
                Ok(Added::AlreadyThere)
            }
            Err(source) => Err(AddressError::Add {
                address,
                interface: interface.into(),
                source,
            }),
        }
    }

    /// Takes `address` off `interface`; gives whether it was there as a host
    /// address (/32 or /128), the only form this program adds.
    pub async fn remove(&self, interface: &str, address: IpAddr) -> Result<bool, AddressError> {
        let index = host::ifindex(interface)?;
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = full_prefix(address);
        message.header.family = match address {
            IpAddr::V4(_) => rtnetlink::packet_route::AddressFamily::Inet,
            IpAddr::V6(_) => rtnetlink::packet_route::AddressFamily::Inet6,
        };
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        match self
            .handle
            .address()
            .del(message)
            .execute()
            .await
            .map_err(into_io)
        {
            Ok(()) => Ok(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => Ok(false),
            Err(source) => Err(AddressError::Remove {
                address,
                interface: interface.into(),
                source,
            }),
        }
    }
}

/// The interface for an address: of the `configured` ones that whose subnet
/// holds it (the longest prefix, then the earlier one), else the first.
pub fn interface_for<'a>(
    address: IpAddr,
    configured: &'a [String],
    listed: &[Listed],
) -> Option<&'a str> {
    let longest = |interface: &String| {
        listed
            .iter()
            .filter(|entry| entry.interface == *interface)
            .filter(|entry| in_subnet(address, entry.address, entry.prefix))
            .map(|entry| entry.prefix)
            .max()
    };
    // `max_by_key` gives the last of equals: asked backwards, the earliest.
    let best = configured
        .iter()
        .rev()
        .max_by_key(|interface| longest(interface));
    best.map(String::as_str)
}

/// Whether `address` lies in the subnet of `prefix` bits around `of`.
pub(crate) fn in_subnet(address: IpAddr, of: IpAddr, prefix: u8) -> bool {
    let (difference, width) = match (address, of) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits() ^ b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
    };
    let host_bits = u32::from(u8::saturating_sub(width, prefix));
    difference.checked_shr(host_bits).unwrap_or(0) == 0
}

const fn full_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// What makes an added address ours, and no source address; see the module's
/// documentation.
fn nature(address: IpAddr) -> Vec<AddressAttribute> {
    let mark = AddressAttribute::Protocol(AddressProtocol::Other(MARK));
    match address {
        IpAddr::V4(_) => vec![mark],
        IpAddr::V6(_) => {
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_preferred = 0;
            lifetimes.ifa_valid = FOREVER;
            vec![
                mark,
                AddressAttribute::Flags(AddressFlags::Nodad),
                AddressAttribute::CacheInfo(lifetimes),
            ]
        }
    }
}

fn listed_from(message: &AddressMessage, interface: String) -> Option<Listed> {
    // On a point-to-point link ADDRESS is the other end and LOCAL is ours;
    // IPv6 gives LOCAL only there.
    let (mut local, mut other, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Protocol(protocol) => ours = u8::from(*protocol) == MARK,
            _ => {}
        }
    }
    Some(Listed {
        index: message.header.index,
        interface,
        address: local.or(other)?,
        prefix: message.header.prefix_len,
        ours,
    })
}

fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}
