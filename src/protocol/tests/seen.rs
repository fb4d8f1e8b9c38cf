//! The events of the core, in a form that tests compare.

use super::super::close_reason::CloseReason;
use super::super::event::{CallFailure, Event, NumberError, Reply, SuspensionCause, Termination};
use super::super::methods::Method;
use super::super::settlements::DetachedChannel;
use super::Script;

/// An event in a form that can be compared.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    Reply(u32, Method),
    /// The message of a get: delivery tag and body.
    Message(u32, u64, Vec<u8>),
    Sent(u32),
    IsClosed(u32),
    /// The channel is closed, but the broker had closed it first, for this reason.
    WasClosed(u32, CloseReason),
    Failed(u32, CallFailure),
    /// Consumer, delivery tag and body.
    Delivery(&'static str, u64, Vec<u8>),
    /// Consumer and delivery tag.
    PassedOver(Option<&'static str>, u64),
    /// The broker has cancelled a consumer, which is to be looked for.
    Awaited(&'static str),
    ConsumerEnded(&'static str, EndedBy),
    Recovered(&'static str, Vec<&'static str>),
    Returned(&'static str, Vec<u8>),
    /// Channel, number, multiple, ack.
    Confirmed(&'static str, u64, bool, bool),
    Flow(&'static str, bool),
    /// An opener may reserve a channel number again.
    NumberFree(u32),
    NoNumber(u32, NumberError),
    OpenerLost(u32),
    ChannelClosed(&'static str, Option<CloseReason>, Vec<&'static str>),
    Suspended(&'static str, DetachedChannel),
    /// The broker has closed the channel, and it is opened again.
    ClosedAlone(&'static str, DetachedChannel, CloseReason),
    TransactionDropped(&'static str),
    Resumed(&'static str),
    ChannelRestored(&'static str),
    Refused(&'static str, CloseReason),
    Suspected(&'static str, CloseReason),
    Skipped(&'static str, CloseReason),
    ConsumerResumed(&'static str),
    Restored,
    Blocked(String),
    Unblocked,
    Closed(Termination),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum EndedBy {
    Us,
    Broker,
}

impl From<Event<Script>> for Seen {
    fn from(event: Event<Script>) -> Self {
        match event {
            Event::Reply { call, reply } => match reply {
                Reply::Method(method) => Self::Reply(call, method),
                Reply::Message(content) => {
                    Self::Message(call, content.method.delivery_tag, content.body.to_vec())
                }
                Reply::Sent => Self::Sent(call),
                Reply::Closed(None) => Self::IsClosed(call),
                Reply::Closed(Some(reason)) => Self::WasClosed(call, reason),
            },
            Event::Failed { call, failure } => Self::Failed(call, failure),
            Event::Deliveries { .. } => unreachable!("taken apart by `look`"),
            Event::HeldBack { .. } | Event::Requeue { .. } => {
                unreachable!("there is room for everything")
            }
            Event::PassedOver(passed_over) => {
                Self::PassedOver(passed_over.consumer, passed_over.delivery_tag)
            }
            Event::Requeueable { .. }
            | Event::Got { .. }
            | Event::Prefetch { .. }
            | Event::Unwanted { .. }
            | Event::Requeued { .. } => unreachable!("filtered by `look`"),
            Event::ConsumerCancelled { consumer, .. } => Self::Awaited(consumer),
            Event::ConsumerEnded {
                consumer,
                by_broker: true,
            } => Self::ConsumerEnded(consumer, EndedBy::Broker),
            Event::ConsumerEnded { consumer, .. } => Self::ConsumerEnded(consumer, EndedBy::Us),
            Event::Recovered {
                channel,
                mut consumers,
            } => {
                consumers.sort_unstable();
                Self::Recovered(channel, consumers)
            }
            Event::NumberFree { opener } => Self::NumberFree(opener),
            Event::NoNumber { opener, error } => Self::NoNumber(opener, error),
            Event::OpenerLost { opener } => Self::OpenerLost(opener),
            Event::Returned { channel, content } => Self::Returned(channel, content.body.to_vec()),
            Event::Confirmed {
                channel,
                number,
                multiple,
                ack,
            } => Self::Confirmed(channel, number, multiple, ack),
            Event::Flow { channel, active } => Self::Flow(channel, active),
            Event::ChannelClosed {
                channel,
                reason,
                mut consumers,
            } => {
                consumers.sort_unstable();
                Self::ChannelClosed(channel, reason, consumers)
            }
            Event::ChannelSuspended {
                channel,
                detached,
                cause,
            } => match cause {
                SuspensionCause::Closed { reason, .. } => {
                    Self::ClosedAlone(channel, detached, reason)
                }
                _ => Self::Suspended(channel, detached),
            },
            Event::TransactionDropped { channel } => Self::TransactionDropped(channel),
            Event::ChannelResumed { channel } => Self::Resumed(channel),
            Event::ChannelRestored { channel } => Self::ChannelRestored(channel),
            Event::ConsumerRefused {
                consumer,
                reason,
                is_suspect,
            } => match is_suspect {
                true => Self::Suspected(consumer, reason),
                false => Self::Refused(consumer, reason),
            },
            Event::ConsumerSkipped { consumer, reason } => Self::Skipped(consumer, reason),
            Event::ConsumerResumed { consumer } => Self::ConsumerResumed(consumer),
            Event::Restored => Self::Restored,
            Event::Blocked(reason) => Self::Blocked(reason.to_string()),
            Event::Unblocked => Self::Unblocked,
            Event::Closed(termination) => Self::Closed(termination),
        }
    }
}
