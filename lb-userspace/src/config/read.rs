//! From the tree of the file to a [`Config`].

mod check;
mod ha;
mod sync;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::de::DeTable;

use super::fault::{Fault, shown};
use super::keys;
use super::report::Found;
use super::section::{At, Section, parsed};
use super::value;
use super::words::{CheckKind, Forward, OnDown, Protocol, XdpMode};
use super::{Api, Backend, Config, Node, Service, Timeouts, TunnelSources};
use crate::schedule::Scheduler;

/// The most interfaces one balancer may have.
const MAX_INTERFACES: usize = 64;

/// What the capacities may be set to.
const FLOWS: RangeInclusive<u32> = 1..=100_000_000;
const SERVICES: RangeInclusive<u32> = 1..=65_536;
const BACKENDS: RangeInclusive<u32> = 1..=1_048_576;

/// Where metrics are told if nothing else is said: to this host alone.
const METRICS_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9100);

/// How long a client may keep its backend: what is counted in kernel ticks
/// must stay well below 2^31 of them.
const AFFINITY: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// How long a slow start may take: it has steps.
const SLOW_START: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// How long a silent connection may be remembered. Shorter than a second is
/// not noted, and longer than a week nobody is silent who is still there.
const SILENCE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600);

/// The text as a configuration for the host of this name, or all that is wrong.
pub(super) fn config(host: &str, text: &str) -> Result<Config, Found> {
    let mut found = Found::default();
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let at = error.span().unwrap_or(text.len()..text.len());
        let fault = match (error.message(), text.get(at.clone())) {
            ("duplicate key", Some(key)) => Fault::GivenTwice { key: shown(key) },
            (reason, _) => Fault::Syntax {
                reason: reason.to_owned(),
            },
        };
        found.add(at, fault);
    }
    if !found.is_empty() {
        return Err(found);
    }
    let root = Section::new(&keys::FILE, root.get_ref(), 0..0, &mut found);
    let node = node(&root, host, &mut found);
    let timeouts = timeouts(&root, &mut found);
    let api = api(&root, &mut found);
    let services = services(&root, node.as_ref(), &mut found);
    let ha = ha::ha(&root, &services, &mut found);
    match node {
        Some(node) if found.is_empty() => Ok(Config {
            node,
            timeouts,
            api,
            ha,
            services,
        }),
        _ => Err(found),
    }
}

/// `[node]`
fn node(root: &Section<'_>, host: &str, found: &mut Found) -> Option<Node> {
    if !root.has("node") {
        root.missing(
            "[node]",
            "a section [node] with `interfaces = [\"eth0\"]`",
            found,
        );
    }
    let section = root.section("node", &keys::NODE, found)?;
    let name = if section.has("name") {
        section.parsed("name", found, |text| value::name("node name", text))
    } else {
        let name =
            value::name("node name", host).map_err(|_| Fault::BadHostName { found: shown(host) });
        parsed(name, section.span.clone(), found)
    };
    let interfaces = interfaces(&section, found);
    Some(Node {
        name: name.map(|name| name.value).unwrap_or_default(),
        interfaces,
        xdp_mode: section.word("xdp_mode", XdpMode::Auto, found),
        pin_path: section.path("pin_path", "/sys/fs/bpf/lb", found, value::path),
        control: section.path("control", "/run/lb/lb.sock", found, value::socket_path),
        max_flows: section
            .number("max_flows", FLOWS, found)
            .unwrap_or(1_000_000),
        max_services: section
            .number("max_services", SERVICES, found)
            .unwrap_or(4096),
        max_backends: section
            .number("max_backends", BACKENDS, found)
            .unwrap_or(65_536),
        tunnel_sources: tunnel_sources(&section, found),
    })
}

/// `[timeouts]`
fn timeouts(root: &Section<'_>, found: &mut Found) -> Timeouts {
    let default = Timeouts::DEFAULT;
    let Some(section) = root.section("timeouts", &keys::TIMEOUTS, found) else {
        return default;
    };
    let mut timeout = |key, default| {
        section
            .duration(key, SILENCE, found)
            .map_or(default, |at| at.value)
    };
    Timeouts {
        handshake: timeout("handshake", default.handshake),
        established: timeout("established", default.established),
        closing: timeout("closing", default.closing),
        closed: timeout("closed", default.closed),
        udp: timeout("udp", default.udp),
        udp_unanswered: timeout("udp_unanswered", default.udp_unanswered),
    }
}

/// `[api]`
fn api(root: &Section<'_>, found: &mut Found) -> Option<Api> {
    const KEY: &str = "metrics_listen";
    let section = root.section("api", &keys::API, found)?;
    let written = section.parsed(KEY, found, |text| value::own_socket(KEY, text));
    Some(Api {
        metrics_listen: written.map_or(METRICS_LISTEN, |at| at.value),
    })
}

/// The prefixes of tunnels: at most one for each family, else the default.
fn tunnel_sources(section: &Section<'_>, found: &mut Found) -> TunnelSources {
    const KEY: &str = "tunnel_sources";
    let mut sources = TunnelSources::DEFAULT;
    let Some(prefixes) = section.texts(KEY, found) else {
        return sources;
    };
    let mut seen = HashMap::new();
    for At { value: text, span } in prefixes.value {
        let Some(prefix) = parsed(value::tunnel_source(KEY, text), span, found) else {
            continue;
        };
        let At { value, span } = prefix;
        let (family, source) = match value.address() {
            IpAddr::V4(_) => ("IPv4", &mut sources.v4),
            IpAddr::V6(_) => ("IPv6", &mut sources.v6),
        };
        *source = value;
        let twice = || Fault::Twice {
            what: "the family",
            value: family.to_owned(),
            scope: "`tunnel_sources` has at most one prefix for each family",
        };
        once(&mut seen, family, span, found, twice);
    }
    sources
}

/// The interfaces: at least one, each once.
fn interfaces(section: &Section<'_>, found: &mut Found) -> Vec<String> {
    if !section.has("interfaces") {
        section.missing(
            "interfaces",
            "`interfaces = [\"eth0\"]`, named as `ip link` shows it",
            found,
        );
    }
    let Some(names) = section.texts("interfaces", found) else {
        return Vec::new();
    };
    if names.value.is_empty() {
        found.add(names.span.clone(), Fault::NoInterface);
    }
    if names.value.len() > MAX_INTERFACES {
        found.add(
            names.span,
            Fault::TooManyInterfaces {
                limit: MAX_INTERFACES,
            },
        );
    }
    let mut seen = HashMap::new();
    let mut interfaces = Vec::new();
    for At { value: text, span } in names.value {
        let Some(name) = parsed(value::interface(text), span, found) else {
            continue;
        };
        let twice = || Fault::Twice {
            what: "the interface",
            value: format!("\"{text}\""),
            scope: "name each interface once",
        };
        once(&mut seen, name.value.clone(), name.span, found, twice);
        interfaces.push(name.value);
    }
    interfaces
}

/// What services have in common: of each only one may be.
#[derive(Default)]
struct Taken {
    names: HashMap<String, Range<usize>>,
    listens: HashMap<(SocketAddr, Protocol), Range<usize>>,
    addresses: Vec<Inhabited>,
}

/// An address that somebody has: the key that says so, and where.
struct Inhabited {
    key: &'static str,
    address: IpAddr,
    span: Range<usize>,
}

impl Taken {
    fn inhabited(&mut self, key: &'static str, at: SocketAddr, span: &Range<usize>) {
        self.addresses.push(Inhabited {
            key,
            address: at.ip(),
            span: span.clone(),
        });
    }
}

/// Every `[[service]]`, and whether they fit into the capacities.
fn services(root: &Section<'_>, node: Option<&Node>, found: &mut Found) -> Vec<Service> {
    let sections = root.sections("service", &keys::SERVICE, found);
    let (max_services, max_backends) = node.map_or((u32::MAX, u32::MAX), |node| {
        (node.max_services, node.max_backends)
    });
    if let Some(beyond) = sections.get(max_services as usize) {
        let fault = Fault::TooMany {
            what: "services",
            key: "max_services",
            limit: max_services,
        };
        found.add(beyond.span.clone(), fault);
    }
    let mut taken = Taken::default();
    let mut services = Vec::new();
    let mut backends_left = max_backends as usize;
    for section in &sections {
        let backends = section.sections("backend", &keys::BACKEND, found);
        let beyond = backends
            .get(backends_left)
            .or(backends.get(value::MAX_BACKENDS_OF_SERVICE));
        if let Some(beyond) = beyond {
            let fault = if backends.len() > backends_left {
                let limit = max_backends;
                Fault::TooMany {
                    what: "backends",
                    key: "max_backends",
                    limit,
                }
            } else {
                Fault::TooManyOfService {
                    limit: value::MAX_BACKENDS_OF_SERVICE,
                }
            };
            found.add(beyond.span.clone(), fault);
        }
        backends_left = backends_left.saturating_sub(backends.len());
        services.extend(service(section, &backends, &mut taken, found));
    }
    if let Some(node) = node
        && node.tunnel_sources.matter(&services)
    {
        for Inhabited { key, address, span } in taken.addresses {
            let free = node.tunnel_sources.leave_free(key, address);
            parsed(free, span, found);
        }
    }
    services
}

/// One `[[service]]`.
fn service(
    section: &Section<'_>,
    backends: &[Section<'_>],
    taken: &mut Taken,
    found: &mut Found,
) -> Option<Service> {
    let named = |text: &str| value::name("service name", text);
    let name = section.required("name", "`name = \"web\"`", found, named);
    if let Some(At { value: name, span }) = &name {
        let twice = || Fault::Twice {
            what: "the service name",
            value: format!("\"{name}\""),
            scope: "names of services are unique",
        };
        once(&mut taken.names, name.clone(), span.clone(), found, twice);
    }
    let protocol = section.word("protocol", Protocol::Tcp, found);
    let address = |text: &str| value::address("listen", text);
    let listen = section.required("listen", "`listen = \"203.0.113.10:80\"`", found, address);
    if let Some(At {
        value: listen,
        span,
    }) = &listen
    {
        let twice = || Fault::Twice {
            what: "the listening address",
            value: format!("{listen} ({protocol})"),
            scope: "two services differ in address, port or protocol",
        };
        once(
            &mut taken.listens,
            (*listen, protocol),
            span.clone(),
            found,
            twice,
        );
    }
    if let Some(At { value, span }) = &listen {
        taken.inhabited("listen", *value, span);
    }
    let listen = listen.map(|listen| listen.value);
    let forward = match section.word_at("forward", found) {
        Some(forward) => Some(forward.value),
        None if section.has("forward") => None,
        None => Some(Forward::FullNat),
    };
    let max_mss = max_mss(section, protocol, found);
    not_yet(section, found);
    let check = check::check(section, protocol, forward, found);
    let backends = backends_of(backends, forward.zip(listen), taken, found);
    Some(Service {
        name: name?.value,
        listen: listen?,
        protocol,
        forward: forward?,
        max_mss,
        scheduler: section.word("scheduler", Scheduler::DEFAULT, found),
        affinity: section.duration_or_off("affinity", AFFINITY, found),
        on_down: section.word("on_down", OnDown::Reset, found),
        slow_start: slow_start(section, check.kind, found),
        min_healthy: min_healthy(section, check.kind, found),
        check,
        backends,
    })
}

/// The largest segment, which only TCP has.
fn max_mss(section: &Section<'_>, protocol: Protocol, found: &mut Found) -> u16 {
    let Some(At { value, span }) = section.number_or_off("max_mss", value::MAX_MSS, found) else {
        return 0;
    };
    if value != 0 && protocol != Protocol::Tcp {
        let fault = Fault::OnlyWith {
            what: "`max_mss`",
            with: "`protocol = \"tcp\"`",
        };
        found.add(span, fault);
    }
    u16::try_from(value).unwrap_or_default()
}

/// The keys whose only value so far is the one that asks for nothing.
fn not_yet(section: &Section<'_>, found: &mut Found) {
    section.nothing("allow", "[]", found, |value| {
        Some(value.as_array()?.is_empty())
    });
}

/// How long a backend that comes back is spared: only a check says that one
/// has come back.
fn slow_start(section: &Section<'_>, check: CheckKind, found: &mut Found) -> Duration {
    let written = section.duration_or_off_at("slow_start", SLOW_START, found);
    let Some(At { value, span }) = written else {
        return Duration::ZERO;
    };
    if !value.is_zero() && check == CheckKind::None {
        found.add(span, only_checked("`slow_start`"));
    }
    value
}

/// How many must be healthy, which only a check tells.
fn min_healthy(section: &Section<'_>, check: CheckKind, found: &mut Found) -> u32 {
    let most = value::MAX_BACKENDS_OF_SERVICE as u32;
    let Some(At { value, span }) = section.number_at("min_healthy", 0..=most, found) else {
        return 0;
    };
    if value > 0 && check == CheckKind::None {
        found.add(span, only_checked("`min_healthy`"));
    }
    value
}

/// The fault of a key that means nothing without a check.
fn only_checked(what: &'static str) -> Fault {
    Fault::OnlyWith {
        what,
        with: "a check of another type than \"none\"",
    }
}

/// Every `[[service.backend]]` of a service; `of` is how it forwards and where
/// it listens.
fn backends_of(
    sections: &[Section<'_>],
    of: Option<(Forward, SocketAddr)>,
    taken: &mut Taken,
    found: &mut Found,
) -> Vec<Backend> {
    let mut names = HashMap::new();
    let mut addresses = HashMap::new();
    let mut backends = Vec::new();
    for section in sections {
        let named = |text: &str| value::name("backend name", text);
        let name = section.required("name", "`name = \"web1\"`", found, named);
        if let Some(At { value: name, span }) = &name {
            let twice = || Fault::same_backend_name(name);
            once(&mut names, name.clone(), span.clone(), found, twice);
        }
        let placed = |text: &str| {
            let address = value::address("address", text)?;
            if let Some((forward, listen)) = of {
                value::reachable(forward, listen, address)?;
            }
            Ok(address)
        };
        let address = section.required("address", "`address = \"10.0.1.11:80\"`", found, placed);
        if let Some(At {
            value: address,
            span,
        }) = &address
        {
            let twice = || Fault::same_backend_address(*address);
            once(&mut addresses, *address, span.clone(), found, twice);
            taken.inhabited("address", *address, span);
        }
        let weight = section.number("weight", 0..=u32::from(value::MAX_WEIGHT), found);
        let weight = weight
            .and_then(|weight| u16::try_from(weight).ok())
            .unwrap_or(1);
        let backup = section.truth("backup", found).unwrap_or(false);
        if let (Some(name), Some(address)) = (name, address) {
            backends.push(Backend {
                name: name.value,
                address: address.value,
                weight,
                backup,
            });
        }
    }
    backends
}

/// Notes a fault if the key was there before.
fn once<K: Eq + Hash>(
    seen: &mut HashMap<K, Range<usize>>,
    key: K,
    span: Range<usize>,
    found: &mut Found,
    twice: impl FnOnce() -> Fault,
) {
    match seen.entry(key) {
        Entry::Vacant(free) => {
            free.insert(span);
        }
        Entry::Occupied(first) => found.add_again(span, first.get().clone(), twice()),
    }
}
