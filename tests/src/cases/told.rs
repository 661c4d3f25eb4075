//! Senders who are told why their packets go no further.

use lb_common::Verdict;
use lb_common::abi::{Settings, TCP, UDP, forward};

use super::errors::{balanced, one_way_world, to_backend};
use super::{CASTS, Case, Cast, ISN, Talk, mode_name, protocol_name};
use crate::frame::{Frame, IcmpError, Link, icmp_error, tcp, udp};
use crate::network::{Device, LAN, NARROW, WAN};
use crate::world::{STEADY, World};

/// The link addresses of a frame, and of the message about it.
const COMES: [Link; 2] = [[0x02, 0, 0, 0, 0, 0xaa], [0x02, 0, 0, 0, 0, 0xbb]];
const GOES: [Link; 2] = [COMES[1], COMES[0]];

/// How long an IP packet may be that tells of another.
const LONGEST_V4: usize = 576;
const LONGEST_V6: usize = 1280;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for protocol in [TCP, UDP] {
            for mode in [forward::FULL_NAT, forward::NAT] {
                cases.push(expired(cast, protocol, mode));
            }
            cases.push(lengths(cast, protocol));
        }
        for mode in [forward::FULL_NAT, forward::NAT] {
            cases.push(too_big(cast, mode));
            cases.push(answer_too_big(cast, mode));
        }
        for mode in [forward::DSR, forward::TUNNEL] {
            cases.push(expired_one_way(cast, mode));
        }
        cases.extend([
            checksums(cast),
            with_tags(cast),
            with_more_headers(cast),
            to_nobody(cast),
            in_pieces(cast),
            limited(cast),
            earlier(cast),
        ]);
    }
    cases
}

/// The message that takes the packet's place: from whom it was for to whom it
/// was from, back over the same link.
fn told(why: IcmpError, frame: &Frame, from: &str, to: &str) -> Frame {
    let four = frame.packet()[0] >> 4 == 4;
    let longest = if four {
        LONGEST_V4 - 28
    } else {
        LONGEST_V6 - 48
    };
    // Whole words of it.
    let quoted = frame.packet().len().min(longest) / 4 * 4;
    let message = icmp_error(from, to, why, frame, quoted).over(GOES);
    if four {
        message.tos(0xc0).identified(0).dont_fragment()
    } else {
        message.flow_label(0)
    }
}

impl Case {
    /// A packet of the client's is the reason to tell the client.
    fn tells_client(self, talk: &Talk, why: IcmpError, frame: &Frame) -> Self {
        let message = told(why, frame, talk.service, &talk.client);
        self.sends(talk.arm, frame, verdict(why), &message)
    }

    /// A packet of the backend's is the reason to tell the backend.
    fn tells_backend(self, talk: &Talk, why: IcmpError, frame: &Frame) -> Self {
        let message = told(why, frame, &talk.source, talk.backend);
        self.sends(&LAN, frame, verdict(why), &message)
    }
}

fn verdict(why: IcmpError) -> Verdict {
    match why {
        IcmpError::TimeExceeded => Verdict::TtlExpiredTold,
        _ => Verdict::TooBigTold,
    }
}

use IcmpError::{TimeExceeded, TooBig};

fn expired(cast: &Cast, protocol: u8, mode: u8) -> Case {
    let talk = cast.talk(protocol, mode, 51_000, 0);
    let says = format!(
        "{} over {} by {} whose TTL runs out: its sender hears of it, whichever end, and nothing begins",
        protocol_name(protocol),
        cast.family,
        mode_name(mode),
    );
    let first = talk.asks().syn().payload(b"first");
    let question = talk.asks().ack(ISN + 1).payload(b"question");
    let answer = talk.answers().ack(0x0102_0305).payload(b"answer!");
    Case::new(says, cast.world(protocol, mode))
        .tells_client(&talk, TimeExceeded, &first.clone().ttl(1))
        .tells_client(&talk, TimeExceeded, &first.clone().ttl(0))
        .tells_client(&talk, TimeExceeded, &question.clone().ttl(1))
        .then_flows(0, 0)
        .then_turns(0)
        .client_sends(&talk, Frame::syn)
        .tells_client(&talk, TimeExceeded, &first.ttl(1))
        .tells_backend(&talk, TimeExceeded, &answer.clone().ttl(1))
        .then_flows(0, 2)
        .handshake(&talk)
        .tells_client(&talk, TimeExceeded, &question.clone().ttl(1))
        .tells_client(&talk, TimeExceeded, &question.ttl(0))
        .tells_backend(&talk, TimeExceeded, &answer.clone().ttl(1))
        .tells_backend(&talk, TimeExceeded, &answer.ttl(0))
        .client_sends(&talk, |frame| frame.ack(ISN + 1).ttl(2))
        .then_flows(2, 0)
        .then_turns(1)
}

/// What is quoted: whole words, and as many as the message may have.
fn lengths(cast: &Cast, protocol: u8) -> Case {
    let talk = cast.talk(protocol, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "of {} over {} as much is quoted as a message may have, in whole words",
        protocol_name(protocol),
        cast.family,
    );
    let (header, longest) = if cast.family == "IPv4" {
        (20, LONGEST_V4 - 28)
    } else {
        (40, LONGEST_V6 - 48)
    };
    let header = header + if protocol == TCP { 20 } else { 8 };
    let around = |length: usize| (length - 2)..=(length + 2);
    let payloads = (0..=5)
        .chain(28..=36)
        .chain(around(longest - header))
        .chain([1460 - 20]);
    payloads.fold(
        Case::new(says, cast.world(protocol, forward::FULL_NAT)),
        |case, length| {
            let payload: Vec<u8> = (0..length).map(|byte| (byte * 37 + 11) as u8).collect();
            let frame = talk.asks().syn().payload(&payload).ttl(1);
            case.tells_client(&talk, TimeExceeded, &frame)
        },
    )
}

/// At the edges of what the sum over a message comes to.
fn checksums(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "the checksum of what a sender is told over {} is right, whatever it comes to",
        cast.family
    );
    let late = |number: u32| {
        let frame = talk.asks().payload(&number.to_be_bytes()).ttl(1);
        frame.without_checksum()
    };
    let message = |number| told(TimeExceeded, &late(number), talk.service, &talk.client);
    let edges = (0..=3)
        .chain(0x00fe..=0x0101)
        .chain(0x7ffe..=0x8001)
        .chain(0xfefe..=0xff01)
        .chain(0xfff4..=0xfffe);
    edges.fold(
        Case::new(says, cast.world(UDP, forward::FULL_NAT)),
        |case, check| case.tells_client(&talk, TimeExceeded, &late(balanced(check, message))),
    )
}

/// A connection of the protocol to a backend, or from a client, on the narrow
/// link.
fn narrow(cast: &Cast, protocol: u8, mode: u8, client_there: bool) -> (World, Talk) {
    let [backend, client] = if cast.family == "IPv4" {
        ["10.0.4.11:8080", "10.0.4.7:51000"]
    } else {
        ["[fd00:4::11]:8080", "[fd00:4::7]:51000"]
    };
    let talk = cast.talk(protocol, mode, 51_000, 0);
    if !client_there {
        let talk = Talk { backend, ..talk };
        let world = World::empty()
            .service(protocol, mode, cast.service, &[0])
            .backend(backend);
        return (world, talk);
    }
    let source = if mode == forward::NAT {
        client.to_owned()
    } else {
        talk.source
    };
    let talk = Talk {
        client: client.to_owned(),
        source,
        arm: &NARROW,
        ..talk
    };
    (cast.world(protocol, mode), talk)
}

/// How much payload fits the narrow link.
fn fits(cast: &Cast, protocol: u8) -> usize {
    let ip = if cast.family == "IPv4" { 20 } else { 40 };
    1280 - ip - if protocol == TCP { 20 } else { 8 }
}

fn too_big(cast: &Cast, mode: u8) -> Case {
    let (world, talk) = narrow(cast, UDP, mode, false);
    let says = format!(
        "over {} by {} a packet too big for the backend's link: the client hears by how much",
        cast.family,
        mode_name(mode),
    );
    let sent = |more: usize| {
        let payload = vec![0x5a; fits(cast, UDP) + more];
        talk.asks().payload(&payload).dont_fragment()
    };
    let fitting = sent(0)
        .between(&talk.source, talk.backend)
        .sent_on(NARROW.to(11));
    Case::new(says, world)
        .tells_client(&talk, TooBig(1280), &sent(1))
        .sends(&WAN, &sent(0), Verdict::ForwardRedirect, &fitting)
        .tells_client(&talk, TooBig(1280), &sent(2))
        .tells_client(&talk, TooBig(1280), &sent(200))
        .tells_client(&talk, TimeExceeded, &sent(200).ttl(1))
        .then_flows(0, 2)
        .then_turns(1)
}

fn answer_too_big(cast: &Cast, mode: u8) -> Case {
    let (world, talk) = narrow(cast, TCP, mode, true);
    let says = format!(
        "over {} by {} an answer too big for the client's link: the backend hears of it from whom it sent to",
        cast.family,
        mode_name(mode),
    );
    let sent = |more: usize| {
        let payload = vec![0x5a; fits(cast, TCP) + more];
        let answer = talk.answers().ack(0x0102_0305).payload(&payload);
        answer.dont_fragment()
    };
    Case::new(says, world)
        .handshake(&talk)
        .backend_sends(&talk, |frame| {
            let payload = vec![0x5a; fits(cast, TCP)];
            frame.ack(0x0102_0305).payload(&payload).dont_fragment()
        })
        .tells_backend(&talk, TooBig(1280), &sent(1))
        .tells_backend(&talk, TooBig(1280), &sent(180))
        .tells_backend(&talk, TimeExceeded, &sent(180).ttl(1))
        .then_flows(2, 0)
}

fn expired_one_way(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(TCP, mode, 51_000, 0);
    let says = format!(
        "over {} by {} a client whose TTL runs out hears of it from the service",
        cast.family,
        mode_name(mode),
    );
    let syn = talk.asks().syn().dont_fragment();
    let ack = talk.asks().ack(ISN + 1).payload(b"more").dont_fragment();
    let way = Verdict::ForwardRedirect;
    Case::new(says, one_way_world(cast, mode))
        .tells_client(&talk, TimeExceeded, &syn.clone().ttl(1))
        .then_flows(0, 0)
        .sends(&WAN, &syn, way, &to_backend(&talk, mode, &syn))
        .sends(&WAN, &ack, way, &to_backend(&talk, mode, &ack))
        .tells_client(&talk, TimeExceeded, &ack.ttl(1))
        .then_flows(1, 0)
        .then_turns(1)
}

fn with_tags(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let (_, far) = narrow(cast, UDP, forward::FULL_NAT, false);
    let says = format!(
        "over {} senders behind tags are told behind the same tags",
        cast.family
    );
    let world = World::empty()
        .service(UDP, forward::FULL_NAT, cast.service, &[0])
        .backend(far.backend);
    let frame = talk.asks().payload(b"from a VLAN").ttl(1);
    let large = talk.asks().payload(&[7; 1300]).dont_fragment();
    let message = told(TimeExceeded, &frame, talk.service, &talk.client);
    let too_big = told(TooBig(1280), &large, talk.service, &talk.client);
    let ways: [fn(Frame) -> Frame; 5] = [
        |frame| frame.tagged(5),
        |frame| frame.tag(0x8100, 0xb123),
        |frame| frame.tagged(20).tagged(30),
        |frame| frame.tag(0x9100, 0xe001).tag(0x8100, 0x2002),
        |frame| frame.tag(0x8100, 0),
    ];
    let case = ways.iter().fold(Case::new(says, world), |case, tags| {
        case.sends(
            &WAN,
            &tags(frame.clone()),
            Verdict::TtlExpiredTold,
            &tags(message.clone()),
        )
        .sends(
            &WAN,
            &tags(large.clone()),
            Verdict::TooBigTold,
            &tags(too_big.clone()),
        )
    });
    case.sends(
        &WAN,
        &frame.clone().tagged(5).padded_to(90),
        Verdict::TtlExpiredTold,
        &message.tagged(5),
    )
}

fn with_more_headers(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} options and extension headers are quoted, and padding is not",
        cast.family
    );
    let more = |frame: Frame| {
        if cast.family == "IPv4" {
            frame.ip_options(&[1, 7, 7, 4, 0, 0, 0, 0])
        } else {
            frame.hop_by_hop().destination_options()
        }
    };
    let syn = talk.asks().syn().mss(1460).ttl(1);
    let long = more(syn.clone().payload(&[3; 1300]));
    let padded = more(syn.clone()).padded_to(140);
    Case::new(says, cast.world(TCP, forward::FULL_NAT))
        .tells_client(&talk, TimeExceeded, &more(syn))
        .tells_client(&talk, TimeExceeded, &long)
        .tells_client(&talk, TimeExceeded, &padded)
        .then_flows(0, 0)
}

fn to_nobody(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::NAT, 51_000, 0);
    let (_, far) = narrow(cast, UDP, forward::NAT, false);
    let says = format!(
        "over {} nobody is told of what came to many links, or from an address that no sender has",
        cast.family
    );
    let world = World::empty()
        .service(UDP, forward::NAT, cast.service, &[0])
        .backend(far.backend);
    let sources: &[&str] = if cast.family == "IPv4" {
        &["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
    } else {
        &["[::]", "[::1]", "[ff02::1]"]
    };
    let many = [
        [0xff; 6],
        [0x01, 0, 0x5e, 0, 0, 1],
        [0x33, 0x33, 0, 0, 0, 1],
    ];
    let mut case = Case::new(says, world);
    for link in many {
        let links = [COMES[0], link];
        let frame = talk.asks().payload(b"?").ttl(1).over(links);
        case = case.leaves_alone(&WAN, &frame, Verdict::TtlExpired);
        let frame = talk.asks().payload(&[7; 1300]).dont_fragment().over(links);
        case = case.leaves_alone(&WAN, &frame, Verdict::TooBig);
    }
    for source in sources {
        let frame = udp(&format!("{source}:51000"), talk.service).ttl(1);
        case = case.leaves_alone(&WAN, &frame, Verdict::TtlExpired);
    }
    case
}

fn in_pieces(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::NAT, 51_000, 0);
    let says = format!(
        "over {} of a datagram in pieces the sender is told by the first, and by no other",
        cast.family
    );
    let pieces = talk.asks().payload(&[7; 100]).fragments(48);
    let [first, second, ..] = &pieces[..] else {
        panic!("there are three pieces");
    };
    let leaves = first
        .clone()
        .identified(0)
        .between(&talk.source, talk.backend);
    Case::new(says, cast.world(UDP, forward::NAT))
        .tells_client(&talk, TimeExceeded, &first.clone().ttl(1))
        .leaves_alone(&WAN, &second.clone().ttl(1), Verdict::FragmentOutOfOrder)
        .then_flows(0, 0)
        .sends(
            &WAN,
            first,
            Verdict::ForwardRedirect,
            &leaves.sent_on(LAN.to(11)),
        )
        .leaves_alone(&WAN, &second.clone().ttl(1), Verdict::TtlExpired)
        .then_flows(0, 2)
}

fn limited(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let (world, far) = narrow(cast, UDP, forward::FULL_NAT, false);
    let says = format!(
        "over {} so many senders are told in a second as the limit says, of each reason, and no more",
        cast.family
    );
    let settings = Settings {
        error_limit: 3,
        ..STEADY
    };
    let late = talk.asks().payload(b"late").ttl(1);
    let large = talk.asks().payload(&[7; 1300]).dont_fragment();
    let nobody = [COMES[0], [0xff; 6]];
    Case::new(says, world.with(settings))
        .tells_client(&far, TimeExceeded, &late)
        // Of whom nobody is told, that is not one of them.
        .leaves_alone(&WAN, &late.clone().over(nobody), Verdict::TtlExpired)
        .tells_client(&far, TooBig(1280), &large)
        .tells_client(&far, TimeExceeded, &late)
        .tells_client(&far, TimeExceeded, &late)
        .leaves_alone(&WAN, &late, Verdict::TtlExpired)
        .tells_client(&far, TooBig(1280), &large)
        .tells_client(&far, TooBig(1280), &large)
        .leaves_alone(&WAN, &large, Verdict::TooBig)
        .leaves_alone(&WAN, &late, Verdict::TtlExpired)
}

/// A packet may have more than one fault.
fn earlier(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} nobody is told of a packet that ends for another reason",
        cast.family
    );
    let late = talk.asks().ttl(1);
    let ports = if cast.family == "IPv4" { 38 } else { 58 };
    let faults: [(&'static Device, Frame, Verdict); 7] = [
        (
            &WAN,
            late.clone().syn().claims_ip_length(9_000),
            Verdict::LengthMismatch,
        ),
        (
            &WAN,
            late.clone().syn().cut_to(ports),
            Verdict::ShortTransport,
        ),
        (
            &WAN,
            late.clone().fragment(3, true),
            Verdict::FragmentOutOfOrder,
        ),
        (
            &WAN,
            tcp(&talk.client, cast.second_service).syn().ttl(1),
            Verdict::NoService,
        ),
        (
            &WAN,
            udp(&talk.client, cast.service).ttl(1),
            Verdict::NoService,
        ),
        (&LAN, talk.answers().syn_ack(1).ttl(1), Verdict::OrphanReply),
        (
            &LAN,
            tcp(cast.backends[0], &talk.client).ttl(1),
            Verdict::NoService,
        ),
    ];
    faults
        .into_iter()
        .fold(
            Case::new(says, cast.world(TCP, forward::FULL_NAT)),
            |case, (on, frame, verdict)| case.leaves_alone(on, &frame, verdict),
        )
        .then_flows(0, 0)
        .then_turns(0)
}
