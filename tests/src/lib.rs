//! What the tests share.

pub mod cases;
pub mod frame;
pub mod host;
pub mod kernel;
pub mod netns;
pub mod network;
pub mod world;
