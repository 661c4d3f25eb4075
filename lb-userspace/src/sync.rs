//! The flows of the active node at the passive one, and what each knows of the other.
//!
//! Each node listens, and calls the other. On the connection that it called by it
//! follows: it hears how the other is, and while that one forwards, its flows. On the
//! one that it was called by it tells. So there are two subscriptions that know nothing
//! of each other, and what a node says of its peer it has always heard in a session of
//! its own.
//!
//! - [`message`]: what is said, as bytes.
//! - [`feed`]: what is to be told of a table, without a queue.
//! - [`follow`]: what becomes of it in the other table.
//! - [`dictionary`]: the numbers of services and backends here.

pub mod dictionary;
pub mod feed;
pub mod follow;
pub mod message;
