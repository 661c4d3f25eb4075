//! Packets inside packets.

use super::link::PADDING;
use super::{Frame, host};

/// IPv4 inside (RFC 2003).
const IPIP: u8 = 4;
/// IPv6 inside (RFC 2473, RFC 4213).
const IPV6: u8 = 41;

impl Frame {
    /// The same with another IP header around the packet, of either family:
    /// TTL 64, and all else zero. What is said from here on is said of this
    /// outer packet.
    ///
    /// What is behind the inner packet, by its own length, stays behind the
    /// outer one: neither counts it.
    pub fn inside(self, from: &str, to: &str) -> Self {
        let (packet, trail) = self.packet_and_trail();
        let protocol = if self.from.is_ipv4() { IPIP } else { IPV6 };
        Self {
            links: self.links,
            tags: self.tags,
            identification: 0,
            flow_label: 0,
            payload: packet,
            trail,
            ..Self::new(protocol, host(from), host(to))
        }
    }

    /// The IP packet as long as it says that it is, and what else is in the
    /// frame.
    fn packet_and_trail(&self) -> (Vec<u8>, Vec<u8>) {
        let mut packet = self.packet();
        let padded = self.link_header().len() + packet.len() + self.trail.len();
        let padding = self.padded_to.saturating_sub(padded);
        let header = if self.from.is_ipv4() { 0 } else { 40 };
        let said = (self.claimed.ip_length).map_or(packet.len(), |said| header + usize::from(said));
        let mut trail = packet.split_off(said.min(packet.len()));
        trail.extend(&self.trail);
        trail.extend(vec![PADDING; padding]);
        (packet, trail)
    }
}

#[cfg(test)]
mod tests {
    use crate::frame::{tcp, udp};

    #[test]
    fn either_family_goes_into_either() {
        let four = tcp("10.0.0.1:1", "10.0.0.2:2").syn().ttl(9).tagged(7);
        let six = udp("[fd00::1]:1", "[fd00::2]:2").payload(b"x").ttl(9);
        for (inner, protocol) in [(four, 4), (six, 41)] {
            let outer = inner.clone().inside("10.1.0.1", "10.1.0.2");
            let packet = outer.packet();
            assert_eq!((packet[8], packet[9]), (64, protocol));
            assert_eq!(usize::from(packet[3]), packet.len());
            assert_eq!(packet[20..], inner.packet());
            let outer = inner.clone().inside("fd01::1", "fd01::2");
            let packet = outer.packet();
            assert_eq!((packet[6], packet[7]), (protocol, 64));
            assert_eq!(usize::from(packet[5]), packet.len() - 40);
            assert_eq!(packet[40..], inner.packet());
            assert_eq!(outer.bytes()[..12], inner.bytes()[..12]);
            assert_eq!(outer.tags.len(), inner.tags.len());
        }
    }

    #[test]
    fn what_is_said_afterwards_is_said_of_the_outer_packet() {
        let inner = udp("10.0.0.1:1", "10.0.0.2:2").ttl(9).tos(1);
        let outer = inner.clone().inside("10.1.0.1", "10.1.0.2");
        let packet = outer.ttl(33).tos(2).identified(5).dont_fragment().packet();
        assert_eq!(packet[..10], [0x45, 2, 0, 48, 0, 5, 0x40, 0, 33, 4]);
        assert_eq!(packet[20..], inner.packet());
        let outer = inner.inside("fd01::1", "fd01::2").flow_label(0x1_2345);
        assert_eq!(outer.packet()[..4], [0x60, 1, 0x23, 0x45]);
    }

    #[test]
    fn padding_stays_behind_and_does_not_count() {
        let inner = udp("10.0.0.1:1", "10.0.0.2:2").padded_to(60);
        let outer = inner.clone().inside("10.1.0.1", "10.1.0.2");
        let bytes = outer.bytes();
        assert_eq!(bytes.len(), 80);
        assert_eq!(bytes[16..18], [0, 48]);
        assert_eq!(bytes[34..], inner.bytes()[14..]);
        assert_eq!(outer.trimmed().bytes().len(), 62);
        // The inner packet says that it ends two bytes earlier.
        let inner = udp("10.0.0.1:1", "10.0.0.2:2").payload(b"abcd");
        let bytes = inner
            .claims_ip_length(30)
            .inside("10.1.0.1", "10.1.0.2")
            .bytes();
        assert_eq!(bytes[16..18], [0, 50]);
        assert_eq!(bytes[64..], *b"cd");
    }
}
