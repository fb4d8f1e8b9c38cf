//! The IO thread of a connection, and the data that it exchanges with the program's threads.
//!
//! A connection is opened on the calling thread ([`open`]). The stream then moves to the IO thread,
//! whose loop is [`driver`]. The folders are sorted by direction:
//!
//! | folder | direction |
//! |---|---|
//! | [`to_io`] | from the program's threads to the IO thread |
//! | [`to_program`] | from the IO thread to the program's threads |
//! | [`shared`] | the state of a connection, a channel and a consumer, which both sides hold |
//! | [`driver`] | inside the IO thread: only this thread uses it |
//!
//! A *crossing* is a place where data passes from one thread to another. The table lists the
//! crossings with their bounds, and with the threads that may wait there:
//!
//! | data | mechanism | bound | waiting thread |
//! |---|---|---|---|
//! | methods, publishes, acknowledgements | [`command_queue`](to_io::command_queue), which the IO thread takes as a whole | bytes ([`write_budget`](to_io::write_budget)) | a publisher, until its deadline |
//! | waking the IO thread, only when it is about to wait | [`wake`](to_io::wake) | – | – |
//! | replies to calls | a crossbeam channel of one slot | 1 | the caller; the IO thread watches the deadline |
//! | confirms | [`publisher`](to_program::publisher), with a slot for each publish | the confirm window | a publisher, or a thread that waits for the confirm, until its deadline |
//! | deliveries | [`inbox`](to_program::inbox), which takes all deliveries of one read at once | bytes ([`read_budget`](to_program::read_budget)) | the consuming thread |
//! | "there is something to dispatch" | [`dispatch_signal`](to_program::dispatch_signal), a crossbeam channel of one slot for each dispatching thread | 1 | the dispatching thread |
//! | replies to RPC requests | [`rpc_replies`](to_program::rpc_replies), a crossbeam channel for each request | 2: the reply, and the failure of the publish | the requesting thread, until its deadline |
//! | giving up the opening of a connection | [`cancellation`], a flag and the waker of the `Poll` | – | the opening thread |
//! | the reason for the end of the connection | a cell in [`shared::connection`] that is written once, by the IO thread. It is written before the waiting threads are woken, so they find the reason there | – | – |

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
