//! What happened: health, configuration, commands, interfaces, floods.
//!
//! An event is a sentence with a kind and a severity, said once where the thing
//! happens ([`Journal::record`]): it goes to the log, and into a ring that `lb
//! events` reads. [`Kind`] is the one list of what can be said.
//!
//! The ring ([`ring`]) holds the last [`CAPACITY`] events and is fair to kinds,
//! so that a flood of one kind cannot push the others out. What is measured
//! rather than done (a full table, a flood) is turned into events by pure state
//! machines: [`watch`] and [`drain`].
//!
//! Events are of one run of the daemon and numbered from 1 in it; what earlier
//! runs told is in the log.

use std::time::SystemTime;

use log::Level;

use crate::health::TargetId;

pub mod drain;
pub mod journal;
pub mod ring;
pub mod watch;

pub use journal::Journal;

/// How many events are kept.
pub const CAPACITY: usize = 1_000;

/// How long a sentence may be, in characters; the rest is cut off.
pub const LONGEST_SENTENCE: usize = 2_000;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Info,
    /// Worth a look; clients are served.
    Warning,
    /// Clients are turned away, or soon will be.
    Alert,
}

impl Severity {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Alert => "alert",
        }
    }

    /// How loudly the log says it.
    const fn level(self) -> Level {
        match self {
            Self::Info => Level::Info,
            Self::Warning => Level::Warn,
            Self::Alert => Level::Error,
        }
    }
}

macro_rules! kinds {
    ($($variant:ident $name:literal $severity:ident $help:literal)+) => {
        /// What happened, as one flat list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = $help] $variant,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it in JSON and on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// How much it matters.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity,)+ }
            }

            /// What it means and what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }
        }
    };
}

// The end of something alarming is no alarm: it is told as information.
kinds! {
    DaemonStarted "daemon_started" Info
        "The daemon is ready. The sentence says whether it took over tables and connections that were there, or began with empty ones."
    Upgraded "upgraded" Info
        "Tables of another version or size were carried over; the sentence says what was."
    Reloaded "reloaded" Info
        "The configuration was read again and is in force; the sentence says what changed."
    ReloadRefused "reload_refused" Warning
        "The configuration was read again, is not valid or does not fit, and changed nothing. See `lb check`."
    ReloadFailed "reload_failed" Alert
        "The new configuration could not be brought about to its end. See `lb status` for what is in force, and reload again."
    BackendUp "backend_up" Info
        "A backend passes its checks and gets new connections."
    BackendDown "backend_down" Warning
        "A backend fails its checks and gets no new connections; the sentence ends with the last result."
    NoBackend "no_backend" Alert
        "A service has no backend to offer: all are down, drained, removed or of weight 0. Its new connections are dropped."
    BackendAgain "backend_again" Info
        "A service that had no backend to offer has one again."
    BackupsOnly "backups_only" Warning
        "No backend of a service is healthy but its backups: they take its new connections."
    BackupsRelieved "backups_relieved" Info
        "A service has a healthy backend besides its backups again, which rest."
    BelowMinHealthy "below_min_healthy" Alert
        "Fewer backends of a service are healthy than its min_healthy: all are used, whatever their checks say."
    MinHealthyAgain "min_healthy_again" Info
        "As many backends of a service are healthy as its min_healthy asks for: checks decide again."
    WeightChanged "weight_changed" Info
        "The weight of a backend was changed by a command; effective for new connections."
    BackendDrained "backend_drained" Info
        "A backend was drained by a command: it gets no new connections, and established ones go on."
    DrainFinished "drain_finished" Info
        "A drained backend has no connection left: it can be stopped."
    DrainCutShort "drain_cut_short" Warning
        "The time that a drained backend's connections were given is over: what is left of them is reset, so that clients connect anew."
    BackendEnabled "backend_enabled" Info
        "A drained backend gets new connections again, by a command."
    BackendAdded "backend_added" Info
        "A backend was added by a command; the file does not have it."
    BackendRemoved "backend_removed" Info
        "A backend was taken out by a command; its established connections go on."
    OverridesCleared "overrides_cleared" Info
        "What was changed by commands was undone: the file holds again."
    InterfaceAttached "interface_attached" Info
        "The XDP program is attached to an interface."
    InterfaceDetached "interface_detached" Info
        "The XDP program was taken off an interface that the configuration names no longer."
    InterfaceLost "interface_lost" Warning
        "An interface has gone, and the XDP program with it; it is attached again when the interface comes back."
    TableFull "table_full" Alert
        "New connections are dropped because the flow table is full (`flow_table_full`). Raise node.max_flows, or look in `lb flows` for who holds so many."
    TableHasRoom "table_has_room" Info
        "The flow table has had room for new connections for a while."
    PortsExhausted "ports_exhausted" Alert
        "Connections of a full-nat service are dropped for want of a source port (`ports_exhausted`). Add backends, or use `nat`; `lb drops` says for which backend."
    PortsSuffice "ports_suffice" Info
        "There have been enough source ports for a while."
    ClientsTurnedAway "clients_turned_away" Alert
        "Packets of clients are dropped because their service has no backend to offer (`no_backend`). `lb drops` says for which service."
    ClientsServedAgain "clients_served_again" Info
        "No client has been turned away for want of a backend for a while."
    FloodBegins "flood_begins" Alert
        "Handshakes come faster than they are finished, and displace each other: a SYN flood, or backends that do not answer. Established connections are not touched."
    HaActive "ha_active" Info
        "This node of the pair is active: it has the services' addresses."
    HaPassive "ha_passive" Info
        "This node of the pair is passive: the services' addresses are another's."
    HaRival "ha_rival" Alert
        "Two nodes of the pair were active at once. One gives way as soon as they hear each other; if it comes again, look for what is lost between them."
    HaApart "ha_apart" Warning
        "This node takes no part in the pair, because it cannot speak on the link; the sentence says why. It tries again every second."
    HaOnLink "ha_on_link" Info
        "This node takes part in the pair."
    HaUnfit "ha_unfit" Warning
        "This node is not fit to be active and gives way to another that is; the sentence says why."
    HaFit "ha_fit" Info
        "This node is fit to be active again."
    HaSyncUp "ha_sync_up" Info
        "The other node of the pair is heard on the sync channel."
    HaSyncLost "ha_sync_lost" Warning
        "The other node of the pair is not heard on the sync channel; the sentence says why. Connections are not carried over meanwhile, and `lb ha status` shows since when."
    HaFilesDiffer "ha_files_differ" Warning
        "The configurations of the two nodes differ in what both must have alike: services, backends, checks, ha.vrid or ha.addresses. Bring the files in line and reload."
    HaFilesAlike "ha_files_alike" Info
        "The configurations of the two nodes agree in what both must have alike."
    FloodEnds "flood_ends" Info
        "Handshakes have been displacing each other no longer for a while."
}

/// Whom an event is about, as far as it is about anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// The service.
    pub service: Option<String>,
    /// The backend of that service.
    pub backend: Option<String>,
    /// The interface.
    pub interface: Option<String>,
}

impl Subject {
    /// The balancer as a whole.
    pub fn node() -> Self {
        Self::default()
    }

    /// A service.
    pub fn service(name: impl Into<String>) -> Self {
        Self {
            service: Some(name.into()),
            ..Self::default()
        }
    }

    /// A backend of a service.
    pub fn backend(id: &TargetId) -> Self {
        Self {
            backend: Some(id.backend.clone()),
            ..Self::service(&id.service)
        }
    }

    /// An interface.
    pub fn interface(name: impl Into<String>) -> Self {
        Self {
            interface: Some(name.into()),
            ..Self::default()
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place among all events of this run of the daemon, from 1.
    pub number: u64,
    /// When.
    pub time: SystemTime,
    /// What.
    pub kind: Kind,
    /// To whom.
    pub subject: Subject,
    /// The whole of it, for people.
    pub sentence: String,
}

/// Things that were told, joined to a sentence that ends with how many were
/// left out where they are too many.
pub fn joined(things: &[String]) -> String {
    /// What the words in front of the list may take.
    const ROOM: usize = LONGEST_SENTENCE - 200;
    let mut text = String::new();
    let mut length = 0;
    for (place, thing) in things.iter().enumerate() {
        let long = thing.chars().count() + 2;
        if length + long > ROOM {
            return format!("{text} and {} more", things.len() - place);
        }
        if place > 0 {
            text += "; ";
        }
        text += thing;
        length += long;
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_words_of_their_own_and_say_what_they_mean() {
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            let word = |letter: char| letter.is_ascii_lowercase() || letter == '_';
            assert!(kind.name().chars().all(word), "{}", kind.name());
            assert!(kind.help().ends_with('.'), "{}", kind.name());
        }
    }

    #[test]
    fn many_things_are_cut_to_a_sentence_that_says_so() {
        let few = ["one".to_owned(), "two".to_owned()];
        assert_eq!(joined(&few), "one; two");
        assert_eq!(joined(&[]), "");
        let many = vec!["a change of some length".to_owned(); 1_000];
        let text = joined(&many);
        assert!(text.chars().count() <= LONGEST_SENTENCE);
        assert!(text.ends_with(" and 928 more"), "{text}");
        let huge = vec!["x".repeat(LONGEST_SENTENCE)];
        assert_eq!(joined(&huge), " and 1 more");
    }
}
