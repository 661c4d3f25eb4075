//! What a new file changed, in sentences.

use std::collections::BTreeMap;
use std::time::Duration;

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
    for (key, now, was) in policy_differences(before, after) {
        changes.push(format!("service {name} has {key} {now} (was {was})"));
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
            Some(was) if was.backup != backend.backup => changes.push(format!(
                "{name}/{} is {}",
                backend.name,
                if backend.backup {
                    "a backup now"
                } else {
                    "no backup any more"
                }
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

/// The settings of a service that differ: key, now, before.
fn policy_differences(before: &Service, after: &Service) -> Vec<(&'static str, String, String)> {
    let duration = |of: Duration| humantime::format_duration(of).to_string();
    let settings = |of: &Service| {
        [
            ("max_mss", of.max_mss.to_string()),
            ("scheduler", of.scheduler.name.to_owned()),
            ("affinity", duration(of.affinity)),
            ("on_down", of.on_down.to_string()),
            ("slow_start", duration(of.slow_start)),
            ("min_healthy", of.min_healthy.to_string()),
        ]
    };
    settings(after)
        .into_iter()
        .zip(settings(before))
        .filter(|((_, now), (_, was))| now != was)
        .map(|((key, now), (_, was))| (key, now, was))
        .collect()
}

#[cfg(test)]
mod tests {
    use lb_common::abi::TCP;

    use super::*;
    use crate::config::OnDown;
    use crate::model::{Backend, endpoint};
    use crate::schedule::Scheduler;

    #[test]
    fn each_setting_that_differs_is_a_sentence() {
        let at = |number| endpoint(([10, 0, 0, number], 80).into(), u16::from(TCP));
        let before = Service {
            backends: vec![
                Backend::new("web1", at(1), 1),
                Backend::new("web2", at(2), 1),
            ],
            ..Service::new("web", at(0))
        };
        let mut after = Service {
            scheduler: Scheduler::named("maglev").unwrap(),
            affinity: Duration::from_secs(90),
            on_down: OnDown::Keep,
            slow_start: Duration::from_secs(30),
            min_healthy: 1,
            ..before.clone()
        };
        after.backends[1].backup = true;
        let both = [before.clone()];
        assert!(differences(&both, &both).is_empty());
        assert_eq!(
            differences(&both, &[after]),
            [
                "service web has scheduler maglev (was wrr)",
                "service web has affinity 1m 30s (was 0s)",
                "service web has on_down keep (was reset)",
                "service web has slow_start 30s (was 0s)",
                "service web has min_healthy 1 (was 0)",
                "web/web2 is a backup now",
            ]
        );
    }
}
