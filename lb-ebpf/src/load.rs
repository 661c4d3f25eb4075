//! The load of the benchmark: what sends packets on a cable, and what takes them
//! at its other end; no part of `lb`.
//!
//! `send` is run on live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`): each is written
//! whole, as that of the next connection, and goes out by the recipe's interface.
//! `ends` is attached at the ends of cables, and counts what arrives. It can be a
//! server, a client, or both: every answer follows from the segment it answers
//! (whose acknowledgement is its own sequence number), so nothing has to be
//! remembered, and a whole connection costs the two ends a few hundred
//! nanoseconds. What is lost is not sent again. `bounce` and `across` are the least
//! that a program between them could do.

#![no_std]
#![no_main]
// The entry points that `#[xdp]` makes are public and have no documentation.
#![allow(missing_docs, unreachable_pub)]

#[allow(dead_code, reason = "the other side uses the rest")]
#[path = "load/recipe.rs"]
mod recipe;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::recipe::{
    Counts, FIRST_PORT, FRAME, PAYLOAD, PORT_BITS, Recipe, SERVER_PORT, WORDS, does,
};

#[btf_map]
static RECIPE: Array<Recipe, 1> = Array::new();
#[btf_map]
static ENDS: Array<u32, 1> = Array::new();
#[btf_map]
static COUNTS: PerCpuArray<Counts, 1> = PerCpuArray::new();

/// Where the fields are in a frame (IPv4 without options).
mod at {
    pub(super) const IP_CHECK: usize = 24;
    pub(super) const SOURCE: usize = 26;
    pub(super) const DESTINATION: usize = 30;
    pub(super) const PORTS: usize = 34;
    pub(super) const SEQUENCE: usize = 38;
    pub(super) const ACKNOWLEDGED: usize = 42;
    pub(super) const FLAGS: usize = 46;
    pub(super) const CHECK: usize = 50;
    pub(super) const REST: usize = 54;
}

const FIN: u16 = 1;
const SYN: u16 = 2;
const RST: u16 = 4;
const PSH: u16 = 8;
const ACK: u16 = 16;

/// The TCP header and what is behind it: the same in every segment, so that no
/// frame is ever shorter than another, or padded, which some hosts cut off. A
/// segment without payload has as many bytes of options that say nothing.
const SEGMENT: u32 = 20 + PAYLOAD as u32;

/// The length of a TCP header, as the header has it.
const WITHOUT_OPTIONS: u16 = 5 << 12;
const WITH_OPTIONS: u16 = (SEGMENT as u16 / 4) << 12;

/// The option that says nothing (RFC 9293, section 3.1).
const NO_OPERATION: u8 = 1;

/// Writes the next frame and sends it.
#[xdp]
pub fn send(ctx: XdpContext) -> u32 {
    make(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Sends every frame back as it is.
#[xdp]
pub fn bounce(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Sends every frame out by another interface, as it is.
#[xdp]
pub fn across(_: XdpContext) -> u32 {
    match ENDS.get(0) {
        // SAFETY: only notes where this frame is to go.
        Some(&egress) => unsafe { bpf_redirect(egress, 0) as u32 },
        None => xdp_action::XDP_ABORTED,
    }
}

/// Counts a frame, and answers it if it is to.
#[xdp]
pub fn ends(ctx: XdpContext) -> u32 {
    take(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[inline(always)]
fn make(ctx: &XdpContext) -> Option<u32> {
    let recipe = RECIPE.get_ptr_mut(0)?;
    // SAFETY: a whole value from the helper; the benchmark runs one program at a
    // time and writes the recipe only between runs.
    let recipe = unsafe { &mut *recipe };
    let start = ctx.data();
    if start + FRAME > ctx.data_end() {
        return None;
    }
    write(start, 0, recipe.head);
    let mut place = 0;
    while place < WORDS {
        let word = (start + 2 + 4 * place) as *mut u32;
        // SAFETY: within the bytes compared above; volatile, so that the words
        // stay words.
        unsafe { word.write_volatile(recipe.words[place]) };
        place += 1;
    }
    let number = next(recipe);
    let address = recipe.address.wrapping_add(number >> PORT_BITS);
    let port = FIRST_PORT + (number & ((1 << PORT_BITS) - 1));
    write(start, at::SOURCE, address.to_be_bytes());
    write(start, at::PORTS, (port as u16).to_be_bytes());
    adjust(start, at::IP_CHECK, halves(address));
    if recipe.check == at::CHECK as u32 {
        adjust(start, at::CHECK, halves(address) + port);
    }
    recipe.made += 1;
    // SAFETY: only notes where this frame is to go.
    Some(unsafe { bpf_redirect(recipe.egress, 0) } as u32)
}

/// The number of the connection that the packet belongs to.
#[inline(always)]
fn next(recipe: &mut Recipe) -> u32 {
    if recipe.in_turns == 0 {
        // Knuth's linear congruential generator; its high half is used.
        recipe.random = (recipe.random)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        return (((recipe.random >> 32) * u64::from(recipe.flows)) >> 32) as u32;
    }
    let number = recipe.next;
    let after = number.wrapping_add(1);
    recipe.next = if after < recipe.flows { after } else { 0 };
    number
}

/// A frame that is none of the load's is left to the host.
#[inline(always)]
fn take(ctx: &XdpContext) -> Option<u32> {
    let start = ctx.data();
    if start + FRAME > ctx.data_end() || read::<2>(start, 12) != [8, 0] {
        return None;
    }
    let counts = COUNTS.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value from the helper.
    let counts = unsafe { &mut *counts };
    counts.frames += 1;
    let wanted = *ENDS.get(0)?;
    if wanted == 0 {
        return Some(xdp_action::XDP_DROP);
    }
    match read::<1>(start, 23) {
        [17] if wanted & does::ECHO != 0 => {
            turn(start);
            Some(back(ctx))
        }
        [6] if answer(start, wanted, counts) => Some(back(ctx)),
        _ => Some(xdp_action::XDP_DROP),
    }
}

/// Sends a frame back by the interface that it came by. Not by `XDP_TX`: on a
/// veth (Linux 6.18) that wakes only an end that has a program too.
#[inline(always)]
fn back(ctx: &XdpContext) -> u32 {
    // SAFETY: only notes where this frame is to go.
    unsafe { bpf_redirect(ctx.ingress_ifindex() as u32, 0) as u32 }
}

/// Answers a segment as the ends do that are wanted; whether there is an answer.
#[inline(always)]
fn answer(start: usize, wanted: u32, counts: &mut Counts) -> bool {
    let flags = u16::from_be_bytes(read(start, at::FLAGS)) & 0x3f;
    let has_payload = read::<1>(start, at::FLAGS)[0] >> 4 == (WITHOUT_OPTIONS >> 12) as u8;
    let at_server = read(start, at::PORTS + 2) == SERVER_PORT.to_be_bytes();
    let data = WITHOUT_OPTIONS | PSH | ACK;
    let bare = |flags| WITH_OPTIONS | flags;
    let (answer, by) = if flags & RST != 0 {
        counts.resets += 1;
        return false;
    } else if flags & (SYN | ACK) == SYN {
        counts.accepted += 1;
        (bare(SYN | ACK), does::ACCEPT)
    } else if flags & SYN != 0 {
        (data, does::ASK)
    } else if flags & FIN != 0 && at_server {
        (bare(FIN | ACK), does::SERVE)
    } else if flags & FIN != 0 {
        counts.closed += 1;
        (bare(ACK), does::CLOSE)
    } else if !has_payload {
        return false;
    } else if at_server {
        (data, does::SERVE)
    } else {
        (bare(FIN | ACK), does::CLOSE)
    };
    if wanted & by == 0 {
        return false;
    }
    let taken = if has_payload { PAYLOAD as u32 } else { 0 };
    segment(start, answer, taken + u32::from(flags & (SYN | FIN) != 0));
    true
}

/// Makes a segment its own answer, with this length of header and these flags,
/// which acknowledges so many bytes.
#[inline(always)]
fn segment(start: usize, flags: u16, taken: u32) {
    turn(start);
    let sequence = u32::from_be_bytes(read(start, at::SEQUENCE));
    let acknowledged = u32::from_be_bytes(read(start, at::ACKNOWLEDGED));
    let next = sequence.wrapping_add(taken);
    write(start, at::SEQUENCE, acknowledged.to_be_bytes());
    write(start, at::ACKNOWLEDGED, next.to_be_bytes());
    write(start, at::FLAGS, flags.to_be_bytes());
    let window: u16 = 0x7fff;
    write(start, at::FLAGS + 2, window.to_be_bytes());
    let rest = if flags & WITH_OPTIONS == WITH_OPTIONS {
        [NO_OPERATION; PAYLOAD]
    } else {
        [0; PAYLOAD]
    };
    write(start, at::REST, rest);
    let words = u64::from_be_bytes(rest);
    let ends = halves(u32::from_be_bytes(read(start, at::SOURCE)))
        + halves(u32::from_be_bytes(read(start, at::DESTINATION)))
        + halves(u32::from_be_bytes(read(start, at::PORTS)));
    let fields = halves(acknowledged) + halves(next) + u32::from(flags) + u32::from(window);
    let sum = ends + 6 + SEGMENT + fields + halves((words >> 32) as u32) + halves(words as u32);
    write(start, at::CHECK, folded(sum).to_be_bytes());
}

/// Exchanges both ends: link, address, port. No checksum changes by that.
#[inline(always)]
fn turn(start: usize) {
    swap::<6>(start, 0, 6);
    swap::<4>(start, at::SOURCE, at::DESTINATION);
    swap::<2>(start, at::PORTS, at::PORTS + 2);
}

#[inline(always)]
fn swap<const N: usize>(start: usize, one: usize, other: usize) {
    let (a, b) = (read::<N>(start, one), read::<N>(start, other));
    write(start, one, b);
    write(start, other, a);
}

/// What a word adds to a ones' complement sum.
#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// A checksum of what was added.
#[inline(always)]
const fn folded(sum: u32) -> u16 {
    !(halves(halves(sum)) as u16)
}

/// Adds to the sum behind a checksum (RFC 1624, equation 3, where what was
/// there before is zero).
#[inline(always)]
fn adjust(start: usize, at: usize, sum: u32) {
    let check = u16::from_be_bytes(read(start, at));
    write(start, at, folded(sum + u32::from(!check)).to_be_bytes());
}

#[inline(always)]
fn read<const N: usize>(start: usize, at: usize) -> [u8; N] {
    // SAFETY: within the frame, which was compared with its end.
    unsafe { ((start + at) as *const [u8; N]).read_unaligned() }
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
