//! The stage: a client, the balancer, three backends, and how they are asked
//! and waited for.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::netns::{Arms, Daemon, Family, Host, Net, Service};

use crate::{
    kept::Life,
    load::{Load, Request, slowest},
    nginx::Nginx,
    promises::Promises,
    screen::{Screen, Tone},
    shares::Shares,
    stop::Stop,
};

/// The service's name.
pub(crate) const SERVICE: &str = "web";

/// The backends' names.
pub(crate) const NAMES: [&str; 3] = ["b1", "b2", "b3"];

/// The backends' weights in the configuration.
pub(crate) const WEIGHTS: [u16; 3] = [3, 2, 1];

/// How often a backend is checked.
pub(crate) const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Failed checks that take a backend out (`fall`, at its default).
pub(crate) const FALL: u32 = 3;

/// How long anything may take that is waited for.
const BOUND: Duration = Duration::from_secs(30);

/// Between one look and the next.
const LOOK: Duration = Duration::from_millis(20);

/// A line says that something is still waited for, so often.
const PATIENCE: Duration = Duration::from_secs(1);

/// Everything the demonstration has. Fields are dropped in their order: the
/// network, which takes everything else with it, last.
pub(crate) struct World<'a> {
    /// Where it speaks.
    pub(crate) screen: &'a Screen,
    /// Whether to end early.
    pub(crate) stop: &'a Stop,
    /// What was seen.
    pub(crate) promises: Promises,
    /// The web servers.
    pub(crate) servers: Vec<Nginx>,
    /// The balancer.
    pub(crate) daemon: Daemon,
    /// What it serves.
    pub(crate) service: Service,
    /// Where all that is.
    pub(crate) net: Net,
}

impl<'a> World<'a> {
    /// Builds it, and says what stands where.
    pub(crate) fn build(screen: &'a Screen, stop: &'a Stop) -> Result<Self> {
        screen.see("building a network: a switch and five hosts, each a network namespace");
        let net = Net::new(Arms::One)?;
        stop.check()?;
        let service = Service::new(SERVICE, "full-nat", Family::V4, WEIGHTS);
        // Namespaces and pins have the same names.
        let namespace = |host: &Host| {
            let path = net.pins(&host.name);
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        for (what, host) in [("client", &net.client), ("balancer", &net.balancer)] {
            screen.detail(&format!("{what:<9} {:<10} {}", host.v4, namespace(host)));
        }
        let mut servers = Vec::new();
        for (number, host) in net.backends.iter().enumerate() {
            let server = Nginx::start(host, service.backend(&net, number), net.folder())?;
            screen.detail(&format!(
                "{:<9} {:<10} {}, nginx (process {}) on port {}, weight {}",
                host.name,
                host.v4,
                namespace(host),
                server.pid().unwrap_or_default(),
                server.address.port(),
                WEIGHTS[number],
            ));
            servers.push(server);
            stop.check()?;
        }
        screen.see("starting the balancer's daemon: lb run --config lb.toml");
        let daemon = Daemon::start(&net, &[service.toml(&net)])?;
        let world = Self {
            screen,
            stop,
            promises: Promises::default(),
            servers,
            daemon,
            service,
            net,
        };
        world.until_shares("every backend passes its check", &[3, 2, 1])?;
        screen.see(&format!(
            "ready: service {SERVICE} at {} (full-nat: backends need no change), process {}",
            world.service.listen,
            world.daemon.pid().unwrap_or_default()
        ));
        Ok(world)
    }

    /// Clients at the service.
    pub(crate) fn load(&self, rate: u32, clients: u32) -> Load {
        Load::start(&self.net.client, self.service.listen, rate, clients)
    }

    /// A command to the daemon, shown as a user would type it.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<()> {
        self.screen.command(&format!("lb {}", arguments.join(" ")));
        let said = self.lb(arguments)?;
        for line in said.lines().filter(|line| !line.trim().is_empty()) {
            self.screen.detail(line);
        }
        Ok(())
    }

    /// A command to the daemon; what it printed. Ctrl-C in a terminal reaches
    /// the command too: then it is no fault that it failed.
    fn lb(&self, arguments: &[&str]) -> Result<String> {
        let said = self.daemon.lb(arguments);
        self.stop.check()?;
        said
    }

    /// Waits until something holds; gives how long that took.
    pub(crate) fn until(
        &self,
        what: impl Fn() -> String,
        mut holds: impl FnMut() -> Result<bool>,
    ) -> Result<Duration> {
        let begun = Instant::now();
        let mut next = PATIENCE;
        while !holds()? {
            let waited = begun.elapsed();
            if waited > BOUND {
                bail!(
                    "waited {} s in vain until {}; the daemon's log:\n{}",
                    BOUND.as_secs(),
                    what(),
                    self.daemon.logged()
                );
            }
            if waited > next {
                self.screen.wait(&format!("waiting until {} …", what()));
                next += PATIENCE;
            }
            self.stop.pause(LOOK)?;
        }
        Ok(begun.elapsed())
    }

    /// Waits until the daemon says that this is the schedule: each backend's
    /// slots, divided by their greatest common divisor.
    pub(crate) fn until_shares(&self, what: &str, slots: &[u64; 3]) -> Result<Duration> {
        self.until(
            || what.to_owned(),
            || {
                let backends = self.daemon.json(&["backend", "list", SERVICE]);
                self.stop.check()?;
                let backends = backends?;
                let backends = backends
                    .as_array()
                    .context("`lb backend list` lists nothing")?;
                ensure!(
                    backends.len() == slots.len(),
                    "`lb backend list` lists {} backends instead of 3",
                    backends.len()
                );
                let now: Vec<_> = backends.iter().map(|of| of["slots"].as_u64()).collect();
                // The first verdict counts as up: a backend not checked yet has slots, too.
                let judged = backends.iter().all(|of| of["state"] != "unknown");
                Ok(judged
                    && now
                        .iter()
                        .zip(slots)
                        .all(|(now, slots)| *now == Some(*slots)))
            },
        )
    }

    /// Waits until so many requests have begun since then and are done, and
    /// gives the first of them.
    pub(crate) fn requests(
        &self,
        load: &Load,
        since: Instant,
        count: usize,
    ) -> Result<Vec<Request>> {
        let made = || load.since(since).len();
        let what = || format!("{count} requests are made: {} so far", made());
        self.until(what, || Ok(made() >= count))?;
        let mut requests = load.since(since);
        requests.truncate(count);
        Ok(requests)
    }

    /// Says what happened to connections that should have stayed.
    pub(crate) fn trouble(&self, lives: &[Life]) {
        for trouble in lives.iter().filter_map(Life::trouble) {
            self.screen.detail(&self.screen.tone(Tone::Bad, &trouble));
        }
    }

    /// Shows how requests were shared, with backends of these weights.
    pub(crate) fn shares(&self, requests: &[Request], weights: [u16; 3]) -> Shares {
        let backends: Vec<_> = NAMES.into_iter().zip(weights).collect();
        let shares = Shares::of(requests, &backends);
        shares.show(self.screen);
        self.screen.detail(&format!(
            "slowest request: {}",
            milliseconds(slowest(requests))
        ));
        shares
    }
}

/// What of this process is still on the host.
pub(crate) fn leftovers() -> Vec<PathBuf> {
    let prefix = format!("lbt-{}-", process::id());
    let temporary = env::temp_dir();
    let folders = [
        Path::new("/run/netns"),
        Path::new("/sys/fs/bpf"),
        &temporary,
    ];
    folders
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

/// A time as people say it.
pub(crate) fn milliseconds(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1e3;
    if milliseconds < 10.0 {
        format!("{milliseconds:.1} ms")
    } else {
        format!("{milliseconds:.0} ms")
    }
}

/// `count` of something, in the right number.
pub(crate) fn counted(count: usize, one: &str, many: &str) -> String {
    match count {
        0 => format!("no {one}"),
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}
