//! `cargo xtask build`: the `lb` that is given to users.

use anyhow::Result;

use crate::{report, setup, shell};

/// Builds `lb`, optimised, with the XDP program inside.
pub(crate) fn run() -> Result<()> {
    setup::build_tools()?;
    shell::run(shell::cargo().args(["build", "--release", "--package", "lb-userspace"]))?;
    let lb = shell::target_folder()?.join("release/lb");
    report::done(&format!(
        "{} (the XDP program is inside; copy it to any Linux host)",
        lb.display()
    ));
    Ok(())
}
