//! What clients notice of a pair whose nodes die, freeze, restart and lose sight of each
//! other: two balancers on one link, a thousand connections in steady use, and every
//! node asked every millisecond whether it answers.
//!
//! What is asserted holds on a busy machine; the figures are printed. `LB_TEST_RUNS`
//! says how often a failure is repeated for them (1 by default).

use std::env;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Signal;
use tests::netns::{
    Answered, Asked, Family, Host, Owners, Pair, Seen, Setting, Steady, wait_until,
};

/// For whatever takes no time on an idle machine.
const BOUND: Duration = Duration::from_secs(60);

/// The connections in use.
const CONNECTIONS: usize = 1_000;

/// How often each asks, where milliseconds count.
const SWIFT_PACE: Duration = Duration::from_millis(40);

/// How often each asks elsewhere.
const PACE: Duration = Duration::from_millis(100);

/// The longest that a connection may be without an answer. On a quiet machine it is a
/// tenth of a second at an interval of 10 ms, and less than one at 100 ms: TCP sends
/// again after 200 ms, twice as much, and so on. Where machines are busy some wait for
/// the next time.
const LONGEST: Duration = Duration::from_secs(5);

/// What the machine may add to whatever is measured.
const BUSY: Duration = Duration::from_millis(50);

const FULL_NAT: Setting = Setting {
    family: Family::V4,
    forward: "full-nat",
    interval: "100ms",
    more: "",
    sync: true,
};

/// The tests take turns: they watch milliseconds.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a failure is repeated.
fn runs() -> usize {
    env::var("LB_TEST_RUNS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// Opens them, and waits until the second node knows them.
fn steady(pair: &Pair) -> Result<Steady> {
    steady_at(pair, PACE)
}

fn steady_at(pair: &Pair, pace: Duration) -> Result<Steady> {
    let steady = Steady::open(&pair.net.client, pair.service, CONNECTIONS, pace)?;
    pair.caught_up(0)?;
    steady.mark();
    Ok(steady)
}

/// Milliseconds, as figures are printed.
fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// The median and the worst of some times.
fn figures(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    format!(
        "median {}, worst {} of {}",
        ms(median),
        ms(worst),
        times.len()
    )
}

/// Waits until every connection has had an answer to a request of now, and gives what
/// was seen; none may have broken.
fn all_go_on(steady: &mut Steady) -> Result<Seen> {
    steady.settle("connections goes on", BOUND)?;
    let seen = steady.seen();
    ensure!(
        seen.broken.is_empty(),
        "{} connections broke; the first: {}",
        seen.broken.len(),
        seen.broken[0]
    );
    Ok(seen)
}

/// How two nodes followed each other as owners.
#[derive(Clone, Copy, Debug)]
struct Change {
    /// From the last answer of the old one to the first of the new one.
    silence: Duration,
    /// From the first answer of the new one to the last of the old one.
    overlap: Duration,
}

fn change(answers: &[Answered], to: Asked, new: usize) -> Result<Change> {
    let of = |node| {
        let times = answers
            .iter()
            .filter(move |answer| answer.to == to && answer.node == node);
        times.map(|answer| answer.at)
    };
    let first = of(new)
        .next()
        .with_context(|| format!("the new owner answers no {to:?}"))?;
    let last = of(1 - new)
        .next_back()
        .with_context(|| format!("the old owner has answered no {to:?}"))?;
    Ok(Change {
        silence: first.saturating_duration_since(last),
        overlap: last.saturating_duration_since(first),
    })
}

/// The longest time without an answer from anybody. A frame to a node that has gone is
/// flooded by the switch, and the other one answers it at that link address: so nothing
/// is said of who it was.
fn silence(answers: &[Answered], to: Asked) -> Duration {
    let times: Vec<Instant> = answers
        .iter()
        .filter(|answer| answer.to == to)
        .map(|answer| answer.at)
        .collect();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap_or_default()
}

const KINDS: [Asked; 3] = [Asked::Neighbour, Asked::Segment, Asked::Ping];

/// How long nobody may answer while one takes over from another that has gone: a skew
/// time (81 ms), and what the machine adds. Addresses that come with the next tick of a
/// second come later than this.
const MOST_SILENCE: Duration = Duration::from_millis(300);

/// Never two owners for longer than that; tells what there was.
fn one_owner(answers: &[Answered], new: usize, bound: Duration) -> Result<()> {
    for to in KINDS {
        let change = change(answers, to, new)?;
        ensure!(
            change.overlap <= bound,
            "both nodes answered ({to:?}) for {}, more than {}",
            ms(change.overlap),
            ms(bound)
        );
        ensure!(
            change.silence <= MOST_SILENCE,
            "nobody answered ({to:?}) for {}",
            ms(change.silence)
        );
        println!(
            "{to:?}: nobody answered for {}, both for {}",
            ms(change.silence),
            ms(change.overlap)
        );
    }
    Ok(())
}

/// Waits until this node answers for everything.
fn answers_come_from(owners: &Owners, node: usize) -> Result<()> {
    let since = Instant::now();
    wait_until(&format!("node {node} answers"), BOUND, || {
        let answers = owners.since(since);
        Ok(KINDS.iter().all(|&to| {
            answers
                .iter()
                .any(|answer| answer.node == node && answer.to == to)
        }))
    })
}

/// The first node's daemon is killed and its interface goes down, again and again.
fn first_dies(setting: Setting, pace: Duration, bound: Duration) -> Result<()> {
    let _turn = whole_machine();
    let mut pair = Pair::start(setting)?;
    let mut steady = steady_at(&pair, pace)?;
    let owners = Owners::watch(&pair.net.backends[2], pair.service.ip(), &pair.hosts()?)?;
    let (mut worst, mut median, mut silences) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs() {
        let mut hand = pair.hand(0)?;
        answers_come_from(&owners, 0)?;
        steady.mark();
        let died = Instant::now();
        // At once: not when the process has been taken apart.
        pair.nodes[0].signal(Signal::KILL)?;
        hand.set_link(false)?;
        pair.nodes[0].kill9()?;
        answers_come_from(&owners, 1)?;
        let seen = all_go_on(&mut steady)?;
        let unanswered = silence(&owners.since(died - BUSY), Asked::Ping);
        silences.push(unanswered);
        worst.push(seen.worst());
        median.push(seen.median());
        println!(
            "{setting:?}: silence {}, median {}, worst {}, client late {}",
            ms(unanswered),
            ms(seen.median()),
            ms(seen.worst()),
            ms(seen.late)
        );
        hand.set_link(true)?;
        pair.nodes[0].restart()?;
        pair.settle(0)?;
        pair.caught_up(0)?;
        all_go_on(&mut steady)?;
    }
    println!(
        "{:?} {} at {}: no answer over a connection for {} (the connection in the middle: {}); \
         no answer to a ping for {}",
        setting.family,
        setting.forward,
        setting.interval,
        figures(worst.clone()),
        figures(median),
        figures(silences)
    );
    let longest = worst.into_iter().max().unwrap_or_default();
    ensure!(longest < bound, "{} without an answer", ms(longest));
    Ok(())
}

#[test]
fn of_a_node_that_dies_every_connection_goes_on_within_a_second() -> Result<()> {
    first_dies(FULL_NAT, PACE, LONGEST)
}

#[test]
fn at_an_interval_of_10_ms_it_takes_a_tenth_of_a_second() -> Result<()> {
    let swift = Setting {
        interval: "10ms",
        ..FULL_NAT
    };
    first_dies(swift, SWIFT_PACE, LONGEST)
}

#[test]
fn so_it_does_over_ipv6_and_without_translation() -> Result<()> {
    let direct = Setting {
        family: Family::V6,
        forward: "dsr",
        ..FULL_NAT
    };
    first_dies(direct, PACE, LONGEST)
}

/// A daemon that is killed, with its interface as it was.
fn killed_alone(family: Family) -> Result<()> {
    let _turn = whole_machine();
    let setting = Setting { family, ..FULL_NAT };
    let mut pair = Pair::start(setting)?;
    let mut steady = steady(&pair)?;
    let owners = Owners::watch(&pair.net.backends[2], pair.service.ip(), &pair.hosts()?)?;
    answers_come_from(&owners, 0)?;
    steady.mark();
    let killed = Instant::now();
    pair.nodes[0].kill9()?;
    pair.takes_over(1)?;
    answers_come_from(&owners, 1)?;
    let seen = all_go_on(&mut steady)?;
    ensure!(pair.has_address(0)?, "the dead one's address stays");
    // Long after its lease.
    thread::sleep(Duration::from_secs(1));
    let answers = owners.finish(killed)?;
    one_owner(&answers, 1, Duration::from_millis(100))?;
    let last = answers.iter().rfind(|answer| answer.node == 0);
    let after = last.map(|last| last.at - killed).unwrap_or_default();
    ensure!(
        after <= Duration::from_millis(300) + BUSY,
        "it has answered {} after its end, longer than its lease",
        ms(after)
    );
    println!("{family:?}: a killed one is silent after {}", ms(after));
    report(&seen);
    Ok(())
}

fn report(seen: &Seen) {
    println!(
        "over 1,000 connections: median gap {}, worst {}; the client late by {} at most",
        ms(seen.median()),
        ms(seen.worst()),
        ms(seen.late)
    );
}

#[test]
fn a_killed_daemon_falls_silent_before_the_other_node_answers() -> Result<()> {
    killed_alone(Family::V4)
}

#[test]
fn over_ipv6_a_killed_daemon_falls_silent_before_the_other_node_answers() -> Result<()> {
    killed_alone(Family::V6)
}

#[test]
fn a_frozen_daemon_falls_silent_and_steps_down_when_it_thaws() -> Result<()> {
    let _turn = whole_machine();
    let setting = Setting {
        more: "preempt = false",
        ..FULL_NAT
    };
    let pair = Pair::start(setting)?;
    let mut steady = steady(&pair)?;
    let owners = Owners::watch(&pair.net.backends[2], pair.service.ip(), &pair.hosts()?)?;
    answers_come_from(&owners, 0)?;
    steady.mark();
    let frozen = Instant::now();
    pair.nodes[0].signal(Signal::STOP)?;
    pair.takes_over(1)?;
    thread::sleep(Duration::from_secs(5).saturating_sub(frozen.elapsed()));
    ensure!(pair.has_address(0)?, "the frozen one's address stays");
    pair.nodes[0].signal(Signal::CONT)?;
    pair.settle(1)?;
    let seen = all_go_on(&mut steady)?;
    let answers = owners.finish(frozen)?;
    one_owner(&answers, 1, Duration::from_millis(100))?;
    ensure!(pair.status(1)?["transitions"] == 1, "{}", pair.status(1)?);
    report(&seen);
    Ok(())
}

#[test]
fn a_restart_quicker_than_the_lease_moves_nothing_and_loses_nothing() -> Result<()> {
    let _turn = whole_machine();
    let setting = Setting {
        interval: "1s",
        ..FULL_NAT
    };
    let mut pair = Pair::start(setting)?;
    let mut steady = steady(&pair)?;
    let owners = Owners::watch(&pair.net.backends[2], pair.service.ip(), &pair.hosts()?)?;
    answers_come_from(&owners, 0)?;
    let before = pair.status(1)?["transitions"].clone();
    steady.mark();
    let killed = Instant::now();
    pair.nodes[0].kill9()?;
    pair.nodes[0].restart()?;
    let took = killed.elapsed();
    pair.settle(0)?;
    // What moves does so within a lease, a skew, and what announcing takes.
    thread::sleep(Duration::from_secs(5).saturating_sub(killed.elapsed()));
    let seen = all_go_on(&mut steady)?;
    println!("restarted after {}", ms(took));
    report(&seen);
    let answers = owners.finish(killed)?;
    let others = answers.iter().filter(|answer| answer.node == 1).count();
    ensure!(others == 0, "the other node has answered {others} times");
    ensure!(pair.status(1)?["transitions"] == before);
    ensure!(seen.worst() < Duration::from_secs(1), "something was lost");
    Ok(())
}

/// What may not fail while the nodes hand over to each other: the connections in use,
/// and new ones that come all the time.
struct Watched {
    steady: Steady,
    fresh: Vec<Fresh>,
    owners: Owners,
    since: Instant,
}

impl Watched {
    fn start(pair: &Pair) -> Result<Self> {
        let steady = steady(pair)?;
        let owners = Owners::watch(&pair.net.backends[2], pair.service.ip(), &pair.hosts()?)?;
        answers_come_from(&owners, 0)?;
        Ok(Self {
            fresh: (0..2)
                .map(|_| Fresh::start(&pair.net.client, pair.service, APART))
                .collect(),
            steady,
            owners,
            since: Instant::now(),
        })
    }

    /// A part is over: everything has gone on.
    fn passed(&mut self, what: &str) -> Result<()> {
        let seen = all_go_on(&mut self.steady).with_context(|| what.to_owned())?;
        println!(
            "{what}: gaps over 1,000 connections: median {}, worst {} (client late by {}); \
             a ping unanswered for {}",
            ms(seen.median()),
            ms(seen.worst()),
            ms(seen.late),
            ms(silence(&self.owners.since(self.since), Asked::Ping))
        );
        self.steady.mark();
        self.since = Instant::now();
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let (mut made, mut slowest) = (0, Duration::ZERO);
        for fresh in self.fresh {
            let outcome = fresh.finish()?;
            made += outcome.made;
            slowest = slowest.max(outcome.slowest);
            ensure!(outcome.failed.is_empty(), "failed: {:?}", outcome.failed);
        }
        ensure!(made > 100, "only {made} new connections");
        println!("{made} new connections, the slowest took {}", ms(slowest));
        Ok(())
    }
}

/// Between one new connection of a client and the next.
const APART: Duration = Duration::from_millis(5);

/// A client that asks over a new connection each time.
struct Fresh {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<Outcome>,
}

#[derive(Debug, Default)]
struct Outcome {
    made: usize,
    slowest: Duration,
    failed: Vec<String>,
}

impl Fresh {
    /// A pause is made after each. Without one they are broken off: the client would
    /// run out of ports.
    fn start(host: &Host, service: SocketAddr, pause: Duration) -> Self {
        let ended = Arc::<AtomicBool>::default();
        let end = Arc::clone(&ended);
        let thread = host.spawn(move || {
            let mut outcome = Outcome::default();
            while !end.load(Ordering::Relaxed) {
                let began = Instant::now();
                if let Err(error) = ask_once(service, pause.is_zero()) {
                    outcome.failed.push(format!("{error:#}"));
                }
                outcome.made += 1;
                outcome.slowest = outcome.slowest.max(began.elapsed());
                thread::sleep(pause);
            }
            outcome
        });
        Self { ended, thread }
    }

    fn finish(self) -> Result<Outcome> {
        self.ended.store(true, Ordering::Relaxed);
        let outcome = self.thread.join();
        outcome.map_err(|_| anyhow!("the client panicked"))
    }
}

/// Connects, asks a server of [`tests::netns::EchoServer`], and ends it.
fn ask_once(service: SocketAddr, break_off: bool) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&service, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[7; 8].into_iter().chain([0; 8]).collect::<Vec<u8>>())?;
    let mut reply = [0; 32];
    stream.read_exact(&mut reply)?;
    ensure!(reply[..8] == [7; 8], "another's answer");
    if break_off {
        set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    Ok(())
}

#[test]
fn nothing_fails_when_the_nodes_hand_over_or_are_restarted_one_after_the_other() -> Result<()> {
    let _turn = whole_machine();
    let mut pair = Pair::start(FULL_NAT)?;
    let mut watched = Watched::start(&pair)?;
    for from in [0, 1] {
        pair.nodes[from].lb(&["ha", "yield"])?;
        pair.settle(1 - from)?;
        answers_come_from(&watched.owners, 1 - from)?;
        pair.caught_up(1 - from)?;
        watched.passed(&format!("yield of node {from}"))?;
    }
    for node in [1, 0] {
        ensure!(pair.nodes[node].stop()?.success());
        pair.takes_over(1 - node)?;
        answers_come_from(&watched.owners, 1 - node)?;
        watched.passed(&format!("stop of node {node}"))?;
        pair.nodes[node].restart()?;
        pair.settle(0)?;
        answers_come_from(&watched.owners, 0)?;
        pair.caught_up(0)?;
        watched.passed(&format!("start of node {node}"))?;
    }
    watched.finish()
}

#[test]
fn after_a_split_one_node_is_left_and_clients_reach_it() -> Result<()> {
    let _turn = whole_machine();
    let pair = Pair::start(FULL_NAT)?;
    let mut steady = steady(&pair)?;
    let owners = Owners::watch(&pair.net.backends[2], pair.service.ip(), &pair.hosts()?)?;
    let (mut ends, mut reached, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs() {
        pair.block_advertisements()?;
        wait_until("both nodes are active", BOUND, || {
            Ok(pair.state(0) == "active" && pair.state(1) == "active")
        })?;
        answers_come_from(&owners, 0)?;
        answers_come_from(&owners, 1)?;
        all_go_on(&mut steady)?;
        steady.mark();
        // That takes some milliseconds, which count as well.
        let healed = Instant::now();
        pair.allow_advertisements()?;
        wait_until("the client knows the first node again", BOUND, || {
            pair.client_reaches(0)
        })?;
        reached.push(healed.elapsed());
        pair.settle(0)?;
        let seen = all_go_on(&mut steady)?;
        gaps.push(seen.worst());
        let answers = owners.since(healed);
        let last = answers.iter().rfind(|answer| answer.node == 1);
        ends.push(last.map(|last| last.at - healed).unwrap_or_default());
    }
    let longest = ends.iter().copied().max().unwrap_or_default();
    let slowest = reached.iter().copied().max().unwrap_or_default();
    println!("two answer after the link has healed: {}", figures(ends));
    println!("clients reach the one that is left: {}", figures(reached));
    println!("no answer over a connection for {}", figures(gaps));
    ensure!(
        longest <= Duration::from_millis(100) + BUSY,
        "two nodes answered for {} after the link had healed",
        ms(longest)
    );
    ensure!(slowest <= Duration::from_millis(200) + BUSY);
    Ok(())
}

/// New connections a second, as fast as two clients make them.
fn new_connections(pair: &Pair) -> Result<f64> {
    const LASTS: Duration = Duration::from_millis(1_500);
    let client = || Fresh::start(&pair.net.client, pair.service, Duration::ZERO);
    let (one, other) = (client(), client());
    thread::sleep(LASTS);
    let mut made = 0;
    for client in [one, other] {
        let outcome = client.finish()?;
        ensure!(outcome.failed.is_empty(), "failed: {:?}", outcome.failed);
        made += outcome.made;
    }
    Ok(made as f64 / LASTS.as_secs_f64())
}

#[test]
fn a_peer_that_is_frozen_or_absent_does_not_slow_new_connections() -> Result<()> {
    let _turn = whole_machine();
    let alone = Pair::start(Setting {
        sync: false,
        ..FULL_NAT
    })?;
    let without = new_connections(&alone)?;
    drop(alone);
    let mut pair = Pair::start(FULL_NAT)?;
    let [mut told, mut frozen, mut absent] = <[Vec<f64>; 3]>::default();
    for _ in 0..3 {
        pair.caught_up(0)?;
        told.push(new_connections(&pair)?);
        pair.nodes[1].signal(Signal::STOP)?;
        frozen.push(new_connections(&pair)?);
        pair.nodes[1].signal(Signal::CONT)?;
        pair.nodes[1].kill9()?;
        absent.push(new_connections(&pair)?);
        pair.nodes[1].restart()?;
        pair.settle(0)?;
    }
    let [told, frozen, absent] = [told, frozen, absent].map(|mut rates| {
        rates.sort_unstable_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!(
        "new connections a second: {told:.0} with a peer that is told of them, {frozen:.0} with \
         one that is frozen, {absent:.0} with none, {without:.0} without [ha.sync]"
    );
    // A busy machine gives more to one and less to another.
    ensure!(frozen > told / 2.0 && absent > told / 2.0);
    Ok(())
}
