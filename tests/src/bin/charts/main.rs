//! `cargo xtask charts`: draws what each scheduler does with a million simulated
//! connections, and writes the figures and the list of schedulers into
//! `schedulers.md`, in the folder that is its argument.
//!
//! The simulation ([`tests::simulation`]) is the same in every run, so the
//! result changes only with the schedulers.

mod draw;
mod page;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use lb_userspace::schedule;
use tests::simulation::{Measured, flows, measure};

fn main() -> Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .context("name the folder of the documentation")?;
    let flows = flows();
    let measured: Vec<Measured> = schedule::ALL
        .iter()
        .map(|scheduler| measure(scheduler, &flows))
        .collect();
    for (name, chart) in [
        (
            "schedulers-distribution.svg",
            draw::distribution(&measured)?,
        ),
        ("schedulers-disruption.svg", draw::disruption(&measured)?),
    ] {
        let path = folder.join(name);
        fs::write(&path, chart).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let path = folder.join("schedulers.md");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = page::renewed(&text, &measured)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
