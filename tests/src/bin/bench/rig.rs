//! The programs in the kernel, and runs of them.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, Map, MapData, ProgramArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use bytemuck::{bytes_of, cast};
use lb_common::abi::{ABI_VERSION, Settings, Traffic, tag};
use lb_common::verdict::{Action, Verdict};
use lb_ebpf::{Memory as _, connections};
use lb_userspace::dataplane::{self, Dataplane, Sizes, Table};
use lb_userspace::host;
use tests::network::LAN;

use crate::cases::{Case, REFUSALS, REFUSED_ONE_IN, State};
use crate::plan::{FLOOR, FRAME, NOTING, Plan, SUBJECT};
use crate::scene::Service;

/// The wrapper and the floor.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-bench.o"));

/// The balancer's tables as the daemon makes them, its program, and the
/// wrapper around it.
pub(crate) struct Rig {
    settings: Settings,
    dataplane: Dataplane,
    programs: Ebpf,
    plan: Array<MapData, [u8; size_of::<Plan>()]>,
    table: Arc<Table>,
    services: Vec<Service>,
    /// What the table of connections holds, and of which service.
    state: Option<(u32, State)>,
    // The kernel empties an array of programs that nobody holds open, and the
    // array holds the program under test.
    _slots: ProgramArray<MapData>,
    /// Dropped last: it takes the pins away.
    pins: Pins,
}

impl Rig {
    /// Loads everything, with these services and room for so many connections.
    pub(crate) fn new(settings: &Settings, max_flows: u32, services: &[Service]) -> Result<Self> {
        let pins = Pins::new()?;
        let sizes = Sizes {
            // The defaults of the configuration.
            services: 4096,
            backends: 65_536,
            flows: max_flows,
        };
        let mut dataplane = Dataplane::open(&pins.0, sizes, settings, false, 0)?.dataplane;
        for change in services.iter().flat_map(Service::changes) {
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
        let noting = Settings {
            refresh_ticks: 0,
            ..*settings
        };
        for (slot, settings) in [(SUBJECT, settings), (NOTING, &noting)] {
            let mut subject = pins.subject(settings)?;
            slots.set(slot, load(&mut subject, "lb")?.fd()?, 0)?;
        }
        slots.set(FLOOR, load(&mut programs, "floor")?.fd()?, 0)?;
        load(&mut programs, "wrapper")?;
        Ok(Self {
            settings: *settings,
            dataplane,
            plan: take(&mut programs, "PLAN")?.try_into()?,
            table,
            programs,
            services: services.to_vec(),
            state: None,
            _slots: slots,
            pins,
        })
    }

    /// Brings the table of connections into the state that the case begins with.
    pub(crate) fn prepare(&mut self, case: &Case) -> Result<()> {
        let number = case.service.number;
        let known = match (self.state, case.state) {
            (Some((whose, State::Known(known))), State::Known(wanted))
                if whose == number && known <= wanted =>
            {
                known
            }
            (Some((whose, state)), wanted)
                if whose == number && state == wanted && state != State::Empty =>
            {
                return Ok(());
            }
            _ => {
                self.empty();
                0
            }
        };
        match case.state {
            State::Empty => {}
            State::Known(count) => self.know(&case.service, known..count)?,
            State::HalfOpen => self.flood(case)?,
            State::Established => self.crowd(),
        }
        self.state = Some((number, case.state));
        Ok(())
    }

    /// Takes all connections away at once. No program runs meanwhile.
    fn empty(&self) {
        let shape = self.table.shape();
        for tags in (0..shape.tag_buckets).filter_map(|bucket| self.table.tags(bucket)) {
            tags.0.iter().for_each(|word| word.store(tag::FREE));
        }
        for answers in (0..shape.answer_buckets).filter_map(|bucket| self.table.answers(bucket)) {
            answers.0.iter().for_each(|word| word.store(0));
        }
        for backend in self.services.iter().flat_map(Service::backends) {
            let live = self.table.live(backend);
            let live = i32::try_from(live).unwrap_or(i32::MAX);
            self.table.count_live(backend, -live);
        }
    }

    /// Enters these connections of the service.
    fn know(&self, service: &Service, numbers: Range<u32>) -> Result<()> {
        let hz = host::ticks_per_second();
        // Certainly past, although the clock is only estimated.
        let seen = host::ticks_now(hz).wrapping_sub(hz);
        for number in numbers {
            let (key, flow) = service.flow(number, self.settings.first_port, seen);
            let entered = self
                .table
                .enter(&key, &flow, seen >> self.settings.stamp_shift);
            ensure!(
                entered.is_some(),
                "there is no room for connection {number}"
            );
        }
        Ok(())
    }

    /// Lets newcomers come until one stands at nearly every place: a third more than
    /// there are places. Those of the case come after them.
    fn flood(&mut self, case: &Case) -> Result<()> {
        let places = connections::places(&*self.table);
        let count = places + places / 3;
        let plan = Plan {
            next: case.plan.flows - count,
            ..case.plan
        };
        self.subject(&plan, case, count)
            .context("the table cannot be filled with half-open connections")?;
        let free = self.free();
        ensure!(
            free <= places / 100,
            "of {places} places {free} are free after {count} newcomers"
        );
        Ok(())
    }

    fn free(&self) -> u32 {
        let buckets = 0..self.table.shape().tag_buckets;
        let tags = buckets.filter_map(|bucket| Some((bucket, self.table.tags(bucket)?)));
        let words = tags.flat_map(|(bucket, tags)| tags.tags(bucket));
        let free = words.filter(|(_, word)| word.load() & tag::CLASS == tag::FREE);
        u32::try_from(free.count()).unwrap_or(u32::MAX)
    }

    /// Says of every place that an established connection stands there. A newcomer
    /// looks at nothing but tags before it is refused, so nobody need be there; and
    /// a table that is so full cannot be had with `max_flows` connections, for which
    /// it has half as many places again.
    fn crowd(&self) {
        let mut random = 0x5eed_u32;
        for bucket in 0..self.table.shape().tag_buckets {
            let Some(tags) = self.table.tags(bucket) else {
                continue;
            };
            for (way, word) in tags.tags(bucket) {
                // As if it were being written: what an earlier connection has left
                // there is not to be found.
                if let Some(entry) = self.table.connection(bucket * tag::WORDS + way) {
                    entry.life.store(1 << 32);
                }
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                word.store(random & tag::HASH | tag::ESTABLISHED);
            }
        }
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

    /// Runs so many packets through wrapper and balancer, and makes sure that each
    /// did what the case says.
    pub(crate) fn subject(&mut self, plan: &Plan, case: &Case, packets: u32) -> Result<Sample> {
        let before = self.counts(case)?;
        let (nanoseconds, action) = self.run(plan, case.ingress, packets)?;
        let after = self.counts(case)?;
        let ended: Vec<(Verdict, u64)> = (Verdict::ALL.iter())
            .zip(after.verdicts.iter().zip(&before.verdicts))
            .map(|(verdict, (after, before))| (*verdict, after - before))
            .filter(|(_, count)| *count > 0)
            .collect();
        let of = |verdict| {
            let found = ended.iter().find(|(found, _)| *found == verdict);
            found.map_or(0, |(_, count)| *count)
        };
        let refused = if case.may_refuse() {
            REFUSALS.map(of)
        } else {
            [0; REFUSALS.len()]
        };
        let bad: u64 = refused.iter().sum();
        let good = u64::from(packets) - bad;
        ensure!(
            // All verdicts together are as many as the packets: no other is among them.
            of(case.verdict) == good && bad * u64::from(REFUSED_ONE_IN) <= u64::from(packets),
            "the {packets} packets did not all end as {}, but as {:?}",
            case.verdict.name(),
            ended
                .iter()
                .map(|(verdict, count)| (verdict.name(), count))
                .collect::<Vec<_>>()
        );
        ensure!(
            action == case.verdict.action() || bad > 0,
            "{:?} ends in {action:?}",
            case.verdict
        );
        let traffic = |of: fn(&Traffic) -> u64| of(&after.traffic) - of(&before.traffic);
        let begun = traffic(|traffic| traffic.new_flows);
        let wanted = if case.begins { good } else { 0 };
        ensure!(
            begun == wanted,
            "{begun} connections were begun, not {wanted}"
        );
        let counted = [
            traffic(|traffic| traffic.forward_packets),
            traffic(|traffic| traffic.reply_packets),
        ];
        let sent = case.is_service() && case.verdict.action() != Action::Drop;
        let wanted = match (sent, case.reply) {
            (false, _) => [0, 0],
            (true, false) => [good, 0],
            (true, true) => [0, good],
        };
        ensure!(
            counted == wanted,
            "{counted:?} packets were counted for the service (from the client, from the backend), not {wanted:?}"
        );
        Ok(Sample {
            nanoseconds,
            refused,
        })
    }

    fn counts(&self, case: &Case) -> Result<Counts> {
        Ok(Counts {
            verdicts: self.dataplane.verdicts()?,
            traffic: self.dataplane.service_traffic(case.service.number)?,
        })
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
    pub(crate) fn memory(&self) -> Result<Vec<(String, u64)>> {
        let of = |name: String| {
            let bytes = crate::machine::map_memory(&self.pins.table(&name)?)?;
            Ok((name, bytes))
        };
        self.pins.names()?.into_iter().map(of).collect()
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

/// What a run has shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Nanoseconds a packet.
    pub(crate) nanoseconds: u64,
    /// How many packets were refused that may be, by [`REFUSALS`].
    pub(crate) refused: [u64; REFUSALS.len()],
}

/// What the program has counted.
struct Counts {
    verdicts: Vec<u64>,
    traffic: Traffic,
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

    /// All that is pinned, in the order of the alphabet.
    fn names(&self) -> Result<Vec<String>> {
        let folder = self.place("");
        let read = || -> std::io::Result<Vec<String>> {
            fs::read_dir(&folder)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        let mut names = read().with_context(|| format!("cannot read {}", folder.display()))?;
        names.sort();
        Ok(names)
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
        let names = self.names()?;
        for table in &names {
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
