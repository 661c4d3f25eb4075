//! The reader of the sync channel's messages against a bounded number of them, good ones
//! and damaged ones: what the fuzzer does for as long as it is let (`cargo xtask fuzz`),
//! in every run of the tests, with the same properties.
//!
//! Everything follows from a seed, which is printed: `LB_TEST_SEED=N` takes another
//! one, `LB_TEST_MESSAGES=N` takes more or fewer.

use fastrand::Rng;
use lb_common::abi::forward;
use lb_userspace::sync::message;
use message::{Ends, Flows, Frame, Hello, Host, News, Record, Reply, Role, Status};

mod hostile;

#[path = "../../fuzz/properties/sync.rs"]
mod sync;

const SEED: u64 = 20_261_126;
const MESSAGES: u64 = 200_000;

#[test]
fn whatever_comes_from_the_other_node_is_taken_for_what_it_is() {
    let these = ("LB_TEST_MESSAGES", MESSAGES, "messages");
    hostile::bounded(SEED, these, good, sync::holds);
}

/// What the properties take for a good message: a byte that says which it is, then the
/// message.
fn good(rng: &mut Rng) -> Vec<u8> {
    let which = rng.u8(0..3);
    let message = match which {
        0 => message::write_hello(&Hello {
            node: "lb-é".into(),
            version: "0.1.0".into(),
            abi: rng.u32(..),
            boot: rng.u64(..),
        }),
        1 => message::write_frame(&Frame {
            sequence: rng.u64(..) >> rng.u8(0..64),
            news: news(rng),
        }),
        _ => message::write_reply(if rng.bool() {
            Reply::Again
        } else {
            Reply::Ack(rng.u64(..))
        }),
    };
    [vec![which], message].concat()
}

fn news(rng: &mut Rng) -> News {
    match rng.u8(0..5) {
        0 => News::Status(Status {
            role: Role::Active,
            priority: rng.u8(..),
            configuration: rng.u64(..),
            flows: rng.u64(..),
            healthy: rng.u32(0..9),
            services: rng.u32(4..9),
            behind: rng.u64(..),
        }),
        1 => News::SnapshotBegin {
            places: rng.u32(..),
            estimate: rng.u64(..),
        },
        2 => News::SnapshotEnd,
        _ => News::Flows(Flows {
            gone: (0..rng.usize(0..4)).map(|_| rng.u32(..)).collect(),
            there: (0..rng.usize(0..4)).map(|_| record(rng)).collect(),
        }),
    }
}

fn record(rng: &mut Rng) -> Record {
    let forward = rng.u8(forward::FULL_NAT..=forward::TUNNEL);
    let octets = |rng: &mut Rng| rng.u128(..).to_be_bytes();
    Record {
        place: rng.u32(..),
        kind: Record::kind(forward, rng.bool()),
        state: [1, 17][rng.usize(0..2)] | if forward::one_way(forward) { 32 } else { 0 },
        ends: if rng.bool() {
            Ends::V4 {
                client: rng.u32(..).to_be_bytes(),
                service: rng.u32(..).to_be_bytes(),
            }
        } else {
            Ends::V6 {
                client: octets(rng),
                service: octets(rng),
            }
        },
        backend: if rng.bool() {
            Host::V4(rng.u32(..).to_be_bytes())
        } else {
            Host::V6(octets(rng))
        },
        proof: rng.u32(..),
        ports: rng
            .u64(..)
            .to_be_bytes()
            .as_chunks()
            .0
            .try_into()
            .expect("it has four"),
    }
}
