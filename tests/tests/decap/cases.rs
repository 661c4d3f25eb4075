//! What comes in, what it counts as, and what the stack gets.

use lb_common::decap::Outcome;
use tests::frame::{Frame, tcp, udp};

/// The ends of a tunnel, in both families: from, to.
const V4: [&str; 2] = ["198.18.3.4", "10.9.0.17"];
const V6: [&str; 2] = ["100::3:4", "fd09::11"];

/// IPv4's protocol number for IPv4, and for IPv6.
const IPV4_INSIDE: u8 = 4;
const IPV6_INSIDE: u8 = 41;

/// The two bits of ECN.
const CAPABLE_1: u8 = 1;
const CAPABLE_0: u8 = 2;
const CONGESTED: u8 = 3;

pub(crate) struct Case {
    pub(crate) says: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) outcome: Outcome,
    pub(crate) leaves: Vec<u8>,
}

pub(crate) fn all() -> Vec<Case> {
    [
        families(),
        links(),
        strangers(),
        headers(),
        lies(),
        sources(),
        congestion(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A client's packet to a service.
fn four() -> Frame {
    tcp("192.0.2.7:5000", "203.0.113.10:80")
        .ack(7)
        .payload(b"hello")
}

fn six() -> Frame {
    udp("[2001:db8::7]:5000", "[2001:db8:5::10]:53").payload(b"hello")
}

/// Through the tunnel to us.
fn tunnelled(frame: &Frame, [from, to]: [&str; 2]) -> Frame {
    frame.clone().inside(from, to)
}

/// A case in which the stack gets another frame.
fn unwrapped(says: &'static str, frame: &Frame, leaves: &Frame) -> Case {
    Case {
        says,
        frame: frame.bytes(),
        outcome: Outcome::Unwrapped,
        leaves: leaves.bytes(),
    }
}

/// A case in which nothing is changed.
fn untouched(says: &'static str, outcome: Outcome, frame: &Frame) -> Case {
    Case {
        says,
        frame: frame.bytes(),
        outcome,
        leaves: frame.bytes(),
    }
}

fn families() -> Vec<Case> {
    let whole = |says, frame: Frame, way| unwrapped(says, &tunnelled(&frame, way), &frame);
    vec![
        whole("IPv4 in IPv4 is unwrapped", four(), V4),
        whole("IPv6 in IPv4 is unwrapped", six(), V4),
        whole("IPv4 in IPv6 is unwrapped", four(), V6),
        whole("IPv6 in IPv6 is unwrapped", six(), V6),
        whole(
            "a fragment inside is unwrapped",
            four().fragment(2, true),
            V4,
        ),
        whole(
            "a later fragment inside is unwrapped",
            six().payload(&[7; 64]).fragments(24).remove(1),
            V6,
        ),
        whole(
            "IPv4 options inside stay",
            four().ip_options(&[1, 1, 1, 0]),
            V4,
        ),
        whole("extension headers inside stay", six().hop_by_hop(), V6),
        whole("the inner TTL stays as it is", four().ttl(1), V4),
        whole(
            "a tunnel inside a tunnel loses one header",
            tunnelled(&four(), V6),
            V4,
        ),
        whole(
            "a packet to any address is unwrapped",
            four().between("192.0.2.7:1", "127.0.0.1:2"),
            V4,
        ),
    ]
}

fn links() -> Vec<Case> {
    let whole = |says, frame: Frame, way| unwrapped(says, &tunnelled(&frame, way), &frame);
    let padded = tunnelled(&udp("192.0.2.7:1", "203.0.113.10:2"), V4).padded_to(64);
    vec![
        whole("a tag stays", four().tagged(100), V4),
        whole(
            "a tag stays where the family changes",
            six().tagged(100),
            V4,
        ),
        whole("two tags stay", four().tagged(200).tagged(100), V6),
        whole(
            "priority and DEI of a tag stay",
            four().tag(0x8100, 0xbabc),
            V4,
        ),
        untouched(
            "of three tags nothing is looked for behind",
            Outcome::NotTunnel,
            &tunnelled(&four().tagged(3).tagged(2).tagged(1), V4),
        ),
        unwrapped(
            "padding stays behind the packet",
            &padded,
            &udp("192.0.2.7:1", "203.0.113.10:2").padded_to(44),
        ),
    ]
}

fn strangers() -> Vec<Case> {
    use Outcome::{NotForUs, NotTunnel, UntrustedSource};
    vec![
        untouched("TCP passes", NotTunnel, &four()),
        untouched("UDP over IPv6 passes", NotTunnel, &six()),
        untouched(
            "TCP to us passes",
            NotTunnel,
            &four().between("198.18.3.4:1", "10.9.0.17:2"),
        ),
        untouched("ARP passes", NotTunnel, &four().claims_ether_type(0x0806)),
        untouched(
            "ARP behind a tag passes",
            NotTunnel,
            &four().tagged(5).claims_ether_type(0x0806),
        ),
        untouched(
            "a tunnel to another host passes",
            NotForUs,
            &tunnelled(&four(), ["198.18.3.4", "10.9.0.18"]),
        ),
        untouched(
            "a tunnel to another host over IPv6 passes",
            NotForUs,
            &tunnelled(&four(), ["100::3:4", "fd09::12"]),
        ),
        untouched(
            "a tunnel from anybody passes",
            UntrustedSource,
            &tunnelled(&four(), ["198.19.0.0", "10.9.0.17"]),
        ),
        untouched(
            "a tunnel from anybody over IPv6 passes",
            UntrustedSource,
            &tunnelled(&six(), ["100:0:0:1::", "fd09::11"]),
        ),
        untouched(
            "a tunnel from the neighbour of one that is trusted passes",
            UntrustedSource,
            &tunnelled(&six(), ["192.0.2.67", "10.9.0.17"]),
        ),
        unwrapped(
            "a tunnel from one single address is unwrapped",
            &tunnelled(&four(), ["192.0.2.66", "10.9.0.17"]),
            &four(),
        ),
        untouched(
            "an IPv6 address that looks like one of IPv4 is none of ours",
            Outcome::BadOuter,
            &tunnelled(&four(), ["::ffff:198.18.3.4", "::ffff:10.9.0.17"]),
        ),
    ]
}

fn headers() -> Vec<Case> {
    use Outcome::{BadOuter, NotTunnel, OuterFragment, Truncated};
    let pieces = tunnelled(&four().payload(&[9; 80]), V4).fragments(64);
    let pieces_v6 = tunnelled(&four().payload(&[9; 80]), V6).fragments(64);
    let options = [7, 3, 4, 0].repeat(10);
    vec![
        unwrapped(
            "options of the outer header go with it",
            &tunnelled(&four(), V4).ip_options(&[1, 1, 1, 0]),
            &four(),
        ),
        unwrapped(
            "the longest outer header goes as a whole",
            &tunnelled(&six().tagged(2).tagged(1), V4).ip_options(&options),
            &six().tagged(2).tagged(1),
        ),
        unwrapped(
            "an outer packet that may not be fragmented is unwrapped",
            &tunnelled(&four(), V4).dont_fragment(),
            &four(),
        ),
        untouched("a first fragment passes", OuterFragment, &pieces[0]),
        untouched("a last fragment passes", OuterFragment, &pieces[1]),
        untouched("a fragment over IPv6 passes", NotTunnel, &pieces_v6[0]),
        untouched(
            "outer extension headers pass",
            NotTunnel,
            &tunnelled(&four(), V6).destination_options(),
        ),
        untouched(
            "an outer header of another version passes",
            BadOuter,
            &tunnelled(&four(), V4).claims_version(6),
        ),
        untouched(
            "an outer IPv6 header of another version passes",
            BadOuter,
            &tunnelled(&four(), V6).claims_version(4),
        ),
        untouched(
            "an outer header that is too short passes",
            BadOuter,
            &tunnelled(&four(), V4).claims_header_words(4),
        ),
        untouched(
            "an outer packet shorter than its header passes",
            BadOuter,
            &tunnelled(&four(), V4).claims_ip_length(19),
        ),
        untouched(
            "a frame that ends in the outer header passes",
            Truncated,
            &tunnelled(&four(), V4).cut_to(33),
        ),
        untouched(
            "a frame that ends before the outer packet does passes",
            Truncated,
            &tunnelled(&four(), V4).cut_to(78),
        ),
        untouched(
            "a frame that ends in the inner header passes",
            Truncated,
            &tunnelled(&six(), V6).cut_to(93),
        ),
    ]
}

fn lies() -> Vec<Case> {
    use Outcome::{BadInner, InnerTooLong};
    vec![
        untouched(
            "IPv6 that is called IPv4 is dropped",
            BadInner,
            &tunnelled(&six(), V4).claims_next_header(IPV4_INSIDE),
        ),
        untouched(
            "IPv4 that is called IPv6 is dropped",
            BadInner,
            &tunnelled(&four(), V6).claims_next_header(IPV6_INSIDE),
        ),
        untouched(
            "an inner header that is too short is dropped",
            BadInner,
            &tunnelled(&four().claims_header_words(4), V4),
        ),
        untouched(
            "an inner packet shorter than its header is dropped",
            BadInner,
            &tunnelled(&four().claims_ip_length(19), V4).claims_ip_length(65),
        ),
        untouched(
            "an inner packet longer than the outer one is dropped",
            InnerTooLong,
            &tunnelled(&four().claims_ip_length(46), V4),
        ),
        untouched(
            "an inner IPv6 packet longer than the outer one is dropped",
            InnerTooLong,
            &tunnelled(&six().claims_ip_length(14), V6),
        ),
        untouched(
            "an outer packet that has no room for the inner header is dropped",
            InnerTooLong,
            &tunnelled(&four(), V4).claims_ip_length(39),
        ),
        untouched(
            "an outer packet that has no room for an inner IPv6 header is dropped",
            InnerTooLong,
            &tunnelled(&six(), V6).claims_ip_length(39),
        ),
        unwrapped(
            "what is behind the inner packet stays behind it",
            &tunnelled(&four(), V4).claims_ip_length(69).padded_to(83),
            &four().padded_to(63),
        ),
    ]
}

fn sources() -> Vec<Case> {
    let from_v4 = |says, source: &str| {
        let frame = four().between(source, "203.0.113.10:80");
        untouched(says, Outcome::BadInnerSource, &tunnelled(&frame, V6))
    };
    let from_v6 = |says, source: &str| {
        let frame = six().between(source, "[2001:db8:5::10]:53");
        untouched(says, Outcome::BadInnerSource, &tunnelled(&frame, V4))
    };
    vec![
        from_v4("from the host itself: dropped", "127.0.0.1:5000"),
        from_v4("from nobody: dropped", "0.0.0.0:5000"),
        from_v4("from a group: dropped", "224.0.0.1:5000"),
        from_v4("from all: dropped", "255.255.255.255:5000"),
        from_v6("from the host itself over IPv6: dropped", "[::1]:5000"),
        from_v6("from nobody over IPv6: dropped", "[::]:5000"),
        from_v6("from a group over IPv6: dropped", "[ff02::1]:5000"),
        from_v6(
            "from IPv4 in an IPv6 header: dropped",
            "[::ffff:192.0.2.7]:5000",
        ),
    ]
}

/// RFC 6040, section 4.2: every inner mark under every outer one. The other
/// six bits are the inner packet's own.
fn congestion() -> Vec<Case> {
    const SAYS: [[&str; 4]; 2] = [
        [
            "no congestion in the tunnel changes nothing",
            "ECT(1) of the tunnel goes over to ECT(0)",
            "ECT(0) of the tunnel changes nothing",
            "congestion in the tunnel goes over to the packet",
        ],
        [
            "over IPv6, no congestion in the tunnel changes nothing",
            "over IPv6, ECT(1) of the tunnel goes over to ECT(0)",
            "over IPv6, ECT(0) of the tunnel changes nothing",
            "over IPv6, congestion in the tunnel goes over to the packet",
        ],
    ];
    let mut cases = Vec::new();
    for (family, frame) in [four(), six()].into_iter().enumerate() {
        for outer in 0..4 {
            let inner = frame.clone().tos(0xb8 | CAPABLE_0);
            let leaves = match outer {
                CAPABLE_1 | CONGESTED => outer,
                _ => CAPABLE_0,
            };
            let way = if outer % 2 == 0 { V4 } else { V6 };
            cases.push(unwrapped(
                SAYS[family][usize::from(outer)],
                &tunnelled(&inner, way).tos(0x10 | outer),
                &inner.tos(0xb8 | leaves),
            ));
        }
    }
    let one = |inner: u8, outer: u8| tunnelled(&four().tos(0xb8 | inner), V4).tos(outer);
    let becomes = |mark: u8| four().tos(0xb8 | mark);
    let dropped = Outcome::Congested;
    cases.extend([
        untouched(
            "congestion that the ends do not understand drops",
            dropped,
            &one(0, CONGESTED),
        ),
        untouched(
            "congestion that the ends do not understand drops over IPv6",
            dropped,
            &tunnelled(&six().tos(0xb8), V6).tos(CONGESTED),
        ),
        unwrapped(
            "ECT(1) of the tunnel does not reach ends without ECN",
            &one(0, CAPABLE_1),
            &becomes(0),
        ),
        unwrapped(
            "ECT(0) of the tunnel does not reach ends without ECN",
            &one(0, CAPABLE_0),
            &becomes(0),
        ),
        unwrapped(
            "ECT(1) stays without ECN in the tunnel",
            &one(CAPABLE_1, 0),
            &becomes(CAPABLE_1),
        ),
        unwrapped(
            "ECT(1) stays under ECT(0)",
            &one(CAPABLE_1, CAPABLE_0),
            &becomes(CAPABLE_1),
        ),
        unwrapped(
            "ECT(1) becomes congested",
            &one(CAPABLE_1, CONGESTED),
            &becomes(CONGESTED),
        ),
        unwrapped(
            "congestion stays without ECN in the tunnel",
            &one(CONGESTED, 0),
            &becomes(CONGESTED),
        ),
        unwrapped(
            "congestion stays under ECT(1)",
            &one(CONGESTED, CAPABLE_1),
            &becomes(CONGESTED),
        ),
        unwrapped(
            "congestion stays under congestion",
            &one(CONGESTED, CONGESTED),
            &becomes(CONGESTED),
        ),
    ]);
    cases
}
