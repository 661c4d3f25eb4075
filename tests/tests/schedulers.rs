//! What each scheduler promises, over a million simulated connections.
//!
//! The same figures are drawn by `cargo xtask charts`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lb_userspace::schedule::{self, Scheduler};
use tests::simulation::{self, FLOWS, Least, Measured, backends, flows};

/// What may be, as parts of one.
struct Bounds {
    scheduler: &'static str,
    /// How far a backend may be from what is due to it: of a hundred equal
    /// ones, of six with weights, and of the 99 when one is down.
    off: [f64; 3],
    /// How much of the others' flows may move when one of a hundred goes down,
    /// then a second, when one is taken out of the file, and when one is added.
    moves: [f64; 4],
}

/// Turns and live connections owe nothing to the connection itself: without
/// the flow table hardly any connection would find its backend again.
const ALL_MAY_MOVE: [f64; 4] = [1.0; 4];

const BOUNDS: [Bounds; 4] = [
    Bounds {
        scheduler: "wrr",
        off: [0.0, 0.0, 0.0001],
        moves: ALL_MAY_MOVE,
    },
    // Of 10,000 connections that are due to one of a hundred, chance alone is
    // off by 1 % on the average.
    Bounds {
        scheduler: "maglev",
        off: [0.05, 0.05, 0.07],
        moves: [0.0, 0.0, 0.01, 0.01],
    },
    Bounds {
        scheduler: "least-conn",
        off: [0.0, 0.0, 0.0001],
        moves: ALL_MAY_MOVE,
    },
    // It is clients that are hashed: 2,000 are due to one of a hundred.
    Bounds {
        scheduler: "source-hash",
        off: [0.10, 0.05, 0.12],
        moves: [0.0, 0.0, 0.01, 0.01],
    },
];

/// How far the worst is from what is due.
fn worst(distribution: &[f64]) -> f64 {
    let off = distribution.iter().map(|part| (part - 1.0).abs());
    off.fold(0.0, f64::max)
}

#[test]
fn distribution_and_disruption_are_within_their_bounds() {
    let flows = flows();
    let names: Vec<&str> = schedule::ALL.iter().map(|one| one.name).collect();
    assert_eq!(names, BOUNDS.map(|bounds| bounds.scheduler));
    for (scheduler, bounds) in schedule::ALL.iter().zip(BOUNDS) {
        let Measured {
            scheduler,
            equal,
            weighted,
            without_one,
            moved_by_down,
            moved_by_second,
            moved_by_removal,
            moved_by_addition,
        } = simulation::measure(scheduler, &flows);
        let off = [worst(&equal), worst(&weighted), worst(&without_one)];
        let moves = [
            moved_by_down,
            moved_by_second,
            moved_by_removal,
            moved_by_addition,
        ];
        println!("{scheduler:?}: off {off:?}, moves {moves:?}");
        for (off, bound) in off.into_iter().zip(bounds.off) {
            assert!(off <= bound, "{scheduler:?} is {off} off, not {bound}");
        }
        for (moves, bound) in moves.into_iter().zip(bounds.moves) {
            assert!(moves <= bound, "{scheduler:?} moves {moves}, not {bound}");
        }
    }
}

#[test]
fn a_client_keeps_its_backend_by_source_hash_whatever_its_port() {
    let scheduler = Scheduler::named("source-hash").expect("there is one");
    let mut flows = flows();
    flows.truncate(10_000);
    let hundred = backends([1; 100]);
    let first = simulation::choices(scheduler, &hundred, &flows);
    for flow in &mut flows {
        flow.src_port = lb_common::Be16::new(flow.src_port.get() ^ 0x0fff);
    }
    assert_eq!(simulation::choices(scheduler, &hundred, &flows), first);
}

#[test]
fn least_conn_evens_out_what_unequally_long_connections_leave_uneven() {
    // One connection in a hundred lasts a thousand times as long as the others.
    let scheduler = Scheduler::named("least-conn").expect("there is one");
    let weights = [3, 2, 1, 1];
    let mut least = Least::new(&scheduler.sequence(&backends(weights)).slots);
    let mut random = fastrand::Rng::with_seed(4);
    let mut live: Vec<(usize, u32)> = Vec::new();
    let mut worst: f64 = 0.0;
    for now in 0..FLOWS / 10 {
        let backend = least.begin();
        let lasts = if random.usize(0..100) == 0 {
            10_000
        } else {
            10
        };
        live.push((now + random.usize(1..2 * lasts), backend));
        live.retain(|&(ends, backend)| {
            if ends <= now {
                least.end(backend);
            }
            ends > now
        });
        if now > 20_000 {
            let (low, high) = least
                .loads()
                .fold((f64::MAX, 0.0_f64), |(low, high), load| {
                    (low.min(load), high.max(load))
                });
            worst = worst.max(high - low);
        }
    }
    // At most a few connections for each unit of weight, while about 15 live.
    assert!(worst <= 6.0, "{worst}");
}

#[test]
fn the_largest_table_of_hashes_takes_well_under_its_bound() {
    // 5 ms optimised; the bound only catches quadratic work.
    let maglev = Scheduler::named("maglev").expect("there is one");
    for count in [2, 100, 10_000] {
        let mut all = backends((0..count).map(|place| 1 + place % 256));
        for candidate in all.iter_mut().skip(1).step_by(2) {
            candidate.part = 0;
        }
        let start = Instant::now();
        assert_eq!(maglev.sequence(&all).slots.len(), 65_521);
        let spent = start.elapsed();
        assert!(spent < Duration::from_secs(5), "{count}: {spent:?}");
    }
}

#[test]
fn the_documentation_has_every_scheduler_in_its_own_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the workspace");
    for file in ["README.md", "docs/schedulers.md"] {
        let text = fs::read_to_string(root.join(file)).expect("it is there");
        for scheduler in schedule::ALL {
            let row = format!("| `{}` | {} |", scheduler.name, scheduler.help);
            assert!(text.contains(&row), "{file} has no row {row}");
        }
    }
}
