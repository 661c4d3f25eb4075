//! The edge of the events: the clock, the log, and readers that wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use log::log;
use tokio::sync::watch;
use tokio::time::timeout;

use super::ring::{Page, Ring};
use super::{CAPACITY, Kind, Subject};

/// Where events are recorded and read; a clone is the same journal.
#[derive(Clone, Debug)]
pub struct Journal {
    started: SystemTime,
    ring: Arc<Mutex<Ring>>,
    newest: watch::Sender<u64>,
}

impl Default for Journal {
    fn default() -> Self {
        Self::new()
    }
}

impl Journal {
    /// One without an event.
    pub fn new() -> Self {
        Self {
            started: SystemTime::now(),
            ring: Arc::new(Mutex::new(Ring::new(CAPACITY))),
            newest: watch::Sender::new(0),
        }
    }

    /// Says what happened: once to the log, and to everybody who reads events.
    pub fn record(&self, kind: Kind, subject: Subject, sentence: impl AsRef<str>) {
        let sentence = sentence.as_ref();
        log!(kind.severity().level(), "{sentence}");
        let number = self
            .ring()
            .record(kind, subject, sentence, SystemTime::now());
        self.newest.send_replace(number);
    }

    /// When it was begun, which tells its numbers from those of other runs.
    pub const fn started(&self) -> SystemTime {
        self.started
    }

    /// The last events.
    pub fn latest(&self, limit: usize) -> Page {
        self.ring().latest(limit)
    }

    /// The first events after a number; if there are none yet, waits for them,
    /// at most so long.
    pub async fn after(&self, number: u64, limit: usize, patience: Duration) -> Page {
        // Listening begins before the look, so that nothing falls in between.
        let mut news = self.newest.subscribe();
        let page = self.ring().after(number, limit);
        if !page.events.is_empty() || patience.is_zero() {
            return page;
        }
        // Neither an end of the patience nor of the journal is an error.
        let _ = timeout(patience, news.changed()).await;
        self.ring().after(number, limit)
    }

    /// A panic in between leaves a ring that is whole: each step is one call.
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_LONG: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn who_waits_is_told_at_once() {
        let journal = Journal::new();
        journal.record(Kind::Reloaded, Subject::node(), "the first");
        let waiting = tokio::spawn({
            let journal = journal.clone();
            async move { journal.after(1, 10, LONG).await }
        });
        tokio::time::sleep(NOT_LONG).await;
        assert!(!waiting.is_finished());
        journal.record(Kind::BackendUp, Subject::node(), "the second");
        let page = timeout(LONG / 2, waiting).await.unwrap().unwrap();
        assert_eq!(page.events[0].sentence, "the second");
        assert_eq!((page.events.len(), page.newest, page.lost), (1, 2, 0));
    }

    #[tokio::test]
    async fn who_waits_in_vain_gets_nothing_in_time() {
        let journal = Journal::new();
        let page = timeout(LONG, journal.after(0, 10, NOT_LONG)).await.unwrap();
        assert!(page.events.is_empty());
    }

    #[tokio::test]
    async fn what_is_there_is_not_waited_for() {
        let journal = Journal::new();
        journal.record(Kind::Reloaded, Subject::node(), "it");
        let page = timeout(LONG, journal.after(0, 10, 2 * LONG)).await.unwrap();
        assert_eq!(page.events.len(), 1);
        assert_eq!(journal.latest(10), page);
    }
}
