//! Until when the data path of a node of a pair may act.
//!
//! The word ([`abi::lease`]) is mapped into this process, so that the thread of VRRP
//! renews it without a system call. It stays with the tables: packets go on while a
//! daemon starts again, and a daemon that starts learns from it whether anybody else
//! can have taken over meanwhile.
//!
//! Moments are of the clock `CLOCK_BOOTTIME`, the word counts kernel ticks. Rounding
//! always ends the lease early, by a tick at the most. Ticks stand still while a host
//! is suspended, which the clock does not: a host that wakes up has what was left of
//! its lease until the thread of VRRP has looked at the clock.
//!
//! [`abi::lease`]: lb_common::abi::lease

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::MapData;
use lb_common::Word;
use lb_common::abi::lease;

use super::Changes;
use super::connections::Region;
use crate::vrrp::driver;
use crate::vrrp::machine::Moment;

/// The lease of the tables that are pinned in a folder.
pub struct Lease {
    words: Region<Word<u64>>,
    /// It knows what ticks it is.
    clock: Arc<Changes>,
}

impl Lease {
    pub(super) fn pinned(folder: &Path, clock: Arc<Changes>) -> anyhow::Result<Self> {
        let map = MapData::from_pin(folder.join("LEASE")).context("cannot open the table LEASE")?;
        Ok(Self {
            words: Region::map(&map)?,
            clock,
        })
    }

    /// Takes over what is left of the lease of other tables, if they have one.
    pub(super) fn take_over(&self, folder: &Path) -> anyhow::Result<()> {
        let pin = folder.join("LEASE");
        if !pin.exists() {
            return Ok(());
        }
        let map = MapData::from_pin(&pin).context("cannot open the old table LEASE")?;
        let theirs: Region<Word<u64>> = Region::map(&map)?;
        if let (Some(ours), Some(theirs)) = (self.words.at(lease::UNTIL), theirs.at(lease::UNTIL)) {
            ours.store(theirs.load());
        }
        Ok(())
    }

    /// Lets the data path act until then, or from now on not at all.
    pub fn set(&self, until: Option<Moment>) {
        let until = until.map_or(0, |until| {
            let left = driver::now().until(until);
            self.clock.now_wide() + self.ticks(left)
        });
        if let Some(word) = self.words.at(lease::UNTIL) {
            word.store(until);
        }
    }

    /// Until when the data path may act, if it still may.
    pub fn held(&self) -> Option<Moment> {
        let until = self.words.at(lease::UNTIL)?.load();
        // The present tick may be nearly over.
        let left = until.checked_sub(self.clock.now_wide() + 1)?;
        let nanoseconds = u128::from(left) * 1_000_000_000 / u128::from(self.clock.hertz());
        let left = Duration::from_nanos(u64::try_from(nanoseconds).ok()?);
        (!left.is_zero()).then(|| driver::now() + left)
    }

    /// How many ticks have gone by when this has, at the least.
    fn ticks(&self, time: Duration) -> u64 {
        let ticks = time.as_nanos() * u128::from(self.clock.hertz()) / 1_000_000_000;
        u64::try_from(ticks).unwrap_or(u64::from(u32::MAX))
    }
}
