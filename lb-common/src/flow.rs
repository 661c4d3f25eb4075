//! The pure rules of a connection's life, and of its two directions.
//!
//! A translated connection has a forward direction (client to backend) and a
//! reply direction (backend to client). Each says what the other one is: the key
//! of the one is the rewritten tuple of the other, turned round ([`twin`]).
//!
//! [`change`] is the life of a TCP connection as far as a balancer needs it:
//! whether it has ended, so that a client may use its port again for a new
//! connection and full-nat may give its port to another. What a state amounts to
//! for those who look for room is its [`class`].

use crate::abi::{Flow, FlowKey, Life, tag};
use crate::checksum::Delta;

/// The backend has answered ([`Life::proof`] is then meaningful for TCP).
pub const ANSWERED: u32 = 1;
/// The client has sent FIN.
pub const CLIENT_FIN: u32 = 2;
/// The backend has sent FIN.
pub const BACKEND_FIN: u32 = 4;
/// Either side has sent RST, and nothing since.
pub const RESET: u32 = 8;
/// The client has proved that it hears the backend, or nobody can tell and it
/// went on.
pub const ESTABLISHED: u32 = 16;
/// The backend's packets do not come by here.
pub const ONE_WAY: u32 = 32;

/// TCP flags (RFC 9293, section 3.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}

/// How far past the proof an acknowledgement may be and still prove that the
/// client heard the backend: a first ACK that was lost may be followed by one
/// for data. Guessing a number inside it succeeds once in 65,536.
const PROOF_WINDOW: u32 = 1 << 16;

/// Whether a connection in this state is over: both sides have sent FIN, or one
/// RST. That of a backend which is not heard is for the controller to conclude,
/// from the silence of its client.
#[inline(always)]
pub const fn ended(state: u32) -> bool {
    const BOTH: u32 = CLIENT_FIN | BACKEND_FIN;
    state & RESET != 0 || state & BOTH == BOTH
}

/// Whether a SYN of the client is a new connection: the old one is over, or the
/// client has ended its half and nobody hears whether the backend has.
#[inline(always)]
pub const fn reopens(state: u32) -> bool {
    ended(state) || state & ONE_WAY != 0 && state & CLIENT_FIN != 0
}

/// The class of a connection in this state, as its [`tag`] has it.
#[inline(always)]
pub const fn class(state: u32) -> u32 {
    if ended(state) {
        tag::CLOSED
    } else if state & ESTABLISHED != 0 {
        tag::ESTABLISHED
    } else {
        tag::HALF_OPEN
    }
}

/// What a segment with these flags, from the client or (`reply`) from the
/// backend, changes about the state: bits that go, and bits that come.
///
/// A RST counts only until something else follows it: receivers ignore a RST
/// with a wrong sequence number (RFC 5961, section 3), and the connection that
/// goes on shows that they did.
#[inline(always)]
pub const fn change(reply: bool, flags: u8) -> (u32, u32) {
    if flags & tcp_flag::RST != 0 {
        (0, RESET)
    } else if flags & tcp_flag::FIN == 0 {
        (RESET, 0)
    } else if reply {
        (RESET, BACKEND_FIN)
    } else {
        (RESET, CLIENT_FIN)
    }
}

/// Whether these flags, from a client, ask for a new connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    use tcp_flag::{ACK, FIN, RST, SYN};
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// Whether a client's segment proves that it heard the backend's answer, so
/// that it is no spoofed source.
#[inline(always)]
pub const fn proves(life: &Life, flags: u8, acknowledged: u32) -> bool {
    use tcp_flag::{ACK, RST, SYN};
    life.state & ANSWERED != 0
        && flags & (SYN | ACK | RST) == ACK
        && acknowledged.wrapping_sub(life.proof) < PROOF_WINDOW
}

/// The key under which the other direction of a flow is found.
#[inline(always)]
pub const fn twin_key(key: &FlowKey, flow: &Flow) -> FlowKey {
    FlowKey {
        src: flow.dst,
        dst: flow.src,
        src_port: flow.dst_port,
        dst_port: flow.src_port,
        protocol: key.protocol,
    }
}

/// The other direction of a flow: what becomes of a packet with its
/// [`twin_key`].
#[inline(always)]
pub const fn twin(key: &FlowKey, flow: &Flow) -> Flow {
    Flow {
        src: key.dst,
        dst: key.src,
        src_port: key.dst_port,
        dst_port: key.src_port,
        // The reverse change is the ones' complement of the change.
        ip_delta: !flow.ip_delta,
        transport_delta: !flow.transport_delta,
        kind: flow.kind ^ Flow::REPLY,
        ..*flow
    }
}

/// What the rewriting of `key` into `flow`'s addresses and ports does to the
/// IPv4 header checksum and to the transport checksum.
///
/// The transport checksum covers the addresses too, through the pseudo-header
/// (RFC 9293, section 3.1; RFC 8200, section 8.1). The mapped form's constant
/// prefix cancels out, so one sum serves both families.
#[inline(always)]
pub fn deltas(key: &FlowKey, flow: &Flow) -> (Delta, Delta) {
    let addresses = Delta::address(&key.src, &flow.src).and(Delta::address(&key.dst, &flow.dst));
    let ports =
        Delta::port(key.src_port, flow.src_port).and(Delta::port(key.dst_port, flow.dst_port));
    (addresses, addresses.and(ports))
}
