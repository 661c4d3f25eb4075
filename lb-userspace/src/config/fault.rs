//! Everything that can be wrong with a configuration, as sentences.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use humantime::format_duration;

use super::{Forward, MAX_FILE_BYTES, Prefix};

/// One thing that is wrong: the sentence says what, [`Fault::help`] what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say what the fields are")]
pub enum Fault {
    #[error("cannot read the configuration: {why}")]
    Unreadable { why: String, absent: bool },
    #[error("the configuration is larger than {} MiB", MAX_FILE_BYTES >> 20)]
    TooLarge,
    #[error("the configuration is not UTF-8 text")]
    NotUtf8,
    #[error("not valid TOML: {reason}")]
    Syntax { reason: String },
    #[error("`{key}` is given twice")]
    GivenTwice { key: String },
    #[error("unknown {kind} `{key}`")]
    UnknownKey {
        kind: &'static str,
        key: String,
        near: Option<&'static str>,
        home: Option<&'static str>,
        valid: &'static [&'static str],
    },
    #[error("{what} is not in this version")]
    NotYet { what: String, instead: String },
    #[error("`{key}` is missing in {place}")]
    Missing {
        key: &'static str,
        place: &'static str,
        example: &'static str,
    },
    #[error("`{key}` must be {expected}, not {found}")]
    WrongType {
        key: &'static str,
        expected: Expected,
        found: &'static str,
        meant: Option<String>,
    },
    #[error("`{key}` must be {}, not \"{found}\"", quoted(choices))]
    UnknownWord {
        key: &'static str,
        found: String,
        near: Option<&'static str>,
        choices: Vec<&'static str>,
    },
    #[error("`{key}` must be {low} to {high}, not {found}")]
    OutOfRange {
        key: &'static str,
        low: u32,
        high: u32,
        found: String,
    },
    #[error("`{key}` must be 0 or {low} to {high}, not {found}")]
    NeitherOffNorInRange {
        key: &'static str,
        low: u32,
        high: u32,
        found: String,
    },
    #[error("{what} goes only with {with}")]
    OnlyWith {
        what: &'static str,
        with: &'static str,
    },
    #[error("`{key}` must be a duration, not \"{found}\"")]
    NotADuration { key: &'static str, found: String },
    #[error(
        "`{key}` must be {} to {}, not {}",
        format_duration(*low),
        format_duration(*high),
        format_duration(*found)
    )]
    DurationOutOfRange {
        key: &'static str,
        low: Duration,
        high: Duration,
        found: Duration,
    },
    #[error(
        "`{key}` must be \"0s\" or {} to {}, not {}",
        format_duration(*low),
        format_duration(*high),
        format_duration(*found)
    )]
    DurationNeitherOffNorInRange {
        key: &'static str,
        low: Duration,
        high: Duration,
        found: Duration,
    },
    #[error(
        "`timeout` ({}) is longer than `interval` ({})",
        format_duration(*timeout),
        format_duration(*interval)
    )]
    TimeoutOverInterval {
        timeout: Duration,
        interval: Duration,
    },
    #[error("\"{found}\" cannot be a {what}")]
    BadName { what: &'static str, found: String },
    #[error("the host name \"{found}\" cannot be the node's name")]
    BadHostName { found: String },
    #[error("\"{found}\" cannot be the name of an interface")]
    BadInterface { found: String },
    #[error("`interfaces` is empty")]
    NoInterface,
    #[error("`{key}` cannot be \"{found}\": {why}")]
    BadPath {
        key: &'static str,
        found: String,
        why: &'static str,
    },
    #[error("`{key}` cannot be \"{found}\": {why}")]
    BadFile {
        key: &'static str,
        found: String,
        why: &'static str,
    },
    #[error("`{key}` must be an IP address and a port, not \"{found}\"")]
    NotAnAddress {
        key: &'static str,
        found: String,
        meant: Option<String>,
    },
    #[error("`{key}` has port 0")]
    PortZero { key: &'static str },
    #[error("`{key}` cannot be at {address}: {why}")]
    UnusableAddress {
        key: &'static str,
        address: IpAddr,
        why: Unusable,
    },
    #[error("the backend is {} and the service {}", family(backend.ip()), family(service.ip()))]
    MixedFamilies {
        backend: SocketAddr,
        service: SocketAddr,
    },
    #[error("the backend's address {address} is the service's own")]
    OwnBackend { address: SocketAddr },
    #[error("the backend has port {} and the service {}", backend.port(), service.port())]
    OtherPort {
        forward: Forward,
        backend: SocketAddr,
        service: SocketAddr,
    },
    #[error("`{key}` must be an IP address and a length, not \"{found}\"")]
    NotAPrefix {
        key: &'static str,
        found: String,
        meant: Option<String>,
    },
    #[error("{found} is no prefix: it has bits beyond its length")]
    BitsBeyond { found: String, meant: Prefix },
    #[error("the length of an {} prefix in `{key}` must be {low} to {high}, not {}", family(prefix.address()), prefix.length())]
    PrefixLength {
        key: &'static str,
        low: u8,
        high: u8,
        prefix: Prefix,
    },
    #[error("`{key}` cannot be {prefix}: {why}")]
    UnusablePrefix {
        key: &'static str,
        prefix: Prefix,
        why: Unusable,
    },
    #[error("`{key}` {address} lies in {prefix}, where tunnels have their source addresses")]
    TunnelSource {
        key: &'static str,
        address: IpAddr,
        prefix: Prefix,
    },
    #[error("{what} {value} is used twice")]
    Twice {
        what: &'static str,
        value: String,
        scope: &'static str,
    },
    #[error("more {what} than `{key}` allows, which is {limit}")]
    TooMany {
        what: &'static str,
        key: &'static str,
        limit: u32,
    },
    #[error("more than {limit} backends in one service")]
    TooManyOfService { limit: usize },
    #[error("`{key}` must be an IP address, not \"{found}\"")]
    NotAHost {
        key: &'static str,
        found: String,
        meant: Option<IpAddr>,
    },
    #[error(
        "`{key}` must be whole hundredths of a second, not {}",
        format_duration(*found)
    )]
    NotHundredths { key: &'static str, found: Duration },
    #[error("more than {limit} entries in `{key}`")]
    TooManyIn { key: &'static str, limit: usize },
    #[error("`peers` are of two families")]
    PeersOfTwoFamilies,
    #[error("there is no {family} address to advertise")]
    NothingToAdvertise { family: &'static str },
    #[error("`peer` {address} is at the address where this node listens")]
    OwnPeer { address: SocketAddr },
    #[error("this node listens by {} and the peer by {}", family(listen.ip()), family(peer.ip()))]
    SyncOfTwoFamilies {
        listen: SocketAddr,
        peer: SocketAddr,
    },
    #[error("`{key}` cannot be at {address}: it moves with the role")]
    MovesWithRole { key: &'static str, address: IpAddr },
    #[error("more than {limit} interfaces")]
    TooManyInterfaces { limit: usize },
}

/// What kind of value a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the words say what is meant")]
pub enum Expected {
    #[error("a string")]
    Text,
    #[error("a list of strings")]
    Texts,
    #[error("a whole number from {low} to {high}")]
    Number { low: u32, high: u32 },
    #[error("one section {0}")]
    Section(&'static str),
    #[error("one or more sections {0}")]
    Sections(&'static str),
    #[error("true or false")]
    Truth,
    #[error("{0}")]
    Exactly(&'static str),
}

/// Why no service or backend can be at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// 0.0.0.0 or `::`.
    #[error("it stands for any address, and here one must be named")]
    Unspecified,
    /// 127.0.0.0/8 or `::1`.
    #[error("a loopback address, which packets from the network never reach")]
    Loopback,
    /// 224.0.0.0/4 or ff00::/8.
    #[error("a multicast address, which no connection can have")]
    Multicast,
    /// 255.255.255.255.
    #[error("the broadcast address, which no connection can have")]
    Broadcast,
    /// fe80::/10, or with a zone.
    #[error("a link-local address, which means nothing without an interface")]
    LinkLocal,
    /// ::ffff:0:0/96.
    #[error("an IPv4 address in IPv6 form")]
    Mapped,
}

impl Fault {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { absent: true, .. } => "name another file with `-c FILE`".into(),
            Self::Unreadable { absent: false, .. }
            | Self::Syntax { .. }
            | Self::DurationOutOfRange { .. }
            | Self::DurationNeitherOffNorInRange { .. }
            | Self::OutOfRange { .. }
            | Self::NeitherOffNorInRange { .. } => return None,
            Self::OnlyWith { .. } => "change the one or remove the other".into(),
            Self::TooLarge => "is this the right file?".into(),
            Self::NotUtf8 => "save it in UTF-8".into(),
            Self::UnknownKey {
                kind,
                near,
                home,
                valid,
                ..
            } => {
                let meant = match (near, home) {
                    (Some(near), _) => format!("did you mean `{near}`? "),
                    (None, Some(home)) => format!("it belongs in {home}; "),
                    (None, None) => String::new(),
                };
                format!("{meant}valid {kind}s here: {}", valid.join(", "))
            }
            Self::GivenTwice { .. } => "a key stands once in its section, and a section once, \
                 but for [[service]] and [[service.backend]]"
                .into(),
            Self::NotYet { instead, .. } => instead.clone(),
            Self::Missing { example, .. } => format!("add {example}"),
            Self::WrongType { meant, .. } => {
                return meant.as_ref().map(|meant| format!("write {meant}"));
            }
            Self::UnknownWord { near, .. } => {
                return near.map(|near| format!("did you mean \"{near}\"?"));
            }
            Self::NotADuration { .. } => {
                "write a number with its unit, such as \"500ms\", \"2s\" or \"1m\"".into()
            }
            Self::TimeoutOverInterval { .. } => {
                "a check ends before the next begins: raise `interval` or lower `timeout`".into()
            }
            Self::BadName { .. } => "a name is 1 to 64 of the characters A-Z a-z 0-9 . - _".into(),
            Self::BadHostName { .. } => "set `name` in [node]".into(),
            Self::BadInterface { .. } => {
                "it is 1 to 15 bytes, without spaces, slashes and colons: see `ip link`".into()
            }
            Self::NoInterface => {
                "name the interface where packets arrive, as `ip link` shows it".into()
            }
            Self::BadPath { .. } => "write a path that begins with a slash".into(),
            Self::BadFile { .. } => {
                "write a path, absolute or from the configuration's folder on".into()
            }
            Self::OwnPeer { .. } => "name the address of the other node".into(),
            Self::SyncOfTwoFamilies { .. } => {
                "give both addresses of one family, by which the nodes reach each other".into()
            }
            Self::MovesWithRole { .. } => {
                "name an address that the node has for itself, whatever its role".into()
            }
            Self::NotAnAddress {
                meant: Some(meant), ..
            } => format!("write \"{meant}\""),
            Self::NotAnAddress { meant: None, .. } => {
                "write \"203.0.113.10:80\" or \"[2001:db8::10]:80\"; names are not looked up".into()
            }
            Self::PortZero { .. } => "a port is 1 to 65535".into(),
            Self::UnusableAddress { why, address, .. } => why.help(*address),
            Self::MixedFamilies { service, .. } => {
                let family = family(service.ip());
                format!("only a tunnel may change the family: give the backend an {family} address")
            }
            Self::OtherPort {
                forward,
                backend,
                service,
            } => {
                let meant = SocketAddr::new(backend.ip(), service.port());
                format!("{forward} changes no port: write \"{meant}\"")
            }
            Self::NotAPrefix {
                meant: Some(meant), ..
            } => format!("write \"{meant}\""),
            Self::NotAPrefix { meant: None, .. } => {
                "write \"198.18.0.0/16\" or \"100::/64\"".into()
            }
            Self::BitsBeyond { meant, .. } => format!("write \"{meant}\""),
            Self::PrefixLength { prefix, .. } if prefix.address().is_ipv4() => {
                "the bits after it vary with the connection".into()
            }
            Self::PrefixLength { .. } => {
                "the last bits, at most 32, vary with the connection".into()
            }
            Self::UnusablePrefix { .. } => {
                "name a prefix that nobody has, such as \"198.18.0.0/16\" or \"100::/64\"".into()
            }
            Self::TunnelSource { .. } => {
                "set `tunnel_sources` in [node] to a prefix that nobody has".into()
            }
            Self::OwnBackend { .. } => "name the address of the server behind it".into(),
            Self::Twice { scope, .. } => return Some((*scope).into()),
            Self::TooMany { key, .. } => format!("raise `{key}` in [node]"),
            Self::NotAHost {
                meant: Some(meant), ..
            } => format!("write \"{meant}\""),
            Self::NotAHost { meant: None, .. } => {
                "write \"10.0.0.3\" or \"2001:db8::3\"; names are not looked up".into()
            }
            Self::NotHundredths { .. } => {
                "VRRP counts in hundredths: write \"10ms\", \"100ms\" or \"1s\", say".into()
            }
            Self::PeersOfTwoFamilies => {
                "name each peer by its IPv4 address, or each by its IPv6 address".into()
            }
            Self::NothingToAdvertise { family } => format!(
                "the nodes speak {family}, and an advertisement names what they share: add an \
                 {family} address to `addresses`, or name `peers` of the other family"
            ),
            Self::TooManyIn { .. }
            | Self::TooManyOfService { .. }
            | Self::TooManyInterfaces { .. } => "this is a fixed limit".into(),
        })
    }

    /// The file could not be read.
    pub(super) fn unreadable(error: &io::Error) -> Self {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file".into(),
            io::ErrorKind::PermissionDenied => "permission denied".into(),
            io::ErrorKind::IsADirectory => "it is a directory".into(),
            _ => error.to_string(),
        };
        Self::Unreadable {
            why,
            absent: error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Two backends of a service have this name.
    pub(super) fn same_backend_name(name: &str) -> Self {
        Self::Twice {
            what: "the backend name",
            value: format!("\"{name}\""),
            scope: "names of backends are unique within a service",
        }
    }

    /// Two backends of a service have this address.
    pub(super) fn same_backend_address(address: SocketAddr) -> Self {
        Self::Twice {
            what: "the backend address",
            value: address.to_string(),
            scope: "to give a backend more connections raise its `weight`",
        }
    }
}

impl Unusable {
    /// What to write instead.
    fn help(self, address: IpAddr) -> String {
        match self {
            Self::Unspecified | Self::Multicast | Self::Broadcast => {
                "name one address of one host".into()
            }
            Self::Loopback => "use an address of this host that others can reach".into(),
            Self::LinkLocal => "use a global (2000::/3) or unique local (fd00::/8) address".into(),
            Self::Mapped => format!("write {}", address.to_canonical()),
        }
    }
}

/// Text from the file as it may be shown: of a sensible length, and without
/// characters that would do something to a terminal.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 64;
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

/// The words, in quotation marks, with "or" before the last.
pub(super) fn quoted(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => format!("\"{only}\""),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|word| format!("\"{word}\"")).collect();
            format!("{} or \"{last}\"", first.join(", "))
        }
    }
}

/// The name of the address's family.
fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}
