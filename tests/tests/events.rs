//! `lb events` on a balancer that runs: what happens is told, at once to whoever
//! follows, with the names of those it happens to.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use tests::netns::{
    Arms, CALM, Daemon, Family, HttpBackend, Net, Service, lb_binary, open, wait_until,
};

/// How long something that takes milliseconds may take on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

#[test]
fn a_backend_that_dies_is_told_and_so_is_a_service_without_any() -> Result<()> {
    let mut stage = Stage::new(|service| service)?;
    let started = stage.event("daemon_started", None)?;
    ensure!(
        started["sentence"]
            .as_str()
            .is_some_and(|told| told.contains("began with empty tables")),
        "{started:#}"
    );
    let attached = stage.event("interface_attached", None)?;
    assert_eq!(attached["interface"], "eth0");

    stage.backends[1].stop();
    let down = stage.event("backend_down", Some("b2"))?;
    assert_eq!(
        (&down["service"], &down["severity"]),
        (&"web".into(), &"warning".into())
    );
    ensure!(
        down["sentence"]
            .as_str()
            .is_some_and(|told| told.starts_with("web/b2 is down: ")),
        "{down:#}"
    );
    assert_eq!(
        stage.balancer.logged().matches("web/b2 is down").count(),
        1,
        "in the log once"
    );

    stage.backends[0].stop();
    stage.backends[2].stop();
    let alert = stage.event("no_backend", None)?;
    assert_eq!(
        (&alert["service"], &alert["severity"]),
        (&"web".into(), &"alert".into())
    );
    let service = stage.service.listen;
    let refused = stage
        .net
        .client
        .enter(|| TcpStream::connect_timeout(&service, Duration::from_millis(200)));
    ensure!(refused.is_err(), "nobody can have answered");
    let turned_away = stage.event("clients_turned_away", None)?;
    assert_eq!(turned_away["severity"], "alert");

    stage.backends[1].listen()?;
    stage.event("backend_up", Some("b2"))?;
    stage.event("backend_again", None)?;
    stage.event("clients_served_again", None)?;

    let mut numbers = stage
        .events()?
        .into_iter()
        .map(|event| event["number"].as_u64());
    ensure!(
        numbers
            .by_ref()
            .zip(1..)
            .all(|(number, place)| number == Some(place)),
        "numbers have no gaps"
    );
    let table = stage.balancer.lb(&["events", "--limit", "1000"])?;
    for kind in ["backend_down", "no_backend", "clients_turned_away"] {
        ensure!(table.contains(kind), "{kind} is missing:\n{table}");
    }
    Ok(())
}

#[test]
fn who_follows_sees_commands_and_refusals_as_they_happen() -> Result<()> {
    let stage = Stage::new(|service| Service {
        check: CALM,
        ..service
    })?;
    let lb = &stage.balancer;
    let live = Followed::start(lb)?;

    lb.lb(&["backend", "weight", "web", "b1", "7"])?;
    let weight = live.next("weight_changed")?;
    assert_eq!(
        weight["sentence"],
        "web/b1 has weight 7 (was 3), by a command"
    );
    let good = fs::read_to_string(&lb.config)?;
    fs::write(&lb.config, good.replacen("weight = 3", "wieght = 3", 1))?;
    let output = lb.lb_output(&["reload"])?;
    assert_eq!(output.status.code(), Some(1));
    let refused = live.next("reload_refused")?;
    assert_eq!(refused["severity"], "warning");
    ensure!(
        refused["sentence"]
            .as_str()
            .is_some_and(|told| told.contains("unknown key `wieght`")),
        "{refused:#}"
    );
    lb.signal(Signal::HUP)?;
    live.next("reload_refused")?;

    fs::write(&lb.config, good.replacen("weight = 1", "weight = 2", 1))?;
    lb.lb(&["reload"])?;
    let reloaded = live.next("reloaded")?;
    assert_eq!(reloaded["sentence"], "reload: web/b3 has weight 2 (was 1)");

    lb.lb(&["backend", "remove", "web", "b3"])?;
    live.next("backend_removed")?;
    lb.lb(&[
        "backend",
        "add",
        "web",
        "b3",
        &stage.service.backend(&stage.net, 2).to_string(),
    ])?;
    live.next("backend_added")?;
    lb.lb(&["overrides", "clear"])?;
    live.next("overrides_cleared")?;

    // Who follows is no obstacle to the end of the daemon.
    lb.signal(Signal::TERM)?;
    live.ends()
}

#[test]
fn the_end_of_a_drain_is_told_when_the_last_connection_has_gone() -> Result<()> {
    let stage = Stage::new(|service| Service {
        check: CALM,
        ..service
    })?;
    let lb = &stage.balancer;
    let service = stage.service.listen;
    let connections = stage.net.client.enter(|| open(service, 6))?;
    lb.lb(&["backend", "drain", "web", "b1"])?;
    stage.event("backend_drained", Some("b1"))?;
    lb.lb(&["backend", "list"])?;
    ensure!(
        stage.find("drain_finished", Some("b1"))?.is_none(),
        "it has connections"
    );
    drop(connections);
    wait_until("the drain ends", BOUND, || {
        // Whoever counts connections lets the daemon know.
        lb.lb(&["backend", "list"])?;
        Ok(stage.find("drain_finished", Some("b1"))?.is_some())
    })?;
    lb.lb(&["backend", "enable", "web", "b1"])?;
    stage.event("backend_enabled", Some("b1"))?;
    Ok(())
}

#[test]
fn interfaces_and_starts_are_told() -> Result<()> {
    let mut stage = Stage::new(|service| Service {
        check: CALM,
        ..service
    })?;
    let pulled = stage.net.pull("eth0")?;
    let lost = stage.event("interface_lost", None)?;
    assert_eq!(lost["interface"], "eth0");
    stage.net.plug(pulled)?;
    wait_until("eth0 is attached again", BOUND, || {
        let events = stage.events()?;
        let attached = events
            .iter()
            .filter(|event| event["kind"] == "interface_attached");
        Ok(attached.count() == 2)
    })?;

    stage.balancer.kill9()?;
    stage.balancer.restart()?;
    let started = stage.event("daemon_started", None)?;
    ensure!(
        started["sentence"]
            .as_str()
            .is_some_and(|told| told.contains("took over the tables")),
        "{started:#}"
    );
    ensure!(
        stage.find("interface_lost", None)?.is_none(),
        "events are of one run"
    );
    Ok(())
}

/// `lb events --follow --json`, and its lines as they come.
struct Followed {
    child: Child,
    lines: Receiver<String>,
}

impl Followed {
    fn start(daemon: &Daemon) -> Result<Self> {
        let mut child = Command::new(lb_binary())
            .arg("--control")
            .arg(&daemon.control)
            .args(["events", "--follow", "--json", "--limit", "1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("it is piped")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let followed = Self { child, lines };
        // The one before, by which it is known to follow.
        followed
            .lines
            .recv_timeout(BOUND)
            .context("nothing is followed")?;
        Ok(followed)
    }

    /// The next event of this kind.
    fn next(&self, kind: &str) -> Result<Value> {
        let deadline = Instant::now() + BOUND;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.with_context(|| format!("no {kind} came"))?;
            let event: Value = serde_json::from_str(&line)?;
            println!("{line}");
            if event["kind"] == kind {
                return Ok(event);
            }
        }
    }

    fn ends(&self) -> Result<()> {
        let deadline = Instant::now() + BOUND;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!("it follows a daemon that is gone"),
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network, three backends, and a balancer.
struct Stage {
    // In the order in which they are to go.
    balancer: Daemon,
    backends: Vec<HttpBackend>,
    service: Service,
    net: Net,
}

impl Stage {
    fn new(change: impl FnOnce(Service) -> Service) -> Result<Self> {
        let net = Net::new(Arms::One)?;
        let service = change(Service::new("web", "full-nat", Family::V4, [3, 2, 1]));
        let backends = net.start_http(&service)?;
        Ok(Self {
            balancer: Daemon::start(&net, &[service.toml(&net)])?,
            backends,
            service,
            net,
        })
    }

    /// Everything that happened so far.
    fn events(&self) -> Result<Vec<Value>> {
        let answer = self.balancer.json(&["events", "--limit", "1000"])?;
        assert_eq!(answer["lost"], 0, "{answer:#}");
        answer["events"]
            .as_array()
            .cloned()
            .context("no list of events")
    }

    /// The last event of this kind, of that backend if one is named.
    fn find(&self, kind: &str, backend: Option<&str>) -> Result<Option<Value>> {
        let events = self.events()?.into_iter().rev();
        let mut found = events.filter(|event| {
            event["kind"] == kind && backend.is_none_or(|name| event["backend"] == name)
        });
        Ok(found.next())
    }

    /// The same, which must be there within the bound.
    fn event(&self, kind: &str, backend: Option<&str>) -> Result<Value> {
        let what = format!("{kind} is told of {backend:?}");
        wait_until(&what, BOUND, || Ok(self.find(kind, backend)?.is_some()))?;
        self.find(kind, backend)?.context("it was there")
    }
}
