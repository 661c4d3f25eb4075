//! What a balancer may change on its host, to compare before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Daemon, Host};

/// Addresses, XDP programs, settings, pins and files: by name, as text.
pub type Snapshot = BTreeMap<String, String>;

/// The settings of interfaces and of forwarding, below `/proc/sys/net`.
const SETTINGS: [&str; 2] = ["ipv4/conf", "ipv6/conf"];

/// The kernel's work that follows the end of a process is done long before.
const SETTLED: Duration = Duration::from_secs(10);

/// The state of the host, and of the daemon's pins and files in it.
pub fn snapshot(host: &Host, daemon: &Daemon) -> Result<Snapshot> {
    let mut all = Snapshot::new();
    let links: serde_json::Value = serde_json::from_str(&host.run("ip", &["-j", "addr"])?)?;
    for link in links.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or_default();
        all.insert(
            format!("addresses of {name}"),
            link["addr_info"].to_string(),
        );
        all.insert(format!("program on {name}"), link["xdp"].to_string());
    }
    host.enter(|| {
        for folder in SETTINGS {
            for path in files(&Path::new("/proc/sys/net").join(folder)) {
                // Some can only be written.
                if let Ok(text) = fs::read_to_string(&path) {
                    all.insert(path.display().to_string(), text);
                }
            }
        }
    });
    all.insert("pins".into(), daemon.pinned().join(" "));
    for path in [
        &daemon.control,
        &daemon.control.with_extension("state.json"),
    ] {
        all.insert(path.display().to_string(), path.exists().to_string());
    }
    all.insert(
        "the folder of pins".into(),
        daemon.pins.exists().to_string(),
    );
    Ok(all)
}

/// What differs, a line each; empty if nothing does.
pub fn differences(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let names = before.keys().chain(after.keys());
    let mut lines: Vec<String> = names
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| format!("{name}: {:?} -> {:?}", before.get(name), after.get(name)))
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

/// What still differs from `before` when the kernel has had time to settle: it
/// takes a program off an interface a moment after the last descriptor of its
/// link is closed.
pub fn lasting_differences(before: &Snapshot, host: &Host, daemon: &Daemon) -> Result<Vec<String>> {
    let deadline = Instant::now() + SETTLED;
    loop {
        let lines = differences(before, &snapshot(host, daemon)?);
        if lines.is_empty() || Instant::now() > deadline {
            return Ok(lines);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
