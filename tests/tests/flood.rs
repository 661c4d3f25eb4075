//! SYNs from forged sources, as fast as this machine makes them, in every mode:
//! no established connection breaks, honest clients get theirs, memory does not
//! grow, and the operator sees it.
//!
//! The backends' kernels get the flood too, and have what a sane server has: the
//! queue of a listener that expects a crowd (4096, Linux's own default for
//! net.core.somaxconn), as many half-open connections, and SYN cookies once
//! that is full (tcp_syncookies = 1, the default; 2 would send cookies without
//! need, and 0 would let the flood win at the server whatever the balancer
//! does).
//!
//! `LB_FLOOD_SECONDS=N` floods longer, `LB_FLOOD_CONNECTIONS=N` holds more.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::netns::{
    After, Clients, Daemon, Echo, Family, Flood, Line, Service, Stage, UNCHECKED, wait_until,
};
use tokio::task::JoinSet;
use tokio::time::interval;

/// How long it floods.
const SECONDS: u64 = 5;

/// How many idle connections there are.
const CONNECTIONS: u64 = 2_000;

/// How many are opened at once.
const AT_ONCE: usize = 64;

/// How often an honest client comes during the flood.
const HONEST: Duration = Duration::from_millis(10);

/// How long an honest client waits for its connection and its answer: TCP sends
/// its SYN again after 1 s, and after 3 s.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long something may take that a busy machine does in a second.
const BOUND: Duration = Duration::from_secs(30);

/// So many packets a second cannot be the honest clients'.
const SEEN: f64 = 2_000.0;

/// By how much the daemon's memory may differ: far less than a flood that is
/// remembered would take.
const SLACK: u64 = 24 << 20;

/// They take turns: each takes the whole machine.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! floods {
    ($($name:ident: $forward:literal $family:ident)+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                nothing_that_lives_breaks($forward, Family::$family)
            }
        )+
    };
}

floods! {
    full_nat_over_ipv4_lives_through_a_flood: "full-nat" V4
    full_nat_over_ipv6_lives_through_a_flood: "full-nat" V6
    nat_over_ipv4_lives_through_a_flood: "nat" V4
    nat_over_ipv6_lives_through_a_flood: "nat" V6
    dsr_over_ipv4_lives_through_a_flood: "dsr" V4
    dsr_over_ipv6_lives_through_a_flood: "dsr" V6
    tunnel_over_ipv4_lives_through_a_flood: "tunnel" V4
    tunnel_over_ipv6_lives_through_a_flood: "tunnel" V6
}

fn nothing_that_lives_breaks(forward: &'static str, family: Family) -> Result<()> {
    let _turn = whole_machine();
    let seconds = Duration::from_secs(number("LB_FLOOD_SECONDS", SECONDS)?);
    let connections = number("LB_FLOOD_CONNECTIONS", CONNECTIONS)?;
    let service = Service {
        check: UNCHECKED,
        ..Service::new("web", forward, family, [1, 1, 1])
    };
    let stage = Stage::new(service, "")?;
    stage.net.lead_answers_to_forged(forward)?;
    for backend in &stage.net.backends {
        backend.sysctl("ipv4/tcp_syncookies", "1")?;
        backend.sysctl("ipv4/tcp_max_syn_backlog", "4096")?;
        backend.sysctl("core/somaxconn", "4096")?;
    }
    let listen = stage.service.listen;
    let clients = Clients::on(&stage.net.client, 2)?;
    let idle = clients.run(open(listen, connections))??;
    let quiet = Memory::of(&stage.balancer)?;

    let flood = Flood::start(&stage.net, listen, seconds + BOUND)?;
    let began = Instant::now();
    let honest = clients.spawn(honest(listen, began + seconds))?;
    let seen = watch(&stage, began + seconds)?;
    let honest = clients.run(honest)???;
    let flooded = flood.stop()?;
    let after = Memory::of(&stage.balancer)?;

    let arrived = arrived(&stage.balancer)?;
    println!(
        "{forward} over {family:?}: {} SYNs in {:.1?} ({:.0} a second), {arrived} packets arrived, \
         {seen:.0} a second shown; {} of {} honest clients served, the median after {:.1?}, the \
         slowest after {:.1?}; memory {quiet:?} before, {after:?} after",
        flooded.packets,
        flooded.lasted,
        flooded.rate(),
        honest.served.len(),
        honest.came,
        honest.quantile(0.5),
        honest.quantile(1.0),
    );
    let broken = clients.run(still_there(idle))?;
    ensure!(
        broken.is_empty(),
        "of {connections} idle connections {} are broken: {:#?}",
        broken.len(),
        &broken[..broken.len().min(5)]
    );
    ensure!(
        arrived * 10 >= flooded.packets,
        "only {arrived} of {} SYNs reached the balancer",
        flooded.packets
    );
    ensure!(
        honest.came >= 10 && honest.served.len() * 100 >= honest.came * 99,
        "only {} of {} honest clients were served: {:#?}",
        honest.served.len(),
        honest.came,
        honest.failures
    );
    ensure!(
        after.daemon < quiet.daemon + SLACK && after.tables <= quiet.tables + SLACK,
        "memory has grown from {quiet:?} to {after:?}"
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

/// An idle connection, and who answered on it first.
type Idle = (Line, Echo);

async fn open(listen: SocketAddr, count: u64) -> Result<Vec<Idle>> {
    let mut opening = JoinSet::new();
    let mut idle = Vec::new();
    for _ in 0..count {
        if opening.len() == AT_ONCE
            && let Some(opened) = opening.join_next().await
        {
            idle.push(opened??);
        }
        opening.spawn(async move {
            let mut line = Line::open_within(BOUND, listen).await?;
            let echo = line.ask_within(BOUND, After::Stay).await?;
            anyhow::Ok((line, echo))
        });
    }
    while let Some(opened) = opening.join_next().await {
        idle.push(opened??);
    }
    Ok(idle)
}

/// Asks on each again; those on which not the same backend answers the same
/// client.
async fn still_there(idle: Vec<Idle>) -> Vec<String> {
    let mut asking = JoinSet::new();
    let mut broken = Vec::new();
    for (mut line, first) in idle {
        asking.spawn(async move {
            match line.ask_within(BOUND, After::Stay).await {
                Ok(echo) if echo == first => None,
                Ok(echo) => Some(format!("{first:?} has become {echo:?}")),
                Err(error) => Some(format!("{first:?}: {error:#}")),
            }
        });
    }
    while let Some(asked) = asking.join_next().await {
        broken.extend(asked.unwrap_or_else(|panicked| Some(panicked.to_string())));
    }
    broken
}

/// What became of the honest clients.
struct Honest {
    came: usize,
    /// How long each took that was served; sorted.
    served: Vec<Duration>,
    /// Why the others were not, and how many.
    failures: BTreeMap<String, usize>,
}

impl Honest {
    fn quantile(&self, part: f64) -> Duration {
        let last = self.served.len().saturating_sub(1);
        let place = (last as f64 * part).round() as usize;
        self.served.get(place).copied().unwrap_or_default()
    }
}

/// Clients that come one after the other until then, whether or not those before
/// them were served.
async fn honest(listen: SocketAddr, until: Instant) -> Result<Honest> {
    let mut clients = JoinSet::new();
    let mut pace = interval(HONEST);
    while Instant::now() < until {
        pace.tick().await;
        clients.spawn(async move {
            let began = Instant::now();
            let mut line = Line::open_within(PATIENCE, listen).await?;
            let left = PATIENCE.saturating_sub(began.elapsed());
            line.ask_within(left, After::Stay).await?;
            anyhow::Ok(began.elapsed())
        });
    }
    let mut honest = Honest {
        came: clients.len(),
        served: Vec::new(),
        failures: BTreeMap::new(),
    };
    while let Some(client) = clients.join_next().await {
        match client? {
            Ok(took) => honest.served.push(took),
            Err(error) => *honest.failures.entry(format!("{error:#}")).or_default() += 1,
        }
    }
    honest.served.sort();
    Ok(honest)
}

/// Looks at `lb status` until then: the flood must show there, and in `lb
/// events`. Gives the most packets a second that were shown.
fn watch(stage: &Stage, until: Instant) -> Result<f64> {
    let mut most: f64 = 0.0;
    let left = until.saturating_duration_since(Instant::now());
    wait_until("the flood shows in lb status", left + BOUND, || {
        let status = stage.balancer.json(&["status"])?;
        let service = &status["services"][0];
        most = most.max(service["packets_per_second"].as_f64().unwrap_or_default());
        Ok(Instant::now() >= until && most >= SEEN)
    })?;
    wait_until("the flood is told by lb events", BOUND, || {
        stage.balancer.has_told("flood_begins")
    })?;
    Ok(most)
}

/// How many packets to the service the balancer has counted, dropped ones too.
fn arrived(balancer: &Daemon) -> Result<u64> {
    let shown = balancer.json(&["service", "show", "web"])?;
    let traffic = &shown["traffic"]["forward_packets"];
    let drops = shown["drops"].as_array().into_iter().flatten();
    let dropped: u64 = drops.filter_map(|drop| drop["packets"].as_u64()).sum();
    Ok(traffic.as_u64().context("packets are a number")? + dropped)
}

/// What the balancer takes, in bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    daemon: u64,
    tables: u64,
}

impl Memory {
    fn of(balancer: &Daemon) -> Result<Self> {
        let pid = balancer.pid().context("the daemon runs")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|text| text.split_whitespace().next());
        Ok(Self {
            daemon: kilobytes.context("no VmRSS")?.parse::<u64>()? << 10,
            tables: balancer.table_bytes()?,
        })
    }
}
