//! The backend that the hash of the client's address says.
//!
//! The slots are those of [`super::maglev`], so that as few clients as possible
//! change their backend when another one leaves; but the place in the table
//! comes from the client's address alone, whatever its port.

use lb_common::abi::pick;

use super::{Scheduler, maglev};

pub(super) const SCHEDULER: Scheduler = Scheduler {
    name: "source-hash",
    help: "All connections of a client's address to one backend, without remembering clients; when a backend leaves, only its clients move.",
    pick: pick::SOURCE_HASH,
    slots: maglev::slots,
};
