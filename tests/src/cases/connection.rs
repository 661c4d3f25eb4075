//! How connections begin, are remembered and are shared out.

use lb_common::Verdict;
use lb_common::abi::{DropKey, Settings, TCP, UDP, forward};
use lb_common::flow::{ANSWERED, BACKEND_FIN, CLIENT_FIN, tcp_flag};

use super::{CASTS, Case, Cast, ISN, V4, V6, mode_name, protocol_name};
use crate::frame::Frame;
use crate::network::{LAN, WAN};
use crate::world::STEADY;

/// Every packet notes that its flow lives, and what ended need not rest.
pub(super) const RESTLESS: Settings = Settings {
    refresh_ticks: 0,
    ..STEADY
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for protocol in [TCP, UDP] {
            for mode in [forward::FULL_NAT, forward::NAT] {
                cases.push(whole(cast, protocol, mode, true));
                cases.push(whole(cast, protocol, mode, false));
            }
        }
        cases.push(shares(cast));
        cases.push(lost(cast));
    }
    cases.extend([
        wrong_proofs(),
        late_proof(),
        acknowledged_unheard(),
        unanswered_udp(),
        retransmitted(),
        counted(),
        proof_with_end(),
        both_at_once(),
        table_full(),
    ]);
    cases
}

fn whole(cast: &Cast, protocol: u8, mode: u8, one_arm: bool) -> Case {
    let arm = if one_arm { &LAN } else { &WAN };
    let talk = cast.talk_by(arm, protocol, mode, 51_000, 0);
    let says = format!(
        "a {} connection over {} by {}, {}: begun, proved, both ways",
        protocol_name(protocol),
        cast.family,
        mode_name(mode),
        if one_arm { "one-arm" } else { "two-arm" },
    );
    let keys = (talk.forward_key(), talk.reply_key());
    Case::new(says, cast.world(protocol, mode))
        .handshake(&talk)
        .then_flows(2, 0)
        .then("both halves, each the other's", move |state| {
            let forward = state.established.get(&keys.0);
            let reply = state.established.get(&keys.1);
            forward.is_some_and(|flow| !flow.is_reply() && flow.backend == 0)
                && reply.is_some_and(|flow| flow.is_reply() && flow.src == keys.0.dst)
        })
        .client_sends(&talk, |frame| {
            frame.with(tcp_flag::ACK).payload(b"GET / HTTP/1.1\r\n\r\n")
        })
        .backend_sends(&talk, |frame| {
            frame.with(tcp_flag::ACK).payload(b"HTTP/1.1 200 OK\r\n")
        })
        .then_flows(2, 0)
        .then_turns(1)
}

fn shares(cast: &Cast) -> Case {
    let order = [0, 1, 0, 2, 1, 0];
    let says = format!(
        "weights 3:2:1 over {}: each connection to the next backend of the sequence, again and again",
        cast.family
    );
    let mut world = cast.world(TCP, forward::NAT);
    world.services[0].sequence = order.to_vec();
    let begin = |case: Case, turn: usize| {
        let backend = order[turn % order.len()] as usize;
        let talk = cast.talk(TCP, forward::NAT, 51_000 + turn as u16, backend);
        case.client_sends(&talk, Frame::syn)
    };
    (0..2 * order.len())
        .fold(Case::new(says, world), begin)
        .then("exactly 6, 4 and 2 connections", |state| {
            let new = |backend| {
                state
                    .backends
                    .get(&backend)
                    .map(|traffic| traffic.new_flows)
            };
            [new(0), new(1), new(2)] == [Some(6), Some(4), Some(2)]
        })
        .then_turns(12)
}

fn lost(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let again = cast.talk(TCP, forward::FULL_NAT, 51_000, 1);
    let says = format!(
        "a connection that is lost over {} is lost both ways, until the client begins anew",
        cast.family
    );
    Case::new(says, cast.world(TCP, forward::FULL_NAT))
        .handshake(&talk)
        .loses(talk.forward_key())
        .then_flows(0, 0)
        .leaves_alone(&LAN, &talk.answers().ack(0x0102_0305), Verdict::OrphanReply)
        .leaves_alone(&LAN, &talk.asks().ack(ISN + 1), Verdict::NoFlow)
        .handshake(&again)
        .then_turns(2)
}

fn wrong_proofs() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    Case::new(
        "an ACK of anything but the backend's SYN proves nothing, but is forwarded",
        V4.world(TCP, forward::FULL_NAT),
    )
    .client_sends(&talk, Frame::syn)
    .backend_sends(&talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
    .client_sends(&talk, |frame| frame.ack(ISN))
    .client_sends(&talk, |frame| frame.ack(ISN + 1 + 65_536))
    .client_sends(&talk, |frame| frame.ack(ISN.wrapping_add(0x8000_0000)))
    .then_flows(0, 2)
    .client_sends(&talk, |frame| frame.ack(ISN + 1))
    .then_flows(2, 0)
}

fn late_proof() -> Case {
    let talk = V6.talk(TCP, forward::NAT, 51_000, 0);
    Case::new(
        "a first ACK that was lost is made good by one of the backend's data",
        V6.world(TCP, forward::NAT),
    )
    .client_sends(&talk, Frame::syn)
    .backend_sends(&talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
    .client_sends(&talk, |frame| frame.ack(ISN + 65_536))
    .then_flows(2, 0)
}

fn acknowledged_unheard() -> Case {
    let talk = V4.talk(TCP, forward::NAT, 51_000, 0);
    Case::new(
        "an ACK of 0 before the backend has answered proves nothing",
        V4.world(TCP, forward::NAT),
    )
    .client_sends(&talk, Frame::syn)
    .client_sends(&talk, |frame| frame.ack(0))
    .then_flows(0, 2)
}

fn unanswered_udp() -> Case {
    let talk = V4.talk(UDP, forward::FULL_NAT, 51_000, 0);
    Case::new(
        "UDP that nobody answers stays with its backend and among the unfinished",
        V4.world(UDP, forward::FULL_NAT),
    )
    .client_sends(&talk, |frame| frame.payload(b"1"))
    .client_sends(&talk, |frame| frame.payload(b"2"))
    .client_sends(&talk, |frame| frame.payload(b"3"))
    .then_flows(0, 2)
    .then_turns(1)
}

fn retransmitted() -> Case {
    let talk = V6.talk(TCP, forward::FULL_NAT, 51_000, 0);
    Case::new(
        "a SYN that is sent again goes to the same backend and takes no turn",
        V6.world(TCP, forward::FULL_NAT),
    )
    .client_sends(&talk, Frame::syn)
    .client_sends(&talk, Frame::syn)
    .backend_sends(&talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
    .client_sends(&talk, Frame::syn)
    .backend_sends(&talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
    .client_sends(&talk, |frame| frame.ack(ISN + 1))
    .then_flows(2, 0)
    .then_turns(1)
}

fn counted() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    Case::new(
        "packets and bytes are counted for the service and the backend, by direction",
        V4.world(TCP, forward::FULL_NAT),
    )
    .handshake(&talk)
    .backend_sends(&talk, |frame| frame.ack(1).payload(&[0; 46]))
    .then("two packets of 54 bytes there, 54 and 100 back", |state| {
        [state.services.get(&0), state.backends.get(&0)]
            .iter()
            .all(|traffic| {
                traffic.is_some_and(|traffic| {
                    (traffic.forward_packets, traffic.forward_bytes) == (2, 108)
                        && (traffic.reply_packets, traffic.reply_bytes) == (2, 154)
                        && traffic.new_flows == 1
                })
            })
    })
    .leaves_alone(
        &WAN,
        &talk.asks().ack(1).claims_ip_length(9_000),
        Verdict::LengthMismatch,
    )
    .then("a drop under the names of both", |state| {
        let key = DropKey {
            service: 0,
            backend: 0,
            verdict: Verdict::LengthMismatch as u32,
            zero: 0,
        };
        state.drops.get(&key) == Some(&1)
    })
}

fn proof_with_end() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let again = V4.talk(TCP, forward::FULL_NAT, 51_000, 1);
    let forward = talk.forward_key();
    Case::new(
        "the segment that proves a connection may be the client's last one",
        V4.world(TCP, forward::FULL_NAT),
    )
    .client_sends(&talk, Frame::syn)
    .backend_sends(&talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
    .client_sends(&talk, |frame| {
        frame.ack(ISN + 1).with(tcp_flag::FIN).payload(b"bye")
    })
    .then_flows(2, 0)
    .then("the FIN is noted", move |state| {
        (state.established.get(&forward))
            .is_some_and(|flow| flow.life.state == ANSWERED | CLIENT_FIN)
    })
    .backend_sends(&talk, Frame::fin)
    .client_sends(&again, Frame::syn)
    .then_turns(2)
}

fn both_at_once() -> Case {
    let tcp = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let udp = V4.talk(UDP, forward::FULL_NAT, 51_000, 1);
    let [one, two, _] = V4.backends;
    let world = crate::world::World::empty()
        .service(TCP, forward::FULL_NAT, V4.service, &[0])
        .backend(one)
        .service(UDP, forward::FULL_NAT, V4.service, &[1])
        .backend(two);
    Case::new(
        "TCP and UDP on one address and port are two services",
        world,
    )
    .handshake(&tcp)
    .handshake(&udp)
    .client_sends(&tcp, Frame::fin)
    .backend_sends(&tcp, Frame::fin)
    .then_flows(4, 0)
    .then("the end of the one is not the other's", move |state| {
        let state_of = |key| state.established.get(&key).map(|flow| flow.life.state);
        state_of(tcp.forward_key()) == Some(ANSWERED | CLIENT_FIN | BACKEND_FIN)
            && state_of(udp.forward_key()) == Some(ANSWERED)
    })
}

/// A table of one bucket.
pub(super) const SMALL: Settings = Settings {
    tag_buckets: 1,
    ..STEADY
};

fn table_full() -> Case {
    let world = V4.world(TCP, forward::NAT).with(SMALL);
    let full = (0..15u16).fold(
        Case::new(
            "a table full of established connections takes no other, and loses none",
            world,
        ),
        |case, n| case.handshake(&V4.talk(TCP, forward::NAT, 51_000 + n, usize::from(n) % 3)),
    );
    let first = V4.talk(TCP, forward::NAT, 51_000, 0);
    let late = V4.talk(TCP, forward::NAT, 52_000, 1);
    full.then_flows(30, 0)
        .leaves_alone(&WAN, &late.asks().syn(), Verdict::FlowTableFull)
        .then_flows(30, 0)
        .client_sends(&first, |frame| frame.ack(ISN + 1))
}
