//! The command line: what a user types becomes meaning in one step, and what
//! comes back is shown.
//!
//! Each noun has a file of its own: its arguments, what is asked of the daemon,
//! and pure functions that turn the answers into text. Values (weights, names,
//! addresses) are judged by the configuration's own functions, so that they
//! mean the same wherever they are written; one that makes no sense is refused
//! like anything else, with a sentence and exit status 1. Only what cannot be
//! understood as a command at all is a usage error, status 2.
//!
//! Results go to standard output and nothing else does; progress and errors go
//! to standard error. A reader that closes the pipe ends a command quietly.

mod backend;
mod check;
mod completions;
mod decap;
mod doctor;
mod drops;
mod events;
mod flows;
mod ha;
mod output;
mod overrides;
mod reload;
mod run;
mod service;
mod status;
mod tls;
mod units;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::api::client::Client;
use crate::config::{ConfigErrors, Fault};
use output::{OutputError, Screen};

/// Where the daemon listens if nothing else is said.
const DEFAULT_CONTROL: &str = "/run/lb/lb.sock";

/// The title of options that every command takes.
const EVERYWHERE: &str = "Options of every command";

/// Fulcrum: a layer-4 load balancer whose data path is an XDP program
#[derive(Debug, Parser)]
#[command(
    name = "lb",
    version,
    after_help = "Examples:
  lb check -c lb.toml                 is this configuration valid?
  lb doctor -c lb.toml                is this host fit for it?
  lb run -c lb.toml                   run the balancer
  lb status                           how it is
  lb backend weight web web1 5        give web1 more of web's new connections
  lb backend drain web web1 --wait    take web1 out of service without breaking a connection"
)]
struct Cli {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Shared {
    /// The daemon's control socket; `run` takes it from its file if it is not
    /// given [default: /run/lb/lb.sock]
    #[arg(
        long,
        value_name = "PATH",
        global = true,
        env = "LB_CONTROL",
        hide_env_values = true,
        help_heading = EVERYWHERE
    )]
    control: Option<PathBuf>,
    /// Colours: auto, always or never; auto is on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        value_name = "WHEN",
        global = true,
        default_value = "auto",
        hide_possible_values = true,
        help_heading = EVERYWHERE
    )]
    color: ColorWhen,
}

/// What commands take that show something.
#[derive(Clone, Copy, Debug, Args)]
struct Json {
    /// Print JSON, with exact numbers
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ColorWhen {
    Auto,
    Always,
    Never,
}

impl From<ColorWhen> for anstream::ColorChoice {
    fn from(when: ColorWhen) -> Self {
        match when {
            ColorWhen::Auto => Self::Auto,
            ColorWhen::Always => Self::Always,
            ColorWhen::Never => Self::Never,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Doctor(doctor::Doctor),
    #[command(flatten)]
    Request(Request),
    Decap(decap::Decap),
    #[command(subcommand)]
    Tls(tls::Tls),
    Completions(completions::Completions),
}

/// Commands that talk to the daemon.
#[derive(Debug, Subcommand)]
enum Request {
    Reload(reload::Reload),
    Status(status::Status),
    #[command(subcommand)]
    Service(service::Service),
    #[command(subcommand)]
    Backend(backend::Backend),
    Overrides(overrides::Overrides),
    Flows(flows::Flows),
    Drops(drops::Drops),
    Events(events::Events),
    #[command(subcommand)]
    Ha(ha::Ha),
}

/// What requests need: the daemon, and a place for results.
struct Context {
    client: Client,
    screen: Screen,
}

/// Does what this process's arguments say. The status is 0 if it is done, 1 if
/// it was refused or failed, and 2 if the arguments cannot be understood.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let color = cli.shared.color;
    let Err(error) = obey(cli) else {
        return ExitCode::SUCCESS;
    };
    if let Some(OutputError::Closed) = error.downcast_ref() {
        return ExitCode::SUCCESS;
    }
    // With standard error gone as well, the status is all that can be said.
    let mut stderr = anstream::AutoStream::new(io::stderr(), color.into());
    let _ = writeln!(stderr, "{}", complaint(&error));
    ExitCode::FAILURE
}

/// The definition of the command line, for documentation that is made from it.
pub fn definition() -> clap::Command {
    Cli::command()
}

fn obey(cli: Cli) -> anyhow::Result<()> {
    let Shared { control, color } = cli.shared;
    match cli.command {
        Command::Run(run) => run.obey(control, color),
        Command::Check(check) => check.obey(&mut Screen::new(color)),
        Command::Doctor(doctor) => doctor.obey(&mut Screen::new(color)),
        Command::Tls(tls) => tls.obey(&mut Screen::new(color)),
        Command::Decap(decap) => decap.obey(color),
        Command::Completions(completions) => completions.obey(&mut Screen::new(color)),
        Command::Request(request) => {
            let control = control.unwrap_or_else(|| PathBuf::from(DEFAULT_CONTROL));
            let mut context = Context {
                client: Client::new(control),
                screen: Screen::new(color),
            };
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime for input and output")?
                .block_on(request.obey(&mut context))
        }
    }
}

impl Request {
    async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        match self {
            Self::Reload(reload) => reload.obey(context).await,
            Self::Status(status) => status.obey(context).await,
            Self::Service(service) => service.obey(context).await,
            Self::Backend(backend) => backend.obey(context).await,
            Self::Overrides(overrides) => overrides.obey(context).await,
            Self::Flows(flows) => flows.obey(context).await,
            Self::Drops(drops) => drops.obey(context).await,
            Self::Events(events) => events.obey(context).await,
            Self::Ha(ha) => ha.obey(context).await,
        }
    }
}

/// Logs of a command that stays go to standard error: what RUST_LOG says, else
/// what `filter` says.
fn log_to_stderr(filter: &str, color: ColorWhen) {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(filter))
        .write_style(match color {
            ColorWhen::Auto => env_logger::WriteStyle::Auto,
            ColorWhen::Always => env_logger::WriteStyle::Always,
            ColorWhen::Never => env_logger::WriteStyle::Never,
        })
        .init();
}

/// An error as the user sees it: one line, each cause told once. Faults of a
/// configuration come with their places and speak for themselves.
fn complaint(error: &anyhow::Error) -> String {
    if let Some(faults) = error.downcast_ref::<ConfigErrors>() {
        return faults.to_string();
    }
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    format!("lb: {line}")
}

/// A fault of a value as an error: what, and what to do.
fn refused(fault: &Fault) -> anyhow::Error {
    match fault.help() {
        Some(help) => anyhow::anyhow!("{fault}; {help}"),
        None => anyhow::anyhow!("{fault}"),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds() {
        definition().debug_assert();
    }

    #[test]
    fn every_command_ends_its_help_with_examples() {
        fn look(command: &clap::Command, above: &str) {
            let name = format!("{above}{} ", command.get_name());
            let after = command.get_after_help().map(ToString::to_string);
            let after = after.unwrap_or_default();
            assert!(after.starts_with("Examples:\n"), "{name}");
            for line in after.lines().skip(1) {
                let words = line.trim_start().replace("sudo ", "");
                assert!(words.starts_with(name.trim_end()), "{name}: {line}");
            }
            for below in command.get_subcommands() {
                look(below, &name);
            }
        }
        look(&definition(), "");
    }

    #[test]
    fn a_complaint_tells_each_cause_once() {
        let cause = io::Error::other("no luck");
        let error = anyhow!(cause).context("cannot do it: no luck; try again");
        assert_eq!(complaint(&error), "lb: cannot do it: no luck; try again");
        let error = anyhow!("no luck").context("cannot do it");
        assert_eq!(complaint(&error), "lb: cannot do it: no luck");
    }
}
