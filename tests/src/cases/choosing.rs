//! Which backend a new connection goes to, by each way of choosing.

use lb_common::Verdict;
use lb_common::abi::{FlowKey, Policy, TCP, UDP, backend, forward, pick};
use lb_common::flow::tcp_flag::{ACK, RST};

use super::going::{Kind, MODES};
use super::{CASTS, Case, Cast, Talk, V4, mode_name};
use crate::frame::Frame;
use crate::network::{LAN, WAN};
use crate::world::World;

/// Longer than any test.
const FOREVER: u32 = u32::MAX;

/// The slots of a policy with weights.
fn weighted(slots: &[(u32, u32)]) -> Vec<u64> {
    let slot = |&(backend, weight): &(u32, u32)| u64::from(weight) << 32 | u64::from(backend);
    slots.iter().map(slot).collect()
}

fn by(pick: u32) -> Policy {
    Policy {
        pick,
        affinity_ticks: 0,
    }
}

fn sticky(pick: u32) -> Policy {
    Policy {
        pick,
        affinity_ticks: FOREVER,
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in MODES {
            cases.push(by_flow(cast, mode));
        }
        cases.extend([
            by_source(cast),
            least(cast),
            least_of_one(cast),
            weightless(cast),
            affine(cast),
            closed_to_affinity(cast),
            each_its_own(cast),
        ]);
    }
    cases.extend([pick::TURN, pick::FLOW_HASH, pick::SOURCE_HASH, pick::LEAST].map(nobody));
    cases.extend([over_many(), beyond_many(), affine_and_least(), unknown()]);
    cases
}

/// The finaliser of MurmurHash3 over each word, as it stands in memory.
fn scattered(words: impl IntoIterator<Item = u32>, seed: u32) -> u32 {
    words.into_iter().fold(seed, |hash, word| {
        let mut word = hash ^ word;
        word = (word ^ word >> 16).wrapping_mul(0x85eb_ca6b);
        word = (word ^ word >> 13).wrapping_mul(0xc2b2_ae35);
        word ^ word >> 16
    })
}

fn words(octets: [u8; 16]) -> impl Iterator<Item = u32> {
    let words = octets.as_chunks::<4>().0.to_vec();
    words.into_iter().map(u32::from_ne_bytes)
}

/// The hash of a flow: the client's address and both ports, begun with the
/// service's address folded into one word.
pub(super) fn flow_hash(key: &FlowKey) -> u32 {
    let ports = [key.src_port, key.dst_port].map(|port| u16::from_ne_bytes(port.to_wire()));
    let ports = u32::from(ports[0]) << 16 | u32::from(ports[1]);
    let seed = words(key.dst.octets()).fold(0, |all, word| all ^ word);
    scattered(words(key.src.octets()).chain([ports]), seed)
}

/// The hash of a client.
fn source_hash(key: &FlowKey) -> u32 {
    scattered(words(key.src.octets()).chain([0]), 0)
}

/// A connection by nat of this host of the clients' network.
fn talk_of(cast: &Cast, host: u16, port: u16, number: usize) -> Talk {
    let address = if cast.family == "IPv4" {
        format!("198.51.100.{host}")
    } else {
        format!("[2001:db8:100::{host:x}]")
    };
    let client = format!("{address}:{port}");
    Talk {
        source: client.clone(),
        client,
        ..cast.talk(TCP, forward::NAT, port, number)
    }
}

/// The client's SYN goes to this backend.
fn goes_to(case: Case, cast: &Cast, [host, port]: [u16; 2], number: u32) -> Case {
    case.client_sends(&talk_of(cast, host, port, number as usize), Frame::syn)
}

fn world(cast: &Cast, policy: Policy, slots: &[u64]) -> World {
    let [one, two, three] = cast.backends;
    World::empty()
        .service(TCP, forward::NAT, cast.service, &[])
        .policy(policy, slots)
        .backend(one)
        .backend(two)
        .backend(three)
}

fn by_flow(cast: &Cast, mode: u8) -> Case {
    const SLOTS: [u64; 5] = [2, 0, 1, 0, 2];
    let says = format!(
        "by the flow's hash over {} by {}: its slot, without a turn; again the same one",
        cast.family,
        mode_name(mode)
    );
    let kind = Kind::new(cast, TCP, mode);
    let [one, two, three] = cast.backends;
    let world = World::empty()
        .service(TCP, mode, cast.service, &[])
        .policy(by(pick::FLOW_HASH), &SLOTS)
        .backend(one)
        .backend(two)
        .backend(three);
    let mut case = Case::new(says, world);
    // With one port of full-nat only as many as there are backends.
    let mut begun = [0; 3];
    for port in 51_000..51_012 {
        let hash = flow_hash(&kind.talk(port, 0).forward_key());
        let number = SLOTS[hash as usize % SLOTS.len()] as usize;
        if mode == forward::FULL_NAT && begun[number] > 0 {
            continue;
        }
        begun[number] += 1;
        let client = kind.asks(port);
        case = kind.taken(case, port, number, &client.clone().syn());
        case = kind.taken(case, port, number, &client.clone().flags(RST));
        if mode != forward::FULL_NAT {
            case = kind.taken(case, port, number, &client.syn());
        }
    }
    case.then_turns(0)
}

fn by_source(cast: &Cast) -> Case {
    const SLOTS: [u64; 4] = [1, 2, 0, 2];
    let says = format!(
        "by the client's address over {}: all of its connections go to one slot",
        cast.family
    );
    let mut case = Case::new(says, world(cast, by(pick::SOURCE_HASH), &SLOTS));
    for host in 20..26 {
        let key = talk_of(cast, host, 1, 0).forward_key();
        let number = SLOTS[source_hash(&key) as usize % SLOTS.len()] as u32;
        for port in [51_000, 51_001, 7] {
            case = goes_to(case, cast, [host, port], number);
        }
    }
    case.then_turns(0)
}

fn least(cast: &Cast) -> Case {
    let says = format!(
        "the least loaded for its weight over {}; the first among equals, from a place that moves on; what ends makes room",
        cast.family
    );
    let slots = weighted(&[(0, 2), (1, 1)]);
    let mut case = Case::new(says, world(cast, by(pick::LEAST), &slots));
    for (port, number) in (51_000..).zip([0, 1, 0, 0, 0, 1]) {
        case = goes_to(case, cast, [7, port], number);
    }
    // Both of the second one's end.
    for port in [51_001, 51_005] {
        let talk = talk_of(cast, 7, port, 1);
        case = case.client_sends(&talk, |frame| frame.flags(RST | ACK));
    }
    case = case.then_live([4, 0, 0]);
    for (port, number) in (52_000..).zip([1, 1, 0]) {
        case = goes_to(case, cast, [7, port], number);
    }
    case.then_live([5, 2, 0]).then_turns(9)
}

fn least_of_one(cast: &Cast) -> Case {
    let says = format!(
        "over {} fewer backends than there are numbers: those of the sequence only",
        cast.family
    );
    let slots = weighted(&[(2, 100)]);
    let case = Case::new(says, world(cast, by(pick::LEAST), &slots));
    (51_000..51_004)
        .fold(case, |case, port| goes_to(case, cast, [7, port], 2))
        .then_live([0, 0, 4])
}

fn weightless(cast: &Cast) -> Case {
    let says = format!(
        "over {} a backend without weight is nobody's least loaded one",
        cast.family
    );
    let slots = weighted(&[(0, 0), (1, 1)]);
    let none = weighted(&[(0, 0)]);
    let [one, ..] = cast.backends;
    let world = world(cast, by(pick::LEAST), &slots)
        .service(TCP, forward::NAT, cast.second_service, &[])
        .policy(by(pick::LEAST), &none)
        .backend(one);
    let syn = Talk {
        service: cast.second_service,
        ..talk_of(cast, 7, 51_000, 0)
    };
    (51_000..51_004)
        .fold(Case::new(says, world), |case, port| {
            goes_to(case, cast, [7, port], 1)
        })
        .leaves_alone(&WAN, &syn.asks().syn(), Verdict::NoBackend)
}

/// More slots than are compared, of which the last but one is the best.
fn over_many() -> Case {
    let mut slots = weighted(&[(0, 1); 64]);
    slots[63] = weighted(&[(1, 5)])[0];
    let case = Case::new(
        "64 slots are compared for the least loaded backend",
        world(&V4, by(pick::LEAST), &slots),
    );
    goes_to(case, &V4, [7, 51_000], 1).then_turns(1)
}

fn beyond_many() -> Case {
    let mut slots = weighted(&[(0, 1); 130]);
    slots[64] = weighted(&[(1, 5)])[0];
    let case = Case::new(
        "of more than 64 slots the next 64 are compared for the least loaded backend",
        world(&V4, by(pick::LEAST), &slots),
    );
    let case = goes_to(case, &V4, [7, 51_000], 0);
    goes_to(case, &V4, [7, 51_001], 1).then_turns(2)
}

fn nobody(pick: u32) -> Case {
    let says = format!("by policy {pick} with an empty sequence there is no backend");
    Case::new(says, world(&V4, sticky(pick), &[]))
        .leaves_alone(
            &WAN,
            &talk_of(&V4, 7, 51_000, 0).asks().syn(),
            Verdict::NoBackend,
        )
        .then_flows(0, 0)
        .then("the drop is the service's", |state| {
            (state.drops.keys())
                .all(|key| (key.service, key.backend) == (0, lb_common::abi::NOBODY))
        })
}

fn unknown() -> Case {
    let mut world = world(&V4, by(pick::SOURCE_HASH), &[5]);
    world.backends.truncate(2);
    let syn = talk_of(&V4, 7, 51_000, 0).asks().syn();
    Case::new("a hash leads to a slot whose backend nobody knows", world)
        .leaves_alone(&WAN, &syn, Verdict::UnknownBackend)
        .then_flows(0, 0)
}

fn affine(cast: &Cast) -> Case {
    let says = format!(
        "with affinity over {} a client goes where it went before, another where its turn is",
        cast.family
    );
    let mut case = Case::new(says, world(cast, sticky(pick::TURN), &[0, 1, 2]));
    for (end, number) in [
        ([20, 51_000], 0),
        ([20, 51_001], 0),
        ([21, 51_000], 1),
        ([20, 51_002], 0),
        ([22, 51_000], 2),
        ([21, 51_001], 1),
        ([23, 51_000], 0),
    ] {
        case = goes_to(case, cast, end, number);
    }
    // A connection that is over makes no difference.
    let talk = talk_of(cast, 21, 51_000, 1);
    case = case.client_sends(&talk, Frame::rst);
    goes_to(case, cast, [21, 51_000], 1).then_turns(4)
}

fn closed_to_affinity(cast: &Cast) -> Case {
    let says = format!(
        "with affinity over {} a client goes elsewhere when its backend takes no more connections, and stays there",
        cast.family
    );
    // It stands in the sequence, so that the client gets there first.
    let mut world = world(cast, sticky(pick::TURN), &[0, 1, 2]);
    world.backends[0].flags &= !backend::OPEN;
    let case = goes_to(Case::new(says, world), cast, [7, 51_000], 0);
    let case = goes_to(case, cast, [7, 51_001], 1);
    goes_to(case, cast, [7, 51_002], 1).then_turns(2)
}

/// Two services, of which the second is of UDP and goes the other way round.
fn each_its_own(cast: &Cast) -> Case {
    let says = format!(
        "over {} a client has an affinity of its own to each service",
        cast.family
    );
    let [one, two, _] = cast.backends;
    let world = World::empty()
        .service(TCP, forward::NAT, cast.service, &[])
        .policy(sticky(pick::TURN), &[0, 1])
        .backend(one)
        .backend(two)
        .service(UDP, forward::NAT, cast.service, &[])
        .policy(sticky(pick::TURN), &[3, 2])
        .backend(one)
        .backend(two);
    let mut case = Case::new(says, world);
    for port in [51_000, 51_001] {
        let tcp = cast.talk(TCP, forward::NAT, port, 0);
        let udp = cast.talk(UDP, forward::NAT, port, 1);
        case = case
            .client_sends(&tcp, Frame::syn)
            .client_sends(&udp, |frame| frame.payload(b"?"));
    }
    case.then("each service has had one turn", |state| {
        state.turns.values().all(|turns| *turns == 1)
    })
}

fn affine_and_least() -> Case {
    let slots = weighted(&[(0, 1), (1, 1)]);
    let case = Case::new(
        "affinity goes before the least load",
        world(&V4, sticky(pick::LEAST), &slots),
    );
    let case = (51_000..51_003).fold(case, |case, port| goes_to(case, &V4, [7, port], 0));
    goes_to(case, &V4, [20, 51_000], 1)
        .then_live([3, 1, 0])
        .leaves_alone(
            &LAN,
            &talk_of(&V4, 7, 52_000, 1).answers().ack(1),
            Verdict::NoService,
        )
}
