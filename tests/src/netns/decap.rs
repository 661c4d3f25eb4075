//! `lb decap` on a backend.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::{Host, Net, lb_binary, wait_until};

/// How long a start or an end may take on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// Unwraps what comes to `eth0`. Dropped, its process ends; in a test that fails
/// its log is printed.
#[derive(Debug)]
pub struct Decap {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Decap {
    /// Starts it and waits until it is attached.
    pub fn start(net: &Net, host: &Host) -> Result<Self> {
        let log = net.folder().join(format!("decap-{}.log", host.name));
        let file = File::create(&log)?;
        let child = host
            .command(lb_binary())
            .args(["decap", "eth0", "--json"])
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot run nsenter; it is in Debian's package util-linux")?;
        let mut decap = Self {
            child,
            name: host.name.clone(),
            log,
        };
        wait_until("lb decap is attached", BOUND, || {
            let ended = decap.child.try_wait()?;
            ensure!(ended.is_none(), "lb decap ended: {}", decap.logged());
            let text = host.run("ip", &["-j", "link", "show", "eth0"])?;
            let links: serde_json::Value = serde_json::from_str(&text)?;
            Ok(!links[0]["xdp"].is_null())
        })?;
        Ok(decap)
    }

    /// Asks it to end (SIGTERM); gives what it says that it did.
    pub fn stop(mut self) -> Result<serde_json::Value> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        wait_until("lb decap ends", BOUND, || {
            Ok(self.child.try_wait()?.is_some())
        })?;
        let log = self.logged();
        let report = log.find("\n{").map(|at| &log[at..]);
        serde_json::from_str(report.unwrap_or(&log))
            .with_context(|| format!("lb decap printed no report: {log}"))
    }

    fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Decap {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("the log of lb decap on {}:\n{}", self.name, self.logged());
        }
    }
}
