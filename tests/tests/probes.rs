//! Probes that go to the service's own address, by the way of clients' packets:
//! what passes, what fails, and what is left behind.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_userspace::health::probe::tcp;
use lb_userspace::health::probe::through::{Carriage, Prober, Through};
use rustix::net::{Shutdown, shutdown};

use tests::netns::{Arms, Daemon, Decap, Family, Host, Net, Service, wait_until};

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
        let _other = Server::start(&stage.net.client, any(family))?;
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
fn a_backend_that_unwraps_tunnels_passes_whatever_the_families() -> Result<()> {
    for arms in [Arms::One, Arms::Two] {
        let stage = Stage::new(arms)?;
        let decap = Decap::start(&stage.net, stage.backend())?;
        let mut probes = 0;
        for service in Family::ALL {
            let _server = stage.serve(any(service))?;
            stage.give_address(service)?;
            for backend in Family::ALL {
                let told = stage.ask_by_tunnel(service, backend, GENEROUS)?;
                assert_eq!(told, ACCEPTED, "{arms:?} {service:?} over {backend:?}");
                probes += 1;
            }
            stage.take_address(service)?;
            for backend in Family::ALL {
                let told = stage.ask_by_tunnel(service, backend, SHORT)?;
                assert_eq!(told, no_tunnel(service), "{arms:?} over {backend:?}");
                probes += 1;
            }
        }
        // Each was a SYN and a reset, and on a busy machine some SYN once more.
        let report = decap.stop()?;
        ensure!(
            (2 * probes..3 * probes).contains(&unwrapped(&report)),
            "{probes} probes: {report}"
        );
    }
    Ok(())
}

#[test]
fn a_backend_that_does_not_unwrap_tunnels_fails_though_its_own_address_answers() -> Result<()> {
    let stage = Stage::new(Arms::One)?;
    for service in Family::ALL {
        let _server = stage.serve(any(service))?;
        stage.give_address(service)?;
        for backend in Family::ALL {
            let told = stage.ask_by_tunnel(service, backend, SHORT)?;
            assert_eq!(told, no_tunnel(service), "{service:?} over {backend:?}");
        }
        assert!(stage.ask_plainly(service)?, "its own address answers");
    }
    Ok(())
}

#[test]
fn the_daemon_takes_out_a_backend_that_lost_the_services_address_until_it_has_it_again()
-> Result<()> {
    for forward in ["dsr", "tunnel"] {
        let net = Net::new(Arms::One)?;
        let mut unwrapping = Vec::new();
        if forward == "tunnel" {
            for host in &net.backends {
                unwrapping.push(Decap::start(&net, host)?);
            }
        }
        let mut services = Vec::new();
        let mut servers = Vec::new();
        for family in Family::ALL {
            let mut service = Service::new(&format!("web-{family:?}"), forward, family, [1, 1, 1]);
            service.check = "via = \"service\"\ninterval = \"100ms\"\ntimeout = \"100ms\"";
            net.give_address_to_backends(&service)?;
            services.push(service);
        }
        for host in &net.backends {
            // On every address of both families: only the way there can fail.
            servers.push(Server::start(host, any(Family::V6))?);
        }
        let texts: Vec<String> = services.iter().map(|service| service.toml(&net)).collect();
        let balancer = Daemon::start(&net, &texts)?;
        let stands = |name: &str, state: &str, reason: &str| {
            wait_until(&format!("{name} are {state}"), GENEROUS, || {
                let listed = balancer.json(&["backend", "list"])?;
                let these: Vec<_> = listed
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|backend| backend["name"] == name)
                    .collect();
                ensure!(these.len() == services.len(), "{listed}");
                Ok(these.iter().all(|backend| {
                    let told = backend["reason"].as_str().unwrap_or_default();
                    backend["state"] == state && told.starts_with(reason)
                }))
            })
        };
        let all_are_up = || ["b1", "b2", "b3"].map(|name| stands(name, "up", ACCEPTED));
        all_are_up().into_iter().collect::<Result<()>>()?;
        let descriptors = || -> Result<usize> {
            let pid = balancer.pid().context("the daemon runs")?;
            Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
        };
        let before = descriptors()?;

        for service in &services {
            let address = service.listen.ip().to_string();
            net.backends[1].run("ip", &["address", "del", &address, "dev", "lo"])?;
        }
        let reason = "through the service's address: no answer within 100ms; ";
        stands("b2", "down", reason)?;
        stands("b1", "up", ACCEPTED)?;

        for service in &services {
            let address = service.listen.ip().to_string();
            net.backends[1].run("ip", &["address", "add", &address, "dev", "lo"])?;
        }
        all_are_up().into_iter().collect::<Result<()>>()?;
        // By now more probes than that were made.
        let after = descriptors()?;
        assert!(after < before + 20, "{before} descriptors became {after}");
        drop(servers);
        let refused = ["b1", "b2", "b3"].map(|name| stands(name, "down", REFUSED));
        refused.into_iter().collect::<Result<()>>()?;
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
fn a_syn_without_an_answer_is_sent_again() -> Result<()> {
    let stage = Stage::new(Arms::One)?;
    let _server = stage.serve(any(Family::V4))?;
    let arrived = || stage.backend().run("nstat", &["-asz", "IpInAddrErrors"]);
    let before = arrived()?;
    let told = thread::scope(|scope| -> Result<String> {
        let asking = scope.spawn(|| stage.ask(Family::V4, GENEROUS));
        wait_until("the backend has thrown a SYN away", GENEROUS, || {
            Ok(arrived()? != before)
        })?;
        stage.give_address(Family::V4)?;
        asking.join().expect("it does not panic")
    })?;
    assert_eq!(told, ACCEPTED);
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
        server.0.set_nonblocking(true)?;
        let accepted = server.0.accept();
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

    fn serve(&self, address: IpAddr) -> Result<Server> {
        Server::start(self.backend(), address)
    }

    /// A probe by the way of `dsr`, and what is told of it.
    fn ask(&self, family: Family, timeout: Duration) -> Result<String> {
        self.ask_through(&dsr(family), self.address(family), timeout)
    }

    /// A probe through a tunnel, and what is told of it.
    fn ask_by_tunnel(&self, service: Family, backend: Family, timeout: Duration) -> Result<String> {
        let through = Through {
            service: SocketAddr::new(service.vip(), PORT),
            carriage: match backend {
                Family::V4 => Carriage::Tunnel {
                    source: [198, 18, 0, 0].into(),
                    bits: 16,
                },
                Family::V6 => Carriage::Tunnel {
                    source: [0x100, 0, 0, 0, 0, 0, 0, 0].into(),
                    bits: 32,
                },
            },
        };
        self.ask_through(&through, self.address(backend), timeout)
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

/// It listens, until it is dropped.
struct Server(TcpListener);

impl Server {
    fn start(host: &Host, address: IpAddr) -> Result<Self> {
        let listener = host.enter(|| TcpListener::bind((address, PORT)));
        listener.map(Self).context("a server on the backend")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Another test's child may still have a copy of the socket, before it
        // runs its program: closing ours alone would not end it.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

fn dsr(family: Family) -> Through {
    Through {
        service: SocketAddr::new(family.vip(), PORT),
        carriage: Carriage::Dsr,
    }
}

/// What is told of a backend that does not answer through a tunnel.
fn no_tunnel(service: Family) -> String {
    format!(
        "through the service's address: no answer within 500ms; does the backend unwrap \
         tunnels, and is {} on its loopback interface?",
        service.vip()
    )
}

/// How many packets `lb decap` says that it has unwrapped.
fn unwrapped(report: &serde_json::Value) -> u64 {
    let outcomes = report["outcomes"].as_array().into_iter().flatten();
    outcomes
        .filter(|outcome| outcome["outcome"] == "unwrapped")
        .filter_map(|outcome| outcome["packets"].as_u64())
        .sum()
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::V4 => [0; 4].into(),
        Family::V6 => [0; 16].into(),
    }
}
