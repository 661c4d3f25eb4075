//! Connections by the ten thousand: servers that hold them, and clients that open
//! them, over tokio.
//!
//! A request is a token and what is to become of the connection; the answer is
//! the same token, the number of the backend and the client that it saw. So an
//! answer that belongs to another connection shows itself.

use std::collections::HashSet;
use std::future::Future;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use super::daemon::beside;
use super::{Host, PATIENCE};

/// How many connections may wait to be accepted: as many as Linux lets
/// (net.core.somaxconn), and what servers that expect a crowd ask for.
const BACKLOG: u32 = 4096;

type Request = [u8; 16];
type Reply = [u8; 32];

/// What becomes of the connection after the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It stays open.
    Stay,
    /// The server closes it (FIN).
    Close,
    /// The server breaks it off (RST).
    Reset,
}

/// A server on a host, a process of its own: one process may not have as many
/// files open as both ends of all connections are. Dropped, it and all its
/// connections end.
#[derive(Debug)]
pub struct EchoServer {
    child: Child,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// How many connections it has accepted.
    pub accepted: u64,
    /// How many are open.
    pub open: u64,
    /// How often one came from an end that had another one open.
    pub clashes: u64,
}

impl EchoServer {
    /// Starts to listen on an address that the host has, as the backend of this
    /// number.
    pub fn start(host: &Host, number: u8, address: SocketAddr) -> Result<Self> {
        let program = beside("echo");
        let mut child = host
            .command(&program)
            .args([number.to_string(), address.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run nsenter; it is in Debian's package util-linux")?;
        let (stdin, stdout) = child
            .stdin
            .take()
            .zip(child.stdout.take())
            .context("pipes")?;
        let server = Self {
            child,
            talk: Mutex::new((stdin, BufReader::new(stdout))),
        };
        server.served().with_context(|| {
            let program = program.display();
            format!("{program} does not listen on {address} of {}", host.name)
        })?;
        Ok(server)
    }

    /// What it has done so far.
    pub fn served(&self) -> Result<Served> {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let (stdin, stdout) = &mut *talk;
        stdin.write_all(b"\n")?;
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let numbers: Vec<u64> = line
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [accepted, open, clashes] = numbers[..] else {
            bail!("the server said {line:?}");
        };
        Ok(Served {
            accepted,
            open,
            clashes,
        })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's own process, until its input ends: each line of it is answered by
/// what was done so far.
pub fn serve_echoes(number: u8, address: SocketAddr) -> Result<()> {
    most_files()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let shared = Arc::new(Shared {
        number,
        peers: Mutex::default(),
        accepted: AtomicU64::new(0),
        clashes: AtomicU64::new(0),
    });
    let listener = on(&runtime, async move {
        let socket = socket(address)?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    })?
    .with_context(|| format!("cannot listen on {address}"))?;
    runtime.spawn(accept(listener, Arc::clone(&shared)));
    for line in io::stdin().lines() {
        line?;
        let open = shared.peers().len();
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (accepted, clashes) = (count(&shared.accepted), count(&shared.clashes));
        println!("{accepted} {open} {clashes}");
    }
    Ok(())
}

#[derive(Debug)]
struct Shared {
    number: u8,
    peers: Mutex<HashSet<SocketAddr>>,
    accepted: AtomicU64,
    clashes: AtomicU64,
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // What cannot be accepted has gone away meanwhile.
        let Ok((stream, peer)) = listener.accept().await else {
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if !shared.peers().insert(peer) {
            shared.clashes.fetch_add(1, Ordering::Relaxed);
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let number = shared.number;
            // A client that goes away is none of the server's business.
            let _ = serve(stream, peer, number, Present(shared, peer)).await;
        });
    }
}

/// Takes a peer from the list when it is dropped.
struct Present(Arc<Shared>, SocketAddr);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.peers().remove(&self.1);
    }
}

/// Ends with the list without the peer and then the connection, in this order:
/// as soon as that is closed, the peer's port may be used again.
async fn serve(
    mut stream: TcpStream,
    peer: SocketAddr,
    number: u8,
    present: Present,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Request::default();
    let after = loop {
        if stream.read_exact(&mut request).await.is_err() {
            break After::Stay;
        }
        stream.write_all(&reply(&request, number, peer)).await?;
        match request[8] {
            0 => {}
            1 => break After::Close,
            _ => break After::Reset,
        }
    };
    if after == After::Reset {
        set_socket_linger(&stream, Some(Duration::ZERO))?;
    }
    drop(present);
    drop(stream);
    Ok(())
}

fn request(token: u64, after: After) -> Request {
    let mut request = Request::default();
    request[..8].copy_from_slice(&token.to_be_bytes());
    request[8] = match after {
        After::Stay => 0,
        After::Close => 1,
        After::Reset => 2,
    };
    request
}

fn reply(request: &Request, number: u8, peer: SocketAddr) -> Reply {
    let mut reply = Reply::default();
    reply[..8].copy_from_slice(&request[..8]);
    reply[8] = number;
    reply[9] = u8::from(peer.is_ipv4());
    reply[10..12].copy_from_slice(&peer.port().to_be_bytes());
    let address = match peer.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    reply[16..].copy_from_slice(&address.octets());
    reply
}

/// Who answered, and whom it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The number of the backend.
    pub backend: u8,
    /// The client as it saw it.
    pub client: SocketAddr,
}

/// Clients on a host: threads of this process, on which tasks run.
#[derive(Debug)]
pub struct Clients {
    runtime: Option<Runtime>,
}

impl Clients {
    /// So many threads.
    pub fn on(host: &Host, threads: usize) -> Result<Self> {
        Ok(Self {
            runtime: Some(runtime(host, threads)?),
        })
    }

    /// Runs a task there and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        on(self.runtime.as_ref().context("it runs")?, task)
    }

    /// Starts a task there.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<tokio::task::JoinHandle<T>> {
        Ok(self.runtime.as_ref().context("it runs")?.spawn(task))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Line {
    stream: TcpStream,
}

impl Line {
    /// Connects from the calling task's host; from an end of it, if one is
    /// given, even if that was in use until now.
    pub async fn open(from: Option<SocketAddr>, service: SocketAddr) -> io::Result<Self> {
        let socket = socket(service)?;
        if let Some(from) = from {
            socket.set_reuseaddr(true)?;
            socket.bind(from)?;
        }
        let stream = socket.connect(service).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// The same, and an error after so long.
    pub async fn open_within(patience: Duration, service: SocketAddr) -> Result<Self> {
        timeout(patience, Self::open(None, service))
            .await
            .map_err(|_| anyhow!("no connection to {service} within {patience:?}"))?
            .with_context(|| format!("cannot connect to {service}"))
    }

    /// The client's end.
    pub fn end(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Asks who answers; what comes must be this connection's own answer.
    pub async fn ask(&mut self, after: After) -> Result<Echo> {
        let token = fastrand::u64(..);
        let mut reply = Reply::default();
        let exchange = async {
            self.stream.write_all(&request(token, after)).await?;
            self.stream.read_exact(&mut reply).await
        };
        exchange.await.context("no answer came")?;
        ensure!(
            reply[..8] == token.to_be_bytes(),
            "mixed up: the answer is another connection's"
        );
        let address: [u8; 16] = reply[16..].try_into()?;
        let address = Ipv6Addr::from(address);
        let port = u16::from_be_bytes([reply[10], reply[11]]);
        Ok(Echo {
            backend: reply[8],
            client: match address.to_ipv4_mapped() {
                Some(v4) if reply[9] == 1 => SocketAddr::new(v4.into(), port),
                _ => SocketAddr::new(address.into(), port),
            },
        })
    }

    /// The same, and an error after so long.
    pub async fn ask_within(&mut self, patience: Duration, after: After) -> Result<Echo> {
        timeout(patience, self.ask(after))
            .await
            .map_err(|_| anyhow!("no answer within {patience:?}"))?
    }

    /// Sends again and again, whatever is answered, until it is told that the
    /// connection is over.
    pub async fn until_over(&mut self, pace: Duration) {
        let mut answers = [0; 1024];
        while self
            .stream
            .write_all(&request(0, After::Stay))
            .await
            .is_ok()
        {
            match timeout(pace, self.stream.read(&mut answers)).await {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(_)) => sleep(pace).await,
                // Nothing yet: a client that waits sends more all the same.
                Err(_) => {}
            }
        }
    }

    /// Waits for the answer to a request that was given up.
    pub async fn outstanding(&mut self, patience: Duration) -> Result<()> {
        let mut reply = Reply::default();
        timeout(patience, self.stream.read_exact(&mut reply))
            .await
            .map_err(|_| anyhow!("no answer within {patience:?}"))??;
        Ok(())
    }

    /// Waits until the other side has closed the connection; `false` if it was
    /// broken off.
    pub async fn closed(&mut self) -> bool {
        let mut rest = [0; 64];
        loop {
            match self.stream.read(&mut rest).await {
                Ok(0) => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Sends no more (FIN), but would go on to receive.
    pub async fn shut(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Breaks it off (RST).
    pub fn reset(self) -> io::Result<()> {
        Ok(set_socket_linger(&self.stream, Some(Duration::ZERO))?)
    }
}

/// Lets this process have as many files open as it may; how many that is.
pub fn most_files() -> Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )
    .context("cannot raise the limit of open files")?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

fn socket(to: SocketAddr) -> io::Result<TcpSocket> {
    match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// So many threads on a host. They inherit where they are from the thread that
/// makes them.
fn runtime(host: &Host, threads: usize) -> Result<Runtime> {
    host.enter(|| {
        Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
    })
    .context("cannot start threads")
}

/// Runs a task on the threads of a runtime, and so on their host, and waits.
fn on<T: Send + 'static>(
    runtime: &Runtime,
    task: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    runtime
        .block_on(runtime.spawn(task))
        .context("a task panicked")
}
