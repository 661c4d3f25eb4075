//! Going on with the connections of tables of another form: of another version of
//! the ABI, or of another size.
//!
//! New tables are made beside the old ones. What the old ones say of services and
//! backends is entered first, so that numbers mean the same in both; then the
//! connections, while the old program goes on with them. The links exchange the
//! program in one step, and what changed until then is carried over in a second
//! round: for a moment after the exchange, packets of a connection that had begun
//! since the first are dropped, and sent again. Then the old tables go.
//!
//! ```text
//! old program, old tables │ first round │ link: new program │ second round │ old tables go
//! ```
//!
//! Old tables are read by the layout that stands beside them in words
//! ([`abi::LAYOUT`]): a field that has moved is found, one that has another form is
//! a reason to refuse.
//!
//! A start that is interrupted leaves both; the one that a link's program uses is
//! the one to go on with ([`find`]).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray, PerCpuHashMap};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;
use bytemuck::{Zeroable, pod_read_unaligned};
use lb_common::abi::{
    ABI_VERSION, Backend, Connection, Endpoint, Flow, FlowKey, LAYOUT, Party, backend, role,
};
use lb_common::flow::{ESTABLISHED, ended};
use lb_ebpf::connections;

use super::connections::Table;
use super::{Dataplane, linked};
use crate::host;
use crate::reconcile::{self, Tables};

/// The pin that says in words where the fields of entries stand.
const LAYOUT_PIN: &str = "LAYOUT";

/// The words, at most.
const WORDS: usize = 4096;

/// The ending of a folder that is to take another's place; the BPF file system
/// has no dots in names.
const NEXT: &str = "-next";

/// Tables that were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where they are pinned.
    pub(super) folder: PathBuf,
    /// The version of their ABI.
    pub(super) version: u32,
}

/// Finds the tables in use. Others, which an interrupted start has left, go.
pub(super) fn find(pin_path: &Path) -> anyhow::Result<Option<Found>> {
    let mut found = all(pin_path)?;
    if found.len() > 1 {
        let used = used_by_links(pin_path)
            .context("cannot tell which of the tables that were found are in use")?;
        let keep = found
            .iter()
            .position(|tables| holds_any(&tables.folder, &used))
            .or_else(|| found.iter().position(|tables| !is_next(&tables.folder)))
            .unwrap_or(0);
        let kept = found.swap_remove(keep);
        for left in found {
            log::info!(
                "removing {}, which an interrupted start has left",
                left.folder.display()
            );
            fs::remove_dir_all(&left.folder)
                .with_context(|| format!("cannot remove {}", left.folder.display()))?;
        }
        found = vec![kept];
    }
    Ok(found.pop())
}

/// The ABI of each set of tables that is pinned, in no order.
pub fn pinned_abis(pin_path: &Path) -> anyhow::Result<Vec<u32>> {
    let found = all(pin_path)?.into_iter();
    Ok(found.map(|found| found.version).collect())
}

fn all(pin_path: &Path) -> anyhow::Result<Vec<Found>> {
    let entries = match fs::read_dir(pin_path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot read the pin folder"),
    };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry.context("cannot read the pin folder")?.path();
        let name = folder.file_name().and_then(|name| name.to_str());
        let version = name
            .and_then(|name| name.strip_prefix('v'))
            .map(|name| name.strip_suffix(NEXT).unwrap_or(name))
            .and_then(|version| version.parse().ok());
        if let Some(version) = version {
            found.push(Found { folder, version });
        }
    }
    Ok(found)
}

fn is_next(folder: &Path) -> bool {
    folder.to_str().is_some_and(|name| name.ends_with(NEXT))
}

/// The ids of all maps that the programs of pinned links use.
fn used_by_links(pin_path: &Path) -> anyhow::Result<Vec<u32>> {
    let mut programs = Vec::new();
    for device in linked(pin_path)? {
        let pin = pin_path.join(format!("link-{device}"));
        if let Ok(link) = PinnedLink::from_pin(&pin) {
            programs.push(FdLink::from(link).info()?.program_id());
        }
    }
    let mut maps = Vec::new();
    // Others than those of the links come and go while they are listed; one that
    // has just gone cannot be opened.
    for program in loaded_programs().filter_map(Result::ok) {
        if programs.contains(&program.id()) {
            maps.extend(program.map_ids()?.unwrap_or_default());
            programs.retain(|id| *id != program.id());
        }
    }
    ensure!(
        programs.is_empty(),
        "the programs {programs:?} of links in {} are not among those that the kernel lists",
        pin_path.display()
    );
    Ok(maps)
}

fn holds_any(folder: &Path, maps: &[u32]) -> bool {
    MapInfo::from_pin(folder.join("CONNECTIONS")).is_ok_and(|info| maps.contains(&info.id()))
}

/// Keeps the words about this version's entries beside its tables.
pub(super) fn write_layout(folder: &Path) -> anyhow::Result<()> {
    let mut words = [0; WORDS];
    let mut text = String::new();
    for field in LAYOUT {
        text += &format!("{} {} {}\n", field.name, field.offset, field.size);
    }
    words
        .get_mut(..text.len())
        .context("the layout of tables is too long to be kept")?
        .copy_from_slice(text.as_bytes());
    let mut map = Array::<_, [u8; WORDS]>::create(1, 0).context("cannot make a table of words")?;
    map.set(0, words, 0).context("cannot write the layout")?;
    map.pin(folder.join(LAYOUT_PIN))
        .context("cannot pin the layout")
}

/// Where fields of entries stand: offset and size by name.
#[derive(Debug, PartialEq, Eq)]
struct Layout(BTreeMap<String, (usize, usize)>);

impl Layout {
    fn read(found: &Found) -> anyhow::Result<Self> {
        let pin = found.folder.join(LAYOUT_PIN);
        let map = MapData::from_pin(&pin).map_err(|_| other_version(found))?;
        let map: Array<_, [u8; WORDS]> = Array::try_from(Map::Array(map))?;
        let words = map.get(&0, 0).context("cannot read the layout of tables")?;
        Self::parse(&words)
    }

    fn parse(words: &[u8]) -> anyhow::Result<Self> {
        let end = words.iter().position(|byte| *byte == 0);
        let text = std::str::from_utf8(&words[..end.unwrap_or(words.len())])
            .context("the layout of tables is no text")?;
        let mut fields = BTreeMap::new();
        for line in text.lines() {
            let mut parts = line.split(' ');
            let (Some(name), Some(offset), Some(size), None) =
                (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                bail!("the layout of tables has a line that makes no sense: {line:?}");
            };
            fields.insert(name.to_owned(), (offset.parse()?, size.parse()?));
        }
        Ok(Self(fields))
    }

    /// An entry of this version, from the bytes of one of that.
    fn translate<const N: usize>(&self, entry: &str, bytes: &[u8]) -> anyhow::Result<[u8; N]> {
        let mut here = [0; N];
        for field in LAYOUT {
            let of = field.name.split('.').next();
            if of != Some(entry) {
                continue;
            }
            let there = self.0.get(field.name).copied();
            let there = there.filter(|(_, size)| *size == field.size);
            let from = there.and_then(|(offset, size)| bytes.get(offset..offset + size));
            let to = here.get_mut(field.offset..field.offset + field.size);
            let (Some(from), Some(to)) = (from, to) else {
                bail!(
                    "the tables in use were made by a version of lb that keeps {} in another form, so their connections cannot be carried over; start with --fresh to discard them, which ends their connections",
                    field.name
                );
            };
            to.copy_from_slice(from);
        }
        Ok(here)
    }
}

/// What is said of tables that nobody here can read.
fn other_version(found: &Found) -> anyhow::Error {
    anyhow!(
        "{} holds the tables of another version of lb (ABI {}; this one has {ABI_VERSION}), whose flows cannot be adopted; start with --fresh to discard them, which ends their connections",
        found.folder.parent().unwrap_or(&found.folder).display(),
        found.version
    )
}

/// An array of the kernel whose entries have another version's size, as memory.
struct Foreign {
    bytes: super::connections::Bytes,
    entry: usize,
}

impl Foreign {
    fn open(pin: &Path) -> anyhow::Result<Self> {
        let opened = || format!("cannot open the table {}", pin.display());
        let map = MapData::from_pin(pin).with_context(opened)?;
        let info = map.info().with_context(opened)?;
        // Entries of an array stand at multiples of 8 bytes.
        let entry = (info.value_size() as usize).next_multiple_of(8);
        let bytes = super::connections::Bytes::map(&map, entry * info.max_entries() as usize)
            .with_context(opened)?;
        Ok(Self { bytes, entry })
    }

    fn count(&self) -> usize {
        self.bytes.length() / self.entry
    }

    fn read(&self, place: usize) -> Vec<u8> {
        self.bytes.copy(place * self.entry, self.entry)
    }
}

/// What a round has carried over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Connections that were entered.
    pub entered: u64,
    /// Connections whose state had changed since the first round.
    pub changed: u64,
    /// Connections that found no room, or whose port another had by then.
    pub lost: u64,
}

/// Where a connection of the old tables stands in the new ones.
#[derive(Clone, Copy, Default)]
struct Carried {
    old_version: u32,
    place: u32,
    version: u32,
    state: u32,
}

/// Old tables, while new ones take their place.
pub struct Handover {
    found: Found,
    layout: Layout,
    connections: Foreign,
    table: Arc<Table>,
    carried: Vec<Carried>,
    /// Where the new tables are pinned.
    folder: PathBuf,
    pin_path: PathBuf,
    finished: bool,
}

impl Handover {
    /// Enters what the old tables know into new ones, and the connections for the
    /// first time.
    pub(super) fn begin(
        found: Found,
        dataplane: &mut Dataplane,
        folder: PathBuf,
    ) -> anyhow::Result<Self> {
        let layout = Layout::read(&found)?;
        let connections = Foreign::open(&found.folder.join("CONNECTIONS"))?;
        let handover = Self {
            carried: vec![Carried::default(); connections.count()],
            layout,
            connections,
            table: dataplane.table(),
            folder,
            pin_path: dataplane.pin_path.clone(),
            found,
            finished: false,
        };
        handover.fits(dataplane)?;
        let tables = handover.tables(dataplane)?;
        let changes = reconcile::diff(&Tables::default(), &tables);
        reconcile::steps(&changes).try_for_each(|step| dataplane.apply_step(step))?;
        handover.counters(dataplane, &tables)?;
        dataplane.lease.take_over(&handover.found.folder)?;
        Ok(handover)
    }

    /// Whether there is room for the connections that live.
    fn fits(&self, dataplane: &Dataplane) -> anyhow::Result<()> {
        let mut live = 0u64;
        for place in 0..self.connections.count() {
            if let Some((_, flow)) = self.read(place)?
                && flow.life.state & ESTABLISHED != 0
                && !ended(flow.life.state)
            {
                live += 1;
            }
        }
        let room = u64::from(dataplane.sizes().flows);
        ensure!(
            live <= room,
            "node.max_flows = {room} has no room for the {live} connections that live; raise it, or start with --fresh, which ends them"
        );
        Ok(())
    }

    /// Services and backends as the old tables number them.
    fn tables(&self, dataplane: &Dataplane) -> anyhow::Result<Tables> {
        let sizes = dataplane.sizes();
        let mut tables = Tables::default();
        let backends = Foreign::open(&self.found.folder.join("BACKENDS"))?;
        for (number, place) in (0..).zip(0..backends.count()) {
            let bytes = backends.read(place);
            let bytes = self
                .layout
                .translate::<{ size_of::<Backend>() }>("Backend", &bytes)?;
            let known: Backend = pod_read_unaligned(&bytes);
            if known.flags & backend::USED == 0 {
                continue;
            }
            ensure!(
                number < sizes.backends && known.service < sizes.services,
                "node.max_backends and node.max_services have no room for backend number {number} of service number {}, which are in use; raise them, or start with --fresh, which ends all connections",
                known.service
            );
            tables.backends.insert(number, known);
        }
        if let Some(parties) = self.parties() {
            tables.parties = parties;
            return Ok(tables);
        }
        for place in 0..self.connections.count() {
            if let Some((key, flow)) = self.read(place)? {
                let endpoint = Endpoint {
                    address: key.dst,
                    port: key.dst_port,
                    protocol: key.protocol as u16,
                    zero: 0,
                };
                tables.parties.insert(
                    endpoint,
                    Party {
                        service: u32::from(flow.service),
                        forward: flow.forward(),
                        roles: role::SERVICE,
                        max_mss: 0,
                    },
                );
            }
        }
        Ok(tables)
    }

    /// The old table of endpoints, if it has the same form.
    fn parties(&self) -> Option<BTreeMap<Endpoint, Party>> {
        const KEY: usize = size_of::<Endpoint>();
        const VALUE: usize = size_of::<Party>();
        if self.found.version != ABI_VERSION {
            return None;
        }
        let map = MapData::from_pin(self.found.folder.join("ENDPOINTS")).ok()?;
        let map: HashMap<_, [u8; KEY], [u8; VALUE]> = HashMap::try_from(Map::HashMap(map)).ok()?;
        map.iter()
            .map(|entry| {
                let (endpoint, party) = entry.ok()?;
                Some((pod_read_unaligned(&endpoint), pod_read_unaligned(&party)))
            })
            .collect()
    }

    /// Lets counters go on where their tables have the same form.
    fn counters(&self, dataplane: &mut Dataplane, tables: &Tables) -> anyhow::Result<()> {
        if self.found.version != ABI_VERSION {
            return Ok(());
        }
        let open = |name: &str| {
            MapData::from_pin(self.found.folder.join(name))
                .with_context(|| format!("cannot open the table {name}"))
        };
        let verdicts = Map::PerCpuArray(open("VERDICTS")?);
        let verdicts: PerCpuArray<_, u64> = verdicts.try_into()?;
        for number in 0..verdicts.len() {
            let counts = verdicts.get(&number, 0)?;
            dataplane.verdicts.set(number, counts, 0)?;
        }
        let services = tables.parties.values().map(|party| party.service);
        let old = Map::PerCpuArray(open("SERVICE_TRAFFIC")?);
        let old: PerCpuArray<_, [u64; 5]> = old.try_into()?;
        for number in services.filter(|number| *number < old.len()) {
            let counts = old.get(&number, 0)?;
            if number < dataplane.sizes.services {
                dataplane.service_traffic.set(number, counts, 0)?;
            }
        }
        let old = Map::PerCpuArray(open("BACKEND_TRAFFIC")?);
        let old: PerCpuArray<_, [u64; 5]> = old.try_into()?;
        for &number in tables.backends.keys() {
            dataplane
                .backend_traffic
                .set(number, old.get(&number, 0)?, 0)?;
        }
        let old = Map::PerCpuHashMap(open("DROPS")?);
        let old: PerCpuHashMap<_, [u8; 16], u64> = old.try_into()?;
        for entry in old.iter() {
            let (key, counts) = entry?;
            dataplane.drops.insert(key, counts, 0)?;
        }
        Ok(())
    }

    /// A connection of the old tables.
    fn read(&self, place: usize) -> anyhow::Result<Option<(FlowKey, Flow)>> {
        let bytes = self.connections.read(place);
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let bytes = self
            .layout
            .translate::<{ size_of::<Connection>() }>("Connection", &bytes)?;
        // What was written while the bytes were copied is read again in the next
        // round, or came after the exchange of programs and is nobody's.
        Ok(super::connections::decode(&bytes))
    }

    /// Carries over every connection that is new, or stands otherwise, since the
    /// last round.
    pub fn carry(&mut self) -> anyhow::Result<Round> {
        let hertz = host::ticks_per_second();
        let stamp = host::ticks_now(hertz) >> host::stamp_shift(hertz);
        let mut round = Round::default();
        for place in 0..self.connections.count() {
            let Some((key, flow)) = self.read(place)? else {
                continue;
            };
            let carried = self.carried[place];
            if carried.old_version == flow.life.version {
                if carried.state != flow.life.state {
                    self.change(&carried, &flow, stamp);
                    self.carried[place].state = flow.life.state;
                    round.changed += 1;
                }
                continue;
            }
            let mut known = Flow::zeroed();
            if connections::of_client(&*self.table, &key, &mut known) {
                // Begun anew in the new tables.
                continue;
            }
            match self.table.enter(&key, &flow, stamp) {
                Some((to, version)) => {
                    self.carried[place] = Carried {
                        old_version: flow.life.version,
                        place: to,
                        version,
                        state: flow.life.state,
                    };
                    round.entered += 1;
                }
                None => round.lost += 1,
            }
        }
        Ok(round)
    }

    fn change(&self, carried: &Carried, flow: &Flow, stamp: u32) {
        let mut there = *flow;
        there.place = carried.place;
        there.life.version = carried.version;
        if let Some(entry) = lb_ebpf::Memory::connection(&*self.table, carried.place) {
            let (_, version) = connections::stands(entry);
            if version == carried.version {
                connections::expect(&*self.table, carried.place, flow.life.proof);
            }
        }
        let on = flow.life.state & !carried.state;
        connections::advance(&*self.table, &there, 0, on, stamp);
    }

    /// Ends it: the old tables go, and the new ones have their place.
    pub fn finish(mut self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.found.folder)
            .with_context(|| format!("cannot remove {}", self.found.folder.display()))?;
        if is_next(&self.folder) {
            let place = self.pin_path.join(format!("v{ABI_VERSION}"));
            fs::rename(&self.folder, &place)
                .with_context(|| format!("cannot rename {}", self.folder.display()))?;
        }
        self.finished = true;
        Ok(())
    }

    /// What the old tables were.
    pub fn from(&self) -> String {
        if self.found.version == ABI_VERSION {
            "tables of another size".to_owned()
        } else {
            format!("tables of ABI {}", self.found.version)
        }
    }
}

impl Drop for Handover {
    /// A start that has failed leaves the old tables, unless packets go by the
    /// new ones already.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Where that cannot be told, the next start will tell.
        let used = match used_by_links(&self.pin_path) {
            Ok(used) => used,
            Err(error) => {
                log::error!("leaving {}: {error:#}", self.folder.display());
                return;
            }
        };
        if !holds_any(&self.folder, &used)
            && let Err(error) = fs::remove_dir_all(&self.folder)
        {
            log::error!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// Where new tables are pinned beside those that were found.
pub(super) fn folder_beside(pin_path: &Path, found: Option<&Found>) -> PathBuf {
    let place = pin_path.join(format!("v{ABI_VERSION}"));
    match found {
        Some(found) if found.version == ABI_VERSION => {
            let name = format!("v{ABI_VERSION}{NEXT}");
            if found.folder == place {
                pin_path.join(name)
            } else {
                place
            }
        }
        _ => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> String {
        LAYOUT
            .iter()
            .map(|field| format!("{} {} {}\n", field.name, field.offset, field.size))
            .collect()
    }

    #[test]
    fn a_layout_is_read_as_it_was_written() -> anyhow::Result<()> {
        let layout = Layout::parse(words().as_bytes())?;
        assert_eq!(layout.0.len(), LAYOUT.len());
        let field = LAYOUT[0];
        assert_eq!(layout.0[field.name], (field.offset, field.size));
        Ok(())
    }

    #[test]
    fn fields_that_have_moved_are_found() -> anyhow::Result<()> {
        let moved: String = LAYOUT
            .iter()
            .map(|field| format!("{} {} {}\n", field.name, field.offset + 16, field.size))
            .collect();
        let layout = Layout::parse(moved.as_bytes())?;
        let mut there = vec![0xff; 16];
        there.extend((0..24).map(|byte| byte as u8));
        let here: [u8; 24] = layout.translate("Backend", &there)?;
        assert_eq!(here[..], there[16..]);
        Ok(())
    }

    #[test]
    fn a_field_of_another_form_is_a_reason_to_refuse() -> anyhow::Result<()> {
        let other = words().replace("Backend.service 20 4", "Backend.service 20 2");
        let layout = Layout::parse(other.as_bytes())?;
        let refused = layout.translate::<24>("Backend", &[0; 24]).unwrap_err();
        let said = refused.to_string();
        assert!(
            said.contains("keeps Backend.service in another form"),
            "{said}"
        );
        assert!(said.contains("--fresh"), "{said}");
        Ok(())
    }

    #[test]
    fn a_line_that_makes_no_sense_is_refused() {
        for words in ["Backend.port 16", "Backend.port 16 2 3", "Backend.port x 2"] {
            assert!(Layout::parse(words.as_bytes()).is_err(), "{words}");
        }
    }
}
