//! Clients that ask at a steady rate, each request over a connection of its
//! own. Nothing is tried again: a request that fails has failed.

use std::{
    mem,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use tests::netns::{Connection, Host};

use crate::background::{Background, goes_on};

/// One request and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// When the client began to connect.
    pub(crate) begun: Instant,
    /// Until the whole answer was there, or it had failed.
    pub(crate) took: Duration,
    /// The name of the backend that answered, or why none did.
    pub(crate) outcome: Result<String, String>,
}

impl Request {
    /// Connects from the calling thread's host, asks, and ends the connection
    /// from the client's side.
    pub(crate) fn make(service: SocketAddr) -> Self {
        let begun = Instant::now();
        let answer = Connection::open(service).and_then(|mut connection| connection.ask());
        Self {
            begun,
            took: begun.elapsed(),
            outcome: match answer {
                Ok(answer) => Ok(answer.backend),
                Err(error) => Err(format!("{error:#}")),
            },
        }
    }
}

/// Clients at work in the background. Dropped, they end soon.
pub(crate) struct Load {
    seen: Arc<Mutex<Vec<Request>>>,
    clients: Vec<Background<()>>,
}

impl Load {
    /// Starts so many clients on a host that make `rate` requests a second
    /// together. One client asks in sequence: what it sees is in the order of
    /// the schedule.
    pub(crate) fn start(host: &Host, service: SocketAddr, rate: u32, clients: u32) -> Self {
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let apart = Duration::from_secs(1) / rate;
        let begin = Instant::now();
        let client = |number| {
            let seen = Arc::clone(&seen);
            Background::start(host, move |going| {
                let mut due = begin + apart * number;
                while goes_on(going) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let request = Request::make(service);
                    lock(&seen).push(request);
                    due += apart * clients;
                }
            })
        };
        Self {
            clients: (0..clients).map(client).collect(),
            seen,
        }
    }

    /// How many requests were made so far, and how many of them failed.
    pub(crate) fn so_far(&self) -> (usize, usize) {
        let seen = lock(&self.seen);
        let failed = seen.iter().filter(|request| request.outcome.is_err());
        (seen.len(), failed.count())
    }

    /// The requests that have begun since, in that order.
    pub(crate) fn since(&self, begun: Instant) -> Vec<Request> {
        let mut requests: Vec<Request> = lock(&self.seen)
            .iter()
            .filter(|request| request.begun >= begun)
            .cloned()
            .collect();
        requests.sort_by_key(|request| request.begun);
        requests
    }

    /// Ends the clients and gives all they have seen, in order.
    pub(crate) fn finish(self) -> Result<Vec<Request>> {
        for client in self.clients {
            client.finish()?;
        }
        let mut requests = mem::take(&mut *lock(&self.seen));
        requests.sort_by_key(|request| request.begun);
        Ok(requests)
    }
}

/// Those that failed.
pub(crate) fn failed(requests: &[Request]) -> impl Iterator<Item = &Request> {
    requests.iter().filter(|request| request.outcome.is_err())
}

/// The longest of all.
pub(crate) fn slowest(requests: &[Request]) -> Duration {
    let times = requests.iter().map(|request| request.took);
    times.max().unwrap_or_default()
}

fn lock(seen: &Mutex<Vec<Request>>) -> MutexGuard<'_, Vec<Request>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
