//! `cargo xtask fuzz`: the readers of what strangers may send, against libFuzzer.
//!
//! The targets are those of `fuzz/`, and `cargo fuzz run TARGET` works there with a
//! nightly toolchain. Here they are built as that does it, but with the pinned
//! stable one: the sanitizer's library is part of it, and like the eBPF build it
//! takes `RUSTC_BOOTSTRAP=1`. libFuzzer itself is C++ and needs a compiler for that.
//!
//! Every run of the tests does a part of this without instruments
//! (`lb-userspace/tests/advertisements.rs`, `sync_messages.rs`).

use anyhow::{Context as _, Result, bail};

use crate::{report, sanitize, shell};

/// Every target in `fuzz/fuzz_targets`.
const TARGETS: [&str; 2] = ["advertisement", "sync"];

/// What `cargo fuzz` has the compiler do: count which edges are taken, show
/// comparisons to the fuzzer, and look at every access.
const INSTRUMENTS: &str = "--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

/// Builds each target and runs it for so many seconds. What it finds, and what it
/// has learnt, it leaves below the target folder.
pub(crate) fn run(seconds: u32) -> Result<()> {
    if !["c++", "clang++", "g++"].into_iter().any(shell::is_on_path) {
        bail!("libFuzzer is C++, and there is no compiler for it: install g++ or clang");
    }
    let host = sanitize::host()?;
    sanitize::require_library(&host)?;
    let folder = shell::target_folder()?.join("fuzz");
    for target in TARGETS {
        report::step("fuzzing", &format!("{target} for {seconds} s"));
        let corpus = folder.join("corpus").join(target);
        std::fs::create_dir_all(&corpus)
            .with_context(|| format!("cannot make the folder {}", corpus.display()))?;
        let mut artifacts = folder.join("artifacts").into_os_string();
        artifacts.push("/");
        std::fs::create_dir_all(&artifacts)
            .with_context(|| format!("cannot make the folder {}", artifacts.display()))?;
        let mut prefix = std::ffi::OsString::from("-artifact_prefix=");
        prefix.push(&artifacts);
        shell::run(
            shell::cargo()
                .args(["run", "--release", "--manifest-path", "fuzz/Cargo.toml"])
                .args(["--bin", target, "--target", &host, "--"])
                .args([&format!("-max_total_time={seconds}"), "-max_len=2048"])
                .arg(prefix)
                .arg(&corpus)
                .env("CARGO_TARGET_DIR", &folder)
                .env("RUSTFLAGS", INSTRUMENTS)
                .env("RUSTC_BOOTSTRAP", "1"),
        )?;
    }
    report::done("nothing was found that a property forbids");
    Ok(())
}
