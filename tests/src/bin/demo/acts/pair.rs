//! A second balancer stands by. The active one is killed under load and its cable is
//! pulled: the other one has its addresses and knows its connections.

use std::time::Duration;

use ::tests::netns::{Family, Pair, Seen, Setting, Steady};
use anyhow::Result;
use rustix::process::Signal;

use crate::world::{World, counted, milliseconds};

/// The connections in use.
const CONNECTIONS: usize = 1_000;

/// How often each asks.
const PACE: Duration = Duration::from_millis(40);

/// How long the load goes on before and after.
const AROUND: Duration = Duration::from_secs(1);

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest that clients may be without an answer: what is left of
/// it is for a machine that is busy.
const GAP: Duration = Duration::from_secs(1);

pub(crate) fn pair(world: &mut World<'_>) -> Result<()> {
    world.screen.see(
        "another network: two balancers on one link, lb (priority 150) and lb2 (priority 50), \
         which speak VRRP every 50 ms, and certificates for both: lb tls init",
    );
    let setting = Setting {
        family: Family::V4,
        forward: "full-nat",
        interval: "50ms",
        more: "",
        sync: true,
    };
    let pair = Pair::start(setting);
    // Ctrl-C in a terminal reaches the daemons too: that they ended is no fault.
    world.stop.check()?;
    let mut pair = pair?;
    let steady = Steady::open(&pair.net.client, pair.service, CONNECTIONS, PACE);
    world.stop.check()?;
    let mut steady = steady?;
    pair.caught_up(0)?;
    world.screen.see(&format!(
        "{CONNECTIONS} connections are in use, each asks every {}; lb is active, lb2 knows \
         every connection and forwards nothing",
        milliseconds(PACE)
    ));
    world.stop.pause(AROUND)?;
    dies(world, &mut pair, &mut steady)?;
    returns(world, &mut pair, &mut steady)
}

/// The active one is killed, and the other one goes on.
fn dies(world: &mut World<'_>, pair: &mut Pair, steady: &mut Steady) -> Result<()> {
    let mut cable = pair.hand(0)?;
    let pid = pair.nodes[0].pid().unwrap_or_default();
    steady.mark();
    // At once: not when the process has been taken apart.
    pair.nodes[0].signal(Signal::KILL)?;
    cable.set_link(false)?;
    pair.nodes[0].kill9()?;
    world.screen.see(&format!(
        "lb is killed (kill -9 {pid}), and its interface goes down"
    ));
    let seen = goes_on(world, steady)?;
    let (gap, whole) = (seen.worst(), CONNECTIONS - seen.broken.len());
    world.screen.see(&format!(
        "lb2 has taken over: {whole} of {CONNECTIONS} connections go on; without an answer were \
         they for {}, the longest for {}",
        milliseconds(seen.median()),
        milliseconds(gap)
    ));
    cable.set_link(true)?;
    world.promises.note(
        "the active balancer dies under load: every connection goes on at the other one",
        format!(
            "{whole} of {CONNECTIONS}, a gap of {} (bound {})",
            milliseconds(gap),
            milliseconds(GAP)
        ),
        whole == CONNECTIONS && gap < GAP,
    );
    Ok(())
}

/// It is started again and takes over again, as the one of higher priority.
fn returns(world: &mut World<'_>, pair: &mut Pair, steady: &mut Steady) -> Result<()> {
    steady.mark();
    let restarted = pair.nodes[0].restart();
    world.stop.check()?;
    restarted?;
    pair.settle(0)?;
    world
        .screen
        .see("lb is started again, has heard of every connection, and has taken over again");
    world.stop.pause(AROUND)?;
    let seen = goes_on(world, steady)?;
    let lost = seen.broken.len();
    world.promises.note(
        "it comes back, learns every connection, and takes over: none is lost",
        format!(
            "{} lost, a gap of {}",
            counted(lost, "connection", "connections"),
            milliseconds(seen.worst())
        ),
        lost == 0 && seen.worst() < GAP,
    );
    Ok(())
}

/// Waits until every connection that is whole has had an answer to a request of now.
fn goes_on(world: &World<'_>, steady: &mut Steady) -> Result<Seen> {
    let settled = steady.settle("connections goes on", PATIENCE);
    world.stop.check()?;
    settled?;
    Ok(steady.seen())
}
