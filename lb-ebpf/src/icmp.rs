//! ICMP and ICMPv6, as far as services need them; the rest is the host's.
//!
//! - A ping to a service's address is answered here ([`echo`]), so that the
//!   address answers exactly where its packets are balanced.
//! - An error about a packet that was balanced is carried to the end that it
//!   concerns ([`error`]). It quotes the packet as it left here, so the packets
//!   that answer the quoted one are the key to its flow. From the way to the
//!   backend it goes to the client, from the way to the client to the backend;
//!   what is quoted is translated back into what that end had sent (RFC 5508,
//!   section 4). One about a tunnel is told to the client ([`outer`]).
//! - A sender whose packet goes no further is told why ([`tell`]).

use lb_common::Verdict;
use lb_common::abi::{Flow, FlowKey, ICMP};

use crate::connections;
use crate::packet::{Ethernet, Icmp, Packet};
use crate::parse::Part;
use crate::rewrite;
use crate::room::Room;
use crate::route;
use crate::tables::Tables;

mod echo;
mod error;
mod outer;
mod tell;

pub use tell::tell;

/// The types of ICMP (RFC 792).
mod v4 {
    pub(super) const ECHO_REPLY: u8 = 0;
    pub(super) const UNREACHABLE: u8 = 3;
    pub(super) const ECHO: u8 = 8;
    pub(super) const TIME_EXCEEDED: u8 = 11;
    pub(super) const PARAMETER_PROBLEM: u8 = 12;
    /// "Fragmentation needed", a code of "unreachable".
    pub(super) const FRAGMENTATION_NEEDED: u8 = 4;
}

/// The types of ICMPv6 (RFC 4443).
mod v6 {
    pub(super) const UNREACHABLE: u8 = 1;
    pub(super) const TOO_BIG: u8 = 2;
    pub(super) const TIME_EXCEEDED: u8 = 3;
    pub(super) const PARAMETER_PROBLEM: u8 = 4;
    pub(super) const ECHO: u8 = 128;
    pub(super) const ECHO_REPLY: u8 = 129;
}

/// A packet of ICMP or ICMPv6.
#[inline(always)]
pub fn receive(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<Verdict, Verdict> {
    if room.parsed.part != Part::Whole {
        return Err(Verdict::NotTransport);
    }
    let icmp = packet.at::<Icmp>(room.parsed.transport)?;
    let (kind, code) = (icmp.kind, icmp.code);
    let [is_echo, is_error] = if room.parsed.key.protocol == u32::from(ICMP) {
        use v4::{ECHO, PARAMETER_PROBLEM, TIME_EXCEEDED, UNREACHABLE};
        [
            kind == ECHO,
            kind == UNREACHABLE || kind == TIME_EXCEEDED || kind == PARAMETER_PROBLEM,
        ]
    } else {
        use v6::{ECHO, PARAMETER_PROBLEM, UNREACHABLE};
        [
            kind == ECHO,
            (UNREACHABLE..=PARAMETER_PROBLEM).contains(&kind),
        ]
    };
    if is_echo && code == 0 {
        echo::answer(packet, tables, room)
    } else if is_error {
        match error::carry(packet, tables, room) {
            Err(Verdict::NotTransport) => outer::carry(packet, tables, room),
            ended => ended,
        }
    } else {
        Err(Verdict::NotTransport)
    }
}

/// Whether a frame was sent to many, to whom nothing is answered (RFC 1122,
/// sections 3.2.2 and 3.3.6): its destination is no link's own address.
#[inline(always)]
fn to_many(packet: &mut impl Packet) -> bool {
    const GROUP: u8 = 1;
    match packet.at::<Ethernet>(0) {
        Ok(ethernet) => ethernet.dst[0] & GROUP != 0,
        Err(_) => true,
    }
}

/// The functions of the main path once more: there they are inlined for speed, here
/// they are calls, so that neither the program nor its stack grows with each use.
#[inline(never)]
fn of_client(tables: &impl Tables, key: &FlowKey, flow: &mut Flow) -> bool {
    connections::of_client(tables, key, flow)
}

#[inline(never)]
fn of_backend(tables: &impl Tables, key: &FlowKey, flow: &mut Flow) -> bool {
    connections::of_backend(tables, key, flow)
}

#[inline(never)]
fn route(packet: &impl Packet, tables: &impl Tables, room: &mut Room) -> Result<Verdict, Verdict> {
    route::route(packet, tables, room)
}

#[inline(never)]
fn rewrite(packet: &mut impl Packet, tables: &impl Tables, room: &mut Room) -> Result<(), Verdict> {
    rewrite::rewrite(packet, tables, room)
}
