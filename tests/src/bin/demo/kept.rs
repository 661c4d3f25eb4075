//! Connections that stay open and are used all the time: what must not move
//! when weights change, and not break when the daemon dies.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use tests::netns::{Connection, Host};

use crate::background::{Background, goes_on};

/// Between one request, over whichever connection, and the next.
const APART: Duration = Duration::from_millis(10);

/// A connection's life so far.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// The client's end.
    pub(crate) client: SocketAddr,
    /// The backend that answered first.
    pub(crate) home: String,
    /// Requests answered.
    pub(crate) answered: usize,
    /// Another backend that answered later.
    pub(crate) moved: Option<String>,
    /// Why it ended.
    pub(crate) broke: Option<String>,
}

impl Life {
    /// Whether it is where it was.
    pub(crate) fn is_well(&self) -> bool {
        self.moved.is_none() && self.broke.is_none()
    }

    /// What happened to it, if it is not.
    pub(crate) fn trouble(&self) -> Option<String> {
        let Self { client, home, .. } = self;
        let what = match (&self.moved, &self.broke) {
            (Some(other), _) => format!("moved to {other}"),
            (None, Some(reason)) => format!("broke: {reason}"),
            (None, None) => return None,
        };
        Some(format!("the connection from {client} to {home} {what}"))
    }

    fn ask(&mut self, connection: &mut Connection) {
        match connection.ask() {
            Ok(answer) if answer.backend == self.home => self.answered += 1,
            Ok(answer) => self.moved = Some(answer.backend),
            Err(error) => self.broke = Some(format!("{error:#}")),
        }
    }
}

/// Connections in use in the background. Dropped, they end soon.
pub(crate) struct Kept {
    /// As they were opened.
    pub(crate) opened: Vec<Life>,
    client: Background<Vec<Life>>,
}

impl Kept {
    /// Opens so many from a host, and asks over each in turn from now on.
    pub(crate) fn open(host: &Host, service: SocketAddr, count: usize) -> Result<Self> {
        let mut lives = host.enter(|| {
            (0..count)
                .map(|_| open(service))
                .collect::<Result<Vec<_>>>()
                .context("a connection to keep could not be opened")
        })?;
        let opened = lives.iter().map(|(_, life)| life.clone()).collect();
        let client = Background::start(host, move |going| {
            while goes_on(going) {
                ask_all(&mut lives);
                thread::sleep(APART);
            }
            ask_all(&mut lives);
            lives.into_iter().map(|(_, life)| life).collect()
        });
        Ok(Self { opened, client })
    }

    /// Asks over each a last time, and tells what became of them.
    pub(crate) fn finish(self) -> Result<Vec<Life>> {
        self.client.finish()
    }
}

/// One request over each that is well.
fn ask_all(lives: &mut [(Connection, Life)]) {
    for (connection, life) in lives.iter_mut().filter(|(_, life)| life.is_well()) {
        life.ask(connection);
        thread::sleep(APART);
    }
}

fn open(service: SocketAddr) -> Result<(Connection, Life)> {
    let mut connection = Connection::open(service)?;
    let life = Life {
        client: connection.ends()?.0,
        home: connection.ask()?.backend,
        answered: 1,
        moved: None,
        broke: None,
    };
    Ok((connection, life))
}

/// How many of them are at each of these backends, as `6 b1, 4 b2`.
pub(crate) fn homes(lives: &[Life], names: &[&str]) -> String {
    let at = |name: &&str| lives.iter().filter(|life| life.home == **name).count();
    let parts: Vec<String> = names
        .iter()
        .map(|name| format!("{} at {name}", at(name)))
        .collect();
    parts.join(", ")
}
