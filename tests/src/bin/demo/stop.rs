//! Ending before the end: Ctrl-C, or a demonstration that hangs.
//!
//! Whoever wants the end says so once, and every wait of the demonstration
//! notices: it returns the [`Cause`] as its error, and what was built is taken
//! away on the way out as after a failure. Should even that hang, the process
//! ends all the same, and `cargo xtask` sweeps up behind it.

use std::{
    io::{self, Write as _},
    process,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// The demonstration takes less than a minute; one that takes so long hangs.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// How long cleaning up may take.
const GRACE: Duration = Duration::from_secs(45);

/// Why the demonstration ends before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cause {
    /// Somebody asked for it.
    #[error("stopped by {}", signal_name(*.0))]
    Signal(i32),
    /// It hangs.
    #[error(
        "still not done after {} s, so something hangs: the last line above says what was waited for",
        LIMIT.as_secs()
    )]
    TooLong,
}

/// The wish to stop, shared by everyone who waits. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Stop(Arc<(Mutex<Option<Cause>>, Condvar)>);

impl Stop {
    /// Listens to signals from now on, and lets the time run.
    pub(crate) fn watch(&self) -> Result<()> {
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen to signals")?;
        let asked = self.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                let cause = Cause::Signal(signal);
                if asked.ask(cause) {
                    // Nothing can be said if standard error is gone.
                    let _ = writeln!(io::stderr(), "demo: {cause}; taking everything away");
                }
            }
        });
        let watched = self.clone();
        thread::spawn(move || {
            // It ends early only if somebody else has asked.
            let _ = watched.pause(LIMIT);
            watched.ask(Cause::TooLong);
            thread::sleep(GRACE);
            let _ = writeln!(
                io::stderr(),
                "demo: {}; cleaning up hangs, too. Ending at once; `cargo xtask demo` sweeps up.",
                watched.cause().unwrap_or(Cause::TooLong)
            );
            process::exit(1);
        });
        Ok(())
    }

    /// Asks everyone to stop; the first cause counts. Gives whether it is this.
    pub(crate) fn ask(&self, cause: Cause) -> bool {
        let (asked, changed) = &*self.0;
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let first = asked.is_none();
        asked.get_or_insert(cause);
        changed.notify_all();
        first
    }

    /// Why to stop, if anybody asked.
    pub(crate) fn cause(&self) -> Option<Cause> {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if anybody asked.
    pub(crate) fn check(&self) -> Result<(), Cause> {
        self.cause().map_or(Ok(()), Err)
    }

    /// Waits so long, unless somebody asks to stop.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Cause> {
        let (asked, changed) = &*self.0;
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, _) = changed
            .wait_timeout_while(asked, time, |asked| asked.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        asked.map_or(Ok(()), Err)
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "Ctrl-C",
        SIGTERM => "SIGTERM",
        _ => "SIGHUP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_when_somebody_asks_and_the_first_cause_counts() {
        let stop = Stop::default();
        assert_eq!(stop.pause(Duration::ZERO), Ok(()));
        let asking = stop.clone();
        let thread = thread::spawn(move || asking.ask(Cause::Signal(SIGINT)));
        let hour = Duration::from_secs(3_600);
        assert_eq!(stop.pause(hour), Err(Cause::Signal(SIGINT)));
        thread.join().unwrap();
        assert!(!stop.ask(Cause::TooLong));
        assert_eq!(stop.cause(), Some(Cause::Signal(SIGINT)));
    }
}
