//! `cargo xtask lint` and `cargo xtask ci`: what a change must pass.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{docs, report, setup, shell, test};

/// Everything: `.ci/run` does the same.
pub(crate) fn run() -> Result<()> {
    lint()?;
    test::run(&[])
}

/// Formatting, lints, documentation; the cheapest first.
pub(crate) fn lint() -> Result<()> {
    report::step("checking", "formatting");
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    format_others()?;
    docs::run(true)?;
    setup::build_tools()?;
    report::step("checking", "lints");
    shell::run(shell::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "tests/bench,tests/charts",
        "--",
        "-Dwarnings",
    ]))?;
    report::step(
        "checking",
        "lints of the XDP programs themselves, for their own target",
    );
    lint_program("lb-ebpf", "kernel")?;
    lint_program("lb-decap", "decap")?;
    lint_program("lb-bench", "bench")?;
    lint_program("lb-load", "load")?;
    lint_program("lb-flood", "flood")
}

/// What `cargo fmt` does not see: the schedulers' files, which a macro names, and
/// the fuzzer's, which are a workspace of their own. rustfmt by itself does.
fn format_others() -> Result<()> {
    let mut rustfmt = Command::new("rustfmt");
    rustfmt.args(["--check", "--edition", "2024"]);
    for folder in [
        "lb-userspace/src/schedule",
        "fuzz/fuzz_targets",
        "fuzz/properties",
    ] {
        let folder = shell::root().join(folder);
        let files = std::fs::read_dir(&folder)
            .and_then(|entries| {
                entries
                    .map(|entry| Ok(entry?.path()))
                    .collect::<std::io::Result<Vec<_>>>()
            })
            .with_context(|| format!("cannot list {}", folder.display()))?;
        rustfmt.args(files);
    }
    shell::run(&mut rustfmt)
}

/// Lints a binary of `lb-ebpf`, which builds with this feature.
fn lint_program(binary: &str, feature: &str) -> Result<()> {
    shell::run(
        shell::cargo()
            .args(["clippy", "--package", "lb-ebpf"])
            .args(["--bin", binary, "--features", feature])
            .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
            .args(["--", "-Dwarnings"])
            .env("RUSTC_BOOTSTRAP", "1"),
    )
}
