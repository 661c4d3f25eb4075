//! The kernel, the place of pins, the settings.

use std::os::unix::net::UnixStream;
use std::path::Path;

use lb_common::abi::ABI_VERSION;
use rustix::fs::{Access, access};

use super::Finding;
use crate::config::Config;
use crate::dataplane;
use crate::host::forwarding::{self, Changed, ForwardingError, SYSCTLS};
use crate::host::{self, topology::Plan};

/// Whether this process may load programs, and this kernel runs ours.
pub(super) fn kernel() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    match host::check_bpf(dataplane::probe) {
        Ok(()) => Finding::ok("kernel", format!("Linux {release} runs the program")),
        Err(unfit) => Finding::fail("kernel", unfit.to_string()),
    }
}

/// Where maps and links are pinned, and what is pinned there.
pub(super) fn pins(pin_path: &Path) -> Vec<Finding> {
    const CHECK: &str = "pins";
    if let Err(unfit) = host::check_pins(pin_path) {
        return vec![Finding::fail(CHECK, unfit.to_string())];
    }
    match dataplane::pinned_abis(pin_path) {
        Ok(abis) => vec![judge_pins(pin_path, &abis)],
        Err(error) => vec![Finding::fail(CHECK, format!("{error:#}"))],
    }
}

fn judge_pins(pin_path: &Path, abis: &[u32]) -> Finding {
    let at = pin_path.display();
    let other = abis.iter().find(|&&abi| abi != ABI_VERSION);
    match (abis, other) {
        ([], _) => Finding::ok("pins", format!("nothing is pinned in {at} yet")),
        (_, None) => Finding::ok("pins", format!("{at} holds tables of this version")),
        (_, Some(abi)) => Finding::warn(
            "pins",
            format!(
                "{at} holds tables of another version of lb (ABI {abi}; this one has {ABI_VERSION})"
            ),
        )
        .remedy(
            "the next start of `lb run` takes over the connections in them, or says why it cannot",
        ),
    }
}

/// The settings without which nothing is forwarded.
pub(super) fn settings(config: &Config, plan: &Plan) -> Vec<Finding> {
    let ipv6 = config.has_ipv6();
    let lacking = forwarding::lacking(Path::new(SYSCTLS), &plan.hosts, &plan.implied, ipv6);
    let runs = UnixStream::connect(&config.node.control).is_ok();
    let may_set = |setting: &Changed| access(&setting.path, Access::WRITE_OK).is_ok();
    vec![judge_settings(lacking, runs, may_set)]
}

fn judge_settings(
    lacking: Result<Vec<Changed>, ForwardingError>,
    daemon_runs: bool,
    may_set: impl Fn(&Changed) -> bool,
) -> Finding {
    const CHECK: &str = "settings";
    let lacking = match lacking {
        Ok(lacking) if lacking.is_empty() => {
            return Finding::ok(CHECK, "forwarding is on where it must be");
        }
        Ok(lacking) => lacking,
        Err(error) => return Finding::fail(CHECK, error.to_string()),
    };
    let sentence = |settings: &[&Changed]| {
        let each = settings.iter().map(|setting| {
            let path = setting.path.display();
            format!("{path} is {} instead of {}", setting.from, setting.to)
        });
        each.collect::<Vec<_>>().join(", ")
    };
    let all: Vec<&Changed> = lacking.iter().collect();
    let fixed: Vec<&Changed> = lacking.iter().filter(|setting| !may_set(setting)).collect();
    if daemon_runs {
        Finding::warn(CHECK, format!("somebody has reset what lb had set: {}", sentence(&all)))
            .remedy("restart lb, which sets it again, and find out who resets it (a sysctl.d file, a network manager)")
    } else if fixed.is_empty() {
        Finding::ok(
            CHECK,
            format!("`lb run` will set what is lacking: {}", sentence(&all)),
        )
    } else {
        Finding::fail(
            CHECK,
            format!("lb may not set what is lacking: {}", sentence(&fixed)),
        )
        .remedy("set it before lb starts, or run lb where it may")
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::doctor::State;

    fn change(path: &str) -> Changed {
        Changed {
            path: path.into(),
            from: "0".into(),
            to: "1".into(),
        }
    }

    #[test]
    fn tables_of_another_version_are_worth_a_warning() {
        let at = Path::new("/sys/fs/bpf/lb");
        let state = |abis: &[u32]| judge_pins(at, abis).state;
        assert_eq!(state(&[]), State::Ok);
        assert_eq!(state(&[ABI_VERSION]), State::Ok);
        assert_eq!(state(&[ABI_VERSION - 1]), State::Warn);
        assert_eq!(state(&[ABI_VERSION, ABI_VERSION + 1]), State::Warn);
    }

    #[test]
    fn settings_are_lbs_to_make_unless_it_may_not_or_has_made_them() {
        let lacking = || Ok(vec![change("/proc/sys/a"), change("/proc/sys/b")]);
        let well = judge_settings(Ok(vec![]), true, |_| false);
        assert_eq!(well.state, State::Ok);
        let to_be_set = judge_settings(lacking(), false, |_| true);
        assert_eq!(to_be_set.state, State::Ok);
        assert_eq!(
            to_be_set.found,
            "`lb run` will set what is lacking: /proc/sys/a is 0 instead of 1, /proc/sys/b is 0 instead of 1"
        );
        let reset = judge_settings(lacking(), true, |_| true);
        assert_eq!(reset.state, State::Warn);
        let fixed = judge_settings(lacking(), false, |setting| setting.path.ends_with("a"));
        assert_eq!(fixed.state, State::Fail);
        assert_eq!(
            fixed.found,
            "lb may not set what is lacking: /proc/sys/b is 0 instead of 1"
        );
        let unread = ForwardingError::Read {
            path: "/proc/sys/a".into(),
            source: io::ErrorKind::NotFound.into(),
        };
        assert_eq!(
            judge_settings(Err(unread), false, |_| true).state,
            State::Fail
        );
    }
}
