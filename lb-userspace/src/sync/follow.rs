//! Keeping this node's table as the other's, while that one forwards.
//!
//! Flows are entered, changed and taken away by the data path's own code, so that what
//! is there after a change of roles is what the data path would have made itself. The
//! sender names flows by the places they have with it; where they stand here is kept
//! beside that, with the version of the entry, so that a change which comes late, when
//! the place is another's, does nothing.
//!
//! What the active node says counts: an entry with the same ends and another backend,
//! or one that has the port which the flow needs, gives way. When a whole snapshot has
//! come, every established flow that was not in it goes, wherever it is from.
//!
//! A node that takes over begins to forward while the last words of the other are still
//! under way ([`Follow::late`]): what they say of flows that it does not know it takes
//! over as well. So a connection that began in the last moment is not lost, nor one that
//! began with either of two nodes that had lost each other.

use std::collections::HashMap;

use lb_common::abi::{Flow, FlowKey, tag};
use lb_common::flow::twin_key;
use lb_ebpf::{Memory, connections};

use super::dictionary::Dictionary;
use super::feed::established;
use super::message::{Flows, Record};
use crate::dataplane::enter;

/// The most places that another node's table may have, as a multiple of those of this
/// one's: what is kept of them takes memory here.
const MOST_TIMES: u32 = 16;

/// The time, for entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// In kernel ticks.
    pub ticks: u32,
    /// As the stamps of tags have it.
    pub stamp: u32,
}

/// What has been done, all in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Flows that were entered, or changed.
    pub applied: u64,
    /// Flows that have gone.
    pub removed: u64,
    /// Flows of services or backends that this node does not have.
    pub unknown: u64,
    /// Flows that found no room.
    pub no_room: u64,
}

/// Where a flow of the sender's stands here.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    place: u32,
    /// 0 if it stands nowhere.
    version: u32,
}

/// The other node's table is too large to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// See the module.
#[derive(Default)]
pub struct Follow {
    /// By the sender's places.
    held: Vec<Held>,
    /// By this node's places, a bit each: it was in the snapshot that is coming.
    marked: Option<Vec<u64>>,
    /// Where flows stand that [`Self::late`] has entered, by the sender's places.
    late: HashMap<u32, Held>,
    /// See [`Counts`].
    pub counts: Counts,
}

impl Follow {
    /// A snapshot begins, of a table with so many places.
    pub fn begin(&mut self, memory: &impl Memory, places: u32) -> Result<(), TooLarge> {
        let own = connections::places(memory);
        if places > own.saturating_mul(MOST_TIMES) {
            return Err(TooLarge);
        }
        self.held = vec![Held::default(); places as usize];
        self.late = HashMap::new();
        self.marked = Some(vec![0; own.div_ceil(u64::BITS) as usize]);
        Ok(())
    }

    /// The snapshot has ended: what was not in it goes. Whether there was one.
    ///
    /// As soon as this node forwards, which `acts` says, what begins here is not to be
    /// measured by it any more: then nothing more goes, and it counts as none.
    pub fn end(&mut self, memory: &impl Memory, acts: impl Fn() -> bool) -> bool {
        let Some(marked) = self.marked.take() else {
            return false;
        };
        for place in 0..connections::places(memory) {
            if place % tag::WORDS == 0 && acts() {
                return false;
            }
            let bits = marked.get((place / u64::BITS) as usize);
            if bits.is_some_and(|bits| bits >> (place % u64::BITS) & 1 != 0) {
                continue;
            }
            if let Some((_, flow)) = established(memory, place)
                && connections::remove(memory, place, flow.life.version)
            {
                self.counts.removed += 1;
            }
        }
        true
    }

    /// There is no session, or this node forwards: what has come of a snapshot is not
    /// all, and where the sender's flows stand is not known any more.
    pub fn leave(&mut self) {
        self.held = Vec::new();
        self.marked = None;
    }

    /// Whether there is something to follow: a snapshot has begun.
    pub fn follows(&self) -> bool {
        !self.held.is_empty()
    }

    /// Brings about these changes. False if one names a place that is not there.
    pub fn apply(
        &mut self,
        memory: &impl Memory,
        dictionary: &Dictionary,
        flows: &Flows,
        now: Now,
    ) -> bool {
        let there = flows.there.iter().map(|record| record.place);
        let mut places = flows.gone.iter().copied().chain(there);
        if places.any(|place| place as usize >= self.held.len()) {
            return false;
        }
        for &place in &flows.gone {
            self.release(memory, place);
        }
        for record in &flows.there {
            if record.half_open() {
                self.enter_new(memory, dictionary, record, now);
            } else {
                self.upsert(memory, dictionary, record, now);
            }
        }
        true
    }

    /// Enters what this node does not know, although it follows nobody: what the other one
    /// said while it stopped forwarding, or while both did. What is known stays as it is,
    /// and nobody gives way; only what was entered here goes again.
    pub fn late(&mut self, memory: &impl Memory, dictionary: &Dictionary, flows: &Flows, now: Now) {
        for &place in &flows.gone {
            if let Some(Held { place, version }) = self.late.remove(&place)
                && connections::remove(memory, place, version)
            {
                self.counts.removed += 1;
            }
        }
        for record in &flows.there {
            if let Some(held) = self.enter_new(memory, dictionary, record, now)
                && self.late.len() < connections::places(memory) as usize
            {
                self.late.insert(record.place, held);
            }
        }
    }

    /// Enters a flow that is not known here; gives where it stands.
    fn enter_new(
        &mut self,
        memory: &impl Memory,
        dictionary: &Dictionary,
        record: &Record,
        now: Now,
    ) -> Option<Held> {
        let Some((key, mut flow)) = dictionary.flow(record) else {
            self.counts.unknown += 1;
            return None;
        };
        if connections::of_client(memory, &key, &mut Flow::default()) {
            return None;
        }
        flow.life.seen = now.ticks;
        let Some((place, version)) = enter(memory, &key, &flow, now.stamp) else {
            self.counts.no_room += 1;
            return None;
        };
        self.counts.applied += 1;
        Some(Held { place, version })
    }

    /// What the sender had at this place is no more.
    fn release(&mut self, memory: &impl Memory, place: u32) {
        let Some(held) = self.held.get_mut(place as usize) else {
            return;
        };
        let Held { place, version } = std::mem::take(held);
        if version != 0 && connections::remove(memory, place, version) {
            self.counts.removed += 1;
        }
    }

    fn upsert(&mut self, memory: &impl Memory, dictionary: &Dictionary, record: &Record, now: Now) {
        let Some((key, mut flow)) = dictionary.flow(record) else {
            self.counts.unknown += 1;
            self.release(memory, record.place);
            return;
        };
        flow.life.seen = now.ticks;
        let mut found = Flow::default();
        let known = connections::of_client(memory, &key, &mut found);
        let stands = Held {
            place: found.place,
            version: found.life.version,
        };
        let held = self.held[record.place as usize];
        let stands = if known && held == stands && same(&found, &flow) {
            bring_to(memory, &found, flow.life.state, now);
            Some(stands)
        } else {
            // Another connection had the place with the sender.
            self.release(memory, record.place);
            // If it had this one elsewhere before, the word that it has gone from there
            // may be still to come: it must not mean this entry.
            if known {
                connections::remove(memory, stands.place, stands.version);
            }
            place(memory, &key, &flow, now.stamp)
        };
        let Some(stands) = stands else {
            self.counts.no_room += 1;
            self.held[record.place as usize] = Held::default();
            return;
        };
        self.counts.applied += 1;
        self.held[record.place as usize] = stands;
        if let Some(marked) = &mut self.marked
            && let Some(bits) = marked.get_mut((stands.place / u64::BITS) as usize)
        {
            *bits |= 1 << (stands.place % u64::BITS);
        }
    }
}

/// Whether packets go the same way.
fn same(found: &Flow, flow: &Flow) -> bool {
    let way = |flow: &Flow| {
        (
            flow.dst,
            flow.dst_port,
            flow.src_port,
            flow.forward(),
            flow.backend,
            flow.service,
        )
    };
    way(found) == way(flow)
}

/// Gives a connection that is there the state that it has with the other node.
fn bring_to(memory: &impl Memory, found: &Flow, state: u32, now: Now) {
    connections::advance(memory, found, !state, state, now.stamp);
    connections::touch(memory, found.place, now.ticks);
}

/// Enters a connection. Who has its answers, in its stead, gives way.
fn place(memory: &impl Memory, key: &FlowKey, flow: &Flow, stamp: u32) -> Option<Held> {
    let entered = enter(memory, key, flow, stamp).or_else(|| {
        let holder = connections::occupant(memory, &twin_key(key, flow));
        let (_, other) = connections::at(memory, holder)?;
        connections::remove(memory, holder, other.life.version);
        enter(memory, key, flow, stamp)
    });
    entered.map(|(place, version)| Held { place, version })
}
