//! The tables in the kernel: BPF maps and helpers.
//!
//! Capacities given here are placeholders; the loader sets them from the
//! configuration. The names are the names of the pins.

use core::cell::UnsafeCell;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, bpf_fib_lookup as Fib};
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, DevMapHash, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap,
};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_jiffies64};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{
    Affinity, AffinityKey, AnswerBucket, Backend, Connection, DropKey, Endpoint, Fragment,
    FragmentKey, NextHop, Party, Policy, Settings, Tagged, Traffic, changed, hop, lease, sequence,
    shared, sieve,
};
use lb_common::verdict::{Action, VERDICT_SLOTS, Verdict};
use lb_common::{Address, Be16, Word};
use lb_ebpf::steer::Attribution;
use lb_ebpf::{Displaced, Hop, LinkAddress, Memory, Room, RouteQuery, Shape, Tables};

#[btf_map]
static ENDPOINTS: HashMap<Endpoint, Party, 1024> = HashMap::new();
#[btf_map]
static BACKENDS: Array<Backend, 1024, MAPPED> = Array::new();
#[btf_map]
static SEQUENCES: ArrayOfMaps<Array<u64, 2, { BPF_F_INNER_MAP as usize }>, 1024> =
    ArrayOfMaps::new();
#[btf_map]
static POLICIES: Array<Policy, 1024> = Array::new();
#[btf_map]
static AFFINITIES: LruHashMap<AffinityKey, Affinity, 1024> = LruHashMap::new();
#[btf_map]
static SIEVE: Array<u64, { sieve::WORDS as usize }> = Array::new();
#[btf_map]
static CONNECTIONS: Array<Connection, 1024, MAPPED> = Array::new();
#[btf_map]
static ANSWERS: Array<AnswerBucket, 256, MAPPED> = Array::new();
#[btf_map]
static LIVE: Array<u64, 1024, MAPPED> = Array::new();
#[btf_map]
static SHARED: Array<u32, { shared::WORDS as usize }, MAPPED> = Array::new();
#[btf_map]
static LEASE: Array<u64, { lease::WORDS as usize }, MAPPED> = Array::new();
#[btf_map]
static CHANGED: Array<[u8; changed::BYTES as usize], 256, MAPPED> = Array::new();
#[btf_map]
static HOPS: Array<NextHop, { hop::PLACES as usize }> = Array::new();
#[btf_map]
static DISPLACED: PerCpuArray<u64, 4> = PerCpuArray::new();
#[btf_map]
static DEVICES: DevMapHash<64> = DevMapHash::new();
#[btf_map]
static VERDICTS: PerCpuArray<u64, { VERDICT_SLOTS as usize }> = PerCpuArray::new();
#[btf_map]
static SERVICE_TRAFFIC: PerCpuArray<Traffic, 1024> = PerCpuArray::new();
#[btf_map]
static BACKEND_TRAFFIC: PerCpuArray<Traffic, 1024> = PerCpuArray::new();
#[btf_map]
static DROPS: PerCpuHashMap<DropKey, u64, 1024> = PerCpuHashMap::new();

#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment, 1024> = LruHashMap::new();
#[btf_map]
static FRAGMENT_IDS: Array<u32, FRAGMENT_PLACES> = Array::new();
#[btf_map]
static INTERFACES: HashMap<Tagged, u32, 1024> = HashMap::new();
#[btf_map]
static EXITS: HashMap<u32, Tagged, 1024> = HashMap::new();

#[btf_map]
static ROOM: PerCpuArray<Room, 1> = PerCpuArray::new();
#[btf_map]
static TOLD: PerCpuArray<Told, 2> = PerCpuArray::new();

/// The controller maps these tables into its memory (`BPF_F_MMAPABLE`).
const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// How many counters number datagrams; a power of two.
const FRAGMENT_PLACES: usize = 1024;

/// The parameters of the routing look-up, as words.
const FIB_WORDS: usize = size_of::<Fib>() / size_of::<u64>();
type FibWords = [u64; FIB_WORDS];
const _: () = assert!(size_of::<Fib>() == size_of::<FibWords>() && align_of::<Fib>() <= 8);

/// How many ICMP errors this CPU has sent since when, for each of two reasons.
#[repr(C)]
struct Told {
    since: u32,
    count: u32,
}

/// Lends this CPU's room for one packet.
///
/// # Safety
/// At most once in a run of the program, which is not interrupted by another
/// run on the same CPU (XDP runs with soft interrupts off).
#[inline(always)]
pub(crate) unsafe fn room<'a>() -> Option<&'a mut Room> {
    let room = ROOM.get_ptr_mut(0)?;
    // SAFETY: a whole value that nobody else refers to, as the caller promises;
    // the map begins as zeros, which are a value of every field, and the
    // program writes no others.
    Some(unsafe { &mut *room })
}

/// What the loader sets. In a cell, because it does so after the compiler has gone;
/// and no volatile reads, which would read all of it for each word that is needed.
#[repr(transparent)]
struct Constants(UnsafeCell<Settings>);

// SAFETY: nobody writes it while the program runs.
unsafe impl Sync for Constants {}

/// Read-only data, so constants to the verifier.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.settings")]
static SETTINGS: Constants = Constants(UnsafeCell::new(Settings::PLAIN));

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Results of `bpf_fib_lookup` (linux/bpf.h, `BPF_FIB_LKUP_RET_*`).
mod fib {
    pub(super) const SUCCESS: i64 = 0;
    pub(super) const NOT_FORWARDED: i64 = 4;
    pub(super) const FORWARDING_DISABLED: i64 = 5;
    pub(super) const NO_NEIGHBOUR: i64 = 7;
    pub(super) const FRAGMENTATION_NEEDED: i64 = 8;
}

/// The tables as seen by one run of the program.
pub(crate) struct KernelTables<'a>(pub(crate) &'a XdpContext);

impl Memory for KernelTables<'_> {
    #[inline(always)]
    fn shape(&self) -> Shape {
        let settings = self.settings();
        Shape {
            tag_buckets: settings.tag_buckets,
            answer_buckets: settings.answer_buckets,
            seed: settings.seed,
        }
    }

    #[inline(always)]
    fn connection(&self, place: u32) -> Option<&Connection> {
        CONNECTIONS.get(place)
    }

    #[inline(always)]
    fn answers(&self, bucket: u32) -> Option<&AnswerBucket> {
        ANSWERS.get(bucket)
    }

    #[inline(always)]
    fn exchange(&self, word: &Word<u32>, old: u32, new: u32) -> bool {
        // SAFETY: a word of a map, aligned, that lives as long as the program
        // runs and is only ever written whole.
        let (_, done) = unsafe {
            atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                word.as_ptr(),
                old,
                new,
            )
        };
        done
    }

    #[inline(always)]
    fn exchange_wide(&self, word: &Word<u64>, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        let (_, done) = unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                word.as_ptr(),
                old,
                new,
            )
        };
        done
    }

    #[inline(always)]
    fn add(&self, word: &Word<u32>, by: i32) {
        // SAFETY: as above. Not relaxed: see `next_slot`.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(word.as_ptr(), by as u32) };
    }

    #[inline(always)]
    fn add_wide(&self, word: &Word<u64>, by: i64) {
        // SAFETY: as above. Not relaxed: see `next_slot`.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(word.as_ptr(), by as u64) };
    }

    #[inline(always)]
    fn swap_wide(&self, word: &Word<u64>, new: u64) -> u64 {
        // SAFETY: as above.
        unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(word.as_ptr(), new) }
    }

    #[inline(always)]
    fn count_live(&self, backend: u32, by: i32) {
        if let Some(count) = LIVE.get_ptr_mut(backend) {
            // SAFETY: aligned in the map, lives as long as the program runs, and
            // is only ever accessed atomically. Not relaxed: see `next_slot`.
            unsafe {
                atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(count, i64::from(by) as u64)
            };
        }
    }

    #[inline(always)]
    fn note_change(&self, bucket: u32) {
        if self.settings().paired == 0 {
            return;
        }
        let Some(bytes) = CHANGED.get_ptr_mut(bucket / changed::BYTES) else {
            return;
        };
        // SAFETY: within the entry.
        let byte = unsafe { bytes.cast::<u8>().add((bucket % changed::BYTES) as usize) };
        // SAFETY: a byte of a map; written without a reference, whatever it was.
        unsafe { byte.write_volatile(1) };
    }
}

impl Tables for KernelTables<'_> {
    #[inline(always)]
    fn settings(&self) -> Settings {
        // SAFETY: plain integers that nobody writes.
        unsafe { *SETTINGS.0.get() }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: takes nothing and only reads the tick counter.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn may_act(&self) -> bool {
        if self.settings().paired == 0 {
            return true;
        }
        let Some(until) = LEASE.get_ptr(lease::UNTIL) else {
            return false;
        };
        // SAFETY: a word of a map; volatile, for the controller writes it meanwhile.
        let until = unsafe { until.read_volatile() };
        // SAFETY: takes nothing and only reads the tick counter.
        let now = unsafe { bpf_jiffies64() };
        now < until
    }

    #[inline(always)]
    fn party(&self, endpoint: &Endpoint) -> Option<Party> {
        // SAFETY: copied at once; the controller replaces values whole, and
        // every combination of bytes is a value.
        unsafe { ENDPOINTS.get(endpoint) }.copied()
    }

    #[inline(always)]
    fn may_have(&self, first: u32, address: &Address, port: Be16) -> bool {
        let (word, bit) = sieve::place(first, address, port);
        SIEVE.get(word).is_some_and(|word| word & bit != 0)
    }

    #[inline(always)]
    fn policy(&self, service: u32) -> Policy {
        POLICIES.get(service).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn slots(&self, service: u32) -> u32 {
        let length = SEQUENCES
            .get(service)
            .and_then(|words| words.get(sequence::LENGTH));
        length.map_or(0, |length| *length as u32)
    }

    #[inline(always)]
    fn slot(&self, service: u32, place: u32) -> Option<u64> {
        SEQUENCES
            .get(service)?
            .get(sequence::FIRST.wrapping_add(place))
            .copied()
    }

    #[inline(always)]
    fn hashed_slot(&self, service: u32, hash: u32) -> Option<u64> {
        // Length and slot of one sequence, whatever takes its place meanwhile.
        let words = SEQUENCES.get(service)?;
        let length = *words.get(sequence::LENGTH)? as u32;
        if length == 0 {
            return None;
        }
        words
            .get(sequence::FIRST.wrapping_add(hash % length))
            .copied()
    }

    #[inline(always)]
    fn next_turn(&self, service: u32) -> u64 {
        let cursor = SEQUENCES
            .get(service)
            .and_then(|words| words.get_ptr_mut(sequence::CURSOR));
        let Some(cursor) = cursor else { return 0 };
        // SAFETY: the word is aligned to 8 bytes in the map, lives as long as
        // the program runs, and is only ever accessed atomically.
        // Not relaxed: for that the compiler emits an addition that gives nothing back.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(cursor, 1) }
    }

    #[inline(always)]
    fn next_slot(&self, service: u32) -> Option<u64> {
        let words = SEQUENCES.get(service)?;
        let cursor = words.get_ptr_mut(sequence::CURSOR)?;
        let length = *words.get(sequence::LENGTH)?;
        if length == 0 {
            return None;
        }
        // SAFETY: as above.
        let turn = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(cursor, 1) };
        words.get(sequence::FIRST + (turn % length) as u32).copied()
    }

    #[inline(always)]
    fn live(&self, backend: u32) -> u32 {
        LIVE.get(backend).map_or(0, |live| *live as u32)
    }

    #[inline(always)]
    fn affinity(&self, client: &AffinityKey) -> Option<Affinity> {
        // SAFETY: copied at once; every combination of bytes is a value.
        unsafe { AFFINITIES.get(client) }.copied()
    }

    #[inline(always)]
    fn keep_affinity(&self, client: &AffinityKey, affinity: &Affinity) {
        // Refused, it is as if it had been evicted.
        let _ = AFFINITIES.insert(client, affinity, 0);
    }

    #[inline(always)]
    fn churned(&self) -> u32 {
        SHARED.get(shared::CHURNED).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn churn(&self) {
        let now = self.now() | 1;
        if let Some(churned) = SHARED.get_ptr_mut(shared::CHURNED) {
            // SAFETY: a word of a map; written without a reference, and whoever
            // reads it sees an old or a new one.
            unsafe { churned.write(now) };
        }
    }

    #[inline(always)]
    fn displace(&self, what: Displaced) {
        add(DISPLACED.get_ptr_mut(what as u32), 1);
    }

    #[inline(always)]
    fn backend(&self, number: u32) -> Option<Backend> {
        BACKENDS.get(number).copied()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: copied at once; every combination of bytes is a value.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        // Refused, it is as if it had been evicted.
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn fresh_id(&self, place: u32) -> u32 {
        let Some(counter) = FRAGMENT_IDS.get_ptr_mut(place % FRAGMENT_PLACES as u32) else {
            return place;
        };
        // SAFETY: aligned in the map, lives as long as the program runs, and is
        // only ever accessed atomically. Not relaxed: see `next_backend`.
        unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(counter, 1) }
    }

    #[inline(always)]
    fn interface(&self, frames: &Tagged) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { INTERFACES.get(frames) }.copied()
    }

    #[inline(always)]
    fn exit(&self, interface: u32) -> Option<Tagged> {
        // SAFETY: copied at once; every combination of bytes is a value.
        unsafe { EXITS.get(interface) }.copied()
    }

    #[inline(always)]
    fn epoch(&self) -> u32 {
        let word = |place| SHARED.get(place).copied().unwrap_or(0);
        let now = self.now();
        // In this order: who vouches has counted first.
        let vouched = word(shared::VOUCHED);
        let changes = word(shared::CHANGES);
        shared::epoch(now, changes, vouched, self.settings().refresh_ticks)
    }

    #[inline(always)]
    fn hop(&self, number: u32) -> Option<&NextHop> {
        HOPS.get(number)
    }

    // Not inlined: the helper's parameters take 64 bytes of stack.
    #[inline(never)]
    fn next_hop(&self, query: &mut RouteQuery, hop: &mut Hop) -> Result<(), Verdict> {
        let mut room = MaybeUninit::<FibWords>::uninit();
        for place in 0..FIB_WORDS {
            // SAFETY: within the array.
            let word = unsafe { room.as_mut_ptr().cast::<u64>().add(place) };
            // SAFETY: as above; volatile, because the compiler would call a
            // function that clears byte by byte.
            unsafe { word.write_volatile(0) };
        }
        // SAFETY: a C struct of integers, of which zero is a value, as large as
        // the array and aligned less.
        let params = unsafe { &mut *room.as_mut_ptr().cast::<Fib>() };
        params.l4_protocol = query.protocol as u8;
        params.sport = query.src_port.word();
        params.dport = query.dst_port.word();
        params.__bindgen_anon_1.tot_len = query.length.min(u32::from(u16::MAX)) as u16;
        params.ifindex = query.ingress;
        let is_v4 = query.dst.is_v4();
        if is_v4 {
            params.family = AF_INET;
            params.__bindgen_anon_2.tos = query.traffic_class as u8;
            params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(query.src.low4());
            params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(query.dst.low4());
        } else {
            params.family = AF_INET6;
            params.__bindgen_anon_2.flowinfo = u32::from_be(query.traffic_class << 20);
            params.__bindgen_anon_3.ipv6_src = query.src.words();
            params.__bindgen_anon_4.ipv6_dst = query.dst.words();
        }
        let size = size_of::<Fib>() as i32;
        // SAFETY: the context is the one this program was called with, and the
        // parameters are a live local of the size given.
        let result = unsafe { bpf_fib_lookup(self.0.ctx.cast(), &raw mut *params, size, 0) };
        match result {
            fib::SUCCESS => {
                hop.egress = params.ifindex;
                // The helper puts the next hop in the destination's place.
                // SAFETY: integers either way.
                let [a, b, c, d] = unsafe { params.__bindgen_anon_4.ipv6_dst };
                let [.., low] = query.dst.words();
                let same = if is_v4 {
                    a == low
                } else {
                    Address::from_words([a, b, c, d]) == query.dst
                };
                hop.router = u32::from(!same);
                // It stands where the length was put, which is not 0.
                // SAFETY: an integer either way.
                query.mtu = u32::from(unsafe { params.__bindgen_anon_1.mtu_result });
                hop.src_link = link(&raw const params.smac);
                hop.dst_link = link(&raw const params.dmac);
                Ok(())
            }
            fib::NO_NEIGHBOUR => Err(Verdict::NeighbourPending),
            fib::NOT_FORWARDED => Err(Verdict::LocalDestination),
            fib::FORWARDING_DISABLED => Err(Verdict::ForwardingDisabled),
            fib::FRAGMENTATION_NEEDED => {
                // SAFETY: an integer either way.
                query.mtu = u32::from(unsafe { params.__bindgen_anon_1.mtu_result });
                Err(Verdict::TooBig)
            }
            _ => Err(Verdict::NoRoute),
        }
    }

    #[inline(always)]
    fn redirect(&self, egress: u32) -> bool {
        DEVICES.redirect(egress, 0).is_ok()
    }

    #[inline(always)]
    fn may_tell(&self, why: Verdict) -> bool {
        let reason = u32::from(why == Verdict::TooBig);
        let Some(told) = TOLD.get_ptr_mut(reason) else {
            return false;
        };
        // SAFETY: this CPU's own slot of a per-CPU map; nobody else writes it
        // while the program runs.
        let told = unsafe { &mut *told };
        let (now, settings) = (self.now(), self.settings());
        if now.wrapping_sub(told.since) >= settings.refresh_ticks {
            told.since = now;
            told.count = 0;
        }
        told.count = told.count.saturating_add(1);
        told.count <= settings.error_limit
    }

    #[inline(always)]
    fn count(&self, verdict: Verdict, whose: &Attribution, bytes: u64) {
        add(VERDICTS.get_ptr_mut(verdict as u32), 1);
        if verdict.action() == Action::Drop {
            if whose.new_flow {
                // The connection stands, whatever became of its first packet.
                began(SERVICE_TRAFFIC.get_ptr_mut(whose.service));
                began(BACKEND_TRAFFIC.get_ptr_mut(whose.backend));
            }
            let key = DropKey {
                service: whose.service,
                backend: whose.backend,
                verdict: verdict as u32,
                zero: 0,
            };
            match DROPS.get_ptr_mut(key) {
                Some(count) => add(Some(count), 1),
                // Full means that it is counted under its verdict only.
                None => drop(DROPS.insert(key, 1, 0)),
            }
            return;
        }
        tally(SERVICE_TRAFFIC.get_ptr_mut(whose.service), whose, bytes);
        tally(BACKEND_TRAFFIC.get_ptr_mut(whose.backend), whose, bytes);
    }
}

/// Reads an address word by word: the compiler would read four bytes at once,
/// and the verifier refuses that from an odd place of its stack.
#[inline(always)]
fn link(address: *const [u8; 6]) -> LinkAddress {
    let words: *const u16 = address.cast();
    let word = |n: usize| {
        // SAFETY: within the six bytes of the field, whose struct is aligned to
        // 4 bytes and which lies at an even offset in it.
        let place = unsafe { words.add(n) };
        // SAFETY: as above; any bytes are a value.
        unsafe { ptr::read_volatile(place) }
    };
    LinkAddress::from_words([word(0), word(1), word(2)])
}

#[inline(always)]
fn add(counter: Option<*mut u64>, n: u64) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's own slot of a per-CPU map; nobody else writes it
        // while the program runs.
        unsafe { *counter += n };
    }
}

#[inline(always)]
fn began(traffic: Option<*mut Traffic>) {
    if let Some(traffic) = traffic {
        // SAFETY: this CPU's own slot of a per-CPU map; nobody else writes it
        // while the program runs.
        unsafe { (*traffic).new_flows += 1 };
    }
}

#[inline(always)]
fn tally(traffic: Option<*mut Traffic>, whose: &Attribution, bytes: u64) {
    let Some(traffic) = traffic else { return };
    // SAFETY: this CPU's own slot of a per-CPU map; nobody else writes it
    // while the program runs.
    let traffic = unsafe { &mut *traffic };
    if whose.reply {
        traffic.reply_packets += 1;
        traffic.reply_bytes += bytes;
    } else {
        traffic.forward_packets += 1;
        traffic.forward_bytes += bytes;
    }
    traffic.new_flows += u64::from(whose.new_flow);
}
