//! The kernel's ticks, as seen from user space.
//!
//! The data path notes when a flow was last seen in jiffies
//! (`bpf_jiffies64`), the cheapest clock there is. Their rate is the kernel's
//! `CONFIG_HZ`; it shows in the resolution of the coarse clock, which advances
//! once a tick. Their value is not shown to programs, but follows from the
//! time since boot: they start at `INITIAL_JIFFIES`, `(u32)(-300 * HZ)`, so
//! that the 32-bit counter wraps five minutes after boot and bugs show early.
//!
//! The estimate is some ticks ahead: the clock runs before the counter does, a
//! quarter of a second on some machines, and then they keep step. It serves to tell
//! how many seconds a flow has been idle, and for nothing finer. In a time namespace
//! with an offset of its own the clock, and so the estimate, is wrong by that offset.

use std::time::Duration;

use rustix::time::{ClockId, clock_getres, clock_gettime};

const NANOSECONDS: u32 = 1_000_000_000;

/// The kernel's `CONFIG_HZ`.
pub fn ticks_per_second() -> u32 {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    hz(u32::try_from(tick.tv_nsec).unwrap_or(0))
}

/// By how many bits ticks are shifted to make the coarse stamp of the table of
/// connections ([`lb_common::abi::tag`]): about half a second, so that the stamps
/// do not go round while a handshake may wait for its client.
pub fn stamp_shift(ticks_per_second: u32) -> u32 {
    (ticks_per_second / 2).next_power_of_two().ilog2()
}

/// Now in kernel ticks: an estimate of the low 32 bits of `jiffies_64`.
pub fn ticks_now(ticks_per_second: u32) -> u32 {
    // The rest is dropped on purpose.
    wide_ticks_now(ticks_per_second) as u32
}

/// The same, all 64 bits of it.
pub fn wide_ticks_now(ticks_per_second: u32) -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let since_boot = Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    );
    ticks_at(ticks_per_second, since_boot)
}

/// The rate, from the length of a tick in nanoseconds, which is rounded (at
/// 300 Hz it is 3,333,333); at least 1.
fn hz(tick_nanoseconds: u32) -> u32 {
    let tick = tick_nanoseconds.clamp(1, NANOSECONDS);
    (NANOSECONDS + tick / 2) / tick
}

/// The counter at a time since boot.
fn ticks_at(ticks_per_second: u32, since_boot: Duration) -> u64 {
    // The kernel counts ticks of whole nanoseconds (`TICK_NSEC`): at 300 Hz a second
    // has a little more than 300 of them.
    let tick = (NANOSECONDS + ticks_per_second / 2) / ticks_per_second.max(1);
    let ticks = since_boot.as_nanos() / u128::from(tick.max(1));
    let initial = 300_u32.wrapping_mul(ticks_per_second).wrapping_neg();
    u64::from(initial) + u64::try_from(ticks).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_rate_is_recovered_from_the_rounded_tick() {
        let table = [
            (10_000_000, 100),
            (4_000_000, 250),
            (3_333_333, 300),
            (1_000_000, 1000),
        ];
        for (tick, rate) in table {
            assert_eq!(hz(tick), rate);
        }
        assert_eq!(hz(0), NANOSECONDS);
        assert_eq!(hz(u32::MAX), 1);
    }

    #[test]
    fn the_counter_wraps_five_minutes_after_boot() {
        let ms = Duration::from_millis;
        let wrapped = 1 << 32;
        assert_eq!(ticks_at(1000, ms(0)), wrapped - 300_000);
        assert_eq!(ticks_at(1000, ms(299_999)), wrapped - 1);
        assert_eq!(ticks_at(1000, ms(300_000)), wrapped);
        assert_eq!(ticks_at(250, ms(300_500)), wrapped + 125);
        let days_50 = Duration::from_secs(50 * 86_400);
        assert_eq!(
            ticks_at(1000, days_50 + ms(300_000)),
            wrapped + 4_320_000_000
        );
        // After 100 days 259 more than 300 a second.
        let days_100 = Duration::from_secs(100 * 86_400);
        let counted = 100 * 86_400 * 300 + 259;
        assert_eq!(ticks_at(300, days_100), wrapped + counted - 90_000);
    }

    #[test]
    fn the_estimate_agrees_with_the_kernels_own_counter() {
        let rate = ticks_per_second();
        assert!([100, 250, 300, 1000].contains(&rate), "{rate}");
        let timers = fs::read_to_string("/proc/timer_list").expect("root may read it");
        let estimate = ticks_now(rate);
        let jiffies: u64 = timers
            .lines()
            .find_map(|line| line.strip_prefix("jiffies: "))
            .and_then(|number| number.parse().ok())
            .expect("the kernel prints its counter");
        let ahead = estimate.wrapping_sub(jiffies as u32) as i32;
        // The estimate is taken after the file: a busy machine may come between.
        assert!(
            (-2 * rate as i32..30 * rate as i32).contains(&ahead),
            "{ahead} ticks at {rate}"
        );
    }
}
