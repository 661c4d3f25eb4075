//! Room to work on one packet, lent by whoever runs the data path.
//!
//! A stack of 512 bytes holds few keys and flows, and the verifier remembers
//! what is on it; so what one step of the data path leaves for the next stands
//! here. In the kernel each CPU has one room, which no other packet enters
//! while the program runs.

use lb_common::abi::{Flow, FlowKey};
use lb_common::checksum::Sum;

use crate::connections::{Hash, Search};
use crate::parse::Parsed;
use crate::schedule::Least;
use crate::steer::Attribution;
use crate::tables::{Hop, RouteQuery};

/// What is known of a packet so far. Any bytes will do to begin with: nothing
/// is read before it is written.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// What its headers say.
    pub parsed: Parsed,
    /// The flow it belongs to: what becomes of it.
    pub flow: Flow,
    /// Whom it is counted for.
    pub whose: Attribution,
    /// What was asked of the routing table.
    pub query: RouteQuery,
    /// The way out.
    pub way: Way,
    /// The epoch in which the packet came.
    pub epoch: u32,
    /// Not zero where the flow knew its next hop.
    pub known: u32,
    /// Not zero where the flow's backend is marked, so that its next packet is to
    /// be looked at as well.
    pub marked: u32,
    /// The largest segment that a SYN may announce from here on; 0 is any.
    pub max_mss: u32,
    /// Not zero where a flow has made way for one that this packet begins.
    pub anew: u32,
    /// A connection that begins.
    pub draft: Draft,
    /// The packet that an ICMP error is about.
    pub quoted: Quoted,
    /// How far a walk through bytes has come.
    pub walk: Walk,
}

/// The way out.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The next hop.
    pub hop: Hop,
    /// The outer tag of the frame that leaves, or zero.
    pub outer_tag: u32,
    /// The inner tag, likewise.
    pub inner_tag: u32,
    /// The length of the outer IP header, or zero.
    pub wrapping: u32,
    /// Zero leaves forwarding, with the TTL, to the host's stack.
    pub direct: u32,
    /// Where the flow knew its next hop: the interface that packets then came in
    /// by.
    pub ingress: u32,
    /// Likewise: how long an IP packet may be.
    pub mtu: u32,
}

/// A connection that begins.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Draft {
    /// What becomes of the client's packets.
    pub forward: Flow,
    /// The hash of the client's packets' ends.
    pub hash: Hash,
    /// The key of the backend's packets.
    pub reply_key: FlowKey,
    /// The search for a backend.
    pub least: Least,
    /// The search for a place in the table.
    pub search: Search,
    /// The search for a source port.
    pub ports: Ports,
    /// Not zero where the packet may be the rest of a handshake that was
    /// displaced.
    pub late: u32,
    /// See [`Room::marked`].
    pub marked: u32,
}

/// The search for a source port, or for the one that nat leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Where the probes began.
    pub start: u32,
    /// How many there were.
    pub probes: u32,
    /// For how many ticks a connection that has ended keeps its port.
    pub rest: u32,
    /// One of [`found`].
    pub found: u32,
    /// The port, in host order.
    pub port: u32,
    /// The place of the connection that has it, unless it is free.
    pub holder: u32,
    /// Its version.
    pub version: u32,
    /// For how long it has been silent, in sixteenths of a stamp, and one; 0 if
    /// there is none.
    pub waited: u32,
}

/// What a search for a port has found.
pub mod found {
    /// None.
    pub const NOTHING: u32 = 0;
    /// One that nobody has.
    pub const FREE: u32 = 1;
    /// One that a connection has which is over.
    pub const OVER: u32 = 2;
    /// One that a connection has which waits for its client.
    pub const HALF_OPEN: u32 = 3;
    /// There is no room for the answers, whatever the port.
    pub const FULL: u32 = 4;
}

/// How far a walk through bytes has come. It stands here, and each step is a
/// function that is not inlined, so that to the verifier a step is like the one
/// before: else it would follow every combination of steps.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    /// Where the next step begins.
    pub at: u32,
    /// Where the walk ends.
    pub end: u32,
    /// What was summed up on the way.
    pub sum: Sum,
}

/// The packet that an ICMP error is about, as it left here.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Quoted {
    /// The key of the packets that answer it.
    pub answers: FlowKey,
    /// What becomes of those.
    pub packet: Flow,
    /// Where its IP header begins.
    pub ip: u32,
    /// Where its transport header begins.
    pub transport: u32,
}
