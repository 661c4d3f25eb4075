//! The questions the data path asks of state, in its own words.
//!
//! In the kernel the answers are BPF maps and helpers (`kernel/maps.rs`), in
//! the tests ordinary collections. The table of connections is asked for its
//! memory only ([`Memory`]): what is done with it is the data path's own.

use lb_common::abi::{
    Affinity, AffinityKey, Backend, Endpoint, Fragment, FragmentKey, NextHop, Party, Policy,
    Settings, Tagged, role,
};
use lb_common::{Address, Be16, Verdict};

use crate::connections::Memory;
use crate::steer::Attribution;

/// What a new connection has displaced.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Displaced {
    /// An unfinished connection, for its place in the table.
    Handshake = 0,
    /// An ended connection, for its place in the table.
    Ended = 1,
    /// An unfinished connection, for its port towards the backend.
    Port = 2,
}

/// What to ask the routing table, about a packet as it will leave.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// Source port, or zero.
    pub src_port: Be16,
    /// Destination port, or zero.
    pub dst_port: Be16,
    /// The IP protocol.
    pub protocol: u32,
    /// The DSCP and ECN byte, for policy routing.
    pub traffic_class: u32,
    /// Length of the IP packet, for the MTU.
    pub length: u32,
    /// The interface the packet came in on.
    pub ingress: u32,
    /// Part of the answer, and of [`Verdict::TooBig`]: the MTU; zero if there is
    /// none.
    pub mtu: u32,
}

/// An Ethernet address, in one register rather than in bytes on the stack.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress(u64);

impl LinkAddress {
    /// From the three words it consists of, each as it stands in memory.
    #[inline(always)]
    pub const fn from_words([a, b, c]: [u16; 3]) -> Self {
        Self(a as u64 | (b as u64) << 16 | (c as u64) << 32)
    }

    /// From its bytes.
    #[inline(always)]
    pub const fn new([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self::from_words([
            u16::from_ne_bytes([a, b]),
            u16::from_ne_bytes([c, d]),
            u16::from_ne_bytes([e, f]),
        ])
    }

    /// As a word, to be kept.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The inverse of [`Self::word`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Writes it into a frame, two bytes at a time: the compiler would write
    /// them one by one.
    #[inline(always)]
    pub fn write(self, place: &mut [u8; 6]) {
        let (words, _) = place.as_chunks_mut::<2>();
        for (n, word) in words.iter_mut().enumerate() {
            *word = ((self.0 >> (16 * n)) as u16).to_ne_bytes();
        }
    }

    /// As it stands in a frame.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 6] {
        let [a, b] = (self.0 as u16).to_ne_bytes();
        let [c, d] = ((self.0 >> 16) as u16).to_ne_bytes();
        let [e, f] = ((self.0 >> 32) as u16).to_ne_bytes();
        [a, b, c, d, e, f]
    }
}

/// The next hop.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The interface to leave by.
    pub egress: u32,
    /// One if it is a router, zero if it is the destination itself.
    pub router: u32,
    /// The link address of that interface.
    pub src_link: LinkAddress,
    /// The link address of the next hop.
    pub dst_link: LinkAddress,
}

/// Everything the data path knows besides the packet.
pub trait Tables: Memory {
    /// The constants of this load.
    fn settings(&self) -> Settings;

    /// Kernel ticks, the low 32 bits; wraps.
    fn now(&self) -> u32;

    /// Whether this node may act for the services' addresses: alone always, in a pair
    /// while its lease lasts ([`lb_common::abi::lease`]).
    fn may_act(&self) -> bool;

    /// Who stands behind this endpoint.
    fn party(&self, endpoint: &Endpoint) -> Option<Party>;

    /// Whether there may be connections of this endpoint: of a service where `first`
    /// is [`sieve::SERVICES`], of a backend where it is [`sieve::BACKENDS`].
    ///
    /// [`sieve::SERVICES`]: lb_common::abi::sieve::SERVICES
    /// [`sieve::BACKENDS`]: lb_common::abi::sieve::BACKENDS
    fn may_have(&self, first: u32, address: &Address, port: Be16) -> bool;

    /// How the service chooses.
    fn policy(&self, service: u32) -> Policy;

    /// How many slots the service's sequence has.
    fn slots(&self, service: u32) -> u32;

    /// The slot at this place of the service's sequence.
    fn slot(&self, service: u32, place: u32) -> Option<u64>;

    /// The slot at the place of the service's sequence that this hash says.
    /// `None` when the sequence is empty.
    fn hashed_slot(&self, service: u32, hash: u32) -> Option<u64>;

    /// How many turns the service's sequence has had, which is one more now.
    fn next_turn(&self, service: u32) -> u64;

    /// The slot whose turn it is. `None` when the sequence is empty.
    fn next_slot(&self, service: u32) -> Option<u64>;

    /// How many connections of this backend live.
    fn live(&self, backend: u32) -> u32;

    /// Where the client went before.
    fn affinity(&self, client: &AffinityKey) -> Option<Affinity>;

    /// Remembers where the client goes.
    fn keep_affinity(&self, client: &AffinityKey, affinity: &Affinity);

    /// When a handshake was last displaced that had hardly begun, in kernel
    /// ticks, the low 32 bits; 0 for never.
    fn churned(&self) -> u32;

    /// That one is displaced now.
    fn churn(&self);

    /// Counts what was displaced.
    fn displace(&self, what: Displaced);

    /// The backend with this number.
    fn backend(&self, number: u32) -> Option<Backend>;

    /// What the first fragment of this datagram said.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;

    /// Remembers what a first fragment said, in place of an earlier one.
    fn keep_fragment(&self, key: &FragmentKey, fragment: &Fragment);

    /// A number that this place has not given out for long, to identify a
    /// datagram by. Datagrams with the same ends ask the same place; places
    /// wrap.
    fn fresh_id(&self, place: u32) -> u32;

    /// The host's interface for frames that come in like this.
    fn interface(&self, frames: &Tagged) -> Option<u32>;

    /// What frames of this interface leave by, if not by itself.
    fn exit(&self, interface: u32) -> Option<Tagged>;

    /// The present epoch: see [`lb_common::abi::shared::epoch`].
    fn epoch(&self) -> u32;

    /// The next hop with this number, if there are as many.
    fn hop(&self, number: u32) -> Option<&NextHop>;

    /// The next hop, or the verdict that says why there is none.
    fn next_hop(&self, query: &mut RouteQuery, hop: &mut Hop) -> Result<(), Verdict>;

    /// Chooses the interface that the packet is sent out of when the verdict is
    /// a redirect; whether the balancer is attached to it.
    fn redirect(&self, egress: u32) -> bool;

    /// Whether one more ICMP error may be sent now for this reason, and takes
    /// note of it. Each reason has a limit of its own, so that packets without
    /// TTL cannot silence the discovery of path MTUs.
    fn may_tell(&self, why: Verdict) -> bool;

    /// Counts the packet.
    fn count(&self, verdict: Verdict, whose: &Attribution, bytes: u64);
}

/// An endpoint from the parts of a flow key.
#[inline(always)]
pub(crate) const fn endpoint(address: Address, port: Be16, protocol: u16) -> Endpoint {
    Endpoint {
        address,
        port,
        protocol,
        zero: 0,
    }
}

/// Whether the address moves with the role of a pair.
#[inline(always)]
pub(crate) fn is_held(tables: &impl Tables, address: Address) -> bool {
    let bare = endpoint(address, Be16::new(0), 0);
    (tables.party(&bare)).is_some_and(|party| party.roles & (role::ADDRESS | role::HELD) != 0)
}

/// Whether services listen on the address, whatever their port.
#[inline(always)]
pub(crate) fn is_service_address(tables: &impl Tables, address: Address) -> bool {
    let bare = endpoint(address, Be16::new(0), 0);
    (tables.party(&bare)).is_some_and(|party| party.roles & role::ADDRESS != 0)
}
