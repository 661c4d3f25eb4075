//! Connections in steady use, and how long each went without an answer.
//!
//! Each connection sends a numbered request at a fixed pace, whether or not the ones
//! before are answered, as whoever streams does: so a segment that was lost is missed
//! as soon as a later one gets through, and what is seen is how long nothing got
//! through, not how long a sender waits before it tries again. The servers are
//! [`super::EchoServer`]s. An answer must be the next one of its connection, from the
//! backend that answered first, which must still see the same client.
//!
//! One thread does all of it, so that it takes little of a machine that is watched.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::{Host, wait_until};

/// How long one connection may take to open, with its first answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The thread sleeps so long at least, and then sends all that is due.
const NAP: Duration = Duration::from_micros(500);

const REQUEST: usize = 16;
const REPLY: usize = 32;

/// See the module. Dropped, the connections end.
pub struct Steady {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
    count: usize,
}

struct Shared {
    ended: AtomicBool,
    courses: Mutex<Courses>,
}

struct Courses {
    all: Vec<Course>,
    /// By how much the sender was late at most since the last mark.
    late: Duration,
}

/// A connection's life so far.
struct Course {
    stream: TcpStream,
    /// What every answer says of backend and client.
    constant: [u8; REPLY - 8],
    number: u64,
    /// When those went out that are not answered yet.
    unanswered: VecDeque<Instant>,
    /// A part of an answer.
    begun: Vec<u8>,
    answered: u64,
    /// When the last answer came, and when its request went out.
    last: Instant,
    freshest: Instant,
    /// The longest time between two answers since the last mark.
    longest: Duration,
    broke: Option<String>,
}

/// What was seen since the last mark.
#[derive(Clone, Debug)]
pub struct Seen {
    /// For each connection the longest time between two answers, or since the last
    /// one; in ascending order.
    pub gaps: Vec<Duration>,
    /// Requests answered.
    pub answered: u64,
    /// Why connections broke, those of before the mark among them.
    pub broken: Vec<String>,
    /// By how much the client itself was late, at most: a gap may be so much longer
    /// than what the network did.
    pub late: Duration,
}

impl Seen {
    /// The gap of the connection in the middle.
    pub fn median(&self) -> Duration {
        self.gaps
            .get(self.gaps.len() / 2)
            .copied()
            .unwrap_or_default()
    }

    /// The longest gap of all.
    pub fn worst(&self) -> Duration {
        self.gaps.last().copied().unwrap_or_default()
    }
}

impl Steady {
    /// Opens so many connections from a host, and sends over each at this pace from
    /// now on.
    pub fn open(host: &Host, service: SocketAddr, count: usize, pace: Duration) -> Result<Self> {
        let all = host.enter(|| {
            (0..count)
                .map(|id| {
                    Course::open(service, id)
                        .with_context(|| format!("connection {id} of {count} to {service}"))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        let shared = Arc::new(Shared {
            ended: AtomicBool::new(false),
            courses: Mutex::new(Courses {
                all,
                late: Duration::ZERO,
            }),
        });
        let working = Arc::clone(&shared);
        let mut steady = Self {
            thread: Some(host.spawn(move || work(&working, pace))),
            shared,
            count,
        };
        steady.settle("connections are in use", PATIENCE)?;
        steady.mark();
        Ok(steady)
    }

    /// From now on gaps are counted anew.
    pub fn mark(&self) {
        let mut courses = self.shared.courses();
        courses.late = Duration::ZERO;
        for course in &mut courses.all {
            course.longest = Duration::ZERO;
        }
    }

    /// What was seen since the last mark.
    pub fn seen(&self) -> Seen {
        let now = Instant::now();
        let courses = self.shared.courses();
        let all = &courses.all;
        let mut gaps: Vec<Duration> = all
            .iter()
            .map(|course| course.longest.max(now - course.last))
            .collect();
        gaps.sort_unstable();
        Seen {
            gaps,
            answered: all.iter().map(|course| course.answered).sum(),
            broken: all
                .iter()
                .filter_map(|course| course.broke.clone())
                .collect(),
            late: courses.late,
        }
    }

    /// The clients' ends of the connections over which no request is answered that
    /// went out since then.
    pub fn behind(&self, since: Instant) -> Vec<SocketAddr> {
        let courses = self.shared.courses();
        courses
            .all
            .iter()
            .filter(|course| course.broke.is_none() && course.freshest <= since)
            .filter_map(|course| course.stream.local_addr().ok())
            .collect()
    }

    /// Waits until over every connection that is not broken a request is answered
    /// that goes out from now on.
    pub fn settle(&mut self, what: &str, bound: Duration) -> Result<()> {
        let now = Instant::now();
        wait_until(&format!("every one of the {what}"), bound, || {
            self.fail_with_thread()?;
            Ok(self.behind(now).is_empty())
        })
        .with_context(|| {
            format!(
                "{} of {} connections have no answer: those from {:?}",
                self.behind(now).len(),
                self.count,
                self.behind(now)
            )
        })
    }

    /// The thread ends only by an error, or when it is told to.
    fn fail_with_thread(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(thread) = self.thread.take()
        {
            thread
                .join()
                .map_err(|_| anyhow!("the client panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it says does not matter any more.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn courses(&self) -> MutexGuard<'_, Courses> {
        self.courses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Course {
    /// Connects from the calling thread's host, and asks once.
    fn open(service: SocketAddr, id: usize) -> Result<Self> {
        let mut stream = TcpStream::connect_timeout(&service, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let number = (id as u64) << 32;
        stream.write_all(&request(number))?;
        let mut reply = [0; REPLY];
        stream.read_exact(&mut reply)?;
        ensure!(
            reply[..8] == number.to_be_bytes(),
            "mixed up: the answer is another connection's"
        );
        stream.set_nonblocking(true)?;
        let now = Instant::now();
        let mut constant = [0; REPLY - 8];
        constant.copy_from_slice(&reply[8..]);
        Ok(Self {
            stream,
            constant,
            number: number + 1,
            unanswered: VecDeque::new(),
            begun: Vec::new(),
            answered: 1,
            last: now,
            freshest: now,
            longest: Duration::ZERO,
            broke: None,
        })
    }

    fn send(&mut self, now: Instant) {
        if self.broke.is_some() {
            return;
        }
        match self.stream.write(&request(self.number)) {
            Ok(REQUEST) => {
                self.number += 1;
                self.unanswered.push_back(now);
            }
            Ok(_) => self.broke = Some("its buffer is full".into()),
            Err(error) => self.fails(&error),
        }
    }

    fn receive(&mut self, now: Instant) {
        let mut bytes = [0; 64 * REPLY];
        while self.broke.is_none() {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.broke = Some("the server ended it".into()),
                Ok(length) => self.take(&bytes[..length], now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => self.fails(&error),
            }
        }
    }

    fn take(&mut self, bytes: &[u8], now: Instant) {
        self.begun.extend_from_slice(bytes);
        let whole = self.begun.len() / REPLY * REPLY;
        let replies: Vec<u8> = self.begun.drain(..whole).collect();
        for reply in replies.chunks_exact(REPLY) {
            let next = self.number - self.unanswered.len() as u64;
            if reply[..8] != next.to_be_bytes() {
                self.broke = Some("the answer is not its next one".into());
            } else if reply[8..] != self.constant {
                self.broke = Some("another backend answers, or sees another client".into());
            } else if let Some(sent) = self.unanswered.pop_front() {
                self.longest = self.longest.max(now - self.last);
                self.last = now;
                self.freshest = sent;
                self.answered += 1;
            } else {
                self.broke = Some("there is an answer more than requests".into());
            }
        }
    }

    fn fails(&mut self, error: &std::io::Error) {
        if error.kind() != ErrorKind::WouldBlock {
            self.broke = Some(error.to_string());
        }
    }
}

fn request(number: u64) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    request[..8].copy_from_slice(&number.to_be_bytes());
    request
}

/// The thread: waits for answers, and sends what is due.
fn work(shared: &Shared, pace: Duration) -> Result<()> {
    let epoll = watch(&shared.courses().all)?;
    let mut events = Vec::with_capacity(1024);
    let mut next = 0;
    let mut due = Instant::now();
    while !shared.ended.load(Ordering::Relaxed) {
        let nap = due.saturating_duration_since(Instant::now()).max(NAP);
        let nap = Timespec {
            tv_sec: 0,
            tv_nsec: nap.subsec_nanos().into(),
        };
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), Some(&nap)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for answers"),
        }
        let mut courses = shared.courses();
        let now = Instant::now();
        for event in &events {
            let id = event.data.u64() as usize;
            courses.all[id].receive(now);
            if courses.all[id].broke.is_some() {
                // One that is broken would be reported for ever. It may be so twice.
                let _ = epoll::delete(&epoll, &courses.all[id].stream);
            }
        }
        let apart = pace / courses.all.len() as u32;
        let late = now.saturating_duration_since(due);
        courses.late = courses.late.max(late);
        if late > pace {
            // What could not be sent in time is left out.
            due = now;
        }
        while due <= now {
            courses.all[next].send(now);
            next = (next + 1) % courses.all.len();
            due += apart;
        }
    }
    Ok(())
}

fn watch(courses: &[Course]) -> Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (id, course) in courses.iter().enumerate() {
        let data = epoll::EventData::new_u64(id as u64);
        epoll::add(&epoll, &course.stream, data, epoll::EventFlags::IN)?;
    }
    Ok(epoll)
}
