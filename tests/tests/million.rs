//! Damaged frames by the million through the program in the kernel, in both its
//! flavours, as fast as they go.
//!
//! Nothing is compared with the host here, as it is in `truncation.rs`. What
//! must hold of every frame: the program does not abort; what is dropped is as
//! it came, and so is what is passed, but by a verdict that gives a translated
//! packet to the host; and no checksum that was right is wrong afterwards. Every
//! frame is counted once.
//!
//! Frames are made from those of the golden cases, and come in batches, each in
//! the middle of its case. The flavour for frames in pieces gets long ones too,
//! and some whose first piece ends anywhere.
//!
//! The host gets a part of the very same frames, so that a sanitizer can look on
//! (`cargo xtask sanitize`); of each it sees one piece only.
//!
//! Everything follows from a seed, which is printed: `LB_TEST_SEED=N` takes
//! another one, `LB_TEST_FRAMES=N` takes more frames or fewer.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Error, Result, anyhow, ensure};
use fastrand::Rng;
use lb_common::{Action, Verdict};
use tests::cases::{Case, Step, all};
use tests::checksum::{checksums, spoiled};
use tests::damage::{cuts, damaged, lengthen};
use tests::host::Host;
use tests::kernel::{Kernel, PROGRAMS, SHORTEST, in_namespace};
use tests::network::DEVICES;
use tests::world::{Outcome, Side, World};

const FRAMES: u64 = 1_000_000;

/// The host gets one batch of so many: an odd number, because batches are for
/// the two programs in turn.
const HOST_SHARE: usize = 7;
const SEED: u64 = 20_261_122;

/// How many frames come in before the tables are again as their case has them.
const BATCH: usize = 96;

/// How long a frame in pieces becomes.
const JUMBO: usize = 9000;

/// The verdicts by which a changed packet is given to the host.
const MADE_READY: [Verdict; 3] = [
    Verdict::NeighbourPending,
    Verdict::LocalDestination,
    Verdict::FragmentedByHost,
];

#[test]
fn whatever_the_frame_the_kernel_spoils_nothing() -> Result<()> {
    let cases = all();
    let run = Run::new(&cases)?;
    let frames = run.wanted;
    let begun = Instant::now();
    let sum = Mutex::new(Sum::default());
    let threads = thread::available_parallelism()?.get().min(run.batches);
    thread::scope(|scope| {
        let work = || {
            in_namespace(|| {
                let result = run.work();
                // The others need not go on.
                run.next.store(run.batches, Ordering::Relaxed);
                let mut sum = sum.lock().map_err(|_| anyhow!("another thread panicked"))?;
                sum.add(&result?);
                Ok(())
            })
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        (threads.into_iter()).try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => Err(anyhow!("a thread panicked")),
        })
    })?;
    let sum = sum.into_inner()?;
    sum.report(begun.elapsed().as_secs_f64());
    ensure!(sum.frames() >= frames, "only {} frames", sum.frames());
    if frames >= FRAMES {
        let shown: BTreeSet<Verdict> = run.arrivals.iter().map(|arrival| arrival.verdict).collect();
        let missed: Vec<_> = (shown.iter())
            .filter(|verdict| !sum.verdicts.contains_key(verdict))
            .collect();
        ensure!(missed.is_empty(), "no damaged frame ended in {missed:?}");
    }
    Ok(())
}

#[test]
fn the_host_spoils_nothing_of_the_same_frames() -> Result<()> {
    let cases = all();
    let run = Run::new(&cases)?;
    let begun = Instant::now();
    let mut host = Host::new();
    let (mut count, mut changed) = (0, 0);
    for batch in (0..run.batches).step_by(HOST_SHARE) {
        let arrival = run.arrival(batch);
        begin(&mut host, arrival)?;
        for frame in run.frames(batch, true) {
            let tried = on_host(&mut host, &frame).map_err(|error| {
                let alone = || {
                    begin(&mut host, arrival)?;
                    on_host(&mut host, &frame).map(drop)
                };
                told(error, alone, &frame)
            });
            changed += u64::from(tried.with_context(|| run.says(batch))?);
            count += 1;
        }
    }
    println!(
        "{count} of {} damaged frames on the host, {changed} changed by the data path, in {:.0} s",
        run.wanted,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

#[test]
fn wherever_the_first_piece_ends_the_kernel_spoils_nothing() -> Result<()> {
    let cases = all();
    in_namespace(|| {
        let mut kernel = Kernel::of(PROGRAMS[1]);
        if !takes_pieces(&mut kernel)? {
            return Ok(());
        }
        let mut sum = Sum::default();
        for arrival in arrivals(&cases) {
            let frames: Vec<_> = cuts(arrival.frame.len())
                .filter(|first| *first >= SHORTEST)
                .map(|first| Damaged {
                    bytes: arrival.frame.to_vec(),
                    first,
                    ingress: arrival.ingress,
                })
                .collect();
            for batch in frames.chunks(BATCH) {
                sum.batch(&mut kernel, &arrival, batch)
                    .with_context(|| arrival.says())?;
            }
        }
        println!(
            "{} frames in pieces, {} changed by the program",
            sum.in_pieces, sum.changed
        );
        Ok(())
    })
}

fn number(name: &str, usual: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => (text.replace('_', "").parse())
            .with_context(|| format!("{name} is {text:?}, not a number")),
        Err(_) => Ok(usual),
    }
}

/// A frame of a case that can come in to the kernel.
struct Arrival<'a> {
    case: &'a Case,
    place: usize,
    frame: &'a [u8],
    ingress: u32,
    verdict: Verdict,
}

fn arrivals(cases: &[Case]) -> impl Iterator<Item = Arrival<'_>> {
    (cases.iter().filter(|case| case.host_only.is_none())).flat_map(|case| {
        (case.steps.iter().enumerate()).filter_map(move |(place, step)| match step {
            Step::Arrives {
                on, frame, verdict, ..
            } => Some(Arrival {
                case,
                place,
                frame,
                ingress: on.index,
                verdict: *verdict,
            }),
            _ => None,
        })
    })
}

impl Arrival<'_> {
    fn says(&self) -> String {
        format!("in place of step {} of {:?}", self.place, self.case.says)
    }
}

/// What is to be done, by all threads.
struct Run<'a> {
    arrivals: Vec<Arrival<'a>>,
    seed: u64,
    /// How many frames at least.
    wanted: u64,
    batches: usize,
    next: AtomicUsize,
}

/// A damaged frame, and how it comes in.
struct Damaged {
    bytes: Vec<u8>,
    /// How much of it is in the first piece.
    first: usize,
    ingress: u32,
}

/// What was seen.
#[derive(Default)]
struct Sum {
    by_program: BTreeMap<&'static str, u64>,
    in_pieces: u64,
    changed: u64,
    verdicts: BTreeMap<Verdict, u64>,
}

impl<'a> Run<'a> {
    /// As the environment has it.
    fn new(cases: &'a [Case]) -> Result<Self> {
        let wanted = number("LB_TEST_FRAMES", FRAMES)?;
        let seed = number("LB_TEST_SEED", SEED)?;
        println!("LB_TEST_SEED={seed}");
        Ok(Self {
            arrivals: arrivals(cases).collect(),
            seed,
            wanted,
            batches: wanted.div_ceil(BATCH as u64) as usize,
            next: AtomicUsize::new(0),
        })
    }

    fn work(&self) -> Result<Sum> {
        let mut sum = Sum::default();
        let mut kernels = PROGRAMS.map(Kernel::of);
        let pieces = takes_pieces(&mut kernels[1])?;
        loop {
            let batch = self.next.fetch_add(1, Ordering::Relaxed);
            if batch >= self.batches {
                return Ok(sum);
            }
            let program = program_of(batch);
            let arrival = self.arrival(batch);
            let frames = self.frames(batch, pieces);
            *sum.by_program.entry(PROGRAMS[program]).or_default() += frames.len() as u64;
            sum.batch(&mut kernels[program], arrival, &frames)
                .with_context(|| self.says(batch))?;
        }
    }

    /// Those of one case one after another: the kernel waits for all its CPUs
    /// when a service's sequence is exchanged.
    fn arrival(&self, batch: usize) -> &Arrival<'a> {
        &self.arrivals[batch * self.arrivals.len() / self.batches]
    }

    fn says(&self, batch: usize) -> String {
        format!(
            "with LB_TEST_SEED={}, batch {batch}, for the program `{}`, {}",
            self.seed,
            PROGRAMS[program_of(batch)],
            self.arrival(batch).says()
        )
    }

    /// The frames of a batch, some in pieces if the kernel takes those.
    fn frames(&self, batch: usize, pieces: bool) -> Vec<Damaged> {
        let long = program_of(batch) == 1;
        let arrival = self.arrival(batch);
        let mut rng = Rng::with_seed(self.seed);
        let mut rng = Rng::with_seed(rng.u64(..) ^ batch as u64);
        let others = arrival.case.frames();
        (0..BATCH)
            .map(|_| {
                let mut bytes = damaged(&mut rng, arrival.frame, &others);
                // The kernel takes no shorter test frame.
                bytes.resize(bytes.len().max(SHORTEST), 0);
                if long && rng.u8(0..32) == 0 {
                    lengthen(&mut rng, &mut bytes, JUMBO);
                }
                let first = if long && pieces && rng.u8(0..4) == 0 {
                    rng.usize(SHORTEST..=bytes.len())
                } else {
                    bytes.len()
                };
                let ingress = if rng.u8(0..16) == 0 {
                    DEVICES[rng.usize(0..DEVICES.len())].index
                } else {
                    arrival.ingress
                };
                Damaged {
                    bytes,
                    first,
                    ingress,
                }
            })
            .collect()
    }
}

/// The place of the program that a batch is for.
fn program_of(batch: usize) -> usize {
    batch % PROGRAMS.len()
}

/// Whether the kernel lets a test say where the first piece of a frame ends.
fn takes_pieces(kernel: &mut Kernel) -> Result<bool> {
    kernel.begin(&World::empty())?;
    let takes = kernel
        .arrive_in_pieces(&[0; 60], 30, DEVICES[0].index)
        .is_ok();
    if !takes {
        println!("this kernel cuts no test frame into pieces (Linux 6.18 does)");
    }
    Ok(takes)
}

impl Sum {
    fn batch(&mut self, kernel: &mut Kernel, arrival: &Arrival, frames: &[Damaged]) -> Result<()> {
        let before = begin(kernel, arrival)?;
        let mut made_ready: u64 = kernel.counts(MADE_READY)?.iter().sum();
        for frame in frames {
            let tried = self.one(kernel, frame, &mut made_ready);
            tried.map_err(|error| {
                let alone = || {
                    begin(kernel, arrival)?;
                    let mut made_ready = kernel.counts(MADE_READY)?.iter().sum();
                    Sum::default().one(kernel, frame, &mut made_ready)
                };
                told(error, alone, frame)
            })?;
        }
        let verdicts = kernel.verdicts()?;
        let (counted, came) = (verdicts.values().sum::<u64>(), frames.len() as u64);
        ensure!(
            counted == before + came,
            "{came} frames came in after {before}, and {counted} were counted"
        );
        for (verdict, count) in verdicts {
            *self.verdicts.entry(verdict).or_default() += count;
        }
        Ok(())
    }

    fn one(&mut self, kernel: &Kernel, frame: &Damaged, made_ready: &mut u64) -> Result<()> {
        let Damaged {
            bytes,
            first,
            ingress,
        } = frame;
        self.in_pieces += u64::from(*first < bytes.len());
        let outcome = kernel.arrive_in_pieces(bytes, *first, *ingress)?;
        self.changed += u64::from(sound(bytes, &outcome, || {
            let now = kernel.counts(MADE_READY)?.iter().sum();
            Ok(std::mem::replace(made_ready, now) != now)
        })?);
        Ok(())
    }

    fn frames(&self) -> u64 {
        self.by_program.values().sum()
    }

    fn add(&mut self, other: &Self) {
        for (program, count) in &other.by_program {
            *self.by_program.entry(program).or_default() += count;
        }
        for (verdict, count) in &other.verdicts {
            *self.verdicts.entry(*verdict).or_default() += count;
        }
        self.in_pieces += other.in_pieces;
        self.changed += other.changed;
    }

    fn report(&self, seconds: f64) {
        let frames = self.frames();
        println!(
            "{frames} damaged frames ({:?}), {} of them in pieces, {} changed by the program, in {seconds:.0} s, {:.0} a second",
            self.by_program,
            self.in_pieces,
            self.changed,
            frames as f64 / seconds
        );
        println!(
            "{} of {} verdicts (those of the frames before them among them):",
            self.verdicts.len(),
            Verdict::ALL.len()
        );
        for verdict in Verdict::ALL {
            let count = self.verdicts.get(verdict).copied().unwrap_or(0);
            println!("{count:>12} {}", verdict.name());
        }
    }
}

/// Gives a frame to the host, all of it; whether it was changed.
fn on_host(host: &mut Host, frame: &Damaged) -> Result<bool> {
    let before = host.state()?;
    let outcome = host.arrive(&frame.bytes, frame.ingress)?;
    let verdict = host.state()?.verdict_since(&before);
    ensure!(verdict.is_some(), "it was not counted once");
    sound(&frame.bytes, &outcome, || {
        Ok(verdict.is_some_and(|verdict| MADE_READY.contains(&verdict)))
    })
}

/// Whether the frame was changed, which must have spoiled nothing. `made_ready`
/// is asked about a changed one that was passed: whether its verdict is one of
/// those.
fn sound(
    bytes: &[u8],
    outcome: &Outcome,
    made_ready: impl FnOnce() -> Result<bool>,
) -> Result<bool> {
    if outcome.frame == bytes {
        return Ok(false);
    }
    match outcome.action {
        Action::Drop => return Err(changed_and("dropped", outcome)),
        Action::Pass if !made_ready()? => return Err(changed_and("passed", outcome)),
        Action::Pass | Action::Transmit | Action::Redirect => {}
    }
    ensure!(
        !spoiled(bytes, &outcome.frame),
        "its checksums were {:?} and are {:?} in {}",
        checksums(bytes),
        checksums(&outcome.frame),
        hex(&outcome.frame)
    );
    Ok(true)
}

fn changed_and(what: &str, outcome: &Outcome) -> Error {
    anyhow!("it was changed and {what}: {}", hex(&outcome.frame))
}

/// The tables as the case has them; how many frames that took.
fn begin(side: &mut impl Side, arrival: &Arrival) -> Result<u64> {
    side.begin(&arrival.case.world)?;
    let mut count = 0;
    for step in &arrival.case.steps[..arrival.place] {
        match step {
            Step::Loses(key) => side.lose(key)?,
            Step::Lease(held) => side.lease(*held)?,
            Step::Then(..) => {}
            Step::Arrives { on, frame, .. } => {
                side.arrive(frame, on.index)?;
                count += 1;
            }
        }
    }
    Ok(count)
}

/// The error with all that a golden case needs; `alone` tries the frame without
/// those of the batch before it.
fn told(error: Error, alone: impl FnOnce() -> Result<()>, frame: &Damaged) -> Error {
    let needs = if alone().is_err() {
        "it alone does it"
    } else {
        "it needs those of the batch before it"
    };
    error.context(format!(
        "the frame {} on {}, of which {} bytes are in the first piece ({needs})",
        hex(&frame.bytes),
        frame.ingress,
        frame.first
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes any text");
        text
    })
}
