//! The XDP program of `lb decap`: [`lb_ebpf::decap`] on the kernel's packets,
//! with maps for what the host knows.

#![no_std]
#![no_main]
// The entry points that `#[xdp]` makes are public and have no documentation.
#![allow(missing_docs, unreachable_pub)]

#[path = "kernel/packet.rs"]
mod packet;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{HashMap, LpmTrie, PerCpuArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use lb_common::decap::{MAX_ADDRESSES, MAX_SOURCES, OUTCOME_SLOTS, Outcome};
use lb_common::{Action, Address};
use lb_ebpf::Packet;
use lb_ebpf::decap::{Trust, decap};

use crate::packet::XdpPacket;

#[btf_map]
static ADDRESSES: HashMap<Address, u32, { MAX_ADDRESSES as usize }> = HashMap::new();
#[btf_map]
static SOURCES: LpmTrie<Address, u32, { MAX_SOURCES as usize }> = LpmTrie::new();
#[btf_map]
static OUTCOMES: PerCpuArray<u64, { OUTCOME_SLOTS as usize }> = PerCpuArray::new();

/// Entry for every frame that the interface receives.
#[xdp]
pub fn lb_decap(ctx: XdpContext) -> u32 {
    run(&mut XdpPacket::<false>(&ctx))
}

/// The same for interfaces whose frames are larger than a page.
#[xdp(frags)]
pub fn lb_decap_frags(ctx: XdpContext) -> u32 {
    run(&mut XdpPacket::<true>(&ctx))
}

#[inline(always)]
fn run(packet: &mut impl Packet) -> u32 {
    match decap(packet, &Maps).action() {
        Action::Drop => xdp_action::XDP_DROP,
        // Nothing is sent from here.
        Action::Pass | Action::Transmit | Action::Redirect => xdp_action::XDP_PASS,
    }
}

/// What the host knows, as `lb decap` keeps it true.
struct Maps;

/// A key of the trie, which is packed, in a place that the verifier finds aligned.
#[repr(C, align(8))]
struct Whole(Key<Address>);

impl Trust for Maps {
    #[inline(always)]
    fn ours(&self, address: &Address) -> bool {
        // SAFETY: only whether there is a value is looked at.
        unsafe { ADDRESSES.get(address) }.is_some()
    }

    #[inline(always)]
    fn trusted(&self, source: &Address) -> bool {
        let key = Whole(Key::new(8 * size_of::<Address>() as u32, *source));
        SOURCES.get(&key.0).is_some()
    }

    #[inline(always)]
    fn count(&self, outcome: Outcome) {
        if let Some(count) = OUTCOMES.get_ptr_mut(outcome as u32) {
            // SAFETY: this CPU's own slot of a per-CPU map; nobody else writes
            // it while the program runs.
            unsafe { *count += 1 };
        }
    }
}

/// Nothing here panics; the verifier refuses what could.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
