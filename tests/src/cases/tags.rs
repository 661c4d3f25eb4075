//! Tags of VLANs, and the members of a bond: which interface a frame belongs
//! to, and by which device, with which tags, it leaves.

use lb_common::abi::{Settings, TCP, UDP, forward};
use lb_common::{Action, Verdict};

use super::tunnel::Through;
use super::{CASTS, Case, Cast, ISN, Talk, V4};
use crate::frame::{Frame, IcmpError, ping, tcp, udp};
use crate::network::{BOND, Device, LAN, MEMBER, STACKED, VLAN, WAN};
use crate::world::{STEADY, World};

/// Frames come in by members of a bond.
const BONDED: Settings = Settings {
    members: 1,
    ..STEADY
};

/// IEEE 802.1Q, 802.1ad, and what came before the latter.
const CUSTOMER: u16 = 0x8100;
const PROVIDER: u16 = 0x88a8;
const OLD: u16 = 0x9100;

/// Priority 5, and that it may be dropped.
const PRIORITY: u16 = 0xb000;

/// Says the tags of a frame.
type Tags = fn(Frame) -> Frame;

/// A link: what the routing table calls it, by which device its frames come,
/// with which tags.
#[derive(Clone, Copy)]
struct Link {
    name: &'static str,
    /// The routing table's, whose addresses are on it.
    interface: &'static Device,
    /// Where its frames come and go.
    device: &'static Device,
    tags: Tags,
}

const PLAIN: Link = Link {
    name: "no tag",
    interface: &LAN,
    device: &LAN,
    tags: |frame| frame,
};
const FAR: Link = Link {
    name: "no tag elsewhere",
    interface: &WAN,
    device: &WAN,
    tags: |frame| frame,
};
const ONE: Link = Link {
    name: "a tag",
    interface: &VLAN,
    device: &LAN,
    tags: |frame| frame.tagged(10),
};
const TWO: Link = Link {
    name: "two tags",
    interface: &STACKED,
    device: &WAN,
    tags: |frame| frame.tagged(20).tagged(30),
};
const BONDS: Link = Link {
    name: "a bond's member",
    interface: &BOND,
    device: &MEMBER,
    tags: |frame| frame,
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        let links = [PLAIN, FAR, ONE, TWO];
        for from in links {
            for to in links {
                cases.push(translated(cast, STEADY, from, to));
                cases.push(one_way(cast, STEADY, from, to));
            }
        }
        let from_bond = [BONDS, PLAIN, FAR, ONE, TWO].map(|link| (BONDS, link));
        let to_bond = links.map(|link| (link, BONDS));
        for (from, to) in from_bond.into_iter().chain(to_bond) {
            cases.push(translated(cast, BONDED, from, to));
            cases.push(one_way(cast, BONDED, from, to));
        }
        for (from, to) in [(FAR, ONE), (TWO, PLAIN), (ONE, TWO), (TWO, ONE)] {
            cases.push(in_pieces(cast, from, to));
            cases.push(limited(cast, from, to));
        }
        cases.extend([
            priorities_kept(cast),
            priorities_left(cast),
            unknown(cast),
            no_number(cast),
            three(cast),
            others(cast),
            cut_short(cast),
            padding(cast),
            to_the_host(cast),
            too_big(cast),
            told(cast),
            answered(cast),
        ]);
    }
    cases.push(member_without_bonds());
    cases
}

/// The end of this host of a link.
fn host(cast: &Cast, link: Link, last: u8, port: u16) -> &'static str {
    let place = usize::from(cast.family == "IPv6");
    let own = link.interface.addresses[place];
    let (network, _) = own.split_once("1/").expect("the balancer is host 1");
    // A name for as long as the tests run, like all the others.
    Box::leak(match place {
        0 => format!("{network}{last}:{port}").into(),
        _ => format!("[{network}{last}]:{port}").into(),
    })
}

/// A frame of a link, from its host 7.
fn on(link: Link, frame: Frame) -> Frame {
    let [balancer, neighbour] = link.interface.to(7);
    (link.tags)(frame.over([neighbour, balancer]))
}

/// The same as it leaves by a link for the host with this number.
fn leaving(link: Link, frame: Frame, last: u8) -> Frame {
    (link.tags)(frame.untagged().sent_on(link.interface.to(last)))
}

/// What is said of a frame that goes from one link to the other.
fn way(from: Link, to: Link, same: Verdict, other: Verdict) -> Verdict {
    assert_eq!(
        (same.action(), other.action()),
        (Action::Transmit, Action::Redirect)
    );
    if from.device.index == to.device.index {
        same
    } else {
        other
    }
}

/// A connection by a client on one link to a backend on the other.
struct Crossing {
    client: &'static str,
    backend: &'static str,
    from: Link,
    to: Link,
}

impl Crossing {
    fn new(cast: &Cast, from: Link, to: Link) -> Self {
        Self {
            client: host(cast, from, 7, 51_000),
            backend: host(cast, to, 11, 8080),
            from,
            to,
        }
    }

    fn world(&self, cast: &Cast, protocol: u8, mode: u8) -> World {
        World::empty()
            .service(protocol, mode, cast.service, &[0])
            .backend(self.backend)
    }

    /// The client's frame, by nat.
    fn asks(&self, case: Case, frame: &Frame) -> Case {
        let verdict = way(
            self.from,
            self.to,
            Verdict::ForwardTx,
            Verdict::ForwardRedirect,
        );
        let leaves = frame.clone().between(self.client, self.backend);
        case.sends(
            self.from.device,
            frame,
            verdict,
            &leaving(self.to, leaves, 11),
        )
    }
}

fn translated(cast: &Cast, settings: Settings, from: Link, to: Link) -> Case {
    let talk = Crossing::new(cast, from, to);
    let says = format!(
        "{} by nat from {} to {}, and back",
        cast.family, from.name, to.name
    );
    let service = cast.service;
    let asks = |frame: fn(Frame) -> Frame| on(from, frame(tcp(talk.client, service)));
    let answer = on(
        to,
        tcp(talk.backend, talk.client).syn_ack(0x0102_0305).seq(ISN),
    );
    let back = answer.clone().between(service, talk.client);
    let verdict = way(to, from, Verdict::ReplyTx, Verdict::ReplyRedirect);
    let world = talk.world(cast, TCP, forward::NAT).with(settings);
    let case = talk.asks(Case::new(says, world), &asks(Frame::syn));
    let case = case.sends(to.device, &answer, verdict, &leaving(from, back, 7));
    talk.asks(case, &asks(|frame| frame.ack(ISN + 1).payload(b"odd")))
        .then_flows(2, 0)
}

fn one_way(cast: &Cast, settings: Settings, from: Link, to: Link) -> Case {
    let talk = Crossing::new(cast, from, to);
    let says = format!(
        "{} by dsr and through a tunnel from {} to {}",
        cast.family, from.name, to.name
    );
    let world = talk
        .world(cast, UDP, forward::DSR)
        .with(settings)
        .service(UDP, forward::TUNNEL, cast.second_service, &[1])
        .backend(talk.backend);
    let verdict = way(from, to, Verdict::ForwardTx, Verdict::ForwardRedirect);
    let direct = on(from, udp(talk.client, cast.service).payload(b"?"));
    let mut through = Through::new(cast, cast, from.device, UDP, 51_000, 0);
    through.talk.client = talk.client.to_owned();
    through.talk.service = cast.second_service;
    let through = through.to(talk.backend);
    let wrapped = on(from, through.asks().payload(b"?"));
    let outer = through.wrap(leaving(to, wrapped.clone(), 11), None);
    Case::new(says, world)
        .sends(
            from.device,
            &direct,
            verdict,
            &leaving(to, direct.clone(), 11),
        )
        .sends(from.device, &wrapped, verdict, &outer)
}

fn in_pieces(cast: &Cast, from: Link, to: Link) -> Case {
    let talk = Crossing::new(cast, from, to);
    let says = format!(
        "{}: fragments from {} to {} are renumbered where their number then stands",
        cast.family, from.name, to.name
    );
    let whole = on(from, udp(talk.client, cast.service).payload(&[0xa7; 101]));
    let mut case = Case::new(says, talk.world(cast, UDP, forward::NAT));
    let verdict = way(from, to, Verdict::ForwardTx, Verdict::ForwardRedirect);
    for frame in whole.identified(0xbeef).fragments(48) {
        let leaves = frame.clone().between(talk.client, talk.backend);
        let leaves = leaving(to, leaves.identified(0), 11);
        case = case.sends(from.device, &frame, verdict, &leaves);
    }
    case
}

fn limited(cast: &Cast, from: Link, to: Link) -> Case {
    let talk = Crossing::new(cast, from, to);
    let says = format!(
        "{}: the segment size that a SYN announces is lowered where it then stands, from {} to {}",
        cast.family, from.name, to.name
    );
    let announces = |size: u16| {
        let syn = tcp(talk.client, cast.service).syn();
        on(from, syn.no_operation().mss(size))
    };
    let leaves = announces(1220).between(talk.client, talk.backend);
    let verdict = way(from, to, Verdict::ForwardTx, Verdict::ForwardRedirect);
    let mut world = talk.world(cast, TCP, forward::NAT);
    world.services[0].max_mss = 1220;
    Case::new(says, world).sends(
        from.device,
        &announces(1460),
        verdict,
        &leaving(to, leaves, 11),
    )
}

fn priorities_kept(cast: &Cast) -> Case {
    let [one, two] = [ONE, TWO].map(|link| Crossing::new(cast, link, link));
    let says = format!(
        "{}: a frame that stays in its VLAN keeps its priorities",
        cast.family
    );
    let world = one
        .world(cast, TCP, forward::NAT)
        .service(TCP, forward::NAT, cast.second_service, &[1])
        .backend(two.backend);
    let single = on(PLAIN, tcp(one.client, cast.service).syn()).tag(CUSTOMER, PRIORITY | 10);
    let double = on(PLAIN, tcp(two.client, cast.second_service).syn())
        .tag(PROVIDER, 0xe000 | 20)
        .tag(CUSTOMER, 0x1000 | 30);
    let sent = |talk: &Crossing, frame: &Frame, link: Link| {
        let frame = frame.clone().between(talk.client, talk.backend);
        frame.sent_on(link.interface.to(11))
    };
    Case::new(says, world)
        .sends(&LAN, &single, Verdict::ForwardTx, &sent(&one, &single, ONE))
        .sends(&WAN, &double, Verdict::ForwardTx, &sent(&two, &double, TWO))
}

fn priorities_left(cast: &Cast) -> Case {
    let from = Link {
        tags: |frame| frame.tag(PROVIDER, 0xe000 | 20).tag(CUSTOMER, 0x7000 | 30),
        ..TWO
    };
    let to = Crossing::new(cast, from, ONE);
    let says = format!(
        "{}: a frame that changes its VLAN leaves its priorities with it",
        cast.family
    );
    let frame = on(from, tcp(to.client, cast.service).syn());
    to.asks(Case::new(says, to.world(cast, TCP, forward::NAT)), &frame)
}

/// Frames with tags for which the host has no interface.
const UNKNOWN: [(&str, Tags); 7] = [
    ("another VLAN", |frame| frame.tagged(99)),
    ("the VLAN's number in a provider's tag", |frame| {
        frame.tag(PROVIDER, 10)
    }),
    ("an old provider's tag", |frame| frame.tag(OLD, 10)),
    ("the outer tag alone", |frame| frame.tag(PROVIDER, 20)),
    ("two tags the other way round", |frame| {
        frame.tag(PROVIDER, 30).tag(CUSTOMER, 20)
    }),
    ("two customers' tags", |frame| {
        frame.tag(CUSTOMER, 20).tag(CUSTOMER, PRIORITY | 30)
    }),
    ("a tag within the VLAN's", |frame| {
        frame.tag(CUSTOMER, 10).tag(CUSTOMER, 11)
    }),
];

fn unknown(cast: &Cast) -> Case {
    let same = cast.talk_by(&LAN, UDP, forward::NAT, 51_000, 0);
    let other = cast.talk(UDP, forward::NAT, 51_000, 0);
    let says = format!(
        "{}: what has tags that the host does not know is the device's own, and keeps them on the same device only",
        cast.family
    );
    let mut world = cast.world(UDP, forward::NAT);
    world.services[0].sequence = vec![0];
    let mut case = Case::new(says, world);
    for (_, tags) in UNKNOWN {
        let frame = |talk: &Talk| tags(talk.asks().payload(b"?"));
        case = case.client_sends(&same, tags);
        let leaves = frame(&other)
            .untagged()
            .between(&other.source, other.backend);
        case = case.sends(
            &WAN,
            &frame(&other),
            Verdict::ForwardRedirect,
            &leaves.sent_on(LAN.to(11)),
        );
    }
    case.then_turns(2)
}

fn no_number(cast: &Cast) -> Case {
    let same = cast.talk_by(&LAN, UDP, forward::NAT, 51_000, 0);
    let other = cast.talk(UDP, forward::NAT, 51_001, 1);
    let says = format!(
        "{}: a tag that tells a priority and no VLAN counts as none, and stays on the same device",
        cast.family
    );
    let tag = |frame: Frame| frame.tag(CUSTOMER, PRIORITY).payload(b"?");
    let leaves = tag(other.asks()).untagged();
    let leaves = leaves.between(&other.source, other.backend);
    Case::new(says, cast.world(UDP, forward::NAT))
        .client_sends(&same, tag)
        .sends(
            &WAN,
            &tag(other.asks()),
            Verdict::ForwardRedirect,
            &leaves.sent_on(LAN.to(12)),
        )
}

fn three(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::NAT, 51_000, 0);
    let says = format!(
        "{}: nobody looks behind a third tag, nor behind what only resembles one",
        cast.family
    );
    let frame = || talk.asks().syn();
    Case::new(says, cast.world(TCP, forward::NAT))
        .leaves_alone(
            &LAN,
            &frame().tagged(10).tagged(11).tagged(12),
            Verdict::NotIp,
        )
        .leaves_alone(
            &WAN,
            &frame().tagged(20).tagged(30).tagged(40).tagged(50),
            Verdict::NotIp,
        )
        .leaves_alone(&WAN, &frame().tag(0x9200, 20), Verdict::NotIp)
        .leaves_alone(
            &WAN,
            &frame().tagged(20).claims_ether_type(0x0806),
            Verdict::NotIp,
        )
        .then_flows(0, 0)
}

fn others(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::NAT, 51_000, 0);
    let says = format!(
        "{}: what is for no service keeps its tags, whatever they are",
        cast.family
    );
    let other = tcp(&talk.client, cast.second_service).syn();
    let mut case = Case::new(says, cast.world(TCP, forward::NAT));
    for (_, tags) in UNKNOWN {
        case = case.leaves_alone(&WAN, &tags(other.clone()), Verdict::NoService);
        case = case.leaves_alone(&LAN, &tags(talk.asks().ack(7)), Verdict::NoFlow);
    }
    case.leaves_alone(&LAN, &(ONE.tags)(other.clone()), Verdict::NoService)
        .leaves_alone(&WAN, &(TWO.tags)(other), Verdict::NoService)
        .leaves_alone(&LAN, &(ONE.tags)(talk.answers()), Verdict::NoService)
}

fn cut_short(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::NAT, 51_000, 0);
    let says = format!("{}: frames that end in a tag or behind it", cast.family);
    let mut case = Case::new(says, cast.world(TCP, forward::NAT));
    for length in [14, 15, 17, 18, 21, 22, 30] {
        let frame = (TWO.tags)(talk.asks().syn()).cut_to(length);
        case = case.leaves_alone(&WAN, &frame, Verdict::Truncated);
    }
    for length in [16, 17, 18, 25] {
        let frame = (ONE.tags)(talk.asks().syn()).cut_to(length);
        case = case.leaves_alone(&LAN, &frame, Verdict::Truncated);
    }
    case
}

fn padding(cast: &Cast) -> Case {
    let says = format!("{}: padding is as long with tags as without", cast.family);
    let one = Crossing::new(cast, ONE, FAR);
    let world = one.world(cast, UDP, forward::NAT);
    let frame = on(ONE, udp(one.client, cast.service).padded_to(90));
    let answer = on(FAR, udp(one.backend, one.client).padded_to(77));
    let back = answer.clone().between(cast.service, one.client);
    one.asks(Case::new(says, world), &frame).sends(
        &WAN,
        &answer,
        Verdict::ReplyRedirect,
        &leaving(ONE, back, 7),
    )
}

fn to_the_host(cast: &Cast) -> Case {
    let from = Crossing::new(cast, TWO, ONE);
    let backends = [host(cast, ONE, 99, 80), host(cast, ONE, 1, 80)];
    let world = World::empty()
        .service(TCP, forward::NAT, cast.service, &[0, 1])
        .backend(backends[0])
        .backend(backends[1])
        .service(TCP, forward::TUNNEL, cast.second_service, &[2])
        .backend(backends[0]);
    let says = format!(
        "{}: what is left to the host keeps the tags with which it came",
        cast.family
    );
    let mut case = Case::new(says, world);
    for (port, verdict) in [Verdict::NeighbourPending, Verdict::LocalDestination]
        .into_iter()
        .enumerate()
    {
        let client = host(cast, TWO, 7, 51_000 + port as u16);
        let syn = on(TWO, tcp(client, cast.service).syn());
        let leaves = syn.clone().between(client, backends[port]);
        case = case.sends(&WAN, &syn, verdict, &leaves);
    }
    let mut through = Through::new(cast, cast, &WAN, TCP, 51_000, 0);
    through.talk.client = from.client.to_owned();
    through.talk.service = cast.second_service;
    let through = through.to(backends[0]);
    let syn = on(TWO, through.asks().syn());
    let wrapped = through.wrap(syn.clone().ttl(63), None);
    case.sends(&WAN, &syn, Verdict::NeighbourPending, &wrapped)
}

fn too_big(cast: &Cast) -> Case {
    let talk = Crossing::new(cast, TWO, ONE);
    let header = if cast.family == "IPv4" { 28 } else { 48 };
    let says = format!(
        "{}: tags count for no MTU; what does not fit is told with the tags with which it came",
        cast.family
    );
    let sent = |length: usize| {
        let frame = udp(talk.client, cast.service).dont_fragment();
        on(TWO, frame.payload(&vec![0x5a; length - header]))
    };
    let case = Case::new(says, talk.world(cast, UDP, forward::NAT));
    talk.asks(case, &sent(1500)).sends(
        &WAN,
        &sent(1501),
        Verdict::TooBigTold,
        &sent(1501).told(IcmpError::TooBig(1500)),
    )
}

fn told(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::NAT, 51_000, 0);
    let says = format!(
        "{}: of a TTL that ended here a sender is told with its own tags, priorities and all",
        cast.family
    );
    let mut case = Case::new(says, cast.world(TCP, forward::NAT));
    let tags: [Tags; 3] = [ONE.tags, TWO.tags, |frame| {
        frame.tag(CUSTOMER, PRIORITY | 10)
    }];
    for tags in tags.into_iter().chain(UNKNOWN.map(|(_, tags)| tags)) {
        let frame = tags(talk.asks().syn().ttl(1));
        let told = frame.told(IcmpError::TimeExceeded);
        case = case.sends(&LAN, &frame, Verdict::TtlExpiredTold, &told);
    }
    case.then_flows(0, 0)
}

fn answered(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::NAT, 51_000, 0);
    let says = format!(
        "{}: a ping is answered with its own tags, priorities and all",
        cast.family
    );
    let mut case = Case::new(says, cast.world(TCP, forward::NAT));
    let tags: [Tags; 3] = [ONE.tags, TWO.tags, |frame| {
        frame.tag(CUSTOMER, PRIORITY | 10)
    }];
    for tags in tags.into_iter().chain(UNKNOWN.map(|(_, tags)| tags)) {
        let asks = tags(ping(&talk.client, talk.service, 7, 1, b"are you there?").ttl(9));
        let answer = asks.clone().answered().ttl(64);
        case = case.sends(&WAN, &asks, Verdict::EchoReply, &answer);
    }
    case
}

fn member_without_bonds() -> Case {
    let talk = Crossing::new(&V4, BONDS, FAR);
    let frame = on(BONDS, tcp(talk.client, V4.service).syn());
    Case::new(
        "without bonds nothing is asked of a frame without tags: a member is an interface like others",
        talk.world(&V4, TCP, forward::NAT),
    )
    .sends(
        &MEMBER,
        &frame,
        Verdict::ForwardRedirect,
        &leaving(FAR, frame.clone().between(talk.client, talk.backend), 11),
    )
}
