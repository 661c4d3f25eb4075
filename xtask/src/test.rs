//! `cargo xtask test`: every test there is.

use std::ffi::OsString;

use anyhow::Result;

use crate::{setup, shell, sweep};

/// Sets up, builds the `lb` that the tests run, and runs them all.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    setup::ensure()?;
    sweep::leftovers()?;
    shell::run(shell::cargo().args(["build", "--package", "lb-userspace"]))?;
    let tested = shell::run(
        shell::cargo()
            .args(["test", "--workspace", "--features", "tests/bench"])
            .args(arguments),
    );
    sweep::leftovers()?;
    tested
}
