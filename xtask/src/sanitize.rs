//! `cargo xtask sanitize`: the data path on the host under AddressSanitizer.
//!
//! What runs is the host's side of the golden cases, of frames cut short, and of
//! damaged ones, those of `lb decap` too, and a part of the million that the
//! kernel gets. The kernel's side needs none of it: the verifier has looked at
//! every access. Miri would tell more, but is no part of
//! the pinned stable toolchain; the sanitizer's library is, and like the eBPF
//! build it takes `RUSTC_BOOTSTRAP=1`.
//!
//! Everything is built once more, with the sanitizer, in a target folder of its
//! own.

use std::ffi::OsStr;

use anyhow::{Context as _, Result, bail};

use crate::{report, setup, shell, tools};

/// Where the host's side is tested.
const TESTS: [&str; 4] = ["golden", "truncation", "million", "decap"];

/// Builds with the sanitizer, and runs.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    let host = host()?;
    require_library(&host)?;
    report::step(
        "running",
        "the data path on the host under AddressSanitizer",
    );
    shell::run(
        shell::cargo()
            .args(["test", "--package", "tests", "--target", &host])
            .args(TESTS.map(|test| ["--test", test]).as_flattened())
            .args(["--", "--nocapture", "the_host_"])
            .env("CARGO_TARGET_DIR", shell::target_folder()?.join("sanitize"))
            .env("RUSTFLAGS", "-Zsanitizer=address")
            // What the cases keep for ever is no fault.
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .env("RUSTC_BOOTSTRAP", "1"),
    )?;
    report::done("no access that the sanitizer objects to");
    Ok(())
}

/// The target that this machine is. Named on the command line of cargo, it keeps
/// the sanitizer out of build scripts and macros.
pub(crate) fn host() -> Result<String> {
    let said = shell::output(std::process::Command::new("rustc").arg("-vV"))?;
    said.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc does not say for which host it is")
}

/// Whether the toolchain has the sanitizer's library for this machine.
pub(crate) fn require_library(host: &str) -> Result<()> {
    let sysroot = tools::sysroot(OsStr::new("rustc")).context("rustc does not say where it is")?;
    let folder = sysroot.join("lib/rustlib").join(host).join("lib");
    let libraries =
        std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for library in libraries {
        let name = library?.file_name();
        if name.to_string_lossy().ends_with("_rt.asan.a") {
            return Ok(());
        }
    }
    bail!(
        "{} holds no AddressSanitizer: the toolchain has it for Linux on x86_64 and aarch64 only",
        folder.display()
    )
}
