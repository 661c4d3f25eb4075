//! The maps of the program on a real kernel, pinned below /sys/fs/bpf: needs root
//! and that file system.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::slice::from_ref;
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use lb_common::abi::{ABI_VERSION, Policy, Settings, TCP, Tagged};
use lb_userspace::dataplane::{Dataplane, Opened, Sizes, adoptable};
use lb_userspace::model::{self, Backend, Service};
use lb_userspace::reconcile::{self, Lingering, Measures};
use lb_userspace::schedule::{self, Made};

const SIZES: Sizes = Sizes {
    services: 16,
    backends: 64,
    flows: 10_000,
};

/// A pin folder that goes when the test ends, however it ends.
struct Pins(PathBuf);

impl Pins {
    fn new(test: &str) -> Self {
        let name = format!("lbt-{}-{test}", std::process::id());
        let path = PathBuf::from("/sys/fs/bpf").join(name);
        fs::create_dir_all(&path).expect("a folder in the BPF file system");
        Self(path)
    }

    fn open(&self, sizes: Sizes, frags: bool) -> anyhow::Result<Opened> {
        Dataplane::open(&self.0, sizes, &Settings::PLAIN, frags, 0)
    }

    /// How many entries a pinned map has room for.
    fn room(&self, map: &str) -> u32 {
        let pin = self.0.join(format!("v{ABI_VERSION}")).join(map);
        MapInfo::from_pin(pin).expect("a pinned map").max_entries()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What stays is swept away by the next run of the tests.
        let _ = fs::remove_dir_all(&self.0);
    }
}

const fn tagged(device: u32, outer: u32, inner: u32) -> Tagged {
    Tagged {
        device,
        outer,
        inner,
        zero: 0,
    }
}

#[test]
fn interfaces_and_exits_are_exchanged_and_outlive_the_daemon() -> anyhow::Result<()> {
    let pins = Pins::new("interfaces");
    let mut dataplane = pins.open(SIZES, false)?.dataplane;
    assert_eq!(dataplane.interfaces()?, Default::default());

    let first = (
        BTreeMap::from([(tagged(2, 0x64, 0), 10), (tagged(2, 0x64, 0x65), 11)]),
        BTreeMap::from([(10, tagged(2, 0x64, 0)), (11, tagged(2, 0x64, 0x65))]),
    );
    let second = (
        BTreeMap::from([(tagged(2, 0x64, 0), 12), (tagged(3, 0, 0), 4)]),
        BTreeMap::from([(12, tagged(2, 0x64, 0))]),
    );
    for wanted in [&first, &first, &second] {
        dataplane.set_interfaces(&wanted.0, &wanted.1)?;
        assert_eq!(&dataplane.interfaces()?, wanted);
    }
    drop(dataplane);
    let again = pins.open(SIZES, false)?;
    assert!(again.adopted);
    assert_eq!(again.dataplane.interfaces()?, second);
    Ok(())
}

#[test]
fn the_tables_of_interfaces_take_all_that_fits_and_refuse_more_as_a_whole() -> anyhow::Result<()> {
    let pins = Pins::new("room");
    let mut dataplane = pins.open(SIZES, false)?.dataplane;
    let numbered = |from: u32, count: u32| {
        (from..from + count)
            .map(|tag| (tagged(2, tag, 0), tag))
            .collect::<BTreeMap<_, _>>()
    };
    let exits = BTreeMap::new();
    dataplane.set_interfaces(&numbered(1, 4_096), &exits)?;
    // None of them stays: what goes makes room for what comes.
    let others = numbered(5_000, 4_096);
    dataplane.set_interfaces(&others, &exits)?;
    assert_eq!(dataplane.interfaces()?.0, others);
    let refused = dataplane.set_interfaces(&numbered(1, 4_097), &exits);
    let said = refused.expect_err("there is no room").to_string();
    assert!(said.starts_with("4097 VLANs and members"), "{said}");
    assert_eq!(dataplane.interfaces()?.0, others);
    Ok(())
}

#[test]
fn the_tables_have_the_room_that_was_asked_for() -> anyhow::Result<()> {
    let pins = Pins::new("sized");
    drop(pins.open(SIZES, false)?);
    let reserve = pins.room("FRAGMENTS") - SIZES.flows / 8;
    assert!(reserve > 0, "for the free entries of each CPU");
    // Half as many places again as connections, and twice as many for answers.
    let buckets = (SIZES.flows * 3 / 2).div_ceil(16);
    let rooms = [
        ("ENDPOINTS", 2 * SIZES.services + SIZES.backends),
        ("BACKENDS", SIZES.backends),
        ("SEQUENCES", SIZES.services),
        ("POLICIES", SIZES.services),
        ("AFFINITIES", SIZES.flows / 4 + reserve),
        ("TAGS", buckets),
        ("CONNECTIONS", 16 * buckets),
        ("ANSWERS", SIZES.flows / 4),
        ("LIVE", SIZES.backends),
        ("FRAGMENT_IDS", 1_024),
        ("INTERFACES", 4_096),
        ("EXITS", 4_096),
    ];
    for (map, room) in rooms {
        assert_eq!(pins.room(map), room, "{map}");
    }
    Ok(())
}

#[test]
fn tables_of_the_first_version_are_refused_and_left_alone() -> anyhow::Result<()> {
    let pins = Pins::new("version");
    fs::create_dir(pins.0.join("v1"))?;
    assert!(!adoptable(&pins.0));
    let said = match pins.open(SIZES, false) {
        Ok(_) => panic!("opened beside tables of another version"),
        Err(error) => error.to_string(),
    };
    assert!(said.contains("ABI 1; this one has 3"), "{said}");
    assert!(said.contains("start with --fresh"), "{said}");
    let left: Vec<_> = fs::read_dir(&pins.0)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    assert_eq!(left, ["v1"]);
    Ok(())
}

#[test]
fn either_flavour_of_the_program_is_taken_by_the_kernel_and_adopts_the_others_tables()
-> anyhow::Result<()> {
    let pins = Pins::new("flavours");
    for (frags, adopted) in [(false, false), (true, true), (false, true)] {
        assert_eq!(pins.open(SIZES, frags)?.adopted, adopted);
    }
    Ok(())
}

#[test]
fn other_sizes_than_those_of_the_tables_are_told_and_not_taken() -> anyhow::Result<()> {
    let pins = Pins::new("sizes");
    drop(pins.open(SIZES, false)?);
    let larger = Sizes {
        flows: 20_000,
        ..SIZES
    };
    let opened = pins.open(larger, false)?;
    assert_eq!(opened.dataplane.sizes(), SIZES);
    let [differs] = &opened.other_sizes[..] else {
        panic!("{:?}", opened.other_sizes);
    };
    assert!(
        differs.starts_with("node.max_flows = 20000, but the tables in use hold 10000"),
        "{differs}"
    );
    Ok(())
}

#[test]
fn every_schedulers_slots_and_policy_outlive_the_daemon() -> anyhow::Result<()> {
    let pins = Pins::new("policies");
    let at = |text: &str| model::endpoint(text.parse().expect("an address"), u16::from(TCP));
    let measures = Measures {
        services: SIZES.services,
        backends: SIZES.backends,
        hertz: 1_000,
    };
    for scheduler in schedule::ALL.iter().rev() {
        let web = Service {
            scheduler,
            affinity: Duration::from_secs(7 * 24 * 3600),
            backends: vec![
                Backend::new("web1", at("10.0.0.1:80"), 256),
                Backend::new("web2", at("10.0.0.2:80"), 1),
            ],
            ..Service::new("web", at("203.0.113.10:80"))
        };
        let mut dataplane = pins.open(SIZES, false)?.dataplane;
        let present = dataplane.read()?;
        let planned = reconcile::plan(
            from_ref(&web),
            &present,
            &mut Lingering::default(),
            &mut Made::default(),
            measures,
            Instant::now(),
        )?;
        for change in reconcile::diff(&present, &planned.tables) {
            dataplane.apply(&change)?;
        }
        drop(dataplane);
        let again = pins.open(SIZES, false)?.dataplane.read()?;
        assert_eq!(again, planned.tables, "{scheduler:?}");
        let policy = Policy {
            pick: scheduler.pick,
            affinity_ticks: 604_800_000,
        };
        assert_eq!(again.policies[&0], policy);
    }
    Ok(())
}
