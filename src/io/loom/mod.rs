//! The parts without a lock, tried in every interleaving by loom.

#[cfg(all(test, loom))]
mod models;
pub(crate) mod sync;
