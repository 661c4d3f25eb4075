//! The limit to the segment sizes that SYNs announce.

use lb_common::Verdict;
use lb_common::abi::{Settings, TCP, UDP, forward};
use lb_common::flow::tcp_flag::ACK;

use super::errors::to_backend;
use super::{CASTS, Case, Cast, ISN, Talk, V4, V6, mode_name};
use crate::frame::{Frame, tcp};
use crate::network::{LAN, WAN};
use crate::world::{STEADY, World};

/// The limit.
const MOST: u16 = 1360;

/// No operation, end of options, and the segment size (RFC 9293, section 3.2).
const NOP: u8 = 1;
const END: u8 = 0;
const SIZE: [u8; 4] = [2, 4, 0x05, 0xb4];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in [forward::FULL_NAT, forward::NAT] {
            cases.push(both_ways(cast, mode));
            cases.push(checksums(cast, mode));
        }
        for mode in [forward::DSR, forward::TUNNEL] {
            cases.push(one_way(cast, mode));
        }
        cases.extend([
            contradictory(cast),
            other_segments(cast),
            of_one_service(cast),
        ]);
    }
    cases.extend([behind_headers(), again(), by_the_host()]);
    cases
}

fn world(cast: &Cast, mode: u8) -> World {
    cast.world(TCP, mode).max_mss(MOST).with(Settings {
        tunnel_v4_bits: 0,
        tunnel_v6_bits: 0,
        ..STEADY
    })
}

impl Case {
    /// The client's SYN comes and goes on with these options.
    fn client_announces(self, talk: &Talk, comes: &Frame, leaves: &Frame) -> Self {
        let leaves = leaves.clone().between(&talk.source, talk.backend);
        let leaves = leaves.sent_on(LAN.to(talk.backend_last()));
        self.sends(&WAN, comes, Verdict::ForwardRedirect, &leaves)
    }

    /// The backend's, likewise.
    fn backend_announces(self, talk: &Talk, comes: &Frame, leaves: &Frame) -> Self {
        let leaves = leaves.clone().between(talk.service, &talk.client);
        let leaves = leaves.sent_on(WAN.to(talk.client_last));
        self.sends(&LAN, comes, Verdict::ReplyRedirect, &leaves)
    }
}

/// Options with segment sizes, as they come and as they leave.
fn options() -> Vec<[Vec<u8>; 2]> {
    let size = |size: u16| [&[2, 4], &size.to_be_bytes()[..]].concat();
    let mut all = Vec::new();
    // One more, one less, more, and what is written otherwise in either byte
    for (comes, leaves) in [
        (MOST, MOST),
        (MOST + 1, MOST),
        (MOST - 1, MOST - 1),
        (1460, MOST),
        (8960, MOST),
        (0xffff, MOST),
        (0x05ff, MOST),
        (0x04ff, 0x04ff),
        (536, 536),
        (1, 1),
        (0, 0),
    ] {
        all.push([size(comes), size(leaves)]);
        // At an odd place
        all.push([comes, leaves].map(|value| [&[NOP], &size(value)[..]].concat()));
    }
    let behind: [&[u8]; 5] = [
        &[NOP; 2],
        // Window scale, SACK permitted, timestamps, and one that nobody knows
        &[3, 3, 7],
        &[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
        &[254, 9, 2, 4, 0xff, 0xff, 2, 4, 0xff],
        &[NOP; 36],
    ];
    for before in behind {
        let after: &[u8] = if before.len() < 36 {
            &[NOP, 3, 3, 7]
        } else {
            &[]
        };
        all.push([1460, MOST].map(|value| [before, &size(value), after].concat()));
    }
    all
}

fn both_ways(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(TCP, mode, 51_000, 0);
    let says = format!(
        "over {} by {} SYN and SYN-ACK announce no more than the limit, and no other segment changes",
        cast.family,
        mode_name(mode),
    );
    let case = options()
        .iter()
        .fold(Case::new(says, world(cast, mode)), |case, options| {
            let [comes, leaves] = [0, 1].map(|side| talk.asks().syn().tcp_options(&options[side]));
            let case = case.client_announces(&talk, &comes, &leaves);
            let answer = || talk.answers().syn_ack(0x0102_0305).seq(ISN);
            let [comes, leaves] = [0, 1].map(|side| answer().tcp_options(&options[side]));
            case.backend_announces(&talk, &comes, &leaves)
        });
    case.client_sends(&talk, |frame| frame.ack(ISN + 1).mss(1460))
        .backend_sends(&talk, |frame| frame.ack(0x0102_0305).mss(1460))
        .client_sends(&talk, |frame| {
            frame.flags(ACK | 0x08).mss(1460).payload(b"data")
        })
        .then_flows(2, 0)
        .then_turns(1)
}

fn one_way(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(TCP, mode, 51_000, 0);
    let says = format!(
        "over {} by {} a SYN announces no more than the limit",
        cast.family,
        mode_name(mode),
    );
    let syn = |options: &[u8]| talk.asks().syn().tcp_options(options).dont_fragment();
    let way = Verdict::ForwardRedirect;
    let case = options()
        .iter()
        .fold(Case::new(says, world(cast, mode)), |case, options| {
            let [comes, leaves] = [0, 1].map(|side| syn(&options[side]));
            case.sends(&WAN, &comes, way, &to_backend(&talk, mode, &leaves))
        });
    let ack = talk.asks().ack(ISN + 1).mss(1460).dont_fragment();
    case.sends(&WAN, &ack, way, &to_backend(&talk, mode, &ack))
        .then_flows(1, 0)
}

/// Of checksums at the edges, on either side, at an even and at an odd place.
fn checksums(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(TCP, mode, 51_000, 0);
    let says = format!(
        "over {} by {} the checksum of a SYN with a lower size is right, whatever it was",
        cast.family,
        mode_name(mode),
    );
    let mut random = fastrand::Rng::with_seed(13);
    let mut checks = vec![0, 1, 0x00ff, 0x0100, 0x7fff, 0xff00, 0xfffd, 0xfffe];
    checks.extend(std::iter::repeat_with(|| random.u16(0..0xffff)).take(12));
    let mut case = Case::new(says, world(cast, mode));
    for check in checks {
        for place in [0, 1] {
            let size = 1361 + check % 9000;
            let syn = |size: u16| {
                let options = [&[NOP][..place], &[2, 4], &size.to_be_bytes()].concat();
                talk.asks().syn().tcp_options(&options)
            };
            let of = |frame: Frame| frame.balanced_to(check).carried().to_vec();
            let before = of(syn(size));
            let after = of(syn(MOST).between(&talk.source, talk.backend));
            for payload in [before, after] {
                let [comes, leaves] = [size, MOST].map(|size| syn(size).payload(&payload));
                case = case.client_announces(&talk, &comes, &leaves);
            }
        }
    }
    case
}

fn contradictory(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let says = format!(
        "over {} options that contradict themselves, and what stands behind their end, stay as they are",
        cast.family
    );
    let [kind, length, high, low] = SIZE;
    let all: [&[u8]; 13] = [
        // None at all, and none but nothing
        &[],
        &[NOP; 40],
        // Lengths that an option cannot have
        &[kind, 0, high, low],
        &[kind, 1, high, low],
        &[kind, 2, high, low],
        &[kind, 3, high, low],
        &[kind, 5, high, low, NOP, NOP, NOP, NOP],
        &[254, 0, kind, length, high, low, NOP, NOP],
        &[254, 1, kind, length, high, low, NOP, NOP],
        // Beyond the end
        &[254, 9, NOP, NOP, kind, length, high, low],
        &[NOP, NOP, NOP, kind],
        &[NOP, kind, length, high],
        // Behind the end
        &[NOP, END, NOP, NOP, kind, length, high, low],
    ];
    let case = all.iter().fold(
        Case::new(says, world(cast, forward::FULL_NAT)),
        |case, options| {
            // Behind the header it goes on as an option would.
            let syn = talk.asks().syn().tcp_options(options);
            let syn = syn.payload(&[length, high, low, kind, length, high, low]);
            case.client_announces(&talk, &syn, &syn)
        },
    );
    let syn = talk.asks().syn().mss(1460);
    [0, 4, 5, 15]
        .iter()
        .fold(case, |case, words| {
            let syn = syn.clone().claims_tcp_words(*words);
            case.client_announces(&talk, &syn, &syn)
        })
        .then_turns(1)
}

fn other_segments(cast: &Cast) -> Case {
    let [talk, other] = [51_000, 51_001].map(|port| cast.talk(TCP, forward::NAT, port, 0));
    let says = format!(
        "over {} of a connection that is known only SYNs are limited, which begin it once more",
        cast.family
    );
    let looks_like = |frame: Frame| frame.payload(&[SIZE, SIZE].concat());
    let world = World::empty()
        .service(TCP, forward::NAT, cast.service, &[0])
        .max_mss(MOST)
        .backend(cast.backends[0])
        .service(UDP, forward::NAT, cast.service, &[1])
        .max_mss(MOST)
        .backend(cast.backends[1]);
    let udp = cast.talk(UDP, forward::NAT, 51_000, 1);
    Case::new(says, world)
        .handshake(&talk)
        .client_announces(
            &talk,
            &talk.asks().syn().mss(1460),
            &talk.asks().syn().mss(MOST),
        )
        .backend_announces(
            &talk,
            &talk.answers().syn_ack(1).mss(1460),
            &talk.answers().syn_ack(1).mss(MOST),
        )
        .client_sends(&talk, |frame| frame.fin().mss(1460))
        .client_sends(&talk, |frame| frame.rst().mss(1460))
        .client_sends(&udp, looks_like)
        .backend_sends(&udp, looks_like)
        .client_sends(&udp, looks_like)
        .leaves_alone(&WAN, &other.asks().ack(1).mss(1460), Verdict::NoFlow)
}

fn of_one_service(cast: &Cast) -> Case {
    let limited = cast.talk(TCP, forward::NAT, 51_000, 0);
    let free = Talk {
        service: cast.second_service,
        ..cast.talk(TCP, forward::NAT, 51_001, 1)
    };
    let says = format!("over {} the limit is one service's alone", cast.family);
    let world = World::empty()
        .service(TCP, forward::NAT, cast.service, &[0])
        .max_mss(MOST)
        .backend(cast.backends[0])
        .service(TCP, forward::NAT, cast.second_service, &[1])
        .backend(cast.backends[1]);
    let size = |talk: &Talk, size: u16| talk.asks().syn().mss(size);
    let answer = |talk: &Talk, size: u16| talk.answers().syn_ack(0x0102_0305).mss(size);
    Case::new(says, world)
        .client_announces(&limited, &size(&limited, 9000), &size(&limited, MOST))
        .client_announces(&free, &size(&free, 9000), &size(&free, 9000))
        .backend_announces(&limited, &answer(&limited, 9000), &answer(&limited, MOST))
        .backend_announces(&free, &answer(&free, 9000), &answer(&free, 9000))
}

fn behind_headers() -> Case {
    let [four, six] = [&V4, &V6].map(|cast| cast.talk(TCP, forward::NAT, 51_000, 0));
    let six = Talk {
        backend: V6.backends[1],
        number: 1,
        ..six
    };
    let world = World::empty()
        .service(TCP, forward::NAT, V4.service, &[0])
        .max_mss(MOST)
        .backend(V4.backends[0])
        .service(TCP, forward::NAT, V6.service, &[1])
        .max_mss(MOST)
        .backend(V6.backends[1]);
    let with_options = |size: u16| four.asks().ip_options(&[1, 1, 1, 0]).syn().mss(size);
    let extended = |size: u16| six.asks().hop_by_hop().syn().no_operation().mss(size);
    let tagged = |size: u16| extended(size).tagged(99).padded_to(150);
    let padded = |size: u16| four.asks().syn().mss(size).padded_to(60);
    Case::new(
        "the segment size is found behind options, extension headers and tags",
        world,
    )
    .client_announces(&four, &with_options(1460), &with_options(MOST))
    .client_announces(&four, &padded(1460), &padded(MOST))
    .client_announces(&six, &extended(1460), &extended(MOST))
    .client_announces(&six, &tagged(1460), &tagged(MOST).untagged())
}

fn again() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let next = V4.talk(TCP, forward::FULL_NAT, 51_000, 1);
    let syn = |size: u16| next.asks().syn().mss(size);
    Case::new(
        "a connection that is opened again announces no more than the limit",
        world(&V4, forward::FULL_NAT),
    )
    .handshake(&talk)
    .client_sends(&talk, Frame::fin)
    .backend_sends(&talk, Frame::fin)
    .client_announces(&next, &syn(1460), &syn(MOST))
    .then_turns(2)
}

fn by_the_host() -> Case {
    let backend = "10.0.1.99:8080";
    let world = World::empty()
        .service(TCP, forward::NAT, V4.service, &[0])
        .max_mss(MOST)
        .backend(backend);
    let syn = |size: u16| tcp("198.51.100.7:51000", V4.service).syn().mss(size);
    let leaves = syn(MOST).between("198.51.100.7:51000", backend);
    Case::new(
        "a SYN that the host sends on announces no more than the limit either",
        world,
    )
    .sends(&WAN, &syn(1460), Verdict::NeighbourPending, &leaves)
}
