//! The only way to touch a packet's bytes.
//!
//! A header is borrowed from the packet, so that none can be held across
//! anything that moves the packet: the verifier's rule becomes the borrow
//! checker's. Each call compares with the packet's end anew, which is what the
//! verifier asks for.

use lb_common::Verdict;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

/// Something that stands in a packet byte for byte.
///
/// # Safety
/// The type has alignment 1, no padding, and every bit pattern is a value of it.
pub unsafe trait Wire: Copy {}

/// The Ethernet header (IEEE 802.3) up to the tags, if there are any, or to the
/// type: `network-types` has it with a 16-bit field, which a packet need not
/// align.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    /// Destination link address.
    pub dst: [u8; 6],
    /// Source link address.
    pub src: [u8; 6],
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Arp {
    /// The kinds of addresses, and their lengths.
    pub spaces: [u8; 6],
    /// What it is, big-endian.
    pub operation: [u8; 2],
    /// Whose link address is told.
    pub sender: [u8; 10],
    /// The link address that is asked for, where it is known.
    pub target_link: [u8; 6],
    /// Whose link address is asked for.
    pub target: [u8; 4],
}

/// A neighbour solicitation without its options (RFC 4861, section 4.3).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Solicitation {
    /// Type, code, checksum, and four bytes without a meaning.
    pub icmp: [u8; 8],
    /// Whose link address is asked for.
    pub target: [u8; 16],
}

/// The ports, which TCP and UDP have in the same place.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Source port, big-endian.
    pub src: [u8; 2],
    /// Destination port, big-endian.
    pub dst: [u8; 2],
}

/// The TCP header without options (RFC 9293, section 3.1), with the flags as
/// the byte they are: `network-types` has them as a bit field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Source port, big-endian.
    pub src: [u8; 2],
    /// Destination port, big-endian.
    pub dst: [u8; 2],
    /// Sequence number, big-endian.
    pub sequence: [u8; 4],
    /// Acknowledgement number, big-endian.
    pub acknowledged: [u8; 4],
    /// Header length in 32-bit words in the high four bits.
    pub data_offset: u8,
    /// See [`lb_common::flow::tcp_flag`].
    pub flags: u8,
    /// Window, big-endian.
    pub window: [u8; 2],
    /// Checksum, big-endian.
    pub check: [u8; 2],
    /// Urgent pointer, big-endian.
    pub urgent: [u8; 2],
}

/// The part that all messages of ICMP (RFC 792) and ICMPv6 (RFC 4443) have, and
/// the word behind it, whose meaning depends on the type.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Icmp {
    /// The type.
    pub kind: u8,
    /// The code.
    pub code: u8,
    /// Checksum, big-endian.
    pub check: [u8; 2],
    /// Unused, an MTU, or an identifier and a number.
    pub rest: [u8; 4],
}

const _: () = {
    assert!(align_of::<Ethernet>() == 1 && size_of::<Ethernet>() == 12);
    assert!(align_of::<Arp>() == 1 && size_of::<Arp>() == 28);
    assert!(align_of::<Solicitation>() == 1 && size_of::<Solicitation>() == 24);
    assert!(align_of::<Ports>() == 1 && size_of::<Ports>() == 4);
    assert!(align_of::<Ipv4Hdr>() == 1 && size_of::<Ipv4Hdr>() == 20);
    assert!(align_of::<Ipv6Hdr>() == 1 && size_of::<Ipv6Hdr>() == 40);
    assert!(align_of::<Tcp>() == 1 && size_of::<Tcp>() == 20);
    assert!(align_of::<UdpHdr>() == 1 && size_of::<UdpHdr>() == 8);
    assert!(align_of::<Icmp>() == 1 && size_of::<Icmp>() == 8);
};

// SAFETY: byte arrays only; alignment and size are asserted above.
unsafe impl Wire for Ethernet {}
// SAFETY: byte arrays only; alignment and size are asserted above.
unsafe impl Wire for Arp {}
// SAFETY: byte arrays only; alignment and size are asserted above.
unsafe impl Wire for Solicitation {}
// SAFETY: byte arrays only; alignment and size are asserted above.
unsafe impl Wire for Ports {}
// SAFETY: bytes and byte arrays only; alignment and size are asserted above.
unsafe impl Wire for Ipv4Hdr {}
// SAFETY: bytes and byte arrays only; alignment and size are asserted above.
unsafe impl Wire for Ipv6Hdr {}
// SAFETY: bytes and byte arrays only; alignment and size are asserted above.
unsafe impl Wire for Tcp {}
// SAFETY: bytes and byte arrays only; alignment and size are asserted above.
unsafe impl Wire for UdpHdr {}
// SAFETY: bytes and byte arrays only; alignment and size are asserted above.
unsafe impl Wire for Icmp {}
// SAFETY: bytes have alignment 1 and any value.
unsafe impl<const N: usize> Wire for [u8; N] {}

/// A frame, from its Ethernet header on.
pub trait Packet {
    /// The header at this offset, or [`Verdict::Truncated`] where the frame
    /// ends before the header does. A header has two bytes at least.
    fn at<H: Wire>(&mut self, offset: u32) -> Result<&mut H, Verdict>;

    /// Makes this many bytes of room in front of the frame, or takes as many
    /// away if it is negative; offsets count from the new beginning. What the
    /// new bytes hold is not said. On failure nothing has changed.
    fn shift_head(&mut self, bytes: i32) -> Result<(), Verdict>;

    /// Cuts the end off the frame, so that it has this length; one that is
    /// shorter stays as it is.
    fn cut_to(&mut self, length: u32) -> Result<(), Verdict>;

    /// The length of the frame in bytes.
    fn length(&self) -> u64;

    /// The index of the interface it came in on.
    fn ingress(&self) -> u32;
}
