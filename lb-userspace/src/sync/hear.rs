//! A session in which the other node is heard.
//!
//! Each message has to be the next one, and is acknowledged when it has been dealt
//! with. Flows are followed while this node does not forward. While it does, those that
//! it does not know are taken over, for they may be the last words of the one before, and
//! the rest is ignored; when it forwards no longer, a whole snapshot is asked for.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Local;
use super::board::{self, Peer, Rejected, Word};
use super::channel::{Channel, Failure, SILENCE};
use super::follow::{Counts, Follow};
use super::message::{Flows, Hello, News, Reply, Role, Status, read_frame, write_reply};

struct Hearer<'a, S> {
    channel: &'a mut Channel<S>,
    local: &'a Local,
    follow: Follow,
    /// What earlier sessions have counted.
    before: Counts,
    peer: Hello,
    /// This node's own.
    status: watch::Receiver<Status>,
    /// Whether this node forwarded when its status was last looked at.
    acts: bool,
    /// Something was not followed because this node forwarded.
    missed: bool,
    theirs: Option<Status>,
    alike: Option<bool>,
    sequence: u64,
    /// Whether a whole snapshot of this session has been taken over.
    complete: bool,
    /// How many flows had been unknown when the last snapshot began.
    unknown: u64,
}

/// Hears the other node until that ends; gives why it has.
pub async fn hear<S: AsyncRead + AsyncWrite + Unpin>(
    channel: &mut Channel<S>,
    local: &Local,
    peer: Hello,
) -> Failure {
    let status = local.status.clone();
    let acts = status.borrow().role.acts();
    let mut hearer = Hearer {
        channel,
        follow: Follow::default(),
        before: local.board.lock().counts,
        local,
        peer,
        status,
        acts,
        missed: false,
        theirs: None,
        alike: None,
        sequence: 0,
        complete: false,
        unknown: 0,
    };
    let Err(failure) = hearer.run().await;
    if !local.status.borrow().role.acts() {
        local.board.set_ready(false);
    }
    local.board.unheard(&failure.to_string());
    failure
}

impl<S: AsyncRead + AsyncWrite + Unpin> Hearer<'_, S> {
    async fn run(&mut self) -> Result<std::convert::Infallible, Failure> {
        let mut dictionary = self.local.dictionary.clone();
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                biased;
                changed = self.status.changed() => {
                    changed.map_err(|_| Failure::Ended)?;
                    self.own_status_changed().await?;
                }
                changed = dictionary.changed() => {
                    changed.map_err(|_| Failure::Ended)?;
                    // Services and backends that were unknown may be known now.
                    if self.follow.counts.unknown > self.unknown {
                        self.again().await?;
                    }
                }
                bytes = self.channel.next() => {
                    let bytes = bytes?;
                    heard = Instant::now();
                    self.frame(&bytes).await?;
                }
                () = sleep_until(heard + SILENCE) => return Err(Failure::silent()),
            }
        }
    }

    async fn frame(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let frame = read_frame(bytes)?;
        let expected = self.sequence + 1;
        if frame.sequence != expected {
            return Err(Failure::Rejected(
                Rejected::Sequence,
                format!(
                    "message {} came where {expected} was to come",
                    frame.sequence
                ),
            ));
        }
        self.sequence = expected;
        match frame.news {
            News::Status(status) => self.heard_status(status),
            News::SnapshotBegin { places, .. } => self.begin(places)?,
            News::Flows(flows) => self.flows(&flows)?,
            News::SnapshotEnd => {
                let acts = || self.local.status.borrow().role.acts();
                self.complete |= self.follow.end(&*self.local.table, acts);
                self.no_news();
            }
        }
        self.note();
        self.channel.send(write_reply(Reply::Ack(expected))).await
    }

    fn begin(&mut self, places: u32) -> Result<(), Failure> {
        self.complete = false;
        if self.forwards() {
            self.missed = true;
            return Ok(());
        }
        self.unknown = self.follow.counts.unknown;
        self.follow
            .begin(&*self.local.table, places)
            .map_err(|_| {
                Failure::Rejected(
                    Rejected::Garbage,
                    format!("its table has {places} places, far more than this one's: give both nodes the same `node.max_flows`"),
                )
            })
    }

    fn flows(&mut self, flows: &Flows) -> Result<(), Failure> {
        let dictionary = self.local.dictionary.borrow().clone();
        let now = self.local.clock.now();
        if self.forwards() {
            self.missed = true;
            self.follow.leave();
        }
        if !self.follow.follows() {
            // The last words of the node before, or what another says that believes itself
            // active as well, or the rest of what began while this one was.
            (self.follow).late(&*self.local.table, &dictionary, flows, now);
            return Ok(());
        }
        if self
            .follow
            .apply(&*self.local.table, &dictionary, flows, now)
        {
            self.no_news();
            Ok(())
        } else {
            let why = "a message is about a place that there is not";
            Err(Failure::Rejected(Rejected::Garbage, why.to_owned()))
        }
    }

    /// What was changed in the table is the other node's, who need not be told of it. If
    /// this one begins to forward just now, it tells of its whole table anyhow.
    fn no_news(&self) {
        if !self.forwards() {
            self.local.table.take_changed(usize::MAX, |_| ());
        }
    }

    /// Whether this node forwards now; its status may not have been looked at yet.
    fn forwards(&self) -> bool {
        self.status.borrow().role.acts()
    }

    fn heard_status(&mut self, status: Status) {
        if !status.role.acts() {
            self.complete = false;
            self.follow.leave();
        }
        let first = self.theirs.replace(status).is_none();
        let mut view = self.local.board.lock();
        view.peer = Some(Peer {
            hello: self.peer.clone(),
            status,
            heard: std::time::Instant::now(),
        });
        if first {
            board::begin(&mut view.following);
        }
        drop(view);
        if first {
            self.local.board.say(Word::Heard(self.peer.node.clone()));
        }
        self.compare();
    }

    /// Files can be compared between nodes of the same version only: another one may
    /// read the same file otherwise.
    fn compare(&mut self) {
        let Some(theirs) = self.theirs else { return };
        if self.peer.version != self.local.hello.version {
            return;
        }
        let alike = theirs.configuration == self.status.borrow().configuration;
        if self
            .alike
            .replace(alike)
            .is_some_and(|before| before == alike)
        {
            return;
        }
        self.local.board.say(Word::Alike(alike));
    }

    async fn own_status_changed(&mut self) -> Result<(), Failure> {
        let acted = self.acts;
        self.acts = self.status.borrow_and_update().role.acts();
        self.compare();
        if self.acts {
            self.follow.leave();
            self.complete = false;
        } else if std::mem::take(&mut self.missed) || acted {
            self.again().await?;
        }
        self.note();
        Ok(())
    }

    /// Asks for a whole snapshot. Until it comes, flows go on being taken over.
    async fn again(&mut self) -> Result<(), Failure> {
        self.channel.send(write_reply(Reply::Again)).await
    }

    fn note(&mut self) {
        let follow = self.follow.counts;
        let mut view = self.local.board.lock();
        view.counts = Counts {
            applied: self.before.applied + follow.applied,
            removed: self.before.removed + follow.removed,
            unknown: self.before.unknown + follow.unknown,
            no_room: self.before.no_room + follow.no_room,
        };
        if let Some(peer) = &mut view.peer {
            peer.heard = std::time::Instant::now();
        }
        drop(view);
        let nobody_acts = self
            .theirs
            .is_some_and(|theirs| theirs.role == Role::Backup);
        self.local
            .board
            .set_ready(self.complete || self.acts || nobody_acts);
    }
}
