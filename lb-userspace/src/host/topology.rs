//! Where the program goes: which devices it is attached to, and what it must
//! know of the interfaces above them.
//!
//! An interface of `node.interfaces` is what the host has addresses and routes
//! on; the device below it, where frames come in, may be another one:
//!
//! | named            | attached to     | frames belong to    | sent by          |
//! |------------------|-----------------|---------------------|------------------|
//! | a NIC            | itself          | it, its VLANs       | it, with tags    |
//! | a VLAN interface | the NIC below   | by their tags       | the NIC, tagged  |
//! | a bond           | itself          | the bond, its VLANs | the bond         |
//! | a bond's member  | itself          | the bond, its VLANs | the bond         |
//! | a bridge         | itself, generic | itself              | itself           |
//! | a bridge's port  | itself          | the bridge          | the port         |
//!
//! The kernel hands a bond's native program to its members, each of which is
//! then the device that a frame came in on; so each member leads to the bond.
//!
//! In generic mode the program runs where the kernel has taken the tags off and
//! given the frame to the interface above: there everything is attached to what
//! is named. And it is all or nothing: a native program cannot send through a
//! device whose driver has no native XDP, so that one such device makes all
//! others generic, too.
//!
//! All of this is decided by [`plan`], from a list of links; nothing here asks
//! the kernel.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::Tagged;
use thiserror::Error;

use crate::config::XdpMode;
use crate::dataplane::{Carried, Mode};

/// The largest MTU whose frames fit into a page together with what drivers keep
/// beside them (veth and virtio allow 3,506 bytes, mlx5 3,498).
pub const LARGEST_ONE_PAGE_MTU: u32 = 3_498;

/// Bonds under bridges and the like: masters above masters, at most.
const MAX_MASTERS: usize = 4;

/// VLAN interfaces on VLAN interfaces are followed down so far.
const MAX_STACKED: usize = 8;

/// A network interface as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The interface it is stacked on, if that is in this namespace.
    pub parent: Option<u32>,
    /// The bond or bridge it is a part of.
    pub master: Option<u32>,
    /// The largest packet.
    pub mtu: u32,
    /// Whether an administrator has switched it on.
    pub up: bool,
    /// The XDP program it has.
    pub xdp: Option<Carried>,
}

/// What an interface is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A NIC, or anything that behaves like one.
    Plain,
    /// The frames with one tag of the interface below.
    Vlan(Tag),
    /// Several NICs as one.
    Bond,
    /// A switch.
    Bridge,
    /// A routing domain: its members keep their own frames.
    Vrf,
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub protocol: u16,
    /// 1 to 4094.
    pub id: u16,
}

impl Tag {
    /// As it stands in a frame, read as a word, priority bits zero.
    fn word(self) -> u32 {
        let [a, b] = self.protocol.to_be_bytes();
        let [c, d] = (self.id & 0x0fff).to_be_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// `node.interfaces`.
    pub names: &'a [String],
    /// `node.xdp_mode`.
    pub mode: XdpMode,
    /// Devices, by index, that refused the native mode, and what they said.
    pub refused: &'a BTreeMap<u32, String>,
    /// Whether the program takes frames larger than a page.
    pub frags: bool,
}

/// What [`plan`] decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Where to attach, a device once.
    pub attach: Vec<Site>,
    /// The `INTERFACES` table: whose the frames are.
    pub interfaces: BTreeMap<Tagged, u32>,
    /// The `EXITS` table: how an interface's frames leave.
    pub exits: BTreeMap<u32, Tagged>,
    /// The devices that the program sends through.
    pub devices: BTreeSet<u32>,
    /// Whether frames without a tag may belong to another interface than the
    /// device they came by.
    pub members: bool,
    /// The interfaces that have the services' addresses and the routes, in the
    /// order of the configuration, by name.
    pub hosts: Vec<String>,
    /// The VLAN interfaces above them that are reached although nobody named
    /// them.
    pub implied: Vec<String>,
    /// The names that no interface has.
    pub absent: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// A device to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Its name.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// How.
    pub mode: Mode,
    /// Its MTU.
    pub mtu: u32,
    /// Which of the names asked for need it.
    pub serves: Vec<String>,
    /// Whether some of its frames have tags that matter.
    pub tagged: bool,
}

impl Plan {
    /// Whether the program must take frames larger than a page.
    pub fn large_frames(&self) -> bool {
        self.attach
            .iter()
            .any(|site| site.mtu > LARGEST_ONE_PAGE_MTU)
    }

    /// The device that serves an interface of the configuration.
    pub fn site_of(&self, name: &str) -> Option<&Site> {
        self.attach
            .iter()
            .find(|site| site.serves.iter().any(|served| served == name))
    }
}

/// Why the program cannot be where it should.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TopologyError {
    /// Native was asked for, and cannot be.
    #[error(
        "{interface} cannot have the program in native mode: {why}; use node.xdp_mode = \"auto\" or \"generic\", which is several times slower"
    )]
    NotNative {
        /// The interface.
        interface: String,
        /// Why.
        why: String,
    },
    /// Frames for the bridge could leave by either port.
    #[error(
        "{} are ports of the same bridge {bridge}, and the program cannot know behind which of them a host is; name {bridge} itself in node.interfaces instead of them",
        ports.join(" and ")
    )]
    SeveralPorts {
        /// The bridge.
        bridge: String,
        /// Its ports that were named.
        ports: Vec<String>,
    },
}

/// Decides where the program goes.
pub fn plan(links: &[Link], wanted: &Wanted<'_>) -> Result<Plan, TopologyError> {
    let host = Host::of(links);
    let mut plan = Plan::default();
    let mut named = Vec::new();
    for name in wanted.names {
        match links.iter().find(|link| link.name == *name) {
            Some(link) => named.push(link),
            None => plan.absent.push(name.clone()),
        }
    }
    let mode = host.mode(&named, wanted, &mut plan.notes)?;
    let sites = host.sites(&named, mode, &mut plan.notes)?;
    for (site, names) in sites {
        let first = plan.interfaces.len();
        let claimed = host.claim_all(site, mode, &mut plan);
        plan.attach.push(Site {
            device: site.name.clone(),
            index: site.index,
            mode,
            mtu: site.mtu,
            tagged: plan.interfaces.len() > first
                && plan
                    .interfaces
                    .iter()
                    .any(|(tagged, _)| tagged.device == site.index && tagged.outer != 0),
            serves: names.iter().map(|link| link.name.clone()).collect(),
        });
        plan.devices.insert(site.index);
        if names.iter().any(|link| link.index == site.index) {
            plan.implied.extend(claimed);
        }
    }
    let exits = plan.exits.values().map(|tagged| tagged.device);
    plan.devices.extend(exits);
    plan.members = plan.interfaces.keys().any(|tagged| tagged.outer == 0);
    for link in named {
        let owner = &host.owner(link).name;
        if !plan.hosts.contains(owner) {
            plan.hosts.push(owner.clone());
        }
    }
    plan.implied.sort();
    plan.implied.dedup();
    plan.implied.retain(|name| !plan.hosts.contains(name));
    Ok(plan)
}

/// The links by index.
struct Host<'a>(BTreeMap<u32, &'a Link>);

impl<'a> Host<'a> {
    fn of(links: &'a [Link]) -> Self {
        Self(links.iter().map(|link| (link.index, link)).collect())
    }

    fn get(&self, index: Option<u32>) -> Option<&'a Link> {
        index.and_then(|index| self.0.get(&index).copied())
    }

    /// The bond or bridge that an interface is a part of.
    fn group(&self, link: &Link) -> Option<&'a Link> {
        self.get(link.master)
            .filter(|master| matches!(master.kind, Kind::Bond | Kind::Bridge))
    }

    /// The interface that the host takes an interface's frames to be of.
    fn owner(&self, link: &'a Link) -> &'a Link {
        let mut owner = link;
        for _ in 0..MAX_MASTERS {
            match self.group(owner) {
                Some(group) => owner = group,
                None => break,
            }
        }
        owner
    }

    /// The device at the bottom of VLAN interfaces; `None` if it cannot be seen.
    fn below(&self, link: &'a Link) -> Option<&'a Link> {
        let mut below = link;
        for _ in 0..MAX_STACKED {
            if !matches!(below.kind, Kind::Vlan(_)) {
                return Some(below);
            }
            below = self.get(below.parent)?;
        }
        None
    }

    fn vlans(&self, on: &Link) -> Vec<(Tag, &'a Link)> {
        self.0
            .values()
            .filter(|link| link.parent == Some(on.index))
            .filter_map(|&link| match link.kind {
                Kind::Vlan(tag) => Some((tag, link)),
                _ => None,
            })
            .collect()
    }

    /// Why an interface cannot have the program natively, as far as can be told
    /// without trying.
    fn obstacle(&self, link: &'a Link, wanted: &Wanted<'_>) -> Option<String> {
        let Some(device) = self.below(link) else {
            return Some("the device below it is in another network namespace".to_owned());
        };
        if device.kind == Kind::Bridge {
            return Some(format!(
                "{} is a bridge, for which the kernel has none; if its traffic goes by one port, name that port instead",
                device.name
            ));
        }
        if let Some(said) = wanted.refused.get(&device.index) {
            return Some(format!("{} refused it ({said})", device.name));
        }
        let large = device.mtu > LARGEST_ONE_PAGE_MTU;
        // One that has it in spite of its MTU has a driver that can.
        let has = device.xdp.is_some_and(|has| has.mode == Mode::Native);
        if large && !wanted.frags && !has {
            return Some(format!(
                "{} has an MTU of {}, and this program takes frames of one page only (an MTU up to {LARGEST_ONE_PAGE_MTU}): Linux 5.18 or later takes larger ones, after a restart of lb",
                device.name, device.mtu
            ));
        }
        None
    }

    /// The mode for all.
    fn mode(
        &self,
        named: &[&'a Link],
        wanted: &Wanted<'_>,
        notes: &mut Vec<String>,
    ) -> Result<Mode, TopologyError> {
        if wanted.mode == XdpMode::Generic {
            return Ok(Mode::Generic);
        }
        let mut slow = Vec::new();
        for link in named {
            if let Some(why) = self.obstacle(link, wanted) {
                if wanted.mode == XdpMode::Native {
                    return Err(TopologyError::NotNative {
                        interface: link.name.clone(),
                        why,
                    });
                }
                notes.push(format!(
                    "{} has no native XDP: {why}; attached in generic mode, which is several times slower",
                    link.name
                ));
                slow.push(link.name.as_str());
            }
        }
        if slow.is_empty() {
            return Ok(Mode::Native);
        }
        let others: Vec<&str> = named
            .iter()
            .map(|link| link.name.as_str())
            .filter(|name| !slow.contains(name))
            .collect();
        if !others.is_empty() {
            notes.push(format!(
                "{} in generic mode as well: a native program could not send through {}",
                others.join(", "),
                slow.join(", ")
            ));
        }
        Ok(Mode::Generic)
    }

    /// The devices to attach to, each with the interfaces that need it.
    fn sites(
        &self,
        named: &[&'a Link],
        mode: Mode,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(&'a Link, Vec<&'a Link>)>, TopologyError> {
        let mut sites: Vec<(&Link, Vec<&Link>)> = Vec::new();
        for &link in named {
            let device = match mode {
                Mode::Native => self.below(link).unwrap_or(link),
                Mode::Generic => link,
            };
            match sites
                .iter_mut()
                .find(|(site, _)| site.index == device.index)
            {
                Some((_, names)) => names.push(link),
                None => sites.push((device, vec![link])),
            }
        }
        self.drop_parts(&mut sites, notes);
        let mut ports: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (site, _) in &sites {
            if let Some(bridge) = self.group(site).filter(|group| group.kind == Kind::Bridge) {
                ports
                    .entry(bridge.index)
                    .or_default()
                    .push(site.name.clone());
                self.tell_of_other_ports(bridge, site, notes);
            }
        }
        match ports.into_iter().find(|(_, ports)| ports.len() > 1) {
            Some((bridge, ports)) => Err(TopologyError::SeveralPorts {
                bridge: self.0[&bridge].name.clone(),
                ports,
            }),
            None => Ok(sites),
        }
    }

    /// A part of a bond or bridge that is attached to itself is served by that.
    fn drop_parts(&self, sites: &mut Vec<(&'a Link, Vec<&'a Link>)>, notes: &mut Vec<String>) {
        let wholes: BTreeSet<u32> = sites.iter().map(|(site, _)| site.index).collect();
        let mut moved = Vec::new();
        sites.retain(|(site, names)| match self.group(site) {
            Some(group) if wholes.contains(&group.index) => {
                notes.push(format!(
                    "{} is a part of {}, which is attached to already: {} alone would do in node.interfaces",
                    site.name, group.name, group.name
                ));
                moved.extend(names.iter().map(|&name| (group.index, name)));
                false
            }
            _ => true,
        });
        for (index, name) in moved {
            if let Some((_, names)) = sites.iter_mut().find(|(site, _)| site.index == index) {
                names.push(name);
            }
        }
    }

    fn tell_of_other_ports(&self, bridge: &Link, port: &Link, notes: &mut Vec<String>) {
        let others: Vec<&str> = self
            .0
            .values()
            .filter(|link| link.master == Some(bridge.index) && link.index != port.index)
            .map(|link| link.name.as_str())
            .collect();
        if !others.is_empty() {
            notes.push(format!(
                "what the program sends for {} leaves by {} only, so no client and no backend may be behind {}; name {} in node.interfaces instead if one is",
                bridge.name,
                port.name,
                others.join(", "),
                bridge.name
            ));
        }
    }

    /// Notes whose the frames of a device are and how they leave; gives the
    /// names of the interfaces they belong to.
    fn claim_all(&self, site: &'a Link, mode: Mode, plan: &mut Plan) -> Vec<String> {
        let exit = match self.group(site) {
            // The bond chooses the member to send by.
            Some(group) if group.kind == Kind::Bond => group,
            _ => site,
        };
        let mut claims = Claims {
            exit: exit.index,
            owners: Vec::new(),
            plan,
        };
        self.claim(site.index, &[], site, &mut claims);
        if site.kind == Kind::Bond && mode == Mode::Native {
            for member in self.0.values() {
                if member.master == Some(site.index) {
                    self.claim(member.index, &[], site, &mut claims);
                }
            }
        }
        claims.owners
    }

    fn claim(&self, device: u32, tags: &[u32], link: &'a Link, claims: &mut Claims<'_>) {
        let owner = self.owner(link);
        let with_tags = |device| Tagged {
            device,
            outer: tags.first().copied().unwrap_or(0),
            inner: tags.get(1).copied().unwrap_or(0),
            zero: 0,
        };
        if !tags.is_empty() || owner.index != device {
            claims
                .plan
                .interfaces
                .insert(with_tags(device), owner.index);
        }
        if !tags.is_empty() || owner.index != claims.exit {
            let exit = with_tags(claims.exit);
            claims.plan.exits.entry(owner.index).or_insert(exit);
        }
        claims.owners.push(owner.name.clone());
        let mut above = self.vlans(link);
        if owner.index != link.index {
            above.extend(self.vlans(owner));
        }
        for (tag, vlan) in above {
            if tags.len() == 2 {
                let note = format!(
                    "{} is the third VLAN on another: its frames have more tags than the program reads, so they pass it by",
                    vlan.name
                );
                if !claims.plan.notes.contains(&note) {
                    claims.plan.notes.push(note);
                }
                continue;
            }
            self.claim(device, &[tags, &[tag.word()]].concat(), vlan, claims);
        }
    }
}

/// What [`Host::claim`] adds to.
struct Claims<'p> {
    exit: u32,
    owners: Vec<String>,
    plan: &'p mut Plan,
}

#[cfg(test)]
mod tests;
