//! What the demonstration says: in colour on a terminal, plain into a pipe.
//!
//! Everything goes to standard output a line at a time, as it happens. A
//! reader that goes away is no reason to stop: the demonstration still has to
//! clean up, and its exit status still counts.

use std::{
    env,
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    time::Instant,
};

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[33m";
const CYAN: &str = "\x1b[36m";
const PLAIN: &str = "\x1b[0m";

/// How a word is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As promised.
    Good,
    /// Not as promised.
    Bad,
    /// To be noticed, and no fault.
    Notable,
}

/// Where the demonstration speaks.
pub(crate) struct Screen {
    colour: bool,
    begun: Instant,
}

impl Screen {
    /// Standard output, from now on.
    pub(crate) fn new() -> Self {
        Self {
            colour: io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none(),
            begun: Instant::now(),
        }
    }

    /// The first line.
    pub(crate) fn title(&self, text: &str) {
        self.line(&self.paint(BOLD, text));
    }

    /// A new part begins.
    pub(crate) fn part(&self, number: u8, title: &str) {
        self.line("");
        self.line(&self.paint(BOLD, &format!("{number}. {title}")));
    }

    /// Something that has just been seen or done, with the time it was.
    pub(crate) fn see(&self, text: &str) {
        let stamp = format!("{:6.1}s", self.begun.elapsed().as_secs_f64());
        self.line(&format!("{}  {text}", self.paint(DIM, &stamp)));
    }

    /// What is waited for, if that takes longer than people do without a word.
    pub(crate) fn wait(&self, text: &str) {
        self.see(&self.paint(DIM, text));
    }

    /// A command, as a user would type it.
    pub(crate) fn command(&self, text: &str) {
        self.see(&self.paint(CYAN, &format!("$ {text}")));
    }

    /// Belongs to the line above.
    pub(crate) fn detail(&self, text: &str) {
        self.line(&format!("         {text}"));
    }

    /// A row of a table of its own.
    pub(crate) fn row(&self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// An error, on standard error.
    pub(crate) fn failed(&self, text: impl Display) {
        let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none();
        let (on, off) = if colour { (RED, PLAIN) } else { ("", "") };
        // Nothing can be said if standard error is gone.
        let _ = writeln!(io::stderr(), "{on}demo:{off} {text}");
    }

    /// A text in its tone.
    pub(crate) fn tone(&self, tone: Tone, text: &str) -> String {
        match tone {
            Tone::Good => self.paint(GREEN, text),
            Tone::Bad => self.paint(RED, text),
            Tone::Notable => self.paint(YELLOW, text),
        }
    }

    /// A bar for a part of a whole, `width` characters for all of it.
    pub(crate) fn bar(&self, part: usize, whole: usize, width: usize) -> String {
        let filled = (part * width + whole / 2)
            .checked_div(whole)
            .unwrap_or_default();
        self.paint(CYAN, &"█".repeat(filled))
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour {
            format!("{colour}{text}{PLAIN}")
        } else {
            text.to_owned()
        }
    }

    fn line(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}
