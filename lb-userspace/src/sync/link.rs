//! How sessions come about: this node calls the other, and answers it.
//!
//! Everything runs in a thread of its own, so that a busy control plane does not hold up
//! the flows and the flows do not hold up the control plane. Calls are repeated, first
//! after [`FIRST_PAUSE`], then each time after twice as long up to [`LAST_PAUSE`], less a
//! random part, so that two nodes do not go in step. Who has connected has to show that
//! it is the peer, in bounded time, and only so many are heard at once
//! ([`AT_ONCE`]); strangers cannot take the places that the peer's address has for
//! itself, and a node that has an address of its own to listen on calls from that one. A
//! new session with the peer ends the one before, which may be one
//! whose end this node has not heard of.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::{client, server};

use super::Local;
use super::board::Rejected;
use super::channel::{Channel, Failure};
use super::feed::Feed;
use super::hear::hear;
use super::tell::tell;
use crate::host;
use crate::tls::Renewed;

/// The first pause between two calls.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest one.
pub const LAST_PAUSE: Duration = Duration::from_secs(2);

/// How long a call may take to be answered at all.
const CALL: Duration = Duration::from_secs(2);

/// How many that have connected may be asked who they are at once: from the peer's
/// address, and as many from anywhere else.
const AT_ONCE: usize = 4;

/// From one attempt to listen to the next.
const RETRY: Duration = Duration::from_secs(1);

/// Where the nodes are.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Where this node listens.
    pub listen: SocketAddr,
    /// Where the other one does.
    pub peer: SocketAddr,
    /// Who this node is.
    pub identity: Arc<Renewed>,
}

type Answered = Channel<server::TlsStream<TcpStream>>;

/// Calls and answers, for as long as it is polled.
pub async fn run(local: Arc<Local>, ends: Ends) {
    let (accepted, sessions) = mpsc::channel(1);
    let listening = listen(Arc::clone(&local), ends.clone(), accepted);
    tokio::join!(listening, call(&local, &ends), tell_each(&local, sessions));
}

/// Calls the other node, and hears it.
async fn call(local: &Local, ends: &Ends) {
    let mut pause = FIRST_PAUSE;
    loop {
        let failure = match connect(local, ends).await {
            Ok((mut channel, peer)) => {
                pause = FIRST_PAUSE;
                hear(&mut channel, local, peer).await
            }
            Err(failure) => {
                local.board.unheard(&failure.to_string());
                failure
            }
        };
        if let Some(rejected) = failure.rejected() {
            local.board.reject(rejected);
        }
        sleep(jittered(pause)).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Between half of it and all of it.
fn jittered(pause: Duration) -> Duration {
    // Without a random number, the whole.
    let part = host::random().unwrap_or(u32::MAX);
    pause / 2 + pause.mul_f64(f64::from(part) / f64::from(u32::MAX) / 2.0)
}

async fn connect(
    local: &Local,
    ends: &Ends,
) -> Result<(Channel<client::TlsStream<TcpStream>>, super::message::Hello), Failure> {
    let unreachable = |why: String| Failure::Unreachable(ends.peer, why);
    let stream = timeout(CALL, dial(ends))
        .await
        .map_err(|_| unreachable("it does not answer".to_owned()))?
        .map_err(|error| unreachable(error.to_string()))?;
    // What is said is short, and waited for.
    stream.set_nodelay(true).map_err(Failure::Broken)?;
    let identity = ends.identity.now();
    let stream = identity.connect(ends.peer.ip(), stream).await?;
    let mut channel = Channel::new(stream);
    let peer = channel.greet(&local.hello).await?;
    Ok((channel, peer))
}

async fn dial(ends: &Ends) -> io::Result<TcpStream> {
    let socket = match ends.peer {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let own = ends.listen.ip();
    if !own.is_unspecified() && own.is_ipv4() == ends.peer.is_ipv4() {
        // It is the address by which the other one knows this node.
        socket.bind(SocketAddr::new(own, 0))?;
    }
    socket.connect(ends.peer).await
}

/// Answers whoever calls.
async fn listen(local: Arc<Local>, ends: Ends, accepted: mpsc::Sender<Answered>) {
    let [peers, strangers] = [AT_ONCE; 2].map(|places| Arc::new(Semaphore::new(places)));
    loop {
        let listener = match TcpListener::bind(ends.listen).await {
            Ok(listener) => listener,
            Err(error) => {
                let why = format!("cannot listen on {}: {error}", ends.listen);
                let acts = local.status.borrow().role.acts();
                local.board.untold(&why, acts);
                // The address may come with its interface.
                sleep(RETRY).await;
                continue;
            }
        };
        loop {
            let (stream, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::warn!("cannot accept on {}: {error}", ends.listen);
                    sleep(RETRY).await;
                    break;
                }
            };
            let room = if from.ip().to_canonical() == ends.peer.ip() {
                &peers
            } else {
                &strangers
            };
            let Ok(place) = Arc::clone(room).try_acquire_owned() else {
                local.board.reject(Rejected::Crowded);
                continue;
            };
            let (local, ends) = (Arc::clone(&local), ends.clone());
            let accepted = accepted.clone();
            tokio::spawn(async move {
                match answer(&local, &ends, stream).await {
                    // If nobody takes it any more, the node is about to end.
                    Ok(channel) => drop(accepted.send(channel).await),
                    Err(failure) => {
                        log::debug!("somebody was not let into the sync channel: {failure}");
                        if let Some(rejected) = failure.rejected() {
                            local.board.reject(rejected);
                        }
                    }
                }
                drop(place);
            });
        }
    }
}

async fn answer(local: &Local, ends: &Ends, stream: TcpStream) -> Result<Answered, Failure> {
    stream.set_nodelay(true).map_err(Failure::Broken)?;
    let identity = ends.identity.now();
    let stream = identity.accept(ends.peer.ip(), stream).await?;
    let mut channel = Channel::new(stream);
    channel.greet(&local.hello).await?;
    Ok(channel)
}

/// Tells the peer in its latest session.
async fn tell_each(local: &Local, mut sessions: mpsc::Receiver<Answered>) {
    let table = &*local.table;
    let mut feed = Feed::new(table);
    let mut latest = None;
    let mut status = local.status.clone();
    loop {
        if status.borrow_and_update().role.acts() {
            feed.owe();
        } else {
            // Of this run, or of an earlier one.
            feed.keep_unsaid(table, |changed| table.add_changed(changed));
        }
        let Some(mut channel) = latest.take() else {
            tokio::select! {
                session = sessions.recv() => match session {
                    Some(session) => latest = Some(session),
                    None => return,
                },
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let acts = status.borrow().role.acts();
                    local.board.nobody_told(acts);
                }
            }
            continue;
        };
        tokio::select! {
            failure = tell(&mut channel, local, &mut feed) => {
                if let Some(rejected) = failure.rejected() {
                    local.board.reject(rejected);
                }
            }
            session = sessions.recv() => match session {
                Some(session) => latest = Some(session),
                None => return,
            },
        }
    }
}
