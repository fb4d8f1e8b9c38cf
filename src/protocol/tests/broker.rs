//! A model of the broker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::methods::{confirm, queue, tx};
use super::super::wire::ShortString;
use super::*;

/// A broker that behaves like RabbitMQ, and panics where RabbitMQ would close the channel or the
/// connection because of an error of the client.
#[derive(Default)]
pub(super) struct Broker {
    pub(super) channels: BTreeMap<u16, BrokerChannel>,
    /// Every message that was sent: the number of its channel, which of the channels with that
    /// number, and the delivery tag. The body of a message is its index in this list.
    pub(super) messages: Vec<(u16, usize, u64)>,
    /// How often each channel number was opened.
    pub(super) openings: BTreeMap<u16, usize>,
    /// The bytes on their way to the client.
    pub(super) output: VecDeque<u8>,
}

#[derive(Default)]
pub(super) struct BrokerChannel {
    /// The broker's close is not answered yet. The channel ends with the close-ok, and then a
    /// close-ok of the broker that is still due is not sent.
    closing: bool,
    /// The call that is not answered yet.
    pub(super) due: Option<Method>,
    /// The consumer tags, and whether their deliveries need no acknowledgement.
    pub(super) consumers: BTreeMap<ShortString, bool>,
    /// The number of publishes.
    pub(super) published: u64,
    /// The tags of consumers that the broker has cancelled. They cannot be used again before the
    /// client has cancelled them as well.
    lingering: BTreeSet<ShortString>,
    pub(super) delivery_tag: u64,
    pub(super) unsettled: BTreeSet<u64>,
    /// The deliveries that the current transaction has settled, if the channel has transactions.
    transaction: Option<BTreeSet<u64>>,
}

impl Broker {
    pub(super) fn send(&mut self, channel: u16, method: impl Into<Method>) {
        self.output.extend(frame(channel, method));
    }

    fn send_message(&mut self, number: u16, no_ack: bool, method: impl FnOnce(u64) -> Method) {
        let channel = self.channels.get_mut(&number).unwrap();
        channel.delivery_tag += 1;
        let tag = channel.delivery_tag;
        if !no_ack {
            channel.unsettled.insert(tag);
        }
        let body = self.messages.len().to_string();
        self.messages.push((number, self.openings[&number], tag));
        let bytes = content(number, method(tag), None, body.as_bytes());
        self.output.extend(bytes);
    }

    pub(super) fn receive(&mut self, number: u16, method: Method) {
        if let Method::ChannelOpen(_) = method {
            let channel = BrokerChannel {
                due: Some(method),
                ..BrokerChannel::default()
            };
            assert!(self.channels.insert(number, channel).is_none(), "504");
            *self.openings.entry(number).or_default() += 1;
            return;
        }
        if number == 0 {
            assert_eq!(method, connection_close().into());
            return self.send(0, connection::CloseOk::default());
        }
        let channel = self.channels.get_mut(&number);
        let channel = channel.unwrap_or_else(|| panic!("504: {method:?} on channel {number}"));
        if channel.closing {
            match method {
                Method::ChannelClose(_) => channel.due = Some(method),
                Method::ChannelCloseOk(_) => drop(self.channels.remove(&number)),
                _ => {}
            }
            return;
        }
        assert!(
            !matches!(channel.due, Some(Method::ChannelClose(_))),
            "{method:?} came behind a close"
        );
        channel.obey(method);
    }

    /// Answers the call of a channel.
    pub(super) fn answer(&mut self, number: u16, has_message: bool) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        match channel.due.take() {
            None => {}
            Some(Method::ChannelOpen(_)) => self.send(number, channel::OpenOk::default()),
            Some(Method::ChannelClose(_)) => {
                if !channel.closing {
                    self.channels.remove(&number);
                }
                self.send(number, channel::CloseOk::default());
            }
            Some(Method::BasicConsume(consume)) => {
                let tag = consume.consumer_tag;
                channel.consumers.insert(tag.clone(), consume.no_ack);
                self.send(number, consume_ok(&tag));
            }
            Some(Method::BasicCancel(cancel)) => {
                channel.forget(&cancel.consumer_tag);
                self.send(number, cancel_ok(&cancel.consumer_tag));
            }
            Some(Method::BasicGet(get)) if has_message => {
                let get_ok = |tag| basic::GetOk::default().delivery_tag(tag).into();
                self.send_message(number, get.no_ack, get_ok);
            }
            Some(Method::BasicGet(_)) => self.send(number, basic::GetEmpty::default()),
            Some(Method::BasicQos(_)) => self.send(number, basic::QosOk::default()),
            Some(Method::BasicRecover(_)) => self.send(number, basic::RecoverOk::default()),
            Some(Method::ConfirmSelect(_)) => self.send(number, confirm::SelectOk::default()),
            Some(Method::TxSelect(_)) => self.send(number, tx::SelectOk::default()),
            Some(Method::TxCommit(_)) => self.send(number, tx::CommitOk::default()),
            Some(Method::TxRollback(_)) => self.send(number, tx::RollbackOk::default()),
            Some(Method::QueueDeclare(declare)) => {
                let declare_ok = queue::DeclareOk::default().queue(&declare.queue);
                self.send(number, declare_ok);
            }
            Some(other) => panic!("{other:?}"),
        }
    }

    pub(super) fn deliver(&mut self, number: u16) {
        let consumer = self.channels.get(&number).and_then(|channel| {
            // RabbitMQ answers these at once, without deliveries in between.
            if let Some(Method::BasicRecover(_) | Method::TxRollback(_)) = channel.due {
                return None;
            }
            let (tag, no_ack) = channel.consumers.iter().next_back()?;
            Some((tag.clone(), *no_ack))
        });
        if let Some((consumer, no_ack)) = consumer {
            let method = |tag| deliver(&consumer, tag).into();
            self.send_message(number, no_ack, method);
        }
    }

    pub(super) fn cancel(&mut self, number: u16, nowait: bool) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        if let Some((tag, _)) = channel.consumers.pop_first() {
            channel.lingering.insert(tag.clone());
            self.send(number, basic::Cancel::new(tag).nowait(nowait));
        }
    }

    pub(super) fn close(&mut self, number: u16) {
        match self.channels.get_mut(&number) {
            Some(channel) if !channel.is_ending() => {
                *channel = BrokerChannel {
                    closing: true,
                    ..BrokerChannel::default()
                };
                self.send(number, not_found().0);
            }
            _ => {}
        }
    }

    /// Closes a channel that waits for the reply to a `basic.consume`, as a refusal of that.
    pub(super) fn refuse(&mut self, number: u16) {
        if let Some(channel) = self.channels.get_mut(&number) {
            if !channel.closing && matches!(channel.due, Some(Method::BasicConsume(_))) {
                *channel = BrokerChannel {
                    closing: true,
                    ..BrokerChannel::default()
                };
                let close = channel::Close::default()
                    .reply_code(404)
                    .class_id(60)
                    .method_id(20);
                self.send(number, close);
            }
        }
    }

    pub(super) fn flow(&mut self, number: u16) {
        if self.channels.contains_key(&number) {
            self.send(number, channel::Flow::new(true));
        }
    }
}

impl BrokerChannel {
    fn is_ending(&self) -> bool {
        self.closing || matches!(self.due, Some(Method::ChannelClose(_)))
    }

    /// Settles one delivery, or with `multiple` all deliveries up to it. It must be unsettled.
    fn settle(&mut self, delivery_tag: u64, multiple: bool) {
        assert!(
            self.unsettled.contains(&delivery_tag),
            "406: {delivery_tag} is not one of {:?}",
            self.unsettled
        );
        let is_meant = |tag: &u64| *tag == delivery_tag || (multiple && *tag < delivery_tag);
        let settled = self.unsettled.iter().copied().filter(is_meant);
        let settled: BTreeSet<_> = settled.collect();
        self.unsettled.retain(|tag| !settled.contains(tag));
        if let Some(transaction) = &mut self.transaction {
            transaction.extend(settled);
        }
    }

    fn has_consumer(&self, tag: &ShortString) -> bool {
        self.consumers.contains_key(tag) || self.lingering.contains(tag)
    }

    fn forget(&mut self, tag: &ShortString) {
        self.consumers.remove(tag);
        self.lingering.remove(tag);
    }

    fn obey(&mut self, method: Method) {
        assert!(
            !matches!(self.due, Some(Method::TxCommit(_)))
                || matches!(
                    method,
                    Method::ChannelClose(_) | Method::ChannelFlowOk(_) | Method::BasicCancelOk(_)
                ),
            "504: {method:?} between a commit and its reply"
        );
        match &method {
            Method::TxSelect(_) => drop(self.transaction.get_or_insert_default()),
            Method::TxCommit(_) => {
                self.transaction = self.transaction.take().map(|_| BTreeSet::new());
            }
            Method::TxRollback(_) => {
                if let Some(transaction) = &mut self.transaction {
                    self.unsettled.append(transaction);
                }
            }
            Method::BasicRecover(_) => self.unsettled.clear(),
            _ => {}
        }
        match &method {
            Method::ChannelClose(_) => self.due = Some(method),
            Method::BasicAck(ack) => self.settle(ack.delivery_tag, ack.multiple),
            Method::BasicNack(nack) => self.settle(nack.delivery_tag, nack.multiple),
            Method::BasicConsume(consume) if consume.nowait => {
                assert!(!self.has_consumer(&consume.consumer_tag), "530");
                let tag = consume.consumer_tag.clone();
                self.consumers.insert(tag, consume.no_ack);
            }
            Method::BasicCancel(cancel) if cancel.nowait => self.forget(&cancel.consumer_tag),
            Method::BasicPublish(_) => self.published += 1,
            Method::BasicCancelOk(_) | Method::ChannelFlowOk(_) | Method::QueuePurge(_) => {}
            _ => {
                if let Method::BasicConsume(consume) = &method {
                    assert!(!self.has_consumer(&consume.consumer_tag), "530");
                }
                assert!(self.due.is_none(), "541: two calls at once");
                self.due = Some(method);
            }
        }
    }
}
