//! Conversations as they come, by a seed: a few clients and backends send what
//! they like in any order, and entries are lost. Host and kernel must go the
//! same way; and where no entry is lost, every connection has both its halves.
//!
//! The conversations follow from a seed, which is printed; `LB_TEST_SEED=N`
//! takes another one. Their number is fixed: nothing here is measured by time.

use std::collections::BTreeMap;
use std::env;

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use lb_common::abi::{Flow, FlowKey, Settings, TCP, UDP, forward};
use lb_common::flow::{
    ended,
    tcp_flag::{ACK, FIN, RST, SYN},
    twin, twin_key,
};
use tests::frame::{Frame, along, key};
use tests::host::Host;
use tests::kernel::{Kernel, in_namespace};
use tests::network::{LAN, WAN};
use tests::world::{STEADY, Side, State, World};

/// How many packets each world sees.
const PACKETS: usize = 4_000;

/// How many packets pass between two looks at the tables.
const LOOK: usize = 8;

const DEFAULT_SEED: u64 = 20_261_122;

/// Two full sequences have 3:2:1.
const SEQUENCE: [u32; 6] = [0, 1, 0, 2, 1, 0];

/// Fewer ports than clients may want, so that they run out, are waited for and
/// are taken over.
const SCARCE: Settings = Settings {
    port_count: 8,
    ..STEADY
};

const RESTLESS: Settings = Settings {
    refresh_ticks: 0,
    ..SCARCE
};

const IMPATIENT: Settings = Settings {
    idle_ticks: 0,
    ..SCARCE
};

/// A service by full-nat, one by nat, and one for UDP, of one family.
fn world(v4: bool, settings: Settings) -> World {
    let [web, shop, names] = if v4 {
        ["203.0.113.10:80", "203.0.113.11:80", "203.0.113.10:53"]
    } else {
        [
            "[2001:db8:10::10]:80",
            "[2001:db8:10::11]:80",
            "[2001:db8:10::10]:53",
        ]
    };
    let backends = if v4 {
        [
            "10.0.1.11:8080",
            "10.0.1.12:8080",
            "10.0.1.13:8080",
            "10.0.1.11:53",
        ]
    } else {
        [
            "[fd00:1::11]:8080",
            "[fd00:1::12]:8080",
            "[fd00:1::13]:8080",
            "[fd00:1::11]:53",
        ]
    };
    let [one, two, three, resolver] = backends;
    World::empty()
        .with(settings)
        .service(TCP, forward::FULL_NAT, web, &SEQUENCE)
        .backend(one)
        .backend(two)
        .backend(three)
        // The same backends, so that a client's port can be taken there.
        .service(TCP, forward::NAT, shop, &SEQUENCE)
        .service(UDP, forward::FULL_NAT, names, &[3])
        .backend(resolver)
}

#[test]
fn host_and_kernel_go_the_same_way_and_no_connection_has_half_an_entry() -> Result<()> {
    converse(false)
}

#[test]
fn host_and_kernel_go_the_same_way_when_entries_are_lost() -> Result<()> {
    converse(true)
}

fn converse(losses: bool) -> Result<()> {
    let seed = match env::var("LB_TEST_SEED") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("LB_TEST_SEED is {text:?}, not a number"))?,
        Err(_) => DEFAULT_SEED,
    };
    println!("LB_TEST_SEED={seed}");
    in_namespace(|| {
        let (mut host, mut kernel) = (Host::new(), Kernel::default());
        let mut rng = Rng::with_seed(seed);
        for settings in [SCARCE, RESTLESS, IMPATIENT] {
            for v4 in [true, false] {
                let world = world(v4, settings);
                host.begin(&world)?;
                kernel.begin(&world)?;
                let turns = talk(&mut rng, &world, losses, &mut host, &mut kernel)
                    .with_context(|| format!("with LB_TEST_SEED={seed}"))?;
                println!(
                    "IPv{}: {PACKETS} packets, {turns} turns",
                    if v4 { 4 } else { 6 }
                );
            }
        }
        Ok(())
    })
}

fn talk(
    rng: &mut Rng,
    world: &World,
    losses: bool,
    host: &mut Host,
    kernel: &mut Kernel,
) -> Result<u64> {
    let mut state = host.state()?;
    for packet in 0..PACKETS {
        let (frame, ingress) = if rng.u8(0..5) < 3 {
            (from_client(rng, world, &state), WAN.index)
        } else {
            (from_backend(rng, &state), LAN.index)
        };
        let Some(frame) = frame else { continue };
        let bytes = frame.bytes();
        let (on_host, in_kernel) = (
            host.arrive(&bytes, ingress)?,
            kernel.arrive(&bytes, ingress)?,
        );
        ensure!(
            on_host == in_kernel,
            "packet {packet}, {frame:?}: {on_host:02x?} on the host, {in_kernel:02x?} in the kernel"
        );
        state = host.state()?;
        if losses && rng.u8(0..32) == 0 {
            lose_any(rng, &state, host, kernel)?;
            state = host.state()?;
        }
        if packet % LOOK == 0 {
            let held = kernel.state()?;
            ensure!(
                state == held,
                "after packet {packet} the host holds\n{state:#?}\nand the kernel\n{held:#?}"
            );
        }
        if !losses {
            whole(&state).with_context(|| format!("after packet {packet}, {frame:?}"))?;
        }
    }
    Ok(state.turns.values().sum())
}

/// What a client may send: mostly what fits its connection.
fn from_client(rng: &mut Rng, world: &World, state: &State) -> Option<Frame> {
    let service = rng.choice(&world.services)?;
    let host = if service.listen.contains('[') {
        ["[2001:db8:100::7]", "[2001:db8:100::11]"][rng.usize(0..2)]
    } else {
        ["198.51.100.7", "198.51.100.11"][rng.usize(0..2)]
    };
    let client = format!("{host}:{}", 51_000 + rng.u16(0..12));
    let key = key(service.protocol, &client, service.listen);
    let proof = flow(state, &key).map_or(0, |flow| flow.life.proof);
    Some(segment(rng, along(&key), proof))
}

/// What a backend may send in a connection that is known.
fn from_backend(rng: &mut Rng, state: &State) -> Option<Frame> {
    let replies: Vec<&FlowKey> = [&state.established, &state.unfinished]
        .into_iter()
        .flatten()
        .filter(|(_, flow)| flow.is_reply())
        .map(|(key, _)| key)
        .collect();
    let key = rng.choice(replies)?;
    let frame = along(key);
    Some(if rng.bool() && key.protocol == u32::from(TCP) {
        frame.flags(SYN | ACK).seq(rng.u32(..))
    } else {
        segment(rng, frame, 1)
    })
}

fn segment(rng: &mut Rng, frame: Frame, acknowledged: u32) -> Frame {
    let frame = match rng.u8(0..20) {
        0..7 => frame.flags(SYN),
        7..14 => frame.ack(acknowledged),
        14..17 => frame.ack(acknowledged).with(FIN),
        17 => frame.flags(RST),
        18 => frame.ack(rng.u32(..)),
        _ => frame.flags(rng.u8(..)),
    };
    let length = rng.usize(0..4);
    frame.payload(&vec![b'x'; length])
}

fn lose_any(rng: &mut Rng, state: &State, host: &mut Host, kernel: &mut Kernel) -> Result<()> {
    let stage = [&state.established, &state.unfinished][rng.usize(0..2)];
    let forward: Vec<&FlowKey> = stage
        .iter()
        .filter(|(_, flow)| !flow.is_reply())
        .map(|(key, _)| key)
        .collect();
    let Some(key) = rng.choice(forward) else {
        return Ok(());
    };
    host.lose(key)?;
    kernel.lose(key)
}

fn flow<'a>(state: &'a State, key: &FlowKey) -> Option<&'a Flow> {
    state
        .established
        .get(key)
        .or_else(|| state.unfinished.get(key))
}

/// Every direction leads back to where it came from, a client has one connection
/// to a service, and the counts of live ones are true.
fn whole(state: &State) -> Result<()> {
    let both = (state.established.keys()).find(|key| state.unfinished.contains_key(key));
    ensure!(
        both.is_none(),
        "{both:?} is both established and unfinished"
    );
    let mut live = BTreeMap::new();
    for flows in [&state.established, &state.unfinished] {
        for (key, flow) in flows {
            let other = flows.get(&twin_key(key, flow));
            let other = other.with_context(|| format!("{key:?} has no other direction"))?;
            ensure!(
                *other == twin(key, flow),
                "{key:?} has another's other direction: {other:?}"
            );
            if !flow.is_reply() && !ended(flow.life.state) {
                *live.entry(flow.backend).or_default() += 1;
            }
        }
    }
    ensure!(
        live == state.live,
        "{live:?} live, but {:?} were counted",
        state.live
    );
    Ok(())
}
