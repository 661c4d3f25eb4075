//! The Internet checksum, incrementally (RFC 1071, RFC 1624 equation 3).
//!
//! `HC' = ~(~HC + ~m + m')`: the part that depends on the change alone,
//! `~m + m'`, is a [`Delta`]. A translated connection changes the same
//! addresses and ports in every packet, so its deltas are computed once, when
//! the flow begins, and kept in its table entry: a packet then costs one
//! addition, IPv6 as little as IPv4.

/// Taking one from the TTL, as a change of the 16-bit word it shares with the
/// protocol: `~m + (m - 0x0100)` is the same whatever `m` was.
pub const TTL_DECREMENT: Delta = Delta(0xfeff);

/// A change to checksummed words, in ones' complement, folded to 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta(pub u16);

impl Delta {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// The change from one 16-bit word to another.
    #[inline(always)]
    pub const fn word(from: [u8; 2], to: [u8; 2]) -> Self {
        let sum = (!u16::from_be_bytes(from)) as u32 + u16::from_be_bytes(to) as u32;
        Self(fold(sum))
    }

    /// The change from one run of 16 bytes to another.
    #[inline(always)]
    pub fn bytes16(from: &[u8; 16], to: &[u8; 16]) -> Self {
        let mut sum: u32 = 0;
        let mut i = 0;
        while i < 16 {
            sum += u32::from(!u16::from_be_bytes([from[i], from[i + 1]]));
            sum += u32::from(u16::from_be_bytes([to[i], to[i + 1]]));
            i += 2;
        }
        Self(fold(sum))
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(fold(self.0 as u32 + other.0 as u32))
    }

    /// The checksum field after this change to what it covers.
    #[inline(always)]
    pub const fn apply(self, check: [u8; 2]) -> [u8; 2] {
        let sum = (!u16::from_be_bytes(check)) as u32 + self.0 as u32;
        (!fold(sum)).to_be_bytes()
    }
}

/// Folds carries into 16 bits; two rounds suffice for any 32-bit sum.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
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
        let delta = Delta::word([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(delta.apply([0xdd, 0x2f]), [0x00, 0x00]);
    }

    #[test]
    fn an_incremental_update_equals_a_full_sum_for_every_word() {
        for from in (0..=u16::MAX).step_by(7) {
            let to = from.wrapping_mul(31).wrapping_add(0x1234);
            let before = full(&[from, 0xabcd, 0x0001]).to_be_bytes();
            let after = full(&[to, 0xabcd, 0x0001]).to_be_bytes();
            let delta = Delta::word(from.to_be_bytes(), to.to_be_bytes());
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
    fn sixteen_bytes_are_the_sum_of_their_words() {
        let from = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255];
        let to = [255, 254, 3, 0, 0, 0, 7, 8, 99, 10, 11, 12, 13, 255, 255, 0];
        let mut by_word = Delta::NONE;
        for i in (0..16).step_by(2) {
            by_word = by_word.and(Delta::word([from[i], from[i + 1]], [to[i], to[i + 1]]));
        }
        assert_eq!(Delta::bytes16(&from, &to).apply([0x12, 0x34]), by_word.apply([0x12, 0x34]));
    }
}
