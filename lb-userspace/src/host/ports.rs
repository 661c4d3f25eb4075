//! Which source ports `full-nat` may use.
//!
//! A translated connection leaves with a service's address and one of these
//! ports. The host's own connections take theirs from
//! `net.ipv4.ip_local_port_range` (for IPv6 too): the ranges must be apart, or
//! an answer to the host could be taken for one to a client. So the larger
//! part outside of that range is used, well-known ports aside.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The kernel's setting below the sysctl folder.
const LOCAL_RANGE: &str = "net/ipv4/ip_local_port_range";

/// The first port that is not reserved for well-known services.
const FIRST: u16 = 1024;

/// Ports without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The lowest.
    pub first: u16,
    /// How many; never 0.
    pub count: u16,
}

/// Why there are no ports for `full-nat`.
#[derive(Debug, Error)]
pub enum PortsError {
    /// The setting could not be read.
    #[error("cannot read {}, the ports of the host's own connections: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The setting does not hold two ports.
    #[error("{} holds {text:?}, not two ports", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// The host's own range leaves nothing.
    #[error(
        "the host's own connections may use every port from {low} to {high}, which leaves none for full-nat; narrow the sysctl net.ipv4.ip_local_port_range, to \"32768 60999\" for instance"
    )]
    None {
        /// The lowest of the host's ports.
        low: u16,
        /// The highest of the host's ports.
        high: u16,
    },
}

/// The source ports of `full-nat` on this host; `sysctls` is `/proc/sys`.
pub fn ports(sysctls: &Path) -> Result<Ports, PortsError> {
    let path = sysctls.join(LOCAL_RANGE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(source) => return Err(PortsError::Read { path, source }),
    };
    let Some(local) = range(&text) else {
        return Err(PortsError::Form {
            path,
            text: text.trim().into(),
        });
    };
    outside(&local).ok_or(PortsError::None {
        low: *local.start(),
        high: *local.end(),
    })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some(numbers.next()??..=numbers.next()??)
}

/// The larger part of the ports from [`FIRST`] on that lies outside of `local`.
fn outside(local: &RangeInclusive<u16>) -> Option<Ports> {
    let below = Ports {
        first: FIRST,
        count: local.start().saturating_sub(FIRST),
    };
    let above_first = local.end().saturating_add(1).max(FIRST);
    let above = Ports {
        first: above_first,
        // With 65535 in the local range nothing is above it.
        count: if *local.end() == u16::MAX {
            0
        } else {
            u16::MAX - above_first + 1
        },
    };
    let larger = if below.count >= above.count {
        below
    } else {
        above
    };
    (larger.count > 0).then_some(larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_part_outside_of_the_hosts_range_is_used() {
        let table = [
            // the host's range, first, count
            (32768..=60999, 1024, 31744),
            (1024..=4999, 5000, 60536),
            (1024..=65535, 0, 0),
            (1..=65535, 0, 0),
            (1..=500, 1024, 64512),
            (1..=1023, 1024, 64512),
            (2048..=65535, 1024, 1024),
            (1024..=65534, 65535, 1),
            (16384..=65535, 1024, 15360),
        ];
        for (local, first, count) in table {
            let expected = (count > 0).then_some(Ports { first, count });
            assert_eq!(outside(&local), expected, "{local:?}");
        }
    }

    #[test]
    fn every_range_is_left_alone_entirely() {
        for low in (0..=u16::MAX).step_by(97) {
            for high in (low..=u16::MAX).step_by(89) {
                let Some(ports) = outside(&(low..=high)) else {
                    continue;
                };
                let last = ports.first + (ports.count - 1);
                assert!(ports.first >= FIRST);
                assert!(
                    last < low || ports.first > high,
                    "{low}..={high}: {ports:?}"
                );
            }
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_in_a_sentence() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(LOCAL_RANGE);
        let error = || {
            ports(folder.path())
                .expect_err("there are none")
                .to_string()
        };
        assert!(error().starts_with("cannot read "), "{}", error());
        fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        fs::write(&path, "many\n").expect("a file");
        assert_eq!(
            error(),
            format!("{} holds \"many\", not two ports", path.display())
        );
        fs::write(&path, "1024\t65535\n").expect("a file");
        assert_eq!(
            error(),
            "the host's own connections may use every port from 1024 to 65535, which leaves none \
             for full-nat; narrow the sysctl net.ipv4.ip_local_port_range, to \"32768 60999\" \
             for instance"
        );
        fs::write(&path, "32768\t60999\n").expect("a file");
        assert_eq!(
            ports(folder.path()).expect("there are some"),
            Ports {
                first: 1024,
                count: 31744
            }
        );
    }

    #[test]
    fn this_host_has_ports() {
        ports(Path::new("/proc/sys")).expect("a range that leaves some");
    }
}
