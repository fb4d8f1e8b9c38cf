//! Telling everyone what happened: the core's events on their way to the threads that
//! wait for them.

use std::sync::Arc;

use super::inbox::Incoming;
use super::port::{
    CallToken, ChannelPort, ConnectionPort, DriverTokens, OpenFailure, Outcome, Route,
};
use crate::protocol::confirms::fingerprint;
use crate::protocol::content::{Content, ContentMethod};
use crate::protocol::event::Event;
use crate::protocol::failure::ReplyCode;

/// Passes `event` on. Nothing in here waits for anybody.
pub(super) fn tell(port: &ConnectionPort, event: Event<DriverTokens>) {
    match event {
        Event::Delivery { consumer, content } => deliver(&consumer, content),
        Event::Reply { call, reply } => answer(call, Ok(reply)),
        Event::Failed { call, failure } => answer(call, Err(failure)),
        Event::GivenBack {
            channel,
            delivery_tag,
        } => {
            channel.settlements.lock().settle(delivery_tag);
        }
        Event::ConsumerEnded {
            consumer,
            by_broker,
        } => end_consumer(&consumer, by_broker),
        Event::Recovered { channel, consumers } => {
            let last = channel.last_delivery_tag();
            channel.settlements.lock().settle_up_to(last);
            forget_unsettled(&channel, &consumers);
            // What is left waits where nobody may look without being told.
            channel.nudge();
        }
        Event::ChannelClosed {
            channel,
            reason,
            consumers,
        } => {
            if let Some(reason) = &reason {
                log::debug!("{}: channel {} {reason}", port.name, channel.id.number);
            }
            channel.close(reason);
            channel.publishing.look_again();
            port.budget.look_again();
            forget_unsettled(&channel, &consumers);
        }
        Event::Confirmed {
            channel,
            number,
            multiple,
            ack,
        } => channel.publishing.confirmed(number, multiple, ack),
        Event::Returned { channel, content } => {
            let Some(fingerprint) = fingerprint_of(&content) else {
                return;
            };
            let unclaimed = channel.publishing.returned(fingerprint, *content);
            if let Some(lost) = unclaimed.and_then(|message| channel.keep_return(message)) {
                if let ContentMethod::Return(returned) = &lost.method {
                    log::warn!(
                        "{}: channel {}: a message that came back is dropped, for nobody takes \
                         them: {} {} (exchange '{}', routing key '{}')",
                        port.name,
                        channel.id.number,
                        ReplyCode::from(returned.reply_code),
                        returned.reply_text,
                        returned.exchange,
                        returned.routing_key
                    );
                }
            }
        }
        Event::Flow { channel, active } => {
            let number = channel.id.number;
            log::info!("{}: channel {number}: flow {active}", port.name);
        }
        Event::Blocked(reason) => {
            log::warn!("{}: blocked by the broker: {reason}", port.name);
            port.set_blocked(Some(reason));
        }
        Event::Unblocked => {
            log::info!("{}: unblocked by the broker", port.name);
            port.set_blocked(None);
        }
        Event::Closed(termination) => {
            log::debug!("{}: {termination:?}", port.name);
            port.terminate(termination);
        }
    }
}

/// What tells a returned message from others.
fn fingerprint_of(content: &Content) -> Option<u64> {
    match &content.method {
        ContentMethod::Return(returned) => Some(fingerprint(
            &returned.exchange,
            &returned.routing_key,
            &content.body,
        )),
        _ => None,
    }
}

/// Drops what waits to be taken and needs acknowledgement: that can no longer be given,
/// and the broker gives it out again. It would count against the other channels.
fn forget_unsettled(channel: &ChannelPort, consumers: &[Arc<Route>]) {
    let is_for_good = |content: &Content| match &content.method {
        ContentMethod::Deliver(deliver) => consumers
            .iter()
            .any(|route| route.consumer.no_ack && route.consumer.tag == deliver.consumer_tag),
        _ => false,
    };
    channel.inbox.extract(|content| !is_for_good(content));
    for route in consumers.iter().filter(|route| !route.consumer.no_ack) {
        if let Some(inbox) = &route.consumer.inbox {
            inbox.extract(|_| true);
        }
    }
}

fn deliver(route: &Route, content: Content) {
    let consumer = &route.consumer;
    let backlog = &consumer.channel.connection.backlog;
    if let ContentMethod::Deliver(deliver) = &content.method {
        consumer.channel.delivered(deliver.delivery_tag);
    }
    let item = Incoming::Message(content);
    let cost = item.cost();
    backlog.add(cost);
    // The inbox lives as long as the route does, so this always arrives.
    if route.sender.send(item).is_err() {
        let _ = backlog.remove(cost);
    }
}

fn end_consumer(route: &Route, by_broker: bool) {
    route.consumer.cancel(by_broker);
    if route.consumer.inbox.is_none() {
        // Nobody listens any more if the channel's handle is gone.
        let _ = route
            .sender
            .send(Incoming::Ended(Arc::downgrade(&route.consumer)));
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
