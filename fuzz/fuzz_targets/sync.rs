//! `cargo fuzz run sync`: bytes from the other node of a pair, as messages.

#![no_main]

use libfuzzer_sys::fuzz_target;

/// The reader alone: a build with the fuzzer's instruments takes seconds.
#[allow(missing_docs, dead_code)]
#[path = "../../lb-userspace/src/sync/message.rs"]
mod message;

#[path = "../properties/sync.rs"]
mod sync;

fuzz_target!(|data: &[u8]| sync::holds(data));
