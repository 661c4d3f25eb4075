//! Consistent hashing: a connection's backend follows from its two ends.
//!
//! # The table
//! The data path takes `slots[hash % slots.len()]`. The table is filled as in
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer" (NSDI 2016), section 3.4: every backend has a permutation of all
//! slots of its own, and in turns each takes the first slot of its permutation
//! that is still free. Turns come in proportion to the weights, the first to
//! everyone. The permutation follows from the backend's address and port, and
//! turns go in the order of these: two nodes with one configuration, and a node
//! before and after a restart, have the same table, whatever the numbers and
//! the order in the file.
//!
//! # What moves
//! The table is made of the weights that backends have when all is well
//! ([`Candidate::weight`]), whether they are up or not. Who is down or drained
//! then gives its slots away and nobody else's slots change: **none** of the
//! other backends' connections move, and when it is back, its slots are what
//! they were. A slot that is given away goes to the backend of another slot,
//! which a hash of its place names, and if that is given away too, to the next
//! that the hash names: each of the others is met in proportion to its slots.
//! So when one more leaves, again only what it held moves. Who has a part of
//! its weight (slow start) keeps the slots that it took first.
//!
//! What changes the table itself (a backend more or less in the file, another
//! weight) moves some of the others' slots too, by the nature of the method:
//! with 100 equal backends 0.6 % of them when one is taken out, measured.
//!
//! # The size
//! It is one prime for every service, the largest that fits in
//! [`lb_common::abi::sequence::MAX_LENGTH`]: a size that followed the number of
//! backends would move nearly everything where it changes, and a smaller table
//! moves more of the others' slots (with 100 backends 0.9 % at half the size,
//! 1.6 % at a sixth). It costs half a megabyte for each service that hashes,
//! and some milliseconds when its table changes.

use lb_common::abi::{Endpoint, pick, sequence};

use super::{Candidate, Scheduler, Sequence, share_error};

pub(super) const SCHEDULER: Scheduler = Scheduler {
    name: "maglev",
    help: "Consistent hashing of both ends: nodes that share nothing choose alike, and when a backend leaves, only its connections move.",
    pick: pick::FLOW_HASH,
    slots,
};

/// The number of slots: the largest prime that fits.
const SIZE: u32 = 65_521;

const _: () = assert!(SIZE <= sequence::MAX_LENGTH);

/// How often a slot that is given away asks for a taker. Where one slot in
/// twenty is kept, one in a thousand finds none in so many tries.
const TRIES: u64 = 128;

/// A slot that nobody has taken yet.
const FREE: u32 = u32::MAX;

/// The table for these backends; of more than there are slots, the last have none.
pub(super) fn slots(candidates: &[Candidate]) -> Sequence {
    let mut members: Vec<Candidate> = candidates
        .iter()
        .copied()
        .filter(|candidate| candidate.weight > 0)
        .collect();
    if members.iter().all(|member| member.weight_now() == 0) {
        return Sequence::default();
    }
    members.sort_by_key(|member| member.endpoint);
    members.truncate(SIZE as usize);
    let owners = give_away(&members, fill(&members));
    let mut counts = vec![0; members.len()];
    for &owner in &owners {
        counts[owner as usize] += 1;
    }
    let asked: Vec<u64> = members.iter().map(Candidate::weight_now).collect();
    Sequence {
        slots: owners
            .iter()
            .map(|&owner| u64::from(members[owner as usize].number))
            .collect(),
        share_error: share_error(&asked, &counts),
    }
}

/// A slot of the full table.
#[derive(Clone, Copy)]
struct Slot {
    /// The place of its backend among the members.
    owner: u32,
    /// How many slots that backend had taken before.
    rank: u32,
}

/// The table when all is well with everyone.
fn fill(members: &[Candidate]) -> Vec<Slot> {
    let mut table = vec![
        Slot {
            owner: FREE,
            rank: 0,
        };
        SIZE as usize
    ];
    let heaviest = members.iter().map(|member| member.weight).max();
    let heaviest = u64::from(heaviest.unwrap_or(1));
    let mut walks: Vec<Walk> = members
        .iter()
        .map(|entry| Walk::of(&entry.endpoint))
        .collect();
    let mut taken = 0;
    let mut round = 0;
    loop {
        for (owner, (member, walk)) in (0..).zip(members.iter().zip(&mut walks)) {
            // After so many rounds so many turns are due, the first in the first.
            let due = |rounds: u64| (rounds * u64::from(member.weight)).div_ceil(heaviest);
            if due(round + 1) == due(round) {
                continue;
            }
            let place = walk.next_free(&table);
            table[place] = Slot {
                owner,
                rank: walk.taken,
            };
            walk.taken += 1;
            taken += 1;
            if taken == SIZE {
                return table;
            }
        }
        round += 1;
    }
}

/// A backend on the way through its permutation of the slots.
struct Walk {
    at: u32,
    skip: u32,
    /// How many slots it has taken.
    taken: u32,
}

impl Walk {
    fn of(endpoint: &Endpoint) -> Self {
        let seed = seed(endpoint);
        // Any skip but 0 meets every slot, for their number is prime.
        let below = |hash: u64, bound: u32| (hash % u64::from(bound)) as u32;
        Self {
            at: below(mixed(seed ^ 1), SIZE),
            skip: 1 + below(mixed(seed ^ 2), SIZE - 1),
            taken: 0,
        }
    }

    /// The next slot of the permutation that is free; there must be one.
    fn next_free(&mut self, table: &[Slot]) -> usize {
        while table[self.at as usize].owner != FREE {
            self.at = (self.at + self.skip) % SIZE;
        }
        self.at as usize
    }
}

/// The owner of each slot, when those who have not their whole weight now have
/// given slots away. At least one member must have a weight now.
fn give_away(members: &[Candidate], table: Vec<Slot>) -> Vec<u32> {
    let mut full = vec![0_u64; members.len()];
    for slot in &table {
        full[slot.owner as usize] += 1;
    }
    let kept: Vec<u64> = members
        .iter()
        .zip(&full)
        .map(|(member, &full)| {
            let whole = u64::from(member.weight) * u64::from(super::WHOLE);
            (full * member.weight_now()).div_ceil(whole)
        })
        .collect();
    let keeps = |slot: &Slot| u64::from(slot.rank) < kept[slot.owner as usize];
    let keepers: Vec<u32> = table
        .iter()
        .filter(|slot| keeps(slot))
        .map(|slot| slot.owner)
        .collect();
    let taker = |place: u64| {
        let hash = |again: u64| mixed(mixed(place) ^ again);
        (0..TRIES)
            .map(|again| table[(hash(again) % u64::from(SIZE)) as usize])
            .find(keeps)
            // Hardly anyone keeps anything: whoever does.
            .map_or_else(
                || keepers[(hash(TRIES) % keepers.len() as u64) as usize],
                |slot| slot.owner,
            )
    };
    (0..)
        .zip(&table)
        .map(|(place, slot)| {
            if keeps(slot) {
                slot.owner
            } else {
                taker(place)
            }
        })
        .collect()
}

/// What an endpoint's permutation follows from.
fn seed(endpoint: &Endpoint) -> u64 {
    bytemuck::bytes_of(endpoint)
        .chunks_exact(8)
        .fold(0, |seed, word| {
            let word = word.try_into().map_or(0, u64::from_be_bytes);
            mixed(seed ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15)
        })
}

/// Each bit of the result depends on each of the argument (the finalizer of
/// SplitMix64: Steele, Lea and Flood, 2014).
const fn mixed(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::WHOLE;
    use crate::schedule::tests::candidates;

    /// The part of the slots that were not `gone`'s and are another's now.
    fn moved(before: &[u64], after: &[u64], gone: u64) -> f64 {
        let others: Vec<_> = before
            .iter()
            .zip(after)
            .filter(|(was, _)| **was != gone)
            .collect();
        let moved = others.iter().filter(|(was, is)| was != is).count();
        moved as f64 / others.len() as f64
    }

    #[test]
    fn shares_are_within_two_slots_of_the_weights() {
        let sequence = slots(&candidates(&[3, 2, 1]));
        assert_eq!(sequence.slots.len(), 65_521);
        assert!(sequence.share_error < 0.0002, "{}", sequence.share_error);
        let sequence = slots(&candidates(&[1; 100]));
        assert!(sequence.share_error < 0.002, "{}", sequence.share_error);
    }

    #[test]
    fn the_lightest_of_many_heavy_ones_has_a_slot() {
        let mut weights = [256; 400];
        weights[7] = 1;
        let shares = slots(&candidates(&weights)).shares();
        assert_eq!(shares[&7].slots, 1);
    }

    #[test]
    fn numbers_and_order_are_nothing_but_labels() {
        let hundred = candidates(&[1; 100]);
        let mut other: Vec<Candidate> = hundred.iter().copied().rev().collect();
        for candidate in &mut other {
            candidate.number += 500;
        }
        let expected: Vec<u64> = slots(&hundred)
            .slots
            .iter()
            .map(|slot| slot + 500)
            .collect();
        assert_eq!(slots(&other).slots, expected);
    }

    #[test]
    fn one_of_a_hundred_going_down_moves_nothing_but_its_own() {
        let mut hundred = candidates(&[1; 100]);
        let before = slots(&hundred).slots;
        hundred[42].part = 0;
        let after = slots(&hundred);
        assert_eq!(moved(&before, &after.slots, 42), 0.0);
        assert!(!after.slots.contains(&42));
        assert!(after.share_error < 0.02, "{}", after.share_error);
        // Nor does a second one, nor the first one's return.
        hundred[7].part = 0;
        let both = slots(&hundred).slots;
        assert_eq!(moved(&after.slots, &both, 7), 0.0);
        hundred[42].part = WHOLE;
        let returned = slots(&hundred).slots;
        for (place, (was, is)) in both.iter().zip(&returned).enumerate() {
            assert!(was == is || *is == 42, "slot {place}");
        }
        hundred[7].part = WHOLE;
        assert_eq!(slots(&hundred).slots, before);
    }

    #[test]
    fn one_of_a_hundred_taken_out_moves_less_than_a_hundredth_of_the_others() {
        let hundred = candidates(&[1; 100]);
        let before = slots(&hundred).slots;
        for gone in [0, 42, 99] {
            let mut rest = hundred.clone();
            rest.remove(gone);
            let moved = moved(&before, &slots(&rest).slots, gone as u64);
            assert!(moved < 0.01, "{gone}: {moved}");
        }
    }

    #[test]
    fn a_part_of_the_weight_grows_without_moving_anything_between_the_others() {
        let mut ten = candidates(&[1; 10]);
        let mut before = None;
        for part in [2, 8, WHOLE] {
            ten[3].part = part;
            let now = slots(&ten);
            let share = now.shares()[&3].part;
            let due = f64::from(part) / (9.0 * f64::from(WHOLE) + f64::from(part));
            assert!((share - due).abs() < 0.001, "{share} {due}");
            if let Some(before) = before.replace(now.slots.clone()) {
                let strangers = before
                    .iter()
                    .zip(&now.slots)
                    .filter(|(was, is)| was != is && **is != 3);
                assert_eq!(strangers.count(), 0);
            }
        }
    }

    #[test]
    fn where_hardly_anyone_is_left_they_share_all() {
        let mut many = candidates(&[1; 1_000]);
        for candidate in &mut many[2..] {
            candidate.part = 0;
        }
        let shares = slots(&many).shares();
        assert_eq!(shares.len(), 2);
        assert!((shares[&0].part - 0.5).abs() < 0.02, "{shares:?}");
    }

    #[test]
    fn the_table_is_the_same_in_every_version() {
        // A peer of another version must agree: what this sums up is part of
        // the protocol between the two.
        let sum = |slots: &[u64]| slots.iter().fold(0, |sum, &slot| mixed(sum ^ slot));
        let mut weighted = candidates(&[3, 2, 1, 1]);
        weighted[2].part = 0;
        assert_eq!(sum(&slots(&weighted).slots), 16_815_764_236_908_360_723);
    }
}
