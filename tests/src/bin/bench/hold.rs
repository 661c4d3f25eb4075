//! A million connections at once: begun, answered and proved through the
//! program itself, then counted, and each of them found again both ways.

use anyhow::{Context as _, Result, ensure};
use lb_common::Verdict;
use lb_common::abi::Settings;
use tests::network::LAN;

use crate::cases::{Case, Tables, from_backend, from_client, plan};
use crate::plan::{Plan, order};
use crate::rig::Rig;
use crate::scene::NAT4;

/// How many are begun before they are answered: fewer than there is room for
/// unfinished ones.
const BATCH: u32 = 100_000;

/// What it took.
#[derive(Debug)]
pub(crate) struct Held {
    /// How many connections are held.
    pub(crate) connections: u32,
    /// Entries in the table: established and unfinished.
    pub(crate) entries: [usize; 2],
    /// Bytes of each table, as the kernel counts them.
    pub(crate) tables: Vec<(&'static str, u64)>,
    /// Nanoseconds of SYN, SYN-ACK and ACK, wrapper included, on average.
    pub(crate) handshake: [f64; 3],
}

/// Holds so many.
pub(crate) fn run(settings: &Settings, connections: u32) -> Result<Held> {
    let mut rig = Rig::new(settings, connections)?;
    let [begin, answer, prove] = handshake(settings, connections);
    let mut spent = [0.0; 3];
    for first in (0..connections).step_by(BATCH as usize) {
        let count = BATCH.min(connections - first);
        for (case, spent) in [&begin, &answer, &prove].into_iter().zip(&mut spent) {
            let plan = Plan {
                next: first,
                ..case.plan
            };
            let nanoseconds = rig
                .subject(&plan, case, count)
                .with_context(|| format!("{} from connection {first} on", case.name))?;
            *spent += (nanoseconds * u64::from(count)) as f64;
        }
    }
    let entries = rig.entries();
    ensure!(
        entries == [connections as usize, 0],
        "of {connections} connections the table holds {entries:?} (established, unfinished)"
    );
    for case in [&prove, &answer] {
        rig.subject(&case.plan, case, connections)
            .context("not every connection is found again")?;
    }
    Ok(Held {
        connections,
        entries,
        tables: rig.memory()?,
        handshake: spent.map(|sum| sum / f64::from(connections)),
    })
}

/// The three packets of a handshake.
fn handshake(settings: &Settings, connections: u32) -> [Case; 3] {
    let case = |name: &str, frame, patches, verdict, begins| Case {
        name: name.into(),
        service: NAT4,
        known: 0,
        cleared: false,
        begins,
        tables: Tables::Steady,
        ingress: LAN.index,
        verdict,
        plan: Plan {
            order: order::SEQUENTIAL,
            ..plan(&frame, patches, connections)
        },
    };
    let forward = NAT4.client_patches();
    let reply = NAT4.backend_patches();
    let (client, backend) = (
        || from_client(&NAT4),
        || from_backend(&NAT4, settings).seq(8),
    );
    [
        case("the SYN", client().syn(), forward, Verdict::ForwardTx, true),
        case(
            "the SYN-ACK",
            backend().syn_ack(1),
            reply,
            Verdict::ReplyTx,
            false,
        ),
        case(
            "the ACK",
            client().ack(9),
            forward,
            Verdict::ForwardTx,
            false,
        ),
    ]
}
