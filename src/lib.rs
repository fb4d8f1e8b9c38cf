//! A blocking RabbitMQ (AMQP 0-9-1) client.

mod channel;
mod connection;
mod consumer;
mod credentials;
mod delivery;
mod error;
mod io;
mod parameters;
mod protocol;
mod uri;

pub use bytes::Bytes;

pub use channel::BlockingChannel;
pub use connection::BlockingConnection;
pub use consumer::{Consumer, Iter};
pub use credentials::Credentials;
pub use delivery::{Delivery, Message};
pub use error::{ConnectFailure, ConnectionLoss, Error, Result};
pub use parameters::{ConnectionParameters, TcpOptions};
pub use protocol::failure::{CloseReason, ClosedBy, DecodeError, ProtocolError, ReplyCode};
pub use protocol::handshake::Stage;
pub use protocol::methods::{self, Method, MethodId, basic, exchange, queue};
pub use protocol::properties::{BasicProperties, DeliveryMode};
pub use protocol::table::{FieldTable, FieldValue};
pub use protocol::wire::{LongString, ShortString};
