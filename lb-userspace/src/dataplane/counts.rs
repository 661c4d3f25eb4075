//! What the data path counted, and the flows it holds.

use anyhow::Context as _;
use aya::maps::{HashMap, Map, MapData, PerCpuArray};
use bytemuck::{bytes_of, pod_read_unaligned};
use lb_common::abi::{ABI_VERSION, DropKey, Flow, FlowKey, Traffic};

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

    /// A reader of the flow tables, for a thread of its own.
    pub fn flows(&self) -> anyhow::Result<Flows> {
        let folder = self.pin_path.join(format!("v{ABI_VERSION}"));
        let open = |name: &str| -> anyhow::Result<HashMap<MapData, [u8; 40], [u8; 64]>> {
            let data = MapData::from_pin(folder.join(name)).context("cannot open a flow table")?;
            HashMap::try_from(Map::LruHashMap(data)).context("a flow table is of another form")
        };
        Ok(Flows {
            established: open("FLOWS")?,
            unfinished: open("UNFINISHED")?,
        })
    }
}

/// The flow tables, to be read while the data path writes them.
pub struct Flows {
    established: HashMap<MapData, [u8; 40], [u8; 64]>,
    unfinished: HashMap<MapData, [u8; 40], [u8; 64]>,
}

impl Flows {
    /// Every forward half; the flag says whether it is established. An entry
    /// that goes while the table is read is left out.
    pub fn forward(&self) -> impl Iterator<Item = (FlowKey, Flow, bool)> + '_ {
        let tables = [(&self.established, true), (&self.unfinished, false)];
        tables.into_iter().flat_map(|(table, established)| {
            table
                .iter()
                .filter_map(Result::ok)
                .filter_map(move |(key, flow)| {
                    let flow: Flow = pod_read_unaligned(&flow);
                    (!flow.is_reply()).then(|| (pod_read_unaligned(&key), flow, established))
                })
        })
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
