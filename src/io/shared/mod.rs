//! The state that the IO thread shares with the program's threads: one value for each connection,
//! channel and consumer.

pub(crate) mod channel;
mod channel_end;
pub(crate) mod command;
pub(crate) mod connection;
pub(crate) mod consumer;
pub(crate) mod notices;
pub(crate) mod recovery;
mod settling;
