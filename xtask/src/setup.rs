//! What building and testing need, provided once.
//!
//! Each part first looks whether its work is done already, and then does and
//! says nothing. So every other task can begin with the setup it needs, and a
//! second run costs a few milliseconds.
//!
//! - **The linker** of eBPF objects, `bpf-linker`, from source: it uses the LLVM
//!   inside the Rust toolchain, so it is built by that toolchain.
//! - **The source of `core`**: there is no compiled `core` for eBPF targets.
//! - **bpffs**, where maps and programs are pinned so that they outlive `lb`.
//! - **Debian packages** that the tests and the demonstration use.

mod bpffs;
mod core_source;
mod linker;
mod packages;

use anyhow::Result;

use crate::{report, shell};

/// Whether something had to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was there before.
    AlreadyThere,
    /// It is there now.
    Provided,
}

/// Everything, for `cargo xtask setup`.
pub(crate) fn run() -> Result<()> {
    shell::require_root("setup")?;
    let outcomes = [build_tools()?, bpffs::mount()?, packages::install()?];
    if outcomes.contains(&Outcome::Provided) {
        report::done("everything is set up");
    } else {
        report::done("everything was set up already");
    }
    Ok(())
}

/// What `cargo build` needs; works without root.
pub(crate) fn build_tools() -> Result<Outcome> {
    let outcomes = [linker::install()?, core_source::install()?];
    Ok(if outcomes.contains(&Outcome::Provided) {
        Outcome::Provided
    } else {
        Outcome::AlreadyThere
    })
}

/// Everything, in silence if it is there already: for the tasks that need it.
pub(crate) fn ensure() -> Result<()> {
    shell::require_root("running the tests or the demonstration")?;
    build_tools()?;
    bpffs::mount()?;
    packages::install()?;
    Ok(())
}
