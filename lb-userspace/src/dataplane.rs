//! The kernel's side of the controller: the program, its maps and its links.
//! The only file that names aya.
//!
//! Everything is pinned below `node.pin_path`: the maps in a folder named for
//! the version of the ABI (`v1`), the links beside it (`link-eth0`). So
//! forwarding goes on without the daemon, and a daemon that starts finds flows,
//! schedules and counters as they are. [`Dataplane::open`] adopts them or
//! makes new ones; [`Dataplane::attach`] puts the new program into an existing
//! link in one step, so that no packet passes between two programs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use aya::maps::{
    Array, ArrayOfMaps, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuHashMap,
    xdp::DevMapHash,
};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode as AyaMode};
use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use bytemuck::{bytes_of, pod_read_unaligned};
use lb_common::abi::{
    ABI_VERSION, Backend, DropKey, Endpoint, Flow, FlowKey, Party, Settings, Traffic, backend,
    sequence,
};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::config::XdpMode;
use crate::reconcile::{Change, Tables};

/// The XDP program, built with this crate; needs no toolchain where it runs.
pub static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// The maps that are pinned: name, size of a key, size of a value.
const PINNED: [(&str, usize, usize); 10] = [
    ("ENDPOINTS", size_of::<Endpoint>(), size_of::<Party>()),
    ("BACKENDS", 4, size_of::<Backend>()),
    ("SEQUENCES", 4, 4),
    ("FLOWS", size_of::<FlowKey>(), size_of::<Flow>()),
    ("UNFINISHED", size_of::<FlowKey>(), size_of::<Flow>()),
    ("DEVICES", 4, 8),
    ("VERDICTS", 4, 8),
    ("SERVICE_TRAFFIC", 4, size_of::<Traffic>()),
    ("BACKEND_TRAFFIC", 4, size_of::<Traffic>()),
    ("DROPS", size_of::<DropKey>(), 8),
];

/// `BPF_F_INNER_MAP`: arrays of any length may stand in the map of maps.
const INNER_MAP: u32 = 1 << 12;

/// The most reasons for drops that are told apart by service and backend.
const DROP_KEYS: u32 = 16_384;

/// The most interfaces the program can be attached to.
const MAX_DEVICES: u32 = 64;

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
            // A service and its bare address, and each backend.
            "ENDPOINTS" => 2 * self.services + self.backends,
            "BACKENDS" | "BACKEND_TRAFFIC" => self.backends,
            "SEQUENCES" | "SERVICE_TRAFFIC" => self.services,
            "FLOWS" => 2 * self.flows + lru_reserve(),
            "UNFINISHED" => 2 * self.unfinished() + lru_reserve(),
            "DEVICES" => MAX_DEVICES,
            "VERDICTS" => lb_common::verdict::VERDICT_SLOTS,
            _ => DROP_KEYS,
        }
    }

    /// How many unfinished connections there is room for.
    const fn unfinished(self) -> u32 {
        let eighth = self.flows / 8;
        if eighth < 8_192 {
            8_192
        } else if eighth > 131_072 {
            131_072
        } else {
            eighth
        }
    }
}

/// The kernel's LRU keeps up to 128 free entries aside for each CPU; without
/// these a table would evict before it is full.
fn lru_reserve() -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    256 * u32::try_from(cpus).unwrap_or(u32::MAX / 256)
}

/// Whether there are tables of this version to adopt.
pub fn adoptable(pin_path: &Path) -> bool {
    pin_path
        .join(format!("v{ABI_VERSION}"))
        .join("FLOWS")
        .exists()
}

/// Holds the pin folder for one daemon.
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

/// Takes the pin folder for this process, making it if need be.
pub fn lock(pin_path: &Path) -> anyhow::Result<Lock> {
    fs::create_dir_all(pin_path).with_context(|| {
        format!(
            "cannot make the pin folder {}; is a BPF file system mounted there?",
            pin_path.display()
        )
    })?;
    let folder = File::open(pin_path)
        .with_context(|| format!("cannot open the pin folder {}", pin_path.display()))?;
    match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(folder)),
        Err(Errno::WOULDBLOCK) => bail!(
            "another lb daemon already runs with the pin folder {}; stop it first, or give this one its own node.pin_path, node.control and interfaces",
            pin_path.display()
        ),
        Err(error) => {
            Err(error).with_context(|| format!("cannot lock the pin folder {}", pin_path.display()))
        }
    }
}

/// Whether the kernel lets this process use BPF at all.
pub fn probe() -> io::Result<()> {
    match Array::<_, u32>::create(1, 0) {
        Ok(_) => Ok(()),
        Err(MapError::CreateError { io_error, .. }) => Err(io_error),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Removes pinned maps and links, and with them all flows.
pub fn discard(pin_path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(pin_path)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// The loaded program and its maps.
pub struct Dataplane {
    ebpf: Ebpf,
    pin_path: PathBuf,
    sizes: Sizes,
    links: BTreeMap<String, Attached>,
    endpoints: HashMap<MapData, [u8; 24], [u8; 8]>,
    backends: Array<MapData, [u8; 24]>,
    sequences: ArrayOfMaps<MapData, Array<MapData, u64>>,
    devices: DevMapHash<MapData>,
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
    /// Sizes that the configuration asks for but the adopted tables do not have.
    pub other_sizes: Vec<String>,
}

impl Dataplane {
    /// Loads the program and adopts the pinned maps, or makes them.
    ///
    /// `log_level` is what the program may log: 0 nothing, to 5 everything.
    pub fn open(
        pin_path: &Path,
        sizes: Sizes,
        settings: &Settings,
        log_level: u8,
    ) -> anyhow::Result<Opened> {
        let folder = pin_path.join(format!("v{ABI_VERSION}"));
        let adopted = adoptable(pin_path);
        if !adopted {
            refuse_other_versions(pin_path)?;
        }
        let (actual, other_sizes) = if adopted {
            adopt(&folder, sizes)?
        } else {
            (sizes, Vec::new())
        };
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the pin folder {}", folder.display()))?;
        let mut loader = EbpfLoader::new();
        for (name, _, _) in PINNED {
            loader.map_max_entries(name, actual.entries(name));
            loader.map_pin_path(name, folder.join(name));
        }
        let constants: [u8; size_of::<Settings>()] = bytemuck::cast(*settings);
        let mut ebpf = loader
            .override_global("SETTINGS", &constants, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .load(PROGRAM)
            .context("the kernel did not take the maps of the XDP program; too little memory for node.max_flows?")?;
        program(&mut ebpf)?.load().map_err(refused)?;
        let dataplane = Self {
            endpoints: typed(&mut ebpf, "ENDPOINTS", HashMap::try_from)?,
            backends: typed(&mut ebpf, "BACKENDS", Array::try_from)?,
            sequences: typed(&mut ebpf, "SEQUENCES", ArrayOfMaps::try_from)?,
            devices: typed(&mut ebpf, "DEVICES", DevMapHash::try_from)?,
            verdicts: typed(&mut ebpf, "VERDICTS", PerCpuArray::try_from)?,
            service_traffic: typed(&mut ebpf, "SERVICE_TRAFFIC", PerCpuArray::try_from)?,
            backend_traffic: typed(&mut ebpf, "BACKEND_TRAFFIC", PerCpuArray::try_from)?,
            drops: typed(&mut ebpf, "DROPS", PerCpuHashMap::try_from)?,
            links: BTreeMap::new(),
            pin_path: pin_path.to_owned(),
            sizes: actual,
            ebpf,
        };
        Ok(Opened {
            dataplane,
            adopted,
            other_sizes,
        })
    }

    /// The sizes of the tables as they are.
    pub const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// How many entries the flow table holds at most, both halves counted.
    pub fn flow_capacity(&self) -> u64 {
        u64::from(self.sizes.entries("FLOWS"))
    }

    /// The program's log, for whoever reads it; only with a log level above 0.
    pub fn logger(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>, aya_log::Error> {
        EbpfLogger::init(&mut self.ebpf)
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
            if let Some(slots) = self.sequence(service)?.filter(|slots| !slots.is_empty()) {
                tables.sequences.insert(service, slots);
            }
        }
        Ok(tables)
    }

    fn sequence(&self, service: u32) -> anyhow::Result<Option<Vec<u32>>> {
        let words = match self.sequences.get(&service, 0) {
            Ok(words) => words,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(error).context("cannot read a sequence"),
        };
        let length = words
            .get(&sequence::LENGTH, 0)
            .context("cannot read a sequence's length")?;
        let length = u32::try_from(length).unwrap_or(0).min(sequence::MAX_LENGTH);
        (0..length)
            .map(|slot| {
                let word = words
                    .get(&(sequence::FIRST + slot), 0)
                    .context("cannot read a slot")?;
                Ok(u32::try_from(word).unwrap_or(u32::MAX))
            })
            .collect::<anyhow::Result<Vec<u32>>>()
            .map(Some)
    }

    /// Makes one change in the kernel. Doing it twice is harmless.
    pub fn apply(&mut self, change: &Change) -> anyhow::Result<()> {
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
                    .context("cannot write a backend")
            }
            Change::RemoveBackend { number } => self
                .backends
                .set(*number, [0; 24], 0)
                .context("cannot remove a backend"),
            Change::SetSequence { service, slots } => self.set_sequence(*service, slots),
            // There is no way to take a map out of an array of maps through aya;
            // a sequence without slots is the same to the data path.
            Change::RemoveSequence { service } => self.set_sequence(*service, &[]),
            Change::SetParty {
                endpoint,
                party,
                fresh,
            } => {
                if *fresh {
                    zero(&mut self.service_traffic, party.service)?;
                }
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

    /// Fills a new map and then puts it in the old one's place: the data path
    /// sees the one or the other. The kernel's update returns only when no
    /// program uses the old one any more.
    fn set_sequence(&mut self, service: u32, slots: &[u32]) -> anyhow::Result<()> {
        let length = u32::try_from(slots.len()).context("a sequence is too long")?;
        let mut words = Array::<_, u64>::create(sequence::FIRST + length.max(1), INNER_MAP)
            .context("cannot make a map for a sequence")?;
        words
            .set(sequence::LENGTH, u64::from(length), 0)
            .context("cannot write a sequence")?;
        for (place, &backend) in (sequence::FIRST..).zip(slots) {
            words
                .set(place, u64::from(backend), 0)
                .context("cannot write a sequence")?;
        }
        self.sequences
            .set(service, &words, 0)
            .context("cannot exchange a sequence")
    }

    /// Attaches the program to an interface: into the link that is pinned for
    /// it, or by a new one. Gives the mode of a new link, `None` for one adopted.
    pub fn attach(
        &mut self,
        interface: &str,
        index: u32,
        mode: XdpMode,
    ) -> anyhow::Result<Option<Mode>> {
        let pin = self.link_pin(interface);
        let (link, made) = match self.exchange(&pin)? {
            Some(link) => (link, None),
            None => {
                let (link, mode) = self.new_link(interface, index, mode)?;
                let pinned = link
                    .pin(&pin)
                    .with_context(|| format!("cannot pin the link of {interface}"))?;
                (FdLink::from(pinned), Some(mode))
            }
        };
        self.links.insert(
            interface.to_owned(),
            Attached {
                index,
                link,
                fresh: made.is_some(),
            },
        );
        self.devices
            .insert(index, index, None, 0)
            .with_context(|| format!("cannot allow redirects to {interface}"))?;
        Ok(made)
    }

    /// Puts this program into a pinned link; `None` when there is none, or its
    /// interface has gone.
    fn exchange(&mut self, pin: &Path) -> anyhow::Result<Option<FdLink>> {
        if !pin.exists() {
            return Ok(None);
        }
        let link = PinnedLink::from_pin(pin)
            .with_context(|| format!("cannot open the pinned link {}", pin.display()))?;
        let link = XdpLink::try_from(FdLink::from(link))
            .with_context(|| format!("{} is not a link of an XDP program", pin.display()))?;
        let xdp = program(&mut self.ebpf)?;
        match xdp.attach_to_link(link) {
            Ok(id) => Ok(Some(FdLink::try_from(xdp.take_link(id)?)?)),
            Err(ProgramError::SyscallError(error))
                if Errno::from_io_error(&error.io_error) == Some(Errno::NOLINK) =>
            {
                fs::remove_file(pin)
                    .with_context(|| format!("cannot remove the dead link {}", pin.display()))?;
                Ok(None)
            }
            Err(error) => Err(error)
                .with_context(|| format!("cannot exchange the program of {}", pin.display())),
        }
    }

    fn new_link(
        &mut self,
        interface: &str,
        index: u32,
        mode: XdpMode,
    ) -> anyhow::Result<(FdLink, Mode)> {
        let native = match mode {
            XdpMode::Generic => None,
            XdpMode::Native | XdpMode::Auto => Some(self.try_attach(index, AyaMode::Driver)),
        };
        let refused = match native {
            Some(Ok(link)) => return Ok((link, Mode::Native)),
            Some(Err(error)) if mode == XdpMode::Native || busy(&error) => {
                return Err(explain(interface, "native", &error));
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        match self.try_attach(index, AyaMode::Skb) {
            Ok(link) => {
                if let Some(error) = refused {
                    log::warn!(
                        "{interface}: its driver refused native XDP ({error}); attached in generic mode, which is several times slower"
                    );
                }
                Ok((link, Mode::Generic))
            }
            Err(error) => Err(explain(interface, "generic", &error)),
        }
    }

    fn try_attach(&mut self, index: u32, mode: AyaMode) -> io::Result<FdLink> {
        let xdp = program(&mut self.ebpf).map_err(io::Error::other)?;
        let id = xdp
            .attach_to_if_index(index, mode)
            .map_err(|error| match error {
                ProgramError::SyscallError(error) => error.io_error,
                other => io::Error::other(other),
            })?;
        let link = xdp.take_link(id).map_err(io::Error::other)?;
        FdLink::try_from(link).map_err(io::Error::other)
    }

    fn link_pin(&self, interface: &str) -> PathBuf {
        self.pin_path.join(format!("link-{interface}"))
    }

    /// Detaches from interfaces that are attached or pinned but not in `keep`.
    pub fn detach_others(&mut self, keep: &[String]) -> anyhow::Result<Vec<String>> {
        let mut detached = Vec::new();
        for entry in fs::read_dir(&self.pin_path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(interface) = name.to_str().and_then(|name| name.strip_prefix("link-")) else {
                continue;
            };
            if keep.iter().any(|kept| kept == interface) {
                continue;
            }
            if let Some(attached) = self.links.remove(interface) {
                // Absent from the table is as good as removed.
                let _ = self.devices.remove(attached.index);
            }
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove the link of {interface}"))?;
            detached.push(interface.to_owned());
        }
        Ok(detached)
    }

    /// Takes away the links that this process made: a start that failed leaves
    /// interfaces as it found them.
    pub fn detach_fresh(&mut self) {
        for (interface, _) in self.links.iter().filter(|(_, attached)| attached.fresh) {
            let pin = self.pin_path.join(format!("link-{interface}"));
            if let Err(error) = fs::remove_file(&pin) {
                log::error!("cannot remove {}: {error}", pin.display());
            }
        }
        self.links.clear();
    }

    /// What was counted for a service.
    pub fn service_traffic(&self, service: u32) -> anyhow::Result<Traffic> {
        sum(&self.service_traffic, service)
    }

    /// What was counted for a backend.
    pub fn backend_traffic(&self, backend: u32) -> anyhow::Result<Traffic> {
        sum(&self.backend_traffic, backend)
    }

    /// Packets by verdict number.
    pub fn verdicts(&self) -> anyhow::Result<Vec<u64>> {
        (0..lb_common::verdict::VERDICT_SLOTS)
            .map(|verdict| {
                let counts = self
                    .verdicts
                    .get(&verdict, 0)
                    .context("cannot read the verdicts")?;
                Ok(counts.iter().sum())
            })
            .collect()
    }

    /// Drops by service, backend and verdict.
    pub fn drops(&self) -> anyhow::Result<Vec<(DropKey, u64)>> {
        self.drops
            .iter()
            .map(|entry| {
                let (key, counts) = entry.context("cannot read the table of drops")?;
                Ok((pod_read_unaligned(&key), counts.iter().sum()))
            })
            .collect()
    }

    /// A reader of the flow tables, for a thread of its own.
    pub fn flows(&self) -> anyhow::Result<Flows> {
        let folder = self.pin_path.join(format!("v{ABI_VERSION}"));
        let open = |name: &str| -> anyhow::Result<HashMap<MapData, [u8; 40], [u8; 64]>> {
            let data = MapData::from_pin(folder.join(name)).context("cannot open a flow table")?;
            HashMap::try_from(Map::LruHashMap(data)).context("a flow table is of another form")
        };
        Ok(Flows {
            established: open("FLOWS")?,
            unfinished: open("UNFINISHED")?,
        })
    }
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the driver.
    Native,
    /// By the kernel's network stack, after it made a socket buffer.
    Generic,
}

impl Mode {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// The flow tables, to be read while the data path writes them.
pub struct Flows {
    established: HashMap<MapData, [u8; 40], [u8; 64]>,
    unfinished: HashMap<MapData, [u8; 40], [u8; 64]>,
}

impl Flows {
    /// Every forward half; the flag says whether it is established. An entry
    /// that goes while the table is read is left out.
    pub fn forward(&self) -> impl Iterator<Item = (FlowKey, Flow, bool)> + '_ {
        let tables = [(&self.established, true), (&self.unfinished, false)];
        tables.into_iter().flat_map(|(table, established)| {
            table
                .iter()
                .filter_map(Result::ok)
                .filter_map(move |(key, flow)| {
                    let flow: Flow = pod_read_unaligned(&flow);
                    (flow.reply == 0).then(|| (pod_read_unaligned(&key), flow, established))
                })
        })
    }
}

fn program(ebpf: &mut Ebpf) -> anyhow::Result<&mut Xdp> {
    ebpf.program_mut("lb")
        .ok_or_else(|| anyhow!("the object holds no program `lb`"))?
        .try_into()
        .context("the program `lb` is not for XDP")
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

fn refuse_other_versions(pin_path: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(pin_path)? {
        let name = entry?.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix('v'));
        if let Some(version) = version.filter(|version| version.parse::<u32>().is_ok()) {
            bail!(
                "{} holds the tables of another version of lb (ABI {version}; this one has {ABI_VERSION}), whose flows cannot be adopted; start with --fresh to discard them, which ends their connections",
                pin_path.display()
            );
        }
    }
    Ok(())
}

/// Compares the pinned maps with what this program wants; gives their sizes.
fn adopt(folder: &Path, wanted: Sizes) -> anyhow::Result<(Sizes, Vec<String>)> {
    let mut entries = BTreeMap::new();
    for (name, key, value) in PINNED {
        let info = MapInfo::from_pin(folder.join(name)).with_context(|| {
            format!(
                "the tables in {} are incomplete ({name} cannot be opened); start with --fresh to discard what is left, which ends all connections",
                folder.display()
            )
        })?;
        if (info.key_size() as usize, info.value_size() as usize) != (key, value) {
            bail!(
                "the table {} has another form than this lb uses; start with --fresh to discard it and the others, which ends all connections",
                folder.join(name).display()
            );
        }
        entries.insert(name, info.max_entries());
    }
    let mut differ = Vec::new();
    let mut size = |setting: &str, wanted: u32, actual: u32| {
        if wanted != actual {
            differ.push(format!(
                "node.{setting} = {wanted}, but the tables in use hold {actual}: start with --fresh to change it, which ends all connections"
            ));
        }
        actual
    };
    let flows = entries["FLOWS"].saturating_sub(lru_reserve()) / 2;
    let actual = Sizes {
        services: size("max_services", wanted.services, entries["SEQUENCES"]),
        backends: size("max_backends", wanted.backends, entries["BACKENDS"]),
        flows: size("max_flows", wanted.flows, flows),
    };
    Ok((actual, differ))
}

/// One sentence for the person who starts the daemon; the verifier's whole
/// reasoning goes to the log.
fn refused(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            log::debug!("the verifier's log:\n{verifier_log}");
            let log = verifier_log.to_string();
            let reason = log.lines().rev().find(|line| {
                !line.is_empty()
                    && !["verification time", "stack depth", "processed"]
                        .iter()
                        .any(|start| line.starts_with(start))
            });
            anyhow!(
                "the kernel refused the XDP program ({io_error}: {}); please report this with the kernel's version and the log of RUST_LOG=debug",
                reason.unwrap_or("no reason given")
            )
        }
        other => anyhow::Error::new(other).context("the XDP program could not be loaded"),
    }
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

fn sum(traffic: &PerCpuArray<MapData, [u64; 5]>, number: u32) -> anyhow::Result<Traffic> {
    let values = traffic.get(&number, 0).context("cannot read counters")?;
    let mut total = [0u64; 5];
    for value in values.iter() {
        for (total, count) in total.iter_mut().zip(value) {
            *total += count;
        }
    }
    Ok(pod_read_unaligned(bytes_of(&total)))
}

fn busy(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::BUSY)
}

fn explain(interface: &str, mode: &str, error: &io::Error) -> anyhow::Error {
    if busy(error) {
        anyhow!(
            "{interface} already has an XDP program (another lb with its own pin folder, or another tool); detach it first: `bpftool net` shows it"
        )
    } else {
        anyhow!("cannot attach to {interface} in {mode} mode: {error}")
    }
}
