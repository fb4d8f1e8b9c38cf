//! `send_method`, which sends any method.

use super::BlockingConnection;
use crate::client::channel::BlockingChannel;
use crate::client::message::Message;
use crate::error::{Error, Result};
use crate::protocol::event::Reply;
use crate::protocol::frame::Settle;
use crate::protocol::methods::{Method, basic, confirm};

impl BlockingConnection {
    /// Sends a method on the channel with this number, and returns the reply if the method has one.
    /// `content` is the message of a `basic.publish`. The publish is mandatory if the flag is set
    /// in the message or in the method.
    ///
    /// This is for programs that have AMQP methods as values. All other programs call the methods
    /// of [`BlockingChannel`], which return the type of each reply.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use cony::{basic, queue};
    ///
    /// let channel = connection.channel()?;
    /// let number = channel.number();
    /// let reply = connection.send_method(number, queue::Declare::new("tasks"), None)?;
    /// println!("{reply:?}");
    /// let publish = basic::Publish::default().routing_key("tasks");
    /// connection.send_method(number, publish, Some("hello".into()))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// If the connection is lost while the method is on its way, [recovery][recovery] does not send
    /// it again, though it would repeat the same call of [`BlockingChannel`]: only the program
    /// knows the effect of a second time. `basic.qos` and `confirm.select`, which recovery restores
    /// on each connection, are repeated. A method that is not yet written waits for the end of the
    /// outage.
    ///
    /// [recovery]: crate::ConnectionParameters::recovery
    ///
    /// # Errors
    ///
    /// [`Error::Interrupted`] if the connection was lost while the method was on its way.
    /// [`Error::InvalidChannelNumber`] if the program has no open channel with this number, though
    /// the connection is open. [`Error::MethodRefused`] for a method that only brokers send, for a
    /// method that would change the state of a channel or connection without its handle, and for a
    /// method that starts deliveries or returns a message, because this call could not return
    /// these. Otherwise the errors of the call that sends the method.
    pub fn send_method(
        &self,
        channel_number: u16,
        method: impl Into<Method>,
        content: Option<Message<'_>>,
    ) -> Result<Option<Method>> {
        self.inner.check_open()?;
        let channel = self.channel_by_number(channel_number)?;
        match method.into() {
            Method::BasicPublish(publish) => {
                let mut message = content.unwrap_or_else(|| Message::new(b""));
                message.mandatory |= publish.mandatory;
                message.immediate |= publish.immediate;
                channel.basic_publish(&publish.exchange, &publish.routing_key, message)?;
                Ok(None)
            }
            method if content.is_some() => Err(Error::MethodRefused {
                method: method.id(),
                instead: "only basic.publish carries a message",
            }),
            method => send(&channel, method),
        }
    }

    fn channel_by_number(&self, number: u16) -> Result<BlockingChannel> {
        let mut channels = self.inner.open_channels().into_iter();
        channels
            .find(|channel| channel.number() == number && channel.is_open())
            .ok_or_else(|| Error::InvalidChannelNumber {
                number,
                max: self.channel_max(),
            })
    }
}

/// Sends a method without content through the call of the channel that does the bookkeeping for it.
fn send(channel: &BlockingChannel, method: Method) -> Result<Option<Method>> {
    match method {
        Method::BasicAck(ack) => {
            let multiple = ack.multiple;
            let settled = channel
                .inner()
                .shared
                .settle(ack.delivery_tag, Settle::Ack { multiple });
            settled.map(|()| None)
        }
        Method::BasicNack(nack) => channel.basic_nack(nack).map(|()| None),
        Method::BasicReject(reject) => channel.basic_reject(reject).map(|()| None),
        Method::BasicQos(qos) => {
            channel.basic_qos(qos)?;
            Ok(Some(basic::QosOk::default().into()))
        }
        Method::ConfirmSelect(select) if select.nowait => {
            channel.confirm_delivery_nowait().map(|()| None)
        }
        Method::ConfirmSelect(_) => {
            channel.confirm_delivery()?;
            Ok(Some(confirm::SelectOk::default().into()))
        }
        method => match alternative(&method) {
            Some(instead) => Err(Error::MethodRefused {
                method: method.id(),
                instead,
            }),
            None => match channel.inner().round_trip_once(method)? {
                Reply::Method(reply) => Ok(Some(reply)),
                _ => Ok(None),
            },
        },
    }
}

/// Returns the call to use instead of `send_method`; `None` for a method without bookkeeping.
fn alternative(method: &Method) -> Option<&'static str> {
    match method {
        Method::AccessRequest(_)
        | Method::ChannelFlow(_)
        | Method::ExchangeDeclare(_)
        | Method::ExchangeDelete(_)
        | Method::ExchangeBind(_)
        | Method::ExchangeUnbind(_)
        | Method::QueueDeclare(_)
        | Method::QueueBind(_)
        | Method::QueuePurge(_)
        | Method::QueueDelete(_)
        | Method::QueueUnbind(_)
        | Method::BasicRecover(_)
        | Method::BasicRecoverAsync(_)
        | Method::TxSelect(_)
        | Method::TxCommit(_)
        | Method::TxRollback(_) => None,
        Method::BasicConsume(_) => {
            Some("use basic_consume or consume, which receive the deliveries")
        }
        Method::BasicCancel(_) => Some("use basic_cancel, which returns the remaining deliveries"),
        Method::BasicGet(_) => Some("use basic_get, which returns the message"),
        Method::ChannelOpen(_) => Some("use BlockingConnection::channel"),
        Method::ChannelClose(_) => Some("use BlockingChannel::close_with"),
        Method::ConnectionClose(_) => Some("use BlockingConnection::close_with"),
        Method::ConnectionUpdateSecret(_) => Some("use BlockingConnection::update_secret"),
        _ => Some("the library or the broker sends it at the right time"),
    }
}
