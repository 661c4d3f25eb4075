//! Addresses and ports, of both NAT modes and in both directions.
//!
//! Checksums are updated by the flow's deltas, which were computed when the
//! flow began (`lb_common::checksum`): the cost is the same for both families.
//! A later fragment has neither ports nor a checksum of its own: the datagram's
//! is in the first one, and covers all of it.

use lb_common::abi::{Flow, TCP, UDP};
use lb_common::checksum::Delta;
use lb_common::{Be16, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use crate::packet::{Packet, Tcp};
use crate::parse::{Family, Parsed, Part};

/// Writes the flow's addresses and ports into the packet.
#[inline(always)]
pub fn translate(packet: &mut impl Packet, parsed: &Parsed, flow: &Flow) -> Result<(), Verdict> {
    if parsed.part != Part::Later {
        transport(packet, parsed, flow).map_err(|_| Verdict::ShortTransport)?;
    }
    match parsed.family {
        Family::V4 => ipv4(packet, parsed, flow),
        Family::V6 => ipv6(packet, parsed, flow),
    }
}

#[inline(always)]
fn transport(packet: &mut impl Packet, parsed: &Parsed, flow: &Flow) -> Result<(), Verdict> {
    let delta = Delta(flow.transport_delta);
    if parsed.key.protocol == u32::from(TCP) {
        let tcp = packet.at::<Tcp>(parsed.transport)?;
        tcp.src = flow.src_port.to_wire();
        tcp.dst = flow.dst_port.to_wire();
        tcp.check = delta.apply(tcp.check);
    } else if parsed.key.protocol == u32::from(UDP) {
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
pub(crate) fn udp_checksum(check: [u8; 2], delta: Delta) -> [u8; 2] {
    if check == [0, 0] {
        return check;
    }
    match delta.apply(check) {
        [0, 0] => [0xff, 0xff],
        updated => updated,
    }
}

#[inline(always)]
fn ipv4(packet: &mut impl Packet, parsed: &Parsed, flow: &Flow) -> Result<(), Verdict> {
    let ip = packet.at::<Ipv4Hdr>(parsed.ip)?;
    ip.src_addr = flow.src.low4();
    ip.dst_addr = flow.dst.low4();
    let mut delta = Delta(flow.ip_delta);
    if parsed.renewed != 0 {
        let new_id = Be16::new(parsed.new_id as u16);
        delta = delta.and(Delta::port(Be16::from_wire(ip.id), new_id));
        ip.id = new_id.to_wire();
    }
    ip.check = delta.apply(ip.check);
    Ok(())
}

#[inline(always)]
fn ipv6(packet: &mut impl Packet, parsed: &Parsed, flow: &Flow) -> Result<(), Verdict> {
    let ip = packet.at::<Ipv6Hdr>(parsed.ip)?;
    flow.src.write(&mut ip.src_addr);
    flow.dst.write(&mut ip.dst_addr);
    if parsed.renewed != 0 {
        *packet.at(parsed.id_at)? = parsed.new_id.to_be_bytes();
    }
    Ok(())
}
