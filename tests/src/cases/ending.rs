//! How connections end, and who may then have their ports.

use lb_common::Verdict;
use lb_common::abi::{Settings, TCP, UDP, forward};
use lb_common::flow::tcp_flag;

use super::connection::RESTLESS;
use super::{CASTS, Case, Cast, ISN, V4, V6};
use crate::frame::{Frame, tcp, udp};
use crate::network::{LAN, WAN};
use crate::world::{STEADY, World};

/// A connection that sends nothing for a moment has fallen silent.
const IMPATIENT: Settings = Settings {
    idle_ticks: 0,
    ..STEADY
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        cases.extend([
            half_open_port(cast),
            both_fins(cast),
            one_fin(cast),
            refused(cast),
            exhausted(cast),
        ]);
    }
    cases.extend([
        reset_by_client(),
        reset_ignored(),
        port_free_again(),
        port_of_the_silent(),
        port_resting(),
        port_of_a_service(),
        tuple_taken(),
        tuple_free_again(),
        late_answer_by_nat(),
        late_answer_to_other_port(),
        late_udp_answer(),
        answer_before_the_end(),
    ]);
    cases
}

fn both_fins(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let again = cast.talk(TCP, forward::FULL_NAT, 51_000, 1);
    let says = format!(
        "both sides have sent FIN over {}: a SYN from the same port is a new connection, in turn",
        cast.family
    );
    Case::new(says, cast.world(TCP, forward::FULL_NAT))
        .handshake(&talk)
        .client_sends(&talk, Frame::fin)
        .backend_sends(&talk, Frame::fin)
        .client_sends(&talk, |frame| frame.ack(ISN + 2))
        .then_flows(2, 0)
        .client_sends(&again, Frame::syn)
        .then_flows(0, 2)
        .then_turns(2)
        .backend_sends(&again, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
        .client_sends(&again, |frame| frame.ack(ISN + 1))
        .then_flows(2, 0)
}

fn one_fin(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::NAT, 51_000, 0);
    let says = format!(
        "one side has sent FIN over {}: the connection lives, and a SYN is its backend's to judge",
        cast.family
    );
    Case::new(says, cast.world(TCP, forward::NAT))
        .handshake(&talk)
        .client_sends(&talk, Frame::fin)
        .backend_sends(&talk, |frame| frame.ack(0x0102_0306).payload(b"the rest"))
        .client_sends(&talk, Frame::syn)
        .then_turns(1)
}

fn refused(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let again = cast.talk(TCP, forward::FULL_NAT, 51_000, 1);
    let says = format!(
        "a backend refuses a connection over {}: the client's next SYN goes to the next one",
        cast.family
    );
    Case::new(says, cast.world(TCP, forward::FULL_NAT))
        .client_sends(&talk, Frame::syn)
        .backend_sends(&talk, |frame| frame.rst().with(tcp_flag::ACK))
        .client_sends(&again, Frame::syn)
        .then_flows(0, 2)
        .then_turns(2)
}

fn reset_by_client() -> Case {
    let talk = V4.talk(TCP, forward::NAT, 51_000, 0);
    let again = V4.talk(TCP, forward::NAT, 51_000, 1);
    Case::new(
        "the client has sent RST: its next SYN is a new connection",
        V4.world(TCP, forward::NAT),
    )
    .handshake(&talk)
    .client_sends(&talk, Frame::rst)
    .client_sends(&again, Frame::syn)
    .then_flows(0, 2)
    .then_turns(2)
}

fn reset_ignored() -> Case {
    let talk = V4.talk(TCP, forward::NAT, 51_000, 0);
    Case::new(
        "a RST with a number that the receiver ignores ends nothing: what follows shows it",
        V4.world(TCP, forward::NAT),
    )
    .handshake(&talk)
    .client_sends(&talk, |frame| frame.rst().seq(0xdead_beef))
    .backend_sends(&talk, |frame| frame.ack(0x0102_0305).payload(b"still here"))
    .client_sends(&talk, Frame::syn)
    .then_flows(2, 0)
    .then_turns(1)
}

/// One backend, so that two clients need two ports.
fn lone_backend(cast: &Cast) -> World {
    let [one, ..] = cast.backends;
    World::empty()
        .service(TCP, forward::FULL_NAT, cast.service, &[0])
        .backend(one)
}

fn exhausted(cast: &Cast) -> Case {
    let first = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let second = cast.talk(TCP, forward::FULL_NAT, 51_001, 0);
    let says = format!(
        "the only port towards the backend is taken over {} by an established connection",
        cast.family
    );
    Case::new(says, lone_backend(cast))
        .handshake(&first)
        .leaves_alone(&WAN, &second.asks().syn(), Verdict::PortsExhausted)
        .then_flows(2, 0)
}

fn half_open_port(cast: &Cast) -> Case {
    let first = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let second = cast.talk(TCP, forward::FULL_NAT, 51_001, 0);
    let says = format!(
        "the only port towards the backend is taken over {} by a connection that is half open: it gives way",
        cast.family
    );
    Case::new(says, lone_backend(cast))
        .client_sends(&first, Frame::syn)
        .client_sends(&second, Frame::syn)
        .then_flows(0, 2)
        .then("one was displaced for its port", |state| {
            state.displaced == [0, 0, 1] && state.live.get(&0) == Some(&1)
        })
        .backend_sends(&second, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
        .client_sends(&second, |frame| frame.ack(ISN + 1))
        .leaves_alone(&WAN, &first.asks().ack(ISN + 1), Verdict::NoFlow)
        .then_flows(2, 0)
}

fn port_free_again() -> Case {
    let first = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let second = V4.talk(TCP, forward::FULL_NAT, 51_001, 0);
    Case::new(
        "a connection that ended and has rested gives its port to another client",
        lone_backend(&V4).with(RESTLESS),
    )
    .handshake(&first)
    .client_sends(&first, Frame::fin)
    .backend_sends(&first, Frame::fin)
    .handshake(&second)
    .then_flows(2, 0)
    .leaves_alone(&WAN, &first.asks().ack(ISN + 2), Verdict::NoFlow)
}

fn port_of_the_silent() -> Case {
    let first = V6.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let second = V6.talk(TCP, forward::FULL_NAT, 51_001, 0);
    Case::new(
        "a connection that has fallen silent gives its port to another client",
        lone_backend(&V6).with(IMPATIENT),
    )
    .handshake(&first)
    .handshake(&second)
    .then_flows(2, 0)
    .leaves_alone(&WAN, &first.asks().ack(ISN + 2), Verdict::NoFlow)
}

fn port_resting() -> Case {
    let first = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let second = V4.talk(TCP, forward::FULL_NAT, 51_001, 0);
    Case::new(
        "a connection that ended just now keeps its port for the backend's TIME-WAIT",
        lone_backend(&V4),
    )
    .handshake(&first)
    .client_sends(&first, Frame::fin)
    .backend_sends(&first, Frame::fin)
    .leaves_alone(&WAN, &second.asks().syn(), Verdict::PortsExhausted)
    .client_sends(&first, |frame| frame.ack(ISN + 2))
}

fn port_of_a_service() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    Case::new(
        "a port on which a service listens is not given out: the answers would be taken for its clients",
        lone_backend(&V4).service(TCP, forward::FULL_NAT, "203.0.113.10:40000", &[]),
    )
    .leaves_alone(&WAN, &talk.asks().syn(), Verdict::PortsExhausted)
    .then_flows(0, 0)
}

/// Two services by nat in front of one backend.
fn two_services() -> World {
    let [one, ..] = V4.backends;
    World::empty()
        .service(TCP, forward::NAT, V4.service, &[0])
        .backend(one)
        .service(TCP, forward::NAT, V4.second_service, &[0])
}

fn tuple_taken() -> Case {
    let talk = V4.talk(TCP, forward::NAT, 51_000, 0);
    let second = tcp("198.51.100.7:51000", V4.second_service).syn();
    Case::new(
        "by nat a backend cannot tell two connections of one client port apart",
        two_services(),
    )
    .handshake(&talk)
    .leaves_alone(&WAN, &second, Verdict::TupleTaken)
    .backend_sends(&talk, |frame| frame.ack(1))
    .then_flows(2, 0)
}

fn tuple_free_again() -> Case {
    let first = V4.talk(TCP, forward::NAT, 51_000, 0);
    let second = super::Talk {
        service: V4.second_service,
        ..first.clone()
    };
    Case::new(
        "by nat a client port is free for another service once its connection has ended",
        two_services().with(RESTLESS),
    )
    .handshake(&first)
    .backend_sends(&first, Frame::rst)
    .handshake(&second)
    .then_flows(2, 0)
}

fn late_answer_by_nat() -> Case {
    let talk = V4.talk(TCP, forward::NAT, 51_000, 0);
    Case::new(
        "by nat an answer that no connection explains is the backend's own affair: left to the host",
        V4.world(TCP, forward::NAT),
    )
    .leaves_alone(&LAN, &talk.answers().ack(1), Verdict::NoService)
}

fn late_answer_to_other_port() -> Case {
    Case::new(
        "a backend may talk to ports of the service's address that full-nat does not give out",
        V4.world(TCP, forward::FULL_NAT),
    )
    .leaves_alone(
        &LAN,
        &tcp(V4.backends[0], "203.0.113.10:22").syn(),
        Verdict::NoService,
    )
    .leaves_alone(
        &LAN,
        &tcp(V4.backends[0], "203.0.113.10:40001").syn(),
        Verdict::NoService,
    )
    .leaves_alone(
        &LAN,
        &tcp(V4.backends[0], V4.source).syn(),
        Verdict::OrphanReply,
    )
}

fn late_udp_answer() -> Case {
    Case::new(
        "a late UDP answer to a port that full-nat gives out ends here",
        V6.world(UDP, forward::FULL_NAT),
    )
    .leaves_alone(
        &LAN,
        &udp(V6.backends[2], V6.source).payload(b"late"),
        Verdict::OrphanReply,
    )
    .then("counted for nobody", |state| {
        state
            .drops
            .keys()
            .all(|key| key.service == lb_common::abi::NOBODY)
    })
}

fn answer_before_the_end() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    Case::new(
        "a client that gives up before the handshake is done leaves no established flow",
        V4.world(TCP, forward::FULL_NAT),
    )
    .client_sends(&talk, Frame::syn)
    .backend_sends(&talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
    .client_sends(&talk, |frame| frame.rst().with(tcp_flag::ACK))
    .then_flows(0, 2)
}
