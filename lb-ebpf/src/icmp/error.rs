//! An error about a packet that was balanced, carried to the end that sent it.

use lb_common::abi::{Flow, TCP, UDP, forward, role};
use lb_common::checksum::Delta;
use lb_common::{Address, Be16, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use crate::guard;
use crate::packet::{Icmp, Packet, Ports, Tcp};
use crate::parse::{self, Family, Parsed, extension};
use crate::rewrite::nat;
use crate::room::{Quoted, Room};
use crate::tables::{Tables, endpoint};

#[inline(never)]
pub(super) fn carry(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<Verdict, Verdict> {
    read(packet, &room.parsed, &mut room.quoted)?;
    find(tables, room)?;
    room.parsed.sound(packet.length()).map_err(untold)?;
    address(room);
    room.max_mss = 0;
    let verdict = super::route(packet, tables, room).map_err(untold)?;
    if !room.flow.one_way() {
        translate(packet, room)?;
    }
    super::rewrite(packet, tables, room)?;
    Ok(verdict)
}

/// Nobody is told of an error about an error (RFC 1122, section 3.2.2; RFC
/// 4443, section 2.4): its end is the same, by a verdict that asks for none.
pub(super) fn untold(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::TtlExpired => Verdict::IcmpErrorExpired,
        Verdict::TooBig => Verdict::IcmpErrorTooBig,
        other => other,
    }
}

/// Reads the ends of the quoted packet, and turns them round: the key of its
/// answers. A quoted packet that is none of TCP or UDP, or whose ports are not
/// in it, is nothing that was balanced; what stands behind the end of the error
/// is not quoted. And nobody believes an error that has no sender.
#[inline(never)]
fn read(packet: &mut impl Packet, parsed: &Parsed, quoted: &mut Quoted) -> Result<(), Verdict> {
    const FRAGMENT_PLACE: u16 = 0x1fff;
    quoted.ip = parsed.transport + size_of::<Icmp>() as u32;
    match parsed.family {
        Family::V4 => {
            let ip = packet.at::<Ipv4Hdr>(quoted.ip).map_err(foreign)?;
            let header = u32::from(ip.ihl());
            let place = u16::from_be_bytes(ip.frags) & FRAGMENT_PLACE;
            if ip.version() != 4 || header < Ipv4Hdr::LEN as u32 || place != 0 {
                return Err(Verdict::NotTransport);
            }
            quoted.answers.src = Address::v4(ip.dst_addr);
            quoted.answers.dst = Address::v4(ip.src_addr);
            quoted.answers.protocol = u32::from(ip.proto);
            quoted.transport = quoted.ip + header;
        }
        Family::V6 => {
            let ip = packet.at::<Ipv6Hdr>(quoted.ip).map_err(foreign)?;
            if ip.version() != 6 {
                return Err(Verdict::NotTransport);
            }
            let next = ip.next_hdr;
            quoted.answers.src = Address::v6(&ip.dst_addr);
            quoted.answers.dst = Address::v6(&ip.src_addr);
            if quoted.answers.src.is_v4() || quoted.answers.dst.is_v4() {
                return Err(Verdict::NotTransport);
            }
            behind_v6(packet, quoted, next).map_err(foreign)?;
        }
    }
    let protocol = quoted.answers.protocol;
    let to_sender = quoted.answers.dst == parsed.key.dst;
    if !to_sender
        || (protocol != u32::from(TCP) && protocol != u32::from(UDP))
        || !quotes_ports(parsed, quoted)
        || !guard::may_send(&parsed.key.src)
    {
        return Err(Verdict::NotTransport);
    }
    let ports = packet.at::<Ports>(quoted.transport).map_err(foreign)?;
    quoted.answers.src_port = Be16::from_wire(ports.dst);
    quoted.answers.dst_port = Be16::from_wire(ports.src);
    Ok(())
}

/// What follows a quoted IPv6 header: the transport header, behind as many
/// extension headers as are looked through in a packet that is balanced. One of
/// them may say that this is a first fragment: it is fragments that are too big
/// where long datagrams are.
#[inline(never)]
pub(super) fn behind_v6(
    packet: &mut impl Packet,
    quoted: &mut Quoted,
    first: u8,
) -> Result<(), Verdict> {
    const PLACE: u16 = !7;
    let mut next = first;
    let mut at = quoted.ip + Ipv6Hdr::LEN as u32;
    let mut seen = 0;
    while seen <= parse::MAX_EXTENSIONS {
        let length = match next {
            TCP | UDP => {
                quoted.answers.protocol = u32::from(next);
                quoted.transport = at;
                return Ok(());
            }
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                parse::units(packet, at)?
            }
            extension::FRAGMENT => {
                let [_, _, high, low] = *packet.at::<[u8; 4]>(at)?;
                if u16::from_be_bytes([high, low]) & PLACE != 0 {
                    return Err(Verdict::NotTransport);
                }
                8
            }
            _ => return Err(Verdict::NotTransport),
        };
        [next, _] = *packet.at(at)?;
        at += length;
        seen += 1;
    }
    Err(Verdict::NotTransport)
}

/// Whether the quoted ports are in the packet: what looks like them may be
/// padding behind it, which its checksum does not cover.
#[inline(always)]
pub(super) fn quotes_ports(parsed: &Parsed, quoted: &Quoted) -> bool {
    quoted.transport + size_of::<Ports>() as u32 <= parsed.ip + parsed.ip_length
}

fn foreign(_: Verdict) -> Verdict {
    Verdict::NotTransport
}

/// Finds the flow of the packets that answer the quoted one.
#[inline(never)]
fn find(tables: &impl Tables, room: &mut Room) -> Result<(), Verdict> {
    let Room {
        quoted,
        flow,
        whose,
        ..
    } = room;
    let key = &quoted.answers;
    if super::of_client(tables, key, flow) || super::of_backend(tables, key, flow) {
        whose.flow(flow);
        return Ok(());
    }
    let sender = endpoint(key.dst, key.dst_port, key.protocol as u16);
    match tables.party(&sender) {
        Some(party) if party.roles & role::SERVICE != 0 => Err(Verdict::IcmpErrorNoFlow),
        _ => Err(Verdict::NotTransport),
    }
}

/// Makes the flow of the error of the flow of the packets: to the same end,
/// without ports. Where the other end knows nobody but the service, the error
/// comes from the service too.
#[inline(never)]
fn address(room: &mut Room) {
    let Room {
        parsed,
        flow,
        quoted,
        ..
    } = room;
    quoted.packet = *flow;
    flow.src_port = Be16::new(0);
    flow.dst_port = Be16::new(0);
    if flow.one_way() {
        // It goes where the packets go, as it is.
        return;
    }
    if !flow.is_reply() && flow.forward() != forward::FULL_NAT {
        flow.src = parsed.key.src;
    }
    let src = Delta::address(&parsed.key.src, &flow.src);
    let dst = Delta::address(&parsed.key.dst, &flow.dst);
    flow.ip_delta = src.and(dst).0;
}

/// Translates what is quoted into what its sender had sent, and the checksum of
/// the error with it. The addresses outside are translated like any packet's.
#[inline(never)]
fn translate(packet: &mut impl Packet, room: &Room) -> Result<(), Verdict> {
    let Room {
        parsed,
        flow,
        quoted,
        ..
    } = room;
    let transport = if quoted.answers.protocol == u32::from(UDP) {
        size_of::<UdpHdr>()
    } else {
        size_of::<Tcp>()
    };
    let end = quoted.transport + transport as u32;
    let summed = end <= parsed.ip + parsed.ip_length;
    if summed {
        // It must be there before anything is written: of a frame in pieces
        // only the first can be touched.
        packet.at::<[u8; 2]>(end - 2)?;
    }
    let mut change = Delta(0);
    match parsed.family {
        Family::V4 => {
            let ip = packet.at::<Ipv4Hdr>(quoted.ip)?;
            ip.src_addr = quoted.packet.dst.low4();
            ip.dst_addr = quoted.packet.src.low4();
            change = change.and(Delta(quoted.packet.ip_delta));
            let before = ip.check;
            ip.check = Delta(quoted.packet.ip_delta).apply(before);
            change = change.and(exchange(before, ip.check));
        }
        Family::V6 => {
            let ip = packet.at::<Ipv6Hdr>(quoted.ip)?;
            ip.src_addr = quoted.packet.dst.octets();
            ip.dst_addr = quoted.packet.src.octets();
            change = change.and(Delta(quoted.packet.ip_delta));
            // The pseudo-header of ICMPv6 has the addresses outside.
            change = change.and(Delta(flow.ip_delta));
        }
    }
    change = change.and(ports(packet, quoted, summed)?);
    let icmp = packet.at::<Icmp>(parsed.transport)?;
    icmp.check = change.apply(icmp.check);
    Ok(())
}

/// Translates the quoted ports, and the checksum if that much is quoted.
#[inline(always)]
fn ports(packet: &mut impl Packet, quoted: &Quoted, summed: bool) -> Result<Delta, Verdict> {
    let Flow {
        src_port, dst_port, ..
    } = quoted.packet;
    let ports = packet.at::<Ports>(quoted.transport)?;
    let mut change = exchange(ports.src, dst_port.to_wire());
    change = change.and(exchange(ports.dst, src_port.to_wire()));
    ports.src = dst_port.to_wire();
    ports.dst = src_port.to_wire();
    if !summed {
        return Ok(change);
    }
    let delta = Delta(quoted.packet.transport_delta);
    let [before, now] = if quoted.answers.protocol == u32::from(UDP) {
        let udp = packet.at::<UdpHdr>(quoted.transport)?;
        let before = udp.check;
        udp.check = nat::udp_checksum(before, delta);
        [before, udp.check]
    } else {
        let tcp = packet.at::<Tcp>(quoted.transport)?;
        let before = tcp.check;
        tcp.check = delta.apply(before);
        [before, tcp.check]
    };
    Ok(change.and(exchange(before, now)))
}

#[inline(always)]
fn exchange(from: [u8; 2], to: [u8; 2]) -> Delta {
    Delta::port(Be16::from_wire(from), Be16::from_wire(to))
}
