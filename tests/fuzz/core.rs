//! Feeds the whole core. The input decides the order of received bytes, whole frames, commands of
//! the program and the passing of time.

use std::time::{Duration, Instant};

use super::FRAME_MAX;
use super::input::Input;
use crate::protocol::assembly::SizeLimit;
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::connection::{Connection, ConnectionLimits};
use crate::protocol::event::{ChannelId, Event, Gate, Tokens};
use crate::protocol::frame::decode_method;
use crate::protocol::frame::{FrameDecoder, Settle, encode_settle};
use crate::protocol::handshake::Negotiated;
use crate::protocol::methods::basic;
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::stream_progress::StreamProgress;
use crate::protocol::table::FieldTable;

const CHANNEL_MAX: u16 = 5;
const MAX_MESSAGE_SIZE: u64 = 10_000;
/// Small enough that some deliveries are held back.
const READ_BUDGET: usize = 4_000;
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Numbers;

impl Tokens for Numbers {
    type Call = usize;
    type Channel = u16;
    type Consumer = u8;
    type Opener = ();
    type Buffers = ();

    fn has_untaken(_: &u8) -> bool {
        false
    }

    fn stream_progress(_: &u8) -> StreamProgress {
        StreamProgress {
            next: None,
            since: 0.into(),
        }
    }

    fn settled_deliveries(_: &u16) -> u64 {
        0
    }
}

/// The core of a connection, and the counts that the target checks.
struct Subject {
    core: Connection<Numbers>,
    now: Instant,
    ids: Vec<ChannelId>,
    /// How many outcomes each call has had. At the end each call must have had one.
    outcomes: Vec<u8>,
    closed: bool,
    received: usize,
    commanded: usize,
    sent: usize,
}

/// Runs the core on `data`. Checks that every call has one outcome, that the connection ends once
/// with no event behind the end, and that the bytes sent are bounded by bytes received and
/// commands.
pub fn core(data: &[u8]) {
    let mut subject = Subject::new();
    let mut input = Input::new(data);
    while !input.is_empty() {
        subject.step(&mut input);
        subject.look();
    }
    subject.core.ended();
    subject.look();
    assert!(subject.core.is_closed() && subject.closed);
    assert!(subject.outcomes.iter().all(|count| *count == 1));
}

impl Subject {
    fn new() -> Self {
        let negotiated = Negotiated {
            channel_max: CHANNEL_MAX,
            frame_max: FRAME_MAX,
            heartbeat: 10,
            server_properties: FieldTable::new(),
        };
        let now = Instant::now();
        let decoder = FrameDecoder::new(FRAME_MAX);
        let limits = ConnectionLimits {
            message_size: SizeLimit {
                bytes: MAX_MESSAGE_SIZE,
                rejects: true,
            },
            read_budget: READ_BUDGET,
            blocked_timeout: Some(SECOND * 60),
        };
        Self {
            core: Connection::new(decoder, &negotiated, limits, now),
            now,
            ids: Vec::new(),
            outcomes: Vec::new(),
            closed: false,
            received: 0,
            commanded: 0,
            sent: 0,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let deadline = self.now + SECOND * 30;
        match input.below(14) {
            0 => {
                let piece = input.piece();
                self.feed(piece);
            }
            1 => self.feed_frame(1, input),
            2 => self.feed_frame(2, input),
            3 => self.feed_frame(3, input),
            4 => self.feed_delivery(input),
            5 => {
                let number = match u16::from(input.u8()) {
                    0 => None,
                    number => Some(number % (CHANNEL_MAX + 2)),
                };
                if let Ok(id) = self.core.reserve_channel(number) {
                    let call = self.call();
                    self.ids.push(id);
                    self.core.open_channel(id, id.number, call, deadline);
                }
            }
            6 => {
                let (id, payload) = (self.id(input), input.piece());
                // The core takes a basic.consume only together with its consumer.
                if let (Some(id), Ok(method)) = (id, decode_method(payload))
                    && method.id() != basic::Consume::ID
                {
                    self.commanded += payload.len();
                    let call = self.call();
                    self.core.call(id, method, None, call, deadline);
                }
            }
            7 => {
                let (id, tag, nowait) = (self.id(input), input.u8(), input.u8() & 1 == 1);
                if let Some(id) = id {
                    let consume = basic::Consume::new("q")
                        .consumer_tag(name(tag))
                        .nowait(nowait);
                    let call = self.call();
                    self.core
                        .call(id, consume.into(), Some(tag), call, deadline);
                }
            }
            8 => {
                let (id, tag) = (self.id(input), input.u64());
                if let Some(id) = id
                    && self.core.gate(id) == Gate::Open
                {
                    self.commanded += 1;
                    let ack = Settle::Ack { multiple: true };
                    encode_settle(self.core.output(), id.number, tag, ack);
                }
            }
            9 => {
                let (id, tag) = (self.id(input), input.u8());
                let is_meant = |_: &u8| tag != 3;
                match id {
                    Some(id) if tag & 0x80 == 0 => {
                        self.commanded += 1;
                        self.core.discard_consumer(id, &name(tag).into(), is_meant);
                    }
                    Some(id) => {
                        let cancel = basic::Cancel::new(name(tag)).nowait(tag & 0x40 == 0);
                        let call = self.call();
                        self.core
                            .cancel_consumer(id, cancel, is_meant, call, deadline);
                    }
                    None => {}
                }
            }
            10 => {
                if let Some(id) = self.id(input) {
                    let call = (input.u8() & 1 == 0).then(|| (self.call(), deadline));
                    self.commanded += 1;
                    let code = ReplyCode::REPLY_SUCCESS;
                    let by = ClosedBy::Application;
                    self.core.close_channel(id, by, code, "bye".into(), call);
                }
            }
            11 => self.pass(SECOND * u32::from(input.u8())),
            12 => self.core.set_reading(input.u8() & 1 == 1, self.now),
            _ => match input.u8() {
                0 => self.core.ended(),
                1..=50 => {
                    self.commanded += 1;
                    self.core
                        .close(ReplyCode::REPLY_SUCCESS, "bye".into(), deadline);
                }
                secret => {
                    let call = self.call();
                    self.core
                        .update_secret((&[secret]).into(), "new".into(), call, deadline);
                }
            },
        }
    }

    fn call(&mut self) -> usize {
        self.commanded += 1;
        self.outcomes.push(0);
        self.outcomes.len() - 1
    }

    fn id(&self, input: &mut Input<'_>) -> Option<ChannelId> {
        let index = input.below(8);
        self.ids.iter().rev().nth(index).copied()
    }

    fn feed_frame(&mut self, kind: u8, input: &mut Input<'_>) {
        let (channel, payload) = (input.below(usize::from(CHANNEL_MAX) + 2), input.piece());
        self.feed(&frame(kind, channel, payload));
    }

    /// Feeds a delivery for one of the consumers. The content header announces any size.
    fn feed_delivery(&mut self, input: &mut Input<'_>) {
        let (channel, tag, number) = (input.below(6), name(input.u8()), input.u64());
        let (size, body) = (input.u64() % (2 * MAX_MESSAGE_SIZE), input.piece());
        let mut method = vec![0, 60, 0, 60];
        for text in [tag, ""] {
            method.push(u8::try_from(text.len()).unwrap_or(0));
            method.extend(text.as_bytes());
            if !text.is_empty() {
                method.extend(number.to_be_bytes());
                method.push(0);
            }
        }
        method.push(0);
        let mut header = vec![0, 60, 0, 0];
        header.extend(size.to_be_bytes());
        header.extend([0, 0]);
        self.feed(&frame(1, channel, &method));
        self.feed(&frame(2, channel, &header));
        self.feed(&frame(3, channel, body));
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        self.received += bytes.len();
        while !bytes.is_empty() && !self.core.is_closed() {
            let space = self.core.space();
            let count = bytes.len().min(space.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.core.received(count, self.now);
            bytes = &bytes[count..];
        }
    }

    /// Advances the time, and calls the core at every deadline in between.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.core.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.core.handle_timeout(self.now);
            let next = self.core.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "a busy loop");
            // The timeout may send a heartbeat, or undo a call.
            self.commanded += 1;
        }
        self.now = end;
        self.core.handle_timeout(end);
    }

    fn look(&mut self) {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Reply { call, .. } | Event::Failed { call, .. } => self.outcomes[call] += 1,
                Event::Closed(_) => {
                    assert!(!self.closed, "the connection ended twice");
                    self.closed = true;
                }
                Event::ChannelClosed { reason, .. } if self.closed => assert_eq!(reason, None),
                other => assert!(!self.closed, "{other:?} after the end"),
            }
        }
        self.core.end_commits();
        while let Some((id, ..)) = self.core.next_change() {
            self.core.make_change(id);
        }
        assert_eq!(self.closed, self.core.is_closed());
        self.sent += self
            .core
            .take_secret_output()
            .map_or(0, |secret| secret.as_bytes().len());
        self.sent += std::mem::take(self.core.output()).len();
        // The 300 bytes are one connection.close with its text.
        let bound = 300 + 3 * self.received + 300 * self.commanded;
        assert!(self.sent <= bound, "{} sent, {bound} allowed", self.sent);
    }
}

/// Returns one of four consumer tags.
fn name(tag: u8) -> &'static str {
    ["a", "b", "c", "d"][usize::from(tag % 4)]
}

fn frame(kind: u8, channel: usize, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, u8::try_from(channel).unwrap_or(0), 0, 0];
    bytes.extend(u16::try_from(payload.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(payload);
    bytes.push(0xce);
    bytes
}
