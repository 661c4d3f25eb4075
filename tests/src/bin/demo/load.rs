//! Clients that ask at a steady rate, each request over a connection of its
//! own. Nothing is tried again: a request that fails has failed.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use tests::netns::{Connection, Host};

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
    going: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts so many clients on a host that make `rate` requests a second
    /// together. One client asks in sequence: what it sees is in the order of
    /// the schedule.
    pub(crate) fn start(host: &Host, service: SocketAddr, rate: u32, clients: u32) -> Self {
        let mut load = Self {
            seen: Arc::default(),
            going: Arc::new(AtomicBool::new(true)),
            clients: Vec::new(),
        };
        let apart = Duration::from_secs(1) / rate;
        let begin = Instant::now();
        for number in 0..clients {
            let (seen, going) = (Arc::clone(&load.seen), Arc::clone(&load.going));
            load.clients.push(host.spawn(move || {
                let mut due = begin + apart * number;
                while going.load(Ordering::Relaxed) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let request = Request::make(service);
                    lock(&seen).push(request);
                    due += apart * clients;
                }
            }));
        }
        load
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
    pub(crate) fn finish(mut self) -> Result<Vec<Request>> {
        self.going.store(false, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client
                .join()
                .map_err(|_| anyhow!("a client of the demonstration panicked"))?;
        }
        let mut requests = std::mem::take(&mut *lock(&self.seen));
        requests.sort_by_key(|request| request.begun);
        Ok(requests)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.going.store(false, Ordering::Relaxed);
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
