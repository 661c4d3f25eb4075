//! The driver: the thread in which the [machine](super::machine) meets sockets and
//! the clock.
//!
//! It has a thread of its own, with real-time priority where that is permitted, and
//! waits in `ppoll` for a packet, a command or the machine's deadline, so that a
//! busy runtime never costs mastership. In it nothing blocks: what takes time
//! (addresses on interfaces, the journal) is told to others through a function that
//! must not wait.
//!
//! - **Hear, then look at the clock.** A process that comes back from a pause finds
//!   both a timer that is due and what was said meanwhile; only in this order does
//!   it learn that another is active. Of packets it takes [`AT_ONCE`] before it
//!   looks at the clock again, so that a flood cannot keep it from speaking.
//! - **The clock** is the kernel's `CLOCK_BOOTTIME`: a host that was suspended has
//!   lost its lease as well.
//! - **The lease** leaves here in one place, [`Outside::lease`]: whoever forwards
//!   packets is told until when it may. Forwarding must end then by itself.
//! - **Who does not get on the link** (interface down, no address, no socket) takes
//!   no part, says why, and tries again each [`RETRY`] and whenever it is told that
//!   interfaces have changed.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::announce::{Announcer, Place};
use super::machine::{Action, Config, Event, Heard, Moment, Released, State, Taken, step};
use super::net::{Port, Wanted};
use super::packet::{Advertisement, Checksum, Expected, LEAVING, Rejected};

/// How many packets are taken before the clock is looked at.
const AT_ONCE: usize = 64;

/// From one attempt to get on the link to the next.
const RETRY: Duration = Duration::from_secs(1);

/// The real-time priority: above everything ordinary, below the kernel's own threads
/// for interrupts (50).
const REAL_TIME: libc::c_int = 40;

/// What checksum an advertisement over IPv4 gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumChoice {
    /// That of the last advertisement that was heard; before that, with the
    /// pseudo-header, which more of those in use understand.
    Follow,
    /// This one.
    Always(Checksum),
}

/// What moves with the role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protected {
    /// The addresses in advertisements: of the family spoken, as many as fit.
    pub advertised: Vec<IpAddr>,
    /// Where neighbours are told of which address.
    pub places: Vec<Place>,
}

/// What a driver is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it speaks and listens.
    pub wanted: Wanted,
    /// The virtual router's number.
    pub virtual_router: u8,
    /// The least TTL or hop limit of what is listened to.
    pub hop_limit: u8,
    /// What the machine is told; its address is replaced by the one it speaks from.
    pub machine: Config,
    /// Which checksum it sends.
    pub checksum: ChecksumChoice,
    /// What moves with the role.
    pub protected: Protected,
    /// Until when the data path may still act for an earlier run.
    pub lease: Option<Moment>,
}

/// What a driver does to the world beyond the link. Each is called in the driver's
/// thread and must not wait.
pub struct Outside {
    /// The one place where the lease goes to the data path: until when it may act, or
    /// that it may not.
    pub lease: Box<dyn FnMut(Option<Moment>) + Send>,
    /// What is to be done, or known, by others.
    pub tell: Box<dyn FnMut(Report) + Send>,
}

/// What others are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// This node is active now: put the addresses on.
    Taken(Taken),
    /// This node is active no longer: take the addresses off.
    Released(Released),
    /// There is another active node on the link.
    Rival(Heard),
    /// It takes no part, for this reason.
    Apart(String),
    /// It takes part.
    OnLink,
}

/// What a driver can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// This is its priority now; `give_up`: and it is not fit to be active.
    Priority {
        /// The priority.
        priority: u8,
        /// Whether to leave if it is active.
        give_up: bool,
    },
    /// Whether it knows what it must know to take over without loss.
    Ready(bool),
    /// Leave, and stay until the other has gone.
    Yield,
    /// Interfaces have changed: look.
    LinkChanged,
    /// Other things move with the role.
    Protect(Protected),
    /// Leave, and end.
    Stop,
}

/// What can be asked of a driver.
#[derive(Clone, Debug)]
pub struct Status {
    /// The machine's state.
    pub state: State,
    /// Since when its word is what it is.
    pub since: SystemTime,
    /// Why it takes no part, if it does not.
    pub apart: Option<String>,
    /// From where it speaks.
    pub source: Option<IpAddr>,
    /// Its priority now.
    pub priority: u8,
    /// What was heard last, and when.
    pub heard: Option<(Heard, SystemTime)>,
    /// How often it has become active or stopped being so.
    pub transitions: u64,
    /// Advertisements that went out.
    pub sent: u64,
    /// Advertisements that could not be sent.
    pub unsent: u64,
    /// Advertisements that came in and were understood.
    pub received: u64,
    /// Those that were ignored, by why.
    pub rejected: BTreeMap<Rejected, u64>,
    /// Which checksum it sends.
    pub checksum: Checksum,
    /// By how much it was late for a deadline, at most.
    pub latest: Duration,
    /// Whether its thread has real-time priority.
    pub real_time: bool,
}

/// A driver that runs.
#[derive(Debug)]
pub struct Driver {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    status: Arc<Mutex<Status>>,
    thread: Option<JoinHandle<()>>,
}

/// The clock of [`Moment`]s.
pub fn now() -> Moment {
    let now = clock_gettime(ClockId::Boottime);
    // Time since boot is not negative, and nanoseconds are below a second.
    Moment::since_start(Duration::new(now.tv_sec as u64, now.tv_nsec as u32))
}

impl Driver {
    /// Starts the thread, in the calling thread's network namespace.
    pub fn start(settings: Settings, outside: Outside) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags)?);
        let status = Arc::new(Mutex::new(Status::of(&settings)));
        let mut work = Work {
            announcer: Announcer::open()?,
            port: None,
            state: State::Initialize,
            checksum: first_checksum(settings.checksum),
            again: now(),
            settings,
            outside,
            inbox,
            wake: Arc::clone(&wake),
            status: Arc::clone(&status),
            stopping: false,
        };
        let thread = thread::Builder::new()
            .name("vrrp".into())
            .spawn(move || work.run())?;
        Ok(Self {
            commands,
            wake,
            status,
            thread: Some(thread),
        })
    }

    /// Tells the driver something; it is done soon.
    pub fn tell(&self, command: Command) {
        // It may have ended already, which is what `Stop` asks for.
        let _ = self.commands.send(command);
        wake_up(&self.wake);
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        lock(&self.status).clone()
    }

    /// Leaves and ends: within an interval, so not to be waited for in a runtime's
    /// thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of VRRP has panicked");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

impl Status {
    fn of(settings: &Settings) -> Self {
        Self {
            state: State::Initialize,
            since: SystemTime::now(),
            apart: Some("it has just been started".to_owned()),
            source: None,
            priority: settings.machine.priority,
            heard: None,
            transitions: 0,
            sent: 0,
            unsent: 0,
            received: 0,
            rejected: BTreeMap::new(),
            checksum: first_checksum(settings.checksum),
            latest: Duration::ZERO,
            real_time: false,
        }
    }
}

const fn first_checksum(choice: ChecksumChoice) -> Checksum {
    match choice {
        ChecksumChoice::Follow => Checksum::PseudoHeader,
        ChecksumChoice::Always(checksum) => checksum,
    }
}

/// Nobody panics while it is held; what is in it is whole at any time.
fn lock(status: &Mutex<Status>) -> MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wake_up(wake: &OwnedFd) {
    // A full counter wakes as well.
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

/// What the thread works with.
struct Work {
    settings: Settings,
    outside: Outside,
    inbox: Receiver<Command>,
    wake: Arc<OwnedFd>,
    status: Arc<Mutex<Status>>,
    announcer: Announcer,
    port: Option<Port>,
    state: State,
    checksum: Checksum,
    /// When to try again to get on the link.
    again: Moment,
    stopping: bool,
}

impl Work {
    fn run(&mut self) {
        lock(&self.status).real_time = real_time();
        self.get_on_link();
        while !(self.stopping && self.state == State::Initialize) {
            self.wait();
            self.obey();
            self.listen();
            self.look_at_clock();
        }
        (self.outside.lease)(None);
    }

    /// Until something happens or is due.
    fn wait(&self) {
        let due = match (&self.port, self.state.deadline()) {
            (Some(_), deadline) => deadline,
            (None, _) => Some(self.again),
        };
        let timeout = due.map(|due| {
            let left = now().until(due);
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut awaited = vec![PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN)];
        if let Some(port) = &self.port {
            awaited.push(PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN));
        }
        match poll(&mut awaited, timeout.as_ref()) {
            // A signal: everything is looked at anyway.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("waiting for VRRP failed: {error}");
                thread::sleep(Duration::from_millis(1));
            }
        }
        let mut counter = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut counter);
    }

    fn obey(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.command(command),
                Err(TryRecvError::Empty) => break,
                // Nobody can tell it to stop any more.
                Err(TryRecvError::Disconnected) => {
                    self.command(Command::Stop);
                    break;
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Priority { priority, give_up } => {
                self.settings.machine.priority = priority;
                lock(&self.status).priority = priority;
                self.happens(if give_up {
                    Event::GiveUp { stay: false }
                } else {
                    Event::Changed
                });
            }
            Command::Ready(ready) => {
                self.settings.machine.ready = ready;
                self.happens(Event::Changed);
            }
            Command::Yield => self.happens(Event::GiveUp { stay: true }),
            Command::LinkChanged => self.check_link(),
            Command::Protect(protected) => self.settings.protected = protected,
            Command::Stop => {
                self.stopping = true;
                self.happens(Event::Shutdown);
            }
        }
    }

    /// What came in. A socket that fails has lost its interface.
    fn listen(&mut self) {
        for _ in 0..AT_ONCE {
            let Some(port) = &self.port else { return };
            let expected = Expected {
                virtual_router: self.settings.virtual_router,
                hop_limit: self.settings.hop_limit,
            };
            match port.receive(expected) {
                Ok(None) => return,
                Ok(Some(Ok((advertisement, checksum, source)))) => {
                    self.heard(&advertisement, checksum, source);
                }
                Ok(Some(Err(rejected))) => {
                    *lock(&self.status).rejected.entry(rejected).or_default() += 1;
                }
                Err(error) => {
                    self.leave_link(&error.to_string());
                    return;
                }
            }
        }
    }

    fn heard(&mut self, advertisement: &Advertisement, checksum: Checksum, source: IpAddr) {
        if self.settings.checksum == ChecksumChoice::Follow {
            self.checksum = checksum;
        }
        let heard = Heard {
            source,
            priority: advertisement.priority,
            interval: advertisement.interval,
        };
        let mut status = lock(&self.status);
        status.received += 1;
        status.checksum = self.checksum;
        status.heard = Some((heard, SystemTime::now()));
        drop(status);
        self.happens(Event::Received(heard));
    }

    fn look_at_clock(&mut self) {
        let time = now();
        if self.port.is_none() {
            if self.again <= time && !self.stopping {
                self.get_on_link();
            }
        } else if let Some(deadline) = self.state.deadline()
            && deadline <= time
        {
            let late = deadline.until(time);
            let mut status = lock(&self.status);
            status.latest = status.latest.max(late);
            drop(status);
            self.happens(Event::Timer);
        }
    }

    fn get_on_link(&mut self) {
        match Port::open(&self.settings.wanted) {
            Ok(port) => {
                self.settings.machine.address = port.source;
                lock(&self.status).source = Some(port.source);
                self.port = Some(port);
                self.apart(None);
                let lease = self.settings.lease.take();
                self.happens(Event::Startup { lease });
            }
            Err(error) => {
                // An earlier run's lease ends by itself, or is taken up in time.
                self.apart(Some(&error.to_string()));
                self.again = now() + RETRY;
            }
        }
    }

    fn check_link(&mut self) {
        match (&self.port, Port::open(&self.settings.wanted)) {
            (Some(port), Ok(found)) if port.index == found.index && port.source == found.source => {
            }
            (Some(_), Ok(_)) => self.leave_link("the interface or its address has changed"),
            (Some(_), Err(error)) => self.leave_link(&error.to_string()),
            (None, _) => self.again = now(),
        }
    }

    fn leave_link(&mut self, why: &str) {
        self.happens(Event::Fault);
        self.port = None;
        self.again = now();
        self.apart(Some(why));
    }

    fn apart(&mut self, why: Option<&str>) {
        let mut status = lock(&self.status);
        if status.apart.as_deref() == why {
            return;
        }
        status.apart = why.map(str::to_owned);
        drop(status);
        (self.outside.tell)(why.map_or(Report::OnLink, |why| Report::Apart(why.to_owned())));
    }

    /// One step and what comes of it. What was sent is told to the machine when
    /// everything else is done, for that may end what the step began.
    fn happens(&mut self, event: Event) {
        let mut next = Some((event, now()));
        while let Some((event, at)) = next.take() {
            let word = self.state.word();
            let (state, actions) = step(&self.settings.machine, self.state, event, at);
            self.state = state;
            // Before anybody is told: who is told looks at the state, and at once.
            let mut status = lock(&self.status);
            status.state = state;
            if state.word() != word {
                status.since = SystemTime::now();
            }
            drop(status);
            let mut sent = false;
            for action in actions {
                sent |= self.act(action);
            }
            if sent {
                next = Some((Event::Sent { at }, now()));
            }
        }
    }

    /// Does it; gives whether an advertisement went out.
    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Send { priority } => return self.send(priority),
            Action::RenewLease { until } => (self.outside.lease)(Some(until)),
            Action::TakeAddresses(taken) => {
                lock(&self.status).transitions += 1;
                (self.outside.tell)(Report::Taken(taken));
            }
            Action::ReleaseAddresses(released) => {
                (self.outside.lease)(None);
                lock(&self.status).transitions += 1;
                (self.outside.tell)(Report::Released(released));
            }
            Action::Announce => {
                if let Err(error) = self.announcer.announce(&self.settings.protected.places) {
                    log::warn!("cannot announce the addresses of services: {error}");
                }
            }
            Action::Rival(heard) => (self.outside.tell)(Report::Rival(heard)),
        }
        false
    }

    fn send(&mut self, priority: u8) -> bool {
        let Some(port) = &self.port else { return false };
        let advertisement = Advertisement {
            virtual_router: self.settings.virtual_router,
            priority,
            interval: self.settings.machine.interval,
            addresses: self.settings.protected.advertised.clone(),
        };
        let sent = port.send(&advertisement, self.checksum);
        let mut status = lock(&self.status);
        match sent {
            Ok(()) => status.sent += 1,
            Err(error) => {
                status.unsent += 1;
                drop(status);
                log::debug!("an advertisement of priority {priority} was not sent: {error}");
                return false;
            }
        }
        // A farewell renews nothing; the machine would ignore it.
        priority != LEAVING
    }
}

/// Asks for real-time priority for the calling thread; gives whether it has it.
/// Without CAP_SYS_NICE it has not, and is as punctual as the host is idle.
fn real_time() -> bool {
    let wish = libc::sched_param {
        sched_priority: REAL_TIME,
    };
    // SAFETY: the pointer is to a value that outlives the call; 0 is this thread.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const wish) };
    outcome == 0
}
