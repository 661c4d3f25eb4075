//! The configuration file: TOML in, a [`Config`] or a list of errors out.
//!
//! A [`Config`] that exists is valid: every value has been parsed into what it
//! means, names are unique, addresses can be balanced, limits hold. What can be
//! known only from the running host (does the interface exist?) is not asked
//! here.
//!
//! # Errors
//! As many faults as possible are reported at once, each with file, line, the
//! offending text underlined, and what would be valid. The TOML is first
//! read into a tree that knows where each key and value stands; a fault in its
//! syntax ends the matter there, since what follows from it would be noise.
//! Then the tree is read section by section.
//!
//! What `interface.md`'s later versions know and this one does not is refused
//! by name, never ignored: a firewall rule that is silently not applied is
//! worse than an error. Where the value is the default, which asks for nothing,
//! it is accepted.
//!
//! # Rooms
//! `keys` lists the keys of each section, `words` the words a value may be,
//! [`value`] turns single values into what they mean, `section` takes them
//! out of the tree, `read` puts the whole together, [`Fault`] says what can be
//! wrong, and `report` shows it.

mod fault;
mod ha;
mod keys;
mod read;
mod report;
mod section;
pub mod value;
mod words;

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use fault::{Expected, Fault, Unusable};
pub use ha::{Ha, MOST_ADDRESSES, Sync};
pub use report::{ConfigErrors, Place, Problem};
pub use value::Prefix;
pub use words::{CheckKind, Forward, HaChecksum, OnDown, Protocol, Via, XdpMode};

use crate::schedule::Scheduler;

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "/etc/lb/lb.toml";

/// The most bytes a configuration file may have.
pub const MAX_FILE_BYTES: usize = 4 << 20;

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This balancer.
    pub node: Node,
    /// When a silent connection is over.
    pub timeouts: Timeouts,
    /// What it tells over the network, if it does.
    pub api: Option<Api>,
    /// With whom it shares its addresses, if it does.
    pub ha: Option<Ha>,
    /// What it balances, in the order of the file.
    pub services: Vec<Service>,
}

impl Config {
    /// Whether packets over IPv6 are forwarded: in tunnel mode a service of the other
    /// family may have backends of this.
    pub fn has_ipv6(&self) -> bool {
        self.services.iter().any(|service| {
            let backends = service.backends.iter().map(|backend| backend.address);
            backends
                .chain([service.listen])
                .any(|address| address.is_ipv6())
        })
    }

    /// The files of certificates that it names.
    pub fn certificates(&self) -> Vec<&Path> {
        let sync = self.ha.as_ref().and_then(|ha| ha.sync.as_ref());
        let files = sync.map(|sync| [&*sync.files.cert, &*sync.files.ca]);
        files.into_iter().flatten().collect()
    }

    /// Whether this backend may join the ones that `service`, one of this
    /// configuration's, has now.
    ///
    /// # Errors
    /// The [`Fault`] that keeps it out.
    pub fn admit(&self, service: &Service, backend: &Backend) -> Result<(), Fault> {
        service.admit(backend)?;
        let sources = &self.node.tunnel_sources;
        if sources.matter(&self.services) {
            sources.leave_free("address", backend.address.ip())?;
        }
        Ok(())
    }
}

/// What is told over the network: `[api]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Where `GET /metrics` is answered, by plain HTTP.
    pub metrics_listen: SocketAddr,
}

/// The balancer itself: `[node]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name in everything it reports; the host name if not given.
    pub name: String,
    /// Where the XDP program is attached; at least one, each once.
    pub interfaces: Vec<String>,
    /// How it is attached.
    pub xdp_mode: XdpMode,
    /// Where maps and links are pinned.
    pub pin_path: PathBuf,
    /// The control socket.
    pub control: PathBuf,
    /// How many flows can be held.
    pub max_flows: u32,
    /// How many services can be held.
    pub max_services: u32,
    /// How many backends can be held, of all services together.
    pub max_backends: u32,
    /// Where the outer source addresses of tunnels come from.
    pub tunnel_sources: TunnelSources,
}

/// The prefixes from which tunnels take their outer source addresses, by the
/// outer family. Of an address the low bits vary with the flow, so that
/// routers and cards on the way spread flows over their links and queues; no
/// packet ever comes back to one, so they need no host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSources {
    /// 8 to 32 bits long.
    pub v4: Prefix,
    /// 32 to 128 bits long.
    pub v6: Prefix,
}

impl TunnelSources {
    /// Prefixes that nobody has: 198.18.0.0/16, of those for measurements (RFC
    /// 2544), and 100::/64, which discards (RFC 6666).
    pub const DEFAULT: Self = Self {
        v4: Prefix::v4([198, 18, 0, 0], 16),
        v6: Prefix::v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    };

    /// Whether they are used, or at least asked for: the default may well be
    /// inhabited where there is no tunnel.
    fn matter(&self, services: &[Service]) -> bool {
        *self != Self::DEFAULT
            || services
                .iter()
                .any(|service| service.forward == Forward::Tunnel)
    }

    /// Refuses an address that somebody has and tunnels would pretend to.
    fn leave_free(&self, key: &'static str, address: IpAddr) -> Result<(), Fault> {
        match [self.v4, self.v6]
            .into_iter()
            .find(|prefix| prefix.contains(address))
        {
            Some(prefix) => Err(Fault::TunnelSource {
                key,
                address,
                prefix,
            }),
            None => Ok(()),
        }
    }
}

/// How long a connection is remembered without a packet, by how it stands:
/// `[timeouts]`. They hold for every service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP: the client has not yet acknowledged the backend's answer.
    pub handshake: Duration,
    /// TCP: neither side has ended.
    pub established: Duration,
    /// TCP: one side has sent FIN.
    pub closing: Duration,
    /// TCP: both sides have sent FIN, or one a RST (TIME-WAIT, RFC 9293).
    pub closed: Duration,
    /// UDP: both sides have been heard.
    pub udp: Duration,
    /// UDP: only the client has been heard.
    pub udp_unanswered: Duration,
}

impl Timeouts {
    /// What there is where the file says nothing. A TCP connection may be
    /// silent for two hours and four minutes (RFC 5382, REQ-5), a UDP flow for
    /// five minutes (RFC 4787, REQ-5).
    pub const DEFAULT: Self = Self {
        handshake: Duration::from_secs(10),
        established: Duration::from_secs(2 * 3600 + 5 * 60),
        closing: Duration::from_secs(120),
        closed: Duration::from_secs(60),
        udp: Duration::from_secs(300),
        udp_unanswered: Duration::from_secs(30),
    };
}

/// One address and port that is balanced: `[[service]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name, unique among the services.
    pub name: String,
    /// Where clients connect to.
    pub listen: SocketAddr,
    /// The transport.
    pub protocol: Protocol,
    /// How packets reach the backends.
    pub forward: Forward,
    /// The largest TCP segment that either side may announce, in bytes; 0
    /// leaves it to them.
    pub max_mss: u16,
    /// How the backend of a new connection is chosen.
    pub scheduler: &'static Scheduler,
    /// How long after its last new connection a client's address keeps its
    /// backend; zero for not at all.
    pub affinity: Duration,
    /// What becomes of the flows of a backend that went down.
    pub on_down: OnDown,
    /// How long a backend that has come back takes to get its whole weight.
    pub slow_start: Duration,
    /// With fewer healthy backends than this all are used.
    pub min_healthy: u32,
    /// How it is found out whether a backend works.
    pub check: Check,
    /// Who serves it, in the order of the file; may be none.
    pub backends: Vec<Backend>,
}

impl Service {
    /// Whether this backend may join the ones that are there.
    ///
    /// # Errors
    /// The [`Fault`] that keeps it out.
    pub fn admit(&self, backend: &Backend) -> Result<(), Fault> {
        value::reachable(self.forward, self.listen, backend.address)?;
        if self.backends.len() >= value::MAX_BACKENDS_OF_SERVICE {
            return Err(Fault::TooManyOfService {
                limit: value::MAX_BACKENDS_OF_SERVICE,
            });
        }
        for other in &self.backends {
            if other.name == backend.name {
                return Err(Fault::same_backend_name(&backend.name));
            }
            if other.address == backend.address {
                return Err(Fault::same_backend_address(backend.address));
            }
        }
        Ok(())
    }
}

/// How a service's backends are checked: `[service.check]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is tried.
    pub kind: CheckKind,
    /// Which way it goes.
    pub via: Via,
    /// From the start of one check to the start of the next.
    pub interval: Duration,
    /// How long an answer may take; at most the interval.
    pub timeout: Duration,
    /// How many successes in a row bring a backend back.
    pub rise: u32,
    /// How many failures in a row take it out.
    pub fall: u32,
    /// The port to try, where it is not the backend's own.
    pub port: Option<u16>,
}

/// One server behind a service: `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its name, unique within the service.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of new connections, relative to the others'; 0 gets none.
    pub weight: u16,
    /// Used only while no other one can be.
    pub backup: bool,
}

/// Reads and parses a file.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let bytes = read_bounded(path)
        .map_err(|error| ConfigErrors::whole_file(path, Fault::unreadable(&error)))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(ConfigErrors::whole_file(path, Fault::TooLarge));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(text, path),
        Err(error) => {
            let shown = String::from_utf8_lossy(&bytes);
            let at = error.valid_up_to();
            Err(ConfigErrors::single(path, &shown, at..at, Fault::NotUtf8))
        }
    }
}

/// At most one byte more than a file may have, so that more is noticed and
/// an endless file ends.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Parses the text of a file; `file` is what errors call it. The name of a
/// node that has none is this host's.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigErrors> {
    let host = rustix::system::uname();
    parse_for(&host.nodename().to_string_lossy(), text, file)
}

/// Parses the text of a file for the host of this name.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse_for(host: &str, text: &str, file: &Path) -> Result<Config, ConfigErrors> {
    if text.len() > MAX_FILE_BYTES {
        return Err(ConfigErrors::whole_file(file, Fault::TooLarge));
    }
    let mut config =
        read::config(host, text).map_err(|found| ConfigErrors::new(file, text, found))?;
    let sync = config.ha.as_mut().and_then(|ha| ha.sync.as_mut());
    if let (Some(sync), Some(folder)) = (sync, file.parent()) {
        sync.look_in(folder);
    }
    Ok(config)
}
