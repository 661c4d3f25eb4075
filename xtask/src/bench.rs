//! `cargo xtask bench`: what a packet costs, and what a million connections take.

use std::ffi::OsString;

use anyhow::Result;

use crate::{setup, shell, sweep};

/// Sets up, builds the benchmark, and runs it with these arguments.
///
/// The development profile is enough: what is measured is the XDP program,
/// which is always optimised.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    setup::ensure()?;
    sweep::leftovers()?;
    let build = ["run", "--quiet", "--package", "tests"];
    let measured = shell::run(
        shell::cargo()
            .args(build)
            .args(["--features", "bench", "--bin", "bench", "--"])
            .args(arguments),
    );
    sweep::leftovers()?;
    measured
}
