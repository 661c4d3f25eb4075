//! Tells the data path that something changed on which its notes depend.
//!
//! What a flow has noted of its way is good for an epoch ([`shared::epoch`]). The
//! words that say which epoch it is are mapped into this process, so that a change
//! is counted without a system call, by whichever thread sees it.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};
use aya::maps::MapData;
use lb_common::Word;
use lb_common::abi::shared;

use super::connections::Region;

/// The words of the epoch.
pub struct Changes {
    /// The kernel keeps 8 bytes for each value of 4.
    words: Region<[Word<u32>; 2]>,
}

impl Changes {
    /// Maps the words of the tables that are pinned in a folder.
    pub(super) fn pinned(folder: &Path) -> anyhow::Result<Self> {
        let map =
            MapData::from_pin(folder.join("SHARED")).context("cannot open the table SHARED")?;
        let info = map.info().context("cannot ask the kernel about a table")?;
        ensure!(
            info.value_size() == 4 && info.max_entries() >= shared::WORDS,
            "the table SHARED is another version's"
        );
        Ok(Self {
            words: Region::map_entries(&map, shared::WORDS)?,
        })
    }

    /// Counts a change that has happened: what was noted before it is void.
    pub fn count(&self) {
        if let Some([word, _]) = self.words.at(shared::CHANGES) {
            // SAFETY: an aligned word that is borrowed, and only ever accessed whole.
            let word = unsafe { AtomicU32::from_ptr(word.as_ptr()) };
            word.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Vouches until then, in kernel ticks (the low 32 bits), for counting every
    /// change.
    pub fn vouch(&self, until: u32) {
        if let Some([word, _]) = self.words.at(shared::VOUCHED) {
            word.store(until);
        }
    }
}
