//! Frames that read as sentences.
//!
//! `tcp("198.51.100.7:51000", "203.0.113.10:80").syn().ttl(64)` is a whole
//! Ethernet frame: lengths and checksums are filled in when the bytes are
//! made, unless the sentence says that they lie (`claims_…`). Checksums are
//! full sums ([`crate::checksum`]).
//!
//! The sentence is heard from its beginning: what is said after
//! [`Frame::inside`] is said of the outer packet, a tag that is added after
//! [`Frame::padded_to`] makes the frame longer, and a [`Frame::piece`] is one
//! of the packet as it was until then.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use lb_common::abi::{FlowKey, TCP, UDP};
use lb_common::{Address, Be16};

mod icmp;
mod ip;
mod link;
mod transport;
mod tunnel;

pub use icmp::{IcmpError, icmp, icmp_error, ping};
pub use link::Link;

/// A frame to be.
#[derive(Clone, Debug)]
pub struct Frame {
    from: SocketAddr,
    to: SocketAddr,
    links: [Link; 2],
    tags: Vec<link::Tag>,
    protocol: u8,
    ttl: u8,
    tos: u8,
    flow_label: u32,
    identification: u32,
    dont_fragment: bool,
    /// As IPv4 writes it: more to come, and the place in units of eight bytes.
    fragment: u16,
    /// The only bytes behind the header (IPv6: the fragment header) that it
    /// has, if not all.
    piece: Option<Range<usize>>,
    ip_options: Vec<u8>,
    extensions: Vec<ip::Extension>,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    tcp_options: Vec<u8>,
    no_checksum: bool,
    /// Type, code, and the four bytes behind the checksum.
    icmp: (u8, u8, [u8; 4]),
    payload: Vec<u8>,
    claimed: Claims,
    /// What is behind the IP packet, before padding.
    trail: Vec<u8>,
    padded_to: usize,
    cut_to: Option<usize>,
}

/// What the frame says against the truth.
#[derive(Clone, Debug, Default)]
struct Claims {
    ether_type: Option<u16>,
    version: Option<u8>,
    header_words: Option<u8>,
    ip_length: Option<u16>,
    next_header: Option<u8>,
    tcp_words: Option<u8>,
    checksum: Option<u16>,
}

/// A TCP segment without flags or payload.
pub fn tcp(from: &str, to: &str) -> Frame {
    Frame::new(TCP, end(from), end(to))
}

/// A UDP datagram without payload.
pub fn udp(from: &str, to: &str) -> Frame {
    Frame::new(UDP, end(from), end(to))
}

/// An end as it is written: `10.0.0.1:80` or `[fd00::1]:80`.
pub fn end(text: &str) -> SocketAddr {
    text.parse().expect("an end is an address and a port")
}

/// The end of a packet without ports: `10.0.0.1` or `fd00::1`. That of one
/// with ports will do.
fn host(text: &str) -> SocketAddr {
    match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, 0),
        Err(_) => SocketAddr::new(end(text).ip(), 0),
    }
}

/// The key of a flow between two ends.
pub fn key(protocol: u8, from: &str, to: &str) -> FlowKey {
    let (from, to) = (end(from), end(to));
    FlowKey {
        src: Address::from(from.ip()),
        dst: Address::from(to.ip()),
        src_port: Be16::new(from.port()),
        dst_port: Be16::new(to.port()),
        protocol: u32::from(protocol),
    }
}

/// A frame with these two ends: one of a flow that stands in a table.
pub fn along(key: &FlowKey) -> Frame {
    let from = key.src.socket(key.src_port).to_string();
    let to = key.dst.socket(key.dst_port).to_string();
    if key.protocol == u32::from(TCP) {
        tcp(&from, &to)
    } else {
        udp(&from, &to)
    }
}

impl Frame {
    fn new(protocol: u8, from: SocketAddr, to: SocketAddr) -> Self {
        assert_eq!(
            from.is_ipv4(),
            to.is_ipv4(),
            "{from} and {to} are of different families"
        );
        Self {
            from,
            to,
            links: [[0x02, 0, 0, 0, 0, 0xaa], [0x02, 0, 0, 0, 0, 0xbb]],
            tags: Vec::new(),
            protocol,
            ttl: 64,
            tos: 0,
            flow_label: 0xa_bcde,
            identification: 0x1234,
            dont_fragment: false,
            fragment: 0,
            piece: None,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            flags: 0,
            sequence: 0x0102_0304,
            acknowledged: 0,
            window: 0xfaf0,
            tcp_options: Vec::new(),
            no_checksum: false,
            icmp: (0, 0, [0; 4]),
            payload: Vec::new(),
            claimed: Claims::default(),
            trail: Vec::new(),
            padded_to: 0,
            cut_to: None,
        }
    }

    /// With this payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Cut off after this many bytes.
    pub fn cut_to(mut self, length: usize) -> Self {
        self.cut_to = Some(length);
        self
    }

    /// The same between other ends, as a translation leaves it.
    pub fn between(mut self, from: &str, to: &str) -> Self {
        let read = if self.has_ports() { end } else { host };
        (self.from, self.to) = (read(from), read(to));
        self
    }

    /// The same as a router sends it on: its link addresses and one from the
    /// TTL.
    pub fn sent_on(mut self, hop: [Link; 2]) -> Self {
        self.ttl -= 1;
        self.over(hop)
    }

    /// What the receiver sends back: ends and link addresses swapped, and an
    /// echo request become its reply.
    pub fn answered(mut self) -> Self {
        (self.from, self.to) = (self.to, self.from);
        self.links.reverse();
        self.icmp.0 = icmp::answer(self.protocol, self.icmp.0);
        self
    }

    /// The payload.
    pub fn carried(&self) -> &[u8] {
        &self.payload
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = self.link_header();
        frame.extend(self.packet());
        frame.extend(&self.trail);
        if frame.len() < self.padded_to {
            frame.resize(self.padded_to, link::PADDING);
        }
        if let Some(length) = self.cut_to {
            frame.truncate(length);
        }
        frame
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{checksums, checksums_hold};

    #[test]
    fn a_frame_that_was_built_has_checksums_that_hold() {
        for frame in [
            tcp("10.0.0.1:1", "10.0.0.2:2").syn().payload(b"odd"),
            udp("10.0.0.1:1", "10.0.0.2:2").payload(b"even"),
            tcp("[fd00::1]:1", "[fd00::2]:2").ack(7).padded_to(90),
            udp("[fd00::1]:1", "[fd00::2]:2").ip_options(&[]).tos(0xb8),
            udp("10.0.0.1:1", "10.0.0.2:2").ip_options(&[1, 1, 1, 0]),
        ] {
            let bytes = frame.bytes();
            assert!(checksums_hold(&bytes), "{frame:?}");
            assert_eq!(checksums(&bytes).transport, Some(true), "{frame:?}");
        }
    }

    #[test]
    fn one_changed_bit_is_seen() {
        let good = tcp("10.0.0.1:1", "10.0.0.2:2").syn().bytes();
        for place in (16..good.len()).filter(|place| ![20, 21].contains(place)) {
            let mut bad = good.clone();
            bad[place] ^= 1;
            let sums = checksums(&bad);
            // A length or protocol that lies leaves nothing to sum up.
            assert!(!sums.hold() || sums.transport.is_none(), "byte {place}");
        }
    }
}
