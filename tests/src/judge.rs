//! An independent judge of checksums: scapy, which shares nothing with us.
//!
//! [`crate::checksum`] was written by those whose work it checks. This module
//! lays frames before another implementation, as a capture file, and brings
//! back what it has to object to.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Debian's, which has scapy; the first in the path may be another.
const PYTHON: &str = "/usr/bin/python3";

const SCRIPT: &str = include_str!("judge.py");

/// What the judge found.
#[derive(Debug)]
pub struct Judgement {
    /// How many checksums of each kind it made again.
    pub judged: BTreeMap<String, u64>,
    /// What it objects to, by the number of the frame.
    pub objections: Vec<(usize, String)>,
}

/// Has frames judged, group by group: fragments of one group may belong
/// together.
pub fn judge(groups: &[Vec<Vec<u8>>]) -> Result<Judgement> {
    let mut file = tempfile::Builder::new().suffix(".pcap").tempfile()?;
    file.write_all(&capture(groups))
        .context("cannot write the frames for the judge")?;
    let output = Command::new(PYTHON)
        .args(["-I", "-c", SCRIPT])
        .arg(file.path())
        .output()
        .with_context(|| format!("cannot run {PYTHON}; `cargo xtask setup` installs it"))?;
    ensure!(
        output.status.success(),
        "the judge failed; is scapy there (`cargo xtask setup`)?\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    read(&output.stdout).with_context(|| {
        let said = String::from_utf8_lossy(&output.stdout);
        format!("the judge does not say what it should, but {said:?}")
    })
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
