//! Metrics of a balancer that runs, beside what its own commands tell.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use tests::netns::{
    After, CALM, Clients, Daemon, Family, Host, Line, PATIENCE, Service, Stage, wait_until,
};

/// How long something that takes milliseconds may take on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

const LISTEN: &str = "127.0.0.1:9100";

/// Every sample by its name and labels.
fn scrape(host: &Host) -> Result<BTreeMap<String, f64>> {
    let address: SocketAddr = LISTEN.parse()?;
    let answer = host.enter(|| -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, BOUND)?;
        stream.set_read_timeout(Some(BOUND))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lb\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (_, text) = answer.split_once("\r\n\r\n").context("a body")?;
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').context("a sample")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// Connections that have been answered once, and stay.
async fn open(listen: SocketAddr, count: usize) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for _ in 0..count {
        let mut line = Line::open_within(PATIENCE, listen).await?;
        line.ask_within(PATIENCE, After::Stay).await?;
        lines.push(line);
    }
    Ok(lines)
}

#[test]
fn metrics_tell_what_the_commands_tell() -> Result<()> {
    let service = Service {
        check: CALM,
        ..Service::new("web", "full-nat", Family::V4, [3, 2, 1])
    };
    let stage = Stage::new(service, "[api]\n")?;
    let host = &stage.net.balancer;
    let clients = Clients::on(&stage.net.client, 1)?;
    let before = scrape(host)?;
    assert_eq!(before["lb_flows"], 0.0);
    assert_eq!(before["lb_flow_capacity"], 65_536.0);
    assert_eq!(before["lb_ha_state{state=\"standalone\"}"], 1.0);
    assert_eq!(before["lb_ha_state{state=\"active\"}"], 0.0);
    let version = format!("lb_build_info{{version={:?}}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(before[&version], 1.0);

    let lines = clients.run(open(stage.service.listen, 12))??;
    wait_until("the connections are counted", BOUND, || {
        Ok(scrape(host)?["lb_flows"] == 12.0)
    })?;
    // Each has sent three packets at least: SYN, ACK and what is echoed.
    let now = scrape(host)?;
    let counted = |name: &str| now[name] - before[name];
    let forward = "lb_packets_total{verdict=\"tx\",reason=\"forward_tx\"}";
    let reply = "lb_packets_total{verdict=\"tx\",reason=\"reply_tx\"}";
    ensure!(
        counted(forward) >= 30.0 && counted(reply) >= 12.0,
        "{now:#?}"
    );
    drop(lines);

    // What `lb drops` calls so, and no less of it by now.
    let shown = stage.balancer.json(&["drops", "--all"])?;
    for entry in shown.as_array().into_iter().flatten() {
        let reason = entry["reason"].as_str().context("a word")?;
        let name = now
            .keys()
            .find(|name| name.ends_with(&format!("reason=\"{reason}\"}}")));
        let name = name.with_context(|| format!("{reason} is among the metrics"))?;
        let told = entry["packets"].as_f64().context("a count")?;
        ensure!(told >= now[name], "{reason}: {told} and {}", now[name]);
    }

    // Another address takes a restart, and a reload says so.
    let file = fs::read_to_string(&stage.balancer.config)?;
    fs::write(
        &stage.balancer.config,
        file.replace("[api]\n", "[api]\nmetrics_listen = \"127.0.0.1:9101\"\n"),
    )?;
    let said = stage.balancer.lb(&["reload"])?;
    ensure!(
        said.contains("[api] differs: it takes effect after a restart"),
        "{said}"
    );
    scrape(host)?;
    Ok(())
}

#[test]
fn a_daemon_whose_address_for_metrics_is_taken_does_not_start() -> Result<()> {
    let stage = Stage::new(Service::new("web", "dsr", Family::V4, [1, 1, 1]), "[api]\n")?;
    let second = Daemon::prepare(&stage.net, "second", &stage.net.client, &[]);
    let text = second.node(&["eth0"]) + "[api]\n";
    fs::write(&second.config, text)?;
    let _taken = stage.net.client.enter(|| TcpListener::bind(LISTEN))?;
    let output = second.refused(&[&second.lb.display().to_string()])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        said.contains("cannot listen on 127.0.0.1:9100 for [api] metrics_listen"),
        "{said}"
    );
    ensure!(!second.control.exists(), "no socket is left behind");
    Ok(())
}
