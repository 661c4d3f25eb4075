//! What is known of the other node, and how the two subscriptions stand: written by
//! the sessions, read by whoever is asked.
//!
//! What the peer said last is kept when its session ends, and so is when that was:
//! nobody is shown as well who is not heard. How old the oldest change is that the peer
//! has not acknowledged goes on growing while there is no session to acknowledge it in.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::follow::Counts;
use super::message::{Hello, Status};

/// For what a session, or an attempt at one, was turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejected {
    /// No certificate, an expired one, another CA's, another name's.
    BadCertificate,
    /// Another protocol, or another version of this one, or this node itself.
    Protocol,
    /// A message that is not the next one.
    Sequence,
    /// A message that ends in the middle.
    Truncated,
    /// A message that is longer than any may be.
    Oversized,
    /// A message that makes no sense.
    Garbage,
    /// Nothing for too long.
    Timeout,
    /// Too many others were just being asked who they are.
    Crowded,
}

impl Rejected {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadCertificate => "bad_certificate",
            Self::Protocol => "protocol",
            Self::Sequence => "sequence",
            Self::Truncated => "truncated",
            Self::Oversized => "oversized",
            Self::Garbage => "garbage",
            Self::Timeout => "timeout",
            Self::Crowded => "crowded",
        }
    }
}

/// Something that people want to be told of. It is only told: what is to be done
/// follows from the [`View`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// The peer is heard: its name.
    Heard(String),
    /// It is heard no longer, for this reason.
    Lost(String),
    /// There is no session with it, for this reason.
    Unheard(String),
    /// Whether the parts of the files that must be alike are.
    Alike(bool),
    /// Look whether this node knows the flows.
    Ready,
}

/// The peer, as it said itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub hello: Hello,
    /// How it is, or was when it was last heard.
    pub status: Status,
    /// When it was last heard.
    pub heard: Instant,
}

/// A subscription: the one that is followed, or the one that is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whether there is a session.
    pub up: bool,
    /// Since when there is, or is not.
    pub since: SystemTime,
    /// Why there is none.
    pub why: Option<String>,
}

/// How everything stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The session in which the peer is heard.
    pub following: Session,
    /// The peer as it was last heard.
    pub peer: Option<Peer>,
    /// Whether this node has all flows of the active one, or that one is this one, or
    /// there is none: so it may take over without loss.
    pub ready: bool,
    /// What became of the peer's flows here.
    pub counts: Counts,
    /// The session in which the peer is told.
    pub telling: Session,
    /// Whether the peer has acknowledged the last words of this node, which has stopped
    /// forwarding.
    pub parted: bool,
    /// Changes that were told.
    pub told: u64,
    /// Whole snapshots that the peer has acknowledged.
    pub snapshots: u64,
    /// How many changes are known that the peer has not acknowledged, about.
    pub behind: u64,
    /// Since when there has been one.
    pub behind_since: Option<Instant>,
    /// What was turned away, by why.
    pub rejected: BTreeMap<Rejected, u64>,
}

impl View {
    /// `lb_sync_lag_seconds`: the age of the oldest change that the peer has not
    /// acknowledged; nothing if it knows everything, or there is nothing to be told
    /// because this node does not forward.
    pub fn lag(&self) -> Duration {
        self.behind_since
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether the peer is heard now.
    pub fn hears(&self) -> bool {
        self.following.up && self.peer.is_some()
    }

    /// How the peer is, if it is heard now.
    pub fn status(&self) -> Option<&Status> {
        let heard = self.peer.as_ref().filter(|_| self.following.up);
        heard.map(|peer| &peer.status)
    }
}

/// See the module.
pub struct Board {
    view: Mutex<View>,
    words: mpsc::Sender<Word>,
}

impl Board {
    /// Nothing is known. Words go to `words`; what does not fit there is not told.
    pub fn new(words: mpsc::Sender<Word>) -> Self {
        let session = || Session {
            up: false,
            since: SystemTime::now(),
            why: None,
        };
        Self {
            view: Mutex::new(View {
                following: session(),
                peer: None,
                ready: false,
                counts: Counts::default(),
                telling: session(),
                parted: false,
                told: 0,
                snapshots: 0,
                behind: 0,
                behind_since: None,
                rejected: BTreeMap::new(),
            }),
            words,
        }
    }

    /// How everything stands.
    pub fn view(&self) -> View {
        self.lock().clone()
    }

    /// Nobody panics while it is held; what is in it is whole at any time.
    pub(super) fn lock(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn say(&self, word: Word) {
        let _ = self.words.try_send(word);
    }

    /// Counts what was turned away.
    pub(super) fn reject(&self, rejected: Rejected) {
        *self.lock().rejected.entry(rejected).or_default() += 1;
    }

    /// Sets whether this node may take over without loss.
    pub(super) fn set_ready(&self, ready: bool) {
        let before = std::mem::replace(&mut self.lock().ready, ready);
        if before != ready {
            self.say(Word::Ready);
        }
    }

    /// The peer is not heard.
    pub(super) fn unheard(&self, why: &str) {
        let mut view = self.lock();
        let was_up = view.following.up;
        let news = view.following.why.as_deref() != Some(why);
        end(&mut view.following, why);
        drop(view);
        if was_up {
            self.say(Word::Lost(why.to_owned()));
        } else if news {
            self.say(Word::Unheard(why.to_owned()));
        }
    }

    /// The peer is not told: from now on, or longer, there is something that it does not
    /// know, if this node forwards.
    pub(super) fn untold(&self, why: &str, acts: bool) {
        end(&mut self.lock().telling, why);
        self.nobody_told(acts);
    }

    /// There is no session in which it could be told.
    pub(super) fn nobody_told(&self, acts: bool) {
        let mut view = self.lock();
        let since = view.behind_since.unwrap_or_else(Instant::now);
        view.behind_since = acts.then_some(since);
    }
}

pub(super) fn begin(session: &mut Session) {
    *session = Session {
        up: true,
        since: SystemTime::now(),
        why: None,
    };
}

fn end(session: &mut Session, why: &str) {
    if session.up {
        session.since = SystemTime::now();
    }
    session.up = false;
    session.why = Some(why.to_owned());
}
