//! The linker of eBPF objects.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Outcome;
use crate::{report, shell, tools};

/// The newest that is content with the LLVM inside the pinned Rust toolchain;
/// later ones want a system LLVM of the same version.
const VERSION: &str = "0.10.3";

pub(super) fn install() -> Result<Outcome> {
    if tools::linker().is_some() {
        return Ok(Outcome::AlreadyThere);
    }
    let home = tools::cargo_home().context(
        "neither CARGO_HOME nor HOME is set, so there is no place to install bpf-linker",
    )?;
    report::step(
        "installing",
        &format!(
            "{} {VERSION} into {}: links the XDP program (a minute or two)",
            tools::LINKER,
            home.join("bin").display()
        ),
    );
    shell::run(
        shell::cargo()
            .args([
                "install",
                "--quiet",
                "--locked",
                "--version",
                VERSION,
                "--root",
            ])
            .arg(&home)
            .arg(tools::LINKER),
    )?;
    let Some(linker) = tools::linker() else {
        bail!(
            "`cargo install {}` succeeded, but the program is not in {}",
            tools::LINKER,
            home.join("bin").display()
        );
    };
    shell::run_quietly(Command::new(linker).arg("--version"))?;
    Ok(Outcome::Provided)
}
