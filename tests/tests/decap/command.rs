//! `lb decap` on a backend: real packets through a real tunnel, to an ordinary
//! server that listens on the service's address.
//!
//! There is no balancer: the client wraps its packets itself, by a raw socket
//! from one of the addresses that a balancer's tunnels come from. So the whole
//! way is the kernel's but for the program.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::frame::udp;
use tests::netns::{Arms, Family, Host, Net, lb_binary, wait_until};

/// How long a start, an answer or an end may take on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// How long to wait for one answer before asking again.
const PATIENCE: Duration = Duration::from_millis(200);

/// Where tunnels come from.
const SOURCES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 7, 7)),
    IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 7, 7)),
];

const PORT: u16 = 5300;

#[test]
fn a_tunnel_of_either_family_in_either_reaches_an_ordinary_server() -> Result<()> {
    for (mode, mtu) in [("native", 1_500), ("generic", 1_500), ("native", 9_000)] {
        let world = World::new()?;
        world.set_mtu(mtu)?;
        let decap = Decap::start(&world.backend, &["--mode", mode])?;
        for inner in Family::ALL {
            for source in SOURCES {
                let doing = || format!("{mode}, {inner:?} from {source}");
                let outer = world.outer(source);
                for size in [1, mtu - 200] {
                    world.ask(inner, source, outer, size).with_context(doing)?;
                }
            }
        }
        let report = decap.stop()?;
        ensure!(report["mode"] == mode, "{report}");
        ensure!(packets(&report, "unwrapped") >= 8, "{report}");
        ensure!(packets(&report, "not_tunnel") > 0, "{report}");
        ensure!(packets(&report, "bad_inner") == 0, "{report}");
        // The program has ended with the process.
        ensure!(!world.attached()?, "the program is still there");
        ensure!(
            world
                .ask_once(Family::V4, SOURCES[0], world.outer(SOURCES[0]), 1)?
                .is_none()
        );
    }
    Ok(())
}

#[test]
fn only_trusted_sources_and_own_addresses_count_as_they_come_and_go() -> Result<()> {
    let world = World::new()?;
    let decap = Decap::start(&world.backend, &["--from", "198.18.7.7/32"])?;
    let ours = world.outer(SOURCES[0]);
    world.ask(Family::V4, SOURCES[0], ours, 1)?;
    // From the client's own address, and from the family that is not named.
    let stranger = IpAddr::V4(world.client.v4);
    ensure!(world.ask_once(Family::V4, stranger, ours, 1)?.is_none());
    let six = world.outer(SOURCES[1]);
    ensure!(world.ask_once(Family::V4, SOURCES[1], six, 1)?.is_none());

    // An address that is not there; then it is, and then it is not.
    let later = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 77));
    world.client.run(
        "ip",
        &[
            "route",
            "add",
            "10.9.0.77",
            "via",
            &world.backend.v4.to_string(),
        ],
    )?;
    ensure!(world.ask_once(Family::V4, SOURCES[0], later, 1)?.is_none());
    world
        .backend
        .run("ip", &["addr", "add", "10.9.0.77/32", "dev", "lo"])?;
    world.ask(Family::V4, SOURCES[0], later, 1)?;
    world
        .backend
        .run("ip", &["addr", "del", "10.9.0.77/32", "dev", "lo"])?;
    wait_until(
        "nothing is unwrapped to an address that has gone",
        BOUND,
        || Ok(world.ask_once(Family::V4, SOURCES[0], later, 1)?.is_none()),
    )?;

    let report = decap.stop()?;
    ensure!(packets(&report, "untrusted_source") >= 2, "{report}");
    ensure!(packets(&report, "not_for_us") >= 2, "{report}");
    Ok(())
}

#[test]
fn a_killed_process_leaves_nothing_and_an_interface_that_goes_ends_it() -> Result<()> {
    let world = World::new()?;
    let mut decap = Decap::start(&world.backend, &[])?;
    ensure!(world.attached()?, "the program is not there");
    decap.child.kill()?;
    decap.child.wait()?;
    wait_until("the program is gone", BOUND, || Ok(!world.attached()?))?;

    let decap = Decap::start(&world.backend, &[])?;
    world.backend.run("ip", &["link", "del", "eth0"])?;
    let output = decap.end()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(
        said.contains(
            "interface eth0 has gone, and the program with it; start `lb decap` again when it is back"
        ),
        "{said}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_in_one_sentence() -> Result<()> {
    let world = World::new()?;
    let lb = lb_binary().display().to_string();
    let _first = Decap::start(&world.backend, &["--mode", "generic"])?;
    let cases: [(&[&str], &[&str], &str); 6] = [
        (
            &[&lb],
            &["eth9"],
            "lb: interface eth9 does not exist; this host has ",
        ),
        (
            &[&lb],
            &["eth0"],
            "lb: eth0 already has an XDP program (another `lb decap`, an `lb run`, or another tool); detach it first: `bpftool net` shows it",
        ),
        (
            &[&lb],
            &["eth0", "--mode", "native"],
            "lb: eth0 already has an XDP program",
        ),
        (
            &[&lb],
            &["eth0", "--from", "198.18.0.1/16"],
            "198.18.0.0/16",
        ),
        (&[&lb], &["eth0", "--from", "here"], "\"here\""),
        (
            &["setpriv", "--bounding-set=-net_admin", &lb],
            &["eth0"],
            "it lacks CAP_NET_ADMIN; run it as root",
        ),
    ];
    for (words, arguments, sentence) in cases {
        let (program, more) = words.split_first().expect("there is a program");
        let output = world
            .backend
            .command(program)
            .args(more)
            .arg("decap")
            .args(arguments)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{arguments:?}: {said}");
        ensure!(said.contains(sentence), "{arguments:?}: {said}");
        ensure!(
            said.trim_end().lines().count() == 1,
            "{arguments:?}: {said}"
        );
    }
    Ok(())
}

/// A client that can wrap packets, and a backend that holds the services'
/// addresses on `lo`.
struct World {
    client: Host,
    backend: Host,
    /// Its servers end before the network does.
    _servers: Vec<Server>,
    net: Net,
}

impl World {
    fn new() -> Result<Self> {
        let net = Net::new(Arms::One)?;
        let (client, backend) = (net.client.clone(), net.backends[0].clone());
        for family in Family::ALL {
            add_address(&backend, family.vip())?;
        }
        for source in SOURCES {
            add_address(&client, source)?;
        }
        let servers = Family::ALL
            .into_iter()
            .map(|family| Server::start(&backend, SocketAddr::new(family.vip(), PORT)))
            .collect::<Result<_>>()?;
        Ok(Self {
            client,
            backend,
            _servers: servers,
            net,
        })
    }

    /// The backend's address for a tunnel from there.
    fn outer(&self, source: IpAddr) -> IpAddr {
        match source {
            IpAddr::V4(_) => self.backend.v4.into(),
            IpAddr::V6(_) => self.backend.v6.into(),
        }
    }

    /// Asks the service through the tunnel until it answers.
    fn ask(&self, inner: Family, source: IpAddr, outer: IpAddr, size: usize) -> Result<()> {
        let what = format!("the service answers through the tunnel from {source} to {outer}");
        wait_until(&what, BOUND, || {
            Ok(self.ask_once(inner, source, outer, size)?.is_some())
        })
    }

    /// Asks the service through the tunnel; gives its answer, if there is one.
    fn ask_once(
        &self,
        inner: Family,
        source: IpAddr,
        outer: IpAddr,
        size: usize,
    ) -> Result<Option<Vec<u8>>> {
        self.client.enter(|| {
            let own = SocketAddr::new(self.client.address(inner), 0);
            let socket = UdpSocket::bind(own)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let service = SocketAddr::new(inner.vip(), PORT);
            let question = vec![b'q'; size];
            let packet = udp(&socket.local_addr()?.to_string(), &service.to_string())
                .payload(&question)
                .packet();
            send_wrapped(&packet, inner, source, outer)?;
            let mut answer = vec![0; 2 * size + 16];
            match socket.recv_from(&mut answer) {
                Ok((length, from)) => {
                    ensure!(from == service, "{from} answered for {service}");
                    answer.truncate(length);
                    ensure!(answer == answer_to(&question), "another answer");
                    Ok(Some(answer))
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error).context("no answer can be received"),
            }
        })
    }

    /// Frames of more than a page want the other flavour of the program.
    fn set_mtu(&self, mtu: usize) -> Result<()> {
        let mtu = mtu.to_string();
        for host in [&self.client, &self.backend] {
            let socket = format!("{}-eth0", host.name);
            let switch = &self.net.switch;
            switch.run("ip", &["link", "set", &socket, "mtu", &mtu])?;
            host.run("ip", &["link", "set", "eth0", "mtu", &mtu])?;
        }
        Ok(())
    }

    fn attached(&self) -> Result<bool> {
        let shown = self.backend.run("ip", &["link", "show", "dev", "eth0"])?;
        Ok(shown.contains("xdp"))
    }
}

/// Puts an address on `lo`, to be used at once.
fn add_address(host: &Host, address: IpAddr) -> Result<()> {
    let text = address.to_string();
    let nodad: &[&str] = if address.is_ipv6() { &["nodad"] } else { &[] };
    host.run(
        "ip",
        &[&["addr", "add", &text, "dev", "lo"], nodad].concat(),
    )?;
    Ok(())
}

/// Sends a packet inside another one: the kernel writes the outer header.
fn send_wrapped(packet: &[u8], inner: Family, source: IpAddr, outer: IpAddr) -> Result<()> {
    let family = match source {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let number = match inner {
        Family::V4 => 4,
        Family::V6 => 41,
    };
    let protocol = NonZeroU32::new(number).map(Protocol::from_raw);
    let socket: OwnedFd =
        rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
    rustix::net::sendto(
        &socket,
        packet,
        SendFlags::empty(),
        &SocketAddr::new(outer, 0),
    )?;
    Ok(())
}

fn answer_to(question: &[u8]) -> Vec<u8> {
    [b"a:", question].concat()
}

/// An ordinary server over UDP.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(host: &Host, address: SocketAddr) -> Result<Self> {
        let socket = host
            .enter(|| UdpSocket::bind(address))
            .with_context(|| format!("no server at {address}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut question = [0; 16_384];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut question) {
                    // Who asks again if this is lost is the client.
                    let _ = socket.send_to(&answer_to(&question[..length]), from);
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `lb decap eth0 --json` on a host. Dropped, its process ends.
struct Decap {
    child: Child,
}

impl Decap {
    /// Starts it and waits until it is attached.
    fn start(host: &Host, arguments: &[&str]) -> Result<Self> {
        let child = host
            .command(lb_binary())
            .args(["decap", "eth0", "--json"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut decap = Self { child };
        let deadline = Instant::now() + BOUND;
        while !host
            .run("ip", &["link", "show", "dev", "eth0"])?
            .contains("xdp")
        {
            ensure!(Instant::now() < deadline, "it is not attached in {BOUND:?}");
            if decap.child.try_wait()?.is_some() {
                let output = decap.end()?;
                bail!("it ended: {}", String::from_utf8_lossy(&output.stderr));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(decap)
    }

    /// Asks it to end; gives its report.
    fn stop(self) -> Result<Value> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let output = self.end()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {said}", output.status);
        ensure!(said.contains("attached to eth0"), "{said}");
        serde_json::from_slice(&output.stdout).context("it printed no JSON")
    }

    /// Waits until it has ended. What it prints fits the pipes.
    fn end(mut self) -> Result<Output> {
        wait_until("lb decap ends", BOUND, || {
            Ok(self.child.try_wait()?.is_some())
        })?;
        let mut output = Output {
            status: self.child.wait()?,
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        if let Some(mut pipe) = self.child.stdout.take() {
            std::io::Read::read_to_end(&mut pipe, &mut output.stdout)?;
        }
        if let Some(mut pipe) = self.child.stderr.take() {
            std::io::Read::read_to_end(&mut pipe, &mut output.stderr)?;
        }
        Ok(output)
    }
}

impl Drop for Decap {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn packets(report: &Value, outcome: &str) -> u64 {
    let outcomes = report["outcomes"].as_array().into_iter().flatten();
    let mut of_it = outcomes.filter(|counted| counted["outcome"] == outcome);
    of_it
        .next()
        .and_then(|counted| counted["packets"].as_u64())
        .unwrap_or_else(|| panic!("{outcome} is not in {report}"))
}
