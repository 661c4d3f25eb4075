//! `lb run`: the daemon.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::ColorWhen;
use crate::config::DEFAULT_FILE;
use crate::daemon;

/// Run the balancer: load, attach, check, balance
///
/// It runs in the foreground and logs to standard error (RUST_LOG sets how
/// much). SIGHUP reads the file again; SIGTERM or Ctrl-C stops it. Forwarding
/// goes on when it stops, and the next start takes up every connection where
/// it is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb run                                run by /etc/lb/lb.toml
  lb run -c lb.toml --detach-on-exit    run by another file, and stop forwarding at the end
  lb run --program-log debug            with a log line from the XDP program for each decision")]
pub(super) struct Run {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_FILE)]
    config: PathBuf,
    /// Remove the program on a clean stop, instead of letting forwarding go on
    #[arg(long)]
    detach_on_exit: bool,
    /// Discard pinned tables (and with them all flows) instead of adopting them
    #[arg(long)]
    fresh: bool,
    /// What the XDP program itself logs; off costs nothing
    #[arg(long, value_name = "LEVEL", default_value = "off")]
    program_log: ProgramLog,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProgramLog {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl ProgramLog {
    /// The level as the XDP program knows it (`aya_log`): 0 is off.
    fn number(self) -> u8 {
        self as u8
    }

    /// What the daemon's log lets through unless RUST_LOG says otherwise: what
    /// was asked of the program, and what matters of everything else.
    fn filter(self) -> &'static str {
        match self {
            Self::Off | Self::Error | Self::Warn | Self::Info => "info",
            Self::Debug => "info,lb_ebpf=debug",
            Self::Trace => "info,lb_ebpf=trace",
        }
    }
}

impl Run {
    pub(super) fn obey(self, control: Option<PathBuf>, color: ColorWhen) -> anyhow::Result<()> {
        super::log_to_stderr(self.program_log.filter(), color);
        daemon::run(daemon::Options {
            config: self.config,
            detach_on_exit: self.detach_on_exit,
            fresh: self.fresh,
            program_log: self.program_log.number(),
            control,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_numbers_of_the_xdp_programs_log() {
        let numbers = ProgramLog::value_variants()
            .iter()
            .map(|level| level.number());
        assert!(numbers.eq(0..=5));
    }
}
