//! A backend dies and comes back. Until its checks have failed, its share of
//! the new connections fails; that is said, not hidden.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    kept::{Kept, Life, homes},
    load::{Load, Request, failed},
    screen::Tone,
    world::{CHECK_INTERVAL, FALL, NAMES, SERVICE, WEIGHTS, World, counted, milliseconds},
};

/// Requests a second.
const RATE: u32 = 150;

/// Connections that stay open: two full sequences.
const KEPT: usize = 12;

/// Requests that are counted at a time.
const REQUESTS: usize = 300;

/// The longest a dead backend may go on taking connections: the check under
/// way, `fall` intervals, and a second for a machine that is busy.
const OUT: Duration = CHECK_INTERVAL
    .saturating_mul(FALL + 1)
    .saturating_add(Duration::from_secs(1));

pub(crate) fn outage(world: &mut World<'_>) -> Result<()> {
    let kept = Kept::open(&world.net.client, world.service.listen, KEPT)?;
    world.screen.see(&format!(
        "{KEPT} connections stay open and in use: {}; a client makes {RATE} requests a second",
        homes(&kept.opened, &NAMES)
    ));
    let load = world.load(RATE, 1);
    world.stop.pause(Duration::from_secs(1))?;
    let pid = world.servers[0].pid().unwrap_or_default();
    world.screen.see(&format!(
        "nginx of b1 is killed (kill -9 {pid}); it is checked every {}, {FALL} failures take it out",
        milliseconds(CHECK_INTERVAL)
    ));
    let killed = Instant::now();
    world.servers[0].kill()?;
    goes(world, &load, killed)?;
    returns(world, &load)?;
    let all = load.finish()?;
    elsewhere(world, kept, &all, killed)
}

/// From the death until the others have its share.
fn goes(world: &mut World<'_>, load: &Load, killed: Instant) -> Result<()> {
    world.until_shares("the daemon takes b1 out", &[0, 2, 1])?;
    let noticed = Instant::now();
    world.screen.see(&format!(
        "the daemon has taken b1 out, {} later:",
        milliseconds(noticed - killed)
    ));
    world.command(&["backend", "list", SERVICE])?;
    world.screen.see(&format!(
        "the next {REQUESTS} requests, by the others' weights:"
    ));
    let after = world.requests(load, noticed, REQUESTS)?;
    let [_, second, third] = WEIGHTS;
    let shares = world.shares(&after, [0, second, third]);

    let since = load.since(killed);
    let last = failed(&since).map(|request| request.begun - killed).max();
    let last = last.unwrap_or_default();
    let lost = failed(&since).count();
    let met = since
        .iter()
        .filter(|request| request.begun <= killed + last)
        .count();
    world.screen.see(&format!(
        "before that, b1's share failed: {}",
        world.screen.tone(
            Tone::Notable,
            &format!(
                "{lost} of the {met} requests in the first {}",
                milliseconds(last)
            )
        )
    ));
    if let Some(Err(reason)) = failed(&since).next().map(|request| &request.outcome) {
        world.screen.detail(&format!("they said: {reason}"));
    }
    world.promises.note(
        &format!("a dead backend takes no new connection after {FALL} failed checks"),
        format!(
            "none after {} (bound {}); {} failed",
            milliseconds(last),
            milliseconds(OUT),
            counted(lost, "request", "requests")
        ),
        last <= OUT && failed(&after).count() == 0,
    );
    world.promises.note(
        "the others take its share, exactly, and nothing fails any more",
        shares.line(),
        shares.are_exact(),
    );
    Ok(())
}

/// From its return until it has its share again.
fn returns(world: &mut World<'_>, load: &Load) -> Result<()> {
    world.servers[0].restart()?;
    let started = Instant::now();
    world.screen.see("nginx of b1 is started again");
    world.until_shares("the daemon takes b1 in", &[3, 2, 1])?;
    let back = Instant::now();
    world.screen.see(&format!(
        "the daemon has taken b1 in, {} later; the next {REQUESTS} requests:",
        milliseconds(back - started)
    ));
    let requests = world.requests(load, back, REQUESTS)?;
    let shares = world.shares(&requests, WEIGHTS);
    let lost = failed(&load.since(started)).count();
    world.promises.note(
        "a backend that returns takes its exact share again",
        format!("{}, {lost} failed since", shares.line()),
        shares.are_exact() && lost == 0,
    );
    Ok(())
}

/// Only connections to the backend that died have ended.
fn elsewhere(world: &mut World<'_>, kept: Kept, all: &[Request], killed: Instant) -> Result<()> {
    let lives = kept.finish()?;
    let (at_b1, elsewhere): (Vec<Life>, Vec<Life>) =
        lives.into_iter().partition(|life| life.home == "b1");
    let well = elsewhere.iter().filter(|life| life.is_well()).count();
    let ended = at_b1.iter().filter(|life| life.broke.is_some()).count();
    let before = all
        .iter()
        .filter(|request| request.begun + request.took < killed);
    let early = before.filter(|request| request.outcome.is_err()).count();
    world.screen.see(&format!(
        "open connections: {ended} of {} ended with b1, {well} of {} to the others never noticed",
        at_b1.len(),
        elsewhere.len()
    ));
    world.trouble(&elsewhere);
    world.promises.note(
        "connections to the others do not notice",
        format!(
            "{well} of {} stayed, {early} requests failed before",
            elsewhere.len()
        ),
        well == elsewhere.len() && early == 0,
    );
    Ok(())
}
