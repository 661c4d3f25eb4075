//! Single values, from text to what they mean.
//!
//! The command line takes the same values and uses the same functions, so that
//! a weight, a name or an address means the same wherever it is written.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use lb_common::abi::sequence;

use super::fault::{Fault, Unusable, shown};
use super::words::Forward;

/// The highest weight.
pub const MAX_WEIGHT: u16 = 256;

/// The most backends one service may have: each needs a slot of the sequence.
pub const MAX_BACKENDS_OF_SERVICE: usize = sequence::MAX_LENGTH as usize;

/// The most characters in a name.
const MAX_NAME: usize = 64;

/// The most bytes in an interface's name (`IFNAMSIZ`, less the NUL).
const MAX_INTERFACE_NAME: usize = 15;

/// The most bytes in the path of a Unix socket (`sun_path`, less the NUL).
const MAX_SOCKET_PATH: usize = 107;

/// The most bytes in any other path (`PATH_MAX`, less the NUL).
const MAX_PATH: usize = 4095;

/// A name; `what` says of what: "service name", "backend name", "node name".
///
/// # Errors
/// If it is empty, too long, or has other characters than names have.
pub fn name(what: &'static str, text: &str) -> Result<String, Fault> {
    let fits = (1..=MAX_NAME).contains(&text.len());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if fits && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err(Fault::BadName {
            what,
            found: shown(text),
        })
    }
}

/// The name of a network interface, by the kernel's rules (`dev_valid_name`).
///
/// # Errors
/// If no interface can have that name.
pub fn interface(text: &str) -> Result<String, Fault> {
    let fits = (1..=MAX_INTERFACE_NAME).contains(&text.len());
    let odd = |char: char| char.is_whitespace() || char.is_control() || "/:".contains(char);
    if fits && !matches!(text, "." | "..") && !text.contains(odd) {
        Ok(text.to_owned())
    } else {
        Err(Fault::BadInterface { found: shown(text) })
    }
}

/// The weight of a backend.
///
/// # Errors
/// If it is not 0 to [`MAX_WEIGHT`].
pub fn weight(number: i64) -> Result<u16, Fault> {
    let out_of_range = || Fault::OutOfRange {
        key: "weight",
        low: 0,
        high: u32::from(MAX_WEIGHT),
        found: number.to_string(),
    };
    u16::try_from(number)
        .ok()
        .filter(|weight| *weight <= MAX_WEIGHT)
        .ok_or_else(out_of_range)
}

/// How long the connections of a drained backend may be given.
const DRAIN_DEADLINE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// How long the connections of a drained backend are given before they are
/// reset.
///
/// # Errors
/// If it is not a second to a week.
pub fn drain_deadline(deadline: Duration) -> Result<Duration, Fault> {
    let (low, high) = DRAIN_DEADLINE.into_inner();
    if (low..=high).contains(&deadline) {
        Ok(deadline)
    } else {
        Err(Fault::DurationOutOfRange {
            key: "deadline",
            low,
            high,
            found: deadline,
        })
    }
}

/// Where a service or a backend listens; `key` is what the value is called
/// where it was written.
///
/// # Errors
/// If it is not an address with a port, or one that cannot be balanced.
pub fn address(key: &'static str, text: &str) -> Result<SocketAddr, Fault> {
    let Ok(address) = text.parse::<SocketAddr>() else {
        return Err(Fault::NotAnAddress {
            key,
            found: shown(text),
            meant: meant(text),
        });
    };
    if let Some(why) = unusable(address) {
        return Err(Fault::UnusableAddress {
            key,
            address: address.ip(),
            why,
        });
    }
    if address.port() == 0 {
        return Err(Fault::PortZero { key });
    }
    Ok(address)
}

/// Where this host listens: one of its addresses, or any of them.
///
/// # Errors
/// If it is not an address with a port, or no other host could connect to it.
pub fn listening(key: &'static str, text: &str) -> Result<SocketAddr, Fault> {
    match address(key, text) {
        Err(Fault::UnusableAddress {
            why: Unusable::Unspecified,
            ..
        }) => match text.parse::<SocketAddr>() {
            Ok(any) if any.port() != 0 => Ok(any),
            Ok(_) | Err(_) => Err(Fault::PortZero { key }),
        },
        judged => judged,
    }
}

/// Where this host is asked for something, perhaps by itself alone.
///
/// # Errors
/// If it is not an address with a port, or none that a host can have.
pub fn own_socket(key: &'static str, text: &str) -> Result<SocketAddr, Fault> {
    match listening(key, text) {
        Err(Fault::UnusableAddress {
            why: Unusable::Loopback,
            ..
        }) => match text.parse::<SocketAddr>() {
            Ok(own) if own.port() != 0 => Ok(own),
            Ok(_) | Err(_) => Err(Fault::PortZero { key }),
        },
        judged => judged,
    }
}

/// A host, by its address alone.
///
/// # Errors
/// If it is not an address, or none that a host has.
pub fn host(key: &'static str, text: &str) -> Result<IpAddr, Fault> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let socket = text.parse::<SocketAddr>();
        return Err(Fault::NotAHost {
            key,
            found: shown(text),
            meant: socket.ok().map(|address| address.ip()),
        });
    };
    match unusable(SocketAddr::new(address, 0)) {
        // On one link it does mean something.
        None | Some(Unusable::LinkLocal) => Ok(address),
        Some(why) => Err(Fault::UnusableAddress { key, address, why }),
    }
}

/// What an address that lacks its port or its brackets should have been.
fn meant(text: &str) -> Option<String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    match bare.unwrap_or(text).parse() {
        Ok(IpAddr::V4(address)) => Some(format!("{address}:80")),
        // The last group may have been meant as a port: then it is decimal,
        // and what stands before it is an address.
        Ok(IpAddr::V6(whole)) => {
            let split = text.rsplit_once(':').and_then(|(address, port)| {
                let address: Ipv6Addr = address.parse().ok()?;
                let port: u16 = port.parse().ok()?;
                Some(format!("[{address}]:{port}"))
            });
            Some(split.unwrap_or_else(|| format!("[{whole}]:80")))
        }
        Err(_) => None,
    }
}

/// Why nothing can be balanced to or from this address, if so.
fn unusable(address: SocketAddr) -> Option<Unusable> {
    let zone = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
    match address.ip() {
        ip if ip.is_unspecified() => Some(Unusable::Unspecified),
        ip if ip.is_loopback() => Some(Unusable::Loopback),
        ip if ip.is_multicast() => Some(Unusable::Multicast),
        IpAddr::V4(v4) if v4.is_broadcast() => Some(Unusable::Broadcast),
        IpAddr::V6(v6) if v6.is_unicast_link_local() || zone => Some(Unusable::LinkLocal),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some(Unusable::Mapped),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Whether a service that forwards in this way can send to a backend: one
/// family unless a tunnel carries the one in the other, the service's port
/// where no port is rewritten, and not itself.
///
/// # Errors
/// Which of them it is.
pub fn reachable(forward: Forward, service: SocketAddr, backend: SocketAddr) -> Result<(), Fault> {
    if forward != Forward::Tunnel && service.is_ipv4() != backend.is_ipv4() {
        Err(Fault::MixedFamilies { backend, service })
    } else if service == backend {
        Err(Fault::OwnBackend { address: backend })
    } else if forward.one_way() && service.port() != backend.port() {
        Err(Fault::OtherPort {
            forward,
            backend,
            service,
        })
    } else {
        Ok(())
    }
}

/// The addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The first of them.
    address: IpAddr,
    /// How many bits.
    length: u8,
}

impl Prefix {
    /// An IPv4 prefix of at most 32 bits, with no bit set beyond them.
    pub(super) const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            length,
        }
    }

    /// An IPv6 prefix of at most 128 bits, with no bit set beyond them.
    pub(super) const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> Self {
        Self {
            address: IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)),
            length,
        }
    }

    /// The first of its addresses.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses have in common.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// How many bits its addresses do not have in common.
    const fn free_bits(&self) -> u32 {
        width(self.address) as u32 - self.length as u32
    }

    /// How many of these bits vary with the flow where tunnels have their
    /// source addresses: the data path has a word of hash for them.
    pub fn varied_bits(&self) -> u32 {
        self.free_bits().min(32)
    }

    /// Whether this is one of its addresses.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && self.first_with(address) == self.address
    }

    /// The first address that begins as this one does.
    fn first_with(&self, address: IpAddr) -> IpAddr {
        let free = self.free_bits();
        match address {
            IpAddr::V4(v4) => {
                let kept = u32::MAX.checked_shl(free).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & kept).into()
            }
            IpAddr::V6(v6) => {
                let kept = u128::MAX.checked_shl(free).unwrap_or(0);
                Ipv6Addr::from_bits(v6.to_bits() & kept).into()
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// How many bits an address of this family has.
const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A prefix, such as 198.18.0.0/16.
///
/// # Errors
/// If it cannot be read as one.
pub fn prefix(key: &'static str, text: &str) -> Result<Prefix, Fault> {
    let Some(written) = written_prefix(text) else {
        let meant = text.parse().ok().map(|address: IpAddr| {
            let length = width(address);
            Prefix { address, length }.to_string()
        });
        return Err(Fault::NotAPrefix {
            key,
            found: shown(text),
            meant,
        });
    };
    let first = Prefix {
        address: written.first_with(written.address),
        ..written
    };
    if first == written {
        Ok(first)
    } else {
        Err(Fault::BitsBeyond {
            found: written.to_string(),
            meant: first,
        })
    }
}

/// An address and a length, whatever bits may be set beyond it.
fn written_prefix(text: &str) -> Option<Prefix> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let plain = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| plain)?;
    (length <= width(address)).then_some(Prefix { address, length })
}

/// A prefix from which tunnels may take their source addresses.
///
/// # Errors
/// If it is no prefix, is too short or too long, or no packet may come from it.
pub fn tunnel_source(key: &'static str, text: &str) -> Result<Prefix, Fault> {
    let prefix = prefix(key, text)?;
    let (low, high) = match prefix.address {
        IpAddr::V4(_) => (8, 32),
        IpAddr::V6(_) => (32, 128),
    };
    if !(low..=high).contains(&prefix.length) {
        return Err(Fault::PrefixLength {
            key,
            low,
            high,
            prefix,
        });
    }
    match unusable(SocketAddr::new(prefix.address, 0)) {
        Some(why) => Err(Fault::UnusablePrefix { key, prefix, why }),
        None => Ok(prefix),
    }
}

/// The largest TCP segment that may be announced, or 0 for any. The least is
/// what a host assumes that was told nothing (RFC 9293, section 3.7.1), the
/// most what the longest IPv4 packet can carry.
pub const MAX_MSS: RangeInclusive<u32> = 536..=65_495;

/// A duration such as "500ms" or "1m 30s".
///
/// # Errors
/// If it cannot be read as one.
pub fn duration(key: &'static str, text: &str) -> Result<Duration, Fault> {
    humantime::parse_duration(text).map_err(|_| Fault::NotADuration {
        key,
        found: shown(text),
    })
}

/// The path of a directory or file.
///
/// # Errors
/// If it does not begin with a slash or no file can have it.
pub fn path(key: &'static str, text: &str) -> Result<PathBuf, Fault> {
    absolute(
        key,
        text,
        MAX_PATH,
        "it is longer than the 4095 bytes of a path",
    )
}

/// The path of a file, which may be relative to the configuration's folder.
///
/// # Errors
/// If no file can have it.
pub fn file(key: &'static str, text: &str) -> Result<PathBuf, Fault> {
    let why = if text.is_empty() {
        "it is empty"
    } else if text.contains(char::is_control) {
        "it has a control character in it"
    } else if text.len() > MAX_PATH {
        "it is longer than the 4095 bytes of a path"
    } else {
        return Ok(PathBuf::from(text));
    };
    Err(Fault::BadFile {
        key,
        found: shown(text),
        why,
    })
}

/// The path of a Unix socket.
///
/// # Errors
/// If it does not begin with a slash or no socket can have it.
pub fn socket_path(key: &'static str, text: &str) -> Result<PathBuf, Fault> {
    absolute(
        key,
        text,
        MAX_SOCKET_PATH,
        "it is longer than the 107 bytes of a socket's path",
    )
}

fn absolute(
    key: &'static str,
    text: &str,
    most: usize,
    too_long: &'static str,
) -> Result<PathBuf, Fault> {
    let why = if !text.starts_with('/') {
        "it would depend on where the daemon was started"
    } else if text.contains(char::is_control) {
        "it has a control character in it"
    } else if text.len() > most {
        too_long
    } else {
        return Ok(PathBuf::from(text));
    };
    Err(Fault::BadPath {
        key,
        found: shown(text),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_plain_characters() {
        for good in ["web", "web-1.example_com", "A", "0", &"x".repeat(64)] {
            assert_eq!(name("service name", good).as_deref(), Ok(good));
        }
        for bad in ["", "web 1", "wéb", "a/b", "a\0", &"x".repeat(65)] {
            assert!(name("service name", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interfaces_are_named_as_the_kernel_allows() {
        for good in ["eth0", "enp0s31f6", "br-0a1b2c3d4e5f", "vlan.100", "…"] {
            assert_eq!(interface(good).as_deref(), Ok(good));
        }
        for bad in ["", ".", "..", "eth 0", "a/b", "eth0:1", "sixteen-letters-"] {
            assert!(interface(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn weights_end_at_256() {
        for good in [0, 1, 256] {
            assert_eq!(weight(i64::from(good)), Ok(good));
        }
        for bad in [-1, 257, 65_537, i64::MIN, i64::MAX] {
            assert!(weight(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_that_were_meant_are_guessed() {
        for (written, guess) in [
            ("10.0.0.1", Some("10.0.0.1:80")),
            ("2001:db8::1", Some("[2001:db8::1]:80")),
            ("2001:db8::a:8080", Some("[2001:db8::a]:8080")),
            ("2001:db8::1:c0de", Some("[2001:db8::1:c0de]:80")),
            ("[2001:db8::1]", Some("[2001:db8::1]:80")),
            ("localhost:80", None),
            ("10.0.0.256:80", None),
            ("10.0.0.1:65536", None),
            ("", None),
        ] {
            let meant = guess.map(str::to_owned);
            let found = written.to_owned();
            let expected = Fault::NotAnAddress {
                key: "listen",
                found,
                meant,
            };
            assert_eq!(address("listen", written), Err(expected), "{written}");
        }
    }

    #[test]
    fn addresses_that_nothing_can_be_balanced_to_are_refused() {
        for (written, reason) in [
            ("0.0.0.0:80", Unusable::Unspecified),
            ("[::]:80", Unusable::Unspecified),
            ("127.0.0.53:53", Unusable::Loopback),
            ("[::1]:80", Unusable::Loopback),
            ("224.0.0.18:80", Unusable::Multicast),
            ("[ff02::12]:80", Unusable::Multicast),
            ("255.255.255.255:80", Unusable::Broadcast),
            ("[fe80::1]:80", Unusable::LinkLocal),
            ("[fe80::1%2]:80", Unusable::LinkLocal),
            ("[2001:db8::1%2]:80", Unusable::LinkLocal),
            ("[::ffff:10.0.0.1]:80", Unusable::Mapped),
        ] {
            match address("address", written) {
                Err(Fault::UnusableAddress { why, .. }) => assert_eq!(why, reason, "{written}"),
                other => panic!("{written}: {other:?}"),
            }
        }
        let zero = Err(Fault::PortZero { key: "address" });
        assert_eq!(address("address", "10.0.0.1:0"), zero);
        assert!(address("address", "169.254.1.1:80").is_ok());
        assert!(address("address", "[fd00::1]:65535").is_ok());
    }

    #[test]
    fn a_prefix_holds_the_addresses_that_begin_as_it_does() {
        for (written, inside, outside, varied) in [
            ("198.18.0.0/16", "198.18.255.255", "198.19.0.0", 16),
            ("203.0.113.7/32", "203.0.113.7", "203.0.113.6", 0),
            ("0.0.0.0/0", "255.1.2.3", "::", 32),
            ("100::/64", "100::ffff:0:0:1", "100:0:0:1::", 32),
            (
                "2001:db8::/96",
                "2001:db8::ffff:ffff",
                "2001:db8::1:0:0",
                32,
            ),
            ("2001:db8::4/126", "2001:db8::7", "2001:db8::8", 2),
            ("::/0", "ffff::", "198.18.0.0", 32),
        ] {
            let prefix = prefix("", written).unwrap();
            assert_eq!(prefix.to_string(), written);
            assert!(prefix.contains(inside.parse().unwrap()), "{written}");
            assert!(!prefix.contains(outside.parse().unwrap()), "{written}");
            assert_eq!(prefix.varied_bits(), varied, "{written}");
        }
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for bad in [
            "",
            "/",
            "/16",
            "198.18.0.0",
            "198.18.0.0/",
            "198.18.0.0/33",
            "::/129",
            "::/-1",
            "198.18.0.0/+16",
            "198.18/16",
            "198.18.0.0/16/16",
            "::/999",
        ] {
            let fault = prefix("", bad).unwrap_err();
            assert!(matches!(fault, Fault::NotAPrefix { .. }), "{bad}: {fault}");
        }
    }

    #[test]
    fn paths_begin_with_a_slash() {
        assert_eq!(
            path("pin_path", "/sys/fs/bpf/lb"),
            Ok(PathBuf::from("/sys/fs/bpf/lb"))
        );
        assert!(path("pin_path", "lb").is_err());
        assert!(path("pin_path", "").is_err());
        assert!(path("pin_path", "/a\0b").is_err());
        let long = format!("/{}", "x".repeat(107));
        assert!(path("control", &long).is_ok());
        assert!(socket_path("control", &long).is_err());
        assert!(socket_path("control", &long[..107]).is_ok());
    }
}
