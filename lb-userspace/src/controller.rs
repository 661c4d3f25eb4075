//! The controller: the one owner of the desired state and of the tables.
//!
//! Everything that happens (a health verdict, a command, a new file, the
//! passing of time) ends in [`Controller::reconcile`]: merge, plan, diff,
//! apply. A change that does not fit is refused before anything is written.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lb_common::abi::{self, Endpoint, Traffic};
use log::{info, warn};

use crate::address::Addresses;
use crate::collector::Collector;
use crate::config::{self, CheckKind, Config, Forward, Node, TunnelSources, Via};
use crate::dataplane::{Dataplane, Mode};
use crate::events::Journal;
use crate::events::watch::Gauges;
use crate::health::probe::through::{Carriage, Through};
use crate::health::{self, Checker, Target, TargetId, Way};
use crate::host;
use crate::model::offer::Standing;
use crate::model::slow_start::SlowStarts;
use crate::model::{self, Overrides, Service};
use crate::neighbours::{self, Neighbours};
use crate::reconcile::{self, Change, Lingering, Measures, ServicePlan, Tables};
use crate::routes::Routes;
use crate::schedule::Made;
use crate::state::{self, State};

mod commands;
mod differences;
mod haste;
mod interfaces;
mod pair;
mod records;

pub use interfaces::{Interfaces, prepare_host};
pub use pair::{Pair, Sayings};

use differences::differences;

/// What a command was refused for.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("{0}")]
    Unknown(String),
    /// It may not be.
    #[error("{0}")]
    Invalid(String),
    /// It should have worked.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// One interface of the configuration, and where its frames are met.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Its name.
    pub interface: String,
    /// The device that the program is attached to for it.
    pub device: String,
    /// The index of that; 0 if there is none.
    pub index: u32,
    /// How; `None` while there is no such interface.
    pub mode: Option<Mode>,
}

/// Who tells a controller about the world, and does things in it for it.
pub struct Aides {
    /// Checks backends.
    pub checker: Checker,
    /// Puts addresses on interfaces.
    pub addresses: Addresses,
    /// Knows the interfaces.
    pub interfaces: Interfaces,
    /// Keeps next hops known.
    pub neighbours: Neighbours,
    /// Is told what happens.
    pub journal: Journal,
}

/// See the module.
pub struct Controller {
    /// The file in force.
    pub config: Arc<Config>,
    /// What was changed at run time, and what else the next daemon needs.
    pub state: State,
    /// Where the state is kept.
    pub state_path: PathBuf,
    /// The kernel's side.
    pub dataplane: Dataplane,
    /// Takes away connections whose time is up.
    collector: Collector,
    /// How many handshakes had been displaced at the last sample.
    displaced: Option<(Instant, u64)>,
    /// Where the program is attached.
    pub attachments: Vec<Attachment>,
    /// Whether there were tables to adopt at the start.
    pub adopted: bool,
    /// When the daemon started.
    pub started: Instant,
    /// The services as they should be.
    pub desired: Vec<Service>,
    /// Their numbers in the tables, in the same order.
    pub plan: Vec<ServicePlan>,
    /// Speeds by service number.
    pub rates: BTreeMap<u32, Rate>,
    /// How the flow tables stand, where somebody measures it.
    pub gauges: Option<Gauges>,
    /// What happened.
    pub journal: Journal,
    watched: records::Watched,
    tables: Tables,
    lingering: Lingering,
    slow_starts: SlowStarts,
    made: Made,
    standings: BTreeMap<String, Standing>,
    checker: Checker,
    addresses: Addresses,
    interfaces: Interfaces,
    neighbours: Neighbours,
    #[expect(dead_code, reason = "listens until it is dropped")]
    routes: Routes,
    /// This node as one of a pair, once it takes part.
    pub pair: Option<Pair>,
}

/// A second's worth of traffic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Connections a second.
    pub new_flows: f64,
    /// Packets a second.
    pub packets: f64,
    /// Bits a second.
    pub bits: f64,
    last: Option<(Instant, Traffic)>,
}

impl Controller {
    /// A controller for tables as the kernel has them.
    pub fn new(
        config: Config,
        state: State,
        dataplane: Dataplane,
        adopted: bool,
        aides: Aides,
    ) -> anyhow::Result<Self> {
        let Aides {
            checker,
            addresses,
            interfaces,
            neighbours,
            journal,
        } = aides;
        let tables = if adopted {
            dataplane.read()?
        } else {
            Tables::default()
        };
        // One that still has the lease goes on as the active one.
        let rests = pair::follows(&config) && dataplane.lease().held().is_none();
        let collector = Collector::start(dataplane.table(), config.timeouts, rests)?;
        let routes = Routes::listen(dataplane.changes())?;
        Ok(Self {
            collector,
            displaced: None,
            state_path: state::path(&config.node.control),
            config: Arc::new(config),
            state,
            dataplane,
            attachments: Vec::new(),
            adopted,
            started: Instant::now(),
            desired: Vec::new(),
            plan: Vec::new(),
            rates: BTreeMap::new(),
            gauges: None,
            journal,
            watched: records::Watched::default(),
            tables,
            lingering: Lingering::default(),
            slow_starts: SlowStarts::default(),
            made: Made::default(),
            standings: BTreeMap::new(),
            checker,
            addresses,
            interfaces,
            neighbours,
            routes,
            pair: None,
        })
    }

    /// Brings the kernel's tables to what file, overrides and health say now.
    pub fn reconcile(&mut self) -> Result<(), Refusal> {
        let overrides = self.state.overrides.clone();
        self.enforce(Arc::clone(&self.config), overrides)
    }

    /// Brings the kernel's tables to this file with these overrides, and takes
    /// both over. If it does not fit, nothing changes.
    fn enforce(&mut self, config: Arc<Config>, overrides: Overrides) -> Result<(), Refusal> {
        let now = Instant::now();
        let known = Known::new(Box::new(|| known_health(&self.tables)));
        let mut desired = self.desired(&config, &overrides, &known);
        let mut slow_starts = self.slow_starts.clone();
        slow_starts.note(&self.desired, &desired, now);
        slow_starts.apply(&mut desired, now);
        let sizes = self.dataplane.sizes();
        let measures = Measures {
            services: sizes.services,
            backends: sizes.backends,
            hertz: host::ticks_per_second(),
        };
        let mut lingering = self.lingering.clone();
        let mut plan = reconcile::plan(
            &desired,
            &self.tables,
            &mut lingering,
            &mut self.made,
            measures,
            now,
        )
        .map_err(|full| Refusal::Invalid(full.to_string()))?;
        if let Some(ha) = &config.ha {
            reconcile::hold(&mut plan.tables, &ha.addresses);
        }
        // Before the tables change: a backend that they do not know yet is one that
        // nobody has judged.
        let targets = targets(&config, &desired, &known);
        drop(known);
        self.make(&reconcile::diff(&self.tables, &plan.tables))?;
        self.checker.reconcile(targets);
        self.lingering = lingering;
        self.slow_starts = slow_starts;
        self.neighbours.want(neighbours::wanted(&desired));
        let before = std::mem::replace(&mut self.desired, desired);
        self.plan = plan.services;
        self.record_standings();
        self.record_resets(&before);
        self.collector.set_timeouts(config.timeouts);
        self.config = config;
        self.judge_fitness();
        if self.state.overrides != overrides {
            self.state.overrides = overrides;
            self.save()?;
        }
        Ok(())
    }

    /// Makes changes in the kernel's tables.
    fn make(&mut self, changes: &[Change]) -> Result<(), Refusal> {
        for step in reconcile::steps(changes) {
            self.dataplane.apply_step(step)?;
            step.iter().for_each(|change| self.tables.apply(change));
        }
        if changes.iter().any(Change::renumbers) {
            self.pair_numbers();
        }
        Ok(())
    }

    /// The services as they should be. New connections may go to a backend as its
    /// checks say, before the first of them as the tables say, and without either
    /// always.
    fn desired(&self, config: &Config, overrides: &Overrides, known: &Known<'_>) -> Vec<Service> {
        let board = self.checker.status();
        let unchecked: BTreeSet<&str> = config
            .services
            .iter()
            .filter(|service| service.check.kind == CheckKind::None)
            .map(|service| service.name.as_str())
            .collect();
        let up = |id: &TargetId, listen: &Endpoint, backend: &Endpoint| match board.get(id) {
            _ if unchecked.contains(id.service.as_str()) => true,
            Some(status) => !matches!(status.state, health::State::Down { .. }),
            None => known.get(&(*listen, *backend)).copied().unwrap_or(true),
        };
        model::desired(config, overrides, up, SystemTime::now())
    }

    /// Takes note of verdicts on the health of backends.
    pub fn health_changed(&mut self, reports: &[health::Report]) {
        let known = Known::new(Box::new(|| known_health(&self.tables)));
        let targets = targets(&self.config, &self.desired, &known);
        let current: BTreeSet<(&TargetId, SocketAddr)> = targets
            .iter()
            .map(|target| (&target.id, target.address))
            .collect();
        // One on an address that the backend no longer has is void.
        let meant = |report: &&health::Report| current.contains(&(&report.id, report.address));
        let mut services = BTreeSet::new();
        for report in reports.iter().filter(meant) {
            self.record_health(report);
            services.insert(report.id.service.as_str());
        }
        drop(known);
        if services.is_empty() {
            return;
        }
        let overrides = self.state.overrides.clone();
        let hastened = (services.iter().take(haste::AT_ONCE))
            .try_for_each(|service| self.hasten(service, &overrides));
        if let Err(error) = hastened.and_then(|()| self.reconcile()) {
            warn!("the schedule could not be brought up to date: {error}");
        }
    }

    /// When something is due that no event announces.
    pub fn next_deadline(&self) -> Option<Instant> {
        let reset = model::next_reset(&self.desired, SystemTime::now());
        [
            self.lingering.next_deadline(),
            self.slow_starts.next_deadline(&self.desired),
            reset.map(|left| Instant::now() + left),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// [`Self::reload`] without a word about it.
    async fn take_over(&mut self, path: &Path) -> Result<Vec<String>, Refusal> {
        let mut config = config::load(path).map_err(|errors| {
            let lines: Vec<String> = errors.lines().collect();
            let (lines, path) = (lines.join("; "), path.display());
            Refusal::Invalid(format!("{lines}; `lb check -c {path}` shows where"))
        })?;
        let mut changes = Vec::new();
        let restart_only = keep_node(&mut config.node, &self.config.node);
        for setting in restart_only {
            changes.push(format!(
                "node.{setting} differs: it takes effect after a restart"
            ));
        }
        if config.api != self.config.api {
            config.api.clone_from(&self.config.api);
            changes.push("[api] differs: it takes effect after a restart".to_owned());
        }
        if pair::keep_ha(&mut config.ha, &self.config.ha) {
            changes.push(
                "[ha] differs in more than `addresses` and `track`: it takes effect after a restart"
                    .to_owned(),
            );
        }
        for name in &config.node.interfaces {
            // One that is away is waited for; a new one must be there.
            if !self.config.node.interfaces.contains(name) {
                host::ifindex(name).map_err(|error| Refusal::Invalid(error.to_string()))?;
            }
        }
        let (before, old) = (self.desired.clone(), Arc::clone(&self.config));
        let mut overrides = self.state.overrides.clone();
        for orphan in overrides.prune(&config) {
            changes.push(format!(
                "{}/{}: what was changed at run time is void, for the file no longer has a place for it",
                orphan.service, orphan.backend
            ));
        }
        self.attach_more(&config).await?;
        self.enforce(Arc::new(config), overrides)?;
        self.settle()?;
        self.save()?;
        self.take_addresses().await?;
        self.drop_stale_addresses().await?;
        self.pair_looks().await;
        self.pair_compares();
        changes.extend(differences(&before, &self.desired));
        if old.timeouts != self.config.timeouts {
            changes.push("the timeouts of silent connections are others".to_owned());
        }
        if old.node.interfaces != self.config.node.interfaces {
            changes.push(format!(
                "attached to {}",
                self.config.node.interfaces.join(", ")
            ));
        }
        Ok(changes)
    }

    /// Takes off what this program has put on its interfaces and no service has
    /// any more. Only when attached: before that, the interfaces and what is on
    /// them may be another daemon's.
    pub async fn drop_stale_addresses(&self) -> anyhow::Result<()> {
        let wanted = self.wanted_addresses();
        for entry in self.addresses.list().await? {
            if entry.ours && !wanted.contains(&entry.address) {
                self.drop_address(&entry.interface, entry.address).await?;
            }
        }
        Ok(())
    }

    /// The addresses that belong on this host now.
    fn wanted_addresses(&self) -> BTreeSet<IpAddr> {
        if !self.may_hold() {
            return BTreeSet::new();
        }
        let of_services = self.config.services.iter();
        let of_pair = self.config.ha.iter().flat_map(|ha| ha.addresses.iter());
        of_services
            .map(|service| service.listen.ip())
            .chain(of_pair.copied())
            .collect()
    }

    async fn drop_address(&self, interface: &str, address: IpAddr) -> anyhow::Result<()> {
        if self.hosts_addresses(interface) && self.addresses.remove(interface, address).await? {
            info!("took {address} off {interface}");
        }
        Ok(())
    }

    /// Takes off every address that this program has put on its interfaces.
    pub async fn release_addresses(&self) -> anyhow::Result<()> {
        for entry in self
            .addresses
            .list()
            .await?
            .iter()
            .filter(|entry| entry.ours)
        {
            self.drop_address(&entry.interface, entry.address).await?;
        }
        Ok(())
    }

    /// Samples the services' counters for the rates, and watches what alarms.
    pub fn sample(&mut self) {
        let now = Instant::now();
        for service in &self.plan {
            let Ok(traffic) = self.dataplane.service_traffic(service.number) else {
                continue;
            };
            let rate = self.rates.entry(service.number).or_default();
            if let Some((then, before)) = rate.last {
                let seconds = now
                    .duration_since(then)
                    .max(Duration::from_millis(1))
                    .as_secs_f64();
                let per_second =
                    |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
                rate.new_flows = per_second(traffic.new_flows, before.new_flows);
                rate.packets = per_second(
                    traffic.forward_packets + traffic.reply_packets,
                    before.forward_packets + before.reply_packets,
                );
                rate.bits = 8.0
                    * per_second(
                        traffic.forward_bytes + traffic.reply_bytes,
                        before.forward_bytes + before.reply_bytes,
                    );
            }
            rate.last = Some((now, traffic));
        }
        let numbers: BTreeSet<u32> = self.plan.iter().map(|service| service.number).collect();
        self.rates.retain(|number, _| numbers.contains(number));
        self.take_census(now);
        self.pair_tells();
        self.watch(now, self.gauges);
    }

    /// The health board's entry of a backend.
    pub fn status_of(&self, id: &TargetId) -> Option<health::Status> {
        self.checker.board().status_of(id)
    }

    /// The place of a service and of one of its backends.
    pub fn find(&self, service: &str, backend: &str) -> Result<(usize, usize), Refusal> {
        let place = self.find_service(service)?;
        let backends = &self.desired[place].backends;
        let within = backends
            .iter()
            .position(|entry| entry.name == backend)
            .ok_or_else(|| {
                let names: Vec<&str> = backends.iter().map(|entry| entry.name.as_str()).collect();
                Refusal::Unknown(format!(
                    "service {service} has no backend {backend}; it has: {}",
                    list(&names)
                ))
            })?;
        Ok((place, within))
    }

    /// The place of a service.
    pub fn find_service(&self, service: &str) -> Result<usize, Refusal> {
        self.desired
            .iter()
            .position(|entry| entry.name == service)
            .ok_or_else(|| {
                let names: Vec<&str> = self
                    .desired
                    .iter()
                    .map(|entry| entry.name.as_str())
                    .collect();
                Refusal::Unknown(format!(
                    "there is no service {service}; there are: {}",
                    list(&names)
                ))
            })
    }

    fn save(&self) -> anyhow::Result<()> {
        state::save(&self.state_path, &self.state)
    }
}

/// Which backends the tables have as up, by the ends of service and backend.
type KnownHealth = BTreeMap<(Endpoint, Endpoint), bool>;

/// The same, found out when somebody asks.
type Known<'k> = LazyCell<KnownHealth, Box<dyn FnOnce() -> KnownHealth + 'k>>;

fn known_health(tables: &Tables) -> KnownHealth {
    let services: BTreeMap<u32, Endpoint> = tables
        .parties
        .iter()
        .filter(|(_, party)| party.roles & abi::role::SERVICE != 0)
        .map(|(&endpoint, party)| (party.service, endpoint))
        .collect();
    tables
        .backends
        .values()
        .filter_map(|backend| {
            let listen = *services.get(&backend.service)?;
            let endpoint = model::endpoint(
                backend.address.socket(backend.port),
                u16::from(backend.protocol),
            );
            Some(((listen, endpoint), backend.flags & abi::backend::UP != 0))
        })
        .collect()
}

/// What is to be checked. A backend that the tables already know goes on
/// as up or down as it was.
fn targets(config: &Config, desired: &[Service], known: &Known<'_>) -> Vec<Target> {
    let checks: BTreeMap<&str, &config::Service> = config
        .services
        .iter()
        .map(|service| (service.name.as_str(), service))
        .collect();
    let mut targets = Vec::new();
    for service in desired {
        let Some(in_file) = checks.get(service.name.as_str()) else {
            continue;
        };
        let check = &in_file.check;
        if check.kind == CheckKind::None {
            continue;
        }
        for backend in &service.backends {
            let up = known.get(&(service.listen, backend.endpoint));
            let mut address = backend.endpoint.address.socket(backend.endpoint.port);
            if let Some(port) = check.port {
                address.set_port(port);
            }
            targets.push(Target {
                id: TargetId {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                },
                address,
                way: way(in_file, &config.node.tunnel_sources, address),
                settings: health::Settings {
                    interval: check.interval,
                    timeout: check.timeout,
                    rise: check.rise,
                    fall: check.fall,
                },
                initial: up.map_or(health::State::Unknown, |&up| health::State::adopted(up)),
            });
        }
    }
    targets
}

/// How a probe gets to a backend.
fn way(service: &config::Service, sources: &TunnelSources, backend: SocketAddr) -> Way {
    let carriage = match (service.check.via, service.forward) {
        (Via::Service, Forward::Dsr) => Carriage::Dsr,
        (Via::Service, Forward::Tunnel) => {
            let prefix = match backend {
                SocketAddr::V4(_) => sources.v4,
                SocketAddr::V6(_) => sources.v6,
            };
            Carriage::Tunnel {
                source: prefix.address(),
                bits: prefix.varied_bits(),
            }
        }
        (Via::Backend, _) | (Via::Service, Forward::FullNat | Forward::Nat) => return Way::Direct,
    };
    Way::Through(Through {
        service: service.listen,
        carriage,
    })
}

/// Settings of the node that a running daemon does not change: puts the old
/// ones in, and gives their names.
fn keep_node(new: &mut Node, old: &Node) -> Vec<&'static str> {
    let kept = Node {
        interfaces: new.interfaces.clone(),
        name: new.name.clone(),
        ..old.clone()
    };
    let mut differ = Vec::new();
    let mut compare = |name, same: bool| {
        if !same {
            differ.push(name);
        }
    };
    compare("xdp_mode", new.xdp_mode == old.xdp_mode);
    compare("pin_path", new.pin_path == old.pin_path);
    compare("control", new.control == old.control);
    compare("max_flows", new.max_flows == old.max_flows);
    compare("max_services", new.max_services == old.max_services);
    compare("max_backends", new.max_backends == old.max_backends);
    compare("tunnel_sources", new.tunnel_sources == old.tunnel_sources);
    *new = kept;
    differ
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
