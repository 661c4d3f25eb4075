//! Every golden frame cut short at every byte of its headers, and damaged many
//! times, in the middle of its case: the host against the kernel.
//!
//! Whatever comes in, both must do the same to the packet and to the tables;
//! the program never aborts; what is dropped is as it came; and no checksum
//! that was right is wrong afterwards. On the host, arithmetic that overflows
//! would panic.
//!
//! The damage follows from a seed, which is printed. `LB_TEST_SEED=N` takes
//! another one.

use std::collections::BTreeSet;
use std::env;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use lb_common::{Action, Verdict};
use tests::cases::{Case, Step, all};
use tests::checksum::{checksums, spoiled};
use tests::damage::{cuts, damaged};
use tests::host::Host;
use tests::kernel::{Kernel, SHORTEST, in_namespace};
use tests::network::DEVICES;
use tests::world::{Outcome, Side};

/// How many damaged frames there are at least.
const CORRUPTIONS: usize = 500_000;

/// How many there are at least on the host alone.
const ON_THE_HOST: usize = 200_000;

/// How many frames come in before both sides begin anew: few, so that most
/// meet the tables as their case has them.
const BATCH: usize = 24;

const DEFAULT_SEED: u64 = 20_261_122;

#[test]
fn every_frame_cut_short_ends_alike_in_the_kernel() -> Result<()> {
    in_namespace(|| {
        let mut pair = Pair::default();
        for (case, place, frame, ingress) in arrivals(&all()) {
            let cuts: Vec<_> = cuts(frame.len())
                .map(|length| (frame[..length].to_vec(), ingress))
                .collect();
            pair.try_all(case, place, &cuts)?;
        }
        pair.report("truncations");
        Ok(())
    })
}

#[test]
fn damaged_frames_end_alike_in_the_kernel() -> Result<()> {
    let seed = seed()?;
    println!("LB_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    in_namespace(|| {
        let mut pair = Pair::default();
        let cases = all();
        let arrivals: Vec<_> = arrivals(&cases).collect();
        let each = CORRUPTIONS.div_ceil(arrivals.len());
        for (case, place, frame, ingress) in &arrivals {
            let frames = damages(&mut rng, case, frame, *ingress, each);
            pair.try_all(case, *place, &frames)
                .with_context(|| format!("with LB_TEST_SEED={seed}"))?;
        }
        pair.report("corruptions");
        ensure!(pair.count >= CORRUPTIONS, "only {} corruptions", pair.count);
        Ok(())
    })
}

/// Under a sanitizer too (`cargo xtask sanitize`), where nothing in the kernel
/// can be looked at.
#[test]
fn the_host_takes_no_harm_from_frames_cut_short_or_damaged() -> Result<()> {
    let seed = seed()?;
    println!("LB_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let cases = all();
    let arrivals: Vec<_> = arrivals(&cases).collect();
    let each = ON_THE_HOST.div_ceil(arrivals.len());
    let mut host = Host::new();
    let (mut cut, mut corrupted) = (0, 0);
    for (case, place, frame, ingress) in &arrivals {
        let mut frames: Vec<_> = cuts(frame.len())
            .map(|length| (frame[..length].to_vec(), *ingress))
            .collect();
        cut += frames.len();
        frames.extend(damages(&mut rng, case, frame, *ingress, each));
        corrupted += each;
        for batch in frames.chunks(BATCH) {
            host.begin(&case.world)?;
            play(&case.steps[..*place], &mut host)?;
            for (frame, ingress) in batch {
                let outcome = host.arrive(frame, *ingress)?;
                sane(frame, &outcome).with_context(|| {
                    format!(
                        "{}: in place of step {place}: the frame {frame:02x?} on {ingress}, with LB_TEST_SEED={seed}",
                        case.says
                    )
                })?;
            }
        }
    }
    println!("{cut} truncations and {corrupted} corruptions on the host alone");
    Ok(())
}

/// This frame of a case damaged so many times, and by what they come in.
fn damages(
    rng: &mut Rng,
    case: &Case,
    frame: &[u8],
    ingress: u32,
    count: usize,
) -> Vec<(Vec<u8>, u32)> {
    let others = case.frames();
    (0..count)
        .map(|_| (damaged(rng, frame, &others), ingress_of(rng, ingress)))
        .collect()
}

fn seed() -> Result<u64> {
    match env::var("LB_TEST_SEED") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("LB_TEST_SEED is {text:?}, not a number")),
        Err(_) => Ok(DEFAULT_SEED),
    }
}

/// The interface of the frame it was made from, or now and then any.
fn ingress_of(rng: &mut Rng, usual: u32) -> u32 {
    if rng.u8(0..16) == 0 {
        DEVICES[rng.usize(0..DEVICES.len())].index
    } else {
        usual
    }
}

/// Each frame that comes in, with the case and its place in it.
fn arrivals(cases: &[Case]) -> impl Iterator<Item = (&Case, usize, &[u8], u32)> {
    cases
        .iter()
        .filter(|case| case.host_only.is_none())
        .flat_map(|case| {
            (case.steps.iter().enumerate()).filter_map(move |(place, step)| match step {
                Step::Arrives { frame, on, .. } => Some((case, place, &frame[..], on.index)),
                _ => None,
            })
        })
}

/// Both sides, and how much they have seen.
#[derive(Default)]
struct Pair {
    host: Host,
    kernel: Kernel,
    count: usize,
    sent: usize,
    verdicts: BTreeSet<Verdict>,
    begun: Option<Instant>,
}

impl Pair {
    /// Tries these frames in place of the case's frame at this place, in
    /// batches that begin with the tables as the case has them there.
    fn try_all(&mut self, case: &Case, place: usize, frames: &[(Vec<u8>, u32)]) -> Result<()> {
        self.begun.get_or_insert_with(Instant::now);
        for batch in frames.chunks(BATCH) {
            let tried = self.try_batch(case, place, batch, false);
            if tried.is_err() {
                // Once more, looking at the tables after each: which frame was it?
                self.try_batch(case, place, batch, true)?;
            }
            tried?;
        }
        Ok(())
    }

    fn try_batch(
        &mut self,
        case: &Case,
        place: usize,
        batch: &[(Vec<u8>, u32)],
        slowly: bool,
    ) -> Result<()> {
        let doing = || format!("{}: in place of step {place}", case.says);
        for side in [&mut self.host as &mut dyn Side, &mut self.kernel] {
            side.begin(&case.world)?;
            play(&case.steps[..place], side).with_context(doing)?;
        }
        for (frame, ingress) in batch {
            let what = || format!("the frame {frame:02x?} on {ingress}");
            self.try_one(frame, *ingress)
                .with_context(what)
                .with_context(doing)?;
            if slowly {
                self.compare_tables()
                    .with_context(what)
                    .with_context(doing)?;
            }
        }
        self.compare_tables().with_context(doing)
    }

    fn try_one(&mut self, frame: &[u8], ingress: u32) -> Result<()> {
        self.count += 1;
        if frame.len() < SHORTEST {
            // The host alone, and nothing that the kernel would not have seen:
            // such a frame touches no table but the counters.
            return too_short(frame, ingress);
        }
        let host = self.host.arrive(frame, ingress)?;
        let kernel = self.kernel.arrive(frame, ingress)?;
        ensure!(
            host == kernel,
            "the host makes of it\n{host:02x?}\nand the kernel\n{kernel:02x?}"
        );
        if host.frame != frame {
            self.sent += 1;
        }
        sane(frame, &host)
    }

    fn compare_tables(&mut self) -> Result<()> {
        let (host, kernel) = (self.host.state()?, self.kernel.state()?);
        ensure!(
            host == kernel,
            "the host's tables hold\n{host:#?}\nand the kernel's\n{kernel:#?}"
        );
        self.verdicts.extend(host.verdicts.keys());
        Ok(())
    }

    fn report(&self, what: &str) {
        let seconds = self
            .begun
            .map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        println!(
            "{} {what} on host and kernel: {} translated, {} of {} verdicts, in {seconds:.1} s, {:.0} a second",
            self.count,
            self.sent,
            self.verdicts.len(),
            Verdict::ALL.len(),
            self.count as f64 / seconds
        );
    }
}

fn too_short(frame: &[u8], ingress: u32) -> Result<()> {
    let outcome = Host::new().arrive(frame, ingress)?;
    let unchanged = Outcome {
        action: Action::Pass,
        frame: frame.to_vec(),
    };
    ensure!(outcome == unchanged, "the host makes of it {outcome:02x?}");
    Ok(())
}

/// What holds of every frame, whatever it is.
fn sane(before: &[u8], after: &Outcome) -> Result<()> {
    if after.action == Action::Drop && after.frame != before {
        bail!("it was changed and dropped: {:02x?}", after.frame);
    }
    ensure!(
        !spoiled(before, &after.frame),
        "its checksums were {:?} and are {:?} in {:02x?}",
        checksums(before),
        checksums(&after.frame),
        after.frame
    );
    Ok(())
}

fn play(steps: &[Step], side: &mut dyn Side) -> Result<()> {
    for step in steps {
        match step {
            Step::Loses(key) => side.lose(key)?,
            Step::Lease(held) => side.lease(*held)?,
            Step::Then(..) => {}
            Step::Arrives { on, frame, .. } => drop(side.arrive(frame, on.index)?),
        }
    }
    Ok(())
}
