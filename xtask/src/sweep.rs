//! What crashed tests and demonstrations leave behind, and its removal.
//!
//! Tests clean up after themselves; one that is killed cannot. Whatever they
//! make on the host (a network namespace, a folder of pins) is therefore named
//! `lbt-PID-NAME` or `lbt-NAME-PID`, with the process that owns it. While that
//! process lives, other runs leave it alone; afterwards anybody may sweep it
//! away. A name without a process is swept away at once.

use std::{
    collections::BTreeSet, env, fs, os::unix::fs::MetadataExt as _, path::Path, process::Command,
};

use anyhow::{Context as _, Result};

use crate::{report, shell};

/// How the names of everything that tests make on the host begin.
pub(crate) const PREFIX: &str = "lbt-";

const NAMESPACES: &str = "/run/netns";
const PINS: &str = "/sys/fs/bpf";

/// Removes what belongs to processes that are gone: their namespaces, with
/// every process still in one, their pins, and their temporary files.
pub(crate) fn leftovers() -> Result<()> {
    for name in orphans(Path::new(NAMESPACES)) {
        report::step(
            "sweeping",
            &format!("network namespace {name} of a test that did not end well"),
        );
        end_processes_in(&name)?;
        shell::run_quietly(Command::new("ip").args(["netns", "delete", &name]))?;
    }
    let temporary = env::temp_dir();
    for (folder, what) in [(Path::new(PINS), "pins in"), (&temporary, "files in")] {
        remove_orphans(folder, what)?;
    }
    Ok(())
}

/// Removes the folders and files of processes that are gone.
fn remove_orphans(folder: &Path, what: &str) -> Result<()> {
    for name in orphans(folder) {
        let path = folder.join(name);
        report::step(
            "sweeping",
            &format!("{what} {} of a test that did not end well", path.display()),
        );
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// Names in a folder that are a test's and whose owner is gone.
fn orphans(folder: &Path) -> Vec<String> {
    // A folder that does not exist holds no leftovers.
    let entries = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut orphans: Vec<_> = names.filter(|name| is_orphan(name, lives)).collect();
    orphans.sort();
    orphans
}

fn lives(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

fn is_orphan(name: &str, lives: impl Fn(u32) -> bool) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let ends = [rest.split('-').next(), rest.rsplit('-').next()];
    !ends
        .into_iter()
        .flatten()
        .filter_map(|part| part.parse().ok())
        .any(lives)
}

/// Ends what a test started in its namespace. A namespace's name can go while
/// processes keep the namespace itself, and its links, alive.
fn end_processes_in(namespace: &str) -> Result<()> {
    let Ok(wanted) = fs::metadata(Path::new(NAMESPACES).join(namespace)) else {
        return Ok(());
    };
    let host = fs::metadata("/proc/self/ns/net")
        .context("cannot read this process's network namespace")?;
    if wanted.ino() == host.ino() {
        return Ok(());
    }
    let processes = fs::read_dir("/proc")
        .context("cannot list processes")?
        .filter_map(Result::ok);
    let pids: BTreeSet<u32> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|own| own.ino() == wanted.ino())
        })
        .collect();
    for pid in pids {
        // One that has ended meanwhile is as good as one that was ended.
        let _ = shell::run_quietly(Command::new("kill").args(["-KILL", &pid.to_string()]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_tests_whose_owner_is_gone_are_orphans() {
        let lives = |pid| pid == 10;
        assert!(!is_orphan("lbt-10-client", lives));
        assert!(!is_orphan("lbt-client-10", lives));
        assert!(!is_orphan("lbt-10", lives));
        assert!(is_orphan("lbt-client-11", lives));
        assert!(is_orphan("lbt-11-client", lives));
        assert!(is_orphan("lbt-client", lives));
        assert!(!is_orphan("lb", lives));
        assert!(!is_orphan("other-11", lives));
    }

    #[test]
    fn a_folder_that_is_not_there_holds_nothing() {
        assert!(orphans(Path::new("/nowhere/at/all")).is_empty());
    }
}
