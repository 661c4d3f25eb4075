//! Keeps the link addresses of next hops known.
//!
//! A packet that is translated can be given to the host's stack when the link
//! address of its next hop is not known: the stack asks for it and sends the
//! packet on. With `dsr` it cannot, for the packet's destination is still the
//! service's address, which is the host's own; so the program has to drop it
//! (`neighbour_unknown`). With `tunnel` it can, by a detour. And if nobody but
//! the program uses an entry, the kernel forgets it. So every few seconds, and
//! at once when services change, each next hop is used on purpose (`NTF_USE`, as
//! `ip neighbour … use` does it): the kernel asks for what it does not know, and
//! confirms what it has not heard of for a while. Entries that somebody has made
//! to last are left alone: being used on purpose would make the kernel take them
//! for ones that it may forget (since Linux 5.16).

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use lb_common::abi::forward;
use log::{debug, warn};
use rtnetlink::Handle;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::model::Service;

/// From one round to the next. The kernel forgets an unused entry after 60
/// seconds at the earliest (`gc_stale_time`), and asks again for one that failed
/// only when somebody uses it.
const ROUND: Duration = Duration::from_secs(3);

/// No netlink socket.
#[derive(Debug, Error)]
#[error("cannot speak to the kernel about neighbours (netlink): {0}")]
pub struct NeighboursError(#[from] io::Error);

/// Keeps neighbours known; stops when dropped.
#[derive(Debug)]
pub struct Neighbours {
    wanted: watch::Sender<BTreeSet<IpAddr>>,
    connection: JoinHandle<()>,
    keeper: JoinHandle<()>,
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.keeper.abort();
        self.connection.abort();
    }
}

impl Neighbours {
    /// Starts with none, in the calling thread's network namespace (called
    /// within a tokio runtime).
    pub fn start() -> Result<Self, NeighboursError> {
        let (connection, handle, _messages) = rtnetlink::new_connection()?;
        let (wanted, changes) = watch::channel(BTreeSet::new());
        Ok(Self {
            wanted,
            connection: tokio::spawn(connection),
            keeper: tokio::spawn(keep(handle, changes)),
        })
    }

    /// Keeps the next hops to these addresses known from now on.
    pub fn want(&self, wanted: BTreeSet<IpAddr>) {
        self.wanted.send_if_modified(|now| {
            let differs = *now != wanted;
            *now = wanted;
            differs
        });
    }
}

/// The backends whose next hops nobody else keeps known.
pub fn wanted(services: &[Service]) -> BTreeSet<IpAddr> {
    services
        .iter()
        .filter(|service| forward::one_way(service.forward))
        .flat_map(|service| &service.backends)
        .map(|backend| backend.endpoint.address.socket(backend.endpoint.port).ip())
        .collect()
}

async fn keep(handle: Handle, mut changes: watch::Receiver<BTreeSet<IpAddr>>) {
    // An error is told when it is new, and again after it was away.
    let mut told = HashSet::new();
    loop {
        let wanted = changes.borrow_and_update().clone();
        let mut used = if wanted.is_empty() {
            HashSet::new()
        } else {
            // Without the list all would be used, as if none lasted.
            lasting(&handle).await.unwrap_or_else(|error| {
                debug!("the neighbours cannot be listed: {error}");
                HashSet::new()
            })
        };
        told.retain(|address| wanted.contains(address));
        for address in wanted {
            match refresh(&handle, address, &mut used).await {
                Ok(()) => {
                    told.remove(&address);
                }
                Err(error) if told.insert(address) => {
                    warn!(
                        "the next hop to the backend {address} cannot be kept known, so its packets may be dropped (neighbour_unknown): {error}; `ip route get {address}` shows the way"
                    );
                }
                Err(error) => debug!("{address}: {error}"),
            }
        }
        if let Ok(Err(_closed)) = timeout(ROUND, changes.changed()).await {
            return;
        }
    }
}

/// The neighbours that were entered to stay, each with its device.
async fn lasting(handle: &Handle) -> Result<HashSet<(u32, IpAddr)>, rtnetlink::Error> {
    let mut entries = handle.neighbours().get().execute();
    let mut lasting = HashSet::new();
    while let Some(entry) = entries.try_next().await? {
        let NeighbourState::Permanent = entry.header.state else {
            continue;
        };
        for attribute in &entry.attributes {
            let address = match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => (*v4).into(),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => (*v6).into(),
                _ => continue,
            };
            lasting.insert((entry.header.ifindex, address));
        }
    }
    Ok(lasting)
}

/// Uses the next hop to an address, once a round.
async fn refresh(
    handle: &Handle,
    address: IpAddr,
    used: &mut HashSet<(u32, IpAddr)>,
) -> Result<(), rtnetlink::Error> {
    let mut query = RouteMessage::default();
    query.header.address_family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    query.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
    query.attributes = vec![RouteAttribute::Destination(address.into())];
    let mut routes = handle.route().get(query).execute();
    while let Some(route) = routes.try_next().await? {
        let Some(hop) = next_hop(&route, address) else {
            continue;
        };
        if used.insert(hop) {
            let (device, address) = hop;
            handle
                .neighbours()
                .add(device, address)
                .state(NeighbourState::None)
                .flags(NeighbourFlags::Use)
                .replace()
                .execute()
                .await?;
        }
    }
    Ok(())
}

/// The device and the neighbour that a route leads to; `None` where the way
/// ends in this host.
fn next_hop(route: &RouteMessage, destination: IpAddr) -> Option<(u32, IpAddr)> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    let mut device = None;
    let mut neighbour = destination;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway))
            | RouteAttribute::Via(RouteVia::Inet(gateway)) => neighbour = (*gateway).into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway))
            | RouteAttribute::Via(RouteVia::Inet6(gateway)) => neighbour = (*gateway).into(),
            _ => {}
        }
    }
    device.map(|device| (device, neighbour))
}

#[cfg(test)]
mod tests {
    use lb_common::abi::TCP;

    use super::*;
    use crate::model::{Backend, endpoint};

    fn service(forward: u8, backends: &[&str]) -> Service {
        let at = |text: &str| endpoint(text.parse().unwrap(), u16::from(TCP));
        Service {
            forward,
            backends: backends
                .iter()
                .map(|text| Backend::new(text, at(text), 1))
                .collect(),
            ..Service::new("web", at("203.0.113.10:80"))
        }
    }

    #[test]
    fn only_backends_whose_packets_the_stack_cannot_take_are_kept() {
        let services = [
            service(forward::FULL_NAT, &["10.0.0.1:80"]),
            service(forward::NAT, &["10.0.0.2:80"]),
            service(forward::DSR, &["10.0.0.3:80", "10.0.0.4:80"]),
            service(forward::TUNNEL, &["[2001:db8::1]:80", "10.0.0.3:80"]),
        ];
        let wanted: Vec<String> = wanted(&services).iter().map(ToString::to_string).collect();
        assert_eq!(wanted, ["10.0.0.3", "10.0.0.4", "2001:db8::1"]);
    }

    #[test]
    fn the_next_hop_is_the_gateway_where_there_is_one() {
        let here: IpAddr = "10.0.0.3".parse().unwrap();
        let gateway: IpAddr = "10.1.0.1".parse().unwrap();
        let six: IpAddr = "fe80::1".parse().unwrap();
        let route = |kind, attributes| {
            let mut route = RouteMessage::default();
            route.header.kind = kind;
            route.attributes = attributes;
            next_hop(&route, here)
        };
        let table = [
            (RouteType::Unicast, vec![RouteAttribute::Oif(7)], Some(here)),
            (
                RouteType::Unicast,
                vec![
                    RouteAttribute::Gateway(gateway.into()),
                    RouteAttribute::Oif(7),
                ],
                Some(gateway),
            ),
            (
                RouteType::Unicast,
                vec![
                    RouteAttribute::Oif(7),
                    RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap())),
                ],
                Some(six),
            ),
            (RouteType::Local, vec![RouteAttribute::Oif(1)], None),
            (RouteType::BlackHole, Vec::new(), None),
        ];
        for (kind, attributes, neighbour) in table {
            let expected = neighbour.map(|neighbour| (7, neighbour));
            assert_eq!(route(kind, attributes), expected, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn an_address_of_this_host_has_no_next_hop() {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        let connection = tokio::spawn(connection);
        let mut used = HashSet::new();
        let outcome = refresh(&handle, "127.0.0.1".parse().unwrap(), &mut used).await;
        outcome.unwrap();
        assert!(used.is_empty(), "{used:?}");
        connection.abort();
    }
}
