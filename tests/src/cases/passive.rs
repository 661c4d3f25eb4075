//! A node of a pair without the lease: silent for what the other node has.

use lb_common::Verdict;
use lb_common::abi::{ICMPV6, Settings, TCP, UDP, forward};

use super::going::MODES;
use super::{CASTS, Case, Cast, ISN, Step, mode_name, protocol_name};
use crate::frame::{Frame, end, icmp, ping, tcp};
use crate::network::{LAN, WAN};
use crate::world::{STEADY, World};

const PAIRED: Settings = Settings {
    paired: 1,
    ..STEADY
};

/// Moves with the role, and no service listens there.
const HELD: [&str; 2] = ["203.0.113.99", "2001:db8:10::99"];

/// The host's own addresses.
const OWN: [&str; 2] = ["198.51.100.1", "2001:db8:100::1"];

/// The operations of ARP (RFC 826).
const REQUEST: u8 = 1;
const REPLY: u8 = 2;

/// Types of neighbour discovery (RFC 4861).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in [forward::FULL_NAT, forward::NAT] {
            cases.extend([TCP, UDP].map(|protocol| interrupted(cast, protocol, mode)));
        }
        cases.extend(MODES.map(|mode| never_begun(cast, mode)));
        cases.extend([addresses(cast), others(cast)]);
    }
    cases.extend([link_addresses(), solicitations()]);
    cases
}

fn world(cast: &Cast, protocol: u8, mode: u8) -> World {
    let world = cast.world(protocol, mode).with(PAIRED);
    HELD.iter()
        .fold(world, |world, address| world.held(address))
}

impl Case {
    fn stays_silent(self, frame: &Frame) -> Self {
        self.leaves_alone(&WAN, frame, Verdict::NotActive)
    }
}

fn interrupted(cast: &Cast, protocol: u8, mode: u8) -> Case {
    let talk = cast.talk(protocol, mode, 51_000, 0);
    let says = format!(
        "a {} connection over {} by {} goes nowhere while the lease is over, and on afterwards",
        protocol_name(protocol),
        cast.family,
        mode_name(mode),
    );
    let asks = |frame: Frame| frame.ack(ISN + 1).payload(b"more?");
    let answers = |frame: Frame| frame.ack(0x0102_0305).payload(b"more");
    Case::new(says, world(cast, protocol, mode))
        .lease(true)
        .handshake(&talk)
        .lease(false)
        .stays_silent(&asks(talk.asks()))
        .leaves_alone(&LAN, &answers(talk.answers()), Verdict::NotActive)
        .then_flows(2, 0)
        .lease(true)
        .client_sends(&talk, asks)
        .backend_sends(&talk, answers)
        .then_flows(2, 0)
        .then_turns(1)
}

fn never_begun(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(TCP, mode, 51_000, 0);
    let says = format!(
        "without the lease no connection begins over {} by {}",
        cast.family,
        mode_name(mode),
    );
    Case::new(says, world(cast, TCP, mode))
        .stays_silent(&talk.asks().syn())
        .stays_silent(&talk.asks().ack(1))
        .stays_silent(&talk.asks().syn().ttl(1))
        .then_flows(0, 0)
        .then_turns(0)
        .then("nothing is counted for the service", |state| {
            state.services.is_empty()
        })
}

/// The client, as an end.
fn client(cast: &Cast) -> String {
    format!("{}:51000", cast.client)
}

/// Which of two, by family.
fn of<T: Copy>(cast: &Cast, [four, six]: [T; 2]) -> T {
    if cast.family == "IPv4" { four } else { six }
}

fn at(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn addresses(cast: &Cast) -> Case {
    let says = format!(
        "without the lease the host answers nothing over {} for an address that moves",
        cast.family
    );
    let service = end(cast.service).ip().to_string();
    let mut case = Case::new(says, world(cast, TCP, forward::FULL_NAT));
    for address in [&service[..], of(cast, HELD)] {
        let from = client(cast);
        let syn = tcp(&from, &at(address, 81)).syn();
        case = case
            .stays_silent(&syn)
            .stays_silent(&ping(&from, &at(address, 0), 1, 1, b"?"))
            .stays_silent(&syn.clone().tagged(10));
        // IPIP, GRE, ESP, VRRP, SCTP
        for protocol in [4, 47, 50, 112, 132] {
            case = case.stays_silent(&syn.clone().claims_next_header(protocol));
        }
        case = case.stays_silent(&syn.clone().fragment(64, true));
    }
    case
}

fn others(cast: &Cast) -> Case {
    let says = format!(
        "without the lease what is the host's own over {} passes",
        cast.family
    );
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let from = client(cast);
    let own = at(of(cast, OWN), 22);
    let syn = tcp(&from, &own).syn();
    Case::new(says, world(cast, TCP, forward::FULL_NAT))
        .leaves_alone(&WAN, &syn, Verdict::NoService)
        .leaves_alone(&WAN, &ping(&from, &own, 1, 1, b"?"), Verdict::NotTransport)
        .leaves_alone(
            &WAN,
            &syn.clone().claims_next_header(112),
            Verdict::NotTransport,
        )
        .leaves_alone(&WAN, &syn.cut_to(15), Verdict::Truncated)
        .leaves_alone(
            &LAN,
            // A check of a backend's health is answered.
            &tcp(talk.backend, &own).syn_ack(1),
            Verdict::NoService,
        )
}

/// An ARP frame: `operation`, whose sender and whose target these are.
fn arp(operation: u8, sender: &str, target: &str) -> Vec<u8> {
    let four = |text: &str| match end(&at(text, 0)).ip() {
        std::net::IpAddr::V4(address) => address.octets(),
        std::net::IpAddr::V6(_) => panic!("ARP is for IPv4"),
    };
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 7, 8, 6]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend([2, 0, 0, 0, 0, 7]);
    frame.extend(four(sender));
    frame.extend([0; 6]);
    frame.extend(four(target));
    frame
}

impl Case {
    fn hears(self, frame: Vec<u8>, verdict: Verdict) -> Self {
        self.step(Step::Arrives {
            on: &WAN,
            leaves: frame.clone(),
            frame,
            verdict,
        })
    }
}

fn link_addresses() -> Case {
    use Verdict::{NotActive, NotIp};
    let cast = CASTS[0];
    let [service, held, own] = ["203.0.113.10", HELD[0], OWN[0]];
    let client = cast.client;
    let short = arp(REQUEST, client, service)[..41].to_vec();
    Case::new(
        "without the lease nobody is told by ARP where an address is that moves",
        world(cast, TCP, forward::FULL_NAT),
    )
    .hears(arp(REQUEST, client, service), NotActive)
    .hears(arp(REQUEST, client, held), NotActive)
    // A probe for a duplicate (RFC 5227), and one that tells of itself.
    .hears(arp(REQUEST, "0.0.0.0", service), NotActive)
    .hears(arp(REQUEST, service, service), NotActive)
    .hears(arp(REPLY, service, service), NotIp)
    .hears(arp(REQUEST, client, own), NotIp)
    .hears(arp(REQUEST, service, client), NotIp)
    .hears(short, NotIp)
    .lease(true)
    .hears(arp(REQUEST, client, service), NotIp)
    .hears(arp(REQUEST, client, held), NotIp)
}

fn solicitations() -> Case {
    let cast = CASTS[1];
    let about = |kind: u8, address: &str| {
        let std::net::IpAddr::V6(target) = end(&at(address, 0)).ip() else {
            panic!("neighbour discovery is for IPv6");
        };
        // To the group of all who have such an address.
        icmp(&client(cast), "[ff02::1:ff00:10]:0", kind, 0, [0; 4])
            .payload(&target.octets())
            .ttl(255)
    };
    let service = "2001:db8:10::10";
    let pass = Verdict::NotTransport;
    let damaged = about(SOLICITATION, service)
        .claims_next_header(ICMPV6)
        .cut_to(70);
    Case::new(
        "without the lease nobody is told by neighbour discovery where an address is that moves",
        world(cast, TCP, forward::FULL_NAT),
    )
    .stays_silent(&about(SOLICITATION, service))
    .stays_silent(&about(SOLICITATION, HELD[1]))
    .stays_silent(&about(SOLICITATION, service).hop_by_hop())
    .leaves_alone(&WAN, &about(SOLICITATION, OWN[1]), pass)
    .leaves_alone(&WAN, &about(ADVERTISEMENT, service), pass)
    .leaves_alone(&WAN, &damaged, pass)
    .lease(true)
    .leaves_alone(&WAN, &about(SOLICITATION, service), pass)
    .leaves_alone(&WAN, &about(SOLICITATION, HELD[1]), pass)
}
