//! The data path.
#![no_std]
