//! ICMP errors where only the packets from the client are seen: what they are
//! about is an answer that went past the balancer, and its sender is a backend.

use lb_common::Verdict;
use lb_common::abi::{Settings, TCP, forward};

use super::{All, Error, Least, Quote, THERE, kinds, routers};
use crate::cases::{CASTS, Case, Cast, ISN, Talk, mode_name};
use crate::frame::{Frame, IcmpError};
use crate::network::{LAN, NARROW, WAN};
use crate::world::{STEADY, World};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in [forward::DSR, forward::TUNNEL] {
            cases.push(one_way(cast, mode));
        }
        cases.extend([neighbour_unknown(cast), too_big(cast)]);
    }
    cases
}

/// An error to the service's address about what a backend sent the client.
fn about(talk: &Talk, says: IcmpError, from: &str, quote: Quote) -> Frame {
    about_this(talk, says, from, quote, b"what was sent")
}

fn about_this(talk: &Talk, says: IcmpError, from: &str, quote: Quote, payload: &[u8]) -> Frame {
    let answer = talk.asks().ack(ISN + 1).payload(payload).ttl(THERE);
    let answer = answer.between(talk.service, &talk.client);
    let error = Error { from, says, quote };
    error.to(from, talk.service, &answer).dont_fragment()
}

fn one_way(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(TCP, mode, 51_000, 0);
    let [_, outer] = routers(cast);
    let says = format!(
        "errors over {} by {}: to the backend whose answer they are about, as they are",
        cast.family,
        mode_name(mode),
    );
    let syn = talk.asks().syn().dont_fragment();
    let way = Verdict::ForwardRedirect;
    let mut case = Case::new(says, one_way_world(cast, mode));
    let other = cast.talk(TCP, mode, 51_001, 0);
    let stray = about(&other, IcmpError::TimeExceeded, outer, All);
    case = case.leaves_alone(&WAN, &stray, Verdict::IcmpErrorNoFlow);
    case = case.sends(&WAN, &syn, way, &to_backend(&talk, mode, &syn));
    let ack = talk.asks().ack(ISN + 1).dont_fragment();
    for established in [false, true] {
        if established {
            case = case.sends(&WAN, &ack, way, &to_backend(&talk, mode, &ack));
        }
        for says in kinds(cast) {
            for (from, quote) in [(&talk.client[..], Least), (outer, All)] {
                let error = about(&talk, says, from, quote);
                let leaves = to_backend(&talk, mode, &error);
                case = case.sends(&WAN, &error, Verdict::IcmpErrorRedirect, &leaves);
            }
        }
    }
    let expired = about(&talk, IcmpError::TimeExceeded, outer, All).ttl(1);
    case.leaves_alone(&WAN, &expired, Verdict::IcmpErrorExpired)
        .then_flows(1, 0)
        .then_turns(1)
}

fn neighbour_unknown(cast: &Cast) -> Case {
    let (world, talk) = to_one(cast, ["10.0.1.99:8080", "[fd00:1::99]:8080"]);
    let [_, outer] = routers(cast);
    let says = format!(
        "an error over {} by dsr to a backend whose link address is unknown",
        cast.family
    );
    let error = about(&talk, IcmpError::TooBig(1400), outer, All);
    Case::new(says, world)
        .leaves_alone(&WAN, &talk.asks().syn(), Verdict::NeighbourUnknown)
        .leaves_alone(&WAN, &error, Verdict::NeighbourUnknown)
}

fn too_big(cast: &Cast) -> Case {
    let (world, talk) = to_one(cast, ["10.0.4.11:8080", "[fd00:4::11]:8080"]);
    let [_, outer] = routers(cast);
    let says = format!(
        "an error over {} by dsr that is too big for the backend's link: nobody is told",
        cast.family
    );
    let headers = if cast.family == "IPv4" { 68 } else { 108 };
    let error = |more: usize| {
        let payload = vec![0x5a; 1280 - headers + more];
        about_this(&talk, IcmpError::TimeExceeded, outer, All, &payload)
    };
    let [syn, fits] = [talk.asks().syn(), error(0)];
    let sent = |frame: &Frame| frame.clone().sent_on(NARROW.to(11));
    Case::new(says, world)
        .sends(&WAN, &syn, Verdict::ForwardRedirect, &sent(&syn))
        .sends(&WAN, &fits, Verdict::IcmpErrorRedirect, &sent(&fits))
        .leaves_alone(&WAN, &error(1), Verdict::IcmpErrorTooBig)
}

/// One service by dsr with one backend: the one of the family.
fn to_one(cast: &Cast, [four, six]: [&'static str; 2]) -> (World, Talk) {
    let backend = if cast.family == "IPv4" { four } else { six };
    let talk = Talk {
        backend,
        ..cast.talk(TCP, forward::DSR, 51_000, 0)
    };
    let world = World::empty()
        .service(TCP, forward::DSR, cast.service, &[0])
        .backend(backend);
    (world, talk)
}

/// A world whose tunnels have one outer source only.
pub(in crate::cases) fn one_way_world(cast: &Cast, mode: u8) -> World {
    cast.world(TCP, mode).with(Settings {
        tunnel_v4_bits: 0,
        tunnel_v6_bits: 0,
        ..STEADY
    })
}

/// What the backend gets of this packet, which may not be fragmented, by these
/// modes in [`one_way_world`].
pub(in crate::cases) fn to_backend(talk: &Talk, mode: u8, frame: &Frame) -> Frame {
    let sent = frame.clone().sent_on(LAN.to(talk.backend_last()));
    match (mode, talk.backend.starts_with('[')) {
        (forward::TUNNEL, false) => sent.inside("198.18.0.0", talk.backend).dont_fragment(),
        (forward::TUNNEL, true) => sent.inside("100::", talk.backend),
        (forward::DSR, _) => sent,
        _ => sent.between(&talk.source, talk.backend),
    }
}
