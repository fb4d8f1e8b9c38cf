//! From the IO thread to the program's threads: deliveries, confirms, notices, and the signals for
//! dispatching threads.

pub(crate) mod bounded_queue;
pub(crate) mod confirm_slot;
pub(crate) mod confirm_window;
pub(crate) mod dispatch_signal;
pub(crate) mod inbox;
pub(crate) mod outcome_queue;
pub(crate) mod publish_failures;
pub(crate) mod read_budget;
pub(crate) mod read_control;
pub(crate) mod ready_list;
pub(crate) mod rpc_replies;
pub(crate) mod stream_position;
pub(crate) mod waiting_threads;
