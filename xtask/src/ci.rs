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
    format_schedulers()?;
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
    lint_program("lb-flood", "flood")
}

/// The schedulers' files, which a macro names, so that `cargo fmt` does not see
/// them; rustfmt by itself does.
fn format_schedulers() -> Result<()> {
    let folder = shell::root().join("lb-userspace/src/schedule");
    let files = std::fs::read_dir(&folder)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .with_context(|| format!("cannot list {}", folder.display()))?;
    let mut rustfmt = Command::new("rustfmt");
    shell::run(rustfmt.args(["--check", "--edition", "2024"]).args(files))
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
