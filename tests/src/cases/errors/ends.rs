//! ICMP errors that are not carried, or not as far as they should go.

use lb_common::Verdict;
use lb_common::abi::{TCP, UDP, forward};

use super::{All, Error, THERE, data, routers};
use crate::cases::{CASTS, Case, Cast, Talk, mode_name};
use crate::frame::{Frame, IcmpError, icmp_error, ping};
use crate::network::{LAN, NARROW, WAN};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cast in CASTS {
        for mode in [forward::FULL_NAT, forward::NAT] {
            cases.push(no_further(cast, mode));
            cases.push(too_big(cast, mode));
        }
        cases.extend([
            no_flow(cast),
            others(cast),
            about_fragments(cast, forward::FULL_NAT),
            about_fragments(cast, forward::NAT),
        ]);
    }
    cases
}

/// It is fragments that are too big where long datagrams are.
fn about_fragments(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(UDP, mode, 51_000, 0);
    let [inner, outer] = routers(cast);
    let says = format!(
        "errors over {} by {} about a first fragment are carried, and one about another is the host's",
        cast.family,
        mode_name(mode),
    );
    let error = |from| Error {
        from,
        says: IcmpError::TooBig(1400),
        quote: All,
    };
    let first = |frame: Frame| frame.payload(&[0x5a; 64]).fragment(0, true).identified(7);
    let later = |frame: Frame| frame.payload(&[0x5a; 64]).fragment(9, false).identified(7);
    Case::new(says, cast.world(UDP, mode))
        .handshake(&talk)
        .carries_to_client(&talk, error(inner).about_question(&talk, first))
        .carries_to_backend(&talk, error(outer).about_answer(&talk, first))
        .leaves_alone(
            &LAN,
            &error(inner).about_question(&talk, later)[0],
            Verdict::NotTransport,
        )
        .leaves_alone(
            &WAN,
            &error(outer).about_answer(&talk, later)[0],
            Verdict::NotTransport,
        )
}

fn no_further(cast: &Cast, mode: u8) -> Case {
    let talk = cast.talk(UDP, mode, 51_000, 0);
    let [inner, _] = routers(cast);
    let [unknown, nowhere] = if cast.family == "IPv4" {
        ["198.51.100.99", "10.0.66.7"]
    } else {
        ["[2001:db8:100::99]", "[fd00:66::7]"]
    };
    let of = |host: &str, number: usize| {
        let client = format!("{host}:51000");
        Talk {
            source: if mode == forward::NAT {
                client.clone()
            } else {
                talk.source.clone()
            },
            client,
            backend: cast.backends[number],
            number,
            ..talk.clone()
        }
    };
    let (unknown, nowhere) = (of(unknown, 1), of(nowhere, 2));
    let error = Error {
        from: inner,
        says: IcmpError::Unreachable(1),
        quote: All,
    };
    let about = |talk: &Talk| error.about_question(talk, data);
    let expired = |ttl| about(&talk).map(|frame| frame.ttl(ttl));
    let says = format!(
        "errors over {} by {} that cannot go on: their TTL, the client's neighbour entry, the way to it",
        cast.family,
        mode_name(mode),
    );
    let [comes, leaves] = about(&unknown);
    Case::new(says, cast.world(UDP, mode))
        .handshake(&talk)
        .leaves_alone(&LAN, &expired(1)[0], Verdict::IcmpErrorExpired)
        .leaves_alone(&LAN, &expired(0)[0], Verdict::IcmpErrorExpired)
        .carries_to_client(&talk, expired(2))
        .client_sends(&unknown, |frame| frame.payload(b"?"))
        .sends(&LAN, &comes, Verdict::NeighbourPending, &leaves)
        .client_sends(&nowhere, |frame| frame.payload(b"?"))
        .leaves_alone(&LAN, &about(&nowhere)[0], Verdict::NoRoute)
        .leaves_alone(
            &LAN,
            &about(&talk)[0].clone().claims_ip_length(0xffff),
            Verdict::LengthMismatch,
        )
        .carries_to_client(&talk, about(&talk))
}

fn too_big(cast: &Cast, mode: u8) -> Case {
    let host = if cast.family == "IPv4" {
        "10.0.4.7"
    } else {
        "[fd00:4::7]"
    };
    let client = format!("{host}:51000");
    let talk = Talk {
        source: if mode == forward::NAT {
            client.clone()
        } else {
            cast.source.to_owned()
        },
        client,
        arm: &NARROW,
        ..cast.talk(UDP, mode, 51_000, 0)
    };
    let error = Error {
        from: routers(cast)[0],
        says: IcmpError::TimeExceeded,
        quote: All,
    };
    let header = if cast.family == "IPv4" { 20 } else { 40 };
    // Inside the error: another IP header and those of ICMP and UDP.
    let longest = 1280 - 2 * header - 8 - 8;
    let about = |length: usize| {
        let error = error.about_question(&talk, |frame| frame.payload(&vec![0x5a; length]));
        error.map(Frame::dont_fragment)
    };
    let says = format!(
        "errors over {} by {} on a narrow way: just fitting, and one byte more, of which nobody is told",
        cast.family,
        mode_name(mode),
    );
    let case = Case::new(says, cast.world(UDP, mode))
        .client_sends(&talk, |frame| frame.payload(b"?"))
        .carries_to_client(&talk, about(longest))
        .leaves_alone(&LAN, &about(longest + 1)[0], Verdict::IcmpErrorTooBig);
    if cast.family == "IPv6" {
        return case;
    }
    let [comes, leaves] =
        error.about_question(&talk, |frame| frame.payload(&vec![0x5a; longest + 1]));
    case.sends(
        &LAN,
        &comes,
        Verdict::FragmentedByHost,
        &leaves.identified(0),
    )
}

fn no_flow(cast: &Cast) -> Case {
    let talk = cast.talk(TCP, forward::FULL_NAT, 51_000, 0);
    let [inner, outer] = routers(cast);
    let error = |from| Error {
        from,
        says: IcmpError::TooBig(1400),
        quote: All,
    };
    let says = format!(
        "errors over {} about packets of a service that are of no flow pass",
        cast.family
    );
    Case::new(says, cast.world(TCP, forward::FULL_NAT))
        .leaves_alone(
            &WAN,
            &error(outer).about_answer(&talk, data)[0],
            Verdict::IcmpErrorNoFlow,
        )
        // Nobody listens on the port that full-nat would give.
        .leaves_alone(
            &LAN,
            &error(inner).about_question(&talk, data)[0],
            Verdict::NotTransport,
        )
        .then_flows(0, 0)
        .then_turns(0)
}

fn others(cast: &Cast) -> Case {
    let talk = cast.talk(UDP, forward::NAT, 51_000, 0);
    let [inner, outer] = routers(cast);
    let error = |from| Error {
        from,
        says: IcmpError::Unreachable(1),
        quote: All,
    };
    let seen = talk.asks().payload(b"x").ttl(THERE);
    let seen = seen.between(&talk.source, talk.backend);
    let to_client = |about: &Frame| error(inner).to(inner, &talk.client, about);
    let says = format!(
        "errors over {} about others' packets pass bit for bit, as do those that quote too little",
        cast.family
    );
    let header = if cast.family == "IPv4" { 20 } else { 40 };
    let quoting = |bytes: usize| {
        let frame = icmp_error(
            inner,
            &talk.client,
            IcmpError::TimeExceeded,
            &seen,
            header + bytes,
        );
        frame.padded_to(150)
    };
    let elsewhere = seen.clone().between(&talk.source, cast.second_service);
    let [nobody, many] = if cast.family == "IPv4" {
        ["127.0.0.1", "224.0.0.1"]
    } else {
        ["::1", "ff02::1"]
    };
    let version = if cast.family == "IPv4" { 6 } else { 4 };
    let mut frames = vec![
        // To another than the sender of what is quoted
        error(inner).to(inner, talk.backend, &seen),
        error(outer).to(outer, cast.second_service, &seen),
        // About a packet to another destination, and one of ICMP
        to_client(&elsewhere),
        to_client(&ping(&talk.client, talk.backend, 1, 2, b"ping")),
        // About a later fragment, and what is no IP packet
        to_client(&seen.clone().payload(&[7; 80]).fragment(3, false)),
        to_client(&seen.clone().claims_version(version)),
        // From an address that no sender has
        error(nobody).to(nobody, &talk.client, &seen),
        error(many).to(many, &talk.client, &seen),
    ];
    // Behind the end of a packet there is only padding.
    let padding = |frame: Frame| frame.padded_to(150);
    frames.extend([0, 2, 3].map(quoting));
    frames.push(icmp_error(inner, &talk.client, IcmpError::TimeExceeded, &seen, 9).trimmed());
    frames.push(padding(icmp_error(
        inner,
        &talk.client,
        IcmpError::TimeExceeded,
        &seen,
        header - 1,
    )));
    let case = Case::new(says, cast.world(UDP, forward::NAT)).handshake(&talk);
    (frames.iter())
        .fold(case, |case, frame| {
            case.leaves_alone(&LAN, frame, Verdict::NotTransport)
        })
        .leaves_alone(
            &LAN,
            &claiming(to_client(&seen), header),
            Verdict::NotTransport,
        )
        .then_flows(2, 0)
}

/// The error with the length of one that quotes the IP header and two bytes:
/// the ports of a flow stand behind its end.
fn claiming(error: Frame, header: usize) -> Frame {
    let length = if header == 20 {
        2 * header + 8 + 2
    } else {
        header + 8 + 2
    };
    error.claims_ip_length(length as u16)
}
