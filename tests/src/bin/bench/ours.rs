//! `lb run` in the middle of a chain, and connections that it knows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::frame::{Frame, tcp, udp};
use tests::netns::{Chain, Daemon, wait_until};

use crate::load::{End, Order, Sender};
use crate::recipe::{DATAGRAM, PAYLOAD, SERVER_PORT, does};

/// How long the daemon may take to count connections, a second being its pace.
const BOUND: Duration = Duration::from_secs(20);

/// How many connections are begun before they are proved: fewer than there is
/// room for unfinished ones.
const TOGETHER: u32 = 1 << 14;

/// Where services listen.
pub(crate) const fn service() -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Chain::VIP), SERVER_PORT)
}

/// Starts the balancer of a chain, by this way to forward, over both protocols.
pub(crate) fn start(
    chain: &Chain,
    interfaces: &[&str],
    forward: &str,
    servers: &[Ipv4Addr],
    max_flows: u32,
) -> Result<Daemon> {
    let pins = chain.pins("lb");
    let mut daemon = Daemon::prepare_in(chain.folder(), pins, "lb", &chain.balancer, &[]);
    daemon.max_flows = max_flows;
    let mut text = daemon.node(interfaces);
    for protocol in ["tcp", "udp"] {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[[service]]\nname = \"{protocol}\"\nlisten = \"{}\"\nprotocol = \"{protocol}\"\n\
             forward = \"{forward}\"\n[service.check]\ntype = \"none\"\n",
            service()
        );
        for (number, server) in servers.iter().enumerate() {
            let _ = write!(
                text,
                "[[service.backend]]\nname = \"b{number}\"\naddress = \"{server}:{SERVER_PORT}\"\n"
            );
        }
    }
    fs::write(&daemon.config, text)?;
    daemon.restart()?;
    Ok(daemon)
}

/// A TCP segment to this end from the client of no address and port.
pub(crate) fn segment(chain: &Chain, to: SocketAddr) -> Result<Frame> {
    Ok(tcp("0.0.0.0:0", &to.to_string()).seq(0).over(links(chain)?))
}

/// A datagram, without a checksum.
pub(crate) fn datagram(chain: &Chain, to: SocketAddr) -> Result<Frame> {
    Ok(udp("0.0.0.0:0", &to.to_string())
        .without_checksum()
        .payload(&[0; DATAGRAM])
        .over(links(chain)?))
}

/// The first segment of a connection, as long as all others.
pub(crate) fn first(segment: Frame) -> Frame {
    (0..PAYLOAD).fold(segment.syn(), |segment, _| segment.no_operation())
}

/// A segment of a connection that is open.
pub(crate) fn later(segment: Frame) -> Frame {
    segment.seq(1).ack(1).payload(&[0; PAYLOAD])
}

fn links(chain: &Chain) -> Result<[tests::frame::Link; 2]> {
    Ok([
        chain.card(&chain.client, "eth0")?,
        chain.card(&chain.balancer, "eth0")?,
    ])
}

/// Makes the balancer know these connections, at one arm: `end` is all clients
/// and all servers. Where answers do not pass by (`one_way`), there are none.
pub(crate) fn hold(
    chain: &Chain,
    daemon: &Daemon,
    sender: &mut Sender,
    end: &mut End,
    one_way: bool,
    flows: u32,
) -> Result<()> {
    let segment = segment(chain, service())?;
    end.now(if one_way { 0 } else { does::ACCEPT | does::ASK })?;
    for from in (0..flows).step_by(TOGETHER as usize) {
        let count = TOGETHER.min(flows - from);
        let turns = Order::Turns { from, of: flows };
        sender.prepare(&first(segment.clone()), turns)?;
        sender.send(count)?;
        if one_way {
            sender.prepare(&later(segment.clone()), turns)?;
            sender.send(count)?;
        }
    }
    end.now(0)?;
    let mut last = 0;
    let known = wait_until("the balancer counts the connections", BOUND, || {
        last = established(daemon)?;
        // Frames may be lost on any wire.
        Ok(last >= u64::from(flows - flows / 1000))
    });
    known.with_context(|| format!("it counts {last} of {flows}"))
}

/// How many connections the balancer counts.
pub(crate) fn established(daemon: &Daemon) -> Result<u64> {
    let status = daemon.ask("/v1/status")?;
    let count = status["flows"]["established"].as_u64();
    count.context("the daemon counts connections")
}

/// How many packets had each verdict so far, by its name.
pub(crate) fn verdicts(daemon: &Daemon) -> Result<BTreeMap<String, u64>> {
    let counts = daemon.ask("/v1/drops?all=true")?;
    let counts = counts.as_array().context("counts are a list")?;
    let one = |count: &serde_json::Value| {
        let name = count["reason"].as_str()?.to_owned();
        Some((name, count["packets"].as_u64()?))
    };
    Ok(counts.iter().filter_map(one).collect())
}

/// Fails unless so many packets had this verdict since `before`. One in a thousand
/// may be of a connection that the full table had no place for.
pub(crate) fn ensure_nearly_all(
    daemon: &Daemon,
    before: &BTreeMap<String, u64>,
    packets: u64,
    name: &str,
) -> Result<()> {
    let mut since = verdicts(daemon)?;
    for (name, count) in before {
        since.entry(name.clone()).and_modify(|now| *now -= count);
    }
    since.retain(|_, count| *count > 0);
    let meant = since.get(name).copied().unwrap_or(0);
    ensure!(
        (packets - packets / 1000..=packets).contains(&meant),
        "the {packets} packets did not all end as {name}, but as {since:?}"
    );
    Ok(())
}
