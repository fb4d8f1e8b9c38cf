//! The protocol as a value: no sockets, threads, locks or clocks.
//!
//! Read in this order: [`wire`] and [`table`] are the types, [`methods`] the table of
//! everything that can be said, [`arguments`] what RabbitMQ adds to it, [`frame`] and [`content`] how it is wrapped,
//! [`delivery_batch`] how what was delivered waits, [`held_back`] what is held back;
//! [`addresses`] decides which address of a broker is tried, [`handshake`] opens a connection,
//! [`connection`] routes what comes to [`channel`]s and tells of it in [`event`]s, [`heartbeat`] watches over it, [`confirms`]
//! keeps the books of publishes ([`property_match`] tells which one came back), [`settlements`] those
//! of deliveries (as [`ranges`] of numbers), [`secret`] leaves no copies. [`errors`] are violations
//! of the protocol, [`reply_code`] has the codes and reasons of a close.
//!
//! Nothing in here knows anything of the rest of the crate.

#[macro_use]
mod define;

pub(crate) mod addresses;
pub(crate) mod arguments;
pub(crate) mod assembly;
pub(crate) mod buffers;
pub(crate) mod channel;
pub(crate) mod confirms;
pub(crate) mod connection;
pub(crate) mod consumers;
pub(crate) mod content;
pub(crate) mod delivery_batch;
pub(crate) mod errors;
pub(crate) mod event;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod heartbeat;
pub(crate) mod held_back;
mod last_names;
pub mod methods;
pub(crate) mod output;
pub(crate) mod properties;
mod property_match;
mod ranges;
pub(crate) mod read_room;
pub(crate) mod reply_code;
pub(crate) mod sasl;
pub(crate) mod secret;
pub(crate) mod settlements;
mod small_str;
pub(crate) mod stage;
pub(crate) mod table;
pub(crate) mod wire;

#[cfg(test)]
mod tests;
