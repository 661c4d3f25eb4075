//! When a backend is up and when it is down: a pure state machine.
//!
//! One probe gives one [`Event`]. The first verdict decides at once, so that a
//! balancer that has just been started serves within one probe; from then on
//! [`Settings::fall`] failures in a row take a backend down and
//! [`Settings::rise`] passes in a row bring it back, so that one lost packet
//! moves nothing.
//!
//! A probe that could not be made at all (this host out of sockets, say) is
//! [`Event::Inconclusive`]: it says nothing about the backend and changes
//! nothing. Were it a failure, one host out of file descriptors would take
//! every backend of every service down at once.

use std::time::Duration;

/// How often a backend is probed, and how many results in a row decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From the start of one probe to the start of the next.
    pub interval: Duration,
    /// How long a probe may wait for its answer.
    pub timeout: Duration,
    /// Passes in a row that bring a backend that is down up again; 0 acts as 1.
    pub rise: u32,
    /// Failures in a row that take a backend that is up down; 0 acts as 1.
    pub fall: u32,
}

/// What is known of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not judged yet.
    Unknown,
    /// Takes connections.
    Up {
        /// Failures in a row so far; always below `fall`.
        failures: u32,
    },
    /// Takes no new connections.
    Down {
        /// Passes in a row so far; always below `rise`.
        successes: u32,
    },
}

impl State {
    /// The state that an earlier run of the controller left behind: already
    /// judged, so it takes `rise` or `fall` results to change it.
    pub const fn adopted(up: bool) -> Self {
        if up {
            Self::Up { failures: 0 }
        } else {
            Self::Down { successes: 0 }
        }
    }

    /// The word for it in tables and JSON: `unknown`, `up` or `down`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up { .. } => "up",
            Self::Down { .. } => "down",
        }
    }
}

/// The outcome of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The backend answered as it should.
    Passed,
    /// The backend did not answer, or not as it should.
    Failed,
    /// The probe could not be made; nothing was learnt.
    Inconclusive,
}

/// A verdict that others must hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// New connections may go to the backend.
    WentUp,
    /// No new connection may go to the backend.
    WentDown,
}

/// One step: what the state becomes after `event`, and the verdict if it is new.
pub const fn step(settings: &Settings, state: State, event: Event) -> (State, Option<Transition>) {
    match (state, event) {
        (State::Unknown | State::Up { .. } | State::Down { .. }, Event::Inconclusive) => {
            (state, None)
        }
        (State::Unknown, Event::Passed) => UP,
        (State::Unknown, Event::Failed) => DOWN,
        (State::Up { .. }, Event::Passed) => (State::adopted(true), None),
        (State::Up { failures }, Event::Failed) => {
            let failures = failures.saturating_add(1);
            if failures >= settings.fall {
                DOWN
            } else {
                (State::Up { failures }, None)
            }
        }
        (State::Down { successes }, Event::Passed) => {
            let successes = successes.saturating_add(1);
            if successes >= settings.rise {
                UP
            } else {
                (State::Down { successes }, None)
            }
        }
        (State::Down { .. }, Event::Failed) => (State::adopted(false), None),
    }
}

const UP: (State, Option<Transition>) = (State::adopted(true), Some(Transition::WentUp));
const DOWN: (State, Option<Transition>) = (State::adopted(false), Some(Transition::WentDown));

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(rise: u32, fall: u32) -> Settings {
        Settings {
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise,
            fall,
        }
    }

    #[test]
    fn every_state_answers_every_event() {
        use Event::{Failed, Inconclusive, Passed};
        use State::{Down, Unknown, Up};
        use Transition::{WentDown, WentUp};
        // With rise = 2 and fall = 3.
        let table = [
            // from, event, to, transition
            (Unknown, Passed, Up { failures: 0 }, Some(WentUp)),
            (Unknown, Failed, Down { successes: 0 }, Some(WentDown)),
            (Unknown, Inconclusive, Unknown, None),
            (Up { failures: 0 }, Passed, Up { failures: 0 }, None),
            (Up { failures: 2 }, Passed, Up { failures: 0 }, None),
            (Up { failures: 0 }, Failed, Up { failures: 1 }, None),
            (Up { failures: 1 }, Failed, Up { failures: 2 }, None),
            (
                Up { failures: 2 },
                Failed,
                Down { successes: 0 },
                Some(WentDown),
            ),
            (Up { failures: 2 }, Inconclusive, Up { failures: 2 }, None),
            (Down { successes: 0 }, Failed, Down { successes: 0 }, None),
            (Down { successes: 1 }, Failed, Down { successes: 0 }, None),
            (Down { successes: 0 }, Passed, Down { successes: 1 }, None),
            (
                Down { successes: 1 },
                Passed,
                Up { failures: 0 },
                Some(WentUp),
            ),
            (
                Down { successes: 1 },
                Inconclusive,
                Down { successes: 1 },
                None,
            ),
        ];
        for (from, event, to, transition) in table {
            assert_eq!(
                step(&settings(2, 3), from, event),
                (to, transition),
                "{from:?} on {event:?}"
            );
        }
    }

    #[test]
    fn a_reload_that_lowers_the_thresholds_cannot_strand_a_state() {
        // Counts taken under larger thresholds: the next result decides.
        let (state, transition) = step(&settings(1, 1), State::Up { failures: 7 }, Event::Failed);
        assert_eq!(state, State::adopted(false));
        assert_eq!(transition, Some(Transition::WentDown));
        let (state, transition) =
            step(&settings(1, 1), State::Down { successes: 7 }, Event::Passed);
        assert_eq!(state, State::adopted(true));
        assert_eq!(transition, Some(Transition::WentUp));
    }

    #[test]
    fn zero_acts_as_one() {
        assert_eq!(
            step(&settings(0, 0), State::adopted(true), Event::Failed),
            DOWN
        );
        assert_eq!(
            step(&settings(0, 0), State::adopted(false), Event::Passed),
            UP
        );
    }

    #[test]
    fn each_state_has_its_word() {
        assert_eq!(State::Unknown.word(), "unknown");
        assert_eq!(State::adopted(true).word(), "up");
        assert_eq!(State::adopted(false).word(), "down");
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Passed),
            4 => Just(Event::Failed),
            1 => Just(Event::Inconclusive),
        ]
    }

    proptest! {
        /// The whole history decides, told in another way than by counters: a
        /// verdict changes exactly where the conclusive results since the last
        /// verdict end in `rise` passes or `fall` failures.
        #[test]
        fn verdicts_change_exactly_after_runs(
            rise in 1_u32..5,
            fall in 1_u32..5,
            first in prop_oneof![Just(None), Just(Some(true)), Just(Some(false))],
            events in prop::collection::vec(event(), 0..200),
        ) {
            let settings = settings(rise, fall);
            let mut state = first.map_or(State::Unknown, State::adopted);
            let mut up: Option<bool> = first;
            let mut since: Vec<bool> = Vec::new();
            for event in events {
                let (next, transition) = step(&settings, state, event);
                state = next;
                let expected = match event {
                    Event::Inconclusive => None,
                    Event::Passed | Event::Failed => {
                        since.push(event == Event::Passed);
                        let needed = match up {
                            None => 1,
                            Some(true) => fall,
                            Some(false) => rise,
                        } as usize;
                        let opposed = |passed: &bool| up.is_none_or(|up| up != *passed);
                        let run = since.iter().rev().take_while(|passed| opposed(passed)).count();
                        (run >= needed).then_some(event == Event::Passed)
                    }
                };
                if let Some(now_up) = expected {
                    up = Some(now_up);
                    since.clear();
                }
                prop_assert_eq!(
                    transition,
                    expected.map(|up| if up { Transition::WentUp } else { Transition::WentDown })
                );
                prop_assert_eq!(state.word(), up.map_or("unknown", |up| if up { "up" } else { "down" }));
                match state {
                    State::Unknown => {}
                    State::Up { failures } => prop_assert!(failures < fall),
                    State::Down { successes } => prop_assert!(successes < rise),
                }
            }
        }
    }
}
