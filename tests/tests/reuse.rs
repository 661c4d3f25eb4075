//! Clients that use a port again as soon as they have closed a connection from it:
//! each SYN is a new connection, scheduled anew, and none is lost.
//!
//! Whoever closes first remembers the two ends for a minute (TIME-WAIT) and
//! refuses a SYN between them that could be an old one: by its sequence number,
//! or by its timestamp where there is one (RFC 6191). What the client itself
//! remembers would keep it from sending the SYN at all, so it is told to
//! forget.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::netns::{After, Clients, Echo, Family, Line, Service, Stage, UNCHECKED};

/// How often the port is used.
const TIMES: usize = 24;

/// How long a connection may take; TCP sends its SYN again after 1 s.
const PATIENCE: Duration = Duration::from_secs(10);

/// The port.
const PORT: u16 = 42_000;

/// They take turns: a SYN that is late is one that was lost.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a connection ends before its port is used again.
#[derive(Clone, Copy, Debug)]
enum End {
    ByClient,
    ByServer,
    ResetByClient,
    ResetByServer,
}

const ENDS: [End; 4] = [
    End::ByClient,
    End::ByServer,
    End::ResetByClient,
    End::ResetByServer,
];

macro_rules! reuses {
    ($($name:ident: $forward:literal $family:ident)+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                every_syn_is_a_new_connection($forward, Family::$family)
            }
        )+
    };
}

reuses! {
    a_port_used_again_through_full_nat_over_ipv4: "full-nat" V4
    a_port_used_again_through_full_nat_over_ipv6: "full-nat" V6
    a_port_used_again_through_nat_over_ipv4: "nat" V4
    a_port_used_again_through_nat_over_ipv6: "nat" V6
    a_port_used_again_through_dsr_over_ipv4: "dsr" V4
    a_port_used_again_through_dsr_over_ipv6: "dsr" V6
    a_port_used_again_through_a_tunnel_over_ipv4: "tunnel" V4
    a_port_used_again_through_a_tunnel_over_ipv6: "tunnel" V6
}

fn every_syn_is_a_new_connection(forward: &'static str, family: Family) -> Result<()> {
    let _turn = whole_machine();
    let service = Service {
        check: UNCHECKED,
        ..Service::new("web", forward, family, [1, 1, 1])
    };
    let stage = Stage::new(service, "")?;
    let client = &stage.net.client;
    client.sysctl("ipv4/tcp_max_tw_buckets", "0")?;
    let clients = Clients::on(client, 1)?;
    let listen = stage.service.listen;
    for timestamps in ["1", "0"] {
        client.sysctl("ipv4/tcp_timestamps", timestamps)?;
        for (number, end) in (0_u16..).zip(ENDS) {
            // A reset in one way only is not seen by the balancer.
            if matches!(end, End::ResetByServer) && ["dsr", "tunnel"].contains(&forward) {
                continue;
            }
            let from = SocketAddr::new(client.address(family), PORT + number);
            let before = new_flows(&stage)?;
            let echoes = clients
                .run(again_and_again(from, listen, end))?
                .with_context(|| format!("{forward}, timestamps {timestamps}, {end:?}"))?;
            let new = new_flows(&stage)? - before;
            ensure!(
                new == TIMES as u64,
                "{forward}, timestamps {timestamps}, {end:?}: {TIMES} SYNs began {new} connections"
            );
            let mut tally = [0; 3];
            for echo in &echoes {
                tally[usize::from(echo.backend)] += 1;
            }
            ensure!(
                tally == [TIMES / 3; 3],
                "{forward}, timestamps {timestamps}, {end:?}: not scheduled anew, but {tally:?}"
            );
        }
    }
    Ok(())
}

/// Connections one after the other, all from the same end.
async fn again_and_again(from: SocketAddr, listen: SocketAddr, end: End) -> Result<Vec<Echo>> {
    let mut echoes = Vec::new();
    for turn in 0..TIMES {
        let began = Instant::now();
        let opened = tokio::time::timeout(PATIENCE, Line::open(Some(from), listen)).await;
        let mut line = opened
            .context("lost")
            .and_then(|opened| Ok(opened?))
            .with_context(|| format!("connection {turn}"))?;
        let took = began.elapsed();
        ensure!(
            took < Duration::from_millis(900),
            "connection {turn} took {took:?}: its SYN was lost, and sent again"
        );
        let after = match end {
            End::ByClient | End::ResetByClient => After::Stay,
            End::ByServer => After::Close,
            End::ResetByServer => After::Reset,
        };
        echoes.push(line.ask_within(PATIENCE, after).await?);
        match end {
            End::ByClient => {
                line.shut().await?;
                ensure!(line.closed().await, "broken off");
            }
            End::ByServer => ensure!(line.closed().await, "broken off"),
            End::ResetByClient => line.reset()?,
            End::ResetByServer => ensure!(!line.closed().await, "not broken off"),
        }
    }
    Ok(echoes)
}

fn new_flows(stage: &Stage) -> Result<u64> {
    let shown = stage.balancer.json(&["service", "show", "web"])?;
    shown["traffic"]["new_flows"]
        .as_u64()
        .context("new flows are a number")
}
