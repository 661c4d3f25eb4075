//! Sequences for exact weighted round-robin.
