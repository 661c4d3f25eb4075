//! Whom a service offers new connections.
//!
//! Those that are healthy, by their weights. Backups only while nobody else
//! can be offered. And with fewer healthy ones than `min_healthy` everyone who
//! has a weight, healthy or not: then the checks are more likely to be wrong
//! than all these backends to be down, or the few that are left would not
//! bear the load of all.

use std::collections::BTreeMap;

use super::{Backend, Service};
use crate::schedule::{Candidate, WHOLE};

/// How a service stands: what its offer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Healthy backends.
    Well,
    /// Backups, for nobody else can be offered.
    Backups,
    /// Everyone with a weight, for fewer are healthy than wanted.
    TooFew {
        /// So many healthy ones, backups counted only if there are no others.
        healthy: u32,
        /// `min_healthy`.
        wanted: u32,
    },
    /// Nobody.
    Nobody,
}

impl Standing {
    /// The word for it in JSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Backups => "backups",
            Self::TooFew { .. } => "too-few",
            Self::Nobody => "nobody",
        }
    }

    /// What this means for a service, if it is not well.
    pub fn trouble(self) -> Option<String> {
        match self {
            Self::Well => None,
            Self::Backups => Some("only backups are left: they take its new connections".into()),
            Self::TooFew { healthy, wanted } => Some(format!(
                "healthy backends: {healthy}, fewer than min_healthy ({wanted}), so all are used, whatever their checks say"
            )),
            Self::Nobody => {
                Some("no backend is left: its new connections are dropped (no_backend)".into())
            }
        }
    }
}

impl Service {
    /// How it stands.
    pub fn standing(&self) -> Standing {
        let healthy = |backup: bool| {
            let usable = |entry: &&Backend| entry.backup == backup && entry.usable();
            self.backends.iter().filter(usable).count()
        };
        let (healthy, well) = match healthy(false) {
            0 => (healthy(true), Standing::Backups),
            some => (some, Standing::Well),
        };
        let healthy = u32::try_from(healthy).unwrap_or(u32::MAX);
        if self.backends.iter().all(|entry| entry.weight == 0) {
            Standing::Nobody
        } else if healthy < self.min_healthy {
            let wanted = self.min_healthy;
            Standing::TooFew { healthy, wanted }
        } else if healthy == 0 {
            Standing::Nobody
        } else {
            well
        }
    }

    /// What its scheduler chooses from; `numbers` are those of its backends, in
    /// their order. Of those who are not offered, the ones whose time may come
    /// stand there with no part of their weight.
    pub fn candidates(&self, numbers: &[u32]) -> Vec<Candidate> {
        let standing = self.standing();
        let candidate = |(entry, &number): (&Backend, &u32)| Candidate {
            number,
            endpoint: entry.endpoint,
            weight: entry.full_weight,
            part: match standing {
                Standing::TooFew { .. } if entry.weight > 0 => WHOLE,
                Standing::Well | Standing::Backups if entry.usable() => entry.part,
                Standing::Well | Standing::Backups | Standing::TooFew { .. } | Standing::Nobody => {
                    0
                }
            },
        };
        let stands = |(entry, _): &(&Backend, &u32)| match standing {
            Standing::Well | Standing::Nobody => !entry.backup,
            Standing::Backups => entry.backup,
            Standing::TooFew { .. } => true,
        };
        self.backends
            .iter()
            .zip(numbers)
            .filter(stands)
            .map(candidate)
            .collect()
    }
}

/// Something that people should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The service.
    pub service: String,
    /// How it stands now.
    pub standing: Standing,
    /// What that means, and since what.
    pub sentence: String,
}

/// What is to be said when services stand otherwise than before, by their
/// names. Of a service that is new, only trouble.
pub fn news(before: &BTreeMap<String, Standing>, after: &BTreeMap<String, Standing>) -> Vec<News> {
    let kind = std::mem::discriminant::<Standing>;
    after
        .iter()
        .filter_map(|(service, &standing)| {
            let was = before.get(service).copied().unwrap_or(Standing::Well);
            if kind(&was) == kind(&standing) {
                return None;
            }
            let now = standing.trouble().unwrap_or_else(|| over(was).to_owned());
            Some(News {
                service: service.clone(),
                standing,
                sentence: format!("{service}: {now}"),
            })
        })
        .collect()
}

/// What is said when this is over and all is well.
const fn over(was: Standing) -> &'static str {
    match was {
        Standing::Well => "all is well",
        Standing::Backups => {
            "other backends than backups are healthy again: they alone take its new connections"
        }
        Standing::TooFew { .. } => {
            "enough backends are healthy again: they alone take its new connections"
        }
        Standing::Nobody => "it has a healthy backend again, which takes its new connections",
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::TCP;

    use super::*;
    use crate::model::endpoint;

    /// `u`p or `d`own, drained (`-`); a capital is a backup.
    fn web(backends: &str, min_healthy: u32) -> Service {
        let at = |number| endpoint(([10, 0, 0, number], 80).into(), u16::from(TCP));
        let backends = (1..).zip(backends.chars()).map(|(number, kind)| Backend {
            up: kind.eq_ignore_ascii_case(&'u'),
            backup: kind.is_ascii_uppercase(),
            weight: u16::from(kind != '-') * 3,
            ..Backend::new("b", at(number), 3)
        });
        Service {
            min_healthy,
            backends: backends.collect(),
            ..Service::new("web", at(0))
        }
    }

    /// The numbers of those who stand for the scheduler, and of those offered.
    fn offered(service: &Service) -> (Vec<u32>, Vec<u32>) {
        let numbers: Vec<u32> = (0..).take(service.backends.len()).collect();
        let all = service.candidates(&numbers);
        let some = all.iter().filter(|candidate| candidate.part > 0);
        (
            all.iter().map(|candidate| candidate.number).collect(),
            some.map(|candidate| candidate.number).collect(),
        )
    }

    #[test]
    fn backups_wait_until_nobody_else_can_be_offered() {
        for (backends, standing, stand, offer) in [
            ("uuU", Standing::Well, vec![0, 1], vec![0, 1]),
            ("duU", Standing::Well, vec![0, 1], vec![1]),
            ("ddUU", Standing::Backups, vec![2, 3], vec![2, 3]),
            ("d-UD", Standing::Backups, vec![2, 3], vec![2]),
            ("ddD", Standing::Nobody, vec![0, 1], vec![]),
            ("--", Standing::Nobody, vec![0, 1], vec![]),
            ("", Standing::Nobody, vec![], vec![]),
            ("U", Standing::Backups, vec![0], vec![0]),
        ] {
            let service = web(backends, 0);
            assert_eq!(service.standing(), standing, "{backends}");
            assert_eq!(offered(&service), (stand, offer), "{backends}");
        }
    }

    #[test]
    fn below_min_healthy_everyone_with_a_weight_is_used() {
        let too_few = |healthy| Standing::TooFew { healthy, wanted: 2 };
        for (backends, standing, offer) in [
            ("uud", Standing::Well, vec![0, 1]),
            ("udd", too_few(1), vec![0, 1, 2]),
            ("ddd", too_few(0), vec![0, 1, 2]),
            ("ud-", too_few(1), vec![0, 1]),
            ("udU", too_few(1), vec![0, 1, 2]),
            ("ddUU", Standing::Backups, vec![2, 3]),
            ("ddU", too_few(1), vec![0, 1, 2]),
            ("---", Standing::Nobody, vec![]),
        ] {
            let service = web(backends, 2);
            assert_eq!(service.standing(), standing, "{backends}");
            assert_eq!(offered(&service).1, offer, "{backends}");
        }
    }

    #[test]
    fn each_change_is_said_once_in_a_sentence() {
        let standing = |standing| BTreeMap::from([("web".to_owned(), standing)]);
        let too_few = |healthy| standing(Standing::TooFew { healthy, wanted: 2 });
        let said = |before: &BTreeMap<String, Standing>,
                    after: &BTreeMap<String, Standing>|
         -> Vec<String> {
            let news = news(before, after);
            news.into_iter().map(|news| news.sentence).collect()
        };
        let (none, well) = (BTreeMap::new(), standing(Standing::Well));
        assert!(said(&none, &well).is_empty());
        assert!(said(&well, &none).is_empty());
        assert!(said(&too_few(1), &too_few(0)).is_empty());
        assert_eq!(
            said(&none, &too_few(1)),
            [
                "web: healthy backends: 1, fewer than min_healthy (2), so all are used, whatever their checks say"
            ]
        );
        assert_eq!(
            said(&too_few(1), &well),
            ["web: enough backends are healthy again: they alone take its new connections"]
        );
        assert_eq!(
            said(&well, &standing(Standing::Nobody)),
            ["web: no backend is left: its new connections are dropped (no_backend)"]
        );
    }
}
