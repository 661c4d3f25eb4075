//! What the tests tell the program that makes a flood: the value of the map
//! `RECIPE`.
//!
//! Compiled into the program and into the tests, so that the two agree.

use bytemuck::{Pod, Zeroable};

/// How many 32-bit words a frame has after its first two bytes: a SYN over IPv6
/// with one option. One over IPv4 has padding behind it.
pub(crate) const WORDS: usize = 19;

/// The length of every frame.
pub(crate) const FRAME: usize = 2 + 4 * WORDS;

/// The frame from which all others differ in some bits of the source address, the
/// source port and the sequence number, all of which are zero in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Recipe {
    /// The state of the random numbers.
    pub(crate) random: u64,
    /// How many frames were made.
    pub(crate) made: u64,
    /// The interface by which they go out.
    pub(crate) egress: u32,
    /// The low word of its source address, in host order.
    pub(crate) source: u32,
    /// Which of the bits of that vary.
    pub(crate) mask: u32,
    /// The frame's first two bytes, in memory order.
    pub(crate) head: [u8; 2],
    /// Always zero.
    pub(crate) zero: [u8; 2],
    /// The rest of it, in memory order.
    pub(crate) words: [u32; WORDS],
    /// How many ports of each source address there are, one after the other and
    /// then those of the next; 0 for any address and port.
    pub(crate) ports: u32,
    /// The number of the next frame in that order.
    pub(crate) next: u32,
    /// Always zero.
    pub(crate) end: u32,
}

const _: () = assert!(size_of::<Recipe>() == 120);
