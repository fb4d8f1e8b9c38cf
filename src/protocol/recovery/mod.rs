//! Recovery: the decisions after the loss of a connection, without thread, socket, clock or random
//! source. The time and random numbers are parameters.
//!
//! - [`book`] records the topology that the program has declared.
//! - [`restoration`] declares it again on a new connection.
//! - [`refused`] tries consumers again that the broker has refused.
//! - [`policy`] decides which losses and which failed attempts are final.
//! - [`session`] decides when an attempt is made and with which broker. Its delays are in `series`.

pub(crate) mod book;
pub(crate) mod policy;
mod random;
pub(crate) mod refused;
pub(crate) mod restoration;
mod series;
pub(crate) mod session;
#[cfg(test)]
mod tests;
