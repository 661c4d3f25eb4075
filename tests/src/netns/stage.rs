//! A network made ready for one service in any mode, with servers that hold many
//! connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};

use super::{Arms, Daemon, Decap, EchoServer, Net, Service, most_files};

/// Three servers and a balancer that is ready, on one arm.
pub struct Stage {
    // In the order in which they are to go.
    /// The balancer.
    pub balancer: Daemon,
    /// The servers, in the order of the backends.
    pub servers: Vec<EchoServer>,
    _decaps: Vec<Decap>,
    /// Their service.
    pub service: Service,
    /// The network.
    pub net: Net,
}

impl Stage {
    /// For this service, with more sections in the balancer's file, such as
    /// `[timeouts]`.
    pub fn new(service: Service, sections: &str) -> Result<Self> {
        most_files()?;
        let net = Net::new(Arms::One)?;
        let mut decaps = Vec::new();
        match service.forward {
            "nat" => net.lead_replies_through_balancer()?,
            "dsr" | "tunnel" => net.give_address_to_backends(&service)?,
            _ => {}
        }
        if service.forward == "tunnel" {
            for host in &net.backends {
                decaps.push(Decap::start(&net, host)?);
            }
        }
        let servers = (0_u8..)
            .zip(&net.backends)
            .map(|(number, host)| {
                // At every address: where packets come with the service's own,
                // checks come with the backend's.
                let address = service.server(&net, number.into());
                let any: IpAddr = match address {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                EchoServer::start(host, number, SocketAddr::new(any, address.port()))
            })
            .collect::<Result<_>>()?;
        let texts = [format!("{sections}\n"), service.toml(&net)];
        Ok(Self {
            balancer: Daemon::start(&net, &texts)?,
            servers,
            _decaps: decaps,
            service,
            net,
        })
    }

    /// What the balancer says of the backend of this number.
    pub fn backend(&self, number: usize) -> Result<serde_json::Value> {
        let all = self.balancer.json(&["backend", "list"])?;
        self.among(&all, number).cloned()
    }

    /// How many live flows each backend has by `lb backend list`, and by `lb
    /// service show`.
    pub fn active_flows(&self) -> Result<[[u64; 3]; 2]> {
        let list = self.balancer.json(&["backend", "list"])?;
        let shown = self
            .balancer
            .json(&["service", "show", &self.service.name])?;
        Ok([self.counts(&list)?, self.counts(&shown["backends"])?])
    }

    fn counts(&self, backends: &serde_json::Value) -> Result<[u64; 3]> {
        let mut counts = [0; 3];
        for (number, count) in counts.iter_mut().enumerate() {
            let flows = &self.among(backends, number)?["active_flows"];
            *count = flows.as_u64().context("active_flows is a number")?;
        }
        Ok(counts)
    }

    /// The entry of a backend in a list of them.
    fn among<'a>(
        &self,
        backends: &'a serde_json::Value,
        number: usize,
    ) -> Result<&'a serde_json::Value> {
        let name = &self.net.backends[number].name;
        let mut all = backends.as_array().into_iter().flatten();
        all.find(|backend| backend["name"] == name.as_str())
            .with_context(|| format!("{name} is not on the list of backends"))
    }
}
