//! `lb check`: is a configuration valid?

use std::path::PathBuf;

use clap::Args;

use super::output::Screen;
use super::units;
use crate::config::{self, DEFAULT_FILE};
use crate::tls::Renewed;

/// Validate a configuration without touching anything
///
/// Every fault is shown with its line and with what would be valid. The
/// certificates that the file names are read too, and must fit.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb check                is /etc/lb/lb.toml valid?
  lb check -c lb.toml     is this file?
  lb check && lb reload   make a valid file take effect")]
pub(super) struct Check {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
}

impl Check {
    pub(super) fn obey(self, screen: &mut Screen) -> anyhow::Result<()> {
        let config = config::load(&self.config)?;
        if let Some(sync) = config.ha.as_ref().and_then(|ha| ha.sync.as_ref()) {
            Renewed::open(sync.files.clone(), sync.listen.ip())?;
        }
        let services = &config.services;
        let backends: usize = services.iter().map(|service| service.backends.len()).sum();
        let line = format!(
            "{} is valid: {}, {}\n",
            self.config.display(),
            units::plural(services.len() as u64, "service"),
            units::plural(backends as u64, "backend"),
        );
        Ok(screen.text(&line)?)
    }
}
