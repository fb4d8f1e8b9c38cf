//! Tests against a real RabbitMQ: `tests/with-broker cargo test --test live`.
//!
//! Each file has one subject, which its first lines name.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a failing test should panic"
)]

#[path = "../support/mod.rs"]
mod support;

mod callbacks;
mod channels;
mod closing;
mod confirms;
mod consumer_tags;
mod consumers;
mod credentials;
mod deliveries;
mod dispatching;
mod distribution;
#[cfg(feature = "native-tls")]
mod errors;
mod examples;
mod exists;
mod from_pika;
mod getting;
mod interop;
mod messages;
mod notices;
mod opening;
mod oversized;
mod publishing;
mod queues;
mod read_budget;
mod refusals;
mod returns;
mod routing;
mod rpc;
mod send_method;
mod settling;
mod start_consuming;
mod stats;
mod streams;
mod stress;
mod threads;
mod timers;
#[cfg(feature = "native-tls")]
mod tls;
mod topology;
mod transactions;
