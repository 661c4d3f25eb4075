//! Where the figures were taken.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The machine, and the CPU that everything runs on.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The processor's own name for itself.
    pub(crate) processor: String,
    /// How many there are.
    pub(crate) cpus: usize,
    /// The one in use.
    pub(crate) cpu: usize,
    /// Whether it is virtual.
    pub(crate) is_virtual: bool,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The day, by UTC.
    pub(crate) date: String,
    /// The commit, with `+` where files differ from it.
    pub(crate) commit: String,
}

impl Machine {
    /// Says what this machine is, and pins this thread to the last CPU that it
    /// may use.
    pub(crate) fn of_this_thread() -> Result<Self> {
        stay_on_last_cpu()?;
        Self::here()
    }

    /// Says what this machine is.
    pub(crate) fn here() -> Result<Self> {
        let cpu = last_cpu()?;
        let cpuinfo = read("/proc/cpuinfo")?;
        let processor = (cpuinfo.lines())
            .find_map(|line| line.strip_prefix("model name"))
            .map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
        let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor"));
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
        Ok(Self {
            processor: processor.into(),
            cpus: cpus.count(),
            cpu,
            is_virtual: flags.is_some_and(|line| line.contains(" hypervisor")),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().into(),
            date: said(Command::new("date").args(["--utc", "+%F"])),
            commit: said(Command::new("git").args([
                "-C",
                env!("CARGO_MANIFEST_DIR"),
                "describe",
                "--always",
                "--dirty=+",
                "--exclude=*",
            ])),
        })
    }

    /// The same in one line.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} ({} CPUs{}), Linux {}, {}, commit {}",
            self.processor,
            self.cpus,
            if self.is_virtual { ", virtual" } else { "" },
            self.kernel,
            self.date,
            self.commit
        )
    }
}

/// Pins this thread to the last CPU that it may use.
pub(crate) fn stay_on_last_cpu() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(last_cpu()?);
    sched_setaffinity(None, &one).context("cannot pin this thread to a CPU")
}

fn last_cpu() -> Result<usize> {
    let allowed = sched_getaffinity(None).context("cannot ask for this thread's CPUs")?;
    (0..CpuSet::MAX_CPU)
        .rev()
        .find(|&cpu| allowed.is_set(cpu))
        .context("this thread may run on no CPU")
}

/// What the kernel says that a map takes, in bytes.
pub(crate) fn map_memory(map: &MapData) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    field(&path, "memlock:")
}

/// The number after this word at the beginning of a line.
fn field(path: &str, word: &str) -> Result<u64> {
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{path} has no number after `{word}`"))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

/// What a command says, or that it says nothing.
fn said(command: &mut Command) -> String {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success());
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok());
    text.map_or_else(|| "unknown".into(), |text| text.trim().into())
}
