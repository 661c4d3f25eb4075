//! `lb tls show`: what certificates say.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::bail;
use clap::Args;
use humantime::format_rfc3339_seconds;
use serde::Serialize;

use super::remaining;
use crate::cli::Json;
use crate::cli::output::{Cell, Column, Screen, Table};
use crate::config::{self, DEFAULT_FILE};
use crate::tls::Facts;

/// Show for whom certificates are, who issued them, and until when they are valid
///
/// Of every certificate in each FILE; without any, of those that the configuration
/// names. Keys are never read.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb tls show                          those of /etc/lb/lb.toml
  lb tls show tls/ca.crt tls/*/*.crt   these
  lb tls show --json node.crt          with exact times, for programs")]
pub(in crate::cli) struct Show {
    /// PEM files
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The configuration that names them
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE, conflicts_with = "files")]
    config: PathBuf,
    #[command(flatten)]
    json: Json,
}

/// A certificate as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    file: PathBuf,
    subject: String,
    names: Vec<String>,
    issuer: String,
    authority: bool,
    not_before: String,
    not_after: String,
    /// Seconds from now; negative if it has expired.
    expires_in: i64,
    #[serde(skip)]
    until: SystemTime,
}

impl Show {
    pub(super) fn obey(self, screen: &mut Screen) -> anyhow::Result<()> {
        let now = SystemTime::now();
        let files = if self.files.is_empty() {
            named(&self.config)?
        } else {
            self.files
        };
        let mut shown = Vec::new();
        for file in files {
            let facts = Facts::read(&file)?;
            shown.extend(facts.into_iter().map(|facts| form(&file, facts, now)));
        }
        Ok(screen.result(self.json, &shown, |shown, width| table(shown, now, width))?)
    }
}

/// The certificates that a configuration names.
fn named(config: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let parsed = config::load(config)?;
    let files: Vec<PathBuf> = parsed
        .certificates()
        .into_iter()
        .map(Path::to_owned)
        .collect();
    if files.is_empty() {
        let config = config.display();
        bail!("{config} names no certificates; name files: `lb tls show FILE`");
    }
    Ok(files)
}

fn form(file: &Path, facts: Facts, now: SystemTime) -> Shown {
    let seconds = |span: std::time::Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    let expires_in = match facts.not_after.duration_since(now) {
        Ok(left) => seconds(left),
        Err(over) => -seconds(over.duration()),
    };
    Shown {
        file: file.to_owned(),
        subject: facts.subject,
        names: facts.names,
        issuer: facts.issuer,
        authority: facts.authority,
        not_before: format_rfc3339_seconds(facts.not_before).to_string(),
        not_after: format_rfc3339_seconds(facts.not_after).to_string(),
        expires_in,
        until: facts.not_after,
    }
}

fn table(shown: &[Shown], now: SystemTime, width: Option<usize>) -> String {
    let columns = ["FILE", "SUBJECT", "ISSUER", "UNTIL", "EXPIRES", "NAMES"];
    let mut table = Table::new(columns.map(Column::Left));
    for certificate in shown {
        let (style, left) = remaining(certificate.until, now);
        let names = if certificate.authority {
            "(a CA)".to_owned()
        } else {
            certificate.names.join(", ")
        };
        let day = certificate.not_after[..10].to_owned();
        table.row([
            certificate.file.display().to_string().into(),
            certificate.subject.as_str().into(),
            certificate.issuer.as_str().into(),
            day.into(),
            Cell::new(style, left),
            names.into(),
        ]);
    }
    table.render(width)
}
