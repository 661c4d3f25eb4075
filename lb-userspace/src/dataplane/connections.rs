//! The table of connections, mapped into this process.
//!
//! The arrays in which the data path keeps connections are ordinary memory to
//! both sides: no system call is needed to read them, or to take a connection
//! away. What may be done how is the data path's own code
//! ([`lb_ebpf::connections`]); this is only the memory it works on.

use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, ensure};
use aya::maps::MapData;
use lb_common::Word;
use lb_common::abi::{AnswerBucket, Connection, Flow, FlowKey, changed, tag};
use lb_common::flow::{ESTABLISHED, twin_key};
use lb_ebpf::connections::{self, Claimed, Hash, Search};
use lb_ebpf::{Memory, Shape};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// The tables that are mapped.
pub const MAPPED: [&str; 4] = ["CONNECTIONS", "ANSWERS", "LIVE", "CHANGED"];

/// The bytes of an entry of the table `CHANGED`, eight at a time.
const CHANGED_WORDS: usize = changed::BYTES as usize / 8;

/// An array map of the kernel as memory.
pub(super) struct Region<T> {
    first: NonNull<T>,
    length: u32,
}

// SAFETY: the memory is shared with the kernel in any case; all of it consists of
// words that are accessed whole.
unsafe impl<T> Send for Region<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Region<T> {}

impl<T> Region<T> {
    pub(super) fn map(map: &MapData) -> anyhow::Result<Self> {
        let info = map.info().context("cannot ask the kernel about a table")?;
        ensure!(
            info.value_size() as usize == size_of::<T>(),
            "a table has entries of {} bytes, not of {}",
            info.value_size(),
            size_of::<T>()
        );
        Self::map_entries(map, info.max_entries())
    }

    pub(super) fn map_entries(map: &MapData, length: u32) -> anyhow::Result<Self> {
        let bytes = size_of::<T>() * length as usize;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let memory = unsafe { mmap(null_mut(), bytes, protection, MapFlags::SHARED, map.fd(), 0) }
            .context("cannot map a table into memory")?;
        let first = NonNull::new(memory.cast()).context("a table was mapped to nowhere")?;
        Ok(Self { first, length })
    }

    /// Memory of this process alone, all zeros.
    fn own(length: u32) -> anyhow::Result<Self> {
        let bytes = size_of::<T>() * length as usize;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let memory = unsafe { mmap_anonymous(null_mut(), bytes, protection, MapFlags::PRIVATE) }
            .context("there is no memory for a table")?;
        let first = NonNull::new(memory.cast()).context("a table was mapped to nowhere")?;
        Ok(Self { first, length })
    }

    pub(super) fn at(&self, place: u32) -> Option<&T> {
        if place >= self.length {
            return None;
        }
        // SAFETY: within the mapping, whose length in entries was just compared.
        let entry = unsafe { self.first.add(place as usize) };
        // SAFETY: the mapping lives as long as `self`; a page's beginning and the
        // sizes of the entries align them; entries consist of words that may be
        // written by others.
        Some(unsafe { entry.as_ref() })
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        let bytes = size_of::<T>() * self.length as usize;
        // SAFETY: the mapping is this one's own, and nobody borrows from it any more.
        // That it cannot be taken away again hurts nobody.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), bytes) };
    }
}

/// An array map of the kernel as bytes, to be read only: its entries are another
/// version's.
pub(super) struct Bytes {
    region: Region<Word<u64>>,
}

impl Bytes {
    /// Maps so many bytes of it, a multiple of 8.
    pub(super) fn map(map: &MapData, bytes: usize) -> anyhow::Result<Self> {
        let words = u32::try_from(bytes / 8).context("a table is too large to be mapped")?;
        Ok(Self {
            region: Region::map_entries(map, words)?,
        })
    }

    pub(super) fn length(&self) -> usize {
        self.region.length as usize * 8
    }

    /// A copy of these bytes, whose first and whose number are multiples of 8.
    pub(super) fn copy(&self, from: usize, bytes: usize) -> Vec<u8> {
        let words = from / 8..(from + bytes) / 8;
        words
            .filter_map(|word| self.region.at(u32::try_from(word).ok()?))
            .flat_map(|word| word.load().to_ne_bytes())
            .collect()
    }
}

/// The connection that these bytes of an entry are.
pub(super) fn decode(bytes: &[u8; size_of::<Connection>()]) -> Option<(FlowKey, Flow)> {
    // SAFETY: an entry consists of words of which every value is one, without
    // padding between them, and the bytes are as many.
    let entry: Connection = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    connections::of_entry(&entry)
}

/// The table of connections.
pub struct Table {
    shape: Shape,
    connections: Region<Connection>,
    answers: Region<AnswerBucket>,
    live: Region<Word<u64>>,
    changed: Region<[Word<u64>; CHANGED_WORDS]>,
}

impl Table {
    /// Maps the tables, which are lent by name; the seed is that of the data path.
    pub fn new<'a>(
        seed: u32,
        table: impl Fn(&str) -> anyhow::Result<&'a MapData>,
    ) -> anyhow::Result<Self> {
        let [connections, answers, live, changed] = MAPPED;
        let connections: Region<Connection> = Region::map(table(connections)?)?;
        let answers: Region<AnswerBucket> = Region::map(table(answers)?)?;
        ensure!(
            connections.length.is_multiple_of(tag::WORDS),
            "the table of connections does not consist of whole buckets"
        );
        Ok(Self {
            shape: Shape {
                tag_buckets: connections.length / tag::WORDS,
                answer_buckets: answers.length,
                seed,
            },
            connections,
            answers,
            live: Region::map(table(live)?)?,
            changed: Region::map(table(changed)?)?,
        })
    }

    /// A table that no data path works on, of so many buckets and with room to count
    /// for so many backends: for tests, and to measure with.
    pub fn own(shape: Shape, backends: u32) -> anyhow::Result<Self> {
        Ok(Self {
            shape,
            connections: Region::own(shape.tag_buckets * tag::WORDS)?,
            answers: Region::own(shape.answer_buckets)?,
            live: Region::own(backends)?,
            changed: Region::own(changed::entries(shape.tag_buckets))?,
        })
    }

    /// The same for tables that are pinned in a folder.
    pub fn pinned(seed: u32, folder: &Path) -> anyhow::Result<Self> {
        let open = |name: &str| {
            MapData::from_pin(folder.join(name))
                .with_context(|| format!("cannot open the table {name}"))
        };
        let mut opened = Vec::new();
        for name in MAPPED {
            opened.push((name, open(name)?));
        }
        Self::new(seed, |name| {
            let found = opened.iter().find(|(opened, _)| *opened == name);
            found
                .map(|(_, map)| map)
                .with_context(|| format!("there is no table {name}"))
        })
    }

    /// How many connections of a backend live.
    pub fn live(&self, backend: u32) -> u64 {
        // A connection that is counted on one CPU may have ended on another
        // before: for a moment the sum may be less than nothing.
        let count = self.live.at(backend).map_or(0, Word::load);
        u64::try_from(count.cast_signed()).unwrap_or(0)
    }

    /// Enters a connection, as it was elsewhere; gives where it stands now, and
    /// its version. `None` if there is no room, or another has its answers.
    pub fn enter(&self, key: &FlowKey, flow: &Flow, stamp: u32) -> Option<(u32, u32)> {
        enter(self, key, flow, stamp)
    }
}

/// [`Table::enter`] for any memory.
pub fn enter(memory: &impl Memory, key: &FlowKey, flow: &Flow, stamp: u32) -> Option<(u32, u32)> {
    let mut search = Search::default();
    let hash = Hash::of(key, memory.shape().seed);
    if !connections::take(memory, hash, stamp, &mut search) {
        return None;
    }
    let place = search.seat.place;
    connections::write(memory, &search.seat, key, flow);
    let answers = twin_key(key, flow);
    let claimed = || connections::claim(memory, &answers, place, flow) == Claimed::Yes;
    if !flow.one_way() && !claimed() {
        connections::abandon(memory, place);
        return None;
    }
    connections::publish(memory, place, stamp, flow.life.state);
    let (_, version) = connections::stands(memory.connection(place)?);
    Some((place, version))
}

impl Table {
    /// Gives each bucket in which something has changed since it was last asked, at
    /// most so many buckets and those of a word more; whether that was all. Each is
    /// taken note of before it is given: what changes in it later is told of again.
    pub fn take_changed(&self, most: usize, mut each: impl FnMut(u32)) -> bool {
        let mut given = 0;
        let entries = (0..self.changed.length).filter_map(|entry| self.changed.at(entry));
        for (eighth, word) in (0..).step_by(8).zip(entries.flatten()) {
            if word.load() == 0 {
                continue;
            }
            if given >= most {
                return false;
            }
            for (bucket, byte) in (eighth..).zip(self.swap_wide(word, 0).to_ne_bytes()) {
                if byte != 0 {
                    each(bucket);
                    given += 1;
                }
            }
        }
        true
    }

    /// Adds every bucket to these in which something has changed: see
    /// [`Self::take_changed`].
    pub fn add_changed(&self, buckets: &mut Vec<u32>) {
        self.take_changed(usize::MAX, |bucket| buckets.push(bucket));
    }

    /// Every connection, and whether it is established.
    pub fn all(&self) -> impl Iterator<Item = (FlowKey, Flow, bool)> + '_ {
        (0..connections::places(self))
            .filter_map(|place| connections::at(self, place))
            .map(|(key, flow)| (key, flow, flow.life.state & ESTABLISHED != 0))
    }
}

impl Memory for Table {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn connection(&self, place: u32) -> Option<&Connection> {
        self.connections.at(place)
    }

    fn answers(&self, bucket: u32) -> Option<&AnswerBucket> {
        self.answers.at(bucket)
    }

    fn exchange(&self, word: &Word<u32>, old: u32, new: u32) -> bool {
        // SAFETY: an aligned word that is borrowed, and only ever accessed whole.
        let word = unsafe { AtomicU32::from_ptr(word.as_ptr()) };
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    fn exchange_wide(&self, word: &Word<u64>, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        let word = unsafe { AtomicU64::from_ptr(word.as_ptr()) };
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    fn add(&self, word: &Word<u32>, by: i32) {
        // SAFETY: as above.
        let word = unsafe { AtomicU32::from_ptr(word.as_ptr()) };
        word.fetch_add(by.cast_unsigned(), Ordering::SeqCst);
    }

    fn add_wide(&self, word: &Word<u64>, by: i64) {
        // SAFETY: as above.
        let word = unsafe { AtomicU64::from_ptr(word.as_ptr()) };
        word.fetch_add(by.cast_unsigned(), Ordering::SeqCst);
    }

    fn swap_wide(&self, word: &Word<u64>, new: u64) -> u64 {
        // SAFETY: as above.
        let word = unsafe { AtomicU64::from_ptr(word.as_ptr()) };
        word.swap(new, Ordering::SeqCst)
    }

    fn count_live(&self, backend: u32, by: i32) {
        let Some(count) = self.live.at(backend) else {
            return;
        };
        // SAFETY: as above.
        let count = unsafe { AtomicU64::from_ptr(count.as_ptr()) };
        count.fetch_add(i64::from(by).cast_unsigned(), Ordering::AcqRel);
    }

    fn note_change(&self, bucket: u32) {
        let entry = self.changed.at(bucket / changed::BYTES);
        let byte = bucket % changed::BYTES;
        let word = entry.and_then(|entry| entry.get((byte / 8) as usize));
        if let Some(word) = word {
            // SAFETY: an aligned word that is borrowed.
            let word = unsafe { AtomicU64::from_ptr(word.as_ptr()) };
            let mut bytes = [0; 8];
            bytes[(byte % 8) as usize] = 1;
            word.fetch_or(u64::from_ne_bytes(bytes), Ordering::AcqRel);
        }
    }
}
