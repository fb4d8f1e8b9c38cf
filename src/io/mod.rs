//! The one thread that owns the socket, and what crosses to it.
//!
//! | crossing | mechanism | bound | who may wait |
//! |---|---|---|---|
//! | caller → IO: methods, publishes | [`commands`], a queue that the IO thread takes as a whole | bytes ([`write_budget`]) | publishers, with a deadline |
//! | waking the IO thread | [`wake`], only when it is about to wait | – | nobody |
//! | IO → caller: replies | a one-slot crossbeam channel | 1 | the caller; the IO thread keeps its deadline |
//! | caller → IO → caller: confirms | [`publishing`], a slot for each publish | the confirm window | publishers and whoever asks, with a deadline |
//! | IO → consumers | [`inbox`], a queue that takes what one read brought at once | bytes ([`budget`]) | the consuming thread |
//! | IO → who dispatches callbacks | [`bell`], a one-slot crossbeam channel for each such thread | 1 | that thread |
//! | IO → who waits for an RPC answer | [`answers`], a crossbeam channel for each request | 2 | that thread, with a deadline |
//! | caller → caller that opens: give it up | [`cancellation`], a flag, and the waker of the `Poll` | – | the caller that opens |
//! | IO → everybody: why it ended | written once, before anything is disconnected | – | nobody |
//!
//! [`open`] opens a connection on the caller's thread, at one of the host's addresses; [`driver`] is the loop
//! of the thread that then serves it,
//! and `dispatch` its way to the threads that wait; [`transport`] is the stream, plain or TLS;
//! [`outbox`] holds what waits to be written.

pub(crate) mod answers;
pub(crate) mod backpressure;
pub(crate) mod bell;
pub(crate) mod budget;
pub(crate) mod cancellation;
pub(crate) mod channel_port;
pub(crate) mod chunks;
pub(crate) mod commands;
pub(crate) mod consumer_port;
pub(crate) mod counters;
mod dispatch;
pub(crate) mod driver;
pub(crate) mod failures;
pub(crate) mod inbox;
pub(crate) mod kept;
mod line;
mod listing;
#[cfg(all(test, loom))]
mod models;
pub(crate) mod nap;
pub(crate) mod open;
pub(crate) mod outbox;
mod pauses;
pub(crate) mod port;
pub(crate) mod publishing;
pub(crate) mod slot;
mod spin;
mod sync;
pub(crate) mod transport;
pub(crate) mod waiters;
pub(crate) mod wake;
pub(crate) mod write_budget;
