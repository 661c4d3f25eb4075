//! IPv6 extension headers: they are looked through, and stay as they are.

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP, forward};

use super::tunnel::Through;
use super::{Case, ISN, Step, V4, V6, mode_name, protocol_name};
use crate::frame::Frame;
use crate::network::{LAN, WAN};

/// Says something of a frame.
type Said = fn(Frame) -> Frame;

/// Each kind alone.
const KINDS: [(&str, Said); 5] = [
    ("hop-by-hop options", Frame::hop_by_hop),
    ("destination options", Frame::destination_options),
    ("a routing header at its end", |frame| frame.routing(0)),
    ("a fragment header of all there is", |frame| {
        frame.fragment(0, false)
    }),
    ("long options", |frame| frame.extension(60, &[0; 126])),
];

/// The most that are looked through.
const MOST: usize = 6;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for protocol in [TCP, UDP] {
        for mode in [forward::FULL_NAT, forward::NAT] {
            cases.extend(KINDS.map(|kind| one_kind(protocol, mode, kind)));
            cases.push(all_kinds(protocol, mode));
        }
    }
    cases.extend([
        one_way(),
        known_flow(),
        up_to_the_bound(),
        up_to_the_length(),
        tagged_up_to_the_length(),
        under_way(),
        what_they_carry(),
        cut_short(),
        length_beyond_the_frame(),
        length_beyond_the_packet(),
        odd_checksums(),
    ]);
    cases
}

fn one_kind(protocol: u8, mode: u8, (name, with): (&str, Said)) -> Case {
    let talk = V6.talk(protocol, mode, 51_000, 0);
    let says = format!(
        "{} by {} behind {name}, both ways",
        protocol_name(protocol),
        mode_name(mode)
    );
    Case::new(says, V6.world(protocol, mode))
        .client_sends(&talk, |frame| with(frame.syn()))
        .backend_sends(&talk, |frame| {
            with(frame.syn_ack(0x0102_0305).seq(ISN)).padded_to(120)
        })
        .client_sends(&talk, |frame| with(frame.ack(ISN + 1).payload(b"odd")))
        .then_flows(2, 0)
}

fn all_kinds(protocol: u8, mode: u8) -> Case {
    let talk = V6.talk(protocol, mode, 51_000, 0);
    let all = |frame: Frame| {
        let frame = frame.hop_by_hop().destination_options().routing(0);
        let frame = frame.fragment(0, false).destination_options();
        // What is left of them.
        frame.destination_options().ttl(2)
    };
    let says = format!(
        "{} by {} behind every kind of extension header",
        protocol_name(protocol),
        mode_name(mode)
    );
    Case::new(says, V6.world(protocol, mode))
        .client_sends(&talk, |frame| all(frame.syn()))
        .backend_sends(&talk, |frame| all(frame.syn_ack(0x0102_0305).seq(ISN)))
        .client_sends(&talk, |frame| all(frame.ack(ISN + 1).payload(b"odd")))
        .then_flows(2, 0)
}

fn one_way() -> Case {
    let taken = V6.talk(UDP, forward::DSR, 51_000, 0);
    let mut case = Case::new(
        "extension headers are no obstacle to dsr and to tunnels of either family",
        V6.world(UDP, forward::DSR)
            .service(UDP, forward::TUNNEL, V6.second_service, &[3])
            .backend(V4.backends[0])
            .service(UDP, forward::TUNNEL, "[2001:db8:10::30]:80", &[4])
            .backend(V6.backends[0]),
    );
    let frames = |asks: &dyn Fn() -> Frame| {
        let all = asks().hop_by_hop().routing(0).destination_options();
        let mut frames: Vec<Frame> = KINDS.iter().map(|(_, with)| with(asks())).collect();
        frames.push(all.payload(b"odd"));
        frames
    };
    for frame in frames(&|| taken.asks().payload(b"?")) {
        let sent = frame.clone().sent_on(LAN.to(11));
        case = case.sends(&WAN, &frame, Verdict::ForwardRedirect, &sent);
    }
    for (outer, service) in [(&V4, V6.second_service), (&V6, "[2001:db8:10::30]:80")] {
        let mut through = Through::new(&V6, outer, &WAN, UDP, 51_000, 0);
        through.talk.service = service;
        let through = through.to(outer.backends[0]);
        for frame in frames(&|| through.asks().payload(b"?")) {
            let sent = through.wrap(frame.clone().sent_on(LAN.to(11)), None);
            case = case.sends(&WAN, &frame, Verdict::ForwardRedirect, &sent);
        }
    }
    case
}

fn known_flow() -> Case {
    let talk = V6.talk(TCP, forward::FULL_NAT, 51_000, 0);
    Case::new(
        "a packet of a known flow may have extension headers that the others had not",
        V6.world(TCP, forward::FULL_NAT),
    )
    .handshake(&talk)
    .client_sends(&talk, |frame| {
        frame.ack(ISN + 1).hop_by_hop().payload(b"and now")
    })
    .backend_sends(&talk, |frame| frame.ack(0x0102_030c).extensions(MOST))
    .client_sends(&talk, Frame::fin)
    .then_flows(2, 0)
}

fn up_to_the_bound() -> Case {
    let talk = V6.talk(UDP, forward::NAT, 51_000, 0);
    let mut case = Case::new(
        "so many extension headers are looked through, and no more",
        V6.world(UDP, forward::NAT),
    );
    for count in 1..=MOST {
        case = case.client_sends(&talk, |frame| frame.extensions(count).payload(b"?"));
    }
    for count in [MOST + 1, MOST + 2, 20, 100] {
        let frame = talk.asks().extensions(count).payload(b"?");
        case = case.leaves_alone(&WAN, &frame, Verdict::ExtensionHeaders);
    }
    case.then_flows(0, 2).then_turns(1)
}

/// The transport header begins at byte 255 of the frame or before it.
fn up_to_the_length() -> Case {
    let talk = V6.talk(UDP, forward::NAT, 51_000, 0);
    // 14 + 40 + 200 = 254, 14 + 40 + 208 = 262
    let long = |bytes: usize| talk.asks().extension(60, &vec![0; bytes - 2]);
    Case::new(
        "so long an extension header is looked through, and no longer",
        V6.world(UDP, forward::NAT),
    )
    .client_sends(&talk, |frame| frame.extension(60, &[0; 198]))
    .leaves_alone(&WAN, &long(208), Verdict::ExtensionHeaders)
    .leaves_alone(&WAN, &long(2048), Verdict::ExtensionHeaders)
    .leaves_alone(
        &WAN,
        &talk.asks().hop_by_hop().extension(60, &[0; 198]),
        Verdict::ExtensionHeaders,
    )
}

fn tagged_up_to_the_length() -> Case {
    let talk = V6.talk(UDP, forward::NAT, 51_000, 0);
    let long = |bytes: usize| {
        let frame = talk.asks().extension(60, &vec![0; bytes - 2]);
        frame.tagged(98).tagged(99)
    };
    let sent = long(192).between(&talk.source, talk.backend);
    Case::new(
        "tags count for the length of what is looked through",
        V6.world(UDP, forward::NAT),
    )
    .sends(
        &WAN,
        &long(192),
        Verdict::ForwardRedirect,
        &sent.untagged().sent_on(LAN.to(11)),
    )
    .leaves_alone(&WAN, &long(200), Verdict::ExtensionHeaders)
}

fn under_way() -> Case {
    let talk = V6.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let mut case = Case::new(
        "a packet that has segments left on its route is not at its destination yet",
        V6.world(TCP, forward::FULL_NAT),
    );
    for left in [1, 2, 255] {
        let frame = talk.asks().syn().routing(left);
        case = case.leaves_alone(&WAN, &frame, Verdict::NotTransport);
    }
    let frame = talk.asks().syn().hop_by_hop().routing(1);
    case.leaves_alone(&WAN, &frame, Verdict::NotTransport)
        .then_flows(0, 0)
        .then_turns(0)
}

fn what_they_carry() -> Case {
    let talk = V6.talk(TCP, forward::FULL_NAT, 51_000, 0);
    // IPv4, IPv6, GRE, ESP, AH, none, mobility, SCTP, for experiments
    [4, 41, 47, 50, 51, 59, 135, 132, 253].iter().fold(
        Case::new(
            "what is behind extension headers and neither TCP nor UDP is the host's",
            V6.world(TCP, forward::FULL_NAT),
        ),
        |case, protocol| {
            let frame = talk.asks().syn().hop_by_hop().destination_options();
            let frame = frame.claims_next_header(*protocol);
            case.leaves_alone(&WAN, &frame, Verdict::NotTransport)
        },
    )
}

fn cut_short() -> Case {
    let talk = V6.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let asks = || talk.asks().payload(b"?");
    let mut case = Case::new(
        "frames that end in an extension header, or right behind it",
        V6.world(UDP, forward::FULL_NAT),
    );
    // The header's first eight bytes are at 54, the next ones at 62.
    for length in [54, 55, 56, 61, 62, 65] {
        for (_, with) in KINDS {
            let frame = with(asks()).cut_to(length);
            case = case.leaves_alone(&WAN, &frame, Verdict::Truncated);
        }
        let both = asks().hop_by_hop().destination_options().cut_to(length);
        case = case.leaves_alone(&WAN, &both, Verdict::Truncated);
    }
    case.then_flows(0, 0)
}

/// The frame, whose first extension header says that so many units of eight
/// bytes follow the first.
fn claiming(frame: &Frame, units: u8) -> Vec<u8> {
    let mut bytes = frame.bytes();
    bytes[14 + 40 + 1] = units;
    bytes
}

fn stays(case: Case, frame: Vec<u8>, verdict: Verdict) -> Case {
    case.step(Step::Arrives {
        on: &WAN,
        leaves: frame.clone(),
        frame,
        verdict,
    })
}

fn length_beyond_the_frame() -> Case {
    let talk = V6.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let mut case = Case::new(
        "an extension header whose length leads beyond the frame",
        V6.world(TCP, forward::FULL_NAT),
    );
    let hop_by_hop = talk.asks().syn().hop_by_hop();
    for (units, verdict) in [
        (3, Verdict::Truncated),
        (4, Verdict::Truncated),
        (24, Verdict::Truncated),
        (25, Verdict::ExtensionHeaders),
        (255, Verdict::ExtensionHeaders),
    ] {
        case = stays(case, claiming(&hop_by_hop, units), verdict);
    }
    let two = hop_by_hop.destination_options();
    case = stays(case, claiming(&two, 5), Verdict::Truncated);
    case = stays(case, claiming(&two, 255), Verdict::ExtensionHeaders);
    case.then_flows(0, 0)
}

fn length_beyond_the_packet() -> Case {
    let talk = V6.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let frame = talk.asks().destination_options().padded_to(120);
    let case = Case::new(
        "an extension header whose length leads beyond the packet, into the padding, is damage",
        V6.world(UDP, forward::FULL_NAT),
    );
    // The padding's bytes are no service's port, so this is the host's.
    stays(case, claiming(&frame, 3), Verdict::NoService)
        .leaves_alone(
            &WAN,
            &talk.asks().destination_options().claims_ip_length(15),
            Verdict::LengthMismatch,
        )
        .leaves_alone(
            &WAN,
            &talk.asks().destination_options().claims_ip_length(4),
            Verdict::LengthMismatch,
        )
        .then_flows(0, 0)
}

fn odd_checksums() -> Case {
    let talk = V6.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let there = talk.asks().between(&talk.source, talk.backend);
    let zero = there.balanced_to_zero().carried().to_vec();
    Case::new(
        "a UDP checksum behind extension headers: none, one that was and one that will be ffff",
        V6.world(UDP, forward::FULL_NAT),
    )
    .client_sends(&talk, |frame| {
        frame.hop_by_hop().without_checksum().payload(b"none")
    })
    .client_sends(&talk, |frame| frame.balanced_to_zero().extensions(2))
    .client_sends(&talk, |frame| frame.payload(&zero).hop_by_hop().routing(0))
}
