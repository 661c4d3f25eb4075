//! Routes and neighbours that change under connections with steady traffic: how soon
//! it goes the new way, and that no connection is lost; also while the daemon, which
//! tells the data path of changes, is stopped or gone.
//!
//! ```text
//!   client ── balancer ──┬── b2 (router) ──┬── b1, whose service has an address of
//!                        └── b3 (router) ──┘   its own behind both routers
//! ```
//!
//! All are on one segment. Just before each change the old way is made impassable, so
//! a datagram that is not answered went the old way.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::net::sockopt::ip_mtu;
use rustix::process::Signal;

use tests::netns::{
    After, Arms, Clients, Connection, Daemon, Decap, EchoServer, Family, Host, HttpBackend, Line,
    Net, wait_until,
};

/// How long what takes milliseconds may take on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// How soon traffic goes the new way while the daemon tells of it, and where there is
/// none; on a busy machine, whose commands alone take as long.
const SOON: Duration = Duration::from_millis(150);

/// The same where the daemon has vouched for telling of it, and is stopped then: what
/// it vouches for, and as above.
const VOUCHED: Duration = Duration::from_millis(750 + 150);

/// The time between datagrams.
const PACE: Duration = Duration::from_millis(1);

/// How many datagrams in a row are answered when traffic has found its way.
const SETTLED: usize = 40;

/// How many connections have traffic all the while.
const LINES: usize = 6;

/// The tests take turns: what they measure is time.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn traffic_by_full_nat_over_ipv4_follows_every_change() -> Result<()> {
    Stage::new("full-nat", Family::V4)?.follows_every_change()
}

#[test]
fn traffic_by_full_nat_over_ipv6_follows_every_change() -> Result<()> {
    Stage::new("full-nat", Family::V6)?.follows_every_change()
}

#[test]
fn traffic_through_a_tunnel_follows_every_change() -> Result<()> {
    Stage::new("tunnel", Family::V4)?.follows_every_change()
}

#[test]
fn traffic_by_dsr_follows_the_backends_link_address() -> Result<()> {
    let mut stage = Stage::new("dsr", Family::V4)?;
    stage.each_way_the_daemon_is(&[Change::Neighbour])
}

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// The link address of the next hop.
    Neighbour,
    /// The router of the route.
    Route,
    /// The policy: another router's table is looked at.
    Rule,
    /// The route goes.
    Removed,
    /// And is there again.
    PutBack,
}

const EVERY: [Change; 5] = [
    Change::Neighbour,
    Change::Route,
    Change::Rule,
    Change::Removed,
    Change::PutBack,
];

/// How a change was followed.
struct Followed {
    /// How long after the command had ended the last datagram went the old way.
    after: Duration,
    /// How many got no answer, one of them for each millisecond; those among them that
    /// met the old way impassable before the change.
    lost: usize,
}

/// How the daemon is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Daemons {
    Runs,
    /// Stopped (SIGSTOP), at the moment of the change.
    Stopped,
    /// Killed (SIGKILL), a second ago.
    Gone,
}

/// A service on `b1`, over TCP and UDP, with traffic on it.
struct Stage {
    // In the order in which they are to go.
    probe: Probe,
    lines: Option<Lines>,
    balancer: Daemon,
    _answers: Answers,
    _server: EchoServer,
    _decap: Option<Decap>,
    net: Net,
    family: Family,
    /// Where the service is, behind both routers or not.
    backend: IpAddr,
    /// Which router it is behind just now: 1 or 2 of the backends.
    by: usize,
    /// How often its link address has changed.
    links: u8,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    fn new(forward: &'static str, family: Family) -> Result<Self> {
        let turn = whole_machine();
        let net = Net::new(Arms::One)?;
        let host = &net.backends[0];
        let behind = match family {
            Family::V4 => IpAddr::from([10, 7, 0, 1]),
            Family::V6 => IpAddr::from([0xfd07, 0, 0, 0, 0, 0, 0, 1]),
        };
        // With `dsr` there are no routers between.
        let backend = if forward == "dsr" {
            host.address(family)
        } else {
            lay_routes(&net, family, behind)?;
            behind
        };
        let service = SocketAddr::new(family.vip(), 80);
        if forward != "full-nat" {
            give_address(host, family)?;
        }
        let decap = (forward == "tunnel")
            .then(|| Decap::start(&net, host))
            .transpose()?;
        let any: IpAddr = match family {
            Family::V4 => [0; 4].into(),
            Family::V6 => [0; 16].into(),
        };
        let server = EchoServer::start(host, 0, SocketAddr::new(any, 80))?;
        // An answer has to come from the address that the question was for.
        let asked = if forward == "full-nat" {
            backend
        } else {
            service.ip()
        };
        let answers = Answers::start(host, SocketAddr::new(asked, 80))?;
        let text = |protocol, check| {
            let backend = SocketAddr::new(backend, 80);
            format!(
                "[[service]]\nname = \"{protocol}\"\nlisten = \"{service}\"\n\
                 protocol = \"{protocol}\"\nforward = \"{forward}\"\n\
                 [service.check]\n{check}\n\
                 [[service.backend]]\nname = \"b1\"\naddress = \"{backend}\"\n"
            )
        };
        // A check that meets the way while there is none fails.
        let checked = "interval = \"1s\"\ntimeout = \"1s\"\nfall = 10";
        let balancer = Daemon::start(
            &net,
            &[text("tcp", checked), text("udp", "type = \"none\"")],
        )?;
        let probe = Probe::start(&net.client, service, 100)?;
        probe.settle()?;
        let lines = Some(Lines::start(&net.client, service)?);
        Ok(Self {
            probe,
            lines,
            balancer,
            _answers: answers,
            _server: server,
            _decap: decap,
            net,
            family,
            backend,
            by: 1,
            links: 0,
            _turn: turn,
        })
    }

    fn follows_every_change(&mut self) -> Result<()> {
        self.each_way_the_daemon_is(&EVERY)
    }

    fn each_way_the_daemon_is(&mut self, changes: &[Change]) -> Result<()> {
        for (daemon, rounds) in [
            (Daemons::Runs, 5),
            (Daemons::Stopped, 1),
            (Daemons::Gone, 3),
        ] {
            if daemon == Daemons::Gone {
                self.balancer.kill9()?;
                thread::sleep(Duration::from_secs(1));
            }
            for &change in changes {
                // What goes is only put back if it had gone.
                if change == Change::PutBack {
                    continue;
                }
                let (mut took, mut lost) = (Vec::new(), Vec::new());
                for _ in 0..rounds {
                    let followed = self.follows(daemon, change)?;
                    took.push(followed.after);
                    lost.push(followed.lost);
                    if change == Change::Removed {
                        self.follows(daemon, Change::PutBack)?;
                    }
                }
                took.sort();
                lost.sort_unstable();
                println!(
                    "{daemon:?}, {change:?}: {:.1?} after the command had ended, {} datagrams lost (medians of {took:.1?}, {lost:?})",
                    took[rounds / 2],
                    lost[rounds / 2],
                );
            }
        }
        self.balancer.restart()?;
        let lines = self.lines.take().context("there are lines")?;
        let asked = lines.end()?;
        println!("{LINES} connections went on all the while: {asked:?} answers");
        wait_until("the backend is up", BOUND, || {
            let all = self.balancer.json(&["backend", "list"])?;
            let all = all.as_array().context("a list")?;
            Ok(all.iter().all(|backend| backend["state"] == "up"))
        })
    }

    /// Makes the change, and sees when it is followed.
    fn follows(&mut self, daemon: Daemons, change: Change) -> Result<Followed> {
        if change != Change::PutBack {
            self.probe.settle()?;
        }
        if daemon == Daemons::Stopped {
            self.balancer.signal(Signal::STOP)?;
        }
        let before = Instant::now();
        let since = self.make(change)?;
        let took = if change == Change::Removed {
            self.probe.stops(since)?
        } else {
            self.probe.goes_on(since)?
        };
        if daemon == Daemons::Stopped {
            self.balancer.signal(Signal::CONT)?;
            // Until it vouches again.
            thread::sleep(Duration::from_millis(300));
        }
        let bound = if daemon == Daemons::Stopped {
            VOUCHED
        } else {
            SOON
        };
        ensure!(
            took <= bound,
            "with a daemon that is {daemon:?}, {change:?} was followed after {took:?}"
        );
        let lost = self.probe.unanswered(before);
        Ok(Followed { after: took, lost })
    }

    /// Makes a change; when it had been made.
    fn make(&mut self, change: Change) -> Result<Instant> {
        match change {
            Change::Neighbour => self.change_link(),
            Change::Route => {
                let [via, other] = self.routers();
                self.net.backends[other].sysctl(&self.forwarding(), "1")?;
                self.net.backends[via].sysctl(&self.forwarding(), "0")?;
                self.by = other;
                self.route("replace", other)
            }
            Change::Rule => {
                let [via, other] = self.routers();
                self.net.backends[other].sysctl(&self.forwarding(), "1")?;
                let there = self.net.backends[other].address(self.family).to_string();
                let backend = self.backend.to_string();
                let flag = self.flag();
                let table = ["route", "replace", &backend, "via", &there, "table", "100"];
                self.ip(&[&[flag], &table[..]].concat())?;
                self.net.backends[via].sysctl(&self.forwarding(), "0")?;
                let rule = ["rule", "add", "to", &backend, "lookup", "100"];
                let since = self.ip(&[&[flag], &rule[..]].concat())?;
                self.probe.goes_on(since)?;
                // As it was, but by the other router in every table.
                self.route("replace", other)?;
                let rule = ["rule", "del", "to", &backend, "lookup", "100"];
                self.ip(&[&[flag], &rule[..]].concat())?;
                self.by = other;
                Ok(since)
            }
            Change::Removed => self.route("del", self.by),
            Change::PutBack => self.route("add", self.by),
        }
    }

    fn routers(&self) -> [usize; 2] {
        [self.by, 3 - self.by]
    }

    fn forwarding(&self) -> String {
        match self.family {
            Family::V4 => "ipv4/ip_forward".into(),
            Family::V6 => "ipv6/conf/all/forwarding".into(),
        }
    }

    const fn flag(&self) -> &'static str {
        match self.family {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }

    /// Runs `ip` on the balancer's host; when it had ended.
    fn ip(&self, words: &[&str]) -> Result<Instant> {
        self.net.balancer.run("ip", words)?;
        Ok(Instant::now())
    }

    fn route(&self, verb: &str, router: usize) -> Result<Instant> {
        let via = self.net.backends[router].address(self.family).to_string();
        self.ip(&["route", verb, &self.backend.to_string(), "via", &via])
    }

    /// The next hop's card is exchanged, and the balancer's host is told.
    fn change_link(&mut self) -> Result<Instant> {
        self.links += 1;
        let behind = self.backend != self.net.backends[0].address(self.family);
        let next = &self.net.backends[if behind { self.by } else { 0 }];
        let link = format!("02:00:00:00:77:{:02x}", self.links);
        next.set("eth0", &["address", &link])?;
        let address = next.address(self.family).to_string();
        let words = ["lladdr", &link, "dev", "eth0", "nud", "reachable"];
        self.ip(&[&["neigh", "replace", &address], &words[..]].concat())
    }
}

/// The backend's own address behind both routers, of which the first is the way.
fn lay_routes(net: &Net, family: Family, behind: IpAddr) -> Result<()> {
    let [host, routers @ ..] = &net.backends;
    let (length, forwarding) = match family {
        Family::V4 => ("32", "ipv4/ip_forward"),
        Family::V6 => ("128", "ipv6/conf/all/forwarding"),
    };
    let add = format!("{behind}/{length}");
    host.run("ip", &["addr", "add", &add, "dev", "lo"])?;
    let there = behind.to_string();
    for router in routers {
        router.sysctl(forwarding, "1")?;
        if family == Family::V4 {
            router.sysctl("ipv4/conf/all/send_redirects", "0")?;
            router.sysctl("ipv4/conf/eth0/send_redirects", "0")?;
        }
        let via = host.address(family).to_string();
        router.run("ip", &["route", "add", &there, "via", &via])?;
    }
    let via = routers[0].address(family).to_string();
    net.balancer
        .run("ip", &["route", "add", &there, "via", &via])
        .map(drop)
}

/// The host has the service's address itself, and tells nobody.
fn give_address(host: &Host, family: Family) -> Result<()> {
    host.sysctl("ipv4/conf/all/arp_ignore", "1")?;
    host.sysctl("ipv4/conf/all/arp_announce", "2")?;
    let vip = family.vip();
    let add = match family {
        Family::V4 => format!("{vip}/32"),
        Family::V6 => format!("{vip}/128"),
    };
    host.run("ip", &["addr", "add", &add, "dev", "lo"])
        .map(drop)
}

/// Something that goes on in a thread until it is dropped.
struct Running {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Runs this on a host again and again.
    fn on(host: &Host, mut step: impl FnMut() + Send + 'static) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = host.spawn(move || {
            while !end.load(Ordering::Relaxed) {
                step();
            }
        });
        Self {
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// Answers each datagram with its number.
struct Answers {
    _running: Running,
}

impl Answers {
    fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let socket = host.enter(|| UdpSocket::bind(address))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut datagram = [0; 2048];
        let running = Running::on(host, move || {
            if let Ok((length, from)) = socket.recv_from(&mut datagram) {
                // The next question comes soon.
                let _ = socket.send_to(&datagram[..length.min(NUMBER)], from);
            }
        });
        Ok(Self { _running: running })
    }
}

/// The bytes of a datagram's number.
const NUMBER: usize = 8;

/// A datagram.
#[derive(Clone, Copy)]
struct Sent {
    at: Instant,
    answered: bool,
}

/// A client that sends a datagram every millisecond.
struct Probe {
    sent: Arc<Mutex<Vec<Sent>>>,
    socket: Arc<UdpSocket>,
    _running: Running,
}

impl Probe {
    /// Of so many bytes.
    fn start(client: &Host, service: SocketAddr, length: usize) -> Result<Self> {
        let any: SocketAddr = match service {
            SocketAddr::V4(_) => ([0; 4], 0).into(),
            SocketAddr::V6(_) => ([0; 16], 0).into(),
        };
        let socket = client.enter(|| UdpSocket::bind(any))?;
        socket.connect(service)?;
        socket.set_nonblocking(true)?;
        let socket = Arc::new(socket);
        let own = Arc::clone(&socket);
        let sent = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&sent);
        let mut datagram = vec![0; length];
        let mut next = Instant::now();
        let running = Running::on(client, move || {
            hear(&socket, &mut lock(&list));
            if Instant::now() < next {
                thread::sleep(PACE / 4);
                return;
            }
            next = Instant::now() + PACE;
            let number = {
                let mut list = lock(&list);
                list.push(Sent {
                    at: Instant::now(),
                    answered: false,
                });
                list.len() - 1
            };
            datagram[..NUMBER].copy_from_slice(&number.to_be_bytes());
            // The first attempt may only tell what an earlier one has met.
            if socket.send(&datagram).is_err() {
                let _ = socket.send(&datagram);
            }
        });
        Ok(Self {
            sent,
            socket: own,
            _running: running,
        })
    }

    /// Waits until all of the latest are answered.
    fn settle(&self) -> Result<()> {
        let since = Instant::now();
        wait_until("datagrams are answered", BOUND, || {
            let list = lock(&self.sent);
            let latest = list.iter().rev().skip(10).take(SETTLED);
            let latest: Vec<_> = latest.take_while(|sent| sent.at > since).collect();
            Ok(latest.len() == SETTLED && latest.iter().all(|sent| sent.answered))
        })
    }

    /// How long after this moment one was sent that is not answered.
    fn goes_on(&self, since: Instant) -> Result<Duration> {
        self.settle()?;
        let list = lock(&self.sent);
        let settled = list.len().saturating_sub(SETTLED);
        let lost = list[..settled].iter().rev().find(|sent| !sent.answered);
        Ok(lost.map_or(Duration::ZERO, |sent| {
            sent.at.saturating_duration_since(since)
        }))
    }

    /// How many of those sent after this moment are not answered, the latest aside.
    fn unanswered(&self, since: Instant) -> usize {
        let list = lock(&self.sent);
        let sent = list.iter().rev().skip(10);
        let sent = sent.take_while(|sent| sent.at > since);
        sent.filter(|sent| !sent.answered).count()
    }

    /// How long after this moment one was sent that is answered.
    fn stops(&self, since: Instant) -> Result<Duration> {
        wait_until("datagrams are not answered", BOUND, || {
            let list = lock(&self.sent);
            let latest = list.iter().rev().take(10 * SETTLED);
            let latest: Vec<_> = latest.take_while(|sent| sent.at > since).collect();
            let latest = latest.get(..5 * SETTLED);
            Ok(latest.is_some_and(|latest| latest.iter().all(|sent| !sent.answered)))
        })?;
        let list = lock(&self.sent);
        let last = list.iter().rev().find(|sent| sent.answered);
        Ok(last.map_or(Duration::ZERO, |sent| {
            sent.at.saturating_duration_since(since)
        }))
    }
}

/// Takes note of the answers that have come.
fn hear(socket: &UdpSocket, list: &mut [Sent]) {
    let mut number = [0; NUMBER];
    loop {
        match socket.recv(&mut number) {
            Ok(NUMBER) => {
                let number = usize::from_be_bytes(number);
                if let Some(sent) = list.get_mut(number) {
                    sent.answered = true;
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            // What one of them has met on its way; the next call goes on.
            Err(_) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connections with a question every few milliseconds.
struct Lines {
    ended: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Result<usize>>>,
    clients: Clients,
}

impl Lines {
    fn start(client: &Host, service: SocketAddr) -> Result<Self> {
        let clients = Clients::on(client, 1)?;
        let ended = Arc::new(AtomicBool::new(false));
        let tasks = (0..LINES)
            .map(|_| {
                let end = Arc::clone(&ended);
                clients.spawn(async move {
                    let mut line = Line::open_within(BOUND, service).await?;
                    let mut asked = 0;
                    while !end.load(Ordering::Relaxed) {
                        line.ask_within(BOUND, After::Stay).await?;
                        asked += 1;
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Ok(asked)
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            ended,
            tasks,
            clients,
        })
    }

    /// How often each was answered; an error if one of them is lost.
    fn end(self) -> Result<Vec<usize>> {
        self.ended.store(true, Ordering::Relaxed);
        let tasks = self.tasks;
        self.clients
            .run(async move {
                let mut asked = Vec::new();
                for task in tasks {
                    asked.push(task.await.context("a task panicked")??);
                }
                Ok::<_, anyhow::Error>(asked)
            })?
            .context("a connection was lost")
    }
}

/// The link to the backends carries less from one moment to the next: the client
/// hears of it, and what it sends goes on.
#[test]
fn traffic_follows_an_interface_that_carries_shorter_packets() -> Result<()> {
    const BYTES: u64 = 3_000_000;
    let _turn = whole_machine();
    let net = Net::new(Arms::Two)?;
    let host = &net.backends[0];
    let service = SocketAddr::new(Family::V4.vip(), 80);
    let backend = SocketAddr::new(host.v4.into(), 80);
    let _server = HttpBackend::start_at(host, backend)?;
    let _answers = Answers::start(host, backend)?;
    let text = |protocol| {
        format!(
            "[[service]]\nname = \"{protocol}\"\nlisten = \"{service}\"\n\
             protocol = \"{protocol}\"\nforward = \"full-nat\"\n\
             [service.check]\ntype = \"none\"\n\
             [[service.backend]]\nname = \"b1\"\naddress = \"{backend}\"\n"
        )
    };
    let _balancer = Daemon::start(&net, &[text("tcp"), text("udp")])?;
    let probe = Probe::start(&net.client, service, 1400)?;
    probe.settle()?;
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    let uploads = net.client.spawn(move || -> Result<usize> {
        let mut connection = Connection::open(service)?;
        let mut uploads = 0;
        while !end.load(Ordering::Relaxed) {
            let (answer, sent) = connection.upload(BYTES)?;
            ensure!(
                answer.received == Some(sent),
                "what arrived is not what was sent"
            );
            uploads += 1;
        }
        Ok(uploads)
    });
    let mut took = Vec::new();
    for mtu in [1380, 1340, 1300] {
        net.balancer.set("eth1", &["mtu", &mtu.to_string()])?;
        took.push(probe.goes_on(Instant::now())?);
        // Datagrams are cut by their sender once it knows of one of these, and cut
        // again; segments are not.
        wait_until("the client is told", BOUND, || {
            Ok(ip_mtu(&*probe.socket)? == mtu)
        })?;
    }
    took.sort();
    println!("a shorter MTU: {:.1?} (median of {took:.1?})", took[1]);
    ensure!(took[2] <= SOON, "{took:?}");
    ended.store(true, Ordering::Relaxed);
    let uploads = match uploads.join() {
        Ok(uploads) => uploads?,
        Err(panicked) => std::panic::resume_unwind(panicked),
    };
    println!("{uploads} uploads of {BYTES} bytes by one connection all the while");
    Ok(())
}
