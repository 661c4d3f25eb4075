//! The way out, as the kernel's routing table has it.

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP, forward};

use super::{Case, V4, V6};
use crate::frame::{Frame, IcmpError, tcp, udp};
use crate::network::{HALTED, LAN, NARROW, WAN};
use crate::world::World;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for backend in ["10.0.66.1:80", "10.0.67.1:80", "10.0.68.1:80"] {
        cases.push(nowhere(V4.service, "198.51.100.7:51000", backend));
    }
    for backend in ["[fd00:66::1]:80", "[fd00:67::1]:80", "[fd00:68::1]:80"] {
        cases.push(nowhere(V6.service, "[2001:db8:100::7]:51000", backend));
    }
    cases.extend([
        to_the_host(
            "unresolved neighbour",
            "10.0.1.99:80",
            Verdict::NeighbourPending,
        ),
        to_the_host(
            "unresolved neighbour",
            "[fd00:1::99]:80",
            Verdict::NeighbourPending,
        ),
        to_the_host("host itself", "10.0.1.1:80", Verdict::LocalDestination),
        to_the_host("host itself", "[fd00:1::1]:80", Verdict::LocalDestination),
        to_the_host(
            "network without a route",
            "172.31.0.1:80",
            Verdict::LocalDestination,
        ),
        to_the_host(
            "network without a route",
            "[fd99::1]:80",
            Verdict::LocalDestination,
        ),
        stopped("not attached", "10.0.3.11:80", Verdict::EgressNotAttached),
        stopped(
            "not attached",
            "[fd00:3::11]:80",
            Verdict::EgressNotAttached,
        ),
        too_big("10.0.4.11:80", 1280 - 28),
        too_big("[fd00:4::11]:80", 1280 - 48),
        fragmented(),
        forwarding_disabled(),
        no_way_back(),
    ]);
    cases
}

/// The service and a client of the backend's family.
fn ends(backend: &str) -> (&'static str, &'static str, &'static str) {
    if backend.starts_with('[') {
        (V6.service, "[2001:db8:100::7]:51000", V6.source)
    } else {
        (V4.service, "198.51.100.7:51000", V4.source)
    }
}

fn nowhere(service: &'static str, client: &'static str, backend: &'static str) -> Case {
    let world = World::empty()
        .service(TCP, forward::FULL_NAT, service, &[0])
        .backend(backend);
    Case::new(format!("no way leads to {backend}"), world)
        .leaves_alone(&WAN, &tcp(client, service).syn(), Verdict::NoRoute)
        .then("the drop is the backend's", |state| {
            state.drops.keys().all(|key| key.backend == 0)
        })
}

fn to_the_host(what: &str, backend: &'static str, verdict: Verdict) -> Case {
    let (service, client, source) = ends(backend);
    let world = World::empty()
        .service(TCP, forward::FULL_NAT, service, &[0])
        .backend(backend);
    let syn = tcp(client, service).syn();
    Case::new(
        format!(
            "{backend}, a {what}: translated and left to the host, the TTL and links as they came"
        ),
        world,
    )
    .sends(&WAN, &syn, verdict, &syn.clone().between(source, backend))
}

fn stopped(what: &str, backend: &'static str, verdict: Verdict) -> Case {
    let (service, client, _) = ends(backend);
    let world = World::empty()
        .service(UDP, forward::NAT, service, &[0])
        .backend(backend);
    Case::new(
        format!("the way to {backend} is by an interface that is {what}"),
        world,
    )
    .leaves_alone(&WAN, &udp(client, service).payload(b"?"), verdict)
}

fn too_big(backend: &'static str, fits: usize) -> Case {
    let (service, client, source) = ends(backend);
    let world = World::empty()
        .service(UDP, forward::FULL_NAT, service, &[0])
        .backend(backend);
    let sent = |length: usize| {
        let payload = vec![0x5a; length];
        udp(client, service).dont_fragment().payload(&payload)
    };
    Case::new(
        format!(
            "the MTU on the way to {backend}: what just fits goes on, of one byte more that may not be fragmented the sender is told"
        ),
        world,
    )
    .sends(
        &WAN,
        &sent(fits),
        Verdict::ForwardRedirect,
        &sent(fits).between(source, backend).sent_on(NARROW.to(11)),
    )
    .sends(
        &WAN,
        &sent(fits + 1),
        Verdict::TooBigTold,
        &sent(fits + 1).told(IcmpError::TooBig(1280)),
    )
}

fn fragmented() -> Case {
    let (service, client, source) = ends("10.0.4.11:80");
    let world = World::empty()
        .service(UDP, forward::FULL_NAT, service, &[0])
        .backend("10.0.4.11:80");
    let sent = udp(client, service).payload(&[0x5a; 1280]);
    Case::new(
        "what does not fit and may be fragmented is translated, identified anew, and left to the host, which does it",
        world,
    )
    .sends(
        &WAN,
        &sent,
        Verdict::FragmentedByHost,
        &sent.clone().between(source, "10.0.4.11:80").identified(0),
    )
}

fn forwarding_disabled() -> Case {
    let talk = V4.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let six = tcp("[2001:db8:100::7]:51000", V6.service).syn();
    let world = V4
        .world(TCP, forward::FULL_NAT)
        .service(TCP, forward::FULL_NAT, V6.service, &[3])
        .backend(V6.backends[0]);
    Case::new(
        "what comes in where the kernel does not forward goes nowhere",
        world,
    )
    .leaves_alone(&HALTED, &talk.asks().syn(), Verdict::ForwardingDisabled)
    .leaves_alone(&HALTED, &six, Verdict::ForwardingDisabled)
    .client_sends(&talk, Frame::syn)
}

fn no_way_back() -> Case {
    let client = "10.0.66.7:51000";
    let asks = tcp(client, V4.service).syn();
    Case::new(
        "a client to whom no way leads: its packets pass, the answers do not",
        V4.world(TCP, forward::FULL_NAT),
    )
    .sends(
        &WAN,
        &asks,
        Verdict::ForwardRedirect,
        &asks
            .clone()
            .between(V4.source, V4.backends[0])
            .sent_on(LAN.to(11)),
    )
    .leaves_alone(
        &LAN,
        &tcp(V4.backends[0], V4.source).syn_ack(1),
        Verdict::NoRoute,
    )
}
