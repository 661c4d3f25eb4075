//! `cargo xtask lint` and `cargo xtask ci`: what a change must pass.

use anyhow::Result;

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
    docs::run(true)?;
    setup::build_tools()?;
    report::step("checking", "lints");
    shell::run(shell::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-Dwarnings",
    ]))?;
    report::step(
        "checking",
        "lints of the XDP program itself, for its own target",
    );
    shell::run(
        shell::cargo()
            .args([
                "clippy",
                "--package",
                "lb-ebpf",
                "--bin",
                "lb-ebpf",
                "--features",
                "kernel",
            ])
            .args([
                "--target",
                "bpfel-unknown-none",
                "-Zbuild-std=core",
                "--",
                "-Dwarnings",
            ])
            .env("RUSTC_BOOTSTRAP", "1"),
    )
}
