//! Fragments: the first has the ports, and the others go where it went.
//!
//! The first fragment of a datagram leaves a note under the datagram's addresses
//! and identification; the others find the ports in it and are then packets of
//! the flow like any others. A fragment that arrives before the first, or without
//! it, cannot be followed: towards a service's address it is dropped under its
//! own name, anywhere else it is the host's.
//!
//! Translation brings datagrams of several senders under one source address,
//! where their identifications, which each sender chose by itself, may meet; the
//! receiver would put together what does not belong together. So a translated
//! datagram gets a new identification, counted for its pair of addresses as
//! Linux counts its own (RFC 6864, section 4.3; RFC 7739).

use lb_common::abi::{Fragment, FragmentKey};
use lb_common::{Action, Verdict};

use crate::parse::{Family, Parsed, Part};
use crate::room::Room;
use crate::steer::scatter;
use crate::tables::{Tables, is_service_address};

/// How long the parts of a datagram may be under way: what Linux waits for them
/// (`net.ipv4.ipfrag_time`).
const PATIENCE_SECONDS: u32 = 30;

/// Gives a later fragment the ports of its datagram.
#[inline(never)]
pub fn follow(tables: &impl Tables, parsed: &mut Parsed) -> Result<(), Verdict> {
    match recall(tables, parsed) {
        Some(first) if first.protocol != 0 => {
            parsed.key.src_port = first.src_port;
            parsed.key.dst_port = first.dst_port;
            parsed.key.protocol = first.protocol;
            parsed.new_id = first.id;
            parsed.renewed = 1;
            Ok(())
        }
        Some(_) => Err(Verdict::LaterFragment),
        None if is_service_address(tables, parsed.key.dst) => Err(Verdict::FragmentOutOfOrder),
        None => Err(Verdict::LaterFragment),
    }
}

/// What the first fragment of this datagram said, if it has come lately.
#[inline(always)]
fn recall(tables: &impl Tables, parsed: &Parsed) -> Option<Fragment> {
    let patience = PATIENCE_SECONDS * tables.settings().refresh_ticks;
    tables
        .fragment(&key(parsed))
        .filter(|first| tables.now().wrapping_sub(first.seen) < patience)
}

/// Leaves the note of a first fragment of a flow. One that comes twice keeps its
/// identification: others of the datagram may have left with it already.
#[inline(never)]
pub fn lead(tables: &impl Tables, room: &mut Room) {
    renew(tables, room);
    let parsed = &mut room.parsed;
    let twice = recall(tables, parsed).filter(|first| {
        first.protocol == parsed.key.protocol
            && first.src_port == parsed.key.src_port
            && first.dst_port == parsed.key.dst_port
    });
    if let Some(first) = twice {
        parsed.new_id = first.id;
    }
    keep(tables, parsed, parsed.key.protocol, parsed.new_id);
}

/// Gives the packet a new identification, if its addresses are translated.
#[inline(never)]
pub fn renew(tables: &impl Tables, room: &mut Room) {
    let parsed = &mut room.parsed;
    if parsed.renewed != 0 {
        return;
    }
    parsed.new_id = parsed.id;
    if !room.flow.one_way() {
        // The source is the service's address mostly; it is by the destination
        // that pairs of addresses differ.
        let place = scatter(&room.flow.dst, 0, tables.settings().seed);
        parsed.new_id = tables.fresh_id(place);
        if parsed.family == Family::V4 {
            parsed.new_id &= 0xffff;
        }
    }
    parsed.renewed = 1;
}

/// Leaves the note of a first fragment that is the host's, where the absence of
/// one would speak against those that follow it. Gives the verdict on.
#[inline(always)]
pub fn led(tables: &impl Tables, room: &Room, why: Verdict) -> Verdict {
    if room.parsed.part == Part::First && why.action() == Action::Pass {
        leave_to_host(tables, &room.parsed);
    }
    why
}

#[inline(never)]
fn leave_to_host(tables: &impl Tables, parsed: &Parsed) {
    if is_service_address(tables, parsed.key.dst) {
        keep(tables, parsed, 0, parsed.id);
    }
}

#[inline(always)]
fn keep(tables: &impl Tables, parsed: &Parsed, protocol: u32, id: u32) {
    let note = Fragment {
        src_port: parsed.key.src_port,
        dst_port: parsed.key.dst_port,
        id,
        seen: tables.now(),
        protocol,
    };
    tables.keep_fragment(&key(parsed), &note);
}

#[inline(always)]
fn key(parsed: &Parsed) -> FragmentKey {
    FragmentKey {
        src: parsed.key.src,
        dst: parsed.key.dst,
        id: parsed.id,
        protocol: match parsed.family {
            Family::V4 => parsed.key.protocol,
            Family::V6 => 0,
        },
    }
}
