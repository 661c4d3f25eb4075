//! Real connections through a real balancer: who answers, whom they see, and
//! that nothing is lost or changed on the way.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use tests::netns::{
    Answer, Arms, CALM, Connection, Daemon, Family, HttpBackend, Net, Service, UdpEcho, ask,
    ask_udp, shares, tally,
};

/// The tests that use the whole machine take turns.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn full_nat_on_one_arm() -> Result<()> {
    forwards("full-nat", Arms::One)
}

#[test]
fn full_nat_between_two_arms() -> Result<()> {
    forwards("full-nat", Arms::Two)
}

#[test]
fn nat_on_one_arm() -> Result<()> {
    forwards("nat", Arms::One)
}

#[test]
fn nat_between_two_arms() -> Result<()> {
    forwards("nat", Arms::Two)
}

/// Sixty requests are spread exactly, an open connection stays where it is, and
/// each side sees whom it should, over IPv4 and IPv6.
fn forwards(forward: &'static str, arms: Arms) -> Result<()> {
    let stage = Stage::new(arms, &[forward], [3, 2, 1])?;
    for service in &stage.services {
        let family = service.family();
        println!("{forward} {arms:?} {family:?}");
        stage.net.client.enter(|| -> Result<()> {
            let mut open = Connection::open(service.listen)?;
            let first = open.ask()?;
            let (here, there) = open.ends()?;
            assert_eq!(there, service.listen, "the client sees the service alone");
            sees_the_right_client(service, here, &first);
            assert_eq!(tally(service.listen, 60)?, shares([30, 20, 10]));
            assert_eq!(open.ask()?, first, "an open connection stays where it is");
            Ok(())
        })?;
        let neighbours = stage.net.client.run("ip", &["neigh"])?;
        for number in 0..3 {
            let backend = service.backend(&stage.net, number).ip().to_string();
            assert!(
                !neighbours.lines().any(|line| line.starts_with(&backend)),
                "the client has heard of a backend:\n{neighbours}"
            );
        }
    }
    stage.dropped_nothing()
}

/// With `nat` the backend sees the client itself, with `full-nat` the service.
fn sees_the_right_client(service: &Service, client: SocketAddr, answer: &Answer) {
    match service.forward {
        "nat" => assert_eq!(answer.client, client),
        _ => assert_eq!(answer.client.ip(), service.listen.ip()),
    }
}

#[test]
fn datagrams_of_one_client_port_stay_together_and_ports_are_spread_exactly() -> Result<()> {
    for arms in [Arms::One, Arms::Two] {
        let net = Net::new(arms)?;
        let services = Family::ALL
            .map(|family| Service::new(&format!("dns-{family:?}"), "full-nat", family, [3, 2, 1]))
            .map(Service::udp);
        let mut echoes = Vec::new();
        for service in &services {
            for host in &net.backends {
                echoes.push(UdpEcho::start(host, service.family(), service.port)?);
            }
        }
        let balancer = Daemon::start(&net, &texts(&net, &services))?;
        for service in &services {
            let sockets = net
                .client
                .enter(|| {
                    let unspecified = match service.family() {
                        Family::V4 => "0.0.0.0:0",
                        Family::V6 => "[::]:0",
                    };
                    (0..60)
                        .map(|_| {
                            let socket = UdpSocket::bind(unspecified)?;
                            socket.connect(service.listen)?;
                            Ok(socket)
                        })
                        .collect::<std::io::Result<Vec<_>>>()
                })
                .context("sockets for clients")?;
            let mut tally = BTreeMap::new();
            let mut firsts = Vec::new();
            for socket in &sockets {
                let first = ask_udp(socket, "first")?;
                assert_eq!(first.client.ip(), service.listen.ip());
                *tally.entry(first.backend.clone()).or_default() += 1;
                firsts.push(first);
            }
            assert_eq!(tally, shares([30, 20, 10]), "{arms:?} {}", service.name);
            for (socket, first) in sockets.iter().zip(&firsts) {
                assert_eq!(ask_udp(socket, "second")?, *first);
            }
        }
        assert_eq!(balancer.json(&["drops"])?, serde_json::json!([]));
    }
    Ok(())
}

#[test]
fn six_hundred_connections_from_one_cpu_are_spread_exactly() -> Result<()> {
    let _turn = whole_machine();
    let stage = Stage::new(Arms::One, &["full-nat"], [3, 2, 1])?;
    for service in &stage.services {
        let tally = stage.net.client.enter(|| {
            let _ = pin(0)?;
            tally(service.listen, 600)
        })?;
        assert_eq!(tally, shares([300, 200, 100]), "{}", service.name);
    }
    Ok(())
}

#[test]
fn six_hundred_connections_from_every_cpu_at_once_are_spread_exactly() -> Result<()> {
    let _turn = whole_machine();
    let stage = Stage::new(Arms::One, &["full-nat"], [3, 2, 1])?;
    for service in &stage.services {
        let left = AtomicUsize::new(600);
        let tallies = stage.net.client.enter(|| {
            each_cpu(|cpu| {
                let mut answered = BTreeMap::new();
                while take_one(&left) {
                    *answered.entry(ask(service.listen)?.backend).or_default() += 1;
                }
                println!("{}: CPU {cpu} {answered:?}", service.name);
                Ok(answered)
            })
        })?;
        ensure!(
            tallies.iter().all(|tally| !tally.is_empty()),
            "a CPU made no request at all: {tallies:?}"
        );
        assert_eq!(sum(tallies), shares([300, 200, 100]), "{}", service.name);
    }
    Ok(())
}

#[test]
fn a_new_weight_is_exact_from_the_next_connection_on_and_moves_no_open_one() -> Result<()> {
    let _turn = whole_machine();
    let stage = Stage::new(Arms::One, &["full-nat"], [3, 2, 1])?;
    let service = &stage.services[0];
    let mut open = stage.net.client.enter(|| {
        (0..12)
            .map(|_| Connection::open(service.listen))
            .collect::<Result<Vec<_>>>()
    })?;
    let before = open
        .iter_mut()
        .map(Connection::ask)
        .collect::<Result<Vec<_>>>()?;

    for (weight, pattern) in [(4, [3, 2, 4]), (0, [3, 2, 0]), (256, [3, 2, 256])] {
        // New connections are made, and open ones used, while the weight changes.
        let stop = AtomicBool::new(false);
        let requests = thread::scope(|scope| -> Result<usize> {
            let load = scope.spawn(|| {
                stage.net.client.enter(|| {
                    each_cpu(|_| {
                        let mut requests = 0;
                        while !stop.load(Ordering::Relaxed) {
                            ask(service.listen).context("while the weight changed")?;
                            requests += 1;
                        }
                        Ok(requests)
                    })
                })
            });
            for (connection, first) in open.iter_mut().zip(&before) {
                assert_eq!(&connection.ask()?, first);
            }
            let text = weight.to_string();
            let name = service.name.as_str();
            let changed = stage.balancer.lb(&["backend", "weight", name, "b3", &text]);
            for (connection, first) in open.iter_mut().zip(&before) {
                assert_eq!(&connection.ask()?, first, "weight {weight}");
            }
            stop.store(true, Ordering::Relaxed);
            let requests = load
                .join()
                .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked));
            changed?;
            Ok(requests?.iter().sum())
        })?;
        println!("{requests} requests while b3's weight became {weight}");
        let length = pattern.iter().sum();
        let next = stage.net.client.enter(|| tally(service.listen, length))?;
        assert_eq!(next, shares(pattern), "the next full sequence");
    }
    for (connection, first) in open.iter_mut().zip(&before) {
        assert_eq!(&connection.ask()?, first);
    }
    stage.dropped_nothing()
}

#[test]
fn a_gigabyte_goes_either_way_through_full_nat_unchanged() -> Result<()> {
    transfers("full-nat")
}

#[test]
fn a_gigabyte_goes_either_way_through_nat_unchanged() -> Result<()> {
    transfers("nat")
}

fn transfers(forward: &'static str) -> Result<()> {
    const GIGABYTE: u64 = 1_000_000_000;
    let _turn = whole_machine();
    let stage = Stage::new(Arms::Two, &[forward], [3, 2, 1])?;
    for service in &stage.services {
        let began = std::time::Instant::now();
        stage.net.client.enter(|| -> Result<()> {
            let mut connection = Connection::open(service.listen)?;
            let (answer, sent) = connection.upload(GIGABYTE)?;
            assert_eq!(answer.received, Some(sent), "what arrived is what was sent");
            let up = began.elapsed();
            assert_eq!(connection.download(GIGABYTE)?, sent, "and what came back");
            println!(
                "{forward} {}: 1 GB to {} in {up:.1?}, back in {:.1?}, CRC-32 {:08x}",
                service.listen,
                answer.backend,
                began.elapsed() - up,
                sent.1
            );
            Ok(())
        })?;
    }
    stage.dropped_nothing()
}

/// A network with HTTP backends and a balancer that is ready.
struct Stage {
    // In the order in which they are to go.
    balancer: Daemon,
    _backends: Vec<HttpBackend>,
    services: Vec<Service>,
    net: Net,
}

impl Stage {
    /// With a service for each family and each kind of forwarding.
    fn new(arms: Arms, forwards: &[&'static str], weights: [u16; 3]) -> Result<Self> {
        let net = Net::new(arms)?;
        if forwards.contains(&"nat") {
            net.lead_replies_through_balancer()?;
        }
        let mut services = Vec::new();
        let mut backends = Vec::new();
        for forward in forwards {
            for family in Family::ALL {
                let name = format!("{forward}-{family:?}");
                let service = Service {
                    check: CALM,
                    ..Service::new(&name, forward, family, weights)
                };
                backends.extend(net.start_http(&service)?);
                services.push(service);
            }
        }
        Ok(Self {
            balancer: Daemon::start(&net, &texts(&net, &services))?,
            _backends: backends,
            services,
            net,
        })
    }

    fn dropped_nothing(&self) -> Result<()> {
        let drops = self.balancer.json(&["drops"])?;
        ensure!(
            drops == serde_json::json!([]),
            "packets were dropped: {drops:#}"
        );
        Ok(())
    }
}

fn texts(net: &Net, services: &[Service]) -> Vec<String> {
    services.iter().map(|service| service.toml(net)).collect()
}

fn sum(tallies: Vec<BTreeMap<String, usize>>) -> BTreeMap<String, usize> {
    let mut total = BTreeMap::new();
    for (name, count) in tallies.into_iter().flatten() {
        *total.entry(name).or_default() += count;
    }
    total
}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(1)
    })
    .is_ok()
}

/// Runs `work` in a thread on each CPU at once; gives what each gave.
fn each_cpu<T: Send>(work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let cpus = sched_getaffinity(None)?;
    let count = usize::try_from(cpus.count())?;
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|place| scope.spawn(move || work(pin(place)?)))
            .collect();
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(done) => done,
                Err(panicked) => std::panic::resume_unwind(panicked),
            })
            .collect()
    })
}

/// Keeps the calling thread on one of the CPUs it may use; gives which.
fn pin(place: usize) -> Result<usize> {
    let may = sched_getaffinity(None)?;
    let cpu = (0..CpuSet::MAX_CPU)
        .filter(|&cpu| may.is_set(cpu))
        .nth(place)
        .context("there are fewer CPUs")?;
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)?;
    Ok(cpu)
}
