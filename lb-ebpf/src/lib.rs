//! The data path of Fulcrum: what becomes of one packet.
//!
//! [`process`] is the whole of it, generic over the two seams: [`Packet`], the
//! only way to touch bytes, and [`Tables`], the questions asked of state. The
//! same source runs in the kernel, as the XDP program of `main.rs`, and on the
//! host, where the tests give it the same frames and compare. Nothing in the
//! library knows aya, the kernel, or a clock.
//!
//! One packet goes through these, in order:
//!
//! 1. [`parse`]: addresses, ports and lengths, or `Pass` when it cannot be ours.
//! 2. [`steer`]: the flow it belongs to. A known flow costs one look-up. A new
//!    one passes the [`guard`], takes the next slot of the service's sequence
//!    and is entered into the tables.
//! 3. [`route`]: the way out, as the host's own routing table has it.
//! 4. [`rewrite`]: addresses, ports, checksums, TTL and link addresses.
//!
//! Nothing is written to the packet before the way out is known, so that a
//! packet which is passed to the host or dropped is as it came.

#![no_std]

pub mod decap;
pub mod guard;
pub mod packet;
pub mod parse;
pub mod rewrite;
pub mod route;
pub mod steer;
pub mod tables;

use lb_common::Verdict;

pub use packet::{Packet, Wire};
pub use tables::{Draft, Hop, LinkAddress, RouteQuery, Stage, Tables};

use crate::steer::Attribution;

/// What becomes of this packet. The packet is rewritten in place where the
/// verdict says that it is sent, and counted once, under the verdict.
///
/// `draft` lends room for a new connection; it is asked only where one begins.
/// Without room the connection is refused as if a table were full.
#[inline(always)]
pub fn process<'a>(
    packet: &mut impl Packet,
    tables: &'a impl Tables,
    draft: impl FnOnce() -> Option<&'a mut Draft>,
) -> Verdict {
    let length = packet.length();
    let mut whose = Attribution::NOBODY;
    let verdict = match pipeline(packet, tables, draft, &mut whose) {
        Ok(verdict) | Err(verdict) => verdict,
    };
    tables.count(verdict, &whose, length as u64);
    verdict
}

/// The one screen: each step either goes on or ends in a verdict.
#[inline(always)]
fn pipeline<'a>(
    packet: &mut impl Packet,
    tables: &'a impl Tables,
    draft: impl FnOnce() -> Option<&'a mut Draft>,
    whose: &mut Attribution,
) -> Result<Verdict, Verdict> {
    let parsed = parse::parse(packet)?;
    let flow = steer::steer(packet, tables, &parsed, draft, whose)?;
    let way = route::route(packet, tables, &parsed, flow)?;
    rewrite::translate(packet, &parsed, flow, &way)?;
    Ok(way.verdict)
}
