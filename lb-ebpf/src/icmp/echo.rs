//! The answer to a ping (RFC 792; RFC 4443, section 4.2).
//!
//! It goes back the way the question came. What is special about a question
//! (options, a length that lies, a source that nobody can have, a frame that was
//! sent to many) is left to the host, which has the address too.

use lb_common::checksum::Delta;
use lb_common::{Be16, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::{to_many, v4, v6};
use crate::guard;
use crate::packet::{Icmp, Packet};
use crate::parse::Family;
use crate::rewrite;
use crate::room::Room;
use crate::tables::{Tables, is_service_address};

/// The TTL of what is sent from here.
const TTL: u8 = 64;

#[inline(never)]
pub(super) fn answer(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &Room,
) -> Result<Verdict, Verdict> {
    let parsed = &room.parsed;
    let end = parsed.ip + parsed.ip_length;
    let plain = match parsed.family {
        Family::V4 => parsed.transport == parsed.ip + Ipv4Hdr::LEN as u32,
        Family::V6 => parsed.transport == parsed.ip + Ipv6Hdr::LEN as u32,
    };
    if !plain
        || u64::from(end) > packet.length()
        || end < parsed.transport + size_of::<Icmp>() as u32
        || to_many(packet)
        || !guard::may_send(&parsed.key.src)
        || !is_service_address(tables, parsed.key.dst)
    {
        return Err(Verdict::NotTransport);
    }
    // Exchanging the addresses changes no sum.
    let [from, to] = match parsed.family {
        Family::V4 => {
            let ip = packet.at::<Ipv4Hdr>(parsed.ip)?;
            (ip.src_addr, ip.dst_addr) = (ip.dst_addr, ip.src_addr);
            let before = Be16::from_wire([ip.ttl, 0]);
            ip.check = Delta::port(before, Be16::from_wire([TTL, 0])).apply(ip.check);
            ip.ttl = TTL;
            [v4::ECHO, v4::ECHO_REPLY]
        }
        Family::V6 => {
            let ip = packet.at::<Ipv6Hdr>(parsed.ip)?;
            (ip.src_addr, ip.dst_addr) = (ip.dst_addr, ip.src_addr);
            ip.hop_limit = TTL;
            [v6::ECHO, v6::ECHO_REPLY]
        }
    };
    let icmp = packet.at::<Icmp>(parsed.transport)?;
    icmp.kind = to;
    let delta = Delta::port(Be16::from_wire([from, 0]), Be16::from_wire([to, 0]));
    icmp.check = delta.apply(icmp.check);
    if (to, icmp.check, icmp.rest) == (v4::ECHO_REPLY, [0; 2], [0; 4]) {
        // Perhaps all of the message is zero: then its sum would be 0000, and not
        // the ffff that the receiver looks for. If not, either form will do.
        icmp.check = [0xff; 2];
    }
    rewrite::turn_round(packet)?;
    Ok(Verdict::EchoReply)
}
