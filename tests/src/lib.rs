//! What the tests share.

pub mod cases;
pub mod checksum;
pub mod damage;
pub mod frame;
pub mod host;
pub mod judge;
pub mod kernel;
pub mod memory;
pub mod netns;
pub mod network;
pub mod other_build;
pub mod simulation;
pub mod world;
