//! The table of connections alone, on the host: how full it gets, and what many
//! threads do to it at once.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use lb_common::abi::{Flow, FlowKey, Life, TCP, forward, tag};
use lb_common::flow::{
    ANSWERED, BACKEND_FIN, CLIENT_FIN, ESTABLISHED, RESET, ended, twin, twin_key,
};
use lb_common::{Address, Be16};
use lb_ebpf::connections::{self, Claimed, Hash, Search};
use lb_ebpf::{Memory as _, Shape};
use lb_userspace::dataplane::Sizes;
use tests::memory::SharedMemory;

const BACKENDS: u32 = 10;

fn shape(flows: u32, seed: u32) -> Shape {
    let sizes = Sizes {
        services: 1,
        backends: BACKENDS,
        flows,
    };
    Shape {
        tag_buckets: sizes.tag_buckets(),
        answer_buckets: sizes.answer_buckets(),
        seed,
    }
}

/// A connection of a random client by nat to one of the backends.
fn connection(random: &mut fastrand::Rng) -> (FlowKey, Flow) {
    let key = FlowKey {
        src: Address::v4(random.u32(0x0100_0000..0xdf00_0000).to_be_bytes()),
        dst: Address::v4([203, 0, 113, 10]),
        src_port: Be16::new(random.u16(1024..)),
        dst_port: Be16::new(443),
        protocol: u32::from(TCP),
    };
    let backend = random.u32(0..BACKENDS);
    (key, by_nat(&key, backend))
}

fn by_nat(key: &FlowKey, backend: u32) -> Flow {
    Flow {
        src: key.src,
        dst: Address::v4([10, 0, 1, backend as u8]),
        src_port: key.src_port,
        dst_port: Be16::new(8443),
        backend,
        kind: u16::from(forward::NAT),
        life: Life {
            state: ANSWERED | ESTABLISHED,
            ..Life::default()
        },
        ..Flow::default()
    }
}

/// Begins a connection as the data path does; its place, if there was one.
fn begin(memory: &SharedMemory, key: &FlowKey, flow: &Flow, stamp: u32) -> Option<u32> {
    let mut search = Search::default();
    let hash = Hash::of(key, memory.shape().seed);
    if !connections::take(memory, hash, stamp, &mut search) {
        return None;
    }
    let place = search.seat.place;
    connections::write(memory, &search.seat, key, flow);
    if connections::claim(memory, &twin_key(key, flow), place, flow) != Claimed::Yes {
        connections::abandon(memory, place);
        return None;
    }
    connections::publish(memory, place, stamp, flow.life.state);
    Some(place)
}

/// What came of filling a table to the number that it was made for.
#[derive(Default)]
struct Filled {
    begun: Vec<(FlowKey, Flow)>,
    refused: usize,
    in_second: usize,
}

fn fill(memory: &SharedMemory, flows: u32, random: &mut fastrand::Rng) -> Filled {
    let shape = memory.shape();
    let mut filled = Filled::default();
    for _ in 0..flows {
        let (key, flow) = connection(random);
        match begin(memory, &key, &flow, 0) {
            Some(place) => {
                let first = Hash::of(&key, shape.seed).first(shape.tag_buckets);
                filled.in_second += usize::from(place / tag::WORDS != first);
                filled.begun.push((key, flow));
            }
            None => filled.refused += 1,
        }
    }
    filled
}

/// Everybody is found, both ways, and can be taken away; then nothing is left.
fn empty(memory: &SharedMemory, filled: &Filled) {
    assert_eq!(memory.listed(), filled.begun.len());
    let live: u64 = (0..BACKENDS).map(|backend| memory.live(backend)).sum();
    assert_eq!(live, filled.begun.len() as u64);
    for (key, flow) in &filled.begun {
        let (mut there, mut back) = (Flow::default(), Flow::default());
        assert!(connections::of_client(memory, key, &mut there), "{key:?}");
        assert!(connections::of_backend(
            memory,
            &twin_key(key, flow),
            &mut back
        ));
        assert_eq!(there.place, back.place);
        there.spread = 0;
        assert_eq!(back, twin(key, &there));
        assert!(connections::remove(memory, there.place, there.life.version));
        assert!(!connections::of_client(memory, key, &mut there));
    }
    let places = (memory.shape().tag_buckets * tag::WAYS) as usize;
    assert_eq!(memory.classes()[tag::FREE as usize], places);
    assert_eq!(memory.listed(), 0);
    assert_eq!(memory.elsewhere(), [0, 0]);
    assert!((0..BACKENDS).all(|backend| memory.live(backend) == 0));
}

#[test]
fn a_table_takes_as_many_connections_as_it_was_made_for() {
    // The smaller the table, the more is chance: many of them.
    for (flows, tables) in [(1_024, 300), (16_384, 20), (131_072, 2)] {
        let (mut refused, mut in_second) = (0, 0);
        for seed in 0..tables {
            let memory = SharedMemory::new(shape(flows, seed), BACKENDS);
            let mut random = fastrand::Rng::with_seed(u64::from(seed));
            let filled = fill(&memory, flows, &mut random);
            refused += filled.refused;
            in_second += filled.in_second;
            empty(&memory, &filled);
        }
        let all = (flows * tables) as usize;
        println!("{tables} tables of {flows}: {refused} refused, {in_second} in the second bucket");
        assert_eq!(refused, 0);
        assert!(in_second < all / 20, "{in_second} of {all}");
    }
}

#[test]
fn a_table_of_a_million_takes_a_million() {
    const MILLION: u32 = 1_000_000;
    let memory = SharedMemory::new(shape(MILLION, 0x5eed), BACKENDS);
    let filled = fill(&memory, MILLION, &mut fastrand::Rng::with_seed(1));
    println!(
        "{MILLION}: {} refused, {} in the second bucket",
        filled.refused, filled.in_second
    );
    assert_eq!(filled.refused, 0);
    assert!(filled.in_second < MILLION as usize / 16);
    empty(&memory, &filled);
}

#[test]
fn a_table_goes_on_taking_beyond_what_it_was_made_for() {
    const FLOWS: u32 = 131_072;
    let memory = SharedMemory::new(shape(FLOWS, 7), BACKENDS);
    let mut random = fastrand::Rng::with_seed(7);
    let mut filled = fill(&memory, FLOWS, &mut random);
    let before = filled.begun.len();
    // A quarter more, of half as many places again.
    let more = fill(&memory, FLOWS / 4, &mut random);
    println!(
        "{before} and {} more: {} refused, {} in the second bucket",
        more.begun.len(),
        more.refused,
        more.in_second
    );
    assert!(more.refused * 1_000 < FLOWS as usize, "{}", more.refused);
    filled.begun.extend(more.begun);
    empty(&memory, &filled);
}

/// How many threads there are, and how often each does something.
const THREADS: u32 = 4;
const ROUNDS: u32 = 200_000;

/// Clients and ports are few, so that they meet.
const CLIENTS: u16 = 96;
const PORTS: u16 = 12;
const FEW_BACKENDS: u32 = 3;

/// A table in which there is never enough room.
const TIGHT: Shape = Shape {
    tag_buckets: 2,
    answer_buckets: 4,
    seed: 3,
};

/// A client of this thread alone: one after the other the packets of one
/// connection come to one CPU.
fn own_client(thread: u32, number: u16) -> FlowKey {
    FlowKey {
        src: Address::v4([198, 51, 100, thread as u8]),
        dst: Address::v4([203, 0, 113, 10]),
        src_port: Be16::new(50_000 + number),
        dst_port: Be16::new(443),
        protocol: u32::from(TCP),
    }
}

fn by_full_nat(key: &FlowKey, backend: u32, port: u16) -> Flow {
    Flow {
        src: key.dst,
        src_port: Be16::new(40_000 + port),
        kind: u16::from(forward::FULL_NAT),
        life: Life::default(),
        ..by_nat(key, backend)
    }
}

/// What a thread has seen go wrong.
#[derive(Debug, Default, PartialEq, Eq)]
struct Faults {
    /// An established connection was gone, though nobody took it away.
    displaced: usize,
    /// A connection was found in a state that it was not in.
    other_state: usize,
}

/// Begins, advances and takes away connections of clients of its own.
fn busy(memory: &SharedMemory, thread: u32) -> (Faults, usize) {
    let mut random = fastrand::Rng::with_seed(u64::from(thread));
    let mut faults = Faults::default();
    let mut established = BTreeSet::new();
    let mut begun = 0;
    for round in 0..ROUNDS {
        let number = random.u16(0..CLIENTS);
        let key = own_client(thread, number);
        let stamp = round >> 8;
        let mut flow = Flow::default();
        let known = connections::of_client(memory, &key, &mut flow);
        if !known {
            faults.displaced += usize::from(established.remove(&number));
            let (backend, port) = (random.u32(0..FEW_BACKENDS), random.u16(0..PORTS));
            begun += usize::from(
                begin(memory, &key, &by_full_nat(&key, backend, port), stamp).is_some(),
            );
            continue;
        }
        let should_be = established.contains(&number);
        faults.other_state += usize::from(should_be != (flow.life.state & ESTABLISHED != 0));
        // Few stay, or nothing would move.
        match random.u8(0..10) {
            0..3 if established.len() < 5 && !ended(flow.life.state) => {
                connections::advance(memory, &flow, 0, ANSWERED | ESTABLISHED, stamp);
                if connections::of_client(memory, &key, &mut flow) {
                    established.insert(number);
                }
            }
            // For that moment it has ended, and may give way.
            3 if !should_be => {
                connections::advance(memory, &flow, 0, RESET, stamp);
                connections::advance(memory, &flow, RESET, 0, stamp);
            }
            4 | 5 if should_be => {
                established.remove(&number);
                connections::advance(memory, &flow, 0, CLIENT_FIN, stamp);
                connections::advance(memory, &flow, ESTABLISHED, BACKEND_FIN, stamp);
            }
            6..8 => {
                established.remove(&number);
                connections::remove(memory, flow.place, flow.life.version);
            }
            _ => connections::retag(memory, flow.place, stamp),
        }
    }
    (faults, begun)
}

/// Takes away what it finds, like the collector, if it has ended for good: a RST
/// may be followed by more.
fn collect(memory: &SharedMemory) {
    for _ in 0..ROUNDS / 50 {
        for place in memory.places() {
            if let Some((_, flow)) = connections::at(memory, place)
                && flow.life.state & BACKEND_FIN != 0
            {
                connections::remove(memory, place, flow.life.version);
            }
        }
    }
}

#[test]
fn threads_that_work_on_one_table_leave_it_whole() {
    let memory = SharedMemory::new(TIGHT, FEW_BACKENDS);
    let begun: usize = thread::scope(|scope| {
        let memory = &memory;
        let busy: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || busy(memory, thread)))
            .collect();
        let collector = scope.spawn(move || collect(memory));
        let begun = busy.into_iter().map(|thread| {
            let (faults, begun) = thread.join().expect("no thread panics");
            assert_eq!(faults, Faults::default());
            begun
        });
        let begun = begun.sum();
        collector.join().expect("no thread panics");
        begun
    });
    println!("{begun} connections begun in {THREADS} threads of {ROUNDS} rounds");
    assert!(begun > ROUNDS as usize / 10);
    whole(&memory);
}

fn whole(memory: &SharedMemory) {
    let classes = memory.classes();
    assert_eq!(classes[tag::BUSY as usize], 0, "no tag was left busy");
    let all: Vec<_> = (memory.places())
        .filter_map(|place| connections::at(memory, place))
        .collect();
    let taken: usize = classes.iter().sum::<usize>() - classes[tag::FREE as usize];
    assert_eq!(all.len(), taken, "behind every tag there is a connection");
    let mut live = BTreeMap::new();
    let mut answers = BTreeSet::new();
    for (key, flow) in &all {
        let back = twin_key(key, flow);
        assert!(answers.insert(back), "two connections have {back:?}");
        let mut found = Flow::default();
        assert!(connections::of_backend(memory, &back, &mut found));
        assert_eq!(found.place, flow.place);
        if !ended(flow.life.state) {
            *live.entry(flow.backend).or_insert(0) += 1;
        }
    }
    assert_eq!(
        memory.listed(),
        all.len(),
        "no answers without a connection"
    );
    for backend in 0..FEW_BACKENDS {
        let counted = memory.live(backend);
        assert_eq!(counted, live.get(&backend).copied().unwrap_or(0));
    }
}
