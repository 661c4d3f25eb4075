//! The programs in the kernel, and runs of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, Map, MapData, ProgramArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use bytemuck::{bytes_of, cast};
use lb_common::abi::{ABI_VERSION, Settings};
use lb_common::flow::ESTABLISHED;
use lb_common::verdict::{Action, Verdict};
use lb_ebpf::{Memory as _, connections};
use lb_userspace::dataplane::{self, Dataplane, Sizes, Table};
use lb_userspace::host;
use tests::network::LAN;

use crate::cases::Case;
use crate::plan::{FLOOR, FRAME, Plan, SUBJECT};
use crate::scene::{SERVICES, Service};

/// The wrapper and the floor.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-bench.o"));

/// The balancer's tables, all of which are pinned.
pub(crate) const TABLES: [&str; 17] = [
    "ENDPOINTS",
    "BACKENDS",
    "SEQUENCES",
    "POLICIES",
    "AFFINITIES",
    "PORTS",
    "TAGS",
    "CONNECTIONS",
    "ANSWERS",
    "LIVE",
    "SHARED",
    "HOPS",
    "DEVICES",
    "VERDICTS",
    "SERVICE_TRAFFIC",
    "BACKEND_TRAFFIC",
    "DROPS",
];

/// The balancer's tables as the daemon makes them, its program, and the
/// wrapper around it.
pub(crate) struct Rig {
    settings: Settings,
    dataplane: Dataplane,
    programs: Ebpf,
    plan: Array<MapData, [u8; size_of::<Plan>()]>,
    table: Arc<Table>,
    /// How many connections of each service are known.
    known: [u32; SERVICES.len()],
    // The kernel empties an array of programs that nobody holds open, and the
    // array holds the program under test.
    _slots: ProgramArray<MapData>,
    /// Dropped last: it takes the pins away.
    pins: Pins,
}

impl Rig {
    /// Loads everything, with room for so many connections.
    pub(crate) fn new(settings: &Settings, max_flows: u32) -> Result<Self> {
        let pins = Pins::new()?;
        let sizes = Sizes {
            // The defaults of the configuration.
            services: 4096,
            backends: 65_536,
            flows: max_flows,
        };
        let mut dataplane = Dataplane::open(&pins.0, sizes, settings, false, 0)?.dataplane;
        for change in SERVICES.iter().flat_map(Service::changes) {
            dataplane.apply(&change)?;
        }
        let devices = Map::DevMapHash(pins.table("DEVICES")?);
        DevMapHash::try_from(devices)?.insert(LAN.index, LAN.index, None, 0)?;
        let table = dataplane.table();
        let shape = table.shape();
        let settings = &Settings {
            tag_buckets: shape.tag_buckets,
            answer_buckets: shape.answer_buckets,
            seed: shape.seed,
            ..*settings
        };
        let mut programs = EbpfLoader::new()
            .load(PROGRAMS)
            .context("cannot read the benchmark's programs")?;
        let mut slots: ProgramArray<MapData> = take(&mut programs, "PROGRAMS")?.try_into()?;
        let mut subject = pins.subject(settings)?;
        slots.set(SUBJECT, load(&mut subject, "lb")?.fd()?, 0)?;
        slots.set(FLOOR, load(&mut programs, "floor")?.fd()?, 0)?;
        load(&mut programs, "wrapper")?;
        Ok(Self {
            settings: *settings,
            dataplane,
            plan: take(&mut programs, "PLAN")?.try_into()?,
            table,
            programs,
            known: [0; SERVICES.len()],
            _slots: slots,
            pins,
        })
    }

    /// Enters connections of the service until so many are known.
    pub(crate) fn know(&mut self, service: &Service, count: u32) -> Result<()> {
        let hz = host::ticks_per_second();
        // Certainly past, although the clock is only estimated.
        let seen = host::ticks_now(hz).wrapping_sub(hz);
        let known = self.known[service.number as usize];
        for number in known..count {
            let (key, flow) = service.flow(number, self.settings.first_port, seen);
            ensure!(
                self.table
                    .enter(&key, &flow, seen >> self.settings.stamp_shift)
                    .is_some(),
                "there is no room for connection {number}"
            );
        }
        self.known[service.number as usize] = known.max(count);
        Ok(())
    }

    /// Takes all unfinished connections away.
    pub(crate) fn clear_unfinished(&mut self) -> Result<()> {
        for place in 0..connections::places(&*self.table) {
            if let Some((_, flow)) = connections::at(&*self.table, place)
                && flow.life.state & ESTABLISHED == 0
            {
                connections::remove(&*self.table, place, flow.life.version);
            }
        }
        Ok(())
    }

    /// Nanoseconds a packet through the wrapper alone.
    pub(crate) fn floor(&mut self, plan: &Plan, ingress: u32, packets: u32) -> Result<u64> {
        let plan = Plan {
            slot: FLOOR,
            ..*plan
        };
        let (nanoseconds, action) = self.run(&plan, ingress, packets)?;
        ensure!(
            action == Action::Transmit,
            "the floor ends in {action:?}, not in a transmit"
        );
        Ok(nanoseconds)
    }

    /// Nanoseconds a packet through wrapper and balancer, after making sure
    /// that each packet did what the case says.
    pub(crate) fn subject(&mut self, plan: &Plan, case: &Case, packets: u32) -> Result<u64> {
        let begun = self.dataplane.service_traffic(case.service.number)?;
        let before = self.dataplane.verdicts()?;
        let (nanoseconds, action) = self.run(plan, case.ingress, packets)?;
        let after = self.dataplane.verdicts()?;
        let ended: Vec<(&str, u64)> = (Verdict::ALL.iter().zip(after.iter().zip(&before)))
            .map(|(verdict, (after, before))| (verdict.name(), after - before))
            .filter(|(_, count)| *count > 0)
            .collect();
        ensure!(
            ended == [(case.verdict.name(), u64::from(packets))],
            "the {packets} packets did not all end as {}, but as {ended:?}",
            case.verdict.name()
        );
        ensure!(
            action == case.verdict.action(),
            "{:?} ends in {action:?}",
            case.verdict
        );
        let begun = self
            .dataplane
            .service_traffic(case.service.number)?
            .new_flows
            - begun.new_flows;
        let wanted = if case.begins { packets } else { 0 };
        ensure!(
            begun == u64::from(wanted),
            "{begun} connections were begun, not {wanted}"
        );
        Ok(nanoseconds)
    }

    /// How many connections the table holds: established and unfinished.
    pub(crate) fn entries(&self) -> [usize; 2] {
        let mut entries = [0, 0];
        for (_, _, established) in self.table.all() {
            entries[usize::from(!established)] += 1;
        }
        entries
    }

    /// What the kernel says that each table takes, in bytes.
    pub(crate) fn memory(&self) -> Result<Vec<(&'static str, u64)>> {
        let of = |name| Ok((name, crate::machine::map_memory(&self.pins.table(name)?)?));
        TABLES.into_iter().map(of).collect()
    }

    fn run(&mut self, plan: &Plan, ingress: u32, packets: u32) -> Result<(u64, Action)> {
        self.plan.set(0, cast::<_, [u8; _]>(*plan), 0)?;
        // Nothing changes here; the daemon would say so again and again.
        let hz = host::ticks_per_second();
        (self.dataplane.changes()).vouch(host::ticks_now(hz).wrapping_add(10 * hz));
        let wrapper: &Xdp = (self.programs.program("wrapper"))
            .context("the object holds no program `wrapper`")?
            .try_into()?;
        // struct xdp_md (linux/bpf.h): data, data_end, data_meta,
        // ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, FRAME as u32, 0, ingress, 0, 0];
        let result = wrapper.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME]),
            ctx_in: Some(bytes_of(&context)),
            repeat: packets,
            ..TestRunOptions::new()
        })?;
        // enum xdp_action (linux/bpf.h)
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Transmit,
            4 => Action::Redirect,
            other => bail!("the wrapper did not get to the program under test ({other})"),
        };
        Ok((result.duration.as_nanos() as u64, action))
    }
}

/// The folder of the tables' pins, which goes when this does.
struct Pins(PathBuf);

impl Pins {
    fn new() -> Result<Self> {
        let name = format!("lbt-{}-bench", std::process::id());
        let path = Path::new("/sys/fs/bpf").join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn place(&self, table: &str) -> PathBuf {
        self.0.join(format!("v{ABI_VERSION}")).join(table)
    }

    fn table(&self, name: &str) -> Result<MapData> {
        MapData::from_pin(self.place(name)).with_context(|| format!("cannot open the table {name}"))
    }

    /// The program of `lb` once more, on the same tables: the daemon's own is
    /// not handed out.
    fn subject(&self, settings: &Settings) -> Result<Ebpf> {
        let mut loader = EbpfLoader::new();
        loader.override_global("SETTINGS", bytes_of(settings), true);
        loader.override_global("AYA_LOG_LEVEL", &0u8, false);
        for table in TABLES {
            loader.map_pin_path(table, self.place(table));
        }
        loader
            .load(dataplane::PROGRAM)
            .context("cannot read the XDP program")
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What stays is swept away by the next test or benchmark.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn take(object: &mut Ebpf, name: &str) -> Result<Map> {
    (object.take_map(name)).with_context(|| format!("the object holds no map `{name}`"))
}

fn load<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program: &mut Xdp = (object.program_mut(name))
        .with_context(|| format!("the object holds no program `{name}`"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("the kernel refused the program `{name}`"))?;
    Ok(program)
}
