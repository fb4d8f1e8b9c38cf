//! A RabbitMQ node that dies, pauses or blocks while cony uses it. The node belongs to this test
//! program, which starts it with `tests/with-broker`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test that fails should panic"
)]

#[path = "../support/mod.rs"]
mod support;

mod alarms;
mod broker_settings;
mod every_call;
mod lost;
mod recovery;
