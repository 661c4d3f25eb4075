//! Direct server return: the packet goes to the backend as it is, and the
//! balancer sees no answer.

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP, forward};
use lb_common::flow::tcp_flag::{ACK, FIN, RST, SYN};

use super::connection::SMALL;
use super::{CASTS, Case, Cast, ISN, Talk, V4, V6, protocol_name};
use crate::frame::{Frame, IcmpError, tcp, udp};
use crate::network::{LAN, NARROW, WAN};
use crate::world::World;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for protocol in [TCP, UDP] {
            cases.push(whole(cast, protocol, true));
            cases.push(whole(cast, protocol, false));
        }
        cases.extend([
            not_yet_established(cast),
            reopened_after_fin(cast),
            reopened_after_reset(cast),
            nothing_to_begin_with(cast),
            shares(cast),
            as_it_is(cast),
            out_of_ttl(cast),
            answers(cast),
        ]);
    }
    cases.extend([
        goes_nowhere("192.0.2.7:80", "behind a router", Verdict::NotOnLink),
        goes_nowhere(
            "[2001:db8:200::7]:80",
            "behind a router",
            Verdict::NotOnLink,
        ),
        goes_nowhere("10.0.1.99:80", "silent", Verdict::NeighbourUnknown),
        goes_nowhere("[fd00:1::99]:80", "silent", Verdict::NeighbourUnknown),
        goes_nowhere("10.0.66.1:80", "nowhere", Verdict::NoRoute),
        goes_nowhere("[fd00:67::1]:80", "nowhere", Verdict::NoRoute),
        goes_nowhere("10.0.3.11:80", "elsewhere", Verdict::EgressNotAttached),
        goes_nowhere("[fd00:3::11]:80", "elsewhere", Verdict::EgressNotAttached),
        to_the_host("10.0.1.1:80"),
        to_the_host("[fd00:1::1]:80"),
        too_big("10.0.4.11:80", 1280 - 28),
        too_big("[fd00:4::11]:80", 1280 - 48),
        table_full(),
    ]);
    cases
}

/// The client's frame is taken to the backend.
fn taken(case: Case, talk: &Talk, frame: Frame) -> Case {
    let verdict = talk.way(Verdict::ForwardTx, Verdict::ForwardRedirect);
    let leaves = frame.clone().sent_on(LAN.to(talk.backend_last()));
    case.sends(talk.arm, &frame, verdict, &leaves)
}

/// The way out and the client's port are all that differs between connections.
fn world_and_talk(cast: &Cast, protocol: u8) -> (World, Talk) {
    let talk = cast.talk(protocol, forward::DSR, 51_000, 0);
    (cast.world(protocol, forward::DSR), talk)
}

fn whole(cast: &Cast, protocol: u8, one_arm: bool) -> Case {
    let arm = if one_arm { &LAN } else { &WAN };
    let talk = cast.talk_by(arm, protocol, forward::DSR, 51_000, 0);
    let says = format!(
        "a {} connection over {} by dsr, {}: the link addresses and one of the TTL, established when its client goes on",
        protocol_name(protocol),
        cast.family,
        if one_arm { "one-arm" } else { "two-arm" },
    );
    let key = talk.forward_key();
    let first = talk.asks().syn();
    let second = talk.asks().ack(ISN + 1);
    let third = talk.asks().ack(ISN + 1).payload(b"GET / HTTP/1.1\r\n\r\n");
    let mut case = Case::new(says, cast.world(protocol, forward::DSR));
    case = taken(case, &talk, first).then_flows(0, 1);
    case = taken(case, &talk, second).then_flows(1, 0);
    taken(case, &talk, third)
        .then_flows(1, 0)
        .then("one half, and no change of sums", move |state| {
            state.established.get(&key).is_some_and(|flow| {
                !flow.is_reply()
                    && flow.one_way()
                    && (flow.backend, flow.ip_delta, flow.transport_delta) == (0, 0, 0)
            })
        })
        .then("all of it is the first backend's", |state| {
            (state.backends.get(&0)).is_some_and(|traffic| {
                (traffic.forward_packets, traffic.reply_packets) == (3, 0) && traffic.new_flows == 1
            })
        })
        .then_turns(1)
}

fn not_yet_established(cast: &Cast) -> Case {
    let (world, talk) = world_and_talk(cast, TCP);
    let says = format!(
        "over {} by dsr a SYN that is repeated goes where it went, and neither it nor a RST establishes a flow",
        cast.family
    );
    let mut case = Case::new(says, world);
    for flags in [SYN, SYN, RST | ACK] {
        case = taken(case, &talk, talk.asks().flags(flags)).then_flows(0, 1);
    }
    case.then_turns(1)
}

fn reopened_after_fin(cast: &Cast) -> Case {
    let (world, talk) = world_and_talk(cast, TCP);
    let again = cast.talk(TCP, forward::DSR, 51_000, 1);
    let says = format!(
        "over {} by dsr the client's FIN is all that is seen of the end: what follows goes where it went, a SYN begins anew",
        cast.family
    );
    let mut case = Case::new(says, world);
    for flags in [SYN, ACK, FIN | ACK, ACK] {
        case = taken(case, &talk, talk.asks().flags(flags));
    }
    case = case.then_flows(1, 0).then_turns(1);
    case = taken(case, &again, again.asks().syn()).then_flows(0, 1);
    taken(case, &again, again.asks().ack(ISN + 1))
        .then_flows(1, 0)
        .then_turns(2)
}

fn reopened_after_reset(cast: &Cast) -> Case {
    let (world, talk) = world_and_talk(cast, TCP);
    let says = format!(
        "over {} by dsr a RST ends a connection, established or not, unless more follows it",
        cast.family
    );
    let [again, third] = [1, 2].map(|number| cast.talk(TCP, forward::DSR, 51_000, number));
    let mut case = Case::new(says, world);
    for flags in [SYN, ACK, RST, ACK, SYN] {
        case = taken(case, &talk, talk.asks().flags(flags));
    }
    case = case.then_turns(1);
    case = taken(case, &talk, talk.asks().rst());
    case = taken(case, &again, again.asks().syn()).then_turns(2);
    case = taken(case, &again, again.asks().rst()).then_flows(0, 1);
    taken(case, &third, third.asks().syn())
        .then_flows(0, 1)
        .then_turns(3)
}

fn nothing_to_begin_with(cast: &Cast) -> Case {
    let (world, talk) = world_and_talk(cast, TCP);
    let says = format!(
        "over {} by dsr a connection begins with a SYN like any other, from a source like any other",
        cast.family
    );
    let forged = if cast.family == "IPv4" {
        "127.0.0.1:51000"
    } else {
        "[ff02::1]:51000"
    };
    let mut case = Case::new(says, world);
    for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
        case = case.leaves_alone(&WAN, &talk.asks().flags(flags), Verdict::NoFlow);
    }
    case.leaves_alone(&WAN, &talk.asks().flags(SYN | FIN), Verdict::BadFlags)
        .leaves_alone(&WAN, &tcp(forged, cast.service).syn(), Verdict::BadSource)
        .leaves_alone(
            &WAN,
            &talk.asks().syn().claims_ip_length(9_000),
            Verdict::LengthMismatch,
        )
        .then_flows(0, 0)
        .then_turns(0)
}

fn shares(cast: &Cast) -> Case {
    let order = [0, 1, 0, 2];
    let mut world = cast.world(UDP, forward::DSR);
    world.services[0].sequence = order.to_vec();
    let says = format!(
        "over {} by dsr each connection goes to the next backend of the sequence",
        cast.family
    );
    let begin = |case: Case, turn: usize| {
        let number = order[turn % order.len()] as usize;
        let talk = cast.talk(UDP, forward::DSR, 51_000 + turn as u16, number);
        taken(case, &talk, talk.asks().payload(b"?"))
    };
    (0..2 * order.len())
        .fold(Case::new(says, world), begin)
        .then_turns(8)
}

fn as_it_is(cast: &Cast) -> Case {
    let (world, talk) = world_and_talk(cast, UDP);
    let says = format!(
        "over {} by dsr padding, DSCP, options, odd lengths, a missing and a wrong checksum stay as they came",
        cast.family
    );
    let asks = || talk.asks().payload(b"odd");
    let special = if cast.family == "IPv4" {
        asks().ip_options(&[1; 40]).dont_fragment()
    } else {
        asks().destination_options().flow_label(0x1_2345)
    };
    let frames = [
        asks().padded_to(60),
        asks().padded_to(77).tos(0xbb).ttl(2),
        asks().without_checksum().ttl(255),
        asks().claims_checksum(0x1234),
        special.identified(0xbeef),
    ];
    (frames.into_iter()).fold(Case::new(says, world), |case, frame| {
        taken(case, &talk, frame)
    })
}

fn out_of_ttl(cast: &Cast) -> Case {
    let (world, talk) = world_and_talk(cast, TCP);
    let says = format!(
        "over {} by dsr a client is told that a TTL ended here, and no flow begins with it",
        cast.family
    );
    let last = talk.asks().syn().ttl(1);
    let told = last.told(IcmpError::TimeExceeded);
    let case = Case::new(says, world)
        .sends(&WAN, &last, Verdict::TtlExpiredTold, &told)
        .then_flows(0, 0)
        .then_turns(0);
    taken(case, &talk, talk.asks().syn().ttl(2))
}

fn answers(cast: &Cast) -> Case {
    let (world, talk) = world_and_talk(cast, TCP);
    let says = format!(
        "over {} the answer of a dsr backend that comes by here is none of ours, nor is what it says by itself",
        cast.family
    );
    let answer = tcp(cast.service, &talk.client).syn_ack(0x0102_0305);
    let own = tcp(cast.backends[0], &talk.client).syn();
    let to_service = tcp(cast.backends[0], cast.source).ack(7);
    taken(Case::new(says, world), &talk, talk.asks().syn())
        .leaves_alone(&LAN, &answer, Verdict::NoService)
        .leaves_alone(&LAN, &own, Verdict::NoService)
        .leaves_alone(&LAN, &to_service, Verdict::NoService)
        .then_flows(0, 1)
}

/// The service, a client and one backend of the backend's family.
fn lone(protocol: u8, backend: &'static str) -> (World, Frame) {
    let cast = if backend.starts_with('[') { &V6 } else { &V4 };
    let world = World::empty()
        .service(protocol, forward::DSR, cast.service, &[0])
        .backend(backend);
    (world, cast.talk(protocol, forward::DSR, 51_000, 0).asks())
}

fn goes_nowhere(backend: &'static str, where_: &str, verdict: Verdict) -> Case {
    let (world, asks) = lone(TCP, backend);
    Case::new(
        format!(
            "by dsr nothing goes to {backend}, which is {where_}, and it is the backend's drop"
        ),
        world,
    )
    .leaves_alone(&WAN, &asks.syn(), verdict)
    .then("the drop is the backend's", |state| {
        state
            .drops
            .keys()
            .all(|key| (key.service, key.backend) == (0, 0))
    })
}

fn to_the_host(backend: &'static str) -> Case {
    let (world, asks) = lone(UDP, backend);
    Case::new(
        format!(
            "by dsr the host itself, {backend}, is no backend: its stack would answer for the service"
        ),
        world,
    )
    .leaves_alone(&WAN, &asks.payload(b"?"), Verdict::NoRoute)
    .then_flows(0, 1)
}

fn too_big(backend: &'static str, fits: usize) -> Case {
    let (world, asks) = lone(UDP, backend);
    let sent = |length: usize| asks.clone().payload(&vec![0x5a; length]);
    let told = |frame: &Frame| frame.told(IcmpError::TooBig(1280));
    let [whole, divisible] = [sent(fits + 1).dont_fragment(), sent(fits + 1)];
    Case::new(
        format!(
            "by dsr to {backend}: what just fits goes on, and of what does not the sender is told, for the host would deliver it"
        ),
        world,
    )
    .sends(
        &WAN,
        &sent(fits),
        Verdict::ForwardRedirect,
        &sent(fits).sent_on(NARROW.to(11)),
    )
    .sends(&WAN, &whole, Verdict::TooBigTold, &told(&whole))
    .sends(&WAN, &divisible, Verdict::TooBigTold, &told(&divisible))
}

fn table_full() -> Case {
    let mut case = Case::new(
        "by dsr a full table refuses the connection",
        V4.world(UDP, forward::DSR).with(SMALL),
    );
    for n in 0..15u16 {
        let talk = V4.talk(UDP, forward::DSR, 51_000 + n, usize::from(n) % 3);
        case = taken(case, &talk, talk.asks().payload(b"?"));
        case = taken(case, &talk, talk.asks().payload(b"!"));
    }
    let late = udp("198.51.100.7:52000", V4.service).payload(b"?");
    case.then_flows(15, 0)
        .leaves_alone(&WAN, &late, Verdict::FlowTableFull)
        .then_flows(15, 0)
}
