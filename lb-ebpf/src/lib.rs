//! The data path of Fulcrum: what becomes of one packet.
//!
//! [`process`] is the whole of it, generic over the two seams: [`Packet`], the
//! only way to touch bytes, and [`Tables`], the questions asked of state. The
//! same source runs in the kernel, as the XDP program of `main.rs`, and on the
//! host, where the tests give it the same frames and compare. Nothing in the
//! library knows aya, the kernel, or a clock.
//!
//! One packet goes through these, in order; on a node of a pair that is not the active
//! one it goes nowhere ([`passive`]):
//!
//! 1. [`parse`]: tags, addresses, ports and lengths, or `Pass` when it cannot be
//!    ours.
//! 2. [`fragments`]: a fragment that has no ports gets those of the first one.
//! 3. [`steer`]: the flow it belongs to. A known flow costs one look-up in the
//!    table of [`connections`]. A new one passes the [`guard`], is given a backend
//!    by the service's [`schedule`] and enters the table.
//! 4. [`route`]: the way out, as the host's own routing table has it; a flow
//!    remembers it ([`hops`]).
//! 5. [`rewrite`]: addresses, ports, checksums, TTL, the outer header, tags and
//!    link addresses, as the way of forwarding has it.
//!
//! [`icmp`] has a way of its own through the last two: it answers pings, carries
//! errors about flows to the end that they concern, and tells a sender why its
//! packet went no further. [`reset`] ends connections whose backend is gone.
//!
//! Nothing is written to the packet before the way out is known, so that a
//! packet which is passed to the host or dropped is as it came. What one step
//! leaves for the next stands in a [`Room`].

#![no_std]

pub mod connections;
pub mod decap;
pub mod fragments;
pub mod guard;
pub mod hops;
pub mod icmp;
pub mod packet;
pub mod parse;
pub mod passive;
pub mod reset;
pub mod rewrite;
pub mod room;
pub mod route;
pub mod schedule;
pub mod steer;
pub mod tables;

use lb_common::Verdict;

pub use connections::{Memory, Shape};
pub use packet::{Packet, Wire};
pub use room::{Draft, Room};
pub use tables::{Displaced, Hop, LinkAddress, RouteQuery, Tables};

use crate::parse::Part;
use crate::steer::Attribution;

/// What becomes of this packet. The packet is rewritten in place where the
/// verdict says that it is sent, and counted once, under the verdict.
#[inline(always)]
pub fn process(packet: &mut impl Packet, tables: &impl Tables, room: &mut Room) -> Verdict {
    let length = packet.length();
    room.whose = Attribution::NOBODY;
    room.known = 0;
    let verdict = match pipeline(packet, tables, room) {
        Err(why @ (Verdict::TtlExpired | Verdict::TooBig)) => icmp::tell(packet, tables, room, why),
        Err(Verdict::FlowReset) => reset::answer(packet, room),
        Ok(verdict) | Err(verdict) => verdict,
    };
    tables.count(verdict, &room.whose, length);
    verdict
}

/// The one screen: each step either goes on or ends in a verdict.
#[inline(always)]
fn pipeline(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<Verdict, Verdict> {
    if !tables.may_act() {
        return Err(passive::receive(packet, tables, room));
    }
    if let Err(why) = parse::parse(packet, &mut room.parsed) {
        return Err(fragments::led(tables, room, why));
    }
    if room.parsed.is_icmp() {
        return icmp::receive(packet, tables, room)
            .map_err(|why| fragments::led(tables, room, why));
    }
    if room.parsed.part == Part::Later {
        fragments::follow(tables, &mut room.parsed)?;
    }
    steer::steer(packet, tables, room).map_err(|why| fragments::led(tables, room, why))?;
    if room.parsed.part == Part::First {
        fragments::lead(tables, room);
    }
    let verdict = route::route(packet, tables, room)?;
    rewrite::rewrite(packet, tables, room)?;
    Ok(verdict)
}
