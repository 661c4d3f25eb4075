//! What both sides of the kernel boundary must agree on.
//!
//! [`abi`] holds every key and value of every BPF map, [`verdict`] the one list
//! of things that can happen to a packet, [`addr`] the form addresses have in
//! maps, [`flow`] the pure rules of a connection's life, [`word`] what is shared without
//! locks, and
//! [`decap`] what the small program on backends (`lb decap`) has of its own. The
//! data path (`lb-ebpf`) and the controller (`lb-userspace`) both build on it;
//! it knows neither aya nor sockets.

#![no_std]

pub mod abi;
pub mod addr;
pub mod checksum;
pub mod decap;
pub mod flow;
pub mod verdict;
pub mod word;

pub use addr::{Address, Be16};
pub use verdict::{Action, Verdict};
pub use word::Word;
