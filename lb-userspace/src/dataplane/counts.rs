//! What the data path counted.

use anyhow::Context as _;
use aya::maps::{MapData, PerCpuArray};
use bytemuck::{bytes_of, pod_read_unaligned};
use lb_common::abi::{DropKey, Traffic};

use super::Dataplane;

impl Dataplane {
    /// What was counted for a service.
    pub fn service_traffic(&self, service: u32) -> anyhow::Result<Traffic> {
        sum(&self.service_traffic, service)
    }

    /// What was counted for a backend.
    pub fn backend_traffic(&self, backend: u32) -> anyhow::Result<Traffic> {
        sum(&self.backend_traffic, backend)
    }

    /// Packets by verdict number.
    pub fn verdicts(&self) -> anyhow::Result<Vec<u64>> {
        (0..lb_common::verdict::VERDICT_SLOTS)
            .map(|verdict| {
                let counts = self
                    .verdicts
                    .get(&verdict, 0)
                    .context("cannot read the verdicts")?;
                Ok(counts.iter().sum())
            })
            .collect()
    }

    /// Drops by service, backend and verdict.
    pub fn drops(&self) -> anyhow::Result<Vec<(DropKey, u64)>> {
        self.drops
            .iter()
            .map(|entry| {
                let (key, counts) = entry.context("cannot read the table of drops")?;
                Ok((pod_read_unaligned(&key), counts.iter().sum()))
            })
            .collect()
    }
}

fn sum(traffic: &PerCpuArray<MapData, [u64; 5]>, number: u32) -> anyhow::Result<Traffic> {
    let values = traffic.get(&number, 0).context("cannot read counters")?;
    let mut total = [0u64; 5];
    for value in values.iter() {
        for (total, count) in total.iter_mut().zip(value) {
            *total += count;
        }
    }
    Ok(pod_read_unaligned(bytes_of(&total)))
}
