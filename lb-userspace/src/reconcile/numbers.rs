//! The numbers of services and backends.

use std::collections::BTreeSet;

use lb_common::abi::{Endpoint, role};
use lb_common::{Address, Be16};

use super::{Full, Measures, Tables};
use crate::model::Service;

/// Gives out numbers: the ones that endpoints have, else free ones.
pub(super) struct Numbers {
    services: Free,
    backends: Free,
    /// The numbers of backends by service and end, in that order.
    known: Vec<((u32, Address, Be16), u32)>,
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
        let mut known: Vec<_> = known.collect();
        known.sort_unstable();
        Self {
            services: Free::besides(kept.chain(lingering)),
            backends: Free::besides(present.backends.keys().copied()),
            known,
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
        let end = (service, at.address, at.port);
        match self.known.binary_search_by_key(&end, |&(end, _)| end) {
            Ok(place) => Ok(self.known[place].1),
            Err(_) => self.backends.take(capacity).ok_or(Full::Backends(capacity)),
        }
    }
}

/// Free numbers, in ascending order.
struct Free {
    /// In ascending order.
    taken: Vec<u32>,
    next: u32,
}

impl Free {
    fn besides(taken: impl Iterator<Item = u32>) -> Self {
        let mut taken: Vec<u32> = taken.collect();
        taken.sort_unstable();
        Self { taken, next: 0 }
    }

    fn take(&mut self, capacity: u32) -> Option<u32> {
        let number =
            (self.next..capacity).find(|number| self.taken.binary_search(number).is_err())?;
        self.next = number + 1;
        Some(number)
    }
}
