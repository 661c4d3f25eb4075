//! `cargo xtask bench`: what a packet costs, what many connections take, how fast
//! the balancer is beside others, and how soon it does what it is told.

use std::ffi::OsString;

use anyhow::Result;

use crate::{setup, shell, sweep};

/// Sets up, builds `lb` and the benchmark, optimised, and runs it with these
/// arguments.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    setup::ensure()?;
    sweep::leftovers()?;
    let lb = ["--package", "lb-userspace", "--bin", "lb"];
    shell::run(
        shell::cargo()
            .args(["build", "--quiet", "--release"])
            .args(lb),
    )?;
    let build = ["run", "--quiet", "--release", "--package", "tests"];
    let measured = shell::run(
        shell::cargo()
            .args(build)
            .args(["--features", "bench", "--bin", "bench", "--"])
            .args(arguments),
    );
    sweep::leftovers()?;
    measured
}
