//! What happens because time passes, or because the controller writes: on the
//! host alone, where both can be made to.

use lb_common::abi::{Policy, Settings, TCP, backend, forward, pick};
use lb_common::{Action, Verdict};
use lb_ebpf::schedule::flow_hash;
use tests::frame::{Frame, key, tcp};
use tests::host::{HEADROOM, HostPacket, HostTables, room};
use tests::network::WAN;
use tests::world::{STEADY, State, World};

const SERVICE: &str = "203.0.113.10:80";
const BACKENDS: [&str; 3] = ["10.0.1.11:8080", "10.0.1.12:8080", "10.0.1.13:8080"];

/// Ticks of four milliseconds, and a table of one bucket.
const HERTZ: u32 = 250;
const STAMP: u32 = 1 << 6;
const TICKING: Settings = Settings {
    refresh_ticks: HERTZ,
    idle_ticks: 600 * HERTZ,
    stamp_shift: 6,
    tag_buckets: 1,
    ..STEADY
};

fn world(mode: u8) -> World {
    BACKENDS.into_iter().fold(
        World::empty()
            .with(TICKING)
            .service(TCP, mode, SERVICE, &[0, 1, 2]),
        World::backend,
    )
}

fn client(number: u32) -> String {
    format!("198.51.100.7:{}", 50_000 + number)
}

fn arrive(tables: &HostTables, frame: &Frame) -> Verdict {
    let mut packet = HostPacket {
        bytes: frame.bytes(),
        ingress: WAN.index,
        headroom: HEADROOM,
    };
    lb_ebpf::process(&mut packet, tables, &mut room())
}

fn syn(tables: &HostTables, number: u32) {
    let verdict = arrive(tables, &tcp(&client(number), SERVICE).syn());
    assert_eq!(verdict.action(), Action::Redirect, "{verdict:?}");
}

/// The backend of a client's connection, if there is one.
fn backend_of(state: &State, number: u32) -> Option<u32> {
    let key = key(TCP, &client(number), SERVICE);
    let flow = (state.unfinished.get(&key)).or_else(|| state.established.get(&key));
    flow.map(|flow| flow.backend)
}

fn known(state: &State, numbers: impl IntoIterator<Item = u32>) -> Vec<u32> {
    (numbers.into_iter())
        .filter(|number| backend_of(state, *number).is_some())
        .collect()
}

#[test]
fn the_oldest_handshake_gives_way_first() {
    let tables = HostTables::new(&world(forward::NAT));
    // In any order of numbers, one every other stamp but one.
    let order: Vec<u32> = (0..15).map(|n| n * 7 % 15).collect();
    for (turn, number) in (0..).zip(&order) {
        tables.set_now(STAMP * turn);
        syn(&tables, *number);
    }
    for late in 0..12 {
        tables.set_now(STAMP * (15 + late));
        syn(&tables, 100 + late);
        let left = known(&tables.state(), order.iter().copied());
        let mut expected = order[late as usize + 1..].to_vec();
        expected.sort_unstable();
        let mut left_sorted = left;
        left_sorted.sort_unstable();
        assert_eq!(left_sorted, expected, "after {late}");
    }
    assert_eq!(tables.state().displaced, [12, 0, 0]);
}

#[test]
fn of_those_that_have_ended_the_one_that_ended_first_gives_way_first() {
    let tables = HostTables::new(&world(forward::NAT));
    for number in 0..15 {
        tables.set_now(STAMP * number);
        syn(&tables, number);
    }
    for (turn, number) in (0..).zip([9, 3, 12]) {
        tables.set_now(STAMP * (16 + turn));
        arrive(&tables, &tcp(&client(number), SERVICE).rst());
    }
    for (late, gone) in (0..).zip([9, 3, 12, 0]) {
        tables.set_now(STAMP * (20 + late));
        syn(&tables, 100 + late);
        assert_eq!(backend_of(&tables.state(), gone), None, "{gone}");
    }
    assert_eq!(tables.state().displaced, [1, 3, 0]);
}

/// A table in which a young handshake was displaced at this moment.
fn churned(at: u32) -> HostTables {
    let tables = HostTables::new(&world(forward::DSR));
    tables.set_now(at);
    (0..16).for_each(|number| syn(&tables, number));
    tables
}

fn by_hash(number: u32) -> u32 {
    flow_hash(&key(TCP, &client(number), SERVICE)) % 3
}

#[test]
fn connections_go_by_hash_from_the_tick_on_in_which_a_handshake_is_displaced() {
    for at in [0, 1, 1_000, 1_001, u32::MAX - 1, u32::MAX] {
        for later in [0, 1, 4 * HERTZ - 2] {
            let tables = churned(at);
            tables.set_now(at.wrapping_add(later));
            for number in 20..30 {
                syn(&tables, number);
                let went = backend_of(&tables.state(), number);
                assert_eq!(went, Some(by_hash(number)), "{at} + {later}");
            }
            assert_eq!(tables.state().turns[&0], 16);
        }
        let tables = churned(at);
        tables.set_now(at.wrapping_add(5 * HERTZ));
        syn(&tables, 20);
        assert_eq!(tables.state().turns[&0], 17, "{at}: calm again");
    }
}

#[test]
fn old_handshakes_that_are_displaced_were_nobodys() {
    let tables = HostTables::new(&world(forward::DSR));
    (0..15).for_each(|number| syn(&tables, number));
    tables.set_now(4 * HERTZ);
    syn(&tables, 15);
    syn(&tables, 16);
    let state = tables.state();
    assert_eq!(state.displaced, [2, 0, 0]);
    assert_eq!(state.turns[&0], 17);
}

#[test]
fn a_late_acknowledgement_goes_by_hash_for_as_long_as_it_may_be_one() {
    for number in 20..30 {
        let tables = churned(1_000);
        // By its stamp, which counts to eight seconds, the one that makes room now
        // is not young.
        tables.set_now(1_000 + 61 * HERTZ);
        let ack = tcp(&client(number), SERVICE).ack(1);
        assert_eq!(arrive(&tables, &ack), Verdict::ForwardRedirect);
        let state = tables.state();
        assert_eq!(backend_of(&state, number), Some(by_hash(number)));
        assert_eq!(state.turns[&0], 16);
        // What begins then is of calm times.
        syn(&tables, 99);
        assert_eq!(tables.state().turns[&0], 17);
    }
    let tables = churned(1_000);
    tables.set_now(1_000 + 65 * HERTZ);
    let ack = tcp(&client(20), SERVICE).ack(1);
    assert_eq!(arrive(&tables, &ack), Verdict::NoFlow);
}

#[test]
fn affinity_lasts_from_the_last_connection_on() {
    let policy = Policy {
        pick: pick::TURN,
        affinity_ticks: 10 * HERTZ,
    };
    let tables = HostTables::new(&world(forward::NAT).policy(policy, &[0, 1, 2]));
    for (number, at, backend) in [(0, 0, 0), (1, 9, 0), (2, 18, 0), (3, 28, 1), (4, 37, 1)] {
        tables.set_now(at * HERTZ);
        syn(&tables, number);
        assert_eq!(backend_of(&tables.state(), number), Some(backend), "{at} s");
    }
}

#[test]
fn a_flow_that_is_to_move_stays_while_there_is_no_backend_to_move_to() {
    let mut moving = world(forward::NAT);
    moving.backends[0].flags |= backend::REHASH;
    let mut tables = HostTables::new(&moving);
    syn(&tables, 0);
    tables.set_slots(0, &[]);
    let data = tcp(&client(0), SERVICE).ack(1).payload(b"GET");
    assert_eq!(arrive(&tables, &data), Verdict::NoBackend);
    let state = tables.state();
    assert_eq!(backend_of(&state, 0), Some(0));
    assert_eq!(state.live[&0], 1);
    assert!(state.drops.keys().all(|key| key.service == 0));
    // As soon as there is one, in the middle of the connection.
    tables.set_slots(0, &[2]);
    assert_eq!(arrive(&tables, &data), Verdict::ForwardRedirect);
    assert_eq!(backend_of(&tables.state(), 0), Some(2));
}
