//! Numbers as people read them. `--json` carries the exact ones.

/// A count: exact below a thousand, then three digits and a unit.
pub(super) fn count(number: u64) -> String {
    if number < 1000 {
        number.to_string()
    } else {
        scaled(number as f64, &["", "k", "M", "G", "T", "P", "E"])
    }
}

/// So many a second, without the words.
pub(super) fn rate(per_second: f64) -> String {
    scaled(per_second, &["", "k", "M", "G", "T"])
}

/// Bits a second, with the unit (powers of a thousand, as links are sold).
pub(super) fn bits(per_second: f64) -> String {
    scaled(
        per_second,
        &[" bit/s", " kbit/s", " Mbit/s", " Gbit/s", " Tbit/s"],
    )
}

/// Bytes, with the unit (powers of a thousand).
pub(super) fn bytes(number: u64) -> String {
    scaled(
        number as f64,
        &[" B", " kB", " MB", " GB", " TB", " PB", " EB"],
    )
}

/// A part of the whole; one that is not nothing never looks like nothing.
pub(super) fn percent(part: f64) -> String {
    if part > 0.0 && part < 0.0005 {
        "<0.1%".to_owned()
    } else {
        format!("{:.1}%", part * 100.0)
    }
}

/// A span of time: its two largest units.
pub(super) fn span(seconds: f64) -> String {
    if seconds < 1.0 {
        return format!("{:.0}ms", seconds.max(0.0) * 1000.0);
    }
    let seconds = seconds as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if minutes == 0 {
        format!("{seconds}s")
    } else if hours == 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else if days == 0 {
        format!("{hours}h {}m", minutes % 60)
    } else {
        format!("{days}d {}h", hours % 24)
    }
}

/// `1 backend`, `2 backends`.
pub(super) fn plural(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

/// Three digits, then the unit that fits; the last unit takes whatever is left.
fn scaled(number: f64, units: &[&str]) -> String {
    let mut number = number.max(0.0);
    let mut place = 0;
    // What rounds up to a thousand belongs to the next unit.
    while number >= 999.5 && place + 1 < units.len() {
        number /= 1000.0;
        place += 1;
    }
    let whole = place == 0 && number.fract() == 0.0;
    let decimals = if whole || number >= 99.95 { 0 } else { 1 };
    format!("{number:.decimals$}{}", units[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_below_a_thousand_and_three_digits_above() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.0k"),
            (1_234, "1.2k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn rates_keep_a_decimal_while_it_says_something() {
        assert_eq!(rate(0.0), "0");
        assert_eq!(rate(0.5), "0.5");
        assert_eq!(rate(120.0), "120");
        assert_eq!(rate(120.4), "120");
        assert_eq!(rate(1_234.0), "1.2k");
        assert_eq!(bits(0.0), "0 bit/s");
        assert_eq!(bits(3_440_000.0), "3.4 Mbit/s");
        assert_eq!(bytes(1_500_000_000), "1.5 GB");
        assert_eq!(rate(-1.0), "0", "a clock that went back is no rate");
    }

    #[test]
    fn a_share_that_is_not_nothing_never_looks_like_nothing() {
        assert_eq!(percent(0.0), "0.0%");
        assert_eq!(percent(1.0 / 65_536.0), "<0.1%");
        assert_eq!(percent(1.0 / 3.0), "33.3%");
        assert_eq!(percent(1.0), "100.0%");
    }

    #[test]
    fn a_span_shows_its_two_largest_units() {
        assert_eq!(span(0.0), "0ms");
        assert_eq!(span(0.35), "350ms");
        assert_eq!(span(59.9), "59s");
        assert_eq!(span(60.0), "1m 0s");
        assert_eq!(span(11_520.0), "3h 12m");
        assert_eq!(span(90_000.0), "1d 1h");
    }
}
