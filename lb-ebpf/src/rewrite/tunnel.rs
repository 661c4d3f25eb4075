//! Another IP header around the packet: IPv4 or IPv6, whatever is inside
//! (RFC 2003, RFC 2473, RFC 4213).
//!
//! The outer source varies with the flow, so that the backend's network card
//! spreads flows over its queues: it knows no more than two addresses of a
//! tunnelled packet. It is taken from a prefix that need not be anybody's.

use lb_common::abi::Flow;
use lb_common::checksum::full;
use lb_common::{Address, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::packet::Packet;
use crate::parse::{Family, Parsed};
use crate::room::Room;
use crate::steer::{both_ports, scatter};
use crate::tables::{RouteQuery, Tables};

/// What is inside, by the number in the outer header.
pub(crate) const IPV4_INSIDE: u8 = 4;
pub(crate) const IPV6_INSIDE: u8 = 41;

/// The TTL of outer headers: the default (RFC 1700), because how far the packet
/// may still go says nothing about how far the backend is.
const TTL: u8 = 64;

const DONT_FRAGMENT: [u8; 2] = [0x40, 0x00];

/// The flow label is the low 20 bits of the first word (RFC 8200, section 3).
const FLOW_LABEL: u32 = 0x000f_ffff;

/// The addresses of the outer header, into the question to the routing table.
#[inline(never)]
pub(crate) fn outer_ends(
    tables: &impl Tables,
    parsed: &Parsed,
    flow: &Flow,
    query: &mut RouteQuery,
) {
    let settings = tables.settings();
    let varied = scatter(&parsed.key.src, both_ports(&parsed.key), settings.seed);
    let (prefix, bits) = if flow.dst.is_v4() {
        (settings.tunnel_v4, settings.tunnel_v4_bits)
    } else {
        (settings.tunnel_v6, settings.tunnel_v6_bits)
    };
    query.src = vary(prefix, bits, varied);
    query.dst = flow.dst;
    query.src_port = lb_common::Be16::new(0);
    query.dst_port = lb_common::Be16::new(0);
    query.protocol = u32::from(inside(parsed));
}

/// Whether this is one of the outer sources.
#[inline(always)]
pub(crate) fn is_source(tables: &impl Tables, address: &Address) -> bool {
    let settings = tables.settings();
    let (prefix, bits) = if address.is_v4() {
        (settings.tunnel_v4, settings.tunnel_v4_bits)
    } else {
        (settings.tunnel_v6, settings.tunnel_v6_bits)
    };
    // Where all that may vary is set in both, the rest is what is compared.
    vary(*address, bits, u32::MAX) == vary(prefix, bits, u32::MAX)
}

/// The address with its low bits, at most 32 of them, set to those given.
#[inline(always)]
fn vary(prefix: Address, bits: u32, varied: u32) -> Address {
    let mask = if bits >= 32 {
        u32::MAX
    } else {
        (1 << bits) - 1
    };
    let [a, b, c, d] = prefix.words();
    Address::from_words([a, b, c, d | (varied & mask).to_be()])
}

#[inline(always)]
fn inside(parsed: &Parsed) -> u8 {
    match parsed.family {
        Family::V4 => IPV4_INSIDE,
        Family::V6 => IPV6_INSIDE,
    }
}

/// Writes the outer header, for which there is room in front of the packet.
#[inline(never)]
pub(crate) fn wrap(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &Room,
) -> Result<(), Verdict> {
    let Room {
        parsed, query, way, ..
    } = room;
    let at = parsed.ip.wrapping_sub(way.wrapping);
    if query.dst.is_v4() {
        let mut ip = Ipv4Hdr {
            vihl: 0x45,
            tos: parsed.traffic_class as u8,
            tot_len: (query.length as u16).to_be_bytes(),
            id: [0, 0],
            frags: DONT_FRAGMENT,
            ttl: TTL,
            proto: inside(parsed),
            check: [0, 0],
            src_addr: query.src.low4(),
            dst_addr: query.dst.low4(),
        };
        if parsed.divisible != 0 {
            // Only what may be fragmented needs an identification (RFC 6864).
            let place = scatter(&query.dst, 0, tables.settings().seed);
            ip.id = (tables.fresh_id(place) as u16).to_be_bytes();
            ip.frags = [0, 0];
        }
        *packet.at(at)? = ip;
        let check = full(packet.at::<[u8; 20]>(at)?);
        packet.at::<Ipv4Hdr>(at)?.check = check;
    } else {
        let [.., varied] = query.src.words();
        let first = 6 << 28 | parsed.traffic_class << 20 | u32::from_be(varied) & FLOW_LABEL;
        *packet.at(at)? = Ipv6Hdr {
            vcf: first.to_be_bytes(),
            payload_len: (parsed.ip_length as u16).to_be_bytes(),
            next_hdr: inside(parsed),
            hop_limit: TTL,
            src_addr: query.src.octets(),
            dst_addr: query.dst.octets(),
        };
    }
    Ok(())
}
