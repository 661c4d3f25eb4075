//! `lb decap`: its program on single frames, on the host and in the kernel,
//! which must agree; and the command on a backend, with real packets.

mod cases;
mod command;
mod sides;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use lb_common::Action;
use lb_common::decap::Outcome;
use tests::checksum::checksums;
use tests::damage::damaged;
use tests::judge::{judge, second_opinion};
use tests::kernel::{SHORTEST, in_namespace};

use cases::{Case, all};
use sides::{Done, FLAVOURS, Host, Kernel, Side};

/// How many damaged frames there are at least.
const CORRUPTIONS: usize = 100_000;

const SEED: u64 = 20_261_122;

#[test]
fn the_host_does_what_the_cases_say() -> Result<()> {
    check(&mut Host::default())
}

#[test]
fn the_kernel_does_what_the_cases_say() -> Result<()> {
    in_namespace(|| {
        for flavour in FLAVOURS {
            check(&mut Kernel::new(flavour)?).context(flavour)?;
        }
        Ok(())
    })
}

#[test]
fn every_outcome_occurs_in_a_case_unless_only_a_driver_can_cause_it() {
    let seen: BTreeSet<Outcome> = all().iter().map(|case| case.outcome).collect();
    let missing: Vec<_> = (Outcome::ALL.iter())
        .filter(|outcome| !seen.contains(outcome))
        .collect();
    assert_eq!(missing, [&Outcome::NotMoved]);
}

#[test]
fn what_is_unwrapped_has_good_checksums() {
    for case in all() {
        let good = case.outcome != Outcome::Unwrapped || checksums(&case.leaves).hold();
        assert!(good, "{}: {:02x?}", case.says, case.leaves);
    }
}

/// Each frame alone: no two of them are fragments of the same datagram.
#[test]
fn the_judges_find_nothing_wrong_with_what_is_unwrapped() -> Result<()> {
    let cases = all();
    let unwrapped: Vec<_> = (cases.iter())
        .filter(|case| case.outcome == Outcome::Unwrapped)
        .collect();
    let groups: Vec<Vec<Vec<u8>>> = (unwrapped.iter())
        .map(|case| vec![case.leaves.clone()])
        .collect();
    let (first, second) = (judge(&groups)?, second_opinion(&groups.concat())?);
    println!(
        "{} frames: {:?}, {:?}",
        unwrapped.len(),
        first.judged,
        second.judged
    );
    let objections: Vec<_> = (first.objections.iter().chain(&second.objections))
        .map(|(frame, text)| format!("{}: {text}", unwrapped[*frame].says))
        .collect();
    ensure!(objections.is_empty(), "{}", objections.join("\n"));
    for kind in ["IP", "TCP", "UDP"] {
        let seen = first.judged.get(kind);
        ensure!(seen.is_some(), "the judge has judged no {kind} checksum");
    }
    Ok(())
}

#[test]
fn every_case_says_something_else() {
    let cases = all();
    let said: BTreeSet<&str> = cases.iter().map(|case| case.says).collect();
    assert_eq!(said.len(), cases.len());
}

#[test]
fn every_truncation_of_every_frame_ends_alike_in_the_kernel() -> Result<()> {
    in_namespace(|| {
        let mut pair = Pair::new()?;
        for case in all() {
            for length in 0..case.frame.len() {
                pair.try_one(&case.frame[..length]).context(case.says)?;
            }
            pair.compare_counters().context(case.says)?;
        }
        println!("{} truncations, {} unwrapped", pair.count, pair.unwrapped);
        Ok(())
    })
}

#[test]
fn damaged_frames_end_alike_in_the_kernel() -> Result<()> {
    in_namespace(|| {
        let mut pair = Pair::new()?;
        let cases = all();
        let mut damage = damage(&cases);
        for case in &cases {
            for _ in 0..CORRUPTIONS.div_ceil(cases.len()) {
                let frame = damage(case);
                pair.try_one(&frame)
                    .with_context(|| format!("{}: damaged to {frame:02x?}", case.says))?;
            }
            pair.compare_counters().context(case.says)?;
        }
        println!("{} corruptions, {} unwrapped", pair.count, pair.unwrapped);
        // Else the damage would show little.
        ensure!(pair.unwrapped > pair.count / 20);
        Ok(())
    })
}

/// The same frames under a sanitizer too (`cargo xtask sanitize`), where nothing
/// in the kernel can be looked at.
#[test]
fn the_host_takes_no_harm_from_frames_cut_short_or_damaged() -> Result<()> {
    let mut host = Host::default();
    let cases = all();
    let mut damage = damage(&cases);
    let (mut count, mut unwrapped) = (0, 0);
    for case in &cases {
        let cut = (0..case.frame.len()).map(|length| case.frame[..length].to_vec());
        let damaged = (0..CORRUPTIONS.div_ceil(cases.len())).map(|_| damage(case));
        for frame in cut.chain(damaged) {
            let done = on_host(&mut host, &frame)
                .with_context(|| format!("{}: made {frame:02x?}", case.says))?;
            count += 1;
            unwrapped += usize::from(done.frame != frame);
        }
    }
    println!("{count} frames on the host alone, {unwrapped} unwrapped");
    Ok(())
}

/// Damages the frame of a case, each time in another way and always in the same
/// order.
fn damage(cases: &[Case]) -> impl FnMut(&Case) -> Vec<u8> {
    let mut rng = Rng::with_seed(SEED);
    let frames: Vec<&[u8]> = cases.iter().map(|case| &case.frame[..]).collect();
    move |case| damaged(&mut rng, &case.frame, &frames)
}

/// What the host does, and what holds of it whatever the frame is.
fn on_host(host: &mut Host, frame: &[u8]) -> Result<Done> {
    let before = host.counters()?[Outcome::Unwrapped as usize];
    let done = host.arrive(frame)?;
    if host.counters()?[Outcome::Unwrapped as usize] > before {
        ensure!(
            done.action == Action::Pass && done.frame.len() < frame.len(),
            "unwrapped, it is {done:02x?}"
        );
    } else {
        ensure!(done.frame == frame, "it was changed: {done:02x?}");
    }
    ensure!(
        !checksums(frame).are_spoiled_in(&checksums(&done.frame)),
        "a checksum is spoiled in {done:02x?}"
    );
    Ok(done)
}

/// All failures at once: together they often tell what one alone does not.
fn check(side: &mut impl Side) -> Result<()> {
    let mut failures = Vec::new();
    for case in all() {
        assert!(case.frame.len() >= SHORTEST, "{}", case.says);
        let before = side.counters()?;
        let done = side.arrive(&case.frame)?;
        let after = side.counters()?;
        let counted: Vec<Outcome> = (Outcome::ALL.iter().copied())
            .filter(|&outcome| after[outcome as usize] != before[outcome as usize])
            .collect();
        if counted != [case.outcome] {
            let (says, outcome) = (case.says, case.outcome);
            failures.push(format!("{says}: counted as {counted:?}, not {outcome:?}"));
        }
        let expected = Done {
            action: case.outcome.action(),
            frame: case.leaves,
        };
        if done != expected {
            failures.push(format!(
                "{}: ends as\n{done:02x?}, not\n{expected:02x?}",
                case.says
            ));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

/// The host and the kernel, and how much they have seen.
struct Pair {
    host: Host,
    kernel: Kernel,
    count: usize,
    unwrapped: usize,
    /// Frames that the host alone has seen.
    too_short: u64,
}

impl Pair {
    fn new() -> Result<Self> {
        Ok(Self {
            host: Host::default(),
            kernel: Kernel::new(FLAVOURS[0])?,
            count: 0,
            unwrapped: 0,
            too_short: 0,
        })
    }

    fn try_one(&mut self, frame: &[u8]) -> Result<()> {
        self.count += 1;
        let host = on_host(&mut self.host, frame)?;
        self.unwrapped += usize::from(host.frame != frame);
        if frame.len() < SHORTEST {
            self.too_short += 1;
            return Ok(());
        }
        let kernel = self.kernel.arrive(frame)?;
        ensure!(
            host == kernel,
            "the host makes of it\n{host:02x?}\nand the kernel\n{kernel:02x?}"
        );
        Ok(())
    }

    fn compare_counters(&self) -> Result<()> {
        let (mut host, kernel) = (self.host.counters()?, self.kernel.counters()?);
        host[Outcome::Truncated as usize] -= self.too_short;
        ensure!(
            host == kernel,
            "the host counted {host:?} and the kernel {kernel:?}"
        );
        Ok(())
    }
}
