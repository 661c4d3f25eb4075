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
        "--features",
        "tests/bench",
        "--",
        "-Dwarnings",
    ]))?;
    report::step(
        "checking",
        "lints of the XDP programs themselves, for their own target",
    );
    lint_program("lb-ebpf", "kernel")?;
    lint_program("lb-decap", "decap")?;
    lint_program("lb-bench", "bench")
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
