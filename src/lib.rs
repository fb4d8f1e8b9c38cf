//! A blocking client for RabbitMQ, and for any other broker that speaks AMQP 0-9-1.
//!
//! ```
//! use cony::BlockingConnection;
//!
//! let connection = BlockingConnection::open_default()?;
//! let channel = connection.channel()?;
//! channel.queue_declare("hello")?;
//! channel.basic_publish("", "hello", "Hello, world!")?;
//! # channel.queue_delete("hello")?;
//! # connection.close()?;
//! # Ok::<(), cony::Error>(())
//! ```
//!
//! No runtime, no futures: every call is a plain function that returns when it is done,
//! or when its deadline has passed. One background thread owns the socket and sends the
//! heartbeats, so a callback may take an hour, and every handle can be used from every
//! thread. cony does for Rust what pika's `BlockingConnection` does for Python, with
//! what pika's users have asked for since. Each of pika's names, and what it is here, is in
//! `docs/from-pika.md`.
//!
//! What follows is an outline; the [`guide`] has a page for each subject.
//!
//! # Publishing
//!
//! [`basic_publish`](BlockingChannel::basic_publish) takes an exchange, a routing key
//! and a message: anything that is bytes, or a [`Message`] that says more.
//!
//! ```
//! use cony::Message;
//! # let connection = cony::BlockingConnection::open_default()?;
//! # let channel = connection.channel()?;
//!
//! let work = Message::new("work").content_type("text/plain").persistent();
//! channel.basic_publish("", "tasks", work)?;
//! # connection.close()?;
//! # Ok::<(), cony::Error>(())
//! ```
//!
//! The broker says what it has taken, once [asked to](BlockingChannel::confirm_delivery):
//! of each message, with [`Confirm::wait`], or of all so far, with
//! [`wait_for_confirms`](BlockingChannel::wait_for_confirms).
//!
//! # Consuming
//!
//! With a callback, as in pika, or with an iterator. Either way what is delivered must
//! be acknowledged, or taken with `no_ack`.
//!
//! ```
//! use cony::{basic, queue};
//! # let connection = cony::BlockingConnection::open_default()?;
//! # let channel = connection.channel()?;
//! # let queue = channel.queue_declare(queue::Declare::new_exclusive())?.queue;
//! # channel.basic_publish("", &queue, "one")?;
//! # channel.basic_publish("", &queue, "two")?;
//!
//! channel.basic_consume(&queue, |channel, delivery| {
//!     println!("{}", delivery.text()?);
//!     channel.basic_ack(delivery.delivery_tag)?;
//!     channel.stop_consuming()
//! })?;
//! channel.start_consuming()?;
//!
//! let consumer = channel.consume(&queue)?;
//! for delivery in &consumer {
//!     delivery?.ack()?;
//! #   break;
//! }
//! # connection.close()?;
//! # Ok::<(), cony::Error>(())
//! ```
//!
//! # Requests and answers
//!
//! [`RpcClient`] asks a server over a queue and waits for the answer.
//!
//! # Threads
//!
//! [`BlockingConnection`], [`BlockingChannel`] and [`Consumer`] are `Send`, `Sync` and
//! cheap to clone; a [`Delivery`] can be settled from any thread. Calls of several
//! threads on one channel take turns; publishes and acknowledgements do not wait for
//! them. A channel closes with its last handle, a connection with the last of all.
//!
//! # Errors
//!
//! Every call returns [`Result`] with one [`Error`]. What the broker refuses costs the
//! channel, or sometimes the connection, and the error says so with the broker's code and
//! text; whoever asks the dead handle later gets the same reason. What is wrong on this
//! side is found before anything is sent.
//!
//! # Bounds
//!
//! No call waits for ever: it ends with its reply, with the death of its channel or
//! connection, or at its deadline (see [`ConnectionParameters`] for all of them). Memory
//! is bounded in bytes both ways: publishes wait for room, and reading pauses while too
//! much waits to be taken.
//!
//! # Log
//!
//! Through the `log` crate, with the connection's name: connected and unblocked at `info`,
//! what may hurt (blocked, reading paused, a stalled consumer, messages lost) at `warn`,
//! ends of channels and connections at `debug`. Never a body or a secret. The IO thread
//! logs as well, so a log backend should be quick and not use cony itself.
//!
//! # Examples
//!
//! RabbitMQ's tutorials and the everyday programs are in `examples/`; README lists them.
//!
//! # Features
//!
//! `native-tls` (on by default, also called `tls`): `amqps://` with the TLS library of the
//! platform, through the crate [`native_tls`](https://docs.rs/native-tls).

// docs.rs builds with a nightly compiler and marks items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
// In a test, what fails should panic.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

/// Compiles and runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles and runs the example for those who come from pika.
#[cfg(doctest)]
#[doc = include_str!("../docs/from-pika.md")]
struct FromPika;

mod client;
mod config;
mod error;
pub mod guide;
mod io;
mod protocol;

/// The targets of the fuzzers. They exist only in tests and with `--cfg fuzzing`.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[path = "../tests/fuzz/mod.rs"]
#[allow(
    clippy::panic,
    missing_docs,
    reason = "a target panics when it finds an error"
)]
pub mod fuzz;

/// Benchmarks of private functions, run by name.
#[cfg(test)]
#[path = "../tests/micro/mod.rs"]
mod micro;

/// The methods of AMQP that programs need rarely: those that cony sends itself, and those with a
/// call that takes no arguments.
///
/// The methods that the calls of a channel take are in [`basic`], [`exchange`] and [`queue`].
/// For methods as values see [`BlockingConnection::send_method`].
pub mod methods {
    pub use crate::protocol::methods::{access, channel, confirm, connection, tx};
}

/// The iterators over a [`FieldTable`].
pub mod table {
    pub use crate::protocol::table::{IntoIter, Iter};
}

pub use bytes::Bytes;
/// The crate of the receiver that [`BlockingConnection::ready`] and [`Consumer::ready`] return.
pub use crossbeam_channel;
/// The crate of the connector that [`ConnectionParameters::tls_connector`] takes.
#[cfg(feature = "native-tls")]
pub use native_tls;

pub use client::channel::{BlockingChannel, Confirmation};
pub use client::confirm::{Confirm, PublishFailure, Returned};
pub use client::connection::{BlockingConnection, Stats, TimerId};
pub use client::consumer::{Consumer, IntoIter, Iter};
pub use client::delivery::{Delivery, Message};
pub use client::rpc::RpcClient;
pub use config::credentials::Credentials;
pub use config::parameters::{ConnectionParameters, Oversized, TcpOptions};
#[cfg(feature = "native-tls")]
pub use config::tls::{TlsOptions, TlsVersion};
pub use error::{ConnectError, ConnectionLostError, Error, ReadingPause, Result, TlsError};
pub use io::cancellation::CancellationToken;
pub use protocol::errors::{DecodeError, ProtocolError};
pub use protocol::field_value::FieldValue;
pub use protocol::methods::{Method, MethodId, basic, exchange, queue};
pub use protocol::properties::{BasicProperties, DeliveryMode};
pub use protocol::reply_code::{CloseReason, ClosedBy, ReplyCode};
pub use protocol::sasl::Mechanism;
pub use protocol::secret::Secret;
pub use protocol::stage::Stage;
pub use protocol::table::FieldTable;
pub use protocol::time::{Expiration, Timestamp};
pub use protocol::wire::{LongString, ShortString};
