//! Recovery: the decisions after the loss of a connection, without thread, socket, clock or random
//! source. The time and random numbers are parameters.
//!
//! - [`book`] records the topology that the program has declared.
//! - [`restoration`] declares it again on a new connection.

pub(crate) mod book;
pub(crate) mod policy;
mod random;
pub(crate) mod restoration;
mod series;
#[cfg(test)]
mod tests;
