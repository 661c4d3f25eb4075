//! The services of the benchmark, and the numbering of connections: connection
//! `n` has the same client, backend and port wherever it is spoken of.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{
    Backend, Endpoint, Flow, FlowKey, Life, Party, TCP, UDP, backend, forward, role,
};
use lb_common::flow::{ANSWERED, ESTABLISHED, deltas};
use lb_common::{Address, Be16};
use lb_userspace::reconcile::Change;

use crate::plan::Patch;

/// A client's address has so many ports (a power of two) in use…
const CLIENT_PORT_BITS: u32 = 14;
/// …from this one on.
const CLIENT_PORT: u16 = 1024;

/// How many newcomers there are: 128 addresses. Nothing remembers the first
/// when the last has come.
pub(crate) const NEWCOMERS: u32 = 128 << CLIENT_PORT_BITS;

/// A service with its backends, which have one address and ports in a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    /// Its number.
    pub(crate) number: u32,
    /// Its protocol.
    pub(crate) protocol: u8,
    /// One of `lb_common::abi::forward`.
    pub(crate) forward: u8,
    /// Where it listens.
    pub(crate) listen: &'static str,
    /// The first client; the following have the following ports and addresses.
    pub(crate) client: &'static str,
    /// The first client of those that are not known yet.
    pub(crate) newcomer: &'static str,
    /// The first backend.
    pub(crate) backend: &'static str,
    /// The number of the first backend.
    pub(crate) first: u32,
    /// How many backends there are: two to the power of this.
    pub(crate) backend_bits: u32,
}

/// All services. Clients and backends are behind the same interface.
pub(crate) static SERVICES: [Service; 4] = [TCP4, UDP4, TCP6, NAT4];
/// TCP over IPv4 by full-nat.
pub(crate) const TCP4: Service = Service {
    number: 0,
    protocol: TCP,
    forward: forward::FULL_NAT,
    listen: "203.0.113.10:80",
    client: "192.0.2.0:1024",
    newcomer: "192.0.2.128:1024",
    backend: "10.0.1.11:10000",
    first: 0,
    backend_bits: 7,
};
/// UDP over IPv4 by full-nat.
pub(crate) const UDP4: Service = Service {
    number: 1,
    protocol: UDP,
    listen: "203.0.113.10:53",
    backend: "10.0.1.12:10000",
    first: 128,
    ..TCP4
};
/// TCP over IPv6 by full-nat.
pub(crate) const TCP6: Service = Service {
    number: 2,
    listen: "[2001:db8:2::10]:80",
    client: "[2001:db8:200::]:1024",
    newcomer: "[2001:db8:200::1:0]:1024",
    backend: "[fd00:1::11]:10000",
    first: 256,
    ..TCP4
};
/// TCP over IPv4 by nat, to one backend.
pub(crate) const NAT4: Service = Service {
    number: 3,
    forward: forward::NAT,
    listen: "203.0.113.10:8080",
    backend: "10.0.1.13:10000",
    first: 384,
    backend_bits: 0,
    ..TCP4
};

impl Service {
    /// How the word of a client's packets that is the source address and the
    /// one that holds the source port depend on the connection's number.
    pub(crate) fn client_patches(&self) -> [Patch; 2] {
        let [address, ports] = if self.is_v4() { [26, 34] } else { [34, 54] };
        [client_address(address), client_port(ports)]
    }

    /// The same for the packets of backends.
    pub(crate) fn backend_patches(&self) -> [Patch; 2] {
        let ports = if self.is_v4() { 34 } else { 54 };
        if self.forward == forward::NAT {
            return [client_address(30), client_port(ports + 2)];
        }
        let backend = Patch {
            at: ports,
            base: 0,
            right: 0,
            mask: (1 << self.backend_bits) - 1,
            left: 16,
        };
        let port = Patch {
            at: ports + 2,
            base: 0,
            right: self.backend_bits,
            mask: u32::MAX,
            left: 16,
        };
        [backend, port]
    }

    /// The forward half of connection `number`, answered and proved.
    pub(crate) fn flow(&self, number: u32, first_port: u32, seen: u32) -> (FlowKey, Flow) {
        let place = number & ((1 << self.backend_bits) - 1);
        let (listen, client, backend) = (end(self.listen), self.client(number), self.member(place));
        let key = FlowKey {
            src: Address::from(client.ip()),
            dst: Address::from(listen.ip()),
            src_port: Be16::new(client.port()),
            dst_port: Be16::new(listen.port()),
            protocol: u32::from(self.protocol),
        };
        let (src, src_port) = if self.forward == forward::FULL_NAT {
            let port = first_port + (number >> self.backend_bits);
            (key.dst, Be16::new(port as u16))
        } else {
            (key.src, key.src_port)
        };
        let mut flow = Flow {
            src,
            dst: Address::from(backend.ip()),
            src_port,
            dst_port: Be16::new(backend.port()),
            backend: self.first + place,
            service: self.number as u16,
            kind: u16::from(self.forward),
            life: Life {
                seen,
                state: ANSWERED | ESTABLISHED,
                ..Life::default()
            },
            ..Flow::default()
        };
        let (ip, transport) = deltas(&key, &flow);
        flow.ip_delta = ip.0;
        flow.transport_delta = transport.0;
        (key, flow)
    }

    /// What makes it, for the tables.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let listen = self.endpoint(end(self.listen));
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
        let backends = 0..1 << self.backend_bits;
        let mut changes = vec![party(bare, 0), party(listen, role::SERVICE)];
        for place in backends.clone() {
            let at = self.endpoint(self.member(place));
            changes.push(party(at, role::BACKEND));
            changes.push(Change::SetBackend {
                number: self.first + place,
                backend: Backend {
                    address: at.address,
                    port: at.port,
                    protocol: self.protocol,
                    flags: backend::USED | backend::UP,
                    service: self.number,
                },
                fresh: false,
            });
        }
        changes.push(Change::SetSequence {
            service: self.number,
            slots: backends
                .map(|place| u64::from(self.first + place))
                .collect(),
        });
        changes
    }

    fn is_v4(&self) -> bool {
        end(self.listen).is_ipv4()
    }

    fn client(&self, number: u32) -> SocketAddr {
        let first = end(self.client);
        let up = number >> CLIENT_PORT_BITS;
        let ip = match first.ip() {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + up).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + u128::from(up)).into()),
        };
        let port = number & ((1 << CLIENT_PORT_BITS) - 1);
        SocketAddr::new(ip, CLIENT_PORT + port as u16)
    }

    fn member(&self, place: u32) -> SocketAddr {
        let first = end(self.backend);
        SocketAddr::new(first.ip(), first.port() + place as u16)
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

fn end(text: &str) -> SocketAddr {
    tests::frame::end(text)
}

#[cfg(test)]
mod numbering {
    use super::*;

    /// What the wrapper writes is what the tables hold.
    #[test]
    fn the_patched_words_are_those_of_the_flow() {
        for number in [0, 1, 127, 128, 16_383, 16_384, 999_999] {
            let (key, flow) = TCP4.flow(number, 1024, 0);
            let [address, port] = TCP4.client_patches();
            let base = u32::from_be_bytes([192, 0, 2, 0]);
            let word = Patch { base, ..address }.word(number);
            assert_eq!(word.to_be_bytes(), key.src.low4());
            let base = 1024 << 16;
            let word = Patch { base, ..port }.word(number);
            assert_eq!(word >> 16, u32::from(key.src_port.get()));
            let [backend, port] = TCP4.backend_patches();
            let base = 10_000 << 16;
            let word = Patch { base, ..backend }.word(number);
            assert_eq!(word >> 16, u32::from(flow.dst_port.get()));
            let base = 1024 << 16;
            let word = Patch { base, ..port }.word(number);
            assert_eq!(word >> 16, u32::from(flow.src_port.get()));
        }
    }
}
