//! A table that is full: who gives way to whom, and what becomes of those whose
//! handshake was displaced.
//!
//! The table has one bucket. Time stands still ([`crate::world::STEADY`]), so all
//! in it are of one age, and which one of a class gives way is left to the hash;
//! that it is the oldest is shown on the host, with a clock
//! (`tests/time.rs`).

use lb_common::Verdict;
use lb_common::abi::{Policy, Settings, TCP, UDP, forward, pick};
use lb_common::flow::tcp_flag::{ACK, FIN, RST};

use super::choosing::flow_hash;
use super::connection::SMALL;
use super::going::{Kind, MODES};
use super::{CASTS, Case, Cast, ISN, V4, mode_name};
use crate::network::{LAN, WAN};
use crate::world::{STEADY, World};

/// How many places the table has.
const PLACES: u16 = 15;

/// A table of one bucket, and one bucket of answers: too few for it.
const NARROW: Settings = Settings {
    answer_buckets: 1,
    ..SMALL
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in [forward::NAT, forward::DSR, forward::TUNNEL] {
            let tcp = Kind::new(cast, TCP, mode);
            cases.extend([half_open(tcp, mode), by_class(tcp, mode)]);
            let udp = Kind::new(cast, UDP, mode);
            cases.push(datagrams(udp, mode));
        }
        for mode in [forward::DSR, forward::TUNNEL] {
            let tcp = Kind::new(cast, TCP, mode);
            cases.extend([late(tcp, mode), by_hash(tcp, mode), not_late(tcp, mode)]);
        }
        for mode in MODES {
            cases.push(forgotten(cast, mode));
        }
        cases.push(late_by_source(cast));
    }
    cases.extend([never_late(), no_answers(), port_and_place()]);
    cases
}

fn talk_to(number: usize) -> usize {
    number % 3
}

/// The port of the connection with this number, which goes to the backend with
/// this number modulo three.
fn port(number: usize) -> u16 {
    51_000 + number as u16
}

fn crowd(says: String, cast: &Cast, protocol: u8, mode: u8) -> Case {
    Case::new(says, cast.world(protocol, mode).with(SMALL))
}

impl Case {
    /// So many handshakes, ended connections and ports have been taken.
    fn then_displaced(self, displaced: [u64; 3]) -> Self {
        self.then(format!("{displaced:?} were displaced"), move |state| {
            state.displaced == displaced
        })
    }

    fn then_all_live(self, count: u64) -> Self {
        self.then(format!("{count} live in all"), move |state| {
            state.live.values().sum::<u64>() == count
        })
    }
}

fn syns(mut case: Case, kind: Kind<'_>, numbers: std::ops::Range<usize>) -> Case {
    for number in numbers {
        let frame = kind.asks(port(number)).syn();
        case = kind.taken(case, port(number), talk_to(number), &frame);
    }
    case
}

/// The client goes on: by nat only after the backend's answer.
fn established(case: Case, kind: Kind<'_>, mode: u8, number: usize) -> Case {
    let talk = kind.talk(port(number), talk_to(number));
    let case = if mode == forward::NAT {
        case.backend_sends(&talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
    } else {
        case
    };
    let proof = kind.asks(port(number)).ack(ISN + 1);
    kind.taken(case, port(number), talk_to(number), &proof)
}

fn half_open(kind: Kind<'_>, mode: u8) -> Case {
    let says = format!(
        "a table full of half-open connections over {} by {}: each new one takes the place of one",
        kind.cast.family,
        mode_name(mode)
    );
    let case = crowd(says, kind.cast, TCP, mode);
    let case = syns(case, kind, 0..15)
        .then_flows(0, kind.entries(15))
        .then_displaced([0; 3]);
    if mode != forward::NAT {
        // From here on they go by hash.
        let frame = kind.asks(port(15)).syn();
        return kind
            .taken(case, port(15), talk_to(15), &frame)
            .then_flows(0, kind.entries(15))
            .then_displaced([1, 0, 0])
            .then_all_live(15);
    }
    syns(case, kind, 15..48)
        .then_flows(0, kind.entries(15))
        .then_displaced([33, 0, 0])
        .then_all_live(15)
        .then_turns(48)
}

fn by_class(kind: Kind<'_>, mode: u8) -> Case {
    let says = format!(
        "over {} by {} an ended connection gives way before a half-open one, an established one never",
        kind.cast.family,
        mode_name(mode)
    );
    let mut case = crowd(says, kind.cast, TCP, mode);
    case = syns(case, kind, 0..15);
    for number in 0..10 {
        case = established(case, kind, mode, number);
    }
    // Two established ones end, and two half-open ones.
    for number in [2, 5, 11, 14] {
        let frame = kind.asks(port(number)).flags(RST | ACK);
        case = kind.taken(case, port(number), talk_to(number), &frame);
    }
    case = case.then_all_live(11);
    case = syns(case, kind, 15..19)
        .then_displaced([0, 4, 0])
        .then_all_live(15);
    case = syns(case, kind, 19..20)
        .then_displaced([1, 4, 0])
        .then_all_live(15)
        .then_flows(kind.entries(8), kind.entries(7));
    // Those that were there before live on, the ended ones are forgotten.
    for number in [0, 1, 3, 4, 6, 7, 8, 9] {
        let frame = kind.asks(port(number)).ack(ISN + 9).payload(b"still here");
        case = kind.taken(case, port(number), talk_to(number), &frame);
    }
    if mode == forward::NAT {
        let late = kind.asks(port(2)).ack(ISN + 9);
        case = case.leaves_alone(&WAN, &late, Verdict::NoFlow);
        let answer = kind.talk(port(2), 2).answers().ack(1);
        case = case.leaves_alone(&LAN, &answer, Verdict::NoService);
    }
    case.then_flows(kind.entries(8), kind.entries(7))
        .then_turns(20)
}

fn datagrams(kind: Kind<'_>, mode: u8) -> Case {
    let says = format!(
        "over {} by {} flows of UDP that nobody has proved give way like handshakes",
        kind.cast.family,
        mode_name(mode)
    );
    let mut case = crowd(says, kind.cast, UDP, mode);
    for number in 0..16 {
        let frame = kind.asks(port(number)).payload(b"?");
        case = kind.taken(case, port(number), talk_to(number), &frame);
    }
    case.then_displaced([1, 0, 0])
        .then_flows(0, kind.entries(15))
        .then_all_live(15)
}

/// A table in which young handshakes were displaced just now.
fn churning(says: String, kind: Kind<'_>, mode: u8) -> Case {
    let case = crowd(says, kind.cast, TCP, mode);
    syns(case, kind, 0..16).then_displaced([1, 0, 0])
}

fn by_hash_number(kind: Kind<'_>, number: usize) -> usize {
    flow_hash(&kind.talk(port(number), 0).forward_key()) as usize % 3
}

fn by_hash(kind: Kind<'_>, mode: u8) -> Case {
    let says = format!(
        "while handshakes push each other out over {} by {}, connections go by hash whatever the policy",
        kind.cast.family,
        mode_name(mode)
    );
    let mut case = churning(says, kind, mode);
    for number in 17..25 {
        let frame = kind.asks(port(number)).syn();
        case = kind.taken(case, port(number), by_hash_number(kind, number), &frame);
    }
    case.then_turns(16).then_displaced([9, 0, 0])
}

fn late(kind: Kind<'_>, mode: u8) -> Case {
    let says = format!(
        "over {} by {} the acknowledgement of a handshake that was displaced finds its backend by hash, and begins a flow",
        kind.cast.family,
        mode_name(mode)
    );
    let (number, backend) = (30, by_hash_number(kind, 30));
    let client = kind.asks(port(number));
    let case = churning(says, kind, mode);
    let case = kind
        .taken(case, port(number), backend, &client.clone().syn())
        .loses(kind.talk(port(number), 0).forward_key());
    let case = kind
        .taken(case, port(number), backend, &client.clone().ack(ISN + 1))
        .then_flows(0, 15);
    let data = client
        .clone()
        .ack(ISN + 1)
        .payload(b"GET / HTTP/1.1\r\n\r\n");
    kind.taken(case, port(number), backend, &data)
        .then_flows(1, 14)
        .then_turns(16)
}

fn not_late(kind: Kind<'_>, mode: u8) -> Case {
    let says = format!(
        "over {} by {} not every packet may be the rest of a handshake that was displaced",
        kind.cast.family,
        mode_name(mode)
    );
    let client = kind.asks(port(30));
    let forged = if kind.cast.family == "IPv4" {
        "127.0.0.1:51000"
    } else {
        "[ff02::1]:51000"
    };
    let mut case = churning(says, kind, mode);
    for frame in [
        client.clone().rst(),
        client.clone().flags(RST | ACK),
        client.clone().syn_ack(1),
    ] {
        case = case.leaves_alone(&WAN, &frame, Verdict::NoFlow);
    }
    let nothing = client.clone().flags(0);
    let from_nobody = client.clone().ack(1).between(forged, kind.cast.service);
    case = case
        .leaves_alone(&WAN, &nothing, Verdict::BadFlags)
        .leaves_alone(&WAN, &from_nobody, Verdict::BadSource)
        .then_flows(0, 15);
    // The last one may be.
    let fin = client.flags(FIN | ACK);
    kind.taken(case, port(30), by_hash_number(kind, 30), &fin)
        .then_flows(0, 15)
}

fn forgotten(cast: &Cast, mode: u8) -> Case {
    let kind = Kind::new(cast, TCP, mode);
    let says = format!(
        "over {} by {} an acknowledgement without a connection, where no handshake was displaced, is nobody's",
        cast.family,
        mode_name(mode)
    );
    let client = kind.asks(51_000);
    let case = Case::new(says, cast.world(TCP, mode));
    kind.taken(case, 51_000, 0, &client.clone().syn())
        .loses(kind.talk(51_000, 0).forward_key())
        .leaves_alone(&WAN, &client.ack(ISN + 1), Verdict::NoFlow)
        .then_flows(0, 0)
        .then_live([0; 3])
}

fn never_late() -> Case {
    let kind = Kind::new(&V4, TCP, forward::NAT);
    let says = "by nat a handshake that was displaced is begun anew, and goes on by turns";
    let client = kind.asks(port(30));
    let case = churning(says.to_owned(), kind, forward::NAT);
    let case = kind.taken(case, port(16), talk_to(16), &kind.asks(port(16)).syn());
    case.leaves_alone(&WAN, &client.ack(ISN + 1), Verdict::NoFlow)
        .then_flows(0, 30)
        .then_turns(17)
}

fn late_by_source(cast: &Cast) -> Case {
    let kind = Kind::new(cast, TCP, forward::DSR);
    let says = format!(
        "over {} by dsr a policy by the client's address stays that while handshakes are displaced",
        cast.family
    );
    // All from one client, so all to one backend; which one is told elsewhere.
    let [one, ..] = cast.backends;
    let policy = Policy {
        pick: pick::SOURCE_HASH,
        affinity_ticks: 0,
    };
    let world = World::empty()
        .service(TCP, forward::DSR, cast.service, &[])
        .policy(policy, &[0])
        .backend(one)
        .with(SMALL);
    let mut case = Case::new(says, world);
    for number in 0..20 {
        let frame = kind.asks(port(number)).syn();
        case = kind.taken(case, port(number), 0, &frame);
    }
    case = case.loses(kind.talk(port(19), 0).forward_key());
    kind.taken(case, port(19), 0, &kind.asks(port(19)).flags(ACK))
        .then_displaced([5, 0, 0])
        .then_turns(0)
}

fn no_answers() -> Case {
    let world = V4.world(TCP, forward::NAT).with(NARROW);
    let kind = Kind::new(&V4, TCP, forward::NAT);
    let case = Case::new(
        "where no word is left for the answers no connection begins, and none is lost",
        world,
    );
    let case = syns(case, kind, 0..7).then_flows(0, 14);
    case.leaves_alone(&WAN, &kind.asks(port(7)).syn(), Verdict::FlowTableFull)
        .then_flows(0, 14)
        .then_displaced([0; 3])
        .then_all_live(7)
}

/// Both at once: the place of an ended connection, and the port of a half-open
/// one.
fn port_and_place() -> Case {
    let settings = Settings {
        tag_buckets: 1,
        ..STEADY
    };
    let kind = Kind::new(&V4, TCP, forward::FULL_NAT);
    let mut case = Case::new(
        "a connection by full-nat that gives up its port gives up its place",
        V4.world(TCP, forward::FULL_NAT).with(settings),
    );
    for number in 0..usize::from(PLACES) + 5 {
        let frame = kind.asks(port(number)).syn();
        case = kind.taken(case, port(number), talk_to(number), &frame);
    }
    let last = kind.talk(port(19), 1);
    case.then_flows(0, 6)
        .then_live([1, 1, 1])
        .then_displaced([0, 0, 17])
        .backend_sends(&last, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
        .client_sends(&last, |frame| frame.ack(ISN + 1))
        .then_flows(2, 4)
}
