//! cony against a scripted broker: a real loopback socket, and raw bytes.
//!
//! A real broker never breaks the protocol, seldom falls silent and always answers; so
//! what happens otherwise is tried here. `peer` is that broker; every other module has
//! the tests of one subject, each a play of a script and a client.

// In a test, what fails should panic, and nobody reads its documentation elsewhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "scripted/cancelled_opening.rs"]
mod cancelled_opening;
#[path = "scripted/closing.rs"]
mod closing;
#[path = "scripted/consuming.rs"]
mod consuming;
#[path = "scripted/dispatching.rs"]
mod dispatching;
#[path = "scripted/ending_consumers.rs"]
mod ending_consumers;
#[path = "scripted/hostile.rs"]
mod hostile;
#[path = "scripted/interrupted.rs"]
mod interrupted;
#[path = "scripted/matrix.rs"]
mod matrix;
#[path = "scripted/opening.rs"]
mod opening;
#[path = "scripted/peer.rs"]
#[allow(dead_code, reason = "the other tests use more of it")]
mod peer;
#[path = "scripted/publishing.rs"]
mod publishing;
#[path = "scripted/read_budget.rs"]
mod read_budget;
#[path = "scripted/rpc.rs"]
mod rpc;
#[path = "scripted/secrets.rs"]
mod secrets;
#[path = "scripted/silence_and_death.rs"]
mod silence_and_death;
