//! From the names that both nodes have for services and backends, their addresses and
//! ports, to the numbers that they have in this node's tables.

use std::collections::BTreeMap;

use lb_common::abi::{Endpoint, Flow, FlowKey, Life, TCP, UDP, forward, role};
use lb_common::flow::deltas;
use lb_common::{Address, Be16};

use super::message::{Ends, Host, Record};
use crate::reconcile::Tables;

/// See the module. It is made anew when the tables change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dictionary {
    services: BTreeMap<Endpoint, u32>,
    /// By service, address and port.
    backends: BTreeMap<(u32, Address, Be16), u32>,
}

/// The port under which a backend is found by its address alone: where packets keep
/// their ports, the flow does not know the backend's.
const ANY: Be16 = Be16::new(0);

impl Dictionary {
    /// Of the tables as they are.
    pub fn of(tables: &Tables) -> Self {
        let parties = tables.parties.iter();
        let services = parties
            .filter(|(_, party)| party.roles & role::SERVICE != 0)
            .map(|(endpoint, party)| (*endpoint, party.service))
            .collect();
        let mut backends = BTreeMap::new();
        for (&number, backend) in &tables.backends {
            backends.insert((backend.service, backend.address, backend.port), number);
            let alone = (backend.service, backend.address, ANY);
            backends.entry(alone).or_insert(number);
        }
        Self { services, backends }
    }

    /// The key of a flow's packets from the client and what becomes of them here, if
    /// service and backend are known.
    pub(super) fn flow(&self, record: &Record) -> Option<(FlowKey, Flow)> {
        let (client, service) = match &record.ends {
            Ends::V4 { client, service } => (Address::v4(*client), Address::v4(*service)),
            Ends::V6 { client, service } => (Address::v6(client), Address::v6(service)),
        };
        let backend = match &record.backend {
            Host::V4(octets) => Address::v4(*octets),
            Host::V6(octets) => Address::v6(octets),
        };
        let [client_port, service_port, source_port, backend_port] =
            record.ports.map(Be16::from_wire);
        let protocol = if record.is_tcp() { TCP } else { UDP };
        let number = *self.services.get(&Endpoint {
            address: service,
            port: service_port,
            protocol: u16::from(protocol),
            zero: 0,
        })?;
        let one_way = forward::one_way(record.forward());
        let port = if one_way { ANY } else { backend_port };
        let backend_number = *self.backends.get(&(number, backend, port))?;
        let key = FlowKey {
            src: client,
            dst: service,
            src_port: client_port,
            dst_port: service_port,
            protocol: u32::from(protocol),
        };
        let full_nat = record.forward() == forward::FULL_NAT;
        let mut flow = Flow {
            src: if full_nat { service } else { client },
            dst: backend,
            src_port: source_port,
            dst_port: backend_port,
            backend: backend_number,
            // Numbers of services have sixteen bits in a flow.
            service: u16::try_from(number).ok()?,
            kind: u16::from(record.forward()),
            life: Life {
                state: u32::from(record.state),
                proof: record.proof,
                ..Life::default()
            },
            ..Flow::default()
        };
        if !one_way {
            let (ip, transport) = deltas(&key, &flow);
            flow.ip_delta = ip.0;
            flow.transport_delta = transport.0;
        }
        Some((key, flow))
    }
}
