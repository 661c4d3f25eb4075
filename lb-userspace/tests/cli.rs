//! What a user types, and what he sees: the real `lb` against a daemon whose
//! answers are known.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

use lb_userspace::api::types::{
    Backend, Changed, DropCount, DropShare, Event, Events, Flow, FlowCounts, Flows, Interface,
    Override, Refused, Reloaded, ServiceDetail, ServiceSummary, Status, Traffic,
};

/// Answers by request (`GET /v1/status`), in order; the last one stays.
type Answers = HashMap<String, Vec<(StatusCode, String)>>;

/// A daemon that says what it was told to say, and remembers what it was asked.
struct Daemon {
    folder: TempDir,
    asked: Arc<Mutex<Vec<String>>>,
    _runtime: Runtime,
}

/// An answer to a request.
fn ok(request: &str, answer: impl Serialize) -> (String, StatusCode, String) {
    let body = serde_json::to_string(&answer).expect("an answer has a JSON form");
    (request.to_owned(), StatusCode::OK, body)
}

/// A refusal of a request.
fn no(request: &str, error: &str) -> (String, StatusCode, String) {
    let refused = Refused {
        error: error.to_owned(),
    };
    let (request, _, body) = ok(request, refused);
    (request, StatusCode::CONFLICT, body)
}

impl Daemon {
    fn that_says(said: impl IntoIterator<Item = (String, StatusCode, String)>) -> Self {
        let mut answers = Answers::new();
        for (request, status, body) in said {
            answers.entry(request).or_default().push((status, body));
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let runtime = Runtime::new().expect("a runtime");
        let _within = runtime.enter();
        let listener = UnixListener::bind(folder.path().join("lb.sock")).expect("a socket");
        let state = (Arc::new(Mutex::new(answers)), Arc::clone(&asked));
        let router = Router::new().fallback(answer).with_state(state);
        runtime.spawn(async { axum::serve(listener, router).await });
        Self {
            folder,
            asked,
            _runtime: runtime,
        }
    }

    fn lb(&self, line: &str) -> Command {
        let mut command = lb(line);
        command.env("LB_CONTROL", self.folder.path().join("lb.sock"));
        command
    }

    /// What it was asked for, with the bodies.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("nobody panicked").clone()
    }
}

type Shared = (Arc<Mutex<Answers>>, Arc<Mutex<Vec<String>>>);

async fn answer(State((answers, asked)): State<Shared>, request: Request) -> (StatusCode, String) {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let line = format!("{} {}", head.method, head.uri);
    let with_body = format!("{line} {}", String::from_utf8_lossy(&body));
    asked
        .lock()
        .expect("nobody panicked")
        .push(with_body.trim_end().to_owned());
    let mut answers = answers.lock().expect("nobody panicked");
    match answers.get_mut(&line) {
        Some(left) if left.len() > 1 => left.remove(0),
        Some(last) => last[0].clone(),
        None => (StatusCode::NOT_FOUND, format!("not prepared for {line}")),
    }
}

/// The command with these words, free of the environment that tests run in.
fn lb(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command.args(line.split_whitespace()).stdin(Stdio::null());
    for variable in [
        "LB_CONTROL",
        "NO_COLOR",
        "CLICOLOR",
        "CLICOLOR_FORCE",
        "RUST_LOG",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Status, standard output, standard error.
fn seen(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("lb runs");
    let text = |bytes| String::from_utf8(bytes).expect("lb writes UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// What a command shows that succeeds and does not complain.
#[track_caller]
fn shown(command: &mut Command) -> String {
    let (status, stdout, stderr) = seen(command);
    assert_eq!((status, stderr.as_str()), (Some(0), ""), "{stdout}");
    stdout
}

/// The complaint of a command that fails and shows nothing.
#[track_caller]
fn complaint(command: &mut Command) -> String {
    let (status, stdout, stderr) = seen(command);
    assert_eq!((status, stdout.as_str()), (Some(1), ""), "{stderr}");
    stderr
}

fn traffic(new_flows: u64) -> Traffic {
    Traffic {
        forward_packets: 1_234,
        forward_bytes: 98_765,
        reply_packets: 2_345_678,
        reply_bytes: 3_456_789_012,
        new_flows,
    }
}

fn summary() -> ServiceSummary {
    ServiceSummary {
        name: "web".into(),
        listen: "203.0.113.10:80".parse().expect("an address"),
        protocol: "tcp".into(),
        forward: "full-nat".into(),
        scheduler: "wrr".into(),
        healthy: 2,
        total: 3,
        new_flows_per_second: 200.0,
        packets_per_second: 1_234.5,
        bits_per_second: 3_440_000.0,
    }
}

fn backend(number: u16, state: &str, weight: u16, source: &str) -> Backend {
    Backend {
        service: "web".into(),
        name: format!("web{number}"),
        address: format!("10.0.1.1{number}:8080")
            .parse()
            .expect("an address"),
        state: state.into(),
        reason: match state {
            "down" => "connection refused".into(),
            _ => "connected".into(),
        },
        since_seconds: 725.0,
        weight,
        configured_weight: (number != 4).then_some(3),
        weight_source: source.into(),
        weight_percent: 100,
        backup: false,
        reset_in_seconds: None,
        share: f64::from(weight) / 6.0,
        slots: usize::from(weight),
        active_flows: 1_500 * u64::from(weight),
        traffic: traffic(100 * u64::from(weight)),
    }
}

fn backends() -> Vec<Backend> {
    vec![
        backend(1, "up", 3, "file"),
        backend(2, "up", 2, "override"),
        backend(3, "down", 3, "file"),
        backend(4, "unknown", 1, "override"),
        backend(5, "up", 0, "drain"),
    ]
}

fn drops() -> Vec<DropCount> {
    let share = |service: Option<&str>, backend: Option<&str>, packets| DropShare {
        service: service.map(Into::into),
        backend: backend.map(Into::into),
        packets,
    };
    vec![
        DropCount {
            reason: "no_flow".into(),
            verdict: "drop".into(),
            packets: 12,
            help: "TCP to a service, neither new nor known.".into(),
            by: vec![share(Some("web"), None, 12)],
        },
        DropCount {
            reason: "no_backend".into(),
            verdict: "drop".into(),
            packets: 0,
            help: "Nobody to offer.".into(),
            by: vec![],
        },
        DropCount {
            reason: "no_route".into(),
            verdict: "drop".into(),
            packets: 4_321,
            help: "The host has no way there.".into(),
            by: vec![
                share(Some("web"), Some("web1"), 1),
                share(None, None, 4_320),
            ],
        },
    ]
}

fn detail() -> ServiceDetail {
    ServiceDetail {
        summary: summary(),
        sequence_length: 6,
        share_error: 0.0,
        max_mss: 0,
        affinity_seconds: 0.0,
        on_down: "reset".into(),
        slow_start_seconds: 0.0,
        min_healthy: 0,
        standing: "well".into(),
        trouble: None,
        check: "tcp every 1s, down after 3 failures, up after 2 successes".into(),
        traffic: traffic(600),
        drops: drops(),
        backends: backends(),
    }
}

fn status() -> Status {
    let interface = |name: &str, index, mode: &str| Interface {
        name: name.into(),
        device: name.into(),
        index,
        xdp_mode: mode.into(),
    };
    Status {
        node: "lb-a".into(),
        version: "0.1.0".into(),
        pid: 4242,
        uptime_seconds: 11_520,
        adopted: true,
        ha_state: "standalone".into(),
        interfaces: vec![
            interface("eth0", 2, "native"),
            interface("eth1", 3, "generic"),
        ],
        services: vec![summary()],
        flow_capacity: 2_000_000,
        flows: FlowCounts {
            half_open: 12,
            established: 34_567,
            ended: 8,
        },
        overrides: 2,
    }
}

fn flows() -> Flows {
    Flows {
        total: 12_345,
        flows: vec![Flow {
            service: "web".into(),
            backend: "web1".into(),
            protocol: "tcp".into(),
            client: "198.51.100.7:40000".parse().expect("an address"),
            listen: "203.0.113.10:80".parse().expect("an address"),
            source: "203.0.113.10:61001".parse().expect("an address"),
            address: "10.0.1.11:8080".parse().expect("an address"),
            state: "established".into(),
            idle_seconds: 7.0,
        }],
    }
}

fn changed(message: &str) -> Changed {
    Changed {
        message: message.into(),
        backend: Some(backend(1, "up", 5, "override")),
    }
}

/// Asserts what a command shows, and that `--json` shows the whole answer.
#[track_caller]
fn shows(line: &str, request: &str, answer: impl Serialize, text: &str) {
    let pretty = serde_json::to_string_pretty(&answer).expect("an answer has a JSON form");
    let daemon = Daemon::that_says([ok(request, answer)]);
    assert_eq!(shown(&mut daemon.lb(line)), text.trim_start_matches('\n'));
    let json = shown(&mut daemon.lb(&format!("{line} --json")));
    assert_eq!(json, pretty + "\n");
}

#[test]
fn status_is_the_node_at_a_glance() {
    shows(
        "status",
        "GET /v1/status",
        status(),
        "
Node        lb-a
HA state    standalone
Daemon      version 0.1.0, pid 4242, up 3h 12m, took over the flows that were there
Interfaces  eth0 native, eth1 generic (slow)
Flow table  34.6k established, 12 half open, 8 ended; room for 2.0M
Overrides   2 (see `lb overrides`)

SERVICE  LISTEN           PROTOCOL  FORWARD   SCHEDULER  HEALTHY  NEW/S  PACKETS/S        RATE
web      203.0.113.10:80  tcp       full-nat  wrr            2/3    200       1.2k  3.4 Mbit/s
",
    );
}

#[test]
fn services_are_listed_a_line_each() {
    shows(
        "service list",
        "GET /v1/services",
        vec![summary()],
        "
SERVICE  LISTEN           PROTOCOL  FORWARD   SCHEDULER  HEALTHY  NEW/S  PACKETS/S        RATE
web      203.0.113.10:80  tcp       full-nat  wrr            2/3    200       1.2k  3.4 Mbit/s
",
    );
}

#[test]
fn a_service_is_shown_with_shares_beside_weights_and_reasons_beside_states() {
    shows(
        "service show web",
        "GET /v1/services/web",
        detail(),
        "
Service   web
Listen    203.0.113.10:80 tcp
Forward   full-nat
Schedule  wrr, 6 slots, shares exact
Policy    on_down reset, affinity 0s, slow_start 0s, min_healthy 0
Check     tcp every 1s, down after 3 failures, up after 2 successes
Healthy   2/3
Traffic   600 connections; 1.2k packets, 98.8 kB from clients; 2.3M packets, 3.5 GB from backends
Rates     200 new connections/s, 1.2k packets/s, 3.4 Mbit/s

BACKEND  ADDRESS         STATE       FOR  WEIGHT  SHARE  FLOWS  BEGUN  WEIGHT FROM                 REASON
web1     10.0.1.11:8080  up       12m 5s       3  50.0%   4.5k    300  file                        connected
web2     10.0.1.12:8080  up       12m 5s       2  33.3%   3.0k    200  override (file: 3)          connected
web3     10.0.1.13:8080  down     12m 5s       3  50.0%   4.5k    300  file                        connection refused
web4     10.0.1.14:8080  unknown  12m 5s       1  16.7%   1.5k    100  override (not in the file)  connected
web5     10.0.1.15:8080  drained  12m 5s       0   0.0%      0      0  drain (file: 3)             connected

REASON        PACKETS  MEANING
no_route         4.3k  The host has no way there.
  no service     4.3k
  web/web1          1
no_flow            12  TCP to a service, neither new nor known.
  web              12
",
    );
}

#[test]
fn of_backends_that_answer_clients_themselves_no_silence_is_told() {
    for (mode, max_mss, forward) in [
        ("dsr", 0, "dsr, backends answer clients themselves"),
        (
            "tunnel",
            1360,
            "tunnel, backends answer clients themselves, segments of at most 1360 bytes",
        ),
    ] {
        let mut service = detail();
        service.summary.forward = mode.into();
        service.max_mss = max_mss;
        (service.traffic.reply_packets, service.traffic.reply_bytes) = (0, 0);
        let daemon = Daemon::that_says([ok("GET /v1/services/web", service)]);
        let text = shown(&mut daemon.lb("service show web"));
        for line in [
            format!("Forward   {forward}"),
            "Traffic   600 connections; 1.2k packets, 98.8 kB from clients".to_owned(),
        ] {
            assert!(text.lines().any(|shown| shown == line), "{text}");
        }
        assert!(!text.contains("from backends"), "{text}");
    }
}

#[test]
fn the_largest_segment_is_told_where_there_is_one() {
    let mut service = detail();
    service.max_mss = 1360;
    let daemon = Daemon::that_says([ok("GET /v1/services/web", service)]);
    let text = shown(&mut daemon.lb("service show web"));
    let line = "Forward   full-nat, segments of at most 1360 bytes";
    assert!(text.lines().any(|shown| shown == line), "{text}");
}

#[test]
fn a_share_that_is_not_exact_is_said_to_be_so() {
    for (slots, error, line) in [
        (
            65_536,
            0.004,
            "Schedule  wrr, 65536 slots, shares off by up to 0.4% of each",
        ),
        (1, 0.0, "Schedule  wrr, 1 slot, shares exact"),
        (0, 0.0, "Schedule  wrr, no backend to offer"),
    ] {
        let mut service = detail();
        (service.sequence_length, service.share_error) = (slots, error);
        let daemon = Daemon::that_says([ok("GET /v1/services/web", service)]);
        let text = shown(&mut daemon.lb("service show web"));
        assert!(text.lines().any(|shown| shown == line), "{text}");
    }
}

#[test]
fn backends_are_listed_with_the_source_of_their_weights() {
    let text = "
SERVICE  BACKEND  ADDRESS         STATE    WEIGHT  SHARE  FLOWS  WEIGHT FROM                 REASON
web      web1     10.0.1.11:8080  up            3  50.0%   4.5k  file                        connected
web      web2     10.0.1.12:8080  up            2  33.3%   3.0k  override (file: 3)          connected
web      web3     10.0.1.13:8080  down          3  50.0%   4.5k  file                        connection refused
web      web4     10.0.1.14:8080  unknown       1  16.7%   1.5k  override (not in the file)  connected
web      web5     10.0.1.15:8080  drained       0   0.0%      0  drain (file: 3)             connected
";
    shows("backend list", "GET /v1/backends", backends(), text);
    let of_web = "GET /v1/backends?service=web";
    shows("backend list web", of_web, backends(), text);
}

#[test]
fn a_backend_that_the_file_does_not_have_is_said_to_be_so() {
    for (source, words) in [
        ("file", "not in the file"),
        ("override", "override (not in the file)"),
        ("drain", "drain (not in the file)"),
    ] {
        let added = vec![backend(4, "up", 1, source)];
        let daemon = Daemon::that_says([ok("GET /v1/backends", added)]);
        let list = shown(&mut daemon.lb("backend list"));
        assert!(list.contains(&format!("  {words}  ")), "{list}");
    }
}

#[test]
fn what_bears_on_a_weight_stands_beside_its_source() {
    let plain = || backend(1, "up", 3, "file");
    let drained = |left| Backend {
        reset_in_seconds: Some(left),
        ..backend(1, "up", 0, "drain")
    };
    for (shown_as, backend) in [
        (
            "file, backup",
            Backend {
                backup: true,
                ..plain()
            },
        ),
        (
            "file, slow start 40%",
            Backend {
                weight_percent: 40,
                ..plain()
            },
        ),
        (
            "override (file: 3), backup, slow start 10%",
            Backend {
                backup: true,
                weight_percent: 10,
                ..backend(1, "up", 5, "override")
            },
        ),
        ("drain (file: 3), reset in 45s", drained(45.3)),
        ("drain (file: 3), being reset", drained(0.0)),
    ] {
        let daemon = Daemon::that_says([ok("GET /v1/backends", vec![backend])]);
        let list = shown(&mut daemon.lb("backend list"));
        assert!(list.contains(&format!("  {shown_as}  ")), "{list}");
    }
}

#[test]
fn a_policy_is_shown_as_in_the_file_and_trouble_by_its_consequences() {
    let service = ServiceDetail {
        affinity_seconds: 90.0,
        on_down: "rehash".into(),
        slow_start_seconds: 30.0,
        min_healthy: 2,
        standing: "too-few".into(),
        trouble: Some("all are used".into()),
        ..detail()
    };
    let daemon = Daemon::that_says([ok("GET /v1/services/web", service)]);
    let text = shown(&mut daemon.lb("service show web"));
    for line in [
        "Policy    on_down rehash, affinity 1m 30s, slow_start 30s, min_healthy 2",
        "Trouble   all are used",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{text}");
    }
}

#[test]
fn a_deadline_that_is_none_is_refused_before_anything_is_asked() {
    let daemon = Daemon::that_says([]);
    let said = complaint(&mut daemon.lb("backend drain web web1 --deadline 30d"));
    assert_eq!(said, "lb: `deadline` must be 1s to 7days, not 30days\n");
    assert!(daemon.asked().is_empty());
}

#[test]
fn flows_are_counted_whether_listed_or_not() {
    shows(
        "flows",
        "GET /v1/flows?limit=100",
        flows(),
        "
SERVICE  BACKEND  PROTOCOL  CLIENT              LISTEN           SOURCE              ADDRESS         STATE        IDLE
web      web1     tcp       198.51.100.7:40000  203.0.113.10:80  203.0.113.10:61001  10.0.1.11:8080  established    7s

1 of 12345 live connections; --limit shows more.
",
    );
    let none_listed = Flows {
        flows: vec![],
        ..flows()
    };
    let query = "GET /v1/flows?service=web&backend=web1&limit=0";
    let line = "flows --service web --backend web1 --limit 0";
    shows(line, query, none_listed, "12345 live connections.\n");
}

#[test]
fn drops_are_told_in_words_the_most_frequent_first() {
    shows(
        "drops",
        "GET /v1/drops",
        drops(),
        "
REASON        PACKETS  MEANING
no_route         4.3k  The host has no way there.
  no service     4.3k
  web/web1          1
no_flow            12  TCP to a service, neither new nor known.
  web              12
",
    );
    shows(
        "drops --all",
        "GET /v1/drops?all=true",
        drops(),
        "
REASON        PACKETS  VERDICT  MEANING
no_route         4.3k  drop     The host has no way there.
  no service     4.3k
  web/web1          1
no_flow            12  drop     TCP to a service, neither new nor known.
  web              12
no_backend          0  drop     Nobody to offer.
",
    );
}

#[test]
fn overrides_are_shown_beside_the_file() {
    let change = |kind: &str, file: &str, now: &str| Override {
        service: "web".into(),
        backend: "web1".into(),
        kind: kind.into(),
        file: file.into(),
        now: now.into(),
    };
    shows(
        "overrides",
        "GET /v1/overrides",
        vec![
            change("weight", "3", "5"),
            change("drained", "weight 3", "weight 0"),
        ],
        "
SERVICE  BACKEND  CHANGE   FILE      NOW
web      web1     weight   3         5
web      web1     drained  weight 3  weight 0
",
    );
}

#[test]
fn what_is_empty_is_said_to_be_empty() {
    let none: [(); 0] = [];
    for (line, request, sentence) in [
        (
            "service list",
            "GET /v1/services",
            "No services: add a [[service]] to the file, then `lb reload`.\n",
        ),
        (
            "backend list",
            "GET /v1/backends",
            "No backends: add a [[service.backend]] to the file, then `lb reload`.\n",
        ),
        (
            "backend list web",
            "GET /v1/backends?service=web",
            "No backends in web: add one by `lb backend add web NAME ADDRESS`.\n",
        ),
        (
            "overrides",
            "GET /v1/overrides",
            "No overrides: what runs is what the file says.\n",
        ),
        ("drops", "GET /v1/drops", "No packet was dropped.\n"),
    ] {
        shows(line, request, none, sentence);
    }
    let none = Flows {
        total: 0,
        flows: vec![],
    };
    shows(
        "flows",
        "GET /v1/flows?limit=100",
        none,
        "No live connections.\n",
    );
    let none = Reloaded { changes: vec![] };
    let sentence = "Nothing changed: what runs is what the file says.\n";
    shows("reload", "POST /v1/reload", none, sentence);
}

#[test]
fn changes_are_asked_for_and_answered_in_a_sentence() {
    for (line, request, body) in [
        (
            "backend weight web web1 5",
            "PUT /v1/services/web/backends/web1/weight",
            r#"{"weight":5}"#,
        ),
        (
            "backend drain web web1",
            "POST /v1/services/web/backends/web1/drain",
            r#"{"deadline_ms":null}"#,
        ),
        (
            "backend drain web web1 --deadline 1m30s",
            "POST /v1/services/web/backends/web1/drain",
            r#"{"deadline_ms":90000}"#,
        ),
        (
            "backend enable web web1",
            "POST /v1/services/web/backends/web1/enable",
            "null",
        ),
        (
            "backend add web web4 [2001:db8::14]:8080 --weight 0",
            "POST /v1/services/web/backends",
            r#"{"name":"web4","address":"[2001:db8::14]:8080","weight":0}"#,
        ),
        (
            "backend remove web web4",
            "DELETE /v1/services/web/backends/web4",
            "",
        ),
        ("overrides clear", "DELETE /v1/overrides", ""),
    ] {
        shows(line, request, changed("It is done."), "It is done.\n");
        let daemon = Daemon::that_says([ok(request, changed("It is done."))]);
        shown(&mut daemon.lb(line));
        assert_eq!(daemon.asked(), [format!("{request} {body}").trim_end()]);
    }
    let reloaded = Reloaded {
        changes: vec![
            "web1 of web: weight 3 -> 5.".into(),
            "web9 of web is gone.".into(),
        ],
    };
    let sentences = "web1 of web: weight 3 -> 5.\nweb9 of web is gone.\n";
    shows("reload", "POST /v1/reload", reloaded, sentences);
}

#[test]
fn a_refusal_is_passed_on_and_is_exit_status_1() {
    let sentence = "there is no service `wbe`; services are: web";
    let daemon = Daemon::that_says([
        no("GET /v1/services/wbe", sentence),
        no("PUT /v1/services/wbe/backends/web1/weight", sentence),
    ]);
    for line in ["service show wbe", "backend weight wbe web1 5 --json"] {
        assert_eq!(complaint(&mut daemon.lb(line)), format!("lb: {sentence}\n"));
    }
}

#[test]
fn values_that_make_no_sense_are_refused_before_the_daemon_is_asked() {
    let daemon = Daemon::that_says([]);
    for (line, sentence) in [
        (
            "backend weight web web1 300",
            "weight 300 is out of range: 0 to 256, where 0 drains",
        ),
        (
            "backend weight web web1 -1",
            "weight -1 is out of range: 0 to 256, where 0 drains",
        ),
        (
            "backend weight web web1 much",
            "weight \"much\" is not a whole number: write 0 to 256, where 0 drains",
        ),
        (
            "backend add web web4 10.0.1.14:80 --weight 257",
            "weight 257 is out of range: 0 to 256, where 0 drains",
        ),
        (
            "backend add web web4 10.0.1.14:0",
            "`ADDRESS` has port 0; a port is 1 to 65535",
        ),
        (
            "backend add web web4 10.0.1.14",
            "`ADDRESS` must be an IP address and a port, not \"10.0.1.14\"; write \"10.0.1.14:80\"",
        ),
        (
            "backend drain web web/1",
            "\"web/1\" cannot be a backend name; a name is 1 to 64 ",
        ),
    ] {
        let complaint = complaint(&mut daemon.lb(line));
        let begin = format!("lb: {sentence}");
        assert!(complaint.starts_with(&begin), "{complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
    }
    assert!(daemon.asked().is_empty());
}

#[test]
fn without_a_daemon_every_command_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let control = folder.path().join("lb.sock");
    let sentence = format!(
        "lb: no daemon answers on {}: is `lb run` running? (--control names another socket)\n",
        control.display()
    );
    for line in [
        "status",
        "service list",
        "service show web",
        "backend list",
        "backend weight web web1 5",
        "backend drain web web1 --wait",
        "overrides",
        "overrides clear",
        "flows",
        "drops --follow",
        "events",
        "events --follow",
        "reload",
    ] {
        let mut command = lb(line);
        command.arg("--control").arg(&control);
        assert_eq!(complaint(&mut command), sentence, "{line}");
    }
    // A socket that nobody listens on any more is what `kill -9` leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&control).expect("a socket"));
    let mut command = lb("status");
    command.env("LB_CONTROL", &control);
    assert_eq!(complaint(&mut command), sentence);
}

#[test]
fn what_is_no_command_is_exit_status_2() {
    for line in [
        "",
        "stauts",
        "status --jsn",
        "backend",
        "backend weight web web1",
        "flows --limit many",
        "events --limit many",
        "events --kinds --follow",
        "backend drain web web1 --wait long",
        "run --program-log loud",
        "overrides --json clear",
        "status --color blue",
        "completions tcsh",
    ] {
        let (status, stdout, stderr) = seen(&mut lb(line));
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{line}: {stderr}");
        assert!(
            stderr.contains("Usage:") || stderr.contains("--help"),
            "{stderr}"
        );
    }
}

#[test]
fn a_reader_that_goes_away_ends_a_command_quietly() {
    let daemon = Daemon::that_says([ok("GET /v1/status", status())]);
    for line in ["status", "status --json", "completions bash", "--help"] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = daemon
            .lb(line)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .expect("lb runs");
        assert_eq!(output.status.code(), Some(0), "{line}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{line}");
    }
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let daemon = Daemon::that_says([ok("GET /v1/status", status())]);
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("it is there");
    let mut command = daemon.lb("status");
    command.stdout(full).stderr(Stdio::piped());
    let output = command
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("lb runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "lb: cannot write the result: No space left on device (os error 28); it is incomplete\n"
    );
}

#[test]
fn colours_are_for_terminals_or_on_demand() {
    let daemon = Daemon::that_says([ok("GET /v1/backends", backends())]);
    let plain = shown(&mut daemon.lb("backend list"));
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
    let coloured = shown(&mut daemon.lb("backend list --color always"));
    for (state, colour) in [("up", 32), ("down", 31), ("unknown", 33), ("drained", 33)] {
        let word = format!("\u{1b}[{colour}m{state}\u{1b}[0m");
        assert!(coloured.contains(&word), "{state}: {coloured:?}");
    }
    let mut never = daemon.lb("backend list --color never");
    assert_eq!(shown(never.env("CLICOLOR_FORCE", "1")), plain);
}

#[test]
fn draining_with_a_wait_ends_with_the_last_connection() {
    let with_flows = |flows| {
        let mut all = backends();
        all[4].active_flows = flows;
        ok("GET /v1/backends?service=web", all)
    };
    let drained = ok(
        "POST /v1/services/web/backends/web5/drain",
        changed("web5 of web takes no new connection."),
    );
    let daemon = Daemon::that_says([drained.clone(), with_flows(1), with_flows(0)]);
    assert_eq!(
        shown(&mut daemon.lb("backend drain web web5 --wait 1m")),
        "web5 of web takes no new connection.\nweb/web5 has no connection left\n"
    );
    assert_eq!(daemon.asked().len(), 3);

    let json = shown(&mut daemon.lb("backend drain web web5 --wait --json"));
    let json: Value = serde_json::from_str(&json).expect("one JSON value");
    assert_eq!(json["message"], "web/web5 has no connection left");
    assert_eq!(json["backend"]["active_flows"], 0);

    let daemon = Daemon::that_says([drained, with_flows(2)]);
    let (status, stdout, stderr) = seen(&mut daemon.lb("backend drain web web5 --wait 0s"));
    assert_eq!(status, Some(1));
    assert_eq!(stdout, "web5 of web takes no new connection.\n");
    assert_eq!(
        stderr,
        "lb: web/web5 still has 2 connections after 0s: it takes no new ones; wait on by `lb backend drain web web5 --wait`\n"
    );
}

/// Readings of the counters: after a while more drops, then the daemon starts
/// its counters anew, then nothing happens any more.
fn readings() -> [Vec<DropCount>; 3] {
    let before = drops();
    let mut more = drops();
    more[0].packets += 5;
    more[0].by[0].packets += 3;
    let mut anew = drops();
    anew.truncate(1);
    anew[0].packets = 2;
    anew[0].by.clear();
    [before, more, anew]
}

#[test]
fn drops_are_followed_as_increases() {
    let end = no("GET /v1/drops", "that was all");
    let readings = readings().map(|reading| ok("GET /v1/drops", reading));
    let daemon = Daemon::that_says(readings.clone().into_iter().chain([end.clone()]));
    let (status, stdout, stderr) = seen(&mut daemon.lb("drops --follow"));
    assert_eq!((status, stderr.as_str()), (Some(1), "lb: that was all\n"));
    let lines: Vec<&str> = stdout
        .lines()
        .map(|line| line.split_once(' ').expect("a time and more").1)
        .collect();
    let expected = [
        "      +3  no_flow  web",
        "      +2  no_flow",
        "      +2  no_flow",
    ];
    assert_eq!(lines, expected);

    let daemon = Daemon::that_says(readings.into_iter().chain([end]));
    let (_, stdout, _) = seen(&mut daemon.lb("drops --follow --json"));
    let packets = stdout.lines().map(|line| {
        let news: Value = serde_json::from_str(line).expect("JSON in a line");
        news[0]["packets"].clone()
    });
    assert_eq!(packets.collect::<Vec<_>>(), [json!(5), json!(2)]);
}

#[test]
fn following_ends_in_peace_by_ctrl_c() {
    let [before, more, _] = readings().map(|reading| ok("GET /v1/drops", reading));
    let daemon = Daemon::that_says([before, more]);
    let mut command = daemon.lb("drops --follow");
    let mut following = command.stdout(Stdio::piped()).spawn().expect("lb runs");
    let stdout = following.stdout.take().expect("it is piped");
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    let process = Pid::from_child(&following);
    kill_process(process, Signal::INT).expect("it runs");
    let status = following.wait().expect("it ends");
    assert_eq!(status.code(), Some(0), "{line}");
}

fn event(number: u64, severity: &str, kind: &str, sentence: &str) -> Event {
    Event {
        number,
        time: format!("2026-01-01T12:00:{number:02}.000Z"),
        severity: severity.into(),
        kind: kind.into(),
        service: Some("web".into()),
        backend: None,
        interface: None,
        sentence: sentence.into(),
    }
}

fn events(events: Vec<Event>) -> Events {
    Events {
        started: "2026-01-01T12:00:00.000Z".into(),
        newest: events.last().map_or(0, |event| event.number),
        lost: 0,
        events,
    }
}

fn three_events() -> Events {
    events(vec![
        event(1, "info", "daemon_started", "ready"),
        event(2, "warning", "backend_down", "web/web1 is down: no answer"),
        event(3, "alert", "no_backend", "web has no backend left"),
    ])
}

#[test]
fn events_are_told_the_oldest_first() {
    let table = "
TIME                      SEVERITY  KIND            EVENT
2026-01-01T12:00:01.000Z  info      daemon_started  ready
2026-01-01T12:00:02.000Z  warning   backend_down    web/web1 is down: no answer
2026-01-01T12:00:03.000Z  alert     no_backend      web has no backend left
";
    shows("events", "GET /v1/events?limit=50", three_events(), table);
    let of_many = Events {
        newest: 12,
        lost: 2,
        ..three_events()
    };
    let noted = format!(
        "{table}\n3 of 10 events; --limit shows more. 2 older events no longer kept; the log has all.\n"
    );
    shows("events -n 3", "GET /v1/events?limit=3", of_many, &noted);
    let nothing = "Nothing has happened yet.\n";
    shows("events", "GET /v1/events?limit=50", events(vec![]), nothing);
    let only_counted = Events {
        newest: 1,
        ..events(vec![])
    };
    let sentence = "0 of 1 events; --limit shows more.\n";
    shows(
        "events --limit 0",
        "GET /v1/events?limit=0",
        only_counted,
        sentence,
    );
}

#[test]
fn severities_have_colours_where_a_person_reads() {
    let daemon = Daemon::that_says([ok("GET /v1/events?limit=50", three_events())]);
    let plain = shown(&mut daemon.lb("events"));
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
    let coloured = shown(&mut daemon.lb("events --color always"));
    for (severity, colour) in [("warning", 33), ("alert", 31)] {
        let word = format!("\u{1b}[{colour}m{severity}\u{1b}[0m");
        assert!(coloured.contains(&word), "{coloured:?}");
    }
}

/// A daemon with three events, then one more after two that are gone, then one
/// of another run, then none.
fn daemon_with_events_to_follow() -> Daemon {
    let more = Events {
        lost: 2,
        ..events(vec![event(
            6,
            "info",
            "reloaded",
            "reload: nothing changed",
        )])
    };
    let anew = Events {
        started: "2026-01-01T13:00:00.000Z".into(),
        ..events(vec![event(1, "info", "daemon_started", "ready again")])
    };
    let after = |number| format!("GET /v1/events?after={number}&limit=1000&wait=30");
    Daemon::that_says([
        ok("GET /v1/events?limit=10", three_events()),
        ok(&after(3), more),
        ok(&after(6), anew.clone()),
        ok(&after(0), anew),
        no(&after(1), "that was all"),
    ])
}

#[test]
fn events_are_followed_as_they_come() {
    let daemon = daemon_with_events_to_follow();
    let (status, stdout, stderr) = seen(&mut daemon.lb("events --follow"));
    assert_eq!(
        (status, stderr.as_str()),
        (
            Some(1),
            "2 events came and went too fast to be shown; the log has them\nlb: that was all\n"
        )
    );
    assert_eq!(
        stdout,
        "\
2026-01-01T12:00:01.000Z  info     daemon_started        ready
2026-01-01T12:00:02.000Z  warning  backend_down          web/web1 is down: no answer
2026-01-01T12:00:03.000Z  alert    no_backend            web has no backend left
2026-01-01T12:00:06.000Z  info     reloaded              reload: nothing changed
2026-01-01T12:00:01.000Z  info     daemon_started        ready again
"
    );
    let daemon = daemon_with_events_to_follow();
    let (_, stdout, _) = seen(&mut daemon.lb("events --follow --json"));
    let numbers = stdout.lines().map(|line| {
        let event: Event = serde_json::from_str(line).expect("an event in a line");
        event.number
    });
    assert_eq!(numbers.collect::<Vec<_>>(), [1, 2, 3, 6, 1]);
}

#[test]
fn kinds_of_events_are_told_without_a_daemon() {
    let text = shown(&mut lb("events --kinds"));
    assert!(text.starts_with("KIND "), "{text}");
    for words in ["flood_begins ", "below_min_healthy ", "See `lb check`."] {
        assert!(text.contains(words), "{text}");
    }
    let json = shown(&mut lb("events --kinds --json"));
    let json: Value = serde_json::from_str(&json).expect("a list");
    let lines = json.as_array().map(Vec::len);
    assert_eq!(lines, Some(text.lines().count() - 1));
}

/// A configuration file in a folder of its own.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("lb.toml");
    std::fs::write(&path, text).expect("a file");
    (folder, path)
}

const CONFIG: &str = r#"
[node]
interfaces = ["eth0"]
[[service]]
name = "web"
listen = "203.0.113.10:80"
[[service.backend]]
name = "web1"
address = "10.0.1.11:8080"
weight = 3
"#;

#[test]
fn a_good_file_is_said_to_be_good() {
    let (_folder, path) = file(CONFIG);
    let line = format!("check -c {}", path.display());
    let sentence = format!("{} is valid: 1 service, 1 backend\n", path.display());
    assert_eq!(shown(&mut lb(&line)), sentence);
}

#[test]
fn a_bad_file_is_told_by_line_and_remedy() {
    let (_folder, path) = file(&CONFIG.replace("weight = 3", "weight = 300"));
    let line = format!("check -c {}", path.display());
    assert_eq!(
        complaint(&mut lb(&line)),
        format!(
            "error: `weight` must be 0 to 256, not 300
  --> {}:10:10
   |
10 | weight = 300
   |          ^^^
",
            path.display()
        )
    );
    let (_folder, path) = file(CONFIG);
    let missing = path.with_file_name("none.toml");
    let line = format!("check -c {}", missing.display());
    assert_eq!(
        complaint(&mut lb(&line)),
        format!(
            "error: cannot read the configuration: there is no such file
 --> {}
  = help: name another file with `-c FILE`
",
            missing.display()
        )
    );
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = shown(&mut lb(&format!("completions {shell}")));
        for word in ["status", "overrides", "--program-log"] {
            assert!(
                script.contains(word.trim_start_matches('-')),
                "{shell}: {word}"
            );
        }
    }
}

#[test]
fn help_of_every_command_ends_with_examples() {
    for line in [
        "--help",
        "run --help",
        "backend drain --help",
        "help backend add",
    ] {
        let help = shown(&mut lb(line));
        let (_, examples) = help.split_once("\nExamples:\n").expect("examples");
        assert!(
            examples.lines().all(|line| line.starts_with("  lb ")),
            "{help}"
        );
    }
}
