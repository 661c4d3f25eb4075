//! What is measured: for each case a frame, what varies in it, what the tables
//! hold, and the verdict that every packet must end with.

use lb_common::Verdict;
use lb_common::abi::{Settings, forward};
use tests::frame::{Frame, tcp, udp};
use tests::network::{LAN, WAN};

use crate::plan::{FRAME, Patch, Plan, SUBJECT, WORDS, order};
use crate::scene::{NAT4, NEWCOMERS, Service, TCP4, TCP6, UDP4};

/// The settings that a case is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// No flow's stamp grows old.
    Steady,
    /// Every packet notes that its flow lives.
    Noting,
}

/// One line of the table.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name in the table.
    pub(crate) name: String,
    /// Whose packets these are.
    pub(crate) service: Service,
    /// How many connections of the service are known, at least.
    pub(crate) known: u32,
    /// Whether the unfinished connections are taken away before each sample.
    pub(crate) cleared: bool,
    /// Whether each packet begins a connection.
    pub(crate) begins: bool,
    /// The settings.
    pub(crate) tables: Tables,
    /// The interface that the packets come in by.
    pub(crate) ingress: u32,
    /// How every packet must end.
    pub(crate) verdict: Verdict,
    /// What the wrapper is told.
    pub(crate) plan: Plan,
}

/// Which way a packet of a known connection goes.
#[derive(Clone, Copy)]
enum Way {
    Forward,
    Reply,
}

/// All cases, in the order of the table. Those with fewer known connections
/// come first: connections are only ever added.
pub(crate) fn all(settings: &Settings) -> Vec<Case> {
    let known = |what, service, way, flows| known(what, service, way, flows, settings);
    let tcp = |way, flows| known("TCP", TCP4, way, flows);
    let redirected = |mut case: Case, verdict| {
        case.name = case
            .name
            .replace(", 1 flow", ", 1 flow, from another interface");
        case.ingress = WAN.index;
        case.verdict = verdict;
        case
    };
    let mut cases = vec![
        foreign(),
        arp(),
        tcp(Way::Forward, 1),
        tcp(Way::Reply, 1),
        redirected(tcp(Way::Forward, 1), Verdict::ForwardRedirect),
        known("UDP", UDP4, Way::Forward, 1),
        known("UDP", UDP4, Way::Reply, 1),
        known("TCP over IPv6", TCP6, Way::Forward, 1),
        known("TCP over IPv6", TCP6, Way::Reply, 1),
        known("TCP by nat", NAT4, Way::Forward, 1),
        known("TCP by nat", NAT4, Way::Reply, 1),
        new("TCP by full-nat", TCP4),
        new("TCP by nat", NAT4),
        new("TCP over IPv6 by full-nat", TCP6),
        new("UDP by full-nat", UDP4),
        flood(),
    ];
    for flows in [1_000, 10_000, 100_000, 1_000_000] {
        cases.push(tcp(Way::Forward, flows));
        cases.push(tcp(Way::Reply, flows));
    }
    for flows in [1, 1_000_000] {
        let mut case = tcp(Way::Forward, flows);
        case.name += ", each noting the time";
        case.tables = Tables::Noting;
        cases.push(case);
    }
    cases
}

/// A segment with payload of a connection that is known.
fn known(what: &str, service: Service, way: Way, flows: u32, settings: &Settings) -> Case {
    let (frame, patches, verdict) = match way {
        Way::Forward => (
            from_client(&service),
            service.client_patches(),
            Verdict::ForwardTx,
        ),
        Way::Reply => (
            from_backend(&service, settings),
            service.backend_patches(),
            Verdict::ReplyTx,
        ),
    };
    let direction = match way {
        Way::Forward => "known",
        Way::Reply => "reply",
    };
    let plural = if flows == 1 { "" } else { "s" };
    Case {
        name: format!("{direction} {what}, {} flow{plural}", grouped(flows)),
        known: flows,
        cleared: false,
        begins: false,
        tables: Tables::Steady,
        ingress: LAN.index,
        verdict,
        plan: plan(&frame.ack(1).payload(b"data"), patches, flows),
        service,
    }
}

/// The first packet of a connection; the table of unfinished ones is not full.
fn new(what: &str, service: Service) -> Case {
    let frame = between(&service, service.newcomer, service.listen).syn();
    Case {
        name: format!("new {what}"),
        known: 0,
        cleared: true,
        begins: true,
        tables: Tables::Steady,
        ingress: LAN.index,
        verdict: Verdict::ForwardTx,
        plan: Plan {
            order: order::SEQUENTIAL,
            ..plan(&frame, service.client_patches(), NEWCOMERS)
        },
        service,
    }
}

/// The same with a table that is full: each evicts another, as in a flood.
fn flood() -> Case {
    Case {
        name: "new TCP by full-nat, table of unfinished full".into(),
        cleared: false,
        ..new("", TCP4)
    }
}

/// TCP that is for no service.
fn foreign() -> Case {
    let frame = tcp(TCP4.client, "203.0.113.99:80").ack(1);
    Case {
        name: "not for a service (TCP)".into(),
        verdict: Verdict::NoService,
        plan: plan(&frame, TCP4.client_patches(), 1_000),
        ..known("", TCP4, Way::Forward, 0, &EMPTY)
    }
}

/// Not even IP.
fn arp() -> Case {
    let frame = tcp(TCP4.client, TCP4.listen).claims_ether_type(0x0806);
    Case {
        name: "not IP (ARP)".into(),
        verdict: Verdict::NotIp,
        plan: plan(&frame, TCP4.client_patches(), 1_000),
        ..known("", TCP4, Way::Forward, 0, &EMPTY)
    }
}

const EMPTY: Settings = Settings::PLAIN;

/// A frame of connection 0 from its client.
pub(crate) fn from_client(service: &Service) -> Frame {
    between(service, service.client, service.listen)
}

/// A frame of connection 0 from its backend.
pub(crate) fn from_backend(service: &Service, settings: &Settings) -> Frame {
    if service.forward == forward::NAT {
        return between(service, service.backend, service.client);
    }
    let at = tests::frame::end(service.listen).ip();
    let port = settings.first_port as u16;
    let to = std::net::SocketAddr::new(at, port).to_string();
    between(service, service.backend, &to)
}

fn between(service: &Service, from: &str, to: &str) -> Frame {
    if service.protocol == lb_common::abi::TCP {
        tcp(from, to)
    } else {
        udp(from, to)
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
