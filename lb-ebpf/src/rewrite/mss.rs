//! The limit to the segment size that a SYN announces (RFC 9293, section 3.7.1).
//!
//! A sender whose packets would not fit the way, and who would never be told
//! because somebody drops ICMP, is made to send smaller ones from the beginning.

use lb_common::checksum::Delta;
use lb_common::{Be16, Verdict};

use crate::packet::{Packet, Tcp};
use crate::parse::Part;
use crate::room::{Room, Walk};

/// The options of TCP (RFC 9293, section 3.2) that matter here.
mod option {
    pub(super) const END: u8 = 0;
    pub(super) const NOTHING: u8 = 1;
    pub(super) const MAX_SEGMENT: u8 = 2;
    pub(super) const MAX_SEGMENT_LENGTH: u8 = 4;
}

/// A header has at most 40 bytes of options.
const MOST: u32 = 40;

/// What a step through the options came to.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The next option.
    Next,
    /// The option that was looked for.
    Found,
    /// The end.
    End,
}

/// Lowers the announced segment size to this limit, if it is larger. Options
/// that contradict themselves stay as they are, for the receiver to judge.
#[inline(never)]
pub(crate) fn limit(packet: &mut impl Packet, room: &mut Room) -> Result<(), Verdict> {
    let parsed = &room.parsed;
    if parsed.part == Part::Later {
        return Ok(());
    }
    let tcp = packet.at::<Tcp>(parsed.transport)?;
    let header = u32::from(tcp.data_offset >> 4) * 4;
    room.walk.at = parsed.transport + size_of::<Tcp>() as u32;
    room.walk.end = parsed.transport + header;
    if room.walk.end > parsed.ip + parsed.ip_length {
        return Ok(());
    }
    let mut steps = 0;
    while steps < MOST {
        match step(packet, &mut room.walk) {
            Step::Next => steps += 1,
            Step::Found => return lower(packet, room),
            Step::End => return Ok(()),
        }
    }
    Ok(())
}

/// One option further, or to the one that was looked for.
#[inline(never)]
fn step(packet: &mut impl Packet, walk: &mut Walk) -> Step {
    if walk.at >= walk.end {
        return Step::End;
    }
    // With the byte before it: nothing is read one byte at a time.
    let Ok(&mut [_, kind]) = packet.at::<[u8; 2]>(walk.at - 1) else {
        return Step::End;
    };
    if kind == option::NOTHING {
        walk.at += 1;
        return Step::Next;
    }
    let Ok(&mut [_, length]) = packet.at::<[u8; 2]>(walk.at) else {
        return Step::End;
    };
    if kind == option::END || length < 2 {
        return Step::End;
    }
    let next = walk.at + u32::from(length);
    if kind == option::MAX_SEGMENT && length == option::MAX_SEGMENT_LENGTH && next <= walk.end {
        return Step::Found;
    }
    walk.at = next;
    Step::Next
}

/// Lowers the value of the option at this place among the options.
#[inline(never)]
fn lower(packet: &mut impl Packet, room: &Room) -> Result<(), Verdict> {
    let place = room.walk.at + 2;
    let most = room.max_mss as u16;
    let Ok(value) = packet.at::<[u8; 2]>(place) else {
        // In another piece of the frame, and the rest is translated already.
        return Ok(());
    };
    let old = *value;
    if u16::from_be_bytes(old) <= most {
        return Ok(());
    }
    let new = most.to_be_bytes();
    *value = new;
    // At an odd place its bytes lie in two words, in each of them on the other
    // side: the sum is that of the bytes exchanged (RFC 1071, section 2B).
    let [from, to] = if (place - room.parsed.transport).is_multiple_of(2) {
        [old, new]
    } else {
        [[old[1], old[0]], [new[1], new[0]]]
    };
    let delta = Delta::port(Be16::from_wire(from), Be16::from_wire(to));
    let tcp = packet.at::<Tcp>(room.parsed.transport)?;
    tcp.check = delta.apply(tcp.check);
    Ok(())
}
