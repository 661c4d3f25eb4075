//! A link, some nodes on it, and everything that may happen to them, in simulated
//! time. All of it follows from a seed.
//!
//! A node here is what the driver, the data path and the kernel are to the machine:
//! it hears before it looks at its timer, it can be slow, frozen or killed, its
//! clock is off in value and in rate; and its data path goes on by itself until
//! the lease is over, whatever has become of the process. All times are in
//! nanoseconds; `now` is the world's time, which no node knows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::time::Duration;

use fastrand::Rng;
use lb_userspace::vrrp::machine::{Action, Config, Event, Heard, Moment, State, Taken, step};

/// More messages than a socket's buffer holds are lost.
const BUFFER: usize = 64;

/// What the link does to messages.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Link {
    /// The least time that a message takes.
    pub(super) delay: u64,
    /// What may come on top of that.
    pub(super) jitter: u64,
    /// Of a hundred messages so many are lost.
    pub(super) loss: u32,
    /// Of a hundred messages so many come twice.
    pub(super) twice: u32,
}

/// How well the nodes' hosts do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hosts {
    /// How late a node may be woken.
    pub(super) slow: u64,
    /// Of a thousand sendings so many are interrupted, for up to `stutter`.
    pub(super) stutters: u32,
    /// For how long at most.
    pub(super) stutter: u64,
    /// Of a thousand sendings so many fail.
    pub(super) failures: u32,
}

/// Whether a node's process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Process {
    Runs,
    /// Until then. What arrives waits for it.
    Frozen(u64),
    Gone,
}

/// A time in which a node's data path acted, and why it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reign {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) taken: Taken,
}

pub(super) struct Node {
    pub(super) config: Config,
    pub(super) state: State,
    pub(super) process: Process,
    /// How far its clock is off.
    offset: u64,
    /// By how many millionths its clock is fast.
    fast: i64,
    inbox: Vec<Heard>,
    /// Wakes that were asked for before this one are void.
    asked: u64,
    /// Whether the addresses are on its interface.
    held: bool,
    /// Whether it ends as soon as it takes no part any more.
    pub(super) stopping: bool,
    /// When its data path acted.
    pub(super) reigns: Vec<Reign>,
    /// When it told its neighbours where the addresses are.
    pub(super) announced: Vec<u64>,
}

/// What is to happen.
#[derive(Debug)]
enum Due {
    Arrives { at: usize, heard: Heard },
    Wakes { node: usize, asked: u64 },
    Happens(usize, Fate),
}

/// What may happen to a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Starts,
    Stops,
    Killed,
    Frozen {
        until: u64,
    },
    Told(Event),
    Priority(u8),
    Ready(bool),
    /// From here nothing reaches that node, until told otherwise.
    Deaf {
        to: usize,
        deaf: bool,
    },
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) link: Link,
    pub(super) hosts: Hosts,
    pub(super) nodes: Vec<Node>,
    pub(super) steps: u64,
    deaf: Vec<Vec<bool>>,
    rng: Rng,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    what: Vec<Option<Due>>,
}

impl Node {
    pub(super) fn new(config: Config, offset: u64, fast: i64) -> Self {
        Self {
            config,
            state: State::Initialize,
            process: Process::Gone,
            offset,
            fast,
            inbox: Vec::new(),
            asked: 0,
            held: false,
            stopping: false,
            reigns: Vec::new(),
            announced: Vec::new(),
        }
    }

    /// What its clock shows.
    fn clock(&self, now: u64) -> Moment {
        let drift = i128::from(now) * i128::from(self.fast) / 1_000_000;
        let shows = i128::from(now) + i128::from(self.offset) + drift;
        Moment::since_start(Duration::from_nanos(shows as u64))
    }

    /// When its clock will show it.
    fn world_time(&self, moment: Moment) -> u64 {
        let shows = moment.elapsed().as_nanos() as i128 - i128::from(self.offset);
        let mut time = (shows * 1_000_000 / (1_000_000 + i128::from(self.fast))) as u64;
        while self.clock(time) < moment {
            time += 1;
        }
        time
    }

    /// Whether its data path acts.
    pub(super) fn reigns_at(&self, now: u64) -> bool {
        self.reigns.last().is_some_and(|reign| now < reign.to)
    }
}

impl World {
    pub(super) fn new(nodes: Vec<Node>, link: Link, hosts: Hosts, rng: Rng) -> Self {
        Self {
            // Clocks that are slow begin later than their start.
            now: 1_000_000_000,
            link,
            hosts,
            steps: 0,
            deaf: vec![vec![false; nodes.len()]; nodes.len()],
            nodes,
            rng,
            due: BinaryHeap::new(),
            what: Vec::new(),
        }
    }

    pub(super) fn fate(&mut self, at: u64, node: usize, fate: Fate) {
        self.plan(at, Due::Happens(node, fate));
    }

    fn plan(&mut self, at: u64, due: Due) {
        self.due.push(Reverse((at, self.what.len() as u64)));
        self.what.push(Some(due));
    }

    /// Lets everything happen that happens before `end`.
    pub(super) fn run_until(&mut self, end: u64) {
        while let Some(&Reverse((at, number))) = self.due.peek() {
            if at >= end {
                break;
            }
            self.due.pop();
            self.now = self.now.max(at);
            match self.what[number as usize].take().expect("each is due once") {
                Due::Arrives { at, heard } => self.arrives(at, heard),
                Due::Wakes { node, asked } => {
                    if self.nodes[node].asked == asked {
                        self.wakes(node);
                    }
                }
                Due::Happens(node, fate) => self.happens(node, fate),
            }
        }
        self.now = end;
    }

    fn arrives(&mut self, at: usize, heard: Heard) {
        let node = &mut self.nodes[at];
        match node.process {
            Process::Gone => {}
            Process::Runs | Process::Frozen(_) => {
                if node.inbox.len() < BUFFER {
                    node.inbox.push(heard);
                }
                // Who has others waiting is woken for them already.
                if node.process == Process::Runs && node.inbox.len() == 1 {
                    self.wake_soon(at, self.now);
                }
            }
        }
    }

    /// As soon as the host has time for it.
    fn wake_soon(&mut self, node: usize, at: u64) {
        let late = self.rng.u64(0..=self.hosts.slow);
        self.nodes[node].asked += 1;
        let asked = self.nodes[node].asked;
        self.plan(at.max(self.now) + late, Due::Wakes { node, asked });
    }

    /// The driver's loop: what was heard comes before what the timer says.
    fn wakes(&mut self, node: usize) {
        match self.nodes[node].process {
            Process::Gone => return,
            Process::Frozen(until) if self.now < until => return,
            Process::Frozen(_) | Process::Runs => self.nodes[node].process = Process::Runs,
        }
        let mut time = self.now;
        for heard in std::mem::take(&mut self.nodes[node].inbox) {
            time = self.event(node, Event::Received(heard), time);
        }
        let due = self.nodes[node].state.deadline();
        if due.is_some_and(|due| due <= self.nodes[node].clock(time)) {
            time = self.event(node, Event::Timer, time);
            let next = self.nodes[node].state.deadline();
            assert!(
                next.is_none_or(|next| next > due.expect("it was due")),
                "it would spin: {:?}",
                self.nodes[node].state
            );
        }
        self.sleep(node, time);
    }

    /// Until the deadline, or for as long as a sending took.
    fn sleep(&mut self, node: usize, time: u64) {
        if self.nodes[node].process == Process::Gone {
            return;
        }
        if time > self.now {
            self.nodes[node].process = Process::Frozen(time);
            self.wake_soon(node, time);
        } else if self.nodes[node].inbox.is_empty()
            && let Some(deadline) = self.nodes[node].state.deadline()
        {
            let at = self.nodes[node].world_time(deadline);
            self.wake_soon(node, at);
        }
    }

    fn happens(&mut self, number: usize, fate: Fate) {
        let now = self.now;
        let node = &mut self.nodes[number];
        match fate {
            Fate::Starts => {
                if node.stopping {
                    // Its successor waits until it has ended.
                    let interval = node.config.interval.duration().as_nanos() as u64;
                    self.fate(now + interval, number, Fate::Starts);
                    return;
                }
                if node.process != Process::Gone {
                    return;
                }
                node.process = Process::Runs;
                node.state = State::Initialize;
                node.inbox.clear();
                // What the data path still has.
                let lease = node.reigns.last().map(|reign| reign.to);
                let lease = lease.filter(|&to| now < to).map(|to| node.clock(to));
                // What was on the interface was taken off, or is taken over.
                node.held = false;
                let time = self.event(number, Event::Startup { lease }, now);
                self.sleep(number, time);
            }
            Fate::Killed => {
                node.process = Process::Gone;
                node.stopping = false;
                node.inbox.clear();
                node.asked += 1;
            }
            Fate::Frozen { until } => {
                if node.process == Process::Runs {
                    node.process = Process::Frozen(until);
                    self.wake_soon(number, until);
                }
            }
            Fate::Deaf { to, deaf } => self.deaf[to][number] = deaf,
            Fate::Stops => {
                self.nodes[number].stopping = self.nodes[number].process == Process::Runs;
                self.told(number, Event::Shutdown);
            }
            Fate::Told(event) => self.told(number, event),
            Fate::Priority(priority) => {
                node.config.priority = priority;
                self.told(number, Event::Changed);
            }
            Fate::Ready(ready) => {
                node.config.ready = ready;
                self.told(number, Event::Changed);
            }
        }
    }

    /// A process that does not run hears nothing.
    fn told(&mut self, node: usize, event: Event) {
        if self.nodes[node].process == Process::Runs {
            let time = self.event(node, event, self.now);
            self.sleep(node, time);
        }
    }

    /// One step and what comes of it, from `time` on; gives when it is done.
    fn event(&mut self, number: usize, event: Event, time: u64) -> u64 {
        self.steps += 1;
        let mut time = time;
        let node = &mut self.nodes[number];
        let stepped = node.clock(time);
        let (next, actions) = step(&node.config, node.state, event, stepped);
        node.state = next;
        let mut sent = false;
        for action in actions {
            match action {
                Action::Send { priority } => {
                    time += self.stutter();
                    sent |= self.sends(number, priority, time);
                }
                Action::TakeAddresses(taken) => {
                    let node = &mut self.nodes[number];
                    node.held = true;
                    if let Some(reign) = node.reigns.last_mut().filter(|reign| time < reign.to) {
                        reign.taken = taken;
                    }
                }
                Action::ReleaseAddresses(_) => self.release(number, time),
                Action::RenewLease { until } => self.renew(number, until, time),
                Action::Announce => self.nodes[number].announced.push(time),
                Action::Rival(_) => {}
            }
        }
        let node = &self.nodes[number];
        assert_eq!(node.held, node.state.holds_addresses(), "{:?}", node.state);
        if sent {
            // After everything else: it may end what was just begun.
            time = self.event(number, Event::Sent { at: stepped }, time);
        }
        let node = &mut self.nodes[number];
        if node.stopping && node.state == State::Initialize {
            node.process = Process::Gone;
            node.stopping = false;
            node.inbox.clear();
            node.asked += 1;
        }
        time
    }

    /// How long the process is interrupted between a step and its sending.
    fn stutter(&mut self) -> u64 {
        if self.rng.u32(0..1_000) < self.hosts.stutters {
            self.rng.u64(0..=self.hosts.stutter)
        } else {
            0
        }
    }

    /// Whether it went out; that it arrives is another matter.
    fn sends(&mut self, from: usize, priority: u8, time: u64) -> bool {
        if self.rng.u32(0..1_000) < self.hosts.failures {
            return false;
        }
        let heard = Heard {
            source: self.nodes[from].config.address,
            priority,
            interval: self.nodes[from].config.interval,
        };
        for to in (0..self.nodes.len()).filter(|&to| to != from) {
            if self.deaf[to][from] || self.rng.u32(0..100) < self.link.loss {
                continue;
            }
            let copies = 1 + usize::from(self.rng.u32(0..100) < self.link.twice);
            for _ in 0..copies {
                let delay = self.link.delay + self.rng.u64(0..=self.link.jitter);
                self.plan(time + delay, Due::Arrives { at: to, heard });
            }
        }
        true
    }

    fn renew(&mut self, number: usize, until: Moment, time: u64) {
        let node = &mut self.nodes[number];
        let to = node.world_time(until);
        match node.reigns.last_mut() {
            Some(reign) if time < reign.to => reign.to = to,
            Some(_) | None if time < to => {
                // Why is told with the addresses, right after.
                let (from, taken) = (time, Taken::Nobody);
                node.reigns.push(Reign { from, to, taken });
            }
            Some(_) | None => {}
        }
    }

    fn release(&mut self, number: usize, time: u64) {
        let node = &mut self.nodes[number];
        node.held = false;
        if let Some(reign) = node.reigns.last_mut() {
            reign.to = reign.to.min(time);
        }
    }
}

/// The address of a node.
pub(super) fn address(number: usize) -> IpAddr {
    [10, 0, 0, number as u8 + 1].into()
}
