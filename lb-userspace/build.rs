//! Builds the XDP program, so that `lb` carries it inside itself; how is told
//! in `lb-ebpf/object.rs`.

use std::process::ExitCode;

#[path = "../lb-ebpf/object.rs"]
mod object;

fn main() -> ExitCode {
    object::build("lb-ebpf", "kernel")
}
