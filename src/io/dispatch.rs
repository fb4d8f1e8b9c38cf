//! Telling everyone what happened: the core's events on their way to the threads that
//! wait for them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::channel_port::{ChannelPort, ConsumerPort, Route};
use super::inbox::Incoming;
use super::port::{CallToken, ConnectionPort, DriverTokens, OpenFailure, Outcome};
use crate::protocol::confirms::fingerprint;
use crate::protocol::content::{Content, ContentMethod};
use crate::protocol::event::Event;
use crate::protocol::failure::ReplyCode;

/// Deliveries that follow each other and go to the same inbox, so that it is locked, and
/// its threads woken, once for all of them.
#[derive(Debug, Default)]
pub(super) struct Batch {
    items: VecDeque<Incoming>,
    consumer: Option<Arc<Route>>,
    first_tag: u64,
    last_tag: u64,
}

impl Batch {
    pub(super) fn add(&mut self, route: Arc<Route>, content: Content) {
        let tag = content.delivery_tag().unwrap_or_default();
        if !self.fits(&route, tag) {
            self.hand_over();
            self.consumer = Some(route);
            self.first_tag = tag;
        }
        self.last_tag = tag;
        self.items.push_back(Incoming::Message(content));
    }

    fn fits(&self, route: &Route, tag: u64) -> bool {
        self.consumer.as_ref().is_some_and(|known| {
            let (known, new) = (&known.consumer, &route.consumer);
            std::ptr::eq(known.inbox(), new.inbox())
                && known.no_ack == new.no_ack
                && self.last_tag.checked_add(1) == Some(tag)
        })
    }

    /// Puts what there is into its inbox.
    pub(super) fn hand_over(&mut self) {
        if let Some(route) = self.consumer.take() {
            let consumer = &route.consumer;
            let channel = &consumer.channel;
            // Before anybody can settle it.
            channel.delivered(self.last_tag);
            if consumer.no_ack {
                let mut settlements = channel.settlements.lock();
                settlements.settle_for_good(self.first_tag, self.last_tag);
            }
            put(consumer, &mut self.items);
        }
    }
}

fn put(consumer: &ConsumerPort, items: &mut VecDeque<Incoming>) {
    consumer.inbox().push(items);
    if consumer.own_inbox.is_none() {
        consumer.channel.announce();
    }
}

/// Passes `event` on. Nothing in here waits for anybody.
pub(super) fn tell(port: &ConnectionPort, batch: &mut Batch, event: Event<DriverTokens>) {
    if let Event::Delivery { consumer, content } = event {
        port.counters.messages_received.add(1);
        return batch.add(consumer, content);
    }
    // What comes later must not overtake it.
    batch.hand_over();
    match event {
        Event::Delivery { .. } => {}
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
            port.budget().look_again();
            forget_unsettled(&channel, &consumers);
        }
        Event::Confirmed {
            channel,
            number,
            multiple,
            ack,
        } => {
            if channel.publishing.confirmed(number, multiple, ack) {
                channel.announce();
            }
        }
        Event::Returned { channel, content } => {
            port.counters.messages_returned.add(1);
            return_message(&channel, *content);
        }
        Event::Flow { channel, active } => {
            let number = channel.id.number;
            log::info!("{}: channel {number}: flow {active}", port.name);
            channel.publishing.set_flow(active);
            channel.keep_flow(active);
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

/// A message came back: for its confirm, or for whoever takes such messages.
fn return_message(channel: &ChannelPort, content: Content) {
    let Some(fingerprint) = fingerprint_of(&content) else {
        return;
    };
    let unclaimed = channel.publishing.returned(fingerprint, content);
    let lost = unclaimed.map(|message| channel.keep_return(message));
    for lost in lost.into_iter().flatten() {
        if let ContentMethod::Return(returned) = &lost.method {
            log::warn!(
                "{}: channel {}: a message that came back is dropped, for nobody takes them: {} \
                 {} (exchange '{}', routing key '{}')",
                channel.connection.name,
                channel.id.number,
                ReplyCode::from(returned.reply_code),
                returned.reply_text,
                returned.exchange,
                returned.routing_key
            );
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
        route.consumer.take_left();
    }
}

fn end_consumer(route: &Route, by_broker: bool) {
    let consumer = &route.consumer;
    consumer.cancel(by_broker);
    match &consumer.own_inbox {
        None => put(
            consumer,
            &mut VecDeque::from([Incoming::Ended(Arc::downgrade(consumer))]),
        ),
        Some(inbox) => {
            inbox.end();
            if by_broker {
                consumer.channel.keep_cancelled(consumer.tag.clone());
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
