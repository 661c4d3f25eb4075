//! The benchmark's own XDP programs; no part of `lb`.
//!
//! `BPF_PROG_TEST_RUN` repeats a program on one buffer, so the second run would
//! get the frame that the first has rewritten. `wrapper` therefore writes the
//! frame anew before each run, as that of the next connection, and goes on to
//! the program under test by a tail call. `floor` is what all of that costs
//! without any balancing: it sends the frame back as it is.
//!
//! Where the program under test puts a header before the frame, the kernel does
//! not move the frame's beginning back between runs either (`bpf_test_run` in
//! net/bpf/test_run.c does so for live frames only): after a dozen of them there
//! would be no room left. The wrapper moves it back by what the frame has become
//! longer, in the runs of the floor too, where that is nothing: the call costs the
//! same, and is taken off with the floor. The program's own call is not.

#![no_std]
#![no_main]
// The entry points that `#[xdp]` makes are public and have no documentation.
#![allow(missing_docs, unreachable_pub)]

#[allow(dead_code, reason = "the other side uses the rest")]
#[path = "bench/plan.rs"]
mod plan;

use core::hint::black_box;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::plan::{FRAME, Patch, Plan, order};

#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();
#[btf_map]
static PROGRAMS: ProgramArray<3> = ProgramArray::new();

/// Prepares the next frame and hands it to the program that the plan names.
#[xdp]
pub fn wrapper(ctx: XdpContext) -> u32 {
    if let Some(slot) = prepare(&ctx) {
        // SAFETY: nothing is held here that would have to be dropped.
        unsafe { PROGRAMS.tail_call(&ctx, slot) };
    }
    xdp_action::XDP_ABORTED
}

/// The least that a program can do to send a frame.
#[xdp]
pub fn floor(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Writes the frame of the next connection; the program to go on to.
#[inline(always)]
fn prepare(ctx: &XdpContext) -> Option<u32> {
    let plan = PLAN.get_ptr_mut(0)?;
    // SAFETY: a whole value from the helper; the benchmark runs one program at
    // a time and writes the plan only between runs.
    let plan = unsafe { &mut *plan };
    if plan.grows != 0 {
        shrink(ctx)?;
    }
    let start = ctx.data();
    if start + FRAME > ctx.data_end() {
        return None;
    }
    // SAFETY: the first two of the bytes compared above.
    unsafe { (start as *mut [u8; 2]).write_volatile(plan.head) };
    let mut place = 0;
    while place < plan::WORDS {
        let word = (start + 2 + 4 * place) as *mut u32;
        // SAFETY: within the bytes compared above; volatile, so that the words
        // stay words.
        unsafe { word.write_volatile(plan.words[place]) };
        place += 1;
    }
    let number = next(plan);
    apply(ctx, &plan.patches[0], number)?;
    apply(ctx, &plan.patches[1], number)?;
    Some(plan.slot)
}

/// Takes away what was put before the frame.
#[inline(always)]
fn shrink(ctx: &XdpContext) -> Option<()> {
    // The compiler would subtract pointers as words of 32 bits, which the verifier
    // refuses.
    let length = black_box(ctx.data_end() - ctx.data());
    let more = length.wrapping_sub(FRAME) as i32;
    // SAFETY: the context is the one this program was called with, and nothing
    // refers into the frame yet.
    let moved = unsafe { bpf_xdp_adjust_head(ctx.ctx, more) };
    (moved == 0).then_some(())
}

/// The number of the connection that the packet belongs to.
#[inline(always)]
fn next(plan: &mut Plan) -> u32 {
    if plan.order == order::RANDOM {
        // Knuth's linear congruential generator; its high half is used.
        plan.random = (plan.random)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        return (((plan.random >> 32) * u64::from(plan.flows)) >> 32) as u32;
    }
    let number = plan.next;
    let after = number.wrapping_add(1);
    plan.next = if after < plan.flows { after } else { 0 };
    number
}

#[inline(always)]
fn apply(ctx: &XdpContext, patch: &Patch, number: u32) -> Option<()> {
    let at = patch.at as usize;
    if at > FRAME {
        return None;
    }
    let word = ctx.data() + at;
    if word + size_of::<u32>() > ctx.data_end() {
        return None;
    }
    // SAFETY: between data and data_end, as just compared.
    unsafe { (word as *mut u32).write_unaligned(patch.word(number).to_be()) };
    Some(())
}

/// Nothing here panics; the verifier refuses what could.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
