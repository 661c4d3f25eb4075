//! The services of the benchmark, and the numbering of connections: connection
//! `n` has the same client, backend and port wherever it is spoken of.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{
    Backend, Endpoint, Flow, FlowKey, Life, Party, TCP, UDP, backend, forward, role,
};
use lb_common::flow::{ANSWERED, ESTABLISHED, ONE_WAY, deltas};
use lb_common::{Address, Be16};
use lb_userspace::reconcile::Change;

use crate::plan::Patch;

/// A client's address has so many ports (a power of two) in use…
const CLIENT_PORT_BITS: u32 = 14;
/// …from this one on.
const CLIENT_PORT: u16 = 1024;

/// How many newcomers there are: 1,024 addresses. Nothing remembers the first
/// when the last has come.
pub(crate) const NEWCOMERS: u32 = 1024 << CLIENT_PORT_BITS;

/// Services listen on ports from here on: none that full-nat gives out, and no
/// client's.
const SERVICE_PORT: u16 = 100;

/// Backends listen on ports from here on: no client's.
const BACKEND_PORT: u16 = 20_000;

/// How many backends a service has, as a power of two. They have one address and
/// ports in a row.
const BACKEND_BITS: u32 = 7;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// A service. Clients and backends are behind the same interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// Its number.
    pub(crate) number: u32,
    /// One of `lb_common::abi::forward`.
    pub(crate) forward: u8,
    /// Its protocol.
    pub(crate) protocol: u8,
    /// The family of its address and of its clients.
    pub(crate) family: Family,
    /// The family of its backends, another one by `tunnel` only.
    pub(crate) inside: Family,
}

/// All services: every way of forwarding with both families and protocols.
pub(crate) fn services() -> Vec<Service> {
    use Family::{V4, V6};
    let mut services = Vec::new();
    let mut add = |forward, protocol, family, inside| {
        services.push(Service {
            number: services.len() as u32,
            forward,
            protocol,
            family,
            inside,
        });
    };
    for forward in [
        forward::FULL_NAT,
        forward::NAT,
        forward::DSR,
        forward::TUNNEL,
    ] {
        for family in [V4, V6] {
            for protocol in [TCP, UDP] {
                add(forward, protocol, family, family);
            }
        }
    }
    add(forward::TUNNEL, TCP, V4, V6);
    add(forward::TUNNEL, TCP, V6, V4);
    services
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forward = match self.forward {
            forward::FULL_NAT => "full-nat",
            forward::NAT => "nat",
            forward::DSR => "dsr",
            _ => "tunnel",
        };
        let protocol = if self.protocol == TCP { "TCP" } else { "UDP" };
        let family = |family| match family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        write!(f, "{forward} {protocol} {}", family(self.family))?;
        if self.inside != self.family {
            write!(f, " in {}", family(self.inside))?;
        }
        Ok(())
    }
}

impl Service {
    /// Whether the answers of its backends come by the balancer.
    pub(crate) const fn hears_answers(&self) -> bool {
        !forward::one_way(self.forward)
    }

    /// Where it listens.
    pub(crate) fn listen(&self) -> SocketAddr {
        let ip = match self.family {
            Family::V4 => IpAddr::from([203, 0, 113, 10]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10]),
        };
        SocketAddr::new(ip, SERVICE_PORT + self.number as u16)
    }

    /// The client of connection `number`.
    pub(crate) fn client(&self, number: u32) -> SocketAddr {
        let first = match self.family {
            Family::V4 => IpAddr::from([192, 0, 2, 0]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 0x200, 0, 0, 0, 0, 0]),
        };
        numbered(first, number)
    }

    /// The first client of those that are not known yet.
    pub(crate) fn newcomer(&self) -> SocketAddr {
        let first = match self.family {
            Family::V4 => IpAddr::from([100, 64, 0, 0]),
            Family::V6 => IpAddr::from([0x2001, 0xdb8, 0x200, 0, 0, 0, 1, 0]),
        };
        numbered(first, 0)
    }

    /// The backend at this place among the service's.
    pub(crate) fn member(&self, place: u32) -> SocketAddr {
        let ip = match self.inside {
            Family::V4 => IpAddr::from([10, 0, 1, 11]),
            Family::V6 => IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, 0x11]),
        };
        let port = BACKEND_PORT + (self.first() + place) as u16;
        SocketAddr::new(ip, port)
    }

    /// How the word of a client's packets that is the source address and the
    /// one that holds the source port depend on the connection's number.
    pub(crate) const fn client_patches(&self) -> [Patch; 2] {
        let [address, ports] = match self.family {
            Family::V4 => [26, 34],
            Family::V6 => [34, 54],
        };
        [client_address(address), client_port(ports)]
    }

    /// The same for the packets of backends.
    pub(crate) const fn backend_patches(&self) -> [Patch; 2] {
        let [client, ports] = match self.family {
            Family::V4 => [30, 34],
            Family::V6 => [50, 54],
        };
        if self.forward == forward::NAT {
            return [client_address(client), client_port(ports + 2)];
        }
        let backend = Patch {
            at: ports,
            base: 0,
            right: 0,
            mask: (1 << BACKEND_BITS) - 1,
            left: 16,
        };
        let port = Patch {
            at: ports + 2,
            base: 0,
            right: BACKEND_BITS,
            mask: u32::MAX,
            left: 16,
        };
        [backend, port]
    }

    /// The forward half of connection `number`, answered and proved.
    pub(crate) fn flow(&self, number: u32, first_port: u32, seen: u32) -> (FlowKey, Flow) {
        let place = number % self.members();
        let (listen, client, backend) = (self.listen(), self.client(number), self.member(place));
        let key = FlowKey {
            src: Address::from(client.ip()),
            dst: Address::from(listen.ip()),
            src_port: Be16::new(client.port()),
            dst_port: Be16::new(listen.port()),
            protocol: u32::from(self.protocol),
        };
        let mut flow = Flow {
            src: key.src,
            dst: Address::from(backend.ip()),
            src_port: key.src_port,
            dst_port: Be16::new(backend.port()),
            backend: self.first() + place,
            service: self.number as u16,
            kind: u16::from(self.forward),
            life: Life {
                seen,
                state: ANSWERED | ESTABLISHED,
                ..Life::default()
            },
            ..Flow::default()
        };
        if flow.one_way() {
            flow.dst_port = key.dst_port;
            flow.life.state = ESTABLISHED | ONE_WAY;
            return (key, flow);
        }
        if self.forward == forward::FULL_NAT {
            let port = first_port + (number >> BACKEND_BITS);
            flow.src = key.dst;
            flow.src_port = Be16::new(port as u16);
        }
        let (ip, transport) = deltas(&key, &flow);
        flow.ip_delta = ip.0;
        flow.transport_delta = transport.0;
        (key, flow)
    }

    /// What makes it, for the tables.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let listen = self.endpoint(self.listen());
        let bare = Endpoint {
            port: Be16::new(0),
            protocol: 0,
            ..listen
        };
        let party = |endpoint, roles| Change::SetParty {
            endpoint,
            party: Party {
                service: self.number,
                forward: self.forward,
                roles,
                max_mss: 0,
            },
            fresh: false,
        };
        let mut changes = vec![party(bare, role::ADDRESS), party(listen, role::SERVICE)];
        for place in 0..self.members() {
            let at = self.endpoint(self.member(place));
            if self.hears_answers() {
                changes.push(party(at, role::BACKEND));
            }
            changes.push(Change::SetBackend {
                number: self.first() + place,
                backend: Backend {
                    address: at.address,
                    port: at.port,
                    protocol: self.protocol,
                    flags: backend::USED | backend::UP | backend::OPEN,
                    service: self.number,
                },
                fresh: false,
            });
        }
        changes.push(Change::SetSequence {
            service: self.number,
            slots: (0..self.members())
                .map(|place| u64::from(self.first() + place))
                .collect(),
        });
        changes
    }

    /// The numbers of its backends.
    pub(crate) const fn backends(&self) -> std::ops::Range<u32> {
        self.first()..self.first() + self.members()
    }

    /// The number of its first backend.
    const fn first(&self) -> u32 {
        self.number << BACKEND_BITS
    }

    /// How many backends it has. By `nat` only one: the port of its answers is then
    /// the same in all of them, and the wrapper has two words to write, not three.
    const fn members(&self) -> u32 {
        if self.forward == forward::NAT {
            1
        } else {
            1 << BACKEND_BITS
        }
    }

    fn endpoint(&self, at: SocketAddr) -> Endpoint {
        Endpoint {
            address: Address::from(at.ip()),
            port: Be16::new(at.port()),
            protocol: u16::from(self.protocol),
            zero: 0,
        }
    }
}

fn numbered(first: IpAddr, number: u32) -> SocketAddr {
    let up = number >> CLIENT_PORT_BITS;
    let ip = match first {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + up).into()),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + u128::from(up)).into()),
    };
    let port = number & ((1 << CLIENT_PORT_BITS) - 1);
    SocketAddr::new(ip, CLIENT_PORT + port as u16)
}

const fn client_address(at: u32) -> Patch {
    Patch {
        at,
        base: 0,
        right: CLIENT_PORT_BITS,
        mask: u32::MAX,
        left: 0,
    }
}

/// Of the word that begins with the port.
const fn client_port(at: u32) -> Patch {
    Patch {
        at,
        base: 0,
        right: 0,
        mask: (1 << CLIENT_PORT_BITS) - 1,
        left: 16,
    }
}

#[cfg(test)]
mod numbering {
    use super::*;
    use crate::cases::{from_backend, from_client, plan};

    /// The first port of full-nat here.
    const FIRST: u32 = 1024;

    /// What the wrapper writes is what the tables hold.
    #[test]
    fn the_patched_frames_are_those_of_the_flow() {
        for service in services() {
            for number in [0, 1, 127, 128, 16_383, 16_384, 999_999] {
                let (key, flow) = service.flow(number, FIRST, 0);
                let ends = |src: Address, dst: Address, src_port: Be16, dst_port: Be16| {
                    (src.socket(src_port), dst.socket(dst_port))
                };
                let frame = from_client(&service);
                let sent = patched(&frame, service.client_patches(), number, &service);
                let wanted = ends(key.src, key.dst, key.src_port, key.dst_port);
                assert_eq!(sent, wanted, "{service}, connection {number}");
                if service.hears_answers() {
                    let frame = from_backend(&service, FIRST);
                    let sent = patched(&frame, service.backend_patches(), number, &service);
                    let wanted = ends(flow.dst, flow.src, flow.dst_port, flow.src_port);
                    assert_eq!(sent, wanted, "{service}, answer of {number}");
                }
            }
        }
    }

    /// The ends of the frame that the wrapper makes for a connection.
    fn patched(
        frame: &tests::frame::Frame,
        patches: [Patch; 2],
        number: u32,
        service: &Service,
    ) -> (SocketAddr, SocketAddr) {
        let plan = plan(frame, patches, 1);
        let mut bytes = plan.head.to_vec();
        for word in plan.words {
            bytes.extend(word.to_ne_bytes());
        }
        for patch in plan.patches {
            let at = patch.at as usize;
            bytes[at..at + 4].copy_from_slice(&patch.word(number).to_be_bytes());
        }
        let (ip, ports): ([IpAddr; 2], usize) = match service.family {
            Family::V4 => {
                let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap());
                ([ip(26), ip(30)], 34)
            }
            Family::V6 => {
                let ip =
                    |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap());
                ([ip(22), ip(38)], 54)
            }
        };
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        (
            SocketAddr::new(ip[0], port(ports)),
            SocketAddr::new(ip[1], port(ports + 2)),
        )
    }
}
