//! Which backend a new connection goes to.
//!
//! The controller has laid out a sequence of slots for each service, and says by
//! which of [`pick`] one is chosen. What a scheduler is otherwise (how many slots
//! a backend gets, and which) is the controller's.
//!
//! - `TURN`: the slots one after the other, on all CPUs together.
//! - `FLOW_HASH`, `SOURCE_HASH`: the place that a hash says, of both ends or of
//!   the client's address. The hash is the same on every node and after every
//!   start.
//! - `LEAST`: of the slots, looked through from a place that moves on with each
//!   connection, the backend with the least `(live + 1) / weight`; the first among
//!   equals. At most [`MOST_COMPARED`] are looked at.
//!
//! A client with affinity goes where it went before, as long as that backend takes
//! new connections. And while forged handshakes push each other out of the table,
//! a service that sees one direction only chooses by hash whatever its policy: so
//! the client's acknowledgement finds its backend again, even if the SYN has been
//! forgotten.

use lb_common::abi::{Affinity, AffinityKey, FlowKey, NOBODY, Policy, backend, forward, pick};
use lb_common::{Address, Verdict};

use crate::room::Draft;
use crate::steer::{both_ports, scatter};
use crate::tables::Tables;

/// How many backends are compared for one connection.
pub const MOST_COMPARED: u32 = 64;

/// For how many seconds after handshakes were displaced others may have been.
const CHURN_SECONDS: u32 = 4;

/// How long ago handshakes may have been displaced whose acknowledgement comes
/// now: as long as a client may take for one.
const LATE_SECONDS: u32 = 64;

/// The way through a sequence in search of the least loaded backend.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Least {
    /// The slot to look at.
    place: u32,
    /// How many slots there are.
    length: u32,
    /// The best backend so far.
    backend: u32,
    /// Its weight; 0 while there is none.
    weight: u32,
    /// Its live connections, and one.
    load: u32,
}

/// What places a connection by its two ends, for policies with a hash.
#[inline(always)]
pub const fn flow_hash(key: &FlowKey) -> u32 {
    let [a, b, c, d] = key.dst.words();
    scatter(&key.src, both_ports(key), a ^ b ^ c ^ d)
}

/// What places a connection by its client's address.
#[inline(always)]
pub const fn source_hash(client: &Address) -> u32 {
    scatter(client, 0, 0)
}

/// The backend for a new connection.
#[inline(always)]
pub fn choose(
    tables: &impl Tables,
    key: &FlowKey,
    service: u32,
    one_way: bool,
    draft: &mut Draft,
) -> Result<u32, Verdict> {
    let policy = tables.policy(service);
    let client = AffinityKey {
        client: key.src,
        service,
        zero: 0,
    };
    if policy.affinity_ticks != 0 {
        let earlier = earlier(tables, &client, policy.affinity_ticks);
        if earlier != NOBODY {
            remember(tables, &client, earlier);
            return Ok(earlier);
        }
    }
    let by = by(tables, &policy, one_way, draft.late != 0);
    let chosen = pick_one(tables, key, service, by, draft)?;
    if policy.affinity_ticks != 0 {
        remember(tables, &client, chosen);
    }
    Ok(chosen)
}

/// The backend that the client went to, if it still takes connections.
#[inline(always)]
fn earlier(tables: &impl Tables, client: &AffinityKey, ticks: u32) -> u32 {
    let Some(earlier) = tables.affinity(client) else {
        return NOBODY;
    };
    let Some(known) = tables.backend(earlier.backend) else {
        return NOBODY;
    };
    let fresh = tables.now().wrapping_sub(earlier.seen) < ticks;
    if fresh && known.flags & backend::OPEN != 0 && known.service == client.service {
        earlier.backend
    } else {
        NOBODY
    }
}

#[inline(always)]
fn remember(tables: &impl Tables, client: &AffinityKey, backend: u32) {
    let affinity = Affinity {
        backend,
        seen: tables.now(),
    };
    tables.keep_affinity(client, &affinity);
}

/// The pick that counts now.
#[inline(always)]
fn by(tables: &impl Tables, policy: &Policy, one_way: bool, late: bool) -> u32 {
    let displaced = one_way && (late || churns(tables, CHURN_SECONDS));
    if displaced && policy.pick != pick::SOURCE_HASH {
        pick::FLOW_HASH
    } else {
        policy.pick
    }
}

/// Whether a client's packet that no connection explains may be the rest of a
/// handshake that was displaced.
#[inline(always)]
pub fn may_be_late(tables: &impl Tables, forward: u8) -> bool {
    forward::one_way(forward) && churns(tables, LATE_SECONDS)
}

/// Whether young handshakes were displaced within so many seconds.
#[inline(always)]
fn churns(tables: &impl Tables, seconds: u32) -> bool {
    let last = tables.churned();
    // What is noted is never zero, and so a tick ahead where the time is even.
    let since = tables.now().wrapping_add(1).wrapping_sub(last);
    last != 0 && since < seconds * tables.settings().refresh_ticks
}

#[inline(always)]
fn pick_one(
    tables: &impl Tables,
    key: &FlowKey,
    service: u32,
    by: u32,
    draft: &mut Draft,
) -> Result<u32, Verdict> {
    let slot = match by {
        pick::FLOW_HASH => tables.hashed_slot(service, flow_hash(key)),
        pick::SOURCE_HASH => tables.hashed_slot(service, source_hash(&key.src)),
        pick::LEAST => return least(tables, service, draft),
        _ => tables.next_slot(service),
    };
    slot.map(|slot| slot as u32).ok_or(Verdict::NoBackend)
}

#[inline(always)]
fn least(tables: &impl Tables, service: u32, draft: &mut Draft) -> Result<u32, Verdict> {
    let length = tables.slots(service);
    if length == 0 {
        return Err(Verdict::NoBackend);
    }
    draft.least = Least {
        place: (tables.next_turn(service) % u64::from(length)) as u32,
        length,
        backend: 0,
        weight: 0,
        load: 0,
    };
    let mut compared = 0;
    while compared < MOST_COMPARED && compared < length {
        compare(tables, service, &mut draft.least);
        compared += 1;
    }
    if draft.least.weight == 0 {
        return Err(Verdict::NoBackend);
    }
    Ok(draft.least.backend)
}

/// Looks at one slot. Not inlined, and its place stands in memory: to the
/// verifier each step is like the one before.
#[inline(never)]
fn compare(tables: &impl Tables, service: u32, least: &mut Least) {
    let place = least.place;
    least.place = if place + 1 < least.length {
        place + 1
    } else {
        0
    };
    let Some(slot) = tables.slot(service, place) else {
        return;
    };
    let (backend, weight) = (slot as u32, (slot >> 32) as u32);
    let load = tables.live(backend).saturating_add(1);
    // load / weight < least.load / least.weight, without a division.
    let lighter =
        u64::from(load) * u64::from(least.weight) < u64::from(least.load) * u64::from(weight);
    if weight != 0 && (least.weight == 0 || lighter) {
        least.backend = backend;
        least.weight = weight;
        least.load = load;
    }
}
