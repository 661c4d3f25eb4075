//! RFC 9568's state table as data, and what goes beyond it.
//!
//! A row is a state, an event, the next state and what is done, in order, with the
//! RFC's own words for it. The node has priority 100, the address 10.0.0.2, an
//! interval of one second, and Preempt_Mode True unless a row says otherwise. It is
//! ten seconds past the start; times are in milliseconds.

use std::collections::BTreeSet;
use std::mem::{Discriminant, discriminant};
use std::net::IpAddr;
use std::time::Duration;

use lb_userspace::vrrp::machine::{
    Action, Active, Announcing, Backup, Config, Event, Heard, LAST_RESORT, Leaving, Moment, Next,
    Released, State, Taken, step,
};
use lb_userspace::vrrp::packet::{Interval, LEAVING, OWNER};

const NOW: u64 = 10_000;

/// Skew_Time of priority 100 with an interval of one second, in microseconds:
/// 156/256.
const SKEW: u64 = 609_375;

struct Row {
    says: &'static str,
    config: Config,
    state: State,
    event: Event,
    next: State,
    actions: Vec<Action>,
}

#[test]
fn the_machine_is_the_table() {
    for row in rows() {
        let (next, actions) = step(&row.config, row.state, row.event, at(NOW));
        assert_eq!(next, row.next, "{}", row.says);
        assert_eq!(actions, row.actions, "{}", row.says);
    }
}

#[test]
fn the_table_has_every_event_in_every_state() {
    let kinds = |of: &dyn Fn(&Row) -> Discriminant<Event>| -> Vec<_> {
        rows()
            .iter()
            .map(|row| (discriminant(&row.state), of(row)))
            .collect()
    };
    let mut seen = kinds(&|row| discriminant(&row.event));
    let mut pairs = Vec::new();
    while let Some(pair) = seen.pop() {
        if !pairs.contains(&pair) {
            pairs.push(pair);
        }
    }
    assert_eq!(pairs.len(), 4 * 8, "states times events");
}

#[test]
fn addresses_are_held_while_active_and_never_otherwise() {
    for row in rows() {
        let mut held = row.state.holds_addresses();
        for action in &row.actions {
            match action {
                Action::TakeAddresses(_) => held = true,
                Action::ReleaseAddresses(_) => held = false,
                Action::Send { .. }
                | Action::Announce
                | Action::RenewLease { .. }
                | Action::Rival(_) => {}
            }
        }
        assert_eq!(held, row.next.holds_addresses(), "{}", row.says);
        assert_eq!(row.next.lease().is_some(), held, "{}", row.says);
    }
}

#[test]
fn every_state_has_its_word() {
    let words: BTreeSet<_> = rows().iter().map(|row| row.state.word()).collect();
    assert_eq!(
        words,
        BTreeSet::from(["initialize", "backup", "active", "leaving"])
    );
}

fn at(milliseconds: u64) -> Moment {
    Moment::since_start(Duration::from_millis(milliseconds))
}

fn plus(micros: u64) -> Moment {
    at(NOW) + Duration::from_micros(micros)
}

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn second() -> Interval {
    Interval::from_centiseconds(100).expect("it is in range")
}

fn config() -> Config {
    Config {
        address: ip(2),
        priority: 100,
        interval: second(),
        preempt: true,
        preempt_delay: Duration::ZERO,
        ready: true,
        ready_limit: Duration::from_secs(30),
    }
}

/// An advertisement of a neighbour whose interval is half a second.
fn heard(last: u8, priority: u8) -> Heard {
    Heard {
        source: ip(last),
        priority,
        interval: Interval::from_centiseconds(50).expect("it is in range"),
    }
}

/// Has listened since five seconds past the start.
fn backup() -> Backup {
    Backup {
        active_down: at(12_000),
        active_interval: second(),
        ready_by: at(35_000),
        lower_since: None,
        heard: None,
        stays: false,
    }
}

/// Begins to listen now, to one who advertises every `interval`.
fn listening(interval: Interval) -> Backup {
    let skew = interval.duration() * 156 / 256;
    Backup {
        active_down: at(NOW) + interval.duration() * 3 + skew,
        active_interval: interval,
        ready_by: at(NOW + 30_000),
        lower_since: None,
        heard: None,
        stays: false,
    }
}

fn told(last: u64) -> Announcing {
    Announcing {
        last: at(last),
        next: None,
    }
}

/// Advertised half a second ago.
fn active() -> Active {
    Active {
        adver: at(10_500),
        lease: at(12_500),
        announcing: told(6_000),
        since: at(1_000),
    }
}

/// Has been so since this moment.
fn new_active() -> State {
    State::Active(Active {
        adver: at(11_000),
        lease: at(11_000),
        announcing: Announcing {
            last: at(NOW),
            next: Some((at(10_050), Duration::from_millis(50))),
        },
        since: at(NOW),
    })
}

fn leaving(next: Next) -> State {
    State::Leaving(Leaving {
        until: at(10_400),
        next,
    })
}

fn new_leaving(next: Next) -> State {
    State::Leaving(Leaving {
        until: at(11_000),
        next,
    })
}

fn send(priority: u8) -> Action {
    Action::Send { priority }
}

fn taking(priority: u8, taken: Taken) -> Vec<Action> {
    vec![
        send(priority),
        Action::RenewLease { until: at(11_000) },
        Action::TakeAddresses(taken),
        Action::Announce,
    ]
}

const STARTUP: Event = Event::Startup { lease: None };
const SENT: Event = Event::Sent {
    at: Moment::since_start(Duration::from_millis(9_999)),
};
const GIVE_UP: Event = Event::GiveUp { stay: false };
const LISTEN: Next = Next::Backup { stays: false };
const STAY: Next = Next::Backup { stays: true };

fn rows() -> Vec<Row> {
    let mut rows = initialize();
    rows.extend(backup_rows());
    rows.extend(backup_beyond());
    rows.extend(active_rows());
    rows.extend(active_beyond());
    rows.extend(leaving_rows());
    rows
}

fn row(says: &'static str, state: State, event: Event, next: State, actions: Vec<Action>) -> Row {
    Row {
        says,
        config: config(),
        state,
        event,
        next,
        actions,
    }
}

/// The same with another configuration.
fn with(change: impl Fn(&mut Config), row: Row) -> Row {
    let mut config = row.config;
    change(&mut config);
    Row { config, ..row }
}

/// Nothing comes of it.
fn nothing(says: &'static str, state: State, event: Event) -> Row {
    row(says, state, event, state, vec![])
}

fn initialize() -> Vec<Row> {
    let initialize = State::Initialize;
    let adopted = State::Active(Active {
        adver: at(11_000),
        lease: at(10_300),
        announcing: told(NOW),
        since: at(NOW),
    });
    vec![
        row(
            "6.4.1: Startup: Set Active_Adver_Interval to Advertisement_Interval, Set the \
             Active_Down_Timer to Active_Down_Interval, Transition to the {Backup} state",
            initialize,
            STARTUP,
            State::Backup(listening(second())),
            vec![],
        ),
        with(
            |config| config.priority = OWNER,
            row(
                "6.4.1: If the Priority = 255: Send an ADVERTISEMENT, gratuitous ARP or \
                 neighbour advertisements, Set the Adver_Timer, Transition to {Active}",
                initialize,
                STARTUP,
                new_active(),
                taking(OWNER, Taken::Owner),
            ),
        ),
        row(
            "ours: an earlier run's lease is not over: nobody has taken over",
            initialize,
            Event::Startup {
                lease: Some(at(10_300)),
            },
            adopted,
            vec![send(100), Action::TakeAddresses(Taken::Continued)],
        ),
        row(
            "ours: an earlier run's lease is over: somebody may have taken over",
            initialize,
            Event::Startup {
                lease: Some(at(NOW)),
            },
            State::Backup(listening(second())),
            vec![],
        ),
        nothing(
            "6.4.1: none but Startup counts",
            initialize,
            Event::Shutdown,
        ),
        nothing("6.4.1: none but Startup counts", initialize, Event::Fault),
        nothing("6.4.1: none but Startup counts", initialize, Event::Timer),
        nothing(
            "6.4.1: none but Startup counts",
            initialize,
            Event::Received(heard(3, 200)),
        ),
        nothing("6.4.1: none but Startup counts", initialize, SENT),
        nothing("6.4.1: none but Startup counts", initialize, GIVE_UP),
        nothing("6.4.1: none but Startup counts", initialize, Event::Changed),
    ]
}

fn backup_rows() -> Vec<Row> {
    let state = State::Backup(backup());
    let due = |heard| {
        State::Backup(Backup {
            active_down: at(NOW),
            heard,
            ..backup()
        })
    };
    let reset = |heard: Heard| {
        State::Backup(Backup {
            active_down: listening(heard.interval).active_down,
            active_interval: heard.interval,
            heard: Some(heard),
            ..backup()
        })
    };
    vec![
        row(
            "6.4.2: Shutdown: Cancel the Active_Down_Timer, Transition to {Initialize}",
            state,
            Event::Shutdown,
            State::Initialize,
            vec![],
        ),
        row(
            "6.4.2, as for Shutdown: the interface is gone",
            state,
            Event::Fault,
            State::Initialize,
            vec![],
        ),
        row(
            "6.4.2: If the Active_Down_Timer fires: Send an ADVERTISEMENT, gratuitous ARP or \
             neighbour advertisements, Set the Adver_Timer, Transition to {Active}",
            due(None),
            Event::Timer,
            new_active(),
            taking(100, Taken::Nobody),
        ),
        row(
            "6.4.2: the same, and one was heard before",
            due(Some(heard(3, 200))),
            Event::Timer,
            new_active(),
            taking(100, Taken::Silent(heard(3, 200))),
        ),
        row(
            "6.4.2: the same, and it has said goodbye",
            due(Some(heard(3, LEAVING))),
            Event::Timer,
            new_active(),
            taking(100, Taken::Left(heard(3, LEAVING))),
        ),
        row(
            "6.4.2: the same, and it is of lower priority",
            due(Some(heard(3, 99))),
            Event::Timer,
            new_active(),
            taking(100, Taken::Preempted(heard(3, 99))),
        ),
        nothing("6.4.2: the timer has not fired", state, Event::Timer),
        row(
            "6.4.2: ADVERTISEMENT, Priority 0: Set the Active_Down_Timer to Skew_Time",
            state,
            Event::Received(heard(3, LEAVING)),
            State::Backup(Backup {
                active_down: plus(SKEW),
                heard: Some(heard(3, LEAVING)),
                ..backup()
            }),
            vec![],
        ),
        row(
            "6.4.2: Priority greater than the local one: Set Active_Adver_Interval, recompute, \
             Set the Active_Down_Timer to Active_Down_Interval",
            state,
            Event::Received(heard(3, 101)),
            reset(heard(3, 101)),
            vec![],
        ),
        row(
            "6.4.2: Priority equal to the local one: the same, whatever the address",
            state,
            Event::Received(heard(1, 100)),
            reset(heard(1, 100)),
            vec![],
        ),
        row(
            "6.4.2: Priority lower, Preempt_Mode True: Discard the ADVERTISEMENT",
            state,
            Event::Received(heard(3, 99)),
            State::Backup(Backup {
                lower_since: Some(at(NOW)),
                heard: Some(heard(3, 99)),
                ..backup()
            }),
            vec![],
        ),
        with(
            |config| config.preempt = false,
            row(
                "6.4.2: Priority lower, Preempt_Mode False: as if it were greater",
                state,
                Event::Received(heard(3, 99)),
                State::Backup(Backup {
                    active_down: listening(heard(3, 99).interval).active_down,
                    active_interval: heard(3, 99).interval,
                    lower_since: Some(at(NOW)),
                    heard: Some(heard(3, 99)),
                    ..backup()
                }),
                vec![],
            ),
        ),
        nothing("no paragraph: it takes part already", state, STARTUP),
        nothing("no paragraph: its farewell was sent", state, SENT),
        nothing("no paragraph: it has nothing to give up", state, GIVE_UP),
        nothing("no paragraph: nothing was discarded", state, Event::Changed),
    ]
}

/// When a Backup Router puts up with one of lower priority, and when not.
fn backup_beyond() -> Vec<Row> {
    let lower = heard(3, 99);
    let since = |lower_since, stays| Backup {
        lower_since: Some(at(lower_since)),
        stays,
        ..backup()
    };
    let put_up = |backup: Backup, heard: Heard| {
        State::Backup(Backup {
            active_down: listening(heard.interval).active_down,
            active_interval: heard.interval,
            heard: Some(heard),
            ..backup
        })
    };
    let discarded = |backup: Backup, heard: Heard| {
        State::Backup(Backup {
            heard: Some(heard),
            ..backup
        })
    };
    let case = |says, backup: Backup, heard, next| {
        row(
            says,
            State::Backup(backup),
            Event::Received(heard),
            next,
            vec![],
        )
    };
    let delay = |config: &mut Config| config.preempt_delay = Duration::from_secs(2);
    let unready = |config: &mut Config| config.ready = false;
    let peaceful = |config: &mut Config| config.preempt = false;
    let late = since(9_000, false);
    let impatient = Backup {
        ready_by: at(NOW),
        ..late
    };
    let asked = since(9_000, true);
    let last = heard(3, LAST_RESORT);
    vec![
        with(
            delay,
            case(
                "ours: preempt_delay is not over",
                since(8_001, false),
                lower,
                put_up(since(8_001, false), lower),
            ),
        ),
        with(
            delay,
            case(
                "ours: preempt_delay is over",
                since(8_000, false),
                lower,
                discarded(since(8_000, false), lower),
            ),
        ),
        with(
            unready,
            case("ours: it is not ready", late, lower, put_up(late, lower)),
        ),
        with(
            unready,
            case(
                "ours: it is not ready, and has waited for long enough",
                impatient,
                lower,
                discarded(impatient, lower),
            ),
        ),
        case(
            "ours: it has left on request, and the other is there",
            asked,
            lower,
            put_up(asked, lower),
        ),
        case(
            "ours: it has left on request, and the other has left as well",
            asked,
            heard(3, LEAVING),
            State::Backup(Backup {
                active_down: plus(SKEW),
                heard: Some(heard(3, LEAVING)),
                stays: false,
                ..asked
            }),
        ),
        case(
            "ours: one of higher priority in between: preempt_delay begins anew",
            late,
            heard(4, 200),
            put_up(
                Backup {
                    lower_since: None,
                    ..late
                },
                heard(4, 200),
            ),
        ),
        with(
            peaceful,
            case(
                "ours: one that is not fit gives way also where Preempt_Mode is False",
                late,
                last,
                discarded(late, last),
            ),
        ),
        with(
            |config| {
                config.preempt = false;
                config.priority = LAST_RESORT;
            },
            row(
                "ours: but not to another that is not fit",
                State::Backup(backup()),
                Event::Received(last),
                State::Backup(Backup {
                    active_down: at(NOW)
                        + Duration::from_millis(1_500)
                        + Duration::from_millis(500) * 255 / 256,
                    active_interval: last.interval,
                    heard: Some(last),
                    ..backup()
                }),
                vec![],
            ),
        ),
        with(
            |config| {
                config.preempt = false;
                config.priority = OWNER;
            },
            case(
                "6.1: an owner always preempts, independent of Preempt_Mode",
                late,
                lower,
                discarded(late, lower),
            ),
        ),
        with(
            |config| config.priority = 50,
            row(
                "ours: it was about to preempt, and its priority went down",
                State::Backup(Backup {
                    active_down: at(10_001),
                    heard: Some(lower),
                    ..late
                }),
                Event::Changed,
                State::Backup(Backup {
                    active_down: at(NOW)
                        + Duration::from_millis(1_500)
                        + Duration::from_millis(500) * 206 / 256,
                    active_interval: lower.interval,
                    lower_since: None,
                    heard: Some(lower),
                    ..late
                }),
                vec![],
            ),
        ),
        row(
            "ours: it is about to preempt, and may",
            State::Backup(Backup {
                heard: Some(lower),
                ..late
            }),
            Event::Changed,
            State::Backup(Backup {
                heard: Some(lower),
                ..late
            }),
            vec![],
        ),
        row(
            "ours: it overslept: it listens for one interval and its skew",
            State::Backup(Backup {
                active_down: at(8_999),
                ..backup()
            }),
            Event::Timer,
            State::Backup(Backup {
                active_down: plus(1_000_000 + SKEW),
                ..backup()
            }),
            vec![],
        ),
    ]
}

fn active_rows() -> Vec<Row> {
    let state = State::Active(active());
    let sent = State::Active(Active {
        adver: at(11_000),
        ..active()
    });
    let asserted = |heard: Heard| vec![Action::Rival(heard), send(100), Action::Announce];
    let again = State::Active(Active {
        announcing: Announcing {
            last: at(NOW),
            next: Some((at(10_050), Duration::from_millis(50))),
        },
        ..active()
    });
    let outranked = |heard: Heard| {
        (
            State::Backup(Backup {
                heard: Some(heard),
                ..listening(heard.interval)
            }),
            vec![
                Action::ReleaseAddresses(Released::Outranked(heard)),
                send(100),
            ],
        )
    };
    let (higher, other) = (heard(1, 101), heard(3, 100));
    vec![
        row(
            "6.4.3: Shutdown: Cancel the Adver_Timer, Send an ADVERTISEMENT with Priority = 0 \
             (ours: Transition to {Initialize} as soon as another is heard)",
            state,
            Event::Shutdown,
            new_leaving(Next::Initialize),
            vec![send(LEAVING), Action::RenewLease { until: at(11_000) }],
        ),
        row(
            "6.4.3: If the Adver_Timer fires: Send an ADVERTISEMENT, Reset the Adver_Timer",
            State::Active(Active {
                adver: at(NOW),
                ..active()
            }),
            Event::Timer,
            sent,
            vec![send(100)],
        ),
        nothing("6.4.3: the timer has not fired", state, Event::Timer),
        row(
            "6.4.3: ADVERTISEMENT, Priority 0: Send an ADVERTISEMENT, Reset the Adver_Timer",
            state,
            Event::Received(heard(3, LEAVING)),
            sent,
            vec![send(100)],
        ),
        row(
            "6.4.3: Priority greater than the local one: Cancel the Adver_Timer, Set \
             Active_Adver_Interval, recompute, Set the Active_Down_Timer, Transition to {Backup}",
            state,
            Event::Received(higher),
            outranked(higher).0,
            outranked(higher).1,
        ),
        row(
            "6.4.3: Priority equal, and the sender's address greater: the same",
            state,
            Event::Received(other),
            outranked(other).0,
            outranked(other).1,
        ),
        row(
            "6.4.3: Priority equal, and the sender's address lower: Discard the ADVERTISEMENT, \
             Send an ADVERTISEMENT immediately to assert the Active state",
            state,
            Event::Received(heard(1, 100)),
            again,
            asserted(heard(1, 100)),
        ),
        row(
            "6.4.3: Priority lower: the same, whatever the address",
            state,
            Event::Received(heard(3, 99)),
            again,
            asserted(heard(3, 99)),
        ),
        row(
            "6.4.3: the same, of one that has just preempted: there were no two",
            State::Active(Active {
                since: at(8_000),
                ..active()
            }),
            Event::Received(heard(3, 99)),
            State::Active(Active {
                since: at(8_000),
                announcing: Announcing {
                    last: at(NOW),
                    next: Some((at(10_050), Duration::from_millis(50))),
                },
                ..active()
            }),
            vec![send(100), Action::Announce],
        ),
        nothing("no paragraph: it takes part already", state, STARTUP),
    ]
}

fn active_beyond() -> Vec<Row> {
    let state = State::Active(active());
    let announcing = |last, next| {
        State::Active(Active {
            announcing: Announcing {
                last: at(last),
                next,
            },
            ..active()
        })
    };
    let gap = |milliseconds| Duration::from_millis(milliseconds);
    let over = State::Active(Active {
        lease: at(NOW),
        adver: at(9_000),
        ..active()
    });
    let stepped_down = vec![Action::ReleaseAddresses(Released::Overdue), send(LEAVING)];
    let rival = heard(3, 99);
    vec![
        row(
            "ours: an advertisement that was sent renews the lease, from before it was sent",
            state,
            SENT,
            State::Active(Active {
                lease: at(12_999),
                ..active()
            }),
            vec![Action::RenewLease { until: at(12_999) }],
        ),
        row(
            "ours: an older one shortens nothing",
            state,
            Event::Sent { at: at(9_000) },
            state,
            vec![Action::RenewLease { until: at(12_500) }],
        ),
        row(
            "ours: its lease is over: it steps down before anything else",
            over,
            Event::Timer,
            State::Backup(listening(second())),
            stepped_down.clone(),
        ),
        row(
            "ours: its lease is over: it takes what it hears as one that listens",
            over,
            Event::Received(heard(3, 101)),
            State::Backup(Backup {
                heard: Some(heard(3, 101)),
                active_down: listening(heard(3, 101).interval).active_down,
                active_interval: heard(3, 101).interval,
                ..listening(second())
            }),
            stepped_down,
        ),
        row(
            "ours: the interface is gone: there is nothing to send",
            state,
            Event::Fault,
            State::Initialize,
            vec![Action::ReleaseAddresses(Released::Fault)],
        ),
        row(
            "ours: it leaves, and listens afterwards",
            state,
            GIVE_UP,
            new_leaving(LISTEN),
            vec![send(LEAVING), Action::RenewLease { until: at(11_000) }],
        ),
        row(
            "ours: it leaves on request",
            state,
            Event::GiveUp { stay: true },
            new_leaving(STAY),
            vec![send(LEAVING), Action::RenewLease { until: at(11_000) }],
        ),
        row(
            "ours: others hear of a new priority at once",
            state,
            Event::Changed,
            State::Active(Active {
                adver: at(11_000),
                ..active()
            }),
            vec![send(100)],
        ),
        row(
            "ours: neighbours are told once more, after twice the gap",
            announcing(9_950, Some((at(NOW), gap(50)))),
            Event::Timer,
            announcing(NOW, Some((at(10_100), gap(100)))),
            vec![Action::Announce],
        ),
        row(
            "ours: neighbours are told for the last time",
            announcing(8_400, Some((at(NOW), gap(1_600)))),
            Event::Timer,
            announcing(NOW, None),
            vec![Action::Announce],
        ),
        row(
            "ours: one who is not silent cannot make it flood the link with announcements",
            announcing(9_980, None),
            Event::Received(rival),
            announcing(9_980, Some((at(10_030), gap(50)))),
            vec![Action::Rival(rival), send(100)],
        ),
    ]
}

fn leaving_rows() -> Vec<Row> {
    let state = leaving(LISTEN);
    let lower = heard(3, 99);
    let over = |next| {
        State::Leaving(Leaving {
            until: at(NOW),
            next,
        })
    };
    let unheard = vec![Action::ReleaseAddresses(Released::Unheard), send(LEAVING)];
    vec![
        row(
            "ours: another was heard, of whatever priority: it has taken over",
            state,
            Event::Received(lower),
            State::Backup(Backup {
                heard: Some(lower),
                ..listening(lower.interval)
            }),
            vec![Action::ReleaseAddresses(Released::Replaced(lower))],
        ),
        row(
            "6.4.3: Shutdown: Transition to the {Initialize} state",
            leaving(Next::Initialize),
            Event::Received(lower),
            State::Initialize,
            vec![Action::ReleaseAddresses(Released::Replaced(lower))],
        ),
        nothing(
            "ours: one that leaves as well takes over nothing",
            state,
            Event::Received(heard(3, LEAVING)),
        ),
        row(
            "ours: nobody was heard within an interval: the first farewell may be lost",
            over(STAY),
            Event::Timer,
            State::Backup(Backup {
                stays: true,
                ..listening(second())
            }),
            unheard.clone(),
        ),
        row(
            "6.4.3: Shutdown, nobody was heard: Transition to the {Initialize} state",
            over(Next::Initialize),
            Event::Timer,
            State::Initialize,
            unheard,
        ),
        nothing("ours: its time is not over", state, Event::Timer),
        row(
            "ours: whoever leaves may as well stop",
            state,
            Event::Shutdown,
            leaving(Next::Initialize),
            vec![],
        ),
        row(
            "ours: it was asked as well",
            state,
            Event::GiveUp { stay: true },
            leaving(STAY),
            vec![],
        ),
        nothing(
            "ours: whoever stops stops",
            leaving(Next::Initialize),
            GIVE_UP,
        ),
        row(
            "ours: the interface is gone",
            state,
            Event::Fault,
            State::Initialize,
            vec![Action::ReleaseAddresses(Released::Fault)],
        ),
        nothing("no paragraph: it takes part", state, STARTUP),
        nothing("no paragraph: a farewell renews nothing", state, SENT),
        nothing(
            "no paragraph: its priority is 0, whatever changes",
            state,
            Event::Changed,
        ),
    ]
}
