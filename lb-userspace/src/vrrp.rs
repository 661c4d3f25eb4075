//! The pair: which of two balancers is active, by VRRP version 3 (RFC 9568).
//!
//! [`packet`] is the message and [`machine`] decides; both are pure. [`net`] and
//! [`announce`] are the sockets; [`driver`] is the thread that brings them together.

pub mod announce;
pub mod driver;
pub mod machine;
pub mod net;
pub mod packet;
