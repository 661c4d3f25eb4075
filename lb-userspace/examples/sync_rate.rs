//! How fast flows go over: `cargo run --release -p lb-userspace --example sync_rate`.
//!
//! Two tables in one process, with room for a million flows each, and between them the
//! sync channel as a daemon has it: its threads, TCP over the loopback interface, TLS
//! with certificates on both sides. Flows are of IPv4, a third each `nat`, `dsr` and
//! `tunnel`. What a thread takes is what the kernel says of it.

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use lb_common::flow::{ANSWERED, ESTABLISHED};
use lb_userspace::sync::link::Ends;
use lb_userspace::sync::message::{Role, Status};
use lb_userspace::sync::running::Running;
use lb_userspace::tls::{Paths, Renewed};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

#[allow(dead_code)]
#[path = "../tests/sync/world.rs"]
mod world;

use world::Node;

const FLOWS: u64 = 1_000_000;

/// As many as `node.max_flows = 1000000` makes.
const BUCKETS: u32 = 100_000;

const UP: u32 = ANSWERED | ESTABLISHED;

/// How long each rate is held.
const HELD: Duration = Duration::from_secs(4);

/// The longest that anything may take.
const BOUND: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let [one, other] = ends(folder.path())?;
    let (active, passive) = (Node::new(1, BUCKETS, 0), Node::new(2, BUCKETS, 5));
    let mut rng = Rng::with_seed(1);
    let mut places = Vec::new();
    while (places.len() as u64) < FLOWS {
        places.extend(begin(&active, &mut rng));
    }
    let start = |name, node: &Node, ends, role| {
        let status = Status {
            role,
            ..Status::default()
        };
        Running::start(
            name,
            Arc::clone(&node.table),
            ends,
            status,
            node.dictionary(),
        )
    };
    let began = Instant::now();
    let (tells, _told) = start("a", &active, one, Role::Active)?;
    let (hears, _heard) = start("b", &passive, other, Role::Backup)?;
    wait("a session", || hears.view().hears())?;
    let (session, busy) = (Instant::now(), busy()?);
    wait("the snapshot", || hears.view().ready)?;
    let took = session.elapsed().as_secs_f64();
    println!(
        "snapshot of {FLOWS} flows: {took:.2} s, {:.0} flows/s; session after {:.0} ms; threads {}",
        FLOWS as f64 / took,
        session.duration_since(began).as_secs_f64() * 1e3,
        shares(&busy, took)?
    );
    ensure!(passive.live() == places.len() as u64, "flows were lost");
    idle()?;
    delays(&active, &passive, &mut rng, &mut places)?;
    for rate in [10_000, 100_000, 200_000, u64::MAX] {
        at_rate(rate, &active, &tells, &mut rng, &mut places)?;
    }
    let no_room = || hears.view().counts.no_room;
    wait("the rest", || {
        passive.live().abs_diff(active.live()) <= no_room()
    })?;
    println!(
        "all are there but {}, whose two buckets were full",
        no_room()
    );
    Ok(())
}

fn begin(node: &Node, rng: &mut Rng) -> Option<u32> {
    let (which, client, port) = (rng.usize(1..4), rng.u32(..), rng.u16(1_024..));
    node.begin_as(which, client, port, rng.u32(0..world::BACKENDS), UP)
}

/// What it takes when nothing happens.
fn idle() -> anyhow::Result<()> {
    let before = busy()?;
    thread::sleep(HELD);
    let shares = shares(&before, HELD.as_secs_f64())?;
    println!("nothing changes, a million flows: threads {shares}");
    Ok(())
}

/// How long it takes until a flow is at the other node, if there is nothing else.
fn delays(
    active: &Node,
    passive: &Node,
    rng: &mut Rng,
    places: &mut Vec<u32>,
) -> anyhow::Result<()> {
    let mut delays = Vec::new();
    for _ in 0..200 {
        let live = passive.live();
        let Some(place) = begin(active, rng) else {
            continue;
        };
        places.push(place);
        let begun = Instant::now();
        while passive.live() == live {
            ensure!(begun.elapsed() < BOUND, "a flow never came");
            thread::sleep(Duration::from_micros(50));
        }
        delays.push(begun.elapsed());
        thread::sleep(Duration::from_micros(rng.u64(5_000..15_000)));
    }
    delays.sort_unstable();
    let shown = |at: usize| delays[at].as_secs_f64() * 1e3;
    println!(
        "a flow by itself is there after {:.1} ms (median), {:.1} ms (worst of {})",
        shown(delays.len() / 2),
        shown(delays.len() - 1),
        delays.len()
    );
    Ok(())
}

/// As many flows end and begin in a second; `rate` is of both together.
fn at_rate(
    rate: u64,
    active: &Node,
    tells: &Running,
    rng: &mut Rng,
    places: &mut Vec<u32>,
) -> anyhow::Result<()> {
    let (worst, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let (before, told, began) = (busy()?, tells.view().told, Instant::now());
    let mut changes = 0u64;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let lag = tells.view().lag().as_micros() as u64;
                worst.fetch_max(lag, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        while began.elapsed() < HELD {
            let due = began.elapsed().as_secs_f64() * rate as f64;
            let mut burst = 0;
            while (changes as f64) < due && burst < 1_000 {
                let at = rng.usize(0..places.len());
                active.remove(places[at]);
                match begin(active, rng) {
                    Some(place) => places[at] = place,
                    None => drop(places.swap_remove(at)),
                }
                changes += 2;
                burst += 2;
            }
            if burst < 1_000 {
                thread::sleep(Duration::from_micros(200));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let took = began.elapsed().as_secs_f64();
    let told = tells.view().told - told;
    println!(
        "{:.0} changes/s made, {:.0}/s told (those of one place that follow each other are one): lag at most {:.1} ms; threads {}",
        changes as f64 / took,
        told as f64 / took,
        worst.load(Ordering::Relaxed) as f64 / 1e3,
        shares(&before, took)?
    );
    wait("the rest", || tells.view().lag().is_zero())
}

fn wait(what: &str, so: impl Fn() -> bool) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !so() {
        ensure!(begun.elapsed() < BOUND, "{what} never came");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// For how long each thread of the channel has worked, in the order of their starts.
fn busy() -> anyhow::Result<Vec<Duration>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let folder = entry?.path();
        // Others end meanwhile.
        let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        if name.trim() == "sync" {
            threads.push(folder);
        }
    }
    threads.sort_unstable();
    let of = |folder: &std::path::PathBuf| {
        let text = fs::read_to_string(folder.join("schedstat"))?;
        let first = text.split_whitespace().next();
        let nanoseconds = first.context("the kernel says nothing of a thread")?;
        Ok(Duration::from_nanos(nanoseconds.parse()?))
    };
    threads.iter().map(of).collect()
}

/// How much of a CPU each has taken since then.
fn shares(before: &[Duration], seconds: f64) -> anyhow::Result<String> {
    let now = busy()?;
    let pairs = ["a", "b"].iter().zip(before.iter().zip(now));
    let shown = pairs.map(|(name, (before, now))| {
        let share = (now - *before).as_secs_f64() / seconds;
        format!("{name} {:.1} %", share * 100.0)
    });
    Ok(shown.collect::<Vec<_>>().join(", "))
}

/// Where both are, and who.
fn ends(folder: &Path) -> anyhow::Result<[Ends; 2]> {
    let hosts: [IpAddr; 2] = ["127.0.0.1".parse()?, "127.0.0.2".parse()?];
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    let ca = folder.join("ca.crt");
    fs::write(&ca, params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    let mut at = Vec::new();
    for host in hosts {
        at.push(TcpListener::bind((host, 0))?.local_addr()?);
    }
    let node = |listen: SocketAddr, peer: SocketAddr| -> anyhow::Result<Ends> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(listen.ip())];
        let key = KeyPair::generate()?;
        let paths = Paths {
            cert: folder.join(format!("{}.crt", listen.ip())),
            key: folder.join(format!("{}.key", listen.ip())),
            ca: ca.clone(),
        };
        fs::write(&paths.cert, params.signed_by(&key, &issuer)?.pem())?;
        fs::write(&paths.key, key.serialize_pem())?;
        fs::set_permissions(&paths.key, Permissions::from_mode(0o600))?;
        Ok(Ends {
            listen,
            peer,
            identity: Arc::new(Renewed::open(paths, listen.ip())?),
        })
    };
    Ok([node(at[0], at[1])?, node(at[1], at[0])?])
}
