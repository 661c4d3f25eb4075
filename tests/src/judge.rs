//! Independent judges of checksums: scapy and tshark, which share nothing with
//! us or with each other.
//!
//! [`crate::checksum`] was written by those whose work it checks. This module
//! lays frames before other implementations, as a capture file, and brings back
//! what they have to object to. scapy builds every packet again, reassembled
//! ones too; tshark verifies each frame as it reads it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::checksum::checksums;

/// Debian's, which has scapy; the first in the path may be another.
const PYTHON: &str = "/usr/bin/python3";

const SCRIPT: &str = include_str!("judge.py");

/// What tshark verifies; that of ICMP it does unasked.
const VERIFIED: [&str; 3] = ["ip", "tcp", "udp"];

/// Whose fragments it leaves as they are: those of different cases look alike.
const FRAGMENTED: [&str; 2] = ["ip", "ipv6"];

/// Where it says how each checksum is.
const STATUS: [&str; 5] = [
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
];

/// What a judge found.
#[derive(Debug, Default)]
pub struct Judgement {
    /// How many checksums of each kind it looked at.
    pub judged: BTreeMap<String, u64>,
    /// What it objects to, by the number of the frame.
    pub objections: Vec<(usize, String)>,
}

/// Has frames judged by scapy, group by group: fragments of one group may belong
/// together.
pub fn judge(groups: &[Vec<Vec<u8>>]) -> Result<Judgement> {
    let said = ask(Command::new(PYTHON).args(["-I", "-c", SCRIPT]), groups)?;
    read(&said).with_context(|| misunderstood(&said))
}

/// Has frames judged by tshark, each for itself.
pub fn second_opinion(frames: &[Vec<u8>]) -> Result<Judgement> {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-T", "fields"]);
    for protocol in FRAGMENTED {
        tshark.args(["-o", &format!("{protocol}.defragment:FALSE")]);
    }
    for protocol in VERIFIED {
        tshark.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    for field in STATUS {
        tshark.args(["-e", field]);
    }
    let said = ask(tshark.arg("-r"), &[frames.to_vec()])?;
    let mut judgement = read_statuses(&said).with_context(|| misunderstood(&said))?;
    let lines = said.iter().filter(|byte| **byte == b'\n').count();
    ensure!(lines == frames.len(), "tshark has read only {lines} frames");
    (judgement.objections)
        .retain(|(frame, text)| !text.starts_with("tcp") || !quotes_a_part(&frames[*frame]));
    Ok(judgement)
}

/// Whether the frame is an error about a segment whose end is not quoted: tshark
/// takes what there is of it for all.
fn quotes_a_part(frame: &[u8]) -> bool {
    let mut packet = &checksums(frame);
    let mut quoted = false;
    while let Some(inside) = &packet.inner {
        (packet, quoted) = (inside, true);
    }
    quoted && packet.transport.is_none()
}

/// What a judge says of these frames, which it takes as its last argument.
fn ask(judge: &mut Command, groups: &[Vec<Vec<u8>>]) -> Result<Vec<u8>> {
    let program = judge.get_program().to_string_lossy().into_owned();
    let mut file = tempfile::Builder::new().suffix(".pcap").tempfile()?;
    file.write_all(&capture(groups))
        .context("cannot write the frames for the judge")?;
    let Output {
        status,
        stdout,
        stderr,
    } = (judge.arg(file.path()).output())
        .with_context(|| format!("cannot run {program}; `cargo xtask setup` installs it"))?;
    ensure!(
        status.success(),
        "{program} failed ({status}); is all there that it needs (`cargo xtask setup`)?\n{}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(stdout)
}

fn misunderstood(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    format!("the judge does not say what it should, but {said:?}")
}

/// A capture file, each group's frames in a second of its own.
fn capture(groups: &[Vec<Vec<u8>>]) -> Vec<u8> {
    // Microseconds, version 2.4, UTC, whole frames, Ethernet
    let header: [u32; 6] = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 0xffff, 1];
    let mut file: Vec<u8> = header.map(u32::to_le_bytes).concat();
    for (second, group) in (0..).zip(groups) {
        for (place, frame) in (0..).zip(group) {
            let length = frame.len() as u32;
            let record: [u32; 4] = [second, place, length, length];
            file.extend(record.map(u32::to_le_bytes).concat());
            file.extend(frame);
        }
    }
    file
}

fn read(said: &[u8]) -> Result<Judgement> {
    let said: Value = serde_json::from_slice(said)?;
    let judged = (said["judged"].as_object())
        .context("nothing judged")?
        .iter()
        .filter_map(|(kind, count)| Some((kind.clone(), count.as_u64()?)))
        .collect();
    let objections = (said["objections"].as_array())
        .context("no list of objections")?
        .iter()
        .map(|objection| {
            let number = objection[0].as_u64().context("an objection to no frame")?;
            let text = objection[1]
                .as_str()
                .context("an objection without words")?;
            Ok((number as usize, text.to_owned()))
        })
        .collect::<Result<_>>()?;
    Ok(Judgement { judged, objections })
}

/// One frame a line, the statuses of its checksums by kind, then from the
/// outermost inwards.
fn read_statuses(said: &[u8]) -> Result<Judgement> {
    let mut judgement = Judgement::default();
    for (frame, line) in str::from_utf8(said)?.lines().enumerate() {
        for (kind, statuses) in STATUS.iter().zip(line.split('\t')) {
            for status in statuses.split(',').filter(|status| !status.is_empty()) {
                match status {
                    // Bad
                    "0" => judgement.objections.push((frame, format!("{kind} is bad"))),
                    // Good
                    "1" => *judgement.judged.entry((*kind).to_owned()).or_default() += 1,
                    // Unverified, not present, illegal
                    "2" | "3" | "4" => {}
                    other => bail!("{other:?} is no status of a checksum"),
                }
            }
        }
    }
    Ok(judgement)
}
