//! Segments that no stack has sent, for the tests: each from another forged
//! source, all checksums right, as fast as one CPU makes them. In any order they
//! are a flood, in order they are one segment of each of many connections.
//!
//! It is run on live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`), on each of which the
//! kernel does what the program says: it goes out by the recipe's interface.
//! The kernel uses a frame's memory again when the frame has gone its way, and
//! what the balancer made of it is still there. So every frame is written whole.

#![no_std]
#![no_main]
// The entry points that `#[xdp]` makes are public and have no documentation.
#![allow(missing_docs, unreachable_pub)]

#[allow(dead_code, reason = "the other side uses the rest")]
#[path = "flood/recipe.rs"]
mod recipe;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::recipe::{FRAME, Recipe, WORDS};

#[btf_map]
static RECIPE: Array<Recipe, 1> = Array::new();

/// Where the fields that vary are in a frame.
struct Places {
    /// The IPv4 header's checksum, or 0 where there is none.
    ip_check: usize,
    /// The low word of the source address.
    source: usize,
    /// The TCP header.
    tcp: usize,
}

const V4: Places = Places {
    ip_check: 24,
    source: 26,
    tcp: 34,
};
const V6: Places = Places {
    ip_check: 0,
    source: 34,
    tcp: 54,
};

/// Ports below are left to those who may bind them.
const FIRST_PORT: u32 = 1024;

#[xdp]
pub fn flood_v4(ctx: XdpContext) -> u32 {
    forge(&ctx, &V4).unwrap_or(xdp_action::XDP_ABORTED)
}

#[xdp]
pub fn flood_v6(ctx: XdpContext) -> u32 {
    forge(&ctx, &V6).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Writes the next frame and sends it.
#[inline(always)]
fn forge(ctx: &XdpContext, places: &Places) -> Option<u32> {
    let recipe = RECIPE.get_ptr_mut(0)?;
    // SAFETY: a whole value from the helper; the tests run one program at a
    // time and write the recipe only between runs.
    let recipe = unsafe { &mut *recipe };
    let start = ctx.data();
    if start + FRAME > ctx.data_end() {
        return None;
    }
    // SAFETY: the first two of the bytes compared above.
    unsafe { (start as *mut [u8; 2]).write_volatile(recipe.head) };
    let mut place = 0;
    while place < WORDS {
        let word = (start + 2 + 4 * place) as *mut u32;
        // SAFETY: within the bytes compared above; volatile, so that the words
        // stay words.
        unsafe { word.write_volatile(recipe.words[place]) };
        place += 1;
    }
    let (address, port, sequence) = sender(recipe);
    let varied = address & recipe.mask;
    let port = FIRST_PORT + port;
    write(start, places.source, (recipe.source | varied).to_be_bytes());
    write(start, places.tcp, (port as u16).to_be_bytes());
    write(start, places.tcp + 4, sequence.to_be_bytes());
    if places.ip_check != 0 {
        adjust(start, places.ip_check, halves(varied));
    }
    let sum = halves(varied) + port + halves(sequence);
    adjust(start, places.tcp + 16, sum);
    recipe.made += 1;
    // SAFETY: only notes where this frame is to go.
    Some(unsafe { bpf_redirect(recipe.egress, 0) } as u32)
}

/// Address, port behind the first one, and sequence number of the next frame.
#[inline(always)]
fn sender(recipe: &mut Recipe) -> (u32, u32, u32) {
    if recipe.ports == 0 {
        let port = ((next(recipe) >> 16) * (0x1_0000 - FIRST_PORT)) >> 16;
        return (next(recipe), port, next(recipe));
    }
    let number = recipe.next;
    recipe.next = number.wrapping_add(1);
    (number / recipe.ports, number % recipe.ports, number)
}

/// Knuth's linear congruential generator, of which the high half is used.
#[inline(always)]
fn next(recipe: &mut Recipe) -> u32 {
    recipe.random = (recipe.random)
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (recipe.random >> 32) as u32
}

/// What a word adds to a ones' complement sum.
#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// Adds to the sum behind a checksum (RFC 1624, equation 3, where what was
/// there before is zero).
#[inline(always)]
fn adjust(start: usize, at: usize, sum: u32) {
    let place = (start + at) as *mut [u8; 2];
    // SAFETY: within the frame, which was compared with its end.
    let check = unsafe { place.read_unaligned() };
    let sum = halves(sum + u32::from(!u16::from_be_bytes(check)));
    let check = !(halves(sum) as u16);
    write(start, at, check.to_be_bytes());
}

#[inline(always)]
fn write<const N: usize>(start: usize, at: usize, bytes: [u8; N]) {
    // SAFETY: within the frame, which was compared with its end.
    unsafe { ((start + at) as *mut [u8; N]).write_unaligned(bytes) };
}

/// Nothing here panics; the verifier refuses what could.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
