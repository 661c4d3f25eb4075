//! The services' sequences: a map of maps, one for each service, exchanged whole.
//!
//! The data path sees the old sequence or the new one, at once. But the kernel's
//! update of a map of maps returns only when no program can hold the old one any
//! more, and that takes it a grace period of RCU: some ten milliseconds, during
//! which nothing is done. Those who wait at the same time wait for the same
//! period. So many sequences are exchanged by many threads: a thousand services
//! take as long as a few.

use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use anyhow::{Context as _, anyhow, bail};
use aya::Ebpf;
use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError};
use lb_common::abi::sequence;

use crate::reconcile::Change;

/// `BPF_F_INNER_MAP`: arrays of any length may stand in the map of maps.
const INNER_MAP: u32 = 1 << 12;

/// The most threads that wait for the kernel at the same time.
const WAITING: usize = 128;

type Outer = ArrayOfMaps<MapData, Array<MapData, u64>>;

/// See the module.
pub(super) struct Sequences {
    outer: Outer,
    /// The same map, for the threads.
    handle: OwnedFd,
}

impl Sequences {
    /// The map of a program.
    pub(super) fn of(ebpf: &mut Ebpf) -> anyhow::Result<Self> {
        let map = ebpf.take_map("SEQUENCES");
        let Some(Map::ArrayOfMaps(data)) = map else {
            bail!("the program has no map of maps SEQUENCES");
        };
        let handle = data.fd().as_fd().try_clone_to_owned();
        Ok(Self {
            handle: handle.context("cannot open the table of sequences twice")?,
            outer: ArrayOfMaps::try_from(Map::ArrayOfMaps(data))?,
        })
    }
    /// A service's sequence; `None` where none was ever written.
    pub(super) fn get(&self, service: u32) -> anyhow::Result<Option<Vec<u64>>> {
        let words = match self.outer.get(&service, 0) {
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
                words
                    .get(&(sequence::FIRST + slot), 0)
                    .context("cannot read a slot")
            })
            .collect::<anyhow::Result<Vec<u64>>>()
            .map(Some)
    }

    /// Makes those of the changes that are of sequences.
    pub(super) fn exchange(&mut self, changes: &[Change]) -> anyhow::Result<()> {
        let wanted: Vec<(u32, &[u64])> = changes.iter().filter_map(wanted).collect();
        if let [(service, slots)] = wanted[..] {
            return put(&mut self.outer, service, slots);
        }
        let each = wanted.len().div_ceil(WAITING).max(1);
        thread::scope(|scope| {
            let waiting: Vec<_> = wanted
                .chunks(each)
                .map(|part| {
                    let mut outer = self.another()?;
                    Ok(scope.spawn(move || -> anyhow::Result<()> {
                        part.iter()
                            .try_for_each(|(service, slots)| put(&mut outer, *service, slots))
                    }))
                })
                .collect::<anyhow::Result<_>>()?;
            waiting.into_iter().try_for_each(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a thread that exchanged sequences panicked"))?
            })
        })
    }

    fn another(&self) -> anyhow::Result<Outer> {
        let opened = || -> anyhow::Result<Outer> {
            let data = MapData::from_fd(self.handle.try_clone()?)?;
            Ok(ArrayOfMaps::try_from(Map::ArrayOfMaps(data))?)
        };
        opened().context("cannot open the table of sequences once more")
    }
}

/// What a change wants of a sequence: its service's number and the slots.
fn wanted(change: &Change) -> Option<(u32, &[u64])> {
    match change {
        Change::SetSequence { service, slots } => Some((*service, slots)),
        // There is no way to take a map out of an array of maps through aya;
        // a sequence without slots is the same to the data path.
        Change::RemoveSequence { service } => Some((*service, &[])),
        Change::SetBackend { .. }
        | Change::RemoveBackend { .. }
        | Change::SetPolicy { .. }
        | Change::SetParty { .. }
        | Change::RemoveParty { .. } => None,
    }
}

/// Fills a new map and then puts it in the old one's place.
fn put(outer: &mut Outer, service: u32, slots: &[u64]) -> anyhow::Result<()> {
    let length = u32::try_from(slots.len()).context("a sequence is too long")?;
    let mut words = Array::<_, u64>::create(sequence::FIRST + length.max(1), INNER_MAP)
        .context("cannot make a map for a sequence")?;
    words
        .set(sequence::LENGTH, u64::from(length), 0)
        .context("cannot write a sequence")?;
    for (place, &slot) in (sequence::FIRST..).zip(slots) {
        words
            .set(place, slot, 0)
            .context("cannot write a sequence")?;
    }
    outer
        .set(service, &words, 0)
        .context("cannot exchange a sequence")
}
