//! The data path on the host: packets in a vector, tables in ordinary
//! collections.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use bytemuck::Zeroable;
use elsa::FrozenVec;
use lb_common::Verdict;
use lb_common::abi::{
    Backend, DropKey, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Life, Party, Settings, Tagged,
};
use lb_common::verdict::Action;
use lb_ebpf::steer::Attribution;
use lb_ebpf::{Hop, Packet, Room, RouteQuery, Stage, Tables, Wire};

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

struct Sequence {
    slots: Vec<u32>,
    cursor: Cell<u64>,
}

/// The tables on the host.
///
/// A flow is lent while others are entered and noted, so flows are never moved
/// or written: they stand in an arena that only grows, and a table says which
/// one is current. A new world begins a new arena.
pub struct HostTables {
    settings: Settings,
    now: Cell<u32>,
    endpoints: BTreeMap<Endpoint, Party>,
    backends: HashMap<u32, Backend>,
    sequences: HashMap<u32, Sequence>,
    room_for_flows: usize,
    headroom: usize,
    arena: FrozenVec<Box<Flow>>,
    established: RefCell<HashMap<FlowKey, usize>>,
    unfinished: RefCell<HashMap<FlowKey, usize>>,
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
            endpoints: world.endpoints(),
            backends: (world.backends.iter())
                .map(|member| (member.number, member.entry()))
                .collect(),
            sequences: (world.services.iter())
                .map(|service| (service.number, sequence(service)))
                .collect(),
            room_for_flows: world.room_for_flows,
            headroom: world.headroom,
            arena: FrozenVec::new(),
            established: RefCell::default(),
            unfinished: RefCell::default(),
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

    /// What the tables hold.
    pub fn state(&self) -> State {
        let flows = |table: &RefCell<HashMap<FlowKey, usize>>| {
            let table = table.borrow();
            let unseen = |(key, &place): (&FlowKey, &usize)| {
                let mut flow = self.arena[place];
                flow.life.seen = 0;
                (*key, flow)
            };
            table.iter().map(unseen).collect()
        };
        State {
            established: flows(&self.established),
            unfinished: flows(&self.unfinished),
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
        }
    }

    fn table(&self, stage: Stage) -> &RefCell<HashMap<FlowKey, usize>> {
        match stage {
            Stage::Established => &self.established,
            Stage::Unfinished => &self.unfinished,
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

    fn party(&self, endpoint: &Endpoint) -> Option<Party> {
        self.endpoints.get(endpoint).copied()
    }

    fn next_backend(&self, service: u32) -> Option<u32> {
        let Sequence { slots, cursor } = self.sequences.get(&service)?;
        if slots.is_empty() {
            return None;
        }
        let turn = cursor.get();
        cursor.set(turn + 1);
        slots.get(turn as usize % slots.len()).copied()
    }

    fn backend(&self, number: u32) -> Option<Backend> {
        // In the kernel a slot of the array that nobody wrote is all zero.
        let unused: Backend = Zeroable::zeroed();
        let slot = self.backends.get(&number).copied().unwrap_or(unused);
        (number < ROOM).then_some(slot)
    }

    fn flow(&self, stage: Stage, key: &FlowKey) -> Option<&Flow> {
        let place = self.table(stage).borrow().get(key).copied();
        place.map(|place| &self.arena[place])
    }

    fn claim(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        self.flow(stage, key).is_none() && self.keep(stage, key, flow)
    }

    fn keep(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        let mut table = self.table(stage).borrow_mut();
        if table.len() >= self.room_for_flows && !table.contains_key(key) {
            return false;
        }
        table.insert(*key, self.arena.len());
        self.arena.push(Box::new(*flow));
        true
    }

    fn note(&self, stage: Stage, key: &FlowKey, life: &Life) -> bool {
        let Some(&flow) = self.flow(stage, key) else {
            return false;
        };
        let table = self.table(stage);
        table.borrow_mut().insert(*key, self.arena.len());
        self.arena.push(Box::new(Flow {
            life: *life,
            ..flow
        }));
        true
    }

    fn forget(&self, stage: Stage, key: &FlowKey) {
        self.table(stage).borrow_mut().remove(key);
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

    fn next_hop(&self, query: &mut RouteQuery, hop: &mut Hop) -> Result<(), Verdict> {
        *hop = network::hop(query)?;
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
}

impl Host {
    /// With an empty world.
    pub fn new() -> Self {
        Self {
            tables: HostTables::new(&World::empty()),
            room: room(),
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

    fn lose(&mut self, stage: Stage, key: &FlowKey) -> Result<()> {
        self.tables.forget(stage, key);
        Ok(())
    }

    fn state(&self) -> Result<State> {
        Ok(self.tables.state())
    }
}
