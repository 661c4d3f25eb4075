//! The data path on the host: packets in a vector, tables in ordinary
//! collections.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use anyhow::{Result, ensure};
use bytemuck::Zeroable;
use lb_common::abi::{
    Affinity, AffinityKey, AnswerBucket, Backend, Connection, DropKey, Endpoint, Flow, FlowKey,
    Fragment, FragmentKey, NextHop, Party, Policy, Settings, Tagged, hop, shared, sieve, tag,
};
use lb_common::verdict::Action;
use lb_common::{Address, Be16, Verdict, Word};
use lb_ebpf::steer::Attribution;
use lb_ebpf::{Displaced, Hop, Memory, Packet, Room, RouteQuery, Shape, Tables, Wire, connections};

use crate::network;
use crate::world::{Outcome, ROOM, Side, State, World};

/// What there is in front of a frame in the kernel (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: usize = 256;

/// A frame on the host.
pub struct HostPacket {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The index of the interface it came in by.
    pub ingress: u32,
    /// How many more bytes there is room for in front of them.
    pub headroom: usize,
}

impl Packet for HostPacket {
    fn at<H: Wire>(&mut self, offset: u32) -> Result<&mut H, Verdict> {
        let header = self
            .bytes
            .get_mut(offset as usize..)
            .and_then(|rest| rest.get_mut(..size_of::<H>()))
            .ok_or(Verdict::Truncated)?;
        // SAFETY: the slice is of the header's size and borrowed for as long
        // as the reference lives; `Wire` promises alignment 1 and that any
        // bytes are a value.
        Ok(unsafe { &mut *header.as_mut_ptr().cast::<H>() })
    }

    fn shift_head(&mut self, bytes: i32) -> Result<(), Verdict> {
        match usize::try_from(bytes) {
            Ok(more) if more <= self.headroom => {
                // Not zero: nothing may rely on it.
                self.bytes.splice(0..0, std::iter::repeat_n(0xdb, more));
                Ok(())
            }
            Ok(_) => Err(Verdict::NoHeadroom),
            Err(_) => {
                self.bytes.drain(..bytes.unsigned_abs() as usize);
                Ok(())
            }
        }
    }

    fn cut_to(&mut self, length: u32) -> Result<(), Verdict> {
        self.bytes.truncate(length as usize);
        Ok(())
    }

    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }
}

/// What the routing table says; and what happens meanwhile to the tables.
pub type Routing = Rc<dyn Fn(&HostTables, &mut RouteQuery) -> Result<Hop, Verdict>>;

struct Sequence {
    slots: Vec<u64>,
    cursor: Cell<u64>,
}

/// The tables on the host.
pub struct HostTables {
    settings: Settings,
    now: Cell<u32>,
    lease: Cell<u64>,
    endpoints: BTreeMap<Endpoint, Party>,
    backends: HashMap<u32, Backend>,
    sequences: HashMap<u32, Sequence>,
    policies: HashMap<u32, Policy>,
    sieve: BTreeMap<u32, u64>,
    headroom: usize,
    connections: Vec<Connection>,
    answers: Vec<AnswerBucket>,
    live: Vec<Word<u64>>,
    affinities: RefCell<BTreeMap<AffinityKey, Affinity>>,
    churned: Cell<u32>,
    hops: Vec<NextHop>,
    changes: Cell<u32>,
    vouched: Cell<u32>,
    routing: RefCell<Routing>,
    asked: Cell<u32>,
    fragments: RefCell<BTreeMap<FragmentKey, Fragment>>,
    fresh_ids: RefCell<HashMap<u32, u32>>,
    interfaces: BTreeMap<Tagged, u32>,
    exits: BTreeMap<u32, Tagged>,
    told: [Cell<u32>; 2],
    /// The counters alone; flows and turns are added when it is asked for.
    counted: RefCell<State>,
}

impl HostTables {
    /// Tables for this world, without flows.
    pub fn new(world: &World) -> Self {
        let sequence = |service: &crate::world::Service| Sequence {
            slots: service.sequence.clone(),
            cursor: Cell::new(0),
        };
        Self {
            settings: world.settings,
            now: Cell::new(0),
            lease: Cell::new(0),
            endpoints: world.endpoints(),
            backends: (world.backends.iter())
                .map(|member| (member.number, member.entry()))
                .collect(),
            sequences: (world.services.iter())
                .map(|service| (service.number, sequence(service)))
                .collect(),
            policies: (world.services.iter())
                .map(|service| (service.number, service.policy))
                .collect(),
            sieve: world.sieve(),
            headroom: world.headroom,
            connections: many(world.settings.tag_buckets * tag::WORDS),
            answers: many(world.settings.answer_buckets),
            live: many(ROOM),
            affinities: RefCell::default(),
            churned: Cell::new(0),
            hops: many(hop::PLACES),
            changes: Cell::new(0),
            vouched: Cell::new(0),
            routing: RefCell::new(Rc::new(|_, query| network::hop(query))),
            asked: Cell::new(0),
            fragments: RefCell::default(),
            fresh_ids: RefCell::default(),
            interfaces: network::interfaces(),
            exits: network::exits(),
            told: [Cell::new(0), Cell::new(0)],
            counted: RefCell::default(),
        }
    }

    /// Sets the clock.
    pub fn set_now(&self, ticks: u32) {
        self.now.set(ticks);
    }

    /// Counts a change on which what flows have noted depends.
    pub fn count_change(&self) {
        self.changes.set(self.changes.get().wrapping_add(1));
    }

    /// Vouches until then for counting every change.
    pub fn vouch(&self, until: u32) {
        self.vouched.set(until);
    }

    /// The routing table says something else from now on.
    pub fn route_by(
        &self,
        routing: impl Fn(&Self, &mut RouteQuery) -> Result<Hop, Verdict> + 'static,
    ) {
        *self.routing.borrow_mut() = Rc::new(routing);
    }

    /// How often the routing table was asked.
    pub fn asked(&self) -> u32 {
        self.asked.get()
    }

    /// Marks a backend, or takes marks away; the change is not counted.
    pub fn mark(&mut self, backend: u32, flags: u8) {
        if let Some(entry) = self.backends.get_mut(&backend) {
            entry.flags = flags;
        }
    }

    /// Gives a service another sequence, from its beginning.
    pub fn set_slots(&mut self, service: u32, slots: &[u64]) {
        let sequence = Sequence {
            slots: slots.to_vec(),
            cursor: Cell::new(0),
        };
        self.sequences.insert(service, sequence);
    }

    /// What the tables hold.
    pub fn state(&self) -> State {
        let mut state = State {
            live: (0..ROOM)
                .map(|backend| (backend, self.live[backend as usize].load()))
                .filter(|(_, live)| *live != 0)
                .collect(),
            fragments: (self.fragments.borrow().iter())
                .map(|(key, fragment)| {
                    (
                        *key,
                        Fragment {
                            seen: 0,
                            ..*fragment
                        },
                    )
                })
                .collect(),
            turns: (self.sequences.iter())
                .map(|(service, sequence)| (*service, sequence.cursor.get()))
                .collect(),
            ..self.counted.borrow().clone()
        };
        state.read_flows(self);
        state
    }
}

fn many<T: Default>(count: u32) -> Vec<T> {
    (0..count).map(|_| T::default()).collect()
}

impl Memory for HostTables {
    fn shape(&self) -> Shape {
        Shape {
            tag_buckets: self.settings.tag_buckets,
            answer_buckets: self.settings.answer_buckets,
            seed: self.settings.seed,
        }
    }

    fn connection(&self, place: u32) -> Option<&Connection> {
        self.connections.get(place as usize)
    }

    fn answers(&self, bucket: u32) -> Option<&AnswerBucket> {
        self.answers.get(bucket as usize)
    }

    fn exchange(&self, word: &Word<u32>, old: u32, new: u32) -> bool {
        let same = word.load() == old;
        if same {
            word.store(new);
        }
        same
    }

    fn exchange_wide(&self, word: &Word<u64>, old: u64, new: u64) -> bool {
        let same = word.load() == old;
        if same {
            word.store(new);
        }
        same
    }

    fn add(&self, word: &Word<u32>, by: i32) {
        word.store(word.load().wrapping_add_signed(by));
    }

    fn add_wide(&self, word: &Word<u64>, by: i64) {
        word.store(word.load().wrapping_add_signed(by));
    }

    fn swap_wide(&self, word: &Word<u64>, new: u64) -> u64 {
        let old = word.load();
        word.store(new);
        old
    }

    fn count_live(&self, backend: u32, by: i32) {
        if let Some(live) = self.live.get(backend as usize) {
            live.store(live.load().wrapping_add_signed(i64::from(by)));
        }
    }
}

impl Tables for HostTables {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn now(&self) -> u32 {
        self.now.get()
    }

    fn may_act(&self) -> bool {
        self.settings.paired == 0 || u64::from(self.now.get()) < self.lease.get()
    }

    fn party(&self, endpoint: &Endpoint) -> Option<Party> {
        self.endpoints.get(endpoint).copied()
    }

    fn may_have(&self, first: u32, address: &Address, port: Be16) -> bool {
        let (word, bit) = sieve::place(first, address, port);
        self.sieve.get(&word).is_some_and(|word| word & bit != 0)
    }

    fn policy(&self, service: u32) -> Policy {
        self.policies.get(&service).copied().unwrap_or_default()
    }

    fn slots(&self, service: u32) -> u32 {
        (self.sequences.get(&service)).map_or(0, |sequence| sequence.slots.len() as u32)
    }

    fn slot(&self, service: u32, place: u32) -> Option<u64> {
        (self.sequences.get(&service)?.slots.get(place as usize)).copied()
    }

    fn hashed_slot(&self, service: u32, hash: u32) -> Option<u64> {
        let length = self.slots(service);
        (length != 0).then(|| self.slot(service, hash % length))?
    }

    fn next_turn(&self, service: u32) -> u64 {
        let Some(sequence) = self.sequences.get(&service) else {
            return 0;
        };
        let turn = sequence.cursor.get();
        sequence.cursor.set(turn + 1);
        turn
    }

    fn next_slot(&self, service: u32) -> Option<u64> {
        let length = u64::from(self.slots(service));
        if length == 0 {
            return None;
        }
        let turn = self.next_turn(service);
        self.slot(service, (turn % length) as u32)
    }

    fn live(&self, backend: u32) -> u32 {
        (self.live.get(backend as usize)).map_or(0, |live| live.load() as u32)
    }

    fn affinity(&self, client: &AffinityKey) -> Option<Affinity> {
        self.affinities.borrow().get(client).copied()
    }

    fn keep_affinity(&self, client: &AffinityKey, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*client, *affinity);
    }

    fn churned(&self) -> u32 {
        self.churned.get()
    }

    fn churn(&self) {
        self.churned.set(self.now() | 1);
    }

    fn displace(&self, what: Displaced) {
        self.counted.borrow_mut().displaced[what as usize] += 1;
    }

    fn backend(&self, number: u32) -> Option<Backend> {
        // In the kernel a slot of the array that nobody wrote is all zero.
        let unused: Backend = Zeroable::zeroed();
        let slot = self.backends.get(&number).copied().unwrap_or(unused);
        (number < ROOM).then_some(slot)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn fresh_id(&self, place: u32) -> u32 {
        let mut ids = self.fresh_ids.borrow_mut();
        let id = ids.entry(place % 1024).or_default();
        let fresh = *id;
        *id = id.wrapping_add(1);
        fresh
    }

    fn interface(&self, frames: &Tagged) -> Option<u32> {
        self.interfaces.get(frames).copied()
    }

    fn exit(&self, interface: u32) -> Option<Tagged> {
        self.exits.get(&interface).copied()
    }

    fn epoch(&self) -> u32 {
        shared::epoch(
            self.now(),
            self.changes.get(),
            self.vouched.get(),
            self.settings.refresh_ticks,
        )
    }

    fn hop(&self, number: u32) -> Option<&NextHop> {
        self.hops.get(number as usize)
    }

    fn next_hop(&self, query: &mut RouteQuery, hop: &mut Hop) -> Result<(), Verdict> {
        self.asked.set(self.asked.get() + 1);
        let routing = Rc::clone(&self.routing.borrow());
        *hop = routing(self, query)?;
        Ok(())
    }

    fn redirect(&self, egress: u32) -> bool {
        (network::DEVICES.iter()).any(|device| device.index == egress && device.attached)
    }

    fn may_tell(&self, why: Verdict) -> bool {
        let told = &self.told[usize::from(why == Verdict::TooBig)];
        told.set(told.get() + 1);
        told.get() <= self.settings.error_limit
    }

    fn count(&self, verdict: Verdict, whose: &Attribution, bytes: u64) {
        let mut counted = self.counted.borrow_mut();
        *counted.verdicts.entry(verdict).or_default() += 1;
        let Attribution {
            service, backend, ..
        } = *whose;
        let dropped = verdict.action() == Action::Drop;
        if dropped {
            let key = DropKey {
                service,
                backend,
                verdict: verdict as u32,
                zero: 0,
            };
            *counted.drops.entry(key).or_default() += 1;
            if !whose.new_flow {
                return;
            }
        }
        let State {
            services, backends, ..
        } = &mut *counted;
        for (table, number) in [(services, service), (backends, backend)] {
            // Beyond the end of the kernel's array nothing is counted.
            if number >= ROOM {
                continue;
            }
            let traffic = table.entry(number).or_default();
            if dropped {
                // Only that a connection began is counted of it.
            } else if whose.reply {
                traffic.reply_packets += 1;
                traffic.reply_bytes += bytes;
            } else {
                traffic.forward_packets += 1;
                traffic.forward_bytes += bytes;
            }
            traffic.new_flows += u64::from(whose.new_flow);
        }
    }
}

/// Takes the connection away whose client's packets have this key.
pub fn lose(memory: &impl Memory, key: &FlowKey) -> Result<()> {
    let mut flow = Flow::default();
    ensure!(
        connections::of_client(memory, key, &mut flow)
            && connections::remove(memory, flow.place, flow.life.version),
        "there is no connection of {key:?}"
    );
    Ok(())
}

/// Room for one packet after another.
pub fn room() -> Box<Room> {
    // SAFETY: integers, and enumerations of which zero is a value, as in the
    // kernel's map before the first packet.
    Box::new(unsafe { std::mem::zeroed() })
}

/// The host as a side.
pub struct Host {
    tables: HostTables,
    /// As in the kernel, what an earlier packet has left is still in it.
    room: Box<Room>,
    vouched: bool,
}

impl Host {
    /// With an empty world.
    pub fn new() -> Self {
        Self {
            tables: HostTables::new(&World::empty()),
            room: room(),
            vouched: false,
        }
    }

    /// The same, where somebody vouches for counting every change: flows go by what
    /// they have noted of their way. Otherwise they never do, because the epoch of
    /// the tick at which the clock stands, 0, is also that of entries that were never
    /// written.
    pub fn vouched() -> Self {
        Self {
            vouched: true,
            ..Self::new()
        }
    }

    /// The tables as they are.
    pub fn tables(&self) -> &HostTables {
        &self.tables
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Side for Host {
    fn begin(&mut self, world: &World) -> Result<()> {
        self.tables = HostTables::new(world);
        if self.vouched {
            self.tables.vouch(1);
        }
        Ok(())
    }

    fn arrive(&mut self, frame: &[u8], ingress: u32) -> Result<Outcome> {
        let mut packet = HostPacket {
            bytes: frame.to_vec(),
            ingress,
            headroom: self.tables.headroom,
        };
        let verdict = lb_ebpf::process(&mut packet, &self.tables, &mut self.room);
        Ok(Outcome {
            action: verdict.action(),
            frame: packet.bytes,
        })
    }

    fn lose(&mut self, key: &FlowKey) -> Result<()> {
        lose(&self.tables, key)
    }

    fn lease(&mut self, held: bool) -> Result<()> {
        self.tables.lease.set(if held { u64::MAX } else { 0 });
        Ok(())
    }

    fn state(&self) -> Result<State> {
        Ok(self.tables.state())
    }
}
