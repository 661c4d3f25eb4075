//! This node as one of a pair: what the role that VRRP gives it means for addresses
//! and for whether it is fit to have it.
//!
//! The driver ([`crate::vrrp::driver`]) decides in a thread of its own and tells what
//! it decided. Here that is followed: the services' addresses, and those of
//! `ha.addresses`, are on the interfaces while this node is active, and no longer
//! than that. Word of the driver only says "look": what is brought about is what its
//! state says, so that nothing depends on every word getting through.
//!
//! With `[ha.sync]` the nodes also tell each other of their flows ([`crate::sync`]). The
//! driver's thread itself says there who is active, without the controller's help; what
//! else is to be known of this node the controller adds by the second.
//!
//! # Where the data path comes in
//! The program is attached and its tables are kept on the passive node as well, so
//! that it is warm. Whether it may act is the lease, and the lease goes out in one
//! place, the `lease` of [`outside`].

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use log::warn;
use tokio::sync::{mpsc, watch};

use super::{Controller, Refusal};
use crate::config::{Config, Ha, HaChecksum};
use crate::dataplane::Lease;
use crate::events::{Kind, Subject};
use crate::model::offer::Standing;
use crate::sync::alike;
use crate::sync::board::{View, Word};
use crate::sync::dictionary::Dictionary;
use crate::sync::link::Ends;
use crate::sync::message::{Role, Status as Told};
use crate::sync::running::Running;
use crate::tls::Renewed;
use crate::vrrp::announce::Place;
use crate::vrrp::driver::{
    ChecksumChoice, Command, Driver, Outside, Protected, Report, Settings, Status,
};
use crate::vrrp::machine::{self, Heard, LAST_RESORT, Moment, Released, Taken};
use crate::vrrp::net::{Seen, Wanted};
use crate::vrrp::packet::Checksum;

/// Words of the driver that may wait. What does not fit is found out by the second.
const QUEUE: usize = 256;

/// How long a node that comes back waits to know the connections before it takes
/// over without.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A node that lags by more than this is not handed over to.
const MOST_LAG: Duration = Duration::from_secs(1);

/// Two active nodes are told of again after this long.
const RIVAL_AGAIN: Duration = Duration::from_secs(10);

/// What the controller knows of the pair.
pub struct Pair {
    driver: Driver,
    /// Why this node is not fit to be active, if it is not.
    unfit: Option<String>,
    /// Whether the addresses were last put on, rather than taken off.
    holds: bool,
    /// When two active nodes were told of, and which the other was.
    rival: Option<(Instant, IpAddr)>,
    /// The channel to the other node, if there is one.
    sync: Option<Running>,
    /// What the driver was told last of whether this node knows the flows.
    ready: bool,
    /// What of the file the other node must have alike.
    configuration: u64,
}

/// What a pair will say.
#[derive(Default)]
pub struct Sayings {
    /// The driver.
    pub reports: Option<mpsc::Receiver<Report>>,
    /// The channel to the other node.
    pub words: Option<mpsc::Receiver<Word>>,
}

impl Pair {
    /// How the driver stands.
    pub fn status(&self) -> Status {
        self.driver.status()
    }

    /// Why this node is not fit to be active, if it is not.
    pub fn unfit(&self) -> Option<&str> {
        self.unfit.as_deref()
    }

    /// How the channel to the other node stands, if there is one.
    pub fn sync(&self) -> Option<View> {
        self.sync.as_ref().map(Running::view)
    }

    /// What of the file the other node must have alike, as a number.
    pub const fn configuration(&self) -> u64 {
        self.configuration
    }
}

/// Whether this node is told of the active one's connections.
pub(super) fn follows(config: &Config) -> bool {
    config.ha.as_ref().is_some_and(|ha| ha.sync.is_some())
}

impl Controller {
    /// Takes part, if the file has `[ha]`; gives what the driver will say.
    pub async fn start_pair(&mut self) -> anyhow::Result<Sayings> {
        let Some(ha) = self.config.ha.clone() else {
            return Ok(Sayings::default());
        };
        let configuration = alike::configuration(&self.config);
        let (sync, words) = self.start_sync(&ha, configuration)?.unzip();
        let role = sync.as_ref().map(|sync| RoleTold {
            status: sync.status().clone(),
            resting: self.collector.resting(),
        });
        let (tell, told) = mpsc::channel(QUEUE);
        let lease = self.dataplane.lease();
        let settings = settings(&ha, &self.config, self.protected().await?, lease.held());
        let driver =
            Driver::start(settings, outside(tell, lease, role)).context("cannot start VRRP")?;
        self.pair = Some(Pair {
            driver,
            unfit: None,
            holds: false,
            rival: None,
            ready: sync.is_none(),
            sync,
            configuration,
        });
        self.judge_fitness();
        self.pair_tells();
        Ok(Sayings {
            reports: Some(told),
            words,
        })
    }

    /// Calls the other node, and answers it, if the file has `[ha.sync]`.
    fn start_sync(
        &self,
        ha: &Ha,
        configuration: u64,
    ) -> anyhow::Result<Option<(Running, mpsc::Receiver<Word>)>> {
        let Some(sync) = &ha.sync else {
            return Ok(None);
        };
        let identity = Renewed::open_untimely(sync.files.clone(), sync.listen.ip())?;
        let ends = Ends {
            listen: sync.listen,
            peer: sync.peer,
            identity: Arc::new(identity),
        };
        let status = Told {
            configuration,
            priority: ha.priority,
            ..Told::default()
        };
        let numbers = Dictionary::of(&self.tables);
        let name = &self.config.node.name;
        Running::start(name, self.dataplane.table(), ends, status, numbers)
            .context("cannot start the channel to the other node")
            .map(Some)
    }

    /// The numbers of services and backends are others.
    pub(super) fn pair_numbers(&self) {
        if let Some(sync) = self.pair.as_ref().and_then(|pair| pair.sync.as_ref()) {
            sync.number(Dictionary::of(&self.tables));
        }
    }

    /// The file is another.
    pub(super) fn pair_compares(&mut self) {
        if let Some(pair) = &mut self.pair {
            pair.configuration = alike::configuration(&self.config);
        }
        self.pair_tells();
    }

    /// Has the other node know how this one is; but for its role, which the driver says.
    pub(super) fn pair_tells(&mut self) {
        let healthy = |service: &&crate::model::Service| service.standing() != Standing::Nobody;
        let healthy = self.desired.iter().filter(healthy).count();
        let (healthy, services) = (healthy as u32, self.desired.len() as u32);
        let flows = self.census().established;
        let Some(pair) = &mut self.pair else { return };
        let Some(sync) = &pair.sync else { return };
        let priority = pair.driver.status().priority;
        sync.status().send_if_modified(|told| {
            let now = Told {
                priority,
                configuration: pair.configuration,
                flows,
                healthy,
                services,
                ..*told
            };
            std::mem::replace(told, now) != now
        });
        let ready = pair.sync().is_none_or(|view| view.ready);
        if ready != pair.ready {
            pair.ready = ready;
            pair.driver.tell(Command::Ready(ready));
        }
    }

    /// Tells of what is known of the other node.
    pub fn sync_said(&mut self, word: Word) {
        let (kind, sentence) = match word {
            Word::Ready => return self.pair_tells(),
            Word::Heard(name) => (Kind::HaSyncUp, format!("hears the other node, {name}")),
            Word::Lost(why) => (
                Kind::HaSyncLost,
                format!("hears the other node no longer: {why}"),
            ),
            Word::Unheard(why) => (
                Kind::HaSyncLost,
                format!("does not hear the other node: {why}"),
            ),
            Word::Alike(false) => (
                Kind::HaFilesDiffer,
                "the other node's file differs in services, backends, checks, ha.vrid or ha.addresses: connections of what it has not got are lost when it takes over".to_owned(),
            ),
            Word::Alike(true) => (
                Kind::HaFilesAlike,
                "the other node's file agrees with this one's".to_owned(),
            ),
        };
        self.journal.record(kind, Subject::node(), sentence);
    }

    /// Whether this node may have the services' addresses: alone always, in a pair
    /// while it is active.
    pub(super) fn may_hold(&self) -> bool {
        match (&self.config.ha, &self.pair) {
            (None, _) => true,
            (Some(_), Some(pair)) => pair.status().state.holds_addresses(),
            (Some(_), None) => false,
        }
    }

    /// Brings about what the driver's word is about, and tells of it.
    pub async fn pair_reported(&mut self, report: Report) {
        self.follow_role().await;
        let (kind, sentence) = match report {
            Report::Taken(taken) => (Kind::HaActive, format!("active: {}", why_taken(taken))),
            Report::Released(released) => (
                Kind::HaPassive,
                format!("passive: {}", why_released(released)),
            ),
            Report::Rival(heard) => {
                let Some(pair) = &mut self.pair else { return };
                let now = Instant::now();
                let lately = |&(then, whose): &(Instant, IpAddr)| {
                    whose == heard.source && now.duration_since(then) < RIVAL_AGAIN
                };
                if pair.rival.as_ref().is_some_and(lately) {
                    return;
                }
                pair.rival = Some((now, heard.source));
                (
                    Kind::HaRival,
                    format!("two nodes were active: {} as well", whom(heard)),
                )
            }
            Report::Apart(why) => (Kind::HaApart, format!("takes no part in the pair: {why}")),
            Report::OnLink => (Kind::HaOnLink, "takes part in the pair".to_owned()),
        };
        self.journal.record(kind, Subject::node(), sentence);
    }

    /// Puts the addresses on or takes them off, as the role is.
    pub async fn follow_role(&mut self) {
        let holds = self.may_hold();
        let outcome = if holds {
            self.take_addresses().await.map(drop)
        } else {
            self.drop_stale_addresses().await
        };
        match (outcome, &mut self.pair) {
            (Ok(()), Some(pair)) => pair.holds = holds,
            (Ok(()), None) => {}
            (Err(error), _) => {
                warn!(
                    "the addresses of services are not as the role wants them: {error:#}; trying again every second"
                );
            }
        }
    }

    /// Follows the role where that has not been done. Once a second.
    pub async fn attend_pair(&mut self) {
        let behind = |pair: &Pair| pair.holds != pair.status().state.holds_addresses();
        if self.pair.as_ref().is_some_and(behind) {
            self.follow_role().await;
        }
    }

    /// Tells the driver that interfaces have changed, and what follows from it.
    pub(super) async fn pair_looks(&mut self) {
        if self.pair.is_none() {
            return;
        }
        let protected = self.protected().await;
        if let Some(pair) = &self.pair {
            pair.driver.tell(Command::LinkChanged);
            match protected {
                Ok(protected) => pair.driver.tell(Command::Protect(protected)),
                Err(error) => warn!("{error:#}"),
            }
        }
        self.judge_fitness();
    }

    /// Tells the driver whether this node is fit to be active: its tracked interfaces
    /// are up, and not all of its services are without a backend.
    pub(super) fn judge_fitness(&mut self) {
        let (Some(ha), Some(pair)) = (&self.config.ha, &self.pair) else {
            return;
        };
        let down = |name: &&String| !Seen::look(name).is_ok_and(|seen| seen.running);
        let nobody = |service: &crate::model::Service| service.standing() == Standing::Nobody;
        let unfit = if let Some(name) = ha.track.iter().find(down) {
            Some(format!("the tracked interface {name} is down"))
        } else if !self.desired.is_empty() && self.desired.iter().all(nobody) {
            Some("no service has a backend left".to_owned())
        } else {
            None
        };
        if unfit == pair.unfit {
            return;
        }
        let was_fit = pair.unfit.is_none();
        pair.driver.tell(Command::Priority {
            priority: if unfit.is_some() {
                LAST_RESORT
            } else {
                ha.priority
            },
            give_up: unfit.is_some() && was_fit,
        });
        let (kind, sentence) = match &unfit {
            Some(why) => (Kind::HaUnfit, format!("not fit to be active: {why}")),
            None => (Kind::HaFit, "fit to be active again".to_owned()),
        };
        self.journal.record(kind, Subject::node(), sentence);
        if let Some(pair) = &mut self.pair {
            pair.unfit = unfit;
        }
    }

    /// Hands over to the other node on purpose.
    ///
    /// # Errors
    /// If it is not this node's to give, or, unless that is to be so, if the other one
    /// is not there to take it, or would lose connections.
    pub fn yield_role(&mut self, force: bool) -> Result<String, Refusal> {
        let Some(pair) = &self.pair else {
            return Err(Refusal::Invalid(
                "this node runs alone: its file has no section [ha]".into(),
            ));
        };
        let state = pair.status().state;
        if !matches!(state, machine::State::Active(_)) {
            return Err(Refusal::Invalid(format!(
                "this node is not active but in state {}: run it on the other one",
                state.word()
            )));
        }
        if let Some(why) = pair.sync().and_then(|view| unfit_to_take_over(&view))
            && !force
        {
            return Err(Refusal::Invalid(format!(
                "{why}; see `lb ha status`, or hand over in any case with --force"
            )));
        }
        pair.driver.tell(Command::Yield);
        Ok("handing over; this node stays passive until the other one is gone, or yields".into())
    }

    /// Leaves the pair: others are told, and nothing stays behind that could act.
    pub async fn leave_pair(&mut self) -> anyhow::Result<()> {
        let Some(pair) = self.pair.take() else {
            return Ok(());
        };
        let stopped = tokio::task::spawn_blocking(move || {
            pair.driver.stop();
            // Until then the other node is told of what still happens.
            if let Some(sync) = pair.sync {
                sync.part();
            }
        });
        stopped.await.context("VRRP did not stop well")?;
        self.release_addresses().await
    }

    /// What moves with the role, and where neighbours are told of it.
    async fn protected(&self) -> anyhow::Result<Protected> {
        let Some(ha) = &self.config.ha else {
            return Ok(Protected::default());
        };
        let listed = self.addresses.list().await?;
        let mut places = Vec::new();
        for address in ha.protected(&self.config.services) {
            let Some(name) = self.interfaces.home(address, &listed) else {
                continue;
            };
            let Some(mac) = Seen::look(&name)?.mac else {
                continue;
            };
            let index = crate::host::ifindex(&name)?;
            places.push(Place {
                index,
                mac,
                address,
            });
        }
        Ok(Protected {
            advertised: ha.advertised(&self.config.services),
            places,
        })
    }
}

fn settings(ha: &Ha, config: &Config, protected: Protected, lease: Option<Moment>) -> Settings {
    Settings {
        wanted: Wanted {
            interface: ha.interface.clone(),
            family: ha.family(&config.services),
            peers: ha.peers.clone(),
            protected: ha.protected(&config.services),
        },
        virtual_router: ha.vrid,
        hop_limit: ha.hop_limit,
        machine: machine::Config {
            // Until the driver knows from where it speaks.
            address: std::net::Ipv4Addr::UNSPECIFIED.into(),
            priority: ha.priority,
            interval: ha.interval,
            preempt: ha.preempt,
            preempt_delay: ha.preempt_delay,
            // Where connections are not carried over there is nothing to wait for.
            ready: ha.sync.is_none(),
            ready_limit: READY_LIMIT,
        },
        checksum: match ha.checksum {
            HaChecksum::Auto => ChecksumChoice::Follow,
            HaChecksum::PseudoHeader => ChecksumChoice::Always(Checksum::PseudoHeader),
            HaChecksum::Plain => ChecksumChoice::Always(Checksum::Plain),
        },
        protected,
        lease,
    }
}

/// Who has to know at once which role this node has.
struct RoleTold {
    /// The channel to the other node.
    status: watch::Sender<Told>,
    /// The collector.
    resting: Arc<AtomicBool>,
}

impl RoleTold {
    fn follow(&self, report: &Report) {
        let role = match report {
            Report::Taken(_) => Role::Active,
            Report::Released(_) | Report::OnLink => Role::Backup,
            Report::Apart(_) => Role::Initialize,
            Report::Rival(_) => return,
        };
        self.resting.store(!role.acts(), Ordering::SeqCst);
        self.status.send_modify(|told| told.role = role);
    }
}

/// What the driver does to the world.
fn outside(told: mpsc::Sender<Report>, lease: Arc<Lease>, role: Option<RoleTold>) -> Outside {
    Outside {
        // Here, and nowhere else, the data path learns until when it may act.
        lease: Box::new(move |until| lease.set(until)),
        tell: Box::new(move |report| {
            if let Some(role) = &role {
                role.follow(&report);
            }
            // A full queue: what it is about is found out by the second.
            let _ = told.try_send(report);
        }),
    }
}

fn whom(heard: Heard) -> String {
    format!("{} with priority {}", heard.source, heard.priority)
}

fn why_taken(taken: Taken) -> String {
    match taken {
        Taken::Owner => "it owns the addresses".into(),
        Taken::Continued => "an earlier run was, and nobody has taken over".into(),
        Taken::Silent(heard) => format!("{} is heard no longer", whom(heard)),
        Taken::Left(heard) => format!("{} has left", heard.source),
        Taken::Preempted(heard) => format!("it comes before {}", whom(heard)),
        Taken::Nobody => "nobody else is heard".into(),
    }
}

fn why_released(released: Released) -> String {
    match released {
        Released::Outranked(heard) => format!("{} comes before it", whom(heard)),
        Released::Replaced(heard) => format!("it has left, and {} has taken over", whom(heard)),
        Released::Unheard => "it has left, and nobody was heard to take over".into(),
        Released::Overdue => {
            "it could not advertise in time, so another may have taken over".into()
        }
        Released::Fault => "its interface is down".into(),
    }
}

/// Why the other node would not take over, or not without loss, if that is so.
fn unfit_to_take_over(view: &View) -> Option<String> {
    let Some(status) = view.status() else {
        return Some("the other node is not heard, so nobody would take over".to_owned());
    };
    if status.role != Role::Backup {
        return Some(format!(
            "the other node is not waiting to take over, but in state {}",
            status.role.word()
        ));
    }
    if !view.telling.up || view.snapshots == 0 || view.lag() > MOST_LAG {
        return Some(
            "the other node does not know all connections yet, and they would be lost".to_owned(),
        );
    }
    None
}

/// Keeps what a running daemon does not change of its part in a pair; gives whether
/// anything of that differs.
pub(super) fn keep_ha(new: &mut Option<Ha>, old: &Option<Ha>) -> bool {
    let kept = match (&*new, old) {
        (Some(new), Some(old)) => Some(Ha {
            addresses: new.addresses.clone(),
            track: new.track.clone(),
            ..old.clone()
        }),
        (None | Some(_), None) | (None, Some(_)) => old.clone(),
    };
    let differs = *new != kept;
    *new = kept;
    differs
}
