//! ICMP errors about packets of flows, carried to the end that had sent them.

use lb_common::Verdict;
use lb_common::abi::{DropKey, TCP, UDP, forward};

use super::{CASTS, Case, Cast, ISN, Talk, V4, V6, mode_name, protocol_name};
use crate::frame::{Frame, IcmpError, icmp_error};
use crate::network::{LAN, STACKED, WAN};

mod ends;
mod one_way;

pub(super) use one_way::{one_way_world, to_backend};

/// The TTL of a packet where the error about it was sent.
const THERE: u8 = 57;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in [forward::FULL_NAT, forward::NAT] {
            for protocol in [TCP, UDP] {
                cases.push(carried(cast, protocol, mode));
                cases.push(unfinished(cast, protocol, mode));
            }
            if cast.family == "IPv6" {
                cases.extend([TCP, UDP].map(|protocol| quoted_extension_headers(protocol, mode)));
            }
            cases.push(one_arm(cast, mode));
            cases.push(in_a_vlan(cast, mode));
            cases.push(checksums(cast, mode));
        }
        cases.push(udp_checksums(cast));
    }
    cases.extend([ip_options(), extension_headers(), counted()]);
    cases.extend(ends::cases());
    cases.extend(one_way::cases());
    cases
}

/// How much of a packet is quoted.
#[derive(Clone, Copy)]
enum Quote {
    /// The IP header and eight bytes.
    Least,
    /// All of it.
    All,
}

use Quote::{All, Least};

impl Quote {
    fn of(self, frame: &Frame) -> usize {
        match self {
            Least => frame.least_quote(),
            All => usize::MAX,
        }
    }
}

/// An error and what becomes of it.
struct Error<'a> {
    from: &'a str,
    says: IcmpError,
    quote: Quote,
}

impl Error<'_> {
    /// About a packet to the backend: as it comes, and as the client gets it.
    fn about_question(&self, talk: &Talk, shape: impl Fn(Frame) -> Frame) -> [Frame; 2] {
        let asked = shape(talk.asks().ttl(THERE));
        let seen = asked.clone().between(&talk.source, talk.backend);
        [
            self.to(self.from, &talk.source, &seen),
            self.to(talk.service, &talk.client, &asked),
        ]
    }

    /// About a packet to the client: as it comes, and as the backend gets it.
    fn about_answer(&self, talk: &Talk, shape: impl Fn(Frame) -> Frame) -> [Frame; 2] {
        let answered = shape(talk.answers().ttl(THERE));
        let seen = answered.clone().between(talk.service, &talk.client);
        // With its own address the client is known to nobody but by `nat`.
        let from = if talk.source == talk.client {
            self.from
        } else {
            &talk.source
        };
        [
            self.to(self.from, talk.service, &seen),
            self.to(from, talk.backend, &answered),
        ]
    }

    fn to(&self, from: &str, to: &str, about: &Frame) -> Frame {
        icmp_error(from, to, self.says, about, self.quote.of(about))
    }
}

impl Case {
    /// An error from the backends' side is carried to the client.
    fn carries_to_client(self, talk: &Talk, [comes, leaves]: [Frame; 2]) -> Self {
        let verdict = talk.way(Verdict::IcmpErrorTx, Verdict::IcmpErrorRedirect);
        let leaves = leaves.sent_on(talk.arm.to(talk.client_last));
        self.sends(&LAN, &comes, verdict, &leaves)
    }

    /// An error from the clients' side is carried to the backend.
    fn carries_to_backend(self, talk: &Talk, [comes, leaves]: [Frame; 2]) -> Self {
        let verdict = talk.way(Verdict::IcmpErrorTx, Verdict::IcmpErrorRedirect);
        let leaves = leaves.sent_on(LAN.to(talk.backend_last()));
        self.sends(talk.arm, &comes, verdict, &leaves)
    }
}

/// Routers on the way to the backends and on the way to the clients.
fn routers(cast: &Cast) -> [&'static str; 2] {
    if cast.family == "IPv4" {
        ["10.0.1.254", "198.51.100.254"]
    } else {
        ["fd00:1::fe", "2001:db8:100::fe"]
    }
}

/// Every error, with the codes that occur most: net, host, port (in ICMPv6: no
/// route, forbidden, port), and forbidden (source address).
fn kinds(cast: &Cast) -> Vec<IcmpError> {
    let codes = if cast.family == "IPv4" {
        [0, 1, 3, 13]
    } else {
        [0, 1, 4, 5]
    };
    let mut kinds = codes.map(IcmpError::Unreachable).to_vec();
    kinds.extend([
        IcmpError::TooBig(1400),
        IcmpError::TimeExceeded,
        IcmpError::ParameterProblem(20),
    ]);
    kinds
}

/// What a packet of the protocol looks like that an error is about.
fn data(frame: Frame) -> Frame {
    frame.ack(ISN + 1).payload(b"what was sent")
}

fn carried(cast: &Cast, protocol: u8, mode: u8) -> Case {
    let talk = cast.talk(protocol, mode, 51_000, 0);
    let [inner, outer] = routers(cast);
    let says = format!(
        "errors about {} over {} by {}: to the client and to the backend, from either's router or itself",
        protocol_name(protocol),
        cast.family,
        mode_name(mode),
    );
    let mut case = Case::new(says, cast.world(protocol, mode)).handshake(&talk);
    for says in kinds(cast) {
        for quote in [Least, All] {
            let error = |from| Error { from, says, quote };
            for from in [talk.backend, inner] {
                let question = error(from).about_question(&talk, data);
                case = case.carries_to_client(&talk, question);
            }
            for from in [&talk.client, outer] {
                let answer = error(from).about_answer(&talk, data);
                case = case.carries_to_backend(&talk, answer);
            }
        }
    }
    case.then_flows(2, 0).then_turns(1)
}

fn unfinished(cast: &Cast, protocol: u8, mode: u8) -> Case {
    let talk = cast.talk(protocol, mode, 51_000, 0);
    let says = format!(
        "an error about the first packet of {} over {} by {}: nobody listens, and the client hears of it",
        protocol_name(protocol),
        cast.family,
        mode_name(mode),
    );
    let port = if cast.family == "IPv4" { 3 } else { 4 };
    let error = Error {
        from: talk.backend,
        says: IcmpError::Unreachable(port),
        quote: All,
    };
    let opens = |frame: Frame| frame.syn().payload(b"?");
    Case::new(says, cast.world(protocol, mode))
        .client_sends(&talk, opens)
        .carries_to_client(&talk, error.about_question(&talk, opens))
        .then_flows(0, 2)
        .client_sends(&talk, opens)
        .then_turns(1)
}

fn in_a_vlan(cast: &Cast, mode: u8) -> Case {
    let host = if cast.family == "IPv4" {
        "10.0.7.7"
    } else {
        "[fd00:7::7]"
    };
    let client = format!("{host}:51000");
    let talk = Talk {
        source: if mode == forward::NAT {
            client.clone()
        } else {
            cast.source.to_owned()
        },
        client,
        ..cast.talk(UDP, mode, 51_000, 0)
    };
    let tags = |frame: Frame| frame.tag(0x88a8, 20).tag(0x8100, 30);
    let [inner, outer] = routers(cast);
    let error = |from| Error {
        from,
        says: IcmpError::TooBig(1400),
        quote: All,
    };
    let [for_client, client_gets] = error(inner).about_question(&talk, data);
    let [for_backend, backend_gets] = error(outer).about_answer(&talk, data);
    let asks = talk.asks().payload(b"?");
    let asked = asks.clone().between(&talk.source, talk.backend);
    let says = format!(
        "errors over {} by {} to a client in two VLANs get its tags, those from there lose them",
        cast.family,
        mode_name(mode),
    );
    Case::new(says, cast.world(UDP, mode))
        .sends(
            &WAN,
            &tags(asks),
            Verdict::ForwardRedirect,
            &asked.sent_on(LAN.to(11)),
        )
        .sends(
            &LAN,
            &for_client,
            Verdict::IcmpErrorRedirect,
            &tags(client_gets).sent_on(STACKED.to(7)),
        )
        .sends(
            &WAN,
            &tags(for_backend),
            Verdict::IcmpErrorRedirect,
            &backend_gets.sent_on(LAN.to(11)),
        )
}

fn one_arm(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk_by(&LAN, TCP, mode, 51_000, 0);
    let [inner, _] = routers(cast);
    let says = format!(
        "errors over {} by {} with one arm: out of the same interface, with their tag and their padding",
        cast.family,
        mode_name(mode),
    );
    let error = Error {
        from: inner,
        says: IcmpError::TooBig(1300),
        quote: Least,
    };
    let questions = || error.about_question(&talk, data);
    let answers = || error.about_answer(&talk, data);
    let padded = |frame: Frame| frame.padded_to(140);
    let tagged = |frame: Frame| frame.tag(0x8100, 0xa063);
    Case::new(says, cast.world(TCP, mode))
        .handshake(&talk)
        .carries_to_client(&talk, questions())
        .carries_to_backend(&talk, answers())
        .carries_to_client(&talk, questions().map(padded))
        .carries_to_backend(&talk, answers().map(padded))
        .carries_to_client(&talk, questions().map(tagged))
        .carries_to_backend(&talk, answers().map(tagged))
}

/// The error with the checksum that is asked for, by means of a number in what
/// it quotes, which no other checksum there covers; ffff is none.
pub(super) fn balanced(check: u16, error: impl Fn(u32) -> Frame) -> u32 {
    let place = |frame: &Frame| if frame.packet()[0] >> 4 == 4 { 22 } else { 42 };
    let with_zero = error(0);
    let at = place(&with_zero);
    let bytes = with_zero.packet();
    let now = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    // The sum of ones' complement to which the number brings it.
    let sum = u32::from(!check) + u32::from(now);
    (sum & 0xffff) + (sum >> 16)
}

/// At the edges of what comes in and of what leaves, and many more.
fn checksums(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(TCP, mode, 51_000, 0);
    let [inner, outer] = routers(cast);
    let says = format!(
        "the checksums of errors over {} by {} are right, whatever they were",
        cast.family,
        mode_name(mode),
    );
    let error = |from| Error {
        from,
        says: IcmpError::TooBig(1400),
        quote: Least,
    };
    let question = |sequence| error(inner).about_question(&talk, |frame| frame.seq(sequence));
    let answer = |sequence| error(outer).about_answer(&talk, |frame| frame.seq(sequence));
    let mut random = fastrand::Rng::with_seed(11);
    let mut checks = vec![0, 1, 2, 0x7fff, 0x8000, 0xfffc, 0xfffd, 0xfffe];
    checks.extend(std::iter::repeat_with(|| random.u16(0..0xffff)).take(16));
    let mut case = Case::new(says, cast.world(TCP, mode)).handshake(&talk);
    for check in checks {
        for side in [0, 1] {
            let sequence = balanced(check, |sequence| question(sequence)[side].clone());
            case = case.carries_to_client(&talk, question(sequence));
            let sequence = balanced(check, |sequence| answer(sequence)[side].clone());
            case = case.carries_to_backend(&talk, answer(sequence));
        }
    }
    // Zero in its other form.
    let sequence = balanced(0, |sequence| question(sequence)[0].clone());
    let [comes, leaves] = question(sequence);
    case.carries_to_client(&talk, [comes.claims_checksum(0xffff), leaves])
}

fn udp_checksums(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let [inner, outer] = routers(cast);
    let error = |from| Error {
        from,
        says: IcmpError::Unreachable(3),
        quote: All,
    };
    let says = format!(
        "errors about UDP over {} without a checksum, and with one that is zero on one side",
        cast.family
    );
    let without = |frame: Frame| frame.payload(b"no sum").without_checksum();
    let of_zero = |frame: Frame| frame.balanced_to_zero().carried().to_vec();
    let seen = of_zero(talk.asks().between(&talk.source, talk.backend));
    let answered = of_zero(talk.answers().between(talk.service, &talk.client));
    Case::new(says, cast.world(UDP, forward::FULL_NAT))
        .handshake(&talk)
        .carries_to_client(&talk, error(inner).about_question(&talk, without))
        .carries_to_backend(&talk, error(outer).about_answer(&talk, without))
        .carries_to_client(
            &talk,
            error(inner).about_question(&talk, Frame::balanced_to_zero),
        )
        .carries_to_backend(
            &talk,
            error(outer).about_answer(&talk, Frame::balanced_to_zero),
        )
        .carries_to_client(
            &talk,
            error(inner).about_question(&talk, |frame| frame.payload(&seen)),
        )
        .carries_to_backend(
            &talk,
            error(outer).about_answer(&talk, |frame| frame.payload(&answered)),
        )
}

fn ip_options() -> Case {
    let talk = V4.talk(TCP, forward::NAT, 51_000, 0);
    let [inner, outer] = routers(&V4);
    let options = |frame: Frame| data(frame).ip_options(&[1, 7, 7, 4, 0, 0, 0, 0]);
    let case = Case::new(
        "errors about packets with IPv4 options, and errors that have some themselves",
        V4.world(TCP, forward::NAT),
    )
    .handshake(&talk);
    [Least, All].iter().fold(case, |case, quote| {
        let error = |from| Error {
            from,
            says: IcmpError::TimeExceeded,
            quote: *quote,
        };
        let question = error(inner).about_question(&talk, options);
        let answer = error(outer).about_answer(&talk, options);
        let with_options = |frame: Frame| frame.ip_options(&[1, 1, 1, 0]).tos(0xc0);
        case.carries_to_client(&talk, question.clone())
            .carries_to_backend(&talk, answer.clone())
            .carries_to_client(&talk, question.map(with_options))
            .carries_to_backend(&talk, answer.map(with_options))
    })
}

fn extension_headers() -> Case {
    let talk = V6.talk(UDP, forward::FULL_NAT, 51_000, 0);
    let [inner, outer] = routers(&V6);
    let error = |from| Error {
        from,
        says: IcmpError::TooBig(1280),
        quote: All,
    };
    let question = error(inner).about_question(&talk, data);
    let answer = error(outer).about_answer(&talk, data);
    Case::new(
        "errors over IPv6 behind extension headers are carried",
        V6.world(UDP, forward::FULL_NAT),
    )
    .handshake(&talk)
    .carries_to_client(&talk, question.map(Frame::hop_by_hop))
    .carries_to_backend(&talk, answer.map(Frame::destination_options))
}

/// What is forwarded may come back as a quote.
fn quoted_extension_headers(protocol: u8, mode: u8) -> Case {
    let talk = V6.talk(protocol, mode, 51_000, 0);
    let [inner, outer] = routers(&V6);
    let says = format!(
        "errors about {} by {} that had extension headers are carried, up to as many as are looked through",
        protocol_name(protocol),
        mode_name(mode),
    );
    let all = |frame: Frame| {
        let frame = frame.hop_by_hop().destination_options().routing(0);
        frame.fragment(0, false).destination_options()
    };
    let kinds: [&dyn Fn(Frame) -> Frame; 7] = [
        &Frame::hop_by_hop,
        &Frame::destination_options,
        &|frame| frame.routing(0),
        &|frame| frame.fragment(0, false),
        &|frame| frame.extension(60, &[0; 126]),
        &all,
        &|frame| frame.extensions(6),
    ];
    let mut case = Case::new(says, V6.world(protocol, mode)).handshake(&talk);
    for quote in [Least, All] {
        let error = |from| Error {
            from,
            says: IcmpError::TooBig(1400),
            quote,
        };
        for with in kinds {
            let shape = |frame| with(data(frame));
            case = case
                .carries_to_client(&talk, error(inner).about_question(&talk, shape))
                .carries_to_backend(&talk, error(outer).about_answer(&talk, shape));
        }
        for with in [
            |frame: Frame| frame.extensions(7),
            |frame: Frame| frame.extension(51, &[0; 6]),
        ] {
            let shape = |frame| with(data(frame));
            let [question, _] = error(inner).about_question(&talk, shape);
            let [answer, _] = error(outer).about_answer(&talk, shape);
            case = case
                .leaves_alone(&LAN, &question, Verdict::NotTransport)
                .leaves_alone(&WAN, &answer, Verdict::NotTransport);
        }
    }
    case.then_flows(2, 0).then_turns(1)
}

fn counted() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let [inner, _] = routers(&V4);
    let error = Error {
        from: inner,
        says: IcmpError::TooBig(1400),
        quote: Least,
    };
    let [late, _] = error.about_question(&talk, data);
    Case::new(
        "an error that is carried counts for the flow, one that is not as a drop of it",
        V4.world(TCP, forward::FULL_NAT),
    )
    .client_sends(&talk, Frame::syn)
    .carries_to_client(&talk, error.about_question(&talk, data))
    .then("one packet there, one of 70 bytes back", |state| {
        [state.services.get(&0), state.backends.get(&0)]
            .iter()
            .all(|traffic| {
                traffic.is_some_and(|traffic| {
                    (traffic.forward_packets, traffic.new_flows) == (1, 1)
                        && (traffic.reply_packets, traffic.reply_bytes) == (1, 70)
                })
            })
    })
    .leaves_alone(&LAN, &late.ttl(1), Verdict::IcmpErrorExpired)
    .then("a drop under the names of both", |state| {
        let key = DropKey {
            service: 0,
            backend: 0,
            verdict: Verdict::IcmpErrorExpired as u32,
            zero: 0,
        };
        state.drops.get(&key) == Some(&1)
    })
}
