//! Telling a sender why its packet goes no further: its TTL ran out here, or it
//! does not fit the way out (RFC 792, RFC 1191; RFC 4443, sections 3.2 and 3.3).
//!
//! The message takes the place of the packet, of which it quotes as much as the
//! sender may expect, and goes back the way the packet came. It comes from the
//! address that the packet was for: that is the service's, or whom the backend
//! knows in its place. How many are sent is limited (RFC 1812, section 4.3.2.8;
//! RFC 4443, section 2.4 f); a packet of which nobody is told is dropped all the
//! same, under its own verdict.

use lb_common::Verdict;
use lb_common::abi::{ICMP, ICMPV6};
use lb_common::checksum::{self, Sum};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{to_many, v4, v6};
use crate::guard;
use crate::packet::{Icmp, Packet};
use crate::parse::{Family, Parsed, Part};
use crate::rewrite;
use crate::room::{Room, Walk};
use crate::route;
use crate::tables::Tables;

/// The TTL of what is sent from here.
const TTL: u8 = 64;

/// How long a message may be (RFC 1812, section 4.3.2.3; RFC 4443, section 2.4 c).
const LONGEST_V4: u32 = 576;
const LONGEST_V6: u32 = 1280;

/// How much of what the IP packet carries is quoted at least.
const LEAST: u32 = 8;

/// How many bytes are summed up at a time.
const PIECE: u32 = 32;

/// Sends a message in the packet's place, if there may be one; else the packet
/// ends as it would have.
#[inline(never)]
pub fn tell(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
    why: Verdict,
) -> Verdict {
    if !deserves(packet, &room.parsed) || !tables.may_tell(why) {
        return why;
    }
    write(packet, room, why).unwrap_or(why)
}

/// Whether a sender is to hear of this packet: not of one that was sent to many,
/// that came from nobody, or that is only a part (RFC 1122, section 3.2.2).
#[inline(always)]
fn deserves(packet: &mut impl Packet, parsed: &Parsed) -> bool {
    !to_many(packet) && parsed.part != Part::Later && guard::may_send(&parsed.key.src)
}

#[inline(always)]
fn write(packet: &mut impl Packet, room: &mut Room, why: Verdict) -> Result<Verdict, Verdict> {
    let parsed = &room.parsed;
    let family = parsed.family;
    let front = front(family);
    let quote = quote(
        packet,
        family,
        parsed.ip,
        parsed.transport,
        parsed.ip_length,
    )?;
    let links = *packet.at::<[u8; 12]>(0)?;
    packet.shift_head(front as i32)?;
    packet.cut_to(parsed.ip + front + quote)?;
    *packet.at(0)? = links;
    rewrite::tags_and_type(
        packet,
        parsed.outer_tag,
        parsed.inner_tag,
        family == Family::V4,
    )?;
    rewrite::turn_round(packet)?;
    let (verdict, about) = match (why, family) {
        (Verdict::TtlExpired, Family::V4) => (
            Verdict::TtlExpiredTold,
            Message::plain(v4::TIME_EXCEEDED, 0),
        ),
        (Verdict::TtlExpired, Family::V6) => (
            Verdict::TtlExpiredTold,
            Message::plain(v6::TIME_EXCEEDED, 0),
        ),
        (_, family) => (
            Verdict::TooBigTold,
            Message::too_big(family, route::largest(room)),
        ),
    };
    message(packet, room, about, quote)?;
    Ok(verdict)
}

/// What a message says.
#[derive(Clone, Copy)]
pub(super) struct Message {
    kind: u8,
    code: u8,
    /// The word behind the checksum.
    rest: u32,
}

impl Message {
    /// A type and a code.
    #[inline(always)]
    pub(super) const fn plain(kind: u8, code: u8) -> Self {
        Self {
            kind,
            code,
            rest: 0,
        }
    }

    /// How large packets may be.
    #[inline(always)]
    pub(super) const fn too_big(family: Family, mtu: u32) -> Self {
        let (kind, code) = match family {
            Family::V4 => (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED),
            Family::V6 => (v6::TOO_BIG, 0),
        };
        Self {
            kind,
            code,
            rest: mtu,
        }
    }
}

/// How many bytes a message has in front of what it quotes.
#[inline(always)]
pub(super) const fn front(family: Family) -> u32 {
    let header = match family {
        Family::V4 => Ipv4Hdr::LEN,
        Family::V6 => Ipv6Hdr::LEN,
    };
    (header + size_of::<Icmp>()) as u32
}

/// How long a message may be at most.
#[inline(always)]
pub(super) const fn longest(family: Family) -> u32 {
    match family {
        Family::V4 => LONGEST_V4,
        Family::V6 => LONGEST_V6,
    }
}

/// How much is quoted of a packet from here, whose transport header is there,
/// and of which so many bytes are available: whole words, which are summed up
/// more quickly. What is in another piece of the frame cannot be summed up; the
/// least is quoted then, if it can be (RFC 792).
#[inline(always)]
pub(super) fn quote(
    packet: &mut impl Packet,
    family: Family,
    from: u32,
    transport: u32,
    available: u32,
) -> Result<u32, Verdict> {
    let most = available.min(longest(family) - front(family)) & !3;
    if packet.at::<[u8; 4]>(from.wrapping_add(most) - 4).is_ok() {
        return Ok(most);
    }
    let least = most.min(transport.wrapping_sub(from).wrapping_add(LEAST));
    packet.at::<[u8; 4]>(from.wrapping_add(least) - 4)?;
    Ok(least)
}

/// Writes the headers of a message in front of what it quotes, for which there
/// is room: to whom the parsed packet is from, from whom it is to.
#[inline(always)]
pub(super) fn message(
    packet: &mut impl Packet,
    room: &mut Room,
    about: Message,
    quote: u32,
) -> Result<(), Verdict> {
    let parsed = &room.parsed;
    let front = front(parsed.family);
    let length = size_of::<Icmp>() as u32 + quote;
    let at = parsed.ip + front - size_of::<Icmp>() as u32;
    let icmp = Icmp {
        kind: about.kind,
        code: about.code,
        check: [0, 0],
        rest: about.rest.to_be_bytes(),
    };
    room.walk = Walk {
        at: parsed.ip + front,
        end: parsed.ip + front + quote,
        sum: Sum::NOTHING
            .word([icmp.kind, icmp.code, 0, 0])
            .word(icmp.rest),
    };
    match parsed.family {
        Family::V4 => ipv4(packet, parsed, length)?,
        Family::V6 => {
            ipv6(packet, parsed, length)?;
            room.walk.sum = (room.walk.sum)
                .address(&parsed.key.src)
                .address(&parsed.key.dst)
                .word(length.to_be_bytes())
                .word([0, 0, 0, ICMPV6]);
        }
    }
    *packet.at(at)? = icmp;
    sum_up(packet, &mut room.walk);
    packet.at::<Icmp>(at)?.check = room.walk.sum.check();
    Ok(())
}

#[inline(always)]
fn ipv4(packet: &mut impl Packet, parsed: &Parsed, length: u32) -> Result<(), Verdict> {
    let total = (Ipv4Hdr::LEN as u32 + length) as u16;
    *packet.at(parsed.ip)? = Ipv4Hdr {
        vihl: 0x45,
        // Internetwork control (RFC 1812, section 4.3.2.5).
        tos: 0xc0,
        tot_len: total.to_be_bytes(),
        id: [0, 0],
        frags: [0x40, 0x00],
        ttl: TTL,
        proto: ICMP,
        check: [0, 0],
        src_addr: parsed.key.dst.low4(),
        dst_addr: parsed.key.src.low4(),
    };
    let check = checksum::full(packet.at::<[u8; 20]>(parsed.ip)?);
    packet.at::<Ipv4Hdr>(parsed.ip)?.check = check;
    Ok(())
}

#[inline(always)]
fn ipv6(packet: &mut impl Packet, parsed: &Parsed, length: u32) -> Result<(), Verdict> {
    *packet.at(parsed.ip)? = Ipv6Hdr {
        vcf: [0x60, 0, 0, 0],
        payload_len: (length as u16).to_be_bytes(),
        next_hdr: ICMPV6,
        hop_limit: TTL,
        src_addr: parsed.key.dst.octets(),
        dst_addr: parsed.key.src.octets(),
    };
    Ok(())
}

/// Sums up the rest of the walk: whole pieces, then whole words.
#[inline(always)]
fn sum_up(packet: &mut impl Packet, walk: &mut Walk) {
    let mut steps = 0;
    while steps < LONGEST_V6 / PIECE && step::<{ PIECE as usize }>(packet, walk) {
        steps += 1;
    }
    steps = 0;
    while steps < PIECE / 4 && step::<4>(packet, walk) {
        steps += 1;
    }
}

/// Adds this many bytes; whether there were as many.
#[inline(never)]
fn step<const BYTES: usize>(packet: &mut impl Packet, walk: &mut Walk) -> bool {
    let next = walk.at + BYTES as u32;
    if next > walk.end {
        return false;
    }
    let Ok(bytes) = packet.at::<[u8; BYTES]>(walk.at) else {
        return false;
    };
    let (words, _) = bytes.as_chunks::<4>();
    walk.sum = (words.iter()).fold(walk.sum, |sum, &word| sum.word(word));
    walk.at = next;
    true
}
