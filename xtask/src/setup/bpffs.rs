//! The file system in which BPF objects are pinned.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use super::Outcome;
use crate::{report, shell};

/// Where every distribution mounts it.
const PLACE: &str = "/sys/fs/bpf";

pub(super) fn mount() -> Result<Outcome> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    if is_mounted(&mounts) {
        return Ok(Outcome::AlreadyThere);
    }
    report::step(
        "mounting",
        &format!("bpffs at {PLACE}: maps and programs pinned there outlive `lb`"),
    );
    shell::run_quietly(Command::new("mount").args(["-t", "bpf", "bpf", PLACE]))
        .context("bpffs cannot be mounted; the kernel needs CONFIG_BPF_SYSCALL, and a container needs a writable /sys")?;
    Ok(Outcome::Provided)
}

/// Lines of `/proc/self/mounts`: device, place, type, options.
fn is_mounted(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(PLACE) && words.next() == Some("bpf")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bpf_file_system_at_the_place_counts() {
        assert!(is_mounted(
            "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n"
        ));
        assert!(!is_mounted(
            "tmpfs /sys/fs/bpf tmpfs rw 0 0\nbpf /run/bpf bpf rw 0 0\n"
        ));
        assert!(!is_mounted(""));
    }
}
