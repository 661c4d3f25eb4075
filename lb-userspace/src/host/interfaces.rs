//! Names and numbers of interfaces, in the calling thread's network namespace.
//!
//! `/sys/class/net` shows the namespace in which `/sys` was mounted, and
//! `/proc/net` that of the process's first thread; so names come from
//! `/proc/thread-self` and numbers from an `ioctl` on a socket, which both
//! follow the thread.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};
use thiserror::Error;

const DEVICES: &str = "/proc/thread-self/net/dev";

/// Why an interface was not found.
#[derive(Debug, Error)]
pub enum InterfaceError {
    /// There is none of that name.
    #[error(
        "interface {name} does not exist; this host has {}: correct the name, or create the interface",
        existing.join(", ")
    )]
    NoSuch {
        /// The name asked for.
        name: String,
        /// The names there are.
        existing: Vec<String>,
    },
    /// The kernel did not answer at all.
    #[error("cannot ask the kernel for interface {name}: {source}")]
    Unanswered {
        /// The name asked for.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The index of an interface.
pub fn ifindex(name: &str) -> Result<u32, InterfaceError> {
    let unanswered = |source: io::Error| InterfaceError::Unanswered {
        name: name.into(),
        source,
    };
    let socket = any_socket().map_err(|error| unanswered(error.into()))?;
    match netdevice::name_to_index(socket, name) {
        Ok(index) => Ok(index),
        Err(Errno::NODEV) => Err(InterfaceError::NoSuch {
            name: name.into(),
            existing: interface_names().map_err(unanswered)?,
        }),
        Err(error) => Err(unanswered(error.into())),
    }
}

/// The name of the interface with an index.
pub fn interface_name(index: u32) -> io::Result<String> {
    Ok(netdevice::index_to_name(any_socket()?, index)?)
}

/// The names of all interfaces, in the kernel's order.
pub fn interface_names() -> io::Result<Vec<String>> {
    fs::read_to_string(DEVICES).map(|text| names(&text))
}

/// The names in the text of `/proc/net/dev`: two lines of heading, then a line
/// an interface, its name before the colon (which no name can contain).
fn names(devices: &str) -> Vec<String> {
    devices
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _counters)| name.trim().to_owned())
        .collect()
}

/// Whether a NIC takes VLAN tags off the frames before anybody sees them
/// (`rx-vlan-offload`).
pub fn takes_tags_off(name: &str) -> io::Result<bool> {
    /// `ETH_FLAG_RXVLAN`
    const RX_VLAN: u32 = 1 << 8;
    Ok(flags(name)? & RX_VLAN != 0)
}

/// Whether a NIC joins frames it receives into larger ones before anybody sees them
/// (`large-receive-offload`).
pub fn joins_frames(name: &str) -> io::Result<bool> {
    /// `ETH_FLAG_LRO`
    const LRO: u32 = 1 << 15;
    Ok(flags(name)? & LRO != 0)
}

/// The features of a NIC that are on.
fn flags(name: &str) -> io::Result<u32> {
    /// `ETHTOOL_GFLAGS`
    const GET_FLAGS: u32 = 0x25;

    /// `struct ethtool_value`
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Value {
        command: u32,
        data: u32,
    }

    let value = Value {
        command: GET_FLAGS,
        data: 0,
    };
    // SAFETY: `Value` is what the command reads and writes.
    let answer = unsafe { ethtool(name, value) }?;
    Ok(answer.data)
}

/// The name of the driver of a NIC.
pub fn driver(name: &str) -> io::Result<String> {
    /// `ETHTOOL_GDRVINFO`
    const GET_DRIVER: u32 = 0x3;

    /// `struct ethtool_drvinfo`
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Driver {
        command: u32,
        driver: [u8; 32],
        rest: [u8; 160],
    }

    let empty = Driver {
        command: GET_DRIVER,
        driver: [0; 32],
        rest: [0; 160],
    };
    // SAFETY: `Driver` is what the command reads and writes: 196 bytes.
    let answer = unsafe { ethtool(name, empty) }?;
    let driver = answer.driver.split(|&byte| byte == 0).next();
    Ok(String::from_utf8_lossy(driver.unwrap_or_default()).into_owned())
}

/// Asks the driver of an interface.
///
/// # Safety
/// `Value` is the whole structure of the command that it begins with.
unsafe fn ethtool<Value: Copy>(name: &str, mut value: Value) -> io::Result<Value> {
    /// `SIOCETHTOOL`
    const ETHTOOL: Opcode = 0x8946;

    /// `struct ifreq`
    #[repr(C)]
    struct Request<Value> {
        name: [u8; 16],
        value: *mut Value,
        rest: [u8; 16],
    }

    let mut request = Request {
        name: [0; 16],
        value: &raw mut value,
        rest: [0; 16],
    };
    // The last byte stays zero: names have 15 bytes at most.
    let place = request.name.get_mut(..name.len().min(15));
    place
        .filter(|place| place.len() == name.len())
        .ok_or(Errno::NODEV)?
        .copy_from_slice(name.as_bytes());
    let socket = any_socket()?;
    // SAFETY: the operation reads and writes one `ifreq`, as long as `Request`
    // at least, which points to the command's structure, by this function's contract, and
    // that outlives the call.
    let ask = unsafe { Updater::<ETHTOOL, Request<Value>>::new(&mut request) };
    // SAFETY: as above.
    unsafe { ioctl(&socket, ask) }?;
    // SAFETY: still alive, and written by nobody any more.
    Ok(unsafe { request.value.read() })
}

fn any_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_kernels_table() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2 3\n  eth0.10: 4 5\nveth-a:0\n";
        assert_eq!(names(text), ["lo", "eth0.10", "veth-a"]);
        assert_eq!(names(""), [""; 0]);
    }

    #[test]
    fn an_index_leads_back_to_the_name() {
        let index = ifindex("lo").expect("every namespace has it");
        assert_eq!(interface_name(index).expect("it exists"), "lo");
        assert!(
            interface_names()
                .expect("proc is mounted")
                .contains(&"lo".to_owned())
        );
    }

    #[test]
    fn the_loopback_interface_takes_no_tags_off() {
        assert!(!takes_tags_off("lo").expect("it can be asked"));
        for name in ["nosuch0", "a-name-of-more-than-fifteen-bytes"] {
            assert!(takes_tags_off(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_loopback_interface_joins_no_frames_and_has_no_driver() {
        assert!(!joins_frames("lo").expect("it can be asked"));
        driver("lo").expect_err("it has none");
        driver("nosuch0").expect_err("it is not there");
    }

    #[test]
    fn a_name_too_long_for_an_interface_is_one_that_does_not_exist() {
        for name in ["nosuch0", "a-name-of-more-than-fifteen-bytes", ""] {
            let error = ifindex(name).expect_err("it is not there");
            assert!(
                matches!(error, InterfaceError::NoSuch { .. }),
                "{name}: {error}"
            );
        }
    }
}
