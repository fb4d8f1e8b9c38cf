//! The lock-free parts of `io`, which loom checks in every interleaving.

#[cfg(all(test, loom))]
mod models;
pub(crate) mod sync;
