//! Telling everyone what happened: the core's events on their way to the threads that
//! wait for them.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Error;
use crate::io::driver::tokens::{CallToken, DriverTokens};
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{Command, OpenFailure, Outcome};
use crate::io::shared::connection::ConnectionShared;
use crate::io::shared::consumer::{ConsumerInbox, ConsumerShared, Destination, Route};
use crate::io::shared::notices::Notice;
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::confirms::fingerprint;
use crate::protocol::content::ReturnedContent;
use crate::protocol::delivery_batch::Batch;
use crate::protocol::event::{Disposal, Event, PassedOver, Termination};
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::wire::ShortString;

/// Puts deliveries of one consumer, that came one behind the other, into its inbox.
fn deliver(route: &Route, batches: &mut VecDeque<Batch>, never_held_back: bool) {
    let consumer = &route.consumer;
    let channel = &consumer.channel;
    let (Some(first), Some(last)) = (
        batches.front().map(Batch::first),
        batches.back().map(Batch::last),
    ) else {
        return;
    };
    let count = batches.iter().map(|run| run.len() as u64).sum();
    channel.connection.counters.messages_received.add(count);
    // Before its number is known here, and with it can be settled.
    if consumer.no_ack {
        let mut settlements = channel.settlements.lock();
        settlements.settle_for_good(first, last);
    }
    channel.record_delivery_tag(last);
    match &consumer.destination {
        Destination::RpcReplies(rpc_replies) => rpc_replies.deliver(batches),
        Destination::Inbox(_) | Destination::Callback => {
            put(consumer, |inbox| inbox.push(batches, never_held_back));
        }
    }
}

fn put(consumer: &ConsumerShared, put: impl FnOnce(&ConsumerInbox)) {
    put(consumer.inbox());
    if consumer.own_inbox().is_none() {
        consumer.channel.mark_ready();
    }
}

/// Passes `event` on, and what follows from it to `obey`; the memory of a list of runs comes
/// back, to be used again. Nothing in here waits for anybody. The log comes last, for its backend is the
/// program's, and may fail.
pub(crate) fn tell(
    shared: &ConnectionShared,
    event: Event<DriverTokens>,
    obey: impl FnOnce(Command),
) -> Option<VecDeque<Batch>> {
    match event {
        Event::Deliveries {
            consumer,
            mut batches,
            never_held_back,
        } => {
            deliver(&consumer, &mut batches, never_held_back);
            return Some(batches);
        }
        Event::Requeue {
            channel,
            delivery_tag,
        } => {
            channel.settlements.lock().requeue_held_back(delivery_tag);
            obey(Command::GiveBack {
                channel: channel.id,
                delivery_tags: vec![delivery_tag],
            });
        }
        Event::HeldBack {
            consumer,
            delivery_tag,
            ..
        } => {
            let channel = &consumer.consumer.channel;
            // Before anybody can settle all that came.
            channel.settlements.lock().hold(delivery_tag);
            channel.record_delivery_tag(delivery_tag);
            shared.counters.deliveries_held_back.add(1);
        }
        Event::Reply { call, reply } => answer(call, Ok(reply)),
        Event::Failed { call, failure } => answer(call, Err(failure)),
        Event::Got {
            channel,
            delivery_tag,
            no_ack,
        } => {
            if no_ack {
                let mut settlements = channel.settlements.lock();
                settlements.settle_for_good(delivery_tag, delivery_tag);
            }
            channel.record_delivery_tag(delivery_tag);
        }
        Event::Prefetch { channel, count } => channel.set_prefetch(count),
        Event::Requeueable { consumer } => consumer.consumer.set_accepts_requeue(),
        Event::Unwanted {
            channel,
            delivery_tag,
            is_requeued,
        } => {
            let mut settlements = channel.settlements.lock();
            match is_requeued {
                true => drop(settlements.requeue(delivery_tag)),
                false => settlements.settle_for_good(delivery_tag, delivery_tag),
            }
            drop(settlements);
            channel.record_delivery_tag(delivery_tag);
        }
        Event::PassedOver(passed_over) => pass_over(shared, &passed_over),
        Event::Requeued {
            channel,
            delivery_tags,
        } => {
            let mut settlements = channel.settlements.lock();
            for tag in delivery_tags {
                settlements.requeued(tag);
            }
        }
        Event::ConsumerEnded {
            consumer,
            by_broker,
        } => end_consumer(&consumer, by_broker),
        Event::Recovered { channel, consumers } => {
            channel.recovered();
            forget_unsettled(&channel, &consumers);
        }
        Event::ChannelClosed {
            channel,
            reason,
            consumers,
        } => {
            channel.close(reason.clone());
            shared.budget().wake_to_recheck();
            forget_unsettled(&channel, &consumers);
            if let Some(reason) = reason {
                note_channel_end(&channel, &reason);
            }
        }
        Event::NumberFree { opener } => obey(Command::OpenChannel(opener)),
        Event::NoNumber { opener, error } => opener.refuse(error),
        // Without a sender the receiver learns of the end.
        Event::OpenerLost { opener } => drop(opener),
        Event::Confirmed {
            channel,
            number,
            multiple,
            ack,
        } => {
            let confirmed = channel.publisher.confirmed(number, multiple, ack);
            match ack {
                true => shared.counters.messages_confirmed.add(confirmed.count),
                false => shared.counters.messages_nacked.add(confirmed.count),
            }
            if confirmed.has_outcomes {
                channel.mark_ready();
            }
        }
        Event::Returned { channel, content } => {
            shared.counters.messages_returned.add(1);
            return_message(&channel, *content);
        }
        Event::Flow { channel, active } => {
            let number = channel.id.number;
            channel.publisher.set_flow(active);
            keep_notice(&channel, Notice::Flow(active));
            log::info!("{}: channel {number}: flow {active}", shared.name);
        }
        Event::Blocked(reason) => {
            shared.set_blocked(Some(reason.clone()));
            log::warn!("{}: blocked by the broker: {reason}", shared.name);
        }
        Event::Unblocked => {
            shared.set_blocked(None);
            log::info!("{}: unblocked by the broker", shared.name);
        }
        Event::Closed(termination) => {
            shared.terminate(termination.clone());
            note_end(shared, &termination);
        }
    }
    None
}

/// Notes a message that was too large for the program, and says so.
fn pass_over(shared: &ConnectionShared, passed_over: &PassedOver<DriverTokens>) {
    let channel = &passed_over.channel;
    let tag = passed_over.delivery_tag;
    let mut settlements = channel.settlements.lock();
    match passed_over.disposal {
        Disposal::Lost => settlements.settle_for_good(tag, tag),
        Disposal::Rejected | Disposal::Skipped => drop(settlements.requeue(tag)),
    }
    drop(settlements);
    channel.record_delivery_tag(tag);
    shared.counters.messages_oversized.add(1);
    let consumer = passed_over.consumer.as_ref();
    let consumer = consumer.map(|route| &route.consumer);
    let queue = consumer.map(|consumer| &consumer.queue);
    let queue = queue.or(passed_over.queue.as_ref());
    log::warn!(
        "{}: channel {}: a message of {} bytes exceeds max_message_size ({}) and is {} (queue \
         '{}', exchange '{}', routing key '{}')",
        shared.name,
        channel.id.number,
        passed_over.size,
        passed_over.limit,
        match passed_over.disposal {
            Disposal::Rejected => "rejected",
            Disposal::Skipped => "passed over in its stream",
            Disposal::Lost => "lost, for it needed no acknowledgement",
        },
        queue.map_or("", |queue| queue),
        passed_over.exchange,
        passed_over.routing_key,
    );
}

/// Says how the connection has ended: loudly if a program that has dropped its last handle
/// would have been told of an error.
fn note_end(shared: &ConnectionShared, termination: &Termination) {
    let error = Error::from(termination);
    match shared.is_abandoned() && error.is_of_others() {
        true => log::warn!(
            "{}: nobody is told, for it was dropped: {error}",
            shared.name
        ),
        false => log::debug!("{}: {termination:?}", shared.name),
    }
}

/// Says how a channel has ended, in the same way.
fn note_channel_end(channel: &ChannelShared, reason: &CloseReason) {
    let (name, number) = (&channel.connection.name, channel.id.number);
    let is_missed = channel.is_abandoned() && !channel.is_rpc_only();
    match is_missed && reason.by != ClosedBy::Application {
        true => log::warn!(
            "{name}: channel {number} was over before it was dropped, and nobody is told: {reason}"
        ),
        false => log::debug!("{name}: channel {number} {reason}"),
    }
}

/// A message came back: for its confirm, or for whoever takes such messages.
fn return_message(channel: &ChannelShared, content: ReturnedContent) {
    let returned = &content.method;
    let fingerprint = fingerprint(&returned.exchange, &returned.routing_key, &content.body);
    let unclaimed = channel.publisher.returned(fingerprint, content);
    if let Some(message) = unclaimed {
        keep_notice(channel, Notice::Returned(message));
    }
}

/// Keeps a notice for a callback, and logs the notices that had to be dropped for it.
fn keep_notice(channel: &ChannelShared, notice: Notice) {
    let name = &channel.connection.name;
    let number = channel.id.number;
    for dropped in channel.keep_notice(notice).into_iter().flatten() {
        match dropped {
            Notice::Returned(message) => log::warn!(
                "{name}: channel {number}: a returned message is dropped, because no callback takes \
                 them: {} {} (exchange '{}', routing key '{}')",
                ReplyCode::from(message.method.reply_code),
                message.method.reply_text,
                message.method.exchange,
                message.method.routing_key
            ),
            Notice::Cancelled(tag) => log::warn!(
                "{name}: channel {number}: the broker has cancelled consumer {tag}, and no \
                 callback was called for it"
            ),
            Notice::Flow(_) => {}
        }
    }
}

/// Drops what waits to be taken and needs acknowledgement: that can no longer be given,
/// and the broker gives it out again. It would count against the other channels.
fn forget_unsettled(channel: &ChannelShared, consumers: &[Arc<Route>]) {
    let is_for_good = |tag: &ShortString| {
        consumers
            .iter()
            .any(|route| route.consumer.no_ack && route.consumer.tag == *tag)
    };
    channel.inbox.discard(|tag| !is_for_good(tag));
    for route in consumers.iter().filter(|route| !route.consumer.no_ack) {
        if let Some(inbox) = route.consumer.own_inbox() {
            inbox.discard(|_| true);
        }
    }
}

fn end_consumer(route: &Route, by_broker: bool) {
    let consumer = &route.consumer;
    consumer.cancel(by_broker);
    match &consumer.destination {
        Destination::Callback => put(consumer, |inbox| inbox.push_end(Arc::downgrade(consumer))),
        Destination::RpcReplies(rpc_replies) => rpc_replies.end(),
        Destination::Inbox(inbox) => {
            inbox.end();
            if by_broker {
                keep_notice(&consumer.channel, Notice::Cancelled(consumer.tag.clone()));
            }
        }
    }
}

/// Hands an outcome to whoever waits for it; the slot has room for just that.
fn answer(call: CallToken, outcome: Outcome) {
    match call {
        CallToken::Caller(reply) => {
            let _ = reply.try_send(outcome);
        }
        CallToken::Opener { channel, reply } => {
            let _ = reply.try_send(match outcome {
                Ok(_) => Ok(channel),
                Err(failure) => Err(OpenFailure::Call(failure, channel)),
            });
        }
    }
}
