//! Weights are changed while clients use the service: exact from the next
//! connection on, and established connections stay where they are.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    kept::{Kept, homes},
    load::{Load, failed},
    shares::Shares,
    world::{NAMES, SERVICE, WEIGHTS, World, counted},
};

/// Requests a second.
const RATE: u32 = 150;

/// Connections that stay open: two full sequences.
const KEPT: usize = 12;

pub(crate) fn change(world: &mut World<'_>) -> Result<()> {
    let kept = Kept::open(&world.net.client, world.service.listen, KEPT)?;
    world.screen.see(&format!(
        "{KEPT} connections stay open and in use: {}",
        homes(&kept.opened, &NAMES)
    ));
    world.screen.see(&format!(
        "a client makes {RATE} requests a second from now on"
    ));
    let load = world.load(RATE, 1);
    world.stop.pause(Duration::from_secs(1))?;

    world.command(&["backend", "weight", SERVICE, "b1", "1"])?;
    world.command(&["backend", "weight", SERVICE, "b3", "3"])?;
    let first = next(world, &load, [1, 2, 3], 300)?;
    world.command(&["backend", "weight", SERVICE, "b2", "8"])?;
    let second = next(world, &load, [1, 8, 3], 240)?;
    world.command(&["overrides", "clear"])?;
    let third = next(world, &load, WEIGHTS, 300)?;

    let requests = load.finish()?;
    let lives = kept.finish()?;
    let lost = failed(&requests).count();
    let well = lives.iter().filter(|life| life.is_well()).count();
    let answered: usize = lives.iter().map(|life| life.answered).sum();
    world.screen.see(&format!(
        "{} requests in all, {}; {well} of {KEPT} open connections are where they were, \
         after {answered} requests over them",
        requests.len(),
        counted(lost, "failure", "failures"),
    ));
    world.trouble(&lives);
    let all = [first, second, third];
    let lines: Vec<String> = all.iter().map(Shares::line).collect();
    world.promises.note(
        "weights changed live are exact from the next connection on",
        lines.join(", "),
        all.iter().all(Shares::are_exact),
    );
    world.promises.note(
        "no request fails while weights change",
        format!("{lost} of {} failed", requests.len()),
        lost == 0,
    );
    world.promises.note(
        "established connections stay where they are",
        format!("{well} of {KEPT} stayed"),
        well == KEPT,
    );
    Ok(())
}

/// The shares of the next requests, from now on.
fn next(world: &World<'_>, load: &Load, weights: [u16; 3], count: usize) -> Result<Shares> {
    let now = Instant::now();
    world.screen.see(&format!(
        "the next {count} requests, at weights {}:",
        weights.map(|weight| weight.to_string()).join(":")
    ));
    let requests = world.requests(load, now, count)?;
    Ok(world.shares(&requests, weights))
}
