//! The keys of each section: those this version has, and those it refuses by
//! name because only later versions have them.

/// The keys of one kind of section.
pub(super) struct Keys {
    /// What the section is called in a sentence.
    pub(super) place: &'static str,
    /// How the section's header is written; empty for the file itself.
    pub(super) header: &'static str,
    /// The keys it may have.
    pub(super) valid: &'static [&'static str],
    /// The keys only later versions have, and what there is instead.
    pub(super) later: &'static [(&'static str, &'static str)],
}

/// The file itself: its keys are the sections.
pub(super) const FILE: Keys = Keys {
    place: "the file",
    header: "",
    valid: &["node", "timeouts", "api", "ha", "service"],
    later: &[(
        "firewall",
        "remove the section, and filter in front of the balancer or on the backends",
    )],
};

/// `[node]`
pub(super) const NODE: Keys = Keys {
    place: "[node]",
    header: "[node]",
    valid: &[
        "name",
        "interfaces",
        "xdp_mode",
        "pin_path",
        "control",
        "max_flows",
        "max_services",
        "max_backends",
        "tunnel_sources",
    ],
    later: &[],
};

/// `[timeouts]`
pub(super) const TIMEOUTS: Keys = Keys {
    place: "[timeouts]",
    header: "[timeouts]",
    valid: &[
        "handshake",
        "established",
        "closing",
        "closed",
        "udp",
        "udp_unanswered",
    ],
    later: &[],
};

/// What there is instead of the API over the network.
const LOCAL_API: &str =
    "remove the key; the control socket has the JSON API, and `metrics_listen` the metrics";

/// `[api]`
pub(super) const API: Keys = Keys {
    place: "[api]",
    header: "[api]",
    valid: &["metrics_listen"],
    later: &[
        ("listen", LOCAL_API),
        ("cert", LOCAL_API),
        ("key", LOCAL_API),
        ("client_ca", LOCAL_API),
        ("read_only", LOCAL_API),
    ],
};

/// `[ha]`
pub(super) const HA: Keys = Keys {
    place: "[ha]",
    header: "[ha]",
    valid: &[
        "interface",
        "vrid",
        "priority",
        "interval",
        "preempt",
        "preempt_delay",
        "peers",
        "addresses",
        "checksum",
        "hop_limit",
        "track",
        "sync",
    ],
    later: &[],
};

/// `[ha.sync]`
pub(super) const HA_SYNC: Keys = Keys {
    place: "[ha.sync]",
    header: "[ha.sync]",
    valid: &["listen", "peer", "cert", "key", "ca"],
    later: &[],
};

/// `[[service]]`
pub(super) const SERVICE: Keys = Keys {
    place: "this service",
    header: "[[service]]",
    valid: &[
        "name",
        "listen",
        "protocol",
        "forward",
        "max_mss",
        "scheduler",
        "affinity",
        "on_down",
        "allow",
        "slow_start",
        "min_healthy",
        "check",
        "backend",
    ],
    later: &[],
};

/// What there is instead of the keys of richer checks.
const PLAIN_CHECK: &str = "remove the key; the checks here are \"tcp\" and \"none\"";

/// `[service.check]`
pub(super) const CHECK: Keys = Keys {
    place: "this check",
    header: "[service.check]",
    valid: &["type", "via", "interval", "timeout", "rise", "fall", "port"],
    later: &[
        ("path", PLAIN_CHECK),
        ("expect_status", PLAIN_CHECK),
        ("role", PLAIN_CHECK),
        ("user", PLAIN_CHECK),
        ("password_file", PLAIN_CHECK),
        ("max_lag", PLAIN_CHECK),
        ("fallback", PLAIN_CHECK),
    ],
};

/// `[[service.backend]]`
pub(super) const BACKEND: Keys = Keys {
    place: "this backend",
    header: "[[service.backend]]",
    valid: &["name", "address", "weight", "backup"],
    later: &[],
};

/// The header of the section where a key belongs that is unknown elsewhere, if
/// there is but one.
pub(super) fn home(key: &str) -> Option<&'static str> {
    let sections = [
        &NODE, &TIMEOUTS, &API, &HA, &HA_SYNC, &SERVICE, &CHECK, &BACKEND,
    ];
    let mut homes = sections
        .into_iter()
        .filter(|keys| keys.valid.contains(&key));
    match (homes.next(), homes.next()) {
        (Some(only), None) => Some(only.header),
        (None | Some(_), _) => None,
    }
}

/// The word most like `written`, if one is like enough to be meant.
pub(super) fn nearest(
    written: &str,
    words: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    /// Longer than any word here with two slips in it.
    const LONGEST: usize = 24;
    if written.chars().count() > LONGEST {
        return None;
    }
    let written = written.to_lowercase().replace('-', "_");
    words
        .into_iter()
        .map(|word| {
            (
                strsim::damerau_levenshtein(&written, &word.replace('-', "_")),
                word,
            )
        })
        .filter(|(distance, word)| *distance <= 2 && distance * 2 < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_finds_its_word() {
        let find = |written| nearest(written, BACKEND.valid.iter().copied());
        assert_eq!(find("wieght"), Some("weight"));
        assert_eq!(find("Weight"), Some("weight"));
        assert_eq!(find("adress"), Some("address"));
        assert_eq!(find("nmae"), Some("name"));
        assert_eq!(find("colour"), None);
        assert_eq!(find(&"weight".repeat(1_000_000)), None);
    }

    #[test]
    fn a_key_of_one_section_only_has_a_home() {
        assert_eq!(home("interfaces"), Some("[node]"));
        assert_eq!(home("rise"), Some("[service.check]"));
        assert_eq!(home("vrid"), Some("[ha]"));
        assert_eq!(home("ca"), Some("[ha.sync]"));
        assert_eq!(home("interval"), None, "checks and nodes have one");
        assert_eq!(home("tunnel_sources"), Some("[node]"));
        assert_eq!(home("name"), None, "several sections have names");
        assert_eq!(home("colour"), None);
    }
}
