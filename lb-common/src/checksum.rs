//! The Internet checksum, incrementally (RFC 1071, RFC 1624 equation 3).
//!
//! `HC' = ~(~HC + ~m + m')`: the part that depends on the change alone,
//! `~m + m'`, is a [`Delta`]. A translated connection changes the same
//! addresses and ports in every packet, so its deltas are computed once, when
//! the flow begins, and kept in its table entry: a packet then costs one
//! addition, IPv6 as little as IPv4.

use crate::{Address, Be16};

/// Taking one from the TTL, as a change of the 16-bit word it shares with the
/// protocol: `~m + (m - 0x0100)` is the same whatever `m` was.
pub const TTL_DECREMENT: Delta = Delta(!u16::from_ne_bytes([1, 0]));

/// A change to checksummed words, in ones' complement, folded to 16 bits.
///
/// Words are taken in memory order on both sides, which ones' complement sums
/// allow (RFC 1071, section 2, "byte order independence").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(pub u16);

impl Delta {
    /// The change from one port to another.
    #[inline(always)]
    pub const fn port(from: Be16, to: Be16) -> Self {
        Self(fold(!from.word() as u64 + to.word() as u64))
    }

    /// The change from one address to another. The prefix of the mapped form
    /// cancels out.
    #[inline(always)]
    pub const fn address(from: &Address, to: &Address) -> Self {
        let [a, b, c, d] = from.words();
        let [e, f, g, h] = to.words();
        Self(fold(
            !a as u64
                + !b as u64
                + !c as u64
                + !d as u64
                + e as u64
                + f as u64
                + g as u64
                + h as u64,
        ))
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(fold(self.0 as u64 + other.0 as u64))
    }

    /// The checksum field after this change to what it covers.
    #[inline(always)]
    pub const fn apply(self, check: [u8; 2]) -> [u8; 2] {
        let sum = !u16::from_ne_bytes(check) as u64 + self.0 as u64;
        (!fold(sum)).to_ne_bytes()
    }
}

/// A sum over words of 32 bits, for a checksum that is not known yet; of less
/// than 2^32 words.
#[derive(Clone, Copy, Debug)]
pub struct Sum(u64);

impl Sum {
    /// Of nothing so far.
    pub const NOTHING: Self = Self(0);

    /// And four bytes.
    #[inline(always)]
    pub const fn word(self, bytes: [u8; 4]) -> Self {
        Self(self.0 + u32::from_ne_bytes(bytes) as u64)
    }

    /// And an address, as a pseudo-header of IPv6 has it.
    #[inline(always)]
    pub const fn address(self, address: &Address) -> Self {
        let [a, b, c, d] = address.words();
        Self(self.0 + a as u64 + b as u64 + c as u64 + d as u64)
    }

    /// The checksum.
    #[inline(always)]
    pub const fn check(self) -> [u8; 2] {
        (!fold(self.0)).to_ne_bytes()
    }
}

/// The checksum of an IPv4 header without options whose checksum field is zero.
#[inline(always)]
pub fn full(header: &[u8; 20]) -> [u8; 2] {
    let (words, _) = header.as_chunks::<4>();
    words
        .iter()
        .fold(Sum::NOTHING, |sum, &word| sum.word(word))
        .check()
}

/// Folds carries into 16 bits. Three rounds suffice for a sum of up to 65,536
/// 32-bit words.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    /// The checksum of RFC 1071, word by word, as the reference.
    fn full(words: &[u16]) -> u16 {
        !words.iter().fold(0u16, |sum, &word| {
            let (sum, carry) = sum.overflowing_add(word);
            sum + u16::from(carry)
        })
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        let delta = Delta::port(Be16::new(0x5555), Be16::new(0x3285));
        assert_eq!(delta.apply([0xdd, 0x2f]), [0x00, 0x00]);
    }

    #[test]
    fn an_incremental_update_equals_a_full_sum_for_every_word() {
        for from in (0..=u16::MAX).step_by(7) {
            let to = from.wrapping_mul(31).wrapping_add(0x1234);
            let before = full(&[from, 0xabcd, 0x0001]).to_be_bytes();
            let after = full(&[to, 0xabcd, 0x0001]).to_be_bytes();
            let delta = Delta::port(Be16::new(from), Be16::new(to));
            assert_eq!(delta.apply(before), after, "{from:#x} -> {to:#x}");
        }
    }

    #[test]
    fn a_ttl_decrement_is_the_same_whatever_the_word() {
        for ttl in 1..=u8::MAX {
            for proto in [0, 6, 17, 255] {
                let before = full(&[u16::from_be_bytes([ttl, proto]), 0x4500]).to_be_bytes();
                let after = full(&[u16::from_be_bytes([ttl - 1, proto]), 0x4500]).to_be_bytes();
                assert_eq!(TTL_DECREMENT.apply(before), after, "ttl {ttl}");
            }
        }
    }

    #[test]
    fn an_address_is_the_sum_of_its_words() {
        let from = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255];
        let to = [255, 254, 3, 0, 0, 0, 7, 8, 99, 10, 11, 12, 13, 255, 255, 0];
        let before = full(&from.chunks(2).map(pair).collect::<Vec<_>>()).to_be_bytes();
        let after = full(&to.chunks(2).map(pair).collect::<Vec<_>>()).to_be_bytes();
        assert_eq!(
            Delta::address(&Address::v6(&from), &Address::v6(&to)).apply(before),
            after
        );
    }

    fn pair(bytes: &[u8]) -> u16 {
        u16::from_be_bytes([bytes[0], bytes[1]])
    }
}
