//! The way out, as the host's own routing table has it.
//!
//! Out of the interface it came in on is a transmit, out of another one a
//! redirect. Where the next hop's link address is not known yet, the destination
//! is this host, or the packet must be fragmented, it is made ready and given to
//! the host's stack, which resolves, delivers or fragments: nothing is lost
//! silently. Not so with `dsr`: its packets are for an address of this host, and
//! would go no further.
//!
//! What the routing table calls an interface may be a VLAN, or a bond, while
//! frames come and go by the card below: two tables tell the one from the other
//! (`INTERFACES`, `EXITS`). A frame with a tag for which the host has no
//! interface counts as the card's own, and keeps its tag if it leaves by the same
//! card.

use lb_common::abi::{Tagged, forward};
use lb_common::{Action, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::fragments;
use crate::hops;
use crate::packet::Packet;
use crate::parse::{Family, Parsed};
use crate::rewrite::tunnel;
use crate::room::{Room, Way};
use crate::tables::Tables;

/// The bits of a tag that are not its number: priority, and "may be dropped"
/// (IEEE 802.1Q, section 9.6).
const TAG_NUMBER: u32 = u32::from_ne_bytes([0xff, 0xff, 0x0f, 0xff]);

/// The bits of a tag that number the VLAN.
const VLAN_NUMBER: u32 = u32::from_ne_bytes([0, 0, 0x0f, 0xff]);

/// Every link carries IPv6 packets of this length (RFC 8200, section 5).
const LEAST_V6: u32 = 1280;

/// How a packet ends that goes the way that was found.
#[derive(Clone, Copy)]
struct Ends {
    transmit: Verdict,
    redirect: Verdict,
}

/// Finds the way for a packet that will leave as the flow has it.
#[inline(always)]
pub fn route(
    packet: &impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<Verdict, Verdict> {
    let ends = if room.parsed.is_icmp() {
        Ends {
            transmit: Verdict::IcmpErrorTx,
            redirect: Verdict::IcmpErrorRedirect,
        }
    } else if room.flow.is_reply() {
        Ends {
            transmit: Verdict::ReplyTx,
            redirect: Verdict::ReplyRedirect,
        }
    } else {
        Ends {
            transmit: Verdict::ForwardTx,
            redirect: Verdict::ForwardRedirect,
        }
    };
    start(packet, tables, room);
    if !is_known(room) {
        match ask(tables, room) {
            Ok(()) => {}
            // Made ready for the host's stack.
            Err(verdict) if verdict.action() == Action::Pass => return Ok(verdict),
            Err(verdict) => return Err(verdict),
        }
    }
    leave(packet, tables, room, ends)
}

/// Whether the next hop that the flow knew is this packet's.
#[inline(always)]
const fn is_known(room: &Room) -> bool {
    let Room { query, way, .. } = room;
    room.known != 0 && way.ingress == query.ingress && query.length <= way.mtu
}

/// Asks the routing table for the next hop, or for why there is none.
#[inline(always)]
fn ask(tables: &impl Tables, room: &mut Room) -> Result<(), Verdict> {
    let mode = room.flow.forward();
    put(room);
    match tables.next_hop(&mut room.query, &mut room.way.hop) {
        Ok(()) if mode == forward::DSR && room.way.hop.router != 0 => Err(Verdict::NotOnLink),
        Ok(()) => {
            hops::remember(tables, room);
            Ok(())
        }
        Err(Verdict::NeighbourPending) if mode == forward::DSR => Err(Verdict::NeighbourUnknown),
        Err(Verdict::LocalDestination) if mode == forward::DSR => Err(Verdict::NoRoute),
        Err(Verdict::TooBig) if mode != forward::DSR && divisible(room) => {
            fragments::renew(tables, room);
            Err(Verdict::FragmentedByHost)
        }
        Err(verdict) => Err(verdict),
    }
}

/// Whether the host's stack cuts the packet up where it does not fit: in IPv4
/// what may be so, in IPv6 nothing that is under way (RFC 8200, section 4.5). An
/// IPv6 packet that every link has to carry is not refused but carried in pieces
/// of the IPv4 packet around it (RFC 4213, section 3.2.1).
#[inline(always)]
fn divisible(room: &mut Room) -> bool {
    let Room {
        parsed, query, way, ..
    } = room;
    if !query.dst.is_v4() || query.length > u32::from(u16::MAX) {
        return false;
    }
    if way.wrapping != 0 && parsed.family == Family::V6 && parsed.ip_length <= LEAST_V6 {
        parsed.divisible = 1;
    }
    parsed.divisible != 0
}

/// What is known of the packet that will leave before its way is.
#[inline(always)]
fn start(packet: &impl Packet, tables: &impl Tables, room: &mut Room) {
    let Room {
        parsed,
        flow,
        query,
        way,
        ..
    } = room;
    way.direct = 0;
    way.wrapping = 0;
    query.ingress = interface(packet, tables, parsed, way);
    query.length = parsed.ip_length;
    if flow.forward() == forward::TUNNEL {
        tunnel::outer_ends(tables, parsed, flow, query);
        way.wrapping = if query.dst.is_v4() {
            Ipv4Hdr::LEN as u32
        } else {
            Ipv6Hdr::LEN as u32
        };
        query.length += way.wrapping;
    }
}

/// The question to the routing table: about the outer header, if there will be
/// one.
#[inline(always)]
fn put(room: &mut Room) {
    let Room {
        parsed,
        flow,
        query,
        ..
    } = room;
    query.traffic_class = parsed.traffic_class;
    if flow.forward() == forward::TUNNEL {
        return;
    }
    query.src = flow.src;
    query.dst = flow.dst;
    query.src_port = flow.src_port;
    query.dst_port = flow.dst_port;
    query.protocol = parsed.key.protocol;
}

/// The host's interface that the packet came in by; and into the way the tags
/// with which its stack takes it. A frame whose tags are of no interface counts
/// as the device's own, which has none.
#[inline(always)]
fn interface(packet: &impl Packet, tables: &impl Tables, parsed: &Parsed, way: &mut Way) -> u32 {
    let device = packet.ingress();
    way.outer_tag = parsed.outer_tag;
    way.inner_tag = parsed.inner_tag;
    if parsed.outer_tag == 0 && tables.settings().members == 0 {
        return device;
    }
    let mut frames = Tagged {
        device,
        outer: parsed.outer_tag & TAG_NUMBER,
        inner: parsed.inner_tag & TAG_NUMBER,
        zero: 0,
    };
    if parsed.outer_tag & VLAN_NUMBER == 0 {
        // A priority and no VLAN (IEEE 802.1Q, table 9-2).
        frames.outer = frames.inner;
        frames.inner = 0;
    }
    tables.interface(&frames).unwrap_or_else(|| {
        way.outer_tag = 0;
        way.inner_tag = 0;
        device
    })
}

/// Chooses the device, and the tags with which it sends for the interface.
#[inline(always)]
fn leave(
    packet: &impl Packet,
    tables: &impl Tables,
    room: &mut Room,
    ends: Ends,
) -> Result<Verdict, Verdict> {
    let Room {
        parsed, query, way, ..
    } = room;
    let device = packet.ingress();
    way.direct = 1;
    if way.hop.egress == query.ingress {
        way.outer_tag = parsed.outer_tag;
        way.inner_tag = parsed.inner_tag;
        return Ok(ends.transmit);
    }
    way.outer_tag = 0;
    way.inner_tag = 0;
    if way.hop.egress == device {
        Ok(ends.transmit)
    } else if tables.redirect(way.hop.egress) {
        Ok(ends.redirect)
    } else {
        by_another(tables, way, device, ends)
    }
}

/// Out of the device that sends for the interface.
#[inline(never)]
fn by_another(
    tables: &impl Tables,
    way: &mut Way,
    device: u32,
    ends: Ends,
) -> Result<Verdict, Verdict> {
    let exit = tables
        .exit(way.hop.egress)
        .ok_or(Verdict::EgressNotAttached)?;
    way.outer_tag = exit.outer;
    way.inner_tag = exit.inner;
    if exit.device == device {
        Ok(ends.transmit)
    } else if tables.redirect(exit.device) {
        Ok(ends.redirect)
    } else {
        Err(Verdict::EgressNotAttached)
    }
}

/// How long a packet that came in like this may be to fit through the way that
/// was asked for.
#[inline(always)]
pub fn largest(room: &Room) -> u32 {
    let least = match room.parsed.family {
        Family::V4 => 68,
        Family::V6 => LEAST_V6,
    };
    let room_inside = room.query.mtu.wrapping_sub(room.way.wrapping);
    if room_inside < least || room_inside > room.query.mtu {
        least
    } else {
        room_inside
    }
}
