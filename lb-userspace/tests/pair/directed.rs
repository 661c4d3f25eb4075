//! Lives that are chosen, not drawn: what each promise is worth.
//!
//! Two nodes with an interval of 100 ms on a link that takes 1 ms: `FIRST` has
//! priority 150, `SECOND` 100. Both begin at second 1, so `FIRST` is active at 2.

use super::*;

const FIRST: usize = 0;
const SECOND: usize = 1;

const MILLISECOND: u64 = 1_000_000;
const SECONDS: u64 = 1_000 * MILLISECOND;
const INTERVAL: u64 = 100 * MILLISECOND;

/// What a message takes.
const HOP: u64 = MILLISECOND;

/// How long `SECOND` listens to silence: three intervals and 156/256 of one.
const SECOND_WAITS: u64 = 3 * INTERVAL + INTERVAL * 156 / 256;

/// Nodes whose clocks are right to the nanosecond, but not set alike.
fn pair(change: impl Fn(&mut Config)) -> World {
    let node = |number: usize, priority| {
        let mut config = Config {
            address: address(number),
            priority,
            interval: Interval::from_centiseconds(10).expect("it is in range"),
            preempt: false,
            preempt_delay: Duration::ZERO,
            ready: true,
            ready_limit: Duration::from_secs(10),
        };
        change(&mut config);
        Node::new(config, 77 * SECONDS * number as u64, 0)
    };
    let link = Link {
        delay: HOP,
        ..Link::default()
    };
    let nodes = vec![node(FIRST, 150), node(SECOND, 100)];
    let mut world = World::new(nodes, link, Hosts::default(), Rng::with_seed(1));
    world.fate(SECONDS, FIRST, Fate::Starts);
    world.fate(SECONDS, SECOND, Fate::Starts);
    world
}

fn active(world: &World) -> Vec<usize> {
    let holds = |number: &usize| world.nodes[*number].state.holds_addresses();
    (0..world.nodes.len()).filter(holds).collect()
}

/// The only reign of a node.
fn reign(world: &World, node: usize) -> Reign {
    let [reign] = world.nodes[node].reigns[..] else {
        panic!("{:?}", world.nodes[node].reigns);
    };
    reign
}

#[test]
fn a_killed_node_has_stopped_before_the_other_begins_within_four_intervals() {
    // At any phase of the interval.
    for phase in 0..100 {
        let killed = 5 * SECONDS + phase * MILLISECOND;
        let mut world = pair(|_| {});
        world.fate(killed, FIRST, Fate::Killed);
        world.run_until(8 * SECONDS);
        let (before, after) = (reign(&world, FIRST), reign(&world, SECOND));
        assert!(before.to < after.from, "{before:?} {after:?}");
        assert!(after.from <= killed + SECOND_WAITS + HOP, "{after:?}");
        assert!(before.to >= killed + 2 * INTERVAL, "forwarding outlives it");
        assert!(matches!(after.taken, Taken::Silent(_)));
    }
}

#[test]
fn a_frozen_node_steps_down_by_itself_when_it_thaws_and_moves_nothing() {
    let mut world = pair(|_| {});
    world.fate(
        5 * SECONDS,
        FIRST,
        Fate::Frozen {
            until: 10 * SECONDS,
        },
    );
    world.run_until(10 * SECONDS);
    assert_eq!(active(&world), [FIRST, SECOND], "it does not know yet");
    assert!(
        !world.nodes[FIRST].reigns_at(world.now),
        "but its data path does"
    );
    world.run_until(10 * SECONDS + 1);
    assert_eq!(active(&world), [SECOND]);
    world.run_until(20 * SECONDS);
    assert_eq!(active(&world), [SECOND]);
    assert!(overlaps(&world).is_empty());
}

#[test]
fn giving_up_leaves_no_moment_without_a_node_and_no_more_than_a_hop_with_two() {
    let wishes = [
        Fate::Told(Event::GiveUp { stay: true }),
        Fate::Told(Event::GiveUp { stay: false }),
        Fate::Stops,
    ];
    for wish in wishes {
        let mut world = pair(|_| {});
        world.fate(5 * SECONDS, FIRST, wish);
        world.run_until(8 * SECONDS);
        let (before, after) = (reign(&world, FIRST), reign(&world, SECOND));
        assert!(after.from <= 5 * SECONDS + INTERVAL, "{after:?}");
        assert!(matches!(after.taken, Taken::Left(_)));
        assert_eq!(before.to, after.from + HOP);
        assert_eq!(active(&world), [SECOND]);
    }
}

#[test]
fn one_that_left_on_request_comes_back_when_the_other_is_gone_and_not_before() {
    let mut world = pair(|config| config.preempt = true);
    world.fate(5 * SECONDS, FIRST, Fate::Told(Event::GiveUp { stay: true }));
    world.fate(60 * SECONDS, SECOND, Fate::Killed);
    world.run_until(60 * SECONDS);
    assert_eq!(active(&world), [SECOND]);
    world.run_until(61 * SECONDS);
    assert!(world.nodes[FIRST].state.holds_addresses());
}

#[test]
fn one_that_is_not_fit_gives_way_and_comes_back_when_it_is() {
    let mut world = pair(|config| config.preempt = true);
    world.fate(5 * SECONDS, FIRST, Fate::Priority(LAST_RESORT));
    world.fate(
        5 * SECONDS,
        FIRST,
        Fate::Told(Event::GiveUp { stay: false }),
    );
    world.fate(20 * SECONDS, FIRST, Fate::Priority(150));
    world.run_until(20 * SECONDS);
    assert_eq!(active(&world), [SECOND]);
    world.run_until(21 * SECONDS);
    assert_eq!(active(&world), [FIRST]);
}

#[test]
fn where_nobody_is_fit_nothing_moves_to_and_fro_and_the_first_fit_one_gets_it() {
    // With preempt = false.
    let mut world = pair(|_| {});
    for (at, node) in [(5, FIRST), (7, SECOND)] {
        world.fate(at * SECONDS, node, Fate::Priority(LAST_RESORT));
        world.fate(
            at * SECONDS,
            node,
            Fate::Told(Event::GiveUp { stay: false }),
        );
    }
    world.fate(60 * SECONDS, SECOND, Fate::Priority(100));
    world.run_until(60 * SECONDS);
    let reigns: usize = world.nodes.iter().map(|node| node.reigns.len()).sum();
    assert_eq!(reigns, 3, "first, second, first");
    assert_eq!(active(&world), [FIRST]);
    world.run_until(61 * SECONDS);
    assert_eq!(active(&world), [SECOND]);
}

#[test]
fn a_restart_quicker_than_the_lease_loses_nothing_and_moves_nothing() {
    for phase in 0..100 {
        let killed = 5 * SECONDS + phase * MILLISECOND;
        let mut world = pair(|_| {});
        world.fate(killed, FIRST, Fate::Killed);
        world.fate(killed + 190 * MILLISECOND, FIRST, Fate::Starts);
        world.run_until(8 * SECONDS);
        assert!(world.nodes[SECOND].reigns.is_empty());
        let reign = reign(&world, FIRST);
        assert!(reign.from < 2 * SECONDS && reign.to > 8 * SECONDS);
    }
}

#[test]
fn a_slower_restart_asks_before_it_acts() {
    let mut world = pair(|_| {});
    world.fate(5 * SECONDS, FIRST, Fate::Killed);
    world.fate(5 * SECONDS + 350 * MILLISECOND, FIRST, Fate::Starts);
    world.run_until(8 * SECONDS);
    assert_eq!(active(&world), [SECOND]);
    assert!(overlaps(&world).is_empty());
}

#[test]
fn a_split_ends_within_an_interval_of_healing_and_neighbours_are_told_at_once() {
    for phase in 0..100 {
        let healed = 7 * SECONDS + phase * MILLISECOND;
        let mut world = pair(|_| {});
        for (node, to) in [(FIRST, SECOND), (SECOND, FIRST)] {
            world.fate(5 * SECONDS, node, Fate::Deaf { to, deaf: true });
            world.fate(healed, node, Fate::Deaf { to, deaf: false });
        }
        world.run_until(healed);
        assert_eq!(active(&world), [FIRST, SECOND], "nobody can know");
        let end = healed + INTERVAL + 2 * HOP;
        world.run_until(end + 1);
        assert_eq!(active(&world), [FIRST]);
        world.run_until(9 * SECONDS);
        let told = &world.nodes[FIRST].announced;
        let after = |from: u64, to: u64| told.iter().any(|&at| (from..=to).contains(&at));
        assert!(
            after(healed, end),
            "or else they talk to the one that is passive"
        );
        assert!(after(end, end + INTERVAL), "one announcement may be lost");
    }
}

#[test]
fn a_returning_node_waits_until_it_is_ready_but_not_for_ever() {
    let slow = |world: &mut World| {
        world.nodes[FIRST].config.ready = false;
        world.fate(5 * SECONDS, FIRST, Fate::Killed);
        world.fate(7 * SECONDS, FIRST, Fate::Starts);
    };
    let mut world = pair(|config| config.preempt = true);
    slow(&mut world);
    world.fate(12 * SECONDS, FIRST, Fate::Ready(true));
    world.run_until(12 * SECONDS);
    assert_eq!(active(&world), [SECOND]);
    world.run_until(12 * SECONDS + 5 * INTERVAL);
    assert_eq!(active(&world), [FIRST]);

    let mut world = pair(|config| config.preempt = true);
    slow(&mut world);
    world.run_until(17 * SECONDS);
    assert_eq!(active(&world), [SECOND]);
    world.run_until(17 * SECONDS + 5 * INTERVAL);
    assert_eq!(active(&world), [FIRST], "ready_limit is ten seconds");
}

#[test]
fn preemption_waits_for_its_delay() {
    let mut world = pair(|config| {
        config.preempt = true;
        config.preempt_delay = Duration::from_secs(5);
    });
    world.fate(5 * SECONDS, FIRST, Fate::Killed);
    world.fate(7 * SECONDS, FIRST, Fate::Starts);
    world.run_until(12 * SECONDS);
    assert_eq!(active(&world), [SECOND]);
    world.run_until(12 * SECONDS + 5 * INTERVAL);
    assert_eq!(active(&world), [FIRST]);
}
