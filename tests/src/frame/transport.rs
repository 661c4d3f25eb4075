//! What the IP packet carries: TCP, UDP, ICMP, or another packet.

use lb_common::abi::{TCP, UDP};
use lb_common::flow::tcp_flag;

use super::icmp::{ICMP, ICMPV6};
use super::{Frame, octets};
use crate::checksum::{ones_complement, pseudo_header};

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

impl Frame {
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

    /// What its sender hears in its place where the connection ends here: a RST
    /// with this sequence number from the end that it was for, back over the same
    /// links with the same tags. What a frame needs to be long enough is what stood
    /// there.
    pub fn reset(&self, sequence: u32) -> Self {
        const SHORTEST: usize = 60;
        let [from, to] = self.links;
        let mut reset = Self {
            tags: self.tags.clone(),
            window: 0,
            ..Self::new(TCP, self.to, self.from)
        }
        .over([to, from])
        .rst()
        .seq(sequence)
        .identified(0)
        .dont_fragment()
        .flow_label(0);
        let mut left = self.bytes();
        left.truncate(SHORTEST);
        reset.trail = left.drain(..).skip(reset.bytes().len()).collect();
        reset
    }

    /// With these TCP options in place of those that it has; filled up to a
    /// multiple of four bytes.
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self
    }

    /// With this maximum segment size, behind the options that it has.
    pub fn mss(mut self, size: u16) -> Self {
        self.tcp_options.extend([2, 4]);
        self.tcp_options.extend(size.to_be_bytes());
        self
    }

    /// With one byte of TCP options that says nothing: the next option begins
    /// at an odd place.
    pub fn no_operation(mut self) -> Self {
        self.tcp_options.push(NO_OPERATION);
        self
    }

    /// UDP that carries no checksum.
    pub fn without_checksum(mut self) -> Self {
        self.no_checksum = true;
        self
    }

    /// Says that its TCP header has this many 32-bit words.
    pub fn claims_tcp_words(mut self, words: u8) -> Self {
        self.claimed.tcp_words = Some(words);
        self
    }

    /// Says that this is the checksum of its transport.
    pub fn claims_checksum(mut self, check: u16) -> Self {
        self.claimed.checksum = Some(check);
        self
    }

    /// The same with the payload that makes its own checksum come out as zero.
    pub fn balanced_to_zero(self) -> Self {
        self.balanced_to(0)
    }

    /// The same with the payload that makes its own checksum come out as this;
    /// none comes out as ffff (RFC 1624).
    pub fn balanced_to(self, check: u16) -> Self {
        assert_ne!(check, 0xffff, "no checksum comes out as ffff");
        let probe = self.payload(&[0, 0]);
        let sum = probe.sum();
        // The free word takes up what the sum lacks.
        let lacking = ones_complement(&[&(!sum).to_be_bytes(), &(!check).to_be_bytes()]);
        probe.payload(&lacking.to_be_bytes())
    }

    pub(super) fn has_ports(&self) -> bool {
        [TCP, UDP].contains(&self.protocol)
    }

    /// The transport's header and payload.
    pub(super) fn transport(&self) -> Vec<u8> {
        self.transport_with(self.checksum())
    }

    fn transport_with(&self, check: u16) -> Vec<u8> {
        let mut bytes = match self.protocol {
            TCP => self.tcp_header(check),
            UDP => self.udp_header(check),
            ICMP | ICMPV6 => self.icmp_header(check),
            _ => Vec::new(),
        };
        bytes.extend(&self.payload);
        bytes
    }

    fn ports(&self) -> Vec<u8> {
        [self.from.port(), self.to.port()]
            .map(u16::to_be_bytes)
            .concat()
    }

    fn tcp_header(&self, check: u16) -> Vec<u8> {
        let mut options = self.tcp_options.clone();
        options.resize(options.len().next_multiple_of(4), END_OF_OPTIONS);
        let words = 5 + (options.len() / 4) as u8;
        let words = self.claimed.tcp_words.unwrap_or(words);
        let mut header = self.ports();
        header.extend(self.sequence.to_be_bytes());
        header.extend(self.acknowledged.to_be_bytes());
        header.extend([words << 4, self.flags]);
        header.extend(self.window.to_be_bytes());
        header.extend(check.to_be_bytes());
        header.extend([0, 0]);
        header.extend(options);
        header
    }

    fn udp_header(&self, check: u16) -> Vec<u8> {
        let mut header = self.ports();
        header.extend((8 + self.payload.len() as u16).to_be_bytes());
        header.extend(check.to_be_bytes());
        header
    }

    fn icmp_header(&self, check: u16) -> Vec<u8> {
        let (kind, code, rest) = self.icmp;
        let mut header = vec![kind, code];
        header.extend(check.to_be_bytes());
        header.extend(rest);
        header
    }

    fn checksum(&self) -> u16 {
        if let Some(check) = self.claimed.checksum {
            return check;
        }
        if self.no_checksum {
            return 0;
        }
        match !self.sum() {
            // RFC 768: 0 would mean that there is none.
            0 if self.protocol == UDP => 0xffff,
            check => check,
        }
    }

    /// The sum over all that the checksum covers, itself aside.
    fn sum(&self) -> u16 {
        let transport = self.transport_with(0);
        if self.protocol == ICMP {
            return ones_complement(&[&transport]);
        }
        let pseudo = pseudo_header(
            &octets(self.from.ip()),
            &octets(self.to.ip()),
            self.protocol,
            transport.len() as u32,
        );
        ones_complement(&[&pseudo, &transport])
    }
}

#[cfg(test)]
mod tests {
    use crate::checksum::checksums_hold;
    use crate::frame::{ping, tcp, udp};

    #[test]
    fn a_udp_sum_of_zero_is_sent_as_all_ones() {
        let frame = udp("10.0.0.1:1", "10.0.0.2:2").balanced_to_zero().bytes();
        assert_eq!(frame[40..42], [0xff, 0xff]);
        assert!(checksums_hold(&frame));
    }

    #[test]
    fn any_other_checksum_can_be_asked_for() {
        for check in [0u16, 1, 0x1234, 0xf800, 0xfff8, 0xfffe] {
            let echo = ping("10.0.0.1", "10.0.0.2", 1, 2, b"").balanced_to(check);
            assert_eq!(echo.bytes()[36..38], check.to_be_bytes());
            let syn = tcp("[fd00::1]:1", "[fd00::2]:2").syn().balanced_to(check);
            assert_eq!(syn.bytes()[70..72], check.to_be_bytes());
        }
    }

    #[test]
    fn the_segment_size_stands_where_the_sentence_puts_it() {
        let even = tcp("10.0.0.1:1", "10.0.0.2:2").syn().mss(1460).bytes();
        assert_eq!(even[46], 6 << 4);
        assert_eq!(even[54..], [2, 4, 0x05, 0xb4]);
        let odd = tcp("10.0.0.1:1", "10.0.0.2:2")
            .syn()
            .no_operation()
            .mss(8960);
        let odd = odd.bytes();
        assert_eq!(odd[46], 7 << 4);
        assert_eq!(odd[54..], [1, 2, 4, 0x23, 0x00, 0, 0, 0]);
        assert!(checksums_hold(&odd));
    }

    #[test]
    fn lies_are_told() {
        let frame = tcp("10.0.0.1:1", "10.0.0.2:2").syn();
        assert_eq!(frame.clone().claims_tcp_words(15).bytes()[46], 15 << 4);
        let spoiled = frame.claims_checksum(0xdead).bytes();
        assert_eq!(spoiled[50..52], [0xde, 0xad]);
        assert!(!checksums_hold(&spoiled));
    }
}
