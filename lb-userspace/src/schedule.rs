//! How a service's backends take turns.

mod wrr;

pub use wrr::{Sequence, sequence};
