//! The parts of two nodes' files that must be alike, as one number.

use std::fmt::{self, Write as _};

use crate::config::{Config, Service};

/// FNV-1a over text, with 64 bits: nobody wants to deceive it.
struct Hash(u64);

impl fmt::Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

/// A number that two nodes of the same version have in common if, and but for chance
/// only if, their files agree in services, backends, checks, and what moves with the
/// role. Services may come in another order; what is a node's own (names, interfaces,
/// priorities, sizes) does not matter.
pub fn configuration(config: &Config) -> u64 {
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    let mut services: Vec<&Service> = config.services.iter().collect();
    services.sort_by(|one, other| one.name.cmp(&other.name));
    // Writing into a number does not fail.
    let _ = write(&mut hash, config, &services);
    hash.0
}

fn write(hash: &mut Hash, config: &Config, services: &[&Service]) -> fmt::Result {
    if let Some(ha) = &config.ha {
        let mut addresses = ha.addresses.clone();
        addresses.sort_unstable();
        writeln!(hash, "{} {addresses:?}", ha.vrid)?;
    }
    for service in services {
        // By name, so that whoever adds one has to think of it.
        let Service {
            name,
            listen,
            protocol,
            forward,
            max_mss,
            scheduler,
            affinity,
            on_down,
            slow_start,
            min_healthy,
            check,
            backends,
        } = service;
        let scheduler = scheduler.name;
        writeln!(
            hash,
            "{name:?} {listen} {protocol:?} {forward:?} {max_mss} {scheduler} {affinity:?} {on_down:?} {slow_start:?} {min_healthy} {check:?} {backends:?}"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn file(node: &str, services: [&str; 2], vrid: u8) -> Config {
        let service = |name: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\nlisten = \"192.0.2.{}:80\"\nprotocol = \"tcp\"\nforward = \"nat\"\n[[service.backend]]\nname = \"one\"\naddress = \"10.0.0.1:80\"\n",
                name.len()
            )
        };
        let text = format!(
            "[node]\nname = \"{node}\"\ninterfaces = [\"eth0\"]\n[ha]\ninterface = \"eth0\"\nvrid = {vrid}\npriority = {}\n{}{}",
            node.len(),
            service(services[0]),
            service(services[1])
        );
        crate::config::parse(&text, Path::new("lb.toml")).unwrap()
    }

    #[test]
    fn files_are_alike_but_for_what_is_a_nodes_own_and_the_order_of_services() {
        let one = configuration(&file("a", ["web", "mail"], 51));
        let other = configuration(&file("another", ["mail", "web"], 51));
        assert_eq!(one, other);
        assert_ne!(one, configuration(&file("a", ["web", "mail"], 52)));
        assert_ne!(one, configuration(&file("a", ["web", "mails"], 51)));
    }
}
