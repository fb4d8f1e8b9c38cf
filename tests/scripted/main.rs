//! cony against a scripted peer: a real loopback socket and raw bytes, without a broker.
//!
//! A real broker never breaks the protocol, seldom falls silent and always replies. These tests
//! cover the other cases. Each module has the tests of one subject. A test is a script for the peer
//! (`support::peer`) and a client that runs at the same time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test that fails should panic"
)]

#[path = "../support/mod.rs"]
mod support;

mod backpressure;
mod blocked;
mod cancelling;
mod channel_numbers;
mod closing_channels;
mod closing_connections;
mod common;
mod confirms;
mod consumer_tags;
mod consuming_with_callbacks;
mod consuming_with_iterators;
mod dispatching;
mod dropping_handles;
mod every_call;
mod getting;
mod heartbeats;
mod interrupted_dispatching;
mod opening;
mod opening_attempts;
mod opening_cancelled;
mod opening_negotiation;
mod opening_refused;
#[cfg(feature = "native-tls")]
mod opening_tls;
mod oversized;
mod prefetch;
mod protocol_errors;
mod providers;
mod publishing;
mod read_budget;
mod recovery;
mod recovery_calls;
mod recovery_cancels;
mod recovery_channels;
mod recovery_consumers;
mod recovery_defaults;
#[cfg(target_os = "linux")]
mod recovery_ends;
mod recovery_handshake;
mod recovery_refusals;
mod recovery_streams;
mod requeueing;
mod rpc;
mod settling;
mod timeouts;
mod unreported_failures;
mod unusual_input;
mod update_secret;
mod write_budget;
