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

mod cases;
mod grid;
mod hold;
mod machine;
mod packets;
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
    /// A quick look: only the cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Write docs/bench.md too
    #[arg(long, conflicts_with = "only")]
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
    let mut held = Vec::new();
    if arguments.only.is_none() {
        for count in hold::COUNTS {
            eprintln!("holding {} connections", cases::grouped(count));
            held.push(hold::run(&steady, count)?);
        }
    }
    let only = arguments.only.as_deref().unwrap_or_default();
    let (rounds, packets) = (arguments.rounds, arguments.packets);
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
