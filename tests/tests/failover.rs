//! What happens when something fails: a backend, or the daemon itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use tests::netns::{
    Answer, Arms, CALM, Connection, Daemon, Family, HttpBackend, Net, Service, ask, differences,
    lasting_differences, open, shares, snapshot, still_there, tally, wait_until,
};

/// How long a change that takes well under a second may take on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

/// The tests that watch the time between requests take turns.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_backend_that_refuses_connections_gets_no_new_one_until_it_takes_them_again() -> Result<()> {
    let _turn = whole_machine();
    let mut stage = Stage::new(|service| Service {
        more: "on_down = \"keep\"",
        ..service
    })?;
    let service = stage.service.clone();
    stage.wait_state("b2", "up")?;
    let mut open = stage.connections_to_each()?;

    stage.backends[1].stop();
    stage.wait_state("b2", "down")?;
    assert_eq!(stage.tally(40)?, shares([30, 0, 10]), "{service:?}");
    for (connection, first) in &mut open {
        assert_eq!(connection.ask()?, *first, "an open connection goes on");
    }

    stage.backends[1].listen()?;
    stage.wait_state("b2", "up")?;
    assert_eq!(stage.tally(60)?, shares([30, 20, 10]), "{service:?}");
    for (connection, first) in &mut open {
        assert_eq!(connection.ask()?, *first, "an open connection goes on");
    }
    Ok(())
}

#[test]
fn a_backend_that_falls_silent_gets_no_new_connection_until_it_is_heard_again() -> Result<()> {
    let _turn = whole_machine();
    let stage = Stage::new(|service| service)?;
    let silent = &stage.net.backends[0];
    stage.wait_state("b1", "up")?;

    silent.run("ip", &["link", "set", "eth0", "down"])?;
    stage.wait_state("b1", "down")?;
    assert_eq!(stage.tally(30)?, shares([0, 20, 10]));

    silent.run("ip", &["link", "set", "eth0", "up"])?;
    stage.wait_state("b1", "up")?;
    assert_eq!(stage.tally(60)?, shares([30, 20, 10]));
    Ok(())
}

#[test]
fn a_backend_is_down_only_after_as_many_failures_as_fall_says() -> Result<()> {
    const FALL: u64 = 8;
    let _turn = whole_machine();
    let mut stage = Stage::new(|service| Service {
        check: "interval = \"100ms\"\ntimeout = \"100ms\"\nfall = 8",
        ..service
    })?;
    stage.wait_state("b3", "up")?;
    let stopped = Instant::now();
    stage.backends[2].stop();
    stage.wait_state("b3", "down")?;
    let took = stopped.elapsed();
    println!("b3 was down {took:.2?} after it stopped");
    // From the first failure to the last there are FALL - 1 intervals; one is
    // left for a probe that was late.
    ensure!(
        took >= Duration::from_millis(100) * u32::try_from(FALL - 2)?,
        "b3 was down after {took:?}, too early for {FALL} failures"
    );
    Ok(())
}

#[test]
fn killing_the_daemon_under_load_loses_no_request_no_flow_and_not_the_link() -> Result<()> {
    let _turn = whole_machine();
    let mut stage = Stage::new(|service| Service {
        check: CALM,
        ..service
    })?;
    let service = stage.service.listen;
    let net = &stage.net;
    let balancer = &mut stage.balancer;
    let mut open = net.client.enter(|| open(service, 12))?;
    let link = balancer.link_id("eth0")?;

    let stop = AtomicBool::new(false);
    let (answers, programs) = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| net.client.enter(|| load(service, 200, &stop)));
        let watch = scope.spawn(|| watch_link(net, &stop));
        let mut handle = || -> Result<()> {
            for _ in 0..2 {
                still_there(&mut open)?;
                balancer.kill9()?;
                // Without a daemon for a while.
                for _ in 0..10 {
                    still_there(&mut open)?;
                    thread::sleep(Duration::from_millis(50));
                }
                balancer.restart()?;
                still_there(&mut open)?;
                assert_eq!(balancer.json(&["status"])?["adopted"], true);
                assert_eq!(balancer.link_id("eth0")?, link, "it is the same link");
            }
            Ok(())
        };
        let handled = handle();
        stop.store(true, Ordering::Relaxed);
        let answers = join(load)?;
        let programs = join(watch)?;
        handled?;
        Ok((answers, programs))
    })?;

    println!("{answers:?}, programs {programs:?}");
    let requests: usize = answers.values().sum();
    ensure!(requests >= 200, "only {requests} requests were made");
    ensure!(
        programs.len() == 3,
        "three daemons, but the programs {programs:?}"
    );
    // Not even the schedule's place was lost: filled up to whole sequences, all
    // requests together are exact.
    let mut total = answers;
    for (name, count) in stage.tally((6 - requests % 6) % 6)? {
        *total.entry(name).or_default() += count;
    }
    let sequences = requests.div_ceil(6);
    assert_eq!(
        total,
        shares([3 * sequences, 2 * sequences, sequences]),
        "the schedule went on where it was"
    );
    let flows = stage.balancer.json(&["flows", "--limit", "1000"])?;
    for (connection, _) in &open {
        let (client, _) = connection.ends()?;
        let client = client.to_string();
        ensure!(
            flows["flows"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|flow| flow["client"] == client.as_str() && flow["state"] == "established"),
            "{client} is not among the flows: {flows:#}"
        );
    }
    assert_eq!(stage.balancer.json(&["drops"])?, serde_json::json!([]));
    Ok(())
}

#[test]
fn what_was_changed_at_run_time_survives_a_killed_daemon() -> Result<()> {
    let mut stage = Stage::new(|service| Service {
        check: CALM,
        ..service
    })?;
    let extra = SocketAddr::new(stage.net.backends[0].v4.into(), 8099);
    let _b4 = HttpBackend::start(&stage.net.backends[0], Family::V4, 8099)?;
    let lb = &stage.balancer;
    lb.lb(&["backend", "weight", "web", "b1", "5"])?;
    lb.lb(&["backend", "drain", "web", "b2"])?;
    lb.lb(&["backend", "remove", "web", "b3"])?;
    lb.lb(&[
        "backend",
        "add",
        "web",
        "b4",
        &extra.to_string(),
        "--weight",
        "2",
    ])?;
    let overrides = lb.json(&["overrides"])?;
    assert_eq!(overrides.as_array().map(Vec::len), Some(4), "{overrides:#}");
    // b1 and b4 are the same host.
    assert_eq!(stage.tally(14)?, shares([14, 0, 0]));

    stage.balancer.kill9()?;
    stage.balancer.restart()?;
    assert_eq!(stage.balancer.json(&["overrides"])?, overrides);
    let backends = stage.balancer.json(&["backend", "list"])?;
    let weights: BTreeMap<&str, u64> = backends
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|backend| Some((backend["name"].as_str()?, backend["weight"].as_u64()?)))
        .collect();
    assert_eq!(weights, BTreeMap::from([("b1", 5), ("b2", 0), ("b4", 2)]));
    assert_eq!(stage.tally(14)?, shares([14, 0, 0]));

    stage.balancer.lb(&["overrides", "clear"])?;
    assert_eq!(stage.tally(60)?, shares([30, 20, 10]));
    Ok(())
}

#[test]
fn a_daemon_that_is_asked_to_end_leaves_forwarding_on() -> Result<()> {
    let mut stage = Stage::new(|service| Service {
        check: CALM,
        ..service
    })?;
    let mut open = stage.connections_to_each()?;
    let status = stage.balancer.stop()?;
    ensure!(status.success(), "lb run ended with {status}");
    ensure!(!stage.balancer.control.exists(), "its socket is gone");
    assert_eq!(stage.tally(60)?, shares([30, 20, 10]));
    still_there(&mut open)?;
    stage.balancer.restart()?;
    assert_eq!(stage.balancer.json(&["status"])?["adopted"], true);
    still_there(&mut open)?;
    assert_eq!(stage.tally(60)?, shares([30, 20, 10]));
    Ok(())
}

#[test]
fn detach_on_exit_takes_everything_away_again_even_after_a_kill() -> Result<()> {
    for killed in [false, true] {
        let net = Net::new(Arms::Two)?;
        let services = Family::ALL
            .map(|family| Service::new(&format!("web-{family:?}"), "full-nat", family, [3, 2, 1]));
        let untouched = Daemon::prepare(&net, "lb", &net.balancer, &[]);
        let before = snapshot(&net.balancer, &untouched)?;
        let _backends = [net.start_http(&services[0])?, net.start_http(&services[1])?];
        let texts = services.each_ref().map(|service| service.toml(&net));
        let mut balancer = Daemon::start_with(&net, &texts, &["--detach-on-exit"])?;
        let during = snapshot(&net.balancer, &balancer)?;
        ensure!(
            differences(&before, &during).len() > 4,
            "the comparison sees the balancer"
        );
        if killed {
            balancer.kill9()?;
            balancer.restart()?;
        }
        let status = balancer.stop()?;
        ensure!(status.success(), "lb run ended with {status}");
        assert_eq!(
            lasting_differences(&before, &net.balancer, &balancer)?,
            Vec::<String>::new(),
            "killed before: {killed}"
        );
    }
    Ok(())
}

/// A network, three backends and a balancer that is ready.
struct Stage {
    // In the order in which they are to go.
    balancer: Daemon,
    backends: Vec<HttpBackend>,
    service: Service,
    net: Net,
}

impl Stage {
    /// With one service, 3:2:1, after `change`.
    fn new(change: impl FnOnce(Service) -> Service) -> Result<Self> {
        let net = Net::new(Arms::One)?;
        let service = change(Service::new("web", "full-nat", Family::V4, [3, 2, 1]));
        Ok(Self {
            backends: net.start_http(&service)?,
            balancer: Daemon::start(&net, &[service.toml(&net)])?,
            service,
            net,
        })
    }

    fn tally(&self, requests: usize) -> Result<BTreeMap<String, usize>> {
        let service = self.service.listen;
        self.net.client.enter(|| tally(service, requests))
    }

    fn wait_state(&self, backend: &str, state: &str) -> Result<()> {
        wait_until(&format!("{backend} is {state}"), BOUND, || {
            let backends = self.balancer.json(&["backend", "list"])?;
            Ok(backends
                .as_array()
                .into_iter()
                .flatten()
                .any(|entry| entry["name"] == backend && entry["state"] == state))
        })
    }

    /// Open connections, one turn of the schedule, each with its first answer.
    fn connections_to_each(&self) -> Result<Vec<(Connection, Answer)>> {
        let service = self.service.listen;
        self.net.client.enter(|| open(service, 6))
    }
}

/// Makes requests at a steady rate until told to stop. A request that is late
/// because the machine is busy is made all the same.
fn load(service: SocketAddr, rate: u32, stop: &AtomicBool) -> Result<BTreeMap<String, usize>> {
    const CLIENTS: u32 = 8;
    let client = |number: u32| -> Result<BTreeMap<String, usize>> {
        let mut answers = BTreeMap::new();
        let began = Instant::now();
        for turn in 0.. {
            let due = Duration::from_secs(1) * (turn * CLIENTS + number) / rate;
            thread::sleep(due.saturating_sub(began.elapsed()));
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let answer =
                ask(service).with_context(|| format!("{:.2?} into the load", began.elapsed()))?;
            *answers.entry(answer.backend).or_default() += 1;
        }
        Ok(answers)
    };
    let client = &client;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        let mut total = BTreeMap::new();
        for client in clients {
            for (name, count) in join(client)? {
                *total.entry(name).or_default() += count;
            }
        }
        Ok(total)
    })
}

/// Looks at the balancer's interface until told to stop: a program must be on
/// it at any time. Gives the programs seen.
fn watch_link(net: &Net, stop: &AtomicBool) -> Result<Vec<u64>> {
    let mut programs = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let text = net.balancer.run("ip", &["-j", "link", "show", "eth0"])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let program = links[0]["xdp"]["prog"]["id"]
            .as_u64()
            .with_context(|| format!("no program is attached: {text}"))?;
        if programs.last() != Some(&program) {
            programs.push(program);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(programs)
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
}
