//! From samples to figures, and to a table, JSON, and the page in `docs`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cases::{Case, grouped};
use crate::hold::Held;
use crate::machine::Machine;

/// One case as it was measured.
#[derive(Debug)]
pub(crate) struct Row {
    /// The case's name.
    pub(crate) name: String,
    /// Whether its packets begin connections.
    pub(crate) begins: bool,
    /// Nanoseconds of the floor and of the whole, round by round.
    pub(crate) rounds: Vec<[u64; 2]>,
}

/// The middle and the ends of some samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// The middle one.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Figures {
    /// Of at least one sample; none gives not-a-number.
    fn of(samples: impl Iterator<Item = f64>) -> Self {
        let mut samples: Vec<f64> = samples.collect();
        samples.sort_by(f64::total_cmp);
        let at = |place: usize| samples.get(place).copied().unwrap_or(f64::NAN);
        let last = samples.len().saturating_sub(1);
        Self {
            median: f64::midpoint(at(last / 2), at(last.div_ceil(2))),
            min: at(0),
            max: at(last),
        }
    }
}

impl Row {
    /// Without samples yet.
    pub(crate) fn new(case: &Case) -> Self {
        Self {
            name: case.name.clone(),
            begins: case.begins,
            rounds: Vec::new(),
        }
    }

    /// What the wrapper takes.
    pub(crate) fn floor(&self) -> Figures {
        Figures::of(self.rounds.iter().map(|[floor, _]| *floor as f64))
    }

    /// What the balancer takes beyond that.
    pub(crate) fn net(&self) -> Figures {
        let net = |[floor, whole]: &[u64; 2]| *whole as f64 - *floor as f64;
        Figures::of(self.rounds.iter().map(net))
    }
}

/// Everything that was found.
#[derive(Debug)]
pub(crate) struct Report {
    /// Where.
    pub(crate) machine: Machine,
    /// Packets in a sample.
    pub(crate) packets: u32,
    /// Samples of a case.
    pub(crate) rounds: u32,
    /// The cases.
    pub(crate) rows: Vec<Row>,
    /// The million connections.
    pub(crate) held: Held,
}

impl Report {
    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let lines = self.rows.iter().map(|row| {
            let (net, floor) = (row.net(), row.floor());
            format!(
                "{:<52} {:>6.0} {:>6.0} {:>6.0} {:>6.0}\n",
                row.name, net.median, net.min, net.max, floor.median
            )
        });
        format!(
            "{}\n\n{:<52} {:>6} {:>6} {:>6} {:>6}\n{}\n{}",
            self.machine_line(),
            "ns a packet",
            "median",
            "min",
            "max",
            "floor",
            lines.collect::<String>(),
            self.held_lines()
        )
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(row_json).collect();
        let Held {
            connections,
            entries,
            tables,
            handshake,
        } = &self.held;
        let tables: Value = tables.iter().copied().collect();
        json!({
            "date": self.machine.date,
            "commit": self.machine.commit,
            "kernel": self.machine.kernel,
            "processor": self.machine.processor,
            "cpus": self.machine.cpus,
            "pinned_to_cpu": self.machine.cpu,
            "virtual": self.machine.is_virtual,
            "packets": self.packets,
            "rounds": self.rounds,
            "ns_a_packet": rows,
            "held": {
                "connections": connections,
                "established_entries": entries[0],
                "unfinished_entries": entries[1],
                "table_bytes": tables,
                "handshake_ns": handshake,
            },
        })
    }

    /// For `docs/bench.md`.
    pub(crate) fn markdown(&self) -> String {
        let mut table =
            String::from("| packet | median | min | max | floor |\n|---|--:|--:|--:|--:|\n");
        for row in &self.rows {
            let (net, floor) = (row.net(), row.floor());
            writeln!(
                table,
                "| {} | **{:.0}** | {:.0} | {:.0} | {:.0} |",
                row.name, net.median, net.min, net.max, floor.median
            )
            .expect("a string takes any text");
        }
        let mut memory = String::from("| table | MB |\n|---|--:|\n");
        for (name, bytes) in &self.held.tables {
            writeln!(memory, "| `{name}` | {:.1} |", megabytes(*bytes))
                .expect("a string takes any text");
        }
        format!(
            "{HEAD}\n## Nanoseconds a packet\n\n{}. {} packets a sample, {} samples.\n\n{table}\n{NOTES}\n## A million connections\n\n{}\n{memory}",
            self.machine_line(),
            grouped(self.packets),
            self.rounds,
            self.held_lines(),
        )
    }

    fn machine_line(&self) -> String {
        let machine = &self.machine;
        format!(
            "{} ({} CPUs{}; pinned to one), Linux {}, {}, commit {}",
            machine.processor,
            machine.cpus,
            if machine.is_virtual { ", virtual" } else { "" },
            machine.kernel,
            machine.date,
            machine.commit
        )
    }

    fn held_lines(&self) -> String {
        let held = &self.held;
        let sum = |only: &[&str]| -> u64 {
            let tables = held.tables.iter();
            let chosen = tables.filter(|(name, _)| only.is_empty() || only.contains(name));
            chosen.map(|(_, bytes)| bytes).sum()
        };
        let [all, flows] = [sum(&[]), sum(&["FLOWS", "UNFINISHED"])];
        let [syn, syn_ack, ack] = held.handshake;
        format!(
            "{} connections were begun, answered and proved through the program, with `max_flows` the same number: {} entries in the flow table, none lost, each found again in both directions.\n\n\
             All tables take {:.0} MB, the flow tables {:.0} MB of it, which is {:.0} bytes a connection; all of it is taken at the start (as the kernel counts it, in each map's `fdinfo`).\n\n\
             The handshake took {syn:.0} ns for the SYN, {syn_ack:.0} for the SYN-ACK and {ack:.0} for the ACK, which moves the connection to the large table (nat, wrapper included).\n",
            grouped(held.connections),
            grouped(u32::try_from(held.entries[0]).unwrap_or(u32::MAX)),
            megabytes(all),
            megabytes(flows),
            flows as f64 / f64::from(held.connections),
        )
    }
}

const HEAD: &str = "# What it costs

Written by `cargo xtask bench --write`; do not edit.

The program is the one that `lb` carries, loaded as `lb run` loads it, with
`max_flows = 1_000_000`. A wrapper program writes a fresh 78-byte frame before each
packet, of a connection chosen at random, and calls the balancer by a tail call,
inside `BPF_PROG_TEST_RUN`. The floor is the same wrapper around a bare `XDP_TX`;
it is measured before every sample and taken off, so 0 would be as fast as
sending the packet back untouched. After each sample the program's own counters
must show that every packet ended as its line says. Routes and neighbours are
real, in a network namespace. Nothing here passes or fails by time, and figures
of different machines are not to be compared.
";

const NOTES: &str = "\"Known\" packets go from a client to a backend and \"reply\" packets back, by
`full-nat` where nothing else is said. With many flows the time is that of the
memory: the tables are larger than the caches. \"Noting the time\" is what one
packet of a flow pays once a second. A new connection is two entries, in tables
that were emptied just before; where the table of unfinished connections is full,
each entry also evicts one. Two runs of the same program differ by up to a tenth,
depending on where the kernel puts its code.
";

fn row_json(row: &Row) -> Value {
    let (net, floor) = (row.net(), row.floor());
    json!({
        "name": row.name,
        "median": net.median,
        "min": net.min,
        "max": net.max,
        "floor": floor.median,
    })
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        let of = |samples: &[f64]| Figures::of(samples.iter().copied());
        let odd = of(&[9.0, 1.0, 4.0]);
        assert_eq!((odd.median, odd.min, odd.max), (4.0, 1.0, 9.0));
        assert_eq!(of(&[1.0, 2.0, 3.0, 10.0]).median, 2.5);
        assert!(of(&[]).median.is_nan());
    }

    #[test]
    fn the_floor_is_taken_off_round_by_round() {
        let row = Row {
            name: String::new(),
            begins: false,
            rounds: vec![[10, 110], [90, 200], [20, 110]],
        };
        let net = row.net();
        assert_eq!((net.median, net.min, net.max), (100.0, 90.0, 110.0));
    }
}
