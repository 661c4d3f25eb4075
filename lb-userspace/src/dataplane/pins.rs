//! The folder in which maps and links are pinned.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use lb_common::abi::{Settings, shared, tag};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{PINNED, Sizes};

/// Whether there is anything in the pin folder.
pub fn occupied(pin_path: &Path) -> bool {
    fs::read_dir(pin_path).is_ok_and(|mut entries| entries.next().is_some())
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

/// Looks at the pinned maps of this version; gives their sizes, and makes the
/// settings those that the tables were made with.
pub(super) fn adopt(folder: &Path, settings: &mut Settings) -> anyhow::Result<Sizes> {
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
    settings.tag_buckets = entries["CONNECTIONS"] / tag::WORDS;
    settings.answer_buckets = entries["ANSWERS"];
    let [seed, flows] = shared_words(folder, [shared::SEED, shared::FLOWS])?;
    settings.seed = seed;
    Ok(Sizes {
        services: entries["SEQUENCES"],
        backends: entries["BACKENDS"],
        flows,
    })
}

/// These words of the table `SHARED`.
fn shared_words<const N: usize>(folder: &Path, places: [u32; N]) -> anyhow::Result<[u32; N]> {
    let map = MapData::from_pin(folder.join("SHARED")).context("cannot open the table SHARED")?;
    let words: Array<_, u32> = Array::try_from(Map::Array(map))?;
    let mut read = [0; N];
    for (word, place) in read.iter_mut().zip(places) {
        *word = (words.get(&place, 0)).context("cannot read the table SHARED")?;
    }
    Ok(read)
}
