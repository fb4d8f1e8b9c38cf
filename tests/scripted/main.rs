//! cony against a scripted broker: a real loopback socket, and raw bytes.
//!
//! A real broker never breaks the protocol, seldom falls silent and always answers; so
//! what happens otherwise is tried here. `peer` is that broker; every other module has
//! the tests of one subject, each a play of a script and a client.

// In a test, what fails should panic, and nobody reads its documentation elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod cancelled_opening;
mod closing;
mod consuming;
mod dispatching;
mod ending_consumers;
mod hostile;
mod interrupted;
mod matrix;
mod opening;
mod publishing;
mod read_budget;
mod rpc;
mod secrets;
mod silence_and_death;
#[path = "../support/mod.rs"]
mod support;
