//! The checksums of a frame, from its bytes alone.
//!
//! These are full sums after RFC 1071, written a second time on purpose: the
//! code under test updates checksums incrementally and shares nothing with
//! this file.

use std::ops::Range;

use lb_common::abi::{TCP, UDP};

const ETHERNET: usize = 14;

/// Which checksums of a frame are right; `None` where the frame has none, or
/// does not hold all that it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksums {
    /// Of the IPv4 header.
    pub ip: Option<bool>,
    /// Of TCP or UDP.
    pub transport: Option<bool>,
}

impl Checksums {
    /// Whether none is wrong.
    pub fn hold(&self) -> bool {
        self.ip != Some(false) && self.transport != Some(false)
    }
}

/// Whether no checksum of the frame is wrong.
pub fn checksums_hold(frame: &[u8]) -> bool {
    checksums(frame).hold()
}

/// Sums a frame up again.
pub fn checksums(frame: &[u8]) -> Checksums {
    let [ip, transport] = covers(frame).map(|cover| {
        let cover = cover.filter(|cover| !cover.is_absent(frame))?;
        Some(cover.sum(frame) == 0xffff)
    });
    Checksums { ip, transport }
}

/// Puts every checksum of the frame right; one that is absent stays absent.
pub fn mend(frame: &mut [u8]) {
    // The header's first: no other sum covers it.
    for cover in covers(frame).into_iter().flatten() {
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

/// What the checksums of IP and of the transport cover, where the frame holds
/// all of it.
fn covers(frame: &[u8]) -> [Option<Cover>; 2] {
    match frame.get(12..ETHERNET) {
        Some([0x08, 0x00]) => [ipv4_header(frame), ipv4_transport(frame)],
        Some([0x86, 0xdd]) => [None, ipv6_transport(frame)],
        _ => [None, None],
    }
}

fn ipv4_header(frame: &[u8]) -> Option<Cover> {
    let length = usize::from(frame.get(ETHERNET)? & 15) * 4;
    let bytes = ETHERNET..ETHERNET + length.max(20);
    (bytes.end <= frame.len()).then_some(Cover {
        field: ETHERNET + 10,
        optional: false,
        pseudo: Vec::new(),
        bytes,
    })
}

fn ipv4_transport(frame: &[u8]) -> Option<Cover> {
    let ip = &frame[ipv4_header(frame)?.bytes];
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    let length = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let header = usize::from(ip[0] & 15) * 4;
    let bytes = ETHERNET + header..ETHERNET + length;
    (!fragment).then_some(())?;
    transport(frame, ip[9], [&ip[12..16], &ip[16..20]], bytes)
}

fn ipv6_transport(frame: &[u8]) -> Option<Cover> {
    let start = ETHERNET + 40;
    let ip = frame.get(ETHERNET..start)?;
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let ends = [&ip[8..24], &ip[24..40]];
    transport(frame, ip[6], ends, start..start + length)
}

fn transport(frame: &[u8], protocol: u8, ends: [&[u8]; 2], bytes: Range<usize>) -> Option<Cover> {
    let (field, header) = match protocol {
        TCP => (bytes.start + 16, 20),
        UDP => (bytes.start + 6, 8),
        _ => return None,
    };
    let length = bytes.end.checked_sub(bytes.start)?;
    (length >= header && bytes.end <= frame.len()).then(|| Cover {
        field,
        optional: protocol == UDP,
        pseudo: pseudo_header(ends[0], ends[1], protocol, length as u32),
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
    use crate::frame::{tcp, udp};

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

    #[test]
    fn mending_gives_the_frame_as_it_was_built() {
        for frame in [
            tcp("10.0.0.1:1", "10.0.0.2:2")
                .syn()
                .payload(b"odd")
                .bytes(),
            udp("[fd00::1]:1", "[fd00::2]:2").balanced_to_zero().bytes(),
            udp("10.0.0.1:1", "10.0.0.2:2").without_checksum().bytes(),
        ] {
            let mut damaged = frame.clone();
            for cover in covers(&frame).into_iter().flatten() {
                if !cover.is_absent(&frame) {
                    damaged[cover.field] ^= 0x5a;
                }
            }
            mend(&mut damaged);
            assert_eq!(damaged, frame);
        }
    }
}
