//! Builds the XDP programs, so that `lb` carries them inside itself; how is told
//! in `lb-ebpf/object.rs`.

use std::process::ExitCode;

#[path = "../lb-ebpf/object.rs"]
mod object;

fn main() -> ExitCode {
    object::build(&[("lb-ebpf", "kernel"), ("lb-decap", "decap")])
}
