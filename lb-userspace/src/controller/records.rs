//! What the controller tells of what it does and sees, as events.
//!
//! Commands and interfaces tell theirs where they happen; here is what needs
//! more than a sentence: what came of a reload, which services have nobody to
//! offer, what the counters say, and when drains end.

use std::path::Path;
use std::time::Instant;

use lb_ebpf::Displaced;
use log::debug;

use super::{Controller, Refusal};
use crate::collector::Census;
use crate::dataplane::Handover;
use crate::events::watch::{self, Gauges, Sample, Totals};
use crate::events::{Kind, Subject, drain, joined};
use crate::health::{self, TargetId};
use crate::model::Service;
use crate::model::offer::{self, Standing};

/// What is remembered of measurements, for the events that are made of them.
#[derive(Debug, Default)]
pub(super) struct Watched {
    alarms: watch::State,
    drains: drain::Drains,
}

impl Controller {
    /// Takes over a new file, and tells what came of it. A file that is not
    /// valid, or does not fit, changes nothing. Gives what changed, a sentence
    /// each.
    pub async fn reload(&mut self, path: &Path) -> Result<Vec<String>, Refusal> {
        let outcome = self.take_over(path).await;
        let (kind, sentence) = match &outcome {
            Ok(changes) if changes.is_empty() => {
                (Kind::Reloaded, "reload: nothing changed".to_owned())
            }
            Ok(changes) => (Kind::Reloaded, format!("reload: {}", joined(changes))),
            Err(Refusal::Failed(error)) => (
                Kind::ReloadFailed,
                format!(
                    "reload did not get to its end: {error:#}; `lb status` shows what is in force"
                ),
            ),
            Err(refusal @ (Refusal::Unknown(_) | Refusal::Invalid(_))) => (
                Kind::ReloadRefused,
                format!("reload refused, nothing changed: {refusal}"),
            ),
        };
        self.journal.record(kind, Subject::node(), sentence);
        outcome
    }

    pub(super) fn record_health(&self, report: &health::Report) {
        let TargetId { service, backend } = &report.id;
        let (kind, word) = if report.up {
            (Kind::BackendUp, "up")
        } else {
            (Kind::BackendDown, "down")
        };
        self.journal.record(
            kind,
            Subject::backend(&report.id),
            format!("{service}/{backend} is {word}: {}", report.reason),
        );
    }

    /// Tells which services stand otherwise than before.
    pub(super) fn record_standings(&mut self) {
        let standings = self
            .desired
            .iter()
            .map(|service| (service.name.clone(), service.standing()))
            .collect();
        for news in offer::news(&self.standings, &standings) {
            let was = self.standings.get(&news.service).copied();
            let kind = kind_of(was.unwrap_or(Standing::Well), news.standing);
            self.journal
                .record(kind, Subject::service(news.service), news.sentence);
        }
        self.standings = standings;
    }

    /// Tells of drained backends whose time is over.
    pub(super) fn record_resets(&self, before: &[Service]) {
        for service in &self.desired {
            let old = before.iter().find(|old| old.name == service.name);
            for backend in service.backends.iter().filter(|backend| backend.reset) {
                let known = old.is_some_and(|old| {
                    let mut backends = old.backends.iter();
                    backends.any(|old| old.name == backend.name && old.reset)
                });
                if !known {
                    let id = TargetId {
                        service: service.name.clone(),
                        backend: backend.name.clone(),
                    };
                    let sentence = format!(
                        "{}/{} had its time to drain: what is left of its connections is reset",
                        id.service, id.backend
                    );
                    self.journal
                        .record(Kind::DrainCutShort, Subject::backend(&id), sentence);
                }
            }
        }
    }

    /// Looks at the counters, and at the flow tables' levels where they are
    /// measured, and tells what begins or ends by them. Once a second.
    pub(super) fn watch(&mut self, at: Instant, gauges: Option<Gauges>) {
        let verdicts = match self.dataplane.verdicts() {
            Ok(verdicts) => verdicts,
            Err(error) => return debug!("{error:#}"),
        };
        let sample = Sample {
            at,
            totals: Totals::of(&verdicts),
            gauges,
        };
        let (alarms, notices) = watch::step(self.watched.alarms, &sample);
        self.watched.alarms = alarms;
        for notice in notices {
            self.journal
                .record(notice.kind, Subject::node(), notice.sentence);
        }
    }

    /// Tells which drains have ended.
    fn flows_counted(&mut self) {
        let table = self.dataplane.table();
        let mut drained = Vec::new();
        for (service, plan) in self.desired.iter().zip(&self.plan) {
            for (backend, number) in service.backends.iter().zip(&plan.backends) {
                if backend.drained {
                    let id = TargetId {
                        service: service.name.clone(),
                        backend: backend.name.clone(),
                    };
                    drained.push((id, table.live(*number)));
                }
            }
        }
        let (drains, finished) = drain::step(&self.watched.drains, drained);
        self.watched.drains = drains;
        for id in finished {
            self.journal.record(
                Kind::DrainFinished,
                Subject::backend(&id),
                format!(
                    "{}/{} is drained: it has no connection left",
                    id.service, id.backend
                ),
            );
        }
    }
}

impl Controller {
    /// Carries over what has changed in old tables until the program was
    /// exchanged, and lets them go.
    pub fn complete(&mut self, mut handover: Handover) -> anyhow::Result<()> {
        let last = handover.carry()?;
        let from = handover.from();
        handover.finish()?;
        let mut sentence = format!(
            "took over from {from}: {} connections more, {} otherwise than at first",
            last.entered, last.changed
        );
        if last.lost > 0 {
            sentence += &format!("; {} found no place and are lost", last.lost);
        }
        self.journal
            .record(Kind::Upgraded, Subject::node(), sentence);
        Ok(())
    }

    /// What the collector has counted on its last walk.
    pub fn census(&self) -> Census {
        self.collector.census()
    }

    /// Takes over what the collector has counted on its last walk.
    pub(super) fn take_census(&mut self, now: Instant) {
        let census = self.collector.census();
        let displaced = [Displaced::Handshake, Displaced::Port]
            .into_iter()
            .filter_map(|what| self.dataplane.displaced(what).ok())
            .sum();
        let before = self.displaced.replace((now, displaced));
        let displaced_per_second = before.map_or(0, |(then, before)| {
            let seconds = now.duration_since(then).as_secs_f64().max(0.001);
            (displaced.saturating_sub(before) as f64 / seconds) as u64
        });
        let capacity = self.dataplane.flow_capacity();
        self.gauges = Some(Gauges {
            half_open: census.half_open,
            half_open_capacity: capacity,
            established: census.established,
            capacity,
            displaced_per_second,
        });
        self.flows_counted();
    }
}

/// The event of a service that stands otherwise now.
const fn kind_of(was: Standing, now: Standing) -> Kind {
    match (now, was) {
        (Standing::Nobody, _) => Kind::NoBackend,
        (Standing::TooFew { .. }, _) => Kind::BelowMinHealthy,
        (Standing::Backups, _) => Kind::BackupsOnly,
        (Standing::Well, Standing::Backups) => Kind::BackupsRelieved,
        (Standing::Well, Standing::TooFew { .. }) => Kind::MinHealthyAgain,
        (Standing::Well, Standing::Nobody | Standing::Well) => Kind::BackendAgain,
    }
}
