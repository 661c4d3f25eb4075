//! What a million connections cost the daemon, which counts them and lets go of
//! those that are over: hardly anything of a core.
//!
//! The promise is that of an optimised daemon: `cargo test --release` looks at one.
//! `LB_COLLECTOR_FLOWS=N` holds more of them or fewer, `LB_COLLECTOR_SECONDS=N`
//! looks longer.

use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::netns::{Arms, Daemon, Family, Handshakes, Net, Service, UNCHECKED};

/// How many connections.
const FLOWS: u64 = 1_000_000;

/// For how long the daemon is looked at: many rounds of whatever it does every
/// second.
const SECONDS: u64 = 20;

/// The promise: so much of one core; more where the daemon is built without
/// optimisation, as it is by default beside a test.
const SHARE: f64 = if cfg!(debug_assertions) { 0.25 } else { 0.05 };

/// How many are begun before they are finished.
const AT_ONCE: u32 = 10_000;

/// How often all are made that may be there already: segments are lost where the
/// machine is busy.
const ROUNDS: u32 = 20;

/// Clock ticks of `/proc/PID/stat` a second, on every Linux (`USER_HZ`).
const TICKS: f64 = 100.0;

#[test]
fn a_million_connections_cost_the_daemon_hardly_anything() -> Result<()> {
    let flows = number("LB_COLLECTOR_FLOWS", FLOWS)?;
    let seconds = Duration::from_secs(number("LB_COLLECTOR_SECONDS", SECONDS)?);
    let net = Net::new(Arms::One)?;
    let service = Service {
        check: UNCHECKED,
        ..Service::new("web", "dsr", Family::V4, [1, 1, 1])
    };
    net.give_address_to_backends(&service)?;
    let mut balancer = Daemon::prepare(&net, "lb", &net.balancer, &[]);
    // With a tenth more than there are: a table that is quite full is another
    // question.
    balancer.max_flows = u32::try_from(flows + flows / 10)?;
    let node = balancer.node(net.interfaces());
    fs::write(&balancer.config, node + &service.toml(&net))?;
    balancer.restart()?;

    let began = Instant::now();
    let live = hold(&net, &balancer, &service, flows)?;
    println!("{live} connections after {:.1?}", began.elapsed());
    let (spent, began) = (cpu_time(&balancer)?, Instant::now());
    thread::sleep(seconds);
    let took = began.elapsed();
    let spent = cpu_time(&balancer)? - spent;
    let share = spent.as_secs_f64() / took.as_secs_f64();
    println!(
        "the daemon spent {spent:.2?} of {took:.1?}, {:.2} % of a core",
        share * 100.0
    );
    ensure!(
        live_flows(&balancer)? == flows,
        "not all {flows} connections were there until the end"
    );
    ensure!(
        share < SHARE,
        "{flows} connections cost the daemon {:.1} % of a core",
        share * 100.0
    );
    Ok(())
}

fn number(name: &str, usual: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => (text.replace('_', "").parse())
            .with_context(|| format!("{name} is {text:?}, not a number")),
        Err(_) => Ok(usual),
    }
}

/// Makes connections until all are there.
fn hold(net: &Net, balancer: &Daemon, service: &Service, flows: u64) -> Result<u64> {
    let mut handshakes = Handshakes::with(net, service.listen)?;
    let flows = u32::try_from(flows)?;
    let mut live = 0;
    for _ in 0..ROUNDS {
        for first in (0..flows).step_by(AT_ONCE as usize) {
            handshakes.make(first..flows.min(first + AT_ONCE))?;
        }
        live = live_flows(balancer)?;
        if live == u64::from(flows) && all_are_proved(balancer, live)? {
            return Ok(live);
        }
    }
    anyhow::bail!(
        "only {live} of {flows} connections are there; the balancer has dropped:\n{}",
        balancer.lb(&["drops"])?
    )
}

/// Whether the daemon finds all of them established. One whose proof was lost is there
/// as well, but only for as long as a handshake may take.
fn all_are_proved(balancer: &Daemon, flows: u64) -> Result<bool> {
    // It goes through the table once a second.
    for _ in 0..30 {
        let status = balancer.json(&["status"])?;
        if status["flows"]["established"] == flows {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

fn live_flows(balancer: &Daemon) -> Result<u64> {
    let backends = balancer.json(&["backend", "list"])?;
    let counts = backends.as_array().context("backends are a list")?.iter();
    counts
        .map(|backend| backend["active_flows"].as_u64().context("a number"))
        .sum()
}

/// What the daemon's process has spent.
fn cpu_time(balancer: &Daemon) -> Result<Duration> {
    let pid = balancer.pid().context("the daemon runs")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything: state is field 3 (proc(5)).
    let (_, fields) = stat.rsplit_once(") ").context("a name in parentheses")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |field: usize| -> Result<f64> { Ok(fields[field - 3].parse()?) };
    Ok(Duration::from_secs_f64((ticks(14)? + ticks(15)?) / TICKS))
}
