//! The pair: which of two balancers is active, by VRRP version 3 (RFC 9568).
//!
//! [`packet`] is the message and [`machine`] decides; both are pure.

pub mod machine;
pub mod packet;
