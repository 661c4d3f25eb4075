//! What the benchmark tells the programs that make and take its load: the values
//! of the maps `RECIPE` and `ENDS`.
//!
//! Compiled into the programs and into the benchmark, so that the two agree.

use bytemuck::{Pod, Zeroable};

/// How many 32-bit words a frame has after its first two bytes: TCP over IPv4
/// without options, and eight bytes.
pub(crate) const WORDS: usize = 15;

/// The length of every frame.
pub(crate) const FRAME: usize = 2 + 4 * WORDS;

/// How many bytes requests and answers over TCP have.
pub(crate) const PAYLOAD: usize = 8;

/// How many bytes datagrams have.
pub(crate) const DATAGRAM: usize = FRAME - 42;

/// Of each address the generator uses this many ports, as a power of two.
pub(crate) const PORT_BITS: u32 = 14;

/// The first of them.
pub(crate) const FIRST_PORT: u32 = 1024;

/// The frame from which all others differ in source address and port, both of
/// which are zero in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Recipe {
    /// The state of the random numbers.
    pub(crate) random: u64,
    /// How many frames were made.
    pub(crate) made: u64,
    /// The interface by which they go out.
    pub(crate) egress: u32,
    /// How many connections there are.
    pub(crate) flows: u32,
    /// The next of them, if they are taken in turns.
    pub(crate) next: u32,
    /// Not 0: one after the other; 0: any, all alike likely.
    pub(crate) in_turns: u32,
    /// The source address of connection 0, in host order.
    pub(crate) address: u32,
    /// Where the transport's checksum is; 0 for none.
    pub(crate) check: u32,
    /// The frame's first two bytes, in memory order.
    pub(crate) head: [u8; 2],
    /// Always zero.
    pub(crate) zero: [u8; 2],
    /// The rest of it, in memory order.
    pub(crate) words: [u32; WORDS],
}

const _: () = assert!(size_of::<Recipe>() == 104);

/// What the end of a cable does with the frames that come to it: nothing, beyond
/// counting, or any of these.
pub(crate) mod does {
    /// Sends datagrams back.
    pub(crate) const ECHO: u32 = 1;
    /// Accepts connections.
    pub(crate) const ACCEPT: u32 = 2;
    /// Answers requests, and closes when the other end does.
    pub(crate) const SERVE: u32 = 4;
    /// Sends a request when a connection is accepted.
    pub(crate) const ASK: u32 = 8;
    /// Closes when there is an answer.
    pub(crate) const CLOSE: u32 = 16;
}

/// The port at which servers are; whoever else is a client.
pub(crate) const SERVER_PORT: u16 = 80;

/// What is counted at the end of a cable, for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Counts {
    /// Frames.
    pub(crate) frames: u64,
    /// Connections that were accepted.
    pub(crate) accepted: u64,
    /// Connections that were closed by both.
    pub(crate) closed: u64,
    /// Resets.
    pub(crate) resets: u64,
}
