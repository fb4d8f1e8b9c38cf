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
//! Calls are plain functions, without a runtime and without futures: each returns when it is done,
//! or when its deadline has passed. One background thread, the IO thread, owns the socket and sends
//! the heartbeats, so a callback may take an hour. Every handle can be used from several threads.
//! If the connection is lost, cony opens it again, and the handles stay usable.
//!
//! cony is to Rust as pika's `BlockingConnection` is to Python. If you know pika, the page [from
//! pika to cony][from-pika] lists each of its names with the counterpart here.
//!
//! [from-pika]: https://docs.rs/crate/cony/latest/source/docs/from-pika.md
//!
//! This page is an outline. The [`guide`] has a page for each subject.
//!
//! # Publishing
//!
//! [`basic_publish`](BlockingChannel::basic_publish) takes an exchange, a routing key and a
//! message. The message is anything that is bytes, or a [`Message`] with properties.
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
//! After [`confirm_delivery`](BlockingChannel::confirm_delivery) the broker confirms each message.
//! [`PublisherConfirm::wait`] waits for the confirm of one message, and
//! [`wait_for_confirms`](BlockingChannel::wait_for_confirms) for all of them.
//!
//! # Consuming
//!
//! Consume with a callback, as in pika, or with an iterator. Acknowledge each delivery, or consume
//! with `no_ack`.
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
//! # Requests and replies
//!
//! [`RpcClient`] sends a request to a server through a queue and waits for the reply.
//!
//! # Threads
//!
//! [`BlockingConnection`], [`BlockingChannel`] and [`Consumer`] are `Send`, `Sync` and cheap to
//! clone. A [`Delivery`] can be settled from any thread. On one channel, calls of several threads
//! take turns; publishes and acknowledgements do not wait for them. A channel closes when the last
//! of its handles and consumers is dropped. A connection closes when its last handle and those of
//! its channels and consumers are dropped.
//!
//! # Errors
//!
//! Every call returns a [`Result`] with the one type [`Error`]. If the broker refuses a call, it
//! closes the channel, or for some mistakes the connection. The error has the code and the text of
//! the broker, and later calls on that handle return the same reason. Mistakes that cony can find
//! itself are errors before anything is sent. [`Error::is_retryable`] returns whether another
//! attempt may succeed.
//!
//! # Lost connections
//!
//! A lost connection is opened again, with the same channels and consumers, and with the exchanges,
//! queues and bindings that were declared on it. Until then calls wait, within their deadlines.
//! Deliveries that were not settled come again. Publishes without a confirm end as
//! [`Error::Unconfirmed`]. See [`guide::recovery`], and
//! [`recovery`](ConnectionParameters::recovery) to switch this off.
//!
//! # Bounds
//!
//! Calls have a deadline: they end with the reply, with the end of their channel or connection, or
//! with [`Error::Timeout`]. [`ConnectionParameters`] has all timeouts. Only calls that wait for
//! messages, or for the end of a connection, have no limit: [`run`](BlockingConnection::run), for
//! example.
//!
//! Memory is bounded in both directions: publishes wait for room in the write budget, and reading
//! pauses when untaken deliveries exceed the read budget.
//!
//! # Log
//!
//! cony logs through the crate `log`, with the name of the connection:
//!
//! - `info`: a connection is opened, opened again after a loss, or unblocked.
//! - `warn`: something that you should look at, for example:
//!   - A connection is lost, or an attempt to open it again has failed.
//!   - The broker has blocked a connection.
//!   - Reading is paused.
//!   - A thread waits for a delivery, but none can arrive, because unsettled deliveries have used
//!     up the prefetch.
//!   - A consumer with `no_ack` was dropped, and its untaken deliveries are lost.
//! - `debug`: a channel or connection has ended.
//!
//! It never logs a body or a secret. The IO thread logs as well, so the log backend should be
//! quick, and must not use cony itself.
//!
//! # Examples
//!
//! `examples/` has RabbitMQ's tutorials and programs for everyday tasks. README lists them.
//!
//! # Features
//!
//! `native-tls` (on by default, also called `tls`): `amqps://` with the TLS library of the
//! platform, through the crate [`native_tls`](https://docs.rs/native-tls).

// docs.rs builds with a nightly compiler and marks items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
// A test panics when it fails.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

/// Compiles and runs the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles and runs the example for users of pika.
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

/// The AMQP methods whose structs a program rarely needs. cony sends some of them itself. The calls
/// for the others take no arguments.
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

pub use client::channel::BlockingChannel;
pub use client::confirm::{Confirmation, PublisherConfirm};
pub use client::connection::recovery::RecoveryEvent;
pub use client::connection::{BlockingConnection, Stats, TimerId};
pub use client::consumer::Consumer;
pub use client::delivery::Delivery;
pub use client::message::Message;
pub use client::rpc::RpcClient;
pub use config::credentials::Credentials;
pub use config::parameters::{ConnectionParameters, Oversized, TcpOptions};
pub use config::recovery::Recovery;
#[cfg(feature = "native-tls")]
pub use config::tls::{TlsOptions, TlsVersion};
pub use error::{
    ConnectError, ConnectionLostError, Error, Outage, PublishError, ReadingPause, Result, TlsError,
};
pub use io::cancellation::CancellationToken;
pub use protocol::close_reason::{CloseReason, ClosedBy};
pub use protocol::errors::{DecodeError, ProtocolError};
pub use protocol::methods::{Method, MethodId, basic, exchange, queue};
pub use protocol::properties::{BasicProperties, DeliveryMode};
pub use protocol::reply_code::ReplyCode;
pub use protocol::returned::Returned;
pub use protocol::sasl::Mechanism;
pub use protocol::secret::Secret;
pub use protocol::stage::Stage;
pub use protocol::table::FieldTable;
pub use protocol::table::field_value::FieldValue;
pub use protocol::time::{Expiration, Timestamp};
pub use protocol::wire::{LongString, ShortString};

/// The choices and the results of [`Recovery`].
pub mod recovery {
    pub use crate::client::connection::recovery::{
        Entity, Recovered, RenamedQueue, RestoredLater, SkippedEntity,
    };
    pub use crate::config::recovery::{BrokerOrder, Topology};
}

/// Consumers whose deliveries you take one by one, and their iterators.
pub mod consumer {
    pub use crate::client::consumer::{Consumer, IntoIter, Iter};
}
