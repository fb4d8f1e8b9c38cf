//! Against a real RabbitMQ: `tests/with-broker cargo test --test live`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "in a test, what fails should panic"
)]

mod support;

#[path = "live/confirms.rs"]
mod confirms;
#[path = "live/consuming.rs"]
mod consuming;
#[path = "live/credentials.rs"]
mod credentials;
#[path = "live/examples.rs"]
mod examples;
#[path = "live/interop.rs"]
mod interop;
#[path = "live/life.rs"]
mod life;
#[path = "live/messages.rs"]
mod messages;
#[path = "live/opening.rs"]
mod opening;
#[path = "live/threads.rs"]
mod threads;
#[cfg(feature = "tls")]
#[path = "live/tls.rs"]
mod tls;
#[path = "live/topology.rs"]
mod topology;
#[path = "live/transactions.rs"]
mod transactions;
