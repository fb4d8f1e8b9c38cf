//! Tests of the core on virtual time: a scripted peer, no threads, no sleeping.
//!
//! A [`Scenario`] is an open connection with its clock. A test makes the calls of the program
//! (`call`, `close_channel`, ...), sends the peer's bytes and lets time pass. Then it checks the
//! methods that were [`sent`](Scenario::sent), and the [`events`](Scenario::events).

mod any_order;
mod any_stream;
mod broker;
mod calls;
mod channels;
mod closing_channels;
mod closing_connections;
mod consumers;
mod frames;
mod heartbeats;
mod holding_back;
mod late_replies;
mod oversized;
mod protocol_errors;
mod recovery;
mod secret_updates;
mod seen;
mod transactions;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use proptest::test_runner::Config as ProptestConfig;

use self::frames::*;
use self::seen::{EndedBy, Seen};
use super::assembly::SizeLimit;
use super::close_reason::{CloseReason, ClosedBy};
use super::connection::{Connection, ConnectionLimits};
use super::delivery_batch::{Batch, PackedDelivery};
use super::event::{CallFailure, ChannelId, Event, Gate, NumberError, Reply, Termination, Tokens};
use super::frame::{FrameDecoder, Settle, encode_settle};
use super::handshake::Negotiated;
use super::methods::{Method, MethodId, basic, channel, connection};
use super::properties::BasicProperties;
use super::reply_code::ReplyCode;
use super::settlements::{Settled, SettlementLedger};
use super::stream_progress::StreamProgress;
use super::table::FieldTable;

const FRAME_MAX: u32 = 4096;
const MAX_MESSAGE_SIZE: u64 = 10_000;
/// The deadline of every call without a deadline of its own.
const RPC_TIMEOUT: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// The names that [`Scenario::open_channel`] gives to channels, by number.
const NAMES: [&str; 6] = ["none", "one", "two", "three", "four", "five"];

/// The call that [`Scenario::open_channel`] uses.
const OPEN: u32 = 0;

/// The time at which each consumer is started first.
const FIRST_START_SECS: u64 = 1_000_000;

thread_local! {
    /// The number of deliveries that the program of the test has settled.
    static SETTLED: Cell<u64> = const { Cell::new(0) };
}

#[derive(Debug)]
struct Script;

impl Tokens for Script {
    type Call = u32;
    type Channel = &'static str;
    type Consumer = &'static str;
    type Opener = u32;
    type Buffers = ();

    fn has_untaken(_: &&'static str) -> bool {
        false
    }

    fn settled_deliveries(_: &&'static str) -> u64 {
        SETTLED.get()
    }

    /// The first untaken message of consumer "at 5" has the offset 5. The others have got none.
    fn stream_progress(consumer: &&'static str) -> StreamProgress {
        let next = consumer.strip_prefix("at ");
        StreamProgress {
            next: next.map(|offset| offset.parse().unwrap()),
            since: FIRST_START_SECS.into(),
        }
    }
}

/// Returns the limits that most tests use, with a large read budget.
fn limits(blocked_timeout: Option<Duration>) -> ConnectionLimits {
    ConnectionLimits {
        message_size: SizeLimit {
            bytes: MAX_MESSAGE_SIZE,
            rejects: false,
        },
        read_budget: 1 << 30,
        blocked_timeout,
    }
}

/// Returns the negotiated parameters that most tests use: no heartbeats, small numbers.
fn negotiated() -> Negotiated {
    Negotiated {
        channel_max: 5,
        frame_max: FRAME_MAX,
        heartbeat: 0,
        server_properties: FieldTable::new(),
    }
}

/// An open connection, its clock, and a peer that the test controls.
struct Scenario {
    core: Connection<Script>,
    now: Instant,
    /// The last channel of each name, with its settlement ledger.
    ledgers: BTreeMap<&'static str, DeliveryLedger>,
    /// The channel of each consumer, and whether its deliveries need no acknowledgement.
    consumers: BTreeMap<&'static str, (&'static str, bool)>,
    /// The settlements that wait for the end of a commit.
    held: Vec<(ChannelId, u64, Settle)>,
    /// The events since the last call of `events`.
    happened: Vec<Seen>,
    /// The deliveries that were requeued; see [`look`](Self::look).
    requeued: Vec<(&'static str, u64)>,
}

/// The driver's record of the deliveries of a channel.
struct DeliveryLedger {
    id: ChannelId,
    settlements: SettlementLedger,
    /// The delivery tag of the last delivery.
    last: u64,
    /// The current prefetch.
    prefetch: Option<u16>,
}

impl DeliveryLedger {
    /// Notes a delivery.
    fn note(&mut self, delivery_tag: u64, no_ack: bool) {
        if no_ack {
            self.settlements.settle_for_good(delivery_tag, delivery_tag);
        }
        self.last = self.last.max(delivery_tag);
    }
}

impl Scenario {
    /// Settles a delivery in the ledger, and returns the settlements to be sent; `None` if there
    /// are none.
    fn settle_by_ledger(
        &mut self,
        channel: &'static str,
        delivery_tag: u64,
        settle: Settle,
    ) -> Option<()> {
        let ledgers = self.ledgers.get_mut(channel)?;
        let id = ledgers.id;
        let multiple = match settle {
            Settle::Ack { multiple } | Settle::Nack { multiple, .. } => multiple,
            Settle::Reject { .. } => false,
        };
        if !multiple {
            return match ledgers.settlements.settle(delivery_tag) {
                Settled::Fresh { wire_tag } => {
                    SETTLED.set(SETTLED.get() + 1);
                    self.settle(id, wire_tag, settle);
                    Some(())
                }
                Settled::Stale | Settled::Again => None,
            };
        }
        let covered = ledgers.settlements.settle_up_to(delivery_tag);
        if let Some(tag) = covered.up_to {
            self.settle(id, tag, settle);
        }
        for tag in &covered.singly {
            self.settle(id, *tag, settle.of_one());
        }
        (!covered.is_nothing()).then_some(())
    }

    /// Settles a delivery as the driver does, with the gate.
    fn settle(&mut self, id: ChannelId, delivery_tag: u64, settle: Settle) {
        match self.core.settlement_gate(id) {
            Gate::Open => encode_settle(self.core.output(), id.number, delivery_tag, settle),
            Gate::Committing => self.held.push((id, delivery_tag, settle)),
            Gate::Suspended | Gate::Closed => {}
        }
    }

    fn new() -> Self {
        Self::with(&negotiated())
    }

    fn with(negotiated: &Negotiated) -> Self {
        let now = Instant::now();
        let decoder = FrameDecoder::new(negotiated.frame_max);
        let core = Connection::new(decoder, negotiated, limits(None), now);
        Self::of(core, now)
    }

    fn of(core: Connection<Script>, now: Instant) -> Self {
        Self {
            core,
            now,
            ledgers: BTreeMap::new(),
            consumers: BTreeMap::new(),
            held: Vec::new(),
            happened: Vec::new(),
            requeued: Vec::new(),
        }
    }

    fn peer_sends(&mut self, channel: u16, method: impl Into<Method>) {
        self.peer_sends_bytes(&frame(channel, method));
    }

    fn peer_sends_content(
        &mut self,
        channel: u16,
        method: impl Into<Method>,
        properties: Option<&BasicProperties>,
        body: &[u8],
    ) {
        self.peer_sends_bytes(&content(channel, method, properties, body));
    }

    /// Passes all bytes in one read, as far as they fit. Like a driver, it stops reading after the
    /// end.
    fn peer_sends_bytes(&mut self, bytes: &[u8]) {
        self.feed(bytes);
        self.look();
    }

    fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() && !self.core.is_closed() {
            let space = self.core.space();
            let count = rest.len().min(space.len());
            space[..count].copy_from_slice(&rest[..count]);
            self.core.received(count, self.now);
            rest = &rest[count..];
        }
    }

    fn output(&mut self) -> Vec<u8> {
        self.look();
        std::mem::take(self.core.output())
    }

    /// Returns the methods sent since the last call.
    fn sent(&mut self) -> Vec<(u16, Method)> {
        methods(&self.output())
    }

    /// Returns the events since the last call.
    fn events(&mut self) -> Vec<Seen> {
        self.look();
        std::mem::take(&mut self.happened)
    }

    /// Handles the events as a driver does.
    fn look(&mut self) {
        self.note_events();
        for (id, delivery_tag, settle) in std::mem::take(&mut self.held) {
            self.settle(id, delivery_tag, settle);
        }
        self.core.end_commits();
        while let Some((id, channel, change)) = self.core.next_change() {
            self.ledgers(channel).settlements.change(change);
            self.core.make_change(id);
        }
        self.note_events();
    }

    fn ledgers(&mut self, channel: &str) -> &mut DeliveryLedger {
        self.ledgers.get_mut(channel).unwrap()
    }

    fn note_events(&mut self) {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Got {
                    channel,
                    delivery_tag,
                    no_ack,
                } => self.ledgers(channel).note(delivery_tag, no_ack),
                Event::Requeueable { .. }
                | Event::ConsumerCancelled {
                    is_awaited: false, ..
                } => {}
                Event::Prefetch { channel, count } => self.ledgers(channel).prefetch = Some(count),
                Event::Unwanted {
                    channel,
                    delivery_tag,
                    is_requeued,
                } => {
                    let settlements = &mut self.ledgers(channel).settlements;
                    match is_requeued {
                        true => drop(settlements.requeue(delivery_tag)),
                        false => settlements.settle_for_good(delivery_tag, delivery_tag),
                    }
                    let last = &mut self.ledgers(channel).last;
                    *last = delivery_tag.max(*last);
                    self.requeued.push((channel, delivery_tag));
                }
                Event::Requeued {
                    channel,
                    delivery_tags,
                } => {
                    let settlements = &mut self.ledgers(channel).settlements;
                    delivery_tags
                        .into_iter()
                        .for_each(|tag| settlements.requeued(tag));
                }
                Event::Deliveries {
                    consumer, batches, ..
                } => {
                    let pop = |mut batch: Batch| std::iter::from_fn(move || batch.pop());
                    let (channel, no_ack) = self.consumers[consumer];
                    for content in batches
                        .into_iter()
                        .flat_map(pop)
                        .map(PackedDelivery::unpack)
                    {
                        let (tag, body) = (content.method.delivery_tag, content.body.to_vec());
                        self.ledgers(channel).note(tag, no_ack);
                        self.happened.push(Seen::Delivery(consumer, tag, body));
                    }
                }
                event => {
                    if let Event::Recovered { channel, .. } = &event {
                        let ledgers = self.ledgers(channel);
                        ledgers.settlements.recovered(ledgers.last);
                    }
                    if let Event::ChannelSuspended {
                        channel, detached, ..
                    } = &event
                    {
                        let ledgers = self.ledgers(channel);
                        ledgers.settlements.detach(*detached);
                        ledgers.last = ledgers.last.max(detached.base);
                        let id = ledgers.id;
                        self.held.retain(|(held, ..)| *held != id);
                    }
                    self.happened.push(event.into());
                }
            }
        }
    }

    /// Lets time pass, with a driver that wakes at every deadline.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.core.poll_timeout().filter(|when| *when <= end) {
            self.now = self.now.max(deadline);
            self.core.handle_timeout(self.now);
            let next = self.core.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "a busy loop");
        }
        self.now = end;
        self.core.handle_timeout(end);
    }

    fn begin_open(&mut self, number: u16, name: &'static str, call: u32) -> ChannelId {
        let id = self.core.reserve_channel(Some(number)).unwrap();
        let deadline = self.now + RPC_TIMEOUT;
        self.core.open_channel(id, name, call, deadline);
        self.add_ledger(id, name);
        id
    }

    fn add_ledger(&mut self, id: ChannelId, name: &'static str) {
        let ledgers = DeliveryLedger {
            id,
            settlements: SettlementLedger::default(),
            last: 0,
            prefetch: None,
        };
        self.ledgers.insert(name, ledgers);
    }

    fn open_channel(&mut self, number: u16) -> ChannelId {
        self.open_channel_as(number, NAMES[usize::from(number)])
    }

    fn open_channel_as(&mut self, number: u16, name: &'static str) -> ChannelId {
        let id = self.begin_open(number, name, OPEN);
        let open = on(number, channel::Open::default());
        assert_eq!(self.sent().last(), Some(&open));
        self.peer_sends(number, channel::OpenOk::default());
        let open_ok = channel::OpenOk::default().into();
        assert_eq!(self.events(), [Seen::Reply(OPEN, open_ok)]);
        id
    }

    fn call(&mut self, id: ChannelId, call: u32, method: impl Into<Method>) {
        self.call_within(RPC_TIMEOUT, id, call, method);
    }

    fn call_within(&mut self, time: Duration, id: ChannelId, call: u32, method: impl Into<Method>) {
        let deadline = self.now + time;
        self.core.call(id, method.into(), None, call, deadline);
        self.look();
    }

    /// Starts a consumer whose token is its tag, without its reply.
    fn begin_consume(&mut self, id: ChannelId, call: u32, tag: &'static str) {
        let consume = basic::Consume::new("q").consumer_tag(tag);
        self.begin_consume_with(id, call, tag, consume);
    }

    fn begin_consume_with(
        &mut self,
        id: ChannelId,
        call: u32,
        token: &'static str,
        consume: basic::Consume,
    ) {
        let deadline = self.now + RPC_TIMEOUT;
        let mut ledgers = self.ledgers.iter();
        let known = ledgers.find(|(_, ledgers)| ledgers.id == id);
        if let Some((channel, _)) = known {
            self.consumers.insert(token, (channel, consume.no_ack));
        }
        self.core
            .call(id, consume.into(), Some(token), call, deadline);
    }

    /// Starts a consumer whose token is its tag.
    fn consume(&mut self, id: ChannelId, tag: &'static str) {
        self.begin_consume(id, OPEN, tag);
        self.peer_sends(id.number, consume_ok(tag));
        assert_eq!(self.sent().len(), 1);
        assert_eq!(self.events(), [Seen::Reply(OPEN, consume_ok(tag))]);
    }

    fn begin_close_channel(&mut self, id: ChannelId, call: u32) {
        let call = Some((call, self.now + RPC_TIMEOUT));
        let code = ReplyCode::REPLY_SUCCESS;
        self.core
            .close_channel(id, ClosedBy::Application, code, "bye".into(), call);
    }

    fn begin_close(&mut self, time: Duration) {
        let deadline = self.now + time;
        let code = ReplyCode::REPLY_SUCCESS;
        self.core.close(code, "bye".into(), deadline);
    }

    /// Returns the size of the core's debug output, as a measure of its memory.
    fn held(&self) -> usize {
        struct Counter(usize);

        impl Write for Counter {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0 += text.len();
                Ok(())
            }
        }

        let mut counter = Counter(0);
        write!(counter, "{:?}", self.core).unwrap();
        counter.0
    }
}

/// A failing case becomes a test of its own. proptest must not write a file of seeds.
fn proptest_config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
