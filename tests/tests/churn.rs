//! Short connections through `full-nat`, as fast as this machine makes them, from
//! twenty client addresses to three backends: no two of them are mixed up, none
//! fails, and nothing of them is left.
//!
//! Behind the balancer all connections come from the service's own address, and
//! only ports tell them apart. Two that had the same port to the same backend
//! would get each other's answers, or none; so each asks twice, by tokens of
//! its own, and must hear the same backend see the same end.
//!
//! The side that closes first remembers the ends for a minute (TIME-WAIT, RFC
//! 9293, section 3.6.1). Where that is the client, nothing stands in the way of
//! the balancer's next use of the port, and not one SYN may be lost on anything.
//!
//! Where it is the server, it may be asked for a connection between ends that it
//! remembers: the balancer forgets them after two seconds here, or its ports
//! would not suffice. If the new client's timestamps are behind those of the one
//! before, the server refuses (RFC 6191), is told by a RST that it is wrong, and
//! accepts the SYN that comes again after a second. How often that is so is
//! shown.
//!
//! `LB_CHURN_CONNECTIONS=N` makes more of them.

use std::collections::BTreeMap;
use std::env;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::netns::{After, Clients, Family, Line, Service, Stage, UNCHECKED, wait_until};
use tokio::task::JoinSet;

/// How many connections.
const CONNECTIONS: u64 = 50_000;

/// From how many addresses.
const ADDRESSES: u64 = 20;

/// How many are open at a time.
const AT_ONCE: usize = 192;

/// The ports that a client address uses, one after the other: by the time that
/// one's turn comes again, nobody remembers it, unless the machine makes more
/// than 20,000 connections a second.
const PORTS: std::ops::Range<u64> = 2_000..65_000;

/// How long a connection may take; its SYN may be lost twice.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the balancer remembers a connection that has ended.
const CLOSED: &str = "[timeouts]\nclosed = \"2s\"\n";

/// How long the last of them may be remembered: the timeout, and the round of
/// whoever looks for it, on a busy machine.
const GONE: Duration = Duration::from_secs(30);

/// In what is said of a connection that got another's answer, or another backend.
const MIXED_UP: &str = "mixed up";

/// They take turns: each takes the whole machine.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn short_connections_over_ipv4_are_never_mixed_up_and_leave_nothing() -> Result<()> {
    never_mixed_up(Family::V4, After::Stay)
}

#[test]
fn short_connections_over_ipv6_are_never_mixed_up_and_leave_nothing() -> Result<()> {
    never_mixed_up(Family::V6, After::Stay)
}

#[test]
fn short_connections_that_servers_close_are_never_mixed_up_and_leave_nothing() -> Result<()> {
    never_mixed_up(Family::V4, After::Close)
}

fn never_mixed_up(family: Family, end: After) -> Result<()> {
    let _turn = whole_machine();
    let connections = number("LB_CHURN_CONNECTIONS", CONNECTIONS)?;
    let service = Service {
        check: UNCHECKED,
        ..Service::new("web", "full-nat", family, [1, 1, 1])
    };
    let stage = Stage::new(service, CLOSED)?;
    for number in 0..ADDRESSES {
        let address = client(family, number);
        let length = if address.is_ipv4() { 24 } else { 64 };
        let address = format!("{address}/{length}");
        let mut add = vec!["addr", "add", &address, "dev", "eth0"];
        if family == Family::V6 {
            add.push("nodad");
        }
        stage.net.client.run("ip", &add)?;
    }
    // For a machine so fast that a port's turn comes within the minute.
    stage.net.client.sysctl("ipv4/tcp_tw_reuse", "1")?;

    let clients = Clients::on(&stage.net.client, 2)?;
    let churn = Arc::new(Churn {
        listen: stage.service.listen,
        family,
        end,
        connections,
        next: AtomicU64::new(0),
    });
    let began = Instant::now();
    let sum = clients.run(Churn::run(churn))??;
    let took = began.elapsed();
    let retransmitted = syns_again(&stage)?;
    println!(
        "{connections} connections over {family:?}, {end:?} in the end, in {took:.1?}, {:.0} a second; the slowest took \
         {:.1?}; {retransmitted} SYNs were sent again; by backend: {:?}",
        connections as f64 / took.as_secs_f64(),
        sum.slowest,
        sum.backends
    );
    let failed: u64 = sum.failures.values().sum();
    // What a server that refuses may do to the next one at the same port is not
    // the balancer's doing.
    let excused = match end {
        After::Close => connections / 100_000,
        After::Stay | After::Reset => 0,
    };
    ensure!(
        failed <= excused,
        "{failed} connections failed: {:#?}",
        sum.failures
    );
    ensure!(
        !sum.failures.keys().any(|why| why.contains(MIXED_UP)),
        "connections were mixed up: {:#?}",
        sum.failures
    );
    for (server, number) in stage.servers.iter().zip(0_u8..) {
        let served = server.served()?;
        ensure!(
            served.clashes == 0,
            "backend {number} saw {} connections from an end that had another one open",
            served.clashes
        );
        let seen = sum.backends.get(&number).copied().unwrap_or(0);
        ensure!(
            served.accepted.abs_diff(seen) <= failed,
            "backend {number} accepted {}, and clients saw {:?}",
            served.accepted,
            sum.backends
        );
        let share = served.accepted.abs_diff(connections / 3);
        ensure!(share <= 1 + retransmitted, "{:?}", sum.backends);
    }
    nothing_is_left(&stage)
}

fn number(name: &str, usual: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => (text.replace('_', "").parse())
            .with_context(|| format!("{name} is {text:?}, not a number")),
        Err(_) => Ok(usual),
    }
}

/// The client's address of this number.
fn client(family: Family, number: u64) -> IpAddr {
    let last = 201 + number as u8;
    match family {
        Family::V4 => Ipv4Addr::new(10, 9, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 1, last.into()).into(),
    }
}

/// The connections to be made.
struct Churn {
    listen: SocketAddr,
    family: Family,
    /// Whether the server closes them.
    end: After,
    connections: u64,
    next: AtomicU64,
}

/// What became of connections.
#[derive(Debug, Default)]
struct Sum {
    backends: BTreeMap<u8, u64>,
    failures: BTreeMap<String, u64>,
    slowest: Duration,
}

impl Churn {
    async fn run(this: Arc<Self>) -> Result<Sum> {
        let mut workers = JoinSet::new();
        for _ in 0..AT_ONCE {
            workers.spawn(Self::work(Arc::clone(&this)));
        }
        let mut total = Sum::default();
        while let Some(sum) = workers.join_next().await {
            let sum = sum?;
            for (backend, count) in sum.backends {
                *total.backends.entry(backend).or_default() += count;
            }
            for (failure, count) in sum.failures {
                *total.failures.entry(failure).or_default() += count;
            }
            total.slowest = total.slowest.max(sum.slowest);
        }
        Ok(total)
    }

    async fn work(this: Arc<Self>) -> Sum {
        let mut sum = Sum::default();
        loop {
            let number = this.next.fetch_add(1, Ordering::Relaxed);
            if number >= this.connections {
                return sum;
            }
            let began = Instant::now();
            match this.one(number).await {
                Ok(backend) => *sum.backends.entry(backend).or_default() += 1,
                Err(error) => *sum.failures.entry(format!("{error:#}")).or_default() += 1,
            }
            sum.slowest = sum.slowest.max(began.elapsed());
        }
    }

    /// One connection; which backend answered.
    async fn one(&self, number: u64) -> Result<u8> {
        let turn = number / ADDRESSES % (PORTS.end - PORTS.start);
        let from = SocketAddr::new(
            client(self.family, number % ADDRESSES),
            (PORTS.start + turn) as u16,
        );
        let opened = tokio::time::timeout(PATIENCE, Line::open(Some(from), self.listen)).await;
        let mut line = opened
            .context("no connection in time")?
            .context("cannot connect")?;
        let first = line.ask_within(PATIENCE, After::Stay).await?;
        let second = line.ask_within(PATIENCE, self.end).await?;
        ensure!(
            first == second,
            "{MIXED_UP}: {first:?} has become {second:?}"
        );
        ensure!(
            first.client.ip() == self.listen.ip(),
            "the backend saw {}",
            first.client.ip()
        );
        if self.end == After::Close {
            ensure!(line.closed().await, "the server's FIN became a RST");
        }
        Ok(first.backend)
    }
}

/// How many SYNs the clients had to send again.
fn syns_again(stage: &Stage) -> Result<u64> {
    let text = stage
        .net
        .client
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt: "));
    let (names, values) = (lines.next(), lines.next());
    let (names, values) = names.zip(values).context("there are no counts")?;
    let place = names.split(' ').position(|name| name == "TCPSynRetrans");
    let value = place.and_then(|place| values.split(' ').nth(place));
    Ok(value.context("SYNs are not counted")?.parse()?)
}

/// Neither a connection nor what remembers one that has ended.
fn nothing_is_left(stage: &Stage) -> Result<()> {
    let ended = Instant::now();
    let mut left = String::new();
    wait_until("no flow is left", GONE, || {
        let flows = stage.balancer.json(&["flows", "--limit", "5"])?;
        let entries = stage.balancer.entries()?;
        left = format!("{entries} in the table, {flows:#}");
        let live = stage.active_flows()?;
        Ok(flows["total"] == 0 && entries == 0 && live == [[0; 3]; 2])
    })
    .with_context(|| format!("still there: {left}"))?;
    println!(
        "the table was empty {:.1?} after the last end",
        ended.elapsed()
    );
    for server in &stage.servers {
        let served = server.served()?;
        ensure!(served.open == 0, "still open at a server: {served:?}");
    }
    Ok(())
}
