//! Flows of one node's table at the other: what is told of them, what becomes of it,
//! and the sessions in which it goes over.

mod history;
mod linked;
mod peer;
mod rest;
mod session;
mod world;
