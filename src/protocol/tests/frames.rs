//! Frames and methods: those that the peer sends, and those that tests expect from the core.

use super::super::close_reason::{CloseReason, ClosedBy};
use super::super::frame::tests::{encode_content, feed};
use super::super::frame::{Frame, FrameDecoder, decode_method, encode_method};
use super::super::methods::{Method, MethodId, basic, channel, connection};
use super::super::properties::BasicProperties;
use super::FRAME_MAX;

/// Returns the methods in `bytes`, which must be whole method frames.
pub(super) fn methods(bytes: &[u8]) -> Vec<(u16, Method)> {
    let mut decoder = FrameDecoder::new(1 << 20);
    feed(&mut decoder, bytes);
    let mut methods = Vec::new();
    while let Some(frame) = decoder.next().unwrap() {
        let Frame::Method { channel, payload } = frame else {
            panic!("{frame:?}");
        };
        methods.push((channel, decode_method(payload).unwrap()));
    }
    assert!(decoder.pending().is_empty(), "half a frame was sent");
    methods
}

pub(super) fn on(channel: u16, method: impl Into<Method>) -> (u16, Method) {
    (channel, method.into())
}

pub(super) fn frame(channel: u16, method: impl Into<Method>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_method(&mut bytes, channel, &method.into(), 1 << 20).unwrap();
    bytes
}

pub(super) fn content(
    channel: u16,
    method: impl Into<Method>,
    properties: Option<&BasicProperties>,
    body: &[u8],
) -> Vec<u8> {
    let mut bytes = frame(channel, method);
    encode_content(&mut bytes, channel, properties, body, FRAME_MAX as usize).unwrap();
    bytes
}

/// Returns a content header without a body, for a body of this size.
pub(super) fn content_header(channel: u16, size: u64) -> Vec<u8> {
    let [c1, c0] = channel.to_be_bytes();
    let mut bytes = vec![2, c1, c0, 0, 0, 0, 14, 0, 60, 0, 0];
    bytes.extend(size.to_be_bytes());
    bytes.extend([0, 0, 0xce]);
    bytes
}

pub(super) fn deliver(tag: &str, delivery_tag: u64) -> basic::Deliver {
    basic::Deliver::default()
        .consumer_tag(tag)
        .delivery_tag(delivery_tag)
}

pub(super) fn consume_ok(tag: &str) -> Method {
    basic::ConsumeOk::default().consumer_tag(tag).into()
}

pub(super) fn cancel_ok(tag: &str) -> Method {
    basic::CancelOk::default().consumer_tag(tag).into()
}

/// Returns the method that requeues one delivery.
pub(super) fn requeue(delivery_tag: u64) -> Method {
    basic::Nack::new(delivery_tag).into()
}

/// Returns the broker's close of a channel, and the reason that is reported.
pub(super) fn not_found() -> (channel::Close, CloseReason) {
    let close = channel::Close::default()
        .reply_code(404)
        .reply_text("no queue")
        .class_id(60)
        .method_id(70);
    let method = Some(basic::Get::ID);
    (close, reason(ClosedBy::Broker, 404, "no queue", method))
}

/// Returns the reason of a close by the client, as the helpers above send it.
pub(super) fn bye() -> CloseReason {
    reason(ClosedBy::Application, 200, "bye", None)
}

pub(super) fn channel_close() -> channel::Close {
    channel::Close::default().reply_code(200).reply_text("bye")
}

pub(super) fn connection_close() -> connection::Close {
    connection::Close::default()
        .reply_code(200)
        .reply_text("bye")
}

pub(super) fn reason(by: ClosedBy, code: u16, text: &str, method: Option<MethodId>) -> CloseReason {
    CloseReason::new(by, code, text, method)
}
