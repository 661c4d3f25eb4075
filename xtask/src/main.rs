//! Fulcrum's tasks, one file each: `cargo xtask TASK`.
//!
//! Everything a fresh machine needs is done by the task that needs it; there is
//! no list of things to do first. A task says what it does as it does it, and
//! fails with one sentence.

mod bench;
mod build;
mod charts;
mod ci;
mod demo;
mod docs;
mod fuzz;
mod report;
mod sanitize;
mod setup;
mod shell;
mod sweep;
mod test;
mod tools;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

/// Fulcrum's tasks.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Provide what building and testing need: linker, core's source, bpffs, packages
    Setup,
    /// Build `lb` with the XDP program inside, optimised
    Build,
    /// Set up, build, and run every test (as root: in the kernel and through namespaces)
    Test {
        /// Handed to `cargo test --workspace` as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Build with AddressSanitizer, and run the data path's tests on the host
    Sanitize,
    /// Fuzz the readers of what strangers may send
    Fuzz {
        /// For how many seconds each
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Set up, build, and show the balancer at work on real connections (as root)
    Demo,
    /// Set up, build, and measure: packets, rates, rivals, control plane (as root);
    /// see `-- --help`
    Bench {
        /// Handed to the benchmark as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Draw what each scheduler does with a million connections, and write the
    /// figures into docs/schedulers.md
    Charts,
    /// Formatting, lints with warnings denied, and whether the documentation is current
    Lint,
    /// What continuous integration runs: `lint`, then `test`
    Ci,
    /// Write the generated parts of README.md
    Docs {
        /// Write nothing; fail if they are stale
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Setup => setup::run(),
        Task::Build => build::run(),
        Task::Test { arguments } => test::run(&arguments),
        // Its exit status is the demonstration's.
        Task::Demo => match demo::run() {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Task::Bench { arguments } => bench::run(&arguments),
        Task::Charts => charts::run(),
        Task::Sanitize => sanitize::run(),
        Task::Fuzz { seconds } => fuzz::run(seconds),
        Task::Lint => ci::lint(),
        Task::Ci => ci::run(),
        Task::Docs { check } => docs::run(check),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::failed(&error);
            ExitCode::FAILURE
        }
    }
}
