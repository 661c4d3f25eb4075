//! `cargo xtask demo`: the load balancer at work, on real connections.
//!
//! The demonstration itself is a program of the crate `tests`; this task
//! provides what it needs, runs it, and gives its exit status. A signal for
//! this process is handed on, and the demonstration is waited for while it
//! takes away what it has built. What it could not is swept away afterwards.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode, ExitStatus},
    thread,
};

use anyhow::{Context as _, Result};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{report, setup, shell, sweep};

/// Sets up, builds, shows, sweeps.
pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure()?;
    sweep::leftovers()?;
    report::step("building", "lb and the demonstration, optimised");
    shell::run(
        shell::cargo()
            .args(["build", "--quiet", "--release"])
            .args(["--package", "lb-userspace", "--bin", "lb"])
            .args(["--package", "tests", "--bin", "demo", "--bin", "echo"]),
    )?;
    let shown = show();
    sweep::leftovers()?;
    Ok(exit_code(shown?))
}

fn show() -> Result<ExitStatus> {
    let demo = shell::target_folder()?.join("release/demo");
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen to signals")?;
    let listening = signals.handle();
    let mut child = Command::new(&demo)
        .spawn()
        .with_context(|| format!("cannot run {}", demo.display()))?;
    let pid = child.id().to_string();
    let handing_on = thread::spawn(move || {
        for signal in signals.forever() {
            // One that has ended meanwhile needs no signal.
            let _ = shell::run_quietly(Command::new("kill").args([&format!("-{signal}"), &pid]));
        }
    });
    let status = child.wait();
    listening.close();
    // It has nothing to tell.
    let _ = handing_on.join();
    status.context("cannot wait for the demonstration")
}

/// The status as shells tell it: 128 and the number of the signal that ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let number = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .and_then(|number| u8::try_from(number).ok());
    number.map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_the_demonstration_is_passed_on() {
        // The wait status of exit(3), and of an end by SIGKILL.
        let code = |raw| format!("{:?}", exit_code(ExitStatus::from_raw(raw)));
        assert_eq!(code(3 << 8), format!("{:?}", ExitCode::from(3)));
        assert_eq!(code(9), format!("{:?}", ExitCode::from(137)));
    }
}
