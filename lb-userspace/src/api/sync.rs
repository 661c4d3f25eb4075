//! The channel to the other node, in the form of the API.

use std::time::SystemTime;

use super::types::{HaPeer, HaSync};
use crate::sync::board::{Peer, View};

/// What of it goes into `GET /v1/ha`; `configuration` is this node's.
pub(super) fn sync(view: &View, configuration: u64) -> HaSync {
    let seconds = |since: SystemTime| since.elapsed().unwrap_or_default().as_secs();
    let rejected = view.rejected.iter();
    HaSync {
        heard: view.hears(),
        since_seconds: seconds(view.following.since),
        why: view.following.why.clone(),
        peer: view.peer.as_ref().map(|known| peer(known, configuration)),
        ready: view.ready,
        applied: view.counts.applied,
        removed: view.counts.removed,
        unknown: view.counts.unknown,
        no_room: view.counts.no_room,
        tells: view.telling.up,
        tells_since_seconds: seconds(view.telling.since),
        tells_not: view.telling.why.clone(),
        told: view.told,
        snapshots: view.snapshots,
        behind: view.behind,
        lag_seconds: view.lag().as_secs_f64(),
        rejected: rejected
            .map(|(reason, count)| (reason.name().to_owned(), *count))
            .collect(),
    }
}

fn peer(peer: &Peer, configuration: u64) -> HaPeer {
    let status = &peer.status;
    let agrees = if peer.hello.version != env!("CARGO_PKG_VERSION") {
        "unknown"
    } else if status.configuration == configuration {
        "same"
    } else {
        "differs"
    };
    HaPeer {
        name: peer.hello.node.clone(),
        version: peer.hello.version.clone(),
        role: status.role.word().to_owned(),
        priority: status.priority,
        configuration: agrees.to_owned(),
        flows: status.flows,
        healthy: status.healthy,
        services: status.services,
        behind: status.behind,
        heard_ms: peer.heard.elapsed().as_millis() as u64,
    }
}
