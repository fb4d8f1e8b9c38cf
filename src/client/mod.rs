//! The API: connections, channels, consumers, messages, and the callbacks of a program.

pub(crate) mod callbacks;
pub(crate) mod channel;
pub(crate) mod confirm;
pub(crate) mod connection;
pub(crate) mod consumer;
pub(crate) mod delivery;
pub(crate) mod message;
pub(crate) mod rpc;
