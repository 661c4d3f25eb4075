//! Two nodes with tables of their own. They number services and backends differently,
//! hash differently, and have tables of different sizes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use fastrand::Rng;
use lb_common::abi::{Backend, Endpoint, Flow, FlowKey, Life, Party, TCP, UDP, forward, role};
use lb_common::flow::{
    ANSWERED, BACKEND_FIN, CLIENT_FIN, ESTABLISHED, ONE_WAY, RESET, deltas, ended,
};
use lb_common::{Address, Be16};
use lb_ebpf::{Shape, connections};
use lb_userspace::dataplane::Table;
use lb_userspace::reconcile::Tables;
use lb_userspace::sync::dictionary::Dictionary;
use lb_userspace::sync::message::TOLD;

/// How many backends each service has.
pub(crate) const BACKENDS: u32 = 4;

/// The services: what they listen on, and how they forward.
pub(crate) const SERVICES: [(&str, u8, u8); 6] = [
    ("192.0.2.1:80", TCP, forward::FULL_NAT),
    ("192.0.2.2:53", UDP, forward::NAT),
    ("192.0.2.3:80", TCP, forward::DSR),
    ("192.0.2.4:80", TCP, forward::TUNNEL),
    ("[2001:db8::1]:80", TCP, forward::FULL_NAT),
    ("[2001:db8::2]:80", TCP, forward::NAT),
];

/// What both nodes must have alike of a flow.
pub(crate) type Fact = (IpAddr, u16, IpAddr, u16, u8, u32, Option<String>, u16, u16);

/// A node's tables.
pub(crate) struct Node {
    pub(crate) table: Arc<Table>,
    pub(crate) tables: Tables,
}

impl Node {
    /// The numbers of services and backends begin anew for each `offset`.
    pub(crate) fn new(seed: u32, buckets: u32, offset: u32) -> Self {
        let shape = Shape {
            tag_buckets: buckets,
            answer_buckets: buckets * 4,
            seed,
        };
        let table = Table::own(shape, 4_096).expect("there is memory");
        let mut tables = Tables::default();
        for (place, (listen, protocol, forward)) in (0..).zip(SERVICES) {
            let service = (place * 7 + offset) % 64;
            let party = Party {
                service,
                forward,
                roles: role::SERVICE,
                max_mss: 0,
            };
            tables.parties.insert(endpoint(listen, protocol), party);
            for backend in 0..BACKENDS {
                let number = (place * BACKENDS + backend) * 3 + offset;
                tables
                    .backends
                    .insert(number, entry(place, backend, service));
            }
        }
        Self {
            table: Arc::new(table),
            tables,
        }
    }

    pub(crate) fn dictionary(&self) -> Dictionary {
        Dictionary::of(&self.tables)
    }

    /// What its established flows are, by their key.
    pub(crate) fn facts(&self) -> BTreeMap<FlowKey, Fact> {
        let all = self.table.all();
        all.filter(|(_, flow, established)| *established && !ended(flow.life.state))
            .map(|(key, flow, _)| (key, self.fact(&key, &flow)))
            .collect()
    }

    fn fact(&self, key: &FlowKey, flow: &Flow) -> Fact {
        let backend = self.tables.backends.get(&flow.backend);
        let backend = backend.filter(|backend| backend.service == u32::from(flow.service));
        let backend = backend.map(|backend| backend.address.socket(backend.port).to_string());
        let (ip, transport) = deltas(key, flow);
        if !flow.one_way() {
            assert_eq!((flow.ip_delta, flow.transport_delta), (ip.0, transport.0));
        }
        (
            flow.src.ip(),
            flow.src_port.get(),
            flow.dst.ip(),
            flow.dst_port.get(),
            flow.forward(),
            flow.life.state & TOLD,
            backend,
            flow.ip_delta,
            flow.transport_delta,
        )
    }

    /// How many live flows the backends' counts say there are.
    pub(crate) fn live(&self) -> u64 {
        let numbers = self.tables.backends.keys();
        numbers.map(|number| self.table.live(*number)).sum()
    }

    /// Begins a connection; gives its place.
    pub(crate) fn begin(&self, rng: &mut Rng, state: u32) -> Option<u32> {
        let which = rng.usize(0..SERVICES.len());
        let client = rng.u32(..);
        self.begin_as(which, client, rng.u16(1_024..), rng.u32(0..BACKENDS), state)
    }

    /// Begins this connection, or has it begin again; gives its place.
    pub(crate) fn begin_as(
        &self,
        which: usize,
        client: u32,
        port: u16,
        backend: u32,
        state: u32,
    ) -> Option<u32> {
        let (listen, protocol, forward) = SERVICES[which];
        let listen = endpoint(listen, protocol);
        let service = self.tables.parties[&listen].service;
        let wanted = entry(which as u32, backend, service);
        let found = self.tables.backends.iter().find(|(_, one)| **one == wanted);
        let number = *found.expect("it has this backend").0;
        let src = if listen.address.is_v4() {
            Address::v4(client.to_ne_bytes())
        } else {
            let mut octets = [0x20; 16];
            octets[12..].copy_from_slice(&client.to_ne_bytes());
            Address::v6(&octets)
        };
        let key = FlowKey {
            src,
            dst: listen.address,
            src_port: Be16::new(port),
            dst_port: listen.port,
            protocol: u32::from(protocol),
        };
        let mut found = Flow::default();
        if connections::of_client(&*self.table, &key, &mut found) {
            self.remove(found.place);
        }
        let one_way = forward::one_way(forward);
        let full_nat = forward == forward::FULL_NAT;
        let mut flow = Flow {
            src: if full_nat { listen.address } else { src },
            dst: wanted.address,
            src_port: if full_nat {
                Be16::new(port.rotate_left(3))
            } else {
                key.src_port
            },
            dst_port: if one_way { key.dst_port } else { wanted.port },
            backend: number,
            service: service as u16,
            kind: u16::from(forward),
            life: Life {
                state: if one_way { state | ONE_WAY } else { state },
                proof: client.wrapping_mul(7),
                ..Life::default()
            },
            ..Flow::default()
        };
        if !one_way {
            let (ip, transport) = deltas(&key, &flow);
            flow.ip_delta = ip.0;
            flow.transport_delta = transport.0;
        }
        let (place, _) = self.table.enter(&key, &flow, 0)?;
        Some(place)
    }

    /// Changes the state of what stands there.
    pub(crate) fn change(&self, place: u32, off: u32, on: u32) {
        if let Some((_, flow)) = connections::at(&*self.table, place) {
            connections::advance(&*self.table, &flow, off, on, 0);
        }
    }

    /// Takes it away.
    pub(crate) fn remove(&self, place: u32) {
        if let Some((_, flow)) = connections::at(&*self.table, place) {
            assert!(connections::remove(&*self.table, place, flow.life.version));
        }
    }

    /// One thing that happens to some connection.
    pub(crate) fn happens(&self, rng: &mut Rng, places: &mut Vec<u32>) {
        let any = |rng: &mut Rng| places.get(rng.usize(0..places.len().max(1))).copied();
        match (rng.u8(0..12), any(rng)) {
            // Few clients, so that the same ends come again with another backend.
            (0..4, _) | (_, None) => places.extend(self.begin_as(
                rng.usize(0..SERVICES.len()),
                rng.u32(0..6),
                5_000 + rng.u16(0..4),
                rng.u32(0..BACKENDS),
                [0, ANSWERED | ESTABLISHED][rng.usize(0..2)],
            )),
            (4..6, Some(place)) => self.change(place, 0, ANSWERED | ESTABLISHED),
            (6, Some(place)) => self.change(place, 0, CLIENT_FIN),
            (7, Some(place)) => self.change(place, 0, BACKEND_FIN),
            (8, Some(place)) => self.change(place, 0, RESET),
            (9, Some(place)) => self.change(place, RESET, 0),
            (_, Some(place)) => self.remove(place),
        }
    }
}

fn endpoint(listen: &str, protocol: u8) -> Endpoint {
    let listen: SocketAddr = listen.parse().expect("it is an address with a port");
    Endpoint {
        address: listen.ip().into(),
        port: Be16::new(listen.port()),
        protocol: u16::from(protocol),
        zero: 0,
    }
}

fn entry(which: u32, backend: u32, service: u32) -> Backend {
    let (_, protocol, _) = SERVICES[which as usize];
    Backend {
        address: Address::v4([10, 0, which as u8, backend as u8 + 1]),
        port: Be16::new(8_080),
        protocol,
        flags: lb_common::abi::backend::USED,
        service,
    }
}
