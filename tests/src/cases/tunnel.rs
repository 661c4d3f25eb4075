//! Tunnels: another IP header around the packet, of either family around
//! either.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::abi::{FlowKey, Settings, TCP, UDP, forward};
use lb_common::flow::tcp_flag::{ACK, FIN, SYN};
use lb_common::{Address, Verdict};

use super::{CASTS, Case, Cast, ISN, Talk, V4, V6, protocol_name};
use crate::frame::{Frame, IcmpError, udp};
use crate::network::{Device, LAN, NARROW, WAN};
use crate::world::{STEADY, World};

/// Outer sources from prefixes of one's own, of which few vary.
const OWN_SOURCES: Settings = Settings {
    tunnel_v4: Address::v4([10, 99, 7, 240]),
    tunnel_v4_bits: 4,
    tunnel_v6: Address::v6(&[
        0xfd, 0, 0, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0xab, 0xcd, 0xe0, 0,
    ]),
    tunnel_v6_bits: 12,
    ..STEADY
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for inner in CASTS {
        for outer in CASTS {
            for protocol in [TCP, UDP] {
                cases.push(whole(inner, outer, protocol, true));
                cases.push(whole(inner, outer, protocol, false));
            }
            cases.extend([
                sources(inner, outer, STEADY, "the usual"),
                sources(inner, outer, OWN_SOURCES, "a short"),
                carried_along(inner, outer),
                padding(inner, outer),
                lying_lengths(inner, outer),
                out_of_ttl(inner, outer),
                too_big(inner, outer),
                to_the_host(inner, outer, 99, Verdict::NeighbourPending),
                to_the_host(inner, outer, 1, Verdict::LocalDestination),
                nowhere(inner, outer),
                no_headroom(inner, outer),
            ]);
        }
        cases.extend([reopened(inner), identified(inner), fragmented(inner)]);
    }
    cases.extend([
        narrow(&V4, "10.0.4.11:80", 1260),
        narrow(&V4, "[fd00:4::11]:80", 1240),
        narrow(&V6, "[fd00:4::11]:80", 1240),
        narrow_for_v6(),
        behind_a_router(),
    ]);
    cases
}

/// A connection through a tunnel.
pub(super) struct Through {
    pub(super) talk: Talk,
    source: IpAddr,
    backend: &'static str,
}

impl Through {
    /// Of the client who comes by this interface, to the backend with this
    /// number of the other cast.
    pub(super) fn new(
        inner: &Cast,
        outer: &Cast,
        arm: &'static Device,
        protocol: u8,
        port: u16,
        number: usize,
    ) -> Self {
        let talk = inner.talk_by(arm, protocol, forward::TUNNEL, port, number);
        Self {
            source: source(&STEADY, &talk.forward_key(), outer.family == "IPv4"),
            backend: outer.backends[number],
            talk,
        }
    }

    /// To this backend.
    pub(super) fn to(mut self, backend: &'static str) -> Self {
        let v4 = !backend.starts_with('[');
        self.source = source(&STEADY, &self.talk.forward_key(), v4);
        self.backend = backend;
        self
    }

    /// The outer source.
    pub(super) fn source(&self) -> String {
        self.source.to_string()
    }

    /// What the client sends, not to be fragmented.
    pub(super) fn asks(&self) -> Frame {
        self.talk.asks().dont_fragment()
    }

    /// The packet with the outer header around it: not to be fragmented, or
    /// with this identification.
    pub(super) fn wrap(&self, inner: Frame, id: Option<u32>) -> Frame {
        let outer = inner.inside(&self.source.to_string(), self.backend);
        let outer = match id {
            Some(id) => outer.identified(id),
            None => outer.dont_fragment(),
        };
        let [.., a, b, c] = match self.source {
            IpAddr::V4(_) => [0; 16],
            IpAddr::V6(source) => source.octets(),
        };
        outer.flow_label(u32::from_be_bytes([0, a & 0x0f, b, c]))
    }

    /// The client's frame is taken to the backend.
    pub(super) fn taken(&self, case: Case, frame: &Frame) -> Case {
        self.taken_like(case, frame, |outer| outer)
    }

    /// The same, with something to say of the outer packet.
    fn taken_like(&self, case: Case, frame: &Frame, outer: impl FnOnce(Frame) -> Frame) -> Case {
        let talk = &self.talk;
        let verdict = talk.way(Verdict::ForwardTx, Verdict::ForwardRedirect);
        let sent = frame.clone().sent_on(LAN.to(talk.backend_last()));
        case.sends(talk.arm, frame, verdict, &outer(self.wrap(sent, None)))
    }
}

/// The outer source of a flow's packets: the low bits of the prefix are those
/// of a hash of the client's address and both ports (the finaliser of
/// MurmurHash3 over each word, as it stands in memory).
fn source(settings: &Settings, key: &FlowKey, v4: bool) -> IpAddr {
    // The finaliser of MurmurHash3, of 64 bits, pair by pair of words.
    let mix = |mut word: u64| {
        word = (word ^ word >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        word = (word ^ word >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        word ^ word >> 33
    };
    let words = |address: Address| {
        let octets = address.octets();
        let (words, _) = octets.as_chunks::<4>();
        let words: Vec<u64> = (words.iter())
            .map(|word| u64::from(u32::from_ne_bytes(*word)))
            .collect();
        words
    };
    let (src, dst) = (words(key.src), words(key.dst));
    let ports =
        [key.src_port, key.dst_port].map(|port| u64::from(u16::from_ne_bytes(port.to_wire())));
    let protocol = u64::from(key.protocol);
    let mut pairs = vec![[src[3], dst[3]], [ports[0] | ports[1] << 16, protocol]];
    if !key.src.is_v4() {
        pairs.extend([[src[0], src[1]], [src[2], dst[2]], [dst[0], dst[1]]]);
    }
    let hash = (pairs.iter()).fold(u64::from(settings.seed), |hash, [low, high]| {
        mix(hash ^ (low | high << 32))
    });
    let hash = (hash >> 16) as u32;
    let low = |bits: u32| u128::from(hash) & ((1 << bits) - 1);
    if v4 {
        let prefix = Ipv4Addr::from(settings.tunnel_v4.low4()).to_bits();
        Ipv4Addr::from_bits(prefix | low(settings.tunnel_v4_bits) as u32).into()
    } else {
        let prefix = Ipv6Addr::from(settings.tunnel_v6.octets()).to_bits();
        Ipv6Addr::from_bits(prefix | low(settings.tunnel_v6_bits)).into()
    }
}

/// A service of the one family, and backends of the other.
pub(super) fn world(inner: &Cast, outer: &Cast, protocol: u8) -> World {
    let [one, two, three] = outer.backends;
    World::empty()
        .service(protocol, forward::TUNNEL, inner.service, &[0, 1, 2])
        .backend(one)
        .backend(two)
        .backend(three)
}

/// The same with this backend alone.
fn lone(inner: &Cast, protocol: u8, backend: &'static str) -> World {
    World::empty()
        .service(protocol, forward::TUNNEL, inner.service, &[0])
        .backend(backend)
}

fn in_what(inner: &Cast, outer: &Cast) -> String {
    format!("{} in {}", inner.family, outer.family)
}

/// How long a packet may be to fit into an MTU with the outer header.
fn room(mtu: usize, outer: &Cast) -> usize {
    mtu - if outer.family == "IPv4" { 20 } else { 40 }
}

/// A datagram whose IP packet has this length.
fn of_length(frame: Frame, length: usize) -> Frame {
    let headers = frame.clone().payload(&[]).packet().len();
    frame.payload(&vec![0x5a; length - headers])
}

fn whole(inner: &Cast, outer: &Cast, protocol: u8, one_arm: bool) -> Case {
    let arm = if one_arm { &LAN } else { &WAN };
    let through = Through::new(inner, outer, arm, protocol, 51_000, 0);
    let says = format!(
        "a {} connection through a tunnel, {}, {}: wrapped, one of the inner TTL, established when its client goes on",
        protocol_name(protocol),
        in_what(inner, outer),
        if one_arm { "one-arm" } else { "two-arm" },
    );
    let key = through.talk.forward_key();
    let backend = Address::from(crate::frame::end(through.backend).ip());
    let mut case = Case::new(says, world(inner, outer, protocol));
    case = through.taken(case, &through.asks().syn());
    case = case.then_flows(0, 1);
    case = through.taken(case, &through.asks().ack(ISN + 1));
    case = case.then_flows(1, 0);
    through
        .taken(case, &through.asks().ack(ISN + 1).payload(b"GET /"))
        .then("one half, which leads to the backend", move |state| {
            state.established.get(&key).is_some_and(|flow| {
                flow.one_way() && !flow.is_reply() && flow.dst == backend && flow.backend == 0
            })
        })
        .then_flows(1, 0)
        .then_turns(1)
}

fn reopened(inner: &Cast) -> Case {
    let through = Through::new(inner, inner, &WAN, TCP, 51_000, 0);
    let again = Through::new(inner, inner, &WAN, TCP, 51_000, 1);
    let says = format!(
        "over {} through a tunnel the client's FIN is all that is seen of the end: a SYN begins anew, with the same outer source",
        inner.family
    );
    let mut case = Case::new(says, world(inner, inner, TCP));
    for flags in [SYN, SYN, ACK, FIN | ACK, ACK] {
        case = through.taken(case, &through.asks().flags(flags));
    }
    assert_eq!(through.source, again.source);
    case = again.taken(case.then_turns(1), &again.asks().syn());
    case.then_flows(0, 1).then_turns(2)
}

fn sources(inner: &Cast, outer: &Cast, settings: Settings, which: &str) -> Case {
    let says = format!(
        "the outer source, {}, from {which} prefix: each flow has one, and hardly two the same",
        in_what(inner, outer)
    );
    let through = |turn: usize| {
        let port = 51_000 + turn as u16 * 7;
        let mut through = Through::new(inner, outer, &WAN, UDP, port, turn % 3);
        let v4 = outer.family == "IPv4";
        through.source = source(&settings, &through.talk.forward_key(), v4);
        through
    };
    let all = || (0..9).map(through);
    let different: BTreeSet<_> = all().map(|through| through.source).collect();
    assert!(different.len() > 4, "{says}: {different:?}");
    let mut case = Case::new(says, world(inner, outer, UDP).with(settings));
    for payload in [&b"first"[..], b"second"] {
        for through in all() {
            case = through.taken(case, &through.asks().payload(payload));
        }
    }
    case.then_flows(9, 0).then_turns(9)
}

fn carried_along(inner: &Cast, outer: &Cast) -> Case {
    let through = Through::new(inner, outer, &WAN, UDP, 51_000, 0);
    let says = format!(
        "DSCP and ECN are copied to the outer header, {}; the packet inside stays as it is",
        in_what(inner, outer)
    );
    let special = if inner.family == "IPv4" {
        through.asks().ip_options(&[1; 40])
    } else {
        let frame = through.asks().hop_by_hop().destination_options();
        frame.flow_label(0x1_2345)
    };
    let mut case = Case::new(says, world(inner, outer, UDP));
    for tos in [0xb8, 0x02, 0x01, 0xff] {
        let frame = through.asks().tos(tos).payload(b"odd");
        case = through.taken_like(case, &frame, |outer| outer.tos(tos));
    }
    for frame in [
        special.payload(b"special"),
        through.asks().without_checksum().payload(b"no sum"),
        through.asks().claims_checksum(0x1234),
        through.asks().ttl(2),
        through.asks().ttl(255),
    ] {
        case = through.taken(case, &frame);
    }
    case
}

fn padding(inner: &Cast, outer: &Cast) -> Case {
    let through = Through::new(inner, outer, &WAN, UDP, 51_000, 0);
    let says = format!(
        "padding, {}, travels along behind and counts for neither length",
        in_what(inner, outer)
    );
    let asks = || through.asks().payload(b"0123456789");
    let header = if inner.family == "IPv4" { 20 } else { 0 };
    let mut case = Case::new(says, world(inner, outer, UDP));
    for frame in [
        asks().padded_to(90),
        asks().padded_to(101),
        // To the IP length, what is behind it is padding too.
        asks().claims_ip_length(header + 8),
        asks().claims_ip_length(header + 13).padded_to(99),
    ] {
        case = through.taken(case, &frame);
    }
    case
}

fn lying_lengths(inner: &Cast, outer: &Cast) -> Case {
    let through = Through::new(inner, outer, &WAN, UDP, 51_000, 0);
    let says = format!(
        "a length that lies, {}, is copied into no outer header",
        in_what(inner, outer)
    );
    let header = if inner.family == "IPv4" { 20 } else { 0 };
    let lies = |length| through.asks().payload(b"12345678").claims_ip_length(length);
    let mut case = Case::new(says, world(inner, outer, UDP));
    case = through.taken(case, &through.asks().payload(b"12345678"));
    for lie in [
        lies(0).padded_to(90),
        lies(header + 7),
        lies(header + 7).padded_to(90),
        lies(header + 17),
        lies(1_500).padded_to(90),
        lies(65_535),
    ] {
        case = case.leaves_alone(&WAN, &lie, Verdict::LengthMismatch);
    }
    case.then_flows(0, 1)
}

fn out_of_ttl(inner: &Cast, outer: &Cast) -> Case {
    let through = Through::new(inner, outer, &WAN, TCP, 51_000, 0);
    let says = format!(
        "a TTL that ends here, {}, goes into no tunnel: the client is told",
        in_what(inner, outer)
    );
    let last = through.asks().syn().ttl(1);
    let told = last.told(IcmpError::TimeExceeded);
    let case = Case::new(says, world(inner, outer, TCP))
        .sends(&WAN, &last, Verdict::TtlExpiredTold, &told)
        .then_flows(0, 0);
    through.taken(case, &through.asks().syn().ttl(2))
}

/// The largest packet, and one byte more.
fn fits_and_not(case: Case, through: &Through, on: &'static Device, fits: usize) -> Case {
    let fitting = of_length(through.asks(), fits);
    let larger = of_length(through.asks(), fits + 1);
    let sent = fitting.clone().sent_on(on.to(11));
    let told = larger.told(IcmpError::TooBig(fits as u32));
    case.sends(
        &WAN,
        &fitting,
        Verdict::ForwardRedirect,
        &through.wrap(sent, None),
    )
    .sends(&WAN, &larger, Verdict::TooBigTold, &told)
}

fn too_big(inner: &Cast, outer: &Cast) -> Case {
    let through = Through::new(inner, outer, &WAN, UDP, 51_000, 0);
    let says = format!(
        "what does not fit with the outer header, {}: the client is told what would",
        in_what(inner, outer)
    );
    let case = Case::new(says, world(inner, outer, UDP));
    fits_and_not(case, &through, &LAN, room(1500, outer))
}

fn narrow(inner: &Cast, backend: &'static str, fits: usize) -> Case {
    let through = Through::new(inner, inner, &WAN, UDP, 51_000, 0).to(backend);
    let says = format!(
        "{} through a tunnel over a link of 1280 bytes to {backend}: {fits} fit",
        inner.family
    );
    let case = Case::new(says, lone(inner, UDP, backend));
    if inner.family == "IPv4" {
        return fits_and_not(case, &through, &NARROW, fits);
    }
    // Every link carries 1280 bytes of IPv6, and nobody is told less.
    let fitting = of_length(through.asks(), fits);
    let sent = fitting.clone().sent_on(NARROW.to(11));
    let larger = of_length(through.asks(), 1281);
    case.sends(
        &WAN,
        &fitting,
        Verdict::ForwardRedirect,
        &through.wrap(sent, None),
    )
    .sends(
        &WAN,
        &larger,
        Verdict::TooBigTold,
        &larger.told(IcmpError::TooBig(1280)),
    )
}

fn narrow_for_v6() -> Case {
    let backend = "10.0.4.11:80";
    let through = Through::new(&V6, &V4, &WAN, UDP, 51_000, 0).to(backend);
    let fitting = of_length(through.asks(), 1260);
    let smallest = of_length(through.asks(), 1280);
    let larger = of_length(through.asks(), 1281);
    let sent = fitting.clone().sent_on(NARROW.to(11));
    Case::new(
        "every link carries 1280 bytes of IPv6: where the tunnel over IPv4 does not, the host fragments what it carries",
        lone(&V6, UDP, backend),
    )
    .sends(
        &WAN,
        &fitting,
        Verdict::ForwardRedirect,
        &through.wrap(sent, None),
    )
    .sends(
        &WAN,
        &smallest,
        Verdict::FragmentedByHost,
        &through.wrap(smallest.clone().ttl(63), Some(0)),
    )
    .sends(
        &WAN,
        &larger,
        Verdict::TooBigTold,
        &larger.told(IcmpError::TooBig(1280)),
    )
}

fn identified(outer: &Cast) -> Case {
    let through = Through::new(&V4, outer, &WAN, UDP, 51_000, 0);
    let says = format!(
        "what may be fragmented, IPv4 in {}, may be so in the tunnel, and each outer packet is one of its own",
        outer.family
    );
    let mut case = Case::new(says, world(&V4, outer, UDP));
    for id in 0..3 {
        let frame = through.talk.asks().payload(b"again").identified(77);
        let sent = frame.clone().sent_on(LAN.to(11));
        let leaves = through.wrap(sent, Some(id));
        case = case.sends(&WAN, &frame, Verdict::ForwardRedirect, &leaves);
        // What may not be has no identification either (RFC 6864).
        case = through.taken(case, &through.asks().payload(b"whole").identified(78));
    }
    case
}

fn fragmented(outer: &Cast) -> Case {
    let through = Through::new(&V4, outer, &WAN, UDP, 51_000, 0);
    let fits = room(1500, outer);
    let larger = of_length(through.talk.asks(), fits + 1);
    if outer.family == "IPv6" {
        let told = larger.told(IcmpError::TooBig(fits as u32));
        return Case::new(
            "what may be fragmented, IPv4 in IPv6, would not be on its way: the client is told, and does it",
            world(&V4, outer, UDP),
        )
        .sends(&WAN, &larger, Verdict::TooBigTold, &told);
    }
    let wrapped = through.wrap(larger.clone().ttl(63), Some(0));
    Case::new(
        "what does not fit and may be fragmented, IPv4 in IPv4, is wrapped and left to the host, which does it",
        world(&V4, outer, UDP),
    )
    .sends(&WAN, &larger, Verdict::FragmentedByHost, &wrapped)
}

/// The host on the backends' network with this number, as its address has it.
fn backend_at(outer: &Cast, number: u8) -> &'static str {
    match (outer.family, number) {
        ("IPv4", 1) => "10.0.1.1:80",
        ("IPv4", 99) => "10.0.1.99:80",
        (_, 1) => "[fd00:1::1]:80",
        _ => "[fd00:1::99]:80",
    }
}

fn to_the_host(inner: &Cast, outer: &Cast, number: u8, verdict: Verdict) -> Case {
    let backend = backend_at(outer, number);
    let through = Through::new(inner, outer, &WAN, TCP, 51_000, 0).to(backend);
    let says = format!(
        "{} to {backend}: wrapped, one of the inner TTL, and given to the host, the links as they came",
        in_what(inner, outer)
    );
    let syn = through.asks().syn();
    let wrapped = through.wrap(syn.clone().ttl(63), None);
    Case::new(says, lone(inner, TCP, backend)).sends(&WAN, &syn, verdict, &wrapped)
}

fn nowhere(inner: &Cast, outer: &Cast) -> Case {
    let (gone, aside) = if outer.family == "IPv4" {
        ("10.0.66.1:80", "10.0.3.11:80")
    } else {
        ("[fd00:66::1]:80", "[fd00:3::11]:80")
    };
    let world = World::empty()
        .service(TCP, forward::TUNNEL, inner.service, &[0, 1])
        .backend(gone)
        .backend(aside);
    let says = format!(
        "no tunnel leads nowhere, {}, nor by an interface that is not attached",
        in_what(inner, outer)
    );
    let syn = |port| {
        let talk = inner.talk(TCP, forward::TUNNEL, port, 0);
        talk.asks().syn()
    };
    Case::new(says, world)
        .leaves_alone(&WAN, &syn(51_000), Verdict::NoRoute)
        .leaves_alone(&WAN, &syn(51_001), Verdict::EgressNotAttached)
}

fn no_headroom(inner: &Cast, outer: &Cast) -> Case {
    let through = Through::new(inner, outer, &WAN, TCP, 51_000, 0);
    let says = format!(
        "a driver that leaves no room in front of a frame, {}: nothing is wrapped",
        in_what(inner, outer)
    );
    Case::new(says, world(inner, outer, TCP).headroom(19))
        .host_only("the kernel's test run always leaves room")
        .leaves_alone(&WAN, &through.asks().syn(), Verdict::NoHeadroom)
        .then("the drop is the backend's", |state| {
            state.drops.keys().all(|key| key.backend == 0)
        })
}

fn behind_a_router() -> Case {
    let through = Through::new(&V4, &V4, &WAN, UDP, 51_000, 0).to("192.0.2.7:80");
    let frame = through.asks().payload(b"?");
    let sent = frame.clone().sent_on(LAN.to(254));
    let back = udp("192.0.2.7:80", &through.talk.client).payload(b"!");
    Case::new(
        "a backend of a tunnel may be behind a router, and what it sends by here is none of ours",
        lone(&V4, UDP, "192.0.2.7:80"),
    )
    .sends(
        &WAN,
        &frame,
        Verdict::ForwardRedirect,
        &through.wrap(sent, None),
    )
    .leaves_alone(&LAN, &back, Verdict::NoService)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_sources_lie_in_the_prefix_and_spread_over_it() {
        let sources = |v4| -> BTreeSet<IpAddr> {
            (0..1000)
                .map(|port| V4.talk(UDP, forward::TUNNEL, 50_000 + port, 0))
                .map(|talk| source(&STEADY, &talk.forward_key(), v4))
                .collect()
        };
        let v4 = sources(true);
        assert!(v4.iter().all(|at| at.to_string().starts_with("198.18.")));
        assert!(v4.len() > 980, "{}", v4.len());
        let v6 = sources(false);
        assert!(v6.iter().all(|at| at.to_string().starts_with("100::")));
        assert!(v6.len() > 999, "{}", v6.len());
    }
}
