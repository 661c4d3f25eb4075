//! The data path in the kernel: the XDP program and its maps, run on single
//! frames with `BPF_PROG_TEST_RUN`.
//!
//! The routing table that the program asks is real, so all of it happens in a
//! network namespace that belongs to one thread ([`in_namespace`]): nothing has
//! a name, and with the thread everything is gone, whatever happens to it.
//! Nothing is pinned and nothing is attached.
//!
//! The kernel takes no test frame shorter than an Ethernet header: those are
//! for the host alone ([`SHORTEST`]).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::{fs, panic, thread};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{
    Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues,
    xdp::DevMapHash,
};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use bytemuck::{bytes_of, cast, pod_read_unaligned};
use lb_common::Action;
use lb_common::abi::{
    Affinity, AffinityKey, Backend, DropKey, Endpoint, FlowKey, Fragment, FragmentKey, Party,
    Policy, Settings, Tagged, Traffic, forward, lease, sequence, shared, sieve, tag,
};
use lb_common::verdict::{VERDICT_SLOTS, Verdict};

use lb_ebpf::connections;
use lb_userspace::dataplane::Table;
use lb_userspace::dataplane::connections::MAPPED;

use crate::network;
use crate::world::{Outcome, ROOM, Service, Side, State, World};

/// The shortest frame that `BPF_PROG_TEST_RUN` takes: an Ethernet header.
pub const SHORTEST: usize = 14;

/// The program's flavours: the one that takes frames in one piece, and the one
/// that takes them in several.
pub const PROGRAMS: [&str; 2] = ["lb", "lb_frags"];

/// Entries of each LRU table: far more than any test makes, because the kernel
/// begins to evict before a table is quite full.
const ENTRIES: u32 = 16_384;

/// `BPF_F_INNER_MAP` (linux/bpf.h): arrays of different lengths may be put
/// into the array of maps.
const BPF_F_INNER_MAP: u32 = 1 << 12;

// Aya takes keys and values as plain bytes: it cannot know the types of
// `lb_common::abi`.
type EndpointBytes = [u8; size_of::<Endpoint>()];
type PartyBytes = [u8; size_of::<Party>()];
type BackendBytes = [u8; size_of::<Backend>()];
type FragmentKeyBytes = [u8; size_of::<FragmentKey>()];
type AffinityKeyBytes = [u8; size_of::<AffinityKey>()];
type AffinityBytes = [u8; size_of::<Affinity>()];
type PolicyBytes = [u8; size_of::<Policy>()];
type TrafficBytes = [u8; size_of::<Traffic>()];
type FragmentBytes = [u8; size_of::<Fragment>()];
type TaggedBytes = [u8; size_of::<Tagged>()];
type DropBytes = [u8; size_of::<DropKey>()];

type Traffics = PerCpuArray<MapData, TrafficBytes>;

/// Runs the work in a thread with a network namespace of its own that holds
/// the network of [`crate::network`].
pub fn in_namespace<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let in_thread = || {
        stay_on_this_cpu()?;
        enter_new_namespace()?;
        make_network()?;
        work()
    };
    thread::scope(|scope| match scope.spawn(in_thread).join() {
        Ok(result) => result,
        Err(panicked) => panic::resume_unwind(panicked),
    })
}

/// What the program limits, it limits for each CPU.
fn stay_on_this_cpu() -> Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &cpus).context("cannot choose a CPU")
}

fn enter_new_namespace() -> Result<()> {
    // SAFETY: only the network namespace is unshared; file descriptors, of
    // which the function warns, stay as they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .context("cannot make a network namespace; these tests need root")
}

fn make_network() -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run `ip`; it is in Debian's package iproute2")?;
    let mut input = ip.stdin.take().context("`ip` has no input")?;
    input.write_all(network::commands().as_bytes())?;
    drop(input);
    ensure!(
        ip.wait()?.success(),
        "`ip` refused the network of the tests"
    );
    for device in network::DEVICES {
        for family in ["ipv4", "ipv6"] {
            // The folder is that of the thread's own namespace.
            let path = format!("/proc/sys/net/{family}/conf/{}/forwarding", device.name);
            fs::write(&path, if device.forwards { "1" } else { "0" })
                .with_context(|| format!("cannot write {path}"))?;
        }
    }
    Ok(())
}

/// The kernel as a side: one load of the program for each set of settings
/// that was asked for.
pub struct Kernel {
    name: &'static str,
    loads: Vec<Load>,
    current: usize,
}

impl Default for Kernel {
    fn default() -> Self {
        Self::of(PROGRAMS[0])
    }
}

impl Kernel {
    /// With this one of the [`PROGRAMS`].
    pub fn of(name: &'static str) -> Self {
        Self {
            name,
            loads: Vec::new(),
            current: 0,
        }
    }

    /// A frame comes in, of which only so many bytes are in the first piece.
    /// Needs a program that takes several, and Linux 6.18.
    pub fn arrive_in_pieces(&self, frame: &[u8], first: usize, ingress: u32) -> Result<Outcome> {
        self.load()?.run(frame, first, ingress)
    }

    /// How many packets have ended in each of these verdicts.
    pub fn counts<const N: usize>(&self, verdicts: [Verdict; N]) -> Result<[u64; N]> {
        let load = self.load()?;
        let mut counts = [0; N];
        for (count, verdict) in counts.iter_mut().zip(verdicts) {
            *count = load.count(verdict)?;
        }
        Ok(counts)
    }

    /// Packets by verdict, where there were any.
    pub fn verdicts(&self) -> Result<BTreeMap<Verdict, u64>> {
        self.load()?.verdicts()
    }

    /// How many instructions the verifier went through; from Linux 5.16 on.
    pub fn verified(&self) -> Result<Option<u32>> {
        let load = self.load()?;
        let xdp: &Xdp = (load.program.program(load.name))
            .context("the program is gone from its object")?
            .try_into()?;
        Ok(xdp.info()?.verified_instruction_count())
    }

    fn load(&self) -> Result<&Load> {
        self.loads
            .get(self.current)
            .context("no world was begun in the kernel")
    }

    fn load_mut(&mut self) -> Result<&mut Load> {
        self.loads
            .get_mut(self.current)
            .context("no world was begun in the kernel")
    }
}

impl Side for Kernel {
    fn begin(&mut self, world: &World) -> Result<()> {
        let known = (self.loads.iter()).position(|load| load.settings == world.settings);
        self.current = match known {
            Some(place) => place,
            None => {
                self.loads.push(Load::new(self.name, world.settings)?);
                self.loads.len() - 1
            }
        };
        self.load_mut()?.begin(world)
    }

    fn arrive(&mut self, frame: &[u8], ingress: u32) -> Result<Outcome> {
        self.load()?.run(frame, frame.len(), ingress)
    }

    fn lose(&mut self, key: &FlowKey) -> Result<()> {
        crate::host::lose(&self.load()?.table, key)
    }

    fn lease(&mut self, held: bool) -> Result<()> {
        let until = if held { u64::MAX } else { 0 };
        Ok(self.load_mut()?.lease.set(lease::UNTIL, until, 0)?)
    }

    fn state(&self) -> Result<State> {
        self.load()?.state()
    }
}

/// The program, loaded, with its maps.
struct Load {
    name: &'static str,
    settings: Settings,
    program: Ebpf,
    endpoints: HashMap<MapData, EndpointBytes, PartyBytes>,
    backends: Array<MapData, BackendBytes>,
    sequences: ArrayOfMaps<MapData, Array<MapData, u64>>,
    /// The sequences as handed over, with their slots.
    handed_over: Vec<(Vec<u64>, Array<MapData, u64>)>,
    /// How many of them are the current world's.
    turning: usize,
    policies: Array<MapData, PolicyBytes>,
    sieve: Array<MapData, u64>,
    affinities: HashMap<MapData, AffinityKeyBytes, AffinityBytes>,
    shared: Array<MapData, u32>,
    lease: Array<MapData, u64>,
    displaced: PerCpuArray<MapData, u64>,
    table: Table,
    fragments: HashMap<MapData, FragmentKeyBytes, FragmentBytes>,
    fragment_ids: Array<MapData, u32>,
    /// Whether the current world has tunnels.
    tunnels: bool,
    told: PerCpuArray<MapData, u64>,
    verdicts: PerCpuArray<MapData, u64>,
    service_traffic: Traffics,
    backend_traffic: Traffics,
    drops: PerCpuHashMap<MapData, DropBytes, u64>,
}

impl Load {
    fn new(name: &'static str, settings: Settings) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.override_global("SETTINGS", bytes_of(&settings), true);
        // Silent: what the program logs is no part of what it does.
        loader.override_global("AYA_LOG_LEVEL", &0u8, false);
        for table in ["FRAGMENTS", "AFFINITIES"] {
            loader.map_max_entries(table, ENTRIES);
        }
        loader.map_max_entries("CONNECTIONS", settings.tag_buckets * tag::WORDS);
        loader.map_max_entries("ANSWERS", settings.answer_buckets);
        for table in [
            "BACKENDS",
            "POLICIES",
            "LIVE",
            "SEQUENCES",
            "SERVICE_TRAFFIC",
            "BACKEND_TRAFFIC",
        ] {
            loader.map_max_entries(table, ROOM);
        }
        let mut program = loader
            .load(lb_userspace::dataplane::PROGRAM)
            .context("cannot read the XDP program")?;
        let xdp: &mut Xdp = program
            .program_mut(name)
            .with_context(|| format!("the object holds no program `{name}`"))?
            .try_into()?;
        xdp.load().context("the kernel refused the XDP program")?;
        let mut devices: DevMapHash<MapData> = take(&mut program, "DEVICES")?;
        for device in network::DEVICES.iter().filter(|device| device.attached) {
            devices.insert(device.index, device.index, None, 0)?;
        }
        let mut interfaces: HashMap<MapData, TaggedBytes, u32> = take(&mut program, "INTERFACES")?;
        for (frames, index) in network::interfaces() {
            interfaces.insert(cast::<_, TaggedBytes>(frames), index, 0)?;
        }
        let mut exits: HashMap<MapData, u32, TaggedBytes> = take(&mut program, "EXITS")?;
        for (index, frames) in network::exits() {
            exits.insert(index, cast::<_, TaggedBytes>(frames), 0)?;
        }
        let mut mapped = Vec::new();
        for name in MAPPED {
            let map = program
                .take_map(name)
                .with_context(|| format!("the program has no map {name}"))?;
            let Map::Array(map) = map else {
                bail!("the map {name} is no array");
            };
            mapped.push((name, map));
        }
        let table = Table::new(settings.seed, |name| {
            (mapped.iter().find(|(mapped, _)| *mapped == name))
                .map(|(_, map)| map)
                .with_context(|| format!("there is no map {name}"))
        })?;
        Ok(Self {
            name,
            settings,
            endpoints: take(&mut program, "ENDPOINTS")?,
            backends: take(&mut program, "BACKENDS")?,
            sequences: take(&mut program, "SEQUENCES")?,
            handed_over: Vec::new(),
            turning: 0,
            policies: take(&mut program, "POLICIES")?,
            sieve: take(&mut program, "SIEVE")?,
            affinities: take(&mut program, "AFFINITIES")?,
            shared: take(&mut program, "SHARED")?,
            lease: take(&mut program, "LEASE")?,
            displaced: take(&mut program, "DISPLACED")?,
            table,
            fragments: take(&mut program, "FRAGMENTS")?,
            fragment_ids: take(&mut program, "FRAGMENT_IDS")?,
            tunnels: false,
            told: take(&mut program, "TOLD")?,
            verdicts: take(&mut program, "VERDICTS")?,
            service_traffic: take(&mut program, "SERVICE_TRAFFIC")?,
            backend_traffic: take(&mut program, "BACKEND_TRAFFIC")?,
            drops: take(&mut program, "DROPS")?,
            program,
        })
    }

    fn begin(&mut self, world: &World) -> Result<()> {
        for key in keys(self.endpoints.keys())? {
            self.endpoints.remove(&key)?;
        }
        forget_all(&self.table);
        for key in keys(self.affinities.keys())? {
            self.affinities.remove(&key)?;
        }
        self.shared.set(shared::CHURNED, 0, 0)?;
        self.lease.set(lease::UNTIL, 0, 0)?;
        let fragments = keys(self.fragments.keys())?;
        // Many calls, so only where something may have been numbered.
        let cut = self.verdicts.get(&(Verdict::FragmentedByHost as u32), 0)?;
        if self.tunnels || !fragments.is_empty() || cut.iter().any(|count| *count > 0) {
            for place in 0..self.fragment_ids.len() {
                self.fragment_ids.set(place, 0, 0)?;
            }
        }
        for key in fragments {
            self.fragments.remove(&key)?;
        }
        for key in keys(self.drops.keys())? {
            self.drops.remove(&key)?;
        }
        let cpus = aya::util::nr_cpus().map_err(|(file, error)| {
            anyhow::Error::from(error).context(format!("cannot count the CPUs in {file}"))
        })?;
        for reason in 0..self.told.len() {
            self.told
                .set(reason, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        for what in 0..self.displaced.len() {
            self.displaced
                .set(what, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        for verdict in 0..VERDICT_SLOTS {
            self.verdicts
                .set(verdict, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        for number in 0..ROOM {
            let zero = || PerCpuValues::try_from(vec![[0; size_of::<Traffic>()]; cpus]);
            self.service_traffic.set(number, zero()?, 0)?;
            self.backend_traffic.set(number, zero()?, 0)?;
            self.backends.set(number, [0; size_of::<Backend>()], 0)?;
        }
        self.populate(world)
    }

    fn populate(&mut self, world: &World) -> Result<()> {
        for (endpoint, party) in world.endpoints() {
            self.endpoints.insert(
                cast::<_, EndpointBytes>(endpoint),
                cast::<_, PartyBytes>(party),
                0,
            )?;
        }
        let words = world.sieve();
        for word in 0..sieve::WORDS {
            let wanted = words.get(&word).copied().unwrap_or(0);
            if self.sieve.get(&word, 0)? != wanted {
                self.sieve.set(word, wanted, 0)?;
            }
        }
        for service in &world.services {
            self.policies
                .set(service.number, cast::<_, PolicyBytes>(service.policy), 0)?;
        }
        for member in &world.backends {
            self.backends
                .set(member.number, cast::<_, BackendBytes>(member.entry()), 0)?;
        }
        self.tunnels = (world.services.iter()).any(|service| service.forward == forward::TUNNEL);
        self.turning = world.services.len();
        for service in &world.services {
            self.hand_over(service)?;
        }
        Ok(())
    }

    /// Puts the service's sequence in place, from its beginning. One that
    /// stands there already is only wound back: the kernel waits for all its
    /// CPUs whenever a map in a map is exchanged.
    fn hand_over(&mut self, service: &Service) -> Result<()> {
        let place = service.number as usize;
        let known = self.handed_over.get_mut(place);
        if let Some((_, words)) = known.filter(|(slots, _)| *slots == service.sequence) {
            words.set(sequence::CURSOR, 0, 0)?;
            return Ok(());
        }
        let length = service.sequence.len() as u32;
        let mut words = Array::create(sequence::FIRST + length, BPF_F_INNER_MAP)?;
        words.set(sequence::LENGTH, u64::from(length), 0)?;
        for (slot, backend) in service.sequence.iter().enumerate() {
            words.set(sequence::FIRST + slot as u32, *backend, 0)?;
        }
        self.sequences.set(service.number, &words, 0)?;
        self.handed_over.truncate(place);
        self.handed_over.push((service.sequence.clone(), words));
        Ok(())
    }

    fn run(&self, frame: &[u8], first: usize, ingress: u32) -> Result<Outcome> {
        let xdp: &Xdp = self
            .program
            .program(self.name)
            .context("the program is gone from its object")?
            .try_into()?;
        // struct xdp_md (linux/bpf.h): data, data_end, data_meta,
        // ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [0, first as u32, 0, ingress, 0, 0];
        let mut out = vec![0; frame.len() + 128];
        let result = xdp.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(bytes_of(&context)),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        // enum xdp_action (linux/bpf.h)
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Transmit,
            4 => Action::Redirect,
            0 => bail!("the program ended in XDP_ABORTED"),
            other => bail!("the program returned {other}, which is no action"),
        };
        Ok(Outcome { action, frame: out })
    }

    fn count(&self, verdict: Verdict) -> Result<u64> {
        Ok(self.verdicts.get(&(verdict as u32), 0)?.iter().sum())
    }

    fn verdicts(&self) -> Result<BTreeMap<Verdict, u64>> {
        let mut verdicts = BTreeMap::new();
        for verdict in Verdict::ALL {
            let count = self.count(*verdict)?;
            if count > 0 {
                verdicts.insert(*verdict, count);
            }
        }
        Ok(verdicts)
    }

    fn state(&self) -> Result<State> {
        let mut state = State {
            fragments: fragments(&self.fragments)?,
            services: traffic(&self.service_traffic)?,
            backends: traffic(&self.backend_traffic)?,
            verdicts: self.verdicts()?,
            ..State::default()
        };
        state.read_flows(&self.table);
        for backend in 0..ROOM {
            let live = self.table.live(backend);
            if live != 0 {
                state.live.insert(backend, live);
            }
        }
        for (what, count) in (0..).zip(&mut state.displaced) {
            *count = self.displaced.get(&what, 0)?.iter().sum();
        }
        let turning = self.handed_over.iter().take(self.turning);
        for (service, (_, words)) in turning.enumerate() {
            state
                .turns
                .insert(service as u32, words.get(&sequence::CURSOR, 0)?);
        }
        for entry in self.drops.iter() {
            let (key, counts) = entry?;
            state
                .drops
                .insert(cast::<_, DropKey>(key), counts.iter().sum());
        }
        Ok(state)
    }
}

fn take<T: TryFrom<Map, Error = aya::maps::MapError>>(program: &mut Ebpf, name: &str) -> Result<T> {
    let map = program
        .take_map(name)
        .with_context(|| format!("the program has no map {name}"))?;
    T::try_from(map).with_context(|| format!("the map {name} is of another kind than expected"))
}

/// All keys before any is removed: removal disturbs the walk.
fn keys<K>(walk: impl Iterator<Item = Result<K, aya::maps::MapError>>) -> Result<Vec<K>> {
    Ok(walk.collect::<Result<_, _>>()?)
}

/// Takes every connection away.
fn forget_all(table: &Table) {
    for place in 0..connections::places(table) {
        if let Some((_, flow)) = connections::at(table, place) {
            connections::remove(table, place, flow.life.version);
        }
    }
}

fn fragments(
    table: &HashMap<MapData, FragmentKeyBytes, FragmentBytes>,
) -> Result<BTreeMap<FragmentKey, Fragment>> {
    (table.iter())
        .map(|entry| {
            let (key, value) = entry?;
            let mut fragment: Fragment = pod_read_unaligned(&value);
            fragment.seen = 0;
            Ok((pod_read_unaligned(&key), fragment))
        })
        .collect()
}

fn traffic(table: &Traffics) -> Result<BTreeMap<u32, Traffic>> {
    let mut sums = BTreeMap::new();
    for number in 0..ROOM {
        let mut sum = Traffic::default();
        for value in table.get(&number, 0)?.iter() {
            let one: Traffic = pod_read_unaligned(value);
            sum.forward_packets += one.forward_packets;
            sum.forward_bytes += one.forward_bytes;
            sum.reply_packets += one.reply_packets;
            sum.reply_bytes += one.reply_bytes;
            sum.new_flows += one.new_flows;
        }
        if sum != Traffic::default() {
            sums.insert(number, sum);
        }
    }
    Ok(sums)
}
