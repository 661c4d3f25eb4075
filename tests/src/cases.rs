//! The golden cases: what the balancer does, frame by frame, as data.
//!
//! A case says what it shows, what the balancer was told ([`World`]), and what
//! then happens in order: a frame that comes in, with its verdict and the frame
//! that leaves; an entry that is lost; a fact about the tables. Frames that
//! leave are built from the sentence that describes them, with full checksums,
//! and never by the code under test.
//!
//! Every case is run on the host and in the kernel (`tests/golden.rs`), and its
//! frames are cut short and damaged (`tests/truncation.rs`). Cases that differ
//! only by family, protocol or arms are one case for each [`Cast`].

use lb_common::Verdict;
use lb_common::abi::{FlowKey, TCP, forward};

use crate::frame::{Frame, key, tcp, udp};
use crate::network::{Device, LAN, WAN};
use crate::world::{State, World};

mod choosing;
mod connection;
mod crowded;
mod dsr;
mod echo;
mod ending;
mod errors;
mod extensions;
mod fragments;
mod going;
mod mss;
mod outer;
mod passing;
mod passive;
mod refused;
mod rewriting;
mod routes;
mod tags;
mod told;
mod tunnel;

/// The backend's initial sequence number in every connection of the cases.
pub const ISN: u32 = 0xfedc_ba00;

/// Something that the balancer does.
pub struct Case {
    /// What it shows.
    pub says: String,
    /// What the balancer was told.
    pub world: World,
    /// What happens, in order.
    pub steps: Vec<Step>,
    /// Why the kernel cannot take part, if it cannot.
    pub host_only: Option<&'static str>,
}

/// Something that happens.
pub enum Step {
    /// A frame comes in.
    Arrives {
        /// By this interface.
        on: &'static Device,
        /// These bytes.
        frame: Vec<u8>,
        /// What becomes of it.
        verdict: Verdict,
        /// These bytes go on; those that came in, if nothing is translated.
        leaves: Vec<u8>,
    },
    /// The connection whose client's packets have this key is lost.
    Loses(FlowKey),
    /// The node has the lease of its pair from now on, or has not.
    Lease(bool),
    /// Something is true of the tables.
    Then(String, Box<dyn Fn(&State) -> bool + Send + Sync>),
}

impl Case {
    fn new(says: impl Into<String>, world: World) -> Self {
        Self {
            says: says.into(),
            world,
            steps: Vec::new(),
            host_only: None,
        }
    }

    fn host_only(mut self, reason: &'static str) -> Self {
        self.host_only = Some(reason);
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Its frames, as they come in and as they leave.
    pub fn frames(&self) -> Vec<&[u8]> {
        (self.steps.iter())
            .filter_map(|step| match step {
                Step::Arrives { frame, leaves, .. } => Some([&frame[..], &leaves[..]]),
                _ => None,
            })
            .flatten()
            .collect()
    }

    /// A frame that is translated.
    fn sends(self, on: &'static Device, frame: &Frame, verdict: Verdict, leaves: &Frame) -> Self {
        self.step(Step::Arrives {
            on,
            frame: frame.bytes(),
            verdict,
            leaves: leaves.bytes(),
        })
    }

    /// A frame that stays as it came.
    fn leaves_alone(self, on: &'static Device, frame: &Frame, verdict: Verdict) -> Self {
        self.sends(on, frame, verdict, frame)
    }

    fn loses(self, key: FlowKey) -> Self {
        self.step(Step::Loses(key))
    }

    /// The node is the active one of its pair from now on, or is not.
    fn lease(self, held: bool) -> Self {
        self.step(Step::Lease(held))
    }

    fn then(
        self,
        says: impl Into<String>,
        holds: impl Fn(&State) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.step(Step::Then(says.into(), Box::new(holds)))
    }

    /// So many entries of established and of unfinished flows, two for each.
    fn then_flows(self, established: usize, unfinished: usize) -> Self {
        self.then(
            format!("{established} established and {unfinished} unfinished entries"),
            move |state| {
                (state.established.len(), state.unfinished.len()) == (established, unfinished)
            },
        )
    }

    /// So many turns of the first service's schedule.
    fn then_turns(self, turns: u64) -> Self {
        self.then(
            format!("the schedule has moved on by {turns}"),
            move |state| state.turns.get(&0) == Some(&turns),
        )
    }

    /// The client's frame of a connection goes to the backend.
    fn client_sends(self, talk: &Talk, frame: impl FnOnce(Frame) -> Frame) -> Self {
        let frame = frame(talk.asks());
        let verdict = talk.way(Verdict::ForwardTx, Verdict::ForwardRedirect);
        let leaves = frame.clone().between(&talk.source, talk.backend);
        let leaves = leaves.sent_on(LAN.to(talk.backend_last()));
        self.sends(talk.arm, &frame, verdict, &leaves)
    }

    /// The backend's frame of a connection goes to the client.
    fn backend_sends(self, talk: &Talk, frame: impl FnOnce(Frame) -> Frame) -> Self {
        let frame = frame(talk.answers());
        let verdict = talk.way(Verdict::ReplyTx, Verdict::ReplyRedirect);
        let leaves = frame.clone().between(talk.service, &talk.client);
        let leaves = leaves.sent_on(talk.arm.to(talk.client_last));
        self.sends(&LAN, &frame, verdict, &leaves)
    }

    /// SYN, SYN-ACK, ACK; for UDP a question, an answer, a second question.
    fn handshake(self, talk: &Talk) -> Self {
        if talk.protocol == TCP {
            self.client_sends(talk, Frame::syn)
                .backend_sends(talk, |frame| frame.syn_ack(0x0102_0305).seq(ISN))
                .client_sends(talk, |frame| frame.ack(ISN + 1))
        } else {
            self.client_sends(talk, |frame| frame.payload(b"what?"))
                .backend_sends(talk, |frame| frame.payload(b"this"))
                .client_sends(talk, |frame| frame.payload(b"and that?"))
        }
    }
}

/// Who takes part, by family.
#[derive(Clone, Copy)]
pub struct Cast {
    family: &'static str,
    service: &'static str,
    second_service: &'static str,
    /// The end that full-nat gives to the backend: the service's address and
    /// the only port of [`crate::world::STEADY`].
    source: &'static str,
    /// A client on an interface of its own, host 7 there.
    client: &'static str,
    /// A client behind the router on the backends' interface.
    near: &'static str,
    backends: [&'static str; 3],
}

const V4: Cast = Cast {
    family: "IPv4",
    service: "203.0.113.10:80",
    second_service: "203.0.113.20:80",
    source: "203.0.113.10:40000",
    client: "198.51.100.7",
    near: "192.0.2.7",
    backends: ["10.0.1.11:8080", "10.0.1.12:8080", "10.0.1.13:9090"],
};

const V6: Cast = Cast {
    family: "IPv6",
    service: "[2001:db8:10::10]:80",
    second_service: "[2001:db8:10::20]:80",
    source: "[2001:db8:10::10]:40000",
    client: "[2001:db8:100::7]",
    near: "[2001:db8:200::7]",
    backends: [
        "[fd00:1::11]:8080",
        "[fd00:1::12]:8080",
        "[fd00:1::13]:9090",
    ],
};

const CASTS: [&Cast; 2] = [&V4, &V6];

impl Cast {
    /// One service of this kind, with all three backends in turn.
    fn world(&self, protocol: u8, mode: u8) -> World {
        let [one, two, three] = self.backends;
        World::empty()
            .service(protocol, mode, self.service, &[0, 1, 2])
            .backend(one)
            .backend(two)
            .backend(three)
    }

    /// A connection of the client's port to the backend with this number.
    fn talk(&self, protocol: u8, mode: u8, port: u16, backend: usize) -> Talk {
        self.talk_by(&WAN, protocol, mode, port, backend)
    }

    /// The same, of the client who comes by this interface.
    fn talk_by(
        &self,
        arm: &'static Device,
        protocol: u8,
        mode: u8,
        port: u16,
        backend: usize,
    ) -> Talk {
        let one_arm = arm.index == LAN.index;
        let host = if one_arm { self.near } else { self.client };
        let client = format!("{host}:{port}");
        let source = if mode == forward::FULL_NAT {
            self.source.to_owned()
        } else {
            client.clone()
        };
        Talk {
            protocol,
            client,
            service: self.service,
            source,
            backend: self.backends[backend],
            number: backend,
            arm,
            client_last: if one_arm { 254 } else { 7 },
        }
    }
}

/// The four ends of a translated connection, and its ways.
#[derive(Clone)]
pub struct Talk {
    protocol: u8,
    client: String,
    service: &'static str,
    source: String,
    backend: &'static str,
    number: usize,
    arm: &'static Device,
    client_last: u8,
}

impl Talk {
    fn asks(&self) -> Frame {
        self.frame(&self.client, self.service)
    }

    fn answers(&self) -> Frame {
        self.frame(self.backend, &self.source)
    }

    /// The key of the entry for packets from the client.
    fn forward_key(&self) -> FlowKey {
        key(self.protocol, &self.client, self.service)
    }

    /// The key of the entry for packets from the backend.
    fn reply_key(&self) -> FlowKey {
        key(self.protocol, self.backend, &self.source)
    }

    fn frame(&self, from: &str, to: &str) -> Frame {
        if self.protocol == TCP {
            tcp(from, to)
        } else {
            udp(from, to)
        }
    }

    fn backend_last(&self) -> u8 {
        [11, 12, 13][self.number]
    }

    fn way(&self, same: Verdict, other: Verdict) -> Verdict {
        if self.arm.index == LAN.index {
            same
        } else {
            other
        }
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    [
        connection::cases(),
        ending::cases(),
        going::cases(),
        choosing::cases(),
        crowded::cases(),
        refused::cases(),
        routes::cases(),
        rewriting::cases(),
        passing::cases(),
        passive::cases(),
        outer::cases(),
        echo::cases(),
        errors::cases(),
        told::cases(),
        mss::cases(),
        dsr::cases(),
        tunnel::cases(),
        tags::cases(),
        fragments::cases(),
        extensions::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn protocol_name(protocol: u8) -> &'static str {
    if protocol == TCP { "TCP" } else { "UDP" }
}

fn mode_name(mode: u8) -> &'static str {
    match mode {
        forward::FULL_NAT => "full-nat",
        forward::NAT => "nat",
        forward::DSR => "dsr",
        _ => "tunnel",
    }
}
