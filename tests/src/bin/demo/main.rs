//! `cargo xtask demo`: the load balancer at work, on real connections.
//!
//! A client, the balancer and three backends, each in a network namespace of
//! its own; the backends run nginx. At the end a second balancer joins, in another
//! such network. The demonstration does to the balancer what
//! operators do and what happens to them, while clients use it, prints what it
//! sees, and ends with a table of the promises and whether each held. The exit
//! status is 0 if all did.
//!
//! Nothing is left behind: after success, a failure or Ctrl-C, [`world::World`]
//! takes everything with it when it is dropped.

mod acts;
mod background;
mod kept;
mod load;
mod nginx;
mod promises;
mod screen;
mod shares;
mod stop;
mod world;

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    screen::{Screen, Tone},
    stop::{Cause, Stop},
    world::World,
};

fn main() -> ExitCode {
    let screen = Screen::new();
    let stop = Stop::default();
    let outcome = stop.watch().and_then(|()| show(&screen, &stop));
    let left = world::leftovers();
    for path in &left {
        screen.failed(format!("this was left behind: {}", path.display()));
    }
    // What failed because of Ctrl-C is not worth a word of its own.
    match (outcome, stop.cause()) {
        (_, Some(Cause::Signal(signal))) => {
            if left.is_empty() {
                screen.failed("everything is taken away");
            }
            // As shells count.
            u8::try_from(128 + signal).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        (_, Some(cause @ Cause::TooLong)) => {
            screen.failed(cause);
            ExitCode::FAILURE
        }
        (Err(error), None) => {
            screen.failed(format!("{error:#}"));
            ExitCode::FAILURE
        }
        (Ok(true), None) if left.is_empty() => ExitCode::SUCCESS,
        (Ok(_), None) => ExitCode::FAILURE,
    }
}

/// The whole demonstration; gives whether every promise held.
fn show(screen: &Screen, stop: &Stop) -> Result<bool> {
    screen.title("Fulcrum: a layer-4 load balancer on real connections");
    screen.part(1, "A client, the balancer and three web servers");
    let mut world = World::build(screen, stop)?;
    screen.part(2, "New connections are divided exactly by weight");
    acts::weights(&mut world)?;
    screen.part(3, "Weights are changed while clients use the service");
    acts::change(&mut world)?;
    screen.part(4, "A backend dies, and comes back");
    acts::outage(&mut world)?;
    screen.part(5, "The daemon is killed under load, and started again");
    acts::restart(&mut world)?;
    screen.part(6, "A second balancer stands by, and the active one dies");
    acts::pair(&mut world)?;
    screen.part(7, "What was promised, and what was seen");
    world.promises.show(screen);
    let broken = world.promises.broken();
    screen.see("taking everything away");
    drop(world);
    if broken == 0 {
        screen.see(&screen.tone(Tone::Good, "every promise held"));
    } else {
        let text = world::counted(broken, "promise", "promises");
        screen.see(&screen.tone(Tone::Bad, &format!("{text} did not hold")));
    }
    Ok(broken == 0)
}
