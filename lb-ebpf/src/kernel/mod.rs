//! The kernel's side of the two seams.

pub(crate) mod maps;
pub(crate) mod packet;
