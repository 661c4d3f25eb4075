//! Interfaces as they are: attaching to them, and following them as they come,
//! go, and change.
//!
//! [`topology::plan`] decides from a list of the host's links where the program
//! goes. Whenever the list differs (see [`crate::links`]), it is asked again and
//! what it says is brought about:
//!
//! - An interface of the configuration that is not there is no reason to end,
//!   unless it is missing at the start. Its link and its entries in the tables
//!   are forgotten, and the status shows it as absent.
//! - When it is there again, with whatever index, it is attached, gets the
//!   settings of forwarding and the addresses that were on it.
//! - One that is renamed keeps the program and its traffic; the operator is told
//!   that the configuration has the old name.
//! - One that is taken down loses its IPv6 addresses in the kernel: ours are put
//!   back when it is up.
//!
//! A device that refuses the native mode is remembered, and the plan is made
//! again without it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use log::{info, warn};

use super::{Attachment, Controller, Refusal};
use crate::address::{Added, Listed, interface_for};
use crate::config::{Config, Node, XdpMode};
use crate::dataplane::{self, AttachError, Came, Mode};
use crate::events::{self, Subject};
use crate::host;
use crate::host::forwarding::{self, Changed, SYSCTLS};
use crate::host::topology::{self, Kind, LARGEST_ONE_PAGE_MTU, Link, Plan, Wanted};
use crate::links::Links;

/// A refusal makes every device generic, so that the second plan is the last;
/// a device may be exchanged for another in between.
const MAX_PLANS: usize = 4;

/// What the controller knows of the host's interfaces.
pub struct Interfaces {
    links: Links,
    /// Whether the program is the flavour for frames larger than a page.
    frags: bool,
    /// Whether it was loaded to look for members of bonds and bridges.
    members: bool,
    /// Native was refused by the devices of these names, and why.
    refused: BTreeMap<String, String>,
    /// The list that was last acted upon.
    seen: Vec<Link>,
    /// What follows from it.
    plan: Plan,
    /// Attached by this process.
    attached: BTreeMap<String, Held>,
    /// Where each service's address is, or was before its interface went.
    homes: BTreeMap<IpAddr, String>,
    /// What was told and still holds.
    told: BTreeSet<String>,
    /// Which interfaces have another name than in the configuration.
    renamed: BTreeSet<String>,
    /// What could not be done and is to be tried again.
    unfinished: Option<String>,
}

/// A device that has the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    index: u32,
    mode: Mode,
}

impl Interfaces {
    /// Looks at the host before anything is changed.
    pub async fn look(node: &Node) -> anyhow::Result<Self> {
        let links = Links::connect()?;
        let seen = links.list().await?;
        let mut interfaces = Self {
            links,
            frags: true,
            members: false,
            refused: BTreeMap::new(),
            seen,
            plan: Plan::default(),
            attached: BTreeMap::new(),
            homes: BTreeMap::new(),
            told: BTreeSet::new(),
            renamed: BTreeSet::new(),
            unfinished: None,
        };
        interfaces.remember_refusals(&node.pin_path, &node.interfaces);
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let plan = interfaces.plan(node)?;
        interfaces.frags = plan.large_frames()
            && host::kernel_version(&release).is_none_or(|v| v >= host::FRAGS_KERNEL);
        interfaces.plan = interfaces.plan(node)?;
        interfaces.members = interfaces.plan.members;
        Ok(interfaces)
    }

    /// Whether the program must be the flavour for frames larger than a page.
    pub const fn frags(&self) -> bool {
        self.frags
    }

    /// Whether the program must look for members of bonds and bridges.
    pub const fn members(&self) -> bool {
        self.members
    }

    /// What was found.
    pub const fn found(&self) -> &Plan {
        &self.plan
    }

    /// A device on which an earlier run ended in generic mode stays in it: its
    /// link is taken over, and no packet is lost to another try.
    fn remember_refusals(&mut self, pins: &Path, names: &[String]) {
        let linked = dataplane::linked(pins).unwrap_or_default();
        for link in &self.seen {
            let generic = link.xdp.is_some_and(|xdp| xdp.mode == Mode::Generic);
            if generic && linked.contains(&link.name) && names.contains(&link.name) {
                let why = "in an earlier run; --fresh tries it again, and ends connections";
                let mut device = Some(link);
                while let Some(here) = device {
                    self.refused.insert(here.name.clone(), why.to_owned());
                    device = match here.kind {
                        Kind::Vlan(_) => self
                            .seen
                            .iter()
                            .find(|below| Some(below.index) == here.parent && below != &here),
                        _ => None,
                    };
                }
            }
        }
    }

    fn plan(&self, node: &Node) -> anyhow::Result<Plan> {
        let refused = self
            .seen
            .iter()
            .filter_map(|link| Some((link.index, self.refused.get(&link.name)?.clone())))
            .collect();
        // While the one that refused is away, the others wait for it as they are.
        let away = |name: &String| {
            self.refused.contains_key(name) && !self.seen.iter().any(|link| link.name == *name)
        };
        let mode = match node.xdp_mode {
            XdpMode::Auto if node.interfaces.iter().any(away) => XdpMode::Generic,
            mode => mode,
        };
        let wanted = Wanted {
            names: &node.interfaces,
            mode,
            refused: &refused,
            frags: self.frags,
        };
        Ok(topology::plan(&self.seen, &wanted)?)
    }

    /// Lists the links anew, one that was renamed under the name it is
    /// configured by; gives what was there before.
    async fn refresh(&mut self, node: &Node) -> anyhow::Result<Vec<Link>> {
        let mut links = self.links.list().await?;
        let mut renamed = BTreeSet::new();
        for (name, held) in &self.attached {
            let configured = node.interfaces.contains(name);
            if configured
                && !links.iter().any(|link| link.name == *name)
                && let Some(link) = links.iter_mut().find(|link| link.index == held.index)
                && !node.interfaces.contains(&link.name)
            {
                renamed.insert(format!(
                    "{name} is called {} now: the program stays there; put the new name into node.interfaces before lb starts the next time",
                    link.name
                ));
                link.name.clone_from(name);
            }
        }
        for told in renamed.difference(&self.renamed) {
            warn!("{told}");
        }
        self.renamed = renamed;
        Ok(std::mem::replace(&mut self.seen, links))
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.seen.iter().find(|link| link.index == index)
    }

    /// Tells what holds now and was not told yet.
    fn tell(&mut self) {
        let mut now: BTreeSet<String> = self.plan.notes.iter().cloned().collect();
        for site in &self.plan.attach {
            // Where it cannot be asked, there is nothing to be said.
            if site.tagged && host::takes_tags_off(&site.device).unwrap_or(false) {
                now.insert(format!(
                    "{0} takes VLAN tags off before the program sees the frames, which then seem to have none: switch that off by `ethtool -K {0} rxvlan off`",
                    site.device
                ));
            }
        }
        if self.plan.members && !self.members {
            now.insert(format!(
                "{} became a part of a bond or bridge since lb was started: restart lb, so that the program looks for that (connections go on)",
                self.plan.attach.iter().map(|site| site.device.as_str()).collect::<Vec<_>>().join(" or ")
            ));
        }
        for note in now.difference(&self.told) {
            warn!("{note}");
        }
        self.told = now;
    }

    /// Where an address is to be put; `None` while its interface is away.
    pub(super) fn home(&self, address: IpAddr, listed: &[Listed]) -> Option<String> {
        match self.homes.get(&address) {
            Some(home) if self.plan.hosts.contains(home) => Some(home.clone()),
            Some(home) if self.plan.absent.contains(home) => None,
            _ => interface_for(address, &self.plan.hosts, listed).map(ToOwned::to_owned),
        }
    }
}

impl Controller {
    /// Attaches to the interfaces of the file, and detaches from others.
    pub fn attach_all(&mut self) -> anyhow::Result<()> {
        self.attach(&self.config.node.clone())?;
        self.settle()?;
        self.save()
    }

    /// Attaches to what another file has in addition. If that cannot be,
    /// everything is as before.
    pub(super) async fn attach_more(&mut self, config: &Config) -> Result<(), Refusal> {
        self.interfaces
            .refresh(&config.node)
            .await
            .map_err(Refusal::Failed)?;
        let plan = self.interfaces.plan(&config.node);
        let plan = plan.map_err(|error| Refusal::Invalid(error.to_string()))?;
        let old = std::mem::replace(&mut self.interfaces.plan, plan);
        let outcome = prepare_host(config, &self.interfaces.plan).and_then(|changed| {
            self.remember_settings(changed);
            self.attach(&config.node)
        });
        if let Err(error) = outcome {
            self.interfaces.plan = old;
            // Back to what was there; what does not go back is told by the first.
            let _ = self.attach(&self.config.node.clone());
            let _ = self.settle();
            return Err(Refusal::Invalid(format!("{error:#}")));
        }
        Ok(())
    }

    /// Attaches where the plan wants it, and plans again where native is
    /// refused.
    fn attach(&mut self, node: &Node) -> anyhow::Result<()> {
        let mut last = String::new();
        for _ in 0..MAX_PLANS {
            match self.attach_plan() {
                Ok(()) => return Ok(()),
                Err(AttachError::Refused {
                    device,
                    mode: Mode::Native,
                    source,
                }) if node.xdp_mode == XdpMode::Auto => {
                    last = format!("{device}: {source}");
                    self.interfaces.refused.insert(device, source.to_string());
                    self.interfaces.plan = self.interfaces.plan(node)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::bail!("one interface after the other refuses the program ({last})")
    }

    fn attach_plan(&mut self) -> Result<(), AttachError> {
        // First what is not wanted any more: the kernel refuses a device while
        // one above it (a bond, a macvlan) has a program.
        let sites = &self.interfaces.plan.attach;
        let unwanted: Vec<String> = self
            .interfaces
            .attached
            .iter()
            .filter(|(_, held)| !sites.iter().any(|site| site.index == held.index))
            .map(|(device, _)| device.clone())
            .collect();
        for device in unwanted {
            self.dataplane.detach(&device)?;
            self.forget(&device);
        }
        for site in self.interfaces.plan.attach.clone() {
            let wanted = Held {
                index: site.index,
                mode: site.mode,
            };
            let held = self.interfaces.attached.get(&site.device).copied();
            if held == Some(wanted) {
                continue;
            }
            // What this process attached since the list was read, it knows.
            let has = self
                .interfaces
                .link(site.index)
                .and_then(|link| link.xdp)
                .filter(|_| held.is_none());
            let came = self
                .dataplane
                .attach(&site.device, site.index, site.mode, has)?;
            let sentence = match came {
                Came::New => format!("attached to {} in {} mode", site.device, site.mode.name()),
                Came::TookOver => format!(
                    "took over {} from an earlier run; its link never went away",
                    site.device
                ),
            };
            let subject = Subject::interface(&site.device);
            self.journal
                .record(events::Kind::InterfaceAttached, subject, sentence);
            self.interfaces
                .attached
                .retain(|_, other| other.index != site.index);
            self.interfaces.attached.insert(site.device, wanted);
        }
        Ok(())
    }

    /// Brings everything else in line with where the program is attached.
    pub(super) fn settle(&mut self) -> anyhow::Result<()> {
        let plan = &self.interfaces.plan;
        let keep: Vec<String> = plan.attach.iter().map(|site| site.device.clone()).collect();
        self.dataplane
            .set_interfaces(&plan.interfaces, &plan.exits)?;
        self.dataplane.set_devices(plan.devices.iter().copied())?;
        for device in self.dataplane.detach_others(&keep)? {
            self.forget(&device);
        }
        self.interfaces
            .attached
            .retain(|name, _| keep.contains(name));
        self.attachments = attachments(&self.config.node.interfaces, &self.interfaces.plan);
        self.interfaces.tell();
        Ok(())
    }

    /// Takes note that a device has the program no longer.
    fn forget(&mut self, device: &str) {
        self.interfaces.attached.remove(device);
        let (kind, sentence) = if host::ifindex(device).is_err() {
            (
                events::Kind::InterfaceLost,
                format!(
                    "{device} has gone, and its link with it; attached again when it comes back"
                ),
            )
        } else {
            (
                events::Kind::InterfaceDetached,
                format!("detached from {device}"),
            )
        };
        self.journal
            .record(kind, Subject::interface(device), sentence);
    }

    /// Follows a change of the host's interfaces. Nothing here ends the daemon:
    /// what fails is told, and tried again.
    pub async fn interfaces_changed(&mut self) {
        let failed = self.follow_interfaces().await.err();
        let failed = failed.map(|error| format!("{error:#}"));
        if let Some(told) = &failed
            && self.interfaces.unfinished.as_ref() != Some(told)
        {
            warn!(
                "interfaces changed, but could not be followed: {told}; trying again every second"
            );
        }
        self.interfaces.unfinished = failed;
        self.pair_looks().await;
    }

    /// Tries again what failed.
    pub async fn attend_interfaces(&mut self) {
        if self.interfaces.unfinished.is_some() {
            self.interfaces_changed().await;
        }
    }

    async fn follow_interfaces(&mut self) -> anyhow::Result<()> {
        let node = self.config.node.clone();
        let before = self.interfaces.refresh(&node).await?;
        if before == self.interfaces.seen && self.interfaces.unfinished.is_none() {
            // One that was down for a moment has lost its IPv6 addresses.
            return self.take_addresses().await.map(drop);
        }
        let old = std::mem::take(&mut self.interfaces.plan);
        match self.interfaces.plan(&node) {
            Ok(plan) => self.interfaces.plan = plan,
            Err(error) => {
                self.interfaces.plan = old;
                return Err(error);
            }
        }
        self.interfaces.tell_of_mtu(&before);
        let attached = self.interfaces.attached.clone();
        let outcome = self.attach(&node);
        self.settle()?;
        outcome?;
        let plan = &self.interfaces.plan;
        let came = attached != self.interfaces.attached;
        if came || old.hosts != plan.hosts || old.implied != plan.implied {
            let changed = prepare_host(&self.config, plan)?;
            self.remember_settings(changed);
            self.save()?;
        }
        self.take_addresses().await.map(drop)
    }

    /// Of a setting that was changed more than once, because its interface came
    /// again, the last change is the one to undo.
    pub(super) fn remember_settings(&mut self, changed: Vec<Changed>) {
        self.state
            .sysctls
            .retain(|old| !changed.iter().any(|new| new.path == old.path));
        self.state.sysctls.extend(changed);
    }

    /// Puts the services' addresses on an interface. An address that the host
    /// has of its own accord stays as it is. Gives what was added.
    pub async fn take_addresses(&mut self) -> anyhow::Result<Vec<(String, IpAddr)>> {
        let mut added = Vec::new();
        let listed = self.addresses.list().await?;
        let there: BTreeMap<IpAddr, &Listed> =
            listed.iter().map(|entry| (entry.address, entry)).collect();
        let wanted = self.wanted_addresses();
        self.interfaces
            .homes
            .retain(|address, _| wanted.contains(address));
        for address in wanted {
            if let Some(entry) = there.get(&address) {
                let home = entry.interface.clone();
                self.interfaces.homes.insert(address, home);
                continue;
            }
            let Some(interface) = self.interfaces.home(address, &listed) else {
                anyhow::ensure!(
                    !self.interfaces.plan.absent.is_empty(),
                    "there is no interface for the services' addresses"
                );
                continue;
            };
            if self.addresses.add_new(&interface, address).await? == Added::Added {
                info!("put {address} on {interface}");
                added.push((interface.clone(), address));
            }
            self.interfaces.homes.insert(address, interface);
        }
        Ok(added)
    }

    /// Whether the services' addresses may be on an interface of this name.
    pub(super) fn hosts_addresses(&self, interface: &str) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == interface);
        named(&self.interfaces.plan.hosts) || named(&self.config.node.interfaces)
    }
}

impl Interfaces {
    fn tell_of_mtu(&self, before: &[Link]) {
        for held in self.attached.values() {
            let (Some(now), Some(then)) = (
                self.link(held.index),
                before.iter().find(|link| link.index == held.index),
            ) else {
                continue;
            };
            if now.mtu != then.mtu {
                info!(
                    "{}: its MTU is {} now (was {})",
                    now.name, now.mtu, then.mtu
                );
                if now.mtu > LARGEST_ONE_PAGE_MTU && !self.frags && held.mode == Mode::Native {
                    warn!(
                        "{}: the program takes frames of one page only, so its driver may drop larger ones; restart lb, which takes them then (connections go on)",
                        now.name
                    );
                }
            }
        }
    }
}

fn attachments(names: &[String], plan: &Plan) -> Vec<Attachment> {
    names
        .iter()
        .map(|name| match plan.site_of(name) {
            Some(site) => Attachment {
                interface: name.clone(),
                device: site.device.clone(),
                index: site.index,
                mode: Some(site.mode),
            },
            None => Attachment {
                interface: name.clone(),
                device: name.clone(),
                index: 0,
                mode: None,
            },
        })
        .collect()
}

/// Makes the host's settings that forwarding needs, and tells of each; gives
/// what it changed.
pub fn prepare_host(config: &Config, plan: &Plan) -> anyhow::Result<Vec<Changed>> {
    let ipv6 = config.has_ipv6();
    let changed = forwarding::prepare(Path::new(SYSCTLS), &plan.hosts, &plan.implied, ipv6)?;
    for setting in &changed {
        info!("{setting}");
    }
    Ok(changed)
}
