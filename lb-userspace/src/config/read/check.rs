//! `[service.check]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::Check;
use crate::config::fault::Fault;
use crate::config::keys;
use crate::config::report::Found;
use crate::config::section::{At, Section};
use crate::config::words::{CheckKind, Forward, Protocol, Via};

/// How often a backend may be checked, and how seldom.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

/// `[service.check]`, or what a service of this protocol has without it.
/// Without a mode of forwarding, what depends on it is not judged.
pub(super) fn check(
    service: &Section<'_>,
    protocol: Protocol,
    forward: Option<Forward>,
    found: &mut Found,
) -> Check {
    let kind = match protocol {
        Protocol::Tcp => CheckKind::Tcp,
        Protocol::Udp => CheckKind::None,
    };
    let interval = Duration::from_secs(1);
    let timeout = Duration::from_millis(500);
    let default = Check {
        kind,
        via: Via::Backend,
        interval,
        timeout,
        rise: 2,
        fall: 3,
        port: None,
    };
    let Some(section) = service.section("check", &keys::CHECK, found) else {
        return default;
    };

    let kind = section.word("type", kind, found);
    let interval = section.duration("interval", INTERVAL, found);
    let judged = interval.is_some() || !section.has("interval");
    let interval = interval.map_or(default.interval, |at| at.value);
    let longest = Duration::from_millis(1)..=*INTERVAL.end();
    let written = section.duration("timeout", longest, found);
    if let Some(At {
        value: timeout,
        span,
    }) = &written
        && judged
        && *timeout > interval
    {
        found.add(
            span.clone(),
            Fault::TimeoutOverInterval {
                timeout: *timeout,
                interval,
            },
        );
    }
    let port = section.number("port", 1..=u32::from(u16::MAX), found);
    Check {
        kind,
        via: via(&section, kind, forward, found),
        interval,
        timeout: written.map_or(default.timeout.min(interval), |at| at.value),
        rise: section
            .number("rise", 1..=1000, found)
            .unwrap_or(default.rise),
        fall: section
            .number("fall", 1..=1000, found)
            .unwrap_or(default.fall),
        port: port.and_then(|port| u16::try_from(port).ok()),
    }
}

/// Which way a check goes: the way of the packets only where the service's
/// address is the backend's too, and to the port that they go to.
fn via(section: &Section<'_>, kind: CheckKind, forward: Option<Forward>, found: &mut Found) -> Via {
    let Some(At { value: via, span }) = section.word_at("via", found) else {
        return Via::Backend;
    };
    if via == Via::Service {
        let with = if forward.is_some_and(|forward| !forward.one_way()) {
            Some("`forward = \"dsr\"` or \"tunnel\"")
        } else if kind != CheckKind::Tcp {
            Some("`type = \"tcp\"`")
        } else if section.has("port") {
            Some("the service's own port, without `port`")
        } else {
            None
        };
        if let Some(with) = with {
            let what = "`via = \"service\"`";
            found.add(span, Fault::OnlyWith { what, with });
        }
    }
    via
}
