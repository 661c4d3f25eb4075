//! One file per way to ask a backend how it is.
//!
//! A probe is an async function from an address, the way to it and a timeout to
//! the time the answer took, or a [`ProbeError`] that reads as a sentence. Probes
//! keep no state about backends: what a result means is for [`super::machine`].

pub mod tcp;
pub mod through;

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use thiserror::Error;

/// Why a probe gave no answer.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The backend's host answered that nothing listens there.
    #[error("connection refused: nothing listens on that port")]
    Refused,
    /// The connection was cut while it was made.
    #[error("connection reset by the backend, or by a firewall on the way")]
    Reset,
    /// Neither an answer nor an error within the timeout.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// Nobody on the last network answers for the address.
    #[error("no route to host: nobody answers for that address, or a router rejects it")]
    NoRoute,
    /// No route leads there.
    #[error("network unreachable: this host has no route to that address")]
    Unreachable,
    /// The fault lies with this host, and says nothing about the backend.
    #[error("the probe could not be made on this host: {0}")]
    NotMade(#[source] io::Error),
}

impl ProbeError {
    /// Whether the backend was judged at all; see
    /// [`Event::Inconclusive`](super::machine::Event::Inconclusive).
    pub const fn judges(&self) -> bool {
        match self {
            Self::Refused | Self::Reset | Self::Silent(_) | Self::NoRoute | Self::Unreachable => {
                true
            }
            Self::NotMade(_) => false,
        }
    }

    /// What an error of `connect` says; `timeout` is what was allowed.
    ///
    /// The errors that tell of the other end or of the way there are listed;
    /// whatever else the kernel says is about this host's own resources
    /// (descriptors, ports, memory, an outgoing firewall rule).
    fn from_connect(error: io::Error, timeout: Duration) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::CONNREFUSED) => Self::Refused,
            Some(Errno::CONNRESET | Errno::PIPE | Errno::PROTO) => Self::Reset,
            Some(Errno::TIMEDOUT) => Self::Silent(timeout),
            Some(Errno::HOSTUNREACH | Errno::HOSTDOWN) => Self::NoRoute,
            Some(Errno::NETUNREACH | Errno::NETDOWN) => Self::Unreachable,
            _ => Self::NotMade(error),
        }
    }
}
