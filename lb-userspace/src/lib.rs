//! Fulcrum's controller: it turns a configuration into kernel tables, keeps
//! them true to the health of the backends, and answers the command line.

pub mod address;
pub mod config;
pub mod health;
pub mod host;
pub mod schedule;
