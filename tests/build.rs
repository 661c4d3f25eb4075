//! Builds the benchmark's own XDP programs, where the benchmark is built.

use std::{env, process::ExitCode};

#[path = "../lb-ebpf/object.rs"]
mod object;

fn main() -> ExitCode {
    if env::var_os("CARGO_FEATURE_BENCH").is_none() {
        println!("cargo::rerun-if-changed=build.rs");
        return ExitCode::SUCCESS;
    }
    object::build(&[("lb-bench", "bench")])
}
