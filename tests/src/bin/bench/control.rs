//! The control plane: how long a large configuration takes, how soon a weight is
//! obeyed, and what connections take in memory.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, ArrayOfMaps, Map, MapData};
use lb_common::abi::{ABI_VERSION, sequence};
use tests::netns::{Chain, Daemon};

use crate::cases::grouped;
use crate::load::{End, Sender};
use crate::ours;
use crate::page::{Sample, Section, Table, shown};
use crate::report::Figures;

/// How long anything here may take, and far more.
const BOUND: Duration = Duration::from_secs(120);

/// Backends of each service.
const BACKENDS: u32 = 10;

/// The service whose weights are changed, in the middle of the file.
const CHANGED: fn(u32) -> u32 = |services| services / 2;

/// How much is measured.
struct Extent {
    /// Starts of the daemon.
    starts: u32,
    /// Changes of weights.
    changes: u16,
    /// Services of the large configuration.
    services: u32,
    /// Numbers of connections whose memory is looked at.
    flows: &'static [u32],
}

const WHOLE: Extent = Extent {
    starts: 5,
    changes: 40,
    services: 1_000,
    flows: &[10_000, 100_000, 1_000_000],
};

const GLANCE: Extent = Extent {
    starts: 1,
    changes: 5,
    services: 100,
    flows: &[10_000],
};

/// Durations of something, in milliseconds.
struct Line {
    name: String,
    milliseconds: Vec<f64>,
}

impl Line {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            milliseconds: Vec::new(),
        }
    }

    fn add(&mut self, took: Duration) {
        self.milliseconds.push(took.as_secs_f64() * 1e3);
    }
}

/// Measures all of it.
pub(crate) fn measure(quick: bool) -> Result<Section> {
    let extent = if quick { GLANCE } else { WHOLE };
    let mut lines = Vec::new();
    for services in [1, extent.services] {
        lines.extend(of_size(services, &extent)?);
    }
    let mut times = Table::new(&["", "median ms", "min", "max"], TIMES);
    for line in &lines {
        let Figures { median, min, max } = Figures::of(line.milliseconds.iter().copied());
        let [median, min, max] = [median, min, max].map(shown);
        eprintln!("{median:>9} ms  {}", line.name);
        times.row(&[line.name.clone(), format!("**{median}**"), min, max]);
    }
    let mut samples: Vec<Sample> = lines
        .iter()
        .map(|line| Sample::new(line.name.clone(), "ms", &line.milliseconds))
        .collect();
    let mut memory = Table::new(
        &[
            "connections held, and `max_flows`",
            "tables, MB",
            "daemon, MB, not counting them",
            "bytes a connection",
        ],
        MEMORY,
    );
    for &flows in extent.flows {
        let [tables, daemon] = memory_of(flows)?;
        let each = tables / f64::from(flows);
        memory.row(&[
            grouped(flows),
            shown(tables / 1e6),
            shown(daemon / 1e6),
            shown(each),
        ]);
        let name = format!("tables of {} connections", grouped(flows));
        samples.push(Sample::new(name, "bytes", &[tables]));
        let name = format!("daemon with {} connections", grouped(flows));
        samples.push(Sample::new(name, "bytes", &[daemon]));
    }
    Ok(Section {
        name: "control",
        title: "The control plane".into(),
        text: METHOD.into(),
        tables: vec![times, memory],
        charts: Vec::new(),
        samples,
    })
}

/// What takes its time with so many services.
fn of_size(services: u32, extent: &Extent) -> Result<Vec<Line>> {
    let size = match services {
        1 => "1 service, 10 backends".to_owned(),
        _ => format!(
            "{} services, {} backends",
            grouped(services),
            grouped(services * BACKENDS)
        ),
    };
    let line = |what: &str| Line::new(format!("{what}: {size}"));
    let mut lines = [
        line("`lb run` until it is ready, from nothing"),
        line("`lb run` until it is ready, taking over what is there"),
        line("a weight is obeyed by the data path after the request"),
        line("the answer to that request"),
        line("`lb backend weight` from its start to its end"),
        line("`lb reload` of a file in which one weight differs"),
        line("`lb reload` of a file in which each service differs"),
    ];
    let [start, again, obeyed, answered, command, one, all] = &mut lines;
    let chain = Chain::new(1)?;
    for _ in 0..extent.starts {
        let large = Large::prepare(&chain, services)?;
        start.add(large.start()?.stopped()?);
        let (running, took) = large.start()?.kept();
        again.add(took);
        drop(running);
        large.discard();
    }
    let large = Large::prepare(&chain, services)?;
    let (_running, _) = large.start()?.kept();
    for change in 0..extent.changes {
        let [after, answer] = large.change_weight(change)?;
        obeyed.add(after);
        answered.add(answer);
        command.add(large.command_weight(change)?);
    }
    for change in 0..extent.changes.min(10) {
        one.add(large.reload(2 + change, |service| service == CHANGED(services))?);
        all.add(large.reload(22 + change, |_| true)?);
    }
    large.discard();
    Ok(lines.into())
}

/// A balancer with very many services, in the middle of a chain.
struct Large<'c> {
    chain: &'c Chain,
    daemon: Daemon,
    services: u32,
}

/// It runs. Dropped, it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// It runs, since so long.
struct Started(Running, Duration);

impl Started {
    fn kept(self) -> (Running, Duration) {
        (self.0, self.1)
    }

    /// Ended by `kill -9`: forwarding goes on.
    fn stopped(self) -> Result<Duration> {
        Ok(self.1)
    }
}

impl<'c> Large<'c> {
    fn prepare(chain: &'c Chain, services: u32) -> Result<Self> {
        let pins = chain.pins("large");
        let daemon =
            Daemon::prepare_in(chain.folder(), pins, "large", &chain.balancer, &["--fresh"]);
        let large = Self {
            chain,
            daemon,
            services,
        };
        large.write(|_| [1; BACKENDS as usize])?;
        Ok(large)
    }

    /// Writes its file, with these weights for each service.
    fn write(&self, weights: impl Fn(u32) -> [u16; BACKENDS as usize]) -> Result<()> {
        let daemon = &self.daemon;
        let mut text = format!(
            "[node]\nname = \"lb\"\ninterfaces = [\"eth0\", \"eth1\"]\npin_path = {:?}\n\
             control = {:?}\n\n",
            daemon.pins, daemon.control
        );
        for service in 0..self.services {
            let listen = Ipv4Addr::from_bits(0x0a0a_0001 + service);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "[[service]]\nname = \"s{service}\"\nlisten = \"{listen}:80\"\n\
                 [service.check]\ntype = \"none\"\n"
            );
            for (number, weight) in (0..).zip(weights(service)) {
                let address = Ipv4Addr::from_bits(0x0a0b_0001 + service * BACKENDS + number);
                let _ = write!(
                    text,
                    "[[service.backend]]\nname = \"b{number}\"\naddress = \"{address}:8080\"\n\
                     weight = {weight}\n"
                );
            }
        }
        fs::write(&daemon.config, text)?;
        Ok(())
    }

    /// Starts it, without discarding what is there.
    fn start(&self) -> Result<Started> {
        let log = fs::File::create(&self.daemon.log)?;
        let began = Instant::now();
        let child = self
            .chain
            .balancer
            .command(&self.daemon.lb)
            .args(["run", "--config"])
            .arg(&self.daemon.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run nsenter; it is in Debian's package util-linux")?;
        let mut running = Running(child);
        loop {
            // Commands wait in the socket until it is ready.
            if self.ask("GET", "/v1/overrides", "").is_ok() {
                return Ok(Started(running, began.elapsed()));
            }
            if let Some(status) = running.0.try_wait()? {
                bail!("lb run ended ({status}): {}", self.daemon.logged());
            }
            ensure!(began.elapsed() < BOUND, "lb run was not ready");
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// Takes away the pins; its process has ended.
    fn discard(&self) {
        // What stays is swept away with the chain.
        let _ = fs::remove_dir_all(&self.daemon.pins);
        let _ = fs::remove_file(self.daemon.control.with_extension("state.json"));
    }

    /// Changes a weight over the control socket: how long it takes until the data
    /// path picks by it, and until there is an answer.
    fn change_weight(&self, change: u16) -> Result<[Duration; 2]> {
        let service = CHANGED(self.services);
        // Nine others have 1, so the sequence is as long as this says.
        let weight = 2 + change % 100;
        let length = u64::from(weight) + 9;
        let path = format!("/v1/services/s{service}/backends/b3/weight");
        let body = format!("{{\"weight\":{weight}}}");
        let map = self.daemon.pins.join(format!("v{ABI_VERSION}/SEQUENCES"));
        let map: ArrayOfMaps<_, Array<MapData, u64>> =
            Map::ArrayOfMaps(MapData::from_pin(map)?).try_into()?;
        let failed = AtomicBool::new(false);
        thread::scope(|scope| {
            let watching = scope.spawn(|| -> Result<Instant> {
                let deadline = Instant::now() + BOUND;
                loop {
                    // The service of this place in the file has its number. A
                    // sequence can go between being found and being opened.
                    let words = map.get(&service, 0);
                    if words.is_ok_and(|words| words.get(&sequence::LENGTH, 0).ok() == Some(length))
                    {
                        return Ok(Instant::now());
                    }
                    ensure!(Instant::now() < deadline, "the weight is not obeyed");
                    ensure!(!failed.load(Ordering::Relaxed), "the command failed");
                    thread::sleep(Duration::from_micros(50));
                }
            });
            // Let it look once before.
            thread::sleep(Duration::from_millis(5));
            let began = Instant::now();
            let answer = self.ask("PUT", &path, &body);
            let answered = began.elapsed();
            failed.store(answer.is_err(), Ordering::Relaxed);
            let obeyed = watching.join();
            answer?;
            match obeyed {
                Ok(obeyed) => Ok([obeyed?.duration_since(began), answered]),
                Err(_) => bail!("what watches the sequence panicked"),
            }
        })
    }

    /// The same by a command of its own.
    fn command_weight(&self, change: u16) -> Result<Duration> {
        let service = format!("s{}", CHANGED(self.services));
        let weight = (102 + change % 100).to_string();
        let began = Instant::now();
        self.daemon
            .lb(&["backend", "weight", &service, "b3", &weight])?;
        Ok(began.elapsed())
    }

    /// Reloads the file with another weight in the services that are `meant`.
    fn reload(&self, weight: u16, meant: impl Fn(u32) -> bool) -> Result<Duration> {
        self.write(|service| {
            let mut weights = [1; BACKENDS as usize];
            if meant(service) {
                weights[7] = weight;
            }
            weights
        })?;
        let began = Instant::now();
        self.daemon.lb(&["reload"])?;
        Ok(began.elapsed())
    }

    /// Asks over the control socket.
    fn ask(&self, method: &str, path: &str, body: &str) -> Result<()> {
        let mut socket = UnixStream::connect(&self.daemon.control)?;
        socket.set_read_timeout(Some(BOUND))?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 2"), "{path}: {answer}");
        Ok(())
    }
}

/// Bytes of tables and of the daemon that hold so many connections.
fn memory_of(flows: u32) -> Result<[f64; 2]> {
    let servers: Vec<Ipv4Addr> = (128..192).map(|last| [10, 9, 0, last].into()).collect();
    let chain = Chain::new(1)?;
    chain.neighbours_at_client(servers.iter().copied())?;
    let daemon = ours::start(&chain, &["eth0"], "full-nat", &servers, flows)?;
    let mut sender = Sender::new(&chain.client, "eth0")?;
    let mut end = End::attach(&chain.client, "eth0", 0)?;
    ours::hold(&chain, &daemon, &mut sender, &mut end, false, flows)?;
    let pid = daemon.pid().context("the daemon runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    // The tables are mapped into it as well, and counted as files.
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let own = own.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    let own = own.context("the kernel tells what a process takes")?;
    Ok([daemon.table_bytes()? as f64, own * 1024.0])
}

const METHOD: &str = "`lb` as it is given to users (release profile), with two interfaces and \
otherwise the defaults: `max_flows` 1,000,000, `max_services` 4,096, `max_backends` 65,536. Each \
service has an address of its own, which is put on an interface, and ten backends; nothing is \
checked. \"Ready\" is when the control socket answers. A weight is obeyed when the sequence \
from which the program in the kernel picks is the new one: a second thread looks at the \
kernel's table every 50 µs.";

const TIMES: &str = "The answer comes later than the obedience because the kernel first makes \
sure that no program uses the old sequence any more (a grace period of RCU).";

const MEMORY: &str = "Tables as the kernel counts them (`memlock` in each map's `fdinfo`), all of \
it taken at the start; of the daemon its anonymous pages. `full-nat`, so that each connection \
stands in the table of answers too.";
