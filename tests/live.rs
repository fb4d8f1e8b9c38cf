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

#[path = "live/callbacks.rs"]
mod callbacks;
#[path = "live/channels.rs"]
mod channels;
#[path = "live/confirms.rs"]
mod confirms;
#[path = "live/consumers.rs"]
mod consumers;
#[path = "live/consuming.rs"]
mod consuming;
#[path = "live/credentials.rs"]
mod credentials;
#[path = "live/crowd.rs"]
mod crowd;
#[path = "live/dispatching.rs"]
mod dispatching;
#[cfg(feature = "tls")]
#[path = "live/errors.rs"]
mod errors;
#[path = "live/examples.rs"]
mod examples;
#[path = "live/from_pika.rs"]
mod from_pika;
#[path = "live/getting.rs"]
mod getting;
#[path = "live/helpers.rs"]
mod helpers;
#[path = "live/holding_back.rs"]
mod holding_back;
#[path = "live/interop.rs"]
mod interop;
#[path = "live/life.rs"]
mod life;
#[path = "live/messages.rs"]
mod messages;
#[path = "live/opening.rs"]
mod opening;
#[path = "live/oversized.rs"]
mod oversized;
#[path = "live/publishing.rs"]
mod publishing;
#[path = "live/queues.rs"]
mod queues;
#[path = "live/refusals.rs"]
mod refusals;
#[path = "live/routing.rs"]
mod routing;
#[path = "live/threads.rs"]
mod threads;
#[cfg(feature = "tls")]
#[path = "live/tls.rs"]
mod tls;
#[path = "live/topology.rs"]
mod topology;
#[path = "live/transactions.rs"]
mod transactions;
