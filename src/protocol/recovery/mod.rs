//! Recovery: the decisions after the loss of a connection, without thread, socket, clock or random
//! source. The time and random numbers are parameters.
//!
//! - [`book`] records the topology that the program has declared.
pub(crate) mod book;
