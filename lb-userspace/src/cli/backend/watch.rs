//! The watch on a drained backend's last connections.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::api::client::{Client, PATIENCE_FOR_FLOWS, Resource};
use crate::api::types::Backend;
use crate::cli::units;

/// How often the daemon is asked: each answer counts the whole flow table.
const RHYTHM: Duration = Duration::from_secs(1);

/// Waits until the backend has no connection left, or is gone; at most as long
/// as the limit, if there is one. The backend as it is then.
pub(super) async fn until_no_flow_is_left(
    client: &Client,
    service: &str,
    name: &str,
    limit: Option<Duration>,
) -> anyhow::Result<Option<Backend>> {
    let resource = Resource::new(["backends"]).with("service", Some(service));
    let started = Instant::now();
    let mut rhythm = interval(RHYTHM);
    rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut progress = Progress::new();
    loop {
        rhythm.tick().await;
        let backends: Vec<Backend> = client.get_within(PATIENCE_FOR_FLOWS, &resource).await?;
        let Some(backend) = backends.into_iter().find(|backend| backend.name == name) else {
            return Ok(None);
        };
        if backend.active_flows == 0 {
            return Ok(Some(backend));
        }
        let left = units::plural(backend.active_flows, "connection");
        let waited = started.elapsed();
        if let Some(limit) = limit
            && waited >= limit
        {
            bail!(
                "{service}/{name} still has {left} after {}: it takes no new ones; wait on by `lb backend drain {service} {name} --wait`",
                humantime::format_duration(limit)
            );
        }
        let waited = humantime::format_duration(Duration::from_secs(waited.as_secs()));
        progress.show(&format!("{service}/{name}: {left} left, {waited}"));
    }
}

/// A line on a terminal that is written over and leaves no trace; nothing
/// where there is no terminal.
struct Progress {
    terminal: Option<io::Stderr>,
}

impl Progress {
    fn new() -> Self {
        let stderr = io::stderr();
        Self {
            terminal: stderr.is_terminal().then_some(stderr),
        }
    }

    /// A progress that cannot be shown is no reason to stop what it is about.
    fn show(&mut self, line: &str) {
        if let Some(terminal) = &mut self.terminal {
            let _ = write!(terminal, "\r\u{1b}[K{line}");
            let _ = terminal.flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}
