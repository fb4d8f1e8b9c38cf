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
//! | [`open`] | on the calling thread, before the IO thread exists; after a loss on a thread of its own |
//!
//! The files beside the folders are tools of both directions: waiting lines, busy wait, counters,
//! backpressure, cancellation.
//!
//! A *crossing* is a place where data passes from one thread to another. The table in
//! docs/design.md, "Threads and crossings", lists them with their bounds, and with the threads that
//! may wait there.

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
