//! The flows of the active node at the passive one, and what each knows of the other.
//!
//! Each node listens, and calls the other. On the connection that it called by it
//! follows: it hears how the other is, and while that one forwards, its flows. On the
//! one that it was called by it tells. So there are two subscriptions that know nothing
//! of each other, and what a node says of its peer it has always heard in a session of
//! its own.
//!
//! - [`message`]: what is said, as bytes; [`channel`]: on a stream.
//! - [`feed`]: what is to be told of a table, without a queue; [`tell`]: the session.
//! - [`follow`]: what becomes of it in the other table; [`hear`]: the session.
//! - [`dictionary`]: the numbers of services and backends here.
//! - [`board`]: what is known of the other node; [`link`]: how sessions come about;
//!   [`running`]: the thread.
//! - [`alike`]: the parts of the files that both must have alike.

use std::sync::Arc;

use tokio::sync::watch;

use crate::dataplane::Table;
use crate::host;

pub mod alike;
pub mod board;
pub mod channel;
pub mod dictionary;
pub mod feed;
pub mod follow;
pub mod hear;
pub mod link;
pub mod message;
pub mod running;
pub mod tell;

use board::Board;
use dictionary::Dictionary;
use follow::Now;
use message::{Hello, Status};

/// This node, as its sessions see it.
pub struct Local {
    /// The table of connections.
    pub table: Arc<Table>,
    /// Who it is.
    pub hello: Hello,
    /// How it is.
    pub status: watch::Receiver<Status>,
    /// Its numbers of services and backends.
    pub dictionary: watch::Receiver<Arc<Dictionary>>,
    /// Where it is written how the other is.
    pub board: Arc<Board>,
    /// The kernel's clock.
    pub clock: Clock,
}

/// The kernel's clock, for entries of the table.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    hertz: u32,
    shift: u32,
}

impl Clock {
    /// As it goes on this host.
    pub fn of_host() -> Self {
        let hertz = host::ticks_per_second();
        let shift = host::stamp_shift(hertz);
        Self { hertz, shift }
    }

    fn now(self) -> Now {
        let ticks = host::ticks_now(self.hertz);
        let stamp = ticks >> self.shift;
        Now { ticks, stamp }
    }
}
