//! `[ha]`

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{once, sync};
use crate::config::fault::Fault;
use crate::config::report::Found;
use crate::config::section::{At, Section, parsed};
use crate::config::words::HaChecksum;
use crate::config::{Ha, MOST_ADDRESSES, Service, keys, value};
use crate::vrrp::packet::{HOP_LIMIT, Interval};

/// The most peers, and the most interfaces to track.
const MOST: usize = 16;

/// What an advertisement can say (RFC 9568, section 5.2.7), less what people need.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(40);

const PREEMPT_DELAY: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(24 * 3600);

/// The section, if there is one.
pub(super) fn ha(root: &Section<'_>, services: &[Service], found: &mut Found) -> Option<Ha> {
    let section = root.section("ha", &keys::HA, found)?;
    let faults = found.len();
    let interface = section.required(
        "interface",
        "`interface = \"eth0\"`, by which the nodes hear each other",
        found,
        value::interface,
    );
    let vrid = required_number(
        &section,
        "vrid",
        "`vrid = 51`, the same on both nodes",
        1..=255,
        found,
    );
    let priority = required_number(
        &section,
        "priority",
        "`priority = 150`, and less on the other node",
        1..=254,
        found,
    );
    let ha = Ha {
        interface: interface.map(|at| at.value).unwrap_or_default(),
        vrid,
        priority,
        interval: interval(&section, found),
        preempt: section.truth("preempt", found).unwrap_or(true),
        preempt_delay: section.duration_or_off("preempt_delay", PREEMPT_DELAY, found),
        peers: addresses(&section, "peers", MOST, found),
        addresses: addresses(&section, "addresses", MOST_ADDRESSES as usize, found),
        checksum: section.word("checksum", HaChecksum::Auto, found),
        hop_limit: hop_limit(&section, found),
        track: track(&section, found),
        sync: sync::sync(&section, found),
    };
    one_family(&section, &ha, found);
    sync::stays(&section, &ha, services, found);
    // With other faults it may be them.
    if found.len() == faults && ha.advertised(services).is_empty() {
        let family = ha.family(services).word();
        found.add(section.span.clone(), Fault::NothingToAdvertise { family });
    }
    Some(ha)
}

fn required_number(
    section: &Section<'_>,
    key: &'static str,
    example: &'static str,
    allowed: RangeInclusive<u32>,
    found: &mut Found,
) -> u8 {
    if !section.has(key) {
        section.missing(key, example, found);
    }
    let number = section.number(key, allowed, found);
    number
        .and_then(|number| u8::try_from(number).ok())
        .unwrap_or(1)
}

/// A whole number of hundredths of a second: that is what the message has.
fn interval(section: &Section<'_>, found: &mut Found) -> Interval {
    const KEY: &str = "interval";
    let default = Interval::from_centiseconds(10).expect("10 fits into 12 bits");
    let Some(At { value, span }) = section.duration(KEY, INTERVAL, found) else {
        return default;
    };
    let centiseconds = value.as_micros() / 10_000;
    if Duration::from_millis(centiseconds as u64 * 10) != value {
        found.add(
            span,
            Fault::NotHundredths {
                key: KEY,
                found: value,
            },
        );
        return default;
    }
    let interval = u16::try_from(centiseconds).ok();
    interval
        .and_then(Interval::from_centiseconds)
        .unwrap_or(default)
}

/// Addresses of hosts, each once.
fn addresses(
    section: &Section<'_>,
    key: &'static str,
    most: usize,
    found: &mut Found,
) -> Vec<IpAddr> {
    let Some(texts) = section.texts(key, found) else {
        return Vec::new();
    };
    if texts.value.len() > most {
        found.add(texts.span, Fault::TooManyIn { key, limit: most });
    }
    let mut seen = HashMap::new();
    let mut addresses = Vec::new();
    for At { value: text, span } in texts.value {
        let Some(address) = parsed(value::host(key, text), span, found) else {
            continue;
        };
        let twice = || Fault::Twice {
            what: "the address",
            value: address.value.to_string(),
            scope: "name each once",
        };
        once(&mut seen, address.value, address.span, found, twice);
        addresses.push(address.value);
    }
    addresses
}

/// Only named peers may send from elsewhere.
fn hop_limit(section: &Section<'_>, found: &mut Found) -> u8 {
    const KEY: &str = "hop_limit";
    let Some(At { value, span }) = section.number_at(KEY, 1..=255, found) else {
        return HOP_LIMIT;
    };
    let hop_limit = u8::try_from(value).unwrap_or(HOP_LIMIT);
    if hop_limit < HOP_LIMIT && !section.has("peers") {
        let fault = Fault::OnlyWith {
            what: "a `hop_limit` below 255",
            with: "`peers`",
        };
        found.add(span, fault);
    }
    hop_limit
}

fn track(section: &Section<'_>, found: &mut Found) -> Vec<String> {
    const KEY: &str = "track";
    let Some(texts) = section.texts(KEY, found) else {
        return Vec::new();
    };
    if texts.value.len() > MOST {
        found.add(
            texts.span,
            Fault::TooManyIn {
                key: KEY,
                limit: MOST,
            },
        );
    }
    let names = texts.value.into_iter();
    names
        .filter_map(|At { value: text, span }| parsed(value::interface(text), span, found))
        .map(|at| at.value)
        .collect()
}

/// Peers speak one language.
fn one_family(section: &Section<'_>, ha: &Ha, found: &mut Found) {
    let v4 = ha.peers.iter().filter(|peer| peer.is_ipv4()).count();
    if v4 != 0 && v4 != ha.peers.len() {
        found.add(section.value_span("peers"), Fault::PeersOfTwoFamilies);
    }
}
