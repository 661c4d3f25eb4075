//! Addresses and ports as they stand in maps and on the wire.
//!
//! The bytes in memory are in network order, but the types are whole words:
//! eBPF copies and compares a word in one instruction and a byte array byte by
//! byte. The words are private, so that nobody mistakes them for numbers.
//!
//! An address is 16 bytes whatever its family. IPv4 is held in its IPv6-mapped
//! form (`::ffff:a.b.c.d`, RFC 4291, section 2.5.5.2), so that one key, one
//! table and one function serve both families.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytemuck::{Pod, Zeroable};

/// The third word of an IPv4-mapped address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// A 16-bit number in network byte order: a port.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in host order.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// As it stands in a packet.
    #[inline(always)]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        Self(u16::from_ne_bytes(bytes))
    }

    /// As it stands in a packet.
    #[inline(always)]
    pub const fn to_wire(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// The bytes as one word in memory order, for checksums and hashes.
    #[inline(always)]
    pub const fn word(self) -> u16 {
        self.0
    }
}

impl PartialOrd for Be16 {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Be16 {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.get().cmp(&other.get())
    }
}

impl fmt::Debug for Be16 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// An IPv4 or IPv6 address in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Address([u32; 4]);

impl Address {
    /// All bytes zero; no address of anybody.
    pub const ZERO: Self = Self([0; 4]);

    /// The mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self([0, 0, MAPPED, u32::from_ne_bytes(octets)])
    }

    /// An IPv6 address.
    #[inline(always)]
    pub const fn v6(octets: &[u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// Whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.0;
        a == 0 && b == 0 && c == MAPPED
    }

    /// The last four bytes: the IPv4 address where [`Self::is_v4`] holds.
    #[inline(always)]
    pub const fn low4(&self) -> [u8; 4] {
        self.0[3].to_ne_bytes()
    }

    /// All sixteen bytes.
    #[inline(always)]
    pub fn octets(&self) -> [u8; 16] {
        bytemuck::cast(self.0)
    }

    /// Writes all sixteen bytes, word by word: a packet is not aligned, and the
    /// compiler would copy byte by byte.
    #[inline(always)]
    pub fn write(&self, place: &mut [u8; 16]) {
        let (words, _) = place.as_chunks_mut::<4>();
        for (place, word) in words.iter_mut().zip(self.0) {
            *place = word.to_ne_bytes();
        }
    }

    /// The bytes as words in memory order, for checksums, hashes and helpers
    /// of the kernel.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The inverse of [`Self::words`].
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The address as the standard library's type, IPv4 unmapped.
    pub fn ip(&self) -> IpAddr {
        Ipv6Addr::from(self.octets()).to_canonical()
    }

    /// The address with a port, as the standard library's type.
    pub fn socket(&self, port: Be16) -> SocketAddr {
        SocketAddr::new(self.ip(), port.get())
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        // As one number: the controller compares very many.
        u128::from_be_bytes(self.octets()).cmp(&u128::from_be_bytes(other.octets()))
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Self::v6(&v6.octets()),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(ip.octets())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}
