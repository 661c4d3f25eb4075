//! Fulcrum's controller: it turns a configuration into kernel tables, keeps
//! them true to the health of the backends, and answers the command line.

pub mod address;
pub mod api;
pub mod cli;
pub mod collector;
pub mod config;
pub mod controller;
pub mod daemon;
pub mod dataplane;
pub mod decap;
pub mod doctor;
pub mod events;
pub mod health;
pub mod host;
pub mod links;
pub mod metrics;
pub mod model;
pub mod neighbours;
pub mod reconcile;
pub mod routes;
pub mod schedule;
pub mod state;
pub mod sync;
pub mod tls;
pub mod vrrp;
