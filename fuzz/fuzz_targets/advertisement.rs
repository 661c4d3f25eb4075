//! `cargo fuzz run advertisement`: bytes from the link, as advertisements.

#![no_main]

use libfuzzer_sys::fuzz_target;

/// The reader alone: a build with the fuzzer's instruments takes seconds.
#[allow(missing_docs, dead_code)]
#[path = "../../lb-userspace/src/vrrp/packet.rs"]
mod packet;

#[path = "../properties/advertisement.rs"]
mod advertisement;

fuzz_target!(|data: &[u8]| advertisement::holds(data));
