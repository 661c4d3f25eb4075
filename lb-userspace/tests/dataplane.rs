//! The maps of the program on a real kernel, pinned below /sys/fs/bpf: needs root
//! and that file system.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::slice::from_ref;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::MapInfo;
use lb_common::abi::{ABI_VERSION, Flow, FlowKey, Life, Policy, Settings, TCP, Tagged, forward};
use lb_common::flow::{ANSWERED, BACKEND_FIN, CLIENT_FIN, ESTABLISHED};
use lb_common::{Address, Be16};
use lb_ebpf::connections;
use lb_userspace::config::MOST_ADDRESSES;
use lb_userspace::dataplane::{Dataplane, Opened, Sizes};
use lb_userspace::model::{self, Backend, Service};
use lb_userspace::reconcile::{self, Lingering, Measures};
use lb_userspace::schedule::{self, Made};
use lb_userspace::vrrp::driver::now;

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
    // Half as many places again as connections, and three times as many for answers.
    let buckets = (SIZES.flows * 3 / 2).div_ceil(15);
    let rooms = [
        (
            "ENDPOINTS",
            2 * SIZES.services + SIZES.backends + MOST_ADDRESSES,
        ),
        ("BACKENDS", SIZES.backends),
        ("SEQUENCES", SIZES.services),
        ("POLICIES", SIZES.services),
        ("AFFINITIES", SIZES.flows / 4 + reserve),
        ("CONNECTIONS", 16 * buckets),
        ("ANSWERS", (3 * SIZES.flows).div_ceil(7)),
        ("LIVE", SIZES.backends),
        ("FRAGMENT_IDS", 1_024),
        ("INTERFACES", 4_096),
        ("EXITS", 4_096),
        ("CHANGED", buckets.div_ceil(64)),
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
    let said = match pins.open(SIZES, false) {
        Ok(_) => panic!("opened beside tables of another version"),
        Err(error) => error.to_string(),
    };
    let versions = format!("ABI 1; this one has {ABI_VERSION}");
    assert!(said.contains(&versions), "{said}");
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

/// A client's connection by full-nat, established.
fn connection(client: u16) -> (FlowKey, Flow) {
    let [service, backend] = [[203, 0, 113, 10], [10, 0, 1, 11]].map(Address::v4);
    let key = FlowKey {
        src: Address::v4([198, 51, 100, 7]),
        dst: service,
        src_port: Be16::new(client),
        dst_port: Be16::new(80),
        protocol: u32::from(TCP),
    };
    let flow = Flow {
        src: service,
        dst: backend,
        src_port: Be16::new(client),
        dst_port: Be16::new(8080),
        backend: 2,
        service: 1,
        kind: u16::from(forward::FULL_NAT),
        life: Life {
            state: ANSWERED | ESTABLISHED,
            ..Life::default()
        },
        ..Flow::default()
    };
    (key, flow)
}

#[test]
fn tables_of_another_size_take_the_connections_over() -> anyhow::Result<()> {
    let pins = Pins::new("sizes");
    let old = pins.open(SIZES, false)?.dataplane;
    for client in 1_000..1_900 {
        let (key, flow) = connection(client);
        assert!(old.table().enter(&key, &flow, 0).is_some());
    }
    let larger = Sizes {
        flows: 20_000,
        ..SIZES
    };
    let opened = pins.open(larger, false)?;
    assert!(opened.adopted);
    assert_eq!(opened.dataplane.sizes(), larger);
    let mut handover = opened.handover.context("nothing is carried over")?;
    let first = handover.carry()?;
    assert_eq!((first.entered, first.lost), (900, 0));

    // Until the program is exchanged, the old tables are the ones in use.
    let (key, flow) = connection(1_900);
    assert!(old.table().enter(&key, &flow, 0).is_some());
    let (ended, _) = connection(1_000);
    let mut known = Flow::default();
    assert!(connections::of_client(&*old.table(), &ended, &mut known));
    connections::advance(&*old.table(), &known, 0, CLIENT_FIN | BACKEND_FIN, 0);
    let last = handover.carry()?;
    assert_eq!((last.entered, last.changed, last.lost), (1, 1, 0));
    handover.finish()?;

    let table = opened.dataplane.table();
    assert_eq!(table.live(2), 900, "901, of which one has ended");
    assert!(connections::of_client(&*table, &key, &mut known));
    assert_eq!((known.src_port.get(), known.backend), (1_900, 2));
    let again = pins.open(larger, false)?;
    assert!(again.adopted && again.handover.is_none());
    assert_eq!(again.dataplane.table().live(2), 900);
    Ok(())
}

#[test]
fn tables_that_are_too_small_for_what_lives_are_refused_and_the_old_ones_stay() -> anyhow::Result<()>
{
    let pins = Pins::new("small");
    let old = pins.open(SIZES, false)?.dataplane;
    for client in 1_000..1_100 {
        let (key, flow) = connection(client);
        assert!(old.table().enter(&key, &flow, 0).is_some());
    }
    let smaller = Sizes { flows: 99, ..SIZES };
    let said = match pins.open(smaller, false) {
        Ok(_) => panic!("a hundred connections in room for 99"),
        Err(error) => error.to_string(),
    };
    assert!(
        said.starts_with("node.max_flows = 99 has no room for the 100 connections that live"),
        "{said}"
    );
    let again = pins.open(SIZES, false)?;
    assert!(again.adopted && again.handover.is_none());
    assert_eq!(again.dataplane.table().live(2), 100);
    Ok(())
}

#[test]
fn a_start_that_was_interrupted_leaves_nothing_that_disturbs_the_next() -> anyhow::Result<()> {
    let pins = Pins::new("halfway");
    drop(pins.open(SIZES, false)?);
    let larger = Sizes {
        flows: 20_000,
        ..SIZES
    };
    let halfway = pins.open(larger, false)?;
    // As if it had been killed: no destructor runs.
    std::mem::forget(halfway.handover);
    drop(halfway.dataplane);
    let again = pins.open(SIZES, false)?;
    assert!(again.adopted && again.handover.is_none());
    let left: Vec<_> = fs::read_dir(&pins.0)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<_, _>>()?;
    assert_eq!(left, [format!("v{ABI_VERSION}").as_str()]);
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

#[test]
fn a_lease_outlives_the_daemon_and_the_tables_and_never_gains_by_it() -> anyhow::Result<()> {
    let pins = Pins::new("lease");
    let dataplane = pins.open(SIZES, false)?.dataplane;
    let lease = dataplane.lease();
    assert_eq!(lease.held(), None);
    let until = now() + Duration::from_secs(3_600);
    lease.set(Some(until));
    let held = lease.held().context("it is held")?;
    let tick = Duration::from_millis(10);
    assert!(held <= until, "not longer than it was given");
    assert!(until <= held + 3 * tick, "{:?}", held.until(until));
    drop((lease, dataplane));

    let other = Sizes {
        flows: 2 * SIZES.flows,
        ..SIZES
    };
    for sizes in [SIZES, other] {
        let opened = pins.open(sizes, false)?;
        let found = opened.dataplane.lease().held().context("it is held")?;
        assert!(found <= until);
        assert!(until <= found + 3 * tick, "{:?}", found.until(until));
        if let Some(handover) = opened.handover {
            handover.finish()?;
        }
    }
    let dataplane = pins.open(other, false)?.dataplane;
    let lease = dataplane.lease();
    for over in [None, Some(now()), Some(now() + Duration::from_micros(1))] {
        lease.set(over);
        assert_eq!(lease.held(), None, "{over:?}");
    }
    Ok(())
}

#[test]
fn each_bucket_in_which_something_changes_is_told_of_once() -> anyhow::Result<()> {
    let pins = Pins::new("changed");
    let table = pins.open(SIZES, false)?.dataplane.table();
    let changed = |most: usize| {
        let mut buckets = Vec::new();
        let all = table.take_changed(most, |bucket| buckets.push(bucket));
        (buckets, all)
    };
    assert_eq!(changed(usize::MAX), (vec![], true));
    let mut places = Vec::new();
    for client in 1..=100 {
        let (key, flow) = connection(client);
        places.push(table.enter(&key, &flow, 0).context("there is room")?);
    }
    let mut wanted: Vec<u32> = places.iter().map(|(place, _)| place / 16).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let (first, all) = changed(10);
    assert!(!all && (10..18).contains(&first.len()), "{first:?}");
    let (rest, all) = changed(usize::MAX);
    assert!(all);
    assert_eq!([first, rest].concat(), wanted);
    assert_eq!(changed(usize::MAX), (vec![], true));

    let (place, version) = places[50];
    assert!(connections::remove(&*table, place, version));
    assert_eq!(changed(usize::MAX), (vec![place / 16], true));
    let (key, _) = connection(1);
    let mut flow = Flow::default();
    assert!(connections::of_client(&*table, &key, &mut flow));
    connections::advance(&*table, &flow, 0, CLIENT_FIN, 0);
    assert_eq!(changed(usize::MAX), (vec![flow.place / 16], true));
    connections::advance(&*table, &flow, 0, CLIENT_FIN, 0);
    assert_eq!(
        changed(usize::MAX),
        (vec![], true),
        "it has changed nothing"
    );
    Ok(())
}
