//! The end of a call whose connection is lost before the reply.

use super::super::methods::{Method, basic, tx};

/// The effect of the loss of a connection on a call that is on the wire.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LossEffect {
    /// The call is sent again. The second time has the same effect as the first.
    Repeated,
    /// The loss itself has the effect of the call, so the call has this reply.
    Done(Method),
    /// The call may have taken effect, and a second time would change more.
    Interrupted,
}

impl LossEffect {
    /// Returns the effect on a call of `method`.
    pub(super) fn on(method: &Method) -> Self {
        match method {
            Method::ChannelOpen(_)
            | Method::ChannelFlow(_)
            | Method::AccessRequest(_)
            | Method::ExchangeDeclare(_)
            | Method::ExchangeDelete(_)
            | Method::ExchangeBind(_)
            | Method::ExchangeUnbind(_)
            | Method::QueueDeclare(_)
            | Method::QueueBind(_)
            | Method::QueueDelete(_)
            | Method::QueueUnbind(_)
            | Method::BasicQos(_)
            | Method::BasicConsume(_)
            | Method::ConfirmSelect(_)
            | Method::TxSelect(_) => Self::Repeated,
            // The message of an unfinished get without acknowledgement is lost, while one that
            // needs an acknowledgement is requeued.
            Method::BasicGet(get) if !get.no_ack => Self::Repeated,
            Method::BasicCancel(cancel) => {
                let cancel_ok = basic::CancelOk::default().consumer_tag(&cancel.consumer_tag);
                Self::Done(cancel_ok.into())
            }
            Method::BasicRecover(_) => Self::Done(basic::RecoverOk::default().into()),
            Method::TxRollback(_) => Self::Done(tx::RollbackOk::default().into()),
            _ => Self::Interrupted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::methods::every_method;
    use super::*;

    #[test]
    fn each_method_with_a_reply_is_repeated_or_done_or_interrupted() {
        let of_channel = |method: &Method| method.id().class != 10 && !method.replies().is_empty();
        let mut interrupted = Vec::new();
        let mut done = Vec::new();
        let mut repeated = Vec::new();
        for method in every_method().into_iter().filter(of_channel) {
            let name = method.id().name().unwrap();
            match LossEffect::on(&method) {
                LossEffect::Repeated => repeated.push(name),
                LossEffect::Done(reply) => {
                    assert_eq!(method.replies(), [reply.id()]);
                    done.push(name);
                }
                LossEffect::Interrupted => interrupted.push(name),
            }
        }
        let expected = [
            "channel.open",
            "channel.flow",
            "access.request",
            "exchange.declare",
            "exchange.delete",
            "exchange.bind",
            "exchange.unbind",
            "queue.declare",
            "queue.bind",
            "queue.delete",
            "queue.unbind",
            "basic.qos",
            "basic.consume",
            "basic.get",
            "confirm.select",
            "tx.select",
        ];
        assert_eq!(repeated, expected);
        assert_eq!(done, ["basic.cancel", "basic.recover", "tx.rollback"]);
        // A close of the channel is no call of the channel, and has an exchange of its own.
        assert_eq!(interrupted, ["channel.close", "queue.purge", "tx.commit"]);
        let get = basic::Get::new("q").no_ack(true).into();
        assert_eq!(LossEffect::on(&get), LossEffect::Interrupted);
    }
}
