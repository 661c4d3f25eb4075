//! A network of real hosts for tests: clients, the balancer and backends, each
//! in a network namespace of its own, with a switch between them.
//!
//! ```text
//!  one arm                              two arms
//!
//!   client   balancer   b1 b2 b3         client ── br0 ── eth0 balancer eth1 ── br1 ── b1 b2 b3
//!      └────────┴─ br0 ──┴──┴──┘               10.9.0.0/24                 10.9.1.0/24
//!        10.9.0.0/24, fd09::/64                fd09::/64                   fd09:1::/64
//! ```
//!
//! In a [`Net::routed`] the client is elsewhere, beyond two [`Routers`]. In a
//! [`Net::paired`] there is another place for a balancer beside the first one.
//!
//! The bridges are in the switch's namespace. What the balancer sends with
//! `XDP_TX` or a redirect arrives at a veth only if the receiving end has an XDP
//! program too, so another `lb run`, without services, is attached to the
//! switch's ends of a balancer's cables: it passes everything.
//!
//! Everything on the host is named `lbt-PID-NUMBER-NAME`: a [`Net`] takes it away
//! when it is dropped, and `cargo xtask` what a killed test has left. Only the
//! network is separate: files, pins and process ids are those of the host.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use tests::netns::{Arms, Daemon, Family, Net, Service, ask};
//!
//! let net = Net::new(Arms::One)?;
//! let web = Service::new("web", "full-nat", Family::V4, [3, 2, 1]);
//! let _backends = net.start_http(&web)?;
//! let balancer = Daemon::start(&net, &[web.toml(&net)])?;
//! let answer = net.client.enter(|| ask(web.listen))?;
//! println!("{} answered", answer.backend);
//! balancer.lb(&["backend", "weight", "web", "b1", "5"])?;
//! # Ok(())
//! # }
//! ```

mod chain;
mod daemon;
mod decap;
mod devices;
mod echo;
mod flood;
mod http;
mod icmp;
mod keepalived;
mod owners;
mod pair;
mod routers;
mod service;
mod several;
mod snapshot;
mod stage;
mod steady;
mod udp;
mod unwrap;
mod wire;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

pub use chain::{Chain, Offloads};
pub use daemon::{Daemon, lb_binary};
pub use decap::Decap;
pub use devices::Pulled;
pub use echo::{After, Clients, Echo, EchoServer, Line, Served, most_files, serve_echoes};
pub use flood::{Flood, Flooded, Handshakes};
pub use http::{Answer, Connection, HttpBackend, PATIENCE, Seeded, ask, tally};
pub use icmp::{Ear, Heard, ping};
pub use keepalived::Keepalived;
pub use owners::{Answered, Asked, EVERY, Owners};
pub use pair::{Hand, Pair, Setting};
pub use routers::Routers;
pub use service::{CALM, SWIFT, Service, UNCHECKED};
pub use several::{open, shares, still_there};
pub use snapshot::{Snapshot, differences, lasting_differences, snapshot};
pub use stage::Stage;
pub use steady::{Seen, Steady};
pub use udp::{UdpEcho, ask_udp, mirrored};
pub use unwrap::Unwrapper;
pub use wire::{Capture, Wire};

/// Where iproute2 keeps the names of namespaces.
const NAMESPACES: &str = "/run/netns";

/// Where the pins of the tests' balancers are.
const PINS: &str = "/sys/fs/bpf";

/// Tells the networks of one process apart.
static NUMBER: AtomicU32 = AtomicU32::new(1);

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The address that every service of the tests listens on, and that nobody
    /// has until a balancer takes it.
    pub const fn vip(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(10, 9, 0, 100)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x100)),
        }
    }
}

/// How many interfaces the balancer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    /// `eth0`, where clients and backends are.
    One,
    /// `eth0` with the clients, `eth1` with the backends.
    Two,
}

/// The network. Dropped, it ends every process in it and takes all of it away.
pub struct Net {
    id: String,
    arms: Arms,
    /// The bridges.
    pub switch: Host,
    /// Where the clients are.
    pub client: Host,
    /// Where the balancer is to run.
    pub balancer: Host,
    /// `b1`, `b2`, `b3`.
    pub backends: [Host; 3],
    /// Those between the client and the balancer, if it was built so.
    pub routers: Option<Routers>,
    /// Where another balancer is to run, if it was built so.
    pub second: Option<Host>,
    folder: TempDir,
    passers: Vec<Daemon>,
}

/// What a network has that most have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    Nothing,
    Routers,
    Second,
}

/// A host of the network: a network namespace. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host {
    /// `client`, `lb`, `b1`, …
    pub name: String,
    namespace: String,
    /// Its address on `eth0`.
    pub v4: Ipv4Addr,
    /// Its address on `eth0`.
    pub v6: Ipv6Addr,
}

impl Net {
    /// Builds the network; needs root.
    pub fn new(arms: Arms) -> Result<Self> {
        Self::lay(arms, Extra::Nothing)
    }

    /// Builds it with the client beyond two routers ([`Routers`]).
    pub fn routed(arms: Arms) -> Result<Self> {
        Self::lay(arms, Extra::Routers)
    }

    /// Builds it on one arm, with a place for a second balancer.
    pub fn paired() -> Result<Self> {
        Self::lay(Arms::One, Extra::Second)
    }

    fn lay(arms: Arms, extra: Extra) -> Result<Self> {
        let routed = extra == Extra::Routers;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("lbt-{}-{number}", process::id());
        let host = |name: &str, net: u16, last: u16| Host {
            name: name.into(),
            namespace: format!("{id}-{name}"),
            v4: Ipv4Addr::from(0x0a09_0000 | u32::from(net) << 8 | u32::from(last)),
            v6: Ipv6Addr::new(0xfd09, net, 0, 0, 0, 0, 0, last),
        };
        let beyond = u16::from(arms == Arms::Two);
        let mut net = Self {
            switch: host("sw", 0, 0),
            client: host("client", if routed { 2 } else { 0 }, 1),
            balancer: host("lb", 0, 2),
            backends: [
                host("b1", beyond, 0x11),
                host("b2", beyond, 0x12),
                host("b3", beyond, 0x13),
            ],
            routers: routed.then(|| Routers {
                near: host("near", 0, 3),
                far: host("far", 2, 0xfe),
            }),
            second: (extra == Extra::Second).then(|| host("lb2", 0, 4)),
            folder: tempfile::Builder::new()
                .prefix(&format!("{id}-"))
                .tempdir()
                .context("cannot make a folder for the network's files")?,
            passers: Vec::new(),
            id,
            arms,
        };
        net.build()?;
        net.passers = Daemon::start_passers(&net)?;
        Ok(net)
    }

    /// The interfaces of the balancer.
    pub const fn interfaces(&self) -> &'static [&'static str] {
        match self.arms {
            Arms::One => &["eth0"],
            Arms::Two => &["eth0", "eth1"],
        }
    }

    /// A folder for files; gone with the network.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A folder for pins; gone with the network.
    pub fn pins(&self, name: &str) -> PathBuf {
        Path::new(PINS).join(format!("{}-{name}", self.id))
    }

    /// The backends' way back to the client leads through the balancer, as
    /// `nat` needs it; with two arms it does so anyway.
    pub fn lead_replies_through_balancer(&self) -> Result<()> {
        if self.arms == Arms::Two {
            return Ok(());
        }
        for backend in &self.backends {
            for family in Family::ALL {
                let to = self.client.address(family).to_string();
                let via = self.balancer.address(family).to_string();
                backend.run("ip", &["route", "add", &to, "via", &via])?;
            }
        }
        Ok(())
    }

    /// A server on each backend of the service, in order.
    pub fn start_http(&self, service: &Service) -> Result<Vec<HttpBackend>> {
        self.backends
            .iter()
            .enumerate()
            .map(|(number, host)| HttpBackend::start_at(host, service.server(self, number)))
            .collect()
    }

    /// The backends have the service's address themselves, and tell nobody, as
    /// `dsr` and `tunnel` need it.
    pub fn give_address_to_backends(&self, service: &Service) -> Result<()> {
        let (address, flags): (_, &[&str]) = match service.listen.ip() {
            IpAddr::V4(address) => (format!("{address}/32"), &[]),
            IpAddr::V6(address) => (format!("{address}/128"), &["nodad"]),
        };
        for backend in &self.backends {
            backend.sysctl("ipv4/conf/all/arp_ignore", "1")?;
            backend.sysctl("ipv4/conf/all/arp_announce", "2")?;
            let add = ["addr", "add", &address, "dev", "lo"];
            backend.run("ip", &[&add, flags].concat())?;
        }
        Ok(())
    }

    fn build(&self) -> Result<()> {
        for host in self.hosts() {
            run("ip", &["netns", "add", &host.namespace])?;
            host.settle()?;
        }
        batch(&self.cables())?;
        for host in self.hosts().filter(|host| host.name != "sw") {
            let beyond = ["lb", "near"].contains(&&*host.name) && self.arms == Arms::Two;
            for interface in ["eth0", "eth1"].iter().take(1 + usize::from(beyond)) {
                // Veth has no hardware that completes checksums and cuts
                // segments after the XDP program has seen the frame.
                let off = ["tx", "off", "tso", "off", "gso", "off"];
                host.run("ethtool", &[&["-K", interface][..], &off].concat())?;
            }
        }
        if let Some(routers) = &self.routers {
            routers.build()?;
        }
        // The balancer's stack forwards only packets whose next hop it must
        // resolve first; on one arm it would tell their sender a shorter way.
        for host in self.balancers() {
            host.sysctl("ipv4/conf/all/send_redirects", "0")?;
            host.sysctl("ipv4/conf/eth0/send_redirects", "0")?;
        }
        Ok(())
    }

    /// Commands for `ip` that lay the cables and give addresses.
    fn cables(&self) -> String {
        let mut text = String::new();
        let mut say = |line: String| text = format!("{text}{line}\n");
        let switch = &self.switch.namespace;
        for bridge in ["br0", "br1"] {
            say(format!("-n {switch} link add {bridge} type bridge"));
            say(format!("-n {switch} link set {bridge} up"));
        }
        let beyond = if self.arms == Arms::Two { "br1" } else { "br0" };
        let nearest = self.routers.as_ref().map(|routers| &routers.near);
        let nearest = nearest.unwrap_or(&self.client);
        let mut plugs = vec![(nearest, "eth0", "br0"), (&self.balancer, "eth0", "br0")];
        plugs.extend(self.second.iter().map(|host| (host, "eth0", "br0")));
        plugs.extend(self.backends.iter().map(|host| (host, "eth0", beyond)));
        if self.arms == Arms::Two {
            plugs.push((&self.balancer, "eth1", "br1"));
            plugs.extend(self.routers.iter().map(|both| (&both.near, "eth1", "br1")));
        }
        for (host, interface, bridge) in plugs {
            let (namespace, socket) = (&host.namespace, socket(host, interface));
            say(format!(
                "link add {socket} netns {switch} type veth peer name {interface} netns {namespace}"
            ));
            say(format!("-n {switch} link set {socket} master {bridge} up"));
            let (v4, v6) = match interface {
                "eth0" => (host.v4, host.v6),
                _ => (beyond_v4(host), beyond_v6(host)),
            };
            say(format!("-n {namespace} addr add {v4}/24 dev {interface}"));
            say(format!(
                "-n {namespace} addr add {v6}/64 dev {interface} nodad"
            ));
            say(format!("-n {namespace} link set {interface} up"));
        }
        if self.arms == Arms::Two {
            for host in &self.backends {
                let (v4, v6) = (beyond_v4(&self.balancer), beyond_v6(&self.balancer));
                for via in [v4.to_string(), v6.to_string()] {
                    say(format!("-n {} route add default via {via}", host.namespace));
                }
            }
        }
        match &self.routers {
            Some(routers) => text + &routers.cables(self),
            None => text,
        }
    }

    /// Where balancers run.
    fn balancers(&self) -> impl Iterator<Item = &Host> {
        [&self.balancer].into_iter().chain(&self.second)
    }

    fn hosts(&self) -> impl Iterator<Item = &Host> {
        let routers = self.routers.iter();
        [&self.switch, &self.client]
            .into_iter()
            .chain(self.balancers())
            .chain(&self.backends)
            .chain(routers.flat_map(|both| [&both.near, &both.far]))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.passers.clear();
        take_away(&self.id, self.hosts());
    }
}

/// Ends what runs on hosts, and takes them and their network's pins away.
fn take_away<'a>(id: &str, hosts: impl Iterator<Item = &'a Host>) {
    for host in hosts {
        host.end_processes();
        // One that was never made needs no removal.
        let _ = run("ip", &["netns", "delete", &host.namespace]);
    }
    let prefix = format!("{id}-");
    for entry in fs::read_dir(PINS).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The name of the switch's end of a host's cable.
fn socket(host: &Host, interface: &str) -> String {
    format!("{}-{interface}", host.name)
}

fn beyond_v4(host: &Host) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(host.v4) | 1 << 8)
}

fn beyond_v6(host: &Host) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(host.v6) | 1 << 96)
}

impl Host {
    /// Its address of a family, on `eth0`.
    pub const fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }

    /// A command that will run on this host. Its process id is the program's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={NAMESPACES}/{}", self.namespace))
            .arg(program);
        command
    }

    /// Runs a program on this host; gives what it printed, or why it failed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        finish(self.command(program).args(arguments))
    }

    /// Runs `work` in a thread on this host. Sockets made there stay there, and
    /// so do threads started there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.move_here();
                work()
            });
            match inside.join() {
                Ok(done) => done,
                Err(panicked) => std::panic::resume_unwind(panicked),
            }
        })
    }

    /// Starts a thread on this host.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let host = self.clone();
        thread::spawn(move || {
            host.move_here();
            work()
        })
    }

    /// Reads a setting below `/proc/sys/net`, such as `ipv4/ip_forward`.
    pub fn setting(&self, name: &str) -> Result<String> {
        let path = Path::new("/proc/sys/net").join(name);
        let text = self.enter(|| fs::read_to_string(&path));
        Ok(text
            .with_context(|| format!("cannot read {}", path.display()))?
            .trim()
            .to_owned())
    }

    /// Changes a setting below `/proc/sys/net`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("cannot set {} to {value}", path.display()))
    }

    /// How many packets this host has not sent on because they were too big
    /// for the next link and must not be cut: it told their senders.
    pub fn refused_as_too_big(&self, family: Family) -> Result<u64> {
        let (path, name) = match family {
            Family::V4 => ("/proc/thread-self/net/snmp", "FragFails"),
            Family::V6 => ("/proc/thread-self/net/snmp6", "Ip6FragFails"),
        };
        let text = self.enter(|| fs::read_to_string(path))?;
        let value = match family {
            // A line of names, and below it one of values.
            Family::V4 => {
                let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
                let (names, values) = (lines.next(), lines.next());
                names.zip(values).and_then(|(names, values)| {
                    let place = names.split(' ').position(|word| word == name)?;
                    values.split(' ').nth(place)
                })
            }
            Family::V6 => text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim),
        };
        let value = value.with_context(|| format!("{path} has no {name}"))?;
        Ok(value.parse()?)
    }

    /// Takes the calling thread into the namespace.
    fn move_here(&self) {
        let path = Path::new(NAMESPACES).join(&self.namespace);
        let file = File::open(&path).expect("the namespace lives as long as its Net");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter a network namespace");
    }

    /// What every host needs before it has interfaces: no waiting for duplicate
    /// addresses, and no shorter ways (with one arm a backend in `nat` has one
    /// to the client, but must not take it).
    fn settle(&self) -> Result<()> {
        for (setting, value) in [
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/accept_redirects", "0"),
            ("ipv4/conf/all/accept_redirects", "0"),
            ("ipv4/conf/default/accept_redirects", "0"),
        ] {
            self.sysctl(setting, value)?;
        }
        run("ip", &["-n", &self.namespace, "link", "set", "lo", "up"]).map(drop)
    }

    /// Ends the processes on this host, and waits until they are gone.
    fn end_processes(&self) {
        let Ok(own) = fs::metadata(Path::new(NAMESPACES).join(&self.namespace)) else {
            return;
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = processes_in(own.ino());
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in left {
                // One that has ended meanwhile is as good as one that was ended.
                let _ = run("kill", &["-KILL", &pid.to_string()]);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The other processes in a network namespace. A dead one that nobody has
/// waited for yet is in none.
fn processes_in(namespace: u64) -> BTreeSet<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| pid != process::id())
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|of| of.ino() == namespace)
        })
        .collect()
}

/// Waits until `holds`, at most `bound`; `what` is told if it never does.
pub fn wait_until(
    what: &str,
    bound: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + bound;
    loop {
        if holds()? {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("waited {bound:?} in vain until {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    finish(Command::new(program).args(arguments))
}

fn finish(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs commands of `ip`, a line each; `-n NAMESPACE` may begin a line.
fn batch(commands: &str) -> Result<()> {
    for (namespace, lines) in grouped(commands) {
        let mut ip = Command::new("ip");
        if let Some(namespace) = namespace {
            ip.args(["-n", namespace]);
        }
        let mut ip = ip
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run `ip`; it is in Debian's package iproute2")?;
        ip.stdin
            .take()
            .context("`ip` has no input")?
            .write_all(lines.as_bytes())?;
        let output = ip.wait_with_output()?;
        ensure!(
            output.status.success(),
            "`ip` refused the network of the tests: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Neighbouring lines of the same namespace, together.
fn grouped(commands: &str) -> Vec<(Option<&str>, String)> {
    let mut groups: Vec<(Option<&str>, String)> = Vec::new();
    for line in commands.lines() {
        let (namespace, command) = match line.strip_prefix("-n ") {
            Some(rest) => rest
                .split_once(' ')
                .map_or((None, line), |(namespace, command)| {
                    (Some(namespace), command)
                }),
            None => (None, line),
        };
        match groups.last_mut() {
            Some((last, lines)) if *last == namespace => *lines = format!("{lines}{command}\n"),
            _ => groups.push((namespace, format!("{command}\n"))),
        }
    }
    groups
}
