//! Pings to a service's address, which are answered, and all others, which pass.

use lb_common::Verdict;
use lb_common::abi::{TCP, forward};

use super::{CASTS, Case, Cast, V4};
use crate::frame::{Frame, icmp, ping};
use crate::network::{Device, LAN, WAN};
use crate::world::World;

/// The TTL of an answer.
const TTL: u8 = 64;

/// A link address of many: everybody's, and one of a group.
const BROADCAST: [u8; 6] = [0xff; 6];
const GROUP: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 1];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        cases.extend([
            answered(cast),
            with_tags(cast),
            checksums(cast),
            other_addresses(cast),
            from_nobody(cast),
            peculiar(cast),
            in_pieces(cast),
            other_messages(cast),
        ]);
    }
    cases.extend([with_ip_options(), all_zero()]);
    cases
}

fn case(cast: &Cast, says: &str) -> Case {
    let says = format!("over {} {says}", cast.family);
    Case::new(says, cast.world(TCP, forward::FULL_NAT))
}

fn asks(cast: &Cast, payload: &[u8]) -> Frame {
    ping(&host(cast), cast.service, 0x1234, 7, payload)
}

/// The client, as an end.
fn host(cast: &Cast) -> String {
    format!("{}:0", cast.client)
}

impl Case {
    fn answers(self, on: &'static Device, asks: &Frame) -> Self {
        let answer = asks.clone().answered().ttl(TTL);
        self.sends(on, asks, Verdict::EchoReply, &answer)
    }

    fn does_not_answer(self, asks: &Frame) -> Self {
        self.leaves_alone(&WAN, asks, Verdict::NotTransport)
    }
}

fn answered(cast: &Cast) -> Case {
    let lengths = [0, 1, 2, 3, 56, 57, 1452];
    let case = lengths.iter().fold(
        case(cast, "a ping to a service's address is answered"),
        |case, length| case.answers(&WAN, &asks(cast, &vec![0xa5; *length])),
    );
    let case = [0, 1, 2, 63, 64, 65, 255].iter().fold(case, |case, ttl| {
        case.answers(&WAN, &asks(cast, b"?").ttl(*ttl))
    });
    case.answers(&LAN, &asks(cast, b"from the other side"))
        .answers(&WAN, &asks(cast, b"odd").padded_to(90))
        .answers(&WAN, &asks(cast, b"odd").tos(0xb8).identified(0xbeef))
        .answers(&WAN, &asks(cast, b"odd").dont_fragment())
        .then_flows(0, 0)
        .then("it is nobody's traffic", |state| {
            state.services.is_empty() && state.backends.is_empty()
        })
}

fn with_tags(cast: &Cast) -> Case {
    case(cast, "a ping with tags is answered with the same tags")
        .answers(&LAN, &asks(cast, b"").tagged(10))
        .answers(&WAN, &asks(cast, b"odd").tag(0x8100, 0xb123))
        .answers(&WAN, &asks(cast, b"").tagged(20).tagged(30))
        .answers(&WAN, &asks(cast, b"").tag(0x9100, 0x7001).tag(0x8100, 0))
        .answers(&WAN, &asks(cast, b"").tagged(5).padded_to(80))
}

/// At the edges of what came, and of what leaves: the type's change is one of
/// 0x0800 for ICMP, of 0x0100 for ICMPv6.
fn checksums(cast: &Cast) -> Case {
    let edges = (0..=3)
        .chain(0x00fd..=0x0103)
        .chain(0x07fd..=0x0803)
        .chain(0xf7f8..=0xf803)
        .chain(0xfefd..=0xff03)
        .chain(0xfff4..=0xfffe);
    let says = "the checksum of a ping's answer is right, whatever that of the ping was";
    let case = edges.fold(case(cast, says), |case, check| {
        case.answers(&WAN, &asks(cast, b"").balanced_to(check))
    });
    let random = fastrand::Rng::with_seed(7);
    let case = std::iter::repeat_with({
        let mut random = random;
        move || random.u16(0..0xffff)
    })
    .take(24)
    .fold(case, |case, check| {
        case.answers(&WAN, &asks(cast, b"").balanced_to(check))
    });
    // Zero has two forms, and a sender may choose.
    let zero = asks(cast, b"").balanced_to(0);
    case.sends(
        &WAN,
        &zero.clone().claims_checksum(0xffff),
        Verdict::EchoReply,
        &zero.answered().ttl(TTL),
    )
}

fn other_addresses(cast: &Cast) -> Case {
    let to = |address: &str| ping(&host(cast), address, 1, 2, b"whose?");
    let [own, router] = if cast.family == "IPv4" {
        ["198.51.100.1", "10.0.1.254"]
    } else {
        ["2001:db8:100::1", "fd00:1::fe"]
    };
    case(
        cast,
        "a ping to any address but a service's passes: the host's own, a backend's, another's",
    )
    .does_not_answer(&to(own))
    .does_not_answer(&to(router))
    .does_not_answer(&to(cast.backends[0]))
    .does_not_answer(&to(cast.second_service))
    .does_not_answer(&to(&host(cast)))
}

fn from_nobody(cast: &Cast) -> Case {
    let sources: &[&str] = if cast.family == "IPv4" {
        &["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"]
    } else {
        &["::", "::1", "ff02::1"]
    };
    let case = sources.iter().fold(
        case(
            cast,
            "a ping from an address that no sender has, or to many links, is not answered",
        ),
        |case, source| case.does_not_answer(&ping(source, cast.service, 1, 2, b"?")),
    );
    [BROADCAST, GROUP].iter().fold(case, |case, link| {
        case.does_not_answer(&asks(cast, b"?").over([WAN.neighbour(7), *link]))
    })
}

fn peculiar(cast: &Cast) -> Case {
    let header = if cast.family == "IPv4" { 20 } else { 0 };
    let case = case(
        cast,
        "a ping with another code, or whose length cannot be true, passes",
    );
    let case = case.does_not_answer(&asks(cast, b"?").code(1));
    [header + 7, header + 10, 0xffff]
        .iter()
        .fold(case, |case, length| {
            case.does_not_answer(&asks(cast, b"?").claims_ip_length(*length))
        })
        .does_not_answer(&asks(cast, b"0123456789").cut_to(if header == 20 { 46 } else { 66 }))
        .leaves_alone(
            &WAN,
            &asks(cast, b"").cut_to(if header == 20 { 41 } else { 61 }),
            Verdict::Truncated,
        )
}

fn in_pieces(cast: &Cast) -> Case {
    let pieces = asks(cast, &[7; 100]).fragments(48);
    case(cast, "a ping in pieces passes, all of it")
        .leaves_alone(&WAN, &pieces[0], Verdict::NotTransport)
        .leaves_alone(&WAN, &pieces[1], Verdict::NotTransport)
        .leaves_alone(&WAN, &pieces[2], Verdict::NotTransport)
}

fn other_messages(cast: &Cast) -> Case {
    let kinds: &[u8] = if cast.family == "IPv4" {
        // Echo reply, source quench, redirect, router advertisement and
        // solicitation, timestamp and its reply, and one that nobody knows
        &[0, 4, 5, 9, 10, 13, 14, 255]
    } else {
        // Echo reply, multicast listeners, routers and neighbours, redirect, and
        // those that nobody knows
        &[
            0, 5, 127, 129, 130, 131, 132, 133, 134, 135, 136, 137, 143, 255,
        ]
    };
    kinds.iter().fold(
        case(
            cast,
            "ICMP to a service's address that is neither a ping nor an error passes",
        ),
        |case, kind| {
            let message = icmp(&host(cast), cast.service, *kind, 0, [0; 4]);
            case.does_not_answer(&message.payload(&[0x45; 40]))
        },
    )
}

fn with_ip_options() -> Case {
    let [four, six] = CASTS.map(|cast| asks(cast, b"plain?"));
    let world =
        V4.world(TCP, forward::FULL_NAT)
            .service(TCP, forward::FULL_NAT, CASTS[1].service, &[]);
    Case::new("a ping with options or extension headers passes", world)
        .does_not_answer(&four.ip_options(&[1, 1, 1, 0]))
        .does_not_answer(&six.clone().hop_by_hop())
        .does_not_answer(&six.destination_options())
        .then(
            "and without, none is answered where there is no service",
            |state| state.verdicts.len() == 1,
        )
}

/// A message of nothing but zeros has no sum but zero, of which the checksum is
/// ffff: the only one that cannot be 0000.
fn all_zero() -> Case {
    let asks = |payload: &[u8]| ping(V4.client, V4.service, 0, 0, payload);
    let world = World::empty().service(TCP, forward::DSR, V4.service, &[]);
    Case::new(
        "the answer to a ping of nothing but zeros has a checksum all the same",
        world,
    )
    .answers(&WAN, &asks(b""))
    .answers(&WAN, &asks(&[0; 8]))
    .answers(&WAN, &asks(&[0; 57]))
    .answers(&WAN, &asks(&[0, 0, 0, 1]))
}
