//! A session in which the other node is told.
//!
//! It is told how this node is, at each change and each [`HEARTBEAT`], and, while this
//! node forwards, of its flows: a snapshot, then what changes. Changed buckets are looked
//! for every [`BUSY`] while there are some, and up to [`IDLE`] apart otherwise. When it
//! stops forwarding, it tells once more what has changed by then, and which connections
//! are just beginning: these are its last words ([`Teller::last_words`]), for by now the
//! other node forwards.
//!
//! **The bound.** No more than [`MOST_BYTES`] or [`MOST_FRAMES`] of flows are under way
//! without being acknowledged, which means that they are in the other node's table. As
//! long as that many are, nothing is read from the table: its changes wait there, where
//! they are one byte a bucket however many they are, and the data path does not notice.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Local;
use super::board::{self, Rejected};
use super::channel::{Channel, Failure, HEARTBEAT, SILENCE};
use super::feed::{self, Feed, Filled};
use super::message::{Flows, Frame, News, Reply, Status, read_reply, write_frame};

/// How many bytes of flows may be under way, about: a message more at the most.
pub const MOST_BYTES: usize = 256 * 1024;

/// How many messages of flows may be under way.
pub const MOST_FRAMES: usize = 64;

/// How many connections that are just beginning are told of among the last words: in a
/// flood there may be any number.
pub const MOST_UNFINISHED: usize = 65_536;

/// From one look for changes to the next while there are some.
pub const BUSY: Duration = Duration::from_millis(2);

/// The same while there are none.
pub const IDLE: Duration = Duration::from_millis(5);

/// A message of flows that is under way.
struct Sent {
    sequence: u64,
    bytes: usize,
    changes: usize,
    /// Since when what it says has been so, at the latest.
    since: Instant,
}

/// Whether the other node has been told of all flows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Snapshot {
    /// There is nothing to be told.
    Off,
    /// It is under way since then.
    Begun(Instant),
    /// Its end has this number.
    Ended(u64, Instant),
    /// It has arrived.
    Known,
}

struct Teller<'a, S> {
    channel: &'a mut Channel<S>,
    local: &'a Local,
    feed: &'a mut Feed,
    status: watch::Receiver<Status>,
    sequence: u64,
    acknowledged: u64,
    sent: VecDeque<Sent>,
    bytes: usize,
    snapshot: Snapshot,
    /// Whether this node forwarded when the other was last told how it is.
    acts: bool,
    /// When the buckets that are being read were found to have changed.
    found: Instant,
    heard: Instant,
    next_status: Instant,
    next_look: Instant,
    pause: Duration,
}

/// Tells the other node until that ends; gives why it has.
pub async fn tell<S: AsyncRead + AsyncWrite + Unpin>(
    channel: &mut Channel<S>,
    local: &Local,
    feed: &mut Feed,
) -> Failure {
    let now = Instant::now();
    let mut teller = Teller {
        channel,
        feed,
        status: local.status.clone(),
        local,
        sequence: 0,
        acknowledged: 0,
        sent: VecDeque::new(),
        bytes: 0,
        snapshot: Snapshot::Off,
        acts: false,
        found: now,
        heard: now,
        next_status: now,
        next_look: now,
        pause: BUSY,
    };
    teller.status.mark_changed();
    board::begin(&mut local.board.lock().telling);
    let Err(failure) = teller.run().await;
    local
        .board
        .untold(&failure.to_string(), local.status.borrow().role.acts());
    failure
}

impl<S: AsyncRead + AsyncWrite + Unpin> Teller<'_, S> {
    async fn run(&mut self) -> Result<std::convert::Infallible, Failure> {
        self.tell_status().await?;
        if !self.acts {
            for flows in self.feed.unsaid() {
                self.send_flows(flows).await?;
            }
        }
        loop {
            if self.heard.elapsed() >= SILENCE {
                return Err(Failure::silent());
            }
            // Before the other one hears that this node forwards no longer: then it would
            // follow it no longer.
            if self.acts && !self.status.borrow().role.acts() && self.snapshot != Snapshot::Off {
                self.last_words().await?;
            }
            self.tell_status().await?;
            let acts = self.acts;
            if !acts {
                self.snapshot = Snapshot::Off;
            } else if self.snapshot == Snapshot::Off {
                self.begin_snapshot().await?;
            }
            if acts && self.has_room() && Instant::now() >= self.next_look {
                self.tell_flows().await?;
            }
            self.note(acts);
            let mut wake = self.next_status.min(self.heard + SILENCE);
            if acts && self.has_room() {
                wake = wake.min(self.next_look);
            }
            tokio::select! {
                biased;
                reply = self.channel.next() => self.reply(&reply?).await?,
                changed = self.status.changed() => {
                    changed.map_err(|_| Failure::Ended)?;
                    self.next_status = Instant::now();
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    async fn tell_status(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        if now < self.next_status {
            return Ok(());
        }
        self.next_status = now + HEARTBEAT;
        let mut status = *self.status.borrow_and_update();
        status.behind = self.behind();
        self.acts = status.role.acts();
        self.send(News::Status(status)).await.map(drop)
    }

    async fn begin_snapshot(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        self.snapshot = Snapshot::Begun(now);
        self.next_look = now;
        self.feed.begin_again();
        let estimate = self.status.borrow().flows;
        let places = lb_ebpf::connections::places(&*self.local.table);
        self.send(News::SnapshotBegin { places, estimate })
            .await
            .map(drop)
    }

    /// Tells what there is to be told, as far as there is room.
    async fn tell_flows(&mut self) -> Result<(), Failure> {
        let mut any = false;
        while self.has_room() {
            if self.feed.unread() == 0 {
                self.found = Instant::now();
            }
            let mut flows = Flows::default();
            let table = &self.local.table;
            let take = |changed: &mut Vec<u32>| table.add_changed(changed);
            let filled = self.feed.fill(&**table, take, &mut flows);
            any |= !flows.is_empty();
            self.send_flows(flows).await?;
            match filled {
                Filled::Full => {}
                Filled::Snapshot => {
                    let (sequence, _) = self.send(News::SnapshotEnd).await?;
                    if let Snapshot::Begun(since) = self.snapshot {
                        self.snapshot = Snapshot::Ended(sequence, since);
                    }
                    return Ok(());
                }
                Filled::Done => {
                    let slower = (self.pause + Duration::from_millis(1)).min(IDLE);
                    self.pause = if any { BUSY } else { slower };
                    self.next_look = Instant::now() + self.pause;
                    return Ok(());
                }
            }
            while let Some(reply) = self.channel.next().now_or_never() {
                self.reply(&reply?).await?;
            }
        }
        Ok(())
    }

    /// Tells everything that there still is to be told, whatever is under way.
    async fn last_words(&mut self) -> Result<(), Failure> {
        let local = self.local;
        let table = &local.table;
        loop {
            let mut flows = Flows::default();
            let take = |changed: &mut Vec<u32>| table.add_changed(changed);
            let filled = self.feed.fill(&**table, take, &mut flows);
            self.send_flows(flows).await?;
            if filled == Filled::Done {
                break;
            }
        }
        let mut next = Some(0);
        let mut told = 0;
        while let Some(from) = next
            && told < MOST_UNFINISHED
        {
            let mut flows = Flows::default();
            next = feed::unfinished(&**table, from, &mut flows);
            told += flows.len();
            self.send_flows(flows).await?;
        }
        self.feed.settle();
        Ok(())
    }

    async fn send_flows(&mut self, flows: Flows) -> Result<(), Failure> {
        if flows.is_empty() {
            return Ok(());
        }
        let changes = flows.len();
        let (sequence, bytes) = self.send(News::Flows(flows)).await?;
        self.bytes += bytes;
        self.sent.push_back(Sent {
            sequence,
            bytes,
            changes,
            since: self.found,
        });
        self.local.board.lock().told += changes as u64;
        Ok(())
    }

    /// Gives the number and the length of what was sent.
    async fn send(&mut self, news: News) -> Result<(u64, usize), Failure> {
        self.sequence += 1;
        let sequence = self.sequence;
        let bytes = write_frame(&Frame { sequence, news });
        let length = bytes.len();
        self.channel.send(bytes).await?;
        Ok((sequence, length))
    }

    async fn reply(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.heard = Instant::now();
        match read_reply(bytes)? {
            Reply::Ack(sequence) => self.acknowledge(sequence),
            Reply::Again => {
                self.snapshot = Snapshot::Off;
                Ok(())
            }
        }
    }

    fn acknowledge(&mut self, sequence: u64) -> Result<(), Failure> {
        if sequence <= self.acknowledged || sequence > self.sequence {
            return Err(Failure::Rejected(
                Rejected::Sequence,
                format!(
                    "message {sequence} was acknowledged, after {} and with {} sent",
                    self.acknowledged, self.sequence
                ),
            ));
        }
        self.acknowledged = sequence;
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.sequence <= sequence) {
            self.bytes -= sent.bytes;
        }
        if let Snapshot::Ended(end, _) = self.snapshot
            && end <= sequence
        {
            self.snapshot = Snapshot::Known;
            self.local.board.lock().snapshots += 1;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.bytes < MOST_BYTES && self.sent.len() < MOST_FRAMES
    }

    /// How many changes are known that have not been acknowledged. Of a snapshot it
    /// counts what has been sent, of changed buckets that have not been read one each.
    fn behind(&self) -> u64 {
        let sent: usize = self.sent.iter().map(|sent| sent.changes).sum();
        (sent + self.feed.unread()) as u64
    }

    /// Notes how far the other node is behind.
    fn note(&self, acts: bool) {
        let sent = self.sent.front().map(|sent| sent.since);
        let unread = (self.feed.unread() > 0).then_some(self.found);
        let snapshot = match self.snapshot {
            Snapshot::Begun(since) | Snapshot::Ended(_, since) => Some(since),
            Snapshot::Off | Snapshot::Known => None,
        };
        let since = [sent, unread, snapshot].into_iter().flatten().min();
        let mut view = self.local.board.lock();
        view.parted = !acts && self.sent.is_empty();
        view.behind = self.behind();
        view.behind_since = match (acts, self.snapshot) {
            (false, _) => None,
            // What it has not known since an earlier session it does not know yet.
            (true, Snapshot::Begun(_) | Snapshot::Ended(..) | Snapshot::Off) => {
                let since = since.map(Instant::into_std);
                [view.behind_since, since].into_iter().flatten().min()
            }
            (true, Snapshot::Known) => since.map(Instant::into_std),
        };
    }
}
