//! From the packet that came in to the packet that goes out.
//!
//! Checksums are updated by the flow's deltas, which were computed when the
//! flow began (`lb_common::checksum`): the cost is the same for both families.
//! The order is one in which nothing can fail half-way: the transport header,
//! whose end is checked last, is written first.

use lb_common::Verdict;
use lb_common::abi::{Flow, TCP};
use lb_common::checksum::{Delta, TTL_DECREMENT};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use crate::packet::{Ethernet, Packet, Tcp};
use crate::parse::{Family, IP, Parsed};
use crate::route::Way;

/// Writes the flow's addresses and ports into the packet and sends it on its
/// way: both NAT modes, both directions.
#[inline(always)]
pub fn translate(
    packet: &mut impl Packet,
    parsed: &Parsed,
    flow: &Flow,
    way: &Way,
) -> Result<(), Verdict> {
    transport(packet, parsed, flow).map_err(|_| Verdict::ShortTransport)?;
    let decrement = way.hop.is_some();
    match parsed.family {
        Family::V4 => ipv4(packet, flow, decrement)?,
        Family::V6 => ipv6(packet, flow, decrement)?,
    }
    if let Some(hop) = way.hop {
        let ethernet = packet.at::<Ethernet>(0)?;
        ethernet.dst = hop.dst_link.octets();
        ethernet.src = hop.src_link.octets();
    }
    Ok(())
}

#[inline(always)]
fn transport(packet: &mut impl Packet, parsed: &Parsed, flow: &Flow) -> Result<(), Verdict> {
    let delta = Delta(flow.transport_delta);
    if parsed.key.protocol == u32::from(TCP) {
        let tcp = packet.at::<Tcp>(parsed.transport)?;
        tcp.src = flow.src_port.to_wire();
        tcp.dst = flow.dst_port.to_wire();
        tcp.check = delta.apply(tcp.check);
    } else {
        let udp = packet.at::<UdpHdr>(parsed.transport)?;
        udp.src = flow.src_port.to_wire();
        udp.dst = flow.dst_port.to_wire();
        udp.check = udp_checksum(udp.check, delta);
    }
    Ok(())
}

/// UDP's 0 means "none" and stays; a sum that comes out as 0 is sent as its
/// other form, 0xffff (RFC 768).
#[inline(always)]
fn udp_checksum(check: [u8; 2], delta: Delta) -> [u8; 2] {
    if check == [0, 0] {
        return check;
    }
    match delta.apply(check) {
        [0, 0] => [0xff, 0xff],
        updated => updated,
    }
}

#[inline(always)]
fn ipv4(packet: &mut impl Packet, flow: &Flow, decrement: bool) -> Result<(), Verdict> {
    let ip = packet.at::<Ipv4Hdr>(IP)?;
    ip.src_addr = flow.src.low4();
    ip.dst_addr = flow.dst.low4();
    let mut delta = Delta(flow.ip_delta);
    if decrement {
        ip.ttl -= 1;
        delta = delta.and(TTL_DECREMENT);
    }
    ip.check = delta.apply(ip.check);
    Ok(())
}

#[inline(always)]
fn ipv6(packet: &mut impl Packet, flow: &Flow, decrement: bool) -> Result<(), Verdict> {
    let ip = packet.at::<Ipv6Hdr>(IP)?;
    ip.src_addr = flow.src.octets();
    ip.dst_addr = flow.dst.octets();
    if decrement {
        ip.hop_limit -= 1;
    }
    Ok(())
}
