//! The pair as the file has it: `[ha]` and `[ha.sync]`.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::{HaChecksum, Service};
use crate::tls::Paths;
use crate::vrrp::net::Family;
use crate::vrrp::packet::{Interval, most_addresses};

/// The most addresses that move with the role besides the services'.
pub const MOST_ADDRESSES: u32 = 4_096;

/// How this node shares its services' addresses with others: `[ha]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ha {
    /// By which interface the nodes hear each other.
    pub interface: String,
    /// The number of the virtual router, the same on all of them, and of nobody else
    /// on that link; 1 to 255.
    pub vrid: u8,
    /// Of those that are there the highest is active; 1 to 254.
    pub priority: u8,
    /// How often the active one says so.
    pub interval: Interval,
    /// Whether this node takes over from one of lower priority that is active.
    pub preempt: bool,
    /// How long it hears such a one before it does.
    pub preempt_delay: Duration,
    /// With whom it speaks; empty for whoever listens to the group.
    pub peers: Vec<IpAddr>,
    /// What moves with the role besides the services' addresses.
    pub addresses: Vec<IpAddr>,
    /// What the checksum over IPv4 is made over.
    pub checksum: HaChecksum,
    /// The least TTL or hop limit of advertisements that are listened to. Less than
    /// 255 they may come from elsewhere than the link.
    pub hop_limit: u8,
    /// Interfaces without which this node is of no use.
    pub track: Vec<String>,
    /// How the two nodes tell each other of connections, if they do.
    pub sync: Option<Sync>,
}

/// The channel between the two nodes: `[ha.sync]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sync {
    /// Where this node answers; may be any of its addresses.
    pub listen: SocketAddr,
    /// Where the other node does. Its certificate names this address.
    pub peer: SocketAddr,
    /// Who this node is, and whom it believes.
    pub files: Paths,
}

impl Sync {
    /// Files that are named relative to the configuration are in its folder.
    pub(super) fn look_in(&mut self, folder: &Path) {
        let Paths { cert, key, ca } = &mut self.files;
        for path in [cert, key, ca] {
            *path = folder.join(&*path);
        }
    }
}

impl Ha {
    /// Every address that moves with the role, each once: those of `addresses` first,
    /// in the order of the file.
    pub fn protected(&self, services: &[Service]) -> Vec<IpAddr> {
        let of_services = services.iter().map(|service| service.listen.ip());
        let mut seen = BTreeSet::new();
        let all = self.addresses.iter().copied().chain(of_services);
        all.filter(|&address| seen.insert(address)).collect()
    }

    /// The family by which the nodes speak: their peers' if they have some, else
    /// that of the first address. A virtual router has one family (RFC 9568,
    /// section 1.3); addresses of the other move with it all the same.
    pub fn family(&self, services: &[Service]) -> Family {
        let spoken = self.peers.first().copied();
        let first = spoken.or_else(|| {
            let protected = self.protected(services);
            let v4 = protected.iter().find(|address| address.is_ipv4());
            v4.or(protected.first()).copied()
        });
        first.map_or(Family::V4, Family::of)
    }

    /// What stands in advertisements: the addresses of the family spoken, as many as
    /// fit.
    pub fn advertised(&self, services: &[Service]) -> Vec<IpAddr> {
        let family = self.family(services);
        let mut advertised = self.protected(services);
        advertised.retain(|&address| Family::of(address) == family);
        if let Some(&first) = advertised.first() {
            advertised.truncate(most_addresses(first));
        }
        advertised
    }
}
