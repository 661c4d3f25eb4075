//! What is for no service passes a balancer bit for bit: thousands of frames of
//! all kinds go into its network card, once without the balancer and then with
//! it, while it carries live connections. What arrives behind the card must be
//! the same, in the same order.
//!
//! The frames follow from a seed, which is printed; `LB_TEST_SEED=N` takes
//! another.

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fastrand::Rng;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use tests::damage::damaged;
use tests::frame::{Frame, IcmpError, Link, icmp, icmp_error, ping, tcp, udp};
use tests::netns::{
    Arms, CALM, Capture, Connection, Daemon, Family, Net, Service, UNCHECKED, UdpEcho, Wire,
    mirrored, wait_until,
};

/// Who sends all frames: by this the capture knows them. Nobody has it.
const STRANGER: Link = [0x02, 0x5e, 0xed, 0, 0, 1];

/// How many frames are sent.
const FRAMES: usize = 4000;

/// How many are on their way at once: a veth has room for 256.
const BURST: usize = 64;

/// The MTU of the balancer's cable. XDP wants a frame to fit into a page.
const MTU: usize = 3400;

/// How long something that takes milliseconds may take on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

#[test]
fn what_is_for_no_service_arrives_as_if_there_were_no_balancer() -> Result<()> {
    let seed = seed()?;
    println!("LB_TEST_SEED={seed}");
    differential(seed).with_context(|| format!("with LB_TEST_SEED={seed}"))
}

fn differential(seed: u64) -> Result<()> {
    let net = Net::new(Arms::One)?;
    let mtu = MTU.to_string();
    net.balancer
        .run("ip", &["link", "set", "eth0", "mtu", &mtu])?;
    net.switch
        .run("ip", &["link", "set", "lb-eth0", "mtu", &mtu])?;
    let frames = frames(&mut Rng::with_seed(seed), card(&net)?);

    let without = arrived(&net, "without", &frames)?;
    let sent = frames.len() + frames.len().div_ceil(BURST);
    println!(
        "{} of {sent} frames arrive without a balancer",
        without.len()
    );
    ensure!(without.len() * 100 > sent * 95, "so few show nothing");

    let services = Family::ALL.map(|family| Service {
        check: CALM,
        ..Service::new(&format!("web-{family:?}"), "full-nat", family, [3, 2, 1])
    });
    let datagrams = services.clone().map(|service| Service {
        name: format!("udp-{}", service.name),
        forward: "nat",
        ..service.udp()
    });
    net.lead_replies_through_balancer()?;
    let mut servers = Vec::new();
    let mut mirrors = Vec::new();
    for (web, udp) in services.iter().zip(&datagrams) {
        servers.extend(net.start_http(web)?);
        for (number, host) in net.backends.iter().enumerate() {
            mirrors.push(UdpEcho::mirror(host, udp.server(&net, number))?);
        }
    }
    // Of these nothing is in use.
    let idle = services.clone().into_iter().flat_map(|service| {
        [("dsr", 443), ("tunnel", 444)].map(|(forward, port)| Service {
            name: format!("{forward}-{}", service.name),
            forward,
            listen: SocketAddr::new(service.listen.ip(), port),
            port,
            check: UNCHECKED,
            ..service.clone()
        })
    });
    let idle: Vec<Service> = idle.collect();
    let all = services.iter().chain(&datagrams).chain(&idle);
    let texts: String = all.map(|service| service.toml(&net)).collect();
    for mode in ["native", "generic"] {
        let mut balancer = Daemon::prepare(&net, mode, &net.balancer, &["--detach-on-exit"]);
        let node = balancer.node(net.interfaces());
        let node = node.replacen("\n\n", &format!("\nxdp_mode = {mode:?}\n\n"), 1);
        fs::write(&balancer.config, node + &texts)?;
        balancer.restart()?;
        // Or the card would put segments together, which is not the balancer's
        // doing either.
        net.balancer.run("ethtool", &["-K", "eth0", "gro", "off"])?;

        let stop = AtomicBool::new(false);
        let (with, asked) = thread::scope(|scope| -> Result<_> {
            let live = scope.spawn(|| net.client.enter(|| converse(&services, &datagrams, &stop)));
            let with = arrived(&net, mode, &frames);
            stop.store(true, Ordering::Relaxed);
            let asked = live
                .join()
                .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked));
            Ok((with?, asked?))
        })?;
        println!("{mode}: {} frames beside {asked} requests", with.len());
        same(&without, &with).with_context(|| format!("in {mode} mode"))?;
        ends_here(&net, &services, mode)?;
        assert_eq!(balancer.json(&["drops"])?, serde_json::json!([]), "{mode}");
        balancer.stop()?;
    }
    Ok(())
}

/// What is for a service does not arrive behind the card: the comparison is of
/// what the balancer lets through.
fn ends_here(net: &Net, services: &[Service], mode: &str) -> Result<()> {
    let card = card(net)?;
    let frames = services.iter().flat_map(|service| {
        let stranger = match service.listen.ip() {
            IpAddr::V4(_) => "10.9.0.77:7777",
            IpAddr::V6(_) => "[fd09::77]:7777",
        };
        let stranger = tcp(stranger, &service.listen.to_string());
        // Without the second the backend's answer would be repeated.
        let [syn, rst] = [stranger.clone().seq(6).syn(), stranger.seq(7).rst()];
        [syn, rst].map(|frame| frame.over([STRANGER, card]).bytes())
    });
    let frames: Vec<Vec<u8>> = frames.collect();
    let with = arrived(net, &format!("{mode}-own"), &frames)?;
    assert_eq!(
        with,
        [last_of_burst(0)],
        "only the last of the burst arrives"
    );
    Ok(())
}

/// Asks on connections that stay open until told to stop; gives how often.
fn converse(services: &[Service], datagrams: &[Service], stop: &AtomicBool) -> Result<usize> {
    let mut open = services
        .iter()
        .map(|service| {
            let mut connection = Connection::open(service.listen)?;
            let first = connection.ask()?;
            Ok((connection, first))
        })
        .collect::<Result<Vec<_>>>()?;
    let sockets = datagrams
        .iter()
        .map(|service| {
            let any = match service.listen.ip() {
                IpAddr::V4(_) => "0.0.0.0:0",
                IpAddr::V6(_) => "[::]:0",
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(service.listen)?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut asked = 0;
    while !stop.load(Ordering::Relaxed) {
        for (connection, first) in &mut open {
            assert_eq!(connection.ask()?, *first);
        }
        for socket in &sockets {
            ensure!(mirrored(socket, b"live", BOUND)?, "no answer to a datagram");
        }
        asked += open.len() + sockets.len();
    }
    Ok(asked)
}

/// What arrives behind the balancer's card of these frames.
fn arrived(net: &Net, name: &str, frames: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let source = STRANGER.map(|byte| format!("{byte:02x}")).join(":");
    let file = net.folder().join(format!("{name}.pcap"));
    let filter = format!("ether src {source}");
    let capture = Capture::start(&net.balancer, "eth0", &filter, &file)?;
    net.switch.enter(|| -> Result<()> {
        // What waits on two CPUs may overtake.
        stay_on_one_cpu()?;
        let wire = Wire::open("lb-eth0")?;
        for (number, burst) in (0_u32..).zip(frames.chunks(BURST)) {
            for frame in burst {
                wire.send(frame)?;
            }
            let last = last_of_burst(number);
            wire.send(&last)?;
            wait_until("the last frame of a burst arrives", BOUND, || {
                Ok(capture.frames()?.contains(&last))
            })?;
        }
        Ok(())
    })?;
    capture.stop()
}

/// The first difference, told in bytes.
fn same(without: &[Vec<u8>], with: &[Vec<u8>]) -> Result<()> {
    let pairs = without.iter().zip(with);
    if let Some((number, (one, other))) = pairs.enumerate().find(|(_, (one, other))| one != other) {
        let elsewhere = |frame, of: &[Vec<u8>]| of.iter().position(|other| other == frame);
        bail!(
            "frame {number} of {} (with: {}) differs.\n\
             without the balancer: {} (with it at {:?})\n\
             with the balancer:    {} (without it at {:?})",
            without.len(),
            with.len(),
            hex(one),
            elsewhere(one, with),
            hex(other),
            elsewhere(other, without),
        );
    }
    ensure!(
        without.len() == with.len(),
        "{} frames arrive, and {} without a balancer",
        with.len(),
        without.len()
    );
    Ok(())
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A frame of an experimental protocol (IEEE 802, clause 9.2.3).
fn last_of_burst(number: u32) -> Vec<u8> {
    let mut frame = [[0xff; 6], STRANGER].concat();
    frame.extend([0x88, 0xb5]);
    frame.extend(b"burst ");
    frame.extend(number.to_be_bytes());
    frame
}

/// The balancer's card.
fn card(net: &Net) -> Result<Link> {
    let text = net.balancer.run("ip", &["-j", "link", "show", "eth0"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let address = links[0]["address"]
        .as_str()
        .context("a card has an address")?;
    let bytes = address.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
    <[u8; 6]>::try_from(bytes).ok().context("of six bytes")
}

fn stay_on_one_cpu() -> Result<()> {
    let may = sched_getaffinity(None)?;
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| may.is_set(cpu));
    let mut only = CpuSet::new();
    only.set(cpus.next().context("there is a CPU")?);
    Ok(sched_setaffinity(None, &only)?)
}

fn seed() -> Result<u64> {
    match env::var("LB_TEST_SEED") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("LB_TEST_SEED is {text:?}, not a number")),
        Err(_) => Ok(0xf01c),
    }
}

/// Makes frames that belong together.
type Generator = fn(&mut Rng, &Ends) -> Vec<Vec<u8>>;

/// All frames: as the generators below make them, some damaged, and some that
/// are nothing but noise.
fn frames(rng: &mut Rng, card: Link) -> Vec<Vec<u8>> {
    let to_others: [Generator; 10] = [
        transport,
        transport,
        fragments,
        control,
        errors_about_others,
        other_protocols,
        in_tunnels,
        extension_headers,
        link_protocols,
        tagged,
    ];
    let mut frames: Vec<Vec<u8>> = Vec::new();
    while frames.len() < FRAMES {
        let ends = Ends::any(rng, card);
        let mut made = match rng.usize(0..16) {
            kind if kind < to_others.len() => to_others[kind](rng, &ends),
            10..13 => {
                let kind = rng.usize(0..to_others.len());
                let whole = to_others[kind](rng, &ends);
                let other = tagged(rng, &ends).concat();
                let others = [&other[..]];
                whole
                    .iter()
                    .map(|frame| damaged(rng, frame, &others))
                    .collect()
            }
            13..15 => at_the_services_address(rng, &ends),
            _ => noise(rng, &ends),
        };
        for frame in &mut made {
            // A frame is one only with its link header.
            frame.resize(frame.len().clamp(14, MTU + 14), 0);
            frame[6..12].copy_from_slice(&STRANGER);
        }
        frames.extend(made);
    }
    frames
}

/// The ends of a packet that is for no service, and of one quoted in another.
struct Ends {
    links: [Link; 2],
    from: String,
    to: String,
    /// The same with ports.
    from_port: String,
    to_port: String,
    /// The service's address of that family.
    vip: IpAddr,
}

impl Ends {
    fn any(rng: &mut Rng, card: Link) -> Self {
        let six = rng.bool();
        let last = rng.u8(1..=9);
        // Strangers; and hosts of the network, whose addresses alone make no
        // packet one for a service, nor one from its backends' ports.
        let (from, to, vip) = if six {
            let from = [format!("2001:db8:7::{last}"), format!("fd09::7:{last}")];
            let to = ["fd09::2", "fd09::1", "2001:db8:9::9", "ff02::1", "fd09::13"];
            (choose(rng, &from), *choose_ref(rng, &to), Family::V6.vip())
        } else {
            let from = [format!("203.0.113.{last}"), format!("10.9.7.{last}")];
            let to = [
                "10.9.0.2",
                "10.9.0.1",
                "192.0.2.9",
                "224.0.0.1",
                "10.9.0.255",
            ];
            (choose(rng, &from), *choose_ref(rng, &to), Family::V4.vip())
        };
        let ports = [rng.u16(1..), rng.u16(1..)];
        let [from_port, to_port] = [(&*from, ports[0]), (to, ports[1])].map(|(host, port)| {
            if six {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            }
        });
        let link = [
            card,
            [0xff; 6],
            [0x33, 0x33, 0, 0, 0, 1],
            [2, 9, 9, 9, 9, 9],
        ];
        Self {
            links: [STRANGER, *choose_ref(rng, &link)],
            to: to.into(),
            from,
            from_port,
            to_port,
            vip,
        }
    }

    fn six(&self) -> bool {
        self.vip.is_ipv6()
    }

    fn packet(&self, rng: &mut Rng) -> Frame {
        let frame = if rng.bool() {
            tcp(&self.from_port, &self.to_port).flags(rng.u8(..))
        } else {
            udp(&self.from_port, &self.to_port)
        };
        frame.over(self.links).payload(&bytes(rng, 300))
    }

    fn at_the_vip(&self, port: u16) -> String {
        SocketAddr::new(self.vip, port).to_string()
    }
}

fn choose_ref<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[rng.usize(0..of.len())]
}

fn choose<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    choose_ref(rng, of).clone()
}

/// At most so many bytes of anything.
fn bytes(rng: &mut Rng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.usize(0..=most)];
    rng.fill(&mut bytes);
    bytes
}

/// TCP and UDP with all that their headers may have; padded, short, jumbo, and
/// with lengths and versions that lie.
fn transport(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let frame = ends.packet(rng).ttl(rng.u8(..)).tos(rng.u8(..));
    let frame = match rng.u8(0..10) {
        0 if !ends.six() => frame.ip_options(&[7, 7, 4, 0, 0, 0, 0, 0]),
        1 if !ends.six() => frame.dont_fragment().identified(rng.u16(..).into()),
        2 => frame.flow_label(rng.u32(0..1 << 20)),
        3 => frame.payload(&bytes(rng, MTU - 80)),
        4 => frame.claims_version(rng.u8(0..16)),
        5 => frame.claims_ip_length(rng.u16(..)),
        6 => frame.claims_checksum(rng.u16(..)),
        7 => frame.cut_to(rng.usize(14..80)),
        8 => frame.payload(b"").padded_to(rng.usize(60..90)),
        _ => frame,
    };
    vec![frame.bytes()]
}

/// Datagrams in fragments, in order and not, and some with one missing.
fn fragments(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let datagram = udp(&ends.from_port, &ends.to_port)
        .over(ends.links)
        .payload(&bytes(rng, 2500))
        .identified(rng.u16(..).into());
    let mut pieces = datagram.fragments(8 * rng.usize(8..100));
    match rng.u8(0..3) {
        0 => rng.shuffle(&mut pieces),
        1 => drop(pieces.remove(rng.usize(0..pieces.len()))),
        _ => {}
    }
    pieces.iter().map(Frame::bytes).collect()
}

/// ICMP that asks and answers, of known types and unknown ones.
fn control(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let asked = ping(
        &ends.from,
        &ends.to,
        rng.u16(..),
        rng.u16(..),
        &bytes(rng, 200),
    );
    // Addresses in neighbour discovery would be believed: those are strangers'.
    let kinds: &[u8] = if ends.six() {
        &[0, 100, 127, 128, 129, 130, 131, 132, 138, 143, 200, 255]
    } else {
        &[0, 4, 8, 9, 10, 13, 14, 15, 17, 30, 42, 255]
    };
    let other = icmp(&ends.from, &ends.to, choose(rng, kinds), 0, [0; 4]).payload(&bytes(rng, 60));
    [asked, other]
        .map(|frame| frame.over(ends.links).bytes())
        .into()
}

/// ICMP errors that quote packets of others, whole and cut, and errors about
/// packets that nobody ever sent from the service.
fn errors_about_others(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let kinds = [
        IcmpError::Unreachable(rng.u8(0..16)),
        IcmpError::TooBig(rng.u32(0..2000)),
        IcmpError::TimeExceeded,
        IcmpError::ParameterProblem(rng.u32(0..64)),
    ];
    let about = match rng.u8(0..3) {
        0 => {
            let service = ends.at_the_vip(9999);
            udp(&service, &ends.from_port).payload(&bytes(rng, 100))
        }
        _ => ends.packet(rng),
    };
    let error = choose(rng, &kinds);
    let frame = icmp_error(&ends.from, &ends.to, error, &about, rng.usize(0..400));
    vec![frame.over(ends.links).bytes()]
}

/// VRRP, ESP, AH, GRE, SCTP, OSPF, IGMP, PIM, and any other.
fn other_protocols(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let protocol = match rng.u8(0..10) {
        0..9 => choose(rng, &[2, 47, 50, 51, 89, 103, 112, 132, 33, 136]),
        _ => rng.u8(..),
    };
    // It may be TCP after all, and no less a stranger's.
    let frame = ends.packet(rng).claims_next_header(protocol);
    vec![frame.bytes()]
}

/// Either family in either, and once more.
fn in_tunnels(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let [four, six] = [("203.0.113.77", "10.9.0.2"), ("2001:db8::77", "fd09::2")];
    let (from, to) = choose(rng, &[four, six]);
    let mut frame = ends.packet(rng).inside(from, to);
    if rng.u8(0..4) == 0 {
        let (from, to) = choose(rng, &[four, six]);
        frame = frame.inside(from, to);
    }
    vec![frame.ttl(rng.u8(..)).bytes()]
}

fn extension_headers(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    if !ends.six() {
        return transport(rng, ends);
    }
    let frame = ends.packet(rng);
    let frame = match rng.u8(0..6) {
        0 => frame.hop_by_hop(),
        1 => frame.routing(rng.u8(0..3)),
        2 => frame.destination_options(),
        3 => frame.hop_by_hop().routing(0).destination_options(),
        4 => frame.extensions(rng.usize(1..30)),
        _ => frame.hop_by_hop().extension(135, &bytes_of(rng, 14)),
    };
    vec![frame.bytes()]
}

fn bytes_of(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes
}

/// ARP, LLDP, spanning tree, MPLS, PPPoE, slow protocols, and others.
fn link_protocols(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    // Of strangers: what ARP says is believed.
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, rng.u8(1..3)][..],
        &STRANGER,
        &[192, 0, 2, rng.u8(..)],
        &[0; 6],
        &[198, 51, 100, rng.u8(..)],
    ]
    .concat();
    let (to, ether_type, payload): (Link, u16, Vec<u8>) = match rng.u8(0..8) {
        0..3 => (ends.links[1], 0x0806, arp),
        3 => ([1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, bytes(rng, 100)),
        4 => ([1, 0x80, 0xc2, 0, 0, 0], 0x0026, bytes_of(rng, 38)),
        5 => ([1, 0x80, 0xc2, 0, 0, 2], 0x8809, bytes_of(rng, 110)),
        6 => {
            let known = [0x8847, 0x8848, 0x8863, 0x8864, 0x88e5, 0x8906, 0x22f0];
            (ends.links[1], choose(rng, &known), bytes(rng, 300))
        }
        _ => (ends.links[1], rng.u16(..), bytes(rng, 300)),
    };
    vec![[&to[..], &STRANGER, &ether_type.to_be_bytes(), &payload].concat()]
}

/// Tagged once, twice and thrice, whatever is behind the tags.
fn tagged(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let mut frame = ends.packet(rng);
    for _ in 0..rng.usize(1..=3) {
        frame = frame.tag(choose(rng, &[0x8100, 0x88a8, 0x9100]), rng.u16(..));
    }
    vec![frame.bytes()]
}

/// What has the service's address in it and is not for the service: other
/// ports, other protocols, headers that contradict themselves, what ends before
/// the ports, fragments of what is for another port, and errors about flows
/// that there are not.
fn at_the_services_address(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let vip = ends.vip.to_string();
    let (web, other) = (ends.at_the_vip(80), ends.at_the_vip(rng.u16(1000..)));
    let web = tcp(&ends.from_port, &web).syn();
    let (before_ports, families) = if ends.six() {
        (54, [4, 5, 15])
    } else {
        (34, [6, 5, 15])
    };
    let frame = match rng.u8(0..8) {
        0 => tcp(&ends.from_port, &other).flags(rng.u8(..)),
        1 => udp(&ends.from_port, &other).payload(&bytes(rng, 300)),
        2 => web.claims_next_header(choose(rng, &[50, 112, 132])),
        3 => web.claims_version(choose(rng, &families)),
        4 => web.cut_to(rng.usize(14..before_ports)),
        5 => {
            let datagram = udp(&ends.from_port, &other)
                .over(ends.links)
                .identified(rng.u16(..).into())
                .payload(&bytes_of(rng, 900));
            let pieces = datagram.fragments(8 * rng.usize(10..60));
            return pieces.iter().map(Frame::bytes).collect();
        }
        6 if ends.six() => web.extensions(20),
        _ => {
            let about = tcp(&ends.at_the_vip(80), &ends.from_port).ack(7);
            icmp_error(&ends.from, &vip, IcmpError::TooBig(1400), &about, 500)
        }
    };
    vec![frame.over(ends.links).bytes()]
}

/// Anything behind a link header; half of it says that it is IP.
fn noise(rng: &mut Rng, ends: &Ends) -> Vec<Vec<u8>> {
    let any = rng.u16(..);
    let ether_type = choose(rng, &[0x0800, 0x86dd, 0x8100, any]);
    let mut payload = bytes(rng, 200);
    if let Some(first) = payload.first_mut()
        && rng.bool()
    {
        *first = if ether_type == 0x86dd { 0x60 } else { 0x45 };
    }
    vec![
        [
            &ends.links[1][..],
            &STRANGER,
            &ether_type.to_be_bytes(),
            &payload,
        ]
        .concat(),
    ]
}
