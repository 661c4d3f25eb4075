//! The backend with the fewest live connections for its weight.
//!
//! The slots are the backends, each once, with its weight beside it. The data
//! path knows the live connections of each and takes the one where
//! `(live + 1) / weight` is smallest, beginning each time at the next slot, so
//! that equals take turns.

use lb_common::abi::pick;
use lb_common::abi::sequence::MAX_LENGTH;

use super::{Candidate, Scheduler, Sequence, reduced};

pub(super) const SCHEDULER: Scheduler = Scheduler {
    name: "least-conn",
    help: "The backend with the fewest live connections for its weight: for connections that last long, or unequally long.",
    pick: pick::LEAST,
    slots,
};

/// One slot for each backend with a weight, of at most [`MAX_LENGTH`].
fn slots(candidates: &[Candidate]) -> Sequence {
    let some = candidates.iter().filter(|entry| entry.weight_now() > 0);
    let (numbers, weights): (Vec<u32>, Vec<u64>) = some
        .take(MAX_LENGTH as usize)
        .map(|entry| (entry.number, entry.weight_now()))
        .unzip();
    let slots = numbers
        .into_iter()
        .zip(reduced(weights))
        // The largest weight is 65,535 times 20: it fits in 32 bits.
        .map(|(number, weight)| weight << 32 | u64::from(number))
        .collect();
    Sequence {
        slots,
        share_error: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::tests::candidates;
    use crate::schedule::{WHOLE, backend_of, weight_of};

    #[test]
    fn each_backend_stands_once_with_its_weight() {
        let mut four = candidates(&[6, 0, 3, 3]);
        four[2].number = u32::MAX;
        let halves = |slots: &[u64]| -> Vec<(u32, u32)> {
            let halves = |&slot| (backend_of(slot), weight_of(slot));
            slots.iter().map(halves).collect()
        };
        assert_eq!(halves(&slots(&four).slots), [(0, 2), (u32::MAX, 1), (3, 1)]);
        four[3].part = WHOLE / 2;
        assert_eq!(halves(&slots(&four).slots), [(0, 4), (u32::MAX, 2), (3, 1)]);
    }

    #[test]
    fn the_share_is_what_even_loads_come_to() {
        let shares = slots(&candidates(&[3, 1])).shares();
        assert_eq!((shares[&0].slots, shares[&0].part), (1, 0.75));
    }
}
