//! The data path on the host: packets in a vector, tables in ordinary
//! collections.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use anyhow::Result;
use bytemuck::Zeroable;
use elsa::FrozenVec;
use lb_common::Verdict;
use lb_common::abi::{Backend, DropKey, Endpoint, Flow, FlowKey, Life, Party, Settings};
use lb_common::verdict::Action;
use lb_ebpf::packet::Ethernet;
use lb_ebpf::steer::Attribution;
use lb_ebpf::{Draft, Hop, Packet, RouteQuery, Stage, Tables, Wire};

use crate::network;
use crate::world::{Outcome, ROOM, Side, State, World};

/// A frame on the host.
pub struct HostPacket {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The index of the interface it came in by.
    pub ingress: u32,
}

impl Packet for HostPacket {
    fn at<H: Wire>(&mut self, offset: usize) -> Result<&mut H, Verdict> {
        let header = self
            .bytes
            .get_mut(offset..)
            .and_then(|rest| rest.get_mut(..size_of::<H>()))
            .ok_or(Verdict::Truncated)?;
        // SAFETY: the slice is of the header's size and borrowed for as long
        // as the reference lives; `Wire` promises alignment 1 and that any
        // bytes are a value.
        Ok(unsafe { &mut *header.as_mut_ptr().cast::<H>() })
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn shift_head(&mut self, bytes: i32) -> Result<(), Verdict> {
        let length = bytes.unsigned_abs() as usize;
        if bytes >= 0 {
            self.bytes.splice(0..0, std::iter::repeat_n(0, length));
            return Ok(());
        }
        // The kernel leaves at least an Ethernet header.
        if self.bytes.len() < length + size_of::<Ethernet>() {
            return Err(Verdict::NoHeadroom);
        }
        self.bytes.drain(..length);
        Ok(())
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
    arena: FrozenVec<Box<Flow>>,
    established: RefCell<HashMap<FlowKey, usize>>,
    unfinished: RefCell<HashMap<FlowKey, usize>>,
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
            arena: FrozenVec::new(),
            established: RefCell::default(),
            unfinished: RefCell::default(),
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

    fn next_hop(&self, query: &RouteQuery<'_>) -> Result<Hop, Verdict> {
        network::hop(query.ingress, query.flow.dst.ip(), query.length)
    }

    fn redirect(&self, egress: u32) -> bool {
        (network::DEVICES.iter()).any(|device| device.index == egress && device.attached)
    }

    fn count(&self, verdict: Verdict, whose: &Attribution, bytes: u64) {
        let mut counted = self.counted.borrow_mut();
        *counted.verdicts.entry(verdict).or_default() += 1;
        let Attribution {
            service, backend, ..
        } = *whose;
        if verdict.action() == Action::Drop {
            let key = DropKey {
                service,
                backend,
                verdict: verdict as u32,
                zero: 0,
            };
            *counted.drops.entry(key).or_default() += 1;
            return;
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
            if whose.reply {
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

/// The host as a side.
pub struct Host {
    tables: HostTables,
}

impl Host {
    /// With an empty world.
    pub fn new() -> Self {
        Self {
            tables: HostTables::new(&World::empty()),
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
        };
        let mut draft = Draft {
            forward: Zeroable::zeroed(),
            reply: Zeroable::zeroed(),
            reply_key: Zeroable::zeroed(),
        };
        let verdict = lb_ebpf::process(&mut packet, &self.tables, || Some(&mut draft));
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
