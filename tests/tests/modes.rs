//! Every way to forward, over real sockets: each mode, over each family, with
//! one network card and with two.
//!
//! The client is beyond two routers. Through each balancer go a hundred
//! megabytes either way, datagrams of every size up to 8,000 bytes, packets that
//! are too big for a link on their way, pings and a traceroute.

use std::any::Any;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, ip_mtu, set_ip_mtu_discover, set_ip_ttl, set_ipv6_unicast_hops,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, getsockname, socket_with};

use tests::netns::{
    Arms, Connection, Daemon, Decap, Ear, Family, Heard, Host, HttpBackend, Net, Routers, Service,
    UNCHECKED, UdpEcho, Unwrapper, mirrored, ping,
};

use Arms::{One, Two};
use Family::{V4, V6};

/// The MTU of every link that is not the narrow one.
const MTU: u16 = 1500;

/// The MTU of the narrow one; IPv6 wants at least 1280.
const NARROW: u16 = 1300;

/// The largest datagram.
const LARGEST: usize = 8000;

/// How long TCP may take for a megabyte over a way whose MTU it has yet to find.
const RECOVERY: Duration = Duration::from_secs(2);

/// How long an answer may take that is there within a millisecond, on a machine
/// that does other things.
const PATIENCE: Duration = Duration::from_secs(10);

/// They take turns: what they measure is time.
static MACHINE: Mutex<()> = Mutex::new(());

macro_rules! ways {
    ($($name:ident: $forward:literal $arms:ident $service:ident over $backends:ident)+) => {
        $(
            #[test]
            fn $name() -> Result<()> {
                every_packet_arrives(&Way {
                    forward: $forward,
                    arms: $arms,
                    service: $service,
                    backends: $backends,
                })
            }
        )+
    };
}

ways! {
    full_nat_over_ipv4_with_one_card: "full-nat" One V4 over V4
    full_nat_over_ipv4_with_two_cards: "full-nat" Two V4 over V4
    full_nat_over_ipv6_with_one_card: "full-nat" One V6 over V6
    full_nat_over_ipv6_with_two_cards: "full-nat" Two V6 over V6
    nat_over_ipv4_with_one_card: "nat" One V4 over V4
    nat_over_ipv4_with_two_cards: "nat" Two V4 over V4
    nat_over_ipv6_with_one_card: "nat" One V6 over V6
    nat_over_ipv6_with_two_cards: "nat" Two V6 over V6
    dsr_over_ipv4_with_one_card: "dsr" One V4 over V4
    dsr_over_ipv4_with_two_cards: "dsr" Two V4 over V4
    dsr_over_ipv6_with_one_card: "dsr" One V6 over V6
    dsr_over_ipv6_with_two_cards: "dsr" Two V6 over V6
    tunnel_of_ipv4_in_ipv4_with_one_card: "tunnel" One V4 over V4
    tunnel_of_ipv4_in_ipv4_with_two_cards: "tunnel" Two V4 over V4
    tunnel_of_ipv4_in_ipv6_with_one_card: "tunnel" One V4 over V6
    tunnel_of_ipv4_in_ipv6_with_two_cards: "tunnel" Two V4 over V6
    tunnel_of_ipv6_in_ipv4_with_one_card: "tunnel" One V6 over V4
    tunnel_of_ipv6_in_ipv4_with_two_cards: "tunnel" Two V6 over V4
    tunnel_of_ipv6_in_ipv6_with_one_card: "tunnel" One V6 over V6
    tunnel_of_ipv6_in_ipv6_with_two_cards: "tunnel" Two V6 over V6
}

/// One way to forward.
#[derive(Clone, Copy, Debug)]
struct Way {
    forward: &'static str,
    arms: Arms,
    service: Family,
    backends: Family,
}

impl Way {
    /// The largest packet that a client can send to the service: in a tunnel
    /// another header has to fit as well.
    fn mtu(&self) -> u16 {
        match (self.forward, self.backends) {
            ("tunnel", V4) => MTU - 20,
            ("tunnel", V6) => MTU - 40,
            _ => MTU,
        }
    }
}

fn every_packet_arrives(way: &Way) -> Result<()> {
    let _turn = whole_machine();
    let stage = Stage::new(way)?;
    all_of(way, &stage).with_context(|| {
        let told = |command: &[&str]| match stage.balancer.lb(command) {
            Ok(text) => text,
            Err(error) => format!("{error:#}"),
        };
        format!(
            "the balancer says:\n{}\n{}",
            told(&["drops"]),
            told(&["service", "show", "tcp"])
        )
    })
}

fn all_of(way: &Way, stage: &Stage) -> Result<()> {
    // First, while nobody knows the way's MTU.
    if way.mtu() < MTU {
        stage.the_balancer_tells_what_fits_into_a_tunnel(way)?;
    }
    stage.bulk_is_intact()?;
    let socket = stage.client_socket()?;
    stage.every_size_is_mirrored(&socket)?;
    stage.many_clients_are_kept_apart()?;
    stage.pings_are_answered()?;
    stage.a_traceroute_shows_the_balancer()?;
    stage.a_narrow_link_is_found_by_tcp()?;
    stage.a_narrow_link_is_found_by_datagrams(&socket)?;
    stage.fragments_of_narrow_links_are_mirrored(&socket)?;
    stage.only_unknown_neighbours_cost_packets()
}

/// What is too big with the tunnel's header, and may be cut, is cut and not lost,
/// nor is the client told to send less: the host's stack cuts it, and the
/// backend's puts it together again.
#[test]
fn what_may_be_cut_goes_through_a_tunnel_in_pieces() -> Result<()> {
    datagrams_that_may_be_cut(V4, 1, MTU)
}

/// IPv6 packets are cut by their sender or not at all (RFC 8200, section 5),
/// and tunnel packets have none that could be told: so the client is.
#[test]
fn what_ipv6_cannot_cut_is_told_to_the_client() -> Result<()> {
    datagrams_that_may_be_cut(V6, 2, MTU - 40)
}

/// Each comes back, after so many attempts at most; in the end the client knows
/// of this MTU.
fn datagrams_that_may_be_cut(backends: Family, attempts: usize, learns: u16) -> Result<()> {
    let _turn = whole_machine();
    let way = Way {
        forward: "tunnel",
        arms: Two,
        service: V4,
        backends,
    };
    // `lb decap` cannot unwrap a packet of which it sees a piece.
    let stage = Stage::with(&way, |_, host| Ok(Box::new(Unwrapper::start(host)?)))?;
    let socket = stage.client_socket()?;
    set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?;
    let full = usize::from(MTU) - 28;
    for size in [full - 50, full - 20, full, full + 1, 4000, 8000] {
        let datagram = seeded(size);
        let mut came = false;
        for _ in 0..attempts {
            came = came || mirrored(&socket, &datagram, PATIENCE / 5)?;
        }
        ensure!(
            came,
            "no answer to {size} bytes; the balancer says: {}",
            stage.balancer.lb(&["drops"])?
        );
    }
    assert_eq!(ip_mtu(&socket)?, u32::from(learns), "what the client knows");
    Ok(())
}

/// With max_mss neither end of a connection sends segments that do not fit
/// through the narrow link, so that nobody has to be told.
#[test]
fn max_mss_spares_both_ends_the_search() -> Result<()> {
    let _turn = whole_machine();
    for (forward, family) in [("full-nat", V4), ("full-nat", V6), ("nat", V4), ("nat", V6)] {
        let net = Net::routed(Two)?;
        net.lead_answers(forward)?;
        let web = Service {
            check: UNCHECKED,
            more: "max_mss = 1200",
            ..Service::new("web", forward, family, [1, 1, 1])
        };
        let _servers = net.start_http(&web)?;
        let _balancer = Daemon::start(&net, &[web.toml(&net)])?;
        let routers = net
            .routers
            .as_ref()
            .context("the client is beyond routers")?;
        routers.narrow_to(NARROW)?;
        let (answer, sent, received) = net.client.enter(|| -> Result<_> {
            let mut connection = Connection::open(web.listen)?;
            let (answer, sent) = connection.upload(1_000_000)?;
            Ok((answer, sent, connection.download(1_000_000)?))
        })?;
        assert_eq!(answer.received, Some(sent));
        assert_eq!(received, sent);
        for router in [&routers.near, &routers.far] {
            assert_eq!(
                router.refused_as_too_big(family)?,
                0,
                "{forward} over {family:?}: {} refused packets",
                router.name
            );
        }
    }
    Ok(())
}

/// A network, and a balancer for one service over TCP and one over UDP at the
/// same address and port.
struct Stage {
    // In the order in which they are to go.
    balancer: Daemon,
    _servers: Vec<HttpBackend>,
    _mirrors: Vec<UdpEcho>,
    _decaps: Vec<Unwraps>,
    service: SocketAddr,
    routers: Routers,
    net: Net,
}

/// What unwraps tunnel packets on a backend until it is dropped.
type Unwraps = Box<dyn Any + Send + Sync>;

impl Stage {
    fn new(way: &Way) -> Result<Self> {
        Self::with(way, |net, host| Ok(Box::new(Decap::start(net, host)?)))
    }

    /// With this on the backends, where there is a tunnel.
    fn with(way: &Way, unwrap: impl Fn(&Net, &Host) -> Result<Unwraps>) -> Result<Self> {
        let net = Net::routed(way.arms)?;
        net.lead_answers(way.forward)?;
        let tcp = Service {
            backed: way.backends,
            check: UNCHECKED,
            ..Service::new("tcp", way.forward, way.service, [1, 1, 1])
        };
        let udp = Service {
            name: "udp".into(),
            ..tcp.clone().udp()
        };
        if ["dsr", "tunnel"].contains(&way.forward) {
            net.give_address_to_backends(&tcp)?;
        }
        let mut decaps = Vec::new();
        if way.forward == "tunnel" {
            for host in &net.backends {
                decaps.push(unwrap(&net, host)?);
            }
        }
        let mirrors = net.backends.iter().enumerate();
        let mirrors = mirrors
            .map(|(number, host)| UdpEcho::mirror(host, udp.server(&net, number)))
            .collect::<Result<_>>()?;
        Ok(Self {
            balancer: Daemon::start(&net, &[tcp.toml(&net), udp.toml(&net)])?,
            _servers: net.start_http(&tcp)?,
            _mirrors: mirrors,
            _decaps: decaps,
            service: tcp.listen,
            routers: net
                .routers
                .clone()
                .context("the client is beyond routers")?,
            net,
        })
    }

    fn family(&self) -> Family {
        if self.service.is_ipv4() { V4 } else { V6 }
    }

    fn bulk_is_intact(&self) -> Result<()> {
        const BYTES: u64 = 100_000_000;
        self.net.client.enter(|| -> Result<()> {
            let mut connection = Connection::open(self.service)?;
            let began = Instant::now();
            let (answer, sent) = connection.upload(BYTES)?;
            assert_eq!(answer.received, Some(sent), "what arrived is what was sent");
            let up = began.elapsed();
            assert_eq!(connection.download(BYTES)?, sent, "and what came back");
            println!(
                "100 MB to {} in {up:.1?}, back in {:.1?}",
                answer.backend,
                began.elapsed() - up
            );
            Ok(())
        })
    }

    /// A megabyte to the service makes the balancer say how much fits, in the
    /// name of the service; nobody else on the way has any reason to.
    fn the_balancer_tells_what_fits_into_a_tunnel(&self, way: &Way) -> Result<()> {
        self.net.client.enter(|| -> Result<()> {
            let ear = Ear::open(self.family())?;
            let took = self.upload_a_megabyte()?;
            let (from, mtu) = ear.hear("what fits into the tunnel", PATIENCE, |heard| {
                Some((heard.from, heard.too_big()?))
            })?;
            println!("a megabyte through a tunnel whose MTU is not known took {took:.2?}");
            assert_eq!(mtu, u32::from(way.mtu()));
            assert_eq!(from, self.service.ip());
            Ok(())
        })?;
        for router in [&self.routers.near, &self.routers.far] {
            assert_eq!(router.refused_as_too_big(self.family())?, 0);
        }
        Ok(())
    }

    fn upload_a_megabyte(&self) -> Result<Duration> {
        let began = Instant::now();
        let (answer, sent) = Connection::open(self.service)?.upload(1_000_000)?;
        let took = began.elapsed();
        assert_eq!(answer.received, Some(sent));
        ensure!(took < RECOVERY, "a megabyte took {took:.2?}");
        Ok(took)
    }

    /// Either end sends more than fits through the link between the routers.
    /// The near router tells the service's address, of which the balancer must
    /// make the backend's own; the far one tells the client.
    fn a_narrow_link_is_found_by_tcp(&self) -> Result<()> {
        let Routers { near, far } = &self.routers;
        let family = self.family();
        self.routers.narrow_to(NARROW)?;
        // First, while the client announces larger segments than fit.
        let before = near.refused_as_too_big(family)?;
        let mut connection = self.net.client.enter(|| Connection::open(self.service))?;
        let backend = self.host(&connection.ask()?.backend)?;
        let ear = backend.enter(|| Ear::open(family))?;
        let began = Instant::now();
        let received = connection.download(1_000_000)?;
        let down = began.elapsed();
        assert_eq!(received.0, 1_000_000);
        ensure!(
            near.refused_as_too_big(family)? > before,
            "the near router refused nothing, so that nothing was shown"
        );
        ensure!(
            down < RECOVERY,
            "a megabyte from the service took {down:.2?}"
        );
        let told = ear.hear("the MTU of the narrow link", PATIENCE, Heard::too_big)?;
        assert_eq!(told, u32::from(NARROW));

        let before = far.refused_as_too_big(family)?;
        let up = self.net.client.enter(|| self.upload_a_megabyte())?;
        ensure!(
            far.refused_as_too_big(family)? > before,
            "the far router refused nothing, so that nothing was shown"
        );
        println!("a megabyte through {NARROW} bytes: to the service {up:.2?}, back {down:.2?}");
        Ok(())
    }

    /// A datagram that must not be cut is lost, and its sender told; the next
    /// one is cut.
    fn a_narrow_link_is_found_by_datagrams(&self, socket: &UdpSocket) -> Result<()> {
        let datagram = seeded(usize::from(MTU) - 100);
        for attempt in 1..=4 {
            if mirrored(socket, &datagram, Duration::from_secs(1))? {
                println!("a datagram is cut at attempt {attempt}");
                return Ok(());
            }
        }
        bail!("nobody was told of the datagrams that did not fit")
    }

    fn every_size_is_mirrored(&self, socket: &UdpSocket) -> Result<()> {
        let began = Instant::now();
        self.are_mirrored(socket, 1..=LARGEST)?;
        println!(
            "datagrams of every size up to {LARGEST} bytes came back in {:.1?}",
            began.elapsed()
        );
        Ok(())
    }

    /// Both ends know by now how narrow the way is.
    fn fragments_of_narrow_links_are_mirrored(&self, socket: &UdpSocket) -> Result<()> {
        self.are_mirrored(socket, boundaries(self.family(), NARROW))
    }

    fn are_mirrored(
        &self,
        socket: &UdpSocket,
        sizes: impl IntoIterator<Item = usize>,
    ) -> Result<()> {
        for size in sizes {
            let came = mirrored(socket, &seeded(size), PATIENCE)
                .with_context(|| format!("a datagram of {size} bytes"))?;
            ensure!(came, "no answer to a datagram of {size} bytes");
        }
        Ok(())
    }

    /// Fragments of several clients at once are not mixed up, even where all
    /// have the service's address behind the balancer.
    fn many_clients_are_kept_apart(&self) -> Result<()> {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|number| {
                    scope.spawn(move || -> Result<()> {
                        let socket = self.client_socket()?;
                        for turn in 0..25 {
                            let datagram = seeded(3000 + 500 * number + turn);
                            let came = mirrored(&socket, &datagram, PATIENCE)?;
                            ensure!(came, "no answer to datagram {turn} of client {number}");
                        }
                        Ok(())
                    })
                })
                .collect();
            for client in clients {
                join(client)?;
            }
            Ok(())
        })
    }

    fn pings_are_answered(&self) -> Result<()> {
        self.net.client.enter(|| -> Result<()> {
            for (number, size) in (0..).zip([0, 1, 56, 57, 1000, 1400, 4000]) {
                ping(self.service.ip(), number, &seeded(size), PATIENCE)?;
            }
            Ok(())
        })
    }

    /// The hops are the two routers, the balancer in the name of the service,
    /// and the server itself.
    fn a_traceroute_shows_the_balancer(&self) -> Result<()> {
        let Routers { far, .. } = &self.routers;
        let hops = [
            far.address(self.family()),
            self.routers.middle_of_near(self.family()),
            self.service.ip(),
        ];
        self.net.client.enter(|| -> Result<()> {
            for (ttl, hop) in (1..).zip(hops) {
                for trace in [trace_by_datagram, trace_by_connection] {
                    let ear = Ear::open(self.family())?;
                    let ends = [trace(self.service, ttl)?, self.service];
                    let what = format!("time exceeded {ttl} hops away, about {ends:?}");
                    let from = ear.hear(&what, PATIENCE, |heard| {
                        let about = heard.time_exceeded() && heard.about() == Some(ends);
                        about.then_some(heard.from)
                    })?;
                    assert_eq!(from, hop, "{ttl} hops away");
                }
            }
            let socket = client_socket(self.service)?;
            set_ttl(&socket, self.family(), 4)?;
            ensure!(
                mirrored(&socket, b"four hops away", PATIENCE)?,
                "the server does not answer four hops away"
            );
            Ok(())
        })
    }

    /// What the balancer may drop: a few packets of which it does not know the
    /// next hop yet.
    fn only_unknown_neighbours_cost_packets(&self) -> Result<()> {
        let drops = self.balancer.json(&["drops"])?;
        let drops = drops.as_array().context("drops are a list")?;
        for drop in drops {
            let few = drop["packets"].as_u64().is_some_and(|packets| packets < 10);
            ensure!(
                drop["reason"] == "neighbour_unknown" && few,
                "packets were dropped: {drop:#}"
            );
        }
        Ok(())
    }

    fn client_socket(&self) -> Result<UdpSocket> {
        self.net.client.enter(|| client_socket(self.service))
    }

    fn host(&self, name: &str) -> Result<&Host> {
        let mut hosts = self.net.backends.iter();
        hosts
            .find(|host| host.name == name)
            .with_context(|| format!("{name} is no backend"))
    }
}

/// Sends a datagram that lives for so many hops; gives where it came from.
fn trace_by_datagram(service: SocketAddr, ttl: u8) -> Result<SocketAddr> {
    let socket = client_socket(service)?;
    let family = if service.is_ipv4() { V4 } else { V6 };
    set_ttl(&socket, family, ttl)?;
    socket.send(b"how far is it?")?;
    Ok(socket.local_addr()?)
}

/// Sends a SYN that lives for so many hops, and gives up.
fn trace_by_connection(service: SocketAddr, ttl: u8) -> Result<SocketAddr> {
    let (domain, family) = match service {
        SocketAddr::V4(_) => (AddressFamily::INET, V4),
        SocketAddr::V6(_) => (AddressFamily::INET6, V6),
    };
    let socket = socket_with(domain, SocketType::STREAM, SocketFlags::NONBLOCK, None)?;
    set_ttl(&socket, family, ttl)?;
    match connect(&socket, &service) {
        Err(Errno::INPROGRESS) => {}
        other => bail!("connecting must take a while, not give {other:?}"),
    }
    Ok(SocketAddr::try_from(getsockname(&socket)?)?)
}

fn set_ttl(socket: impl std::os::fd::AsFd, family: Family, ttl: u8) -> Result<()> {
    match family {
        V4 => set_ip_ttl(socket, ttl.into())?,
        V6 => set_ipv6_unicast_hops(socket, Some(ttl))?,
    }
    Ok(())
}

/// A socket of the calling thread's host that is connected to a service.
fn client_socket(service: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = match service {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(service)?;
    Ok(socket)
}

/// The sizes of datagrams just below, at, and just above those that fill whole
/// packets of this MTU, up to the largest.
fn boundaries(family: Family, mtu: u16) -> Vec<usize> {
    let mtu = usize::from(mtu);
    let (header, fragment_header) = match family {
        V4 => (20, 0),
        V6 => (40, 8),
    };
    // All but the last carry a multiple of 8 (RFC 791; RFC 8200, section 4.5);
    // the first bytes are UDP's header.
    let each = (mtu - header - fragment_header) & !7;
    let whole = mtu - header - 8;
    let full = (1..).map(|count| count * each - 8);
    let full = full.take_while(|&size| size < LARGEST);
    let full: Vec<usize> = full.chain([whole]).collect();
    full.iter()
        .flat_map(|&size| [size - 1, size, size + 1])
        .collect()
}

/// So many bytes that look random, others for each length.
fn seeded(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
    bytes
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
}

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
