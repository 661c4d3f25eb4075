//! Another IP header around the packet: IPv4 or IPv6, whatever is inside
//! (RFC 2003, RFC 2473, RFC 4213).
//!
//! The outer source varies with the flow, so that the backend's network card
//! spreads flows over its queues: it knows no more than two addresses of a
//! tunnelled packet. It is taken from a prefix that need not be anybody's.

use lb_common::abi::Flow;
use lb_common::checksum::Sum;
use lb_common::{Address, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::packet::Packet;
use crate::parse::{Family, Parsed};
use crate::room::Room;
use crate::steer::scatter;
use crate::tables::{RouteQuery, Tables};

/// What is inside, by the number in the outer header.
pub(crate) const IPV4_INSIDE: u8 = 4;
pub(crate) const IPV6_INSIDE: u8 = 41;

/// The TTL of outer headers: the default (RFC 1700), because how far the packet
/// may still go says nothing about how far the backend is.
const TTL: u8 = 64;

/// The word of the header that says so.
const DONT_FRAGMENT: [u8; 4] = [0, 0, 0x40, 0x00];

/// The flow label is the low 20 bits of the first word (RFC 8200, section 3).
const FLOW_LABEL: u32 = 0x000f_ffff;

/// The addresses of the outer header, into the question to the routing table.
#[inline(always)]
pub(crate) fn outer_ends(
    tables: &impl Tables,
    parsed: &Parsed,
    flow: &Flow,
    query: &mut RouteQuery,
) {
    let settings = tables.settings();
    let (prefix, bits) = if flow.dst.is_v4() {
        (settings.tunnel_v4, settings.tunnel_v4_bits)
    } else {
        (settings.tunnel_v6, settings.tunnel_v6_bits)
    };
    query.src = vary(prefix, bits, flow.spread);
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

/// Writes the outer header, for which there is room in front of the packet, word by
/// word: the compiler would put it together on the stack, byte by byte.
#[inline(always)]
pub(crate) fn wrap(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &Room,
) -> Result<(), Verdict> {
    let Room {
        parsed, query, way, ..
    } = room;
    let at = parsed.ip.wrapping_sub(way.wrapping);
    let [_, _, _, from] = query.src.words();
    let [_, _, _, to] = query.dst.words();
    if query.dst.is_v4() {
        let [high, low] = (query.length as u16).to_be_bytes();
        let first = [0x45, parsed.traffic_class as u8, high, low];
        let second = fragmentation(tables, room);
        let (from, to) = (from.to_ne_bytes(), to.to_ne_bytes());
        let [ttl, inside] = [TTL, inside(parsed)];
        let sum = Sum::NOTHING
            .word(first)
            .word(second)
            .word([ttl, inside, 0, 0])
            .word(from)
            .word(to);
        let [check, sum] = sum.check();
        let header = packet.at::<[u8; Ipv4Hdr::LEN]>(at)?;
        let (words, _) = header.as_chunks_mut::<4>();
        words.copy_from_slice(&[first, second, [ttl, inside, check, sum], from, to]);
    } else {
        let label = u32::from_be(from) & FLOW_LABEL;
        let first = 6 << 28 | parsed.traffic_class << 20 | label;
        let [high, low] = (parsed.ip_length as u16).to_be_bytes();
        let header = packet.at::<Ipv6Hdr>(at)?;
        header.vcf = first.to_be_bytes();
        header.payload_len = [high, low];
        header.next_hdr = inside(parsed);
        header.hop_limit = TTL;
        query.src.write(&mut header.src_addr);
        query.dst.write(&mut header.dst_addr);
    }
    Ok(())
}

/// The word of an IPv4 header that says what may be fragmented how. Only what may be
/// so needs an identification (RFC 6864).
#[inline(always)]
fn fragmentation(tables: &impl Tables, room: &Room) -> [u8; 4] {
    if room.parsed.divisible == 0 {
        return DONT_FRAGMENT;
    }
    let place = scatter(&room.query.dst, 0, tables.settings().seed);
    let [high, low] = (tables.fresh_id(place) as u16).to_be_bytes();
    [high, low, 0, 0]
}
