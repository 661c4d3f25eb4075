//! What the other node is told of this one's table: all of it at first, then what has
//! changed.
//!
//! The data path makes a byte non-zero for a bucket of the table in which something
//! has begun, has changed its state, or has gone: one store where a line of the table
//! is written anyhow, and nothing for a packet that changes nothing. There is no queue
//! of changes that could fill up. A changed bucket is read, and each of its places is
//! compared with what the other node was last told of it ([`Told`]); the difference is
//! sent. So changes that follow each other before the bucket is read are one change,
//! and as long as the other node lags, the bytes just stay as they are.
//!
//! What a session keeps is bounded by the size of the table, whatever the other node
//! does: eight bytes for each place (14 MB for a million flows), and four for each
//! bucket that was found changed and has not been read yet.

use lb_common::abi::{Flow, FlowKey, TCP, tag};
use lb_common::flow::{ANSWERED, ESTABLISHED, ONE_WAY, ended};
use lb_common::{Address, Be16};
use lb_ebpf::{Memory, connections};

use super::message::{BATCH, Ends, Flows, Host, Record, TOLD};

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
}

impl Feed {
    /// For a table of this shape.
    pub fn new(memory: &impl Memory) -> Self {
        Self {
            told: vec![Told::default(); connections::places(memory) as usize],
            changed: Vec::new(),
            walk: None,
        }
    }

    /// The other node knows nothing: everything is to be said.
    pub fn begin_again(&mut self) {
        self.told.fill(Told::default());
        self.changed.clear();
        self.walk = Some(0);
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

/// The connection at this place, if its backend has answered and its client has not
/// proved itself.
fn half_open(memory: &impl Memory, place: u32) -> Option<(FlowKey, Flow)> {
    let waits =
        |state: u32| state & (ESTABLISHED | ONE_WAY) == 0 && state & ANSWERED != 0 && !ended(state);
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
