//! Three hosts in a row, joined by cables and nothing else: for benchmarks, in
//! which a switch would cost more than the balancer.
//!
//! ```text
//!   client ── eth0  balancer  eth1 ── backend
//!       10.9.0.0/24        10.9.1.0/24
//! ```
//!
//! All servers are one host, which has as many addresses as wanted. Clients that
//! nobody is, for packets that no stack has sent ([`Chain::FORGED`]), are behind
//! the client. All link addresses are known from the start, and IPv4 is all there
//! is.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::{Host, NUMBER, PINS, batch, run, take_away};
use crate::frame::Link;

/// How the ends of cables treat packets, as `ethtool -K` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Every packet is on the cable as it would be on a wire: checksums are
    /// computed, and none is larger than the MTU.
    None,
    /// As the kernel sets a veth up: packets of 64 KB without checksums.
    AsMade,
}

/// See the module. Dropped, it ends every process in it and takes all of it away.
#[derive(Debug)]
pub struct Chain {
    id: String,
    /// Where the clients are.
    pub client: Host,
    /// In the middle.
    pub balancer: Host,
    /// Where the servers are.
    pub backend: Host,
    folder: TempDir,
}

impl Chain {
    /// The first of 65,536 addresses behind the client that nobody has (RFC 2544).
    pub const FORGED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

    /// The address that services listen on, and that nobody has.
    pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 100);

    /// Builds it; needs root.
    pub fn new(servers: u8) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("lbt-{}-{number}", process::id());
        let host = |name: &str, v4: Ipv4Addr| Host {
            name: name.into(),
            namespace: format!("{id}-{name}"),
            v4,
            v6: Ipv6Addr::UNSPECIFIED,
        };
        let chain = Self {
            client: host("client", [10, 9, 0, 1].into()),
            balancer: host("lb", [10, 9, 0, 2].into()),
            backend: host("backend", Self::server(0)),
            folder: tempfile::Builder::new()
                .prefix(&format!("{id}-"))
                .tempdir()
                .context("cannot make a folder for the chain's files")?,
            id,
        };
        chain.build(servers)?;
        Ok(chain)
    }

    /// The address of a server, counted from 0.
    pub const fn server(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 9, 1, 11 + number)
    }

    /// A folder for files; gone with the chain.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A folder for pins; gone with the chain.
    pub fn pins(&self, name: &str) -> PathBuf {
        Path::new(PINS).join(format!("{}-{name}", self.id))
    }

    /// Sets all ends of the cables so. With `gro`, an end takes frames that XDP
    /// programs send to it.
    pub fn offload(&self, offloads: Offloads) -> Result<()> {
        let word = match offloads {
            Offloads::None => "off",
            Offloads::AsMade => "on",
        };
        for (host, interface) in self.ends() {
            let words = ["tx", word, "tso", word, "gso", word, "gro", "on"];
            host.run("ethtool", &[&["-K", interface][..], &words].concat())?;
        }
        Ok(())
    }

    /// The link address of an interface of one of its hosts.
    pub fn card(&self, host: &Host, interface: &str) -> Result<Link> {
        let text = host.card(interface)?;
        let octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16));
        let octets: Vec<u8> = octets.collect::<Result<_, _>>()?;
        let link = octets.try_into().ok();
        link.with_context(|| format!("{text} is no link address"))
    }

    /// Lets the balancer find these addresses at the client's end, as if one host
    /// there were all of them: with one arm, servers are there as well.
    pub fn neighbours_at_client(&self, addresses: impl Iterator<Item = Ipv4Addr>) -> Result<()> {
        let (namespace, card) = (&self.balancer.namespace, self.client.card("eth0")?);
        let mut text = String::new();
        for address in addresses {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "-n {namespace} neigh replace {address} lladdr {card} nud permanent dev eth0"
            );
        }
        batch(&text)
    }

    fn ends(&self) -> [(&Host, &'static str); 4] {
        [
            (&self.client, "eth0"),
            (&self.balancer, "eth0"),
            (&self.balancer, "eth1"),
            (&self.backend, "eth0"),
        ]
    }

    fn build(&self, servers: u8) -> Result<()> {
        for host in self.hosts() {
            run("ip", &["netns", "add", &host.namespace])?;
            host.settle()?;
            for setting in ["all", "default"] {
                host.sysctl(&format!("ipv4/conf/{setting}/rp_filter"), "0")?;
                host.sysctl(&format!("ipv6/conf/{setting}/disable_ipv6"), "1")?;
            }
        }
        batch(&self.cables(servers))?;
        batch(&self.neighbours(servers)?)?;
        self.offload(Offloads::None)
    }

    fn cables(&self, servers: u8) -> String {
        let [client, balancer, backend] = self.hosts().map(|host| host.namespace.as_str());
        let forged = Self::FORGED;
        let mut text = format!(
            "link add eth0 netns {client} type veth peer name eth0 netns {balancer}\n\
             link add eth1 netns {balancer} type veth peer name eth0 netns {backend}\n\
             -n {client} addr add 10.9.0.1/24 dev eth0\n\
             -n {balancer} addr add 10.9.0.2/24 dev eth0\n\
             -n {balancer} addr add 10.9.1.1/24 dev eth1\n\
             -n {client} link set eth0 up\n\
             -n {balancer} link set eth0 up\n\
             -n {balancer} link set eth1 up\n\
             -n {backend} link set eth0 up\n\
             -n {client} route add default via 10.9.0.2\n\
             -n {balancer} route add {forged}/16 via 10.9.0.1\n"
        );
        for number in 0..servers {
            let address = Self::server(number);
            text += &format!("-n {backend} addr add {address}/24 dev eth0\n");
        }
        text + &format!("-n {backend} route add default via 10.9.1.1\n")
    }

    fn neighbours(&self, servers: u8) -> Result<String> {
        let card = |host: &Host, interface| host.card(interface);
        let [client, balancer, backend] = self.hosts().map(|host| host.namespace.as_str());
        let near = card(&self.balancer, "eth0")?;
        let far = card(&self.balancer, "eth1")?;
        let mut known = vec![
            (client, "10.9.0.2".to_owned(), &near, "eth0"),
            (client, Self::VIP.to_string(), &near, "eth0"),
            (backend, "10.9.1.1".to_owned(), &far, "eth0"),
        ];
        let of_client = card(&self.client, "eth0")?;
        known.push((balancer, "10.9.0.1".to_owned(), &of_client, "eth0"));
        let of_backend = card(&self.backend, "eth0")?;
        for number in 0..servers {
            let address = Self::server(number).to_string();
            known.push((balancer, address, &of_backend, "eth1"));
        }
        let lines = known.into_iter().map(|(namespace, address, card, device)| {
            format!(
                "-n {namespace} neigh replace {address} lladdr {card} nud permanent dev {device}\n"
            )
        });
        Ok(lines.collect())
    }

    const fn hosts(&self) -> [&Host; 3] {
        [&self.client, &self.balancer, &self.backend]
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        take_away(&self.id, self.hosts().into_iter());
    }
}
