//! How the backend of a new connection is chosen.
//!
//! A scheduler is one file below: its word, what is said of it, which way of
//! picking the data path goes ([`lb_common::abi::pick`]), and a pure function
//! from the backends that are offered to the slots from which it picks. The
//! list at the head of this module is the only place that names them: the
//! words of the configuration, `lb service show` and the documentation come
//! from it. To add one is to write its file and one more line there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use lb_common::abi::Endpoint;

/// Names the files, and with them the schedulers, in the order in which they
/// are listed. (`cargo fmt` does not see files that a macro names; `cargo xtask
/// lint` does.)
macro_rules! schedulers {
    ($($file:ident)+) => {
        $(mod $file;)+

        /// All schedulers; the first is the default.
        pub const ALL: &[&Scheduler] = &[$(&$file::SCHEDULER),+];
    };
}

schedulers! {
    wrr
    maglev
    least_conn
    source_hash
}

/// The whole of a weight, in [`Candidate::part`].
pub const WHOLE: u16 = 20;

/// A way to choose; one of [`ALL`].
pub struct Scheduler {
    /// Its word in the configuration, on the command line and in JSON.
    pub name: &'static str,
    /// What it is for, in a sentence or two.
    pub help: &'static str,
    /// How the data path picks among the slots: one of [`lb_common::abi::pick`].
    pub pick: u32,
    /// The slots for these backends; empty if none has a share.
    slots: fn(&[Candidate]) -> Sequence,
}

impl Scheduler {
    /// The one that is used where none is named.
    pub const DEFAULT: &'static Self = ALL[0];

    /// The slots for these backends, each of another endpoint. The result
    /// depends on nothing but the argument.
    pub fn sequence(&self, candidates: &[Candidate]) -> Sequence {
        (self.slots)(candidates)
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().copied().find(|scheduler| scheduler.name == name)
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Scheduler {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Scheduler {}

/// A backend that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number in the tables.
    pub number: u32,
    /// Where it listens: what tells it apart for those that hash, so that
    /// another node and another run choose alike whatever its number.
    pub endpoint: Endpoint,
    /// Its weight when all is well with it; 0 gets nothing.
    pub weight: u16,
    /// How much of that it has now, in twentieths ([`WHOLE`]); none of it if it
    /// is down or drained.
    pub part: u16,
}

impl Candidate {
    /// Its weight now, in twentieths.
    pub fn weight_now(&self) -> u64 {
        u64::from(self.weight) * u64::from(self.part.min(WHOLE))
    }
}

/// What the data path picks from, as it stands in
/// [`lb_common::abi::sequence`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sequence {
    /// For each slot the number of a backend in the low half; in the high half
    /// its weight, where the way of picking asks for it. Empty if no backend
    /// has a share.
    pub slots: Vec<u64>,
    /// How far the share of the worst-served backend is from what its weight
    /// asks for, relative to that: 0.0 is exact, 0.01 is one in a hundred more
    /// or less.
    pub share_error: f64,
}

/// The number of the backend in a slot.
pub const fn backend_of(slot: u64) -> u32 {
    slot as u32
}

/// The weight in a slot; 0 where the way of picking does not ask for one.
pub const fn weight_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

impl Sequence {
    /// How many slots each backend has, by its number, and which part of the
    /// new connections they stand for.
    pub fn shares(&self) -> BTreeMap<u32, Share> {
        let weight = |slot: u64| u64::from(weight_of(slot).max(1));
        let all: u64 = self.slots.iter().copied().map(weight).sum();
        let mut shares: BTreeMap<u32, Share> = BTreeMap::new();
        for &slot in &self.slots {
            let share = shares.entry(backend_of(slot)).or_default();
            share.slots += 1;
            share.part += weight(slot) as f64 / all as f64;
        }
        shares
    }
}

/// What one backend has of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// Its slots.
    pub slots: usize,
    /// Its part of the new connections, 0.0 to 1.0.
    pub part: f64,
}

/// The largest relative difference between a share asked for and one given.
fn share_error(asked: &[u64], given: &[u64]) -> f64 {
    let all_asked: u64 = asked.iter().sum();
    let all_given: u64 = given.iter().sum();
    asked
        .iter()
        .zip(given)
        .filter(|(asked, _)| **asked > 0)
        .fold(0.0, |worst, (&asked, &given)| {
            // given/all_given over asked/all_asked, exact integers until the end.
            let got = u128::from(given) * u128::from(all_asked);
            let due = u128::from(asked) * u128::from(all_given);
            f64::max(worst, got.abs_diff(due) as f64 / due as f64)
        })
}

/// The weights divided by their greatest common divisor.
fn reduced(mut weights: Vec<u64>) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd);
    if divisor > 1 {
        for weight in &mut weights {
            *weight /= divisor;
        }
    }
    weights
}

/// The greatest common divisor, where `gcd(0, n)` is `n` (Euclid).
fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A sequence, and what it gives to each backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schedule {
    /// What the data path picks from.
    pub sequence: Sequence,
    /// See [`Sequence::shares`].
    pub shares: BTreeMap<u32, Share>,
}

/// The schedules that were made last, by service: one whose backends are as
/// they were is not made again, for a table of the longest takes milliseconds.
#[derive(Debug, Default)]
pub struct Made(BTreeMap<Endpoint, Making>);

#[derive(Debug)]
struct Making {
    by: &'static Scheduler,
    of: Vec<Candidate>,
    schedule: Arc<Schedule>,
}

impl Made {
    /// The schedule of the service that listens there.
    pub fn schedule(
        &mut self,
        service: Endpoint,
        by: &'static Scheduler,
        of: Vec<Candidate>,
    ) -> Arc<Schedule> {
        if let Some(last) = self.0.get(&service)
            && last.by == by
            && last.of == of
        {
            return Arc::clone(&last.schedule);
        }
        let sequence = by.sequence(&of);
        let schedule = Arc::new(Schedule {
            shares: sequence.shares(),
            sequence,
        });
        let made = Making {
            by,
            of,
            schedule: Arc::clone(&schedule),
        };
        self.0.insert(service, made);
        schedule
    }

    /// Forgets the services that are not wanted any more.
    pub fn keep(&mut self, wanted: impl Fn(&Endpoint) -> bool) {
        self.0.retain(|service, _| wanted(service));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use lb_common::abi::TCP;

    use super::*;
    use crate::model::endpoint;

    /// Backends numbered from 0 with these weights, all whole.
    pub(super) fn candidates(weights: &[u16]) -> Vec<Candidate> {
        (0..)
            .zip(weights)
            .map(|(number, &weight)| Candidate {
                number,
                endpoint: endpoint(
                    ([10, 0, 1, number as u8], 8080 + (number >> 8) as u16).into(),
                    u16::from(TCP),
                ),
                weight,
                part: WHOLE,
            })
            .collect()
    }

    #[test]
    fn names_are_unique_and_the_first_is_the_default() {
        let names: BTreeSet<&str> = ALL.iter().map(|scheduler| scheduler.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert_eq!(Scheduler::DEFAULT.name, "wrr");
        for scheduler in ALL {
            assert_eq!(Scheduler::named(scheduler.name), Some(*scheduler));
            assert!(scheduler.help.ends_with('.'), "{scheduler:?}");
        }
        assert_eq!(Scheduler::named("random"), None);
    }

    #[test]
    fn no_scheduler_gives_a_slot_to_whom_has_no_weight_now() {
        for scheduler in ALL {
            assert_eq!(scheduler.sequence(&[]), Sequence::default());
            let mut four = candidates(&[1, 0, 3, 2]);
            four[3].part = 0;
            let shares = scheduler.sequence(&four).shares();
            let served: Vec<u32> = shares.keys().copied().collect();
            assert_eq!(served, [0, 2], "{scheduler:?}");
            for candidate in &mut four {
                candidate.part = 0;
            }
            assert_eq!(scheduler.sequence(&four), Sequence::default());
        }
    }

    #[test]
    fn every_scheduler_knows_a_part_of_weight_one() {
        for scheduler in ALL {
            let mut two = candidates(&[1, 1]);
            two[1].part = 8;
            let shares = scheduler.sequence(&two).shares();
            let expected = 8.0 / 28.0;
            assert!(
                (shares[&1].part - expected).abs() < 0.01,
                "{scheduler:?}: {shares:?}"
            );
        }
    }

    #[test]
    fn a_schedule_is_made_again_only_when_something_is_different() {
        let mut made = Made::default();
        let at = endpoint("203.0.113.10:80".parse().unwrap(), u16::from(TCP));
        let first = made.schedule(at, ALL[0], candidates(&[1, 2]));
        let again = made.schedule(at, ALL[0], candidates(&[1, 2]));
        assert!(Arc::ptr_eq(&first, &again));
        let heavier = made.schedule(at, ALL[0], candidates(&[1, 3]));
        assert_ne!(first, heavier);
        let other = made.schedule(at, ALL[1], candidates(&[1, 3]));
        assert_ne!(heavier, other);
        made.keep(|_| false);
        assert!(made.0.is_empty());
    }

    #[test]
    fn a_share_error_is_relative_to_what_was_due() {
        assert_eq!(share_error(&[2, 1], &[2, 1]), 0.0);
        // 1/4 where 1/3 was asked for.
        assert_eq!(share_error(&[2, 1], &[3, 1]), 0.25);
        assert_eq!(share_error(&[1, 1], &[1, 0]), 1.0);
        assert_eq!(share_error(&[1, 0], &[1, 0]), 0.0);
    }
}
