//! `lb run` on a host, as an operator handles it: by its file, its commands and
//! its signals.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::MapData;
use lb_common::abi::ABI_VERSION;
use lb_userspace::dataplane::Table;
use rustix::process::{Pid, Signal, kill_process};

use super::{Host, Net, socket, wait_until};

/// How long a start or an end may take; the verifier alone takes seconds on a
/// busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// The `lb` that is tested: `LB_BIN`, or the one built beside this test.
pub fn lb_binary() -> PathBuf {
    if let Some(path) = env::var_os("LB_BIN") {
        return path.into();
    }
    beside("lb")
}

/// A program that was built beside this one.
pub(super) fn beside(name: &str) -> PathBuf {
    let test = env::current_exe().expect("the kernel knows what this process runs");
    // target/debug/deps/TEST, or target/debug/DEMO.
    let beside = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name));
    beside
        .clone()
        .find(|program| program.is_file())
        .or_else(|| beside.last())
        .expect("an executable is in a folder")
}

/// A balancer's daemon. Dropped, its process ends; in a test that fails its log
/// is printed.
pub struct Daemon {
    host: Host,
    /// The `lb` that it runs, and by which it is commanded.
    pub lb: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its control socket.
    pub control: PathBuf,
    /// Its pins.
    pub pins: PathBuf,
    /// What it has logged, over all its runs.
    pub log: PathBuf,
    /// For how many connections its tables are.
    pub max_flows: u32,
    /// More arguments of `lb run`.
    pub arguments: Vec<String>,
    child: Option<Child>,
}

impl Daemon {
    /// Starts the balancer of a network with these services (each a text of
    /// `[[service]]`) and waits until it is ready.
    pub fn start(net: &Net, services: &[String]) -> Result<Self> {
        Self::start_with(net, services, &[])
    }

    /// The same with more arguments of `lb run`, such as `--detach-on-exit`.
    pub fn start_with(net: &Net, services: &[String], arguments: &[&str]) -> Result<Self> {
        let mut daemon = Self::prepare(net, "lb", &net.balancer, arguments);
        let node = daemon.node(net.interfaces());
        fs::write(&daemon.config, node + &services.concat())?;
        daemon.restart()?;
        Ok(daemon)
    }

    /// Starts those that pass everything, on the switch's ends of the balancers'
    /// cables: one for each balancer, because it refuses two ports of one bridge.
    pub(super) fn start_passers(net: &Net) -> Result<Vec<Self>> {
        let passers = net.balancers().zip(["sw", "sw2"]).map(|(balancer, name)| {
            let mut daemon = Self::prepare(net, name, &net.switch, &[]);
            let cables: Vec<String> = net
                .interfaces()
                .iter()
                .map(|interface| socket(balancer, interface))
                .collect();
            let names: Vec<&str> = cables.iter().map(String::as_str).collect();
            fs::write(&daemon.config, daemon.node(&names))?;
            daemon.restart()?;
            Ok(daemon)
        });
        passers.collect()
    }

    /// A daemon that is not started yet and whose file is not written yet.
    pub fn prepare(net: &Net, name: &str, host: &Host, arguments: &[&str]) -> Self {
        Self::prepare_in(net.folder(), net.pins(name), name, host, arguments)
    }

    /// The same with its files in this folder.
    pub fn prepare_in(
        folder: &Path,
        pins: PathBuf,
        name: &str,
        host: &Host,
        arguments: &[&str],
    ) -> Self {
        let file = |ending: &str| folder.join(format!("{name}.{ending}"));
        Self {
            host: host.clone(),
            lb: lb_binary(),
            config: file("toml"),
            control: file("sock"),
            pins,
            log: file("log"),
            max_flows: 65_536,
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            child: None,
        }
    }

    /// The `[node]` of its configuration.
    pub fn node(&self, interfaces: &[&str]) -> String {
        format!(
            "[node]\nname = {:?}\ninterfaces = {interfaces:?}\npin_path = {:?}\ncontrol = {:?}\n\
             max_flows = {}\nmax_services = 64\nmax_backends = 1024\n\n",
            self.host.name, self.pins, self.control, self.max_flows
        )
    }

    /// `lb run` as a command.
    fn command(&self) -> Command {
        self.command_through(&[&self.lb.display().to_string()])
    }

    /// `lb run` as a command, for those who want to see it fail: `words` are
    /// the path of `lb`, after other programs that run it, if any.
    pub fn command_through(&self, words: &[&str]) -> Command {
        let (program, more) = words.split_first().expect("there is a program to run");
        let mut command = self.host.command(program);
        command
            .args(more)
            .args(["run", "--config"])
            .arg(&self.config)
            .args(&self.arguments)
            .stdin(Stdio::null());
        command
    }

    /// Starts it (again) and waits until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the daemon runs already");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot open {}", self.log.display()))?;
        let child = self
            .command()
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run nsenter; it is in Debian's package util-linux")?;
        self.child = Some(child);
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOUND;
        loop {
            if self.lb(&["status", "--json"]).is_ok() {
                return Ok(());
            }
            let child = self.child.as_mut().context("the daemon does not run")?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                bail!("lb run ended ({status}); its log:\n{}", self.logged());
            }
            if Instant::now() > deadline {
                bail!(
                    "lb run was not ready after {BOUND:?}; its log:\n{}",
                    self.logged()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A command to this daemon; gives what it printed, or its complaint.
    pub fn lb(&self, arguments: &[&str]) -> Result<String> {
        let output = self.lb_output(arguments)?;
        ensure!(
            output.status.success(),
            "lb {} failed ({}): {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A command to this daemon, whatever comes of it.
    pub fn lb_output(&self, arguments: &[&str]) -> Result<Output> {
        let lb = &self.lb;
        Command::new(lb)
            .arg("--control")
            .arg(&self.control)
            .args(arguments)
            .output()
            .with_context(|| {
                format!(
                    "cannot run {}; build it by `cargo build -p lb-userspace`, or let LB_BIN name another",
                    lb.display()
                )
            })
    }

    /// A command with `--json` to this daemon.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.lb(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("lb {} printed no JSON: {text}", arguments.join(" ")))
    }

    /// What the daemon answers to `GET` of this path on its control socket: at
    /// once, where a command takes a while to start.
    pub fn ask(&self, path: &str) -> Result<serde_json::Value> {
        let mut socket = UnixStream::connect(&self.control)?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
        Ok(serde_json::from_str(body)?)
    }

    /// Whether there has been an event of this kind.
    pub fn has_told(&self, kind: &str) -> Result<bool> {
        let told = self.json(&["events", "--limit", "1000"])?;
        let events = told["events"].as_array().context("events are a list")?;
        Ok(events.iter().any(|event| event["kind"] == kind))
    }

    /// Runs a [`Self::command_through`] that is to end by itself; one that does
    /// not is ended and is an error.
    pub fn refused(&self, words: &[&str]) -> Result<Output> {
        let mut child = self
            .command_through(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let ended = wait_until("lb run refuses to start", BOUND, || {
            Ok(child.try_wait()?.is_some())
        });
        if ended.is_err() {
            child.kill()?;
        }
        let output = child.wait_with_output()?;
        ended.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(output)
    }

    /// What it has logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills it with no chance to do anything more.
    pub fn kill9(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let mut child = self.child.take().context("the daemon does not run")?;
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.child = Some(child);
                bail!("lb run did not end within {BOUND:?} of SIGTERM");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the daemon does not run")?;
        kill_process(Pid::from_child(child), signal).context("cannot signal the daemon")
    }

    /// The kernel's number of its pinned link on an interface.
    pub fn link_id(&self, interface: &str) -> Result<u64> {
        let pin = self.pins.join(format!("link-{interface}"));
        let output = Command::new("bpftool")
            .args(["-j", "link", "show", "pinned"])
            .arg(&pin)
            .output()
            .context("cannot run bpftool")?;
        let link: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("bpftool on {}: {output:?}", pin.display()))?;
        link["id"].as_u64().context("a link has a number")
    }

    /// The names below its pin folder, sorted; none if there is no folder.
    pub fn pinned(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.pins.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let path = entry.path();
                names.push(below(&self.pins, &path));
                if path.is_dir() {
                    folders.push(path);
                }
            }
        }
        names.sort();
        names
    }

    /// How many connections stand in its table, those that have ended among them.
    pub fn entries(&self) -> Result<usize> {
        let folder = self.pins.join(format!("v{ABI_VERSION}"));
        // Only who looks for one connection needs the seed.
        Ok(Table::pinned(0, &folder)?.all().count())
    }

    /// What the kernel says that its pinned tables take, in bytes.
    pub fn table_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        for name in self.pinned() {
            let path = self.pins.join(&name);
            // Folders are among them, and links, which take no memory.
            if path.is_dir() || name.starts_with("link-") {
                continue;
            }
            let map = MapData::from_pin(&path)?;
            let told = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
            let told = fs::read_to_string(told)?;
            let word = told.lines().find_map(|line| line.strip_prefix("memlock:"));
            let word = word.with_context(|| format!("{name} takes no memory"))?;
            bytes += word.trim().parse::<u64>()?;
        }
        Ok(bytes)
    }
}

fn below(folder: &Path, path: &Path) -> String {
    let path = path.strip_prefix(folder).unwrap_or(path);
    path.display().to_string()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            eprintln!("the log of lb on {}:\n{}", self.host.name, self.logged());
        }
    }
}
