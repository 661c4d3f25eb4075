//! What is measured: for each case a frame, what varies in it, what the tables
//! hold, and the verdict that every packet must end with.

use std::net::SocketAddr;

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP, forward};
use tests::frame::{Frame, tcp, udp};
use tests::network::{LAN, WAN};

use crate::plan::{FRAME, NOTING, Patch, Plan, SUBJECT, WORDS, order};
use crate::scene::{Family, NEWCOMERS, Service, services};

/// How many connections are known, by turns.
pub(crate) const FLOWS: [u32; 5] = [1, 1_000, 10_000, 100_000, 1_000_000];

/// A service listens there, at an address of its own.
const FOREIGN_PORT: u16 = 99;

/// How a newcomer may be refused where half-open connections stand at every place.
/// Both buckets in which its answers could be entered are full now and then; and by
/// `nat` its answers may seem to be another's, because only hashes are compared.
pub(crate) const REFUSALS: [Verdict; 2] = [Verdict::FlowTableFull, Verdict::TupleTaken];

/// One of so many packets, at most.
pub(crate) const REFUSED_ONE_IN: u32 = 1_000;

/// A table of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// Packets that are for no service.
    Strangers,
    /// Packets of known connections.
    Known,
    /// The same out of another interface.
    Redirected,
    /// The same, each of which notes that its connection lives.
    Noting,
    /// The first packets of connections.
    New,
}

impl Section {
    /// All of them, in the order of the report.
    pub(crate) const ALL: [Self; 5] = [
        Self::Known,
        Self::New,
        Self::Strangers,
        Self::Redirected,
        Self::Noting,
    ];

    /// What names of its cases begin with.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Strangers => "stranger",
            Self::Known => "known",
            Self::Redirected => "redirected",
            Self::Noting => "noting",
            Self::New => "new",
        }
    }
}

/// What the table of connections holds before a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Nothing.
    Empty,
    /// Half-open connections at every place.
    HalfOpen,
    /// Established connections at every place.
    Established,
    /// So many of the service's connections, and nothing else.
    Known(u32),
}

/// One cell of a table.
#[derive(Debug)]
pub(crate) struct Case {
    /// The table.
    pub(crate) section: Section,
    /// The line of the table.
    pub(crate) line: String,
    /// The column of the table.
    pub(crate) column: String,
    /// Whose packets these are; nobody's, if they are strangers'.
    pub(crate) service: Service,
    /// What the table of connections holds.
    pub(crate) state: State,
    /// Whether each packet begins a connection.
    pub(crate) begins: bool,
    /// Whether they are from the backend.
    pub(crate) reply: bool,
    /// The interface that the packets come in by.
    pub(crate) ingress: u32,
    /// How every packet must end.
    pub(crate) verdict: Verdict,
    /// What the wrapper is told.
    pub(crate) plan: Plan,
}

impl Case {
    /// Its name, by which it can be chosen.
    pub(crate) fn name(&self) -> String {
        format!("{} {}, {}", self.section.word(), self.line, self.column)
    }

    /// Whether some of the packets may be refused: see [`REFUSALS`].
    pub(crate) fn may_refuse(&self) -> bool {
        self.begins && self.state == State::HalfOpen
    }

    /// Whether its packets are counted for its service.
    pub(crate) fn is_service(&self) -> bool {
        self.section != Section::Strangers
    }
}

/// All cases, in the order in which they are measured: those of a service together,
/// and of these the ones with fewer known connections first, because connections
/// are only ever added.
pub(crate) fn all(first_port: u32) -> Vec<Case> {
    let mut cases = Vec::new();
    for service in services() {
        let known = |way, flows| known(&service, way, flows, first_port);
        let ways = if service.hears_answers() {
            &[Way::Forward, Way::Reply][..]
        } else {
            &[Way::Forward]
        };
        cases.extend(new(&service));
        for flows in FLOWS {
            cases.extend(ways.iter().map(|&way| known(way, flows)));
        }
        // Of one protocol and family: what comes on top is the same in all.
        if service.protocol == TCP && service.family == Family::V4 && service.inside == Family::V4 {
            cases.extend(ways.iter().map(|&way| redirected(known(way, 1))));
            let noted = |flows| ways.iter().map(move |&way| noting(known(way, flows)));
            cases.extend([1, 1_000_000].into_iter().flat_map(noted));
        }
        if service.forward == forward::FULL_NAT {
            let strangers = [1, 1_000_000].map(|flows| strangers(&service, flows));
            cases.extend(strangers.into_iter().flatten());
        }
    }
    cases.sort_by_key(|case| (case.service.number, case.state));
    cases
}

/// Which way a packet of a known connection goes.
#[derive(Clone, Copy)]
enum Way {
    Forward,
    Reply,
}

/// A segment with payload of a connection that is known.
fn known(service: &Service, way: Way, flows: u32, first_port: u32) -> Case {
    let (frame, patches, verdict, from) = match way {
        Way::Forward => (
            from_client(service),
            service.client_patches(),
            Verdict::ForwardTx,
            "from the client",
        ),
        Way::Reply => (
            from_backend(service, first_port),
            service.backend_patches(),
            Verdict::ReplyTx,
            "from the backend",
        ),
    };
    let plural = if flows == 1 { "" } else { "s" };
    Case {
        section: Section::Known,
        line: format!("{service} {from}"),
        column: format!("{} flow{plural}", grouped(flows)),
        service: *service,
        state: State::Known(flows),
        begins: false,
        reply: matches!(way, Way::Reply),
        ingress: LAN.index,
        verdict,
        plan: Plan {
            grows: u16::from(service.forward == forward::TUNNEL),
            ..plan(&frame.ack(1).payload(b"data"), patches, flows)
        },
    }
}

/// The same from another interface than the one it leaves by.
fn redirected(case: Case) -> Case {
    let verdict = if case.reply {
        Verdict::ReplyRedirect
    } else {
        Verdict::ForwardRedirect
    };
    Case {
        section: Section::Redirected,
        ingress: WAN.index,
        verdict,
        ..case
    }
}

/// The same, and each packet notes that its connection lives.
fn noting(case: Case) -> Case {
    let plan = Plan {
        slot: NOTING,
        ..case.plan
    };
    Case {
        section: Section::Noting,
        plan,
        ..case
    }
}

/// The first packets of connections, with room in the table and without.
fn new(service: &Service) -> [Case; 3] {
    let frame = between(service.protocol, service.newcomer(), service.listen()).syn();
    let case = |column: &str, state, verdict| Case {
        section: Section::New,
        line: service.to_string(),
        column: column.into(),
        state,
        begins: verdict == Verdict::ForwardTx,
        verdict,
        plan: Plan {
            order: order::SEQUENTIAL,
            grows: u16::from(service.forward == forward::TUNNEL),
            ..plan(&frame, service.client_patches(), NEWCOMERS)
        },
        ..known(service, Way::Forward, 1, 0)
    };
    [
        case("room in the table", State::Empty, Verdict::ForwardTx),
        case(
            "full of half-open ones",
            State::HalfOpen,
            Verdict::ForwardTx,
        ),
        case(
            "full of established ones",
            State::Established,
            Verdict::FlowTableFull,
        ),
    ]
}

/// Packets of so many connections that are for no service; as many of this one are
/// known.
fn strangers(service: &Service, flows: u32) -> Vec<Case> {
    let (to, patches) = (service.listen(), service.client_patches());
    let ends = |protocol, to| between(protocol, service.client(0), to).ack(1);
    let elsewhere = match service.family {
        Family::V4 => "203.0.113.99",
        Family::V6 => "2001:db8:2::99",
    };
    let elsewhere = elsewhere.parse().expect("it is an address");
    let case = |what: &str, frame: &Frame, verdict| Case {
        section: Section::Strangers,
        line: format!("{what}, {}", described(service)),
        verdict,
        plan: plan(frame, patches, flows),
        ..known(service, Way::Forward, flows, 0)
    };
    let mut cases = vec![
        case(
            "port of no service",
            &ends(service.protocol, SocketAddr::new(to.ip(), FOREIGN_PORT)),
            Verdict::NoService,
        ),
        case(
            "a service's port at another address",
            &ends(service.protocol, SocketAddr::new(elsewhere, to.port())),
            Verdict::NoService,
        ),
    ];
    if service.protocol == UDP || service.family == Family::V6 {
        return cases;
    }
    cases.push(Case {
        line: "not IP (ARP)".into(),
        ..case("", &ends(TCP, to).claims_ether_type(0x0806), Verdict::NotIp)
    });
    cases
}

/// `TCP IPv4` of a service by full-nat.
fn described(service: &Service) -> String {
    let name = service.to_string();
    name.split_once(' ')
        .map_or(name.clone(), |(_, rest)| rest.into())
}

/// A frame of connection 0 from its client.
pub(crate) fn from_client(service: &Service) -> Frame {
    between(service.protocol, service.client(0), service.listen())
}

/// A frame of connection 0 from its backend.
pub(crate) fn from_backend(service: &Service, first_port: u32) -> Frame {
    let to = if service.forward == forward::NAT {
        service.client(0)
    } else {
        SocketAddr::new(service.listen().ip(), first_port as u16)
    };
    between(service.protocol, service.member(0), to)
}

fn between(protocol: u8, from: SocketAddr, to: SocketAddr) -> Frame {
    let (from, to) = (from.to_string(), to.to_string());
    if protocol == TCP {
        tcp(&from, &to)
    } else {
        udp(&from, &to)
    }
}

/// A plan for the program under test. What the patches leave as it is, is that
/// of the frame.
pub(crate) fn plan(frame: &Frame, patches: [Patch; 2], flows: u32) -> Plan {
    let bytes = frame.clone().padded_to(FRAME).bytes();
    let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let mut words = [0; WORDS];
    for (place, slot) in words.iter_mut().enumerate() {
        *slot = u32::from_ne_bytes(word(2 + 4 * place));
    }
    Plan {
        random: 0,
        next: 0,
        flows: flows.max(1),
        order: order::RANDOM,
        slot: SUBJECT,
        patches: patches.map(|patch| Patch {
            base: u32::from_be_bytes(word(patch.at as usize)),
            ..patch
        }),
        head: [bytes[0], bytes[1]],
        grows: 0,
        words,
    }
}

/// `1,000,000` of 1000000.
pub(crate) fn grouped(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
