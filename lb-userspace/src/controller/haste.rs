//! What is in a hurry: a service whose backends have other weights, or are up or
//! down, offers them at once.
//!
//! Everything that happens is planned for all services ([`Controller::reconcile`]),
//! which with ten thousand backends takes some ten milliseconds. What one service
//! offers can be told from that service alone, as long as it has the same backends
//! as before. So that is written first, by the same functions; the plan for all,
//! which follows, finds it done.

use std::slice;
use std::time::{Instant, SystemTime};

use lb_common::abi::Endpoint;

use super::{Controller, Refusal};
use crate::config::CheckKind;
use crate::health::{State, TargetId};
use crate::host;
use crate::model::{self, Overrides, Service};
use crate::reconcile;

/// Of so many services at most.
pub(super) const AT_ONCE: usize = 8;

impl Controller {
    /// Offers what a service has to offer with these overrides. Where it has other
    /// backends than before, that is left to the plan for all.
    pub(super) fn hasten(&mut self, service: &str, overrides: &Overrides) -> Result<(), Refusal> {
        let Some((place, wanted)) = self.wanted(service, overrides) else {
            return Ok(());
        };
        let planned = &self.plan[place];
        let hertz = host::ticks_per_second();
        let offered = reconcile::offered(&wanted, planned, &mut self.made, hertz);
        let present = self.tables.offer_of(planned);
        self.make(&reconcile::diff(&present, &offered))
    }

    /// A service as it should be, and its place, if it has the backends that it was
    /// planned with.
    fn wanted(&self, service: &str, overrides: &Overrides) -> Option<(usize, Service)> {
        let now = Instant::now();
        let place = self.find_service(service).ok()?;
        let before = &self.desired[place];
        let mut in_file = self.config.services.iter();
        let in_file = in_file.find(|one| one.name == service)?;
        let unchecked = in_file.check.kind == CheckKind::None;
        let up = |id: &TargetId, _: &Endpoint, at: &Endpoint| match self.status_of(id) {
            _ if unchecked => true,
            Some(status) => !matches!(status.state, State::Down { .. }),
            None => (before.backends.iter()).any(|backend| backend.endpoint == *at && backend.up),
        };
        let mut wanted = model::merge(in_file, overrides, &up, SystemTime::now());
        let mut slow_starts = self.slow_starts.clone();
        slow_starts.note(slice::from_ref(before), slice::from_ref(&wanted), now);
        slow_starts.apply(slice::from_mut(&mut wanted), now);
        let ends = |service: &Service| -> Vec<Endpoint> {
            let backends = service.backends.iter();
            backends.map(|backend| backend.endpoint).collect()
        };
        let same = wanted.listen == before.listen
            && ends(&wanted) == ends(before)
            && self.plan.get(place)?.backends.len() == wanted.backends.len();
        same.then_some((place, wanted))
    }
}
