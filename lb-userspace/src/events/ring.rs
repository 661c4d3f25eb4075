//! The last events, in bounded room.
//!
//! When the room is used up, the kind that has the most events gives way, and
//! within it whoever has the most: its oldest event goes. So a backend that
//! flaps all night displaces its own events, not those of its neighbours; a
//! storm of one kind displaces that kind only; and no event goes as long as its
//! kind has fewer than its fair part, the capacity divided by the number of
//! kinds. The newest event is always there.
//!
//! Numbers are given without gaps, so that whoever reads on from a number
//! learns how many are not there any more ([`Page::lost`]).

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use super::{Event, Kind, LONGEST_SENTENCE, Subject};

/// See the module.
#[derive(Debug)]
pub struct Ring {
    capacity: usize,
    newest: u64,
    /// By number.
    events: VecDeque<Event>,
}

/// Some events, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The number of the newest event of all; 0 if there was none yet.
    pub newest: u64,
    /// How many of those that were asked for are not kept any more.
    pub lost: u64,
    /// What was asked for.
    pub events: Vec<Event>,
}

impl Ring {
    /// Room for so many events, of which there are none yet; at least two for
    /// each kind, for with less the newest could be the one to go.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(2 * Kind::ALL.len()),
            newest: 0,
            events: VecDeque::new(),
        }
    }

    /// Takes note of an event and gives its number.
    pub fn record(&mut self, kind: Kind, subject: Subject, sentence: &str, now: SystemTime) -> u64 {
        if self.events.len() >= self.capacity
            && let Some(place) = self.next_to_go()
        {
            self.events.remove(place);
        }
        self.newest += 1;
        self.events.push_back(Event {
            number: self.newest,
            time: now,
            kind,
            subject,
            sentence: cut(sentence),
        });
        self.newest
    }

    /// The number of the newest event; 0 if there was none yet.
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    /// The first events after a number. One that is higher than any comes from
    /// an earlier run of the daemon, so that all of this run are after it.
    pub fn after(&self, number: u64, limit: usize) -> Page {
        let after = if number > self.newest { 0 } else { number };
        let first = self.events.partition_point(|event| event.number <= after);
        let events: Vec<Event> = self.events.range(first..).take(limit).cloned().collect();
        let reached = events.last().map_or(after, |event| event.number);
        Page {
            newest: self.newest,
            lost: reached - after - events.len() as u64,
            events,
        }
    }

    /// The last events.
    pub fn latest(&self, limit: usize) -> Page {
        let first = self.events.len().saturating_sub(limit);
        Page {
            newest: self.newest,
            lost: self.newest - self.events.len() as u64,
            events: self.events.range(first..).cloned().collect(),
        }
    }

    /// The place of the oldest event of whoever has the most within the kind
    /// that has the most.
    fn next_to_go(&self) -> Option<usize> {
        let kind = most(self.events.iter().map(|event| &event.kind))?;
        let of_kind = || self.events.iter().filter(|event| event.kind == *kind);
        let subject = most(of_kind().map(|event| &event.subject))?;
        self.events
            .iter()
            .position(|event| event.kind == *kind && event.subject == *subject)
    }
}

/// What occurs most often; among equals, what occurred first.
fn most<'all, T: Ord>(all: impl Iterator<Item = &'all T> + Clone) -> Option<&'all T> {
    let mut counts = BTreeMap::new();
    for one in all.clone() {
        *counts.entry(one).or_insert(0_usize) += 1;
    }
    let highest = counts.values().max().copied()?;
    all.into_iter()
        .find(|one| counts.get(one) == Some(&highest))
}

fn cut(sentence: &str) -> String {
    match sentence.char_indices().nth(LONGEST_SENTENCE) {
        None => sentence.to_owned(),
        Some((end, _)) => format!("{}…", &sentence[..end]),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use Kind::{BackendDown, BackendUp, Reloaded};

    fn ring() -> Ring {
        Ring::new(0)
    }

    fn record(ring: &mut Ring, kind: Kind, who: &str) -> u64 {
        ring.record(kind, Subject::service(who), "it happened", UNIX_EPOCH)
    }

    fn numbers(page: &Page) -> Vec<u64> {
        page.events.iter().map(|event| event.number).collect()
    }

    #[test]
    fn an_empty_ring_has_nothing_and_has_lost_nothing() {
        let empty = Page {
            newest: 0,
            lost: 0,
            events: vec![],
        };
        assert_eq!(ring().latest(10), empty);
        assert_eq!(ring().after(0, 10), empty);
        assert_eq!(ring().after(7, 10), empty);
    }

    #[test]
    fn events_are_read_from_the_end_or_on_from_a_number() {
        let mut ring = ring();
        for _ in 0..5 {
            record(&mut ring, Reloaded, "web");
        }
        assert_eq!(numbers(&ring.latest(2)), [4, 5]);
        assert_eq!(numbers(&ring.latest(9)), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&ring.after(0, 2)), [1, 2]);
        assert_eq!(numbers(&ring.after(2, 9)), [3, 4, 5]);
        assert!(ring.after(5, 9).events.is_empty());
        assert_eq!(ring.after(5, 9).newest, 5);
    }

    #[test]
    fn who_comes_from_an_earlier_run_gets_all_of_this_one() {
        let mut ring = ring();
        record(&mut ring, Reloaded, "web");
        assert_eq!(numbers(&ring.after(2, 9)), [1]);
        assert_eq!(ring.after(2, 9).lost, 0);
    }

    #[test]
    fn a_flood_of_one_kind_displaces_that_kind_only() {
        let mut ring = ring();
        record(&mut ring, Reloaded, "web");
        record(&mut ring, BackendUp, "web");
        for _ in 0..10_000 {
            record(&mut ring, BackendDown, "web");
        }
        let page = ring.latest(usize::MAX);
        assert_eq!(page.events.len(), ring.capacity);
        assert_eq!(numbers(&page)[..2], [1, 2]);
        assert_eq!(page.newest, 10_002);
        assert_eq!(page.lost, 10_002 - ring.capacity as u64);
    }

    #[test]
    fn who_floods_a_kind_displaces_himself_only() {
        let mut ring = ring();
        record(&mut ring, BackendDown, "quiet");
        for _ in 0..10_000 {
            record(&mut ring, BackendDown, "flapping");
        }
        assert_eq!(numbers(&ring.latest(usize::MAX))[0], 1);
    }

    #[test]
    fn floods_of_every_kind_leave_each_its_part_and_the_newest_event() {
        let mut ring = ring();
        for round in 0..1_000 {
            for &kind in Kind::ALL {
                let number = record(&mut ring, kind, &format!("service {}", round % 7));
                assert_eq!(numbers(&ring.latest(1)), [number]);
            }
        }
        for kind in Kind::ALL {
            let events = ring.latest(usize::MAX).events;
            assert_eq!(events.iter().filter(|e| e.kind == *kind).count(), 2);
        }
    }

    #[test]
    fn who_reads_on_learns_how_many_are_gone() {
        let mut ring = ring();
        record(&mut ring, Reloaded, "web");
        for _ in 0..ring.capacity + 4 {
            record(&mut ring, BackendDown, "web");
        }
        // Numbers 2 to 6 had to go.
        let page = ring.after(0, 3);
        assert_eq!((numbers(&page), page.lost), (vec![1, 7, 8], 5));
        let page = ring.after(1, 1);
        assert_eq!((numbers(&page), page.lost), (vec![7], 5));
        let page = ring.after(4, 1);
        assert_eq!((numbers(&page), page.lost), (vec![7], 2));
        assert_eq!(ring.after(7, 1).lost, 0);
    }

    #[test]
    fn a_sentence_without_end_is_cut() {
        let mut ring = ring();
        ring.record(Reloaded, Subject::node(), &"ä".repeat(5_000), UNIX_EPOCH);
        let sentence = &ring.latest(1).events[0].sentence;
        assert_eq!(sentence.chars().count(), LONGEST_SENTENCE + 1);
        assert!(sentence.ends_with("ä…"));
    }
}
