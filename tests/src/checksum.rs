//! The checksums of a frame, from its bytes alone.
//!
//! These are full sums after RFC 1071, written a second time on purpose: the
//! code under test updates checksums incrementally and shares nothing with
//! this file. They are found behind VLAN tags and IPv6 extension headers, in
//! packets inside packets, and in packets that an ICMP error quotes.

use std::cmp::Ordering;
use std::ops::Range;

use lb_common::abi::{TCP, UDP};

const ETHERNET: usize = 14;

/// 802.1Q, 802.1ad, and what was used before that.
const TAGS: [[u8; 2]; 3] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]];
/// How many tags are looked through.
const MOST_TAGS: usize = 2;
/// How many packets inside one another are looked at.
const MOST_PACKETS: usize = 4;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const IPV4_INSIDE: u8 = 4;
const IPV6_INSIDE: u8 = 41;

/// Which checksums of a frame are right; `None` where the frame has none, or
/// does not hold all that it covers (that of a fragment's transport).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// Of the IPv4 header.
    pub ip: Option<bool>,
    /// Of TCP, UDP, ICMP or ICMPv6.
    pub transport: Option<bool>,
    /// Of the packet inside, or the one that an ICMP error quotes.
    pub inner: Option<Box<Checksums>>,
}

impl Checksums {
    /// Whether none is wrong.
    pub fn hold(&self) -> bool {
        !self.own().contains(&Some(false)) && self.inner.as_ref().is_none_or(|inner| inner.hold())
    }

    /// Whether one that was right is so no more in what became of the frame:
    /// a translation, the packet in a tunnel's, the one taken out of a
    /// tunnel's, or an error that quotes it.
    pub fn are_spoiled_in(&self, after: &Self) -> bool {
        match self.depth().cmp(&after.depth()) {
            Ordering::Less => {
                let Some(now) = &after.inner else {
                    return false;
                };
                let was = self.cut_as(now);
                after.own().contains(&Some(false)) || was.are_spoiled_in(now)
            }
            Ordering::Greater => {
                (self.inner.as_ref()).is_some_and(|inner| inner.are_spoiled_in(after))
            }
            Ordering::Equal => {
                let mut own = self.own().into_iter().zip(after.own());
                let inner = self.inner.as_ref().zip(after.inner.as_ref());
                own.any(|(was, now)| was == Some(true) && now != Some(true))
                    || inner.is_some_and(|(was, now)| was.are_spoiled_in(now))
            }
        }
    }

    /// Without the sum of a packet of which the end is missing in its quote.
    fn cut_as(&self, quote: &Self) -> Self {
        Self {
            transport: self.transport.filter(|_| quote.transport.is_some()),
            ..self.clone()
        }
    }

    /// How many packets there are, each inside the one before.
    fn depth(&self) -> usize {
        1 + self.inner.as_ref().map_or(0, |inner| inner.depth())
    }

    fn own(&self) -> [Option<bool>; 2] {
        [self.ip, self.transport]
    }
}

/// Whether no checksum of the frame is wrong.
pub fn checksums_hold(frame: &[u8]) -> bool {
    checksums(frame).hold()
}

/// Whether a checksum that was right is so no more in what became of the frame.
/// A message that quotes some of it as it came is a packet of its own.
pub fn spoiled(before: &[u8], after: &[u8]) -> bool {
    let (was, now) = (checksums(before), checksums(after));
    let is_message = || {
        !now.own().contains(&Some(false))
            && quote(after)
                .is_some_and(|quote| before.windows(quote.len()).any(|bytes| bytes == quote))
    };
    was.are_spoiled_in(&now) && !is_message()
}

/// Sums a frame up again.
pub fn checksums(frame: &[u8]) -> Checksums {
    let right = |cover: Cover| (!cover.is_absent(frame)).then(|| cover.sum(frame) == 0xffff);
    // The innermost first, so that each finds what is inside it made.
    packets(frame)
        .into_iter()
        .rev()
        .fold(None, |inner, packet| {
            Some(Box::new(Checksums {
                ip: packet.header.and_then(right),
                transport: packet.transport.and_then(right),
                inner,
            }))
        })
        .map_or_else(Checksums::default, |outermost| *outermost)
}

/// Puts every checksum of the frame right; one that is absent stays absent.
pub fn mend(frame: &mut [u8]) {
    // What is inside first: the sum of an ICMP error covers all that it quotes.
    for cover in covers(frame) {
        if cover.is_absent(frame) {
            continue;
        }
        let field = cover.field..cover.field + 2;
        frame[field.clone()].fill(0);
        let check = match !cover.sum(frame) {
            0 if cover.optional => 0xffff,
            check => check,
        };
        frame[field].copy_from_slice(&check.to_be_bytes());
    }
}

/// Where the frame's checksums stand that cover what it holds, the innermost
/// first; not one that is absent.
pub fn checksum_fields(frame: &[u8]) -> Vec<usize> {
    (covers(frame).into_iter())
        .filter(|cover| !cover.is_absent(frame))
        .map(|cover| cover.field)
        .collect()
}

/// What a checksum covers.
struct Cover {
    /// Where the checksum itself stands.
    field: usize,
    /// Whether 0 means that there is none (RFC 768).
    optional: bool,
    pseudo: Vec<u8>,
    bytes: Range<usize>,
}

impl Cover {
    fn sum(&self, frame: &[u8]) -> u16 {
        ones_complement(&[&self.pseudo, &frame[self.bytes.clone()]])
    }

    fn is_absent(&self, frame: &[u8]) -> bool {
        self.optional && frame[self.field..self.field + 2] == [0, 0]
    }
}

/// A packet of the frame: what its checksums cover, where all of it is there.
struct Packet {
    header: Option<Cover>,
    transport: Option<Cover>,
}

/// What a packet carries, by its header.
struct Carried {
    protocol: u8,
    /// As far as the packet's length says.
    bytes: Range<usize>,
    /// Both addresses.
    ends: Range<usize>,
    fragment: bool,
}

fn covers(frame: &[u8]) -> Vec<Cover> {
    (packets(frame).into_iter().rev())
        .flat_map(|packet| [packet.header, packet.transport])
        .flatten()
        .collect()
}

/// The packets of the frame, each inside the one before.
fn packets(frame: &[u8]) -> Vec<Packet> {
    let mut packets = Vec::new();
    let mut next = first(frame);
    while let Some((v4, bytes)) = next.filter(|_| packets.len() < MOST_PACKETS) {
        // What is inside is no longer than what it is in.
        let frame = &frame[..bytes.end];
        let carried = if v4 {
            ipv4(frame, bytes.start)
        } else {
            ipv6(frame, bytes.start)
        };
        packets.push(Packet {
            header: v4.then(|| ipv4_header(frame, bytes.start)).flatten(),
            transport: (carried.as_ref()).and_then(|carried| transport(frame, carried)),
        });
        next = carried.and_then(|carried| inside(frame, &carried));
    }
    packets
}

/// Where the IP packet is, and whether it is IPv4.
fn first(frame: &[u8]) -> Option<(bool, Range<usize>)> {
    let mut start = ETHERNET;
    for _ in 0..MOST_TAGS {
        let tagged = |kind: &[u8; 2]| frame.get(start - 2..start) == Some(kind);
        if TAGS.iter().any(tagged) {
            start += 4;
        }
    }
    match frame.get(start - 2..start)? {
        [0x08, 0x00] => Some((true, start..frame.len())),
        [0x86, 0xdd] => Some((false, start..frame.len())),
        _ => None,
    }
}

/// The packet inside this one, or quoted by it.
fn inside(frame: &[u8], carried: &Carried) -> Option<(bool, Range<usize>)> {
    let Range { start, end } = carried.bytes;
    if carried.fragment {
        return None;
    }
    let (v4, inner) = match (carried.protocol, frame.get(start)?) {
        (IPV4_INSIDE, _) => (true, start),
        (IPV6_INSIDE, _) => (false, start),
        // Unreachable, source quench, redirect, time exceeded, parameter problem
        (ICMP, 3 | 4 | 5 | 11 | 12) => (true, start + 8),
        // Unreachable, too big, time exceeded, parameter problem
        (ICMPV6, 1..=4) => (false, start + 8),
        _ => return None,
    };
    let end = end.min(frame.len());
    (inner < end).then_some((v4, inner..end))
}

/// What an ICMP error quotes.
fn quote(frame: &[u8]) -> Option<&[u8]> {
    let (v4, bytes) = first(frame)?;
    let carried = if v4 {
        ipv4(frame, bytes.start)
    } else {
        ipv6(frame, bytes.start)
    }?;
    let is_icmp = carried.protocol == ICMP || carried.protocol == ICMPV6;
    let (_, quote) = inside(frame, &carried).filter(|_| is_icmp)?;
    frame.get(quote)
}

fn ipv4_header(frame: &[u8], start: usize) -> Option<Cover> {
    let length = usize::from(frame.get(start)? & 15) * 4;
    let bytes = start..start + length.max(20);
    (bytes.end <= frame.len()).then_some(Cover {
        field: start + 10,
        optional: false,
        pseudo: Vec::new(),
        bytes,
    })
}

fn ipv4(frame: &[u8], start: usize) -> Option<Carried> {
    let ip = frame.get(start..start + 20)?;
    let header = usize::from(ip[0] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    (header >= 20 && length >= header).then_some(Carried {
        protocol: ip[9],
        bytes: start + header..start + length,
        ends: start + 12..start + 20,
        fragment: u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0,
    })
}

fn ipv6(frame: &[u8], start: usize) -> Option<Carried> {
    let ip = frame.get(start..start + 40)?;
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let end = start + 40 + length;
    let (mut protocol, mut place, mut fragment) = (ip[6], start + 40, false);
    // RFC 8200, section 4, and RFC 7045. Each header is at least as long as
    // these eight bytes, and what follows a fragment's is not looked at, but
    // for one that has everything (RFC 6946).
    while !fragment && let Some(&[next, units, high, low, ..]) = frame.get(place..place + 8) {
        place += match protocol {
            0 | 43 | 60 | 135 | 139 | 140 => 8 * (usize::from(units) + 1),
            44 => {
                fragment = u16::from_be_bytes([high, low]) & 0xfff9 != 0;
                8
            }
            51 => 4 * (usize::from(units) + 2),
            _ => break,
        };
        protocol = next;
    }
    (place <= end).then_some(Carried {
        protocol,
        bytes: place..end,
        ends: start + 8..start + 40,
        fragment,
    })
}

fn transport(frame: &[u8], carried: &Carried) -> Option<Cover> {
    let bytes = carried.bytes.clone();
    let (place, header, pseudo) = match carried.protocol {
        TCP => (16, 20, true),
        UDP => (6, 8, true),
        ICMP => (2, 8, false),
        ICMPV6 => (2, 8, true),
        _ => return None,
    };
    let whole = !carried.fragment && bytes.end <= frame.len() && bytes.len() >= header;
    let ends = &frame[carried.ends.clone()];
    let (src, dst) = ends.split_at(ends.len() / 2);
    whole.then(|| Cover {
        field: bytes.start + place,
        optional: carried.protocol == UDP,
        pseudo: if pseudo {
            pseudo_header(src, dst, carried.protocol, bytes.len() as u32)
        } else {
            Vec::new()
        },
        bytes,
    })
}

/// RFC 9293, section 3.1, and RFC 8200, section 8.1; the zero bytes that set
/// the two apart do not change the sum.
pub fn pseudo_header(src: &[u8], dst: &[u8], protocol: u8, length: u32) -> Vec<u8> {
    [src, dst, &length.to_be_bytes(), &[0, 0, 0, protocol]].concat()
}

/// The ones' complement sum of RFC 1071, each part padded to whole words.
pub fn ones_complement(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for word in parts.iter().flat_map(|part| part.chunks(2)) {
        let low = word.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([word[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Frame, IcmpError, icmp_error, ping, tcp, udp};

    /// The IPv4 header of a well-known worked example (RFC 1071 applied to
    /// 45 00 00 73 … gives b861).
    #[test]
    fn the_sum_agrees_with_an_example_from_outside() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0x00,
            0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(!ones_complement(&[&header]), 0xb861);
    }

    fn four() -> Frame {
        tcp("10.0.0.1:1", "10.0.0.2:2").syn().payload(b"odd")
    }

    fn six() -> Frame {
        udp("[fd00::1]:1", "[fd00::2]:2").payload(b"even")
    }

    /// Frames of every kind, and how many checksums each has to be checked.
    fn kinds() -> Vec<(Frame, usize)> {
        let (four, six) = (four(), six());
        let error = IcmpError::TimeExceeded;
        vec![
            (four.clone(), 2),
            (six.clone(), 1),
            (udp("10.0.0.1:1", "10.0.0.2:2").without_checksum(), 1),
            (six.clone().balanced_to_zero(), 1),
            (four.clone().tagged(1), 2),
            (six.clone().tag(0x9100, 1).tagged(2), 1),
            (four.clone().tagged(1).tagged(2).tagged(3), 0),
            (six.clone().hop_by_hop().routing(0).extensions(9), 1),
            (six.clone().fragment(0, false), 1),
            (six.clone().fragment(0, true), 0),
            (six.clone().fragment(1, false).destination_options(), 0),
            (four.clone().fragment(0, true), 1),
            (ping("10.0.0.1", "10.0.0.2", 1, 1, b"odd"), 2),
            (ping("fd00::1", "fd00::2", 1, 1, b"odd").hop_by_hop(), 1),
            (four.clone().inside("10.1.0.1", "10.1.0.2"), 3),
            (six.clone().inside("10.1.0.1", "10.1.0.2").tagged(1), 2),
            (four.clone().inside("fd01::1", "fd01::2"), 2),
            (six.clone().extensions(2).inside("fd01::1", "fd01::2"), 1),
            (icmp_error("10.0.0.9", "10.0.0.1", error, &four, 28), 3),
            (icmp_error("10.0.0.9", "10.0.0.1", error, &four, 99), 4),
            (icmp_error("fd00::9", "fd00::1", error, &six, 48), 1),
            (icmp_error("fd00::9", "fd00::1", error, &six, 99), 2),
            (
                icmp_error("10.0.0.9", "10.0.0.1", error, &four, 99).inside("10.1.0.1", "10.1.0.2"),
                5,
            ),
        ]
    }

    #[test]
    fn every_checksum_of_a_frame_is_found_and_holds() {
        for (frame, count) in kinds() {
            let bytes = frame.bytes();
            assert_eq!(checksum_fields(&bytes).len(), count, "{frame:?}");
            assert!(checksums_hold(&bytes), "{frame:?}");
            for field in checksum_fields(&bytes) {
                let mut spoiled = bytes.clone();
                spoiled[field] ^= 0x5a;
                assert!(!checksums_hold(&spoiled), "{field} of {frame:?}");
            }
        }
    }

    #[test]
    fn mending_gives_the_frame_as_it_was_built() {
        for (frame, _) in kinds() {
            let bytes = frame.bytes();
            let mut damaged = bytes.clone();
            for field in checksum_fields(&bytes) {
                damaged[field] ^= 0x5a;
            }
            mend(&mut damaged);
            assert_eq!(damaged, bytes, "{frame:?}");
        }
    }

    #[test]
    fn a_sum_that_is_spoiled_on_the_way_is_missed_in_what_became_of_the_frame() {
        let before = four();
        let tunnel = before.clone().ttl(9).inside("10.1.0.1", "10.1.0.2");
        let moved = before.clone().between("10.9.0.1:1", "10.9.0.2:2");
        let error = |count| {
            let error = IcmpError::TimeExceeded;
            icmp_error("10.0.0.9", "10.0.0.1", error, &before, count)
        };
        let before = before.bytes();
        let deeper = error(99).inside("fd01::1", "fd01::2");
        let ways = [
            (&error(99).bytes(), deeper.bytes()),
            (&deeper.bytes(), error(99).bytes()),
            (&before, moved.bytes()),
            (&before, tunnel.bytes()),
            (&tunnel.bytes(), before.clone()),
            (&before, error(99).bytes()),
            (&before, error(28).bytes()),
        ];
        for (before, after) in ways {
            let was = checksums(before);
            assert!(!was.are_spoiled_in(&checksums(&after)), "{after:02x?}");
            for field in checksum_fields(&after) {
                let mut spoiled = after.clone();
                spoiled[field] ^= 1;
                let now = checksums(&spoiled);
                assert!(was.are_spoiled_in(&now), "{field} of {after:02x?}");
            }
        }
    }

    #[test]
    fn a_message_is_a_packet_of_its_own_if_it_quotes_what_came() {
        let wrapped = four().inside("fd01::1", "fd01::2");
        let error = IcmpError::TimeExceeded;
        let came = icmp_error("fd00::9", "fd01::1", error, &wrapped, 99).bytes();
        let message = icmp_error("10.0.0.2", "10.0.0.1", error, &four(), 28);
        assert!(!spoiled(&came, &message.bytes()));
        let other = icmp_error("10.0.0.2", "10.0.0.1", error, &four().ttl(9), 28);
        assert!(spoiled(&came, &other.bytes()));
        for field in checksum_fields(&message.bytes()).into_iter().skip(1) {
            let mut wrong = message.bytes();
            wrong[field] ^= 1;
            assert!(spoiled(&came, &wrong), "{field}");
        }
    }

    #[test]
    fn whatever_the_bytes_there_is_an_answer() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (frame, _) in kinds() {
            let bytes = frame.bytes();
            for length in 0..bytes.len() {
                mend(&mut bytes[..length].to_vec());
            }
            for _ in 0..2000 {
                let mut damaged = bytes.clone();
                for _ in 0..rng.usize(1..=4) {
                    let place = rng.usize(12..damaged.len());
                    damaged[place] = rng.u8(..);
                }
                mend(&mut damaged);
                assert!(checksums_hold(&damaged), "{damaged:02x?}");
            }
        }
    }
}
