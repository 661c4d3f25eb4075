//! The end of a tunnel, on a backend: what `lb decap` does to one packet.
//!
//! A balancer in `tunnel` mode puts another IP header around a client's packet
//! (IPv4 or IPv6, around either). [`decap`] takes that header off again and
//! leaves the client's packet to the host's stack, as if it had come so. It is
//! for backends whose kernel has no tunnel devices, or whose administrator wants
//! none.
//!
//! Who can send such a packet can pretend to be any client, past every filter
//! on the way that looks at addresses. Therefore only what [`Trust`] vouches
//! for is unwrapped: from a source that tunnels may come from, to an address of
//! this host. All else is left to the stack bit for bit, which has no tunnel
//! either and discards it.
//!
//! What the outer header has learnt on the way is not lost with it: a mark of
//! congestion goes over to the inner header as RFC 6040, section 4.2 says. The
//! inner TTL stays as it is (RFC 2003, section 3.1; RFC 2473, section 3.1):
//! the tunnel's entrance has counted the hop.
//!
//! What is unwrapped is whole: the frame holds the outer packet, and the outer
//! packet the inner one, each by the length that it says it has.

use lb_common::checksum::Delta;
use lb_common::decap::Outcome;
use lb_common::{Address, Be16};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::guard::may_send;
use crate::packet::{Ethernet, Packet, Wire};
use crate::parse::Family;
use crate::tables::LinkAddress;

/// What the host knows: the seam behind which there are maps in the kernel and
/// ordinary collections in tests. The tables of the data path know nothing of
/// this.
pub trait Trust {
    /// Whether this is an address of this host.
    fn ours(&self, address: &Address) -> bool;

    /// Whether tunnels may come from this address.
    fn trusted(&self, source: &Address) -> bool;

    /// Counts the packet.
    fn count(&self, outcome: Outcome);
}

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// IEEE 802.1Q and 802.1ad: the tags that a host's stack understands.
const CUSTOMER: [u8; 2] = [0x81, 0x00];
const PROVIDER: [u8; 2] = [0x88, 0xa8];

const IPV4_HEADER: u32 = Ipv4Hdr::LEN as u32;
const IPV6_HEADER: u32 = Ipv6Hdr::LEN as u32;

/// Protocol numbers of IP within IP (RFC 2003, RFC 2473).
const IPV4_INSIDE: u8 = 4;
const IPV6_INSIDE: u8 = 41;

/// "More fragments follow", and the place of this one (RFC 791, section 3.1).
const FRAGMENT: [u8; 2] = [0x3f, 0xff];

/// The two bits of ECN (RFC 3168, section 5).
mod ecn {
    pub(super) const NOT_CAPABLE: u32 = 0;
    pub(super) const CAPABLE_1: u32 = 1;
    pub(super) const CAPABLE_0: u32 = 2;
    pub(super) const CONGESTED: u32 = 3;
    pub(super) const BITS: u32 = 3;
}

/// Takes the tunnel's header off, if this is a packet of a tunnel that ends
/// here, and counts it. What passes without being [`Outcome::Unwrapped`], and
/// what is dropped, is as it came.
#[inline(always)]
pub fn decap(packet: &mut impl Packet, trust: &impl Trust) -> Outcome {
    let outcome = match unwrap(packet, trust) {
        Ok(()) => Outcome::Unwrapped,
        Err(outcome) => outcome,
    };
    trust.count(outcome);
    outcome
}

/// The one screen. Nothing is written before the header is off, and nothing
/// can fail afterwards: what is written then has been read before.
#[inline(always)]
fn unwrap(packet: &mut impl Packet, trust: &impl Trust) -> Result<(), Outcome> {
    let link = Link::read(packet)?;
    let outer = Outer::read(packet, &link)?;
    if !trust.ours(&outer.dst) {
        return Err(Outcome::NotForUs);
    }
    if !trust.trusted(&outer.src) {
        return Err(Outcome::UntrustedSource);
    }
    if outer.fragment != 0 {
        return Err(Outcome::OuterFragment);
    }
    let end = link.length + outer.header + outer.payload;
    if packet.length() < u64::from(end) {
        return Err(Outcome::Truncated);
    }
    let marked = inspect(packet, &link, &outer)?;
    if packet.shift_head(-(outer.header as i32)).is_err() {
        return Err(Outcome::NotMoved);
    }
    link.write(packet, outer.inside)?;
    match outer.inside {
        Family::V4 => mark_v4(packet, link.length, marked),
        Family::V6 => mark_v6(packet, link.length, marked),
    }
}

/// A VLAN tag, and what a frame says that it carries, as they stand there.
type Tag = [u8; 4];
type EtherType = [u8; 2];

/// Where the first tag begins, or the EtherType if there is none.
const TAGS: u32 = size_of::<Ethernet>() as u32;
const TAG: u32 = size_of::<Tag>() as u32;
const ETHER_TYPE: u32 = size_of::<EtherType>() as u32;

/// The link header, while the outer IP header behind it is taken away. Whole
/// words, as everywhere: see [`crate::parse::Parsed`].
struct Link {
    dst: LinkAddress,
    src: LinkAddress,
    /// The tags as they stand in memory, 0 where there is none: no tag begins
    /// with a zero.
    tags: (u32, u32),
    /// Where the outer IP header begins.
    length: u32,
    /// The IP version of the outer header.
    carries: Family,
}

impl Link {
    #[inline(always)]
    fn read(packet: &mut impl Packet) -> Result<Self, Outcome> {
        let Ethernet { dst, src } = *header::<Ethernet>(packet, 0)?;
        let (dst, src) = (LinkAddress::new(dst), LinkAddress::new(src));
        let (mut tags, mut end) = ((0, 0), TAGS);
        let mut carried = *header::<EtherType>(packet, end)?;
        if is_tag(carried) {
            tags.0 = u32::from_ne_bytes(*header::<Tag>(packet, end)?);
            end += TAG;
            carried = *header::<EtherType>(packet, end)?;
            if is_tag(carried) {
                tags.1 = u32::from_ne_bytes(*header::<Tag>(packet, end)?);
                end += TAG;
                carried = *header::<EtherType>(packet, end)?;
            }
        }
        let carries = match carried {
            IPV4 => Family::V4,
            IPV6 => Family::V6,
            _ => return Err(Outcome::NotTunnel),
        };
        Ok(Self {
            dst,
            src,
            tags,
            length: end + ETHER_TYPE,
            carries,
        })
    }

    #[inline(always)]
    fn write(&self, packet: &mut impl Packet, carries: Family) -> Result<(), Outcome> {
        let ethernet = header::<Ethernet>(packet, 0)?;
        ethernet.dst = self.dst.octets();
        ethernet.src = self.src.octets();
        let (outer, inner) = self.tags;
        if outer != 0 {
            *header::<Tag>(packet, TAGS)? = outer.to_ne_bytes();
        }
        if inner != 0 {
            *header::<Tag>(packet, TAGS + TAG)? = inner.to_ne_bytes();
        }
        *header::<EtherType>(packet, self.length - ETHER_TYPE)? = match carries {
            Family::V4 => IPV4,
            Family::V6 => IPV6,
        };
        Ok(())
    }
}

/// What matters of the outer IP header.
struct Outer {
    src: Address,
    dst: Address,
    /// The IP version of the inner packet.
    inside: Family,
    /// Its length with options.
    header: u32,
    /// How many bytes it says are behind it.
    payload: u32,
    /// Not zero if it is a fragment.
    fragment: u32,
    traffic_class: u32,
}

impl Outer {
    #[inline(always)]
    fn read(packet: &mut impl Packet, link: &Link) -> Result<Self, Outcome> {
        match link.carries {
            Family::V4 => Self::v4(header(packet, link.length)?),
            Family::V6 => Self::v6(header(packet, link.length)?),
        }
    }

    #[inline(always)]
    fn v4(ip: &Ipv4Hdr) -> Result<Self, Outcome> {
        let inside = inside(ip.proto)?;
        let (header, length) = (u32::from(ip.ihl()), length_v4(ip));
        if ip.version() != 4 || header < IPV4_HEADER || length < header {
            return Err(Outcome::BadOuter);
        }
        let fragment = u16::from_ne_bytes(ip.frags) & u16::from_ne_bytes(FRAGMENT);
        Ok(Self {
            src: Address::v4(ip.src_addr),
            dst: Address::v4(ip.dst_addr),
            inside,
            header,
            payload: length - header,
            fragment: u32::from(fragment),
            traffic_class: u32::from(ip.tos),
        })
    }

    /// A tunnel packet with extension headers is none of ours: the balancer
    /// writes none, and other tunnels' are the stack's.
    #[inline(always)]
    fn v6(ip: &Ipv6Hdr) -> Result<Self, Outcome> {
        let inside = inside(ip.next_hdr)?;
        let (src, dst) = (Address::v6(&ip.src_addr), Address::v6(&ip.dst_addr));
        // The mapped form stands for IPv4 in our tables and for nothing on a
        // wire: see `parse`.
        if ip.version() != 6 || src.is_v4() || dst.is_v4() {
            return Err(Outcome::BadOuter);
        }
        Ok(Self {
            src,
            dst,
            inside,
            header: IPV6_HEADER,
            payload: length_v6(ip) - IPV6_HEADER,
            fragment: 0,
            traffic_class: traffic_class_v6(ip),
        })
    }
}

/// Judges the inner packet; gives the ECN bits that it has to have.
#[inline(always)]
fn inspect(packet: &mut impl Packet, link: &Link, outer: &Outer) -> Result<u32, Outcome> {
    let at = link.length + outer.header;
    let (src, traffic_class) = match outer.inside {
        Family::V4 => {
            if outer.payload < IPV4_HEADER {
                return Err(Outcome::InnerTooLong);
            }
            let ip = header::<Ipv4Hdr>(packet, at)?;
            let (least, length) = (u32::from(ip.ihl()), length_v4(ip));
            if ip.version() != 4 || least < IPV4_HEADER || length < least {
                return Err(Outcome::BadInner);
            }
            if length > outer.payload {
                return Err(Outcome::InnerTooLong);
            }
            (Address::v4(ip.src_addr), u32::from(ip.tos))
        }
        Family::V6 => {
            if outer.payload < IPV6_HEADER {
                return Err(Outcome::InnerTooLong);
            }
            let ip = header::<Ipv6Hdr>(packet, at)?;
            if ip.version() != 6 {
                return Err(Outcome::BadInner);
            }
            if length_v6(ip) > outer.payload {
                return Err(Outcome::InnerTooLong);
            }
            let src = Address::v6(&ip.src_addr);
            // No IPv6 packet may pass for an IPv4 one: see `parse`.
            if src.is_v4() {
                return Err(Outcome::BadInnerSource);
            }
            (src, traffic_class_v6(ip))
        }
    };
    if !may_send(&src) {
        return Err(Outcome::BadInnerSource);
    }
    combined(outer.traffic_class & ecn::BITS, traffic_class & ecn::BITS)
}

/// The table of RFC 6040, section 4.2.
#[inline(always)]
const fn combined(outer: u32, inner: u32) -> Result<u32, Outcome> {
    match (outer, inner) {
        (ecn::CONGESTED, ecn::NOT_CAPABLE) => Err(Outcome::Congested),
        (ecn::CONGESTED, _) => Ok(ecn::CONGESTED),
        (ecn::CAPABLE_1, ecn::CAPABLE_0) => Ok(ecn::CAPABLE_1),
        (_, inner) => Ok(inner),
    }
}

#[inline(always)]
fn mark_v4(packet: &mut impl Packet, at: u32, marked: u32) -> Result<(), Outcome> {
    let ip = header::<Ipv4Hdr>(packet, at)?;
    let tos = ip.tos & !(ecn::BITS as u8) | marked as u8;
    // The word in which it stands, for the checksum.
    let word = |tos: u8| Be16::from_wire([ip.vihl, tos]);
    ip.check = Delta::port(word(ip.tos), word(tos)).apply(ip.check);
    ip.tos = tos;
    Ok(())
}

#[inline(always)]
fn mark_v6(packet: &mut impl Packet, at: u32, marked: u32) -> Result<(), Outcome> {
    let ip = header::<Ipv6Hdr>(packet, at)?;
    // Version, traffic class and flow label: 4, 8 and 20 bits.
    ip.vcf[1] = ip.vcf[1] & !((ecn::BITS as u8) << 4) | (marked as u8) << 4;
    Ok(())
}

#[inline(always)]
fn header<H: Wire>(packet: &mut impl Packet, offset: u32) -> Result<&mut H, Outcome> {
    packet.at(offset).map_err(|_| Outcome::Truncated)
}

#[inline(always)]
fn is_tag(ether_type: [u8; 2]) -> bool {
    ether_type == CUSTOMER || ether_type == PROVIDER
}

#[inline(always)]
const fn inside(protocol: u8) -> Result<Family, Outcome> {
    match protocol {
        IPV4_INSIDE => Ok(Family::V4),
        IPV6_INSIDE => Ok(Family::V6),
        _ => Err(Outcome::NotTunnel),
    }
}

#[inline(always)]
fn length_v4(ip: &Ipv4Hdr) -> u32 {
    u32::from(u16::from_be_bytes(ip.tot_len))
}

#[inline(always)]
fn length_v6(ip: &Ipv6Hdr) -> u32 {
    IPV6_HEADER + u32::from(u16::from_be_bytes(ip.payload_len))
}

#[inline(always)]
fn traffic_class_v6(ip: &Ipv6Hdr) -> u32 {
    u32::from(ip.vcf[0] << 4 | ip.vcf[1] >> 4)
}
