//! From bytes to the few facts that decide about a packet.
//!
//! Whatever cannot be read far enough to know whether it is for a service is
//! the host's and ends here with a `Pass`. Faults of a packet that may be for
//! a service are not judged here but by [`Parsed::sound`], once it is known to
//! be ours.

use lb_common::abi::{FlowKey, TCP, UDP};
use lb_common::{Address, Be16, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use crate::packet::{Ethernet, Packet, Ports, Tcp};

/// Where the IP header begins.
pub const IP: usize = size_of::<Ethernet>();

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// "More fragments follow" (RFC 791, section 3.1).
const MORE_FRAGMENTS: u8 = 1;

/// The IP version; a word, like every field of [`Parsed`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// The facts about a packet. Whole words only: the compiler moves smaller
/// fields in pieces that the verifier finds misaligned on its stack.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Its two ends.
    pub key: FlowKey,
    /// The IP version.
    pub family: Family,
    /// Where the TCP or UDP header begins.
    pub transport: usize,
    /// The length of the IP packet as its header has it.
    pub ip_length: usize,
    /// Not zero if more fragments follow this one.
    pub fragmented: u32,
    /// TTL or hop limit.
    pub ttl: u32,
    /// The byte with DSCP and ECN.
    pub traffic_class: u32,
}

impl Parsed {
    /// Whether a packet for a service may be forwarded as it stands.
    ///
    /// The IP length must fit the frame (which may be padded) and hold at
    /// least the transport header; a fragment cannot be translated alone; and a
    /// router forwards nothing whose TTL would reach 0 (RFC 1812, section 5.3.1;
    /// RFC 8200, section 3). It is asked before a connection begins, so that
    /// none begins with a packet that goes nowhere.
    #[inline(always)]
    pub fn sound(&self, frame: usize) -> Result<(), Verdict> {
        let header = if self.key.protocol == u32::from(TCP) {
            size_of::<Tcp>()
        } else {
            size_of::<UdpHdr>()
        };
        if self.fragmented != 0 {
            Err(Verdict::FragmentOutOfOrder)
        } else if frame < self.transport + header {
            Err(Verdict::ShortTransport)
        } else if IP + self.ip_length > frame || IP + self.ip_length < self.transport + header {
            Err(Verdict::LengthMismatch)
        } else if self.ttl <= 1 {
            Err(Verdict::TtlExpired)
        } else {
            Ok(())
        }
    }
}

/// Reads the headers up to the ports.
#[inline(always)]
pub fn parse(packet: &mut impl Packet) -> Result<Parsed, Verdict> {
    match packet.at::<Ethernet>(0)?.ether_type {
        IPV4 => ipv4(packet),
        IPV6 => ipv6(packet),
        _ => Err(Verdict::NotIp),
    }
}

#[inline(always)]
fn ipv4(packet: &mut impl Packet) -> Result<Parsed, Verdict> {
    let ip = packet.at::<Ipv4Hdr>(IP)?;
    let header = usize::from(ip.ihl());
    if ip.version() != 4 || header < Ipv4Hdr::LEN {
        return Err(Verdict::BadHeader);
    }
    if ip.proto != TCP && ip.proto != UDP {
        return Err(Verdict::NotTransport);
    }
    if ip.frag_offset() != 0 {
        return Err(Verdict::LaterFragment);
    }
    let mut parsed = Parsed {
        key: FlowKey {
            src: Address::v4(ip.src_addr),
            dst: Address::v4(ip.dst_addr),
            src_port: Be16::new(0),
            dst_port: Be16::new(0),
            protocol: u32::from(ip.proto),
        },
        family: Family::V4,
        transport: IP + header,
        ip_length: usize::from(u16::from_be_bytes(ip.tot_len)),
        fragmented: u32::from(ip.frag_flags() & MORE_FRAGMENTS),
        ttl: u32::from(ip.ttl),
        traffic_class: u32::from(ip.tos),
    };
    ports(packet, &mut parsed)?;
    Ok(parsed)
}

#[inline(always)]
fn ipv6(packet: &mut impl Packet) -> Result<Parsed, Verdict> {
    let ip = packet.at::<Ipv6Hdr>(IP)?;
    if ip.version() != 6 {
        return Err(Verdict::BadHeader);
    }
    if ip.next_hdr != TCP && ip.next_hdr != UDP {
        return Err(Verdict::NotTransport);
    }
    // The mapped form stands for IPv4 in our tables and for nothing on a wire
    // (RFC 4291, section 2.5.5.2). No IPv6 packet may pass for an IPv4 one, nor
    // may answers to it be routed as IPv4.
    let src = Address::v6(&ip.src_addr);
    let dst = Address::v6(&ip.dst_addr);
    if src.is_v4() || dst.is_v4() {
        return Err(Verdict::BadHeader);
    }
    let mut parsed = Parsed {
        key: FlowKey {
            src,
            dst,
            src_port: Be16::new(0),
            dst_port: Be16::new(0),
            protocol: u32::from(ip.next_hdr),
        },
        family: Family::V6,
        transport: IP + Ipv6Hdr::LEN,
        ip_length: Ipv6Hdr::LEN + usize::from(u16::from_be_bytes(ip.payload_len)),
        fragmented: 0,
        ttl: u32::from(ip.hop_limit),
        traffic_class: u32::from(ip.vcf[0] << 4 | ip.vcf[1] >> 4),
    };
    ports(packet, &mut parsed)?;
    Ok(parsed)
}

#[inline(always)]
fn ports(packet: &mut impl Packet, parsed: &mut Parsed) -> Result<(), Verdict> {
    let ports = packet.at::<Ports>(parsed.transport)?;
    parsed.key.src_port = Be16::from_wire(ports.src);
    parsed.key.dst_port = Be16::from_wire(ports.dst);
    Ok(())
}
