//! What a task says: one line a step, in colour on a terminal.

use std::io::{self, IsTerminal, Write as _};

const GREEN: &str = "\x1b[1;32m";
const CYAN: &str = "\x1b[1;36m";
const RED: &str = "\x1b[1;31m";
const PLAIN: &str = "\x1b[0m";

/// A step that is about to be taken, and why.
pub(crate) fn step(verb: &str, what: &str) {
    say(CYAN, verb, what);
}

/// Something that is as it should be.
pub(crate) fn done(what: &str) {
    say(GREEN, "done", what);
}

/// The end of a task that failed: one sentence with its causes.
pub(crate) fn failed(error: &anyhow::Error) {
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (on, off) = if colour { (RED, PLAIN) } else { ("", "") };
    // Nothing can be said if stderr is gone.
    let _ = writeln!(io::stderr(), "{on}error:{off} {error:#}");
}

fn say(colour: &str, verb: &str, what: &str) {
    let mut out = io::stdout().lock();
    let (on, off) = if out.is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        (colour, PLAIN)
    } else {
        ("", "")
    };
    // A reader that went away (`cargo xtask setup | head`) is no reason to stop.
    let _ = writeln!(out, "{on}{verb:>10}{off} {what}").and_then(|()| out.flush());
}
