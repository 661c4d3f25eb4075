//! The IP packet: headers, extension headers, fragments.

use std::ops::Range;

use super::{Frame, octets};
use crate::checksum::ones_complement;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// For experiments (RFC 4727): a routing header that no one follows, so that
/// the destination in the IP header is the one that checksums cover.
const ROUTING_TYPE: u8 = 253;

const MORE_FRAGMENTS: u16 = 1 << 13;
const DONT_FRAGMENT: u16 = 1 << 14;

/// An IPv6 extension header.
#[derive(Clone, Debug)]
pub(super) struct Extension {
    kind: u8,
    /// All behind its length; of a fragment header nothing, as the frame knows.
    body: Vec<u8>,
}

impl Extension {
    fn bytes(&self, next: u8, fragment: &[u8]) -> Vec<u8> {
        let (length, body) = match self.kind {
            FRAGMENT => (0, fragment),
            _ => ((self.body.len() / 8) as u8, &self.body[..]),
        };
        [&[next, length], body].concat()
    }
}

impl Frame {
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

    /// With this flow label (IPv6).
    pub fn flow_label(mut self, label: u32) -> Self {
        self.flow_label = label;
        self
    }

    /// With this identification: 16 bits in IPv4, 32 in an IPv6 fragment.
    pub fn identified(mut self, identification: u32) -> Self {
        self.identification = identification;
        self
    }

    /// Not to be fragmented (IPv4).
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// With these IPv4 options, a multiple of four bytes.
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.ip_options = options.to_vec();
        self
    }

    /// With hop-by-hop options that say nothing, behind the IPv6 extension
    /// headers that it has.
    pub fn hop_by_hop(self) -> Self {
        self.options(HOP_BY_HOP)
    }

    /// With destination options that say nothing, likewise.
    pub fn destination_options(self) -> Self {
        self.options(DESTINATION_OPTIONS)
    }

    /// With so many headers of destination options.
    pub fn extensions(self, count: usize) -> Self {
        (0..count).fold(self, |frame, _| frame.destination_options())
    }

    fn options(self, kind: u8) -> Self {
        // PadN over all six bytes
        self.extension(kind, &[1, 4, 0, 0, 0, 0])
    }

    /// With a routing header with this many segments left, likewise.
    pub fn routing(self, segments_left: u8) -> Self {
        self.extension(ROUTING, &[ROUTING_TYPE, segments_left, 0, 0, 0, 0])
    }

    /// With an extension header of this kind, likewise: its bytes behind the
    /// length, six and a multiple of eight.
    pub fn extension(mut self, kind: u8, body: &[u8]) -> Self {
        assert!(
            body.len() % 8 == 6,
            "an extension header has a multiple of 8 bytes"
        );
        self.extensions.push(Extension {
            kind,
            body: body.to_vec(),
        });
        self
    }

    /// A fragment of a larger packet: its place in units of eight bytes, and
    /// whether more follow. In IPv6 its header stands behind the extension
    /// headers that it has.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = offset | if more { MORE_FRAGMENTS } else { 0 };
        let place = self.extensions.len();
        self.with_fragment_header(place)
    }

    /// The fragment of it with these of the bytes behind the header (IPv6:
    /// behind the headers for every hop). The transport's checksum is that of
    /// the whole.
    pub fn piece(mut self, bytes: Range<usize>) -> Self {
        let per_hop = |extension: &Extension| [HOP_BY_HOP, ROUTING].contains(&extension.kind);
        let place = self.extensions.iter().rposition(per_hop);
        self = self.with_fragment_header(place.map_or(0, |place| place + 1));
        let whole = self.divisible().len();
        let more = bytes.end < whole;
        assert!(bytes.end <= whole, "the packet has only {whole} bytes");
        assert!(
            bytes.start.is_multiple_of(8) && (bytes.end.is_multiple_of(8) || !more),
            "fragments are cut at multiples of 8 bytes, not {bytes:?}"
        );
        self.fragment = (bytes.start / 8) as u16 | if more { MORE_FRAGMENTS } else { 0 };
        self.piece = Some(bytes);
        self
    }

    /// All its fragments, each with this many bytes behind the header, the last
    /// with what is left.
    pub fn fragments(&self, size: usize) -> Vec<Self> {
        let marked = self.clone().piece(0..0);
        let whole = marked.divisible().len();
        (0..whole)
            .step_by(size)
            .map(|start| self.clone().piece(start..whole.min(start + size)))
            .collect()
    }

    fn with_fragment_header(mut self, place: usize) -> Self {
        let header = |extension: &Extension| extension.kind == FRAGMENT;
        if self.from.is_ipv6() && !self.extensions.iter().any(header) {
            let body = Vec::new();
            self.extensions.insert(
                place,
                Extension {
                    kind: FRAGMENT,
                    body,
                },
            );
        }
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

    /// Says that this protocol follows the IP header (IPv6: the last extension
    /// header).
    pub fn claims_next_header(mut self, protocol: u8) -> Self {
        self.claimed.next_header = Some(protocol);
        self
    }

    /// The IP packet alone, without link header and padding.
    pub fn packet(&self) -> Vec<u8> {
        let divisible = self.divisible();
        let part = self.piece.clone().unwrap_or(0..divisible.len());
        let part = &divisible[part];
        if self.from.is_ipv4() {
            [&self.ipv4(part.len()), part].concat()
        } else {
            let whole = self.indivisible();
            [&self.ipv6(whole.len() + part.len()), &whole[..], part].concat()
        }
    }

    /// How many bytes the IP headers and eight more have: the least that an
    /// error quotes (RFC 792).
    pub fn least_quote(&self) -> usize {
        let later = self.piece.as_ref().is_some_and(|piece| piece.start > 0);
        let extensions = if later {
            self.divide()
        } else {
            self.extensions.len()
        };
        let header = if self.from.is_ipv4() {
            20 + self.ip_options.len()
        } else {
            40 + self.extension_bytes(0..extensions).len()
        };
        header + 8
    }

    /// The bytes that every fragment has behind the IPv6 header.
    fn indivisible(&self) -> Vec<u8> {
        self.extension_bytes(0..self.divide())
    }

    /// The bytes that fragments share out.
    fn divisible(&self) -> Vec<u8> {
        let mut bytes = self.extension_bytes(self.divide()..self.extensions.len());
        bytes.extend(self.transport());
        bytes
    }

    /// How many extension headers every fragment has.
    fn divide(&self) -> usize {
        let header = |extension: &Extension| extension.kind == FRAGMENT;
        (self.extensions.iter().position(header)).map_or(0, |place| place + 1)
    }

    fn extension_bytes(&self, which: Range<usize>) -> Vec<u8> {
        let mut fragment = (self.fragment << 3 | self.fragment >> 13 & 1)
            .to_be_bytes()
            .to_vec();
        fragment.extend(self.identification.to_be_bytes());
        which
            .flat_map(|place| self.extensions[place].bytes(self.header_at(place + 1), &fragment))
            .collect()
    }

    /// What the chain of headers has at this place.
    fn header_at(&self, place: usize) -> u8 {
        let last = self.claimed.next_header.unwrap_or(self.protocol);
        (self.extensions.get(place)).map_or(last, |extension| extension.kind)
    }

    fn ipv4(&self, carried: usize) -> Vec<u8> {
        assert!(self.extensions.is_empty(), "IPv4 has no extension headers");
        let length = 20 + self.ip_options.len();
        let words = self.claimed.header_words.unwrap_or((length / 4) as u8);
        let mut header = vec![self.claimed.version.unwrap_or(4) << 4 | words, self.tos];
        let total = (length + carried) as u16;
        header.extend(self.claimed.ip_length.unwrap_or(total).to_be_bytes());
        header.extend((self.identification as u16).to_be_bytes());
        let flag = if self.dont_fragment { DONT_FRAGMENT } else { 0 };
        header.extend((self.fragment | flag).to_be_bytes());
        header.extend([self.ttl, self.header_at(0)]);
        header.extend([0, 0]);
        header.extend(octets(self.from.ip()));
        header.extend(octets(self.to.ip()));
        header.extend(&self.ip_options);
        let sum = ones_complement(&[&header]);
        header[10..12].copy_from_slice(&(!sum).to_be_bytes());
        header
    }

    fn ipv6(&self, carried: usize) -> Vec<u8> {
        let version = u32::from(self.claimed.version.unwrap_or(6));
        let first = version << 28 | u32::from(self.tos) << 20 | self.flow_label;
        let mut header = first.to_be_bytes().to_vec();
        let length = self.claimed.ip_length.unwrap_or(carried as u16);
        header.extend(length.to_be_bytes());
        header.extend([self.header_at(0), self.ttl]);
        header.extend(octets(self.from.ip()));
        header.extend(octets(self.to.ip()));
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{tcp, udp};

    /// The payloads of fragments, put together behind the first's headers.
    fn together(fragments: &[Frame], header: usize) -> Vec<u8> {
        (fragments.iter())
            .flat_map(|fragment| fragment.packet()[header..].to_vec())
            .collect()
    }

    #[test]
    fn extension_headers_form_a_chain() {
        let frame = udp("[fd00::1]:1", "[fd00::2]:2")
            .hop_by_hop()
            .routing(1)
            .destination_options()
            .payload(b"x");
        let packet = frame.packet();
        assert_eq!(packet[4..7], [0, 24 + 9, HOP_BY_HOP]);
        assert_eq!(packet[40..48], [ROUTING, 0, 1, 4, 0, 0, 0, 0]);
        assert_eq!(packet[48..52], [DESTINATION_OPTIONS, 0, ROUTING_TYPE, 1]);
        assert_eq!(packet[56..58], [17, 0]);
        let plain = udp("[fd00::1]:1", "[fd00::2]:2").payload(b"x").packet();
        assert_eq!(packet[64..], plain[40..]);
    }

    #[test]
    fn a_long_extension_header_says_how_long_it_is() {
        let frame = udp("[fd00::1]:1", "[fd00::2]:2").extension(60, &[0; 22]);
        assert_eq!(frame.packet()[40..42], [17, 2]);
        assert_eq!(frame.packet().len(), 40 + 24 + 8);
    }

    #[test]
    fn ipv4_fragments_share_out_the_datagram() {
        let whole = udp("10.0.0.1:1", "10.0.0.2:2")
            .payload(&[7; 30])
            .identified(0xbeef);
        let fragments = whole.fragments(16);
        let fields: Vec<_> = (fragments.iter())
            .map(|fragment| fragment.packet()[2..8].to_vec())
            .collect();
        assert_eq!(
            fields,
            [
                [0, 36, 0xbe, 0xef, 0x20, 0],
                [0, 36, 0xbe, 0xef, 0x20, 2],
                [0, 26, 0xbe, 0xef, 0, 4],
            ]
        );
        assert_eq!(together(&fragments, 20), whole.packet()[20..]);
    }

    #[test]
    fn ipv6_fragments_each_have_the_headers_for_every_hop() {
        let whole = tcp("[fd00::1]:1", "[fd00::2]:2")
            .hop_by_hop()
            .destination_options()
            .payload(&[7; 30])
            .identified(0xdead_beef);
        let fragments = whole.fragments(24);
        assert_eq!(fragments.len(), 3);
        let middle = fragments[1].packet();
        assert_eq!(middle[4..7], [0, 8 + 8 + 24, HOP_BY_HOP]);
        assert_eq!(middle[40], FRAGMENT);
        assert_eq!(
            middle[48..56],
            [DESTINATION_OPTIONS, 0, 0, 24 | 1, 0xde, 0xad, 0xbe, 0xef]
        );
        assert_eq!(fragments[2].packet()[50..52], [0, 48]);
        assert_eq!(together(&fragments, 56), whole.packet()[48..]);
    }

    #[test]
    fn a_translated_fragment_has_the_checksum_of_the_translated_whole() {
        let (from, to) = ("10.1.0.1:1000", "10.2.0.2:2000");
        let whole = udp("10.0.0.1:1", "10.0.0.2:2").payload(&[7; 40]);
        let first = whole.fragments(16).remove(0).between(from, to);
        assert_eq!(
            first.packet()[20..36],
            whole.between(from, to).packet()[20..36]
        );
    }

    #[test]
    fn one_fragment_is_written_after_its_family() {
        let four = udp("10.0.0.1:1", "10.0.0.2:2").fragment(3, true);
        assert_eq!(four.packet()[6..8], [0x20, 3]);
        let kept = udp("10.0.0.1:1", "10.0.0.2:2").dont_fragment().packet();
        assert_eq!(kept[6..8], [0x40, 0]);
        let six = udp("[fd00::1]:1", "[fd00::2]:2").fragment(3, true).packet();
        assert_eq!(six[6], FRAGMENT);
        assert_eq!(six[40..48], [17, 0, 0, 3 << 3 | 1, 0, 0, 0x12, 0x34]);
        // An atomic fragment (RFC 6946) is one all the same.
        let atomic = udp("[fd00::1]:1", "[fd00::2]:2").fragment(0, false);
        assert_eq!(atomic.packet()[40..44], [17, 0, 0, 0]);
    }
}
