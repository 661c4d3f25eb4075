//! What stands in the middle: Fulcrum, and what users would pick in its place.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tests::netns::{Chain, Daemon, Host, wait_until};

use crate::load::End;
use crate::ours;
use crate::recipe::SERVER_PORT;

/// How many servers share the load: enough for `full-nat` to have ports for a
/// hundred thousand connections.
pub(super) const SERVERS: u8 = 8;

/// How long a start or an end may take on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// A way to get from clients to servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    /// XDP programs that send every frame out by the other interface: the least
    /// that can be done.
    Across,
    /// The kernel forwards to one server, and balances nothing.
    Forwarding,
    /// `nat`.
    Nat,
    /// `full-nat`.
    FullNat,
    /// The kernel's own address translation, the source's too if it masquerades.
    Nftables {
        /// Whether it does.
        masquerade: bool,
    },
    /// A proxy.
    HaProxy,
}

impl Contender {
    /// All of them.
    pub(super) const ALL: [Self; 7] = [
        Self::Across,
        Self::Forwarding,
        Self::Nat,
        Self::FullNat,
        Self::Nftables { masquerade: false },
        Self::Nftables { masquerade: true },
        Self::HaProxy,
    ];

    /// Its name in tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Across => "bare XDP redirect",
            Self::Forwarding => "bare forwarding by the kernel, to one server",
            Self::Nat => "Fulcrum, `nat`",
            Self::FullNat => "Fulcrum, `full-nat`",
            Self::Nftables { masquerade: false } => "nftables, DNAT",
            Self::Nftables { masquerade: true } => "nftables, DNAT and masquerade",
            Self::HaProxy => "HAProxy, TCP mode",
        }
    }

    /// Whether it is one of ours.
    pub(super) const fn is_ours(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// Whether it takes packets one by one.
    pub(super) const fn takes_packets(self) -> bool {
        !matches!(self, Self::HaProxy)
    }

    /// Whether it serves hosts with stacks of their own.
    pub(super) const fn takes_sockets(self) -> bool {
        !matches!(self, Self::Across)
    }
}

/// A contender in the middle of a chain of its own.
pub(super) struct Stand {
    /// Which.
    pub(super) contender: Contender,
    works: Works,
    /// Dropped last.
    pub(super) chain: Chain,
}

/// What runs.
enum Works {
    Kernel,
    Programs { _both: Vec<End> },
    Ours { _daemon: Box<Daemon> },
    Proxy(Proxy),
}

impl Stand {
    /// Puts one up.
    pub(super) fn new(contender: Contender) -> Result<Self> {
        let chain = Chain::new(SERVERS)?;
        let opens: &[&Host] = match contender {
            Contender::HaProxy => &[&chain.client, &chain.balancer],
            _ => &[&chain.client],
        };
        for host in opens {
            // Whoever closes first has to let the port rest; a second is enough
            // for another connection to the same end.
            host.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
            host.sysctl("ipv4/tcp_tw_reuse", "1")?;
        }
        let balancer = &chain.balancer;
        let works = match contender {
            Contender::Across => Works::Programs {
                _both: vec![
                    End::across(balancer, "eth0", "eth1")?,
                    End::across(balancer, "eth1", "eth0")?,
                ],
            },
            Contender::Forwarding => {
                balancer.sysctl("ipv4/ip_forward", "1")?;
                Works::Kernel
            }
            Contender::Nat => ours(&chain, "nat")?,
            Contender::FullNat => ours(&chain, "full-nat")?,
            Contender::Nftables { masquerade } => {
                balancer.sysctl("ipv4/ip_forward", "1")?;
                translate(&chain, masquerade)?;
                Works::Kernel
            }
            Contender::HaProxy => Works::Proxy(Proxy::start(&chain)?),
        };
        Ok(Self {
            contender,
            works,
            chain,
        })
    }

    /// Where clients are to send to.
    pub(super) fn target(&self) -> SocketAddr {
        match self.contender {
            Contender::Across | Contender::Forwarding => {
                SocketAddr::new(IpAddr::V4(Chain::server(0)), SERVER_PORT)
            }
            _ => ours::service(),
        }
    }

    /// CPU time of a process of its own, if what it does is one's.
    pub(super) fn process_time(&self) -> Result<Option<Duration>> {
        match &self.works {
            Works::Proxy(proxy) => Ok(Some(super::cpu::of_process(proxy.child.id())?)),
            Works::Kernel | Works::Programs { .. } | Works::Ours { .. } => Ok(None),
        }
    }
}

fn servers() -> Vec<Ipv4Addr> {
    (0..SERVERS).map(Chain::server).collect()
}

fn ours(chain: &Chain, forward: &str) -> Result<Works> {
    let daemon = ours::start(chain, &["eth0", "eth1"], forward, &servers(), 1_000_000)?;
    Ok(Works::Ours {
        _daemon: Box::new(daemon),
    })
}

/// The rules that nftables' own documentation gives for round robin.
fn translate(chain: &Chain, masquerade: bool) -> Result<()> {
    let servers: Vec<String> = (0..)
        .zip(servers())
        .map(|(place, server): (u8, _)| format!("{place} : {server}"))
        .collect();
    let vip = Chain::VIP;
    let spread = format!(
        "dnat to numgen inc mod {} map {{ {} }}",
        servers.len(),
        servers.join(", ")
    );
    let back = if masquerade {
        "chain back { type nat hook postrouting priority srcnat; oifname \"eth1\" masquerade; }"
    } else {
        ""
    };
    let rules = format!(
        "table ip lb {{\n\
         chain there {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {vip} tcp dport {SERVER_PORT} {spread};\n\
         ip daddr {vip} udp dport {SERVER_PORT} {spread}; }}\n\
         {back}\n}}\n"
    );
    let file = chain.folder().join("rules.nft");
    fs::write(&file, rules)?;
    chain
        .balancer
        .run("nft", &["-f", &file.display().to_string()])?;
    // Connections that have ended stand in its table for two minutes; ten times as
    // many as its table holds would.
    for state in ["time_wait", "close", "close_wait", "last_ack", "fin_wait"] {
        let name = format!("netfilter/nf_conntrack_tcp_timeout_{state}");
        chain.balancer.sysctl(&name, "1")?;
    }
    Ok(())
}

/// HAProxy. Dropped, it ends.
struct Proxy {
    child: Child,
}

impl Proxy {
    fn start(chain: &Chain) -> Result<Self> {
        let host: &Host = &chain.balancer;
        let vip = Chain::VIP;
        host.run("ip", &["addr", "add", &format!("{vip}/32"), "dev", "lo"])?;
        let mut text = format!(
            "global\n  nbthread 1\n  cpu-map 1/1 {}\n  maxconn 4000\n\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  \
             option splice-auto\n\
             listen web\n  bind {vip}:{SERVER_PORT} backlog 65535\n  balance roundrobin\n",
            super::cpu::count() - 1
        );
        for (number, server) in servers().iter().enumerate() {
            text += &format!("  server b{number} {server}:{SERVER_PORT}\n");
        }
        let file = chain.folder().join("haproxy.cfg");
        fs::write(&file, text)?;
        let log = fs::File::create(chain.folder().join("haproxy.log"))?;
        host.sysctl("core/somaxconn", "65535")?;
        let mut child = host
            .command("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run nsenter; it is in Debian's package util-linux")?;
        let listens = wait_until("HAProxy listens", BOUND, || {
            ensure!(child.try_wait()?.is_none(), "it ended");
            let listing = host.run("ss", &["-Htln"])?;
            Ok(listing.contains(&format!("{vip}:{SERVER_PORT}")))
        });
        let proxy = Self { child };
        listens.with_context(|| {
            fs::read_to_string(chain.folder().join("haproxy.log")).unwrap_or_default()
        })?;
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
