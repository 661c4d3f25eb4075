//! An error about the outer header of a packet that was wrapped here.
//!
//! A router between balancer and backend knows only the tunnel, and tells the
//! tunnel's source. That it is told here takes `tunnel_sources` that are routed
//! to the balancer; the prefixes that nobody has are told nothing. The client's
//! packet is quoted inside of the outer one, so the client is told in the
//! tunnel's stead (RFC 2003, section 4; RFC 2473, section 8): by how much its
//! packets are too big, or that the backend cannot be reached.

use lb_common::abi::{ICMP, ICMPV6, TCP, UDP, forward};
use lb_common::{Address, Be16, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::tell::{self, Message};
use super::{error, v4, v6};
use crate::guard;
use crate::packet::{Ethernet, Icmp, Packet, Ports};
use crate::parse::{Family, Parsed};
use crate::rewrite::{self, tunnel};
use crate::room::{Quoted, Room};
use crate::route;
use crate::tables::Tables;

/// The codes that say that a host cannot be reached (RFC 792; RFC 4443, section
/// 3.1: "address unreachable").
const HOST_UNREACHABLE: u8 = 1;
const ADDRESS_UNREACHABLE: u8 = 3;

/// "Fragment place", of the 16 bits that IPv4 has for fragments.
const FRAGMENT_PLACE: u16 = 0x1fff;

/// Tells the client, if the error is about its packet in a tunnel.
#[inline(never)]
pub(super) fn carry(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<Verdict, Verdict> {
    let wrapping = read(packet, tables, room).map_err(foreign)?;
    find(tables, room)?;
    room.parsed.sound(packet.length()).map_err(error::untold)?;
    let mtu = mtu(packet, &room.parsed)?;
    let available = room.parsed.ip + room.parsed.ip_length - room.quoted.ip;
    assume(room);
    let verdict = super::route(packet, tables, room).map_err(error::untold)?;
    room.query.mtu = mtu;
    room.way.wrapping = wrapping;
    write(packet, room, mtu != 0, available)?;
    Ok(verdict)
}

fn foreign(_: Verdict) -> Verdict {
    Verdict::NotTransport
}

/// Reads the quoted outer header and the ends of the packet inside; gives the
/// length of the former. What is quoted too short to tell whose it is, is about
/// nothing of ours.
#[inline(never)]
fn read(packet: &mut impl Packet, tables: &impl Tables, room: &mut Room) -> Result<u32, Verdict> {
    let Room { parsed, quoted, .. } = room;
    let outer = parsed.transport + size_of::<Icmp>() as u32;
    let (src, inside, wrapping) = match parsed.family {
        Family::V4 => {
            let ip = packet.at::<Ipv4Hdr>(outer)?;
            if ip.vihl != 0x45 || u16::from_be_bytes(ip.frags) & FRAGMENT_PLACE != 0 {
                return Err(Verdict::NotTransport);
            }
            quoted.packet.dst = Address::v4(ip.dst_addr);
            (Address::v4(ip.src_addr), ip.proto, Ipv4Hdr::LEN as u32)
        }
        Family::V6 => {
            let ip = packet.at::<Ipv6Hdr>(outer)?;
            quoted.packet.dst = Address::v6(&ip.dst_addr);
            (Address::v6(&ip.src_addr), ip.next_hdr, Ipv6Hdr::LEN as u32)
        }
    };
    if src != parsed.key.dst
        || !tunnel::is_source(tables, &src)
        || !guard::may_send(&parsed.key.src)
    {
        return Err(Verdict::NotTransport);
    }
    quoted.ip = outer + wrapping;
    match inside {
        tunnel::IPV4_INSIDE => inside_v4(packet, quoted)?,
        tunnel::IPV6_INSIDE => inside_v6(packet, quoted)?,
        _ => return Err(Verdict::NotTransport),
    }
    let protocol = quoted.answers.protocol;
    let ours = protocol == u32::from(TCP) || protocol == u32::from(UDP);
    if !ours || !error::quotes_ports(parsed, quoted) {
        return Err(Verdict::NotTransport);
    }
    let ports = packet.at::<Ports>(quoted.transport)?;
    quoted.answers.src_port = Be16::from_wire(ports.src);
    quoted.answers.dst_port = Be16::from_wire(ports.dst);
    Ok(wrapping)
}

#[inline(always)]
fn inside_v4(packet: &mut impl Packet, quoted: &mut Quoted) -> Result<(), Verdict> {
    let ip = packet.at::<Ipv4Hdr>(quoted.ip)?;
    let header = u32::from(ip.ihl());
    let place = u16::from_be_bytes(ip.frags) & FRAGMENT_PLACE;
    if ip.version() != 4 || header < Ipv4Hdr::LEN as u32 || place != 0 {
        return Err(Verdict::NotTransport);
    }
    quoted.answers.src = Address::v4(ip.src_addr);
    quoted.answers.dst = Address::v4(ip.dst_addr);
    quoted.answers.protocol = u32::from(ip.proto);
    quoted.transport = quoted.ip + header;
    Ok(())
}

#[inline(always)]
fn inside_v6(packet: &mut impl Packet, quoted: &mut Quoted) -> Result<(), Verdict> {
    let ip = packet.at::<Ipv6Hdr>(quoted.ip)?;
    if ip.version() != 6 {
        return Err(Verdict::NotTransport);
    }
    quoted.answers.src = Address::v6(&ip.src_addr);
    quoted.answers.dst = Address::v6(&ip.dst_addr);
    let next = ip.next_hdr;
    if quoted.answers.src.is_v4() || quoted.answers.dst.is_v4() {
        return Err(Verdict::NotTransport);
    }
    error::behind_v6(packet, quoted, next)
}

/// Finds the flow of the packet inside, which must be wrapped for the quoted
/// destination.
#[inline(never)]
fn find(tables: &impl Tables, room: &mut Room) -> Result<(), Verdict> {
    let Room {
        quoted,
        flow,
        whose,
        ..
    } = room;
    if !super::of_client(tables, &quoted.answers, flow)
        || flow.forward() != forward::TUNNEL
        || flow.dst != quoted.packet.dst
    {
        return Err(Verdict::NotTransport);
    }
    whose.flow(flow);
    Ok(())
}

/// The MTU that the error tells, or zero if it tells of something else.
#[inline(always)]
fn mtu(packet: &mut impl Packet, parsed: &Parsed) -> Result<u32, Verdict> {
    let icmp = packet.at::<Icmp>(parsed.transport)?;
    let told = match parsed.family {
        Family::V4 if (icmp.kind, icmp.code) == (v4::UNREACHABLE, v4::FRAGMENTATION_NEEDED) => {
            // The first half is unused (RFC 1191, section 4).
            let [_, _, high, low] = icmp.rest;
            u32::from(u16::from_be_bytes([high, low]))
        }
        Family::V6 if icmp.kind == v6::TOO_BIG => u32::from_be_bytes(icmp.rest),
        Family::V4 | Family::V6 => return Ok(0),
    };
    // Whoever tells of none, or of more than any packet has, means the least.
    Ok(told.clamp(1, 0xffff))
}

/// Takes the packet inside for the one that came: the message is about it, from
/// the service to the client.
#[inline(never)]
fn assume(room: &mut Room) {
    let Room {
        parsed,
        flow,
        quoted,
        ..
    } = room;
    parsed.key = quoted.answers;
    parsed.key.src_port = Be16::new(0);
    parsed.key.dst_port = Be16::new(0);
    let (family, protocol) = if parsed.key.src.is_v4() {
        (Family::V4, ICMP)
    } else {
        (Family::V6, ICMPV6)
    };
    parsed.family = family;
    parsed.key.protocol = u32::from(protocol);
    parsed.traffic_class = 0;
    parsed.divisible = 0;
    // It is not longer than that, which every link carries.
    parsed.ip_length = tell::longest(family);
    flow.src = quoted.answers.dst;
    flow.dst = quoted.answers.src;
    flow.src_port = Be16::new(0);
    flow.dst_port = Be16::new(0);
    flow.kind = u16::from(forward::NAT) | lb_common::abi::Flow::REPLY;
}

/// Puts the message in place of the error.
#[inline(never)]
fn write(
    packet: &mut impl Packet,
    room: &mut Room,
    too_big: bool,
    available: u32,
) -> Result<(), Verdict> {
    let front = tell::front(room.parsed.family);
    let ip = rewrite::link_length(room.way.outer_tag, room.way.inner_tag);
    let Quoted {
        ip: from,
        transport,
        ..
    } = room.quoted;
    let quote = tell::quote(packet, room.parsed.family, from, transport, available)?;
    let ethernet = *packet.at::<Ethernet>(0)?;
    packet.shift_head((ip + front) as i32 - room.quoted.ip as i32)?;
    *packet.at(0)? = ethernet;
    room.parsed.ip = ip;
    packet.cut_to(ip + front + quote)?;
    let family = room.parsed.family;
    rewrite::tags_and_type(
        packet,
        room.way.outer_tag,
        room.way.inner_tag,
        family == Family::V4,
    )?;
    if room.way.direct != 0 {
        rewrite::to_next_hop(packet, &room.way)?;
    }
    let message = match (family, too_big) {
        (_, true) => Message::too_big(family, route::largest(room)),
        (Family::V4, false) => Message::plain(v4::UNREACHABLE, HOST_UNREACHABLE),
        (Family::V6, false) => Message::plain(v6::UNREACHABLE, ADDRESS_UNREACHABLE),
    };
    tell::message(packet, room, message, quote)
}
