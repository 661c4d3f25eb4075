//! The interfaces: are they there, can they have the program, and how well.

use std::collections::BTreeMap;

use super::Finding;
use crate::config::{Config, XdpMode};
use crate::dataplane::{self, Mode};
use crate::host;
use crate::host::topology::{self, Link, Plan, Site, Wanted};

const CHECK: &str = "interface";

/// Drivers that take a program in native mode, at least with a recent kernel and
/// settings as they come. The kernel tells of no driver what it takes except by trying
/// (or, from 6.3 on, by a netlink family of its own).
const NATIVE: &[&str] = &[
    "am65-cpsw-nuss",
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw-switch",
    "dpaa2_eth",
    "ena",
    "fec",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "funeth",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "netsec",
    "nfp",
    "qede",
    "rvu_nicpf",
    "rvu_nicvf",
    "sfc",
    "sfc-siena",
    "stmmac",
    "thunder-nicvf",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
    "vif",
];

/// What is known of a device that is to have the program.
struct Device<'a> {
    site: &'a Site,
    link: &'a Link,
    /// Its driver's name, if it says so.
    driver: Option<String>,
    /// Whether it joins frames before the program sees them.
    joins_frames: bool,
    /// Whether it takes tags off before the program sees them.
    takes_tags_off: bool,
    /// Whether the program it has, if any, is one of ours.
    ours: bool,
}

/// What there is to say of the interfaces, and where the program would go, unless that
/// cannot be.
pub(super) fn find(config: &Config, links: &[Link]) -> (Option<Plan>, Vec<Finding>) {
    let node = &config.node;
    let mut findings = missing_for_pair(config, links);
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let none = BTreeMap::new();
    let wanted = Wanted {
        names: &node.interfaces,
        mode: node.xdp_mode,
        refused: &none,
        frags: host::kernel_version(&release).is_none_or(|v| v >= host::FRAGS_KERNEL),
    };
    let plan = match topology::plan(links, &wanted) {
        Ok(plan) => plan,
        Err(error) => {
            findings.push(Finding::fail(CHECK, error.to_string()));
            return (None, findings);
        }
    };
    for name in &plan.absent {
        findings.push(absent(name, links));
    }
    let pinned = dataplane::linked(&node.pin_path).unwrap_or_default();
    for site in &plan.attach {
        let Some(link) = links.iter().find(|link| link.index == site.index) else {
            continue;
        };
        let device = Device {
            site,
            link,
            driver: host::driver(&site.device)
                .ok()
                .filter(|name| !name.is_empty()),
            // Where it cannot be asked, there is nothing to be said.
            joins_frames: host::joins_frames(&site.device).unwrap_or(false),
            takes_tags_off: host::takes_tags_off(&site.device).unwrap_or(false),
            ours: pinned.contains(&site.device),
        };
        findings.extend(judge(&device, node.xdp_mode));
    }
    for note in &plan.notes {
        findings.push(Finding::warn(CHECK, note.clone()));
    }
    (Some(plan), findings)
}

fn absent(name: &str, links: &[Link]) -> Finding {
    let there: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
    let found = format!("{name} does not exist; this host has {}", there.join(", "));
    Finding::fail(CHECK, found).remedy("correct the name, or create the interface")
}

/// The interfaces that only `[ha]` names.
fn missing_for_pair(config: &Config, links: &[Link]) -> Vec<Finding> {
    let Some(ha) = &config.ha else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for name in std::iter::once(&ha.interface).chain(&ha.track) {
        match links.iter().find(|link| link.name == *name) {
            // It is judged, or told missing, as one of the balancer's own.
            _ if config.node.interfaces.contains(name) => {}
            None => findings.push(absent(name, links)),
            Some(link) if !link.up => findings.push(down(name)),
            Some(_) => findings.push(Finding::ok(CHECK, format!("{name} is up"))),
        }
    }
    findings
}

fn down(name: &str) -> Finding {
    Finding::fail(CHECK, format!("{name} is switched off"))
        .remedy(format!("`ip link set {name} up`"))
}

/// What is to be said of one device.
fn judge(device: &Device<'_>, wanted: XdpMode) -> Vec<Finding> {
    let Device { site, link, .. } = device;
    let name = &site.device;
    let mut findings = Vec::new();
    if !link.up {
        findings.push(down(name));
    }
    findings.push(judge_mode(device, wanted));
    if device.joins_frames {
        findings.push(
            Finding::warn(CHECK, format!("{name} joins frames that it receives (LRO) before the program sees them, and some drivers take no program in native mode then"))
                .remedy(format!("`ethtool -K {name} lro off`")),
        );
    }
    if site.tagged && device.takes_tags_off {
        findings.push(
            Finding::warn(CHECK, format!("{name} takes VLAN tags off before the program sees the frames, which then seem to have none"))
                .remedy(format!("`ethtool -K {name} rxvlan off`")),
        );
    }
    findings
}

/// Whether, and how, a device can have the program.
fn judge_mode(device: &Device<'_>, wanted: XdpMode) -> Finding {
    let Device {
        site, link, driver, ..
    } = device;
    let (name, mtu) = (&site.device, site.mtu);
    let by = driver.as_deref().unwrap_or("none that has a name");
    let known = driver
        .as_deref()
        .is_some_and(|driver| NATIVE.contains(&driver));
    match (link.xdp, wanted) {
        (Some(_), _) if !device.ours => Finding::fail(
            CHECK,
            format!("{name} has another XDP program (another lb with its own pin folder, or another tool)"),
        )
        .remedy("detach it first: `bpftool net` shows it"),
        (Some(carried), XdpMode::Auto) if carried.mode == Mode::Generic => Finding::warn(
            CHECK,
            format!("{name} has the program in generic mode, which is several times slower than native (driver {by}, MTU {mtu})"),
        )
        .remedy("see the daemon's log for why; `lb run --fresh` tries native again, and ends connections"),
        (Some(carried), _) => Finding::ok(
            CHECK,
            format!("{name} has the program in {} mode (driver {by}, MTU {mtu})", carried.mode.name()),
        ),
        (None, XdpMode::Generic) => Finding::ok(
            CHECK,
            format!("{name} is to have the program in generic mode, which is several times slower than native (driver {by}, MTU {mtu})"),
        ),
        (None, _) if site.mode == Mode::Generic => Finding::warn(
            CHECK,
            format!("{name} can have the program in generic mode only, which is several times slower than native (driver {by}, MTU {mtu})"),
        ),
        (None, _) if known => Finding::ok(
            CHECK,
            format!("{name} should take the program in native mode (driver {by}, MTU {mtu})"),
        ),
        (None, XdpMode::Native) => Finding::warn(
            CHECK,
            format!("{name}: nothing is known of the driver {by} taking programs in native mode, which is asked for (MTU {mtu})"),
        )
        .remedy("if `lb run` is refused there, set node.xdp_mode = \"auto\""),
        (None, XdpMode::Auto) => Finding::warn(
            CHECK,
            format!("{name}: nothing is known of the driver {by} taking programs in native mode; generic mode is several times slower (MTU {mtu})"),
        )
        .remedy("`lb status` shows the mode once lb runs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Carried;
    use crate::doctor::State;
    use crate::host::topology::Kind;

    fn link() -> Link {
        Link {
            index: 2,
            name: "eth0".into(),
            kind: Kind::Plain,
            parent: None,
            master: None,
            mtu: 1500,
            up: true,
            xdp: None,
        }
    }

    fn site() -> Site {
        Site {
            device: "eth0".into(),
            index: 2,
            mode: Mode::Native,
            mtu: 1500,
            serves: vec!["eth0".into()],
            tagged: false,
        }
    }

    fn device<'a>(site: &'a Site, link: &'a Link) -> Device<'a> {
        Device {
            site,
            link,
            driver: Some("virtio_net".into()),
            joins_frames: false,
            takes_tags_off: true,
            ours: false,
        }
    }

    fn states(findings: &[Finding]) -> Vec<State> {
        findings.iter().map(|finding| finding.state).collect()
    }

    #[test]
    fn a_known_driver_is_well_and_an_unknown_one_is_worth_a_warning() {
        let (site, link) = (site(), link());
        let known = device(&site, &link);
        let found = judge(&known, XdpMode::Auto);
        assert_eq!(states(&found), [State::Ok]);
        assert_eq!(
            found[0].found,
            "eth0 should take the program in native mode (driver virtio_net, MTU 1500)"
        );
        for driver in [Some("e1000".to_owned()), None] {
            let unknown = Device {
                driver,
                ..device(&site, &link)
            };
            assert_eq!(states(&judge(&unknown, XdpMode::Auto)), [State::Warn]);
            assert_eq!(states(&judge(&unknown, XdpMode::Native)), [State::Warn]);
            assert_eq!(states(&judge(&unknown, XdpMode::Generic)), [State::Ok]);
        }
    }

    #[test]
    fn a_program_of_another_is_a_failure_and_our_own_is_not() {
        let site = site();
        let has = |mode| Link {
            xdp: Some(Carried {
                mode,
                program: Some(7),
            }),
            ..link()
        };
        let native = has(Mode::Native);
        assert_eq!(
            states(&judge(&device(&site, &native), XdpMode::Auto)),
            [State::Fail]
        );
        let ours = Device {
            ours: true,
            ..device(&site, &native)
        };
        assert_eq!(states(&judge(&ours, XdpMode::Auto)), [State::Ok]);
        let generic = has(Mode::Generic);
        let slow = Device {
            ours: true,
            ..device(&site, &generic)
        };
        assert_eq!(states(&judge(&slow, XdpMode::Auto)), [State::Warn]);
        assert_eq!(states(&judge(&slow, XdpMode::Generic)), [State::Ok]);
    }

    #[test]
    fn what_comes_before_the_program_is_told_where_it_matters() {
        let (plain, link) = (site(), link());
        let joining = Device {
            joins_frames: true,
            ..device(&plain, &link)
        };
        let found = judge(&joining, XdpMode::Auto);
        assert_eq!(states(&found), [State::Ok, State::Warn]);
        assert_eq!(
            found[1].remedy.as_deref(),
            Some("`ethtool -K eth0 lro off`")
        );
        let tagged = Site {
            tagged: true,
            ..site()
        };
        let found = judge(&device(&tagged, &link), XdpMode::Auto);
        assert_eq!(states(&found), [State::Ok, State::Warn]);
        let off = Link {
            up: false,
            ..link.clone()
        };
        let found = judge(&device(&plain, &off), XdpMode::Auto);
        assert_eq!(states(&found), [State::Fail, State::Ok]);
        assert_eq!(found[0].found, "eth0 is switched off");
    }
}
