//! Many connections at once, to a million: begun, answered and proved through the
//! program itself, then counted, and each of them found again both ways.

use anyhow::{Context as _, Result, ensure};
use lb_common::Verdict;
use lb_common::abi::{Settings, TCP, forward};
use tests::network::LAN;

use crate::cases::{Case, Section, State, from_backend, from_client, plan};
use crate::plan::{Plan, order};
use crate::rig::Rig;
use crate::scene::{Family, Service, services};

/// How many are held, one after the other.
pub(crate) const COUNTS: [u32; 3] = [10_000, 100_000, 1_000_000];

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
    pub(crate) tables: Vec<(String, u64)>,
    /// Nanoseconds of SYN, SYN-ACK and ACK, wrapper included, on average.
    pub(crate) handshake: [f64; 3],
}

/// Holds so many, in tables that are made for as many.
pub(crate) fn run(settings: &Settings, connections: u32) -> Result<Held> {
    let nat = (services().into_iter())
        .find(|service| {
            service.forward == forward::NAT
                && service.protocol == TCP
                && service.family == Family::V4
        })
        .context("no service is of TCP over IPv4 by nat")?;
    let mut rig = Rig::new(settings, connections, &[nat])?;
    let [begin, answer, prove] = handshake(&nat, connections);
    let mut spent = [0.0; 3];
    for first in (0..connections).step_by(BATCH as usize) {
        let count = BATCH.min(connections - first);
        for (case, spent) in [&begin, &answer, &prove].into_iter().zip(&mut spent) {
            let plan = Plan {
                next: first,
                ..case.plan
            };
            let sample = rig
                .subject(&plan, case, count)
                .with_context(|| format!("{} from connection {first} on", case.line))?;
            *spent += (sample.nanoseconds * u64::from(count)) as f64;
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
fn handshake(nat: &Service, connections: u32) -> [Case; 3] {
    let case = |line: &str, frame, reply: bool| {
        let (patches, verdict) = if reply {
            (nat.backend_patches(), Verdict::ReplyTx)
        } else {
            (nat.client_patches(), Verdict::ForwardTx)
        };
        Case {
            section: Section::Known,
            line: line.into(),
            column: String::new(),
            service: *nat,
            state: State::Empty,
            begins: false,
            reply,
            ingress: LAN.index,
            verdict,
            plan: Plan {
                order: order::SEQUENTIAL,
                ..plan(&frame, patches, connections)
            },
        }
    };
    let client = || from_client(nat);
    // By nat no port is given out.
    let backend = || from_backend(nat, 0).seq(8);
    let begin = Case {
        begins: true,
        ..case("the SYN", client().syn(), false)
    };
    [
        begin,
        case("the SYN-ACK", backend().syn_ack(1), true),
        case("the ACK", client().ack(9), false),
    ]
}
