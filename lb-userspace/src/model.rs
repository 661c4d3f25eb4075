//! The desired state: what the configuration, the changes made at run time and
//! the health of the backends add up to.
//!
//! [`Overrides`] is what people changed through the command line; it is kept
//! beside the control socket, so that a daemon which is killed and started
//! again goes on with the weights it had. [`desired`] merges the three inputs
//! into one value, which [`crate::reconcile`] turns into kernel tables.
//! [`slow_start`] gives backends that come back a part of their weight,
//! [`offer`] says to whom new connections may go.

pub mod offer;
pub mod slow_start;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use lb_common::abi::Endpoint;
use lb_common::{Address, Be16};
use serde::{Deserialize, Serialize};

use crate::config::{self, Config, OnDown};
use crate::health::TargetId;
use crate::schedule::{Scheduler, WHOLE};

/// What was changed about one backend at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Override {
    /// A weight other than the file's.
    pub weight: Option<u16>,
    /// Takes no new connections until it is enabled again.
    pub drained: bool,
    /// When what is left of its connections is reset, while it is drained.
    pub reset_at: Option<SystemTime>,
    /// Not in the file: where it listens.
    pub added: Option<SocketAddr>,
    /// In the file, but taken out.
    pub removed: bool,
}

impl Override {
    /// No new connections; what is left of the others ends at this time, or at
    /// the one that was set before.
    pub fn drain(&mut self, reset_at: Option<SystemTime>) {
        self.drained = true;
        self.reset_at = reset_at.or(self.reset_at);
    }

    /// New connections again.
    pub fn enable(&mut self) {
        self.drained = false;
        self.reset_at = None;
    }
}

/// Everything changed at run time: by service, then by backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Overrides(pub BTreeMap<String, BTreeMap<String, Override>>);

impl Overrides {
    /// What was changed about this backend.
    pub fn of(&self, id: &TargetId) -> Option<&Override> {
        self.0.get(&id.service)?.get(&id.backend)
    }

    /// The entry of this backend, made if need be.
    pub fn entry(&mut self, id: &TargetId) -> &mut Override {
        self.0
            .entry(id.service.clone())
            .or_default()
            .entry(id.backend.clone())
            .or_default()
    }

    /// Drops what no longer differs from the file, or has no place in it any
    /// more: nothing left to differ from, or an added backend that the
    /// service's rules now keep out. Says what was dropped for the latter reason.
    pub fn prune(&mut self, config: &Config) -> Vec<TargetId> {
        let mut orphans = Vec::new();
        self.0.retain(|service, backends| {
            let configured = config.services.iter().find(|s| s.name == *service);
            backends.retain(|backend, change| {
                let id = TargetId {
                    service: service.clone(),
                    backend: backend.clone(),
                };
                let in_file = configured
                    .and_then(|service| service.backends.iter().find(|b| b.name == *backend));
                match (configured, in_file) {
                    (Some(_), Some(in_file)) => {
                        change.added = None;
                        if change.weight == Some(in_file.weight) {
                            change.weight = None;
                        }
                    }
                    (Some(service), None) if admitted(config, service, backend, change) => {}
                    _ => {
                        orphans.push(id);
                        return false;
                    }
                }
                *change != Override::default()
            });
            !backends.is_empty()
        });
        orphans
    }

    /// How many backends differ from the file.
    pub fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// Whether nothing differs from the file.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a backend that was added at run time may still be there.
fn admitted(config: &Config, service: &config::Service, name: &str, change: &Override) -> bool {
    change.added.is_some_and(|address| {
        let backend = config::Backend {
            name: name.to_owned(),
            address,
            weight: change.weight.unwrap_or(1),
            backup: false,
        };
        config.admit(service, &backend).is_ok()
    })
}

/// A service as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub listen: Endpoint,
    /// One of [`lb_common::abi::forward`].
    pub forward: u8,
    /// The largest TCP segment that may be announced; 0 for any.
    pub max_mss: u16,
    /// How the backend of a new connection is chosen.
    pub scheduler: &'static Scheduler,
    /// How long after its last new connection a client's address keeps its
    /// backend; zero for not at all.
    pub affinity: Duration,
    /// What becomes of the flows of a backend that is down.
    pub on_down: OnDown,
    /// How long a backend that comes back takes to get its whole weight.
    pub slow_start: Duration,
    /// With fewer healthy backends than this all are used.
    pub min_healthy: u32,
    /// Its backends, in the order of the file, then those added.
    pub backends: Vec<Backend>,
}

/// A backend as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// Its weight before health: 0 if it is drained.
    pub weight: u16,
    /// Its weight when all is well with it, not drained either. 0 only if the
    /// file says so, or nothing else.
    pub full_weight: u16,
    /// How much of that it has while it is up, in twentieths.
    pub part: u16,
    /// The weight in the file; `None` if it was added at run time.
    pub configured: Option<u16>,
    /// Drained at run time.
    pub drained: bool,
    /// Used only while no other one can be.
    pub backup: bool,
    /// When what is left of its connections is reset, if it is drained with a
    /// deadline.
    pub reset_at: Option<SystemTime>,
    /// Whether that time has come.
    pub reset: bool,
    /// Whether its checks say that it works.
    pub up: bool,
}

impl Service {
    /// A service of which nothing is said, without backends.
    pub fn new(name: &str, listen: Endpoint) -> Self {
        Self {
            name: name.to_owned(),
            listen,
            forward: config::Forward::FullNat.number(),
            max_mss: 0,
            scheduler: Scheduler::DEFAULT,
            affinity: Duration::ZERO,
            on_down: OnDown::Reset,
            slow_start: Duration::ZERO,
            min_healthy: 0,
            backends: Vec::new(),
        }
    }
}

impl Backend {
    /// A backend of the file that is up.
    pub fn new(name: &str, endpoint: Endpoint, weight: u16) -> Self {
        Self {
            name: name.to_owned(),
            endpoint,
            weight,
            full_weight: weight,
            part: WHOLE,
            configured: Some(weight),
            drained: false,
            backup: false,
            reset_at: None,
            reset: false,
            up: true,
        }
    }

    /// Whether it is fit to be offered new connections.
    pub const fn usable(&self) -> bool {
        self.up && self.weight > 0
    }
}

/// Merges the file, the changes made at run time, and health (`up`: whether a
/// backend, by its endpoint, works for a service, by its own), at this time.
pub fn desired(
    config: &Config,
    overrides: &Overrides,
    up: impl Fn(&TargetId, &Endpoint, &Endpoint) -> bool,
    time: SystemTime,
) -> Vec<Service> {
    config
        .services
        .iter()
        .map(|service| merge(service, overrides, &up, time))
        .collect()
}

/// The same for one service of the file.
pub fn merge(
    service: &config::Service,
    overrides: &Overrides,
    up: &impl Fn(&TargetId, &Endpoint, &Endpoint) -> bool,
    time: SystemTime,
) -> Service {
    let protocol = u16::from(service.protocol.number());
    let listen = endpoint(service.listen, protocol);
    let none = BTreeMap::new();
    let changes = overrides.0.get(&service.name).unwrap_or(&none);
    let in_file = service
        .backends
        .iter()
        .map(|backend| (&backend.name, backend.address, Some(backend)));
    let added = changes
        .iter()
        .filter_map(|(name, change)| change.added.map(|address| (name, address, None)));
    let mut id = TargetId {
        service: service.name.clone(),
        backend: String::new(),
    };
    let backends = in_file
        .chain(added)
        .filter_map(|(name, address, in_file)| {
            let change = changes.get(name).cloned().unwrap_or_default();
            if change.removed {
                return None;
            }
            id.backend.clone_from(name);
            let configured = in_file.map(|backend| backend.weight);
            let weight = change.weight.or(configured).unwrap_or(1);
            let at = endpoint(address, protocol);
            let reset_at = change.reset_at.filter(|_| change.drained);
            Some(Backend {
                weight: if change.drained { 0 } else { weight },
                full_weight: match weight {
                    0 => configured.unwrap_or(0),
                    some => some,
                },
                configured,
                drained: change.drained,
                backup: in_file.is_some_and(|backend| backend.backup),
                reset_at,
                reset: reset_at.is_some_and(|at| at <= time),
                up: up(&id, &listen, &at),
                ..Backend::new(name, at, weight)
            })
        })
        .collect();
    Service {
        name: service.name.clone(),
        listen,
        forward: service.forward.number(),
        max_mss: service.max_mss,
        scheduler: service.scheduler,
        affinity: service.affinity,
        on_down: service.on_down,
        slow_start: service.slow_start,
        min_healthy: service.min_healthy,
        backends,
    }
}

/// How long it is until the time that the next drained backend's connections
/// were given is over.
pub fn next_reset(desired: &[Service], time: SystemTime) -> Option<Duration> {
    desired
        .iter()
        .flat_map(|service| &service.backends)
        .filter(|backend| !backend.reset)
        .filter_map(|backend| backend.reset_at)
        .map(|at| at.duration_since(time).unwrap_or_default())
        .min()
}

/// The form in which a socket address stands in kernel tables.
pub fn endpoint(address: SocketAddr, protocol: u16) -> Endpoint {
    Endpoint {
        address: Address::from(address.ip()),
        port: Be16::new(address.port()),
        protocol,
        zero: 0,
    }
}
