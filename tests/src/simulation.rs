//! Simulated connections, to measure what a scheduler does with them: how
//! evenly it gives them out, and how many it would give to another backend than
//! before when the backends are not what they were.
//!
//! The slots come from the controller's own schedulers, the way of picking
//! among them is the data path's. In the balancer a known connection stays where
//! it is, whatever the scheduler would say now; what is measured here is what
//! the scheduler says without that memory: of connections that two nodes hear
//! one after the other, or of a client's next one.

use std::collections::BTreeMap;

use lb_common::abi::{FlowKey, TCP, pick};
use lb_common::{Address, Be16};
use lb_ebpf::schedule::{flow_hash, source_hash};
use lb_userspace::model::endpoint;
use lb_userspace::schedule::{Candidate, Scheduler, WHOLE, backend_of, weight_of};

/// How many connections are simulated.
pub const FLOWS: usize = 1_000_000;

/// How many client addresses they come from.
pub const CLIENTS: usize = 200_000;

/// How many equal backends there are, where all are equal.
pub const EQUAL: usize = 100;

/// The weights where they are not.
pub const WEIGHTS: [u16; 6] = [50, 25, 10, 8, 4, 3];

/// Which of the equal backends goes down, or out of the file.
const GONE: usize = 42;

/// The connections, from random clients and ports; the same in every run.
pub fn flows() -> Vec<FlowKey> {
    let mut random = fastrand::Rng::with_seed(4);
    let clients: Vec<[u8; 4]> = (0..CLIENTS)
        .map(|_| random.u32(0x0100_0000..0xdf00_0000).to_be_bytes())
        .collect();
    (0..FLOWS)
        .map(|_| FlowKey {
            src: Address::v4(clients[random.usize(0..CLIENTS)]),
            dst: Address::v4([203, 0, 113, 10]),
            src_port: Be16::new(random.u16(1024..)),
            dst_port: Be16::new(443),
            protocol: u32::from(TCP),
        })
        .collect()
}

/// Backends numbered from 0, each with its whole weight.
pub fn backends(weights: impl IntoIterator<Item = u16>) -> Vec<Candidate> {
    (0_u32..)
        .zip(weights)
        .map(|(number, weight)| {
            let [_, _, high, low] = number.to_be_bytes();
            Candidate {
                number,
                endpoint: endpoint(([10, 0, high, low], 8443).into(), u16::from(TCP)),
                weight,
                part: WHOLE,
            }
        })
        .collect()
}

/// The backend's number for each of the flows, one after the other.
pub fn choices(scheduler: &Scheduler, backends: &[Candidate], flows: &[FlowKey]) -> Vec<u32> {
    let slots = scheduler.sequence(backends).slots;
    let at = |hash: u32| backend_of(slots[hash as usize % slots.len()]);
    match scheduler.pick {
        pick::TURN => slots
            .iter()
            .cycle()
            .take(flows.len())
            .copied()
            .map(backend_of)
            .collect(),
        pick::FLOW_HASH => flows.iter().map(|flow| at(flow_hash(flow))).collect(),
        pick::SOURCE_HASH => flows
            .iter()
            .map(|flow| at(source_hash(&flow.src)))
            .collect(),
        pick::LEAST => {
            let mut least = Least::new(&slots);
            flows.iter().map(|_| least.begin()).collect()
        }
        other => unreachable!("no way of picking has the number {other}"),
    }
}

/// Live connections, and the rule of [`pick::LEAST`].
pub struct Least {
    slots: Vec<u64>,
    live: Vec<u64>,
    cursor: usize,
}

impl Least {
    /// Nobody has a connection yet.
    pub fn new(slots: &[u64]) -> Self {
        Self {
            slots: slots.to_vec(),
            live: vec![0; slots.len()],
            cursor: 0,
        }
    }

    /// A connection begins: at the backend with the fewest for its weight, this
    /// one counted; of equals at the first from the cursor on.
    pub fn begin(&mut self) -> u32 {
        let length = self.slots.len();
        let start = self.cursor % length;
        self.cursor += 1;
        let mut best = start;
        for place in (start + 1..length).chain(0..start) {
            let load = (self.live[place] + 1) * u64::from(weight_of(self.slots[best]));
            let least = (self.live[best] + 1) * u64::from(weight_of(self.slots[place]));
            if load < least {
                best = place;
            }
        }
        self.live[best] += 1;
        backend_of(self.slots[best])
    }

    /// A connection of this backend ends.
    pub fn end(&mut self, backend: u32) {
        let place = self
            .slots
            .iter()
            .position(|&slot| backend_of(slot) == backend);
        if let Some(place) = place {
            self.live[place] -= 1;
        }
    }

    /// The live connections of each for its weight.
    pub fn loads(&self) -> impl Iterator<Item = f64> {
        let load = |(&slot, &live): (&u64, &u64)| live as f64 / f64::from(weight_of(slot));
        self.slots.iter().zip(&self.live).map(load)
    }
}

/// What each backend got, relative to what its weight asks for: 1.0 is exact.
pub fn distribution(backends: &[Candidate], choices: &[u32]) -> Vec<f64> {
    let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
    for &backend in choices {
        *counts.entry(backend).or_default() += 1;
    }
    let all: u64 = backends.iter().map(Candidate::weight_now).sum();
    backends
        .iter()
        .map(|backend| {
            let got = counts.get(&backend.number).copied().unwrap_or(0) as f64;
            let due = choices.len() as f64 * backend.weight_now() as f64 / all as f64;
            got / due
        })
        .collect()
}

/// The part of the flows that were not `gone`'s and go elsewhere now.
pub fn moved(before: &[u32], after: &[u32], gone: Option<u32>) -> f64 {
    let others = || {
        before
            .iter()
            .zip(after)
            .filter(|(was, _)| Some(**was) != gone)
    };
    let moved = others().filter(|(was, is)| was != is).count();
    moved as f64 / others().count() as f64
}

/// What a scheduler does with the flows.
pub struct Measured {
    /// Whose figures these are.
    pub scheduler: &'static Scheduler,
    /// What each of [`EQUAL`] backends got of what is due.
    pub equal: Vec<f64>,
    /// What each of those with [`WEIGHTS`] got of what is due.
    pub weighted: Vec<f64>,
    /// What each of the others got when one of the equal ones is down.
    pub without_one: Vec<f64>,
    /// The part of the others' flows that moves when one of the equal ones goes
    /// down.
    pub moved_by_down: f64,
    /// The same when a second one goes down.
    pub moved_by_second: f64,
    /// The same when one is taken out of the file.
    pub moved_by_removal: f64,
    /// The part of all flows that moves, but not to the new one, when one is
    /// added to the file.
    pub moved_by_addition: f64,
}

/// Measures one scheduler.
pub fn measure(scheduler: &'static Scheduler, flows: &[FlowKey]) -> Measured {
    let equal = backends([1; EQUAL]);
    let number = GONE as u32;
    let mut down = equal.clone();
    down[GONE].part = 0;
    let mut both_down = down.clone();
    both_down[7].part = 0;
    let mut removed = equal.clone();
    removed.remove(GONE);
    let added = backends([1; EQUAL + 1]);
    let before = choices(scheduler, &equal, flows);
    let after = choices(scheduler, &down, flows);
    let mut without_one = distribution(&down, &after);
    without_one.remove(GONE);
    let weighted = backends(WEIGHTS);
    let grown = choices(scheduler, &added, flows);
    Measured {
        scheduler,
        equal: distribution(&equal, &before),
        weighted: distribution(&weighted, &choices(scheduler, &weighted, flows)),
        without_one,
        moved_by_down: moved(&before, &after, Some(number)),
        moved_by_second: moved(&after, &choices(scheduler, &both_down, flows), Some(7)),
        moved_by_removal: moved(&before, &choices(scheduler, &removed, flows), Some(number)),
        // The way back: what is not the new one's now was the same one's before.
        moved_by_addition: moved(&grown, &before, Some(EQUAL as u32)),
    }
}
