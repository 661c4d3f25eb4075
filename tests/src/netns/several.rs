//! Several connections: how they are spread over the backends, and that they
//! stay where they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::{Answer, Connection};

/// What each backend should have answered; one that answered nothing is absent.
pub fn shares(counts: [usize; 3]) -> BTreeMap<String, usize> {
    ["b1", "b2", "b3"]
        .map(str::to_owned)
        .into_iter()
        .zip(counts)
        .filter(|&(_, count)| count > 0)
        .collect()
}

/// So many open connections from the calling thread's host, each with its first
/// answer.
pub fn open(service: SocketAddr, count: usize) -> Result<Vec<(Connection, Answer)>> {
    (0..count)
        .map(|_| {
            let mut connection = Connection::open(service)?;
            let first = connection.ask()?;
            Ok((connection, first))
        })
        .collect()
}

/// Asks on each again: the same backend answers.
pub fn still_there(open: &mut [(Connection, Answer)]) -> Result<()> {
    for (connection, first) in open {
        let answer = connection.ask().context("on an open connection")?;
        assert_eq!(answer, *first, "an open connection stays where it is");
    }
    Ok(())
}
