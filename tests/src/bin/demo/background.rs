//! Work that goes on while the demonstration does something else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, anyhow};
use tests::netns::Host;

/// A thread on a host that works until it is told to end. Dropped, it is told,
/// and nobody waits for it.
pub(crate) struct Background<T> {
    going: Arc<AtomicBool>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts the work; it looks at the flag often, and ends when it is false.
    pub(crate) fn start(host: &Host, work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let going = Arc::new(AtomicBool::new(true));
        let seen = Arc::clone(&going);
        Self {
            thread: Some(host.spawn(move || work(&seen))),
            going,
        }
    }

    /// Tells it to end, waits, and gives its result.
    pub(crate) fn finish(mut self) -> Result<T> {
        self.going.store(false, Ordering::Relaxed);
        let thread = self.thread.take().context("nobody has waited before")?;
        thread
            .join()
            .map_err(|_| anyhow!("a client of the demonstration panicked"))
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.going.store(false, Ordering::Relaxed);
    }
}

/// Whether to go on.
pub(crate) fn goes_on(going: &AtomicBool) -> bool {
    going.load(Ordering::Relaxed)
}
