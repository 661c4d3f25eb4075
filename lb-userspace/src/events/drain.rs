//! When the last connection of a drained backend has gone.
//!
//! Each count of live flows is one step: a drained backend is waited for until
//! it has none, which is told once for each drain. Pure, so that whoever counts
//! may do so when he likes.

use std::collections::BTreeMap;

use crate::health::TargetId;

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Connections are left.
    Waiting,
    /// It was told that none is.
    Told,
}

/// The drains that are known; as many as there are drained backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drains(BTreeMap<TargetId, Phase>);

/// One count more: every backend that is drained now, with its live flows.
/// Gives those that have none for the first time since they were drained. One
/// that is drained no longer is forgotten, and its next drain is another.
pub fn step(
    before: &Drains,
    drained: impl IntoIterator<Item = (TargetId, u64)>,
) -> (Drains, Vec<TargetId>) {
    let mut finished = Vec::new();
    let phases = drained.into_iter().map(|(id, flows)| {
        let phase = match (before.0.get(&id).copied(), flows) {
            (Some(Phase::Told), _) => Phase::Told,
            (None | Some(Phase::Waiting), 0) => {
                finished.push(id.clone());
                Phase::Told
            }
            (None | Some(Phase::Waiting), 1..) => Phase::Waiting,
        };
        (id, phase)
    });
    (Drains(phases.collect()), finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(backend: &str) -> TargetId {
        TargetId {
            service: "web".into(),
            backend: backend.into(),
        }
    }

    #[test]
    fn the_end_of_each_drain_is_told_once() {
        let mut drains = Drains::default();
        for (says, drained, told) in [
            ("nothing is drained", vec![], vec![]),
            ("two drains begin", vec![("a", 2), ("b", 0)], vec!["b"]),
            ("one goes on", vec![("a", 1), ("b", 0)], vec![]),
            ("it ends", vec![("a", 0), ("b", 0)], vec!["a"]),
            (
                "a late packet is no drain",
                vec![("a", 1), ("b", 0)],
                vec![],
            ),
            ("a is enabled", vec![("b", 0)], vec![]),
            ("and drained again", vec![("a", 1), ("b", 0)], vec![]),
            ("to the end", vec![("a", 0), ("b", 0)], vec!["a"]),
        ] {
            let counts = drained.into_iter().map(|(name, flows)| (id(name), flows));
            let (next, finished) = step(&drains, counts);
            let told: Vec<TargetId> = told.into_iter().map(id).collect();
            assert_eq!(finished, told, "{says}");
            drains = next;
        }
    }
}
