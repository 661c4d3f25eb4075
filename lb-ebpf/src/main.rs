//! The XDP programs: the data path of `lb_ebpf` on the kernel's packets and maps.
//!
//! There are two of them, of which one is attached: `lb_frags` takes frames that
//! are longer than a page as well, which some drivers hand over in pieces
//! (kernel 5.18), and pays for it by asking the kernel how long each one is.

#![no_std]
#![no_main]
// The target has no compare-and-swap in `core::sync::atomic`, and with it goes
// fetch-and-add, which eBPF does have (instruction set version 3).
#![allow(internal_features)]
// The entry point that `#[xdp]` makes is public and has no documentation.
#![allow(missing_docs, unreachable_pub)]
#![feature(core_intrinsics)]

mod kernel;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_jiffies64;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use lb_common::verdict::Action;

use crate::kernel::maps::{KernelTables, room};
use crate::kernel::packet::XdpPacket;

/// Entry for every frame that the interface receives.
#[xdp]
#[inline(always)]
pub fn lb(ctx: XdpContext) -> u32 {
    run(&ctx, XdpPacket::<false>(&ctx))
}

/// The same for frames that may be in pieces.
#[xdp(frags)]
#[inline(always)]
pub fn lb_frags(ctx: XdpContext) -> u32 {
    run(&ctx, XdpPacket::<true>(&ctx))
}

/// The kernel's tick counter, its low 32 bits: by it the controller sets its clock.
/// It is run once and never attached.
#[xdp]
pub fn lb_ticks(_: XdpContext) -> u32 {
    // SAFETY: takes nothing and only reads the tick counter.
    unsafe { bpf_jiffies64() as u32 }
}

#[inline(always)]
fn run<const PIECES: bool>(ctx: &XdpContext, mut packet: XdpPacket<'_, PIECES>) -> u32 {
    // SAFETY: once in a run of the program, for which it is lent.
    let Some(room) = (unsafe { room() }) else {
        // There is one entry for each CPU, and this is the first.
        return xdp_action::XDP_ABORTED;
    };
    let verdict = lb_ebpf::process(&mut packet, &KernelTables(ctx), room);
    match verdict.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Transmit => xdp_action::XDP_TX,
        Action::Redirect => xdp_action::XDP_REDIRECT,
        Action::Drop => {
            // Folded away by the verifier unless the loader asks for the level.
            debug!(ctx, "dropped, verdict {}", verdict as u32);
            xdp_action::XDP_DROP
        }
    }
}

/// Nothing in the data path panics; the verifier refuses what could.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends helpers that are marked GPL only to programs under it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
