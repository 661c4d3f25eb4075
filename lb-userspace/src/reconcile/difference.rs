//! From tables to the changes between them.

use std::collections::BTreeSet;

use lb_common::abi::{Backend, Endpoint, Policy, backend, pick, role};

use super::{Change, Tables};

/// The changes that lead from one set of tables to another, in a safe order.
///
/// A backend whose flows are to end or to move is marked when nothing is sent
/// to it any more, and unmarked before anything is. A service chooses by weights
/// only while they stand in its sequence.
pub fn diff(from: &Tables, to: &Tables) -> Vec<Change> {
    let marked = |backend: &Backend| backend.flags & (backend::RESET | backend::REHASH) != 0;
    let weighed = |policy: &Policy| policy.pick == pick::LEAST;
    let mut changes = Vec::new();
    set_backends(from, to, &mut changes, |backend| !marked(backend));
    set_policies(from, to, &mut changes, |policy| !weighed(policy));
    for (&service, slots) in &to.sequences {
        if from.sequences.get(&service) != Some(slots) {
            changes.push(Change::SetSequence {
                service,
                slots: slots.clone(),
            });
        }
    }
    set_policies(from, to, &mut changes, weighed);
    set_parties(from, to, &mut changes);
    let gone = |key: &&u32| !to.sequences.contains_key(key);
    for &service in from.sequences.keys().filter(gone) {
        changes.push(Change::RemoveSequence { service });
    }
    set_backends(from, to, &mut changes, marked);
    let gone = |key: &&u32| !to.backends.contains_key(key);
    for &number in from.backends.keys().filter(gone) {
        changes.push(Change::RemoveBackend { number });
    }
    changes
}

/// The changes in steps, to be made one after the other. Sequences that follow
/// one another are one step, for they may be exchanged in any order and at the
/// same time; every other change is one by itself.
pub fn steps(changes: &[Change]) -> impl Iterator<Item = &[Change]> {
    let of_sequences = |change: &Change| {
        matches!(
            change,
            Change::SetSequence { .. } | Change::RemoveSequence { .. }
        )
    };
    changes.chunk_by(move |one, next| of_sequences(one) && of_sequences(next))
}

/// The backends to be written, of those that are `wanted`.
fn set_backends(
    from: &Tables,
    to: &Tables,
    changes: &mut Vec<Change>,
    wanted: impl Fn(&Backend) -> bool,
) {
    for (&number, &backend) in to.backends.iter().filter(|(_, backend)| wanted(backend)) {
        let before = from.backends.get(&number);
        if before != Some(&backend) {
            changes.push(Change::SetBackend {
                number,
                backend,
                fresh: before.is_none(),
            });
        }
    }
}

/// The policies to be written, of those that are `wanted`; where there is none
/// any more, the default.
fn set_policies(
    from: &Tables,
    to: &Tables,
    changes: &mut Vec<Change>,
    wanted: impl Fn(&Policy) -> bool,
) {
    let services: BTreeSet<u32> = from
        .policies
        .keys()
        .chain(to.policies.keys())
        .copied()
        .collect();
    for service in services {
        let of = |tables: &Tables| tables.policies.get(&service).copied().unwrap_or_default();
        let policy = of(to);
        if policy != of(from) && wanted(&policy) {
            changes.push(Change::SetPolicy { service, policy });
        }
    }
}

/// Who stands behind endpoints, then those behind which nobody does any more.
fn set_parties(from: &Tables, to: &Tables, changes: &mut Vec<Change>) {
    let present: BTreeSet<u32> = from
        .parties
        .values()
        .filter(|party| party.roles & role::SERVICE != 0)
        .map(|party| party.service)
        .collect();
    for (&endpoint, &party) in &to.parties {
        if from.parties.get(&endpoint) != Some(&party) {
            let fresh = party.roles & role::SERVICE != 0 && !present.contains(&party.service);
            changes.push(Change::SetParty {
                endpoint,
                party,
                fresh,
            });
        }
    }
    let gone = |key: &&Endpoint| !to.parties.contains_key(key);
    for &endpoint in from.parties.keys().filter(gone) {
        changes.push(Change::RemoveParty { endpoint });
    }
}
