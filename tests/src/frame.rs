//! Frames that read as sentences.
//!
//! `tcp("198.51.100.7:51000", "203.0.113.10:80").syn().ttl(64)` is a whole
//! Ethernet frame: lengths and checksums are filled in when the bytes are
//! made, unless the sentence says that they lie (`claims_…`). Checksums are
//! full sums ([`crate::checksum`]).

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{FlowKey, TCP, UDP};
use lb_common::flow::tcp_flag;
use lb_common::{Address, Be16};

use crate::checksum::{ones_complement, pseudo_header};

/// A link address.
pub type Link = [u8; 6];

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A frame to be.
#[derive(Clone, Debug)]
pub struct Frame {
    from: SocketAddr,
    to: SocketAddr,
    links: [Link; 2],
    protocol: u8,
    ttl: u8,
    tos: u8,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    payload: Vec<u8>,
    ip_options: Vec<u8>,
    tcp_options: Vec<u8>,
    no_checksum: bool,
    fragment: u16,
    claimed: Claims,
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
}

/// A TCP segment without flags or payload.
pub fn tcp(from: &str, to: &str) -> Frame {
    Frame::new(TCP, from, to)
}

/// A UDP datagram without payload.
pub fn udp(from: &str, to: &str) -> Frame {
    Frame::new(UDP, from, to)
}

/// An end as it is written: `10.0.0.1:80` or `[fd00::1]:80`.
pub fn end(text: &str) -> SocketAddr {
    text.parse().expect("an end is an address and a port")
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
    fn new(protocol: u8, from: &str, to: &str) -> Self {
        Self {
            from: end(from),
            to: end(to),
            links: [[0x02, 0, 0, 0, 0, 0xaa], [0x02, 0, 0, 0, 0, 0xbb]],
            protocol,
            ttl: 64,
            tos: 0,
            flags: 0,
            sequence: 0x0102_0304,
            acknowledged: 0,
            payload: Vec::new(),
            ip_options: Vec::new(),
            tcp_options: Vec::new(),
            no_checksum: false,
            fragment: 0,
            claimed: Claims::default(),
            padded_to: 0,
            cut_to: None,
        }
    }

    /// With SYN.
    pub fn syn(self) -> Self {
        self.flags(tcp_flag::SYN)
    }

    /// With SYN and ACK of this number.
    pub fn syn_ack(self, acknowledged: u32) -> Self {
        self.ack(acknowledged).with(tcp_flag::SYN)
    }

    /// With ACK of this number.
    pub fn ack(mut self, acknowledged: u32) -> Self {
        self.acknowledged = acknowledged;
        self.flags(tcp_flag::ACK)
    }

    /// With FIN and ACK.
    pub fn fin(self) -> Self {
        self.flags(tcp_flag::FIN | tcp_flag::ACK)
    }

    /// With RST.
    pub fn rst(self) -> Self {
        self.flags(tcp_flag::RST)
    }

    /// With exactly these TCP flags.
    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// With these TCP flags too.
    pub fn with(self, flags: u8) -> Self {
        let all = self.flags | flags;
        self.flags(all)
    }

    /// With this sequence number.
    pub fn seq(mut self, sequence: u32) -> Self {
        self.sequence = sequence;
        self
    }

    /// With this TTL or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// With this DSCP and ECN byte.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// With this payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// With these IPv4 options, a multiple of four bytes.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip_options = options.to_vec();
        self
    }

    /// With these TCP options, a multiple of four bytes.
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self
    }

    /// UDP that carries no checksum.
    pub fn without_checksum(mut self) -> Self {
        self.no_checksum = true;
        self
    }

    /// A fragment of a larger packet: its place in units of eight bytes, and
    /// whether more follow (IPv4).
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = offset | u16::from(more) << 13;
        self
    }

    /// Padded behind the IP packet to a frame of this length.
    pub fn padded_to(mut self, length: usize) -> Self {
        self.padded_to = length;
        self
    }

    /// Cut off after this many bytes.
    pub fn cut_to(mut self, length: usize) -> Self {
        self.cut_to = Some(length);
        self
    }

    /// Says in its Ethernet header that it carries this.
    pub fn claims_ether_type(mut self, ether_type: u16) -> Self {
        self.claimed.ether_type = Some(ether_type);
        self
    }

    /// Says that it is of this IP version.
    pub fn claims_version(mut self, version: u8) -> Self {
        self.claimed.version = Some(version);
        self
    }

    /// Says that its IPv4 header has this many 32-bit words.
    pub fn claims_header_words(mut self, words: u8) -> Self {
        self.claimed.header_words = Some(words);
        self
    }

    /// Says that its IP packet (IPv6: its payload) has this length.
    pub fn claims_ip_length(mut self, length: u16) -> Self {
        self.claimed.ip_length = Some(length);
        self
    }

    /// Says that this protocol follows the IP header.
    pub fn claims_next_header(mut self, protocol: u8) -> Self {
        self.claimed.next_header = Some(protocol);
        self
    }

    /// The same between other ends, as a translation leaves it.
    pub fn between(mut self, from: &str, to: &str) -> Self {
        self.from = end(from);
        self.to = end(to);
        self
    }

    /// The same as a router sends it on: its link addresses and one from the
    /// TTL.
    pub fn sent_on(mut self, hop: [Link; 2]) -> Self {
        self.ttl -= 1;
        self.links = hop;
        self
    }

    /// The same with the payload that makes its own checksum come out as zero.
    pub fn balanced_to_zero(self) -> Self {
        let probe = self.payload(&[0, 0]);
        let sum = !ones_complement(&[&probe.pseudo_header(), &probe.transport(0)]);
        // The free word takes up what the sum lacks to all ones.
        probe.payload(&sum.to_be_bytes())
    }

    /// The payload.
    pub fn carried(&self) -> &[u8] {
        &self.payload
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let v4 = self.from.is_ipv4();
        let ether_type = self
            .claimed
            .ether_type
            .unwrap_or(if v4 { IPV4 } else { IPV6 });
        let [src, dst] = self.links;
        let mut frame = [&dst[..], &src[..], &ether_type.to_be_bytes()].concat();
        let transport = self.transport(self.checksum());
        let ip = if v4 {
            self.ipv4(transport.len())
        } else {
            self.ipv6(transport.len())
        };
        frame.extend(ip);
        frame.extend(transport);
        if frame.len() < self.padded_to {
            frame.resize(self.padded_to, 0xee);
        }
        if let Some(length) = self.cut_to {
            frame.truncate(length);
        }
        frame
    }

    fn ipv4(&self, transport: usize) -> Vec<u8> {
        let length = 20 + self.ip_options.len();
        let words = self.claimed.header_words.unwrap_or((length / 4) as u8);
        let mut header = vec![self.claimed.version.unwrap_or(4) << 4 | words, self.tos];
        let total = (length + transport) as u16;
        header.extend(self.claimed.ip_length.unwrap_or(total).to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.claimed.next_header.unwrap_or(self.protocol)]);
        header.extend([0, 0]);
        header.extend(octets(self.from.ip()));
        header.extend(octets(self.to.ip()));
        header.extend(&self.ip_options);
        let sum = ones_complement(&[&header]);
        header[10..12].copy_from_slice(&(!sum).to_be_bytes());
        header
    }

    fn ipv6(&self, transport: usize) -> Vec<u8> {
        let version = self.claimed.version.unwrap_or(6);
        let mut header = vec![
            version << 4 | self.tos >> 4,
            self.tos << 4 | 0x0a,
            0xbc,
            0xde,
        ];
        let length = self.claimed.ip_length.unwrap_or(transport as u16);
        header.extend(length.to_be_bytes());
        header.extend([self.claimed.next_header.unwrap_or(self.protocol), self.ttl]);
        header.extend(octets(self.from.ip()));
        header.extend(octets(self.to.ip()));
        header
    }

    fn transport(&self, check: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.port().to_be_bytes());
        bytes.extend(self.to.port().to_be_bytes());
        if self.protocol == TCP {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.acknowledged.to_be_bytes());
            let words = 5 + (self.tcp_options.len() / 4) as u8;
            bytes.extend([words << 4, self.flags, 0xfa, 0xf0]);
            bytes.extend(check.to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(&self.tcp_options);
        } else {
            bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
            bytes.extend(check.to_be_bytes());
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn checksum(&self) -> u16 {
        if self.no_checksum {
            return 0;
        }
        let check = !ones_complement(&[&self.pseudo_header(), &self.transport(0)]);
        if check == 0 && self.protocol == UDP {
            0xffff
        } else {
            check
        }
    }

    fn pseudo_header(&self) -> Vec<u8> {
        let length = self.transport(0).len() as u32;
        pseudo_header(
            &octets(self.from.ip()),
            &octets(self.to.ip()),
            self.protocol,
            length,
        )
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

    #[test]
    fn a_udp_sum_of_zero_is_sent_as_all_ones() {
        let frame = udp("10.0.0.1:1", "10.0.0.2:2").balanced_to_zero().bytes();
        assert_eq!(frame[40..42], [0xff, 0xff]);
        assert!(checksums_hold(&frame));
    }
}
