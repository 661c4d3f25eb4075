//! Backends that speak HTTP/1.1 and say who they are, and clients that ask.
//!
//! `GET` of anything is answered by the backend's name and the client it saw.
//! `POST` is answered by the checksum of what was sent, and `GET /bytes/N` by
//! that many bytes of a [`Seeded`] stream. Connections stay open until the
//! client asks for `Connection: close`.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Family, Host};

/// How long a client waits for a connection or an answer: far longer than any
/// retransmission that should not have been necessary.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The size of the pieces that long bodies are sent and read in.
const PIECE: usize = 256 << 10;

/// A server on a host, as a thread of this process.
pub struct HttpBackend {
    /// Its host's name, which it answers.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    host: Host,
    accepting: Option<(TcpListener, JoinHandle<()>)>,
    connections: Connections,
}

/// The connections that are open, so that they can be ended.
#[derive(Clone, Default)]
struct Connections {
    open: Arc<Mutex<HashMap<u64, TcpStream>>>,
    next: Arc<AtomicU64>,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HttpBackend {
    /// Starts to listen on the host's address of the family.
    pub fn start(host: &Host, family: Family, port: u16) -> Result<Self> {
        Self::start_at(host, SocketAddr::new(host.address(family), port))
    }

    /// Starts to listen on an address that the host has.
    pub fn start_at(host: &Host, address: SocketAddr) -> Result<Self> {
        let mut backend = Self {
            name: host.name.clone(),
            address,
            host: host.clone(),
            accepting: None,
            connections: Connections::default(),
        };
        backend.listen()?;
        Ok(backend)
    }

    /// Listens again after [`Self::stop`].
    pub fn listen(&mut self) -> Result<()> {
        let address = self.address;
        let listener = self
            .host
            .enter(|| TcpListener::bind(address))
            .with_context(|| format!("{} cannot listen on {address}", self.name))?;
        let accepts = listener.try_clone()?;
        let (name, connections) = (self.name.clone(), self.connections.clone());
        let thread = thread::spawn(move || accept(&accepts, &name, &connections));
        self.accepting = Some((listener, thread));
        Ok(())
    }

    /// Takes no new connection; those that are open go on.
    pub fn stop(&mut self) {
        if let Some((listener, thread)) = self.accepting.take() {
            // Wakes `accept` with an error. Nothing else can fail here.
            let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
            let _ = thread.join();
        }
    }

    /// Ends the connections that are open.
    pub fn hang_up(&self) {
        for (_, stream) in self.connections.open().drain() {
            // One that has ended already is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.connections.open().len()
    }
}

impl Drop for HttpBackend {
    fn drop(&mut self) {
        self.stop();
        self.hang_up();
    }
}

fn accept(listener: &TcpListener, name: &str, connections: &Connections) {
    // Until it is shut down.
    while let Ok((stream, peer)) = listener.accept() {
        let number = connections.next.fetch_add(1, Ordering::Relaxed);
        let Ok(kept) = stream.try_clone() else {
            continue;
        };
        connections.open().insert(number, kept);
        let (name, connections) = (name.to_owned(), connections.clone());
        thread::spawn(move || {
            // A client that goes away is none of the server's business.
            let _ = serve(stream, peer, &name);
            connections.open().remove(&number);
        });
    }
}

fn serve(stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::with_capacity(PIECE, stream);
    while let Some((first, headers)) = read_head(&mut reader)? {
        let keep = headers.get("connection").is_none_or(|text| text != "close");
        let bytes = first
            .split(' ')
            .nth(1)
            .and_then(|path| path.strip_prefix("/bytes/")?.parse().ok());
        if first.starts_with("POST ") {
            let (length, sum) = checksum(&mut reader, body_length(&headers))?;
            answer(&mut writer, &format!("{name} {peer} {length} {sum}"))?;
        } else if let Some(bytes) = bytes {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            writer.write_all(head.as_bytes())?;
            io::copy(&mut Seeded::new(bytes), &mut writer)?;
        } else {
            answer(&mut writer, &format!("{name} {peer}"))?;
        }
        if !keep {
            break;
        }
    }
    writer.shutdown(Shutdown::Both)
}

fn answer(writer: &mut TcpStream, body: &str) -> io::Result<()> {
    let length = body.len();
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
    writer.write_all(text.as_bytes())
}

type Headers = HashMap<String, String>;

/// The first line and the headers of a message, in small letters; `None` where
/// the other end has closed.
fn read_head(reader: &mut impl io::BufRead) -> io::Result<Option<(String, Headers)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let first = line.trim_end().to_owned();
    let mut headers = Headers::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(Some((first, headers)));
        };
        headers.insert(name.to_lowercase(), value.trim().to_lowercase());
    }
}

fn body_length(headers: &Headers) -> u64 {
    headers
        .get("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// The length and the CRC-32 of what follows, at most `length` bytes.
fn checksum(reader: &mut impl Read, length: u64) -> io::Result<(u64, u32)> {
    let mut reader = reader.take(length);
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = vec![0; PIECE];
    let mut total = 0;
    loop {
        let read = reader.read(&mut piece)?;
        if read == 0 {
            return Ok((total, hasher.finalize()));
        }
        total += read as u64;
        hasher.update(&piece[..read]);
    }
}

/// So many bytes that look random and are always the same: the body of long
/// transfers.
pub struct Seeded {
    random: fastrand::Rng,
    left: u64,
}

impl Seeded {
    /// The first so many of them.
    pub fn new(bytes: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(0x5eed),
            left: bytes,
        }
    }
}

impl Read for Seeded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        // Whole words, so that the bytes do not depend on how they are read.
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let length = match into.len().min(most) {
            short if short == most || short < 8 => short,
            long => long & !7,
        };
        self.random.fill(&mut into[..length]);
        self.left -= length as u64;
        Ok(length)
    }
}

/// What a backend answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its name.
    pub backend: String,
    /// The client as it saw it.
    pub client: SocketAddr,
    /// For what was sent: its length and CRC-32.
    pub received: Option<(u64, u32)>,
}

/// A client's connection, kept open.
pub struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Connection {
    /// Connects from the calling thread's host.
    pub fn open(service: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&service, PATIENCE)
            .with_context(|| format!("cannot connect to {service}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            writer: stream.try_clone()?,
            reader: BufReader::with_capacity(PIECE, stream),
        })
    }

    /// Asks who answers, and leaves the connection open.
    pub fn ask(&mut self) -> Result<Answer> {
        self.request("GET / HTTP/1.1\r\nHost: test\r\n\r\n")
    }

    /// Where the connection begins and where it leads.
    pub fn ends(&self) -> Result<(SocketAddr, SocketAddr)> {
        Ok((self.writer.local_addr()?, self.writer.peer_addr()?))
    }

    /// Sends so many bytes of a [`Seeded`] stream; the backend answers with the
    /// checksum of what arrived. Gives that of what was sent, too.
    pub fn upload(&mut self, bytes: u64) -> Result<(Answer, (u64, u32))> {
        let mut hasher = crc32fast::Hasher::new();
        let head = format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {bytes}\r\n\r\n");
        self.writer.write_all(head.as_bytes())?;
        let mut body = Seeded::new(bytes);
        let mut piece = vec![0; PIECE];
        loop {
            let read = body.read(&mut piece)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            self.writer
                .write_all(&piece[..read])
                .context("the body was not taken")?;
        }
        Ok((self.answer()?, (bytes, hasher.finalize())))
    }

    /// Has so many bytes of a [`Seeded`] stream sent; gives the length and the
    /// checksum of what arrived.
    pub fn download(&mut self, bytes: u64) -> Result<(u64, u32)> {
        let head = format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.writer.write_all(head.as_bytes())?;
        let (_, headers) = read_head(&mut self.reader)?.context("closed without an answer")?;
        checksum(&mut self.reader, body_length(&headers)).context("the body broke off")
    }

    fn request(&mut self, text: &str) -> Result<Answer> {
        self.writer
            .write_all(text.as_bytes())
            .context("the request was not taken")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        let (_, headers) = read_head(&mut self.reader)
            .context("no answer came")?
            .context("the connection was closed without an answer")?;
        let mut body = vec![0; usize::try_from(body_length(&headers))?];
        self.reader
            .read_exact(&mut body)
            .context("the answer broke off")?;
        parse(&String::from_utf8(body)?)
    }
}

fn parse(body: &str) -> Result<Answer> {
    let words: Vec<&str> = body.split(' ').collect();
    let [backend, client, ref received @ ..] = words[..] else {
        anyhow::bail!("no backend of the tests answers {body:?}");
    };
    Ok(Answer {
        backend: backend.into(),
        client: client.parse()?,
        received: match *received {
            [length, sum] => Some((length.parse()?, sum.parse()?)),
            _ => None,
        },
    })
}

/// One request on a connection of its own, from the calling thread's host.
pub fn ask(service: SocketAddr) -> Result<Answer> {
    let mut connection = Connection::open(service)?;
    let answer = connection.request("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    // The server closes first, and keeps the state of the ended connection.
    let mut rest = Vec::new();
    connection.reader.read_to_end(&mut rest)?;
    Ok(answer)
}

/// How many of so many requests, one after the other, each backend answered.
pub fn tally(service: SocketAddr, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut tally = BTreeMap::new();
    for number in 1..=requests {
        let answer =
            ask(service).with_context(|| format!("request {number} of {requests} failed"))?;
        *tally.entry(answer.backend).or_default() += 1;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_stream_is_the_same_however_it_is_read() {
        let mut whole = Vec::new();
        Seeded::new(10_001).read_to_end(&mut whole).unwrap();
        assert_eq!(whole.len(), 10_001);
        let mut pieces = Vec::new();
        let mut stream = Seeded::new(10_001);
        let mut piece = [0; 100];
        loop {
            let read = stream.read(&mut piece).unwrap();
            if read == 0 {
                break;
            }
            pieces.extend_from_slice(&piece[..read]);
        }
        assert!(whole == pieces);
    }
}
