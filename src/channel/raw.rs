//! Methods that come as values.

use super::BlockingChannel;
use crate::error::{Error, Result};
use crate::protocol::event::Reply;
use crate::protocol::frame::Settle;
use crate::protocol::methods::{Method, basic, confirm, tx};

/// How a method that comes as a value is sent.
enum Way {
    /// As any call: nothing here needs to know of it.
    Call,
    Refused(&'static str),
}

impl BlockingChannel {
    /// Sends any method but a publish, in the way that keeps the books right.
    pub(crate) fn send_method(&self, method: Method) -> Result<Option<Method>> {
        let shared = self.shared();
        match method {
            Method::BasicAck(ack) => {
                let multiple = ack.multiple;
                replied(
                    shared.settle(ack.delivery_tag, Settle::Ack { multiple }),
                    NONE,
                )
            }
            Method::BasicNack(nack) => replied(self.basic_nack(nack), NONE),
            Method::BasicReject(reject) => replied(self.basic_reject(reject), NONE),
            Method::BasicQos(qos) => replied(self.basic_qos(qos), basic::QosOk::default()),
            Method::ConfirmSelect(select) if select.nowait => {
                replied(self.confirm_delivery_nowait(), NONE)
            }
            Method::ConfirmSelect(_) => {
                replied(self.confirm_delivery(), confirm::SelectOk::default())
            }
            Method::TxSelect(_) => replied(self.tx_select(), tx::SelectOk::default()),
            Method::TxCommit(_) => replied(self.tx_commit(), tx::CommitOk::default()),
            Method::TxRollback(_) => replied(self.tx_rollback(), tx::RollbackOk::default()),
            method => match way(&method) {
                Way::Refused(instead) => Err(Error::MethodRefused {
                    method: method.id(),
                    instead,
                }),
                Way::Call => match shared.exchange(method, None)? {
                    Reply::Method(reply) => Ok(Some(reply)),
                    _ => Ok(None),
                },
            },
        }
    }
}

/// Said for a method without reply.
const NONE: Option<Method> = None;

/// The outcome of a call that keeps its reply to itself, which has no contents.
fn replied<R: Into<Method>>(
    outcome: Result<()>,
    reply: impl Into<Option<R>>,
) -> Result<Option<Method>> {
    outcome.map(|()| reply.into().map(R::into))
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
        | Method::BasicRecoverAsync(_) => Way::Call,
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
