//! The link layer of a frame: addresses, tags, padding.

use super::Frame;

/// A link address.
pub type Link = [u8; 6];

/// What padding is made of: nothing that could be taken for an empty field.
pub(super) const PADDING: u8 = 0xee;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// IEEE 802.1Q: the tag of a customer's VLAN.
const CUSTOMER: u16 = 0x8100;
/// IEEE 802.1ad: that of a provider's, around it.
const PROVIDER: u16 = 0x88a8;

/// The bytes of a tag.
const TAG: usize = 4;

/// A VLAN tag. Without a protocol of its own it is a provider's where another
/// follows it at once, else a customer's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag {
    protocol: Option<u16>,
    control: u16,
}

impl Frame {
    /// With the tag of this VLAN, behind those that it has: the first is the
    /// outermost.
    pub fn tagged(self, vlan: u16) -> Self {
        self.with_tag(None, vlan)
    }

    /// The same, with this protocol (0x8100, 0x88a8, 0x9100, …) and control
    /// information (priority, drop eligible, VLAN).
    pub fn tag(self, protocol: u16, control: u16) -> Self {
        self.with_tag(Some(protocol), control)
    }

    fn with_tag(mut self, protocol: Option<u16>, control: u16) -> Self {
        self.tags.push(Tag { protocol, control });
        if self.padded_to > 0 {
            self.padded_to += TAG;
        }
        self
    }

    /// Without the tags that it has.
    pub fn untagged(mut self) -> Self {
        self.padded_to = self.padded_to.saturating_sub(TAG * self.tags.len());
        self.tags.clear();
        self
    }

    /// With these link addresses: from, to.
    pub fn over(mut self, links: [Link; 2]) -> Self {
        self.links = links;
        self
    }

    /// Padded behind the IP packet to a frame of this length.
    pub fn padded_to(mut self, length: usize) -> Self {
        self.padded_to = length;
        self
    }

    /// Without anything behind the IP packet.
    pub fn trimmed(mut self) -> Self {
        self.padded_to = 0;
        self.trail.clear();
        self
    }

    /// Says that it carries this: in its Ethernet header, or its last tag.
    pub fn claims_ether_type(mut self, ether_type: u16) -> Self {
        self.claimed.ether_type = Some(ether_type);
        self
    }

    pub(super) fn link_header(&self) -> Vec<u8> {
        let [from, to] = self.links;
        let mut header = [to, from].concat();
        for (place, tag) in self.tags.iter().enumerate() {
            let usual = if place == 0 && self.tags.len() > 1 {
                PROVIDER
            } else {
                CUSTOMER
            };
            header.extend(tag.protocol.unwrap_or(usual).to_be_bytes());
            header.extend(tag.control.to_be_bytes());
        }
        let carried = if self.from.is_ipv4() { IPV4 } else { IPV6 };
        header.extend(self.claimed.ether_type.unwrap_or(carried).to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use crate::frame::udp;

    #[test]
    fn of_two_tags_the_first_is_outside_and_a_providers() {
        let frame = udp("10.0.0.1:1", "10.0.0.2:2").tagged(200).tagged(100);
        let bytes = frame.bytes();
        assert_eq!(bytes[12..22], [0x88, 0xa8, 0, 200, 0x81, 0, 0, 100, 8, 0]);
        assert_eq!(bytes[22..], frame.clone().untagged().bytes()[14..]);
        // Priority 5, drop eligible, VLAN 0xabc
        let old = frame.untagged().tag(0x9100, 0xbabc).tagged(7).bytes();
        assert_eq!(
            old[12..22],
            [0x91, 0, 0xba, 0xbc, 0x81, 0, 0, 7, 0x08, 0x00]
        );
    }

    #[test]
    fn one_tag_is_a_customers_and_says_what_is_in_it() {
        let frame = udp("[fd00::1]:1", "[fd00::2]:2").tagged(100).bytes();
        assert_eq!(frame[12..18], [0x81, 0x00, 0, 100, 0x86, 0xdd]);
    }

    #[test]
    fn a_tag_leaves_the_padding_as_long_as_it_was() {
        let frame = udp("10.0.0.1:1", "10.0.0.2:2").padded_to(60);
        let tagged = frame.clone().tagged(100).bytes();
        assert_eq!(tagged.len(), 64);
        assert_eq!(tagged[60..], [super::PADDING; 4]);
        assert_eq!(frame.clone().tagged(100).untagged().bytes(), frame.bytes());
        assert_eq!(frame.tagged(100).padded_to(70).trimmed().bytes().len(), 46);
    }
}
