//! From bytes to the few facts that decide about a packet.
//!
//! Whatever cannot be read far enough to know whether it is for a service is
//! the host's and ends here with a `Pass`. Faults of a packet that may be for
//! a service are not judged here but by [`Parsed::sound`], once it is known to
//! be ours.
//!
//! The facts are written into the packet's room and read from there: to the
//! verifier they are numbers like any others, so that what follows is looked at
//! once and not once for each combination of tags and extension headers.

use lb_common::abi::{FlowKey, ICMP, ICMPV6, TCP, UDP};
use lb_common::{Address, Be16, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use crate::packet::{Ethernet, Icmp, Packet, Ports, Tcp};

pub(crate) const IPV4: [u8; 2] = [0x08, 0x00];
pub(crate) const IPV6: [u8; 2] = [0x86, 0xdd];

/// What begins a tag: IEEE 802.1Q's customer and service tags, and the number
/// that was common for the outer of two before the latter.
const TAGS: [[u8; 2]; 3] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];

/// "More fragments follow" and "do not fragment" (RFC 791, section 3.1), and
/// the place of the fragment, in the 16 bits that IPv4 has for them.
const MORE_FRAGMENTS: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;
const FRAGMENT_PLACE: u16 = 0x1fff;

/// IPv6 extension headers that do not change what a balancer does (RFC 8200,
/// section 4.3 to 4.6).
pub(crate) mod extension {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const DESTINATION: u8 = 60;
}

/// How many extension headers are looked through: each kind once, the
/// destination options twice (RFC 8200, section 4.1), and one to spare.
pub(crate) const MAX_EXTENSIONS: u32 = 6;

/// No header that is read begins further in than this.
const MAX_TRANSPORT: u32 = 255;

/// The IP version; a word, like every field of [`Parsed`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// Which part of a datagram a packet is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which has the transport header.
    First,
    /// Another fragment.
    Later,
}

/// The facts about a packet. Offsets count from the frame's beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Its two ends; ports are zero where it has none.
    pub key: FlowKey,
    /// The IP version.
    pub family: Family,
    /// Which part of a datagram.
    pub part: Part,
    /// The outer tag as it stands in the frame, or zero.
    pub outer_tag: u32,
    /// The inner tag, likewise.
    pub inner_tag: u32,
    /// Where the IP header begins.
    pub ip: u32,
    /// Where the transport header begins, or a later fragment's bytes.
    pub transport: u32,
    /// The length of the IP packet as its header has it.
    pub ip_length: u32,
    /// TTL or hop limit.
    pub ttl: u32,
    /// The byte with DSCP and ECN.
    pub traffic_class: u32,
    /// One if a router may fragment it: IPv4 without the bit that forbids it.
    pub divisible: u32,
    /// The identification, of a fragment and of any IPv4 packet.
    pub id: u32,
    /// The identification on the way out.
    pub new_id: u32,
    /// Where the identification of an IPv6 fragment stands.
    pub id_at: u32,
    /// One if it leaves with the new identification.
    pub renewed: u32,
}

impl Parsed {
    /// Whether it is ICMP or ICMPv6.
    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        self.key.protocol == u32::from(ICMP) || self.key.protocol == u32::from(ICMPV6)
    }

    /// Whether a packet for a service may be forwarded as it stands.
    ///
    /// The IP length must fit the frame (which may be padded) and hold at
    /// least the transport header, which must be in the first fragment whole
    /// (RFC 1858, RFC 7112); and a router forwards nothing whose TTL would
    /// reach 0 (RFC 1812, section 5.3.1; RFC 8200, section 3). It is asked
    /// before a connection begins, so that none begins with a packet that goes
    /// nowhere.
    #[inline(always)]
    pub fn sound(&self, frame: u64) -> Result<(), Verdict> {
        let header = if self.part == Part::Later {
            0
        } else if self.key.protocol == u32::from(TCP) {
            size_of::<Tcp>()
        } else if self.key.protocol == u32::from(UDP) {
            size_of::<UdpHdr>()
        } else {
            size_of::<Icmp>()
        };
        let least = u64::from(self.transport) + header as u64;
        let end = u64::from(self.ip) + u64::from(self.ip_length);
        if frame < least {
            Err(Verdict::ShortTransport)
        } else if end > frame || end < least {
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
pub fn parse(packet: &mut impl Packet, parsed: &mut Parsed) -> Result<(), Verdict> {
    parsed.part = Part::Whole;
    parsed.renewed = 0;
    match untag(packet, parsed)? {
        IPV4 => ipv4(packet, parsed)?,
        IPV6 => ipv6(packet, parsed)?,
        _ => return Err(Verdict::NotIp),
    }
    parsed.key.src_port = Be16::new(0);
    parsed.key.dst_port = Be16::new(0);
    if parsed.part != Part::Later && !parsed.is_icmp() {
        let ports = packet.at::<Ports>(parsed.transport)?;
        parsed.key.src_port = Be16::from_wire(ports.src);
        parsed.key.dst_port = Be16::from_wire(ports.dst);
    }
    Ok(())
}

/// Reads up to two tags; gives the type of what follows them.
#[inline(always)]
fn untag(packet: &mut impl Packet, parsed: &mut Parsed) -> Result<[u8; 2], Verdict> {
    const TYPE: u32 = size_of::<Ethernet>() as u32;
    const TAG: u32 = size_of::<[u8; 4]>() as u32;
    parsed.outer_tag = 0;
    parsed.inner_tag = 0;
    parsed.ip = TYPE + 2;
    let mut ether_type = *packet.at::<[u8; 2]>(TYPE)?;
    if is_tag(ether_type) {
        parsed.outer_tag = u32::from_ne_bytes(*packet.at(TYPE)?);
        parsed.ip += TAG;
        ether_type = *packet.at(TYPE + TAG)?;
        if is_tag(ether_type) {
            parsed.inner_tag = u32::from_ne_bytes(*packet.at(TYPE + TAG)?);
            parsed.ip += TAG;
            ether_type = *packet.at(TYPE + 2 * TAG)?;
        }
    }
    Ok(ether_type)
}

#[inline(always)]
fn is_tag(ether_type: [u8; 2]) -> bool {
    let [customer, service, old] = TAGS;
    ether_type == customer || ether_type == service || ether_type == old
}

#[inline(always)]
fn ipv4(packet: &mut impl Packet, parsed: &mut Parsed) -> Result<(), Verdict> {
    let ip = packet.at::<Ipv4Hdr>(parsed.ip)?;
    let header = u32::from(ip.ihl());
    if ip.version() != 4 || header < Ipv4Hdr::LEN as u32 {
        return Err(Verdict::BadHeader);
    }
    if ip.proto != TCP && ip.proto != UDP && ip.proto != ICMP {
        return Err(Verdict::NotTransport);
    }
    parsed.key.src = Address::v4(ip.src_addr);
    parsed.key.dst = Address::v4(ip.dst_addr);
    parsed.key.protocol = u32::from(ip.proto);
    parsed.family = Family::V4;
    parsed.transport = parsed.ip + header;
    parsed.ip_length = u32::from(u16::from_be_bytes(ip.tot_len));
    parsed.ttl = u32::from(ip.ttl);
    parsed.traffic_class = u32::from(ip.tos);
    parsed.id = u32::from(u16::from_be_bytes(ip.id));
    let fragment = u16::from_be_bytes(ip.frags);
    parsed.divisible = u32::from(fragment & DONT_FRAGMENT == 0);
    if fragment & FRAGMENT_PLACE != 0 {
        parsed.part = Part::Later;
    } else if fragment & MORE_FRAGMENTS != 0 {
        parsed.part = Part::First;
    }
    Ok(())
}

#[inline(always)]
fn ipv6(packet: &mut impl Packet, parsed: &mut Parsed) -> Result<(), Verdict> {
    let ip = packet.at::<Ipv6Hdr>(parsed.ip)?;
    if ip.version() != 6 {
        return Err(Verdict::BadHeader);
    }
    // The mapped form stands for IPv4 in our tables and for nothing on a wire
    // (RFC 4291, section 2.5.5.2). No IPv6 packet may pass for an IPv4 one, nor
    // may answers to it be routed as IPv4.
    let src = Address::v6(&ip.src_addr);
    let dst = Address::v6(&ip.dst_addr);
    if src.is_v4() || dst.is_v4() {
        return Err(Verdict::BadHeader);
    }
    parsed.key.src = src;
    parsed.key.dst = dst;
    parsed.key.protocol = u32::from(ip.next_hdr);
    parsed.family = Family::V6;
    parsed.transport = parsed.ip + Ipv6Hdr::LEN as u32;
    parsed.ip_length = Ipv6Hdr::LEN as u32 + u32::from(u16::from_be_bytes(ip.payload_len));
    parsed.ttl = u32::from(ip.hop_limit);
    parsed.traffic_class = u32::from(ip.vcf[0] << 4 | ip.vcf[1] >> 4);
    parsed.divisible = 0;
    match ip.next_hdr {
        TCP | UDP | ICMPV6 => Ok(()),
        next => extensions(packet, parsed, next),
    }
}

/// Looks through the extension headers for what they carry.
#[inline(never)]
fn extensions(packet: &mut impl Packet, parsed: &mut Parsed, first: u8) -> Result<(), Verdict> {
    let mut next = first;
    let mut at = parsed.transport;
    let mut seen = 0;
    while seen <= MAX_EXTENSIONS && at <= MAX_TRANSPORT {
        let length = match next {
            TCP | UDP | ICMPV6 => {
                parsed.key.protocol = u32::from(next);
                parsed.transport = at;
                return Ok(());
            }
            extension::HOP_BY_HOP | extension::DESTINATION => units(packet, at)?,
            extension::ROUTING => {
                let [_, _, _, segments_left] = *packet.at::<[u8; 4]>(at)?;
                if segments_left != 0 {
                    // Not at its destination yet, so no service's.
                    return Err(Verdict::NotTransport);
                }
                units(packet, at)?
            }
            extension::FRAGMENT => {
                fragment(packet, parsed, at)?;
                if parsed.part == Part::Later {
                    return later(packet, parsed, at);
                }
                8
            }
            _ => return Err(Verdict::NotTransport),
        };
        [next, _] = *packet.at(at)?;
        at += length;
        seen += 1;
    }
    Err(Verdict::ExtensionHeaders)
}

/// A later fragment: it tells what the first one begins with, which need not be
/// the transport header.
#[inline(always)]
fn later(packet: &mut impl Packet, parsed: &mut Parsed, at: u32) -> Result<(), Verdict> {
    let [next, _] = *packet.at(at)?;
    parsed.transport = at + 8;
    match next {
        TCP | UDP | ICMPV6 => parsed.key.protocol = u32::from(next),
        extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
            parsed.key.protocol = 0;
        }
        _ => return Err(Verdict::NotTransport),
    }
    Ok(())
}

/// The length of an extension header in bytes: it counts units of eight, the
/// first not among them.
#[inline(always)]
pub(crate) fn units(packet: &mut impl Packet, at: u32) -> Result<u32, Verdict> {
    let [_, further] = *packet.at::<[u8; 2]>(at)?;
    Ok((u32::from(further) + 1) * 8)
}

/// The fragment header (RFC 8200, section 4.5). One that says that the packet
/// is all there is makes no fragment (RFC 6946).
#[inline(always)]
fn fragment(packet: &mut impl Packet, parsed: &mut Parsed, at: u32) -> Result<(), Verdict> {
    const MORE: u16 = 1;
    const PLACE: u16 = !7;
    let [_, _, high, low, id @ ..] = *packet.at::<[u8; 8]>(at)?;
    if parsed.part != Part::Whole {
        return Err(Verdict::BadHeader);
    }
    let field = u16::from_be_bytes([high, low]);
    parsed.id = u32::from_be_bytes(id);
    parsed.id_at = at + 4;
    if field & PLACE != 0 {
        parsed.part = Part::Later;
    } else if field & MORE != 0 {
        parsed.part = Part::First;
    }
    Ok(())
}
