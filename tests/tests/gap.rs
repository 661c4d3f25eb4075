//! What clients notice of a pair whose nodes die, freeze, restart and lose sight of each
//! other: two balancers on one link, a thousand connections in steady use, and every
//! node asked every millisecond whether it answers.
//!
//! What is asserted holds on a busy machine; the figures are printed. `LB_TEST_RUNS`
//! says how often a failure is repeated for them (1 by default).

use std::env;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tests::netns::{Answered, Asked, Family, Owners, Pair, Seen, Setting, Steady};

/// For whatever takes no time on an idle machine.
const BOUND: Duration = Duration::from_secs(60);

/// The connections in use.
const CONNECTIONS: usize = 1_000;

/// How often each asks.
const PACE: Duration = Duration::from_millis(40);

/// Whether the second node knows the connections of the first.
const CARRIED: bool = false;

/// What the machine may add to whatever is measured.
const BUSY: Duration = Duration::from_millis(50);

const FULL_NAT: Setting = Setting {
    family: Family::V4,
    forward: "full-nat",
    interval: "100ms",
    more: "",
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

fn steady(pair: &Pair) -> Result<Steady> {
    Steady::open(&pair.net.client, pair.service, CONNECTIONS, PACE)
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
    if CARRIED {
        steady.settle("connections goes on", BOUND)?;
    }
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
        .last()
        .with_context(|| format!("the old owner has answered no {to:?}"))?;
    Ok(Change {
        silence: first.saturating_duration_since(last),
        overlap: last.saturating_duration_since(first),
    })
}

const KINDS: [Asked; 3] = [Asked::Neighbour, Asked::Segment, Asked::Ping];

/// Never two owners for longer than that; gives what there was.
fn one_owner(answers: &[Answered], new: usize, bound: Duration) -> Result<Vec<(Asked, Change)>> {
    let mut changes = Vec::new();
    for to in KINDS {
        let change = change(answers, to, new)?;
        ensure!(
            change.overlap <= bound,
            "both nodes answered ({to:?}) for {}, more than {}",
            ms(change.overlap),
            ms(bound)
        );
        changes.push((to, change));
    }
    Ok(changes)
}

/// Waits until this node answers for everything.
fn answers_come_from(owners: &Owners, node: usize) -> Result<()> {
    let since = Instant::now();
    tests::netns::wait_until(&format!("node {node} answers"), BOUND, || {
        let answers = owners.since(since);
        Ok(KINDS.iter().all(|&to| {
            answers
                .iter()
                .any(|answer| answer.node == node && answer.to == to)
        }))
    })
}

/// The first node's daemon is killed and its interface goes down, again and again.
fn first_dies(setting: Setting, bound: Duration) -> Result<()> {
    let _turn = whole_machine();
    let mut pair = Pair::start(setting)?;
    let mut steady = steady(&pair)?;
    let owners = Owners::watch(&pair.net.backends[2], pair.service.ip(), &pair.hosts()?)?;
    let (mut worst, mut median, mut silences) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs() {
        let mut hand = pair.hand(0)?;
        answers_come_from(&owners, 0)?;
        steady.mark();
        let died = Instant::now();
        pair.nodes[0].kill9()?;
        hand.set_link(false)?;
        answers_come_from(&owners, 1)?;
        let seen = all_go_on(&mut steady)?;
        silences.push(change(&owners.since(died - BUSY), Asked::Ping, 1)?.silence);
        worst.push(seen.worst());
        median.push(seen.median());
        println!(
            "{setting:?}: silence {}, median {}, worst {}, client late {}",
            ms(*silences.last().unwrap()),
            ms(seen.median()),
            ms(seen.worst()),
            ms(seen.late)
        );
        hand.set_link(true)?;
        pair.nodes[0].restart()?;
        pair.settle(0)?;
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
    if CARRIED {
        let longest = worst.into_iter().max().unwrap_or_default();
        ensure!(longest < bound, "{} without an answer", ms(longest));
    }
    Ok(())
}

#[test]
fn when_the_active_node_dies_every_connection_goes_on_within_a_second() -> Result<()> {
    first_dies(FULL_NAT, Duration::from_secs(1) + BUSY)
}

#[test]
fn at_an_interval_of_10_ms_it_takes_a_tenth_of_a_second() -> Result<()> {
    let swift = Setting {
        interval: "10ms",
        ..FULL_NAT
    };
    // The figure is for a quiet machine.
    first_dies(swift, Duration::from_millis(500))
}

#[test]
fn so_it_does_over_ipv6_and_without_translation() -> Result<()> {
    let direct = Setting {
        family: Family::V6,
        forward: "dsr",
        ..FULL_NAT
    };
    first_dies(direct, Duration::from_secs(1) + BUSY)
}

/// A daemon that is killed, with its interface as it was.
fn killed_alone(family: Family) -> Result<()> {
    let _turn = whole_machine();
    let setting = Setting {
        family,
        ..FULL_NAT
    };
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
    let changes = one_owner(&answers, 1, Duration::from_millis(100))?;
    let last = answers.iter().rfind(|answer| answer.node == 0);
    let after = last.map(|last| last.at - killed).unwrap_or_default();
    ensure!(
        after <= Duration::from_millis(300) + BUSY,
        "it has answered {} after its end, longer than its lease",
        ms(after)
    );
    println!("{family:?}: killed: silent after {}; {changes:?}", ms(after));
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
    let changes = one_owner(&answers, 1, Duration::from_millis(100))?;
    ensure!(pair.status(1)?["transitions"] == 1, "{}", pair.status(1)?);
    println!("frozen: {changes:?}");
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
    steady.settle("connections goes on", BOUND)?;
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
