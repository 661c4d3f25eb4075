//! The tables in the kernel: BPF maps and helpers.
//!
//! Capacities given here are placeholders; the loader sets them from the
//! configuration. The names are the names of the pins.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr;

use aya_ebpf::bindings::{BPF_F_INNER_MAP, BPF_NOEXIST, bpf_fib_lookup as Fib};
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, DevMapHash, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap,
};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_jiffies64};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::abi::{
    Backend, DropKey, Endpoint, Flow, FlowKey, Life, Party, Settings, Traffic, sequence,
};
use lb_common::verdict::{Action, VERDICT_SLOTS, Verdict};
use lb_ebpf::steer::Attribution;
use lb_ebpf::{Draft, Hop, LinkAddress, RouteQuery, Stage, Tables};

#[btf_map]
static ENDPOINTS: HashMap<Endpoint, Party, 1024> = HashMap::new();
#[btf_map]
static BACKENDS: Array<Backend, 1024> = Array::new();
#[btf_map]
static SEQUENCES: ArrayOfMaps<Array<u64, 2, { BPF_F_INNER_MAP as usize }>, 1024> =
    ArrayOfMaps::new();
#[btf_map]
static FLOWS: LruHashMap<FlowKey, Flow, 1024> = LruHashMap::new();
#[btf_map]
static UNFINISHED: LruHashMap<FlowKey, Flow, 1024> = LruHashMap::new();
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
static DRAFT: PerCpuArray<Draft, 1> = PerCpuArray::new();

/// Lends this CPU's room for a new connection.
///
/// # Safety
/// At most once in a run of the program, which is not interrupted by another
/// run on the same CPU.
#[inline(always)]
pub(crate) unsafe fn draft<'a>() -> Option<&'a mut Draft> {
    let draft = DRAFT.get_ptr_mut(0)?;
    // SAFETY: a whole value that nobody else refers to, as the caller promises;
    // any bytes are a value.
    Some(unsafe { &mut *draft })
}

/// Set by the loader; read-only data, so constants to the verifier.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings::PLAIN;

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

impl Tables for KernelTables<'_> {
    #[inline(always)]
    fn settings(&self) -> Settings {
        // SAFETY: a static of plain integers; volatile, because the loader
        // replaces it after compilation.
        unsafe { ptr::read_volatile(&raw const SETTINGS) }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: takes nothing and only reads the tick counter.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn party(&self, endpoint: &Endpoint) -> Option<Party> {
        // SAFETY: copied at once; the controller replaces values whole, and
        // every combination of bytes is a value.
        unsafe { ENDPOINTS.get(endpoint) }.copied()
    }

    #[inline(always)]
    fn next_backend(&self, service: u32) -> Option<u32> {
        let words = SEQUENCES.get(service)?;
        let cursor = words.get_ptr_mut(sequence::CURSOR)?;
        let length = *words.get(sequence::LENGTH)?;
        if length == 0 {
            return None;
        }
        // SAFETY: the word is aligned to 8 bytes in the map, lives as long as
        // the program runs, and is only ever accessed atomically.
        // Not relaxed: for that the compiler emits an addition that gives nothing back.
        let turn = unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(cursor, 1) };
        let slot = words.get(sequence::FIRST + (turn % length) as u32)?;
        Some(*slot as u32)
    }

    #[inline(always)]
    fn backend(&self, number: u32) -> Option<Backend> {
        BACKENDS.get(number).copied()
    }

    #[inline(always)]
    fn flow(&self, stage: Stage, key: &FlowKey) -> Option<&Flow> {
        match stage {
            // SAFETY: a whole value that stays mapped while the program runs
            // (RCU), and every combination of bytes is a value; an entry that
            // is reused at this moment costs one packet, not memory safety.
            Stage::Established => unsafe { FLOWS.get(key) },
            // SAFETY: as above.
            Stage::Unfinished => unsafe { UNFINISHED.get(key) },
        }
    }

    #[inline(always)]
    fn claim(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        insert(stage, key, flow, u64::from(BPF_NOEXIST))
    }

    #[inline(always)]
    fn keep(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        insert(stage, key, flow, 0)
    }

    #[inline(always)]
    fn note(&self, stage: Stage, key: &FlowKey, life: &Life) -> bool {
        let found = match stage {
            Stage::Established => FLOWS.get_ptr_mut(key),
            Stage::Unfinished => UNFINISHED.get_ptr_mut(key),
        };
        let Some(flow) = found else { return false };
        // SAFETY: a pointer to a whole value from the helper, so its field is
        // in bounds.
        let place = unsafe { &raw mut (*flow).life };
        // SAFETY: as above; written without a reference, and a reader sees old
        // or new words, each of which is a value.
        unsafe { place.write(*life) };
        true
    }

    #[inline(always)]
    fn forget(&self, stage: Stage, key: &FlowKey) {
        // Absent already is as good as removed.
        let _ = match stage {
            Stage::Established => FLOWS.remove(key),
            Stage::Unfinished => UNFINISHED.remove(key),
        };
    }

    // Not inlined: the helper's parameters take 64 bytes of stack, which a new
    // connection needs before they are needed here.
    #[inline(never)]
    fn next_hop(&self, query: &RouteQuery<'_>) -> Result<Hop, Verdict> {
        // SAFETY: a C struct of integers; zero is a value of each.
        let mut params: Fib = unsafe { core::mem::zeroed() };
        let flow = query.flow;
        params.l4_protocol = query.protocol;
        params.sport = flow.src_port.word();
        params.dport = flow.dst_port.word();
        params.__bindgen_anon_1.tot_len = query.length;
        params.ifindex = query.ingress;
        if flow.dst.is_v4() {
            params.family = AF_INET;
            params.__bindgen_anon_2.tos = query.traffic_class;
            params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(flow.src.low4());
            params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(flow.dst.low4());
        } else {
            params.family = AF_INET6;
            params.__bindgen_anon_2.flowinfo = u32::from_be(u32::from(query.traffic_class) << 20);
            params.__bindgen_anon_3.ipv6_src = flow.src.words();
            params.__bindgen_anon_4.ipv6_dst = flow.dst.words();
        }
        let size = size_of_val(&params) as i32;
        // SAFETY: the context is the one this program was called with, and the
        // parameters are a live local of the size given.
        let result = unsafe { bpf_fib_lookup(self.0.ctx.cast(), &raw mut params, size, 0) };
        match result {
            fib::SUCCESS => Ok(Hop {
                egress: params.ifindex,
                src_link: link(&raw const params.smac),
                dst_link: link(&raw const params.dmac),
            }),
            fib::NO_NEIGHBOUR => Err(Verdict::NeighbourPending),
            fib::NOT_FORWARDED => Err(Verdict::LocalDestination),
            fib::FORWARDING_DISABLED => Err(Verdict::ForwardingDisabled),
            fib::FRAGMENTATION_NEEDED => Err(Verdict::TooBig),
            _ => Err(Verdict::NoRoute),
        }
    }

    #[inline(always)]
    fn redirect(&self, egress: u32) -> bool {
        DEVICES.redirect(egress, 0).is_ok()
    }

    #[inline(always)]
    fn count(&self, verdict: Verdict, whose: &Attribution, bytes: u64) {
        add(VERDICTS.get_ptr_mut(verdict as u32), 1);
        if verdict.action() == Action::Drop {
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

#[inline(always)]
fn insert(stage: Stage, key: &FlowKey, flow: &Flow, flags: u64) -> bool {
    match stage {
        Stage::Established => FLOWS.insert(key, flow, flags).is_ok(),
        Stage::Unfinished => UNFINISHED.insert(key, flow, flags).is_ok(),
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
