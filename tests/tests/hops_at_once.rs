//! The table of next hops alone (`lb_ebpf::hops`), on the host, and what many threads
//! do to it at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use lb_common::abi::{
    Affinity, AffinityKey, AnswerBucket, Backend, Connection, Endpoint, Fragment, FragmentKey,
    NextHop, Party, Policy, Settings, TCP, Tagged, hop,
};
use lb_common::{Address, Be16, Verdict, Word};
use lb_ebpf::steer::Attribution;
use lb_ebpf::{
    Displaced, Hop, LinkAddress, Memory, Room, RouteQuery, Shape, Tables, connections, hops,
};
use tests::host::room;
use tests::memory::SharedMemory;

/// How many threads there are, how often each looks for a way, and how many flows
/// each has.
const THREADS: u32 = 4;
const ROUNDS: u32 = 400_000;
const FLOWS: u32 = 24;

/// So many next hops, for which there are so few entries that they are written anew
/// all the time.
const WAYS: u32 = 96;
const ENTRIES: u32 = 32;

/// A change comes after so many looks of each thread.
const PERIOD: u32 = 500;

/// The memory of flows and next hops; the rest is not asked for.
struct Few {
    memory: SharedMemory,
    hops: Vec<NextHop>,
    epoch: AtomicU32,
}

impl Few {
    fn new() -> Self {
        let shape = Shape {
            tag_buckets: THREADS * FLOWS / 16,
            answer_buckets: 1,
            seed: 1,
        };
        Self {
            memory: SharedMemory::new(shape, 1),
            hops: (0..ENTRIES).map(|_| NextHop::default()).collect(),
            epoch: AtomicU32::new(1),
        }
    }
}

impl Memory for Few {
    fn shape(&self) -> Shape {
        self.memory.shape()
    }

    fn connection(&self, place: u32) -> Option<&Connection> {
        self.memory.connection(place)
    }

    fn answers(&self, bucket: u32) -> Option<&AnswerBucket> {
        self.memory.answers(bucket)
    }

    fn exchange(&self, word: &Word<u32>, old: u32, new: u32) -> bool {
        self.memory.exchange(word, old, new)
    }

    fn exchange_wide(&self, word: &Word<u64>, old: u64, new: u64) -> bool {
        self.memory.exchange_wide(word, old, new)
    }

    fn add(&self, word: &Word<u32>, by: i32) {
        self.memory.add(word, by);
    }

    fn add_wide(&self, word: &Word<u64>, by: i64) {
        self.memory.add_wide(word, by);
    }

    fn swap_wide(&self, word: &Word<u64>, new: u64) -> u64 {
        self.memory.swap_wide(word, new)
    }

    fn count_live(&self, backend: u32, by: i32) {
        self.memory.count_live(backend, by);
    }
}

macro_rules! not_asked {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $answer:ty)?;)+) => {
        impl Tables for Few {
            fn epoch(&self) -> u32 {
                self.epoch.load(Ordering::SeqCst)
            }

            /// Several numbers are of one entry: its version tells whose it is.
            fn hop(&self, number: u32) -> Option<&NextHop> {
                let entry = (number % ENTRIES) as usize;
                (number < hop::PLACES).then(|| &self.hops[entry])
            }

            $(fn $name(&self, $($argument: $kind),*) $(-> $answer)? {
                let _ = ($($argument,)*);
                unreachable!("next hops do not depend on it")
            })+
        }
    };
}

not_asked! {
    fn settings() -> Settings;
    fn now() -> u32;
    fn may_act() -> bool;
    fn party(endpoint: &Endpoint) -> Option<Party>;
    fn may_have(first: u32, address: &Address, port: Be16) -> bool;
    fn policy(service: u32) -> Policy;
    fn slots(service: u32) -> u32;
    fn slot(service: u32, place: u32) -> Option<u64>;
    fn hashed_slot(service: u32, hash: u32) -> Option<u64>;
    fn next_turn(service: u32) -> u64;
    fn next_slot(service: u32) -> Option<u64>;
    fn live(backend: u32) -> u32;
    fn affinity(client: &AffinityKey) -> Option<Affinity>;
    fn keep_affinity(client: &AffinityKey, affinity: &Affinity);
    fn churned() -> u32;
    fn churn();
    fn displace(what: Displaced);
    fn backend(number: u32) -> Option<Backend>;
    fn fragment(key: &FragmentKey) -> Option<Fragment>;
    fn keep_fragment(key: &FragmentKey, fragment: &Fragment);
    fn fresh_id(place: u32) -> u32;
    fn interface(frames: &Tagged) -> Option<u32>;
    fn exit(interface: u32) -> Option<Tagged>;
    fn next_hop(query: &mut RouteQuery, hop: &mut Hop) -> Result<(), Verdict>;
    fn redirect(egress: u32) -> bool;
    fn may_tell(why: Verdict) -> bool;
    fn count(verdict: Verdict, whose: &Attribution, bytes: u64);
}

/// What the routing table says of a flow in an epoch: one of [`WAYS`].
const fn answer(flow: u32, epoch: u32) -> u32 {
    flow.wrapping_mul(7).wrapping_add(epoch.wrapping_mul(31)) % WAYS
}

/// A next hop of which every word says which one it is.
fn next_hop(way: u32) -> (Hop, u32, u32) {
    let byte = way as u8;
    let hop = Hop {
        egress: 1000 + way,
        router: way & 1,
        src_link: LinkAddress::new([2, 0, byte, 0, 0, 1]),
        dst_link: LinkAddress::new([2, 0, byte, 0, 0, 2]),
    };
    (hop, 2000 + way, 3000 + way)
}

/// How often a thread knew its way, and how often it noted one.
#[derive(Debug, Default)]
struct Tally {
    known: u32,
    noted: u32,
}

/// Looks for the way of one flow after another, and notes what it did not know.
fn look(tables: &Few, thread: u32) -> Tally {
    let mut random = fastrand::Rng::with_seed(thread.into());
    let mut room: Box<Room> = room();
    let mut tally = Tally::default();
    room.parsed.key.protocol = TCP.into();
    for round in 0..ROUNDS {
        if round % PERIOD == 0 {
            tables.epoch.fetch_add(1, Ordering::SeqCst);
        }
        // Any flow may be any thread's.
        let flow = random.u32(0..THREADS * FLOWS);
        let entry = tables.connection(flow).expect("there are as many");
        room.flow.place = flow;
        room.flow.life.version = 2 * (1 + flow);
        room.flow.hop = entry.hops[0].load();
        room.known = 0;
        hops::recall(tables, &mut room);
        let (hop, ingress, mtu) = next_hop(answer(flow, room.epoch));
        if room.known == 0 {
            room.way.hop = hop;
            room.query.ingress = ingress;
            room.query.mtu = mtu;
            tally.noted += hops::remember(tables, &mut room);
            continue;
        }
        tally.known += 1;
        let way = &room.way;
        assert_eq!(
            (way.hop.egress, way.hop.router, way.ingress, way.mtu),
            (hop.egress, hop.router, ingress, mtu)
        );
        assert_eq!(way.hop.src_link.word(), hop.src_link.word());
        assert_eq!(way.hop.dst_link.word(), hop.dst_link.word());
    }
    tally
}

#[test]
fn threads_that_note_next_hops_never_get_a_mixture_nor_one_of_another_epoch() {
    let tables = Few::new();
    assert!(THREADS * FLOWS <= connections::places(&tables));
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let tables = &tables;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| scope.spawn(move || look(tables, thread)))
            .collect();
        let tallies = threads.into_iter().map(thread::ScopedJoinHandle::join);
        let tallies: Vec<_> = tallies.collect();
        tallies
            .into_iter()
            .map(|tally| tally.expect("every way is the right one"))
            .collect()
    });
    println!("{tallies:?}, {} epochs", tables.epoch.into_inner());
    assert!(
        tallies.iter().all(|tally| tally.known > 1000),
        "{tallies:?}"
    );
    assert!(
        tallies.iter().all(|tally| tally.noted > 1000),
        "{tallies:?}"
    );
    let whole = |entry: &NextHop| entry.version.load() & 1 == 0;
    assert!(
        tables.hops.iter().all(whole),
        "no entry is left half written"
    );
}
