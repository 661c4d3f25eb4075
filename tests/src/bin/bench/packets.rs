//! What a packet costs: samples of the cases and of the floor, by turns.

use anyhow::{Context as _, Result};
use lb_common::abi::Settings;

use crate::cases::{self, Case, Section, State};
use crate::report::Row;
use crate::rig::Rig;
use crate::scene::Service;

/// Measures the cases whose name contains the text: so many samples of each, of so
/// many packets.
pub(crate) fn measure(
    settings: &Settings,
    max_flows: u32,
    only: &str,
    rounds: u32,
    packets: u32,
) -> Result<Vec<Row>> {
    let mut cases = cases::all(settings.first_port);
    cases.retain(|case| case.name().contains(only));
    let mut services: Vec<Service> = cases.iter().map(|case| case.service).collect();
    services.dedup();
    let mut rig = Rig::new(settings, max_flows, &services)?;
    let mut rows = Vec::new();
    for case in &cases {
        let row = sample(&mut rig, case, rounds, packets)
            .with_context(|| format!("in the case \"{}\"", case.name()))?;
        eprintln!("{:>7.0} ns  {}", row.net().median, row.name());
        rows.push(row);
    }
    // Measured service by service, read by what happens to a packet.
    let place = |row: &Row| Section::ALL.iter().position(|it| *it == row.section);
    rows.sort_by_key(place);
    Ok(rows)
}

fn sample(rig: &mut Rig, case: &Case, rounds: u32, packets: u32) -> Result<Row> {
    // A connection that begins costs several times as much as one that goes on, and
    // varies less.
    let packets = if case.section == Section::New && case.state != State::Established {
        packets / 2
    } else {
        packets
    };
    let mut row = Row::new(case);
    let mut next = 0;
    // The first round warms the caches and is not kept.
    for round in 0..=rounds {
        rig.prepare(case)?;
        let mut plan = case.plan;
        plan.random = u64::from(round);
        plan.next = next;
        next = next.wrapping_add(packets) % plan.flows;
        let floor = rig.floor(&plan, case.ingress, packets)?;
        let whole = rig.subject(&plan, case, packets)?;
        if round > 0 {
            row.rounds.push([floor, whole.nanoseconds]);
            row.packets += u64::from(packets);
            for (sum, refused) in row.refused.iter_mut().zip(whole.refused) {
                *sum += refused;
            }
        }
    }
    Ok(row)
}
