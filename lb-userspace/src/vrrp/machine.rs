//! Who is active: VRRP's state machine (RFC 9568, section 6.4), pure and total.
//!
//! [`step`] takes a state and what happened, and gives the next state and what is
//! to be done, in order. Timers are fields of the states they belong to, so there
//! is none to cancel; [`State::deadline`] says when [`Event::Timer`] is due. The
//! states are the RFC's, and one more: [`State::Leaving`] is the end of being
//! active. Addresses are held while active, leaving included, and never otherwise.
//!
//! # What goes beyond the RFC, and why
//! - **A lease.** A Backup Router takes over when it has heard nothing for three
//!   intervals and its skew time. So who has advertised at a moment `t` knows that
//!   nobody takes over before `t` plus three intervals, and may act until then and
//!   not later: that is [`Active::lease`]. The data path gets it
//!   ([`Action::RenewLease`]) and stops at its end by itself, whatever has become
//!   of this process. A process that was frozen and comes back finds its lease
//!   over and steps down before it does anything else. Only an advertisement that
//!   was sent renews it ([`Event::Sent`]), from the moment before it was sent.
//! - **Leaving keeps the addresses for a moment.** An Active Router that stops
//!   tells so by priority 0, and another takes over after its skew time, which is
//!   less than an interval. Until that one is heard, for one interval at most,
//!   the leaving one goes on, so that nothing is lost in between.
//! - **A returning node waits** before it preempts: for `preempt_delay`, and until
//!   it is ready (it knows the connections), but no longer than `ready_limit`. To
//!   wait means to act as if Preempt_Mode were False.
//! - **A node that is not fit** to serve (a tracked interface is down) goes down
//!   to priority [`LAST_RESORT`] and leaves once. Such a one gives way to any
//!   that is fit, also where Preempt_Mode is False.
//! - **A node that overslept** asks again: a Backup Router whose timer is late by
//!   more than an interval was not there to listen, and listens for one interval
//!   before it takes over.
//! - **Neighbours are told more than once**, at growing distances
//!   ([`Announcing`]), and again when another active node was heard. So that the
//!   one that stays hears of the other even if it was the first to be heard, the
//!   one that gives way says a last word.
//!
//! An owner (priority 255) is not deaf, as section 7.1 has it: where two nodes
//! are told by mistake that they are owners, the tie rule of section 6.4.3 still
//! leaves one.
//!
//! # How long two may be active at once
//! As long as advertisements arrive: from a takeover by preemption, or after a
//! farewell, until the other has heard of it, that is the delay of the link. If the
//! other was frozen or killed in that very time, until its lease is over: three
//! intervals at most, one after a farewell. (A node that is killed just then, is
//! back before its lease is over, and is frozen at once, has a second one.) Whoever
//! takes over because of silence meets nobody, however long the silent one was
//! frozen, unless that one was frozen for all but its lease and what it says at last
//! is under way: then until that has arrived. While advertisements are lost nobody
//! can know; once the link heals, each is an end to it, so an interval and the
//! delay. `tests/pair` holds the machine to all of this.

use std::net::IpAddr;
use std::ops::Add;
use std::time::Duration;

use super::packet::{Interval, LEAVING, OWNER};

/// The priority of a node that is not fit to serve, but there.
pub const LAST_RESORT: u8 = 1;

/// From the first announcement to the second; each gap is twice the one before.
pub const FIRST_GAP: Duration = Duration::from_millis(50);

/// The last gap between announcements: with this one, they are seven.
pub const LAST_GAP: Duration = Duration::from_millis(1_600);

/// A point in time, as the time since some start that is the same for a whole
/// run. Which clock that is, the caller says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// So long after the start.
    pub const fn since_start(since: Duration) -> Self {
        Self(since)
    }

    /// How long after the start.
    pub const fn elapsed(self) -> Duration {
        self.0
    }

    /// How long until `later`; nothing if that is past.
    pub const fn until(self, later: Self) -> Duration {
        later.0.saturating_sub(self.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// Never wraps: the far future is as far as there is.
    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

/// What the machine is told by its surroundings. `priority` and `ready` may
/// change between steps ([`Event::Changed`]); the rest is the same for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node's own address on the link: of two that are equal in priority, the
    /// greater one is active.
    pub address: IpAddr,
    /// This node's priority now: [`LAST_RESORT`] while it is not fit.
    pub priority: u8,
    /// How often it advertises as the active node (Advertisement_Interval).
    pub interval: Interval,
    /// Whether it takes over from one of lower priority (Preempt_Mode).
    pub preempt: bool,
    /// How long it hears one of lower priority before it preempts.
    pub preempt_delay: Duration,
    /// Whether it knows what it must know to take over without loss.
    pub ready: bool,
    /// How long after it became Backup it preempts even if it is not ready.
    pub ready_limit: Duration,
}

impl Config {
    /// Skew_Time (RFC 9568, section 6.1), not rounded to centiseconds: of an
    /// interval of one nothing would be left.
    pub fn skew(&self, active_interval: Interval) -> Duration {
        active_interval.duration() * (256 - u32::from(self.priority)) / 256
    }

    /// Active_Down_Interval (RFC 9568, section 6.1).
    pub fn active_down_interval(&self, active_interval: Interval) -> Duration {
        active_interval.duration() * 3 + self.skew(active_interval)
    }

    /// How long an advertisement holds off every other node, whatever its skew.
    pub fn lease(&self) -> Duration {
        self.interval.duration() * 3
    }
}

/// An advertisement that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Who sent it.
    pub source: IpAddr,
    /// The priority in it.
    pub priority: u8,
    /// The interval in it.
    pub interval: Interval,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Takes no part.
    Initialize,
    /// Listens.
    Backup(Backup),
    /// Acts, and says so.
    Active(Active),
    /// Has said that it goes, and acts until another is heard.
    Leaving(Leaving),
}

/// One that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backup {
    /// When the active node counts as gone (Active_Down_Timer).
    pub active_down: Moment,
    /// How often the active node advertises (Active_Adver_Interval).
    pub active_interval: Interval,
    /// When it preempts even if it is not ready.
    pub ready_by: Moment,
    /// Since when every active node that was heard is of lower priority.
    pub lower_since: Option<Moment>,
    /// What was heard last since it listens.
    pub heard: Option<Heard>,
    /// It has left on request, and does not preempt before the other is gone.
    pub stays: bool,
}

/// One that acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    /// When the next advertisement is due (Adver_Timer).
    pub adver: Moment,
    /// Until when it may act.
    pub lease: Moment,
    /// When neighbours are told next.
    pub announcing: Announcing,
    /// Since when it acts.
    pub since: Moment,
}

/// One that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// When it stops even if nobody was heard; its lease, too.
    pub until: Moment,
    /// What it will be.
    pub next: Next,
}

/// What a node becomes that has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It stops altogether.
    Initialize,
    /// It listens; `stays` as in [`Backup::stays`].
    Backup {
        /// Whether it was asked to.
        stays: bool,
    },
}

/// When neighbours are told where the addresses are (gratuitous ARP, unsolicited
/// neighbour advertisements). One such frame may be lost, so there are several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcing {
    /// When they were told last.
    pub last: Moment,
    /// When they are told next, and the gap before that; `None` when it is enough.
    pub next: Option<(Moment, Duration)>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Take part (RFC 9568, section 6.4.1). `lease`: until when the data path may
    /// still act for an earlier run of this node.
    Startup {
        /// The lease that is held.
        lease: Option<Moment>,
    },
    /// Take part no longer, cleanly.
    Shutdown,
    /// The interface is down or gone: nothing can be heard or said.
    Fault,
    /// [`State::deadline`] has come.
    Timer,
    /// An advertisement of this virtual router came in.
    Received(Heard),
    /// The advertisement of [`Action::Send`] went out.
    Sent {
        /// The moment of the step that asked for it: before it went out.
        at: Moment,
    },
    /// Leave, but go on listening. `stay`: and do not preempt before the other has
    /// gone.
    GiveUp {
        /// Whether it was asked for.
        stay: bool,
    },
    /// [`Config::priority`] or [`Config::ready`] has changed.
    Changed,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send an advertisement with this priority; if it went out, say so by
    /// [`Event::Sent`] when every other action is done, for that may end what this
    /// step began.
    Send {
        /// The priority.
        priority: u8,
    },
    /// Put the addresses on the interface.
    TakeAddresses(Taken),
    /// Let the data path act no longer, and take the addresses off.
    ReleaseAddresses(Released),
    /// Tell the neighbours where the addresses are.
    Announce,
    /// Let the data path act until then.
    RenewLease {
        /// Until when.
        until: Moment,
    },
    /// Another active node was heard by this one, which stays: there were two.
    Rival(Heard),
}

/// Why addresses were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// This node owns them.
    Owner,
    /// An earlier run of this node had them, and its lease is not over.
    Continued,
    /// The active node was heard and is heard no longer.
    Silent(Heard),
    /// The active node has said that it leaves.
    Left(Heard),
    /// The active node is of lower priority.
    Preempted(Heard),
    /// There was no active node.
    Nobody,
}

/// Why addresses were released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// Another active node comes before this one.
    Outranked(Heard),
    /// This node has left, and another has taken over.
    Replaced(Heard),
    /// This node has left, and nobody was heard.
    Unheard,
    /// Its lease was over: it could not send, or was not running.
    Overdue,
    /// Its interface is down or gone.
    Fault,
}

impl State {
    /// When [`Event::Timer`] is due, if ever.
    pub fn deadline(&self) -> Option<Moment> {
        match self {
            Self::Initialize => None,
            Self::Backup(backup) => Some(backup.active_down),
            Self::Active(active) => {
                let told = active.announcing.next.map(|(at, _)| at);
                let due = active.adver.min(active.lease);
                Some(told.map_or(due, |at| due.min(at)))
            }
            Self::Leaving(leaving) => Some(leaving.until),
        }
    }

    /// Whether the addresses are this node's.
    pub const fn holds_addresses(&self) -> bool {
        match self {
            Self::Active(_) | Self::Leaving(_) => true,
            Self::Initialize | Self::Backup(_) => false,
        }
    }

    /// Until when this node may act for the addresses.
    pub const fn lease(&self) -> Option<Moment> {
        match self {
            Self::Active(active) => Some(active.lease),
            Self::Leaving(leaving) => Some(leaving.until),
            Self::Initialize | Self::Backup(_) => None,
        }
    }

    /// Every [`Self::word`].
    pub const WORDS: [&'static str; 4] = ["initialize", "backup", "active", "leaving"];

    /// The word for it in tables, JSON and metrics.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Backup(_) => "backup",
            Self::Active(_) => "active",
            Self::Leaving(_) => "leaving",
        }
    }
}

/// One step: what the state becomes, and what is to be done, in that order.
pub fn step(config: &Config, state: State, event: Event, now: Moment) -> (State, Vec<Action>) {
    let mut actions = Vec::new();
    let state = end_in_time(config, state, now, &mut actions);
    let state = react(config, state, event, now, &mut actions);
    (state, actions)
}

/// Before anything else: whose time to act is over, acts no longer.
fn end_in_time(config: &Config, state: State, now: Moment, actions: &mut Vec<Action>) -> State {
    match state {
        State::Active(active) if now >= active.lease => {
            actions.push(Action::ReleaseAddresses(Released::Overdue));
            // Another may have taken over: it answers (6.4.3). Else one does soon.
            actions.push(Action::Send { priority: LEAVING });
            State::Backup(listen(config, config.interval, now))
        }
        State::Leaving(leaving) if now >= leaving.until => {
            actions.push(Action::ReleaseAddresses(Released::Unheard));
            // The first may have been lost.
            actions.push(Action::Send { priority: LEAVING });
            after(config, leaving.next, config.interval, now)
        }
        State::Initialize | State::Backup(_) | State::Active(_) | State::Leaving(_) => state,
    }
}

/// The table of RFC 9568, section 6.4, with what goes beyond it.
fn react(
    config: &Config,
    state: State,
    event: Event,
    now: Moment,
    actions: &mut Vec<Action>,
) -> State {
    match (state, event) {
        // 6.4.1 Initialize: "If a Startup event is received".
        (State::Initialize, Event::Startup { lease }) => start(config, lease, now, actions),
        // 6.4.1: nothing else happens to a router that takes no part.
        (
            State::Initialize,
            Event::Shutdown
            | Event::Fault
            | Event::Timer
            | Event::Received(_)
            | Event::Sent { .. }
            | Event::GiveUp { .. }
            | Event::Changed,
        ) => State::Initialize,

        // 6.4.2 Backup: "If a Shutdown event is received, then: Cancel the
        // Active_Down_Timer, Transition to the {Initialize} state."
        (State::Backup(_), Event::Shutdown | Event::Fault) => State::Initialize,
        // 6.4.2: "If the Active_Down_Timer fires".
        (State::Backup(backup), Event::Timer) => active_down(config, backup, now, actions),
        // 6.4.2: "If an ADVERTISEMENT is received".
        (State::Backup(backup), Event::Received(heard)) => {
            State::Backup(listened(config, backup, heard, now))
        }
        // No paragraph: what was discarded may not be any more.
        (State::Backup(backup), Event::Changed) => State::Backup(reconsidered(config, backup, now)),
        // No paragraph: it takes part already, has nothing to give up, has sent its
        // farewell.
        (State::Backup(_), Event::Startup { .. } | Event::Sent { .. } | Event::GiveUp { .. }) => {
            state
        }

        // 6.4.3 Active: "If a Shutdown event is received, then: Cancel the
        // Adver_Timer, Send an ADVERTISEMENT with Priority = 0"; then, after a
        // while, "Transition to the {Initialize} state".
        (State::Active(_), Event::Shutdown) => leave(config, Next::Initialize, now, actions),
        // As for Shutdown, but it listens afterwards.
        (State::Active(_), Event::GiveUp { stay }) => {
            leave(config, Next::Backup { stays: stay }, now, actions)
        }
        // As for Shutdown, but nothing can be sent.
        (State::Active(_) | State::Leaving(_), Event::Fault) => {
            actions.push(Action::ReleaseAddresses(Released::Fault));
            State::Initialize
        }
        // 6.4.3: "If the Adver_Timer fires".
        (State::Active(active), Event::Timer) => {
            State::Active(speak_in_time(config, active, now, actions))
        }
        // 6.4.3: "If an ADVERTISEMENT is received".
        (State::Active(active), Event::Received(heard)) => {
            contend(config, active, heard, now, actions)
        }
        // No paragraph: the lease.
        (State::Active(active), Event::Sent { at }) => {
            let lease = active.lease.max(at + config.lease());
            actions.push(Action::RenewLease { until: lease });
            State::Active(Active { lease, ..active })
        }
        // No paragraph: others hear of a new priority at once.
        (State::Active(active), Event::Changed) => {
            State::Active(advertise(config, active, now, actions))
        }
        // No paragraph: it takes part already.
        (State::Active(_), Event::Startup { .. }) => state,

        // No paragraph; what a Backup Router does when it hears the Active Router.
        (State::Leaving(leaving), Event::Received(heard)) => {
            replaced(config, leaving, heard, now, actions)
        }
        // The last wish counts, but nobody who stops goes on listening.
        (State::Leaving(leaving), Event::Shutdown) => State::Leaving(Leaving {
            next: Next::Initialize,
            ..leaving
        }),
        (State::Leaving(leaving), Event::GiveUp { stay }) => State::Leaving(Leaving {
            next: match leaving.next {
                Next::Initialize => Next::Initialize,
                Next::Backup { stays } => Next::Backup {
                    stays: stays || stay,
                },
            },
            ..leaving
        }),
        // Its end is seen to before; its priority is 0, whatever changes.
        (
            State::Leaving(_),
            Event::Startup { .. } | Event::Timer | Event::Sent { .. } | Event::Changed,
        ) => state,
    }
}

/// 6.4.1: an owner is active at once, others listen first. So is a node whose
/// earlier run was active, as long as nobody can have taken over.
fn start(config: &Config, lease: Option<Moment>, now: Moment, actions: &mut Vec<Action>) -> State {
    match lease {
        Some(lease) if now < lease => {
            actions.push(Action::Send {
                priority: config.priority,
            });
            actions.push(Action::TakeAddresses(Taken::Continued));
            State::Active(Active {
                adver: now + config.interval.duration(),
                lease,
                announcing: Announcing {
                    last: now,
                    next: None,
                },
                since: now,
            })
        }
        Some(_) | None if config.priority == OWNER => {
            become_active(config, Taken::Owner, now, actions)
        }
        Some(_) | None => State::Backup(listen(config, config.interval, now)),
    }
}

/// 6.4.1 and 6.4.3: "Set Active_Adver_Interval …, Set the Active_Down_Timer to
/// Active_Down_Interval, Transition to the {Backup} state".
fn listen(config: &Config, active_interval: Interval, now: Moment) -> Backup {
    Backup {
        active_down: now + config.active_down_interval(active_interval),
        active_interval,
        ready_by: now + config.ready_limit,
        lower_since: None,
        heard: None,
        stays: false,
    }
}

/// 6.4.2: "If the Active_Down_Timer fires", if it was there to listen.
fn active_down(config: &Config, backup: Backup, now: Moment, actions: &mut Vec<Action>) -> State {
    let interval = backup.active_interval.duration();
    if now < backup.active_down {
        State::Backup(backup)
    } else if backup.active_down + interval < now {
        State::Backup(Backup {
            active_down: now + interval + config.skew(backup.active_interval),
            ..backup
        })
    } else {
        let taken = match backup.heard {
            None => Taken::Nobody,
            Some(heard) if heard.priority == LEAVING => Taken::Left(heard),
            Some(heard) if heard.priority < config.priority => Taken::Preempted(heard),
            Some(heard) => Taken::Silent(heard),
        };
        become_active(config, taken, now, actions)
    }
}

/// 6.4.1 and 6.4.2: "Send an ADVERTISEMENT", gratuitous ARP or neighbour
/// advertisements for each address, "Set the Adver_Timer to
/// Advertisement_Interval, Transition to the {Active} state".
fn become_active(config: &Config, taken: Taken, now: Moment, actions: &mut Vec<Action>) -> State {
    // For one interval on credit: it is renewed as soon as the first is sent.
    let lease = now + config.interval.duration();
    actions.extend([
        Action::Send {
            priority: config.priority,
        },
        Action::RenewLease { until: lease },
        Action::TakeAddresses(taken),
        Action::Announce,
    ]);
    State::Active(Active {
        adver: now + config.interval.duration(),
        lease,
        announcing: Announcing::begin(now),
        since: now,
    })
}

/// 6.4.2: "If an ADVERTISEMENT is received".
fn listened(config: &Config, backup: Backup, heard: Heard, now: Moment) -> Backup {
    if heard.priority == LEAVING {
        // "Set the Active_Down_Timer to Skew_Time". Whom it gave way to has gone.
        return Backup {
            active_down: now + config.skew(backup.active_interval),
            heard: Some(heard),
            stays: false,
            ..backup
        };
    }
    let lower = heard.priority < config.priority;
    let backup = Backup {
        heard: Some(heard),
        lower_since: lower.then(|| backup.lower_since.unwrap_or(now)),
        ..backup
    };
    if lower && preempts(config, &backup, heard, now) {
        // "Discard the ADVERTISEMENT": the timer goes on, and fires.
        backup
    } else {
        // "Set the Active_Adver_Interval to the Max Advertise Interval contained in
        // the ADVERTISEMENT, Recompute the Skew_Time, Recompute the
        // Active_Down_Interval, Set the Active_Down_Timer to Active_Down_Interval".
        Backup {
            active_down: now + config.active_down_interval(heard.interval),
            active_interval: heard.interval,
            ..backup
        }
    }
}

/// While it is about to preempt it discards what it hears, and its timer runs out. If
/// it has lost the right to that in between (its priority has gone down, it is ready
/// no longer), it listens to what it heard after all: else it would take over as the
/// lesser one, and as if there had been silence.
fn reconsidered(config: &Config, backup: Backup, now: Moment) -> Backup {
    match backup.heard {
        Some(heard) if heard.priority != LEAVING && backup.lower_since.is_some() => {
            listened(config, backup, heard, now)
        }
        Some(_) | None => backup,
    }
}

/// Whether Preempt_Mode counts as True towards an active node of lower priority.
/// An owner always preempts (RFC 9568, section 6.1).
fn preempts(config: &Config, backup: &Backup, heard: Heard, now: Moment) -> bool {
    let waited = backup
        .lower_since
        .is_some_and(|since| since + config.preempt_delay <= now);
    let ready = config.ready || backup.ready_by <= now;
    let wanted = config.preempt || heard.priority == LAST_RESORT;
    config.priority == OWNER || (wanted && !backup.stays && waited && ready)
}

/// 6.4.3: "Send an ADVERTISEMENT, Reset the Adver_Timer to Advertisement_Interval".
fn advertise(config: &Config, active: Active, now: Moment, actions: &mut Vec<Action>) -> Active {
    actions.push(Action::Send {
        priority: config.priority,
    });
    Active {
        adver: now + config.interval.duration(),
        ..active
    }
}

/// 6.4.3: "If the Adver_Timer fires"; and the timer of announcements.
fn speak_in_time(
    config: &Config,
    active: Active,
    now: Moment,
    actions: &mut Vec<Action>,
) -> Active {
    let active = if active.adver <= now {
        advertise(config, active, now, actions)
    } else {
        active
    };
    Active {
        announcing: active.announcing.go_on(now, actions),
        ..active
    }
}

/// 6.4.3: "If an ADVERTISEMENT is received".
fn contend(
    config: &Config,
    active: Active,
    heard: Heard,
    now: Moment,
    actions: &mut Vec<Action>,
) -> State {
    if heard.priority == LEAVING {
        // "Send an ADVERTISEMENT, Reset the Adver_Timer to Advertisement_Interval".
        return State::Active(advertise(config, active, now, actions));
    }
    let rank = (heard.priority, heard.source);
    if rank > (config.priority, config.address) {
        // "If the Priority in the ADVERTISEMENT is greater than the local Priority
        // or … equal … and the primary IPvX address of the sender is greater":
        // cancel, set, recompute, "Transition to the {Backup} state".
        // No paragraph: a last word, as if the Adver_Timer had fired just before. The
        // other may not have heard of this one, and tells its neighbours when it does.
        actions.extend([
            Action::ReleaseAddresses(Released::Outranked(heard)),
            Action::Send {
                priority: config.priority,
            },
        ]);
        State::Backup(Backup {
            heard: Some(heard),
            ..listen(config, heard.interval, now)
        })
    } else {
        // "Discard the ADVERTISEMENT, Send an ADVERTISEMENT immediately to assert
        // the Active state to the sending VRRP Router and to update any learning
        // bridges": and neighbours, who may have learnt the other's. One that has just
        // preempted expects to hear the one before; later, there were two.
        if active.since + config.interval.duration() * 2 < now {
            actions.push(Action::Rival(heard));
        }
        actions.push(Action::Send {
            priority: config.priority,
        });
        State::Active(Active {
            announcing: active.announcing.again(now, actions),
            ..active
        })
    }
}

/// 6.4.3: "Send an ADVERTISEMENT with Priority = 0".
fn leave(config: &Config, next: Next, now: Moment, actions: &mut Vec<Action>) -> State {
    let until = now + config.interval.duration();
    actions.push(Action::Send { priority: LEAVING });
    actions.push(Action::RenewLease { until });
    State::Leaving(Leaving { until, next })
}

/// Whoever is heard by one that leaves has taken over, unless it leaves itself.
fn replaced(
    config: &Config,
    leaving: Leaving,
    heard: Heard,
    now: Moment,
    actions: &mut Vec<Action>,
) -> State {
    if heard.priority == LEAVING {
        return State::Leaving(leaving);
    }
    actions.push(Action::ReleaseAddresses(Released::Replaced(heard)));
    match after(config, leaving.next, heard.interval, now) {
        State::Backup(backup) => State::Backup(Backup {
            heard: Some(heard),
            ..backup
        }),
        other => other,
    }
}

/// What a node becomes that has left.
fn after(config: &Config, next: Next, active_interval: Interval, now: Moment) -> State {
    match next {
        Next::Initialize => State::Initialize,
        Next::Backup { stays } => State::Backup(Backup {
            stays,
            ..listen(config, active_interval, now)
        }),
    }
}

impl Announcing {
    /// Told at this moment; from now on at growing distances.
    fn begin(now: Moment) -> Self {
        Self {
            last: now,
            next: Some((now + FIRST_GAP, FIRST_GAP)),
        }
    }

    /// Tells again if it is time.
    fn go_on(self, now: Moment, actions: &mut Vec<Action>) -> Self {
        match self.next {
            Some((at, gap)) if at <= now => {
                actions.push(Action::Announce);
                let gap = gap * 2;
                Self {
                    last: now,
                    next: (gap <= LAST_GAP).then_some((now + gap, gap)),
                }
            }
            Some(_) | None => self,
        }
    }

    /// Begins anew: at once, or as soon as a first gap has passed, so that one who
    /// will not be silent cannot make this node flood the link.
    fn again(self, now: Moment, actions: &mut Vec<Action>) -> Self {
        let earliest = self.last + FIRST_GAP;
        if earliest <= now {
            actions.push(Action::Announce);
            Self::begin(now)
        } else {
            Self {
                last: self.last,
                next: Some((earliest, FIRST_GAP)),
            }
        }
    }
}
