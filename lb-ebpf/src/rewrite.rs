//! From the packet that came in to the packet that goes out.
//!
//! [`nat`] writes the flow's addresses and ports, [`tunnel`] another header
//! around the packet; `dsr` needs neither. All else is the same for all of them
//! and here: the TTL, the limit to the segment size ([`mss`]), and the link
//! header with its tags.
//!
//! The frame's front is moved first where tags or an outer header take more or
//! less room than there is, because that is all that can fail: the packet is
//! dropped then as it came.

use lb_common::Verdict;
use lb_common::abi::forward;
use lb_common::checksum::TTL_DECREMENT;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use crate::packet::{Ethernet, Packet};
use crate::parse::{Family, Parsed, Part};
use crate::room::{Room, Way};
use crate::tables::Tables;

pub mod mss;
pub mod nat;
pub mod tunnel;

/// The length of a link header without tags, and of a tag.
const LINK: u32 = 14;
const TAG: u32 = 4;

/// How much of a transport header nobody has looked at before it is translated,
/// at most: that of UDP.
const TRANSLATED: usize = size_of::<UdpHdr>();

/// The types that say which IP version follows.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Makes the packet what it will be on the way that was found.
#[inline(always)]
pub fn rewrite(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<(), Verdict> {
    let mode = room.flow.forward();
    make_room(packet, mode, &mut room.parsed, &mut room.way)?;
    if !forward::one_way(mode) {
        nat::translate(packet, &room.parsed, &room.flow)?;
    }
    if room.max_mss != 0 {
        mss::limit(packet, room)?;
    }
    // The host's stack takes one off what it sends on, but not off what is in a
    // tunnel (RFC 2003, section 3.1).
    if room.way.direct != 0 || mode == forward::TUNNEL {
        decrement_ttl(packet, &room.parsed)?;
    }
    if mode == forward::TUNNEL {
        tunnel::wrap(packet, tables, room)?;
    }
    link(packet, &room.parsed, &room.way)
}

/// Moves the frame's front so that the link header, with the tags it will have,
/// and an outer header fit in front of the packet. Keeps the link header that it
/// had in front where the packet is given to the host.
#[inline(always)]
fn make_room(
    packet: &mut impl Packet,
    mode: u8,
    parsed: &mut Parsed,
    way: &mut Way,
) -> Result<(), Verdict> {
    let ip = link_length(way.outer_tag, way.inner_tag) + way.wrapping;
    if ip == parsed.ip {
        return Ok(());
    }
    shift(packet, mode, parsed, ip, way.direct != 0)
}

#[inline(always)]
fn shift(
    packet: &mut impl Packet,
    mode: u8,
    parsed: &mut Parsed,
    ip: u32,
    direct: bool,
) -> Result<(), Verdict> {
    if !forward::one_way(mode) && parsed.part != Part::Later {
        // What is translated must be there before anything moves: of a frame in
        // pieces only the first can be touched.
        (packet.at::<[u8; TRANSLATED]>(parsed.transport)).map_err(|_| Verdict::ShortTransport)?;
    }
    if direct {
        // It will have another link header.
        packet.shift_head(ip as i32 - parsed.ip as i32)?;
    } else {
        let ethernet = *packet.at::<Ethernet>(0)?;
        packet.shift_head(ip as i32 - parsed.ip as i32)?;
        *packet.at::<Ethernet>(0)? = ethernet;
    }
    let by = ip.wrapping_sub(parsed.ip);
    parsed.ip = ip;
    parsed.transport = parsed.transport.wrapping_add(by);
    parsed.id_at = parsed.id_at.wrapping_add(by);
    Ok(())
}

/// The length of a link header with these tags, where they are not zero.
#[inline(always)]
pub(crate) const fn link_length(outer: u32, inner: u32) -> u32 {
    if outer == 0 {
        LINK
    } else if inner == 0 {
        LINK + TAG
    } else {
        LINK + 2 * TAG
    }
}

/// Takes one hop off (RFC 1812, section 5.3.1; RFC 8200, section 3).
#[inline(always)]
fn decrement_ttl(packet: &mut impl Packet, parsed: &Parsed) -> Result<(), Verdict> {
    match parsed.family {
        Family::V4 => {
            let ip = packet.at::<Ipv4Hdr>(parsed.ip)?;
            ip.ttl -= 1;
            ip.check = TTL_DECREMENT.apply(ip.check);
        }
        Family::V6 => packet.at::<Ipv6Hdr>(parsed.ip)?.hop_limit -= 1,
    }
    Ok(())
}

/// Writes the link header: to the next hop, or what of it has moved.
#[inline(always)]
fn link(packet: &mut impl Packet, parsed: &Parsed, way: &Way) -> Result<(), Verdict> {
    if way.direct != 0 {
        to_next_hop(packet, way)?;
    }
    if (way.outer_tag, way.inner_tag) == (parsed.outer_tag, parsed.inner_tag) && way.wrapping == 0 {
        return Ok(());
    }
    write_type(packet, parsed, way)
}

/// Writes the tags and the type of what will follow them.
#[inline(always)]
fn write_type(packet: &mut impl Packet, parsed: &Parsed, way: &Way) -> Result<(), Verdict> {
    let is_v4 = match way.wrapping {
        0 => parsed.family == Family::V4,
        wrapping => wrapping == Ipv4Hdr::LEN as u32,
    };
    tags_and_type(packet, way.outer_tag, way.inner_tag, is_v4)
}

/// Writes these tags, where they are not zero, and the type behind them.
#[inline(always)]
pub(crate) fn tags_and_type(
    packet: &mut impl Packet,
    outer_tag: u32,
    inner_tag: u32,
    is_v4: bool,
) -> Result<(), Verdict> {
    let mut at = LINK - 2;
    if outer_tag != 0 {
        *packet.at(at)? = outer_tag.to_ne_bytes();
        at += TAG;
        if inner_tag != 0 {
            *packet.at(at)? = inner_tag.to_ne_bytes();
            at += TAG;
        }
    }
    *packet.at(at)? = if is_v4 { IPV4 } else { IPV6 };
    Ok(())
}

/// Writes the link addresses.
#[inline(always)]
pub(crate) fn to_next_hop(packet: &mut impl Packet, way: &Way) -> Result<(), Verdict> {
    let ethernet = packet.at::<Ethernet>(0)?;
    way.hop.dst_link.write(&mut ethernet.dst);
    way.hop.src_link.write(&mut ethernet.src);
    Ok(())
}

/// Sends the frame back to where it came from, by its link header.
#[inline(always)]
pub(crate) fn turn_round(packet: &mut impl Packet) -> Result<(), Verdict> {
    let ethernet = packet.at::<Ethernet>(0)?;
    (ethernet.dst, ethernet.src) = (ethernet.src, ethernet.dst);
    Ok(())
}
