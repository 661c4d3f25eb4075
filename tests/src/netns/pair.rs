//! Two balancers as one, with servers behind them and everything ready for faults.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Daemon, EchoServer, Family, Host, Net, lb_binary, most_files, wait_until};

/// How long anything may take that takes no time on an idle machine.
const BOUND: Duration = Duration::from_secs(60);

/// The backends of the service: `b1`, `b2`. `b3` is for those who watch.
const SERVERS: usize = 2;

/// Where the nodes tell each other of connections.
const SYNC_PORT: u16 = 9444;

/// What a pair is like.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The family of the service, and of the advertisements.
    pub family: Family,
    /// `full-nat` or `dsr`.
    pub forward: &'static str,
    /// How often the active node says so: the value of `interval`.
    pub interval: &'static str,
    /// More lines of `[ha]`.
    pub more: &'static str,
    /// Whether the nodes tell each other of connections (`[ha.sync]`).
    pub sync: bool,
}

/// Two balancers, of which the first comes before the second.
pub struct Pair {
    // In the order in which they are to go.
    /// The daemons: on `lb` and on `lb2`.
    pub nodes: [Daemon; 2],
    /// What answers: see [`EchoServer`].
    pub servers: Vec<EchoServer>,
    /// The service.
    pub service: SocketAddr,
    /// The network.
    pub net: Net,
}

impl Pair {
    /// Builds it all and waits until the first node is active.
    pub fn start(setting: Setting) -> Result<Self> {
        most_files()?;
        let net = Net::paired()?;
        for host in hosts(&net)? {
            // Else an interface that goes down for a moment has no IPv6 address after it.
            host.sysctl("ipv6/conf/all/keep_addr_on_down", "1")?;
        }
        let service = SocketAddr::new(setting.family.vip(), 80);
        let servers = servers(&net, setting, service)?;
        let node = |number: usize| -> Result<Daemon> {
            let host = hosts(&net)?[number].clone();
            let mut daemon = Daemon::prepare(&net, &host.name, &host, &[]);
            let mut text = daemon.node(&["eth0"]) + &section(setting, number);
            if setting.sync {
                text += &sync(&net, setting.family, number)?;
            }
            text += &served(&net, setting, service);
            fs::write(&daemon.config, text)?;
            daemon.restart()?;
            Ok(daemon)
        };
        if setting.sync {
            make_certificates(&net)?;
        }
        let pair = Self {
            nodes: [node(0)?, node(1)?],
            servers,
            service,
            net,
        };
        pair.settle(0)?;
        Ok(pair)
    }

    /// Where the nodes are.
    pub fn hosts(&self) -> Result<[&Host; 2]> {
        hosts(&self.net)
    }

    /// What a node says of the pair.
    pub fn status(&self, node: usize) -> Result<Value> {
        self.nodes[node].ask("/v1/ha")
    }

    /// The word for a node's state; of one that does not answer, none.
    pub fn state(&self, node: usize) -> String {
        let status = self.status(node).unwrap_or_default();
        status["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until this node is active, the other one listens, and each has the
    /// addresses that go with it.
    pub fn settle(&self, node: usize) -> Result<()> {
        let what = format!("node {node} is active and the other one listens");
        wait_until(&what, BOUND, || {
            Ok(self.state(node) == "active"
                && self.state(1 - node) == "backup"
                && self.has_address(node)?
                && !self.has_address(1 - node)?)
        })
    }

    /// Waits until this node is active and has the address, whatever the other one does.
    pub fn takes_over(&self, node: usize) -> Result<()> {
        wait_until(&format!("node {node} takes over"), BOUND, || {
            Ok(self.state(node) == "active" && self.has_address(node)?)
        })
    }

    /// Waits until the node that listens knows all connections of the active one, and
    /// each hears the other.
    pub fn caught_up(&self, active: usize) -> Result<()> {
        wait_until("the other node knows all connections", BOUND, || {
            let (tells, hears) = (self.status(active)?, self.status(1 - active)?);
            Ok(tells["sync"]["heard"] == true
                && hears["sync"]["heard"] == true
                && tells["sync"]["tells"] == true
                && tells["sync"]["behind"] == 0
                && hears["sync"]["ready"] == true)
        })
        .with_context(|| {
            let said = [0, 1].map(|node| self.status(node).unwrap_or_default().to_string());
            said.join("\n")
        })
    }

    /// Whether the service's address is on a node's interface.
    pub fn has_address(&self, node: usize) -> Result<bool> {
        let text = self.hosts()?[node].run("ip", &["-j", "address", "show", "dev", "eth0"])?;
        let listed: Value = serde_json::from_str(&text)?;
        let infos = listed[0]["addr_info"]
            .as_array()
            .context("a list of addresses")?;
        let vip = self.service.ip().to_string();
        Ok(infos.iter().any(|info| info["local"] == vip.as_str()))
    }

    /// Whether the client sends what is for the service to this node.
    pub fn client_reaches(&self, node: usize) -> Result<bool> {
        let vip = self.service.ip().to_string();
        let show = ["-j", "neighbour", "show", "dev", "eth0", "to", &vip];
        let listed: Value = serde_json::from_str(&self.net.client.run("ip", &show)?)?;
        Ok(listed[0]["lladdr"] == self.hosts()?[node].card("eth0")?.as_str())
    }

    /// Gets a hand on a node's interface that acts at once.
    pub fn hand(&self, node: usize) -> Result<Hand> {
        Hand::on(self.hosts()?[node])
    }

    /// Takes advertisements away on their way through the switch.
    pub fn block_advertisements(&self) -> Result<()> {
        self.net.switch.run(
            "nft",
            &["add table bridge gate; \
                 add chain bridge gate forward { type filter hook forward priority 0; }; \
                 add rule bridge gate forward ip protocol 112 drop; \
                 add rule bridge gate forward ip6 nexthdr 112 drop"],
        )?;
        Ok(())
    }

    /// Lets them through again.
    pub fn allow_advertisements(&self) -> Result<()> {
        let nft = ["delete", "table", "bridge", "gate"];
        self.net.switch.run("nft", &nft).map(drop)
    }
}

fn hosts(net: &Net) -> Result<[&Host; 2]> {
    let second = net.second.as_ref().context("the network is a pair's")?;
    Ok([&net.balancer, second])
}

fn servers(net: &Net, setting: Setting, service: SocketAddr) -> Result<Vec<EchoServer>> {
    let direct = setting.forward == "dsr";
    if direct {
        let mut address = super::Service::new("web", "dsr", setting.family, [1, 1, 0]);
        address.listen = service;
        net.give_address_to_backends(&address)?;
    }
    (0_u8..)
        .zip(&net.backends[..SERVERS])
        .map(|(number, host)| {
            let own = SocketAddr::new(host.address(setting.family), 80);
            EchoServer::start(host, number, if direct { service } else { own })
        })
        .collect()
}

/// `[ha]` of a node.
fn section(setting: Setting, node: usize) -> String {
    let Setting { interval, more, .. } = setting;
    let priority = [150, 50][node];
    format!(
        "[ha]\ninterface = \"eth0\"\nvrid = 51\npriority = {priority}\ninterval = \"{interval}\"\n\
         {more}\n"
    )
}

/// Where certificates are.
const CERTIFICATES: &str = "tls";

/// Those of both nodes, as an operator without a CA makes them.
fn make_certificates(net: &Net) -> Result<()> {
    let folder = net.folder().join(CERTIFICATES);
    let nodes = hosts(net)?.map(|host| format!("{}={},{}", host.name, host.v4, host.v6));
    let output = Command::new(lb_binary())
        .args(["tls", "init", "--directory"])
        .arg(&folder)
        .args(nodes)
        .output()
        .context("cannot run lb")?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "lb tls init failed: {complaint}");
    Ok(())
}

/// `[ha.sync]` of a node.
fn sync(net: &Net, family: Family, node: usize) -> Result<String> {
    let hosts = hosts(net)?;
    let at = |host: &Host| SocketAddr::new(host.address(family), SYNC_PORT);
    let (own, other) = (hosts[node], hosts[1 - node]);
    let folder = Path::new(CERTIFICATES).join(&own.name);
    let file = |name: &str| folder.join(name).display().to_string();
    Ok(format!(
        "[ha.sync]\nlisten = \"{}\"\npeer = \"{}\"\ncert = {:?}\nkey = {:?}\nca = {:?}\n",
        at(own),
        at(other),
        file("node.crt"),
        file("node.key"),
        file("ca.crt"),
    ))
}

/// `[[service]]`.
fn served(net: &Net, setting: Setting, service: SocketAddr) -> String {
    let backends: Vec<String> = net.backends[..SERVERS]
        .iter()
        .map(|host| {
            let address = SocketAddr::new(host.address(setting.family), 80);
            format!("{{ name = {:?}, address = \"{address}\" }}", host.name)
        })
        .collect();
    format!(
        "[[service]]\nname = \"web\"\nlisten = \"{service}\"\nforward = {:?}\n\
         check = {{ type = \"none\" }}\nbackend = [{}]\n",
        setting.forward,
        backends.join(", ")
    )
}

/// `ip` on a host, started and waiting for commands: what it is told happens within a
/// fraction of a millisecond, where a process would have to be started first.
pub struct Hand {
    ip: Child,
}

impl Hand {
    fn on(host: &Host) -> Result<Self> {
        let ip = host
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run `ip` through nsenter")?;
        Ok(Self { ip })
    }

    /// Takes `eth0` down, or up.
    pub fn set_link(&mut self, up: bool) -> Result<()> {
        let word = if up { "up" } else { "down" };
        let input = self.ip.stdin.as_mut().context("it has an input")?;
        writeln!(input, "link set eth0 {word}").context("cannot tell `ip`")
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        drop(self.ip.stdin.take());
        let _ = self.ip.wait();
    }
}
