//! `lb doctor`: is this host fit?

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use super::output::{BAD, Cell, Column, GOOD, NOTABLE, Screen, Table};
use super::{Json, units};
use crate::config::DEFAULT_FILE;
use crate::doctor::{self, Finding, State};

/// Is this host fit for what the configuration asks of it?
///
/// Kernel and rights, pins, interfaces and their drivers, settings, and of a pair the
/// certificates, the clock and the other node. Nothing is changed, and a daemon that
/// runs is not disturbed. The exit status is 1 if anything fails.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb doctor               for /etc/lb/lb.toml
  lb doctor -c lb.toml    for this file
  lb doctor --json        for programs")]
pub(super) struct Doctor {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    #[command(flatten)]
    json: Json,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    findings: Vec<Finding>,
    warnings: usize,
    failures: usize,
}

impl Doctor {
    pub(super) fn obey(self, screen: &mut Screen) -> anyhow::Result<()> {
        let findings = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime for input and output")?
            .block_on(doctor::examine(&self.config));
        let count = |state| {
            let such = findings.iter().filter(|finding| finding.state == state);
            such.count()
        };
        let report = Report {
            warnings: count(State::Warn),
            failures: count(State::Fail),
            findings,
        };
        screen.result(self.json, &report, text)?;
        match report.failures {
            0 => Ok(()),
            1 => bail!("1 check failed"),
            failures => bail!("{failures} checks failed"),
        }
    }
}

fn text(report: &Report, width: Option<usize>) -> String {
    let mut table = Table::new(["STATE", "CHECK", "FINDING"].map(Column::Left));
    for finding in &report.findings {
        let style = match finding.state {
            State::Ok => GOOD,
            State::Warn => NOTABLE,
            State::Fail => BAD,
        };
        let said = match &finding.remedy {
            Some(remedy) => format!("{}: {remedy}", finding.found),
            None => finding.found.clone(),
        };
        table.row([
            Cell::new(style, finding.state.word()),
            finding.check.into(),
            said.into(),
        ]);
    }
    let (warnings, failures) = (report.warnings as u64, report.failures as u64);
    let summary = format!(
        "{}, {}",
        units::plural(warnings, "warning"),
        units::plural(failures, "failure")
    );
    table.render(width) + &format!("\n{summary}\n")
}
