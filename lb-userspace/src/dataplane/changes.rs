//! Tells the data path that something changed on which its notes depend.
//!
//! What a flow has noted of its way is good for an epoch ([`shared::epoch`]). The
//! words that say which epoch it is are mapped into this process, so that a change
//! is counted without a system call, by whichever thread sees it.
//!
//! Until when the controller vouches for counting is said in kernel ticks, and to
//! the tick: [`host::ticks_now`] may be a quarter of a second ahead of the counter, on
//! machines whose clock ran for so long at boot before the ticks did. So the kernel
//! is asked once by how much.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};
use aya::maps::MapData;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_common::Word;
use lb_common::abi::shared;

use super::connections::Region;
use crate::host;

/// How often the two clocks are compared, until no tick came in between.
const COMPARISONS: usize = 8;

/// The shortest frame that the kernel takes to try a program with: an Ethernet
/// header.
const FRAME: [u8; 14] = [0; 14];

/// The words of the epoch.
pub struct Changes {
    /// The kernel keeps 8 bytes for each value of 4.
    words: Region<[Word<u32>; 2]>,
    hertz: u32,
    /// By how many ticks the estimate is ahead of the kernel.
    ahead: u32,
}

impl Changes {
    /// Maps the words of the tables that are pinned in a folder. The program is
    /// one that returns the kernel's ticks.
    pub(super) fn pinned(folder: &Path, ticks: &Xdp) -> anyhow::Result<Self> {
        let map =
            MapData::from_pin(folder.join("SHARED")).context("cannot open the table SHARED")?;
        let info = map.info().context("cannot ask the kernel about a table")?;
        ensure!(
            info.value_size() == 4 && info.max_entries() >= shared::WORDS,
            "the table SHARED is another version's"
        );
        let hertz = host::ticks_per_second();
        Ok(Self {
            words: Region::map_entries(&map, shared::WORDS)?,
            hertz,
            ahead: ahead(hertz, ticks)?,
        })
    }

    /// Now in kernel ticks, the low 32 bits.
    pub fn now(&self) -> u32 {
        host::ticks_now(self.hertz).wrapping_sub(self.ahead)
    }

    /// Now in kernel ticks, all 64 bits.
    pub fn now_wide(&self) -> u64 {
        let ahead = i64::from(self.ahead.cast_signed());
        host::wide_ticks_now(self.hertz).saturating_add_signed(-ahead)
    }

    /// How many ticks there are in a second.
    pub const fn hertz(&self) -> u32 {
        self.hertz
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

/// By how many ticks the estimate is ahead of the kernel's counter.
fn ahead(hertz: u32, ticks: &Xdp) -> anyhow::Result<u32> {
    let mut ahead = 0;
    for _ in 0..COMPARISONS {
        let before = host::ticks_now(hertz);
        let ran = ticks.test_run(TestRunOptions {
            data_in: Some(&FRAME),
            ..TestRunOptions::new()
        });
        let kernel = ran
            .context("cannot run the program that tells the kernel's ticks")?
            .return_value;
        ahead = before.wrapping_sub(kernel);
        if host::ticks_now(hertz) == before {
            break;
        }
    }
    Ok(ahead)
}
