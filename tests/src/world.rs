//! What the balancer is told before the first frame of a case, and what its
//! tables hold after each: the same for the host and for the kernel.

use std::collections::BTreeMap;

use anyhow::Result;
use lb_common::abi::{
    Backend, DropKey, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Party, Policy, Settings, TCP,
    Traffic, backend, forward, role, sieve,
};
use lb_common::flow::{ESTABLISHED, ONE_WAY, twin, twin_key};
use lb_common::{Action, Address, Be16, Verdict};
use lb_ebpf::{Memory, connections};

use crate::frame::end;
use crate::host::HEADROOM;

/// Nothing happens because time passes.
pub const STEADY: Settings = Settings {
    // Multiplied by the seconds of TIME-WAIT it must stay below 2^32.
    refresh_ticks: 1 << 25,
    idle_ticks: u32::MAX,
    first_port: 40_000,
    port_count: 1,
    seed: 7,
    // No stamp changes.
    stamp_shift: 31,
    tag_buckets: 256,
    answer_buckets: 512,
    ..Settings::PLAIN
};

/// How the flows of a connection stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The client has proved that it hears the backend.
    Established,
    /// It has not.
    Unfinished,
}

/// How many services and how many backends the tables have room for.
pub const ROOM: u32 = 8;

/// A service, its schedule, and nothing of its backends but their numbers.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its number.
    pub number: u32,
    /// Its address and port.
    pub listen: &'static str,
    /// TCP or UDP.
    pub protocol: u8,
    /// One of `lb_common::abi::forward`.
    pub forward: u8,
    /// The limit to segment sizes, or zero.
    pub max_mss: u16,
    /// How it chooses.
    pub policy: Policy,
    /// Its slots: the backends' numbers, and in the high half weights.
    pub sequence: Vec<u64>,
}

/// A backend.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its number.
    pub number: u32,
    /// Its address and port.
    pub address: &'static str,
    /// TCP or UDP.
    pub protocol: u8,
    /// The number of its service.
    pub service: u32,
    /// Bits of `lb_common::abi::backend`.
    pub flags: u8,
}

/// What the balancer is told.
#[derive(Clone, Debug)]
pub struct World {
    /// The constants of the load.
    pub settings: Settings,
    /// The services.
    pub services: Vec<Service>,
    /// Their backends.
    pub backends: Vec<Member>,
    /// How much room there is in front of a frame on the host.
    pub headroom: usize,
    /// Addresses that move with the role of a pair, besides the services'.
    pub held: Vec<&'static str>,
}

impl World {
    /// Without any service.
    pub fn empty() -> Self {
        Self {
            settings: STEADY,
            services: Vec::new(),
            backends: Vec::new(),
            headroom: HEADROOM,
            held: Vec::new(),
        }
    }

    /// And this service, with the next number.
    pub fn service(
        mut self,
        protocol: u8,
        forward: u8,
        listen: &'static str,
        sequence: &[u32],
    ) -> Self {
        self.services.push(Service {
            number: self.services.len() as u32,
            listen,
            protocol,
            forward,
            max_mss: 0,
            policy: Policy::default(),
            sequence: sequence.iter().map(|&backend| u64::from(backend)).collect(),
        });
        self
    }

    /// With this limit to the segment sizes of the last service.
    pub fn max_mss(mut self, most: u16) -> Self {
        if let Some(service) = self.services.last_mut() {
            service.max_mss = most;
        }
        self
    }

    /// With this policy of the last service, and these slots.
    pub fn policy(mut self, policy: Policy, slots: &[u64]) -> Self {
        if let Some(service) = self.services.last_mut() {
            service.policy = policy;
            service.sequence = slots.to_vec();
        }
        self
    }

    /// With these marks on the last backend besides.
    pub fn marked(mut self, flags: u8) -> Self {
        if let Some(member) = self.backends.last_mut() {
            member.flags |= flags;
        }
        self
    }

    /// And this backend of the last service, with the next number.
    pub fn backend(mut self, address: &'static str) -> Self {
        let service = self.services.last();
        self.backends.push(Member {
            number: self.backends.len() as u32,
            address,
            protocol: service.map_or(TCP, |service| service.protocol),
            service: service.map_or(0, |service| service.number),
            flags: backend::USED | backend::UP | backend::OPEN,
        });
        self
    }

    /// With these constants.
    pub fn with(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// With this address that moves with the role of a pair.
    pub fn held(mut self, address: &'static str) -> Self {
        self.held.push(address);
        self
    }

    /// With a driver that leaves this much room in front of a frame.
    pub fn headroom(mut self, bytes: usize) -> Self {
        self.headroom = bytes;
        self
    }

    /// The `SIEVE` table as the controller would write it: words that are not
    /// zero.
    pub fn sieve(&self) -> BTreeMap<u32, u64> {
        let mut words = BTreeMap::new();
        for (endpoint, party) in self.endpoints() {
            for (role, first) in [
                (role::SERVICE, sieve::SERVICES),
                (role::BACKEND, sieve::BACKENDS),
            ] {
                if party.roles & role != 0 {
                    let (word, bit) = sieve::place(first, &endpoint.address, endpoint.port);
                    *words.entry(word).or_default() |= bit;
                }
            }
        }
        words
    }

    /// The `ENDPOINTS` table as the controller would write it: services,
    /// services' addresses alone, and backends; one endpoint may be several.
    pub fn endpoints(&self) -> BTreeMap<Endpoint, Party> {
        let mut table = BTreeMap::new();
        for service in &self.services {
            let of = |endpoint| Party {
                service: service.number,
                forward: service.forward,
                roles: endpoint,
                max_mss: service.max_mss,
            };
            let listen = endpoint(service.listen, service.protocol);
            let address = Endpoint {
                port: Be16::new(0),
                protocol: 0,
                ..listen
            };
            table.insert(listen, of(role::SERVICE));
            table.insert(address, of(role::ADDRESS));
        }
        for member in &self.backends {
            let mode = self.services[member.service as usize].forward;
            if forward::one_way(mode) {
                continue;
            }
            let party = table
                .entry(endpoint(member.address, member.protocol))
                .or_insert(Party {
                    service: 0,
                    forward: 0,
                    roles: 0,
                    max_mss: 0,
                });
            party.roles |= role::BACKEND;
        }
        for address in &self.held {
            let address: std::net::IpAddr = address.parse().expect("it is an address");
            let bare = Endpoint {
                address: Address::from(address),
                port: Be16::new(0),
                protocol: 0,
                zero: 0,
            };
            let held = Party {
                service: 0,
                forward: 0,
                roles: role::HELD,
                max_mss: 0,
            };
            table.insert(bare, held);
        }
        table
    }
}

impl Member {
    /// As it stands in the `BACKENDS` table.
    pub fn entry(&self) -> Backend {
        let at = endpoint(self.address, self.protocol);
        Backend {
            address: at.address,
            port: at.port,
            protocol: self.protocol,
            flags: self.flags,
            service: self.service,
        }
    }
}

fn endpoint(text: &str, protocol: u8) -> Endpoint {
    let at = end(text);
    Endpoint {
        address: Address::from(at.ip()),
        port: Be16::new(at.port()),
        protocol: u16::from(protocol),
        zero: 0,
    }
}

/// Everything the tables hold that a packet can change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Both directions of established connections, of `dsr` and `tunnel` the one
    /// that there is. When they were last seen is left out, and where they stand.
    pub established: BTreeMap<FlowKey, Flow>,
    /// Of unfinished connections, likewise.
    pub unfinished: BTreeMap<FlowKey, Flow>,
    /// What first fragments said; when they came is left out.
    pub fragments: BTreeMap<FragmentKey, Fragment>,
    /// How many connections each service has scheduled.
    pub turns: BTreeMap<u32, u64>,
    /// Live connections by backend, where there are any.
    pub live: BTreeMap<u32, u64>,
    /// Connections displaced, by [`lb_ebpf::Displaced`].
    pub displaced: [u64; 3],
    /// Packets by verdict, where there were any.
    pub verdicts: BTreeMap<Verdict, u64>,
    /// Traffic by service, where there was any.
    pub services: BTreeMap<u32, Traffic>,
    /// Traffic by backend, where there was any.
    pub backends: BTreeMap<u32, Traffic>,
    /// Drops by service, backend and verdict.
    pub drops: BTreeMap<DropKey, u64>,
}

impl State {
    /// Fills in the flows of a table of connections.
    pub fn read_flows(&mut self, memory: &impl Memory) {
        for place in 0..connections::places(memory) {
            let Some((key, mut flow)) = connections::at(memory, place) else {
                continue;
            };
            let stage = if flow.life.state & ESTABLISHED != 0 {
                &mut self.established
            } else {
                &mut self.unfinished
            };
            flow.place = 0;
            flow.life.seen = 0;
            flow.life.version = 0;
            flow.hop = 0;
            flow.life.state &= !(ESTABLISHED | ONE_WAY);
            stage.insert(key, flow);
            if !flow.one_way() {
                stage.insert(twin_key(&key, &flow), twin(&key, &flow));
            }
        }
    }

    /// The flows of this stage.
    pub fn flows(&self, stage: Stage) -> &BTreeMap<FlowKey, Flow> {
        match stage {
            Stage::Established => &self.established,
            Stage::Unfinished => &self.unfinished,
        }
    }

    /// The one verdict that was counted since.
    pub fn verdict_since(&self, before: &Self) -> Option<Verdict> {
        let mut counted = self.verdicts.iter().filter_map(|(verdict, count)| {
            let more = count - before.verdicts.get(verdict).copied().unwrap_or(0);
            (more > 0).then_some((*verdict, more))
        });
        match (counted.next(), counted.next()) {
            (Some((verdict, 1)), None) => Some(verdict),
            _ => None,
        }
    }
}

/// What came of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the kernel is told to do with it.
    pub action: Action,
    /// Its bytes now.
    pub frame: Vec<u8>,
}

/// Where a world is tried out. There are two, and every test runs the same
/// steps on both; this trait is what lets it be written once.
pub trait Side {
    /// Begins anew: these services and backends, no flows, all counters zero.
    fn begin(&mut self, world: &World) -> Result<()>;

    /// A frame comes in by this interface.
    fn arrive(&mut self, frame: &[u8], ingress: u32) -> Result<Outcome>;

    /// The connection whose client's packets have this key is lost.
    fn lose(&mut self, key: &FlowKey) -> Result<()>;

    /// It has the lease of a pair from now on, or has not.
    fn lease(&mut self, held: bool) -> Result<()>;

    /// What the tables hold.
    fn state(&self) -> Result<State>;
}
