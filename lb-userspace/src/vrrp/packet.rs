//! VRRP version 3 advertisements as bytes (RFC 9568, section 5). Pure.
//!
//! One message is all there is of the protocol: "I am the Active Router of
//! virtual router N, with this priority, and you hear from me this often."
//! [`parse`] takes what came with the protocol number [`PROTOCOL`] and gives the
//! message or the one reason for which it is ignored ([`Rejected`]), in the
//! order of section 7.1; [`Advertisement::write`] makes what is sent.
//!
//! # Two checksums over IPv4
//! RFC 5798 was read in two ways: some implementations (keepalived among them)
//! include IPv4's pseudo-header in the checksum, others do not, and RFC 9568,
//! section 5.2.8, decided for those that do not. Both are understood here; which
//! one it was is told ([`Checksum`]), so that a sender can follow its peer. Over
//! IPv6 the pseudo-header always belongs to it.
//!
//! # Bounds
//! The number of addresses is one byte, so a message has at most 1,028 bytes over
//! IPv4 and 4,088 over IPv6. What is sent also has to fit a frame of 1,500 bytes,
//! because a fragment of it would be lost on most of those who listen: that is
//! [`most_addresses`].
//!
//! This file needs nothing but the standard library and `thiserror`, so that the
//! fuzzer builds it alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use thiserror::Error;

/// The protocol number of VRRP (RFC 9568, section 5.1.1.4).
pub const PROTOCOL: u8 = 112;

/// The TTL or hop limit of every advertisement: one that a router has passed on
/// has less (RFC 9568, sections 5.1.1.3 and 5.1.2.3).
pub const HOP_LIMIT: u8 = 255;

/// To whom advertisements over IPv4 go (RFC 9568, section 5.1.1.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

/// To whom advertisements over IPv6 go (RFC 9568, section 5.1.2.2).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// The priority of one whose own addresses the protected ones are (RFC 9568,
/// section 5.2.4).
pub const OWNER: u8 = 255;

/// The priority with which an Active Router says that it leaves (RFC 9568,
/// section 5.2.4).
pub const LEAVING: u8 = 0;

/// What comes before the addresses.
const HEADER: usize = 8;

/// Version 3, type 1: the only type there is (RFC 9568, sections 5.2.1 and 5.2.2).
const VERSION: u8 = 3;
const ADVERTISEMENT: u8 = 1;

/// The interval's 12 bits (RFC 9568, section 5.2.7); those above are reserved.
const INTERVAL_BITS: u16 = 0x0fff;

/// The frame that what is sent has to fit.
const FRAME: usize = 1_500;

/// How often an Active Router advertises: 1 to 4,095 centiseconds, as the
/// message has it (RFC 9568, section 5.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(u16);

impl Interval {
    /// So many centiseconds; `None` if the message has no room for it.
    pub const fn from_centiseconds(centiseconds: u16) -> Option<Self> {
        match centiseconds {
            1..=INTERVAL_BITS => Some(Self(centiseconds)),
            _ => None,
        }
    }

    /// In centiseconds.
    pub const fn centiseconds(self) -> u16 {
        self.0
    }

    /// As a duration.
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64 * 10)
    }
}

/// What the checksum of an advertisement over IPv4 is made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The message with IPv4's pseudo-header in front, as RFC 5798 was read by
    /// keepalived and others.
    PseudoHeader,
    /// The message alone (RFC 9568, section 5.2.8).
    Plain,
}

/// An advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// Of which virtual router (VRID), 1 to 255.
    pub virtual_router: u8,
    /// The sender's priority; [`OWNER`] and [`LEAVING`] mean more than a number.
    pub priority: u8,
    /// How often the sender advertises.
    pub interval: Interval,
    /// The addresses it answers for: all of the family of the packet.
    pub addresses: Vec<IpAddr>,
}

/// The header of the packet that an advertisement came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who sent it.
    pub source: IpAddr,
    /// To whom: this host or the group.
    pub destination: IpAddr,
    /// Its TTL or hop limit as it came.
    pub hop_limit: u8,
}

/// What is listened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The virtual router.
    pub virtual_router: u8,
    /// The least TTL or hop limit: 255, but for peers that do not keep to that.
    pub hop_limit: u8,
}

impl Expected {
    /// Advertisements of this virtual router, by the book.
    pub const fn of(virtual_router: u8) -> Self {
        Self {
            virtual_router,
            hop_limit: HOP_LIMIT,
        }
    }
}

macro_rules! rejections {
    ($($variant:ident $name:literal $help:literal)+) => {
        /// Why an advertisement is ignored, as one flat list: each reason is a
        /// counter of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
        pub enum Rejected {
            $(#[doc = $help] #[error($help)] $variant,)+
        }

        impl Rejected {
            /// Every reason, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it in metrics, JSON and on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means and what to do about it.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)+ }
            }
        }
    };
}

rejections! {
    Truncated "truncated"
        "The packet ends before its IP header or the first eight bytes of the message do."
    HopLimit "hop_limit"
        "Its TTL or hop limit is not 255: it was not sent on this link, or somebody pretends. A peer that does not keep to 255 (keepalived over IPv6 by unicast) needs `hop_limit`."
    OtherVersion "other_version"
        "It is of another version than 3. VRRP version 2 is not spoken here: set the peer to version 3."
    OtherType "other_type"
        "It is of a type other than 1, advertisement; there are no others."
    NoAddress "no_address"
        "It names no address."
    Length "length"
        "It is longer or shorter than the number of addresses in it says."
    BadChecksum "bad_checksum"
        "Its checksum is wrong, with and without the pseudo-header."
    ZeroInterval "zero_interval"
        "It promises advertisements every 0 seconds."
    OtherRouter "other_router"
        "It is of another virtual router: others may share the link. If it is the peer's, set the same `vrid` on both."
    Stranger "stranger"
        "Its sender is none of `peers`."
    Reflected "reflected"
        "It came from this host's own address: a reflection, or another host has that address too."
}

/// Why an advertisement cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unwritable {
    /// An address of the other family, or ends of two families.
    #[error(
        "an advertisement has addresses of one family only, that of the packet (RFC 9568, section 5.2.9)"
    )]
    Families,
    /// None, or more than fit: see [`most_addresses`].
    #[error("an advertisement has 1 to {most} addresses of this family, not {wanted}")]
    Count {
        /// How many there were to be.
        wanted: usize,
        /// How many it may have.
        most: usize,
    },
}

/// How many addresses of the family of `of` an advertisement may have that is
/// sent: 255 of IPv4, 90 of IPv6.
pub const fn most_addresses(of: IpAddr) -> usize {
    let (ip_header, width) = match of {
        IpAddr::V4(_) => (20, 4),
        IpAddr::V6(_) => (40, 16),
    };
    let fit = (FRAME - ip_header - HEADER) / width;
    if fit < u8::MAX as usize {
        fit
    } else {
        u8::MAX as usize
    }
}

/// The message in what followed the IP header, if it is what is expected, and what
/// its checksum is over (RFC 9568, section 7.1, in that order).
pub fn parse(
    message: &[u8],
    envelope: &Envelope,
    expected: Expected,
) -> Result<(Advertisement, Checksum), Rejected> {
    if envelope.hop_limit < expected.hop_limit {
        return Err(Rejected::HopLimit);
    }
    let Some((header, rest)) = message.split_first_chunk::<HEADER>() else {
        return Err(Rejected::Truncated);
    };
    let [
        version_and_type,
        router,
        priority,
        count,
        interval_high,
        interval_low,
        _,
        _,
    ] = *header;
    if version_and_type >> 4 != VERSION {
        return Err(Rejected::OtherVersion);
    }
    if version_and_type & 0x0f != ADVERTISEMENT {
        return Err(Rejected::OtherType);
    }
    if count == 0 {
        return Err(Rejected::NoAddress);
    }
    let addresses = match envelope.source {
        IpAddr::V4(_) => read(rest, count, |bytes: [u8; 4]| IpAddr::from(bytes)),
        IpAddr::V6(_) => read(rest, count, |bytes: [u8; 16]| IpAddr::from(bytes)),
    }
    .ok_or(Rejected::Length)?;
    let checksum = verified(message, envelope).ok_or(Rejected::BadChecksum)?;
    let interval = u16::from_be_bytes([interval_high, interval_low]) & INTERVAL_BITS;
    let interval = Interval::from_centiseconds(interval).ok_or(Rejected::ZeroInterval)?;
    if router != expected.virtual_router {
        return Err(Rejected::OtherRouter);
    }
    let advertisement = Advertisement {
        virtual_router: router,
        priority,
        interval,
        addresses,
    };
    Ok((advertisement, checksum))
}

/// Parts a whole IPv4 packet, as a raw socket gives it, into what the header says
/// and what follows it.
pub fn open_v4(packet: &[u8]) -> Result<(Envelope, &[u8]), Rejected> {
    let header: &[u8; 20] = packet.first_chunk().ok_or(Rejected::Truncated)?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let (&[s0, s1, s2, s3], &[d0, d1, d2, d3]) = (
        header[12..].first_chunk().ok_or(Rejected::Truncated)?,
        header[16..].first_chunk().ok_or(Rejected::Truncated)?,
    );
    if header[0] >> 4 != 4 || length < header.len() {
        return Err(Rejected::Truncated);
    }
    let message = packet.get(length..total).ok_or(Rejected::Truncated)?;
    let envelope = Envelope {
        source: Ipv4Addr::new(s0, s1, s2, s3).into(),
        destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
        hop_limit: header[8],
    };
    Ok((envelope, message))
}

impl Advertisement {
    /// The message as bytes, for a packet between these two. `checksum` is over
    /// IPv4 only.
    pub fn write(
        &self,
        source: IpAddr,
        destination: IpAddr,
        checksum: Checksum,
    ) -> Result<Vec<u8>, Unwritable> {
        let of_family = |address: &IpAddr| address.is_ipv4() == source.is_ipv4();
        if !of_family(&destination) || !self.addresses.iter().all(of_family) {
            return Err(Unwritable::Families);
        }
        let (wanted, most) = (self.addresses.len(), most_addresses(source));
        let count = match u8::try_from(wanted) {
            Ok(count) if (1..=most).contains(&wanted) => count,
            _ => return Err(Unwritable::Count { wanted, most }),
        };
        let [interval_high, interval_low] = self.interval.centiseconds().to_be_bytes();
        let mut message = vec![
            VERSION << 4 | ADVERTISEMENT,
            self.virtual_router,
            self.priority,
            count,
            interval_high,
            interval_low,
            0,
            0,
        ];
        for address in &self.addresses {
            match address {
                IpAddr::V4(address) => message.extend(address.octets()),
                IpAddr::V6(address) => message.extend(address.octets()),
            }
        }
        let pseudo = match (source, checksum) {
            (IpAddr::V4(_), Checksum::Plain) => 0,
            (IpAddr::V4(_), Checksum::PseudoHeader) | (IpAddr::V6(_), _) => {
                pseudo_header(source, destination, message.len())
            }
        };
        let sum = !fold(pseudo + words(&message));
        message[6..HEADER].copy_from_slice(&sum.to_be_bytes());
        Ok(message)
    }
}

/// Exactly `count` addresses of `N` bytes; `None` if there are more or fewer bytes.
fn read<const N: usize>(
    bytes: &[u8],
    count: u8,
    address: impl Fn([u8; N]) -> IpAddr,
) -> Option<Vec<IpAddr>> {
    let (chunks, rest) = bytes.as_chunks::<N>();
    let complete = rest.is_empty() && chunks.len() == usize::from(count);
    complete.then(|| chunks.iter().copied().map(address).collect())
}

/// What the checksum is over, if it is right at all. Where both would be right,
/// the pseudo-header adds nothing, and its receivers cannot tell either.
fn verified(message: &[u8], envelope: &Envelope) -> Option<Checksum> {
    let pseudo = pseudo_header(envelope.source, envelope.destination, message.len());
    let sum = words(message);
    if fold(pseudo + sum) == u16::MAX {
        Some(Checksum::PseudoHeader)
    } else if envelope.source.is_ipv4() && fold(sum) == u16::MAX {
        Some(Checksum::Plain)
    } else {
        None
    }
}

/// The sum over what stands for the IP header (RFC 793, section 3.1; RFC 8200,
/// section 8.1): both addresses, the protocol, the length.
fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => words(&address.octets()),
        IpAddr::V6(address) => words(&address.octets()),
    };
    // No slice has so many bytes that this is not exact.
    address(source) + address(destination) + u64::from(PROTOCOL) + length as u64
}

/// The sum of 16-bit words (RFC 1071); an odd byte at the end counts as if a
/// zero followed.
fn words(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let even: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    even + rest.first().map_or(0, |&byte| u64::from(byte) << 8)
}

/// A sum's carries added in until none is left.
const fn fold(mut sum: u64) -> u16 {
    while sum > u16::MAX as u64 {
        sum = (sum & u16::MAX as u64) + (sum >> 16);
    }
    sum as u16
}

// Named for the fuzzer, which takes this file from another folder.
#[cfg(test)]
#[path = "packet/tests.rs"]
mod tests;
