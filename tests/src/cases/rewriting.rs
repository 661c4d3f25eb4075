//! What a translation does to the bytes, and what it leaves.

use lb_common::abi::{TCP, UDP, forward};
use lb_common::flow::tcp_flag;

use super::{CASTS, Case, Cast, ISN, V4, V6};
use crate::frame::Frame;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        cases.extend([
            no_checksum(cast),
            zero_after(cast),
            zero_before(cast),
            padding(cast),
            carried_along(cast),
            odd_lengths(cast),
        ]);
    }
    cases.extend([ip_options(), hop_limits()]);
    cases
}

fn no_checksum(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!("UDP without a checksum over {} stays without", cast.family);
    let bare = |frame: Frame| frame.without_checksum().payload(b"no sum");
    Case::new(says, cast.world(UDP, forward::FULL_NAT))
        .client_sends(&talk, bare)
        .backend_sends(&talk, bare)
        .client_sends(&talk, bare)
}

/// The payload with which the datagram between these ends sums up to zero.
fn balancing(frame: Frame) -> Vec<u8> {
    frame.balanced_to_zero().carried().to_vec()
}

fn zero_after(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let there = balancing(talk.asks().between(&talk.source, talk.backend));
    let back = balancing(talk.answers().between(talk.service, &talk.client));
    let says = format!(
        "a UDP checksum over {} that comes out as 0 is sent as ffff",
        cast.family
    );
    Case::new(says, cast.world(UDP, forward::FULL_NAT))
        .client_sends(&talk, |frame| frame.payload(&there))
        .backend_sends(&talk, |frame| frame.payload(&back))
}

fn zero_before(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::NAT, 51_000, 0);
    let says = format!(
        "a UDP checksum over {} that came as ffff is a sum like others",
        cast.family
    );
    Case::new(says, cast.world(UDP, forward::NAT))
        .client_sends(&talk, Frame::balanced_to_zero)
        .backend_sends(&talk, Frame::balanced_to_zero)
}

fn padding(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "padding behind the IP packet over {} travels along and counts for nothing",
        cast.family
    );
    Case::new(says, cast.world(TCP, forward::FULL_NAT))
        .client_sends(&talk, |frame| frame.syn().padded_to(100))
        .backend_sends(&talk, |frame| {
            frame.syn_ack(0x0102_0305).seq(ISN).padded_to(75)
        })
        .client_sends(&talk, |frame| frame.ack(ISN + 1).padded_to(60))
}

fn carried_along(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::NAT, 51_000, 0);
    let says = format!(
        "DSCP, ECN, TCP options, urgent and push over {} are not touched",
        cast.family
    );
    // MSS 1460, SACK permitted, timestamps, no operation, window scale 7
    let options = [
        2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    Case::new(says, cast.world(TCP, forward::NAT))
        // ECN set-up (RFC 3168): SYN with ECE and CWR
        .client_sends(&talk, |frame| {
            frame
                .flags(tcp_flag::SYN | 0xc0)
                .tcp_options(&options)
                .tos(0xb8)
        })
        .backend_sends(&talk, |frame| {
            frame
                .syn_ack(0x0102_0305)
                .with(0x40)
                .seq(ISN)
                .tcp_options(&options)
        })
        .client_sends(&talk, |frame| {
            frame.ack(ISN + 1).with(0x28).tos(0xbb).payload(b"now")
        })
}

fn odd_lengths(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let says = format!("payloads of all small lengths over {}", cast.family);
    (0..5usize).fold(
        Case::new(says, cast.world(UDP, forward::FULL_NAT)),
        |case, length| case.client_sends(&talk, |frame| frame.payload(&vec![0xff; length])),
    )
}

fn ip_options() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    // Router alert (RFC 2113), and as many no-operations as there is room for
    let alert = [0x94, 0x04, 0x00, 0x00];
    Case::new(
        "IPv4 options are no obstacle",
        V4.world(TCP, forward::FULL_NAT),
    )
    .client_sends(&talk, |frame| frame.syn().ip_options(&alert))
    .backend_sends(&talk, |frame| {
        frame.syn_ack(0x0102_0305).seq(ISN).ip_options(&[1; 40])
    })
    .client_sends(&talk, |frame| {
        frame.ack(ISN + 1).ip_options(&[1; 40]).payload(b"odd")
    })
    .then_flows(2, 0)
}

fn hop_limits() -> Case {
    let talk = V6.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let four = V4.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let world = V6
        .world(UDP, forward::FULL_NAT)
        .service(UDP, forward::FULL_NAT, V4.service, &[3])
        .backend(V4.backends[0]);
    [2u8, 3, 64, 128, 255].iter().fold(
        Case::new("one hop less, whatever it was", world),
        |case, ttl| {
            case.client_sends(&talk, |frame| frame.ttl(*ttl))
                .client_sends(&four, |frame| frame.ttl(*ttl))
        },
    )
}
