//! Listens for changes of routes and neighbours, for the data path's sake.
//!
//! The data path asks the kernel's routing table once for a flow, and goes on with
//! the answer until something changes (`lb_ebpf::hops`). What the answer depends
//! on the kernel reports: routes, rules, next hops, neighbours, interfaces,
//! addresses and the settings of forwarding. A thread of its own, so that nothing
//! else that the daemon does comes between, waits for such reports, counts a change
//! for all that are there, and vouches for another [`VOUCHED`] every [`ROUND`]. If it
//! ends or hangs, the data path stops relying on it when that is over.
//!
//! A report is nearly always a reason to ask again; only neighbours are told of
//! every half minute without any change, so it is remembered what was last heard
//! of each.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::{error, warn};
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::dataplane::Changes;
use crate::host;

/// How long it waits at most before it vouches again.
const ROUND: Duration = Duration::from_millis(100);

/// For how long it vouches at a time; less than the second that the data path
/// takes for the most.
const VOUCHED: Duration = Duration::from_millis(750);

/// What is listened to (`RTNLGRP_*`, linux/rtnetlink.h).
const GROUPS: [u32; 11] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_NETCONF,
    libc::RTNLGRP_NEXTHOP,
];

/// How much may wait to be read: what does not fit is reported as lost, and
/// counts as a change.
const QUEUE: usize = 1 << 20;

/// Reports that come together are one change; so many at most.
const BATCH: usize = 256;

/// The most neighbours that are remembered; every report of another is a change.
const NEIGHBOURS: usize = 65_536;

/// No netlink socket, or no thread.
#[derive(Debug, Error)]
#[error("cannot listen to the kernel about routes (netlink): {0}")]
pub struct RoutesError(#[from] io::Error);

/// Listens; stops when dropped.
#[derive(Debug)]
pub struct Routes {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It tells of its own troubles itself.
            let _ = thread.join();
        }
    }
}

impl Routes {
    /// Listens from now on, in the calling thread's network namespace.
    pub fn listen(changes: Arc<Changes>) -> Result<Self, RoutesError> {
        let socket = subscribe()?;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = thread::Builder::new()
            .name("routes".into())
            .spawn(move || attend(socket, &changes, &end))?;
        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    socket.set_rx_buf_sz(QUEUE)?;
    for group in GROUPS {
        socket.add_membership(group)?;
    }
    Ok(socket)
}

fn attend(socket: Socket, changes: &Changes, end: &AtomicBool) {
    let hz = host::ticks_per_second();
    let vouched = u32::try_from(VOUCHED.as_millis()).unwrap_or(0) * hz / 1000;
    let mut heard = Heard::default();
    let mut buffer = Vec::with_capacity(1 << 16);
    // What happened before it listened.
    changes.count();
    while !end.load(Ordering::Acquire) {
        match drain(&socket, &mut buffer, &mut heard) {
            Ok(true) => changes.count(),
            Ok(false) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                heard = Heard::default();
                changes.count();
            }
            Err(error) => {
                error!(
                    "cannot hear of changed routes any more: {error}; packets go on, but each flow asks for its way again and again until lb is restarted"
                );
                break;
            }
        }
        changes.vouch(host::ticks_now(hz).wrapping_add(vouched));
        wait(&socket);
    }
    changes.vouch(host::ticks_now(hz));
}

/// Waits for a report, one round at most.
fn wait(socket: &Socket) {
    let mut sockets = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
    let round = Timespec::try_from(ROUND).ok();
    if let Err(error) = poll(&mut sockets, round.as_ref())
        && error != rustix::io::Errno::INTR
    {
        warn!("cannot wait for changed routes: {error}");
        thread::sleep(ROUND);
    }
}

/// Reads what waits, a bounded number of reports; whether one of them is a change.
fn drain(socket: &Socket, buffer: &mut Vec<u8>, heard: &mut Heard) -> io::Result<bool> {
    let mut changed = false;
    for _ in 0..BATCH {
        buffer.clear();
        match socket.recv(buffer, 0) {
            Ok(_) => changed |= heard.changes(buffer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(changed)
}

/// What was last heard of each neighbour: its link address, if it has one that
/// counts.
#[derive(Default)]
struct Heard {
    neighbours: HashMap<(u32, IpAddr), Option<Vec<u8>>>,
}

impl Heard {
    /// Whether one of the reports in a datagram is a change. What cannot be read
    /// may be one.
    fn changes(&mut self, datagram: &[u8]) -> bool {
        let mut rest = datagram;
        let mut changed = false;
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(rest).map(|message| message.length() as usize);
            let Some(message) = length.ok().and_then(|length| rest.get(..length)) else {
                return true;
            };
            changed |= match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
                Ok(message) => self.is_change(message.payload),
                Err(_) => true,
            };
            // Messages begin at multiples of four bytes (NLMSG_ALIGNTO).
            rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or(&[]);
        }
        changed
    }

    fn is_change(&mut self, payload: NetlinkPayload<RouteNetlinkMessage>) -> bool {
        match payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)) => {
                self.hear(&neighbour)
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour)) => {
                self.forget(&neighbour)
            }
            _ => true,
        }
    }

    fn hear(&mut self, neighbour: &NeighbourMessage) -> bool {
        let Some(key) = key(neighbour) else {
            return false;
        };
        if self.neighbours.len() >= NEIGHBOURS && !self.neighbours.contains_key(&key) {
            return true;
        }
        let link = link_address(neighbour);
        self.neighbours.insert(key, link.clone()) != Some(link)
    }

    fn forget(&mut self, neighbour: &NeighbourMessage) -> bool {
        let known = key(neighbour).map(|key| self.neighbours.remove(&key));
        // One that had no link address was of no use to anybody.
        known.is_some_and(|known| known != Some(None))
    }
}

/// The interface and the address of a neighbour; `None` for one of a bridge, or of
/// a kind that routes do not lead to.
fn key(neighbour: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    let address = neighbour
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                Some((*address).into())
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                Some((*address).into())
            }
            _ => None,
        });
    address.map(|address| (neighbour.header.ifindex, address))
}

/// The link address of a neighbour that packets are sent to (the kernel's
/// `NUD_VALID`).
fn link_address(neighbour: &NeighbourMessage) -> Option<Vec<u8>> {
    let valid = matches!(
        neighbour.header.state,
        NeighbourState::Permanent
            | NeighbourState::Noarp
            | NeighbourState::Reachable
            | NeighbourState::Probe
            | NeighbourState::Stale
            | NeighbourState::Delay
    );
    let address = neighbour
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(address) => Some(address.clone()),
            _ => None,
        });
    address.filter(|_| valid)
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::NetlinkHeader;
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::route::RouteMessage;

    use super::*;

    fn report(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn neighbour(host: u8, state: NeighbourState, link: Option<u8>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 7;
        message.header.state = state;
        let address = NeighbourAddress::Inet([10, 0, 0, host].into());
        message.attributes = vec![NeighbourAttribute::Destination(address)];
        message
            .attributes
            .extend(link.map(|byte| NeighbourAttribute::LinkLayerAddress(vec![byte; 6])));
        message
    }

    #[test]
    fn of_a_neighbour_only_another_link_address_is_a_change() {
        use NeighbourState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};
        let mut heard = Heard::default();
        let table = [
            (Incomplete, None, true),
            (Reachable, Some(1), true),
            (Stale, Some(1), false),
            (Delay, Some(1), false),
            (Probe, Some(1), false),
            (Reachable, Some(2), true),
            (Failed, Some(2), true),
            (Failed, None, false),
            (Reachable, Some(2), true),
        ];
        for (state, link, change) in table {
            let message = RouteNetlinkMessage::NewNeighbour(neighbour(1, state, link));
            assert_eq!(
                heard.changes(&report(message)),
                change,
                "{state:?} {link:?}"
            );
        }
        let gone = || report(RouteNetlinkMessage::DelNeighbour(neighbour(1, Stale, None)));
        assert!(heard.changes(&gone()), "it had a link address");
        let failed = RouteNetlinkMessage::NewNeighbour(neighbour(1, Failed, None));
        heard.changes(&report(failed));
        assert!(!heard.changes(&gone()), "it had none");
        assert!(heard.neighbours.is_empty());
    }

    #[test]
    fn one_change_among_several_reports_of_a_datagram_is_seen() {
        let mut heard = Heard::default();
        let same = || {
            let message = neighbour(1, NeighbourState::Reachable, Some(1));
            report(RouteNetlinkMessage::NewNeighbour(message))
        };
        heard.changes(&same());
        assert!(!heard.changes(&[same(), same()].concat()));
        let route = report(RouteNetlinkMessage::NewRoute(RouteMessage::default()));
        assert!(heard.changes(&[same(), route, same()].concat()));
    }

    #[test]
    fn what_cannot_be_read_may_be_a_change() {
        let mut heard = Heard::default();
        let message = neighbour(1, NeighbourState::Reachable, Some(1));
        let report = report(RouteNetlinkMessage::NewNeighbour(message));
        heard.changes(&report);
        assert!(heard.changes(&report[..report.len() - 5]), "cut off");
        assert!(heard.changes(&[0; 3]), "no header");
        assert!(heard.changes(&[0; 16]), "a length of zero");
        assert!(!heard.changes(&report));
    }

    #[test]
    fn so_many_neighbours_are_remembered_and_no_more() {
        let mut heard = Heard::default();
        for number in 0..NEIGHBOURS {
            let address = std::net::Ipv4Addr::from_bits(number as u32);
            heard.neighbours.insert((7, address.into()), None);
        }
        let message = || neighbour(1, NeighbourState::Reachable, Some(1));
        assert!(heard.hear(&message()));
        assert!(heard.hear(&message()));
        assert_eq!(heard.neighbours.len(), NEIGHBOURS);
    }
}
