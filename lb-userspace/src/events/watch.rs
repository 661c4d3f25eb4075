//! From what is measured each second to events: what alarms, and when it is over.
//!
//! Each [`Condition`] is calm or raised. It is raised at once by a sample above
//! its upper threshold; it is over when samples have been below the lower one
//! for [`CALM_AFTER`] without interruption. In between nothing changes, so that
//! what wavers about a threshold is told once.
//!
//! | condition | raised by | over below |
//! |---|---|---|
//! | [`Condition::TableFull`] | a packet dropped as `flow_table_full` | none, and established flows below [`TABLE_RELAXED`] of their room |
//! | [`Condition::PortsExhausted`] | a packet dropped as `ports_exhausted` | none |
//! | [`Condition::TurnedAway`] | a packet dropped as `no_backend` | none |
//! | [`Condition::Flood`] | [`FLOOD_DISPLACES`] handshakes displaced in a second, or half-open flows at [`FLOOD_FILLS`] of their room | [`FLOOD_RELAXED`] displaced, and below [`HALF_OPEN_RELAXED`] |
//!
//! It is a pure function of samples; time is a part of them.

use std::time::{Duration, Instant};

use lb_common::Verdict;

use super::Kind;

/// How long it must have been calm before something is over.
pub const CALM_AFTER: Duration = Duration::from_secs(10);

/// So full is the table of established flows again when it is not full any more.
pub const TABLE_RELAXED: f64 = 0.95;

/// So many displaced handshakes a second are a flood.
pub const FLOOD_DISPLACES: u64 = 100;

/// So few are none.
pub const FLOOD_RELAXED: u64 = 10;

/// So full of half-open flows is their table in a flood.
pub const FLOOD_FILLS: f64 = 0.9;

/// So full is it at most when the flood is over.
pub const HALF_OPEN_RELAXED: f64 = 0.5;

/// How the flow tables stand: levels, not counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Flows whose handshake is not finished.
    pub half_open: u64,
    /// How many of those there is room for.
    pub half_open_capacity: u64,
    /// Flows whose handshake is finished.
    pub established: u64,
    /// How many of those there is room for.
    pub capacity: u64,
    /// Handshakes that gave way to newer ones within the last second.
    pub displaced_per_second: u64,
}

/// What the data path has counted since its tables were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets dropped as `flow_table_full`.
    pub flow_table_full: u64,
    /// Packets dropped as `ports_exhausted`.
    pub ports_exhausted: u64,
    /// Packets dropped as `no_backend`.
    pub no_backend: u64,
}

impl Totals {
    /// What matters here of the packets by verdict number.
    pub fn of(verdicts: &[u64]) -> Self {
        let of = |verdict: Verdict| verdicts.get(verdict as usize).copied().unwrap_or(0);
        Self {
            flow_table_full: of(Verdict::FlowTableFull),
            ports_exhausted: of(Verdict::PortsExhausted),
            no_backend: of(Verdict::NoBackend),
        }
    }

    /// What came between two readings. A counter that went back was begun anew.
    fn since(self, before: Self) -> Self {
        let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self {
            flow_table_full: since(self.flow_table_full, before.flow_table_full),
            ports_exhausted: since(self.ports_exhausted, before.ports_exhausted),
            no_backend: since(self.no_backend, before.no_backend),
        }
    }
}

/// What was measured at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// The counters.
    pub totals: Totals,
    /// The levels, where somebody measures them; without, no flood is seen.
    pub gauges: Option<Gauges>,
}

/// What is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No room for another connection.
    TableFull,
    /// No source port for another connection.
    PortsExhausted,
    /// No backend for a client that is there.
    TurnedAway,
    /// More handshakes than are finished.
    Flood,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::TableFull,
        Self::PortsExhausted,
        Self::TurnedAway,
        Self::Flood,
    ];

    /// The event of its beginning, and that of its end.
    pub const fn kinds(self) -> (Kind, Kind) {
        match self {
            Self::TableFull => (Kind::TableFull, Kind::TableHasRoom),
            Self::PortsExhausted => (Kind::PortsExhausted, Kind::PortsSuffice),
            Self::TurnedAway => (Kind::ClientsTurnedAway, Kind::ClientsServedAgain),
            Self::Flood => (Kind::FloodBegins, Kind::FloodEnds),
        }
    }

    /// Where this second stands between the thresholds, and how much of what is
    /// alarming it brought.
    fn judge(self, drops: Totals, gauges: Option<Gauges>) -> (Signal, u64) {
        let (count, alarming, calm) = match self {
            Self::TableFull => {
                let relaxed =
                    gauges.is_none_or(|g| !fills(g.established, TABLE_RELAXED, g.capacity));
                let count = drops.flow_table_full;
                (count, count > 0, count == 0 && relaxed)
            }
            Self::PortsExhausted => {
                let count = drops.ports_exhausted;
                (count, count > 0, count == 0)
            }
            Self::TurnedAway => (
                drops.no_backend,
                drops.no_backend > 0,
                drops.no_backend == 0,
            ),
            Self::Flood => {
                let Gauges {
                    half_open,
                    half_open_capacity: room,
                    displaced_per_second: displaced,
                    ..
                } = gauges.unwrap_or_default();
                (
                    displaced,
                    displaced >= FLOOD_DISPLACES || fills(half_open, FLOOD_FILLS, room),
                    displaced <= FLOOD_RELAXED && !fills(half_open, HALF_OPEN_RELAXED, room),
                )
            }
        };
        let signal = match (alarming, calm) {
            (true, _) => Signal::Alarming,
            (false, true) => Signal::Calm,
            (false, false) => Signal::Between,
        };
        (signal, count)
    }

    fn begin(self, count: u64, gauges: Option<Gauges>) -> String {
        match self {
            Self::TableFull => format!(
                "the flow table is full: {count} packets of new connections were dropped within a second{}; established connections go on; raise node.max_flows",
                gauges.map_or(String::new(), |g| format!(
                    " at {} of {} flows",
                    g.established, g.capacity
                ))
            ),
            Self::PortsExhausted => format!(
                "source ports are used up: {count} packets of new full-nat connections were dropped within a second; `lb drops` says towards which backend: add another"
            ),
            Self::TurnedAway => format!(
                "clients are turned away: {count} packets of new connections were dropped within a second, for their service has no backend; see `lb drops`"
            ),
            Self::Flood => {
                let g = gauges.unwrap_or_default();
                format!(
                    "a flood of handshakes: {} of {} half-open flows, {count} displaced within a second; established connections are not touched",
                    g.half_open, g.half_open_capacity
                )
            }
        }
    }

    fn end(self, count: u64, lasted: Duration) -> String {
        let lasted = humantime::format_duration(Duration::from_secs(lasted.as_secs()));
        match self {
            Self::TableFull => format!(
                "the flow table has room again: it was full for {lasted}, and {count} packets were dropped"
            ),
            Self::PortsExhausted => format!(
                "there are source ports again: they were used up for {lasted}, and {count} packets were dropped"
            ),
            Self::TurnedAway => format!(
                "no client is turned away any more: for {lasted} there was no backend for {count} packets"
            ),
            Self::Flood => format!(
                "the flood of handshakes is over: it lasted for {lasted}, and {count} were displaced"
            ),
        }
    }
}

/// Whether so many take that part of the room, if there is any.
fn fills(number: u64, part: f64, room: u64) -> bool {
    room > 0 && number as f64 >= part * room as f64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Alarming,
    Between,
    Calm,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Calm,
    Raised(Raised),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Raised {
    since: Instant,
    /// The last second that was alarming.
    last: Instant,
    /// Since when samples are calm.
    calm: Option<Instant>,
    /// How much it was in all.
    count: u64,
}

/// What is remembered from one sample to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    before: Option<Totals>,
    phases: [Phase; Condition::ALL.len()],
}

/// An event to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which.
    pub kind: Kind,
    /// The whole of it.
    pub sentence: String,
}

/// One sample more. The first one only sets the counters: what they hold was
/// counted before anybody watched.
pub fn step(state: State, sample: &Sample) -> (State, Vec<Notice>) {
    let drops = sample.totals.since(state.before.unwrap_or(sample.totals));
    let mut notices = Vec::new();
    let mut phases = state.phases;
    for (phase, condition) in phases.iter_mut().zip(Condition::ALL) {
        let (signal, count) = condition.judge(drops, sample.gauges);
        let (next, turn) = turn(*phase, signal, count, sample.at);
        *phase = next;
        let (begins, ends) = condition.kinds();
        notices.extend(match turn {
            None => None,
            Some(Turn::Begins) => Some(Notice {
                kind: begins,
                sentence: condition.begin(count, sample.gauges),
            }),
            Some(Turn::Ends { count, lasted }) => Some(Notice {
                kind: ends,
                sentence: condition.end(count, lasted),
            }),
        });
    }
    let before = Some(sample.totals);
    (State { before, phases }, notices)
}

enum Turn {
    Begins,
    Ends { count: u64, lasted: Duration },
}

fn turn(phase: Phase, signal: Signal, more: u64, now: Instant) -> (Phase, Option<Turn>) {
    match (phase, signal) {
        (Phase::Calm, Signal::Alarming) => {
            let raised = Raised {
                since: now,
                last: now,
                calm: None,
                count: more,
            };
            (Phase::Raised(raised), Some(Turn::Begins))
        }
        (Phase::Calm, Signal::Between | Signal::Calm) => (Phase::Calm, None),
        (Phase::Raised(was), Signal::Alarming) => {
            let raised = Raised {
                last: now,
                calm: None,
                count: was.count + more,
                ..was
            };
            (Phase::Raised(raised), None)
        }
        (Phase::Raised(was), Signal::Between) => {
            let raised = Raised {
                calm: None,
                count: was.count + more,
                ..was
            };
            (Phase::Raised(raised), None)
        }
        (Phase::Raised(was), Signal::Calm) => {
            let calm = was.calm.unwrap_or(now);
            let count = was.count + more;
            if now.saturating_duration_since(calm) >= CALM_AFTER {
                let lasted = was.last.saturating_duration_since(was.since);
                let lasted = lasted + Duration::from_secs(1);
                return (Phase::Calm, Some(Turn::Ends { count, lasted }));
            }
            let calm = Some(calm);
            (Phase::Raised(Raised { calm, count, ..was }), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second: what was dropped in it, and the gauges at its end.
    #[derive(Clone, Copy, Default)]
    struct Second {
        full: u64,
        ports: u64,
        nobody: u64,
        gauges: Option<Gauges>,
    }

    const QUIET: Second = Second {
        full: 0,
        ports: 0,
        nobody: 0,
        gauges: None,
    };

    fn flows(established: u64, half_open: u64, displaced_per_second: u64) -> Second {
        let gauges = Gauges {
            half_open,
            half_open_capacity: 1_000,
            established,
            capacity: 1_000,
            displaced_per_second,
        };
        Second {
            gauges: Some(gauges),
            ..QUIET
        }
    }

    /// What is told, with the second it is told in. Before the first second
    /// counters already hold something.
    fn told(seconds: &[(usize, Second)]) -> Vec<(usize, Notice)> {
        let mut sample = Sample {
            at: Instant::now(),
            totals: Totals {
                flow_table_full: 7,
                ports_exhausted: 7,
                no_backend: 7,
            },
            gauges: None,
        };
        let (mut state, first) = step(State::default(), &sample);
        assert!(first.is_empty(), "{first:?}");
        let mut all = Vec::new();
        let seconds = seconds
            .iter()
            .flat_map(|&(times, second)| (0..times).map(move |_| second));
        for (number, second) in seconds.enumerate() {
            sample.at += Duration::from_secs(1);
            sample.totals.flow_table_full += second.full;
            sample.totals.ports_exhausted += second.ports;
            sample.totals.no_backend += second.nobody;
            sample.gauges = second.gauges;
            let (next, notices) = step(state, &sample);
            state = next;
            all.extend(notices.into_iter().map(|notice| (number, notice)));
        }
        all
    }

    fn kinds(seconds: &[(usize, Second)]) -> Vec<(usize, Kind)> {
        let told = told(seconds);
        told.iter().map(|(n, notice)| (*n, notice.kind)).collect()
    }

    #[test]
    fn every_condition_is_told_when_it_begins_and_when_it_has_been_over_for_a_while() {
        use Kind::{
            ClientsServedAgain, ClientsTurnedAway, FloodBegins, FloodEnds, PortsExhausted,
            PortsSuffice, TableFull, TableHasRoom,
        };
        let full = Second { full: 5, ..QUIET };
        let ports = Second { ports: 5, ..QUIET };
        let nobody = Second { nobody: 1, ..QUIET };
        for (says, seconds, expected) in [
            ("nothing happens", vec![(99, QUIET)], vec![]),
            (
                "full for three seconds",
                vec![(2, QUIET), (3, full), (11, QUIET)],
                vec![(2, TableFull), (15, TableHasRoom)],
            ),
            (
                "full, and not calm for long enough",
                vec![(1, full), (10, QUIET)],
                vec![(0, TableFull)],
            ),
            (
                "full every now and then is one alarm",
                vec![
                    (1, full),
                    (9, QUIET),
                    (1, full),
                    (9, QUIET),
                    (1, full),
                    (11, QUIET),
                ],
                vec![(0, TableFull), (31, TableHasRoom)],
            ),
            (
                "no drops any more, but as full as ever",
                vec![(1, full), (60, flows(950, 0, 0))],
                vec![(0, TableFull)],
            ),
            (
                "no drops any more, and room",
                vec![(1, full), (60, flows(949, 0, 0))],
                vec![(0, TableFull), (11, TableHasRoom)],
            ),
            (
                "a table that is nearly full drops nothing",
                vec![(60, flows(1_000, 0, 0))],
                vec![],
            ),
            (
                "no ports",
                vec![(1, ports), (11, QUIET)],
                vec![(0, PortsExhausted), (11, PortsSuffice)],
            ),
            (
                "one client too many",
                vec![(1, nobody), (11, QUIET)],
                vec![(0, ClientsTurnedAway), (11, ClientsServedAgain)],
            ),
            (
                "handshakes displace each other",
                vec![
                    (1, flows(0, 0, 99)),
                    (5, flows(0, 0, 100)),
                    (11, flows(0, 0, 10)),
                ],
                vec![(1, FloodBegins), (16, FloodEnds)],
            ),
            (
                "handshakes fill their table",
                vec![
                    (1, flows(0, 899, 0)),
                    (5, flows(0, 900, 0)),
                    (11, flows(0, 499, 0)),
                ],
                vec![(1, FloodBegins), (16, FloodEnds)],
            ),
            (
                "between the thresholds nothing begins and nothing ends",
                vec![
                    (60, flows(0, 500, 11)),
                    (1, flows(0, 900, 0)),
                    (60, flows(0, 500, 0)),
                    (60, flows(0, 0, 11)),
                ],
                vec![(60, FloodBegins)],
            ),
            (
                "what wavers is not over",
                vec![
                    (1, flows(0, 0, 100)),
                    (9, flows(0, 0, 0)),
                    (1, flows(0, 0, 11)),
                    (10, flows(0, 0, 0)),
                ],
                vec![(0, FloodBegins)],
            ),
        ] {
            assert_eq!(kinds(&seconds), expected, "{says}");
        }
    }

    #[test]
    fn conditions_do_not_disturb_each_other() {
        let both = Second {
            full: 1,
            ports: 1,
            ..flows(0, 0, 100)
        };
        let kinds = kinds(&[(3, both), (11, QUIET)]);
        assert_eq!(
            kinds,
            [
                (0, Kind::TableFull),
                (0, Kind::PortsExhausted),
                (0, Kind::FloodBegins),
                (13, Kind::TableHasRoom),
                (13, Kind::PortsSuffice),
                (13, Kind::FloodEnds),
            ]
        );
    }

    #[test]
    fn sentences_say_how_much_and_how_long() {
        let full = Second {
            full: 5,
            ..flows(1_000, 0, 0)
        };
        let told = told(&[(90, full), (11, QUIET)]);
        let sentences: Vec<&str> = told.iter().map(|(_, n)| n.sentence.as_str()).collect();
        assert_eq!(
            sentences,
            [
                "the flow table is full: 5 packets of new connections were dropped within a second at 1000 of 1000 flows; established connections go on; raise node.max_flows",
                "the flow table has room again: it was full for 1m 30s, and 450 packets were dropped",
            ]
        );
    }

    #[test]
    fn counters_that_begin_anew_count_from_nothing() {
        let at = Instant::now();
        let totals = |no_backend| Totals {
            no_backend,
            ..Totals::default()
        };
        let sample = |totals| Sample {
            at,
            totals,
            gauges: None,
        };
        let (state, _) = step(State::default(), &sample(totals(1_000)));
        let (_, none) = step(state, &sample(totals(0)));
        assert_eq!(none, []);
        let (_, some) = step(state, &sample(totals(3)));
        assert!(some[0].sentence.contains("3 packets"), "{some:?}");
    }

    #[test]
    fn verdicts_are_found_by_their_numbers() {
        let mut verdicts = vec![0; Verdict::ALL.len()];
        verdicts[Verdict::FlowTableFull as usize] = 1;
        verdicts[Verdict::PortsExhausted as usize] = 2;
        verdicts[Verdict::NoBackend as usize] = 3;
        let expected = Totals {
            flow_table_full: 1,
            ports_exhausted: 2,
            no_backend: 3,
        };
        assert_eq!(Totals::of(&verdicts), expected);
        assert_eq!(Totals::of(&[]), Totals::default());
    }
}
