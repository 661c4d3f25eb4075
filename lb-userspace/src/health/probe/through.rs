//! Does the backend accept a TCP connection to the service's own address?
//!
//! With `dsr` and `tunnel` the packets of clients reach the backend as they
//! are, addressed to the service. That its server answers on the backend's own
//! address says little: the service's address may be missing there, or nobody
//! unwraps the tunnel. This probe asks the way clients do.
//!
//! - On the balancer the service's address is local, so an ordinary socket
//!   would connect to the balancer itself. The handshake is made here, in
//!   whole packets: a SYN from an address and a port of this host to the
//!   service, a SYN-ACK or a reset in answer, and a reset that makes the backend
//!   forget it. A TCP socket that is bound, but neither listens nor connects,
//!   keeps the port from others meanwhile; the host's own stack regards the
//!   answer as nobody's, and its reset goes to the service's address, which is
//!   this host's, and not to the backend.
//! - The packet is taken to the backend by a raw socket, to which the kernel
//!   leaves the header and of which it asks the next hop alone: it looks up the
//!   route to *the backend*, asks for its link address if need be, and sends
//!   there what is addressed to the service. That is `dsr`; a `tunnel` differs
//!   by the header in front, from an address of the balancer's tunnel sources.
//! - The inner TTL is 1. A backend that lacks the address and forwards packets
//!   would send them back to the balancer, which would choose another backend,
//!   whose answer would speak for the wrong one.
//! - Answers are heard by one packet socket for each family, which sees them
//!   before the host's stack can object to a source address of its own. It is
//!   shared, because the kernel takes milliseconds to close one. Its filter
//!   wants the acknowledgement of a sequence number whose upper half was drawn
//!   when it was opened; the lower half is drawn for each probe. So a flood of
//!   forged answers costs the kernel's filter and nothing else, and an answer
//!   is guessed by nobody who does not see the probe.

mod packet;

use std::collections::HashMap;
use std::io;
use std::net::{self, IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::rand::GetRandomFlags;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};

use super::ProbeError;
use crate::address::{Addresses, Listed, in_subnet};
use packet::{Ends, Said};

/// How long a SYN waits for its answer before it is sent again (RFC 6298,
/// section 2).
const AGAIN: Duration = Duration::from_secs(1);

/// How long hearing rests after an error, so that one that stays costs little.
const REST: Duration = Duration::from_millis(100);

/// What the kernel may keep of answers that are not heard yet: those of some
/// thousand probes at once.
const BUFFER: usize = 4 << 20;

/// The way of a probe that goes where clients' packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Through {
    /// The service's address and port.
    pub service: SocketAddr,
    /// How packets to it are taken to the backend.
    pub carriage: Carriage,
}

/// How a packet to the service is taken to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carriage {
    /// As it is, to the backend's link address.
    Dsr,
    /// Wrapped in another IP header.
    Tunnel {
        /// The first of the outer source addresses, of the backend's family.
        source: IpAddr,
        /// How many of its low bits vary; at most 32.
        bits: u32,
    },
}

impl Through {
    /// A result of such a probe, in words.
    pub fn tell(&self, result: &Result<Duration, ProbeError>) -> String {
        let address = self.service.ip();
        match (result, self.carriage) {
            (Ok(_), _) => "accepted a connection through the service's address".into(),
            (Err(error @ ProbeError::Silent(_)), Carriage::Dsr) => format!(
                "through the service's address: {error}; is {address} on the backend's loopback interface?"
            ),
            (Err(error @ ProbeError::Silent(_)), Carriage::Tunnel { .. }) => format!(
                "through the service's address: {error}; does the backend unwrap tunnels, and is {address} on its loopback interface?"
            ),
            (Err(error), _) => format!("through the service's address: {error}"),
        }
    }
}

/// Makes such probes; many at a time. Opens what it needs when it needs it.
#[derive(Debug, Default)]
pub struct Prober {
    ipv4: OnceCell<Ear>,
    ipv6: OnceCell<Ear>,
}

impl Prober {
    /// Asks `backend` for a connection to the service and lets go of it; gives
    /// how long the answer took.
    pub async fn probe(
        &self,
        through: &Through,
        backend: SocketAddr,
        timeout: Duration,
    ) -> Result<Duration, ProbeError> {
        let failed = |error| ProbeError::from_connect(error, timeout);
        let here = own_address(through.service.ip(), backend)
            .await
            .map_err(failed)?;
        let ear = self.ear(through.service.is_ipv4()).await.map_err(failed)?;
        let (attempt, mut said) = Attempt::new(ear, through, here, backend).map_err(failed)?;
        let started = Instant::now();
        loop {
            attempt.ask().map_err(failed)?;
            let left = timeout.saturating_sub(started.elapsed());
            match time::timeout(left.min(AGAIN), &mut said).await {
                Ok(Ok(Said::Accepted)) => return Ok(started.elapsed()),
                Ok(Ok(Said::Refused)) => return Err(ProbeError::Refused),
                Ok(Err(_)) => return Err(failed(io::Error::other("nobody hears the answers"))),
                Err(_) if left <= AGAIN => return Err(ProbeError::Silent(timeout)),
                Err(_) => {}
            }
        }
    }

    async fn ear(&self, ipv4: bool) -> io::Result<&Ear> {
        let ear = if ipv4 { &self.ipv4 } else { &self.ipv6 };
        ear.get_or_try_init(|| async { Ear::open(ipv4) }).await
    }
}

/// One handshake. However it ends, the backend is told to forget it.
struct Attempt<'a> {
    ear: &'a Ear,
    ends: Ends,
    raw: Socket,
    backend: SockAddr,
    syn: Vec<u8>,
    reset: Vec<u8>,
    _port: Socket,
}

impl<'a> Attempt<'a> {
    /// Reserves a port at `here` and listens for the answer.
    fn new(
        ear: &'a Ear,
        through: &Through,
        here: IpAddr,
        backend: SocketAddr,
    ) -> io::Result<(Self, oneshot::Receiver<Said>)> {
        let here = SocketAddr::new(here, 0);
        let port = Socket::new(Domain::for_address(here), Type::STREAM, Some(Protocol::TCP))?;
        port.bind(&here.into())?;
        let here = port.local_addr()?.as_socket().ok_or(io::ErrorKind::Other)?;
        let ends = Ends {
            here,
            there: through.service,
        };
        let [draw, outer] = random()?;
        let sequence = number(ear.mark, draw);
        let dress = |packet: Vec<u8>| match through.carriage {
            Carriage::Dsr => Ok(packet),
            Carriage::Tunnel { source, bits } => {
                packet::wrap(&packet, vary(source, bits, outer), backend.ip())
            }
        };
        let raw = Socket::new(
            Domain::for_address(backend),
            Type::RAW.nonblocking(),
            Some(Protocol::from(libc::IPPROTO_RAW)),
        )?;
        let syn = dress(packet::syn(&ends, sequence)?)?;
        let reset = dress(packet::reset(&ends, sequence)?)?;
        let attempt = Self {
            ear,
            ends,
            raw,
            // The port is none of a raw socket's business, and has to be 0.
            backend: SocketAddr::new(backend.ip(), 0).into(),
            syn,
            reset,
            _port: port,
        };
        Ok((attempt, ear.expect(ends, sequence)))
    }

    fn ask(&self) -> io::Result<()> {
        self.raw.send_to(&self.syn, &self.backend).map(drop)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.ear.waiting().remove(&self.ends);
        // A backend that has nothing to forget ignores it.
        let _ = self.raw.send_to(&self.reset, &self.backend);
    }
}

/// Who waits for which answer: one entry for each probe under way.
type Waiting = Mutex<HashMap<Ends, Waiter>>;

#[derive(Debug)]
struct Waiter {
    sequence: u32,
    say: oneshot::Sender<Said>,
}

/// Hears the answers over one family.
#[derive(Debug)]
struct Ear {
    /// The upper half of every sequence number.
    mark: u16,
    waiting: Arc<Waiting>,
    task: JoinHandle<()>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ear {
    /// In the calling thread's network namespace, within a tokio runtime.
    fn open(ipv4: bool) -> io::Result<Self> {
        let [draw, _] = random()?;
        let mark = draw as u16;
        let protocol = if ipv4 {
            libc::ETH_P_IP
        } else {
            libc::ETH_P_IPV6
        };
        // The kernel wants it as it stands in a frame. What comes in before the
        // filter is there finds nobody waiting.
        let protocol = Protocol::from(i32::from((protocol as u16).to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(protocol))?;
        socket.attach_filter(&packet::filter(ipv4, mark))?;
        // Where that is refused the usual size has to do.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER);
        // tokio has no type of its own for such a socket; of this one only
        // `recv` is used, which asks nothing of the protocol.
        let socket = UdpSocket::from_std(net::UdpSocket::from(OwnedFd::from(socket)))?;
        let waiting = Arc::default();
        let task = tokio::spawn(hear(socket, Arc::clone(&waiting)));
        Ok(Self {
            mark,
            waiting,
            task,
        })
    }

    /// Waits for the answer to a SYN, until [`Attempt`] takes it back.
    fn expect(&self, ends: Ends, sequence: u32) -> oneshot::Receiver<Said> {
        let (say, said) = oneshot::channel();
        self.waiting().insert(ends, Waiter { sequence, say });
        said
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Ends, Waiter>> {
        lock(&self.waiting)
    }
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, HashMap<Ends, Waiter>> {
    // Entries come and go whole: a panic elsewhere leaves no half.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes on what comes in, for ever.
async fn hear(socket: UdpSocket, waiting: Arc<Waiting>) {
    let mut bytes = [0; packet::MOST];
    loop {
        let Ok(length) = socket.recv(&mut bytes).await else {
            time::sleep(REST).await;
            continue;
        };
        let Some(answer) = bytes.get(..length).and_then(packet::answer) else {
            continue;
        };
        let mut waiting = lock(&waiting);
        let awaited = waiting.get(&answer.ends).map(|waiter| waiter.sequence);
        if awaited == Some(answer.sequence)
            && let Some(waiter) = waiting.remove(&answer.ends)
        {
            // A probe that has just given up does not listen any more.
            let _ = waiter.say.send(answer.said);
        }
    }
}

/// This host's address that a probe comes from, and the answer goes to: what
/// the kernel would take towards the backend, or where the service is of the
/// other family, an address in the service's network, or any.
async fn own_address(service: IpAddr, backend: SocketAddr) -> io::Result<IpAddr> {
    let own = if service.is_ipv4() == backend.is_ipv4() {
        let any = match service {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = net::UdpSocket::bind((any, 0))?;
        socket.connect(backend)?;
        Some(socket.local_addr()?.ip()).filter(|own| *own != service)
    } else {
        let addresses = Addresses::connect().map_err(io::Error::other)?;
        let listed = addresses.list().await.map_err(io::Error::other)?;
        nearest(service, &listed)
    };
    own.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            format!(
                "it has no address of {service}'s family but the services', from which to ask; give it one"
            ),
        )
    })
}

/// Of the host's own addresses of a service's family that which shares the
/// longest prefix of a network with it, else the first.
fn nearest(service: IpAddr, listed: &[Listed]) -> Option<IpAddr> {
    let usable = |entry: &&Listed| {
        let local = match entry.address {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        };
        entry.address.is_ipv4() == service.is_ipv4()
            && !entry.ours
            && !local
            && entry.address != service
    };
    // `max_by_key` gives the last of equals: asked backwards, the first.
    listed
        .iter()
        .filter(usable)
        .rev()
        .max_by_key(|entry| in_subnet(service, entry.address, entry.prefix).then_some(entry.prefix))
        .map(|entry| entry.address)
}

/// An address with its low `bits` replaced by a draw's.
fn vary(first: IpAddr, bits: u32, draw: u32) -> IpAddr {
    let low = u32::MAX
        .checked_shr(u32::BITS.saturating_sub(bits))
        .unwrap_or(0);
    match first {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !low | draw & low).into(),
        IpAddr::V6(v6) => {
            let (low, draw) = (u128::from(low), u128::from(draw));
            Ipv6Addr::from_bits(v6.to_bits() & !low | draw & low).into()
        }
    }
}

/// A sequence number with the mark, which it keeps when one is added.
fn number(mark: u16, draw: u32) -> u32 {
    (u32::from(mark) << 16) | (draw % 0xffff)
}

/// Two numbers that nobody guesses.
fn random() -> io::Result<[u32; 2]> {
    let mut bytes = [[0; 4]; 2];
    for number in &mut bytes {
        rustix::rand::getrandom(number, GetRandomFlags::empty())?;
    }
    Ok(bytes.map(u32::from_ne_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(address: &str, prefix: u8, ours: bool) -> Listed {
        Listed {
            index: 2,
            interface: "eth0".into(),
            address: address.parse().expect("an address"),
            prefix,
            ours,
        }
    }

    #[test]
    fn the_nearest_address_of_the_hosts_own_asks() {
        let all = [
            listed("127.0.0.1", 8, false),
            listed("169.254.3.3", 16, false),
            listed("10.8.0.2", 24, false),
            listed("10.9.0.2", 16, false),
            listed("10.9.0.3", 24, false),
            listed("10.9.0.100", 32, true),
            listed("10.9.0.101", 32, true),
            listed("fe80::1", 64, false),
            listed("fd09::2", 64, false),
        ];
        let table = [
            ("10.9.0.100", 9, Some("10.9.0.3")),
            ("10.9.7.7", 9, Some("10.9.0.2")),
            ("192.0.2.1", 9, Some("10.8.0.2")),
            // One that the host has of its own accord and is balanced too.
            ("10.8.0.2", 3, None),
            ("192.0.2.1", 2, None),
            ("2001:db8::1", 9, Some("fd09::2")),
            ("2001:db8::1", 8, None),
        ];
        for (service, known, expected) in table {
            let service = service.parse().expect("an address");
            let expected = expected.map(|address| address.parse().expect("an address"));
            assert_eq!(nearest(service, &all[..known]), expected, "{service}");
        }
    }

    #[test]
    fn only_the_low_bits_of_an_outer_source_vary() {
        let table = [
            ("198.18.0.0", 16, "198.18.222.173"),
            ("198.18.0.0", 0, "198.18.0.0"),
            ("198.18.0.7", 4, "198.18.0.13"),
            ("198.18.0.0", 32, "202.254.222.173"),
            ("100::", 32, "100::cafe:dead"),
            ("100::", 0, "100::"),
            ("100::1:2:3:4", 16, "100::1:2:3:dead"),
        ];
        for (first, bits, expected) in table {
            let varied = vary(first.parse().expect("an address"), bits, 0xcafe_dead);
            assert_eq!(varied.to_string(), expected, "{first} with {bits} bits");
        }
    }

    #[test]
    fn sequence_numbers_keep_their_mark_when_one_is_added() {
        for draw in [0, 1, 0xfffe, 0xffff, 0x1_0000, u32::MAX] {
            let sequence = number(0xabcd, draw);
            assert_eq!(sequence >> 16, 0xabcd);
            assert_eq!((sequence + 1) >> 16, 0xabcd);
        }
    }

    #[test]
    fn silence_comes_with_what_to_look_for() {
        let through = |carriage| Through {
            service: "192.0.2.1:80".parse().expect("an address"),
            carriage,
        };
        let silent = Err(ProbeError::Silent(Duration::from_millis(500)));
        assert_eq!(
            through(Carriage::Dsr).tell(&silent),
            "through the service's address: no answer within 500ms; \
             is 192.0.2.1 on the backend's loopback interface?"
        );
        let tunnel = Carriage::Tunnel {
            source: Ipv4Addr::new(198, 18, 0, 0).into(),
            bits: 16,
        };
        assert_eq!(
            through(tunnel).tell(&silent),
            "through the service's address: no answer within 500ms; does the backend unwrap \
             tunnels, and is 192.0.2.1 on its loopback interface?"
        );
    }
}
