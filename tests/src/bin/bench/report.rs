//! From samples to figures, and to a table, JSON, and the page in `docs`.

use serde_json::{Value, json};

use crate::cases::{Case, REFUSALS, REFUSED_ONE_IN, Section, grouped};
use crate::grid;
use crate::hold::Held;
use crate::machine::Machine;

/// One case as it was measured.
#[derive(Debug)]
pub(crate) struct Row {
    /// The table that it stands in.
    pub(crate) section: Section,
    /// The line there.
    pub(crate) line: String,
    /// The column there.
    pub(crate) column: String,
    /// Whether some of its packets may be refused.
    pub(crate) may_refuse: bool,
    /// Nanoseconds of the floor and of the whole, round by round.
    pub(crate) rounds: Vec<[u64; 2]>,
    /// How many packets there were in all.
    pub(crate) packets: u64,
    /// How many of them were refused that may be, by [`REFUSALS`].
    pub(crate) refused: [u64; REFUSALS.len()],
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
    pub(crate) fn of(samples: impl Iterator<Item = f64>) -> Self {
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
            section: case.section,
            line: case.line.clone(),
            column: case.column.clone(),
            may_refuse: case.may_refuse(),
            rounds: Vec::new(),
            packets: 0,
            refused: [0; REFUSALS.len()],
        }
    }

    /// The case's name.
    pub(crate) fn name(&self) -> String {
        format!("{} {}, {}", self.section.word(), self.line, self.column)
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
    /// The connections that were held, fewer first; none in a quick look.
    pub(crate) held: Vec<Held>,
}

impl Report {
    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let lines = self.rows.iter().map(|row| {
            let (net, floor) = (row.net(), row.floor());
            format!(
                "{:<72} {:>6.0} {:>6.0} {:>6.0} {:>6.0}\n",
                row.name(),
                net.median,
                net.min,
                net.max,
                floor.median
            )
        });
        format!(
            "{}\n\n{:<72} {:>6} {:>6} {:>6} {:>6}\n{}\n{}\n{}",
            self.machine_line(),
            "ns a packet",
            "median",
            "min",
            "max",
            "floor",
            lines.collect::<String>(),
            self.refused_line(),
            self.held_lines()
        )
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(row_json).collect();
        let held: Vec<Value> = self.held.iter().map(held_json).collect();
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
            "held": held,
        })
    }

    /// For `docs/bench.md`.
    pub(crate) fn markdown(&self) -> String {
        format!(
            "{HEAD}\n## Nanoseconds a packet\n\n{}. {} packets a sample, half as many where connections begin, {} samples.\n\n{}{NOTES}\n{}\n## Many connections\n\n{}",
            self.machine_line(),
            grouped(self.packets),
            self.rounds,
            grid::sections(&self.rows),
            self.refused_line(),
            self.held_lines(),
        )
    }

    /// How many newcomers were refused that may be.
    fn refused_line(&self) -> String {
        let rows = self.rows.iter().filter(|row| row.may_refuse);
        let (mut packets, mut refused) = (0, [0; REFUSALS.len()]);
        for row in rows {
            packets += row.packets;
            for (sum, count) in refused.iter_mut().zip(row.refused) {
                *sum += count;
            }
        }
        if packets == 0 {
            return String::new();
        }
        let [full, taken] = refused;
        format!(
            "With half-open connections at every place, {full} of {packets} newcomers were refused as `flow_table_full`, because both buckets were full in which their answers could have been entered, and {taken} as `tuple_taken`. At most 1 in {} may be.\n",
            grouped(REFUSED_ONE_IN)
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
        let Some(most) = self.held.last() else {
            return String::new();
        };
        let [syn, syn_ack, ack] = most.handshake;
        let counts: Vec<String> = (self.held.iter())
            .map(|held| grouped(held.connections))
            .collect();
        format!(
            "So many connections were begun, answered and proved through the program, with `max_flows` the same number: each is one entry, none was lost, and each was found again in both directions. All memory is taken at the start; bytes are as the kernel counts them, in each map's `fdinfo`.\n\n\
             | bytes of the table | {} |\n|---|{}\n{}\n\
             With {} connections the handshake took {syn:.0} ns for the SYN, {syn_ack:.0} for the SYN-ACK and {ack:.0} for the ACK, on average (nat, wrapper included).\n",
            counts.join(" | "),
            "--:|".repeat(counts.len()),
            self.memory_lines(),
            grouped(most.connections),
        )
    }

    /// The lines of the table about memory.
    fn memory_lines(&self) -> String {
        let line = |name: &str, cells: Vec<String>| format!("| {name} | {} |\n", cells.join(" | "));
        let sum = |held: &Held, of: &[&str]| -> u64 {
            let tables = held.tables.iter();
            let chosen = tables.filter(|(name, _)| of.is_empty() || of.contains(&name.as_str()));
            chosen.map(|(_, bytes)| bytes).sum()
        };
        let each = |of: &dyn Fn(&Held) -> String| self.held.iter().map(of).collect();
        let names = self.held.last().map_or(&[][..], |held| &held.tables);
        let mut lines: String = (names.iter())
            .map(|(name, _)| {
                let bytes = |held: &Held| whole(sum(held, &[name]));
                line(&format!("`{name}`"), each(&bytes))
            })
            .collect();
        lines += &line("all of them", each(&|held| whole(sum(held, &[]))));
        let own = |held: &Held| {
            let bytes = sum(held, &FLOW_TABLES);
            format!("{:.0}", bytes as f64 / f64::from(held.connections))
        };
        let name = format!("bytes a connection ({})", FLOW_TABLES.join(", "));
        lines + &line(&name, each(&own))
    }
}

/// What the table of connections consists of.
const FLOW_TABLES: [&str; 2] = ["CONNECTIONS", "ANSWERS"];

/// `1,234,567` of 1234567.
fn whole(bytes: u64) -> String {
    u32::try_from(bytes).map_or_else(|_| bytes.to_string(), grouped)
}

const HEAD: &str = "# What it costs

Written by `cargo xtask bench --write`; do not edit.

The program is the one that `lb` carries, loaded as `lb run` loads it, with
`max_flows = 1_000_000`. A wrapper program writes a fresh 78-byte frame before each
packet, of a connection chosen at random, and calls the balancer by a tail call,
inside `BPF_PROG_TEST_RUN`. The floor is the same wrapper around a bare `XDP_TX`;
it is measured before every sample and taken off, so 0 would be as fast as
sending the packet back untouched. Where the balancer puts a header before the
frame the wrapper takes it away again, which the floor pays for too: what is taken
off is the wrapper's work, and no part of the balancer's. After each sample the
program's own counters must show that every packet ended as its line says, that as
many connections were begun as should be, and that each packet was counted for its
service and direction. Routes and neighbours are real, in a network namespace.
Nothing here passes or fails by time, and figures of different machines are not to
be compared.
";

const NOTES: &str =
    "Each cell is the median of the samples, and the least and the greatest of them. A
service has 128 backends, by `nat` one. \"IPv4 in IPv6\" is a client's IPv4 in an
outer header of IPv6. Two runs of the same program differ by up to a tenth,
depending on where the kernel puts its code.
";

fn row_json(row: &Row) -> Value {
    let (net, floor) = (row.net(), row.floor());
    json!({
        "name": row.name(),
        "section": row.section.word(),
        "line": row.line,
        "column": row.column,
        "median": net.median,
        "min": net.min,
        "max": net.max,
        "floor": floor.median,
        "packets": row.packets,
        "refused": row.refused.iter().sum::<u64>(),
    })
}

fn held_json(held: &Held) -> Value {
    let Held {
        connections,
        entries,
        tables,
        handshake,
    } = held;
    let tables: Value = tables.iter().cloned().collect();
    json!({
        "connections": connections,
        "established_entries": entries[0],
        "unfinished_entries": entries[1],
        "table_bytes": tables,
        "handshake_ns": handshake,
    })
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
            section: Section::Known,
            line: String::new(),
            column: String::new(),
            may_refuse: false,
            rounds: vec![[10, 110], [90, 200], [20, 110]],
            packets: 3,
            refused: [0; REFUSALS.len()],
        };
        let net = row.net();
        assert_eq!((net.median, net.min, net.max), (100.0, 90.0, 110.0));
    }
}
