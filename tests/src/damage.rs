//! Damage done to frames, by a seed: bytes flipped, fields overwritten with
//! values at the edges, bytes inserted and removed, two frames spliced.
//!
//! One frame of four is changed with understanding first: it gets or loses a
//! tag, IPv4 options or an IPv6 extension header, becomes a fragment, has come
//! far, or is longer or shorter than it was, and its lengths say so; or it
//! becomes a ping, or an ICMP error about another frame.
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

/// How long a frame becomes at most: longer than any MTU of the tests.
const LONGEST: usize = 1600;

/// Where to cut a frame of this length: everywhere in its headers, and now and
/// then behind them, where all bytes are alike.
pub fn cuts(length: usize) -> impl Iterator<Item = usize> {
    let behind = (HEADERS..length).step_by(16);
    (0..length.min(HEADERS))
        .chain(behind)
        .chain(length.checked_sub(1).filter(|last| *last > HEADERS))
}

/// Damages a frame up to three times, or changes it with understanding first.
/// `others` are frames to splice it with, and about which errors tell.
pub fn damaged(rng: &mut Rng, frame: &[u8], others: &[&[u8]]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    let understood = rng.u8(0..4) == 0;
    if understood {
        change(rng, &mut bytes, others);
    }
    let least = usize::from(!understood);
    for _ in 0..rng.usize(least..=3) {
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

/// Changes the frame into another that makes sense, if it is one of IP.
fn change(rng: &mut Rng, bytes: &mut Vec<u8>, others: &[&[u8]]) {
    let Some(Packet { v4, start }) = packet(bytes) else {
        return;
    };
    match rng.u8(0..12) {
        0 => tag(rng, bytes),
        1 => drop(bytes.drain(12..start - 2)),
        2 if v4 => options(rng, bytes, start),
        2 => extension(rng, bytes, start),
        3 if v4 => fragment(rng, &mut bytes[start + 6..start + 8]),
        3 => fragment_header(rng, bytes, start),
        4 => bytes[start + if v4 { 8 } else { 7 }] = rng.u8(0..3),
        // Whether it may be fragmented.
        5 if v4 => bytes[start + 6] ^= 0x40,
        6 => {
            let length = bytes.len() - rng.usize(0..=bytes.len() - start - 40);
            bytes.truncate(length);
            claim(bytes, v4, start);
        }
        7 => ping(rng, bytes, v4, start),
        8..11 => error(rng, bytes, start, others),
        _ => {
            let length = rng.usize(bytes.len()..=LONGEST.max(bytes.len()));
            lengthen(rng, bytes, length);
        }
    }
}

/// Makes the frame this long, if it is shorter, and says so in its IP header.
pub fn lengthen(rng: &mut Rng, bytes: &mut Vec<u8>, length: usize) {
    let Some(Packet { v4, start }) = packet(bytes) else {
        return;
    };
    let filler = rng.u8(..);
    bytes.resize(length.max(bytes.len()), filler);
    claim(bytes, v4, start);
}

/// The IP packet in a frame.
struct Packet {
    v4: bool,
    start: usize,
}

/// Where the IP packet is, behind up to two tags, if it has 40 bytes at least.
fn packet(bytes: &[u8]) -> Option<Packet> {
    let (v4, start) =
        [14, 18, 22]
            .into_iter()
            .find_map(|start| match bytes.get(start - 2..start)? {
                [0x08, 0x00] => Some((true, start)),
                [0x86, 0xdd] => Some((false, start)),
                _ => None,
            })?;
    (bytes.len() >= start + 40).then_some(Packet { v4, start })
}

/// Makes the IP length that of the frame.
fn claim(bytes: &mut [u8], v4: bool, start: usize) {
    let (place, header) = if v4 { (2, 0) } else { (4, 40) };
    let length = (bytes.len() - start - header) as u16;
    bytes[start + place..start + place + 2].copy_from_slice(&length.to_be_bytes());
}

fn ping(rng: &mut Rng, bytes: &mut [u8], v4: bool, start: usize) {
    let (protocol, number, icmp, kind) = if v4 { (9, 1, 20, 8) } else { (6, 58, 40, 128) };
    bytes[start + protocol] = number;
    // Its checksum is put right with the others, if there is one where IPv4
    // has options or IPv6 has less than eight bytes.
    if let Some([at, code, ..]) = bytes.get_mut(start + icmp..start + icmp + 8) {
        [*at, *code] = [kind, 0];
    }
    if rng.bool() {
        mend(bytes);
    }
}

/// An error about one of the others, by the link of this one: to whom sent it,
/// from whom it is to or from a router.
fn error(rng: &mut Rng, bytes: &mut Vec<u8>, start: usize, others: &[&[u8]]) {
    let about = rng
        .choice(others)
        .and_then(|other| Some((other, packet(other)?)));
    let Some((other, Packet { v4, start: from })) = about else {
        return;
    };
    let all = &other[from..];
    let most = if rng.bool() { 512 } else { rng.usize(20..=100) };
    let quoted = &all[..all.len().min(most)];
    let (mut header, ends, kinds) = if v4 {
        let header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0];
        (header, 12..20, [[3, 4], [3, 1], [11, 0], [12, 0]])
    } else {
        let header = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
        (header, 8..40, [[2, 0], [1, 3], [3, 0], [4, 0]])
    };
    let (src, dst) = all[ends.clone()].split_at(ends.len() / 2);
    header.extend_from_slice(dst);
    header.extend_from_slice(src);
    if rng.bool() {
        // Another host of the same network, or of one near it.
        header[ends.start + ends.len() / 2 - 1] ^= rng.u8(1..);
    }
    header.extend(kinds[rng.usize(0..kinds.len())]);
    let mtu = [0, 576, 1280, 1480, rng.u16(..)][rng.usize(0..5)].to_be_bytes();
    header.extend([0, 0, 0, 0, mtu[0], mtu[1]]);
    bytes.truncate(start);
    bytes.extend(header);
    bytes.extend_from_slice(quoted);
    let ether_type = if v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    bytes[start - 2..start].copy_from_slice(&ether_type);
    claim(bytes, v4, start);
    mend(bytes);
}

fn tag(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let [high, low] = [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]][rng.usize(0..3)];
    let number = [10, 20, 30, rng.u8(..)][rng.usize(0..4)];
    let priority = if rng.bool() { 0 } else { rng.u8(..) };
    bytes.splice(12..12, [high, low, priority, number]);
}

fn options(rng: &mut Rng, bytes: &mut Vec<u8>, start: usize) {
    let words = rng.u8(1..=10).min(15 - (bytes[start] & 15));
    // No operation, which may stand anywhere (RFC 791, section 3.1).
    bytes.splice(start + 20..start + 20, vec![1; usize::from(words) * 4]);
    bytes[start] += words;
    claim(bytes, true, start);
}

/// Hop-by-hop options, routing, destination options, authentication.
fn extension(rng: &mut Rng, bytes: &mut Vec<u8>, start: usize) {
    let kind = [0, 43, 60, 51][rng.usize(0..4)];
    for _ in 0..rng.usize(1..=4) {
        let units = rng.u8(0..4);
        let mut header = vec![0; 8 * (usize::from(units) + 1)];
        header[0] = bytes[start + 6];
        header[1] = units;
        bytes.splice(start + 40..start + 40, header);
        bytes[start + 6] = kind;
    }
    claim(bytes, false, start);
}

fn fragment_header(rng: &mut Rng, bytes: &mut Vec<u8>, start: usize) {
    let mut header = [bytes[start + 6], 0, 0, 0, 0, 0, 0, rng.u8(0..4)];
    fragment(rng, &mut header[2..4]);
    // IPv6 has the bit and the place the other way round.
    let v4 = u16::from_be_bytes([header[2], header[3]]);
    let v6 = (v4 & 0x1fff) << 3 | (v4 >> 13 & 1);
    header[2..4].copy_from_slice(&v6.to_be_bytes());
    bytes.splice(start + 40..start + 40, header);
    bytes[start + 6] = 44;
    claim(bytes, false, start);
}

/// The first, one between, the last, or none after all.
fn fragment(rng: &mut Rng, field: &mut [u8]) {
    let more = u16::from(rng.bool()) << 13;
    let place = if rng.bool() { 0 } else { rng.u16(1..200) };
    field.copy_from_slice(&(more | place).to_be_bytes());
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
    use crate::checksum::checksums_hold;
    use crate::frame::{tcp, udp};

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
    fn what_is_changed_with_understanding_still_makes_sense() {
        let frames = [
            tcp("10.0.0.1:1", "10.0.0.2:2").syn().payload(b"odd"),
            udp("[fd00::1]:1", "[fd00::2]:2").payload(b"even"),
            tcp("[fd00::1]:1", "[fd00::2]:2").tagged(1),
        ];
        let mut rng = Rng::with_seed(5);
        let other = tcp("10.0.0.2:2", "10.0.0.1:1").ack(9).tagged(5).bytes();
        for frame in frames {
            for _ in 0..2000 {
                let mut bytes = frame.bytes();
                change(&mut rng, &mut bytes, &[&other]);
                let Packet { v4, start } = packet(&bytes).expect("it is still of IP");
                let mut claimed = bytes.clone();
                claim(&mut claimed, v4, start);
                assert_eq!(claimed, bytes, "its length lies");
                mend(&mut bytes);
                assert!(checksums_hold(&bytes), "{bytes:02x?}");
            }
        }
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
