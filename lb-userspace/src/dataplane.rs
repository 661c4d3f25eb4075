//! The kernel's side of the controller: the program, its maps and its links.
//! It and the files below it are the only ones that name aya, beside those of
//! the small program for backends ([`crate::decap`]): [`links`] attaches,
//! [`pins`] keeps the folder, [`counts`] reads what was counted.
//!
//! Everything is pinned below `node.pin_path`: the maps in a folder named for
//! the version of the ABI (`v1`), the links beside it (`link-eth0`). So
//! forwarding goes on without the daemon, and a daemon that starts finds flows,
//! schedules and counters as they are. [`Dataplane::open`] adopts them or
//! makes new ones; [`Dataplane::attach`] puts the new program into an existing
//! link in one step, so that no packet passes between two programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, xdp::DevMapHash,
};
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader, Pod};
use aya_log::EbpfLogger;
use bytemuck::{bytes_of, pod_read_unaligned};
use lb_common::abi::{
    ABI_VERSION, ANSWER_WAYS, Affinity, AffinityKey, AnswerBucket, Backend, Connection, DropKey,
    Endpoint, Fragment, FragmentKey, NextHop, Party, Policy, Settings, Tagged, Traffic, backend,
    changed, hop, lease as lease_words, role, shared, sieve, tag,
};

use lb_ebpf::Displaced;

use crate::config::MOST_ADDRESSES;
use crate::host;
use crate::reconcile::{Change, Tables};

mod changes;
pub mod connections;
mod counts;
mod handover;
mod lease;
mod links;
mod loading;
mod pins;
mod sequences;

pub use changes::Changes;
pub use connections::{Table, enter};
pub use handover::{Handover, Round, pinned_abis};
pub use lease::Lease;
pub(crate) use loading::refused;

pub use links::{AttachError, Came, Carried, Mode, linked};
pub use pins::{Lock, discard, lock, occupied, probe};

use loading::{Loading, named};
use pins::adopt;
use sequences::Sequences;

/// The XDP program, built with this crate; needs no toolchain where it runs.
pub static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// The maps that are pinned: name, size of a key, size of a value.
const PINNED: [(&str, usize, usize); 23] = [
    ("ENDPOINTS", size_of::<Endpoint>(), size_of::<Party>()),
    ("BACKENDS", 4, size_of::<Backend>()),
    ("SEQUENCES", 4, 4),
    ("POLICIES", 4, size_of::<Policy>()),
    (
        "AFFINITIES",
        size_of::<AffinityKey>(),
        size_of::<Affinity>(),
    ),
    ("SIEVE", 4, 8),
    ("CONNECTIONS", 4, size_of::<Connection>()),
    ("ANSWERS", 4, size_of::<AnswerBucket>()),
    ("LIVE", 4, 8),
    ("SHARED", 4, 4),
    ("LEASE", 4, 8),
    ("CHANGED", 4, changed::BYTES as usize),
    ("HOPS", 4, size_of::<NextHop>()),
    ("DISPLACED", 4, 8),
    ("DEVICES", 4, 8),
    ("VERDICTS", 4, 8),
    ("SERVICE_TRAFFIC", 4, size_of::<Traffic>()),
    ("BACKEND_TRAFFIC", 4, size_of::<Traffic>()),
    ("DROPS", size_of::<DropKey>(), 8),
    ("FRAGMENTS", size_of::<FragmentKey>(), size_of::<Fragment>()),
    ("FRAGMENT_IDS", 4, 4),
    ("INTERFACES", size_of::<Tagged>(), 4),
    ("EXITS", 4, size_of::<Tagged>()),
];

/// The most reasons for drops that are told apart by service and backend.
const DROP_KEYS: u32 = 16_384;

/// The most interfaces the program can be attached to.
const MAX_DEVICES: u32 = 64;

/// The most interfaces that have frames with tags, or frames of members.
const MAX_TAGGED: u32 = 4_096;

/// How many counters of displaced connections the program has.
const DISPLACEMENTS: u32 = 4;

/// How many counters number the datagrams that leave in fragments; the program
/// has as many.
const FRAGMENT_COUNTERS: u32 = 1_024;

/// The sizes of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Services.
    pub services: u32,
    /// Backends of all services.
    pub backends: u32,
    /// Connections.
    pub flows: u32,
}

impl Sizes {
    /// How many entries the map of this name has room for.
    fn entries(self, map: &str) -> u32 {
        match map {
            // A service and its bare address, each backend, and what else moves with
            // the role of a pair.
            "ENDPOINTS" => 2 * self.services + self.backends + MOST_ADDRESSES,
            "BACKENDS" | "BACKEND_TRAFFIC" => self.backends,
            "SEQUENCES" | "SERVICE_TRAFFIC" | "POLICIES" => self.services,
            "SIEVE" => sieve::WORDS,
            "LIVE" => self.backends,
            "SHARED" => shared::WORDS,
            "LEASE" => lease_words::WORDS,
            "HOPS" => hop::PLACES,
            "DISPLACED" => DISPLACEMENTS,
            "DEVICES" => MAX_DEVICES,
            "VERDICTS" => lb_common::verdict::VERDICT_SLOTS,
            "AFFINITIES" => self.affinities() + lru_reserve(),
            "FRAGMENTS" => self.fragments() + lru_reserve(),
            "FRAGMENT_IDS" => FRAGMENT_COUNTERS,
            "INTERFACES" | "EXITS" => MAX_TAGGED,
            _ => DROP_KEYS,
        }
    }

    /// How many buckets of connections: with half as many places again as connections,
    /// a connection that finds none is one in millions.
    pub const fn tag_buckets(self) -> u32 {
        (self.flows + self.flows / 2).div_ceil(tag::WAYS)
    }

    /// How many buckets of answers: three times as many places as connections, for
    /// the same reason. They are small.
    pub const fn answer_buckets(self) -> u32 {
        (3 * self.flows).div_ceil(ANSWER_WAYS)
    }

    /// How many clients there is room for whose backend is remembered.
    fn affinities(self) -> u32 {
        (self.flows / 4).clamp(1_024, 1_048_576)
    }

    /// How many datagrams in fragments there is room for at a time.
    fn fragments(self) -> u32 {
        (self.flows / 8).clamp(1_024, 65_536)
    }
}

/// The kernel's LRU keeps up to 128 free entries aside for each CPU; without
/// these a table would evict before it is full.
fn lru_reserve() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    256 * u32::try_from(cpus).unwrap_or(u32::MAX / 256)
}

/// The loaded program and its maps.
pub struct Dataplane {
    program: Loading,
    pin_path: PathBuf,
    sizes: Sizes,
    links: BTreeMap<String, Attached>,
    endpoints: HashMap<MapData, [u8; 24], [u8; 8]>,
    backends: Array<MapData, [u8; 24]>,
    sequences: Sequences,
    policies: Array<MapData, [u8; 8]>,
    sieve: Array<MapData, u64>,
    displaced: PerCpuArray<MapData, u64>,
    table: Arc<Table>,
    changes: Arc<Changes>,
    lease: Arc<Lease>,
    devices: DevMapHash<MapData>,
    interfaces: HashMap<MapData, [u8; 16], u32>,
    exits: HashMap<MapData, u32, [u8; 16]>,
    verdicts: PerCpuArray<MapData, u64>,
    service_traffic: PerCpuArray<MapData, [u64; 5]>,
    backend_traffic: PerCpuArray<MapData, [u64; 5]>,
    drops: PerCpuHashMap<MapData, [u8; 16], u64>,
}

struct Attached {
    index: u32,
    #[expect(dead_code, reason = "keeps the link's descriptor open")]
    link: FdLink,
    /// Made by this process: taken away again if the start fails.
    fresh: bool,
}

/// What [`Dataplane::open`] found.
pub struct Opened {
    /// The program and its maps.
    pub dataplane: Dataplane,
    /// Whether there were tables to adopt.
    pub adopted: bool,
    /// Old tables whose connections are yet to be carried over: once now, and
    /// once more when the program is attached.
    pub handover: Option<Handover>,
}

impl Dataplane {
    /// Loads the program and adopts the pinned maps, or makes them. Where there
    /// were none, the program is still on its way into the kernel while the tables
    /// are filled ([`loading`]); attaching waits for it.
    ///
    /// `frags` asks for the flavour of the program that takes frames larger
    /// than a page (Linux 5.18 and later); `log_level` is what it may log: 0
    /// nothing, to 5 everything.
    pub fn open(
        pin_path: &Path,
        sizes: Sizes,
        settings: &Settings,
        frags: bool,
        log_level: u8,
    ) -> anyhow::Result<Opened> {
        let found = handover::find(pin_path)?;
        let mut settings = *settings;
        let same = match &found {
            Some(found) if found.version == ABI_VERSION => {
                let mut theirs = settings;
                let same = adopt(&found.folder, &mut theirs)? == sizes;
                if same {
                    settings = theirs;
                }
                same
            }
            _ => false,
        };
        let (folder, adopted) = match &found {
            Some(found) if same => (found.folder.clone(), true),
            found => (handover::folder_beside(pin_path, found.as_ref()), false),
        };
        if !adopted {
            settings.tag_buckets = sizes.tag_buckets();
            settings.answer_buckets = sizes.answer_buckets();
        }
        let opened = Self::load(
            pin_path, &folder, sizes, &settings, frags, log_level, adopted,
        );
        let waited = opened.and_then(|mut dataplane| {
            if found.is_some() {
                // What forwards now is changed for a program that can follow it only.
                dataplane.program.object()?;
            }
            Ok(dataplane)
        });
        let mut dataplane = waited.inspect_err(|_| {
            if !adopted {
                // What was there before goes on.
                let _ = fs::remove_dir_all(&folder);
            }
        })?;
        let handover = match found {
            Some(found) if !adopted => {
                let begun = Handover::begin(found, &mut dataplane, folder.clone());
                Some(begun.inspect_err(|_| {
                    let _ = fs::remove_dir_all(&folder);
                })?)
            }
            _ => None,
        };
        Ok(Opened {
            dataplane,
            adopted: adopted || handover.is_some(),
            handover,
        })
    }

    /// Loads the program with tables in this folder: those that are there, or new
    /// ones.
    fn load(
        pin_path: &Path,
        folder: &Path,
        sizes: Sizes,
        settings: &Settings,
        frags: bool,
        log_level: u8,
        adopted: bool,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the pin folder {}", folder.display()))?;
        let mut loader = EbpfLoader::new();
        for (name, _, _) in PINNED {
            let entries = match name {
                "CONNECTIONS" => settings.tag_buckets * tag::WORDS,
                "ANSWERS" => settings.answer_buckets,
                "CHANGED" => changed::entries(settings.tag_buckets),
                name => sizes.entries(name),
            };
            loader.map_max_entries(name, entries);
            loader.map_pin_path(name, folder.join(name));
        }
        let mut ebpf = loader
            .override_global("SETTINGS", bytes_of(settings), true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .load(PROGRAM)
            .context("the kernel did not take the maps of the XDP program; too little memory for node.max_flows?")?;
        let ticks = named(&mut ebpf, "lb_ticks")?;
        ticks.load().map_err(refused)?;
        let changes = Arc::new(Changes::pinned(folder, ticks)?);
        let lease = Lease::pinned(folder, Arc::clone(&changes))?;
        if !adopted {
            scatter_ids(&mut ebpf)?;
            // Of zero it could not be told that nobody wrote it, a second before the
            // counter comes to it.
            changes.vouch(changes.now());
            let mut shared = words(&mut ebpf, "SHARED")?;
            for (word, value) in [(shared::SEED, settings.seed), (shared::FLOWS, sizes.flows)] {
                shared
                    .set(word, value, 0)
                    .context("cannot write the table SHARED")?;
            }
            handover::write_layout(folder)?;
        }
        let table = Table::pinned(settings.seed, folder)?;
        Ok(Self {
            endpoints: typed(&mut ebpf, "ENDPOINTS", HashMap::try_from)?,
            backends: typed(&mut ebpf, "BACKENDS", Array::try_from)?,
            sequences: Sequences::of(&mut ebpf)?,
            policies: typed(&mut ebpf, "POLICIES", Array::try_from)?,
            sieve: typed(&mut ebpf, "SIEVE", Array::try_from)?,
            displaced: typed(&mut ebpf, "DISPLACED", PerCpuArray::try_from)?,
            table: Arc::new(table),
            changes,
            lease: Arc::new(lease),
            devices: typed(&mut ebpf, "DEVICES", DevMapHash::try_from)?,
            interfaces: typed(&mut ebpf, "INTERFACES", HashMap::try_from)?,
            exits: typed(&mut ebpf, "EXITS", HashMap::try_from)?,
            verdicts: typed(&mut ebpf, "VERDICTS", PerCpuArray::try_from)?,
            service_traffic: typed(&mut ebpf, "SERVICE_TRAFFIC", PerCpuArray::try_from)?,
            backend_traffic: typed(&mut ebpf, "BACKEND_TRAFFIC", PerCpuArray::try_from)?,
            drops: typed(&mut ebpf, "DROPS", PerCpuHashMap::try_from)?,
            links: BTreeMap::new(),
            pin_path: pin_path.to_owned(),
            sizes,
            program: Loading::begin(ebpf, if frags { "lb_frags" } else { "lb" }),
        })
    }

    /// The sizes of the tables as they are.
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// How many connections there is room for.
    pub fn flow_capacity(&self) -> u64 {
        u64::from(self.sizes.flows)
    }

    /// The table of connections.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table)
    }

    /// The count of changes on which the data path's notes depend.
    pub fn changes(&self) -> Arc<Changes> {
        Arc::clone(&self.changes)
    }

    /// Until when the data path of a node of a pair may act.
    pub fn lease(&self) -> Arc<Lease> {
        Arc::clone(&self.lease)
    }

    /// How many connections were displaced so far, by [`lb_ebpf::Displaced`].
    pub fn displaced(&self, what: Displaced) -> anyhow::Result<u64> {
        let counts = self.displaced.get(&(what as u32), 0);
        let counts = counts.context("cannot read what was displaced")?;
        Ok(counts.iter().sum())
    }

    /// The program's log, for whoever reads it; only with a log level above 0.
    pub fn logger(&mut self) -> anyhow::Result<EbpfLogger<&'static dyn log::Log>> {
        let logger = EbpfLogger::init(self.program.object()?);
        logger.context("cannot read the program's log")
    }

    /// The tables as the kernel has them.
    pub fn read(&self) -> anyhow::Result<Tables> {
        let mut tables = Tables::default();
        for entry in self.endpoints.iter() {
            let (endpoint, party) = entry.context("cannot read the table of endpoints")?;
            let endpoint: Endpoint = pod_read_unaligned(&endpoint);
            let party: Party = pod_read_unaligned(&party);
            tables.parties.insert(endpoint, party);
        }
        for number in 0..self.sizes.backends {
            let backend = self
                .backends
                .get(&number, 0)
                .context("cannot read the table of backends")?;
            let backend: Backend = pod_read_unaligned(&backend);
            if backend.flags & backend::USED != 0 {
                tables.backends.insert(number, backend);
            }
        }
        let services = tables.parties.values().map(|party| party.service);
        let mut services: Vec<u32> = services
            .chain(tables.backends.values().map(|backend| backend.service))
            .collect();
        services.sort_unstable();
        services.dedup();
        for service in services
            .into_iter()
            .filter(|&service| service < self.sizes.services)
        {
            if let Some(slots) = self
                .sequences
                .get(service)?
                .filter(|slots| !slots.is_empty())
            {
                tables.sequences.insert(service, slots);
            }
            let policy = self
                .policies
                .get(&service, 0)
                .context("cannot read the table of policies")?;
            let policy: Policy = bytemuck::cast(policy);
            if policy != Policy::default() {
                tables.policies.insert(service, policy);
            }
        }
        Ok(tables)
    }

    /// Makes one change in the kernel. Doing it twice is harmless.
    pub fn apply(&mut self, change: &Change) -> anyhow::Result<()> {
        self.apply_step(std::slice::from_ref(change))
    }

    /// Makes the changes of one of [`reconcile::steps`](crate::reconcile::steps).
    /// Doing it twice is harmless.
    pub fn apply_step(&mut self, step: &[Change]) -> anyhow::Result<()> {
        self.sequences.exchange(step)?;
        step.iter().try_for_each(|change| self.write(change))
    }

    fn write(&mut self, change: &Change) -> anyhow::Result<()> {
        match change {
            Change::SetBackend {
                number,
                backend,
                fresh,
            } => {
                if *fresh {
                    zero(&mut self.backend_traffic, *number)?;
                }
                let value: [u8; 24] = bytemuck::cast(*backend);
                self.backends
                    .set(*number, value, 0)
                    .context("cannot write a backend")?;
                if backend.flags & (backend::RESET | backend::REHASH) != 0 {
                    // Flows that know their way do not look at their backend.
                    self.changes.count();
                }
                Ok(())
            }
            Change::RemoveBackend { number } => self
                .backends
                .set(*number, [0; 24], 0)
                .context("cannot remove a backend"),
            // The whole step's were exchanged at once.
            Change::SetSequence { .. } | Change::RemoveSequence { .. } => Ok(()),
            Change::SetPolicy { service, policy } => {
                let value: [u8; 8] = bytemuck::cast(*policy);
                self.policies
                    .set(*service, value, 0)
                    .context("cannot write a policy")
            }
            Change::SetParty {
                endpoint,
                party,
                fresh,
            } => {
                if *fresh {
                    zero(&mut self.service_traffic, party.service)?;
                }
                self.look_for(endpoint, party)?;
                let key: [u8; 24] = bytemuck::cast(*endpoint);
                let value: [u8; 8] = bytemuck::cast(*party);
                self.endpoints
                    .insert(key, value, 0)
                    .context("cannot write an endpoint")
            }
            Change::RemoveParty { endpoint } => {
                let key: [u8; 24] = bytemuck::cast(*endpoint);
                match self.endpoints.remove(&key) {
                    Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
                    Err(error) => Err(error).context("cannot remove an endpoint"),
                }
            }
        }
    }

    /// Lets connections of an endpoint be looked for. It stays so when the endpoint
    /// goes: its connections go on.
    fn look_for(&mut self, endpoint: &Endpoint, party: &Party) -> anyhow::Result<()> {
        for (role, first) in [
            (role::SERVICE, sieve::SERVICES),
            (role::BACKEND, sieve::BACKENDS),
        ] {
            if party.roles & role == 0 {
                continue;
            }
            let (word, bit) = sieve::place(first, &endpoint.address, endpoint.port);
            let bits = self.sieve.get(&word, 0);
            let bits = bits.context("cannot read the table SIEVE")?;
            if bits & bit == 0 {
                self.sieve
                    .set(word, bits | bit, 0)
                    .context("cannot write the table SIEVE")?;
            }
        }
        Ok(())
    }

    /// Tells the program which frames are whose: `interfaces` says to which
    /// interface of the host the frames of a device with these tags belong,
    /// `exits` by which device, with which tags, an interface sends. Writes only
    /// what differs from what the kernel has; doing it twice is harmless.
    pub fn set_interfaces(
        &mut self,
        interfaces: &BTreeMap<Tagged, u32>,
        exits: &BTreeMap<u32, Tagged>,
    ) -> anyhow::Result<()> {
        let wanted = interfaces.len().max(exits.len());
        if wanted > MAX_TAGGED as usize {
            bail!(
                "{wanted} VLANs and members of interfaces are more than the {MAX_TAGGED} that the program can tell apart; remove those that are not used"
            );
        }
        let interfaces = interfaces
            .iter()
            .map(|(&frames, &index)| (bytemuck::cast(frames), index))
            .collect();
        exchange(&mut self.interfaces, &interfaces)
            .context("cannot write the table of interfaces")?;
        let exits = exits
            .iter()
            .map(|(&index, &frames)| (index, bytemuck::cast(frames)))
            .collect();
        exchange(&mut self.exits, &exits).context("cannot write the table of exits")
    }

    /// What [`Self::set_interfaces`] has made of the tables.
    pub fn interfaces(&self) -> anyhow::Result<(BTreeMap<Tagged, u32>, BTreeMap<u32, Tagged>)> {
        let interfaces =
            entries(&self.interfaces).context("cannot read the table of interfaces")?;
        let exits = entries(&self.exits).context("cannot read the table of exits")?;
        Ok((
            interfaces
                .into_iter()
                .map(|(frames, index)| (pod_read_unaligned(&frames), index))
                .collect(),
            exits
                .into_iter()
                .map(|(index, frames)| (index, pod_read_unaligned(&frames)))
                .collect(),
        ))
    }
}

fn typed<T, E>(
    ebpf: &mut Ebpf,
    name: &str,
    make: impl FnOnce(Map) -> Result<T, E>,
) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| anyhow!("the program has no map {name}"))?;
    make(map).with_context(|| format!("the map {name} is of another form"))
}

/// A table of words, which stays with the program: the kernel asks for it when it
/// loads that.
fn words<'e>(ebpf: &'e mut Ebpf, name: &str) -> anyhow::Result<Array<&'e mut MapData, u32>> {
    let map = ebpf
        .map_mut(name)
        .ok_or_else(|| anyhow!("the program has no map {name}"))?;
    Array::try_from(map).with_context(|| format!("the map {name} is of another form"))
}

/// All that stands in a table.
fn entries<K: Pod + Ord, V: Pod>(
    table: &HashMap<MapData, K, V>,
) -> Result<BTreeMap<K, V>, MapError> {
    table.iter().collect()
}

/// Makes a table hold these entries and no others. What goes makes room for
/// what comes.
fn exchange<K: Pod + Ord, V: Pod + PartialEq>(
    table: &mut HashMap<MapData, K, V>,
    wanted: &BTreeMap<K, V>,
) -> Result<(), MapError> {
    let present = entries(table)?;
    for key in present.keys().filter(|key| !wanted.contains_key(key)) {
        match table.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error),
        }
    }
    for (key, value) in wanted {
        if present.get(key) != Some(value) {
            table.insert(key, value, 0)?;
        }
    }
    Ok(())
}

/// Lets the identifications of datagrams begin anywhere, so that outsiders
/// cannot tell the next one (RFC 7739).
fn scatter_ids(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let mut ids = words(ebpf, "FRAGMENT_IDS")?;
    for place in 0..ids.len() {
        let start = host::random().context("the kernel gave no random number")?;
        ids.set(place, start, 0)
            .context("cannot write an identification")?;
    }
    Ok(())
}

fn zero(traffic: &mut PerCpuArray<MapData, [u64; 5]>, number: u32) -> anyhow::Result<()> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(_, error)| error)
        .context("cannot count CPUs")?;
    let zeros =
        aya::maps::PerCpuValues::try_from(vec![[0; 5]; cpus]).context("cannot count CPUs")?;
    traffic
        .set(number, zeros, 0)
        .context("cannot reset counters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_that_follow_from_the_flows_have_bounds() {
        for (flows, buckets, affinities, fragments) in [
            (1, [1, 1], 1_024, 1_024),
            (80_000, [8_000, 34_286], 20_000, 10_000),
            (100_000_000, [10_000_000, 42_857_143], 1_048_576, 65_536),
        ] {
            let sizes = Sizes {
                services: 1,
                backends: 1,
                flows,
            };
            assert_eq!([sizes.tag_buckets(), sizes.answer_buckets()], buckets);
            assert_eq!(
                (sizes.affinities(), sizes.fragments()),
                (affinities, fragments)
            );
        }
    }
}
