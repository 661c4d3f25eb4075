//! From the desired state to kernel tables, as values.
//!
//! [`Tables`] is what the kernel should hold, or does hold. [`plan`] lays the
//! desired services out in tables, keeping the numbers that the present tables
//! already give to the same endpoints, so that flows, counters and cursors go
//! on. [`diff`] is the list of changes from one to the other, in an order in
//! which each step leaves a table that works: what a change refers to is
//! written before it, and what nothing refers to any more is removed last.
//! Applying a difference twice is harmless.
//!
//! A backend that is taken out keeps its number until [`LINGER`] has passed, and
//! an endpoint from which no answers are expected any more stays known for as
//! long: a handshake that is under way at that moment still finds its way, and
//! its counters are not given to another. An endpoint goes with its backend, or
//! earlier, when its service begins to forward so that answers do not pass here.

mod difference;
mod numbers;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_common::Be16;
use lb_common::abi::{Backend, Endpoint, NOBODY, Party, Policy, backend, forward, role};
use thiserror::Error;

use crate::model::{self, Service};
use crate::schedule::{self, Made, Schedule};

pub use difference::{diff, steps};

use numbers::Numbers;

/// How long a backend that was taken out keeps its number, and its endpoint
/// stays known.
pub const LINGER: Duration = Duration::from_secs(60);

/// The tables that the controller writes and the data path reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Who stands behind an endpoint.
    pub parties: BTreeMap<Endpoint, Party>,
    /// Backends by number.
    pub backends: BTreeMap<u32, Backend>,
    /// The sequence of each service by number; no entry is an empty sequence.
    pub sequences: BTreeMap<u32, Vec<u64>>,
    /// How each service chooses, by number; no entry is the default.
    pub policies: BTreeMap<u32, Policy>,
}

impl Tables {
    /// The part of them that [`offered`] writes for a service.
    pub fn offer_of(&self, planned: &ServicePlan) -> Self {
        let number = planned.number;
        let backends = planned.backends.iter();
        Self {
            parties: BTreeMap::new(),
            backends: backends
                .filter_map(|place| Some((*place, *self.backends.get(place)?)))
                .collect(),
            sequences: one(&self.sequences, number),
            policies: one(&self.policies, number),
        }
    }

    /// The tables after a change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::SetBackend {
                number,
                backend,
                fresh: _,
            } => {
                self.backends.insert(*number, *backend);
            }
            Change::RemoveBackend { number } => {
                self.backends.remove(number);
            }
            Change::SetSequence { service, slots } => {
                self.sequences.insert(*service, slots.clone());
            }
            Change::RemoveSequence { service } => {
                self.sequences.remove(service);
            }
            Change::SetPolicy { service, policy } if *policy == Policy::default() => {
                self.policies.remove(service);
            }
            Change::SetPolicy { service, policy } => {
                self.policies.insert(*service, *policy);
            }
            Change::SetParty {
                endpoint,
                party,
                fresh: _,
            } => {
                self.parties.insert(*endpoint, *party);
            }
            Change::RemoveParty { endpoint } => {
                self.parties.remove(endpoint);
            }
        }
    }
}

/// One entry of a table, if it is there.
fn one<V: Clone>(table: &BTreeMap<u32, V>, number: u32) -> BTreeMap<u32, V> {
    let entry = table.get(&number).map(|value| (number, value.clone()));
    entry.into_iter().collect()
}

/// How much the tables can hold, and how they count time.
#[derive(Clone, Copy, Debug)]
pub struct Measures {
    /// Services.
    pub services: u32,
    /// Backends of all services.
    pub backends: u32,
    /// Kernel ticks in a second.
    pub hertz: u32,
}

/// The desired state does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Full {
    /// Too many services.
    #[error(
        "there is no room for another service: the tables hold {0}; raise node.max_services and restart with --fresh"
    )]
    Services(u32),
    /// Too many backends.
    #[error(
        "there is no room for another backend: the tables hold {0}, and a backend that was taken out keeps its place for a minute; raise node.max_backends and restart with --fresh"
    )]
    Backends(u32),
}

/// One change to one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write a backend; `fresh` if the number was free, so that its counters start at 0.
    SetBackend {
        /// Its number.
        number: u32,
        /// What to write.
        backend: Backend,
        /// The number was free.
        fresh: bool,
    },
    /// Free a backend's number.
    RemoveBackend {
        /// Its number.
        number: u32,
    },
    /// Exchange a service's sequence whole.
    SetSequence {
        /// The service's number.
        service: u32,
        /// As in [`crate::schedule::Sequence::slots`].
        slots: Vec<u64>,
    },
    /// A service has nothing to offer.
    RemoveSequence {
        /// The service's number.
        service: u32,
    },
    /// Write how a service chooses.
    SetPolicy {
        /// The service's number.
        service: u32,
        /// What to write.
        policy: Policy,
    },
    /// Write who stands behind an endpoint; `fresh` if it is a service whose
    /// number was free.
    SetParty {
        /// The key.
        endpoint: Endpoint,
        /// What to write.
        party: Party,
        /// The service's number was free.
        fresh: bool,
    },
    /// Nobody stands behind an endpoint any more.
    RemoveParty {
        /// The key.
        endpoint: Endpoint,
    },
}

impl Change {
    /// Whether numbers of services or backends mean others, or none, from here on.
    pub const fn renumbers(&self) -> bool {
        match self {
            Self::SetBackend { fresh, .. } => *fresh,
            Self::RemoveBackend { .. } | Self::SetParty { .. } | Self::RemoveParty { .. } => true,
            Self::SetSequence { .. } | Self::RemoveSequence { .. } | Self::SetPolicy { .. } => {
                false
            }
        }
    }
}

/// Since when backends, and the endpoints of backends, have been lingering that
/// are no longer desired.
#[derive(Clone, Debug, Default)]
pub struct Lingering {
    backends: BTreeMap<u32, Instant>,
    endpoints: BTreeMap<Endpoint, Instant>,
}

impl Lingering {
    /// When the next one is due to be removed.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.backends
            .values()
            .chain(self.endpoints.values())
            .min()
            .map(|&since| since + LINGER)
    }
}

/// What [`plan`] made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The tables as they should be.
    pub tables: Tables,
    /// Each service's number, in the order given.
    pub services: Vec<ServicePlan>,
}

/// One service in the tables.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    /// Its number.
    pub number: u32,
    /// Its backends' numbers, in the order given.
    pub backends: Vec<u32>,
    /// Slots in its sequence.
    pub length: usize,
    /// The largest relative error of any backend's share; 0 when exact.
    pub share_error: f64,
    /// What each backend has of it, in the order given.
    pub shares: Vec<schedule::Share>,
}

/// Lays the desired services out in tables, keeping the numbers of `present`.
pub fn plan(
    desired: &[Service],
    present: &Tables,
    lingering: &mut Lingering,
    made: &mut Made,
    measures: Measures,
    now: Instant,
) -> Result<Plan, Full> {
    let mut tables = Tables::default();
    let mut services = Vec::with_capacity(desired.len());
    let mut numbers = Numbers::of(desired, present, measures);
    for service in desired {
        let number = numbers.service(&service.listen, present)?;
        let mut backends = Vec::with_capacity(service.backends.len());
        for wanted in &service.backends {
            let place = numbers.backend(number, &wanted.endpoint)?;
            if !forward::one_way(service.forward) {
                party(&mut tables.parties, wanted.endpoint).roles |= role::BACKEND;
            }
            backends.push(place);
        }
        let schedule = offer(
            &mut tables,
            service,
            number,
            &backends,
            made,
            measures.hertz,
        );
        let listener = party(&mut tables.parties, service.listen);
        listener.roles |= role::SERVICE;
        listener.service = number;
        listener.forward = service.forward;
        listener.max_mss = service.max_mss;
        // The address by itself: where echo requests, late answers to full-nat,
        // and fragments without ports arrive.
        let address = Endpoint {
            port: Be16::new(0),
            protocol: 0,
            ..service.listen
        };
        party(&mut tables.parties, address).roles |= role::ADDRESS;
        services.push(service_plan(number, backends, &schedule));
    }
    let wanted: BTreeSet<Endpoint> = desired.iter().map(|service| service.listen).collect();
    made.keep(|service| wanted.contains(service));
    linger(&mut tables, present, lingering, now);
    linger_endpoints(&mut tables, present, lingering, now);
    Ok(Plan { tables, services })
}

/// Enters addresses that move with the role of a pair, whether a service listens there
/// or not.
pub fn hold(tables: &mut Tables, addresses: &[IpAddr]) {
    for &address in addresses {
        let bare = Endpoint {
            address: address.into(),
            port: Be16::new(0),
            protocol: 0,
            zero: 0,
        };
        party(&mut tables.parties, bare).roles |= role::HELD;
    }
}

/// What a service offers to new connections, as it stands in tables and nothing
/// else does: its backends, its sequence, how it chooses. It has the backends that
/// it was planned with, in the same order.
pub fn offered(service: &Service, planned: &ServicePlan, made: &mut Made, hertz: u32) -> Tables {
    let mut tables = Tables::default();
    let (number, backends) = (planned.number, &planned.backends);
    offer(&mut tables, service, number, backends, made, hertz);
    tables
}

/// Writes that into the tables; the schedule by which it offers.
fn offer(
    tables: &mut Tables,
    service: &Service,
    number: u32,
    backends: &[u32],
    made: &mut Made,
    hertz: u32,
) -> Arc<Schedule> {
    let candidates = service.candidates(backends);
    let schedule = made.schedule(service.listen, service.scheduler, candidates);
    for (wanted, place) in service.backends.iter().zip(backends) {
        let open = schedule.shares.contains_key(place);
        let entry = Backend {
            address: wanted.endpoint.address,
            port: wanted.endpoint.port,
            protocol: wanted.endpoint.protocol as u8,
            flags: flags(service, wanted, open),
            service: number,
        };
        tables.backends.insert(*place, entry);
    }
    let slots = &schedule.sequence.slots;
    if !slots.is_empty() {
        tables.sequences.insert(number, slots.clone());
    }
    let policy = policy(service, hertz);
    if policy != Policy::default() {
        tables.policies.insert(number, policy);
    }
    schedule
}

/// Sums up what a service's schedule gives its backends.
fn service_plan(number: u32, backends: Vec<u32>, schedule: &Schedule) -> ServicePlan {
    let share = |number| schedule.shares.get(number).copied().unwrap_or_default();
    ServicePlan {
        number,
        length: schedule.sequence.slots.len(),
        share_error: schedule.sequence.share_error,
        shares: backends.iter().map(share).collect(),
        backends,
    }
}

/// What is marked on a backend; `open`: it stands in the sequence.
fn flags(service: &Service, backend: &model::Backend, open: bool) -> u8 {
    let up = if backend.up { backend::UP } else { 0 };
    let fate = match backend {
        _ if open => backend::OPEN,
        model::Backend { reset: true, .. } => backend::RESET,
        model::Backend { up: false, .. } => service.on_down.mark(),
        model::Backend { .. } => 0,
    };
    backend::USED | up | fate
}

/// How a service chooses, as the data path is told.
fn policy(service: &Service, hertz: u32) -> Policy {
    let ticks = service.affinity.as_millis() * u128::from(hertz) / 1_000;
    Policy {
        pick: service.scheduler.pick,
        affinity_ticks: u32::try_from(ticks).unwrap_or(u32::MAX),
    }
}

/// Keeps backends that are no longer desired until their time is up, with what
/// was known of their health: one that is put back goes on from there.
fn linger(tables: &mut Tables, present: &Tables, lingering: &mut Lingering, now: Instant) {
    let gone: Vec<(u32, Backend)> = present
        .backends
        .iter()
        .filter(|(number, _)| !tables.backends.contains_key(number))
        .map(|(&number, &backend)| (number, backend))
        .collect();
    let known: BTreeSet<u32> = gone.iter().map(|&(number, _)| number).collect();
    lingering
        .backends
        .retain(|number, _| known.contains(number));
    for (number, mut backend) in gone {
        if stays(&mut lingering.backends, number, now) {
            backend.flags &= !backend::OPEN;
            tables.backends.insert(number, backend);
        }
    }
}

/// Keeps the endpoints of backends that no desired backend answers from, until
/// their time is up.
fn linger_endpoints(
    tables: &mut Tables,
    present: &Tables,
    lingering: &mut Lingering,
    now: Instant,
) {
    let answers = |party: &Party| party.roles & role::BACKEND != 0;
    let gone: BTreeSet<Endpoint> = present
        .parties
        .iter()
        .filter(|(endpoint, party)| {
            answers(party) && !tables.parties.get(endpoint).is_some_and(answers)
        })
        .map(|(&endpoint, _)| endpoint)
        .collect();
    lingering
        .endpoints
        .retain(|endpoint, _| gone.contains(endpoint));
    for endpoint in gone {
        if stays(&mut lingering.endpoints, endpoint, now) {
            party(&mut tables.parties, endpoint).roles |= role::BACKEND;
        }
    }
}

/// Whether what is no longer desired stays for now; if not, it is forgotten.
fn stays<K: Ord>(lingering: &mut BTreeMap<K, Instant>, key: K, now: Instant) -> bool {
    match lingering.entry(key) {
        Entry::Vacant(new) => {
            new.insert(now);
            true
        }
        Entry::Occupied(since) if now.duration_since(*since.get()) < LINGER => true,
        Entry::Occupied(over) => {
            over.remove();
            false
        }
    }
}

/// Who stands behind an endpoint: who was there already, or nobody yet.
fn party(parties: &mut BTreeMap<Endpoint, Party>, endpoint: Endpoint) -> &mut Party {
    parties.entry(endpoint).or_insert(Party {
        service: NOBODY,
        forward: 0,
        roles: 0,
        max_mss: 0,
    })
}
