//! The pair: certificates, the clock they are judged by, and the other node.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Finding;
use crate::config::{Config, Sync};
use crate::tls::authority::DAY;
use crate::tls::{Facts, Renewed, SOON, TlsFault};

/// How long the other node may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file written so far in the future is written by another clock.
const AHEAD: Duration = Duration::from_secs(60);

/// All there is to say, if there is a channel.
pub(super) async fn find(config: &Config, file: &Path) -> Vec<Finding> {
    let Some(sync) = config.ha.as_ref().and_then(|ha| ha.sync.as_ref()) else {
        return Vec::new();
    };
    let now = SystemTime::now();
    let certificates = config.certificates();
    let mut findings: Vec<Finding> = certificates
        .iter()
        .flat_map(|path| judge_file(path, Facts::read(path), now))
        .collect();
    findings.extend(identity(sync, &findings));
    let written = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    let mut times: Vec<SystemTime> = certificates.into_iter().filter_map(written).collect();
    times.extend(written(file));
    findings.push(judge_clock(&times, now));
    let outcome = timeout(PATIENCE, TcpStream::connect(sync.peer)).await;
    let outcome = outcome.map(|connected| connected.map(drop)).ok();
    findings.push(judge_peer(sync.peer, outcome));
    findings
}

/// How the certificates of a file stand.
fn judge_file(path: &Path, read: Result<Vec<Facts>, TlsFault>, now: SystemTime) -> Vec<Finding> {
    match read {
        Ok(facts) => facts
            .iter()
            .map(|facts| judge_certificate(path, facts, now))
            .collect(),
        Err(fault) => vec![Finding::fail("certificate", fault.to_string())],
    }
}

fn judge_certificate(path: &Path, facts: &Facts, now: SystemTime) -> Finding {
    const CHECK: &str = "certificate";
    let of = format!("{} ({})", path.display(), facts.subject);
    let days = |span: Duration| span.as_secs() / DAY.as_secs();
    let renew = if facts.authority {
        "make another CA, and certificates for both nodes: `lb tls init` in another folder"
    } else {
        "renew it: `lb tls init --renew` where its CA is, or ask whoever issued it"
    };
    if facts.not_before > now {
        let day = humantime::format_rfc3339_seconds(facts.not_before);
        return Finding::fail(CHECK, format!("{of} is valid only from {day} on"))
            .remedy("is this host's clock right?");
    }
    match facts.not_after.duration_since(now) {
        Ok(left) if left >= SOON => {
            Finding::ok(CHECK, format!("{of} is valid for {} days", days(left)))
        }
        Ok(left) => {
            Finding::warn(CHECK, format!("{of} expires in {} days", days(left))).remedy(renew)
        }
        Err(over) => {
            let over = days(over.duration());
            Finding::fail(CHECK, format!("{of} expired {over} days ago")).remedy(renew)
        }
    }
}

/// Whether the files make an identity, unless it was said already why not.
fn identity(sync: &Sync, said: &[Finding]) -> Option<Finding> {
    match Renewed::open(sync.files.clone(), sync.listen.ip()) {
        Ok(_) => Some(Finding::ok(
            "identity",
            format!(
                "{} with its key, for {}",
                sync.files.cert.display(),
                sync.listen.ip()
            ),
        )),
        Err(TlsFault::Expired { .. } | TlsFault::NotYetValid { .. }) => None,
        Err(fault) => {
            let found = fault.to_string();
            let twice = said.iter().any(|finding| finding.found == found);
            (!twice).then(|| Finding::fail("identity", found))
        }
    }
}

/// Whether the clock can be right: no file was written after now.
fn judge_clock(written: &[SystemTime], now: SystemTime) -> Finding {
    let last = written.iter().max().copied().unwrap_or(now);
    match last.duration_since(now) {
        Ok(ahead) if ahead > AHEAD => Finding::warn(
            "clock",
            format!(
                "it is {} here, but a file was written at {}",
                humantime::format_rfc3339_seconds(now),
                humantime::format_rfc3339_seconds(last)
            ),
        )
        .remedy("set the clock: certificates are judged by it"),
        _ => Finding::ok("clock", "it is later than the files were written"),
    }
}

/// Whether somebody answers where the other node should; none is a time-out.
fn judge_peer(peer: SocketAddr, outcome: Option<io::Result<()>>) -> Finding {
    const CHECK: &str = "peer";
    let found = match outcome {
        Some(Ok(())) => return Finding::ok(CHECK, format!("{peer} accepts connections")),
        Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Finding::fail(CHECK, format!("nothing listens at {peer}"))
                .remedy("is lb running on the other node, with [ha.sync] listen at that address?");
        }
        Some(Err(error)) => format!("{peer} cannot be reached: {error}"),
        None => format!("{peer} does not answer within a second"),
    };
    Finding::fail(CHECK, found).remedy(format!(
        "is the other node up, and does every firewall on the way let TCP to port {} through?",
        peer.port()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn facts(from: i64, until: i64, now: SystemTime) -> Facts {
        let at = |days: i64| {
            let span = u32::try_from(days.unsigned_abs()).unwrap() * DAY;
            if days < 0 { now - span } else { now + span }
        };
        Facts {
            subject: "CN=lb-a".into(),
            issuer: "CN=ca".into(),
            names: vec!["10.0.0.2".into()],
            authority: false,
            not_before: at(from),
            not_after: at(until),
        }
    }

    #[test]
    fn certificates_warn_below_thirty_days_and_fail_below_none() {
        let now = SystemTime::now();
        let path = Path::new("node.crt");
        for (from, until, state, found) in [
            (
                -1,
                824,
                State::Ok,
                "node.crt (CN=lb-a) is valid for 824 days",
            ),
            (-1, 30, State::Ok, "node.crt (CN=lb-a) is valid for 30 days"),
            (-1, 29, State::Warn, "node.crt (CN=lb-a) expires in 29 days"),
            (-1, 0, State::Warn, "node.crt (CN=lb-a) expires in 0 days"),
            (-9, -1, State::Fail, "node.crt (CN=lb-a) expired 1 days ago"),
        ] {
            let finding = judge_certificate(path, &facts(from, until, now), now);
            assert_eq!((finding.state, finding.found.as_str()), (state, found));
        }
        let early = judge_certificate(path, &facts(1, 9, now), now);
        assert_eq!(early.state, State::Fail);
        assert_eq!(early.remedy.as_deref(), Some("is this host's clock right?"));
    }

    #[test]
    fn a_clock_before_its_own_files_is_worth_a_warning() {
        let now = SystemTime::now();
        assert_eq!(judge_clock(&[now - DAY, now], now).state, State::Ok);
        assert_eq!(judge_clock(&[now + DAY, now - DAY], now).state, State::Warn);
        assert_eq!(judge_clock(&[], now).state, State::Ok);
    }

    #[test]
    fn a_peer_that_does_not_answer_is_told_by_how() {
        let peer = "10.0.0.3:9444".parse().unwrap();
        assert_eq!(judge_peer(peer, Some(Ok(()))).state, State::Ok);
        let refused = judge_peer(peer, Some(Err(io::ErrorKind::ConnectionRefused.into())));
        assert_eq!(refused.found, "nothing listens at 10.0.0.3:9444");
        let silent = judge_peer(peer, None);
        assert_eq!(
            silent.found,
            "10.0.0.3:9444 does not answer within a second"
        );
        assert!(silent.remedy.unwrap().contains("TCP to port 9444"));
    }
}
