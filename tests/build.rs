//! Builds the tests' own XDP programs: the flood's, and the benchmark's where the
//! benchmark is built.

use std::{env, process::ExitCode};

#[path = "../lb-ebpf/object.rs"]
mod object;

fn main() -> ExitCode {
    let mut programs = vec![("lb-flood", "flood")];
    if env::var_os("CARGO_FEATURE_BENCH").is_some() {
        programs.push(("lb-bench", "bench"));
        programs.push(("lb-load", "load"));
    }
    object::build(&programs)
}
