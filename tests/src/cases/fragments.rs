//! Fragments: the first has the ports, the others go where it went.

use lb_common::Verdict;
use lb_common::abi::{NOBODY, TCP, UDP, forward};

use super::connection::RESTLESS;
use super::tunnel::Through;
use super::{CASTS, Case, Cast, ISN, Talk, V4, V6};
use crate::frame::{Frame, IcmpError, tcp, udp};
use crate::network::{LAN, NARROW, WAN};
use crate::world::World;

/// What the datagrams of these cases carry, and how much of it is in each
/// fragment.
const PAYLOAD: [u8; 101] = [0xa7; 101];
const PIECE: usize = 48;

const MODES: [u8; 4] = [
    forward::FULL_NAT,
    forward::NAT,
    forward::DSR,
    forward::TUNNEL,
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in MODES {
            cases.push(in_order(cast, mode));
            cases.push(out_of_order(cast, mode));
        }
        cases.extend([
            known_tcp(cast),
            for_the_host(cast),
            first_refused(cast),
            one_source(cast),
            repeated(cast),
            too_late(cast),
            tiny(cast),
            flow_lost(cast),
            answer_lost(cast),
            out_of_ttl(cast),
            lying_lengths(cast),
            without_checksum(cast),
        ]);
    }
    cases.extend([
        both_protocols(),
        too_big_and_divisible(),
        too_big_by_word(&V4, "10.0.4.11:8080"),
        too_big_by_word(&V6, "[fd00:4::11]:8080"),
        atomic(),
        two_headers(),
        behind_extensions(),
    ]);
    cases
}

fn name(mode: u8) -> &'static str {
    match mode {
        forward::FULL_NAT => "full-nat",
        forward::NAT => "nat",
        forward::DSR => "dsr",
        _ => "a tunnel",
    }
}

/// The fragments of what the client says in one datagram.
fn said(talk: &Talk, id: u32) -> Vec<Frame> {
    let whole = talk.asks().payload(&PAYLOAD).identified(id);
    whole.fragments(PIECE)
}

/// By translation, to the backend, with this identification.
fn translated(case: Case, talk: &Talk, frame: &Frame, id: u32) -> Case {
    let verdict = talk.way(Verdict::ForwardTx, Verdict::ForwardRedirect);
    let leaves = frame.clone().between(&talk.source, talk.backend);
    let leaves = leaves.identified(id).sent_on(LAN.to(talk.backend_last()));
    case.sends(talk.arm, frame, verdict, &leaves)
}

/// And back to the client.
fn answered(case: Case, talk: &Talk, frame: &Frame, id: u32) -> Case {
    let verdict = talk.way(Verdict::ReplyTx, Verdict::ReplyRedirect);
    let leaves = frame.clone().between(talk.service, &talk.client);
    let leaves = leaves.identified(id).sent_on(talk.arm.to(talk.client_last));
    case.sends(&LAN, frame, verdict, &leaves)
}

/// How fragments are forwarded in this mode.
struct Carrier<'a> {
    cast: &'a Cast,
    mode: u8,
    talk: Talk,
    /// Datagrams that were translated, or packets that went into the tunnel.
    count: u32,
}

impl<'a> Carrier<'a> {
    fn new(cast: &'a Cast, mode: u8) -> Self {
        Self {
            cast,
            mode,
            talk: cast.talk(UDP, mode, 51_000, 0),
            count: 0,
        }
    }

    /// The first one of a datagram, or (`later`) another.
    fn carries(&mut self, case: Case, frame: &Frame, later: bool) -> Case {
        if !forward::one_way(self.mode) {
            self.count += u32::from(!later);
            return translated(case, &self.talk, frame, self.count - 1);
        }
        let mut leaves = frame.clone().sent_on(LAN.to(11));
        if self.mode == forward::TUNNEL {
            let through = Through::new(self.cast, self.cast, &WAN, UDP, 51_000, 0);
            // What came as a fragment may be fragmented once more, in IPv4.
            let id = (self.cast.family == "IPv4").then_some(self.count);
            leaves = through.wrap(leaves, id);
            self.count += 1;
        }
        case.sends(&WAN, frame, Verdict::ForwardRedirect, &leaves)
    }
}

fn in_order(cast: &Cast, mode: u8) -> Case {
    let mut carrier = Carrier::new(cast, mode);
    let says = format!(
        "fragments over {} by {}, both ways: all of a datagram go where the first goes",
        cast.family,
        name(mode)
    );
    let mut case = Case::new(says, cast.world(UDP, mode));
    let talk = carrier.talk.clone();
    for (place, frame) in said(&talk, 77).iter().enumerate() {
        case = carrier.carries(case, frame, place > 0);
    }
    let one_way = forward::one_way(mode);
    if !one_way {
        let answer = talk.answers().payload(&PAYLOAD).identified(77);
        for frame in answer.fragments(PIECE) {
            case = answered(case, &talk, &frame, 0);
        }
    }
    for (place, frame) in said(&talk, 0xffff).iter().enumerate() {
        case = carrier.carries(case, frame, place > 0);
    }
    case.then_flows(if one_way { 1 } else { 2 }, 0)
        .then("a note of each datagram", move |state| {
            state.fragments.len() == if one_way { 2 } else { 3 }
        })
        .then("they count for the backend", |state| {
            (state.backends.get(&0)).is_some_and(|traffic| traffic.forward_packets == 6)
        })
        .then_turns(1)
}

fn out_of_order(cast: &Cast, mode: u8) -> Case {
    let mut carrier = Carrier::new(cast, mode);
    let says = format!(
        "over {} by {} a later fragment before the first one is nobody's, and counted; after it, in any order, all go on",
        cast.family,
        name(mode)
    );
    let [first, second, third] = <[Frame; 3]>::try_from(said(&carrier.talk, 77)).expect("three");
    let mut case = Case::new(says, cast.world(UDP, mode))
        .leaves_alone(&WAN, &third, Verdict::FragmentOutOfOrder)
        .leaves_alone(&WAN, &second, Verdict::FragmentOutOfOrder)
        .then("two drops, nobody's", |state| {
            let drops: Vec<_> = state.drops.iter().collect();
            matches!(drops[..], [(key, 2)] if (key.service, key.backend) == (NOBODY, NOBODY))
        })
        .then_turns(0);
    case = carrier.carries(case, &first, false);
    for later in [&third, &second, &third] {
        case = carrier.carries(case, later, true);
    }
    // That of another datagram is not this one's.
    case.leaves_alone(&WAN, &second.identified(78), Verdict::FragmentOutOfOrder)
        .then_turns(1)
}

fn known_tcp(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!("over {} fragments of a known TCP flow", cast.family);
    let data = talk.asks().ack(ISN + 1).payload(&PAYLOAD);
    let answer = talk.answers().ack(0x0102_0369).payload(&PAYLOAD);
    let mut case = Case::new(says, cast.world(TCP, forward::FULL_NAT)).handshake(&talk);
    for frame in data.identified(9).fragments(40) {
        case = translated(case, &talk, &frame, 0);
    }
    for frame in answer.identified(9).fragments(40) {
        case = answered(case, &talk, &frame, 0);
    }
    case.then_flows(2, 0).then_turns(1)
}

fn for_the_host(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} fragments of what is not for a service are the host's, all of them",
        cast.family
    );
    let pieces = |to: &str| {
        let whole = udp(&talk.client, to).payload(&PAYLOAD).identified(77);
        whole.fragments(PIECE)
    };
    let other_port = talk.service.replace(":80", ":81");
    let own = pieces(&other_port);
    let others = pieces(talk.backend);
    let mut case = Case::new(says, cast.world(UDP, forward::FULL_NAT));
    for (place, (own, others)) in own.iter().zip(&others).enumerate() {
        let verdict = if place == 0 {
            Verdict::NoService
        } else {
            Verdict::LaterFragment
        };
        case = case
            .leaves_alone(&WAN, own, verdict)
            .leaves_alone(&WAN, others, verdict);
    }
    case.leaves_alone(
        &LAN,
        &udp(talk.backend, &talk.client).fragment(3, true),
        Verdict::LaterFragment,
    )
    .then(
        "a note where its absence would speak against the others",
        |state| {
            let notes: Vec<_> = state.fragments.values().collect();
            matches!(notes[..], [note] if note.protocol == 0)
        },
    )
    .then_flows(0, 0)
}

fn first_refused(cast: &Cast) -> Case {
    let forged = if cast.family == "IPv4" {
        "127.0.0.1:51000"
    } else {
        "[ff02::1]:51000"
    };
    let says = format!(
        "over {} a first fragment that is refused takes the others with it",
        cast.family
    );
    let pieces = udp(forged, cast.service).payload(&PAYLOAD).fragments(PIECE);
    Case::new(says, cast.world(UDP, forward::NAT))
        .leaves_alone(&WAN, &pieces[0], Verdict::BadSource)
        .leaves_alone(&WAN, &pieces[1], Verdict::FragmentOutOfOrder)
        .leaves_alone(&WAN, &pieces[2], Verdict::FragmentOutOfOrder)
        .then("no note", |state| state.fragments.is_empty())
        .then_turns(0)
}

/// Two clients who number their datagrams alike, under one source address.
fn one_source(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let second = Talk {
        client: talk.client.replace("7]:", "11]:").replace(".7:", ".11:"),
        backend: if cast.family == "IPv4" {
            "10.0.1.11:9090"
        } else {
            "[fd00:1::11]:9090"
        },
        ..talk.clone()
    };
    let world = World::empty()
        .service(UDP, forward::FULL_NAT, cast.service, &[0, 1])
        .backend(talk.backend)
        .backend(second.backend);
    let says = format!(
        "over {} two clients number their datagrams alike: by full-nat to one address, they are renumbered apart",
        cast.family
    );
    let mut case = Case::new(says, world);
    for (one, other) in said(&talk, 77).iter().zip(said(&second, 77)) {
        case = translated(case, &talk, one, 0);
        case = translated(case, &second, &other, 1);
    }
    case.then_turns(2)
}

fn repeated(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::NAT, 51_000, 0);
    let says = format!(
        "over {} a first fragment that comes twice is of one datagram, like the others",
        cast.family
    );
    let pieces = said(&talk, 77);
    let mut case = Case::new(says, cast.world(UDP, forward::NAT));
    case = translated(case, &talk, &pieces[0], 0);
    case = translated(case, &talk, &pieces[1], 0);
    case = translated(case, &talk, &pieces[0], 0);
    translated(case, &talk, &pieces[2], 0).then_turns(1)
}

fn too_late(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} nobody waits for fragments longer than for a reassembly",
        cast.family
    );
    // No time at all passes for too long already.
    let world = cast.world(UDP, forward::FULL_NAT).with(RESTLESS);
    let pieces = said(&talk, 77);
    translated(Case::new(says, world), &talk, &pieces[0], 0).leaves_alone(
        &WAN,
        &pieces[1],
        Verdict::FragmentOutOfOrder,
    )
}

fn tiny(cast: &Cast) -> Case {
    let says = format!(
        "over {} a first fragment has the whole transport header (RFC 1858), or nothing begins",
        cast.family
    );
    let [syn, datagram] = [TCP, UDP].map(|protocol| {
        let talk = cast.talk(protocol, forward::NAT, 51_000, 0);
        let whole = talk.asks().syn().payload(&PAYLOAD).identified(77);
        (talk, whole)
    });
    let world = World::empty()
        .service(TCP, forward::NAT, cast.service, &[0])
        .backend(cast.backends[0])
        .service(UDP, forward::NAT, cast.service, &[1])
        .backend(cast.backends[0]);
    let tiny = syn.1.fragments(8);
    let two_thirds = syn.1.fragments(16);
    let case = Case::new(says, world)
        .leaves_alone(&WAN, &tiny[0], Verdict::ShortTransport)
        .leaves_alone(
            &WAN,
            &tiny[0].clone().padded_to(100),
            Verdict::LengthMismatch,
        )
        .leaves_alone(&WAN, &tiny[1], Verdict::FragmentOutOfOrder)
        .leaves_alone(&WAN, &two_thirds[0], Verdict::ShortTransport)
        .then_flows(0, 0)
        .then_turns(0);
    let pieces = datagram.1.fragments(8);
    let case = translated(case, &datagram.0, &pieces[0], 0);
    translated(case, &datagram.0, &pieces[1], 0)
}

fn flow_lost(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::NAT, 51_000, 0);
    let says = format!(
        "over {} a later fragment whose flow is lost begins no other",
        cast.family
    );
    let pieces = said(&talk, 77);
    let case = Case::new(says, cast.world(UDP, forward::NAT));
    translated(case, &talk, &pieces[0], 0)
        .loses(talk.forward_key())
        .leaves_alone(&WAN, &pieces[1], Verdict::NoFlow)
        .then_turns(1)
}

fn answer_lost(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} of an answer whose flow is lost no fragment reaches the host",
        cast.family
    );
    let pieces = (talk.answers().payload(&PAYLOAD).identified(77)).fragments(PIECE);
    let case = Case::new(says, cast.world(UDP, forward::FULL_NAT))
        .client_sends(&talk, |frame| frame.payload(b"?"));
    answered(case, &talk, &pieces[0], 0)
        .loses(talk.forward_key())
        .leaves_alone(&LAN, &pieces[1], Verdict::OrphanReply)
        .leaves_alone(&LAN, &pieces[0], Verdict::OrphanReply)
}

fn out_of_ttl(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} of a TTL that ends here the sender is told once for a datagram, by its first fragment",
        cast.family
    );
    let expired = said(&talk, 77).into_iter().map(|frame| frame.ttl(1));
    let [first, second, _] = <[Frame; 3]>::try_from(expired.collect::<Vec<_>>()).expect("three");
    let pieces = said(&talk, 78);
    let case = Case::new(says, cast.world(UDP, forward::FULL_NAT))
        .sends(
            &WAN,
            &first,
            Verdict::TtlExpiredTold,
            &first.told(IcmpError::TimeExceeded),
        )
        .leaves_alone(&WAN, &second, Verdict::FragmentOutOfOrder)
        .then_flows(0, 0);
    let case = translated(case, &talk, &pieces[0], 0);
    let case = case.leaves_alone(&WAN, &pieces[1].clone().ttl(1), Verdict::TtlExpired);
    translated(case, &talk, &pieces[1].clone().ttl(2), 0)
}

fn lying_lengths(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!("over {} lengths of fragments that lie", cast.family);
    let header = if cast.family == "IPv4" { 20 } else { 8 };
    let lies = |frame: &Frame, length: u16| frame.clone().claims_ip_length(header + length);
    let pieces = said(&talk, 77);
    let case = Case::new(says, cast.world(UDP, forward::FULL_NAT)).leaves_alone(
        &WAN,
        &lies(&pieces[0], 49),
        Verdict::LengthMismatch,
    );
    let case = translated(case, &talk, &pieces[0], 0);
    case.leaves_alone(&WAN, &lies(&pieces[1], 49), Verdict::LengthMismatch)
        .leaves_alone(&WAN, &lies(&pieces[1], 0xf000), Verdict::LengthMismatch)
        .then_flows(0, 2)
}

fn without_checksum(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} fragments without a checksum, of all lengths: none is made up",
        cast.family
    );
    let mut case = Case::new(says, cast.world(UDP, forward::FULL_NAT));
    for (id, length) in [9, 16, 23, 57].into_iter().enumerate() {
        let whole = talk.asks().identified(id as u32);
        let whole = whole.without_checksum().payload(&PAYLOAD[..length]);
        for frame in whole.fragments(16) {
            case = translated(case, &talk, &frame, id as u32);
        }
    }
    case
}

fn both_protocols() -> Case {
    let [stream, datagram] = [TCP, UDP].map(|protocol| V4.talk(protocol, forward::NAT, 51_000, 0));
    let world = World::empty()
        .service(TCP, forward::NAT, V4.service, &[0])
        .backend(V4.backends[0])
        .service(UDP, forward::NAT, V4.service, &[1])
        .backend(V4.backends[0]);
    let syn = stream.asks().syn().payload(&PAYLOAD).identified(77);
    let mut case = Case::new(
        "in IPv4 a TCP segment and a UDP datagram of one number are two",
        world,
    );
    for (one, other) in syn.fragments(64).iter().zip(said(&datagram, 77)) {
        case = translated(case, &stream, one, 0);
        case = translated(case, &datagram, &other, 1);
    }
    case.then("two notes", |state| state.fragments.len() == 2)
}

/// One backend behind the narrow link, and a client's datagram for it that is
/// cut up for a wider one.
fn through_narrow(cast: &Cast, backend: &'static str) -> (World, Talk, Frame) {
    let world = World::empty()
        .service(UDP, forward::NAT, cast.service, &[0])
        .backend(backend);
    let talk = Talk {
        backend,
        ..cast.talk(UDP, forward::NAT, 51_000, 0)
    };
    let whole = talk.asks().payload(&[0x5a; 2800]).identified(77);
    (world, talk, whole)
}

fn too_big_and_divisible() -> Case {
    let (world, talk, whole) = through_narrow(&V4, "10.0.4.11:8080");
    let mut case = Case::new(
        "fragments that do not fit and may be cut up once more are renumbered and left to the host",
        world,
    );
    let left = |frame: &Frame| {
        let leaves = frame.clone().between(&talk.source, talk.backend);
        leaves.identified(0)
    };
    let pieces = whole.fragments(1400);
    for frame in &pieces[..2] {
        case = case.sends(&WAN, frame, Verdict::FragmentedByHost, &left(frame));
    }
    let last = left(&pieces[2]).sent_on(NARROW.to(11));
    case.sends(&WAN, &pieces[2], Verdict::ForwardRedirect, &last)
}

fn too_big_by_word(cast: &Cast, backend: &'static str) -> Case {
    let (world, talk, whole) = through_narrow(cast, backend);
    let says = format!(
        "over {} of fragments that do not fit and may not be cut up the sender is told once",
        cast.family
    );
    let pieces = whole.dont_fragment().fragments(1400);
    let told = pieces[0].told(IcmpError::TooBig(1280));
    let leaves = pieces[2].clone().between(&talk.source, talk.backend);
    Case::new(says, world)
        .sends(&WAN, &pieces[0], Verdict::TooBigTold, &told)
        .leaves_alone(&WAN, &pieces[1], Verdict::TooBig)
        .sends(
            &WAN,
            &pieces[2],
            Verdict::ForwardRedirect,
            &leaves.identified(0).sent_on(NARROW.to(11)),
        )
}

fn atomic() -> Case {
    let talk = V6.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let atomic = |frame: Frame| {
        let frame = frame.payload(b"all there is").fragment(0, false);
        frame.identified(0xdead_beef)
    };
    Case::new(
        "an IPv6 fragment that is all there is (RFC 6946) is a whole packet, and keeps its number",
        V6.world(UDP, forward::FULL_NAT),
    )
    .client_sends(&talk, atomic)
    .backend_sends(&talk, atomic)
    .client_sends(&talk, atomic)
    .then_flows(2, 0)
    .then("no note", |state| state.fragments.is_empty())
}

fn two_headers() -> Case {
    let talk = V6.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let nested = |more| {
        let frame = talk.asks().syn().fragment(0, more);
        frame.extension(44, &[0; 6])
    };
    Case::new(
        "a fragment of a fragment is the host's",
        V6.world(TCP, forward::FULL_NAT),
    )
    .leaves_alone(&WAN, &nested(true), Verdict::BadHeader)
    .then_flows(0, 0)
    .client_sends(&talk, |frame| frame.syn().fragment(0, false))
}

fn behind_extensions() -> Case {
    let talk = V6.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let stream = tcp(&talk.client, talk.service).syn().fragment(5, true);
    let whole = (talk.asks().payload(&PAYLOAD))
        .hop_by_hop()
        .destination_options();
    let mut case = Case::new(
        "extension headers before and in the fragments of an IPv6 packet",
        V6.world(UDP, forward::FULL_NAT),
    );
    for frame in whole.identified(0xdead_beef).fragments(PIECE) {
        case = translated(case, &talk, &frame, 0);
    }
    case.leaves_alone(&WAN, &stream, Verdict::FragmentOutOfOrder)
        .then_flows(0, 2)
}
