//! Probes that go to the service's own address, by the way of clients' packets:
//! what passes, what fails, and what is left behind.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lb_userspace::health::probe::tcp;
use lb_userspace::health::probe::through::{Carriage, Prober, Through};

use tests::netns::{Arms, Family, Host, Net, wait_until};

/// Far beyond anything that passes; only a fault waits this long.
const GENEROUS: Duration = Duration::from_secs(20);

/// For answers that must not come: long enough for one that would.
const SHORT: Duration = Duration::from_millis(500);

const PORT: u16 = 80;

const ACCEPTED: &str = "accepted a connection through the service's address";
const REFUSED: &str =
    "through the service's address: connection refused: nothing listens on that port";

#[test]
fn a_dsr_backend_with_the_services_address_passes() -> Result<()> {
    for arms in [Arms::One, Arms::Two] {
        let stage = Stage::new(arms)?;
        for family in Family::ALL {
            let _server = stage.serve(any(family))?;
            stage.give_address(family)?;
            assert_eq!(stage.ask(family, GENEROUS)?, ACCEPTED, "{arms:?}");
        }
    }
    Ok(())
}

#[test]
fn a_dsr_backend_without_the_services_address_fails_though_its_own_answers() -> Result<()> {
    let stage = Stage::new(Arms::One)?;
    for family in Family::ALL {
        let _server = stage.serve(any(family))?;
        stage.give_address(family)?;
        assert_eq!(stage.ask(family, GENEROUS)?, ACCEPTED);
        stage.take_address(family)?;
        assert_eq!(stage.ask(family, SHORT)?, stage.silent(family));
        assert!(stage.ask_plainly(family)?, "its own address answers");
        stage.give_address(family)?;
        assert_eq!(stage.ask(family, GENEROUS)?, ACCEPTED);
        stage.take_address(family)?;
    }
    Ok(())
}

#[test]
fn a_server_that_listens_on_the_backends_own_address_alone_is_refused() -> Result<()> {
    let stage = Stage::new(Arms::One)?;
    for family in Family::ALL {
        let _server = stage.serve(stage.backend().address(family))?;
        stage.give_address(family)?;
        assert_eq!(stage.ask(family, GENEROUS)?, REFUSED);
        assert!(stage.ask_plainly(family)?, "its own address answers");
    }
    Ok(())
}

#[test]
fn a_server_that_stopped_is_refused() -> Result<()> {
    let stage = Stage::new(Arms::One)?;
    for family in Family::ALL {
        let server = stage.serve(any(family))?;
        stage.give_address(family)?;
        assert_eq!(stage.ask(family, GENEROUS)?, ACCEPTED);
        drop(server);
        assert_eq!(stage.ask(family, GENEROUS)?, REFUSED);
    }
    Ok(())
}

#[test]
fn a_backend_that_passes_the_packet_on_does_not_pass_by_anothers_answer() -> Result<()> {
    let stage = Stage::new(Arms::One)?;
    for family in Family::ALL {
        let _server = stage.serve(any(family))?;
        // Another host answers for the address, which the balancer keeps to itself.
        let vip = family.vip();
        let balancer = &stage.net.balancer;
        balancer.run("ip", &["address", "del", &vip.to_string(), "dev", "eth0"])?;
        balancer.sysctl("ipv4/conf/all/arp_ignore", "1")?;
        stage.add_address(balancer, "lo", family)?;
        stage.add_address(&stage.net.client, "eth0", family)?;
        let _other = stage
            .net
            .client
            .enter(|| TcpListener::bind((any(family), PORT)))?;
        let settings = match family {
            Family::V4 => "ipv4/conf/all/forwarding",
            Family::V6 => "ipv6/conf/all/forwarding",
        };
        stage.backend().sysctl(settings, "1")?;
        let reached = stage
            .backend()
            .enter(|| std::net::TcpStream::connect_timeout(&(vip, PORT).into(), GENEROUS));
        reached.context("the backend reaches the other host")?;
        assert_eq!(stage.ask(family, SHORT)?, stage.silent(family));
    }
    Ok(())
}

#[test]
fn a_backend_that_is_away_fails() -> Result<()> {
    let stage = Stage::new(Arms::One)?;
    stage
        .backend()
        .run("ip", &["link", "set", "eth0", "down"])?;
    for family in Family::ALL {
        assert_eq!(stage.ask(family, SHORT)?, stage.silent(family));
    }
    Ok(())
}

#[test]
fn nothing_is_left_of_many_probes_at_once() -> Result<()> {
    const MANY: usize = 200;
    let stage = Stage::new(Arms::One)?;
    for family in Family::ALL {
        let server = stage.serve(any(family))?;
        stage.give_address(family)?;
        let through = dsr(family);
        let backend = stage.address(family);
        let passed = stage.run(async {
            let prober = Prober::default();
            let probes = (0..MANY).map(|_| prober.probe(&through, backend, GENEROUS));
            let mut passed = 0;
            for result in futures_util::future::join_all(probes).await {
                passed += usize::from(result.is_ok());
            }
            passed
        })?;
        assert_eq!(passed, MANY);
        // A connection that nobody resets stays half open for a minute.
        wait_until("the backend has forgotten the probes", GENEROUS, || {
            let half_open = stage.backend().run("ss", &["-Htan", "state", "syn-recv"])?;
            Ok(half_open.trim().is_empty())
        })?;
        server.set_nonblocking(true)?;
        let accepted = server.accept();
        assert!(accepted.is_err(), "the server hears nothing of it");
    }
    Ok(())
}

#[test]
fn a_host_without_an_address_of_its_own_judges_nobody() -> Result<()> {
    let stage = Stage::new(Arms::One)?;
    let balancer = &stage.net.balancer;
    balancer.run(
        "ip",
        &["address", "flush", "dev", "eth0", "scope", "global"],
    )?;
    stage.add_address(balancer, "eth0", Family::V4)?;
    balancer.run("ip", &["route", "add", "10.9.0.0/24", "dev", "eth0"])?;
    let told = stage.ask(Family::V4, SHORT)?;
    assert_eq!(
        told,
        "through the service's address: the probe could not be made on this host: \
         it has no address of 10.9.0.100's family but the services', from which to ask; give it one"
    );
    let told = stage.ask(Family::V6, SHORT)?;
    assert_eq!(
        told,
        "through the service's address: network unreachable: this host has no route to that address"
    );
    Ok(())
}

/// The balancer has the services' addresses, as `lb` puts them there; the
/// backend is `b1`.
struct Stage {
    net: Net,
}

impl Stage {
    fn new(arms: Arms) -> Result<Self> {
        let stage = Self {
            net: Net::new(arms)?,
        };
        stage
            .net
            .balancer
            .sysctl("ipv4/conf/all/accept_local", "1")?;
        stage.backend().sysctl("ipv4/conf/all/arp_ignore", "1")?;
        stage.backend().sysctl("ipv4/conf/all/arp_announce", "2")?;
        for family in Family::ALL {
            stage.add_address(&stage.net.balancer, "eth0", family)?;
        }
        Ok(stage)
    }

    fn backend(&self) -> &Host {
        &self.net.backends[0]
    }

    fn address(&self, family: Family) -> SocketAddr {
        SocketAddr::new(self.backend().address(family), PORT)
    }

    fn add_address(&self, host: &Host, interface: &str, family: Family) -> Result<()> {
        let vip = family.vip().to_string();
        let mut words = vec!["address", "add", &vip, "dev", interface];
        if family == Family::V6 {
            words.extend(["preferred_lft", "0", "nodad"]);
        }
        host.run("ip", &words).map(drop)
    }

    fn give_address(&self, family: Family) -> Result<()> {
        self.add_address(self.backend(), "lo", family)
    }

    fn take_address(&self, family: Family) -> Result<()> {
        let vip = family.vip().to_string();
        let removed = self
            .backend()
            .run("ip", &["address", "del", &vip, "dev", "lo"]);
        removed.map(drop)
    }

    fn serve(&self, address: IpAddr) -> Result<TcpListener> {
        self.backend()
            .enter(|| TcpListener::bind((address, PORT)))
            .context("a server on the backend")
    }

    /// A probe by the way of `dsr`, and what is told of it.
    fn ask(&self, family: Family, timeout: Duration) -> Result<String> {
        self.ask_through(&dsr(family), self.address(family), timeout)
    }

    fn ask_through(
        &self,
        through: &Through,
        backend: SocketAddr,
        timeout: Duration,
    ) -> Result<String> {
        self.run(async {
            let prober = Prober::default();
            through.tell(&prober.probe(through, backend, timeout).await)
        })
    }

    /// What is told of a `dsr` backend that does not answer.
    fn silent(&self, family: Family) -> String {
        format!(
            "through the service's address: no answer within 500ms; \
             is {} on the backend's loopback interface?",
            family.vip()
        )
    }

    /// Whether a probe of the backend's own address passes.
    fn ask_plainly(&self, family: Family) -> Result<bool> {
        self.run(async { tcp::probe(self.address(family), GENEROUS).await.is_ok() })
    }

    /// Runs something on the balancer.
    fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> Result<T> {
        self.net.balancer.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(work))
        })
    }
}

fn dsr(family: Family) -> Through {
    Through {
        service: SocketAddr::new(family.vip(), PORT),
        carriage: Carriage::Dsr,
    }
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => [0; 4].into(),
        Family::V6 => [0; 16].into(),
    }
}
