//! What is shown, a file for each act. An act does something to the balancer
//! while clients use it, says what it sees, and notes how each promise was
//! kept.

mod change;
mod outage;
mod pair;
mod restart;
mod weights;

pub(crate) use change::change;
pub(crate) use outage::outage;
pub(crate) use pair::pair;
pub(crate) use restart::restart;
pub(crate) use weights::weights;
