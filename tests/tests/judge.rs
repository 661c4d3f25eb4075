//! What the golden cases send, before independent judges.
//!
//! The cases' frames are what host and kernel must make, byte for byte, so a
//! judgement of the cases is one of both.

use std::collections::BTreeSet;
use std::slice::from_ref;

use anyhow::{Result, ensure};
use tests::cases::{Case, Step, all};
use tests::checksum::{checksum_fields, checksums_hold};
use tests::frame::{Frame, IcmpError, icmp_error, ping, tcp, udp};
use tests::judge::{judge, second_opinion};

/// How many translated frames there are at least; fewer would mean that they
/// are not found any more.
const FEWEST: usize = 4100;

#[test]
fn the_judges_find_nothing_wrong_with_what_the_cases_send() -> Result<()> {
    let cases = all();
    let groups: Vec<Vec<Vec<u8>>> = cases.iter().map(made).collect();
    let (first, second) = (judge(&groups)?, second_opinion(&groups.concat())?);
    let names = (cases.iter().zip(&groups)).flat_map(|(case, group)| {
        (1..=group.len()).map(move |number| format!("{}: its frame {number}", case.says))
    });
    let names: Vec<String> = names.collect();
    let count = names.len();
    println!("{count} frames: {:?}, {:?}", first.judged, second.judged);
    let objections: Vec<_> = (first.objections.iter().chain(&second.objections))
        .map(|(frame, text)| format!("{}: {text}", names[*frame]))
        .collect();
    ensure!(objections.is_empty(), "{}", objections.join("\n"));
    ensure!(count >= FEWEST, "only {count} frames");
    Ok(())
}

/// What the balancer makes of the frames of a case. A checksum that came wrong
/// leaves wrong: such a frame proves nothing.
fn made(case: &Case) -> Vec<Vec<u8>> {
    (case.steps.iter())
        .filter_map(|step| match step {
            Step::Arrives { frame, leaves, .. } if frame != leaves && checksums_hold(frame) => {
                Some(leaves.clone())
            }
            _ => None,
        })
        .collect()
}

#[test]
fn the_judges_find_nothing_wrong_with_frames_at_the_edges() -> Result<()> {
    let frames = [wholes(), pieces()].concat();
    let bytes: Vec<_> = frames.iter().map(Frame::bytes).collect();
    let (first, second) = (judge(from_ref(&bytes))?, second_opinion(&bytes)?);
    let count = frames.len();
    println!("{count} frames: {:?}, {:?}", first.judged, second.judged);
    let objections: Vec<_> = (first.objections.iter().chain(&second.objections))
        .map(|(frame, text)| format!("{:?}: {text}", frames[*frame]))
        .collect();
    ensure!(objections.is_empty(), "{}", objections.join("\n"));
    for kind in KINDS {
        let seen = first.judged.get(kind);
        ensure!(seen.is_some(), "the judge has judged no {kind} checksum");
    }
    ensure!(second.judged.len() == 5, "tshark has judged fewer kinds");
    Ok(())
}

/// The kinds of checksums of which the frames at the edges have some.
const KINDS: [&str; 14] = [
    "IP",
    "TCP",
    "UDP",
    "ICMP",
    "ICMPv6",
    "UDP without checksum",
    "inner IP",
    "inner TCP",
    "inner UDP",
    "quoted IP",
    "quoted TCP",
    "quoted UDP",
    "reassembled TCP",
    "reassembled UDP",
];

fn four() -> Frame {
    tcp("10.0.0.1:1", "10.0.0.2:2")
        .syn()
        .no_operation()
        .mss(1460)
}

fn six() -> Frame {
    udp("[fd00::1]:1", "[fd00::2]:2").payload(b"odd")
}

/// Frames that hold all that their checksums cover.
fn wholes() -> Vec<Frame> {
    let (four, six) = (four(), six());
    let mut frames = vec![
        four.clone().ip_options(&[1; 40]).padded_to(140),
        four.clone().tagged(1).tos(0xb8),
        six.clone().tag(0x9100, 1).tagged(2).padded_to(90),
        six.clone().hop_by_hop().routing(1).extensions(6),
        six.clone().fragment(0, false).balanced_to_zero(),
        six.clone().without_checksum(),
        udp("10.0.0.1:1", "10.0.0.2:2").without_checksum(),
        udp("10.0.0.1:1", "10.0.0.2:2").balanced_to_zero(),
    ];
    // Of a checksum near the end of the numbers, that of the answer is near
    // their beginning.
    for check in (0..=0x10).chain(0xf7f0..=0xf810).chain(0xfef0..=0xfffe) {
        for echo in [
            ping("10.0.0.1", "10.0.0.2", 7, 1, b""),
            ping("fd00::1", "fd00::2", 7, 1, b""),
        ] {
            let echo = echo.balanced_to(check);
            frames.extend([echo.clone(), echo.answered()]);
        }
    }
    for inner in [&four, &six] {
        frames.extend([
            inner.clone().tagged(1).inside("10.1.0.1", "10.1.0.2"),
            inner.clone().padded_to(90).inside("fd01::1", "fd01::2"),
        ]);
    }
    for error in [
        IcmpError::Unreachable(3),
        IcmpError::TooBig(1400),
        IcmpError::TimeExceeded,
        IcmpError::ParameterProblem(9),
    ] {
        for quoted in [four.least_quote(), 1232] {
            frames.push(icmp_error("10.0.0.9", "10.0.0.1", error, &four, quoted));
            frames.push(icmp_error("fd00::9", "fd00::1", error, &six, quoted));
        }
    }
    frames
}

/// Frames that do so together.
fn pieces() -> Vec<Frame> {
    let six = six().destination_options().hop_by_hop();
    [
        six.payload(&[7; 100]).fragments(32),
        four().payload(&[9; 77]).tagged(1).fragments(48),
    ]
    .concat()
}

#[test]
fn the_judges_object_to_every_checksum_that_is_spoiled() -> Result<()> {
    let spoiled: Vec<Vec<u8>> = (wholes().iter())
        .flat_map(|frame| {
            let bytes = frame.bytes();
            (checksum_fields(&bytes).into_iter()).map(move |field| spoil(&bytes, field))
        })
        .collect();
    for judgement in [judge(from_ref(&spoiled))?, second_opinion(&spoiled)?] {
        let seen: BTreeSet<_> = (judgement.objections.iter())
            .map(|(frame, _)| *frame)
            .collect();
        let unseen: Vec<_> = (0..spoiled.len())
            .filter(|frame| !seen.contains(frame))
            .map(|frame| format!("{:02x?}", spoiled[frame]))
            .collect();
        ensure!(
            unseen.is_empty(),
            "{} of {} are not objected to:\n{}",
            unseen.len(),
            spoiled.len(),
            unseen.join("\n")
        );
    }
    Ok(())
}

#[test]
fn the_judge_objects_to_a_whole_whose_fragments_were_spoiled() -> Result<()> {
    for whole in [
        udp("10.0.0.1:1", "10.0.0.2:2"),
        udp("[fd00::1]:1", "[fd00::2]:2"),
    ] {
        let mut frames: Vec<_> = (whole.payload(&[7; 100]).fragments(48).iter())
            .map(Frame::bytes)
            .collect();
        let last = frames.last_mut().and_then(|frame| frame.last_mut());
        *last.expect("there are fragments") ^= 1;
        let objections = judge(&[frames])?.objections;
        ensure!(
            matches!(&objections[..], [(2, text)] if text.contains("reassembled UDP")),
            "the judge says {objections:?}"
        );
    }
    Ok(())
}

/// The frame with another value in the checksum's field.
fn spoil(frame: &[u8], field: usize) -> Vec<u8> {
    let mut spoiled = frame.to_vec();
    spoiled[field] ^= 0x5a;
    spoiled
}
