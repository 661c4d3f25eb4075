//! The desired state: what the configuration, the changes made at run time and
//! the health of the backends add up to.
//!
//! [`Overrides`] is what people changed through the command line; it is kept
//! beside the control socket, so that a daemon which is killed and started
//! again goes on with the weights it had. [`desired`] merges the three inputs
//! into one value, which [`crate::reconcile`] turns into kernel tables.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_common::abi::Endpoint;
use lb_common::{Address, Be16};
use serde::{Deserialize, Serialize};

use crate::config::{self, Config};
use crate::health::TargetId;

/// What was changed about one backend at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Override {
    /// A weight other than the file's.
    pub weight: Option<u16>,
    /// Takes no new connections until it is enabled again.
    pub drained: bool,
    /// Not in the file: where it listens.
    pub added: Option<SocketAddr>,
    /// In the file, but taken out.
    pub removed: bool,
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
    /// Its weight before health.
    pub weight: u16,
    /// The weight in the file; `None` if it was added at run time.
    pub configured: Option<u16>,
    /// Drained at run time.
    pub drained: bool,
    /// Whether new connections may go to it.
    pub up: bool,
}

impl Backend {
    /// The weight that counts for the schedule.
    pub const fn effective_weight(&self) -> u16 {
        if self.up { self.weight } else { 0 }
    }
}

/// Merges the file, the changes made at run time, and health (`up`: whether new
/// connections of a service, by its endpoint, may go to a backend, by its own).
pub fn desired(
    config: &Config,
    overrides: &Overrides,
    up: impl Fn(&TargetId, &Endpoint, &Endpoint) -> bool,
) -> Vec<Service> {
    config
        .services
        .iter()
        .map(|service| merge(service, overrides, &up))
        .collect()
}

fn merge(
    service: &config::Service,
    overrides: &Overrides,
    up: &impl Fn(&TargetId, &Endpoint, &Endpoint) -> bool,
) -> Service {
    let protocol = u16::from(service.protocol.number());
    let listen = endpoint(service.listen, protocol);
    let none = BTreeMap::new();
    let changes = overrides.0.get(&service.name).unwrap_or(&none);
    let in_file = service
        .backends
        .iter()
        .map(|backend| (&backend.name, backend.address, Some(backend.weight)));
    let added = changes
        .iter()
        .filter_map(|(name, change)| change.added.map(|address| (name, address, None)));
    let backends = in_file
        .chain(added)
        .filter_map(|(name, address, configured)| {
            let change = changes.get(name).cloned().unwrap_or_default();
            if change.removed {
                return None;
            }
            let id = TargetId {
                service: service.name.clone(),
                backend: name.clone(),
            };
            let weight = change.weight.or(configured).unwrap_or(1);
            let at = endpoint(address, protocol);
            Some(Backend {
                name: name.clone(),
                endpoint: at,
                weight: if change.drained { 0 } else { weight },
                configured,
                drained: change.drained,
                up: up(&id, &listen, &at),
            })
        })
        .collect();
    Service {
        name: service.name.clone(),
        listen,
        forward: service.forward.number(),
        max_mss: service.max_mss,
        backends,
    }
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
