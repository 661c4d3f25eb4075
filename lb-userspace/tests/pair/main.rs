//! The pair's machine: RFC 9568's table as data ([`table`]), and thousands of
//! simulated lives of two and three nodes ([`world`]).
//!
//! A life is a time of trouble, then quiet. Of trouble there are three sorts:
//! anything at all; a link that delays and doubles but loses nothing; and such a
//! link with nodes that are frozen and killed. What must hold is told with each
//! test. Everything follows from a seed, which is printed with what failed:
//! `LB_TEST_SEED=N` begins with another one, `LB_TEST_LIVES=N` takes more lives or
//! fewer.

use std::env;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use lb_userspace::vrrp::machine::{Config, Event, LAST_RESORT, State, Taken};
use lb_userspace::vrrp::packet::{Interval, OWNER};

use world::{Fate, Hosts, Link, Node, Process, Reign, World, address};

mod directed;
mod table;
mod world;

const LIVES: u64 = 20_000;
const SEED: u64 = 1;

/// What a time of trouble consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Loss, deafness, failures, nodes of different intervals, and all below.
    Anything,
    /// The link delays and doubles; nodes start, stop, give up, change.
    Delay,
    /// The same, and nodes are frozen and killed.
    Frost,
}

#[test]
fn after_trouble_exactly_one_node_is_active_and_leases_overlap_no_longer_than_stated() {
    let first = number("LB_TEST_SEED", SEED);
    let lives = number("LB_TEST_LIVES", LIVES);
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let steps: u64 = thread::scope(|scope| {
        let shares: Vec<_> = (0..threads)
            .map(|share| {
                scope.spawn(move || {
                    let seeds = (first..first + lives).skip(share as usize);
                    seeds.step_by(threads as usize).map(live).sum::<u64>()
                })
            })
            .collect();
        shares
            .into_iter()
            .map(|share| share.join().expect("a life failed: see above"))
            .sum()
    });
    println!("{lives} lives from seed {first}, {steps} steps");
}

fn number(name: &str, otherwise: u64) -> u64 {
    env::var(name).map_or(otherwise, |text| text.parse().expect(name))
}

/// One life; gives how many steps it took.
fn live(seed: u64) -> u64 {
    let told = Told(seed);
    let mut rng = Rng::with_seed(seed);
    let trouble = match seed % 3 {
        0 => Trouble::Anything,
        1 => Trouble::Delay,
        _ => Trouble::Frost,
    };
    let mut world = made(&mut rng, trouble);
    let interval = longest_interval(&world);
    let quiet = world.now + 40 * interval;
    plan_trouble(&mut world, &mut rng, trouble, quiet);
    world.run_until(quiet);
    match trouble {
        Trouble::Anything => {}
        Trouble::Delay => overlaps_end_soon(&world),
        Trouble::Frost => silence_is_no_overlap(&world),
    }
    calm(&mut world);
    let patience = world
        .nodes
        .iter()
        .map(|node| node.config.preempt_delay + node.config.ready_limit)
        .max();
    let settled = quiet + nanoseconds(patience.unwrap_or_default()) + 20 * interval;
    world.run_until(settled);
    let end = settled + 5 * interval;
    world.run_until(end);
    one_is_active(&world, settled, end);
    drop(told);
    world.steps
}

/// Says which seed it was when a life fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("LB_TEST_SEED={} LB_TEST_LIVES=1 shows it again", self.0);
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn longest_interval(world: &World) -> u64 {
    let longest = world
        .nodes
        .iter()
        .map(|node| node.config.interval.duration())
        .max();
    nanoseconds(longest.expect("there are nodes"))
}

/// Two or three nodes on a link.
fn made(rng: &mut Rng, trouble: Trouble) -> World {
    let intervals = [1, 2, 10, 100];
    let common = intervals[rng.usize(0..intervals.len())];
    let preempt = rng.u8(0..3);
    let count = rng.usize(2..=3);
    let nodes: Vec<Node> = (0..count)
        .map(|number| {
            let centiseconds = if trouble == Trouble::Anything && rng.u8(0..4) == 0 {
                intervals[rng.usize(0..intervals.len())]
            } else {
                common
            };
            let interval = Interval::from_centiseconds(centiseconds).expect("it is in range");
            let long = interval.duration();
            let config = Config {
                address: address(number),
                priority: priority(rng),
                interval,
                preempt: preempt == 0 || (preempt == 1 && rng.bool()),
                preempt_delay: long * rng.u32(0..6) * u32::from(rng.bool()),
                ready: rng.bool(),
                ready_limit: long * rng.u32(0..30),
            };
            // Clocks of two hosts are off by much less.
            Node::new(config, rng.u64(0..1 << 40), rng.i64(-200..=200))
        })
        .collect();
    // A link that is slower than the intervals, or a host, is no use to anybody.
    let shortest = nodes
        .iter()
        .map(|node| node.config.interval.duration())
        .min();
    let interval = nanoseconds(shortest.unwrap_or_default());
    let (link, hosts) = surroundings(rng, trouble, interval);
    World::new(nodes, link, hosts, Rng::with_seed(rng.u64(..)))
}

/// Some that are often equal, seldom an owner's.
fn priority(rng: &mut Rng) -> u8 {
    match rng.u8(0..10) {
        0 => OWNER,
        1 => LAST_RESORT,
        2..=5 => [100, 150, 200, 254][rng.usize(0..4)],
        _ => rng.u8(1..255),
    }
}

fn surroundings(rng: &mut Rng, trouble: Trouble, interval: u64) -> (Link, Hosts) {
    let anything = trouble == Trouble::Anything;
    let link = Link {
        delay: rng.u64(0..interval / 10),
        jitter: rng.u64(0..interval / 10),
        loss: if anything { rng.u32(0..60) } else { 0 },
        twice: rng.u32(0..20),
    };
    let hosts = Hosts {
        slow: rng.u64(0..interval / 20),
        stutters: if trouble == Trouble::Delay {
            0
        } else {
            rng.u32(0..2) * rng.u32(0..20)
        },
        stutter: 4 * interval,
        failures: if anything {
            rng.u32(0..2) * rng.u32(0..200)
        } else {
            0
        },
    };
    (link, hosts)
}

fn plan_trouble(world: &mut World, rng: &mut Rng, trouble: Trouble, quiet: u64) {
    let (begin, count) = (world.now, world.nodes.len());
    for node in 0..count {
        let at = begin + rng.u64(0..(quiet - begin) / 8);
        world.fate(at, node, Fate::Starts);
    }
    for _ in 0..rng.usize(0..14) {
        let node = rng.usize(0..count);
        let at = rng.u64(begin..quiet);
        // The end of it, if it has one; often soon after.
        let long = (quiet - at) >> rng.u32(0..6);
        let later = at + rng.u64(0..=long).max(1);
        match rng.u8(0..if trouble == Trouble::Delay { 6 } else { 10 }) {
            0 => {
                world.fate(at, node, Fate::Stops);
                world.fate(later, node, Fate::Starts);
            }
            1 => world.fate(at, node, Fate::Told(Event::GiveUp { stay: true })),
            2 => {
                world.fate(at, node, Fate::Priority(LAST_RESORT));
                world.fate(at, node, Fate::Told(Event::GiveUp { stay: false }));
                world.fate(later, node, Fate::Priority(priority(rng)));
            }
            3 => world.fate(at, node, Fate::Priority(priority(rng))),
            4 | 5 => world.fate(at, node, Fate::Ready(rng.bool())),
            6 => {
                world.fate(at, node, Fate::Killed);
                if rng.u8(0..4) > 0 {
                    world.fate(later, node, Fate::Starts);
                }
            }
            7 => world.fate(at, node, Fate::Frozen { until: later }),
            8 if trouble == Trouble::Anything => {
                for to in (0..count).filter(|&to| to != node && rng.u8(0..3) > 0) {
                    world.fate(at, node, Fate::Deaf { to, deaf: true });
                    world.fate(later, node, Fate::Deaf { to, deaf: false });
                }
            }
            8 => {}
            _ => {
                world.fate(at, node, Fate::Told(Event::Fault));
                world.fate(later, node, Fate::Told(Event::Startup { lease: None }));
            }
        }
    }
}

/// From now on the link and the hosts do what they should, and somebody is there.
fn calm(world: &mut World) {
    world.link.loss = 0;
    world.hosts.stutters = 0;
    world.hosts.failures = 0;
    let (now, count) = (world.now, world.nodes.len());
    for node in 0..count {
        for to in 0..count {
            world.fate(now, node, Fate::Deaf { to, deaf: false });
        }
        if world.nodes[node].process != Process::Gone {
            // One whose interface was gone at the end has it back.
            world.fate(now, node, Fate::Told(Event::Startup { lease: None }));
        }
    }
    // In case that nobody is there, or stays.
    let end = now + 2 * longest_interval(world);
    world.fate(end, 0, Fate::Starts);
}

/// Exactly one node is active, has been since it settled, without a gap, and is one
/// of the highest priority where nobody is told to put up with less.
fn one_is_active(world: &World, settled: u64, end: u64) {
    let running = || {
        world
            .nodes
            .iter()
            .filter(|node| node.process != Process::Gone)
    };
    let active: Vec<&Node> = running()
        .filter(|node| node.state.holds_addresses())
        .collect();
    let states: Vec<&State> = running().map(|node| &node.state).collect();
    let [active] = active[..] else {
        panic!("{} nodes are active: {states:?}", active.len());
    };
    assert!(matches!(active.state, State::Active(_)), "{states:?}");
    let reigns = |node: &Node| {
        let touches = |reign: &&Reign| reign.to > settled && reign.from < end;
        node.reigns
            .iter()
            .filter(touches)
            .copied()
            .collect::<Vec<_>>()
    };
    let all: Vec<Reign> = world.nodes.iter().flat_map(reigns).collect();
    let [reign] = all[..] else {
        panic!("{} reigns after it was settled: {all:?}", all.len());
    };
    assert!(reign.from <= settled && reign.to >= end, "{reign:?}");
    let stays = |node: &Node| matches!(node.state, State::Backup(backup) if backup.stays);
    if running().all(|node| node.config.preempt && !stays(node)) {
        let highest = running().map(|node| node.config.priority).max();
        assert_eq!(Some(active.config.priority), highest, "{states:?}");
    }
}

/// What a message takes until it is acted on, at most.
fn hop(world: &World) -> u64 {
    world.link.delay + world.link.jitter + world.hosts.slow
}

/// Where nothing is lost and nobody is frozen, two data paths act at once only
/// until the one has heard of the other: at most there and back.
fn overlaps_end_soon(world: &World) {
    for (earlier, later, long) in overlaps(world) {
        assert!(
            long <= 2 * hop(world),
            "{long} ns: {earlier:?}, then {later:?}"
        );
    }
}

/// Where nothing is lost, whoever takes over because of silence finds nobody whose
/// data path still acts, however long which node was frozen, and whoever was
/// killed, but for one whose word is under way; and whatever else happens, an
/// overlap ends with a lease.
///
/// (Several may break the same silence at once: those have begun within a hop. One
/// that was interrupted before its first word was sent is caught up with by its
/// own first lease.)
fn silence_is_no_overlap(world: &World) {
    let interval = longest_interval(world);
    for (earlier, later, long) in overlaps(world) {
        let silence = matches!(later.taken, Taken::Silent(_) | Taken::Nobody);
        let together = later.from - earlier.from <= hop(world);
        if silence && !together && world.hosts.stutters == 0 && long > hop(world) {
            panic!("{long} ns: {earlier:?}, then {later:?}");
        }
        // One that was killed, came back within its lease, and was frozen before it
        // heard anything, has had two of them.
        let leases = 1 + u64::from([earlier.taken, later.taken].contains(&Taken::Continued));
        assert!(
            long <= leases * 3 * interval + hop(world),
            "{long} ns: {earlier:?}, then {later:?}"
        );
    }
}

/// Every two reigns of two nodes that overlap, the earlier one first, and for how
/// long.
fn overlaps(world: &World) -> Vec<(Reign, Reign, u64)> {
    let mut found = Vec::new();
    for (number, node) in world.nodes.iter().enumerate() {
        for other in &world.nodes[number + 1..] {
            for one in &node.reigns {
                for two in &other.reigns {
                    let (earlier, later) = if one.from <= two.from {
                        (one, two)
                    } else {
                        (two, one)
                    };
                    // A lease may reach beyond now, and be given back before.
                    let end = earlier.to.min(later.to).min(world.now);
                    if later.from < end {
                        found.push((*earlier, *later, end - later.from));
                    }
                }
            }
        }
    }
    found
}
