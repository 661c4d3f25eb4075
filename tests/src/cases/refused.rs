//! What is for a service and goes no further.

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP, forward};
use lb_common::flow::tcp_flag::{ACK, FIN, RST, SYN};

use super::{CASTS, Case, Cast, ISN, V4, V6};
use crate::frame::{Frame, IcmpError, tcp, udp};
use crate::network::{LAN, WAN};
use crate::world::World;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        cases.extend([
            bad_flags(cast),
            no_flow(cast),
            lying_lengths(cast),
            short_transport(cast),
            out_of_ttl(cast),
            no_backend(cast),
            unknown_backend(cast),
        ]);
    }
    cases.extend([bad_sources_v4(), bad_sources_v6(), known_but_damaged()]);
    cases
}

fn bad_sources_v4() -> Case {
    let sources = [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ];
    sources
        .iter()
        .fold(
            Case::new(
                "nobody begins a connection from an IPv4 address that no sender has",
                V4.world(TCP, forward::FULL_NAT),
            ),
            |case, source| {
                let syn = tcp(&format!("{source}:51000"), V4.service).syn();
                case.leaves_alone(&WAN, &syn, Verdict::BadSource)
            },
        )
        .then_turns(0)
}

fn bad_sources_v6() -> Case {
    ["::", "::1", "ff02::1"]
        .iter()
        .fold(
            Case::new(
                "nobody begins a connection from an IPv6 address that no sender has",
                V6.world(UDP, forward::FULL_NAT),
            ),
            |case, source| {
                let first = udp(&format!("[{source}]:51000"), V6.service).payload(b"?");
                case.leaves_alone(&WAN, &first, Verdict::BadSource)
            },
        )
        .then_turns(0)
}

fn bad_flags(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "scans over {}: flags that no connection produces",
        cast.family
    );
    // 0x08 is PSH, 0x20 URG.
    [
        0,
        0x28,
        SYN | FIN,
        SYN | RST,
        FIN | RST,
        SYN | FIN | ACK,
        0xff,
    ]
    .iter()
    .fold(
        Case::new(says, cast.world(TCP, forward::FULL_NAT)),
        |case, flags| case.leaves_alone(&WAN, &talk.asks().flags(*flags), Verdict::BadFlags),
    )
    .then_turns(0)
}

fn no_flow(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::NAT, 51_000, 0);
    let says = format!("over {} nothing but a SYN begins a connection", cast.family);
    [ACK, SYN | ACK, FIN | ACK, RST, RST | ACK, FIN]
        .iter()
        .fold(
            Case::new(says, cast.world(TCP, forward::NAT)),
            |case, flags| case.leaves_alone(&WAN, &talk.asks().flags(*flags), Verdict::NoFlow),
        )
        .then_turns(0)
}

fn lying_lengths(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!("IP lengths over {} that cannot be true", cast.family);
    let header = if cast.family == "IPv4" { 20 } else { 0 };
    [0, header + 19, header + 21, 65_535]
        .iter()
        .fold(
            Case::new(says, cast.world(TCP, forward::FULL_NAT)),
            |case, length| {
                let syn = talk.asks().syn().claims_ip_length(*length);
                case.leaves_alone(&WAN, &syn, Verdict::LengthMismatch)
            },
        )
        .then_turns(0)
}

fn short_transport(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let udp_talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 1);
    let says = format!(
        "the frame ends inside the TCP or UDP header over {}",
        cast.family
    );
    let ports = if cast.family == "IPv4" { 38 } else { 58 };
    let world = World::empty()
        .service(TCP, forward::FULL_NAT, cast.service, &[0])
        .backend(cast.backends[0])
        .service(UDP, forward::FULL_NAT, cast.service, &[1])
        .backend(cast.backends[1]);
    let mut case = Case::new(says, world);
    for length in [ports, ports + 15] {
        let cut = talk.asks().syn().cut_to(length);
        case = case.leaves_alone(&WAN, &cut, Verdict::ShortTransport);
    }
    for length in [ports, ports + 3] {
        let cut = udp_talk.asks().cut_to(length);
        case = case.leaves_alone(&WAN, &cut, Verdict::ShortTransport);
    }
    case.then_turns(0)
}

fn out_of_ttl(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} what may not be forwarded once more begins nothing and takes no turn, and its sender is told",
        cast.family
    );
    let expires = |case: Case, on, frame: Frame| {
        let told = frame.told(IcmpError::TimeExceeded);
        case.sends(on, &frame, Verdict::TtlExpiredTold, &told)
    };
    let mut case = Case::new(says, cast.world(TCP, forward::FULL_NAT));
    for ttl in [1, 0] {
        case = expires(case, &WAN, talk.asks().syn().ttl(ttl));
    }
    case = case.then_flows(0, 0).then_turns(0).handshake(&talk);
    case = expires(case, &WAN, talk.asks().ack(ISN + 1).ttl(1));
    case = expires(case, &LAN, talk.answers().ack(1).ttl(1));
    case.client_sends(&talk, |frame| frame.ack(ISN + 1).ttl(2))
}

fn no_backend(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "the sequence is empty over {}: nobody to send to",
        cast.family
    );
    Case::new(
        says,
        World::empty().service(UDP, forward::FULL_NAT, cast.service, &[]),
    )
    .leaves_alone(&WAN, &talk.asks(), Verdict::NoBackend)
    .then_turns(0)
}

fn unknown_backend(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "the sequence over {} names a slot that is not in use, and one that does not exist",
        cast.family
    );
    Case::new(
        says,
        World::empty()
            .service(TCP, forward::FULL_NAT, cast.service, &[7, 99])
            .backend(cast.backends[0]),
    )
    .leaves_alone(&WAN, &talk.asks().syn(), Verdict::UnknownBackend)
    .leaves_alone(&WAN, &talk.asks().syn(), Verdict::UnknownBackend)
    .then_flows(0, 0)
}

fn known_but_damaged() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let data = talk.asks().ack(ISN + 1).payload(b"0123456789abcdef");
    Case::new(
        "a known flow does not excuse damage",
        V4.world(TCP, forward::FULL_NAT),
    )
    .handshake(&talk)
    .leaves_alone(
        &WAN,
        &data.clone().claims_ip_length(400),
        Verdict::LengthMismatch,
    )
    .leaves_alone(&WAN, &data.clone().cut_to(60), Verdict::LengthMismatch)
    .leaves_alone(&WAN, &data.clone().cut_to(50), Verdict::ShortTransport)
    .leaves_alone(
        &LAN,
        &talk.answers().claims_ip_length(10),
        Verdict::LengthMismatch,
    )
    .client_sends(&talk, |frame| {
        frame.ack(ISN + 1).payload(b"0123456789abcdef")
    })
}
