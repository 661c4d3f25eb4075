//! Configuration: see `parse`.
