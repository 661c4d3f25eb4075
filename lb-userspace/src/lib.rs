//! Fulcrum's controller: it turns a configuration into kernel tables, keeps
//! them true to the health of the backends, and answers the command line.

pub mod config;
pub mod schedule;
