//! Methods that come as values.

use super::BlockingChannel;
use crate::error::{Error, Result};
use crate::protocol::event::Reply;
use crate::protocol::frame::Settle;
use crate::protocol::methods::{Method, basic, confirm};

/// How a method that comes as a value is sent.
enum Way {
    /// As any call: nothing here needs to know of it.
    Call,
    Refused(&'static str),
}

impl BlockingChannel {
    /// Sends any method but a publish, in the way that keeps the books right.
    pub(crate) fn send_method(&self, method: Method) -> Result<Option<Method>> {
        let inner = self.inner();
        match method {
            Method::BasicAck(ack) => {
                let multiple = ack.multiple;
                sent(inner.settle(ack.delivery_tag, Settle::Ack { multiple }))
            }
            Method::BasicNack(nack) => sent(self.basic_nack(nack)),
            Method::BasicReject(reject) => sent(self.basic_reject(reject)),
            Method::BasicQos(qos) => replied(self.basic_qos(qos), basic::QosOk::default()),
            Method::ConfirmSelect(select) if select.nowait => sent(self.confirm_delivery_nowait()),
            Method::ConfirmSelect(_) => {
                replied(self.confirm_delivery(), confirm::SelectOk::default())
            }
            method => match way(&method) {
                Way::Refused(instead) => Err(Error::MethodRefused {
                    method: method.id(),
                    instead,
                }),
                Way::Call => match inner.round_trip(method, None)? {
                    Reply::Method(reply) => Ok(Some(reply)),
                    _ => Ok(None),
                },
            },
        }
    }
}

/// The outcome of a call that keeps its reply to itself, which has no contents.
fn replied(outcome: Result<()>, reply: impl Into<Method>) -> Result<Option<Method>> {
    outcome.map(|()| Some(reply.into()))
}

/// The outcome of a method without reply.
fn sent(outcome: Result<()>) -> Result<Option<Method>> {
    outcome.map(|()| None)
}

fn way(method: &Method) -> Way {
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
        | Method::TxRollback(_) => Way::Call,
        Method::BasicConsume(_) => {
            Way::Refused("use basic_consume or consume, which take what it delivers")
        }
        Method::BasicCancel(_) => Way::Refused("use basic_cancel, which hands back what is left"),
        Method::BasicGet(_) => Way::Refused("use basic_get, which returns the message"),
        Method::ChannelOpen(_) => Way::Refused("use BlockingConnection::channel"),
        Method::ChannelClose(_) => Way::Refused("use BlockingChannel::close_with"),
        Method::ConnectionClose(_) => Way::Refused("use BlockingConnection::close_with"),
        Method::ConnectionUpdateSecret(_) => Way::Refused("use BlockingConnection::update_secret"),
        _ => Way::Refused("the library or the broker sends it when its time comes"),
    }
}
