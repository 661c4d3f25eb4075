//! `cargo xtask bench`: what a packet costs, in nanoseconds, and what a million
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

mod cases;
mod hold;
mod machine;
#[allow(dead_code, reason = "the other side uses the rest")]
#[path = "../../../../lb-ebpf/src/bench/plan.rs"]
mod plan;
mod report;
mod rig;
mod scene;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_common::abi::Settings;
use lb_userspace::host::{self, forwarding};
use tests::kernel::in_namespace;

use crate::cases::{Case, Tables};
use crate::machine::Machine;
use crate::report::{Report, Row};
use crate::rig::Rig;

/// How many connections the tables are made for.
const MAX_FLOWS: u32 = 1_000_000;

/// Packets of the first round, at least: more than there is room for unfinished
/// connections.
const WARM: u32 = 150_000;

/// Measures the data path and says what it found
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench")]
struct Arguments {
    /// Packets in each sample
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(10_000..=100_000_000))]
    packets: u32,
    /// Samples of each case, of which the median is shown
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1001))]
    rounds: u32,
    /// Only the cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Write docs/bench.md too
    #[arg(long)]
    write: bool,
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
    let report = in_namespace(|| measure(arguments))?;
    if arguments.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.text());
    }
    if arguments.write {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bench.md");
        let folder = path.parent().context("a file lies in a folder")?;
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, report.markdown()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("written: docs/bench.md");
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let machine = Machine::of_this_thread()?;
    let steady = settings()?;
    eprintln!("holding {} connections", cases::grouped(MAX_FLOWS));
    let held = hold::run(&steady, MAX_FLOWS)?;
    let mut rows = Vec::new();
    let cases = cases::all(&steady);
    for tables in [Tables::Steady, Tables::Noting] {
        let mut chosen = (cases.iter())
            .filter(|case| case.tables == tables && case.name.contains(&arguments.only))
            .peekable();
        if chosen.peek().is_none() {
            continue;
        }
        let refresh_ticks = match tables {
            Tables::Steady => steady.refresh_ticks,
            Tables::Noting => 0,
        };
        let settings = Settings {
            refresh_ticks,
            ..steady
        };
        let mut rig = Rig::new(&settings, MAX_FLOWS)?;
        for case in chosen {
            let row = sample(&mut rig, case, arguments)?;
            eprintln!("{:>7.0} ns  {}", row.net().median, row.name);
            rows.push(row);
        }
    }
    // Measured first, because few connections are known then; read last.
    rows.sort_by_key(|row: &Row| row.begins);
    Ok(Report {
        machine,
        packets: arguments.packets,
        rounds: arguments.rounds,
        rows,
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

/// One row: the case's packets and the floor by turns.
fn sample(rig: &mut Rig, case: &Case, arguments: &Arguments) -> Result<Row> {
    rig.know(&case.service, case.known)?;
    let mut row = Row::new(case);
    let mut next = 0;
    // The first round warms the caches, fills what is to be full, and is not kept.
    for round in 0..=arguments.rounds {
        let packets = if round == 0 {
            arguments.packets.max(WARM)
        } else {
            arguments.packets
        };
        if case.cleared {
            rig.clear_unfinished()?;
        }
        let mut plan = case.plan;
        plan.random = u64::from(round);
        plan.next = next;
        next = next.wrapping_add(packets) % plan.flows;
        let floor = rig.floor(&plan, case.ingress, packets)?;
        let whole = rig
            .subject(&plan, case, packets)
            .with_context(|| format!("in the case \"{}\"", case.name))?;
        if round > 0 {
            row.rounds.push([floor, whole]);
        }
    }
    Ok(row)
}
