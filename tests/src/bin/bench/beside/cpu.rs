//! CPU time, as the kernel counts it.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The kernel's clock ticks for those who look at it from outside (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// How many CPUs there are.
pub(super) fn count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// How long all CPUs together were busy since the start of the machine, whatever
/// with: processes, system calls, and what came of packets.
pub(super) fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let figures: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq (proc(5)); time in which the
    // hypervisor let the CPU wait is nobody's.
    let spent = [0, 1, 2, 5, 6].map(|place| figures.get(place).copied().unwrap_or(0));
    ticks(spent.iter().sum())
}

/// How much of it a process had.
pub(super) fn of_process(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // Behind the name, which may have spaces, utime and stime are the 12th and 13th.
    let rest = text.rsplit_once(") ").context("a process has a name")?.1;
    let mut figures = rest.split(' ').skip(11).map(str::parse::<u64>);
    let [user, system] = [figures.next(), figures.next()];
    let time = |word: Option<Result<u64, _>>| word.and_then(Result::ok).unwrap_or(0);
    ticks(time(user) + time(system))
}

fn ticks(count: u64) -> Result<Duration> {
    Ok(TICK * u32::try_from(count).context("a machine is not so old")?)
}
