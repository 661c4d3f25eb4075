//! The daemon: start, the loop, and the end.
//!
//! A start checks everything that can be checked before it changes anything,
//! and takes back what it changed if it fails later ([`Undo`]). The order is
//! chosen so that no packet meets a half-made balancer: tables first, then
//! addresses, then the program on the interfaces.
//!
//! The end leaves forwarding as it is, unless `--detach-on-exit` was given:
//! program, tables, flows and addresses stay, and the next daemon adopts them.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use aya_log::EbpfLogger;
use lb_common::abi::Settings;
use log::{error, info, warn};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::address::Addresses;
use crate::api;
use crate::config::{self, Config};
use crate::controller::{self, Aides, Controller, Interfaces, Sayings};
use crate::dataplane::{self, Dataplane, Sizes};
use crate::events::{Journal, Kind, Subject};
use crate::health::{Checker, Report};
use crate::host::{self, forwarding};
use crate::links::Watcher;
use crate::metrics;
use crate::neighbours::Neighbours;
use crate::state;
use crate::tls;

/// Without a packet for this long, a flow's port may be taken for another.
const IDLE_SECONDS: u32 = 3_600;

/// How many ICMP errors each CPU may send in a second.
const ERRORS_PER_SECOND: u32 = 1_000;

/// Verdicts on health that may wait to be handled.
const REPORT_QUEUE: usize = 1_024;

/// What `lb run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Remove the program, its tables and the addresses on a clean stop.
    pub detach_on_exit: bool,
    /// Discard pinned tables instead of adopting them.
    pub fresh: bool,
    /// What the program may log: 0 nothing, to 5 everything.
    pub program_log: u8,
    /// The control socket, if not the one of the file.
    pub control: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT.
pub fn run(options: Options) -> anyhow::Result<()> {
    let mut config = config::load(&options.config)?;
    if let Some(control) = &options.control {
        config.node.control.clone_from(control);
    }
    // Before anything is changed.
    if let Some(sync) = config.ha.as_ref().and_then(|ha| ha.sync.as_ref()) {
        tls::Renewed::open_untimely(sync.files.clone(), sync.listen.ip())?;
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(&options, config))
}

async fn serve(options: &Options, config: Config) -> anyhow::Result<()> {
    let node = config.node.clone();
    let needs = host::Needs {
        interfaces: &node.interfaces,
        pin_path: &node.pin_path,
    };
    host::check(&needs, dataplane::probe).map_err(|unfit| left_alone(unfit, &node.pin_path))?;
    host::mount_pins(&node.pin_path)?;
    let made_folder = !node.pin_path.exists();
    let lock = dataplane::lock(&node.pin_path)?;
    let outcome = serve_locked(options, config).await;
    if made_folder && outcome.is_err() {
        // It stays if there are pins in it.
        let _ = fs::remove_dir(&node.pin_path);
    }
    drop(lock);
    outcome
}

/// Where an interface is missing, says what goes on without a daemon.
fn left_alone(unfit: host::Unfit, pin_path: &Path) -> anyhow::Error {
    let linked = dataplane::linked(pin_path).unwrap_or_default();
    match unfit {
        host::Unfit::Interface(missing) if !linked.is_empty() => anyhow!(
            "{missing}, or take it out of node.interfaces; until then an earlier run's program goes on at {}, without health checks",
            linked.join(", ")
        ),
        other => other.into(),
    }
}

/// Serves as the one daemon with these pins.
async fn serve_locked(options: &Options, config: Config) -> anyhow::Result<()> {
    let node = config.node.clone();
    let signals = Signals::listen()?;
    refuse_second(&node.control).await?;
    let metrics = match &config.api {
        Some(api) => Some(metrics::listen(api.metrics_listen).await?),
        None => None,
    };
    let listener = listen(&node.control)?;
    let mut undo = Undo::default();
    let (reports, verdicts) = mpsc::channel(REPORT_QUEUE);
    let started = start(options, config, reports, &mut undo).await;
    let controller = match started {
        Ok(controller) => controller,
        Err(error) => {
            undo.run(&node.pin_path).await;
            let _ = fs::remove_file(&node.control);
            return Err(error);
        }
    };
    let metrics = metrics.map(|listener| {
        let controller = Arc::clone(&controller);
        tokio::spawn(metrics::serve(listener, move || {
            scrape(Arc::clone(&controller))
        }))
    });
    let outcome = attend(options, controller, verdicts, listener, signals).await;
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    let _ = fs::remove_file(&node.control);
    outcome
}

/// The metrics of now; the controller is held for no longer than it takes to look.
async fn scrape(controller: Arc<Mutex<Controller>>) -> anyhow::Result<String> {
    let (snapshot, config) = {
        let controller = controller.lock().await;
        let config = Arc::clone(&controller.config);
        (metrics::Snapshot::of(&controller)?, config)
    };
    let text = move || snapshot.with_certificates(&config).render();
    Ok(tokio::task::spawn_blocking(text).await?)
}

/// The signals that are obeyed. One that comes during the start is obeyed after
/// it, so they are listened to before anything is changed.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// What a start has changed so far.
#[derive(Default)]
struct Undo {
    sysctls: Vec<forwarding::Changed>,
    addresses: Vec<(String, IpAddr)>,
    tables: bool,
    state: Option<PathBuf>,
    controller: Option<Arc<Mutex<Controller>>>,
}

impl Undo {
    /// Takes back everything, after a start that failed.
    async fn run(&mut self, pin_path: &Path) {
        if let Some(controller) = &self.controller {
            controller.lock().await.dataplane.detach_fresh();
        }
        if !self.addresses.is_empty()
            && let Ok(addresses) = Addresses::connect()
        {
            for (interface, address) in &self.addresses {
                if let Err(error) = addresses.remove(interface, *address).await {
                    error!("{error}");
                }
            }
        }
        if self.tables
            && let Err(error) = dataplane::discard(pin_path)
        {
            error!(
                "cannot remove the pins below {}: {error}",
                pin_path.display()
            );
        }
        if let Some(state) = &self.state {
            // There is none if the start failed before it was written.
            let _ = fs::remove_file(state);
        }
        if let Err(error) = forwarding::restore(&self.sysctls) {
            error!("{error}");
        }
    }
}

/// Makes the tables, takes the addresses, attaches.
async fn start(
    options: &Options,
    config: Config,
    reports: mpsc::Sender<Report>,
    undo: &mut Undo,
) -> anyhow::Result<Arc<Mutex<Controller>>> {
    let node = config.node.clone();
    let kept = state::path(&node.control);
    let mut state = state::load(&kept)?;
    if options.fresh {
        dataplane::discard(&node.pin_path).with_context(|| {
            format!("cannot discard the pins below {}", node.pin_path.display())
        })?;
        warn!("discarded the tables of earlier runs: their connections end here");
    }
    let interfaces = Interfaces::look(&node).await?;
    undo.sysctls = controller::prepare_host(&config, interfaces.found())?;
    state.sysctls.extend(undo.sysctls.clone());
    let sizes = Sizes {
        services: node.max_services,
        backends: node.max_backends,
        flows: node.max_flows,
    };
    undo.tables = !dataplane::occupied(&node.pin_path);
    undo.state = (!kept.exists()).then_some(kept);
    let opened = Dataplane::open(
        &node.pin_path,
        sizes,
        &settings(&config, interfaces.members())?,
        interfaces.frags(),
        options.program_log,
    )?;
    let mut handover = opened.handover;
    if let Some(handover) = &mut handover {
        let first = handover.carry()?;
        info!(
            "carried {} connections over from {}",
            first.entered,
            handover.from()
        );
    }
    for orphan in state.overrides.prune(&config) {
        warn!(
            "{}/{}: what was changed at run time is void, for the file no longer has a place for it",
            orphan.service, orphan.backend
        );
    }
    let mut dataplane = opened.dataplane;
    if options.program_log > 0 {
        tokio::spawn(read_log(dataplane.logger()?));
    }
    let controller = Controller::new(
        config,
        state,
        dataplane,
        opened.adopted,
        Aides {
            checker: Checker::new(reports),
            addresses: Addresses::connect()?,
            interfaces,
            neighbours: Neighbours::start()?,
            journal: Journal::new(),
        },
    )?;
    let controller = Arc::new(Mutex::new(controller));
    undo.controller = Some(Arc::clone(&controller));
    let mut guard = controller.lock().await;
    guard.reconcile()?;
    undo.addresses = guard.take_addresses().await?;
    guard.attach_all()?;
    if let Some(handover) = handover {
        guard.complete(handover)?;
    }
    if guard.config.ha.is_none() {
        // In a pair the role decides.
        guard.drop_stale_addresses().await?;
    }
    drop(guard);
    Ok(controller)
}

/// The constants of the program. `members`: frames may come in by members of
/// an interface.
fn settings(config: &Config, members: bool) -> anyhow::Result<Settings> {
    let sources = &config.node.tunnel_sources;
    let second = host::ticks_per_second();
    let ports = host::ports(Path::new(forwarding::SYSCTLS))?;
    Ok(Settings {
        refresh_ticks: second,
        idle_ticks: second.saturating_mul(IDLE_SECONDS),
        first_port: u32::from(ports.first),
        port_count: u32::from(ports.count),
        seed: host::random().context("the kernel gave no random number")?,
        stamp_shift: host::stamp_shift(second),
        // Those of the tables, which are yet to be made or found.
        tag_buckets: 0,
        answer_buckets: 0,
        error_limit: ERRORS_PER_SECOND,
        members: u32::from(members),
        paired: u32::from(config.ha.is_some()),
        zero: 0,
        tunnel_v4_bits: sources.v4.varied_bits(),
        tunnel_v6_bits: sources.v6.varied_bits(),
        tunnel_v4: sources.v4.address().into(),
        tunnel_v6: sources.v6.address().into(),
    })
}

/// Prints what the program logs, ten times a second: its ring holds more than
/// that, and nobody but a reader at a terminal waits for it.
async fn read_log(mut logger: EbpfLogger<&'static dyn log::Log>) {
    let mut tick = interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        logger.flush();
    }
}

/// Refuses to start beside a daemon that answers on the same socket; removes a
/// socket that nobody listens on any more.
async fn refuse_second(control: &Path) -> anyhow::Result<()> {
    match UnixStream::connect(control).await {
        Ok(_) => bail!(
            "another lb daemon answers on {}; stop it first, or give this one its own node.control",
            control.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(control)
            .with_context(|| format!("cannot remove the dead socket {}", control.display())),
        Err(_) => Ok(()),
    }
}

/// Makes the control socket. Until the daemon is ready, commands wait in it.
fn listen(control: &Path) -> anyhow::Result<UnixListener> {
    let folder = control
        .parent()
        .context("node.control is not a file's path")?;
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let listener = UnixListener::bind(control)
        .with_context(|| format!("cannot listen on {}", control.display()))?;
    fs::set_permissions(control, fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", control.display()))?;
    Ok(listener)
}

/// Serves commands, health verdicts, signals and the clock.
async fn attend(
    options: &Options,
    controller: Arc<Mutex<Controller>>,
    mut verdicts: mpsc::Receiver<Report>,
    listener: UnixListener,
    mut signals: Signals,
) -> anyhow::Result<()> {
    let journal = controller.lock().await.journal.clone();
    let shared = api::Shared::new(Arc::clone(&controller), journal, &options.config);
    let server = axum::serve(listener, api::router(shared));
    let server = tokio::spawn(server.into_future());
    let links = Watcher::start()?;
    // What changed between the start's look and now.
    controller.lock().await.interfaces_changed().await;
    let Sayings {
        mut reports,
        mut words,
    } = controller.lock().await.start_pair().await?;
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Skip);
    tell_of_start(&*controller.lock().await);
    let mut health = Vec::new();
    loop {
        let deadline = controller.lock().await.next_deadline();
        let due = async {
            match deadline {
                Some(deadline) => sleep_until(Instant::from_std(deadline)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Those that came meanwhile make one change together.
            1.. = verdicts.recv_many(&mut health, REPORT_QUEUE) => {
                controller.lock().await.health_changed(&health);
                health.clear();
            }
            () = due => {
                if let Err(error) = controller.lock().await.reconcile() {
                    warn!("{error}");
                }
            }
            Some(report) = said(&mut reports) => controller.lock().await.pair_reported(report).await,
            Some(word) = said(&mut words) => controller.lock().await.sync_said(word),
            () = links.changed() => controller.lock().await.interfaces_changed().await,
            _ = second.tick() => {
                let mut controller = controller.lock().await;
                controller.sample();
                controller.attend_interfaces().await;
                controller.attend_pair().await;
            }
            _ = signals.hangup.recv() => {
                // What comes of it the controller tells.
                let _ = controller.lock().await.reload(&options.config).await;
            }
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
        }
    }
    if let Err(error) = controller.lock().await.leave_pair().await {
        error!("{error:#}");
    }
    server.abort();
    if options.detach_on_exit {
        detach(&mut *controller.lock().await).await
    } else if controller.lock().await.config.ha.is_some() {
        info!("stopping; the services' addresses are left to the other node");
        Ok(())
    } else {
        info!("stopping; forwarding goes on without the daemon");
        Ok(())
    }
}

/// What somebody of the pair says next; never anything where there is nobody.
async fn said<T>(who: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match who {
        Some(sayings) => sayings.recv().await,
        None => std::future::pending().await,
    }
}

fn tell_of_start(controller: &Controller) {
    let found = if controller.adopted {
        "took over the tables and connections that were there"
    } else {
        "began with empty tables"
    };
    let control = controller.config.node.control.display();
    controller.journal.record(
        Kind::DaemonStarted,
        Subject::node(),
        format!("ready; {found}; commands on {control}"),
    );
}

/// Takes everything away again.
async fn detach(controller: &mut Controller) -> anyhow::Result<()> {
    controller.dataplane.detach_others(&[])?;
    controller.release_addresses().await?;
    let pin_path = &controller.config.node.pin_path;
    dataplane::discard(pin_path)
        .with_context(|| format!("cannot remove the pins below {}", pin_path.display()))?;
    let _ = fs::remove_dir(pin_path);
    let _ = fs::remove_file(&controller.state_path);
    forwarding::restore(&controller.state.sysctls)?;
    info!("detached; this host balances no longer");
    Ok(())
}
