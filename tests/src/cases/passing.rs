//! What is not the balancer's, and passes bit for bit.

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP, forward};

use super::{CASTS, Case, Cast, V4, V6};
use crate::frame::{tcp, udp};
use crate::network::{LAN, WAN};
use crate::world::World;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        cases.extend([
            others(cast),
            not_transport(cast),
            bad_headers(cast),
            truncated(cast),
        ]);
    }
    cases.extend([
        not_ip(),
        without_services(),
        mapped_destination(),
        mapped_source(),
        later_fragment(),
    ]);
    cases
}

fn others(cast: &Cast) -> Case {
    let client = format!("{}:51000", cast.client);
    let to = |port: u16| {
        let (address, _) = cast.service.rsplit_once(':').expect("an end has a port");
        format!("{address}:{port}")
    };
    let says = format!(
        "over {} other ports, other protocols and other addresses are the host's",
        cast.family
    );
    Case::new(says, cast.world(TCP, forward::FULL_NAT))
        .leaves_alone(&WAN, &tcp(&client, &to(81)).syn(), Verdict::NoService)
        .leaves_alone(&WAN, &tcp(&client, &to(0)).syn(), Verdict::NoService)
        .leaves_alone(&WAN, &udp(&client, &to(80)), Verdict::NoService)
        .leaves_alone(
            &WAN,
            &tcp(&client, cast.second_service).syn(),
            Verdict::NoService,
        )
        .leaves_alone(
            &WAN,
            &tcp(&client, cast.backends[0]).syn(),
            Verdict::NoService,
        )
        .leaves_alone(
            &LAN,
            &tcp(cast.backends[0], &client).syn(),
            Verdict::NoService,
        )
        .leaves_alone(
            &WAN,
            &tcp(&client, &to(81)).syn().ttl(1),
            Verdict::NoService,
        )
        .leaves_alone(
            &WAN,
            &tcp(&client, &to(81)).claims_ip_length(9),
            Verdict::NoService,
        )
        .then_flows(0, 0)
        .then_turns(0)
}

fn not_transport(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} what is neither TCP nor UDP nor ICMP about them is the host's",
        cast.family
    );
    // ICMP, IPIP, IPv6, GRE, ESP, AH, ICMPv6, no next header, VRRP, SCTP, none
    [1, 4, 41, 47, 50, 51, 58, 59, 112, 132, 255].iter().fold(
        Case::new(says, cast.world(TCP, forward::FULL_NAT)),
        |case, protocol| {
            let frame = talk.asks().syn().claims_next_header(*protocol);
            case.leaves_alone(&WAN, &frame, Verdict::NotTransport)
        },
    )
}

fn bad_headers(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!("headers over {} that contradict themselves", cast.family);
    let mut case = Case::new(says, cast.world(TCP, forward::FULL_NAT));
    for version in [0, 5, 15] {
        let frame = talk.asks().syn().claims_version(version);
        case = case.leaves_alone(&WAN, &frame, Verdict::BadHeader);
    }
    let other = if cast.family == "IPv4" { 6 } else { 4 };
    case = case.leaves_alone(&WAN, &talk.asks().claims_version(other), Verdict::BadHeader);
    if cast.family == "IPv4" {
        for words in [0, 4] {
            let frame = talk.asks().syn().claims_header_words(words);
            case = case.leaves_alone(&WAN, &frame, Verdict::BadHeader);
        }
    }
    case
}

fn truncated(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let ports = if cast.family == "IPv4" { 34 } else { 54 };
    let says = format!("frames over {} that end before the ports", cast.family);
    [14, 15, ports - 1, ports, ports + 3].iter().fold(
        Case::new(says, cast.world(UDP, forward::FULL_NAT)),
        |case, length| case.leaves_alone(&WAN, &talk.asks().cut_to(*length), Verdict::Truncated),
    )
}

fn not_ip() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    // ARP, 802.1Q, MPLS, PPPoE, LLDP, 802.3 with a length
    [0x0806, 0x8100, 0x8847, 0x8864, 0x88cc, 0x0040]
        .iter()
        .fold(
            Case::new(
                "what is not IP right behind the Ethernet header is the host's",
                V4.world(TCP, forward::FULL_NAT),
            ),
            |case, ether_type| {
                let frame = talk.asks().syn().claims_ether_type(*ether_type);
                case.leaves_alone(&WAN, &frame, Verdict::NotIp)
            },
        )
}

fn without_services() -> Case {
    let four = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let six = V6.talk(UDP, forward::NAT, 51_000, 0);
    Case::new(
        "a balancer without services stands in nobody's way",
        World::empty(),
    )
    .leaves_alone(&WAN, &four.asks().syn(), Verdict::NoService)
    .leaves_alone(&WAN, &six.asks(), Verdict::NoService)
    .leaves_alone(&LAN, &four.answers().ack(1), Verdict::NoService)
}

/// The IPv4 service as an IPv6 address could spell it.
const MAPPED_SERVICE: &str = "[::ffff:203.0.113.10]:80";

fn mapped_destination() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let both = tcp("[::ffff:198.51.100.7]:51000", MAPPED_SERVICE);
    Case::new(
        "an IPv6 packet to a mapped address is not one to the IPv4 service, nor of its flows",
        V4.world(TCP, forward::FULL_NAT),
    )
    .leaves_alone(
        &WAN,
        &tcp("[2001:db8:100::7]:51000", MAPPED_SERVICE).syn(),
        Verdict::BadHeader,
    )
    .handshake(&talk)
    .leaves_alone(&WAN, &both.ack(super::ISN + 1), Verdict::BadHeader)
}

fn mapped_source() -> Case {
    Case::new(
        "an IPv6 packet from a mapped address has no sender: its answers would be routed as IPv4",
        V6.world(TCP, forward::FULL_NAT),
    )
    .leaves_alone(
        &WAN,
        &tcp("[::ffff:198.51.100.7]:51000", V6.service).syn(),
        Verdict::BadHeader,
    )
    .then_flows(0, 0)
}

fn later_fragment() -> Case {
    let later = |from, to| udp(from, to).payload(b"12345678").fragment(1, true);
    Case::new(
        "a fragment other than the first has no ports, even if its bytes look like those of a flow: to an address that is no service's it is the host's",
        V4.world(UDP, forward::FULL_NAT),
    )
    .handshake(&V4.talk(UDP, forward::FULL_NAT, 51_000, 0))
    .leaves_alone(
        &WAN,
        &later("198.51.100.7:51000", V4.backends[0]),
        Verdict::LaterFragment,
    )
    .leaves_alone(
        &LAN,
        &later(V4.backends[0], "198.51.100.7:51000"),
        Verdict::LaterFragment,
    )
}
