//! The way out, as the host's own routing table has it.
//!
//! Out of the interface it came in on is a transmit, out of another one a
//! redirect. Where the next hop's link address is not known yet, or the
//! destination is this host, the packet is translated and given to the host's
//! stack, which resolves the neighbour and forwards: nothing is lost silently.

use lb_common::Verdict;
use lb_common::abi::Flow;

use crate::packet::Packet;
use crate::parse::Parsed;
use crate::tables::{Hop, RouteQuery, Tables};

/// Where a translated packet goes.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// How the packet ends.
    pub verdict: Verdict,
    /// The next hop; `None` leaves forwarding, with the TTL, to the host's stack.
    pub hop: Option<Hop>,
}

/// Finds the way for a packet that will leave with the flow's addresses.
#[inline(always)]
pub fn route(
    packet: &impl Packet,
    tables: &impl Tables,
    parsed: &Parsed,
    flow: &Flow,
) -> Result<Way, Verdict> {
    let ingress = packet.ingress();
    let query = RouteQuery {
        flow,
        protocol: parsed.key.protocol as u8,
        traffic_class: parsed.traffic_class as u8,
        length: parsed.ip_length as u16,
        ingress,
    };
    match tables.next_hop(&query) {
        Ok(hop) if hop.egress == ingress => {
            let verdict = if !flow.is_reply() {
                Verdict::ForwardTx
            } else {
                Verdict::ReplyTx
            };
            Ok(Way {
                verdict,
                hop: Some(hop),
            })
        }
        Ok(hop) if tables.redirect(hop.egress) => {
            let verdict = if !flow.is_reply() {
                Verdict::ForwardRedirect
            } else {
                Verdict::ReplyRedirect
            };
            Ok(Way {
                verdict,
                hop: Some(hop),
            })
        }
        Ok(_) => Err(Verdict::EgressNotAttached),
        Err(verdict @ (Verdict::NeighbourPending | Verdict::LocalDestination)) => {
            Ok(Way { verdict, hop: None })
        }
        Err(verdict) => Err(verdict),
    }
}
