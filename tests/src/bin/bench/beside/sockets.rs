//! Clients and servers with sockets, over tokio: each a thread of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use tests::netns::Host;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::recipe::SERVER_PORT;

/// A request, and its answer. The first byte of a connection says what it is for.
const MESSAGE: usize = 16;

/// The first byte of one whose bytes are only to be taken.
const BULK: u8 = b'B';

/// How much is read and written at a time.
const CHUNK: usize = 256 << 10;

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server on all addresses of a host. Dropped, it ends.
pub(super) struct Server {
    taken: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Starts to listen.
    pub(super) fn start(host: &Host) -> Result<Self> {
        host.sysctl("core/somaxconn", "65535")?;
        let (taken, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, end) = (Arc::clone(&taken), Arc::clone(&ended));
        let (tell, told) = std::sync::mpsc::channel();
        let thread = host.spawn(move || {
            runtime()?.block_on(async {
                let socket = TcpSocket::new_v4()?;
                socket.set_reuseaddr(true)?;
                socket.bind(SocketAddr::from(([0; 4], SERVER_PORT)))?;
                let listener = socket.listen(65_535)?;
                // Whoever does not wait any more has given up.
                let _ = tell.send(());
                let mut look = interval(Duration::from_millis(50));
                while !end.load(Ordering::Relaxed) {
                    tokio::select! {
                        accepted = listener.accept() => {
                            if let Ok((stream, _)) = accepted {
                                tokio::spawn(serve(stream, Arc::clone(&counter)));
                            }
                        }
                        _ = look.tick() => {}
                    }
                }
                Ok(())
            })
        });
        ensure!(
            told.recv_timeout(PATIENCE).is_ok(),
            "the server does not listen"
        );
        Ok(Self {
            taken,
            ended,
            thread: Some(thread),
        })
    }

    /// How many bytes of bulk came.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves one connection until the client closes it.
async fn serve(mut stream: TcpStream, taken: Arc<AtomicU64>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    stream.read_exact(&mut message).await?;
    if message[0] == BULK {
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = stream.read(&mut chunk).await?;
            if length == 0 {
                return Ok(());
            }
            taken.fetch_add(length as u64, Ordering::Relaxed);
        }
    }
    loop {
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await?;
    }
}

/// What clients did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// Connections that had their answer.
    pub(super) connections: u64,
    /// Those that failed.
    pub(super) failed: u64,
    /// How long it took.
    pub(super) seconds: f64,
}

/// Connects, asks once, closes: so many clients at a time, for so long.
pub(super) fn connect(host: &Host, to: SocketAddr, clients: u32, span: Duration) -> Result<Done> {
    inside(host, async move {
        let began = Instant::now();
        let mut all = JoinSet::new();
        for _ in 0..clients {
            all.spawn(async move {
                let mut done = Done::default();
                while began.elapsed() < span {
                    match timeout(PATIENCE, once(to)).await {
                        Ok(Ok(())) => done.connections += 1,
                        _ => done.failed += 1,
                    }
                }
                done
            });
        }
        let mut sum = Done::default();
        while let Some(done) = all.join_next().await {
            let done = done?;
            sum.connections += done.connections;
            sum.failed += done.failed;
        }
        sum.seconds = began.elapsed().as_secs_f64();
        Ok(sum)
    })
}

/// One connection, which this end closes first.
async fn once(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    let mut message = [1; MESSAGE];
    stream.write_all(&message).await?;
    stream.read_exact(&mut message).await?;
    Ok(())
}

/// Round trips of small messages in microseconds, sorted: so many connections,
/// each of which asks at this pace.
pub(super) fn round_trips(
    host: &Host,
    to: SocketAddr,
    connections: u32,
    pace: Duration,
    span: Duration,
) -> Result<Vec<f64>> {
    inside(host, async move {
        let mut all = JoinSet::new();
        for number in 0..connections {
            // Not all at the same time.
            let late = pace * number / connections;
            all.spawn(async move {
                let mut stream = TcpStream::connect(to).await?;
                stream.set_nodelay(true)?;
                tokio::time::sleep(late).await;
                let mut beat = interval(pace);
                beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let (mut took, began) = (Vec::new(), Instant::now());
                let mut message = [1; MESSAGE];
                while began.elapsed() < span {
                    beat.tick().await;
                    let asked = Instant::now();
                    stream.write_all(&message).await?;
                    stream.read_exact(&mut message).await?;
                    took.push(asked.elapsed().as_secs_f64() * 1e6);
                }
                io::Result::Ok(took)
            });
        }
        let mut took = Vec::new();
        while let Some(some) = all.join_next().await {
            took.extend(some??);
        }
        took.sort_by(f64::total_cmp);
        Ok(took)
    })
}

/// Sends as much as one connection takes, for so long: bytes that came, a second.
pub(super) fn bulk(host: &Host, to: SocketAddr, server: &Server, span: Duration) -> Result<f64> {
    inside(host, async move {
        let mut stream = TcpStream::connect(to).await?;
        let mut message = [0; MESSAGE];
        message[0] = BULK;
        stream.write_all(&message).await?;
        let chunk = vec![0; CHUNK];
        // The window opens first.
        let warm = Instant::now();
        while warm.elapsed() < span / 4 {
            timeout(PATIENCE, stream.write_all(&chunk)).await??;
        }
        let (began, before) = (Instant::now(), server.taken());
        while began.elapsed() < span {
            timeout(PATIENCE, stream.write_all(&chunk)).await??;
        }
        let taken = server.taken() - before;
        Ok(taken as f64 / began.elapsed().as_secs_f64())
    })
}

fn runtime() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

/// Runs work in a thread on a host.
fn inside<T: Send>(host: &Host, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    host.enter(|| runtime()?.block_on(work))
        .map_err(|error| anyhow!("{error:#}"))
}
