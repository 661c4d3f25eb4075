//! Debian packages that the tests and the demonstration use.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail};

use super::Outcome;
use crate::{report, shell};

/// A package, a command by which other systems show that they have it, and why
/// it is needed.
struct Package {
    name: &'static str,
    command: &'static str,
    reason: &'static str,
}

const fn package(name: &'static str, command: &'static str, reason: &'static str) -> Package {
    Package {
        name,
        command,
        reason,
    }
}

const PACKAGES: [Package; 15] = [
    package(
        "iproute2",
        "ip",
        "network namespaces and the links between them",
    ),
    package(
        "ethtool",
        "ethtool",
        "switches off checksum offload, which veth promises but does not do",
    ),
    package("procps", "sysctl", "network settings inside the namespaces"),
    package(
        "util-linux",
        "nsenter",
        "commands inside the namespaces, mounts",
    ),
    package("nginx-light", "nginx", "a real web server as backend"),
    package("curl", "curl", "real requests, one connection each"),
    package("wrk", "wrk", "requests at a high rate"),
    package("iperf3", "iperf3", "bulk transfers over TCP and UDP"),
    package(
        "nftables",
        "nft",
        "the kernel's own address translation, to compare with",
    ),
    package("haproxy", "haproxy", "a proxy, to compare with"),
    package("tcpdump", "tcpdump", "what is really on the wire"),
    package(
        "python3-scapy",
        "scapy",
        "frames made and judged by an independent implementation",
    ),
    package(
        "tshark",
        "tshark",
        "a second judge of what the balancer sends",
    ),
    package(
        "keepalived",
        "keepalived",
        "another implementation of VRRP, as the peer",
    ),
    package(
        "bpftool",
        "bpftool",
        "the kernel's own view of maps, programs and links",
    ),
];

pub(super) fn install() -> Result<Outcome> {
    if !shell::is_on_path("dpkg-query") {
        return elsewhere();
    }
    let missing = missing()?;
    if missing.is_empty() {
        return Ok(Outcome::AlreadyThere);
    }
    for package in &missing {
        report::step(
            "installing",
            &format!("{}: {}", package.name, package.reason),
        );
    }
    let _policy = NoServices::begin()?;
    shell::run_quietly(&mut apt("update")).context(
        "the package lists cannot be fetched; is there a network, and are apt's sources right?",
    )?;
    shell::run_quietly(
        apt("install")
            .args(["-y", "--no-install-recommends"])
            .args(missing.iter().map(|package| package.name)),
    )?;
    Ok(Outcome::Provided)
}

/// Not a Debian system: packages have other names there.
fn elsewhere() -> Result<Outcome> {
    let absent: Vec<_> = PACKAGES
        .iter()
        .filter(|package| !shell::is_on_path(package.command))
        .map(|package| package.command)
        .collect();
    if absent.is_empty() {
        return Ok(Outcome::AlreadyThere);
    }
    bail!(
        "this is no Debian system, so install the packages that provide these commands by hand: {}",
        absent.join(", ")
    );
}

fn missing() -> Result<Vec<&'static Package>> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(PACKAGES.iter().map(|package| package.name))
        .output()
        .context("cannot run dpkg-query")?;
    // It fails when one is unknown to it, and lists the others all the same.
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(not_installed(&listing))
}

fn not_installed(listing: &str) -> Vec<&'static Package> {
    let installed = |package: &&Package| {
        listing
            .lines()
            .any(|line| line == format!("{} installed", package.name))
    };
    PACKAGES
        .iter()
        .filter(|package| !installed(package))
        .collect()
}

fn apt(verb: &str) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["--quiet", verb])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(process::Stdio::null());
    command
}

/// Debian's way to ask whether a package may start its services
/// (`/usr/share/doc/init-system-helpers/README.policy-rc.d.gz`).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// While it lives, freshly installed packages start no services on this host:
/// the tests start their own, in namespaces. A policy that is there already is
/// the administrator's and stays in force. Ours forbids only as long as this
/// process lives, so that one left behind by a crash does no harm.
struct NoServices {
    ours: bool,
}

/// By which a policy of ours is known.
const MARK: &str = "# written by `cargo xtask setup`";

impl NoServices {
    fn begin() -> Result<Self> {
        let path = Path::new(POLICY);
        if path.exists() && !fs::read_to_string(path).unwrap_or_default().contains(MARK) {
            return Ok(Self { ours: false });
        }
        fs::write(path, policy(process::id())).with_context(|| format!("cannot write {POLICY}"))?;
        let guard = Self { ours: true };
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {POLICY} executable"))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            // Left behind, it allows everything as soon as this process ends.
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// 101 is "forbidden", 0 "allowed".
fn policy(owner: u32) -> String {
    format!("#!/bin/sh\n{MARK}\n[ -d /proc/{owner} ] && exit 101\nexit 0\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_dpkg_does_not_call_installed_is_missing() {
        let listing: String = PACKAGES
            .iter()
            .map(|package| match package.name {
                "wrk" => "wrk config-files\n".into(),
                "curl" => String::new(),
                name => format!("{name} installed\n"),
            })
            .collect();
        let names: Vec<_> = not_installed(&listing)
            .iter()
            .map(|package| package.name)
            .collect();
        assert_eq!(names, ["curl", "wrk"]);
    }

    #[test]
    fn the_policy_forbids_only_while_its_owner_lives() {
        let verdict = |owner| {
            Command::new("sh")
                .arg("-c")
                .arg(policy(owner))
                .status()
                .unwrap()
                .code()
        };
        assert_eq!(verdict(process::id()), Some(101));
        let mut ended = Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        assert_eq!(verdict(ended.id()), Some(0));
    }
}
