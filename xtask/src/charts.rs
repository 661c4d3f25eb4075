//! `cargo xtask charts`: what each scheduler does with a million connections,
//! drawn and written into `docs/`.

use anyhow::Result;

use crate::{report, setup, shell};

/// Simulates, draws, and writes. It needs neither root nor the kernel's BPF.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    let build = ["run", "--quiet", "--package", "tests"];
    shell::run(
        shell::cargo()
            .args(build)
            .args(["--features", "charts", "--bin", "charts", "--"])
            .arg(shell::root().join("docs")),
    )?;
    report::done("docs/schedulers.md and its charts are written anew");
    Ok(())
}
