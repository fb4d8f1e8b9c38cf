//! A peer without a script, which replies to every call as a broker does that has all queues, and
//! no message in them.

use std::collections::HashMap;

use super::encoding::*;
use super::methods::*;
use super::{Method, Wire};

/// The channels in confirm mode and the publishes on them.
#[derive(Default)]
struct Publishes {
    /// The number of the last publish of each channel in confirm mode.
    confirmed: HashMap<u16, u64>,
    /// The missing bytes of the body that is arriving on each channel.
    missing: HashMap<u16, u64>,
}

impl Publishes {
    /// Returns the confirm of a publish that is complete.
    fn arrived(&mut self, channel: u16, size: u64) -> Option<Vec<u8>> {
        let missing = self.missing.get_mut(&channel)?;
        *missing = missing.saturating_sub(size);
        if *missing > 0 {
            return None;
        }
        self.missing.remove(&channel);
        let number = self.confirmed.get_mut(&channel)?;
        *number += 1;
        Some(method(channel, BASIC_ACK, args().u64(*number).u8(SINGLE)))
    }
}

impl Wire {
    /// Replies to every call, confirms every publish, and answers heartbeats, until the client
    /// hangs up. Returns the channel and the number of each method that has arrived.
    pub(crate) fn oblige(&mut self) -> Vec<(u16, Method)> {
        self.oblige_with(0)
    }

    /// Does so, and delivers this number of messages to each consumer: "message 1" and so on.
    pub(crate) fn oblige_with(&mut self, deliveries: u64) -> Vec<(u16, Method)> {
        let mut arrived = Vec::new();
        let mut publishes = Publishes::default();
        while let Some(frame) = self.frame() {
            let reply = match frame {
                Frame::Heartbeat => Some(heartbeat()),
                Frame::Header(channel, payload) => {
                    let size = Arguments::new(payload[4..].to_vec()).u64();
                    publishes.missing.insert(channel, size);
                    publishes.arrived(channel, 0)
                }
                Frame::Body(channel, payload) => publishes.arrived(channel, payload.len() as u64),
                Frame::Method(channel, id, arguments) => {
                    arrived.push((channel, id));
                    if id == CONFIRM_SELECT {
                        publishes.confirmed.insert(channel, 0);
                    }
                    let tag = (id == BASIC_CONSUME).then(|| tag_of(arguments.clone()));
                    let reply = reply_to(id, Arguments::new(arguments));
                    reply.map(|(id, arguments)| {
                        let mut bytes = method(channel, id, arguments);
                        if let Some(tag) = tag {
                            let numbers = 1..=deliveries;
                            bytes.extend(numbers.flat_map(|it| delivery(channel, &tag, it)));
                        }
                        bytes
                    })
                }
            };
            if let Some(reply) = reply {
                self.try_send(&reply);
            }
        }
        arrived
    }
}

/// Returns the tag in a `basic.consume`.
fn tag_of(consume: Vec<u8>) -> String {
    let mut consume = Arguments::new(consume);
    consume.u16();
    consume.short();
    consume.short()
}

fn delivery(channel: u16, tag: &str, number: u64) -> Vec<u8> {
    let text = format!("message {number}");
    let mut bytes = method(channel, BASIC_DELIVER, deliver(tag, number));
    bytes.extend(header(channel, text.len() as u64));
    bytes.extend(body(channel, text.as_bytes()));
    bytes
}

/// Returns the reply to a method, and `None` for one without a reply.
fn reply_to(id: Method, mut call: Arguments) -> Option<(Method, Args)> {
    Some(match id {
        CONNECTION_CLOSE => (CONNECTION_CLOSE_OK, args()),
        CONNECTION_UPDATE_SECRET => (CONNECTION_UPDATE_SECRET_OK, args()),
        CHANNEL_OPEN => (CHANNEL_OPEN_OK, args().long("")),
        CHANNEL_FLOW => (CHANNEL_FLOW_OK, args().u8(call.u8())),
        CHANNEL_CLOSE => (CHANNEL_CLOSE_OK, args()),
        ACCESS_REQUEST => (ACCESS_REQUEST_OK, args().u16(1)),
        EXCHANGE_DECLARE => (EXCHANGE_DECLARE_OK, args()),
        EXCHANGE_DELETE => (EXCHANGE_DELETE_OK, args()),
        EXCHANGE_BIND => (EXCHANGE_BIND_OK, args()),
        EXCHANGE_UNBIND => (EXCHANGE_UNBIND_OK, args()),
        QUEUE_DECLARE => {
            call.u16();
            (QUEUE_DECLARE_OK, declare_ok(&call.short()))
        }
        QUEUE_BIND => (QUEUE_BIND_OK, args()),
        QUEUE_UNBIND => (QUEUE_UNBIND_OK, args()),
        QUEUE_PURGE => (QUEUE_PURGE_OK, args().u32(0)),
        QUEUE_DELETE => (QUEUE_DELETE_OK, args().u32(0)),
        BASIC_QOS => (BASIC_QOS_OK, args()),
        BASIC_CONSUME => {
            call.u16();
            call.short();
            (BASIC_CONSUME_OK, args().short(call.short()))
        }
        BASIC_CANCEL => {
            let tag = call.short();
            let nowait = call.u8() == 1;
            return (!nowait).then(|| (BASIC_CANCEL_OK, args().short(tag)));
        }
        BASIC_GET => (BASIC_GET_EMPTY, args().short("")),
        BASIC_RECOVER => (BASIC_RECOVER_OK, args()),
        CONFIRM_SELECT => (CONFIRM_SELECT_OK, args()),
        TX_SELECT => (TX_SELECT_OK, args()),
        TX_COMMIT => (TX_COMMIT_OK, args()),
        TX_ROLLBACK => (TX_ROLLBACK_OK, args()),
        _ => return None,
    })
}
