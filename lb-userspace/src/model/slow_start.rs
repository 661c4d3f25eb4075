//! Slow start: a backend that has come back is given its weight little by
//! little, so that cold caches and lazy pools are not met by its whole share.
//!
//! From the moment of its recovery its weight rises linearly from a tenth to
//! the whole, in steps of a twentieth. Only a recovery counts: a backend that is
//! new, that was enabled after a drain, or that a starting daemon finds up has
//! its whole weight at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lb_common::abi::Endpoint;

use super::Service;
use crate::health::TargetId;
use crate::schedule::WHOLE;

/// What a recovered backend begins with, in twentieths: a tenth.
const FIRST: u16 = WHOLE / 10;

/// Since when backends have been back.
#[derive(Clone, Debug, Default)]
pub struct SlowStarts(BTreeMap<TargetId, Instant>);

impl SlowStarts {
    /// Takes note of who is up and was down before, and forgets who is down,
    /// gone, or has its whole weight.
    pub fn note(&mut self, before: &[Service], after: &[Service], now: Instant) {
        let was_down = down(before);
        let mut still = BTreeMap::new();
        for service in slow(after) {
            for backend in service.backends.iter().filter(|backend| backend.up) {
                let id = TargetId {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                };
                let key = (service.name.as_str(), backend.name.as_str());
                let since = if was_down.get(&key) == Some(&backend.endpoint) {
                    Some(now)
                } else {
                    self.0.get(&id).copied()
                };
                if let Some(since) = since
                    && part(service.slow_start, now.saturating_duration_since(since)) < WHOLE
                {
                    still.insert(id, since);
                }
            }
        }
        self.0 = still;
    }

    /// Gives those that are on their way their part of the weight.
    pub fn apply(&self, services: &mut [Service], now: Instant) {
        for service in services.iter_mut().filter(|service| is_slow(service)) {
            let name = service.name.clone();
            let length = service.slow_start;
            for backend in &mut service.backends {
                let id = TargetId {
                    service: name.clone(),
                    backend: backend.name.clone(),
                };
                if let Some(&since) = self.0.get(&id) {
                    backend.part = part(length, now.saturating_duration_since(since));
                }
            }
        }
    }

    /// When the next one is due to get more than it has in `services`.
    pub fn next_deadline(&self, services: &[Service]) -> Option<Instant> {
        let mut next = None;
        for service in slow(services) {
            for backend in &service.backends {
                let id = TargetId {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                };
                if let Some(&since) = self.0.get(&id)
                    && backend.part < WHOLE
                {
                    let due = since + reached(service.slow_start, backend.part + 1);
                    next = Some(next.map_or(due, |next: Instant| next.min(due)));
                }
            }
        }
        next
    }
}

/// Whether a service has a slow start; most have none, and may have thousands
/// of backends.
fn is_slow(service: &Service) -> bool {
    !service.slow_start.is_zero()
}

fn slow(services: &[Service]) -> impl Iterator<Item = &Service> {
    services.iter().filter(|service| is_slow(service))
}

/// The endpoints of the backends that are down, by the names of service and backend.
fn down(services: &[Service]) -> BTreeMap<(&str, &str), Endpoint> {
    slow(services)
        .flat_map(|service| {
            let down = service.backends.iter().filter(|backend| !backend.up);
            down.map(|backend| {
                (
                    (service.name.as_str(), backend.name.as_str()),
                    backend.endpoint,
                )
            })
        })
        .collect()
}

/// Which part of its weight a backend has, in twentieths, when it has been back
/// for that long of a slow start that takes so long.
fn part(length: Duration, back: Duration) -> u16 {
    if back >= length {
        return WHOLE;
    }
    let rise = u128::from(WHOLE - FIRST) * back.as_nanos() / length.as_nanos();
    // Less than the whole, since less than the whole time has passed.
    FIRST + u16::try_from(rise).unwrap_or(0)
}

/// How long after its recovery it has this part.
fn reached(length: Duration, part: u16) -> Duration {
    let steps = u32::from(part.saturating_sub(FIRST));
    // A nanosecond for what the division leaves: too early would be no step.
    length * steps / u32::from(WHOLE - FIRST) + Duration::from_nanos(1)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::TCP;

    use super::*;
    use crate::model::{Backend, endpoint};

    const MINUTE: Duration = Duration::from_secs(60);

    /// A service of two backends with a slow start of a minute.
    fn web(up: [bool; 2]) -> Vec<Service> {
        let at = |text: &str| endpoint(text.parse().unwrap(), u16::from(TCP));
        let backend = |name: &str, address: &str, up| Backend {
            up,
            ..Backend::new(name, at(address), 1)
        };
        vec![Service {
            slow_start: MINUTE,
            backends: vec![
                backend("web1", "10.0.0.1:80", up[0]),
                backend("web2", "10.0.0.2:80", up[1]),
            ],
            ..Service::new("web", at("203.0.113.10:80"))
        }]
    }

    fn parts(services: &[Service]) -> Vec<u16> {
        services[0]
            .backends
            .iter()
            .map(|entry| entry.part)
            .collect()
    }

    #[test]
    fn the_weight_rises_linearly_from_a_tenth_to_the_whole() {
        for (seconds, expected) in [
            (0, 2),
            (3, 2),
            (4, 3),
            (30, 11),
            (56, 18),
            (59, 19),
            (60, 20),
        ] {
            let back = Duration::from_secs(seconds);
            assert_eq!(part(MINUTE, back), expected, "after {seconds} s");
        }
        assert_eq!(part(Duration::ZERO, Duration::ZERO), WHOLE);
    }

    #[test]
    fn each_part_is_reached_when_it_is_said_to_be() {
        for length in [Duration::from_secs(1), MINUTE, Duration::from_secs(3_599)] {
            for next in FIRST + 1..=WHOLE {
                let at = reached(length, next);
                assert_eq!(part(length, at), next, "{length:?}");
                assert_eq!(part(length, at - Duration::from_nanos(2)), next - 1);
            }
        }
    }

    #[test]
    fn a_backend_that_comes_back_starts_slowly_and_one_that_was_never_down_does_not() {
        let now = Instant::now();
        let mut slow = SlowStarts::default();
        let mut state = |before: &[Service], up, at| {
            let mut after = web(up);
            slow.note(before, &after, at);
            slow.apply(&mut after, at);
            (parts(&after), slow.next_deadline(&after), after)
        };
        let (whole, deadline, first) = state(&[], [true, false], now);
        assert_eq!((whole, deadline), (vec![20, 20], None), "a first start");
        let (slowly, deadline, second) = state(&first, [true, true], now);
        assert_eq!(slowly, [20, 2]);
        let step = deadline.expect("a step is due");
        assert!(step - now < Duration::from_secs(4), "{step:?}");
        let (more, _, third) = state(&second, [true, true], step);
        assert_eq!(more, [20, 3]);
        let (again, none, fourth) = state(&third, [true, false], step);
        assert_eq!((again, none), (vec![20, 20], None), "down again: forgotten");
        let (from_start, _, fifth) = state(&fourth, [true, true], step + MINUTE);
        assert_eq!(from_start, [20, 2]);
        let (whole, deadline, _) = state(&fifth, [true, true], step + 2 * MINUTE);
        assert_eq!((whole, deadline), (vec![20, 20], None), "late, and whole");
    }
}
