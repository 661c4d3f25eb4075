//! A flood of SYNs from forged sources on the balancer's cable, as fast as one CPU
//! makes them (`lb-ebpf/src/flood.rs`).
//!
//! The frames enter the cable at the switch's end, so that neither a sender's
//! stack nor the bridge slows them down. The forged sources are nobody's: what
//! answers them goes to the client's host, which is no router and drops it, as
//! the Internet does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Array, MapData};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use bytemuck::{cast, pod_read_unaligned};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket as open_socket};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::{Family, Host, Net, batch, socket};
use crate::frame::{Frame, Link, tcp};
use recipe::{FRAME, Recipe};

#[path = "../../../lb-ebpf/src/flood/recipe.rs"]
mod recipe;

static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-flood.o"));

/// Frames between two glances at the clock.
const SPELL: u32 = 1 << 14;

/// Frames that the kernel makes at a time; its own default.
const BATCH: u32 = 64;

/// How many ports each sender of [`Handshakes`] uses.
const PORTS_EACH: u32 = 50_000;

/// See the module. Dropped, it ends.
#[derive(Debug)]
pub struct Flood {
    ended: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    began: Instant,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What a flood was.
#[derive(Clone, Copy, Debug)]
pub struct Flooded {
    /// SYNs sent.
    pub packets: u64,
    /// For how long.
    pub lasted: Duration,
}

impl Flooded {
    /// SYNs a second.
    pub fn rate(&self) -> f64 {
        self.packets as f64 / self.lasted.as_secs_f64()
    }
}

/// The sources that are forged: first address and length of the prefix. For
/// benchmarks (RFC 2544) and for documentation (RFC 3849).
const fn forged(family: Family) -> (IpAddr, u8) {
    match family {
        Family::V4 => (IpAddr::V4(Ipv4Addr::new(198, 19, 0, 0)), 16),
        Family::V6 => {
            let first = Ipv6Addr::new(0x2001, 0xdb8, 0xf10d, 0, 0, 0, 0, 0);
            (IpAddr::V6(first), 96)
        }
    }
}

impl Net {
    /// Lets the hosts answer the forged sources as they answer the client: in
    /// `nat` by the balancer, which has to see the answers.
    pub fn lead_answers_to_forged(&self, forward: &str) -> Result<()> {
        let mut routes = String::new();
        for family in Family::ALL {
            let (first, length) = forged(family);
            let client = self.client.address(family);
            let by = match forward {
                "nat" => self.balancer.address(family),
                _ => client,
            };
            let ways = self.backends.iter().map(|host| (host, by));
            for (host, via) in ways.chain([(&self.balancer, client)]) {
                let namespace = &host.namespace;
                routes += &format!("-n {namespace} route add {first}/{length} via {via}\n");
            }
        }
        batch(&routes)
    }
}

impl Flood {
    /// Floods a service until it is stopped, or for so long.
    pub fn start(net: &Net, service: SocketAddr, at_most: Duration) -> Result<Self> {
        let syn = syn(net, service)?;
        let run = Run::load(recipe(&syn, service, cable(net)?)?, service)?;
        let (ended, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (end, count) = (Arc::clone(&ended), Arc::clone(&made));
        let began = Instant::now();
        let thread = net.switch.spawn(move || -> Result<()> {
            stay_on_one_cpu()?;
            while !end.load(Ordering::Relaxed) && began.elapsed() < at_most {
                run.send(SPELL)?;
                count.store(run.made()?, Ordering::Relaxed);
            }
            Ok(())
        });
        Ok(Self {
            ended,
            made,
            began,
            thread: Some(thread),
        })
    }

    /// What it is so far.
    pub fn so_far(&self) -> Flooded {
        Flooded {
            packets: self.made.load(Ordering::Relaxed),
            lasted: self.began.elapsed(),
        }
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<Flooded> {
        self.ended.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("a flood is stopped once")?;
        let ran = thread
            .join()
            .map_err(|_| anyhow!("the flood's thread panicked"))?;
        ran.context("the flood broke off")?;
        let flooded = self.so_far();
        ensure!(flooded.packets > 0, "the flood was none");
        Ok(flooded)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The kernel takes the frames in on the CPU that sent them. A sender that moves
/// to another one would be faster than the first, and only fill its queue.
fn stay_on_one_cpu() -> Result<()> {
    let allowed = sched_getaffinity(None)?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| allowed.is_set(cpu));
    let mut one = CpuSet::new();
    one.set(last.context("this thread may run on no CPU")?);
    sched_setaffinity(None, &one).context("cannot stay on one CPU")
}

/// Connections that nobody has: two segments of each, as a balancer sees them
/// that does not hear the backends (`dsr`, `tunnel`).
pub struct Handshakes {
    syn: Run,
    ack: Run,
    net: Host,
}

impl Handshakes {
    /// With a service.
    pub fn with(net: &Net, service: SocketAddr) -> Result<Self> {
        let (syn, egress) = (syn(net, service)?, cable(net)?);
        let ack = syn.clone().tcp_options(&[]).ack(1);
        let run = |frame: &Frame| {
            let recipe = Recipe {
                ports: PORTS_EACH,
                ..recipe(frame, service, egress)?
            };
            Run::load(recipe, service)
        };
        Ok(Self {
            syn: run(&syn)?,
            ack: run(&ack)?,
            net: net.switch.clone(),
        })
    }

    /// Makes those of these numbers. Some of the segments may be lost, as on any
    /// wire.
    pub fn make(&mut self, numbers: Range<u32>) -> Result<()> {
        let count = numbers.len().try_into()?;
        for run in [&mut self.syn, &mut self.ack] {
            let mut recipe: Recipe = pod_read_unaligned(&run.recipe.get(&0, 0)?);
            recipe.next = numbers.start;
            run.recipe.set(0, cast::<_, [u8; _]>(recipe), 0)?;
            self.net.enter(|| run.send(count))?;
        }
        Ok(())
    }
}

/// The program, loaded, and what it is told.
struct Run {
    programs: Ebpf,
    recipe: Array<MapData, [u8; size_of::<Recipe>()]>,
    name: &'static str,
}

impl Run {
    fn load(recipe: Recipe, service: SocketAddr) -> Result<Self> {
        let mut programs = EbpfLoader::new()
            .load(PROGRAMS)
            .context("cannot read the flood's program")?;
        let name = match service {
            SocketAddr::V4(_) => "flood_v4",
            SocketAddr::V6(_) => "flood_v6",
        };
        let program: &mut Xdp = programs
            .program_mut(name)
            .with_context(|| format!("the object holds no program `{name}`"))?
            .try_into()?;
        program.load()?;
        let map = programs.take_map("RECIPE").context("there is no recipe")?;
        let mut told = Array::try_from(map)?;
        told.set(0, cast::<_, [u8; _]>(recipe), 0)?;
        Ok(Self {
            programs,
            recipe: told,
            name,
        })
    }

    /// Sends so many frames; on the switch.
    fn send(&self, count: u32) -> Result<()> {
        self.program()?.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME]),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
        Ok(())
    }

    fn program(&self) -> Result<&Xdp> {
        let program = self.programs.program(self.name);
        Ok(program.context("it was loaded")?.try_into()?)
    }

    fn made(&self) -> Result<u64> {
        let recipe: Recipe = pod_read_unaligned(&self.recipe.get(&0, 0)?);
        Ok(recipe.made)
    }
}

/// The flood's frame, without what varies.
fn syn(net: &Net, service: SocketAddr) -> Result<Frame> {
    let links = [
        link(&net.client.card("eth0")?)?,
        link(&net.balancer.card("eth0")?)?,
    ];
    Ok(segment(service).syn().mss(1460).over(links))
}

/// A segment from the first of the forged sources.
fn segment(service: SocketAddr) -> Frame {
    let (first, _) = forged(family(service));
    let from = SocketAddr::new(first, 0).to_string();
    tcp(&from, &service.to_string()).seq(0)
}

const fn family(service: SocketAddr) -> Family {
    match service {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    }
}

fn recipe(frame: &Frame, service: SocketAddr, egress: u32) -> Result<Recipe> {
    let (first, length) = forged(family(service));
    let frame = frame.clone().padded_to(FRAME).bytes();
    let (low, bits) = match first {
        IpAddr::V4(first) => (first.to_bits(), 32 - length),
        // The low word of the prefix is zero.
        IpAddr::V6(_) => (0, 128 - length),
    };
    let (head, rest) = frame.split_at(2);
    let mut recipe = Recipe {
        random: fastrand::u64(..),
        made: 0,
        egress,
        source: low,
        mask: u32::MAX.checked_shr(32 - u32::from(bits)).unwrap_or(0),
        head: head.try_into()?,
        zero: [0; 2],
        words: bytemuck::Zeroable::zeroed(),
        ports: 0,
        next: 0,
        end: 0,
    };
    for (word, bytes) in recipe.words.iter_mut().zip(rest.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into()?);
    }
    Ok(recipe)
}

/// The index of the switch's end of the balancer's cable.
fn cable(net: &Net) -> Result<u32> {
    let name = socket(&net.balancer, "eth0");
    net.switch.enter(|| {
        let any = open_socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        name_to_index(&any, &name).with_context(|| format!("there is no interface {name}"))
    })
}

/// A link address from how `ip` writes it.
fn link(text: &str) -> Result<Link> {
    let octets = text.split(':').map(|octet| u8::from_str_radix(octet, 16));
    let octets: Vec<u8> = octets.collect::<Result<_, _>>()?;
    octets
        .try_into()
        .map_err(|_| anyhow!("{text} is no link address"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::checksum::{checksums, checksums_hold};

    #[test]
    fn the_frames_of_a_flood_differ_and_all_their_checksums_hold() -> Result<()> {
        for (service, ends) in [("10.9.0.100:80", 26..36), ("[fd09::100]:80", 22..56)] {
            let service = service.parse()?;
            let syn = segment(service).syn().mss(1460);
            let run = Run::load(recipe(&syn, service, 1)?, service)?;
            let mut seen = HashSet::new();
            for _ in 0..1000 {
                let mut frame = [0; FRAME];
                run.program()?.test_run(TestRunOptions {
                    data_in: Some(&[0xff; FRAME]),
                    data_out: Some(&mut frame),
                    ..TestRunOptions::new()
                })?;
                assert!(checksums_hold(&frame), "{frame:02x?}");
                assert_eq!(checksums(&frame).transport, Some(true), "{frame:02x?}");
                seen.insert(frame[ends.clone()].to_vec());
            }
            assert!(seen.len() > 990, "only {} different sources", seen.len());
            assert_eq!(run.made()?, 1000);
        }
        Ok(())
    }
}
