//! The folder in which maps and links are pinned.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use lb_common::abi::{ABI_VERSION, Settings, shared};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{PINNED, Sizes};

/// Whether there are tables of this version to adopt.
pub fn adoptable(pin_path: &Path) -> bool {
    pin_path
        .join(format!("v{ABI_VERSION}"))
        .join("CONNECTIONS")
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

pub(super) fn refuse_other_versions(pin_path: &Path) -> anyhow::Result<()> {
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

/// Compares the pinned maps with what this program wants; gives their sizes, and
/// makes the settings those that the tables were made with.
pub(super) fn adopt(
    folder: &Path,
    wanted: Sizes,
    settings: &mut Settings,
) -> anyhow::Result<(Sizes, Vec<String>)> {
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
    settings.tag_buckets = entries["TAGS"];
    settings.answer_buckets = entries["ANSWERS"];
    let [seed, flows] = shared_words(folder, [shared::SEED, shared::FLOWS])?;
    settings.seed = seed;
    let actual = Sizes {
        services: size("max_services", wanted.services, entries["SEQUENCES"]),
        backends: size("max_backends", wanted.backends, entries["BACKENDS"]),
        flows: size("max_flows", wanted.flows, flows),
    };
    Ok((actual, differ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_another_version_are_refused_with_what_to_do() {
        let pins = tempfile::tempdir().unwrap();
        assert!(refuse_other_versions(pins.path()).is_ok());
        fs::create_dir(pins.path().join("link-eth0")).unwrap();
        assert!(refuse_other_versions(pins.path()).is_ok());
        for older in 1..ABI_VERSION {
            let folder = pins.path().join(format!("v{older}"));
            fs::create_dir(&folder).unwrap();
            assert!(!adoptable(pins.path()));
            let said = refuse_other_versions(pins.path()).unwrap_err().to_string();
            let expected = format!(
                "{} holds the tables of another version of lb (ABI {older}; this one has {ABI_VERSION}), whose flows cannot be adopted; start with --fresh to discard them, which ends their connections",
                pins.path().display()
            );
            assert_eq!(said, expected);
            fs::remove_dir(&folder).unwrap();
        }
    }
}
