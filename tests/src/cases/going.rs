//! Backends that go: what becomes of their connections.

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP, backend, forward};
use lb_common::flow::tcp_flag::{ACK, FIN, RST, SYN};

use super::tunnel::Through;
use super::{CASTS, Case, Cast, ISN, Talk, mode_name, protocol_name};
use crate::frame::Frame;
use crate::network::{LAN, WAN};
use crate::world::World;

pub(super) const MODES: [u8; 4] = [
    forward::FULL_NAT,
    forward::NAT,
    forward::DSR,
    forward::TUNNEL,
];

/// A sequence number, and what the client has sent up to there.
const SEQUENCE: u32 = 0xffff_fffe;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in MODES {
            let tcp = Kind::new(cast, TCP, mode);
            let udp = Kind::new(cast, UDP, mode);
            cases.extend([
                reset(tcp),
                without_ack(tcp),
                repeated_syn(tcp),
                nobody_left(tcp),
                datagrams(udp, backend::RESET),
                datagrams(udp, backend::REHASH),
                moved(tcp),
                moved_nowhere(tcp),
            ]);
        }
        for mode in [forward::FULL_NAT, forward::NAT] {
            let tcp = Kind::new(cast, TCP, mode);
            cases.extend([backends_own(tcp), answers_of_the_moving(tcp)]);
        }
        for mode in [forward::NAT, forward::DSR] {
            cases.push(in_pieces(Kind::new(cast, TCP, mode)));
        }
        cases.extend([shapes(cast), tags(cast), without_data(cast)]);
    }
    cases.push(counted());
    cases
}

/// Connections of a family and protocol by a way of forwarding.
#[derive(Clone, Copy)]
pub(super) struct Kind<'a> {
    pub(super) cast: &'a Cast,
    protocol: u8,
    mode: u8,
}

impl<'a> Kind<'a> {
    pub(super) fn new(cast: &'a Cast, protocol: u8, mode: u8) -> Self {
        Self {
            cast,
            protocol,
            mode,
        }
    }

    fn name(self) -> String {
        format!(
            "{} over {} by {}",
            protocol_name(self.protocol),
            self.cast.family,
            mode_name(self.mode)
        )
    }

    /// All three backends in turn, of which the first has these marks.
    fn marked(self, flags: u8) -> World {
        let mut world = self.cast.world(self.protocol, self.mode);
        world.backends[0].flags |= flags;
        world
    }

    pub(super) fn talk(self, port: u16, number: usize) -> Talk {
        self.cast.talk(self.protocol, self.mode, port, number)
    }

    /// What the client sends from this port.
    pub(super) fn asks(self, port: u16) -> Frame {
        self.talk(port, 0).asks().dont_fragment()
    }

    /// The client's frame is taken to the backend with this number.
    pub(super) fn taken(self, case: Case, port: u16, number: usize, frame: &Frame) -> Case {
        let talk = self.talk(port, number);
        if self.mode == forward::TUNNEL {
            let (cast, protocol) = (self.cast, self.protocol);
            return Through::new(cast, cast, &WAN, protocol, port, number).taken(case, frame);
        }
        let leaves = if self.mode == forward::DSR {
            frame.clone()
        } else {
            frame.clone().between(&talk.source, talk.backend)
        };
        let leaves = leaves.sent_on(LAN.to(talk.backend_last()));
        case.sends(&WAN, frame, Verdict::ForwardRedirect, &leaves)
    }

    /// How many entries so many connections have.
    pub(super) fn entries(self, connections: usize) -> usize {
        if forward::one_way(self.mode) {
            connections
        } else {
            2 * connections
        }
    }
}

impl Case {
    /// The client is told that the connection has ended.
    fn resets_client(self, frame: &Frame, reset: &Frame) -> Self {
        self.sends(&WAN, frame, Verdict::FlowReset, reset)
    }

    /// So many connections of each backend live.
    pub(super) fn then_live(self, live: [u64; 3]) -> Self {
        self.then(format!("{live:?} connections live"), move |state| {
            (0..)
                .zip(live)
                .all(|(backend, live)| state.live.get(&backend).copied().unwrap_or(0) == live)
        })
    }
}

fn reset(kind: Kind<'_>) -> Case {
    let says = format!(
        "{}: whose backend is gone the client's next packet is answered with the RST that it believes, and its SYN begins anew elsewhere",
        kind.name()
    );
    let client = kind.asks(51_000);
    let proof = client.clone().ack(ISN + 1);
    let data = client
        .clone()
        .ack(ISN + 700)
        .payload(b"GET / HTTP/1.1\r\n\r\n");
    let fin = client.clone().fin().seq(9);
    let case = Case::new(says, kind.marked(backend::RESET));
    let case = kind
        .taken(case, 51_000, 0, &client.clone().syn())
        .then_live([1, 0, 0])
        .resets_client(&proof, &proof.reset(ISN + 1))
        .then_live([0, 0, 0])
        .resets_client(&data, &data.reset(ISN + 700))
        .resets_client(&fin, &fin.reset(0))
        .leaves_alone(&WAN, &client.clone().rst(), Verdict::FlowGone)
        .leaves_alone(&WAN, &client.clone().flags(RST | ACK), Verdict::FlowGone)
        .then_live([0, 0, 0])
        .then_flows(0, kind.entries(1));
    let case = kind.taken(case, 51_000, 1, &client.clone().syn());
    kind.taken(case, 51_000, 1, &proof)
        .then_live([0, 1, 0])
        .then_turns(2)
}

fn without_ack(kind: Kind<'_>) -> Case {
    let says = format!(
        "{}: a segment without ACK is answered with a RST that acknowledges all that it holds",
        kind.name()
    );
    let client = kind.asks(51_000).seq(SEQUENCE);
    let mut case = Case::new(says, kind.marked(backend::RESET));
    case = kind.taken(case, 51_000, 0, &client.clone().syn());
    // Beyond the last sequence number comes the first.
    for (segment, acknowledged) in [
        (client.clone().flags(0), SEQUENCE),
        (client.clone().flags(0).payload(b"odd"), 1),
        (client.clone().flags(FIN), SEQUENCE + 1),
        (client.clone().flags(FIN).payload(b"bye!"), 3),
        (client.clone().flags(FIN | SYN), 0),
        (
            client.clone().flags(0).mss(1460).payload(b"?"),
            SEQUENCE + 1,
        ),
    ] {
        let reset = segment.reset(0).ack(acknowledged).with(RST);
        case = case.resets_client(&segment, &reset);
    }
    let both = client.clone().syn_ack(77);
    case.resets_client(&both, &both.reset(77)).then_turns(1)
}

fn repeated_syn(kind: Kind<'_>) -> Case {
    let says = format!(
        "{}: a SYN that is repeated because its backend is gone goes to the next one",
        kind.name()
    );
    let syn = kind.asks(51_000).syn();
    let case = Case::new(says, kind.marked(backend::RESET));
    let case = kind.taken(case, 51_000, 0, &syn);
    let case = kind.taken(case, 51_000, 1, &syn);
    kind.taken(case, 51_000, 1, &syn)
        .then_flows(0, kind.entries(1))
        .then_live([0, 1, 0])
        .then_turns(2)
}

fn nobody_left(kind: Kind<'_>) -> Case {
    let says = format!(
        "{}: a SYN on a connection whose backend is gone, where that one is the only one, begins anew there",
        kind.name()
    );
    let client = kind.asks(51_000);
    let mut world = kind.marked(backend::RESET);
    world.services[0].sequence = vec![0];
    let proof = client.clone().ack(ISN + 1);
    let case = kind.taken(Case::new(says, world), 51_000, 0, &client.clone().syn());
    let case = case.resets_client(&proof, &proof.reset(ISN + 1));
    kind.taken(case, 51_000, 0, &client.syn())
        .then_live([1, 0, 0])
        .resets_client(&proof, &proof.reset(ISN + 1))
        .then_live([0, 0, 0])
}

fn datagrams(kind: Kind<'_>, flags: u8) -> Case {
    let says = format!(
        "{}, backend marked {flags}: the client's next datagram begins a flow with another one",
        kind.name()
    );
    let client = kind.asks(51_000);
    let case = Case::new(says, kind.marked(flags));
    let case = kind.taken(case, 51_000, 0, &client.clone().payload(b"what?"));
    let case = kind
        .taken(case, 51_000, 1, &client.clone().payload(b"what??"))
        .then_flows(0, kind.entries(1))
        .then_live([0, 1, 0]);
    kind.taken(case, 51_000, 1, &client.payload(b"and that?"))
        .then_live([0, 1, 0])
        .then("each of them has begun", |state| {
            [0, 1].iter().all(|backend| {
                (state.backends.get(backend)).is_some_and(|traffic| traffic.new_flows == 1)
            })
        })
        .then_turns(2)
}

fn moved(kind: Kind<'_>) -> Case {
    let says = format!(
        "{}: where flows move, the client's next packet goes to another backend, in the middle of a connection too",
        kind.name()
    );
    let client = kind.asks(51_000);
    let data = client.clone().ack(ISN + 1).payload(b"GET");
    let case = Case::new(says, kind.marked(backend::REHASH));
    let case = kind.taken(case, 51_000, 0, &client.clone().syn());
    let case = kind
        .taken(case, 51_000, 1, &data)
        .then_flows(0, kind.entries(1))
        .then_live([0, 1, 0]);
    let case = kind.taken(case, 51_000, 1, &data);
    let case = kind.taken(case, 51_000, 1, &client.clone().fin());
    // Another one, which has nothing but its beginning and its end there.
    let other = kind.asks(51_001);
    let case = kind.taken(case, 51_001, 2, &other.clone().syn());
    let case = kind.taken(case, 51_002, 0, &kind.asks(51_002).syn());
    kind.taken(case, 51_002, 1, &kind.asks(51_002).fin())
        .then_turns(5)
}

fn moved_nowhere(kind: Kind<'_>) -> Case {
    let says = format!(
        "{}: of a flow that is to move only what a connection goes on with moves it; the rest goes where it went",
        kind.name()
    );
    let client = kind.asks(51_000);
    let case = Case::new(says, kind.marked(backend::REHASH));
    let case = kind.taken(case, 51_000, 0, &client.clone().syn());
    let case = kind.taken(case, 51_000, 0, &client.clone().flags(FIN));
    let case = kind.taken(case, 51_000, 0, &client.clone().syn_ack(1));
    let case = kind
        .taken(case, 51_000, 0, &client.clone().rst())
        .then_live([0, 0, 0]);
    kind.taken(case, 51_000, 1, &client.syn())
        .then_live([0, 1, 0])
        .then_turns(2)
}

fn backends_own(kind: Kind<'_>) -> Case {
    let says = format!(
        "{}: what a backend that is gone still sends is answered with a RST, too",
        kind.name()
    );
    let client = kind.asks(51_000);
    let answers = kind.talk(51_000, 0).answers();
    let late = answers.clone().ack(0x0102_0305).payload(&[7; 50]);
    let syn_ack = answers.clone().syn_ack(0x0102_0305).seq(ISN);
    let bare = answers.clone().flags(0).seq(ISN).payload(b"1234567");
    let case = Case::new(says, kind.marked(backend::RESET));
    kind.taken(case, 51_000, 0, &client.syn())
        .sends(
            &LAN,
            &syn_ack,
            Verdict::FlowReset,
            &syn_ack.reset(0x0102_0305),
        )
        .sends(&LAN, &late, Verdict::FlowReset, &late.reset(0x0102_0305))
        .sends(
            &LAN,
            &bare,
            Verdict::FlowReset,
            &bare.reset(0).ack(ISN + 7).with(RST),
        )
        .leaves_alone(&LAN, &answers.rst(), Verdict::FlowGone)
        .then_live([0, 0, 0])
        .then("all of it is counted as the backend's", |state| {
            (state.backends.get(&0)).is_some_and(|traffic| traffic.reply_packets == 3)
        })
}

fn answers_of_the_moving(kind: Kind<'_>) -> Case {
    let says = format!(
        "{}: where flows move, what the backend still sends goes to the client",
        kind.name()
    );
    let talk = kind.talk(51_000, 0);
    Case::new(says, kind.marked(backend::REHASH))
        .client_sends(&talk, Frame::syn)
        .backend_sends(&talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
        .backend_sends(&talk, |frame| frame.ack(0x0102_0305).payload(b"more"))
        .then_live([1, 0, 0])
        .then_turns(1)
}

fn in_pieces(kind: Kind<'_>) -> Case {
    let says = format!(
        "{} whose backend is gone, in fragments: the first is answered, to the others there is nothing to say",
        kind.name()
    );
    let client = kind.talk(51_000, 0).asks().payload(&[0xa7; 50]);
    let [first, later] = <[Frame; 2]>::try_from(client.clone().syn().identified(5).fragments(40))
        .expect("two fragments");
    let data = client.ack(ISN + 1).identified(6).fragments(40);
    let leaves = match kind.mode {
        forward::DSR => first.clone(),
        _ => {
            let talk = kind.talk(51_000, 0);
            first
                .clone()
                .between(&talk.source, talk.backend)
                .identified(0)
        }
    };
    let reset = data[0].reset(ISN + 1);
    Case::new(says, kind.marked(backend::RESET))
        .sends(
            &WAN,
            &first,
            Verdict::ForwardRedirect,
            &leaves.sent_on(LAN.to(11)),
        )
        .leaves_alone(&WAN, &later, Verdict::FlowGone)
        .resets_client(&data[0], &reset)
        .leaves_alone(&WAN, &data[1], Verdict::FragmentOutOfOrder)
        .then_live([0, 0, 0])
}

/// A connection of which nothing but the client's part is looked at.
fn begun(says: String, cast: &Cast) -> (Case, Frame) {
    let kind = Kind::new(cast, TCP, forward::NAT);
    let client = kind.asks(51_000);
    let case = Case::new(says, kind.marked(backend::RESET));
    (kind.taken(case, 51_000, 0, &client.clone().syn()), client)
}

fn shapes(cast: &Cast) -> Case {
    let says = format!(
        "over {} a RST is no longer than it has to be, whatever it answers had in its headers and behind them",
        cast.family
    );
    let (mut case, client) = begun(says, cast);
    let client = client.ack(ISN + 1).tos(0xb8).ttl(2);
    let mut shapes = vec![
        client.clone().payload(&[7; 1400]),
        client.clone().payload(b"1"),
        client.clone().payload(b"1234567").padded_to(90),
        client.clone().padded_to(60),
        client.clone().tcp_options(&[8, 10, 1, 2, 3, 4, 5, 6, 7, 8]),
        client.clone().flow_label(7).identified(0xbeef),
    ];
    if cast.family == "IPv4" {
        let options = client.clone().ip_options(&[1; 40]);
        shapes.extend([options.clone(), options.payload(b"behind options")]);
    } else {
        let extended = client.clone().hop_by_hop().extensions(2);
        shapes.extend([extended.clone(), extended.payload(b"behind headers")]);
    }
    for frame in &shapes {
        case = case.resets_client(frame, &frame.reset(ISN + 1));
    }
    let hopeless = client.claims_ip_length(9_000);
    case.leaves_alone(&WAN, &hopeless, Verdict::LengthMismatch)
}

fn tags(cast: &Cast) -> Case {
    let says = format!(
        "over {} a RST goes back with the tags with which its reason came",
        cast.family
    );
    let (mut case, client) = begun(says, cast);
    let client = client.ack(ISN + 1).payload(b"something longer");
    for frame in [
        client.clone().tagged(10),
        client.clone().tagged(20).tagged(30),
        client.tag(0x9100, 0xb00a),
    ] {
        case = case.resets_client(&frame, &frame.reset(ISN + 1));
    }
    case
}

fn without_data(cast: &Cast) -> Case {
    let says = format!(
        "over {} every checksum that a RST can have comes out right",
        cast.family
    );
    let (mut case, client) = begun(says, cast);
    // Across the carry of both halves, to and fro.
    for sequence in [0, 1, 0xfffe, 0xffff, 0x1_0000, 0x7fff_ffff, 0xffff_ffff] {
        let frame = client.clone().ack(sequence).padded_to(60);
        case = case.resets_client(&frame, &frame.reset(sequence));
    }
    case
}

fn counted() -> Case {
    let kind = Kind::new(&super::V4, TCP, forward::FULL_NAT);
    let client = kind.asks(51_000);
    let proof = client.clone().ack(ISN + 1);
    let case = Case::new(
        "a RST is counted for the connection that it ends, and what has no answer as a drop of its own",
        kind.marked(backend::RESET),
    );
    kind.taken(case, 51_000, 0, &client.clone().syn())
        .resets_client(&proof, &proof.reset(ISN + 1))
        .leaves_alone(&WAN, &client.rst(), Verdict::FlowGone)
        .then("two packets, one flow, one drop", |state| {
            let traffic = state.services.get(&0).copied().unwrap_or_default();
            let drop = state.drops.iter().next();
            (traffic.forward_packets, traffic.new_flows) == (2, 1)
                && drop.is_some_and(|(key, count)| {
                    (key.service, key.backend, *count) == (0, 0, 1)
                        && key.verdict == Verdict::FlowGone as u32
                })
        })
}
