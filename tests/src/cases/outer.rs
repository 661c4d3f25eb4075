//! What a router on the way to a backend says of a tunnel, told to the client.

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP};

use super::tunnel::{Through, world};
use super::{CASTS, Case, Cast, ISN, V4, V6};
use crate::frame::{Frame, IcmpError, icmp_error};
use crate::network::{Device, LAN, WAN};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for inner in CASTS {
        for outer in CASTS {
            cases.extend([
                too_big(inner, outer, &WAN),
                too_big(inner, outer, &LAN),
                unreachable(inner, outer),
                foreign(inner, outer),
            ]);
        }
    }
    cases
}

/// The router behind the backends' interface, and the length of the header that
/// it knows.
fn router(outer: &Cast) -> (&'static str, usize) {
    if outer.family == "IPv4" {
        ("10.0.1.254", 20)
    } else {
        ("fd00:1::fe", 40)
    }
}

/// The router's error about the wrapped packet, of which it quotes so many bytes
/// inside.
fn said(outer: &Cast, through: &Through, error: IcmpError, inner: &Frame, inside: usize) -> Frame {
    let (router, wrapping) = router(outer);
    let wrapped = through.wrap(inner.clone(), None);
    icmp_error(
        router,
        &through.source(),
        error,
        &wrapped,
        wrapping + inside,
    )
}

/// What the client is told, with so many bytes of its packet.
fn told(through: &Through, error: IcmpError, inner: &Frame, quoted: usize) -> Frame {
    let talk = &through.talk;
    let [service, client] =
        [talk.service, &talk.client].map(|end| crate::frame::end(end).ip().to_string());
    let message = icmp_error(&service, &client, error, inner, quoted);
    let message = message.over(talk.arm.to(talk.client_last));
    if service.contains(':') {
        message.flow_label(0)
    } else {
        message.tos(0xc0).identified(0).dont_fragment()
    }
}

fn way(arm: &'static Device) -> Verdict {
    if arm.index == LAN.index {
        Verdict::IcmpErrorTx
    } else {
        Verdict::IcmpErrorRedirect
    }
}

/// An established connection through a tunnel, and a packet of it as it is in
/// the tunnel.
fn begun(says: String, inner: &Cast, outer: &Cast, arm: &'static Device) -> (Case, Through, Frame) {
    let through = Through::new(inner, outer, arm, TCP, 51_000, 0);
    let case = Case::new(says, world(inner, outer, TCP));
    let case = through.taken(case, &through.asks().syn());
    let case = through.taken(case, &through.asks().ack(ISN + 1));
    let data = through
        .asks()
        .ack(ISN + 1)
        .payload(&[0x5a; 1200])
        .sent_on(LAN.to(11));
    (case, through, data)
}

fn too_big(inner: &Cast, outer: &Cast, arm: &'static Device) -> Case {
    let says = format!(
        "{} in {}, client on {}: what does not fit the way to the backend is told to the client, less the outer header",
        inner.family, outer.family, arm.name
    );
    let (mut case, through, data) = begun(says, inner, outer, arm);
    let (_, wrapping) = router(outer);
    let header = if inner.family == "IPv4" { 20 } else { 40 };
    let longest = if inner.family == "IPv4" { 548 } else { 1232 };
    for inside in [
        header + 8,
        header + 9,
        header + 20,
        400,
        548,
        552,
        1228,
        1240,
    ] {
        let frame = said(outer, &through, IcmpError::TooBig(1400), &data, inside);
        let quoted = inside.min(data.packet().len()).min(longest) / 4 * 4;
        let least = IcmpError::TooBig(1400 - wrapping as u32);
        case = case.sends(
            &LAN,
            &frame,
            way(arm),
            &told(&through, least, &data, quoted),
        );
    }
    // Less than any link carries is not believed.
    let (said_least, told_least) = if inner.family == "IPv4" {
        (70, 68)
    } else {
        (1290, 1280)
    };
    let frame = said(outer, &through, IcmpError::TooBig(said_least), &data, 100);
    let expected = told(&through, IcmpError::TooBig(told_least), &data, 100);
    case.sends(&LAN, &frame, way(arm), &expected)
        .then_flows(1, 0)
        .then_turns(1)
}

fn unreachable(inner: &Cast, outer: &Cast) -> Case {
    let says = format!(
        "{} in {}: that the backend cannot be reached is told to the client, whatever the reason",
        inner.family, outer.family
    );
    let (mut case, through, data) = begun(says, inner, outer, &WAN);
    let code = if inner.family == "IPv4" { 1 } else { 3 };
    for error in [
        IcmpError::Unreachable(0),
        IcmpError::Unreachable(1),
        IcmpError::Unreachable(3),
        IcmpError::TimeExceeded,
        IcmpError::ParameterProblem(8),
    ] {
        let frame = said(outer, &through, error, &data, 200);
        let expected = told(&through, IcmpError::Unreachable(code), &data, 200);
        case = case.sends(&LAN, &frame, Verdict::IcmpErrorRedirect, &expected);
    }
    let frame = said(outer, &through, IcmpError::Unreachable(1), &data, 200);
    case.leaves_alone(&LAN, &frame.ttl(1), Verdict::IcmpErrorExpired)
}

/// Errors about tunnels, but not ours.
fn foreign(inner: &Cast, outer: &Cast) -> Case {
    let says = format!(
        "{} in {}: an error about another tunnel, or that quotes too little to tell, is the host's",
        inner.family, outer.family
    );
    let (mut case, through, data) = begun(says, inner, outer, &WAN);
    let (router, _) = router(outer);
    let header = if inner.family == "IPv4" { 20 } else { 40 };
    for inside in [0, 8, header, header + 3] {
        let frame = said(outer, &through, IcmpError::TooBig(1400), &data, inside);
        case = case.leaves_alone(&LAN, &frame, Verdict::NotTransport);
    }
    // Of a client who has no connection; to another backend than the flow's.
    let stranger = Through::new(inner, outer, &WAN, TCP, 51_001, 0);
    let unknown = stranger.asks().ack(ISN + 1).sent_on(LAN.to(11));
    let frame = said(outer, &stranger, IcmpError::TooBig(1400), &unknown, 200);
    case = case.leaves_alone(&LAN, &frame, Verdict::NotTransport);
    let elsewhere = Through::new(inner, outer, &WAN, TCP, 51_000, 1);
    let frame = said(outer, &elsewhere, IcmpError::TooBig(1400), &data, 200);
    case = case.leaves_alone(&LAN, &frame, Verdict::NotTransport);
    let datagram = Through::new(inner, outer, &WAN, UDP, 51_000, 0);
    let frame = said(
        outer,
        &datagram,
        IcmpError::TooBig(1400),
        &datagram.asks().sent_on(LAN.to(11)),
        200,
    );
    case = case.leaves_alone(&LAN, &frame, Verdict::NotTransport);
    // To somebody else than the tunnel's source.
    let wrapped = through.wrap(data, None);
    let other = if outer.family == "IPv4" {
        V4.near
    } else {
        V6.near
    };
    let other = other.trim_matches(['[', ']']);
    let frame = icmp_error(router, other, IcmpError::TooBig(1400), &wrapped, 300);
    case.leaves_alone(&LAN, &frame, Verdict::NotTransport)
}
