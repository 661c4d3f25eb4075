//! Random histories of a table, and what the other node makes of what it is told.

use fastrand::Rng;
use lb_common::flow::{ANSWERED, ESTABLISHED};
use lb_userspace::sync::feed::{Feed, Filled};
use lb_userspace::sync::follow::{Follow, Now};
use lb_userspace::sync::message::{Flows, Frame, News, read_frame, write_frame};

use super::world::{BACKENDS, Node, SERVICES};

/// What is told at once: everything up to the end of a snapshot, or of the changes that
/// are there, these in any order of buckets and each bucket in a message of its own, as
/// if the last one had been full.
fn told(node: &Node, feed: &mut Feed, rng: &mut Rng) -> (Vec<Flows>, bool) {
    let mut messages = Vec::new();
    let mut buckets = Vec::new();
    let mut taken = false;
    loop {
        let mut flows = Flows::default();
        let take = |changed: &mut Vec<u32>| {
            if !std::mem::replace(&mut taken, true) {
                node.table
                    .take_changed(usize::MAX, |bucket| buckets.push(bucket));
                rng.shuffle(&mut buckets);
            }
            changed.extend(buckets.pop());
        };
        let filled = feed.fill(&*node.table, take, &mut flows);
        let frame = Frame {
            sequence: 1,
            news: News::Flows(flows),
        };
        match read_frame(&write_frame(&frame)).map(|frame| frame.news) {
            Ok(News::Flows(flows)) => messages.push(flows),
            other => panic!("{other:?}"),
        }
        match filled {
            Filled::Full => {}
            Filled::Snapshot => return (messages, true),
            Filled::Done if !buckets.is_empty() => {}
            Filled::Done => return (messages, false),
        }
    }
}

#[test]
fn whatever_happens_to_a_table_and_wherever_a_session_breaks_the_other_follows() {
    for seed in 0..300 {
        let mut rng = Rng::with_seed(seed);
        let (active, passive) = (Node::new(1, 4, 0), Node::new(2, 16, 5));
        let dictionary = passive.dictionary();
        // What it has from earlier.
        let mut own = Vec::new();
        for _ in 0..50 {
            passive.happens(&mut rng, &mut own);
        }
        let (mut feed, mut follow) = (Feed::new(&*active.table), Follow::default());
        let mut places = Vec::new();
        let mut in_session = false;
        for _ in 0..60 {
            for _ in 0..rng.usize(0..12) {
                active.happens(&mut rng, &mut places);
            }
            if !in_session {
                feed.begin_again();
                let places = lb_ebpf::connections::places(&*active.table);
                follow
                    .begin(&*passive.table, places)
                    .expect("it is no larger");
                in_session = true;
            }
            let (messages, snapshot) = told(&active, &mut feed, &mut rng);
            // Some of it may be lost, and all that would follow with it.
            let arrive = if rng.u8(0..8) == 0 {
                in_session = false;
                rng.usize(0..=messages.len())
            } else {
                messages.len()
            };
            for flows in &messages[..arrive] {
                assert!(follow.apply(&*passive.table, &dictionary, flows, Now::default()));
            }
            if !in_session {
                follow.leave();
                continue;
            }
            if snapshot {
                assert!(follow.end(&*passive.table, || false));
            }
            // What has changed since the snapshot was taken comes behind it.
            let (messages, _) = told(&active, &mut feed, &mut rng);
            for flows in &messages {
                assert!(follow.apply(&*passive.table, &dictionary, flows, Now::default()));
            }
            assert_eq!(active.facts(), passive.facts(), "seed {seed}");
            assert_eq!(follow.counts.unknown, 0);
        }
        assert!(follow.counts.applied > 0);
    }
}

#[test]
fn every_established_flow_is_counted_at_its_backend_and_none_that_has_gone() {
    let (active, passive) = (Node::new(1, 200, 0), Node::new(2, 200, 9));
    let mut rng = Rng::with_seed(7);
    let mut places = Vec::new();
    for _ in 0..1_500 {
        places.extend(active.begin(&mut rng, ANSWERED | ESTABLISHED));
    }
    let (mut feed, mut follow) = (Feed::new(&*active.table), Follow::default());
    feed.begin_again();
    let table = lb_ebpf::connections::places(&*active.table);
    follow
        .begin(&*passive.table, table)
        .expect("it is as large as this one");
    let mut tell = |snapshot: bool| {
        for flows in &told(&active, &mut feed, &mut rng.fork()).0 {
            follow.apply(
                &*passive.table,
                &passive.dictionary(),
                flows,
                Now::default(),
            );
        }
        if snapshot {
            follow.end(&*passive.table, || false);
        }
    };
    tell(true);
    assert_eq!(passive.live(), places.len() as u64);
    for &place in &places {
        active.remove(place);
    }
    tell(false);
    assert_eq!(passive.live(), 0);
    assert!(passive.facts().is_empty());
}

#[test]
fn what_this_node_has_no_service_or_backend_for_is_counted_and_left_out() {
    let (active, mut passive) = (Node::new(1, 64, 0), Node::new(2, 64, 9));
    let mut rng = Rng::with_seed(1);
    for which in 0..SERVICES.len() {
        for backend in 0..BACKENDS {
            let place = active.begin_as(which, 1, 2_000 + backend as u16, backend, ESTABLISHED);
            place.expect("there is room");
        }
    }
    let (first, _) = passive.tables.parties.pop_first().expect("there are some");
    passive.tables.backends.pop_last();
    let (mut feed, mut follow) = (Feed::new(&*active.table), Follow::default());
    feed.begin_again();
    let table = lb_ebpf::connections::places(&*active.table);
    follow
        .begin(&*passive.table, table)
        .expect("it is as large as this one");
    for flows in &told(&active, &mut feed, &mut rng).0 {
        assert!(follow.apply(
            &*passive.table,
            &passive.dictionary(),
            flows,
            Now::default()
        ));
    }
    assert_eq!(follow.counts.unknown, u64::from(BACKENDS) + 1);
    let facts = passive.facts();
    assert_eq!(
        facts.len(),
        SERVICES.len() * BACKENDS as usize - BACKENDS as usize - 1
    );
    assert!(facts.keys().all(|key| key.dst != first.address));
}

#[test]
fn a_table_that_is_far_larger_is_not_followed_and_no_place_beyond_its_end() {
    let node = Node::new(1, 4, 0);
    let mut follow = Follow::default();
    assert!(follow.begin(&*node.table, u32::MAX).is_err());
    follow.begin(&*node.table, 64).expect("it is as large");
    let beyond = Flows {
        gone: vec![64],
        there: Vec::new(),
    };
    assert!(!follow.apply(&*node.table, &node.dictionary(), &beyond, Now::default()));
}
