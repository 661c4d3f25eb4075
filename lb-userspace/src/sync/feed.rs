//! What the other node is told of this one's table: all of it at first, then what has
//! changed.
//!
//! The data path makes a byte non-zero for a bucket of the table in which an established
//! connection has come, has changed its state, or has gone: one store where a line of the
//! table is written anyhow, and nothing for a packet that changes nothing. There is no queue
//! of changes that could fill up. A changed bucket is read, and each of its places is
//! compared with what the other node was last told of it ([`Told`]); the difference is
//! sent. So changes that follow each other before the bucket is read are one change,
//! and as long as the other node lags, the bytes just stay as they are.
//!
//! What a session keeps is bounded by the size of the table, whatever the other node
//! does: eight bytes for each place (14 MB for a million flows), and four for each
//! bucket that was found changed and has not been read yet; between two sessions, up to
//! [`MOST_UNSAID`] flows besides.

use lb_common::abi::{Flow, FlowKey, TCP, tag};
use lb_common::flow::{ANSWERED, ESTABLISHED, ONE_WAY, ended};
use lb_common::{Address, Be16};
use lb_ebpf::{Memory, connections};

use super::message::{BATCH, Ends, Flows, Host, Record, TOLD};

/// How many flows are kept at the most that nobody could be told of: more than begin in
/// three intervals of a usual pair.
pub const MOST_UNSAID: usize = 65_536;

/// What the other node was told of a place.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Told {
    /// The version of the entry; 0 if it was told of nothing.
    version: u32,
    /// The bits of the state.
    state: u32,
}

/// What came of filling a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// There is more to say.
    Full,
    /// The walk through the whole table ends here.
    Snapshot,
    /// Everything that was found changed has been read.
    Done,
}

/// See the module.
pub struct Feed {
    told: Vec<Told>,
    /// Buckets that have changed and are to be read.
    changed: Vec<u32>,
    /// The next bucket of the walk through the whole table, while there is one.
    walk: Option<u32>,
    /// What nobody could be told of when it happened.
    unsaid: Vec<Flows>,
    /// This node has forwarded, and there may be something that it has not told of.
    owes: bool,
}

impl Feed {
    /// For a table of this shape.
    pub fn new(memory: &impl Memory) -> Self {
        Self {
            told: vec![Told::default(); connections::places(memory) as usize],
            changed: Vec::new(),
            walk: None,
            unsaid: Vec::new(),
            owes: true,
        }
    }

    /// The other node knows nothing: everything is to be said.
    pub fn begin_again(&mut self) {
        self.told.fill(Told::default());
        self.changed.clear();
        self.unsaid.clear();
        self.walk = Some(0);
        self.owes = true;
    }

    /// This node forwards.
    pub fn owe(&mut self) {
        self.owes = true;
    }

    /// Everything has been told, and this node forwards no longer.
    pub fn settle(&mut self) {
        self.owes = false;
    }

    /// Keeps what has changed and was not told, for when there is somebody to be told:
    /// a data path whose daemon was killed or frozen goes on until its lease is over, and
    /// by then the other node forwards. `take` gives the buckets that have changed. It is
    /// done once, for a node that has forwarded and does so no longer.
    pub fn keep_unsaid(&mut self, memory: &impl Memory, take: impl FnOnce(&mut Vec<u32>)) {
        if !std::mem::take(&mut self.owes) {
            return;
        }
        take(&mut self.changed);
        let mut kept = 0;
        while let Some(bucket) = self.changed.pop()
            && kept < MOST_UNSAID
        {
            let first = bucket * tag::WORDS;
            let records = (first..first + tag::WORDS).filter_map(|place| {
                let (key, flow) = established(memory, place)?;
                Some(record(place, &key, &flow))
            });
            let full = self.unsaid.last().is_none_or(|flows| !has_room(flows));
            if full {
                self.unsaid.push(Flows::default());
            }
            if let Some(flows) = self.unsaid.last_mut() {
                let before = flows.len();
                flows.there.extend(records);
                kept += flows.len() - before;
            }
        }
        self.changed.clear();
    }

    /// What was kept, which is kept no longer.
    pub fn unsaid(&mut self) -> Vec<Flows> {
        std::mem::take(&mut self.unsaid)
    }

    /// How many buckets are known to have changed and have not been read.
    pub fn unread(&self) -> usize {
        self.changed.len()
    }

    /// Puts into a message what is to be said next. `take` gives the buckets that have
    /// changed, and from then on they have not; it is asked once at the most.
    pub fn fill(
        &mut self,
        memory: &impl Memory,
        take: impl FnOnce(&mut Vec<u32>),
        flows: &mut Flows,
    ) -> Filled {
        if let Some(next) = self.walk {
            let buckets = memory.shape().tag_buckets;
            for bucket in next..buckets {
                if !has_room(flows) {
                    self.walk = Some(bucket);
                    return Filled::Full;
                }
                self.read(memory, bucket, flows);
            }
            self.walk = None;
            return Filled::Snapshot;
        }
        if self.changed.is_empty() {
            take(&mut self.changed);
        }
        while has_room(flows) {
            let Some(bucket) = self.changed.pop() else {
                return Filled::Done;
            };
            self.read(memory, bucket, flows);
        }
        Filled::Full
    }

    /// Compares a bucket with what was told of it.
    fn read(&mut self, memory: &impl Memory, bucket: u32, flows: &mut Flows) {
        let first = bucket * tag::WORDS;
        for place in first..first + tag::WORDS {
            let Some(told) = self.told.get_mut(place as usize) else {
                return;
            };
            match established(memory, place) {
                Some((key, flow)) => {
                    let now = Told {
                        version: flow.life.version,
                        state: flow.life.state & TOLD,
                    };
                    if *told != now {
                        *told = now;
                        flows.there.push(record(place, &key, &flow));
                    }
                }
                None if *told != Told::default() => {
                    *told = Told::default();
                    flows.gone.push(place);
                }
                None => {}
            }
        }
    }
}

/// Whether what another bucket has to say fits, too.
const fn has_room(flows: &Flows) -> bool {
    flows.len() + tag::WAYS as usize <= BATCH
}

/// The connection at this place, if it lives and its client has proved itself.
pub(super) fn established(memory: &impl Memory, place: u32) -> Option<(FlowKey, Flow)> {
    let lives = |state: u32| state & ESTABLISHED != 0 && !ended(state);
    if place % tag::WORDS == tag::own(place / tag::WORDS) {
        return None;
    }
    // A look at one word first: of a flood's half-open ones nothing more is read.
    let (state, _) = connections::stands(memory.connection(place)?);
    if !lives(state) {
        return None;
    }
    connections::at(memory, place).filter(|(_, flow)| lives(flow.life.state))
}

/// The connection of TCP at this place, if its backend has answered, or its answers are
/// not seen, and its client has not proved itself.
fn half_open(memory: &impl Memory, place: u32) -> Option<(FlowKey, Flow)> {
    let waits =
        |state: u32| state & ESTABLISHED == 0 && state & (ANSWERED | ONE_WAY) != 0 && !ended(state);
    if place % tag::WORDS == tag::own(place / tag::WORDS) {
        return None;
    }
    let (state, _) = connections::stands(memory.connection(place)?);
    if !waits(state) {
        return None;
    }
    let found = connections::at(memory, place)?;
    (waits(found.1.life.state) && found.0.protocol == u32::from(TCP)).then_some(found)
}

/// What is to be told, when a node stops forwarding, of connections that are just
/// beginning: their clients' proofs go to the other node. From this bucket on, as much
/// as fits; gives the bucket to go on with, or nothing if it was the last one.
pub fn unfinished(memory: &impl Memory, from: u32, flows: &mut Flows) -> Option<u32> {
    for bucket in from..memory.shape().tag_buckets {
        if !has_room(flows) {
            return Some(bucket);
        }
        let first = bucket * tag::WORDS;
        let waiting = (first..first + tag::WORDS)
            .filter_map(|place| Some((place, half_open(memory, place)?)));
        flows
            .there
            .extend(waiting.map(|(place, (key, flow))| Record {
                proof: flow.life.proof,
                ..record(place, &key, &flow)
            }));
    }
    None
}

/// How a flow is told of.
fn record(place: u32, key: &FlowKey, flow: &Flow) -> Record {
    let ends = if key.src.is_v4() {
        Ends::V4 {
            client: key.src.low4(),
            service: key.dst.low4(),
        }
    } else {
        Ends::V6 {
            client: key.src.octets(),
            service: key.dst.octets(),
        }
    };
    let ports = [key.src_port, key.dst_port, flow.src_port, flow.dst_port];
    Record {
        place,
        kind: Record::kind(flow.forward(), key.protocol == u32::from(TCP)),
        // The bits of TOLD fit into a byte.
        state: (flow.life.state & TOLD) as u8,
        ends,
        backend: host(&flow.dst),
        ports: ports.map(Be16::to_wire),
        proof: 0,
    }
}

fn host(address: &Address) -> Host {
    if address.is_v4() {
        Host::V4(address.low4())
    } else {
        Host::V6(address.octets())
    }
}
