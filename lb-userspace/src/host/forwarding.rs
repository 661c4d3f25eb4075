//! The sysctls without which packets would not be forwarded.
//!
//! The data path asks the kernel's own routing (`bpf_fib_lookup`), which
//! answers `BPF_FIB_LKUP_RET_FWD_DISABLED` where the interface a packet came
//! in on does not forward (`bpf_ipv4_fib_lookup` and `bpf_ipv6_fib_lookup` in
//! `net/core/filter.c`); and where a neighbour is not resolved yet, it hands
//! the translated packet to the stack, which must then forward it. That packet
//! has a source of this host, a service's address, which the stack takes for a
//! forgery unless told otherwise. So, for each interface:
//!
//! - `net.ipv4.conf.IF.forwarding` = 1;
//! - `net.ipv4.conf.IF.accept_local` = 1: a source of this host may come in;
//! - `net.ipv4.conf.IF.rp_filter` = 2 where it was strict, by itself or by
//!   `all` (the larger of the two counts): the service's address is not
//!   reached through every interface a translated packet comes in on. Loose
//!   still refuses sources that no route leads to.
//!
//! And where there are services over IPv6:
//!
//! - `net.ipv6.conf.IF.forwarding` = 1 for the lookup, and
//!   `net.ipv6.conf.all.forwarding` = 1 for the stack, which looks only there;
//! - before that, `accept_ra` = 2 where it was 1. A host that forwards
//!   ignores router advertisements and drops the default route it learnt from
//!   them, unless it is 2. Turning on `all` turns on every interface, so this
//!   holds for all that did not forward before, not just for the balancer's.
//!
//! Only what differs is changed, and [`restore`] puts it back. What an earlier
//! run changed is not known to a later one: it is the host's setting by then.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where the kernel shows its settings.
pub const SYSCTLS: &str = "/proc/sys";

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Its file.
    pub path: PathBuf,
    /// What it was.
    pub from: String,
    /// What it is now.
    pub to: String,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, from, to } = self;
        write!(f, "{} is now {to} (was {from})", path.display())
    }
}

/// Why the settings could not be made.
#[derive(Debug, Error)]
pub enum ForwardingError {
    /// A setting could not be read.
    #[error("cannot read {}, without which nothing can be forwarded: {source}", path.display())]
    Read {
        /// Its file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A setting could not be changed.
    #[error(
        "cannot set {} to {to}, without which nothing is forwarded: {source}; set it before lb starts, or run lb where it may",
        path.display()
    )]
    Write {
        /// Its file.
        path: PathBuf,
        /// What it was to be.
        to: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// This kernel has no IPv6.
    #[error(
        "a service has an IPv6 address, but this kernel runs without IPv6; remove ipv6.disable=1 from its command line, or the service from the configuration"
    )]
    NoIpv6,
    /// IPv6 is off on an interface.
    #[error(
        "a service has an IPv6 address, but IPv6 is off on interface {0}; set the sysctl net.ipv6.conf.{0}.disable_ipv6 to 0"
    )]
    Ipv6Off(String),
}

/// Makes the settings for `interfaces`, and for those `implied` by them, of
/// which one may be without IPv6; `sysctls` is [`SYSCTLS`]. Gives what it
/// changed, in order; after an error nothing is changed.
pub fn prepare(
    sysctls: &Path,
    interfaces: &[String],
    implied: &[String],
    ipv6: bool,
) -> Result<Vec<Changed>, ForwardingError> {
    let mut changes = Changes {
        sysctls,
        made: Vec::new(),
        make: true,
    };
    match changes.all(interfaces, implied, ipv6) {
        Ok(()) => Ok(changes.made),
        Err(error) => {
            // The first error is the one to tell; a second has the same cause.
            let _ = restore(&changes.made);
            Err(error)
        }
    }
}

/// What [`prepare`] would change, without changing it.
pub fn lacking(
    sysctls: &Path,
    interfaces: &[String],
    implied: &[String],
    ipv6: bool,
) -> Result<Vec<Changed>, ForwardingError> {
    let mut changes = Changes {
        sysctls,
        made: Vec::new(),
        make: false,
    };
    changes.all(interfaces, implied, ipv6)?;
    Ok(changes.made)
}

/// Puts back what [`prepare`] changed, the last change first. What is gone
/// with its interface, or was changed by others since, is left alone. Goes on
/// after an error and gives the first.
pub fn restore(changed: &[Changed]) -> Result<(), ForwardingError> {
    let mut first_error = None;
    for Changed { path, from, to } in changed.iter().rev() {
        let outcome = match read(path) {
            Ok(now) if now == *to => write(path, from),
            Ok(_changed_since) => Ok(()),
            Err(ForwardingError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            first_error.get_or_insert(error);
        }
    }
    first_error.map_or(Ok(()), Err)
}

struct Changes<'a> {
    sysctls: &'a Path,
    made: Vec<Changed>,
    /// Whether they are made, rather than only noted.
    make: bool,
}

impl Changes<'_> {
    fn all(
        &mut self,
        interfaces: &[String],
        implied: &[String],
        ipv6: bool,
    ) -> Result<(), ForwardingError> {
        self.ipv4(&[interfaces, implied].concat())?;
        if !ipv6 {
            return Ok(());
        }
        let mut able = interfaces.to_vec();
        able.extend(implied.iter().filter(|name| self.has_ipv6(name)).cloned());
        self.ipv6(&able)
    }

    fn ipv4(&mut self, interfaces: &[String]) -> Result<(), ForwardingError> {
        let conf = self.sysctls.join("net/ipv4/conf");
        let strict_for_all = read(&conf.join("all/rp_filter"))? == "1";
        for interface in interfaces {
            let of = conf.join(interface);
            self.set(of.join("forwarding"), "1")?;
            self.set(of.join("accept_local"), "1")?;
            let rp_filter = of.join("rp_filter");
            let own = read(&rp_filter)?;
            if own == "1" || strict_for_all {
                self.set(rp_filter, "2")?;
            }
        }
        Ok(())
    }

    fn has_ipv6(&self, interface: &str) -> bool {
        let off = self
            .sysctls
            .join("net/ipv6/conf")
            .join(interface)
            .join("disable_ipv6");
        read(&off).is_ok_and(|off| off == "0")
    }

    fn ipv6(&mut self, interfaces: &[String]) -> Result<(), ForwardingError> {
        let conf = self.sysctls.join("net/ipv6/conf");
        if !conf.is_dir() {
            return Err(ForwardingError::NoIpv6);
        }
        for interface in interfaces {
            if read(&conf.join(interface).join("disable_ipv6"))? == "1" {
                return Err(ForwardingError::Ipv6Off(interface.clone()));
            }
        }
        let all = conf.join("all/forwarding");
        let affected = if read(&all)? == "1" {
            interfaces.to_vec()
        } else {
            entries(&conf)?
        };
        for name in &affected {
            let of = conf.join(name);
            let listens = read(&of.join("accept_ra"))? == "1";
            if listens && read(&of.join("forwarding"))? == "0" {
                self.set(of.join("accept_ra"), "2")?;
            }
        }
        for interface in interfaces {
            self.set(conf.join(interface).join("forwarding"), "1")?;
        }
        self.set(all, "1")
    }

    fn set(&mut self, path: PathBuf, to: &str) -> Result<(), ForwardingError> {
        let from = read(&path)?;
        if from != to {
            if self.make {
                write(&path, to)?;
            }
            self.made.push(Changed {
                path,
                from,
                to: to.into(),
            });
        }
        Ok(())
    }
}

/// The entries of an IPv6 `conf` folder that can listen to advertisements:
/// every interface, and the defaults for those still to come. `all` says
/// nothing about `accept_ra`, and nobody advertises on `lo`.
fn entries(conf: &Path) -> Result<Vec<String>, ForwardingError> {
    let failed = |source| ForwardingError::Read {
        path: conf.into(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(conf).map_err(failed)? {
        let name = entry
            .map_err(failed)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if name != "all" && name != "lo" {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<String, ForwardingError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().into()),
        Err(source) => Err(ForwardingError::Read {
            path: path.into(),
            source,
        }),
    }
}

fn write(path: &Path, to: &str) -> Result<(), ForwardingError> {
    fs::write(path, to).map_err(|source| ForwardingError::Write {
        path: path.into(),
        to: to.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A folder that looks like `/proc/sys`, with the values most hosts have.
    fn sysctls(interfaces: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["all", "default", "lo"].iter().chain(interfaces) {
            for (setting, value) in [
                ("ipv4/conf/NAME/forwarding", "0"),
                ("ipv4/conf/NAME/accept_local", "0"),
                ("ipv4/conf/NAME/rp_filter", "0"),
                ("ipv6/conf/NAME/forwarding", "0"),
                ("ipv6/conf/NAME/accept_ra", "1"),
                ("ipv6/conf/NAME/disable_ipv6", "0"),
            ] {
                put(&folder, &setting.replace("NAME", name), value);
            }
        }
        folder
    }

    fn put(folder: &TempDir, setting: &str, value: &str) {
        let path = folder.path().join("net").join(setting);
        fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        fs::write(path, format!("{value}\n")).expect("a file");
    }

    fn names(interfaces: &[&str]) -> Vec<String> {
        interfaces.iter().map(|name| (*name).to_owned()).collect()
    }

    fn told(folder: &TempDir, changed: &[Changed]) -> Vec<String> {
        let root = folder.path().join("net");
        changed
            .iter()
            .map(|Changed { path, from, to }| {
                let path = path.strip_prefix(&root).expect("it is below");
                format!("{} {from}>{to}", path.display())
            })
            .collect()
    }

    fn snapshot(folder: &TempDir) -> Vec<(PathBuf, String)> {
        let mut files = Vec::new();
        let mut folders = vec![folder.path().to_path_buf()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).expect("it is a folder") {
                let path = entry.expect("it can be read").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let text = fs::read_to_string(&path).expect("a file");
                    files.push((path, text.trim().to_owned()));
                }
            }
        }
        files.sort();
        files
    }

    #[test]
    fn ipv4_needs_three_settings_an_interface_and_no_others() {
        let folder = sysctls(&["eth0", "eth1"]);
        put(&folder, "ipv4/conf/eth1/rp_filter", "1");
        put(&folder, "ipv4/conf/eth1/forwarding", "1");
        let changed =
            prepare(folder.path(), &names(&["eth0", "eth1"]), &[], false).expect("it can");
        assert_eq!(
            told(&folder, &changed),
            [
                "ipv4/conf/eth0/forwarding 0>1",
                "ipv4/conf/eth0/accept_local 0>1",
                "ipv4/conf/eth1/accept_local 0>1",
                "ipv4/conf/eth1/rp_filter 1>2",
            ]
        );
        let again = prepare(folder.path(), &names(&["eth0", "eth1"]), &[], false).expect("it can");
        assert_eq!(again, []);
    }

    #[test]
    fn a_strict_filter_for_all_interfaces_is_loosened_on_ours_only() {
        let folder = sysctls(&["eth0", "eth1"]);
        put(&folder, "ipv4/conf/all/rp_filter", "1");
        let changed = prepare(folder.path(), &names(&["eth0"]), &[], false).expect("it can");
        assert!(told(&folder, &changed).contains(&"ipv4/conf/eth0/rp_filter 0>2".to_owned()));
        assert_eq!(changed.len(), 3);
    }

    #[test]
    fn ipv6_keeps_router_advertisements_on_every_interface_that_turns_router() {
        let folder = sysctls(&["eth0", "mgmt", "off", "router"]);
        put(&folder, "ipv6/conf/off/accept_ra", "0");
        put(&folder, "ipv6/conf/router/forwarding", "1");
        let changed = prepare(folder.path(), &names(&["eth0"]), &[], true).expect("it can");
        assert_eq!(
            told(&folder, &changed)[2..],
            [
                "ipv6/conf/default/accept_ra 1>2",
                "ipv6/conf/eth0/accept_ra 1>2",
                "ipv6/conf/mgmt/accept_ra 1>2",
                "ipv6/conf/eth0/forwarding 0>1",
                "ipv6/conf/all/forwarding 0>1",
            ]
        );
    }

    #[test]
    fn where_ipv6_forwards_already_only_our_interfaces_are_looked_at() {
        let folder = sysctls(&["eth0", "mgmt"]);
        put(&folder, "ipv6/conf/all/forwarding", "1");
        let changed = prepare(folder.path(), &names(&["eth0"]), &[], true).expect("it can");
        assert_eq!(
            told(&folder, &changed)[2..],
            [
                "ipv6/conf/eth0/accept_ra 1>2",
                "ipv6/conf/eth0/forwarding 0>1"
            ]
        );
    }

    #[test]
    fn an_interface_that_is_only_implied_may_be_without_ipv6() {
        let folder = sysctls(&["eth0", "eth0.10", "eth0.20"]);
        put(&folder, "ipv6/conf/eth0.20/disable_ipv6", "1");
        let implied = names(&["eth0.10", "eth0.20"]);
        let changed = prepare(folder.path(), &names(&["eth0"]), &implied, true).expect("it can");
        let told = told(&folder, &changed);
        for forwards in ["ipv4/conf/eth0.20", "ipv6/conf/eth0.10", "ipv6/conf/eth0"] {
            assert!(
                told.contains(&format!("{forwards}/forwarding 0>1")),
                "{told:?}"
            );
        }
        assert!(!told.contains(&"ipv6/conf/eth0.20/forwarding 0>1".to_owned()));
    }

    #[test]
    fn what_is_lacking_is_told_and_left_as_it_is() {
        let folder = sysctls(&["eth0"]);
        let before = snapshot(&folder);
        let lacking = lacking(folder.path(), &names(&["eth0"]), &[], true).unwrap();
        assert_eq!(snapshot(&folder), before);
        let made = prepare(folder.path(), &names(&["eth0"]), &[], true).unwrap();
        assert_eq!(lacking, made);
        assert!(!made.is_empty());
        let nothing = super::lacking(folder.path(), &names(&["eth0"]), &[], true).unwrap();
        assert_eq!(nothing, []);
    }

    #[test]
    fn restoring_gives_back_what_was_and_respects_what_others_changed() {
        let folder = sysctls(&["eth0"]);
        let before = snapshot(&folder);
        let changed = prepare(folder.path(), &names(&["eth0"]), &[], true).expect("it can");
        assert_ne!(snapshot(&folder), before);
        restore(&changed).expect("it can");
        assert_eq!(snapshot(&folder), before);

        let changed = prepare(folder.path(), &names(&["eth0"]), &[], true).expect("it can");
        put(&folder, "ipv4/conf/eth0/accept_local", "7");
        fs::remove_dir_all(folder.path().join("net/ipv6/conf/eth0")).expect("it is there");
        restore(&changed).expect("what is gone needs nothing");
        let after = snapshot(&folder);
        let value = |setting: &str| {
            let path = folder.path().join("net").join(setting);
            after
                .iter()
                .find(|(of, _)| *of == path)
                .map(|(_, text)| text.as_str())
        };
        assert_eq!(value("ipv4/conf/eth0/accept_local"), Some("7"));
        assert_eq!(value("ipv4/conf/eth0/forwarding"), Some("0"));
        assert_eq!(value("ipv6/conf/all/forwarding"), Some("0"));
    }

    #[test]
    fn after_an_error_nothing_is_changed() {
        let folder = sysctls(&["eth0", "eth1"]);
        put(&folder, "ipv6/conf/eth1/disable_ipv6", "1");
        let before = snapshot(&folder);
        let error = prepare(folder.path(), &names(&["eth0", "eth1"]), &[], true)
            .expect_err("IPv6 is off on one");
        assert_eq!(
            error.to_string(),
            "a service has an IPv6 address, but IPv6 is off on interface eth1; \
             set the sysctl net.ipv6.conf.eth1.disable_ipv6 to 0"
        );
        assert_eq!(snapshot(&folder), before);

        fs::remove_dir_all(folder.path().join("net/ipv6")).expect("it is there");
        let before = snapshot(&folder);
        let error = prepare(folder.path(), &names(&["eth0"]), &[], true).expect_err("no IPv6");
        assert!(matches!(error, ForwardingError::NoIpv6));
        let error =
            prepare(folder.path(), &names(&["eth0", "eth9"]), &[], false).expect_err("no eth9");
        assert!(error.to_string().contains("eth9/forwarding"), "{error}");
        assert_eq!(snapshot(&folder), before);
    }
}
