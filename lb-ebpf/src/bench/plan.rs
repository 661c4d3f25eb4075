//! What the benchmark tells its wrapper program: the value of the map `PLAN`.
//!
//! Compiled into the wrapper and into the benchmark itself, so that the two
//! agree.

use bytemuck::{Pod, Zeroable};

/// How many 32-bit words a frame has after its first two bytes. The IP header
/// begins at byte 14, so each field of 32 bits is one word: the program under
/// test then never reads across two of the wrapper's stores, which would cost
/// time that no frame from a network card costs.
pub(crate) const WORDS: usize = 19;

/// The length of every frame, padding included.
pub(crate) const FRAME: usize = 2 + 4 * WORDS;

/// The place of the program under test in the map `PROGRAMS`.
pub(crate) const SUBJECT: u32 = 0;

/// The place of the program that only sends the frame back.
pub(crate) const FLOOR: u32 = 1;

/// The place of the program under test as it is where every packet notes that its
/// flow lives.
pub(crate) const NOTING: u32 = 2;

/// Which connection the next packet belongs to.
pub(crate) mod order {
    /// Any, all alike likely.
    pub(crate) const RANDOM: u32 = 0;
    /// One after the other.
    pub(crate) const SEQUENTIAL: u32 = 1;
}

/// How one 32-bit word of the frame depends on the number of the connection:
/// `((number >> right) & mask) << left` is added to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Patch {
    /// Where the word begins.
    pub(crate) at: u32,
    /// What it is with connection 0, in host order.
    pub(crate) base: u32,
    /// See [`Patch`].
    pub(crate) right: u32,
    /// See [`Patch`].
    pub(crate) mask: u32,
    /// See [`Patch`].
    pub(crate) left: u32,
}

impl Patch {
    /// The word for the connection with this number.
    #[inline(always)]
    pub(crate) const fn word(&self, number: u32) -> u32 {
        let part = (number >> (self.right & 31)) & self.mask;
        self.base.wrapping_add(part << (self.left & 31))
    }
}

/// The whole plan of a run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Plan {
    /// The state of the random numbers.
    pub(crate) random: u64,
    /// The next connection in sequential order.
    pub(crate) next: u32,
    /// How many connections there are.
    pub(crate) flows: u32,
    /// One of [`order`].
    pub(crate) order: u32,
    /// [`SUBJECT`], [`FLOOR`] or [`NOTING`].
    pub(crate) slot: u32,
    /// What tells one connection from another; the second is written last.
    pub(crate) patches: [Patch; 2],
    /// The frame's first two bytes, in memory order.
    pub(crate) head: [u8; 2],
    /// One where the program under test puts another header before the frame, which
    /// the wrapper takes away again before the next run.
    pub(crate) grows: u16,
    /// The rest of the frame, in memory order.
    pub(crate) words: [u32; WORDS],
}

const _: () = assert!(size_of::<Plan>() == 144);
