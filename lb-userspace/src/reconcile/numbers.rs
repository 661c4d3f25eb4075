//! The numbers of services and backends.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{Endpoint, role};
use lb_common::{Address, Be16};

use super::{Full, Measures, Tables};
use crate::model::Service;

/// Gives out numbers: the ones that endpoints have, else free ones.
pub(super) struct Numbers {
    services: Free,
    backends: Free,
    known: BTreeMap<(u32, Address, Be16), u32>,
    measures: Measures,
}

impl Numbers {
    /// Marks every number in use: those of `present`, whether still desired
    /// (they are kept) or not (they linger).
    pub(super) fn of(desired: &[Service], present: &Tables, measures: Measures) -> Self {
        let wanted: BTreeSet<Endpoint> = desired.iter().map(|service| service.listen).collect();
        let kept = present
            .parties
            .iter()
            .filter(|(endpoint, party)| {
                party.roles & role::SERVICE != 0 && wanted.contains(endpoint)
            })
            .map(|(_, party)| party.service);
        let lingering = present.backends.values().map(|backend| backend.service);
        let known = present
            .backends
            .iter()
            .map(|(&number, backend)| ((backend.service, backend.address, backend.port), number));
        Self {
            services: Free::besides(kept.chain(lingering)),
            backends: Free::besides(present.backends.keys().copied()),
            known: known.collect(),
            measures,
        }
    }

    pub(super) fn service(&mut self, listen: &Endpoint, present: &Tables) -> Result<u32, Full> {
        let capacity = self.measures.services;
        match present.parties.get(listen) {
            Some(party) if party.roles & role::SERVICE != 0 => Ok(party.service),
            _ => self.services.take(capacity).ok_or(Full::Services(capacity)),
        }
    }

    pub(super) fn backend(&mut self, service: u32, at: &Endpoint) -> Result<u32, Full> {
        let capacity = self.measures.backends;
        match self.known.get(&(service, at.address, at.port)) {
            Some(&number) => Ok(number),
            None => self.backends.take(capacity).ok_or(Full::Backends(capacity)),
        }
    }
}

/// Free numbers, in ascending order.
struct Free {
    taken: BTreeSet<u32>,
    next: u32,
}

impl Free {
    fn besides(taken: impl Iterator<Item = u32>) -> Self {
        Self {
            taken: taken.collect(),
            next: 0,
        }
    }

    fn take(&mut self, capacity: u32) -> Option<u32> {
        let number = (self.next..capacity).find(|number| !self.taken.contains(number))?;
        self.next = number + 1;
        Some(number)
    }
}
