//! The live flows that the balancer says each backend has are those that are
//! open, however they begin and end.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::netns::{
    After, Arms, Clients, Daemon, Decap, Echo, Family, Line, Net, Service, Stage, UNCHECKED,
    UdpEcho, ask_udp, wait_until,
};

/// How long the counts may lag behind: far more rounds of whoever counts than
/// one, on a busy machine.
const LAG: Duration = Duration::from_secs(20);

/// Connections of each kind.
const EACH: usize = 12;

/// How long the clients and backends wait for each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// The tests that take long for other reasons than the machine take turns, too:
/// the counts that they wait for are another's load.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! counts {
    ($($name:ident: $forward:literal $family:ident)+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                counts_are_true($forward, Family::$family)
            }
        )+
    };
}

counts! {
    full_nat_over_ipv4_counts_what_is_open: "full-nat" V4
    full_nat_over_ipv6_counts_what_is_open: "full-nat" V6
    nat_over_ipv4_counts_what_is_open: "nat" V4
    nat_over_ipv6_counts_what_is_open: "nat" V6
    dsr_over_ipv4_counts_what_is_open: "dsr" V4
    dsr_over_ipv6_counts_what_is_open: "dsr" V6
    tunnel_over_ipv4_counts_what_is_open: "tunnel" V4
    tunnel_over_ipv6_counts_what_is_open: "tunnel" V6
}

/// Connections end in every way, one way after the other; after each the counts
/// become what is left.
fn counts_are_true(forward: &'static str, family: Family) -> Result<()> {
    let _turn = whole_machine();
    let service = Service {
        check: UNCHECKED,
        ..Service::new("web", forward, family, [3, 2, 1])
    };
    let stage = Stage::new(service, "")?;
    let clients = Clients::on(&stage.net.client, 1)?;
    let listen = stage.service.listen;
    counts_become(&stage, [0; 3], "nothing was ever open")?;

    let mut idle = clients.run(open(listen, EACH))??;
    counts_become(&stage, tally(&[&idle]), "they are open")?;

    let closing = clients.run(open(listen, EACH))??;
    counts_become(&stage, tally(&[&idle, &closing]), "more are open")?;
    drop(closing);
    counts_become(&stage, tally(&[&idle]), "the clients closed some")?;

    let mut closed = clients.run(open(listen, EACH))??;
    closed = clients.run(end(closed, After::Close))??;
    let half_closed = if saw_backends(forward) {
        "the servers closed some, and the clients not yet"
    } else {
        "what the servers closed is not seen"
    };
    counts_become(&stage, tally(&[&idle, &closed]), half_closed)?;
    drop(closed);
    counts_become(&stage, tally(&[&idle]), "the clients closed them too")?;

    let shut = clients.run(open(listen, EACH))??;
    let shut = clients.run(shut_down(shut))??;
    counts_become(
        &stage,
        tally(&[&idle]),
        "both sides closed, the clients first",
    )?;
    drop(shut);

    let reset = clients.run(open(listen, EACH))??;
    counts_become(&stage, tally(&[&idle, &reset]), "more are open")?;
    for (line, _) in reset {
        line.reset()?;
    }
    counts_become(&stage, tally(&[&idle]), "the clients broke some off")?;

    if saw_backends(forward) {
        let broken = clients.run(open(listen, EACH))??;
        let broken = clients.run(end(broken, After::Reset))??;
        counts_become(&stage, tally(&[&idle]), "the servers broke some off")?;
        drop(broken);
    }

    // What was idle all the time is still there.
    idle = clients.run(ask_again(idle))??;
    counts_become(&stage, tally(&[&idle]), "the idle ones were used")?;
    drop(idle);
    counts_become(&stage, [0; 3], "all are closed")
}

/// A client whose machine is dead sends no FIN, and its connections are counted
/// until their time is over.
#[test]
fn connections_of_a_dead_client_are_counted_until_their_time_is_over() -> Result<()> {
    let _turn = whole_machine();
    for forward in ["full-nat", "dsr"] {
        let service = Service {
            check: UNCHECKED,
            ..Service::new("web", forward, Family::V4, [1, 1, 1])
        };
        let stage = Stage::new(service, "[timeouts]\nestablished = \"4s\"\n")?;
        let clients = Clients::on(&stage.net.client, 1)?;
        let lines = clients.run(open(stage.service.listen, EACH))??;
        counts_become(&stage, tally(&[&lines]), "they are open")?;
        let client = &stage.net.client;
        client.run("ip", &["link", "set", "eth0", "down"])?;
        counts_become(&stage, [0; 3], "the client was dead for a while")?;
    }
    Ok(())
}

/// A client's socket is a flow until it has been silent for long enough.
#[test]
fn datagrams_are_counted_until_their_time_is_over() -> Result<()> {
    let _turn = whole_machine();
    for forward in ["full-nat", "nat", "dsr", "tunnel"] {
        let net = Net::new(Arms::One)?;
        let service = Service::new("dns", forward, Family::V4, [3, 2, 1]).udp();
        let mut decaps = Vec::new();
        match forward {
            "nat" => net.lead_replies_through_balancer()?,
            "full-nat" => {}
            _ => net.give_address_to_backends(&service)?,
        }
        if forward == "tunnel" {
            for host in &net.backends {
                decaps.push(Decap::start(&net, host)?);
            }
        }
        let echoes = net.backends.iter().enumerate();
        let _echoes = echoes
            .map(|(number, host)| UdpEcho::named(host, service.server(&net, number)))
            .collect::<Result<Vec<_>>>()?;
        let timeouts = "[timeouts]\nudp = \"5s\"\nudp_unanswered = \"5s\"\n".to_owned();
        let balancer = Daemon::start(&net, &[timeouts, service.toml(&net)])?;
        let active = || active_flows(&balancer, &net);
        let sockets = net.client.enter(|| -> Result<Vec<_>> {
            (0..EACH)
                .map(|_| {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect(service.listen)?;
                    Ok(socket)
                })
                .collect()
        })?;
        let what = format!("{forward}: every socket is a flow");
        wait_until(&what, LAG, || {
            // Again and again, so that none falls silent meanwhile.
            for socket in &sockets {
                ask_udp(socket, "counted?")?;
            }
            Ok(active()? == [6, 4, 2])
        })
        .with_context(|| format!("in the end {:?}", active()))?;
        let what = format!("{forward}: the sockets were silent for long enough");
        wait_until(&what, LAG, || Ok(active()? == [0; 3]))
            .with_context(|| format!("in the end {:?}", active()))?;
    }
    Ok(())
}

/// A connection, and who answered on it first.
type Open = (Line, Echo);

/// Whether the balancer sees what the backends send.
fn saw_backends(forward: &str) -> bool {
    ["full-nat", "nat"].contains(&forward)
}

fn tally(all: &[&Vec<Open>]) -> [u64; 3] {
    let mut counts = [0; 3];
    for (_, echo) in all.iter().copied().flatten() {
        counts[usize::from(echo.backend)] += 1;
    }
    counts
}

fn counts_become(stage: &Stage, wanted: [u64; 3], when: &str) -> Result<()> {
    let forward = stage.service.forward;
    let mut seen = [[0; 3]; 2];
    wait_until(&format!("the counts are {wanted:?}"), LAG, || {
        seen = stage.active_flows()?;
        Ok(seen == [wanted; 2])
    })
    .with_context(|| format!("{forward}: they are {seen:?} after {when}"))?;
    let flows = stage.balancer.json(&["flows", "--limit", "1"])?;
    let total = flows["total"].as_u64().context("a total is a number")?;
    ensure!(
        total == wanted.iter().sum::<u64>(),
        "{forward}: lb flows says {total}, and the backends have {wanted:?}, after {when}"
    );
    Ok(())
}

/// The counts, backend by backend.
fn active_flows(balancer: &Daemon, net: &Net) -> Result<[u64; 3]> {
    let all = balancer.json(&["backend", "list"])?;
    let mut counts = [0; 3];
    for backend in all.as_array().into_iter().flatten() {
        let number = net
            .backends
            .iter()
            .position(|host| backend["name"] == host.name.as_str())
            .context("a backend of the test")?;
        counts[number] = backend["active_flows"]
            .as_u64()
            .context("active_flows is a number")?;
    }
    Ok(counts)
}

async fn open(listen: SocketAddr, count: usize) -> Result<Vec<Open>> {
    let mut lines = Vec::new();
    for _ in 0..count {
        let mut line = Line::open_within(PATIENCE, listen).await?;
        let echo = line.ask_within(PATIENCE, After::Stay).await?;
        lines.push((line, echo));
    }
    Ok(lines)
}

async fn ask_again(mut lines: Vec<Open>) -> Result<Vec<Open>> {
    for (line, first) in &mut lines {
        let echo = line.ask_within(PATIENCE, After::Stay).await?;
        ensure!(echo == *first, "{first:?} has become {echo:?}");
    }
    Ok(lines)
}

/// Has the servers end them, and waits until the clients know.
async fn end(mut lines: Vec<Open>, after: After) -> Result<Vec<Open>> {
    for (line, _) in &mut lines {
        line.ask_within(PATIENCE, after).await?;
        let closed = line.closed().await;
        ensure!(closed == (after == After::Close), "it ended in another way");
    }
    Ok(lines)
}

/// Sends FIN from the clients, and waits for those of the servers.
async fn shut_down(mut lines: Vec<Open>) -> Result<Vec<Open>> {
    for (line, _) in &mut lines {
        line.shut().await?;
        ensure!(line.closed().await, "the server broke it off");
    }
    Ok(lines)
}
