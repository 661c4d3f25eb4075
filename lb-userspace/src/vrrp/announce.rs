//! Telling neighbours that an address has moved here: gratuitous ARP for IPv4 (RFC
//! 5227, section 3), unsolicited neighbour advertisements for IPv6 (RFC 4861,
//! section 7.2.6), as RFC 9568, section 6.4.2 asks for.
//!
//! There is no virtual MAC address here, which RFC 9568, section 7.3 has: frames go
//! to the MAC address of whichever node is active, because that is the address at
//! which the XDP program sees them. So these announcements are what moves traffic,
//! for hosts and for switches. (keepalived does the same unless told otherwise.)
//!
//! They are sent as frames: the kernel need not have the address yet, and nothing
//! waits for it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, sendto, socket_with};

/// A link-layer address.
pub type Mac = [u8; 6];

/// An address, and the interface by whose neighbours it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The interface's index.
    pub index: u32,
    /// Its own link-layer address.
    pub mac: Mac,
    /// The address.
    pub address: IpAddr,
}

/// A socket for frames.
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
}

impl Announcer {
    /// In the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        // Without a protocol it receives nothing.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        Ok(Self { socket })
    }

    /// Announces each address once. An interface that cannot send does not keep the
    /// others from it; the first failure is given.
    pub fn announce(&self, places: &[Place]) -> io::Result<()> {
        let mut outcome = Ok(());
        for place in places {
            let end = LinkEnd::of(place.index);
            let frame = frame(place.mac, place.address);
            let sent = sendto(&self.socket, &frame, SendFlags::empty(), &end);
            if outcome.is_ok() {
                outcome = sent.map(drop).map_err(io::Error::from);
            }
        }
        outcome
    }
}

/// The frame that announces `address` as that of `mac`.
pub fn frame(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => gratuitous_arp(mac, address),
        IpAddr::V6(address) => neighbour_advertisement(mac, address),
    }
}

/// A request for one's own address, to everybody (RFC 5227, section 2.3).
fn gratuitous_arp(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    const ETHERNET_IPV4_REQUEST: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 1];
    let mut frame = ethernet([0xff; 6], mac, 0x0806);
    frame.extend(ETHERNET_IPV4_REQUEST);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// Router and Override set, Solicited not, with the target's link-layer address
/// (RFC 9568, section 6.4.2; RFC 4861, section 4.4).
fn neighbour_advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ICMPV6: u8 = 58;
    const FLAGS: u8 = 0xa0;
    let mut message = vec![136, 0, 0, 0, FLAGS, 0, 0, 0];
    message.extend(address.octets());
    // Target link-layer address, in units of eight bytes.
    message.extend([2, 1]);
    message.extend(mac);
    let length = message.len() as u16;
    let mut summed = address.octets().to_vec();
    summed.extend(ALL_NODES.octets());
    summed.extend([0, 0]);
    summed.extend(length.to_be_bytes());
    summed.extend([0, 0, 0, ICMPV6]);
    summed.extend(&message);
    let sum = checksum(&summed);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet([0x33, 0x33, 0, 0, 0, 1], mac, 0x86dd);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(address.octets());
    frame.extend(ALL_NODES.octets());
    frame.extend(message);
    frame
}

fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(86);
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let (pairs, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = pairs
        .iter()
        .map(|pair| u32::from(u16::from_be_bytes(*pair)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The kernel's `sockaddr_ll`, as far as an interface to send by needs it.
#[repr(C)]
#[derive(Debug)]
struct LinkEnd {
    family: u16,
    protocol: u16,
    index: u32,
    hardware: u16,
    kind: u8,
    address_length: u8,
    address: [u8; 8],
}

impl LinkEnd {
    const fn of(index: u32) -> Self {
        Self {
            family: AddressFamily::PACKET.as_raw(),
            protocol: 0,
            index,
            hardware: 0,
            kind: 0,
            address_length: 0,
            address: [0; 8],
        }
    }
}

// SAFETY: the pointer and the length are those of `self`, which has the kernel's
// layout and outlives the call.
unsafe impl SocketAddrArg for LinkEnd {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        const LENGTH: SocketAddrLen = size_of::<LinkEnd>() as SocketAddrLen;
        f(ptr::from_ref(self).cast(), LENGTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 0x11];

    #[test]
    fn gratuitous_arp_is_a_request_for_ones_own_address_to_everybody() {
        #[rustfmt::skip]
        let golden = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0x11, 0x08, 0x06,
            0, 1, 0x08, 0, 6, 4, 0, 1,
            2, 0, 0, 0, 0, 0x11, 203, 0, 113, 10,
            0, 0, 0, 0, 0, 0, 203, 0, 113, 10,
        ];
        assert_eq!(frame(MAC, [203, 0, 113, 10].into()), golden);
    }

    #[test]
    fn a_neighbour_advertisement_overrides_and_is_to_all_nodes() {
        // Made by scapy: IPv6(src="2001:db8::10", dst="ff02::1", hlim=255) /
        // ICMPv6ND_NA(tgt="2001:db8::10", R=1, S=0, O=1) / ICMPv6NDOptDstLLAddr.
        #[rustfmt::skip]
        let golden = [
            0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0x11, 0x86, 0xdd,
            0x60, 0, 0, 0, 0, 0x20, 0x3a, 0xff,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            0x88, 0, 0x78, 0xfc, 0xa0, 0, 0, 0,
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
            2, 1, 2, 0, 0, 0, 0, 0x11,
        ];
        let address: IpAddr = "2001:db8::10".parse().unwrap();
        assert_eq!(frame(MAC, address), golden);
    }
}
