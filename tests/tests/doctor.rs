//! `lb doctor` on a host that is fit, and on one that is not.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use tests::netns::{Arms, Daemon, Family, Net, Service, lb_binary};

/// What the doctor says of a daemon's file, and whether the host is fit.
struct Said {
    findings: Vec<Value>,
    fit: bool,
}

impl Said {
    fn of(net: &Net, daemon: &Daemon) -> Result<Self> {
        let config = daemon.config.display().to_string();
        let mut doctor = net.balancer.command(lb_binary());
        let output = doctor.args(["doctor", "--json", "-c", &config]).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let findings = report["findings"].as_array().context("a list")?.clone();
        let fit = output.status.success();
        ensure!(fit == (report["failures"] == 0), "{report:#}");
        ensure!(fit || output.status.code() == Some(1), "{report:#}");
        Ok(Self { findings, fit })
    }

    /// That there is a finding like this one.
    #[track_caller]
    fn has(&self, check: &str, state: &str, words: &str) {
        let such = |finding: &&Value| {
            let found = finding["found"].as_str().unwrap_or_default();
            finding["check"] == check && finding["state"] == state && found.contains(words)
        };
        let all = &self.findings;
        assert!(
            all.iter().any(|f| such(&f)),
            "{check} {state} {words}: {all:#?}"
        );
    }
}

/// A network, and a daemon that could start in it.
fn prepared(rest: &str) -> Result<(Net, Daemon)> {
    let net = Net::new(Arms::One)?;
    let daemon = Daemon::prepare(&net, "lb", &net.balancer, &[]);
    let service = Service::new("web", "full-nat", Family::V4, [1, 1, 1]);
    let text = daemon.node(net.interfaces()) + rest + &service.toml(&net);
    fs::write(&daemon.config, text)?;
    Ok((net, daemon))
}

#[test]
fn a_host_is_fit_before_and_while_the_balancer_runs_until_somebody_breaks_it() -> Result<()> {
    let (net, mut daemon) = prepared("")?;
    let before = Said::of(&net, &daemon)?;
    ensure!(before.fit, "{:#?}", before.findings);
    before.has("kernel", "ok", "runs the program");
    before.has("configuration", "ok", " is valid");
    before.has("pins", "ok", "nothing is pinned");
    before.has(
        "interface",
        "ok",
        "eth0 should take the program in native mode (driver veth, MTU 1500)",
    );
    before.has("settings", "ok", "accept_local");
    ensure!(!daemon.pins.exists(), "it changes nothing");
    assert_eq!(net.balancer.setting("ipv4/conf/eth0/accept_local")?, "0");

    daemon.restart()?;
    let running = Said::of(&net, &daemon)?;
    ensure!(running.fit, "{:#?}", running.findings);
    running.has("interface", "ok", "eth0 has the program in native mode");
    running.has("pins", "ok", "holds tables of this version");
    running.has("settings", "ok", "forwarding is on");

    net.balancer.sysctl("ipv4/conf/eth0/forwarding", "0")?;
    let reset = Said::of(&net, &daemon)?;
    ensure!(reset.fit, "{:#?}", reset.findings);
    reset.has(
        "settings",
        "warn",
        "somebody has reset what lb had set: /proc/sys/net/ipv4/conf/eth0/forwarding is 0",
    );
    net.balancer.sysctl("ipv4/conf/eth0/forwarding", "1")?;

    // To one with other pins, this one's program is another's.
    let second = Daemon::prepare(&net, "second", &net.balancer, &[]);
    fs::write(&second.config, second.node(net.interfaces()))?;
    let taken = Said::of(&net, &second)?;
    ensure!(!taken.fit);
    taken.has("interface", "fail", "eth0 has another XDP program");
    fs::write(&second.config, second.node(&["eth7"]))?;
    Said::of(&net, &second)?.has("interface", "fail", "eth7 does not exist; this host has ");
    fs::write(&second.config, "nonsense")?;
    Said::of(&net, &second)?.has("configuration", "fail", "not valid TOML");

    net.balancer.run("ip", &["link", "set", "eth0", "down"])?;
    let down = Said::of(&net, &daemon)?;
    ensure!(!down.fit);
    down.has("interface", "fail", "eth0 is switched off");
    Ok(())
}

/// `lb` with these words, in this folder.
fn lb(folder: &Path, words: &[&str]) -> Result<()> {
    let output = Command::new(lb_binary())
        .args(words)
        .current_dir(folder)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {said}");
    Ok(())
}

#[test]
fn of_a_pair_the_certificates_and_the_other_node_are_looked_at() -> Result<()> {
    let (net, daemon) = prepared("")?;
    let own = net.balancer.address(Family::V4);
    let other = net.client.address(Family::V4);
    let pair = format!(
        "[ha]\ninterface = \"eth0\"\nvrid = 51\npriority = 150\ntrack = [\"lo\"]\n[ha.sync]\n\
         listen = \"{own}:9444\"\npeer = \"{other}:9444\"\n\
         cert = \"tls/a/node.crt\"\nkey = \"tls/a/node.key\"\nca = \"tls/a/ca.crt\"\n"
    );
    let alone = fs::read_to_string(&daemon.config)?;
    let (node, services) = alone.split_once("[[service]]").context("a service")?;
    fs::write(&daemon.config, format!("{node}{pair}[[service]]{services}"))?;

    let nothing = Said::of(&net, &daemon)?;
    nothing.has("certificate", "fail", "there is no such file");
    let (a, b) = (format!("a={own}"), format!("b={other}"));
    lb(net.folder(), &["tls", "init", &a, &b])?;
    let silent = Said::of(&net, &daemon)?;
    ensure!(!silent.fit);
    silent.has("certificate", "ok", "(CN=a) is valid for 82");
    silent.has("identity", "ok", "with its key, for ");
    silent.has("clock", "ok", "");
    silent.has("interface", "ok", "lo is up");
    silent.has("peer", "fail", "nothing listens at ");

    let at = format!("{other}:9444");
    let _peer = net.client.enter(|| TcpListener::bind(&at))?;
    let both = Said::of(&net, &daemon)?;
    ensure!(both.fit, "{:#?}", both.findings);
    both.has("peer", "ok", " accepts connections");

    lb(
        net.folder(),
        &["tls", "init", "--renew", "--days", "20", &a],
    )?;
    let soon = Said::of(&net, &daemon)?;
    ensure!(soon.fit, "{:#?}", soon.findings);
    soon.has("certificate", "warn", "(CN=a) expires in ");
    // A certificate that does not name the node's address.
    lb(net.folder(), &["tls", "init", "--renew", "a=192.0.2.1"])?;
    let wrong = Said::of(&net, &daemon)?;
    ensure!(!wrong.fit);
    wrong.has("identity", "fail", "the other node would refuse it");
    Ok(())
}
