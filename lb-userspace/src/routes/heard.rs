//! What was heard of routes and neighbours: which reports are changes.
//!
//! The link addresses of all neighbours that have one are remembered. Of the others
//! it is known that they have none, once the kernel has told of all: somebody who
//! goes through the addresses of a network, with this host for a router, makes
//! reports of thousands that nobody answers, and none of them is a change.

use std::collections::HashMap;
use std::net::IpAddr;

use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};

/// The most neighbours that are remembered; every report of another is a change.
const NEIGHBOURS: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// The link addresses of neighbours that have one that counts.
    links: HashMap<(u32, IpAddr), Vec<u8>>,
    /// Whether those are all.
    all: bool,
    /// Whether the kernel was asked for all, and has not told of them yet.
    asked: bool,
    /// Whether reports were lost since.
    missed: bool,
}

impl Heard {
    /// The kernel has been asked for all neighbours.
    pub(super) fn ask(&mut self) {
        self.asked = true;
        self.missed = false;
    }

    /// Reports were lost, and more may be.
    pub(super) fn miss(&mut self) {
        self.links.clear();
        self.all = false;
        self.missed = true;
    }

    /// Whether reports were lost, or may have been.
    pub(super) const fn missed(&self) -> bool {
        self.missed
    }

    /// Whether the kernel is to be asked for all neighbours.
    pub(super) const fn is_to_ask(&self) -> bool {
        self.missed && !self.asked
    }

    /// Whether one of the reports in a datagram is a change. What cannot be read
    /// may be one.
    pub(super) fn changes(&mut self, datagram: &[u8]) -> bool {
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
                self.hear(&neighbour, link_address(&neighbour))
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(neighbour)) => {
                self.hear(&neighbour, None)
            }
            NetlinkPayload::Done(_) => {
                self.asked = false;
                self.all = !self.missed;
                false
            }
            NetlinkPayload::Error(_) => {
                // The question was refused: not all are known.
                self.asked = false;
                true
            }
            _ => true,
        }
    }

    /// A neighbour has this link address now, or none.
    fn hear(&mut self, neighbour: &NeighbourMessage, link: Option<Vec<u8>>) -> bool {
        let Some(key) = key(neighbour) else {
            return false;
        };
        let Some(link) = link else {
            return self.links.remove(&key).is_some() || !self.all;
        };
        if self.links.len() >= NEIGHBOURS && !self.links.contains_key(&key) {
            self.all = false;
            return true;
        }
        self.links.insert(key, link.clone()) != Some(link)
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
    use rtnetlink::packet_core::{DoneMessage, NetlinkHeader};
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

    /// All neighbours are known: there are none yet.
    fn all_heard() -> Heard {
        Heard {
            all: true,
            ..Heard::default()
        }
    }

    fn done() -> Vec<u8> {
        let payload = NetlinkPayload::<RouteNetlinkMessage>::Done(DoneMessage::default());
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn new(neighbour: NeighbourMessage) -> Vec<u8> {
        report(RouteNetlinkMessage::NewNeighbour(neighbour))
    }

    #[test]
    fn of_a_neighbour_only_another_link_address_is_a_change() {
        use NeighbourState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};
        let mut heard = all_heard();
        let table = [
            (Incomplete, None, false),
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
            let report = new(neighbour(1, state, link));
            assert_eq!(heard.changes(&report), change, "{state:?} {link:?}");
        }
        let gone = || report(RouteNetlinkMessage::DelNeighbour(neighbour(1, Stale, None)));
        assert!(heard.changes(&gone()), "it had a link address");
        assert!(!heard.changes(&gone()), "it had none");
        assert!(heard.links.is_empty());
    }

    #[test]
    fn a_thousand_neighbours_that_nobody_has_heard_of_fail_without_a_change() {
        let mut heard = all_heard();
        for number in 0..1000 {
            let mut silent = neighbour(1, NeighbourState::Failed, None);
            silent.header.ifindex = number;
            assert!(!heard.changes(&new(silent.clone())));
            let gone = report(RouteNetlinkMessage::DelNeighbour(silent));
            assert!(!heard.changes(&gone));
        }
        assert!(heard.links.is_empty());
    }

    #[test]
    fn until_all_neighbours_are_known_one_that_fails_may_have_had_a_link_address() {
        use NeighbourState::{Failed, Permanent};
        let mut heard = Heard::default();
        heard.ask();
        assert!(heard.changes(&new(neighbour(1, Failed, None))));
        heard.changes(&new(neighbour(2, Permanent, Some(2))));
        assert!(!heard.changes(&done()));
        assert!(!heard.changes(&new(neighbour(1, Failed, None))));
        assert!(heard.changes(&new(neighbour(2, Failed, None))));
    }

    #[test]
    fn what_was_missed_while_the_kernel_told_of_all_is_asked_for_again() {
        let failed = || new(neighbour(1, NeighbourState::Failed, None));
        let mut heard = Heard::default();
        heard.ask();
        heard.miss();
        assert!(!heard.is_to_ask(), "one question at a time");
        heard.changes(&done());
        assert!(heard.changes(&failed()), "not all are known");
        assert!(heard.missed() && heard.is_to_ask());
        heard.ask();
        assert!(!heard.missed() && !heard.is_to_ask());
        heard.changes(&done());
        assert!(!heard.changes(&failed()));
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
        let mut heard = all_heard();
        for number in 0..NEIGHBOURS {
            let address = std::net::Ipv4Addr::from_bits(number as u32);
            heard.links.insert((7, address.into()), vec![1; 6]);
        }
        let known = || new(neighbour(1, NeighbourState::Reachable, Some(1)));
        assert!(heard.changes(&known()));
        assert!(heard.changes(&known()));
        assert_eq!(heard.links.len(), NEIGHBOURS);
        let failed = new(neighbour(1, NeighbourState::Failed, None));
        assert!(
            heard.changes(&failed),
            "it is not known any more who has none"
        );
    }
}
