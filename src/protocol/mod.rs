//! The core: AMQP 0-9-1 as a state machine, without sockets, threads, locks or clocks. Commands and
//! received bytes go in; bytes to send and events come out.
//!
//! Read the modules in this order:
//!
//! 1. [`wire`], [`time`] and [`table`] have the types of the wire. [`methods`] is the table of all
//!    methods. The macro in `define` makes the structs and the codec from it. [`arguments`] adds
//!    RabbitMQ's arguments. [`frame`] reads and writes frames. [`assembly`] puts a [`content`]
//!    together from several frames.
//! 2. [`addresses`] chooses the address of a broker, and [`handshake`] opens a connection.
//! 3. [`connection`] passes received frames to each [`channel`]. [`output`] collects the results:
//!    bytes and [`event`]s. [`heartbeat`] finds a dead broker. [`connection::recovery`] continues
//!    with another connection.
//! 4. [`delivery_batch`] stores deliveries. [`read_room`] counts their bytes against the read
//!    budget. [`held_deliveries`] decides which deliveries are held back, and when these are
//!    requeued.
//! 5. [`confirms`] is the confirm ledger, and [`property_match`] finds the publish of a returned
//!    message. [`settlements`] is the settlement ledger. It stores delivery tags in [`ranges`].
//! 6. [`recovery`] decides what happens after the loss of a connection. [`stream_progress`] chooses
//!    the offset at which a consumer of a stream goes on then.
//! 7. [`secret`] wipes passwords from memory. [`errors`] and [`reply_code`] have the reasons
//!    for an end.
//!
//! Nothing in here uses the rest of the crate.

#[macro_use]
mod define;

pub(crate) mod addresses;
pub(crate) mod arguments;
pub(crate) mod assembly;
pub(crate) mod buffers;
pub(crate) mod channel;
pub(crate) mod close_reason;
pub(crate) mod confirms;
pub(crate) mod connection;
pub(crate) mod consumers;
pub(crate) mod content;
pub(crate) mod delivery_batch;
pub(crate) mod delivery_runs;
pub(crate) mod errors;
pub(crate) mod event;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod heartbeat;
pub(crate) mod held_deliveries;
pub(crate) mod kinds;
mod last_names;
pub(crate) mod method_id;
pub(crate) mod methods;
pub(crate) mod output;
pub(crate) mod properties;
mod property_match;
mod ranges;
pub(crate) mod read_room;
pub(crate) mod recovery;
pub(crate) mod reply_code;
pub(crate) mod returned;
pub(crate) mod sasl;
pub(crate) mod secret;
pub(crate) mod settlements;
mod small_str;
pub(crate) mod stage;
pub(crate) mod stream_progress;
pub(crate) mod table;
pub(crate) mod time;
pub(crate) mod wire;

#[cfg(test)]
mod tests;
