//! Sequences for exact weighted round-robin.
//!
//! The data path takes `slots[cursor++ % slots.len()]`; this module decides
//! what stands in the slots. Over one full sequence every backend stands there
//! exactly in proportion to its weight, and evenly spread: a burst to one
//! backend is what weights are meant to avoid.
//!
//! # How the slots are filled
//! With `share = weight / total`, the `k`-th appearance of a backend (from 0)
//! belongs into the window from slot `floor(k / share)` up to
//! `(k + 1) / share`. Of the backends whose window is open, the one whose
//! window closes first takes the slot; among equals the heavier, then the one
//! named first. This is the Pfair rule of Baruah, Cohen, Plaxton and Varvel
//! ("Proportionate progress", 1996): after any number of slots each backend is
//! less than one appearance away from its ideal share. So in any run of slots,
//! also one that goes round the end, it is less than two away.
//!
//! One rule is added: a backend with at most half of all slots gives way
//! rather than stand twice in a row, if any other window is open. That this
//! keeps the bound, and that no such backend ever stands twice in a row, not
//! even round the end, is not proved but measured: for every set of weights
//! with a total up to 50 and for three million random ones. The tests repeat a
//! part of that.
//!
//! The cost is `slots * log(backends)`: about 10 ms for the longest sequence of
//! 512 backends.
//!
//! # The bound
//! Weights are divided by their greatest common divisor first. If more than
//! [`MAX_LENGTH`] slots would still be needed, they are scaled down to that
//! many by the method of largest remainders, and [`Sequence::share_error`]
//! says what that costs. Each backend with a weight keeps at least one slot.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use lb_common::abi::pick;
use lb_common::abi::sequence::MAX_LENGTH;

use super::{Candidate, Scheduler, Sequence, reduced, share_error};

pub(super) const SCHEDULER: Scheduler = Scheduler {
    name: "wrr",
    help: "Exact weighted round-robin: over any run of connections each backend gets what its weight asks for, evenly spread.",
    pick: pick::TURN,
    slots,
};

/// The sequence for these backends.
///
/// One without a weight gets no slot; a common factor of all weights changes
/// nothing. Of more than [`MAX_LENGTH`] backends with a weight (a configuration
/// has no such service) those after the first [`MAX_LENGTH`] get no slot, with
/// a share error of 1.0.
fn slots(candidates: &[Candidate]) -> Sequence {
    let wanted: Vec<(u32, u64)> = candidates
        .iter()
        .map(|candidate| (candidate.number, candidate.weight_now()))
        .filter(|(_, weight)| *weight > 0)
        .collect();
    let asked: Vec<u64> = wanted.iter().map(|&(_, weight)| weight).collect();
    let counts = reduced(scaled(reduced(asked.clone()), u64::from(MAX_LENGTH)));
    let slots = spread(&counts)
        .into_iter()
        .map(|place| u64::from(wanted[place].0))
        .collect();
    Sequence {
        slots,
        share_error: share_error(&asked, &counts),
    }
}

/// How many slots each weight gets of at most `limit`: the weights themselves
/// if they fit, else their proportions by largest remainders, at least one each.
fn scaled(weights: Vec<u64>, limit: u64) -> Vec<u64> {
    let mut weight_left: u64 = weights.iter().sum();
    if weight_left <= limit {
        return weights;
    }
    let mut slots_left = limit;
    let mut counts = vec![0; weights.len()];
    let mut ascending: Vec<usize> = (0..weights.len().min(limit as usize)).collect();
    weight_left -= weights[ascending.len()..].iter().sum::<u64>();
    ascending.sort_by_key(|&place| weights[place]);

    // The lightest first: what is due less than one slot gets one, and the
    // others share what is left.
    let mut lightest = 0;
    while lightest < ascending.len() {
        let place = ascending[lightest];
        if weights[place] * slots_left >= weight_left {
            break;
        }
        counts[place] = 1;
        slots_left -= 1;
        weight_left -= weights[place];
        lightest += 1;
    }

    let mut rest = ascending.split_off(lightest);
    let due = |place: usize| weights[place] * slots_left;
    for &place in &rest {
        counts[place] = due(place) / weight_left;
    }
    let given: u64 = rest.iter().map(|&place| counts[place]).sum();
    rest.sort_by_key(|&place| (Reverse(due(place) % weight_left), place));
    for &place in rest.iter().take((slots_left - given) as usize) {
        counts[place] += 1;
    }
    counts
}

/// Spreads each place's count of slots evenly: see the module's documentation.
fn spread(counts: &[u64]) -> Vec<usize> {
    let total: u64 = counts.iter().sum();
    let mut slots: Vec<usize> = Vec::with_capacity(total as usize);
    let mut open = BinaryHeap::with_capacity(counts.len());
    let mut closed: BinaryHeap<Reverse<(u64, Turn)>> = counts
        .iter()
        .enumerate()
        .filter(|(_, count)| **count > 0)
        .map(|(place, &count)| {
            Reverse((
                0,
                Turn {
                    number: 0,
                    count,
                    place,
                },
            ))
        })
        .collect();
    for slot in 0..total {
        while let Some(&Reverse((opens, turn))) = closed.peek()
            && opens <= slot
        {
            closed.pop();
            open.push(Reverse(turn));
        }
        // By the end of slot s, `share * (s + 1)` windows of each backend have
        // opened, rounded up: s + 1 in all, and only s turns are taken.
        let turn = choose(&mut open, slots.last(), total).expect("a window is always open");
        slots.push(turn.place);
        let next = Turn {
            number: turn.number + 1,
            ..turn
        };
        if next.number < next.count {
            closed.push(Reverse((next.number * total / next.count, next)));
        }
    }
    slots
}

/// Takes the turn whose window closes first, or the one after it where the
/// first would stand twice in a row and has at most half of the slots.
fn choose(open: &mut BinaryHeap<Reverse<Turn>>, last: Option<&usize>, total: u64) -> Option<Turn> {
    let Reverse(first) = open.pop()?;
    if last == Some(&first.place)
        && 2 * first.count <= total
        && let Some(Reverse(second)) = open.pop()
    {
        open.push(Reverse(first));
        return Some(second);
    }
    Some(first)
}

/// One appearance of a backend in the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    /// Which of its appearances, from 0.
    number: u64,
    /// How many it has in all.
    count: u64,
    /// Its place in the list of weights.
    place: usize,
}

impl Ord for Turn {
    /// By the end of the window, `(number + 1) / count` of the whole sequence;
    /// among equals the heavier first.
    fn cmp(&self, other: &Self) -> Ordering {
        let ours = (self.number + 1) * other.count;
        let theirs = (other.number + 1) * self.count;
        ours.cmp(&theirs)
            .then(other.count.cmp(&self.count))
            .then(self.place.cmp(&other.place))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::WHOLE;
    use crate::schedule::tests::candidates;

    fn order(weights: &[u16]) -> Vec<u64> {
        slots(&candidates(weights)).slots
    }

    #[test]
    fn three_two_one_alternates() {
        assert_eq!(order(&[3, 2, 1]), [0, 1, 0, 1, 0, 2]);
    }

    #[test]
    fn a_heavy_backend_is_interrupted_as_evenly_as_can_be() {
        assert_eq!(order(&[5, 1, 1]), [0, 0, 0, 1, 0, 0, 2]);
        assert_eq!(order(&[4, 1, 1, 1, 1]), [0, 1, 0, 2, 0, 3, 0, 4]);
    }

    #[test]
    fn equal_weights_are_plain_round_robin_whatever_the_weight() {
        for weight in [1, 7, 256] {
            assert_eq!(order(&[weight; 4]), [0, 1, 2, 3]);
        }
    }

    #[test]
    fn weight_zero_gets_no_slot_and_nothing_gives_nothing() {
        assert_eq!(order(&[0, 2, 0, 1]), [1, 1, 3]);
        for none in [&[][..], &[0, 0]] {
            assert_eq!(slots(&candidates(none)), Sequence::default());
        }
    }

    #[test]
    fn a_backend_alone_takes_one_slot() {
        assert_eq!(order(&[256]), [0]);
    }

    #[test]
    fn slots_hold_the_numbers_of_the_backends() {
        let mut two = candidates(&[1, 1]);
        (two[0].number, two[1].number) = (70_000, u32::MAX);
        assert_eq!(slots(&two).slots, [70_000, u64::from(u32::MAX)]);
    }

    #[test]
    fn a_part_of_a_weight_is_as_exact_as_the_whole() {
        let mut three = candidates(&[1, 1, 2]);
        three[1].part = WHOLE / 4;
        assert_eq!(slots(&three).slots.len(), 4 + 1 + 8);
        assert_eq!(slots(&three).share_error, 0.0);
        for candidate in &mut three {
            candidate.part = WHOLE / 4;
        }
        assert_eq!(slots(&three).slots, order(&[1, 1, 2]), "a common factor");
    }

    #[test]
    fn the_longest_sequence_needs_no_scaling() {
        let weights: Vec<u16> = (0..256).map(|n| 255 + (n & 1) * 2).collect();
        let all = slots(&candidates(&weights));
        assert_eq!((all.slots.len(), all.share_error), (65_536, 0.0));
    }

    #[test]
    fn scaling_gives_whole_slots_by_largest_remainder() {
        assert_eq!(scaled(vec![6, 3, 2], 11), [6, 3, 2]);
        assert_eq!(scaled(vec![6, 3, 2], 5), [3, 1, 1]);
        assert_eq!(
            scaled(vec![100, 100, 1], 3),
            [1, 1, 1],
            "the lightest keeps a slot"
        );
        assert_eq!(
            scaled(vec![9, 9, 9, 9], 2),
            [1, 1, 0, 0],
            "the bound holds above all"
        );
    }
}
