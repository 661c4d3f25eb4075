//! What a new file changed, in sentences.

use std::collections::BTreeMap;

use crate::model::Service;

/// What is different between two desired states, a sentence each.
pub(super) fn differences(before: &[Service], after: &[Service]) -> Vec<String> {
    let old: BTreeMap<&str, &Service> = before.iter().map(|s| (s.name.as_str(), s)).collect();
    let new: BTreeMap<&str, &Service> = after.iter().map(|s| (s.name.as_str(), s)).collect();
    let mut changes = Vec::new();
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        changes.push(format!("service {name} is gone"));
    }
    for (name, service) in new {
        match old.get(name) {
            None => changes.push(format!("service {name} is new")),
            Some(was) if *was == service => {}
            Some(was) => changes.extend(backend_differences(was, service)),
        }
    }
    changes
}

fn backend_differences(before: &Service, after: &Service) -> Vec<String> {
    let name = &after.name;
    let mut changes = Vec::new();
    if before.listen != after.listen || before.forward != after.forward {
        changes.push(format!("service {name} listens or forwards differently"));
    }
    if before.max_mss != after.max_mss {
        let (now, was) = (after.max_mss, before.max_mss);
        changes.push(format!("service {name} has max_mss {now} (was {was})"));
    }
    for backend in &after.backends {
        match before.backends.iter().find(|was| was.name == backend.name) {
            None => changes.push(format!("{name}/{} is new", backend.name)),
            Some(was) if was.endpoint != backend.endpoint => {
                changes.push(format!("{name}/{} has another address", backend.name));
            }
            Some(was) if was.weight != backend.weight => changes.push(format!(
                "{name}/{} has weight {} (was {})",
                backend.name, backend.weight, was.weight
            )),
            Some(_) => {}
        }
    }
    for backend in &before.backends {
        if !after.backends.iter().any(|is| is.name == backend.name) {
            changes.push(format!("{name}/{} is gone", backend.name));
        }
    }
    changes
}
