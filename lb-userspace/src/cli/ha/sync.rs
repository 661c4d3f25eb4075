//! The other node, as the sync channel knows it.

use crate::api::types::{HaPeer, HaSync};
use crate::cli::output::{BAD, GOOD, NOTABLE, PLAIN, styled};
use crate::cli::units;

/// What `lb ha status` says of it. A node that is not heard is never shown as one that
/// is: all that is left is how it was, and when.
pub(super) fn rows(sync: &HaSync) -> Vec<(&'static str, String)> {
    let mut rows = vec![("Other node", peer(sync))];
    if let Some(peer) = &sync.peer {
        if sync.heard {
            let healthy = format!("{} of {} with a backend", peer.healthy, peer.services);
            rows.push(("Its services", healthy));
        }
        rows.push(("Its file", file(peer)));
    }
    rows.push(("From it", from(sync)));
    rows.push(("To it", to(sync)));
    let rejected: Vec<String> = sync
        .rejected
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    let rejected = if rejected.is_empty() {
        "none".to_owned()
    } else {
        rejected.join(", ")
    };
    rows.push(("Sync rejected", rejected));
    rows
}

fn peer(sync: &HaSync) -> String {
    let for_so_long = units::span(sync.since_seconds as f64);
    let Some(peer) = &sync.peer else {
        let why = sync.why.as_deref().unwrap_or("it was not called yet");
        return styled(BAD, &format!("not heard for {for_so_long}: {why}"));
    };
    if !sync.heard {
        let ago = units::span(peer.heard_ms as f64 / 1e3);
        let why = sync.why.as_deref().unwrap_or("the session has ended");
        let was = format!(
            "{} not heard for {ago}: {why} (it was {} then)",
            peer.name, peer.role
        );
        return styled(BAD, &was);
    }
    let style = match peer.role.as_str() {
        "active" => GOOD,
        "backup" => PLAIN,
        _ => NOTABLE,
    };
    format!(
        "{} {} with priority {}, lb {}, heard {} ago, session for {for_so_long}",
        peer.name,
        styled(style, &peer.role),
        peer.priority,
        peer.version,
        units::span(peer.heard_ms as f64 / 1e3),
    )
}

fn file(peer: &HaPeer) -> String {
    match peer.configuration.as_str() {
        "same" => "agrees with this one's".to_owned(),
        "differs" => styled(
            BAD,
            "DIFFERS in services, backends, checks, vrid or addresses",
        ),
        _ => styled(NOTABLE, "cannot be compared with another version of lb"),
    }
}

/// How far this node knows the other's connections.
fn from(sync: &HaSync) -> String {
    let mut parts = vec![if sync.ready {
        "ready".to_owned()
    } else {
        styled(NOTABLE, "not ready")
    }];
    let peer = sync.peer.as_ref().filter(|_| sync.heard);
    parts.extend(peer.map(|peer| format!("{} behind", units::plural(peer.behind, "change"))));
    parts.push(format!("{} applied", sync.applied));
    for (count, what) in [
        (sync.unknown, "of unknown services or backends"),
        (sync.no_room, "without room"),
    ] {
        if count > 0 {
            parts.push(styled(NOTABLE, &format!("{count} {what}")));
        }
    }
    parts.join(", ")
}

/// How far the other node knows this one's.
fn to(sync: &HaSync) -> String {
    let lag = units::span(sync.lag_seconds);
    if !sync.tells {
        let since = units::span(sync.tells_since_seconds as f64);
        let why = sync.tells_not.as_deref();
        let why = why.unwrap_or("the other node has not called");
        let lag = if sync.lag_seconds > 0.0 {
            format!(", {lag} behind")
        } else {
            String::new()
        };
        return styled(BAD, &format!("not told for {since}: {why}{lag}"));
    }
    let changes = units::plural(sync.behind, "change");
    format!("{changes} behind by {lag}, {} told", sync.told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard() -> HaSync {
        HaSync {
            heard: true,
            since_seconds: 90,
            why: None,
            peer: Some(HaPeer {
                name: "lb-b".into(),
                version: "0.1.0".into(),
                role: "active".into(),
                priority: 100,
                configuration: "same".into(),
                flows: 9,
                healthy: 2,
                services: 2,
                behind: 1,
                heard_ms: 120,
            }),
            ready: true,
            applied: 9,
            removed: 0,
            unknown: 0,
            no_room: 0,
            tells: true,
            tells_since_seconds: 90,
            tells_not: None,
            told: 0,
            snapshots: 0,
            behind: 0,
            lag_seconds: 0.0,
            rejected: [("timeout".to_owned(), 2)].into(),
        }
    }

    fn plain(sync: &HaSync) -> String {
        let rows = rows(sync).into_iter();
        let lines = rows.map(|(name, text)| format!("{name}: {text}\n"));
        anstream::adapter::strip_str(&lines.collect::<String>()).to_string()
    }

    #[test]
    fn a_peer_that_is_heard_is_shown_with_its_role_and_how_far_each_is() {
        assert_eq!(
            plain(&heard()),
            "Other node: lb-b active with priority 100, lb 0.1.0, heard 120ms ago, session for 1m 30s
Its services: 2 of 2 with a backend
Its file: agrees with this one's
From it: ready, 1 change behind, 9 applied
To it: 0 changes behind by 0ms, 0 told
Sync rejected: 2 timeout
"
        );
    }

    #[test]
    fn a_dead_peer_is_never_shown_as_well() {
        let mut dead = heard();
        dead.heard = false;
        dead.ready = false;
        dead.why = Some("nothing was heard for 1500 ms".into());
        dead.tells = false;
        dead.lag_seconds = 12.0;
        if let Some(peer) = &mut dead.peer {
            peer.heard_ms = 12_000;
            peer.configuration = "differs".into();
        }
        assert_eq!(
            plain(&dead),
            "Other node: lb-b not heard for 12s: nothing was heard for 1500 ms (it was active then)
Its file: DIFFERS in services, backends, checks, vrid or addresses
From it: not ready, 9 applied
To it: not told for 1m 30s: the other node has not called, 12s behind
Sync rejected: 2 timeout
"
        );
    }
}
