//! The IO thread of a connection, and everything that crosses to it or comes from it.
//!
//! A connection is opened on the calling thread ([`open`]). The stream then moves to the IO thread,
//! whose loop is [`driver`]. The folders are sorted by direction:
//!
//! | folder | direction |
//! |---|---|
//! | [`to_io`] | from the program's threads to the IO thread |
//! | [`to_program`] | from the IO thread to the program's threads |
//! | [`shared`] | the state of a connection, a channel and a consumer, which both sides hold |
//! | [`driver`] | what only the IO thread touches |
//!
//! The crossings, their bounds, and the threads that may wait at them:
//!
//! | crossing | mechanism | bound | waits |
//! |---|---|---|---|
//! | methods, publishes, acknowledgements | [`command_queue`](to_io::command_queue), which the IO thread takes as a whole | bytes ([`write_budget`](to_io::write_budget)) | a publisher, until its deadline |
//! | waking the IO thread, only when it is about to wait | [`wake`](to_io::wake) | – | – |
//! | replies to calls | a crossbeam channel of one slot | 1 | the caller; the IO thread watches the deadline |
//! | confirms | [`publisher`](to_program::publisher), with a slot for each publish | the confirm window | a publisher, or a thread that waits for the confirm, until its deadline |
//! | deliveries | [`inbox`](to_program::inbox), which takes all deliveries of one read at once | bytes ([`read_budget`](to_program::read_budget)) | the consuming thread |
//! | "there is something to dispatch" | [`dispatch_signal`](to_program::dispatch_signal), a crossbeam channel of one slot for each dispatching thread | 1 | the dispatching thread |
//! | replies to RPC requests | [`rpc_replies`](to_program::rpc_replies), a crossbeam channel for each request | 2 | the requesting thread, until its deadline |
//! | giving up the opening of a connection | [`cancellation`], a flag and the waker of the `Poll` | – | the opening thread |
//! | why the connection ended | written once, before anything is disconnected | – | – |

pub(crate) mod backpressure;
pub(crate) mod busy_wait;
pub(crate) mod cancellation;
pub(crate) mod counters;
pub(crate) mod driver;
mod loom;
pub(crate) mod open;
pub(crate) mod shared;
pub(crate) mod to_io;
pub(crate) mod to_program;
pub(crate) mod waiting_line;
