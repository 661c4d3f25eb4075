//! What people change at run time: each command is a change of the overrides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Controller, Refusal};
use crate::config;
use crate::events::{Kind, Subject};
use crate::health::TargetId;
use crate::model::{self, Overrides};

impl Controller {
    /// Changes the overrides of a backend and enforces them; refused, nothing changes.
    fn change(
        &mut self,
        id: &TargetId,
        change: impl FnOnce(&mut Overrides),
    ) -> Result<(), Refusal> {
        let mut overrides = self.state.overrides.clone();
        change(&mut overrides);
        overrides.prune(&self.config);
        self.hasten(&id.service, &overrides)?;
        self.enforce(Arc::clone(&self.config), overrides)
    }

    /// Sets a weight for new connections; also ends a drain.
    pub fn set_weight(&mut self, id: &TargetId, weight: u16) -> Result<(), Refusal> {
        if weight > config::value::MAX_WEIGHT {
            return Err(Refusal::Invalid(format!(
                "weight {weight} is out of range: 0 to {}, where 0 drains",
                config::value::MAX_WEIGHT
            )));
        }
        let (place, within) = self.find(&id.service, &id.backend)?;
        let was = self.desired[place].backends[within].weight;
        self.change(id, |overrides| {
            let entry = overrides.entry(id);
            entry.weight = Some(weight);
            entry.enable();
        })?;
        self.record_command(
            Kind::WeightChanged,
            id,
            &format!("has weight {weight} (was {was})"),
        );
        Ok(())
    }

    /// Stops new connections to a backend, keeping its weight. With a deadline
    /// what is left of its connections is reset then; without one, a deadline
    /// that was given before still holds. How long they are given from now on,
    /// if there is a deadline.
    pub fn drain(
        &mut self,
        id: &TargetId,
        deadline: Option<Duration>,
    ) -> Result<Option<Duration>, Refusal> {
        self.find(&id.service, &id.backend)?;
        let now = SystemTime::now();
        let reset_at = match deadline {
            Some(deadline) => Some(reset_time(now, deadline)?),
            None => None,
        };
        self.change(id, |overrides| overrides.entry(id).drain(reset_at))?;
        let reset_at = self.state.overrides.of(id).and_then(|entry| entry.reset_at);
        let left = reset_at.map(|at| at.duration_since(now).unwrap_or_default());
        let what = match left {
            None => "is drained: no new connections".to_owned(),
            Some(left) => format!(
                "is drained: no new connections, and what is left after {} s is reset",
                left.as_secs()
            ),
        };
        self.record_command(Kind::BackendDrained, id, &what);
        Ok(left)
    }

    /// Allows new connections to a backend again, by the weight it had.
    pub fn enable(&mut self, id: &TargetId) -> Result<(), Refusal> {
        self.find(&id.service, &id.backend)?;
        self.change(id, |overrides| overrides.entry(id).enable())?;
        self.record_command(Kind::BackendEnabled, id, "takes new connections again");
        Ok(())
    }

    /// Adds a backend to a service.
    pub fn add_backend(
        &mut self,
        id: &TargetId,
        address: SocketAddr,
        weight: u16,
    ) -> Result<(), Refusal> {
        let place = self.find_service(&id.service)?;
        let backend = config::Backend {
            name: id.backend.clone(),
            address,
            weight,
            backup: false,
        };
        config::value::name("backend name", &backend.name)
            .and_then(|_| config::value::weight(i64::from(weight)))
            .and_then(|_| config::value::address("address", &address.to_string()))
            .map_err(invalid)?;
        let mut service = self.config.services[place].clone();
        service.backends = self.desired[place]
            .backends
            .iter()
            .map(|entry| config::Backend {
                name: entry.name.clone(),
                address: entry.endpoint.address.socket(entry.endpoint.port),
                weight: entry.weight,
                backup: entry.backup,
            })
            .collect();
        self.config.admit(&service, &backend).map_err(invalid)?;
        let in_file = self.config.services[place]
            .backends
            .iter()
            .find(|b| b.name == id.backend);
        if let Some(in_file) = in_file.filter(|in_file| in_file.address != address) {
            return Err(Refusal::Invalid(format!(
                "backend {} is in the file as {} and was taken out; put it back with that address, or choose another name",
                id.backend, in_file.address
            )));
        }
        let in_file = in_file.is_some();
        self.change(id, |overrides| {
            let entry = overrides.entry(id);
            *entry = model::Override {
                weight: Some(weight),
                added: (!in_file).then_some(address),
                ..model::Override::default()
            };
        })?;
        self.record_command(
            Kind::BackendAdded,
            id,
            &format!("at {address} is added with weight {weight}"),
        );
        Ok(())
    }

    /// Takes a backend out: no new connections; those that exist go on.
    pub fn remove_backend(&mut self, id: &TargetId) -> Result<(), Refusal> {
        let (place, within) = self.find(&id.service, &id.backend)?;
        let in_file = self.desired[place].backends[within].configured.is_some();
        self.change(id, |overrides| {
            if in_file {
                *overrides.entry(id) = model::Override {
                    removed: true,
                    ..model::Override::default()
                };
            } else if let Some(backends) = overrides.0.get_mut(&id.service) {
                backends.remove(&id.backend);
            }
        })?;
        self.record_command(Kind::BackendRemoved, id, "is taken out: no new connections");
        Ok(())
    }

    /// Goes back to what the file says.
    pub fn clear_overrides(&mut self) -> Result<usize, Refusal> {
        let count = self.state.overrides.len();
        self.enforce(Arc::clone(&self.config), Overrides::default())?;
        if count > 0 {
            self.journal.record(
                Kind::OverridesCleared,
                Subject::node(),
                format!("backends that are again as in the file: {count}"),
            );
        }
        Ok(count)
    }

    fn record_command(&self, kind: Kind, id: &TargetId, what: &str) {
        let sentence = format!("{}/{} {what}, by a command", id.service, id.backend);
        self.journal.record(kind, Subject::backend(id), sentence);
    }
}

/// When connections are reset that are given so long.
fn reset_time(now: SystemTime, deadline: Duration) -> Result<SystemTime, Refusal> {
    config::value::drain_deadline(deadline).map_err(invalid)?;
    // A deadline is bounded, and the clock far from its end.
    now.checked_add(deadline)
        .ok_or_else(|| Refusal::Invalid("this host's clock is at the end of time; set it".into()))
}

/// A fault with its help, in one line.
fn invalid(fault: config::Fault) -> Refusal {
    match fault.help() {
        Some(help) => Refusal::Invalid(format!("{fault}: {help}")),
        None => Refusal::Invalid(fault.to_string()),
    }
}
