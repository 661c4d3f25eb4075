//! Cables of the balancer that are pulled, and plugged in again; more of them;
//! and longer frames on all of them.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Arms, Daemon, Host, Net, batch, beyond_v4, beyond_v6, run, socket, wait_until};

/// A cable of the balancer that was pulled.
#[derive(Debug)]
pub struct Pulled {
    interface: &'static str,
    /// The link address of the interface, which is the card's.
    card: String,
}

impl Net {
    /// A network whose links carry packets of this many bytes.
    pub fn with_mtu(arms: Arms, mtu: u32) -> Result<Self> {
        let mut net = Self::new(arms)?;
        // What passes everything does so for frames of one page only.
        net.passers.clear();
        fs::remove_dir_all(net.pins("sw")).context("cannot remove the switch's pins")?;
        for host in net.hosts().filter(|host| host.name != "sw") {
            let both = host.name == "lb" && net.arms == Arms::Two;
            for interface in ["eth0", "eth1"].iter().take(1 + usize::from(both)) {
                let ends = [
                    (&net.switch, socket(host, interface)),
                    (host, (*interface).into()),
                ];
                for (at, end) in ends {
                    // The kernel lets go of the program a moment later.
                    wait_until(
                        "a link takes longer packets",
                        Duration::from_secs(10),
                        || Ok(at.set(&end, &["mtu", &mtu.to_string()]).is_ok()),
                    )?;
                }
            }
        }
        net.passers = Daemon::start_passers(&net)?;
        Ok(net)
    }

    /// Takes an interface of the balancer away, as if its card were pulled.
    pub fn pull(&self, interface: &'static str) -> Result<Pulled> {
        let card = self.balancer.card(interface)?;
        self.balancer.run("ip", &["link", "del", interface])?;
        Ok(Pulled { interface, card })
    }

    /// Puts it in again: the same card by the same name, with its addresses, but
    /// the kernel gives it another index.
    pub fn plug(&self, pulled: Pulled) -> Result<()> {
        let Pulled { interface, card } = pulled;
        let bridge = match (self.arms, interface) {
            (Arms::Two, "eth1") => "br1",
            _ => "br0",
        };
        self.lay_cable(interface, bridge, Some(&card))?;
        let (v4, v6) = match interface {
            "eth0" => (self.balancer.v4, self.balancer.v6),
            _ => (beyond_v4(&self.balancer), beyond_v6(&self.balancer)),
        };
        let v6 = format!("{v6}/64");
        self.balancer.run(
            "ip",
            &["addr", "add", &format!("{v4}/24"), "dev", interface],
        )?;
        self.balancer
            .run("ip", &["addr", "add", &v6, "dev", interface, "nodad"])?;
        Ok(())
    }

    /// Gives the balancer `eth2`, with this address, and a segment of its own on
    /// which `b3` is from now on.
    pub fn third_arm(&self, address: &str) -> Result<()> {
        self.switch
            .run("ip", &["link", "add", "br2", "type", "bridge"])?;
        self.switch.set("br2", &["up"])?;
        self.lay_cable("eth2", "br2", None)?;
        self.balancer
            .run("ip", &["addr", "add", address, "dev", "eth2"])?;
        // Nothing there runs a program that would make it take redirected
        // frames.
        let plug = socket(&self.balancer, "eth2");
        self.switch.run("ethtool", &["-K", &plug, "gro", "on"])?;
        let [_, _, third] = &self.backends;
        self.switch
            .set(&socket(third, "eth0"), &["master", "br2"])?;
        let there = third.v4.to_string();
        self.balancer
            .run("ip", &["route", "add", &there, "dev", "eth2"])?;
        Ok(())
    }

    /// Lays a cable from the balancer to a bridge.
    fn lay_cable(&self, interface: &str, bridge: &str, card: Option<&str>) -> Result<()> {
        let (switch, namespace) = (&self.switch.namespace, &self.balancer.namespace);
        let plug = socket(&self.balancer, interface);
        batch(&format!(
            "link add {plug} netns {switch} type veth peer name {interface} netns {namespace}\n"
        ))?;
        if let Some(card) = card {
            self.balancer.set(interface, &["address", card])?;
        }
        self.switch.set(&plug, &["master", bridge, "up"])?;
        self.balancer.set(interface, &["up"])?;
        let off = ["-K", interface, "tx", "off", "tso", "off", "gso", "off"];
        self.balancer.run("ethtool", &off)?;
        self.balancer
            .sysctl(&format!("ipv4/conf/{interface}/send_redirects"), "0")
    }
}

impl Host {
    /// Changes an interface, by the words of `ip link set`.
    pub fn set(&self, interface: &str, words: &[&str]) -> Result<()> {
        self.run("ip", &[&["link", "set", interface], words].concat())
            .map(drop)
    }

    /// Moves this host's addresses from one interface to another.
    pub fn move_addresses(&self, from: &str, to: &str) -> Result<()> {
        let (v4, v6) = (format!("{}/24", self.v4), format!("{}/64", self.v6));
        self.run("ip", &["addr", "flush", "dev", from])?;
        self.run("ip", &["addr", "add", &v4, "dev", to])?;
        self.run("ip", &["addr", "add", &v6, "dev", to, "nodad"])
            .map(drop)
    }

    /// The link address of an interface.
    pub(super) fn card(&self, interface: &str) -> Result<String> {
        let text = run(
            "ip",
            &["-n", &self.namespace, "-json", "link", "show", interface],
        )?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let address = links[0]["address"].as_str();
        Ok(address.context("it has no link address")?.to_owned())
    }
}
