//! The end of a connection whose backend is gone: a RST to whoever sends next.
//!
//! The sender of a packet expects what it has acknowledged, so a RST with that
//! for its sequence number is the one that it believes (RFC 9293, section 3.5.2;
//! RFC 5961, section 3.2). It takes the packet's place and goes back the way the
//! packet came, between the addresses that the packet had: nothing has to be
//! known of the connection.

use lb_common::Verdict;
use lb_common::abi::TCP;
use lb_common::checksum::{self, Sum};
use lb_common::flow::tcp_flag::{ACK, FIN, RST, SYN};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::packet::{Packet, Tcp};
use crate::parse::{Family, Parsed, Part};
use crate::rewrite;
use crate::room::Room;

/// The TTL of what is sent from here.
const TTL: u8 = 64;

/// A frame is no shorter than this (IEEE 802.3, section 4.2.3.3), its check
/// sequence left out.
const SHORTEST: u32 = 60;

/// The length of a TCP header without options, in words, where it stands.
const NO_OPTIONS: u8 = 5 << 4;

/// Answers the packet with a RST; a RST is answered with nothing (RFC 9293,
/// section 3.5.1).
#[inline(never)]
pub fn answer(packet: &mut impl Packet, room: &Room) -> Verdict {
    match write(packet, &room.parsed) {
        Ok(()) => Verdict::FlowReset,
        Err(_) => Verdict::FlowGone,
    }
}

#[inline(always)]
fn write(packet: &mut impl Packet, parsed: &Parsed) -> Result<(), Verdict> {
    if parsed.part == Part::Later {
        return Err(Verdict::FlowGone);
    }
    let heard = *packet.at::<Tcp>(parsed.transport)?;
    if heard.flags & RST != 0 {
        return Err(Verdict::FlowGone);
    }
    let mut tcp = Tcp {
        src: heard.dst,
        dst: heard.src,
        sequence: heard.acknowledged,
        acknowledged: [0; 4],
        data_offset: NO_OPTIONS,
        flags: RST,
        window: [0; 2],
        check: [0; 2],
        urgent: [0; 2],
    };
    if heard.flags & ACK == 0 {
        // It expects an acknowledgement of all that it has sent.
        tcp.sequence = [0; 4];
        tcp.acknowledged = after(&heard, parsed).to_be_bytes();
        tcp.flags = RST | ACK;
    }
    let header = match parsed.family {
        Family::V4 => ipv4(packet, parsed)?,
        Family::V6 => ipv6(packet, parsed)?,
    };
    tcp.check = sum(&tcp, parsed);
    let at = parsed.ip + header;
    *packet.at(at)? = tcp;
    let end = at + size_of::<Tcp>() as u32;
    packet.cut_to(if end < SHORTEST { SHORTEST } else { end })?;
    rewrite::turn_round(packet)
}

/// The sequence number behind all that the segment holds.
#[inline(always)]
fn after(heard: &Tcp, parsed: &Parsed) -> u32 {
    let header = u32::from(heard.data_offset >> 4) * 4;
    let data = (parsed.ip + parsed.ip_length).wrapping_sub(parsed.transport + header);
    u32::from_be_bytes(heard.sequence)
        .wrapping_add(if data > parsed.ip_length { 0 } else { data })
        .wrapping_add(u32::from(heard.flags & SYN != 0))
        .wrapping_add(u32::from(heard.flags & FIN != 0))
}

#[inline(always)]
fn ipv4(packet: &mut impl Packet, parsed: &Parsed) -> Result<u32, Verdict> {
    let length = (Ipv4Hdr::LEN + size_of::<Tcp>()) as u16;
    *packet.at(parsed.ip)? = Ipv4Hdr {
        vihl: 0x45,
        tos: 0,
        tot_len: length.to_be_bytes(),
        id: [0, 0],
        frags: [0x40, 0x00],
        ttl: TTL,
        proto: TCP,
        check: [0, 0],
        src_addr: parsed.key.dst.low4(),
        dst_addr: parsed.key.src.low4(),
    };
    let check = checksum::full(packet.at::<[u8; 20]>(parsed.ip)?);
    packet.at::<Ipv4Hdr>(parsed.ip)?.check = check;
    Ok(Ipv4Hdr::LEN as u32)
}

#[inline(always)]
fn ipv6(packet: &mut impl Packet, parsed: &Parsed) -> Result<u32, Verdict> {
    *packet.at(parsed.ip)? = Ipv6Hdr {
        vcf: [0x60, 0, 0, 0],
        payload_len: (size_of::<Tcp>() as u16).to_be_bytes(),
        next_hdr: TCP,
        hop_limit: TTL,
        src_addr: parsed.key.dst.octets(),
        dst_addr: parsed.key.src.octets(),
    };
    Ok(Ipv6Hdr::LEN as u32)
}

#[inline(always)]
fn sum(tcp: &Tcp, parsed: &Parsed) -> [u8; 2] {
    let both = |[a, b]: [u8; 2], [c, d]: [u8; 2]| [a, b, c, d];
    let sum = Sum::NOTHING
        .word(both(tcp.src, tcp.dst))
        .word(tcp.sequence)
        .word(tcp.acknowledged)
        .word([tcp.data_offset, tcp.flags, 0, 0])
        .word([0, TCP, 0, size_of::<Tcp>() as u8]);
    match parsed.family {
        Family::V4 => sum
            .word(parsed.key.src.low4())
            .word(parsed.key.dst.low4())
            .check(),
        Family::V6 => sum
            .address(&parsed.key.src)
            .address(&parsed.key.dst)
            .check(),
    }
}
