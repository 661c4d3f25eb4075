//! What a node of a pair does with packets while it is not the active one: it is
//! silent for the addresses that the other node has, and otherwise a host like any
//! other.
//!
//! A node that has given up its role in good order has not got the addresses any more,
//! and nothing of this would be needed. But one whose daemon was killed, or is frozen,
//! still has them on its interfaces when its lease is over, and the host's own stack
//! would answer for them: to ARP requests and neighbour solicitations with its link
//! address, to segments of connections that it does not know with a RST, which ends
//! them. So what is for those addresses is dropped, whatever it is. Packets from
//! backends of connections that the other node goes on with are dropped as well: in
//! `nat` mode they are to the clients, and would leave here untranslated.

use lb_common::abi::{ICMPV6, sieve};
use lb_common::{Address, Verdict};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::connections;
use crate::packet::{Arp, Icmp, Packet, Solicitation};
use crate::parse::{self, IPV4, IPV6, Part};
use crate::room::Room;
use crate::tables::{Tables, is_held};

/// The type of the frames of ARP (RFC 826).
const ARP: [u8; 2] = [0x08, 0x06];

/// The operation of an ARP request.
const REQUEST: [u8; 2] = [0, 1];

/// The type of a neighbour solicitation (RFC 4861, section 4.3).
const SOLICITATION: u8 = 135;

/// Drops what the other node answers for; passes the rest to the host.
#[inline(never)]
pub fn receive(packet: &mut impl Packet, tables: &impl Tables, room: &mut Room) -> Verdict {
    let parsed = parse::parse(packet, &mut room.parsed);
    match concerns_active(packet, tables, room, parsed.is_ok()) {
        // A frame that is too short to tell is nobody's.
        Ok(false) | Err(_) => match parsed {
            Ok(()) if room.parsed.is_icmp() => Verdict::NotTransport,
            Ok(()) => Verdict::NoService,
            Err(why) => why,
        },
        Ok(true) => Verdict::NotActive,
    }
}

/// Whether a frame is for an address that the active node has, or of a connection
/// that goes through it. `parsed`: the room has its facts.
#[inline(always)]
fn concerns_active(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
    parsed: bool,
) -> Result<bool, Verdict> {
    let ip = room.parsed.ip;
    let to = match *packet.at::<[u8; 2]>(ip.wrapping_sub(2))? {
        ARP => {
            let arp = packet.at::<Arp>(ip)?;
            if arp.operation != REQUEST {
                return Ok(false);
            }
            Address::v4(arp.target)
        }
        IPV4 => Address::v4(packet.at::<Ipv4Hdr>(ip)?.dst_addr),
        IPV6 => Address::v6(&packet.at::<Ipv6Hdr>(ip)?.dst_addr),
        _ => return Ok(false),
    };
    if is_held(tables, to) {
        return Ok(true);
    }
    if !parsed || room.parsed.part == Part::Later {
        return Ok(false);
    }
    if room.parsed.key.protocol == u32::from(ICMPV6) {
        return asks_for_held(packet, tables, room.parsed.transport);
    }
    let key = &room.parsed.key;
    Ok(tables.may_have(sieve::BACKENDS, &key.src, key.src_port)
        && connections::of_backend(tables, key, &mut room.flow))
}

/// Whether a message is a neighbour solicitation for such an address.
#[inline(always)]
fn asks_for_held(packet: &mut impl Packet, tables: &impl Tables, at: u32) -> Result<bool, Verdict> {
    if packet.at::<Icmp>(at)?.kind != SOLICITATION {
        return Ok(false);
    }
    let target = packet.at::<Solicitation>(at)?.target;
    Ok(is_held(tables, Address::v6(&target)))
}
