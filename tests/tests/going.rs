//! Backends that go: what becomes of the connections to a backend that was
//! killed, or that is being drained.
//!
//! A backend is killed as a machine dies: its cable is dead, and nobody sends a
//! FIN or a RST in its name. Then its clients hang until they give up, which
//! takes TCP minutes, unless the balancer tells them.

use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::netns::{
    After, Arms, Clients, Daemon, Echo, Family, Line, Net, SWIFT, Service, Stage, UdpEcho, ask_udp,
    wait_until,
};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The promise: from the verdict of the health check to an answer from another
/// backend.
const PROMISE: Duration = Duration::from_millis(100);

/// How long something may take that a busy machine does in a second.
const BOUND: Duration = Duration::from_secs(30);

/// For how long nothing must come where a connection is to hang: far longer than
/// a reset takes.
const SILENCE: Duration = Duration::from_secs(3);

/// How often a client that waits for news sends something.
const PACE: Duration = Duration::from_millis(10);

/// How many connections there are: a third of them to each backend.
const CONNECTIONS: usize = 60;

/// Checks that a service over UDP can have as well.
const SWIFT_BY_TCP: &str = "type = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"100ms\"";

/// They take turns: what they measure is time.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

macro_rules! resets {
    ($($name:ident: $forward:literal $family:ident)+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                clients_fail_over($forward, Family::$family, "on_down = \"reset\"")
            }
        )+
    };
}

resets! {
    reset_in_full_nat_over_ipv4: "full-nat" V4
    reset_in_full_nat_over_ipv6: "full-nat" V6
    reset_in_nat_over_ipv4: "nat" V4
    reset_in_nat_over_ipv6: "nat" V6
    reset_in_dsr_over_ipv4: "dsr" V4
    reset_in_dsr_over_ipv6: "dsr" V6
    reset_in_a_tunnel_over_ipv4: "tunnel" V4
    reset_in_a_tunnel_over_ipv6: "tunnel" V6
}

/// Another backend does not know the connection, and its kernel resets it (RFC
/// 9293, section 3.10.7.1); one behind a firewall would not.
#[test]
fn with_rehash_another_backend_ends_the_connection() -> Result<()> {
    for family in Family::ALL {
        clients_fail_over("full-nat", family, "on_down = \"rehash\"")?;
    }
    Ok(())
}

/// Clients whose backend dies are told with their next packet, and reach another
/// one at once; everybody else's connections go on.
fn clients_fail_over(forward: &'static str, family: Family, more: &'static str) -> Result<()> {
    let _turn = whole_machine();
    let crowd = Crowd::new(forward, family, more)?;
    let Crowd { stage, clients, .. } = &crowd;
    let (mut victims, others) = crowd.of(0)?;
    let steady = victims.split_off(victims.len() / 2);

    // Half of them are in the middle of something when it happens.
    let busy = Arc::new(AtomicBool::new(true));
    let steady: Vec<_> = steady
        .into_iter()
        .map(|line| clients.spawn(talks_on(line, Arc::clone(&busy))))
        .collect::<Result<_>>()?;
    stage.net.backends[0].run("ip", &["link", "set", "eth0", "down"])?;
    let verdict = wait_down(&stage.balancer, "b1")?;
    busy.store(false, Ordering::Relaxed);
    let listen = stage.service.listen;
    let idle = clients.run(all(victims, move |line| fails_over(line, listen, verdict)))??;
    let mut told = Vec::new();
    for task in steady {
        told.push(clients.run(task)???.saturating_duration_since(verdict));
    }
    still_there(clients, others)?;

    let idle = Times::of(idle);
    println!(
        "{forward} over {family:?}, {more}: {} idle clients had another backend's answer {idle} \
         after the verdict; {} in the middle of a request were told {} after it",
        idle.0.len(),
        told.len(),
        Times::of(told)
    );
    ensure!(
        idle.median() < PROMISE,
        "it took {idle} until another backend answered"
    );
    Ok(())
}

/// What `reset` is for: with `keep` a client hangs, and goes on when the backend
/// comes back.
#[test]
fn with_keep_a_connection_hangs_until_its_backend_is_back() -> Result<()> {
    let _turn = whole_machine();
    let crowd = Crowd::new("full-nat", Family::V4, "on_down = \"keep\"")?;
    let Crowd { stage, clients, .. } = &crowd;
    let (victims, others) = crowd.of(0)?;
    let host = &stage.net.backends[0];
    host.run("ip", &["link", "set", "eth0", "down"])?;
    wait_down(&stage.balancer, "b1")?;
    let asking: Vec<_> = victims
        .into_iter()
        .map(|(mut line, first)| {
            clients.spawn(async move {
                let silent = timeout(SILENCE, line.ask(After::Stay)).await.is_err();
                (silent, line, first)
            })
        })
        .collect::<Result<_>>()?;
    let mut hanging = Vec::new();
    for task in asking {
        let (silent, line, first) = clients.run(task)??;
        ensure!(
            silent,
            "a connection to a dead backend was answered or ended"
        );
        hanging.push((line, first));
    }
    println!("{} clients heard nothing for {SILENCE:?}", hanging.len());
    host.run("ip", &["link", "set", "eth0", "up"])?;
    // The answer to what was asked is still to come, before the next one.
    for (mut line, _) in hanging {
        clients.run(async move { line.outstanding(BOUND).await })??;
    }
    still_there(clients, others).map(drop)
}

/// Datagrams need no handshake: with rehash the client's socket goes on with
/// another backend.
#[test]
fn with_rehash_datagrams_go_to_another_backend() -> Result<()> {
    let _turn = whole_machine();
    for family in Family::ALL {
        let net = Net::new(Arms::One)?;
        let service = Service {
            protocol: "udp",
            check: SWIFT_BY_TCP,
            more: "on_down = \"rehash\"",
            ..Service::new("dns", "full-nat", family, [1, 1, 1])
        };
        // At the same port, for the checks.
        let _checked = net.start_http(&service)?;
        let _echoes = net
            .backends
            .iter()
            .map(|host| UdpEcho::start(host, family, service.port))
            .collect::<Result<Vec<_>>>()?;
        let balancer = Daemon::start(&net, &[service.toml(&net)])?;
        let unspecified = match family {
            Family::V4 => "0.0.0.0:0",
            Family::V6 => "[::]:0",
        };
        let sockets = net.client.enter(|| {
            (0..6)
                .map(|_| {
                    let socket = UdpSocket::bind(unspecified)?;
                    socket.connect(service.listen)?;
                    let first = ask_udp(&socket, "first")?;
                    Ok((socket, first))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        net.backends[0].run("ip", &["link", "set", "eth0", "down"])?;
        wait_down(&balancer, "b1")?;
        let mut moved = 0;
        for (socket, first) in &sockets {
            let answer = ask_udp(socket, "second")
                .with_context(|| format!("{} was {} before", first.client, first.backend))?;
            if first.backend == "b1" {
                moved += 1;
                ensure!(answer.backend != "b1", "the dead answer");
            } else {
                assert_eq!(answer, *first, "nobody else's datagrams move");
            }
        }
        ensure!(moved == 2, "{moved} of 6 sockets were b1's");
    }
    Ok(())
}

/// A drained backend gets no new connection and keeps its old ones, until the
/// deadline.
#[test]
fn a_drain_with_a_deadline_ends_what_is_left_when_it_is_over() -> Result<()> {
    let _turn = whole_machine();
    for (forward, family) in [
        ("full-nat", Family::V4),
        ("full-nat", Family::V6),
        ("dsr", Family::V4),
    ] {
        let crowd = Crowd::new(forward, family, "")?;
        let Crowd { stage, clients, .. } = &crowd;
        let (victims, others) = crowd.of(0)?;
        let deadline = Duration::from_secs(3);
        let began = Instant::now();
        stage
            .balancer
            .lb(&["backend", "drain", "web", "b1", "--deadline", "3s"])?;
        let listen = stage.service.listen;
        let fresh = clients.run(open(listen, 6))??;
        ensure!(
            fresh.iter().all(|(_, echo)| echo.backend != 0),
            "a drained backend got a new connection: {fresh:?}"
        );
        let victims = still_there(clients, victims)?;
        ensure!(
            began.elapsed() < deadline,
            "the machine is too busy to look within {deadline:?}"
        );
        let others = still_there(clients, others)?;
        let told = clients.run(all(victims, move |line| async move {
            let at = told(line).await?;
            Ok(at.duration_since(began))
        }))??;
        let told = Times::of(told);
        println!("{forward} over {family:?}: told {told} after a drain with {deadline:?}");
        ensure!(
            told.least() + PACE >= deadline && told.most() < deadline + BOUND,
            "told {told} after the drain"
        );
        still_there(clients, others)?;
    }
    Ok(())
}

/// Whoever drains a backend hears when it can be stopped.
#[test]
fn the_end_of_a_drain_is_told() -> Result<()> {
    let _turn = whole_machine();
    let crowd = Crowd::new("full-nat", Family::V4, "")?;
    let Crowd { stage, clients, .. } = &crowd;
    let (last, others) = crowd.of(0)?;
    stage.balancer.lb(&["backend", "drain", "web", "b1"])?;
    let last = still_there(clients, last)?;
    ensure!(
        !stage.balancer.has_told("drain_finished")?,
        "told while there are connections"
    );
    let ended = Instant::now();
    drop(last);
    wait_until("the end of the drain is told", BOUND, || {
        stage.balancer.has_told("drain_finished")
    })?;
    println!(
        "the end of a drain was told {:.1?} after it",
        ended.elapsed()
    );
    still_there(clients, others).map(drop)
}

/// A connection, and who answered on it first.
type Open = (Line, Echo);

/// A stage and open connections to all its backends.
struct Crowd {
    lines: Mutex<Vec<Open>>,
    clients: Clients,
    stage: Stage,
}

impl Crowd {
    fn new(forward: &'static str, family: Family, more: &'static str) -> Result<Self> {
        let service = Service {
            check: SWIFT,
            more,
            ..Service::new("web", forward, family, [1, 1, 1])
        };
        let stage = Stage::new(service, "")?;
        let clients = Clients::on(&stage.net.client, 2)?;
        for backend in 0..3 {
            wait_until("every backend is up", BOUND, || {
                Ok(stage.backend(backend)?["state"] == "up")
            })?;
        }
        let lines = clients.run(open(stage.service.listen, CONNECTIONS))??;
        Ok(Self {
            lines: Mutex::new(lines),
            clients,
            stage,
        })
    }

    /// The connections to a backend, and the others; once.
    fn of(&self, backend: u8) -> Result<(Vec<Open>, Vec<Open>)> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = std::mem::take(&mut *lines);
        let (these, others): (Vec<_>, Vec<_>) = lines
            .into_iter()
            .partition(|(_, echo)| echo.backend == backend);
        ensure!(these.len() == CONNECTIONS / 3, "the shares are exact");
        Ok((these, others))
    }
}

async fn open(listen: SocketAddr, count: usize) -> Result<Vec<Open>> {
    let mut lines = Vec::new();
    for _ in 0..count {
        let mut line = Line::open_within(BOUND, listen).await?;
        let echo = line.ask_within(BOUND, After::Stay).await?;
        lines.push((line, echo));
    }
    Ok(lines)
}

/// Asks on each again: the same backend answers.
fn still_there(clients: &Clients, lines: Vec<Open>) -> Result<Vec<Open>> {
    clients.run(async move {
        let mut lines = lines;
        for (line, first) in &mut lines {
            let echo = line.ask_within(BOUND, After::Stay).await?;
            ensure!(echo == *first, "{first:?} has become {echo:?}");
        }
        Ok(lines)
    })?
}

/// Does this with all connections at once.
async fn all<T, F>(lines: Vec<Open>, work: impl Fn(Line) -> F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (line, _) in lines {
        tasks.spawn(work(line));
    }
    let mut results = Vec::new();
    while let Some(done) = tasks.join_next().await {
        results.push(done??);
    }
    Ok(results)
}

/// Sends until it is told that the connection is over; when that was.
async fn told(mut line: Line) -> Result<Instant> {
    timeout(BOUND, line.until_over(PACE))
        .await
        .with_context(|| format!("the connection was not ended within {BOUND:?}"))?;
    Ok(Instant::now())
}

/// Finds out that the connection is over and opens another one; how long after
/// the verdict it was answered.
async fn fails_over(line: Line, listen: SocketAddr, verdict: Instant) -> Result<Duration> {
    told(line).await?;
    let mut again = Line::open_within(BOUND, listen).await?;
    let echo = again.ask_within(BOUND, After::Stay).await?;
    ensure!(echo.backend != 0, "the dead answer");
    Ok(verdict.elapsed())
}

/// Asks and waits for the answer, again and again, also while none comes; when it
/// was told that the connection is over.
async fn talks_on(open: Open, busy: Arc<AtomicBool>) -> Result<Instant> {
    let (mut line, _) = open;
    loop {
        match line.ask_within(BOUND, After::Stay).await {
            Ok(_) if busy.load(Ordering::Relaxed) => sleep(PACE).await,
            Ok(_) => bail!("a dead backend answers"),
            Err(_) => return Ok(Instant::now()),
        }
    }
}

/// Waits until the backend is down; when it was last seen up, which is before the
/// verdict.
fn wait_down(balancer: &Daemon, name: &str) -> Result<Instant> {
    let deadline = Instant::now() + BOUND;
    let mut last_up = Instant::now();
    loop {
        let asked = Instant::now();
        let backends = balancer.ask("/v1/backends")?;
        let mut list = backends.as_array().into_iter().flatten();
        let backend = list.find(|backend| backend["name"] == name);
        let backend = backend.with_context(|| format!("{name} is not on the list"))?;
        if backend["state"] == "down" {
            return Ok(last_up);
        }
        last_up = asked;
        ensure!(asked < deadline, "{name} was not down within {BOUND:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Durations, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }

    fn least(&self) -> Duration {
        self.0.first().copied().unwrap_or_default()
    }

    fn most(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (median, least, most) = (self.median(), self.least(), self.most());
        write!(f, "{median:.1?} ({least:.1?} to {most:.1?})")
    }
}
