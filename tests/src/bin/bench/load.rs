//! The load's programs in the kernel (`lb-ebpf/src/load.rs`), and what they did.
//!
//! Frames are made by live test runs in a thread that stays on one CPU. The kernel
//! goes on with each batch of them before it makes the next, on the same CPU: so
//! generator, cables, the balancer's program or stack, and the counting at the
//! end all share one core, and nothing waits in a queue for another one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use bytemuck::{cast, pod_read_unaligned};
use tests::frame::Frame;
use tests::netns::{Chain, Host};

use crate::machine::stay_on_last_cpu;
use crate::recipe::{Counts, FRAME, Recipe};

static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-load.o"));

/// Frames by which it is found out how many make up a time.
const PROBE: u32 = 1 << 15;

/// The most frames of one run.
const MOST: f64 = 1e8;

/// How often the counter is looked at.
const GLANCE: Duration = Duration::from_micros(500);

/// Frames that the kernel makes at a time; its own default.
const BATCH: u32 = 64;

/// Sends frames from an interface of a host.
pub(crate) struct Sender {
    programs: Ebpf,
    recipe: Array<MapData, [u8; size_of::<Recipe>()]>,
    host: Host,
    egress: u32,
}

/// How many connections' frames are sent, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Any of so many, all alike likely.
    AnyOf(u32),
    /// Those from one to so many, one after the other.
    Turns {
        /// The first.
        from: u32,
        /// How many there are.
        of: u32,
    },
}

impl Sender {
    /// Loads what sends.
    pub(crate) fn new(host: &Host, interface: &str) -> Result<Self> {
        let mut programs = object()?;
        load(&mut programs, "send")?;
        let map = programs.take_map("RECIPE").context("there is no recipe")?;
        Ok(Self {
            recipe: map.try_into()?,
            programs,
            host: host.clone(),
            egress: index(host, interface)?,
        })
    }

    /// Says what to send: this frame, but from another forged end for each
    /// connection.
    pub(crate) fn prepare(&mut self, frame: &Frame, order: Order) -> Result<()> {
        let bytes = frame.clone().padded_to(FRAME).bytes();
        ensure!(bytes.len() == FRAME, "a frame has {FRAME} bytes");
        let (flows, next, in_turns) = match order {
            Order::AnyOf(flows) => (flows, 0, 0),
            Order::Turns { from, of } => (of, from, 1),
        };
        let checks_transport = bytes[23] == lb_common::abi::TCP;
        let mut recipe = Recipe {
            random: 0x5eed,
            made: 0,
            egress: self.egress,
            flows: flows.max(1),
            next,
            in_turns,
            address: Chain::FORGED.to_bits(),
            check: if checks_transport { 50 } else { 0 },
            head: [bytes[0], bytes[1]],
            zero: [0; 2],
            words: bytemuck::Zeroable::zeroed(),
        };
        for (word, bytes) in recipe.words.iter_mut().zip(bytes[2..].chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into()?);
        }
        self.recipe.set(0, cast::<_, [u8; _]>(recipe), 0)?;
        Ok(())
    }

    /// Sends so many.
    pub(crate) fn send(&self, count: u32) -> Result<()> {
        self.host.enter(|| {
            stay_on_last_cpu()?;
            self.spell(count)
        })
    }

    /// Sends for about so long, and looks at a counter meanwhile.
    ///
    /// The kernel prepares and clears up before and after the frames of one run,
    /// for some ten milliseconds. So the rate is that between the first and the
    /// last time that the counter was seen to move, by a thread on another CPU.
    pub(crate) fn send_for(
        &self,
        span: Duration,
        counter: impl Fn() -> Result<u64>,
    ) -> Result<Sent> {
        let (before, began) = (self.made()?, Instant::now());
        self.send(PROBE)?;
        let share = span.as_secs_f64() / began.elapsed().as_secs_f64();
        let count = (f64::from(PROBE) * share).clamp(f64::from(PROBE), MOST) as u32;
        let first = counter()?;
        let ended = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let sent = self.send(count);
                ended.store(true, Ordering::Relaxed);
                sent
            });
            let seen = moves(first, &counter, &ended);
            match sending.join() {
                Ok(sent) => sent.and(seen),
                Err(_) => bail!("the thread that sends panicked"),
            }
        })?;
        let [(from, some), (to, all)] = seen;
        let seconds = to.duration_since(from).as_secs_f64();
        ensure!(seconds > 0.0, "nothing was counted while {count} were sent");
        Ok(Sent {
            made: self.made()? - before,
            rate: (all - some) as f64 / seconds,
        })
    }

    fn spell(&self, count: u32) -> Result<()> {
        let program = self.programs.program("send").context("it was loaded")?;
        let program: &Xdp = program.try_into()?;
        program.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME]),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
        Ok(())
    }

    fn made(&self) -> Result<u64> {
        let recipe: Recipe = pod_read_unaligned(&self.recipe.get(&0, 0)?);
        Ok(recipe.made)
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Frames that were made, before as well.
    pub(crate) made: u64,
    /// By how much the counter moved in a second.
    pub(crate) rate: f64,
}

/// When a counter was first and last seen to move until the end, and where it was.
fn moves(
    mut last: u64,
    counter: impl Fn() -> Result<u64>,
    ended: &AtomicBool,
) -> Result<[(Instant, u64); 2]> {
    let mut seen: Option<[(Instant, u64); 2]> = None;
    loop {
        let over = ended.load(Ordering::Relaxed);
        let now = counter()?;
        if now != last {
            let at = (Instant::now(), now);
            seen = Some(seen.map_or([at, at], |[first, _]| [first, at]));
            last = now;
        }
        if over {
            return seen.context("nothing was counted");
        }
        thread::sleep(GLANCE);
    }
}

/// What is attached at the end of a cable. Dropped, it is detached.
pub(crate) struct End {
    wanted: Array<MapData, u32>,
    counts: PerCpuArray<MapData, [u64; 4]>,
    /// Keeps the program attached.
    _programs: Ebpf,
}

impl End {
    /// Counts what arrives, and does with it what [`crate::recipe::does`] says.
    pub(crate) fn attach(host: &Host, interface: &str, does: u32) -> Result<Self> {
        Self::with("ends", host, interface, does)
    }

    /// Sends every frame back.
    pub(crate) fn bounce(host: &Host, interface: &str) -> Result<Self> {
        Self::with("bounce", host, interface, 0)
    }

    /// Sends every frame out by this other interface.
    pub(crate) fn across(host: &Host, interface: &str, other: &str) -> Result<Self> {
        Self::with("across", host, interface, index(host, other)?)
    }

    fn with(name: &str, host: &Host, interface: &str, word: u32) -> Result<Self> {
        let mut programs = object()?;
        let mut wanted: Array<MapData, u32> = programs
            .take_map("ENDS")
            .context("there is no map ENDS")?
            .try_into()?;
        wanted.set(0, word, 0)?;
        let counts = programs.take_map("COUNTS").context("nothing is counted")?;
        let index = index(host, interface)?;
        let program = load(&mut programs, name)?;
        host.enter(|| program.attach_to_if_index(index, XdpMode::Driver))
            .with_context(|| format!("cannot attach `{name}` to {interface}"))?;
        Ok(Self {
            wanted,
            counts: counts.try_into()?,
            _programs: programs,
        })
    }

    /// Does this from now on.
    pub(crate) fn now(&mut self, does: u32) -> Result<()> {
        self.wanted.set(0, does, 0)?;
        Ok(())
    }

    /// What was counted so far.
    pub(crate) fn counts(&self) -> Result<Counts> {
        let mut sum = Counts::default();
        for counts in self.counts.get(&0, 0)?.iter() {
            let [frames, accepted, closed, resets] = counts;
            sum.frames += frames;
            sum.accepted += accepted;
            sum.closed += closed;
            sum.resets += resets;
        }
        Ok(sum)
    }
}

fn object() -> Result<Ebpf> {
    EbpfLoader::new()
        .load(PROGRAMS)
        .context("cannot read the load's programs")
}

fn load<'e>(programs: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp> {
    let program: &mut Xdp = programs
        .program_mut(name)
        .with_context(|| format!("the object holds no program `{name}`"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("the kernel refused the program `{name}`"))?;
    Ok(program)
}

fn index(host: &Host, interface: &str) -> Result<u32> {
    Ok(host.enter(|| lb_userspace::host::ifindex(interface))?)
}
