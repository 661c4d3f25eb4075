//! What a configuration file means, and what is said about a bad one.
//!
//! The bad files and the exact words about each stand in `config_errors.txt`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use lb_userspace::config::{
    self, Api, Backend, Check, CheckKind, Config, ConfigErrors, Fault, Forward, Ha, HaChecksum,
    MAX_FILE_BYTES, Node, OnDown, Protocol, Service, Sync, Timeouts, TunnelSources, Via, XdpMode,
    value,
};
use lb_userspace::schedule::{self, Scheduler};
use lb_userspace::tls::Paths;
use lb_userspace::vrrp::net::Family;
use lb_userspace::vrrp::packet::Interval;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Everything this version has, each key with a value other than its default
/// where there is one.
const EVERYTHING: &str = r#"
[node]
name = "lb-a"
interfaces = ["eth0", "eth1"]
xdp_mode = "native"
pin_path = "/sys/fs/bpf/lb-a"
control = "/run/lb/a.sock"
max_flows = 2_000_000
max_services = 10
max_backends = 100
tunnel_sources = ["100:0:0:1::/96", "198.19.0.0/24"]

[timeouts]
handshake = "5s"
established = "1h"
closing = "1m"
closed = "30s"
udp = "2m"
udp_unanswered = "10s"

[api]
metrics_listen = "0.0.0.0:9101"

[ha]
interface = "eth1"
vrid = 51
priority = 150
interval = "250ms"
preempt = false
preempt_delay = "1m"
peers = ["10.0.0.3"]
addresses = ["203.0.113.99"]
checksum = "plain"
hop_limit = 64
track = ["eth0"]
[ha.sync]
listen = "10.0.0.2:9444"
peer = "10.0.0.3:9444"
cert = "tls/node.crt"
key = "/etc/lb/node.key"
ca = "../ca.crt"

[[service]]
name = "web"
listen = "203.0.113.10:80"
protocol = "tcp"
forward = "nat"
max_mss = 1360
scheduler = "maglev"
affinity = "5m"
on_down = "keep"
allow = []
slow_start = "30s"
min_healthy = 1
[service.check]
type = "tcp"
via = "backend"
interval = "2s"; timeout = "1s 500ms"; rise = 1; fall = 5
port = 9000
[[service.backend]]
name = "web1"
address = "10.0.1.11:8080"
weight = 3
backup = true
[[service.backend]]
name = "web2"
address = "10.0.1.12:8080"
weight = 0

[[service]]
name = "dns"
listen = "[2001:db8::10]:53"
protocol = "udp"
check = { type = "none" }
backend = [
    { name = "dns1", address = "[2001:db8:1::1]:5353", weight = 256 },
]

[[service]]
name = "direct"
listen = "203.0.113.10:443"
forward = "dsr"
check = { via = "service" }
backend = [{ name = "direct1", address = "10.0.1.11:443" }]

[[service]]
name = "far"
listen = "203.0.113.10:8443"
forward = "tunnel"
max_mss = 0
backend = [
    { name = "far4", address = "10.0.1.11:8443" },
    { name = "far6", address = "[2001:db8:1::1]:8443" },
]
"#;

/// As in `EVERYTHING`, but TOML has one key a line.
fn everything() -> String {
    EVERYTHING.replace("; ", "\n")
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    config::parse_for("this-host", text, Path::new("lb.toml"))
}

fn backend(name: &str, address: &str, weight: u16) -> Backend {
    Backend {
        name: name.into(),
        address: address.parse().expect("an address"),
        weight,
        backup: false,
    }
}

/// What a service is of which nothing is said.
fn plain_service(name: &str, listen: &str, backends: Vec<Backend>) -> Service {
    Service {
        name: name.into(),
        listen: listen.parse().expect("an address"),
        protocol: Protocol::Tcp,
        forward: Forward::FullNat,
        max_mss: 0,
        scheduler: Scheduler::DEFAULT,
        affinity: Duration::ZERO,
        on_down: OnDown::Reset,
        slow_start: Duration::ZERO,
        min_healthy: 0,
        check: plain_check(),
        backends,
    }
}

/// What a check is of which nothing is said.
fn plain_check() -> Check {
    Check {
        kind: CheckKind::Tcp,
        via: Via::Backend,
        interval: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        rise: 2,
        fall: 3,
        port: None,
    }
}

#[test]
fn every_key_means_what_it_says() {
    let backends = vec![
        Backend {
            backup: true,
            ..backend("web1", "10.0.1.11:8080", 3)
        },
        backend("web2", "10.0.1.12:8080", 0),
    ];
    let web = Service {
        forward: Forward::Nat,
        max_mss: 1360,
        scheduler: Scheduler::named("maglev").expect("a scheduler"),
        affinity: Duration::from_secs(300),
        on_down: OnDown::Keep,
        slow_start: Duration::from_secs(30),
        min_healthy: 1,
        check: Check {
            kind: CheckKind::Tcp,
            via: Via::Backend,
            interval: Duration::from_secs(2),
            timeout: Duration::from_millis(1500),
            rise: 1,
            fall: 5,
            port: Some(9000),
        },
        ..plain_service("web", "203.0.113.10:80", backends)
    };
    let backends = vec![backend("dns1", "[2001:db8:1::1]:5353", 256)];
    let dns = Service {
        protocol: Protocol::Udp,
        check: Check {
            kind: CheckKind::None,
            ..plain_check()
        },
        ..plain_service("dns", "[2001:db8::10]:53", backends)
    };
    let backends = vec![backend("direct1", "10.0.1.11:443", 1)];
    let direct = Service {
        forward: Forward::Dsr,
        check: Check {
            via: Via::Service,
            ..plain_check()
        },
        ..plain_service("direct", "203.0.113.10:443", backends)
    };
    let backends = vec![
        backend("far4", "10.0.1.11:8443", 1),
        backend("far6", "[2001:db8:1::1]:8443", 1),
    ];
    let far = Service {
        forward: Forward::Tunnel,
        ..plain_service("far", "203.0.113.10:8443", backends)
    };
    let timeouts = Timeouts {
        handshake: Duration::from_secs(5),
        established: Duration::from_secs(3600),
        closing: Duration::from_secs(60),
        closed: Duration::from_secs(30),
        udp: Duration::from_secs(120),
        udp_unanswered: Duration::from_secs(10),
    };
    let node = Node {
        name: "lb-a".into(),
        interfaces: vec!["eth0".into(), "eth1".into()],
        xdp_mode: XdpMode::Native,
        pin_path: "/sys/fs/bpf/lb-a".into(),
        control: "/run/lb/a.sock".into(),
        max_flows: 2_000_000,
        max_services: 10,
        max_backends: 100,
        tunnel_sources: TunnelSources {
            v4: value::prefix("", "198.19.0.0/24").expect("a prefix"),
            v6: value::prefix("", "100:0:0:1::/96").expect("a prefix"),
        },
    };
    let ha = Ha {
        interface: "eth1".into(),
        vrid: 51,
        priority: 150,
        interval: Interval::from_centiseconds(25).expect("it fits"),
        preempt: false,
        preempt_delay: Duration::from_secs(60),
        peers: vec!["10.0.0.3".parse().expect("an address")],
        addresses: vec!["203.0.113.99".parse().expect("an address")],
        checksum: HaChecksum::Plain,
        hop_limit: 64,
        track: vec!["eth0".into()],
        sync: Some(Sync {
            listen: "10.0.0.2:9444".parse().expect("an address"),
            peer: "10.0.0.3:9444".parse().expect("an address"),
            files: Paths {
                cert: "tls/node.crt".into(),
                key: "/etc/lb/node.key".into(),
                ca: "../ca.crt".into(),
            },
        }),
    };
    let expected = Config {
        node,
        timeouts,
        api: Some(Api {
            metrics_listen: "0.0.0.0:9101".parse().expect("an address"),
        }),
        ha: Some(ha),
        services: vec![web, dns, direct, far],
    };
    assert_eq!(parse(&everything()), Ok(expected));
}

#[test]
fn what_is_not_said_has_its_default() {
    let text = r#"
        [node]
        interfaces = ["eth0"]
        [[service]]
        name = "web"
        listen = "203.0.113.10:80"
        [[service.backend]]
        name = "web1"
        address = "10.0.1.11:8080"
        [[service]]
        name = "dns"
        listen = "203.0.113.10:53"
        protocol = "udp"
    "#;
    let Config {
        node,
        timeouts,
        api,
        ha,
        services,
    } = parse(text).expect("valid");
    assert_eq!((api, ha), (None, None));
    let expected = Node {
        name: "this-host".into(),
        interfaces: vec!["eth0".into()],
        xdp_mode: XdpMode::Auto,
        pin_path: "/sys/fs/bpf/lb".into(),
        control: "/run/lb/lb.sock".into(),
        max_flows: 1_000_000,
        max_services: 4096,
        max_backends: 65_536,
        tunnel_sources: TunnelSources::DEFAULT,
    };
    assert_eq!(node, expected);
    assert_eq!(timeouts, Timeouts::DEFAULT);
    let backends = vec![backend("web1", "10.0.1.11:8080", 1)];
    let web = plain_service("web", "203.0.113.10:80", backends);
    assert_eq!(services[0], web);
    assert_eq!(
        services[1].check.kind,
        CheckKind::None,
        "nothing answers a TCP probe there"
    );
    assert!(services[1].backends.is_empty());
}

#[test]
fn every_scheduler_can_be_named_and_a_timeout_by_itself() {
    for scheduler in schedule::ALL {
        let text = format!(
            "[node]\ninterfaces = [\"eth0\"]\n[timeouts]\nudp = \"90s\"\n[[service]]\n\
             name = \"web\"\nlisten = \"203.0.113.10:80\"\nscheduler = \"{}\"\n",
            scheduler.name
        );
        let Config {
            timeouts, services, ..
        } = parse(&text).expect("valid");
        assert_eq!(services[0].scheduler, *scheduler);
        let expected = Timeouts {
            udp: Duration::from_secs(90),
            ..Timeouts::DEFAULT
        };
        assert_eq!(timeouts, expected);
    }
}

/// A pair whose section ends so, with these services' addresses.
fn pair(rest: &str, listens: &[&str]) -> Config {
    let services: String = listens
        .iter()
        .enumerate()
        .map(|(place, listen)| format!("[[service]]\nname = \"s{place}\"\nlisten = \"{listen}\"\n"))
        .collect();
    let ha = "[ha]\ninterface = \"eth0\"\nvrid = 51\npriority = 150\n";
    let text = format!("[node]\ninterfaces = [\"eth0\"]\n{ha}{rest}\n{services}");
    parse(&text).expect("valid")
}

#[test]
fn a_pair_of_which_little_is_said_has_its_defaults() {
    let ha = pair("", &["203.0.113.10:80"])
        .ha
        .expect("there is a section");
    let expected = Ha {
        interface: "eth0".into(),
        vrid: 51,
        priority: 150,
        interval: Interval::from_centiseconds(10).expect("it fits"),
        preempt: true,
        preempt_delay: Duration::ZERO,
        peers: vec![],
        addresses: vec![],
        checksum: HaChecksum::Auto,
        hop_limit: 255,
        track: vec![],
        sync: None,
    };
    assert_eq!(ha, expected);
}

#[test]
fn files_are_named_from_the_folder_of_the_configuration_on() {
    let parsed = config::parse_for("lb-a", &everything(), Path::new("/etc/lb/lb.toml"));
    let sync = parsed.expect("valid").ha.and_then(|ha| ha.sync);
    let expected = Paths {
        cert: "/etc/lb/tls/node.crt".into(),
        key: "/etc/lb/node.key".into(),
        ca: "/etc/lb/../ca.crt".into(),
    };
    assert_eq!(sync.expect("there is a section").files, expected);
}

#[test]
fn a_node_may_listen_on_any_of_its_addresses_for_its_peer() {
    for (listen, peer) in [
        ("0.0.0.0:9444", "10.0.0.3:9444"),
        ("[::]:1", "[fd00::3]:65535"),
    ] {
        let sync = format!(
            "[ha.sync]\nlisten = \"{listen}\"\npeer = \"{peer}\"\ncert = \"a\"\nkey = \"b\"\nca = \"c\"\n"
        );
        let sync = pair(&sync, &["203.0.113.10:80"]).ha.and_then(|ha| ha.sync);
        let sync = sync.expect("there is a section");
        assert_eq!(
            (sync.listen.to_string(), sync.peer.to_string()),
            (listen.into(), peer.into())
        );
    }
}

#[test]
fn nodes_speak_the_family_of_their_peers_else_that_of_an_address() {
    let family = |rest, listens: &[&str]| {
        let config = pair(rest, listens);
        config
            .ha
            .expect("there is a section")
            .family(&config.services)
    };
    let both = ["[2001:db8::10]:80", "203.0.113.10:80"];
    assert_eq!(family("", &both), Family::V4);
    assert_eq!(family("", &both[..1]), Family::V6);
    assert_eq!(family("peers = [\"fe80::3\"]", &both), Family::V6);
    assert_eq!(family("addresses = [\"10.0.0.9\"]", &both[..1]), Family::V4);
}

#[test]
fn advertisements_name_each_address_of_the_family_once_and_no_more_than_fit() {
    let many: Vec<String> = (0..100)
        .map(|last| format!("\"2001:db8::{last:x}\"").replace("::0\"", "::ffff\""))
        .collect();
    let rest = format!("addresses = [\"fe80::51\", {}]", many.join(", "));
    let config = pair(
        &rest,
        &["[2001:db8::1]:80", "[2001:db8::1]:443", "203.0.113.10:80"],
    );
    let ha = config.ha.expect("there is a section");
    assert_eq!(ha.protected(&config.services).len(), 102);
    assert_eq!(ha.family(&config.services), Family::V4);
    assert_eq!(ha.advertised(&config.services).len(), 1);
    let over_v6 = Ha {
        peers: vec!["fe80::3".parse().expect("an address")],
        ..ha
    };
    let advertised = over_v6.advertised(&config.services);
    assert_eq!(advertised.len(), 90);
    let first: std::net::IpAddr = "fe80::51".parse().expect("an address");
    assert_eq!(advertised[0], first, "as RFC 9568, section 5.2.9 has it");
}

#[test]
fn metrics_are_told_to_this_host_unless_said_otherwise() {
    for (written, meant) in [
        ("", "127.0.0.1:9100"),
        ("metrics_listen = \"[::1]:9100\"", "[::1]:9100"),
        ("metrics_listen = \"[::]:80\"", "[::]:80"),
        ("metrics_listen = \"10.0.0.2:9100\"", "10.0.0.2:9100"),
    ] {
        let text = format!("[node]\ninterfaces = [\"eth0\"]\n[api]\n{written}\n");
        let api = parse(&text)
            .expect("valid")
            .api
            .expect("there is a section");
        assert_eq!(api.metrics_listen.to_string(), meant);
    }
}

#[test]
fn a_short_interval_shortens_the_timeout_that_is_not_said() {
    let check = "[service.check]\ninterval = \"200ms\"\n";
    let service = "[[service]]\nname = \"web\"\nlisten = \"203.0.113.10:80\"\n";
    let text = format!("[node]\ninterfaces = [\"eth0\"]\n{service}{check}");
    let config = parse(&text).expect("valid");
    assert_eq!(config.services[0].check.timeout, Duration::from_millis(200));
}

#[test]
fn a_host_name_that_cannot_be_a_node_name_asks_for_one() {
    let text = "[node]\ninterfaces = [\"eth0\"]\n";
    let said = config::parse_for("(none)", text, Path::new("lb.toml")).map_err(|e| e.to_string());
    let expected = "\
error: the host name \"(none)\" cannot be the node's name
 --> lb.toml:1:1
  |
1 | [node]
  | ^^^^^^
  = help: set `name` in [node]";
    assert_eq!(said, Err(expected.into()));
}

#[test]
fn what_is_said_about_bad_files() {
    let mut cases = 0;
    for case in include_str!("config_errors.txt").split("=== ").skip(1) {
        cases += 1;
        let (title, rest) = case.split_once('\n').expect("a title");
        let (file, expected) = rest.split_once("--- says\n").expect("what it says");
        let said = match parse(file) {
            Ok(config) => format!("accepted: {config:?}"),
            Err(errors) => errors.to_string(),
        };
        assert_eq!(said, expected.trim_end_matches('\n'), "{title}");
    }
    assert_eq!(cases, 70);
}

#[test]
fn a_fault_fits_into_one_line_too() {
    let text = everything()
        .replace("weight = 0", "wieght = 0")
        .replace("9000", "0");
    let errors = parse(&text).expect_err("two faults");
    let lines: Vec<String> = errors.lines().collect();
    let expected = [
        "lb.toml:62: `port` must be 1 to 65535, not 0",
        "lb.toml:71: unknown key `wieght`",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let absent = folder.path().join("absent.toml");
    let said = config::load(&absent)
        .expect_err("there is no such file")
        .to_string();
    let expected = format!(
        "error: cannot read the configuration: there is no such file\n --> {}\n  \
         = help: name another file with `-c FILE`",
        absent.display()
    );
    assert_eq!(said, expected);

    let said = config::load(folder.path())
        .expect_err("a folder")
        .to_string();
    assert!(
        said.starts_with("error: cannot read the configuration: it is a directory"),
        "{said}"
    );

    let large = folder.path().join("large.toml");
    fs::write(&large, vec![b'#'; MAX_FILE_BYTES + 1]).expect("written");
    let said = config::load(&large).expect_err("too large").to_string();
    assert!(
        said.starts_with("error: the configuration is larger than 4 MiB"),
        "{said}"
    );

    let latin = folder.path().join("latin1.toml");
    fs::write(&latin, b"[node]\nname = \"K\xf6ln\"\n").expect("written");
    let said = config::load(&latin).expect_err("not UTF-8").to_string();
    assert!(
        said.contains(&format!("--> {}:2:10\n", latin.display())),
        "{said}"
    );
    assert!(
        said.starts_with("error: the configuration is not UTF-8 text"),
        "{said}"
    );
}

#[test]
fn a_file_of_the_largest_size_is_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("lb.toml");
    let mut text = everything();
    text.push_str(&"#".repeat(MAX_FILE_BYTES - text.len()));
    fs::write(&path, &text).expect("written");
    assert_eq!(
        config::load(&path).map(|config| config.services.len()),
        Ok(4)
    );
}

#[test]
fn a_backend_is_admitted_at_run_time_by_the_rules_of_the_file() {
    let config = parse(&everything()).expect("valid");
    let [web, _, direct, far] = &config.services[..] else {
        panic!("four services");
    };
    let admit = |to, name, address| config.admit(to, &backend(name, address, 1));
    assert_eq!(admit(web, "web3", "10.0.1.13:80"), Ok(()));
    assert_eq!(admit(direct, "direct2", "10.0.1.13:443"), Ok(()));
    assert_eq!(admit(far, "far2", "[2001:db8:1::2]:8443"), Ok(()));
    let refused = |name, address| admit(web, name, address).expect_err("refused");
    assert_eq!(
        refused("web1", "10.0.1.13:80").to_string(),
        "the backend name \"web1\" is used twice"
    );
    assert_eq!(
        refused("web3", "10.0.1.11:8080").to_string(),
        "the backend address 10.0.1.11:8080 is used twice"
    );
    assert!(matches!(
        refused("web3", "[2001:db8::1]:80"),
        Fault::MixedFamilies { .. }
    ));
    assert!(matches!(
        refused("web3", "203.0.113.10:80"),
        Fault::OwnBackend { .. }
    ));
    for (to, address, says) in [
        (
            direct,
            "10.0.1.13:80",
            "the backend has port 80 and the service 443",
        ),
        (
            direct,
            "[2001:db8:1::2]:443",
            "the backend is IPv6 and the service IPv4",
        ),
        (
            far,
            "10.0.1.13:80",
            "the backend has port 80 and the service 8443",
        ),
        (
            far,
            "198.19.0.77:8443",
            "`address` 198.19.0.77 lies in 198.19.0.0/24, where tunnels have their source addresses",
        ),
    ] {
        let refused = admit(to, "new", address).expect_err("refused");
        assert_eq!(refused.to_string(), says);
    }
}

#[test]
fn the_default_sources_of_tunnels_bind_only_who_has_tunnels() {
    let text = |forward| {
        format!(
            "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
             listen = \"198.18.0.10:80\"\nforward = \"{forward}\"\n"
        )
    };
    assert!(parse(&text("dsr")).is_ok());
    let said = parse(&text("tunnel")).expect_err("a contradiction");
    let lines: Vec<String> = said.lines().collect();
    let expected = "lb.toml:5: `listen` 198.18.0.10 lies in 198.18.0.0/16, \
                    where tunnels have their source addresses";
    assert_eq!(lines, [expected]);
}

/// The parser ends, with a configuration or with errors that can be shown and
/// stand in the text.
fn ends_well(text: &str) -> Result<(), TestCaseError> {
    let Err(errors) = parse(text) else {
        return Ok(());
    };
    prop_assert!(!errors.problems().is_empty());
    prop_assert!(errors.to_string().starts_with("error: "));
    prop_assert_eq!(errors.lines().count(), errors.problems().len());
    let lines = 1 + text.matches('\n').count();
    for problem in errors.problems() {
        let Some(place) = &problem.place else {
            continue;
        };
        prop_assert!(
            (1..=lines).contains(&place.line),
            "line {} of {lines}",
            place.line
        );
        prop_assert!(!place.underlined.is_empty());
        prop_assert!(problem.first_line.is_none_or(|first| first <= lines));
    }
    Ok(())
}

/// Pieces that mean something to the parser, to be put where they do not belong.
fn piece() -> impl Strategy<Value = String> {
    let known = [
        "[",
        "]",
        "[[",
        "]]",
        "{",
        "}",
        "=",
        ",",
        ".",
        "\"",
        "'",
        "\"\"\"",
        "'''",
        "\n",
        "\r\n",
        "#",
        "-1",
        "0",
        "99999999999999999999",
        "0x",
        "1e400",
        "nan",
        "true",
        "1979-05-27",
        "\\",
        "\\u0000",
        "\u{feff}",
        "\u{0}",
        "ä",
        "[node]\n",
        "[service]\n",
        "[[service]]\n",
        "[[service.backend]]\n",
        "[service.check]\n",
        "weight = 300\n",
        "node.name = 1\n",
        "0s",
        "[::ffff:1.2.3.4]:0",
        "fe80::1%9",
        "none",
        "http",
        "dsr",
        "max_mss = 100\n",
        "tunnel_sources = [\"10.0.0.0/8\"]\n",
        "via = \"service\"\n",
        "scheduler = \"maglev\"\n",
        "affinity = \"5m\"\n",
        "[timeouts]\n",
        "backup = true\n",
        "0.0.0.0/0",
        "interfaces",
        "weight",
    ];
    prop_oneof![
        4 => prop::sample::select(known.map(String::from).to_vec()),
        1 => any::<String>(),
    ]
}

/// The valid file with parts cut out, doubled, moved, and pieces put in.
fn damaged() -> impl Strategy<Value = String> {
    let wound = (any::<prop::sample::Index>(), 0_usize..40, piece(), 0..4_u8);
    prop::collection::vec(wound, 1..8).prop_map(|wounds| {
        let mut text: Vec<char> = everything().chars().collect();
        for (at, length, piece, kind) in wounds {
            let start = at.index(text.len() + 1);
            let end = (start + length).min(text.len());
            let part: Vec<char> = text[start..end].to_vec();
            match kind {
                0 => drop(text.drain(start..end)),
                1 => drop(text.splice(start..start, part)),
                2 => drop(text.splice(start..end, piece.chars())),
                _ => text.splice(start..start, piece.chars()).for_each(drop),
            }
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3_000,
        rng_seed: RngSeed::Fixed(2),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_damage_to_a_valid_file_upsets_the_parser(text in damaged()) {
        ends_well(&text)?;
    }

    #[test]
    fn no_text_upsets_the_parser(text in any::<String>()) {
        ends_well(&text)?;
    }

    #[test]
    fn no_heap_of_pieces_upsets_the_parser(pieces in prop::collection::vec(piece(), 0..60)) {
        ends_well(&pieces.concat())?;
    }
}

#[test]
fn nesting_without_end_is_refused() {
    for text in [
        format!("a = {}", "[".repeat(1_000_000)),
        format!("a = {}", "{a=".repeat(1_000_000)),
        format!("a{} = 1", ".a".repeat(1_000_000)),
        format!("[a{}]", ".a".repeat(1_000_000)),
    ] {
        let said = parse(&text).expect_err("too deep").to_string();
        assert!(said.contains("recurs"), "{}", &said[..200]);
    }
}
