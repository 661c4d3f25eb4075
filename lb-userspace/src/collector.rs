//! Taking away connections whose time is up.
//!
//! The data path forgets a connection only where another needs its place or its
//! port. Everything else is done here: a thread goes through the table
//! ([`lb_ebpf::connections`]) once in [`ROUND`], in slices with rests between
//! them, and takes away what has been silent for longer than the [`Timeouts`]
//! allow for its state. The table is memory of this process, so there is no system
//! call in it; a place without a connection costs a look at its tag. Counts of what
//! there is fall off on the way.
//!
//! While no daemon runs, nothing is collected, and nothing has to be: what has
//! ended, or was never finished, gives way to what comes.
//!
//! The passive node of a pair has the active one's connections and sees none of their
//! packets: while it [rests](Collector::resting), established ones are not taken away
//! for their silence. When it becomes active, all of them count as just heard.
//!
//! [`Verdict`] decides purely; the thread acts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lb_common::abi::{Flow, Life, tag};
use lb_common::flow::{ANSWERED, BACKEND_FIN, CLIENT_FIN, ESTABLISHED, ONE_WAY, ended};
use lb_ebpf::Memory as _;
use lb_ebpf::connections;

use crate::config::Timeouts;
use crate::dataplane::Table;
use crate::host;

/// How long a walk through the whole table takes.
pub const ROUND: Duration = Duration::from_secs(1);

/// Into how many slices it is cut.
const SLICES: u32 = 20;

/// For how long a client that has ended its half is silent when the backend, which
/// is not heard, has ended the other: as long as that still sends, the client
/// acknowledges.
const ONE_WAY_SILENCE: Duration = Duration::from_secs(10);

/// On a node whose connections another one forwards, none looks silent for longer.
const STALE: Duration = Duration::from_secs(60);

/// What is due to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Stay,
    /// Its backend, which is not heard, has ended its half as well.
    Close,
    /// Its time is up.
    Remove,
}

/// What is due to a connection in this state, of TCP or not, that has been silent
/// for so long.
pub fn due(timeouts: &Timeouts, tcp: bool, state: u32, silent: Duration) -> Verdict {
    let half_way = state & ONE_WAY != 0 && state & CLIENT_FIN != 0 && !ended(state);
    if half_way && silent >= ONE_WAY_SILENCE {
        return Verdict::Close;
    }
    if silent >= limit(timeouts, tcp, state) {
        Verdict::Remove
    } else {
        Verdict::Stay
    }
}

/// For how long a connection in this state may be silent.
fn limit(timeouts: &Timeouts, tcp: bool, state: u32) -> Duration {
    if !tcp {
        return if state & (ANSWERED | ESTABLISHED) != 0 {
            timeouts.udp
        } else {
            timeouts.udp_unanswered
        };
    }
    if ended(state) {
        timeouts.closed
    } else if state & (CLIENT_FIN | BACKEND_FIN) != 0 {
        timeouts.closing
    } else if state & ESTABLISHED != 0 {
        timeouts.established
    } else {
        timeouts.handshake
    }
}

/// What there was on the last walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Connections whose client has proved nothing yet.
    pub half_open: u64,
    /// Connections that live.
    pub established: u64,
    /// Connections that have ended and rest.
    pub closed: u64,
    /// Connections that were taken away.
    pub removed: u64,
}

/// The thread; it ends when this is dropped.
pub struct Collector {
    shared: Arc<Mutex<Shared>>,
    resting: Arc<AtomicBool>,
    stop: Option<Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    timeouts: Timeouts,
    census: Census,
}

impl Collector {
    /// Starts, at rest or not.
    pub fn start(table: Arc<Table>, timeouts: Timeouts, rests: bool) -> anyhow::Result<Self> {
        let resting = Arc::new(AtomicBool::new(rests));
        let shared = Arc::new(Mutex::new(Shared {
            timeouts,
            census: Census::default(),
        }));
        let (stop, stopped) = channel();
        let with = Arc::clone(&shared);
        let rests = Arc::clone(&resting);
        let thread = thread::Builder::new()
            .name("collector".to_owned())
            .spawn(move || collect(&table, &with, &rests, &stopped))?;
        Ok(Self {
            shared,
            resting,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Other timeouts, from the next slice on.
    pub fn set_timeouts(&self, timeouts: Timeouts) {
        self.lock().timeouts = timeouts;
    }

    /// Whether another node forwards what is in this one's table: for whoever knows, in
    /// any thread.
    pub fn resting(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.resting)
    }

    /// What there was on the last walk.
    pub fn census(&self) -> Census {
        self.lock().census
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

fn collect(table: &Table, shared: &Mutex<Shared>, resting: &AtomicBool, stopped: &Receiver<()>) {
    let clock = Clock::new();
    let buckets = table.shape().tag_buckets;
    let slice = buckets.div_ceil(SLICES).max(1);
    let mut walk = Walk::default();
    let mut rested = false;
    loop {
        let begun = Instant::now();
        let rests = resting.load(Ordering::SeqCst);
        if rested && !rests {
            all_heard(table, clock.ticks());
        }
        rested = rests;
        let timeouts = lock(shared).timeouts;
        let end = walk.bucket.saturating_add(slice).min(buckets);
        let now = Now {
            ticks: clock.ticks(),
            clock: &clock,
            timeouts,
            rests,
        };
        for bucket in walk.bucket..end {
            walk.visit(table, bucket, &now);
        }
        walk.bucket = end;
        if end >= buckets {
            lock(shared).census = walk.census;
            walk.begin_again();
        }
        let rest = (ROUND / SLICES).saturating_sub(begun.elapsed());
        match stopped.recv_timeout(rest) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Notes of every connection that it lives now.
fn all_heard(table: &Table, now: u32) {
    for bucket in 0..table.shape().tag_buckets {
        let Some(tags) = table.tags(bucket) else {
            return;
        };
        for (way, word) in tags.tags(bucket) {
            if word.load() & tag::CLASS > tag::BUSY {
                connections::touch(table, bucket * tag::WORDS + way, now);
            }
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel's clock as far as it is known here.
struct Clock {
    hertz: u32,
    shift: u32,
}

impl Clock {
    fn new() -> Self {
        let hertz = host::ticks_per_second();
        Self {
            hertz,
            shift: host::stamp_shift(hertz),
        }
    }

    fn ticks(&self) -> u32 {
        host::ticks_now(self.hertz)
    }

    fn stamp(&self, ticks: u32) -> u32 {
        ticks >> self.shift
    }
}

struct Now<'a> {
    ticks: u32,
    clock: &'a Clock,
    timeouts: Timeouts,
    rests: bool,
}

impl Now<'_> {
    /// For how long a connection has been silent that was last seen then. The
    /// estimate of now may be a tick behind the kernel's.
    fn since(&self, seen: u32) -> Duration {
        let ticks = self.ticks.wrapping_sub(seen);
        let ticks = if ticks > u32::MAX - self.clock.hertz {
            0
        } else {
            ticks
        };
        let thousandths = u64::from(ticks) * 1000 / u64::from(self.clock.hertz);
        Duration::from_millis(thousandths)
    }
}

/// A walk through the table.
#[derive(Default)]
struct Walk {
    bucket: u32,
    census: Census,
    /// Places that were busy on the last walk: nobody is for so long, unless a
    /// collector was ended in the middle of it.
    busy: Vec<(u32, u32)>,
    busy_before: Vec<(u32, u32)>,
}

impl Walk {
    fn begin_again(&mut self) {
        self.bucket = 0;
        self.census = Census::default();
        self.busy_before = std::mem::take(&mut self.busy);
    }

    fn visit(&mut self, table: &Table, bucket: u32, now: &Now<'_>) {
        let Some(tags) = table.tags(bucket) else {
            return;
        };
        for (way, word) in tags.tags(bucket) {
            let tag = word.load();
            let place = bucket * tag::WORDS + way;
            match tag & tag::CLASS {
                tag::FREE => {}
                tag::BUSY => self.busy(table, place, tag),
                class => {
                    match class {
                        tag::HALF_OPEN => self.census.half_open += 1,
                        tag::CLOSED => self.census.closed += 1,
                        _ => self.census.established += 1,
                    }
                    self.judge(table, place, class, now);
                }
            }
        }
    }

    fn judge(&mut self, table: &Table, place: u32, class: u32, now: &Now<'_>) {
        let Some(entry) = table.connection(place) else {
            return;
        };
        let (state, version) = connections::stands(entry);
        let tcp = connections::is_tcp(entry);
        let lives = state & ESTABLISHED != 0 && !ended(state);
        if now.rests && lives {
            // Nobody is to find it silent in the moment in which this node begins to act.
            if now.since(entry.seen.load()) > STALE {
                connections::touch(table, place, now.ticks);
            }
            return;
        }
        match due(&now.timeouts, tcp, state, now.since(entry.seen.load())) {
            Verdict::Stay => {
                // Two who noted at the same time may have left the tag behind.
                if class != lb_common::flow::class(state) {
                    connections::retag(table, place, now.clock.stamp(now.ticks));
                }
            }
            Verdict::Close => {
                let flow = Flow {
                    place,
                    backend: entry.backend.load(),
                    life: Life {
                        version,
                        ..Life::default()
                    },
                    ..Flow::default()
                };
                let stamp = now.clock.stamp(now.ticks);
                connections::advance(table, &flow, 0, BACKEND_FIN, stamp);
            }
            Verdict::Remove => {
                if connections::remove(table, place, version) {
                    self.census.removed += 1;
                }
            }
        }
    }

    /// A place that has been busy for a whole walk, with the same tag, was left so.
    fn busy(&mut self, table: &Table, place: u32, tag: u32) {
        if self.busy_before.contains(&(place, tag)) {
            connections::release(table, place, tag);
        } else if self.busy.len() < MOST_BUSY {
            self.busy.push((place, tag));
        }
    }
}

/// How many busy places are remembered: more than there are CPUs.
const MOST_BUSY: usize = 1_024;

#[cfg(test)]
mod tests {
    use lb_common::flow::RESET;

    use super::*;

    #[test]
    fn every_state_has_its_time() {
        let timeouts = Timeouts::DEFAULT;
        let seconds = Duration::from_secs;
        for (says, tcp, state, limit) in [
            ("a SYN", true, 0, 10),
            ("a SYN that was answered", true, ANSWERED, 10),
            ("a connection", true, ANSWERED | ESTABLISHED, 7_500),
            (
                "one half ended",
                true,
                ANSWERED | ESTABLISHED | CLIENT_FIN,
                120,
            ),
            (
                "the other half ended",
                true,
                ANSWERED | ESTABLISHED | BACKEND_FIN,
                120,
            ),
            (
                "both ended",
                true,
                ESTABLISHED | CLIENT_FIN | BACKEND_FIN,
                60,
            ),
            ("a RST", true, ESTABLISHED | RESET, 60),
            ("seen one way", true, ONE_WAY, 10),
            (
                "established, seen one way",
                true,
                ONE_WAY | ESTABLISHED,
                7_500,
            ),
            ("a datagram", false, 0, 30),
            ("an answered one", false, ANSWERED, 300),
            ("seen one way, again", false, ONE_WAY | ESTABLISHED, 300),
        ] {
            let just = due(&timeouts, tcp, state, seconds(limit));
            let early = due(
                &timeouts,
                tcp,
                state,
                seconds(limit) - Duration::from_millis(1),
            );
            assert_eq!(just, Verdict::Remove, "{says}");
            assert_eq!(early, Verdict::Stay, "{says}");
        }
    }

    #[test]
    fn a_half_ended_connection_seen_one_way_is_closed_after_a_silence() {
        let timeouts = Timeouts::DEFAULT;
        let state = ONE_WAY | ESTABLISHED | CLIENT_FIN;
        let at = |seconds| due(&timeouts, true, state, Duration::from_secs(seconds));
        assert_eq!(at(9), Verdict::Stay);
        assert_eq!(at(10), Verdict::Close);
    }
}
