//! Passes the events of the core to the program's threads: replies to callers, deliveries to
//! inboxes, confirms to publishers, notices to channels.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Error;
use crate::io::driver::tokens::{CallToken, DriverTokens};
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{ChannelCommand, Command, OpenFailure, Outcome};
use crate::io::shared::connection::ConnectionShared;
use crate::io::shared::consumer::{ConsumerInbox, ConsumerShared, ConsumerToken, Destination};
use crate::io::shared::notices::Notice;
use crate::io::to_io::unconfirmed_publishes::Settling;
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::confirms::fingerprint;
use crate::protocol::content::ReturnedContent;
use crate::protocol::delivery_batch::Batch;
use crate::protocol::event::{Disposal, Event, PassedOver, Termination};
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::wire::ShortString;

/// Puts consecutive deliveries of one consumer into its inbox.
fn deliver(token: &ConsumerToken, batches: &mut VecDeque<Batch>, is_fixed: bool) {
    let consumer = &token.consumer;
    let channel = &consumer.channel;
    let (Some(first), Some(last)) = (
        batches.front().map(Batch::first),
        batches.back().map(Batch::last),
    ) else {
        return;
    };
    let count = batches.iter().map(|batch| batch.len() as u64).sum();
    let counters = &channel.connection.counters;
    counters.messages_received.add(count);
    if !consumer.no_ack && channel.has_small_prefetch() {
        counters.received_with_small_prefetch.add(count);
    }
    // The ledger records the deliveries before `delivered`, after which the program may settle all
    // up to `last`.
    match consumer.no_ack {
        true => channel.settlements.lock().settle_for_good(first, last),
        false => channel.note_consumer(first, last, consumer),
    }
    channel.record_delivery_tag(last);
    match &consumer.destination {
        Destination::RpcReplies(rpc_replies) => rpc_replies.deliver(batches),
        Destination::Inbox(_) | Destination::Callback => {
            let Some(position) = consumer.stream_position(is_fixed) else {
                return put_into_inbox(consumer, |inbox| inbox.push(batches, is_fixed));
            };
            if let Some(properties) = batches.front().and_then(Batch::first_properties) {
                position.note_arrived(properties);
            }
            put_into_inbox(consumer, |inbox| inbox.push_of_stream(batches, position));
        }
    }
}

/// Lets `put` fill the inbox of a consumer, and signals the channel if the inbox is the channel's.
fn put_into_inbox(consumer: &ConsumerShared, put: impl FnOnce(&ConsumerInbox)) {
    put(consumer.inbox());
    if consumer.own_inbox().is_none() {
        consumer.channel.mark_ready();
    }
}

/// Passes `event` to the program's threads, and the command that follows from it, if any, to
/// `execute`. Returns the list of batches, so that its memory is used again.
///
/// This function never waits for another thread. Each event is logged last, because the log
/// backend belongs to the program and may panic.
pub(crate) fn pass_on(
    shared: &ConnectionShared,
    event: Event<DriverTokens>,
    execute: impl FnOnce(Command),
) -> Option<VecDeque<Batch>> {
    match event {
        Event::Deliveries {
            consumer,
            mut batches,
            is_fixed,
        } => {
            deliver(&consumer, &mut batches, is_fixed);
            return Some(batches);
        }
        Event::Requeue {
            channel,
            delivery_tag,
        } => {
            channel.settlements.lock().requeue_held_back(delivery_tag);
            let delivery_tags = vec![delivery_tag];
            let requeue = ChannelCommand::Requeue { delivery_tags };
            execute(Command::Channel(channel.id, requeue));
        }
        Event::HeldBack {
            consumer,
            delivery_tag,
            ..
        } => {
            let channel = &consumer.consumer.channel;
            // The ledger holds the delivery before `record_delivery_tag`, so that a settlement of
            // all deliveries leaves it out.
            channel.settlements.lock().hold(delivery_tag);
            channel.record_delivery_tag(delivery_tag);
            shared.counters.deliveries_held_back.add(1);
        }
        Event::Reply { call, reply } => complete_call(call, Ok(reply)),
        Event::Failed { call, failure } => complete_call(call, Err(failure)),
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
        Event::PassedOver(passed_over) => record_oversized(shared, &passed_over),
        Event::Requeued {
            channel,
            delivery_tags,
        } => {
            let mut settlements = channel.settlements.lock();
            for tag in delivery_tags {
                settlements.requeued(tag);
            }
        }
        Event::ConsumerCancelled {
            consumer,
            is_awaited,
        } => {
            let consumer = &consumer.consumer;
            let (name, number) = (&shared.name, consumer.channel.id.number);
            let then = match is_awaited {
                true => "; it is resumed if its queue is there",
                false => "",
            };
            log::info!(
                "{name}: channel {number}: the broker has cancelled consumer {}{then}",
                consumer.tag
            );
        }
        Event::ConsumerEnded {
            consumer,
            by_broker,
        } => end_consumer(&consumer, by_broker),
        Event::Recovered { channel, consumers } => {
            channel.record_recovered();
            discard_unsettled(&channel, &consumers);
        }
        Event::ChannelClosed {
            channel,
            reason,
            consumers,
        } => {
            channel.close(reason.clone());
            shared.wake_publishers();
            discard_unsettled(&channel, &consumers);
            if let Some(reason) = reason {
                log_channel_end(&channel, &reason);
            }
        }
        Event::NumberFree { opener } => execute(Command::OpenChannel(opener)),
        Event::NoNumber { opener, error } => opener.refuse(error),
        // Dropping the sender ends the wait of the caller.
        Event::OpenerLost { opener } => drop(opener),
        Event::Confirmed {
            channel,
            number,
            multiple,
            ack,
        } => {
            let mut unconfirmed = channel.unconfirmed.lock();
            let spare = shared.commands().spare_buffers();
            let mut settling = Settling::begin(&mut unconfirmed, spare);
            let confirmed = channel
                .confirm_window
                .confirmed(number, multiple, ack, |number| settling.settle(number));
            let freed = settling.finish();
            drop(unconfirmed);
            shared.release_unconfirmed(freed.bytes);
            // Behind the locks, because this is code of the program.
            drop(freed.bodies);
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
            pass_on_returned(&channel, *content);
        }
        Event::Flow { channel, active } => {
            let number = channel.id.number;
            channel.confirm_window.set_flow(active);
            keep_notice(&channel, Notice::Flow(active));
            log::info!("{}: channel {number}: flow {active}", shared.name);
        }
        // The driver has handled these events.
        Event::ChannelSuspended { .. }
        | Event::TransactionDropped { .. }
        | Event::ConsumerSkipped { .. }
        | Event::Restored => {}
        Event::ChannelResumed { channel } => {
            channel.confirm_window.resume();
            log_restore(&channel, "takes publishes again");
        }
        Event::ChannelRestored { channel } => log_restore(&channel, "is restored"),
        Event::ConsumerRefused {
            consumer, reason, ..
        } => {
            let consumer = &consumer.consumer;
            let (name, number) = (&shared.name, consumer.channel.id.number);
            log::warn!(
                "{name}: channel {number}: consumer {} cannot be restored now: {reason}",
                consumer.tag
            );
        }
        Event::ConsumerResumed { consumer } => {
            let consumer = &consumer.consumer;
            let (name, number) = (&shared.name, consumer.channel.id.number);
            log::info!(
                "{name}: channel {number}: consumer {} is restored",
                consumer.tag
            );
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
            log_connection_end(shared, &termination);
        }
    }
    None
}

/// Logs a step of the way of a channel from one connection to the next.
fn log_restore(channel: &ChannelShared, step: &str) {
    let (name, number) = (&channel.connection.name, channel.id.number);
    log::debug!("{name}: channel {number} {step}");
}

/// Records and logs a message that exceeds `max_message_size`.
fn record_oversized(shared: &ConnectionShared, passed_over: &PassedOver<DriverTokens>) {
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
    let consumer = consumer.map(|token| &token.consumer);
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
            Disposal::Skipped => "skipped in its stream",
            Disposal::Lost => "lost, because it needs no acknowledgement",
        },
        queue.map_or("", |queue| queue),
        passed_over.exchange,
        passed_over.routing_key,
    );
}

/// Logs the end of the connection: as a warning if the program has dropped its last handle, so that
/// no call can return the error.
fn log_connection_end(shared: &ConnectionShared, termination: &Termination) {
    let error = Error::from(termination);
    match shared.is_abandoned() && error.is_of_others() {
        true => log::warn!(
            "{}: the connection was dropped, so no call returns this error: {error}",
            shared.name
        ),
        false => log::debug!("{}: {termination:?}", shared.name),
    }
}

/// Logs the end of a channel, by the same rule.
fn log_channel_end(channel: &ChannelShared, reason: &CloseReason) {
    let (name, number) = (&channel.connection.name, channel.id.number);
    let is_unreported = channel.is_abandoned() && !channel.is_rpc_only();
    match is_unreported && reason.by != ClosedBy::Application {
        true => log::warn!(
            "{name}: channel {number} was closed before it was dropped, and no call has returned the \
             reason: {reason}"
        ),
        false => log::debug!("{name}: channel {number} {reason}"),
    }
}

/// Passes a returned message to the confirm of its publish, or else to the callback for returns.
fn pass_on_returned(channel: &ChannelShared, content: ReturnedContent) {
    let returned = &content.method;
    let fingerprint = fingerprint(&returned.exchange, &returned.routing_key, &content.body);
    let unclaimed = channel.confirm_window.returned(fingerprint, content);
    if let Some(message) = unclaimed {
        keep_notice(channel, Notice::Returned(message));
    }
}

/// Keeps a notice for a callback, and logs the notices that are dropped to make room.
fn keep_notice(channel: &ChannelShared, notice: Notice) {
    let name = &channel.connection.name;
    let number = channel.id.number;
    for dropped in channel.keep_notice(notice).into_iter().flatten() {
        match dropped {
            Notice::Returned(message) => log::warn!(
                "{name}: channel {number}: a returned message is dropped, because no callback has \
                 taken it: {} {} (exchange '{}', routing key '{}')",
                ReplyCode::from(message.method.reply_code),
                message.method.reply_text,
                message.method.exchange,
                message.method.routing_key
            ),
            Notice::Cancelled(tag) => log::warn!(
                "{name}: channel {number}: the broker has cancelled consumer {tag}, and no \
                 callback was called for that"
            ),
            Notice::Flow(_) => {}
        }
    }
}

/// Drops untaken deliveries that need acknowledgement. They can no longer be acknowledged, and the
/// broker requeues them. In the inbox they would use the read budget of other channels.
pub(super) fn discard_unsettled(channel: &ChannelShared, consumers: &[Arc<ConsumerToken>]) {
    let needs_no_ack = |tag: &ShortString| {
        consumers
            .iter()
            .any(|token| token.consumer.no_ack && token.consumer.tag == *tag)
    };
    channel.inbox.discard(|tag| !needs_no_ack(tag));
    for token in consumers.iter().filter(|token| !token.consumer.no_ack) {
        if let Some(inbox) = token.consumer.own_inbox() {
            inbox.discard(|_| true);
        }
    }
}

/// Passes the end of a consumer to its callback, its inbox or its RPC requests.
fn end_consumer(token: &ConsumerToken, by_broker: bool) {
    let consumer = &token.consumer;
    consumer.record_cancel(match by_broker {
        true => ClosedBy::Broker,
        false => ClosedBy::Application,
    });
    match &consumer.destination {
        Destination::Callback => {
            put_into_inbox(consumer, |inbox| inbox.push_end(Arc::downgrade(consumer)));
        }
        Destination::RpcReplies(rpc_replies) => rpc_replies.end(),
        Destination::Inbox(inbox) => {
            inbox.end();
            if by_broker {
                keep_notice(&consumer.channel, Notice::Cancelled(consumer.tag.clone()));
            }
        }
    }
}

/// Sends the outcome of a call to its caller. The slot for it is empty, so this never blocks.
fn complete_call(call: CallToken, outcome: Outcome) {
    match call {
        CallToken::Caller(reply) => {
            let _ = reply.try_send(outcome);
        }
        CallToken::Proving(reply, channel, publishes) => {
            if outcome.is_ok() {
                channel.confirm_window.prove(publishes);
            }
            let _ = reply.try_send(outcome);
        }
        // The driver has taken these outcomes.
        CallToken::Lane(_) | CallToken::Look { .. } => {}
        CallToken::Opener { channel, reply } => {
            let _ = reply.try_send(match outcome {
                Ok(_) => Ok(channel),
                Err(failure) => Err(OpenFailure::Call(failure, channel)),
            });
        }
    }
}
