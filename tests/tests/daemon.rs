//! The daemon as its operator meets it: what it refuses, and that it changes
//! nothing then; new files; every command against a balancer that runs.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use tests::netns::{
    Answer, Arms, CALM, Connection, Daemon, Family, HttpBackend, Net, Service, Snapshot,
    lasting_differences, lb_binary, open, shares, snapshot, still_there, tally, wait_until,
};

/// How long something that takes milliseconds may take on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

/// A file that is refused, made from one that is not.
struct BadFile {
    says: &'static str,
    replace: &'static str,
    by: &'static str,
    complaint: &'static str,
}

const BAD_FILES: [BadFile; 9] = [
    BadFile {
        says: "an unknown key",
        replace: "weight = 3",
        by: "wieght = 3",
        complaint: "unknown key `wieght`",
    },
    BadFile {
        says: "two services of one name",
        replace: "name = \"other\"",
        by: "name = \"web\"",
        complaint: "\"web\"",
    },
    BadFile {
        says: "two backends of one name",
        replace: "name = \"b2\"",
        by: "name = \"b1\"",
        complaint: "\"b1\"",
    },
    BadFile {
        says: "a weight beyond 256",
        replace: "weight = 3",
        by: "weight = 300",
        complaint: "must be 0 to 256, not 300",
    },
    BadFile {
        says: "a service at port 0",
        replace: "10.9.0.100:80\"",
        by: "10.9.0.100:0\"",
        complaint: "port 0",
    },
    BadFile {
        says: "a backend at port 0",
        replace: "10.9.0.17:8080\"",
        by: "10.9.0.17:0\"",
        complaint: "port 0",
    },
    BadFile {
        says: "an interface that does not exist",
        replace: "interfaces = [\"eth0\"]",
        by: "interfaces = [\"eth0\", \"eth7\"]",
        complaint: "interface eth7 does not exist; this host has ",
    },
    BadFile {
        says: "pins where no BPF file system is",
        replace: "pin_path = \"/sys/fs/bpf/",
        by: "pin_path = \"/nowhere/",
        complaint: "is not on a BPF file system",
    },
    BadFile {
        says: "native XDP on a second interface that has none",
        replace: "interfaces = [\"eth0\"]",
        by: "interfaces = [\"eth0\", \"lo\"]\nxdp_mode = \"native\"",
        complaint: "cannot attach to lo in native mode",
    },
];

#[test]
fn a_file_that_cannot_be_is_refused_and_nothing_is_changed() -> Result<()> {
    let stage = Stage::new()?;
    let good = stage.text();
    let before = stage.snapshot()?;
    for bad in &BAD_FILES {
        ensure!(good.contains(bad.replace), "{}: {good}", bad.says);
        let text = good.replacen(bad.replace, bad.by, 1);
        fs::write(&stage.balancer.config, text)?;
        let output = stage.balancer.refused(&[&lb()])?;
        one_complaint(bad.says, &output, bad.complaint)?;
        assert_eq!(
            stage.changes_since(&before)?,
            Vec::<String>::new(),
            "{}",
            bad.says
        );
    }
    fs::remove_file(&stage.balancer.config)?;
    let output = stage.balancer.refused(&[&lb()])?;
    one_complaint("no file", &output, "lb.toml")
}

#[test]
fn a_host_that_cannot_is_told_so_and_nothing_is_changed() -> Result<()> {
    let stage = Stage::new()?;
    fs::write(&stage.balancer.config, stage.text())?;
    // Where nobody in particular can run and read it.
    let lb = stage.net.folder().join("lb-for-all");
    let linked = fs::hard_link(lb_binary(), &lb);
    linked.or_else(|_| fs::copy(lb_binary(), &lb).map(drop))?;
    fs::set_permissions(stage.net.folder(), fs::Permissions::from_mode(0o755))?;
    let lb = lb.display().to_string();
    // A kernel says what it can in this file.
    let filesystems = stage.net.folder().join("filesystems");
    fs::write(&filesystems, "nodev\tsysfs\nnodev\tproc\n\text4\n")?;
    let without_bpf = format!(
        "mount --bind {} /proc/filesystems && exec \"$@\"",
        filesystems.display()
    );
    let hosts: [(&str, &[&str], &str); 4] = [
        (
            "nobody in particular",
            &[
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                &lb,
            ],
            "it lacks CAP_BPF and CAP_NET_ADMIN; run it as root",
        ),
        (
            "root who may not change the network",
            &["setpriv", "--bounding-set=-net_admin", &lb],
            "it lacks CAP_NET_ADMIN; run it as root",
        ),
        (
            "a kernel that is too old",
            &["setarch", "--uname-2.6", &lb],
            "is too old for the XDP program, which needs Linux 5.15 or later",
        ),
        (
            "a kernel without BPF",
            &["unshare", "--mount", "sh", "-c", &without_bpf, "sh", &lb],
            "has no BPF",
        ),
    ];
    let before = stage.snapshot()?;
    for (says, words, complaint) in hosts {
        let output = stage.balancer.refused(words)?;
        one_complaint(says, &output, complaint)?;
        assert_eq!(
            stage.changes_since(&before)?,
            Vec::<String>::new(),
            "{says}"
        );
    }
    Ok(())
}

#[test]
fn a_second_daemon_is_refused_and_does_not_disturb_the_first() -> Result<()> {
    let stage = Stage::started()?;
    let own = fs::read_to_string(&stage.balancer.config)?;
    let second = Daemon::prepare(&stage.net, "second", &stage.net.balancer, &[]);
    let pins = |daemon: &Daemon| format!("pin_path = {:?}", daemon.pins);
    let control = |daemon: &Daemon| format!("control = {:?}", daemon.control);
    let (first_pins, second_pins) = (pins(&stage.balancer), pins(&second));
    let (first_control, second_control) = (control(&stage.balancer), control(&second));
    let files = [
        (
            "the same file",
            own.clone(),
            "another lb daemon already runs",
        ),
        (
            "other pins, the same socket",
            own.replace(&first_pins, &second_pins),
            "another lb daemon answers on",
        ),
        (
            "the same pins, another socket",
            own.replace(&first_control, &second_control),
            "another lb daemon already runs",
        ),
        (
            "other pins, another socket, the same interface, another address",
            own.replace(&first_control, &second_control)
                .replace(&first_pins, &second_pins)
                .replace("10.9.0.100:", "10.9.0.101:"),
            "eth0 already has an XDP program",
        ),
    ];
    let mut open = stage.connect()?;
    let before = stage.snapshot()?;
    for (says, text, complaint) in files {
        fs::write(&second.config, text)?;
        let output = second.refused(&[&lb()])?;
        one_complaint(says, &output, complaint)?;
        assert_eq!(
            stage.changes_since(&before)?,
            Vec::<String>::new(),
            "{says}"
        );
        ensure!(
            !second.pins.exists(),
            "{says}: {:?} is left behind",
            second.pins
        );
        ensure!(!second.control.exists(), "{says}: a socket is left behind");
        still_there(&mut open)?;
        assert_eq!(stage.tally(6)?, shares([3, 2, 1]), "{says}");
        stage.balancer.lb(&["status"])?;
    }
    Ok(())
}

#[test]
fn a_file_that_is_read_again_is_taken_whole_or_not_at_all() -> Result<()> {
    let stage = Stage::started()?;
    let mut open = stage.connect()?;
    let good = fs::read_to_string(&stage.balancer.config)?;
    let before = stage.snapshot()?;

    // The last two are refused by the host, which a file cannot change later.
    for bad in &BAD_FILES[..7] {
        fs::write(
            &stage.balancer.config,
            good.replacen(bad.replace, bad.by, 1),
        )?;
        let output = stage.balancer.lb_output(&["reload"])?;
        refused_by_command(bad.says, &output, bad.complaint)?;
        let logged = stage.balancer.logged().len();
        stage.balancer.signal(Signal::HUP)?;
        wait_until("the log tells of the refusal", BOUND, || {
            Ok(stage.balancer.logged()[logged..].contains("reload refused, nothing changed"))
        })?;
        ensure!(
            stage.balancer.logged()[logged..].contains(bad.complaint),
            "{}: {}",
            bad.says,
            &stage.balancer.logged()[logged..]
        );
        assert_eq!(
            stage.changes_since(&before)?,
            Vec::<String>::new(),
            "{}",
            bad.says
        );
        assert_eq!(stage.tally(6)?, shares([3, 2, 1]), "{}", bad.says);
    }

    let logged = stage.balancer.logged().len();
    fs::write(
        &stage.balancer.config,
        good.replacen("weight = 3", "weight = 1", 1)
            .replace("10.9.0.100:81\"", "10.9.0.101:81\""),
    )?;
    stage.balancer.signal(Signal::HUP)?;
    wait_until("the log tells of the new file", BOUND, || {
        Ok(stage.balancer.logged()[logged..].contains("reload: "))
    })?;
    assert_eq!(stage.tally(4)?, shares([1, 2, 1]), "by SIGHUP");
    still_there(&mut open)?;
    let other = SocketAddr::new([10, 9, 0, 101].into(), 81);
    let answers = stage.net.client.enter(|| tally(other, 6))?;
    assert_eq!(answers, shares([3, 2, 1]), "the new address");

    fs::write(&stage.balancer.config, &good)?;
    let text = stage.balancer.lb(&["reload"])?;
    ensure!(text.contains("web"), "it says what changed: {text}");
    assert_eq!(stage.tally(6)?, shares([3, 2, 1]), "by command");
    still_there(&mut open)?;
    assert_eq!(
        stage.changes_since(&before)?,
        Vec::<String>::new(),
        "the address is gone again"
    );
    assert_eq!(stage.balancer.json(&["reload"])?, json!({ "changes": [] }));
    Ok(())
}

#[test]
fn a_command_that_makes_no_sense_is_refused_and_nothing_is_changed() -> Result<()> {
    let stage = Stage::started()?;
    let commands: [(&[&str], &str); 9] = [
        (
            &["backend", "weight", "web", "b1", "300"],
            "300 is out of range",
        ),
        (&["backend", "weight", "web", "b1", "-1"], "-1"),
        (
            &["backend", "weight", "web", "b9", "1"],
            "has no backend b9; it has: b1, b2, b3",
        ),
        (
            &["backend", "weight", "wep", "b1", "1"],
            "no service wep; there are: web, other",
        ),
        (&["backend", "add", "web", "b1", "10.9.0.17:9000"], "b1"),
        (
            &["backend", "add", "web", "b4", "10.9.0.17:0"],
            "has port 0",
        ),
        (
            &["backend", "add", "web", "b4", "10.9.0.17:8080"],
            "10.9.0.17:8080",
        ),
        (
            &["backend", "add", "web", "b4", "[fd09::11]:8080"],
            "the backend is IPv6 and the service IPv4",
        ),
        (&["backend", "remove", "web", "b9"], "b9"),
    ];
    for (command, complaint) in commands {
        let output = stage.balancer.lb_output(command)?;
        refused_by_command(&command.join(" "), &output, complaint)?;
        assert_eq!(
            stage.balancer.json(&["overrides"])?,
            json!([]),
            "{command:?}"
        );
    }
    assert_eq!(stage.tally(6)?, shares([3, 2, 1]));
    Ok(())
}

#[test]
fn backends_are_drained_added_and_removed_without_breaking_a_connection() -> Result<()> {
    let stage = Stage::started()?;
    let lb = &stage.balancer;
    let mut open = stage.connect()?;

    lb.lb(&["backend", "drain", "web", "b1"])?;
    assert_eq!(stage.tally(30)?, shares([0, 20, 10]));
    let drained = stage.backend("b1")?;
    assert_eq!(drained["weight_source"], "drain");
    assert_eq!(drained["active_flows"], 3, "{drained:#}");
    lb.lb(&["backend", "enable", "web", "b1"])?;
    assert_eq!(stage.tally(60)?, shares([30, 20, 10]));

    let fourth = HttpBackend::start(&stage.net.backends[2], Family::V4, 8082)?;
    let address = fourth.address.to_string();
    lb.lb(&["backend", "add", "web", "b4", &address, "--weight", "4"])?;
    // b3 and b4 are the same host.
    assert_eq!(stage.tally(100)?, shares([30, 20, 50]));
    lb.lb(&["backend", "remove", "web", "b3"])?;
    assert_eq!(stage.tally(90)?, shares([30, 20, 40]));
    still_there(&mut open)?;

    let changes: BTreeMap<String, String> = lb
        .json(&["overrides"])?
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let word = |key: &str| entry[key].as_str().map(str::to_owned);
            Some((word("backend")?, word("kind")?))
        })
        .collect();
    let expected = [("b3", "removed"), ("b4", "added")];
    let expected = expected.map(|(name, kind)| (name.to_owned(), kind.to_owned()));
    assert_eq!(changes, BTreeMap::from(expected));

    lb.lb(&["overrides", "clear"])?;
    assert_eq!(lb.json(&["overrides"])?, json!([]));
    assert_eq!(stage.tally(60)?, shares([30, 20, 10]));
    still_there(&mut open)
}

#[test]
fn flows_and_drops_are_told_as_they_are() -> Result<()> {
    let stage = Stage::started()?;
    let lb = &stage.balancer;
    let open = stage.connect()?;
    let flows = lb.json(&["flows", "--service", "web"])?;
    assert_eq!(flows["total"], 6, "{flows:#}");
    for (connection, answer) in &open {
        let client = connection.ends()?.0.to_string();
        let flow = flows["flows"]
            .as_array()
            .and_then(|flows| flows.iter().find(|flow| flow["client"] == client.as_str()))
            .with_context(|| format!("{client} is not among {flows:#}"))?;
        assert_eq!(flow["backend"], answer.backend.as_str());
        assert_eq!(flow["source"], answer.client.to_string().as_str());
        assert_eq!(flow["listen"], stage.service.listen.to_string().as_str());
        assert_eq!(flow["state"], "established");
    }
    let of_b2 = lb.json(&["flows", "--service", "web", "--backend", "b2"])?;
    assert_eq!(of_b2["total"], 2, "{of_b2:#}");
    let one = lb.json(&["flows", "--limit", "1"])?;
    assert_eq!(one["total"], 6, "{one:#}");
    assert_eq!(one["flows"].as_array().map(Vec::len), Some(1));
    drop(open);
    wait_until("ended connections are no flows any more", BOUND, || {
        Ok(lb.json(&["flows"])?["total"] == 0)
    })?;

    assert_eq!(lb.json(&["drops"])?, json!([]));
    for backend in ["b1", "b2", "b3"] {
        lb.lb(&["backend", "drain", "web", backend])?;
    }
    let service = stage.service.listen;
    let refused = stage
        .net
        .client
        .enter(|| TcpStream::connect_timeout(&service, Duration::from_millis(200)));
    ensure!(refused.is_err(), "nobody can have answered");
    let drops = lb.json(&["drops"])?;
    assert_eq!(drops.as_array().map(Vec::len), Some(1), "{drops:#}");
    assert_eq!(drops[0]["reason"], "no_backend");
    assert_eq!(drops[0]["by"][0]["service"], "web");
    ensure!(drops[0]["packets"].as_u64() >= Some(1), "{drops:#}");
    Ok(())
}

/// Refused with status 1 and one complaint that has `part` in it.
fn one_complaint(says: &str, output: &Output, part: &str) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    println!("{says}:\n{stderr}");
    assert_eq!(output.status.code(), Some(1), "{says}: {stderr}");
    let complaints: Vec<&str> = stderr
        .lines()
        .filter(|line| line.starts_with("lb: ") || line.starts_with("error: "))
        .collect();
    ensure!(
        complaints.len() == 1 && stderr.contains(part),
        "{says}: one complaint with {part:?} in it was expected, but: {stderr}"
    );
    // A line of its own after the log's; only a fault of the file is followed by
    // its place, as compilers show it.
    let last = stderr.lines().last().unwrap_or_default();
    ensure!(
        last.starts_with("lb: ") || stderr.starts_with("error: "),
        "{says}: the last word is not the complaint: {stderr}"
    );
    Ok(())
}

/// The same for a command to the daemon: nothing else is said at all.
fn refused_by_command(says: &str, output: &Output, part: &str) -> Result<()> {
    one_complaint(says, output, part)?;
    ensure!(
        output.stdout.is_empty() && output.stderr.starts_with(b"lb: "),
        "{says}: {output:?}"
    );
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    Ok(())
}

/// A network, three backends, and a balancer.
struct Stage {
    // In the order in which they are to go.
    balancer: Daemon,
    _backends: Vec<HttpBackend>,
    service: Service,
    other: Service,
    net: Net,
}

impl Stage {
    /// With a balancer that is not started and has no file yet, for two
    /// services over the same backends, 3:2:1.
    fn new() -> Result<Self> {
        let net = Net::new(Arms::One)?;
        let service = Service {
            check: CALM,
            ..Service::new("web", "full-nat", Family::V4, [3, 2, 1])
        };
        let other = Service {
            name: "other".into(),
            listen: SocketAddr::new(service.listen.ip(), 81),
            port: 8081,
            ..service.clone()
        };
        let mut backends = net.start_http(&service)?;
        backends.extend(net.start_http(&other)?);
        Ok(Self {
            balancer: Daemon::prepare(&net, "lb", &net.balancer, &[]),
            _backends: backends,
            service,
            other,
            net,
        })
    }

    /// With a balancer that is ready.
    fn started() -> Result<Self> {
        let mut stage = Self::new()?;
        fs::write(&stage.balancer.config, stage.text())?;
        stage.balancer.restart()?;
        Ok(stage)
    }

    /// The file of the balancer.
    fn text(&self) -> String {
        let node = self.balancer.node(self.net.interfaces());
        node + &self.service.toml(&self.net) + &self.other.toml(&self.net)
    }

    fn snapshot(&self) -> Result<Snapshot> {
        snapshot(&self.net.balancer, &self.balancer)
    }

    fn changes_since(&self, before: &Snapshot) -> Result<Vec<String>> {
        lasting_differences(before, &self.net.balancer, &self.balancer)
    }

    fn tally(&self, requests: usize) -> Result<BTreeMap<String, usize>> {
        let service = self.service.listen;
        self.net.client.enter(|| tally(service, requests))
    }

    /// What `lb` says of a backend of `web`.
    fn backend(&self, name: &str) -> Result<Value> {
        let backends = self.balancer.json(&["backend", "list", "web"])?;
        let found = backends
            .as_array()
            .and_then(|backends| backends.iter().find(|backend| backend["name"] == name));
        found
            .cloned()
            .with_context(|| format!("{name} is not among {backends:#}"))
    }

    /// Open connections, one turn of the schedule, each with its first answer.
    fn connect(&self) -> Result<Vec<(Connection, Answer)>> {
        let service = self.service.listen;
        self.net.client.enter(|| open(service, 6))
    }
}

fn lb() -> String {
    lb_binary().display().to_string()
}
