//! ICMP and ICMPv6: echoes, and errors that quote the packet they are about.

use super::{Frame, host};

/// The protocol number of ICMP for IPv4.
pub(super) const ICMP: u8 = 1;
/// That of ICMP for IPv6.
pub(super) const ICMPV6: u8 = 58;

/// Type of an echo request and of its reply, by protocol.
const ECHO: [(u8, u8, u8); 2] = [(ICMP, 8, 0), (ICMPV6, 128, 129)];

/// What an ICMP error says, in either family's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Destination unreachable, with this code.
    Unreachable(u8),
    /// The packet is too big for the next link, which has this MTU. In IPv4:
    /// unreachable, fragmentation needed.
    TooBig(u32),
    /// The TTL or hop limit came to an end on the way.
    TimeExceeded,
    /// The byte at this place is wrong.
    ParameterProblem(u32),
}

/// Any message: its type, its code, and the four bytes behind its checksum.
/// What follows them is its payload.
pub fn icmp(from: &str, to: &str, kind: u8, code: u8, rest: [u8; 4]) -> Frame {
    let (from, to) = (host(from), host(to));
    let protocol = if from.is_ipv4() { ICMP } else { ICMPV6 };
    Frame {
        icmp: (kind, code, rest),
        ..Frame::new(protocol, from, to)
    }
}

/// An echo request.
pub fn ping(from: &str, to: &str, identifier: u16, sequence: u16, payload: &[u8]) -> Frame {
    let [request, request6] = ECHO.map(|(_, request, _)| request);
    let kind = if host(from).is_ipv4() {
        request
    } else {
        request6
    };
    let [[one, two], [three, four]] = [identifier, sequence].map(u16::to_be_bytes);
    icmp(from, to, kind, 0, [one, two, three, four]).payload(payload)
}

/// An error about a packet, of which it quotes so many bytes at most.
pub fn icmp_error(from: &str, to: &str, error: IcmpError, about: &Frame, quoted: usize) -> Frame {
    let four = host(from).is_ipv4();
    let (kind, code, rest) = if four { error.ipv4() } else { error.ipv6() };
    let packet = about.packet();
    icmp(from, to, kind, code, rest).payload(&packet[..quoted.min(packet.len())])
}

impl IcmpError {
    /// RFC 792; RFC 1191, section 4.
    fn ipv4(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::Unreachable(code) => (3, code, [0; 4]),
            Self::TooBig(mtu) => (3, 4, mtu.to_be_bytes()),
            Self::TimeExceeded => (11, 0, [0; 4]),
            Self::ParameterProblem(place) => (12, 0, (place << 24).to_be_bytes()),
        }
    }

    /// RFC 4443, section 3.
    fn ipv6(self) -> (u8, u8, [u8; 4]) {
        match self {
            Self::Unreachable(code) => (1, code, [0; 4]),
            Self::TooBig(mtu) => (2, 0, mtu.to_be_bytes()),
            Self::TimeExceeded => (3, 0, [0; 4]),
            Self::ParameterProblem(place) => (4, 0, place.to_be_bytes()),
        }
    }
}

/// The type with which a message of this type is answered; its own if it is no
/// echo request.
pub(super) fn answer(protocol: u8, kind: u8) -> u8 {
    let reply = |(of, request, reply)| (of == protocol && request == kind).then_some(reply);
    ECHO.into_iter().find_map(reply).unwrap_or(kind)
}

impl Frame {
    /// With this code (ICMP).
    pub fn code(mut self, code: u8) -> Self {
        self.icmp.1 = code;
        self
    }

    /// What its sender is told in its place: an error from the end that it was
    /// for, back over the same links with the same tags. It quotes, in whole
    /// words, as much as a message may have (RFC 1812, section 4.3.2.3: 576
    /// bytes; RFC 4443, section 2.4 c: 1280).
    pub fn told(&self, error: IcmpError) -> Self {
        let [by, sender] = [self.to, self.from].map(|end| end.ip().to_string());
        let (most, tos) = if self.from.is_ipv4() {
            // Internetwork control (RFC 1812, section 4.3.2.5).
            (576 - 20 - 8, 0xc0)
        } else {
            (1280 - 40 - 8, 0)
        };
        let quoted = self.packet().len().min(most) / 4 * 4;
        let [from, to] = self.links;
        Self {
            tags: self.tags.clone(),
            ..icmp_error(&by, &sender, error, self, quoted)
        }
        .over([to, from])
        .tos(tos)
        .identified(0)
        .dont_fragment()
        .flow_label(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{ones_complement, pseudo_header};
    use crate::frame::{octets, tcp, udp};

    fn holds(frame: &Frame) -> bool {
        let message = &frame.packet()[if frame.from.is_ipv4() { 20 } else { 40 }..];
        let pseudo = match frame.protocol {
            ICMP => Vec::new(),
            _ => pseudo_header(
                &octets(frame.from.ip()),
                &octets(frame.to.ip()),
                ICMPV6,
                message.len() as u32,
            ),
        };
        ones_complement(&[&pseudo, message]) == 0xffff
    }

    #[test]
    fn an_echo_and_its_answer() {
        let four = ping("10.0.0.1", "10.0.0.2", 0x1234, 7, b"abc");
        assert_eq!(four.packet()[20..22], [8, 0]);
        assert_eq!(four.packet()[24..], *b"\x12\x34\x00\x07abc");
        let back = four.clone().answered();
        assert_eq!(back.packet()[12..22], [10, 0, 0, 2, 10, 0, 0, 1, 0, 0]);
        assert_eq!(back.bytes()[..6], four.bytes()[6..12]);
        let six = ping("fd00::1", "fd00::2", 1, 2, b"abcd");
        assert_eq!(six.packet()[40], 128);
        assert_eq!(six.clone().answered().packet()[40], 129);
        assert!(
            [&four, &back, &six, &six.clone().answered()]
                .into_iter()
                .all(holds)
        );
    }

    #[test]
    fn errors_are_numbered_after_their_family_and_quote_the_packet() {
        let about = tcp("10.0.0.1:1", "10.0.0.2:2").syn().padded_to(80);
        let error = |error| {
            let frame = icmp_error("10.9.9.9", "10.0.0.1", error, &about, about.least_quote());
            assert!(holds(&frame));
            assert_eq!(frame.packet()[28..], about.packet()[..28]);
            let head = frame.packet();
            [&head[20..22], &head[24..28]].concat()
        };
        assert_eq!(error(IcmpError::Unreachable(3)), [3, 3, 0, 0, 0, 0]);
        assert_eq!(error(IcmpError::TooBig(1400)), [3, 4, 0, 0, 0x05, 0x78]);
        assert_eq!(error(IcmpError::TimeExceeded), [11, 0, 0, 0, 0, 0]);
        assert_eq!(error(IcmpError::ParameterProblem(20)), [12, 0, 20, 0, 0, 0]);
    }

    #[test]
    fn of_a_short_packet_all_is_quoted() {
        let about = udp("[fd00::1]:1", "[fd00::2]:2").destination_options();
        assert_eq!(about.least_quote(), 56);
        let error = icmp_error("fd00::9", "fd00::1", IcmpError::TooBig(1280), &about, 1232);
        let packet = error.packet();
        assert_eq!(packet[40..42], [2, 0]);
        assert_eq!(packet[44..48], [0, 0, 5, 0]);
        assert_eq!(packet[48..], about.packet());
        assert!(holds(&error));
    }
}
