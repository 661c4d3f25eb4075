//! Damage done to frames, by a seed: bytes flipped, fields overwritten with
//! values at the edges, bytes inserted and removed, two frames spliced.
//!
//! Half of the damaged frames have their checksums put right again, so that
//! they are lies rather than noise, and a checksum that is spoiled on the way
//! shows.

use fastrand::Rng;

use crate::checksum::mend;

/// Values at which code goes wrong, of which a field takes the low bytes.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0xffff_ffff,
    0x4000_0000_0000_0000,
    0xff00_ff00_ff00_ff00,
    u64::MAX,
];

/// Where the headers are, those of a packet inside or quoted too: most damage
/// is done here.
const HEADERS: usize = 128;

/// Where an IP length stands: IPv4's and IPv6's behind no tag, one and two; of
/// a packet inside one of IPv4, and of IPv6; and of one quoted in either.
const LENGTHS: [usize; 12] = [16, 18, 20, 22, 24, 26, 36, 38, 56, 58, 44, 66];

/// Damages a frame one to three times. `others` are frames to splice it with.
pub fn damaged(rng: &mut Rng, frame: &[u8], others: &[&[u8]]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    for _ in 0..rng.usize(1..=3) {
        match rng.u8(0..12) {
            0..4 => flip(rng, &mut bytes),
            4..8 => overwrite(rng, &mut bytes),
            8 => insert(rng, &mut bytes),
            9 => remove(rng, &mut bytes),
            10 => nudge_length(rng, &mut bytes),
            _ => splice(rng, &mut bytes, others),
        }
    }
    if rng.bool() {
        mend(&mut bytes);
    }
    bytes
}

/// A place in the headers three times of four, else anywhere.
fn place(rng: &mut Rng, length: usize) -> usize {
    let reach = if rng.u8(0..4) == 0 {
        length
    } else {
        length.min(HEADERS)
    };
    rng.usize(0..reach.max(1))
}

fn flip(rng: &mut Rng, bytes: &mut [u8]) {
    let place = place(rng, bytes.len());
    if let Some(byte) = bytes.get_mut(place) {
        *byte ^= if rng.bool() {
            1 << rng.u8(0..8)
        } else {
            rng.u8(1..)
        };
    }
}

fn overwrite(rng: &mut Rng, bytes: &mut [u8]) {
    let width = [1, 2, 4, 6, 8][rng.usize(0..5)];
    // Fields of two bytes and more begin at even places in all our headers.
    let place = place(rng, bytes.len()) & if width == 1 { !0 } else { !1 };
    let value = EDGES[rng.usize(0..EDGES.len())].to_be_bytes();
    if let Some(field) = bytes.get_mut(place..place + width) {
        field.copy_from_slice(&value[8 - width..]);
    }
}

fn insert(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let place = place(rng, bytes.len()).min(bytes.len());
    let new: Vec<u8> = (0..rng.usize(1..=8)).map(|_| rng.u8(..)).collect();
    bytes.splice(place..place, new);
}

fn remove(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let place = place(rng, bytes.len()).min(bytes.len());
    let end = (place + rng.usize(1..=8)).min(bytes.len());
    bytes.drain(place..end);
}

/// An IP length, a little more or less: one time of two the outermost of a
/// frame without tags.
fn nudge_length(rng: &mut Rng, bytes: &mut [u8]) {
    let reach = if rng.bool() { 2 } else { LENGTHS.len() };
    let place = LENGTHS[rng.usize(0..reach)];
    if let Some([high, low]) = bytes.get_mut(place..place + 2) {
        let length = u16::from_be_bytes([*high, *low]);
        let nudged = length.wrapping_add_signed(rng.i16(-24..=24));
        [*high, *low] = nudged.to_be_bytes();
    }
}

/// The head of this frame and the tail of another.
fn splice(rng: &mut Rng, bytes: &mut Vec<u8>, others: &[&[u8]]) {
    let Some(other) = rng.choice(others) else {
        return;
    };
    let place = place(rng, bytes.len().min(other.len()));
    bytes.truncate(place);
    bytes.extend(other.get(place..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_does_the_same_damage() {
        let frame: Vec<u8> = (0..90).collect();
        let other: Vec<u8> = (100..190).collect();
        let all = |seed| {
            let mut rng = Rng::with_seed(seed);
            (0..500)
                .map(|_| damaged(&mut rng, &frame, &[&other]))
                .collect::<Vec<_>>()
        };
        assert_eq!(all(1), all(1));
        assert_ne!(all(1), all(2));
    }

    #[test]
    fn even_the_shortest_frames_can_be_damaged() {
        let mut rng = Rng::with_seed(3);
        for length in 0..16 {
            for _ in 0..200 {
                damaged(&mut rng, &vec![0; length], &[&[], &[1, 2, 3]]);
            }
        }
    }
}
