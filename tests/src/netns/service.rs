//! Services of the tests, as the balancer's file has them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::{Family, Net};

/// A service whose backends are `b1`, `b2` and `b3`.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// `full-nat`, `nat`, `dsr` or `tunnel`.
    pub forward: &'static str,
    /// Where clients find it.
    pub listen: SocketAddr,
    /// The family of its backends' addresses.
    pub backed: Family,
    /// The port of its backends.
    pub port: u16,
    /// Their weights.
    pub weights: [u16; 3],
    /// How they are checked: the text of `[service.check]`.
    pub check: &'static str,
    /// More lines of `[[service]]`.
    pub more: &'static str,
}

/// Checks that see within half a second that a backend does not answer.
pub const SWIFT: &str = "interval = \"100ms\"\ntimeout = \"100ms\"";

/// No checks.
pub const UNCHECKED: &str = "type = \"none\"";

/// Checks that a busy machine does not mislead.
pub const CALM: &str = "interval = \"2s\"\ntimeout = \"2s\"";

impl Service {
    /// A service over TCP at port 80, with backends at port 8080 or, where the
    /// port is not translated, at 80 (one family's service beside another's
    /// needs another name only).
    pub fn new(name: &str, forward: &'static str, family: Family, weights: [u16; 3]) -> Self {
        Self {
            name: name.into(),
            protocol: "tcp",
            forward,
            listen: SocketAddr::new(family.vip(), 80),
            backed: family,
            port: if one_way(forward) { 80 } else { 8080 },
            weights,
            check: SWIFT,
            more: "",
        }
    }

    /// The same over UDP, with no checks.
    pub fn udp(self) -> Self {
        Self {
            protocol: "udp",
            check: UNCHECKED,
            ..self
        }
    }

    /// The family of its addresses.
    pub const fn family(&self) -> Family {
        match self.listen.ip() {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The address of the backend of this number (0 to 2), as the file has it.
    pub fn backend(&self, net: &Net, number: usize) -> SocketAddr {
        SocketAddr::new(net.backends[number].address(self.backed), self.port)
    }

    /// Where that backend's server listens: at the service's own address, if
    /// that is what arrives there.
    pub fn server(&self, net: &Net, number: usize) -> SocketAddr {
        if one_way(self.forward) {
            self.listen
        } else {
            self.backend(net, number)
        }
    }

    /// Its part of the configuration.
    pub fn toml(&self, net: &Net) -> String {
        let mut text = format!(
            "[[service]]\nname = {:?}\nlisten = \"{}\"\nprotocol = {:?}\nforward = {:?}\n{}\n\
             [service.check]\n{}\n",
            self.name, self.listen, self.protocol, self.forward, self.more, self.check
        );
        for (number, weight) in self.weights.iter().enumerate() {
            let name = &net.backends[number].name;
            let address = self.backend(net, number);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "[[service.backend]]\nname = {name:?}\naddress = \"{address}\"\nweight = {weight}\n"
            );
        }
        text
    }
}

/// Whether packets reach the backend with the addresses that the client gave
/// them, and answers do not come by the balancer.
fn one_way(forward: &str) -> bool {
    ["dsr", "tunnel"].contains(&forward)
}
