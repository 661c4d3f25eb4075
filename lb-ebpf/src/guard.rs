//! Who may begin a connection.
//!
//! Asked once for each new connection and never for a known one: a packet that
//! belongs to a flow was let in when the flow began.

use lb_common::abi::TCP;
use lb_common::flow::{opens, tcp_flag};
use lb_common::{Address, Verdict};

use crate::parse::Parsed;

/// Lets a first packet in, or says why not. `flags` are the TCP flags; UDP has
/// none. `late` says that the first packet may have been forgotten, so that a
/// connection may begin with another.
#[inline(always)]
pub fn admit(parsed: &Parsed, flags: u8, late: bool) -> Result<(), Verdict> {
    if !may_send(&parsed.key.src) {
        Err(Verdict::BadSource)
    } else if parsed.key.protocol != u32::from(TCP) {
        Ok(())
    } else if contradictory(flags) {
        Err(Verdict::BadFlags)
    } else if opens(flags) || late && goes_on(flags) {
        Ok(())
    } else {
        Err(Verdict::NoFlow)
    }
}

/// The flags of a segment in the middle of a connection.
#[inline(always)]
pub(crate) const fn goes_on(flags: u8) -> bool {
    use tcp_flag::{ACK, RST, SYN};
    flags & (SYN | ACK | RST) == ACK
}

/// Whether the address can be a sender's (RFC 1122, section 3.2.1.3; RFC 4291,
/// sections 2.5.2, 2.5.3 and 2.7).
#[inline(always)]
pub(crate) fn may_send(source: &Address) -> bool {
    let [a, b, c, d] = source.words();
    if source.is_v4() {
        let [first, ..] = source.low4();
        // 0/8 this network, 127/8 loopback, 224/4 multicast, 240/4 reserved and broadcast
        first != 0 && first != 127 && first < 224
    } else {
        let unspecified_or_loopback = a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1;
        let [first, ..] = a.to_ne_bytes();
        first != 0xff && !unspecified_or_loopback
    }
}

/// SYN with FIN or RST, FIN with RST, or none of the flags that any segment
/// of a connection carries.
#[inline(always)]
const fn contradictory(flags: u8) -> bool {
    use tcp_flag::{ACK, FIN, RST, SYN};
    let syn_and_end = flags & SYN != 0 && flags & (FIN | RST) != 0;
    let both_ends = flags & (FIN | RST) == (FIN | RST);
    let nothing = flags & (SYN | ACK | RST | FIN) == 0;
    syn_and_end || both_ends || nothing
}
