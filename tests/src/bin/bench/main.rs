//! `cargo xtask bench`: what a packet costs, in nanoseconds, and what many
//! connections take.
//!
//! The program under test is the one that `lb` carries, loaded by the code that
//! `lb run` loads it with. A wrapper program (`lb-ebpf/src/bench.rs`) writes a
//! fresh frame before each packet and calls it by a tail call, all of it inside
//! `BPF_PROG_TEST_RUN` on one CPU. The wrapper around a bare `XDP_TX` is the
//! floor; it is measured before every sample, and what is shown is the
//! difference. After every sample the program's own counters must say that each
//! packet ended as the case says: a figure of something else is an error.
//!
//! Nothing passes or fails by time.

mod beside;
mod cases;
mod control;
mod draw;
mod grid;
mod hold;
mod live;
mod load;
mod machine;
mod ours;
mod packets;
mod page;
#[allow(dead_code, reason = "the other side uses the rest")]
#[path = "../../../../lb-ebpf/src/bench/plan.rs"]
mod plan;
#[allow(dead_code, reason = "the other side uses the rest")]
#[path = "../../../../lb-ebpf/src/load/recipe.rs"]
mod recipe;
mod report;
mod rig;
mod scene;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_common::abi::Settings;
use lb_userspace::host::{self, forwarding};
use tests::kernel::in_namespace;

use crate::machine::Machine;
use crate::report::Report;

/// How many connections the tables are made for.
const MAX_FLOWS: u32 = 1_000_000;

/// Measures the data path and says what it found
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench")]
struct Arguments {
    /// Packets in each sample
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(10_000..=100_000_000))]
    packets: u32,
    /// Samples of each case, of which the median is shown
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1001))]
    rounds: u32,
    /// A quick look: only the cases whose name contains this, of what a packet costs
    #[arg(long, value_name = "TEXT")]
    cases: Option<String>,
    /// Only this part; may be given more than once
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// A glance, not a measurement: few samples, and short ones
    #[arg(long)]
    quick: bool,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Write docs/bench.md too
    #[arg(long, conflicts_with = "cases")]
    write: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// What a packet costs, in nanoseconds, and a million connections
    Packet,
    /// Packets a second through a cable
    Live,
    /// Beside what users would pick
    Beside,
    /// Large configurations, weights, memory
    Control,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bench.md");
    let chosen = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut found = serde_json::Map::new();
    if chosen(Part::Packet) {
        let report = in_namespace(|| measure(arguments))?;
        if !arguments.json {
            print!("{}", report.text());
        }
        if arguments.write {
            page::renew(&page, "packet", &report.markdown())?;
        }
        found.insert("packet".into(), report.json());
    }
    for (part, measure) in PARTS.iter().filter(|(part, _)| chosen(*part)) {
        let machine = Machine::here()?;
        let section = measure(arguments.quick).with_context(|| format!("in part {part:?}"))?;
        if !arguments.json {
            println!("\n{}", section.text());
        }
        if arguments.write {
            section.write(&page, &machine.line())?;
        }
        found.insert(section.name.into(), section.json());
    }
    if arguments.json {
        println!("{:#}", serde_json::Value::Object(found));
    }
    if arguments.write {
        eprintln!("written: docs/bench.md");
    }
    Ok(())
}

/// What the other parts are measured by; whether only a glance is wanted.
type Measure = fn(bool) -> Result<page::Section>;

/// The other parts.
const PARTS: [(Part, Measure); 3] = [
    (Part::Live, live::measure),
    (Part::Beside, beside::measure),
    (Part::Control, control::measure),
];

fn measure(arguments: &Arguments) -> Result<Report> {
    let machine = Machine::of_this_thread()?;
    let steady = settings()?;
    let mut held = Vec::new();
    if arguments.cases.is_none() {
        let counts = if arguments.quick {
            1
        } else {
            hold::COUNTS.len()
        };
        for &count in hold::COUNTS.iter().take(counts) {
            eprintln!("holding {} connections", cases::grouped(count));
            held.push(hold::run(&steady, count)?);
        }
    }
    let only = arguments.cases.as_deref().unwrap_or_default();
    let (rounds, packets) = if arguments.quick {
        (1, 10_000)
    } else {
        (arguments.rounds, arguments.packets)
    };
    Ok(Report {
        machine,
        packets,
        rounds,
        rows: packets::measure(&steady, MAX_FLOWS, only, rounds, packets)?,
        held,
    })
}

/// As the daemon sets them, except that no flow's stamp grows old while it is
/// measured: noting the time is a case of its own.
fn settings() -> Result<Settings> {
    let ports = host::ports(Path::new(forwarding::SYSCTLS))?;
    Ok(Settings {
        refresh_ticks: 1 << 25,
        idle_ticks: u32::MAX,
        first_port: u32::from(ports.first),
        port_count: u32::from(ports.count),
        seed: 0x5eed,
        ..Settings::PLAIN
    })
}
