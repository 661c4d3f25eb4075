//! Events over the control socket: read at once, or waited for.
//!
//! A reader that follows asks for what comes after the last event it has, and
//! lets the daemon wait with the answer until there is one (a long poll). The
//! controller is not held meanwhile: the journal is asked.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::types::LONGEST_WAIT;
use super::{Answer, Shared, types, view};
use crate::controller::Refusal;
use crate::events::ring::Page;
use crate::events::{CAPACITY, Journal};

/// How many are listed if nothing is said of it.
const DEFAULT_LIMIT: usize = 100;

/// How many readers may wait at a time.
pub(super) const MAX_WAITING: usize = 64;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichEvents {
    after: Option<u64>,
    limit: Option<usize>,
    #[serde(default)]
    wait: u64,
}

impl WhichEvents {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT).min(CAPACITY)
    }

    fn wait(&self) -> Duration {
        Duration::from_secs(self.wait).min(LONGEST_WAIT)
    }
}

pub(super) async fn events(
    State(shared): State<Shared>,
    Query(query): Query<WhichEvents>,
) -> Answer<types::Events> {
    let page = page(&shared.journal, &shared.waiting, &query).await?;
    Ok(Json(view::events(&shared.journal, page)))
}

async fn page(
    journal: &Journal,
    waiting: &Semaphore,
    query: &WhichEvents,
) -> Result<Page, Refusal> {
    let (limit, wait) = (query.limit(), query.wait());
    match query.after {
        Some(number) if wait.is_zero() => Ok(journal.after(number, limit, wait).await),
        Some(number) => {
            let _place = waiting.try_acquire().map_err(|_full| {
                Refusal::Invalid(format!(
                    "{MAX_WAITING} readers wait for events already; end one of them, or ask without wait"
                ))
            })?;
            Ok(journal.after(number, limit, wait).await)
        }
        None if wait.is_zero() => Ok(journal.latest(limit)),
        None => Err(Refusal::Invalid(
            "wait needs after: the number of the last event that you have, or 0".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Kind, Subject};

    #[test]
    fn what_is_asked_for_is_bounded() {
        let all = WhichEvents {
            limit: Some(usize::MAX),
            wait: u64::MAX,
            ..WhichEvents::default()
        };
        assert_eq!((all.limit(), all.wait()), (CAPACITY, LONGEST_WAIT));
        let nothing_said = WhichEvents::default();
        assert_eq!(nothing_said.limit(), DEFAULT_LIMIT);
        assert!(nothing_said.wait().is_zero());
    }

    #[tokio::test]
    async fn who_may_not_wait_is_told_why_and_may_still_read() {
        let journal = Journal::new();
        journal.record(Kind::Reloaded, Subject::node(), "it");
        let full = Semaphore::new(0);
        let of = |after, wait| WhichEvents {
            after,
            limit: None,
            wait,
        };
        let refused = page(&journal, &full, &of(Some(1), 1)).await;
        let refused = refused.expect_err("no place").to_string();
        assert!(refused.starts_with("64 readers wait"), "{refused}");
        let page_read = page(&journal, &full, &of(Some(0), 0)).await;
        assert_eq!(page_read.expect("no place is needed").events.len(), 1);
        let refused = page(&journal, &full, &of(None, 1)).await;
        let refused = refused.expect_err("after what?").to_string();
        assert!(refused.starts_with("wait needs after"), "{refused}");
    }

    #[tokio::test]
    async fn a_place_is_free_again_after_the_answer() {
        let journal = Journal::new();
        journal.record(Kind::Reloaded, Subject::node(), "it");
        let one = Semaphore::new(1);
        let query = WhichEvents {
            after: Some(0),
            limit: None,
            wait: 30,
        };
        for _ in 0..3 {
            let page = page(&journal, &one, &query).await.expect("a place");
            assert_eq!(page.newest, 1);
        }
    }
}
