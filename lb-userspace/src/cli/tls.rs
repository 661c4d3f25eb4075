//! `lb tls`: certificates for people who have none, and what certificates say.

mod init;
mod show;

use std::time::{Duration, SystemTime};

use anstyle::Style;
use clap::Subcommand;

use super::output::{BAD, GOOD, NOTABLE, Screen};
use super::units;
use crate::tls::SOON;
use crate::tls::authority::DAY;

/// Make certificates for the nodes of a pair, or show what certificates say
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  lb tls init lb-a=10.0.0.2 lb-b=10.0.0.3     a CA, and certificates for two nodes
  lb tls init --renew lb-a=10.0.0.2           another certificate for one of them
  lb tls show /etc/lb/tls/node.crt            for whom, by whom, until when")]
pub(super) enum Tls {
    Init(init::Init),
    Show(show::Show),
}

impl Tls {
    pub(super) fn obey(self, screen: &mut Screen) -> anyhow::Result<()> {
        match self {
            Self::Init(init) => init.obey(screen),
            Self::Show(show) => show.obey(screen),
        }
    }
}

/// How long something is valid yet, and in which colour that is told.
pub(super) fn remaining(not_after: SystemTime, now: SystemTime) -> (Style, String) {
    match not_after.duration_since(now) {
        Ok(left) if left > SOON => (GOOD, format!("in {}", days(left))),
        Ok(left) => (NOTABLE, format!("in {}", days(left))),
        Err(over) => (BAD, format!("{} ago", days(over.duration()))),
    }
}

/// A span in days, to the nearest; a short one exactly.
fn days(span: Duration) -> String {
    if span < 2 * DAY {
        units::span(span.as_secs_f64())
    } else {
        units::plural((span + DAY / 2).as_secs() / DAY.as_secs(), "day")
    }
}
