//! The loss of a connection, and the restoring of its channels on the next one.

mod any_loss;
mod calls;
mod cancelled_consumers;
mod maintenance;
mod phases;
mod reopening;
mod restoring;
mod sessions;
mod streams;
mod transactions;

use super::super::connection::recovery::AttachError;
use super::super::frame::HEARTBEAT_FRAME;
use super::super::methods::{confirm, queue, tx};
use super::super::settlements::DetachedChannel;
use super::*;

impl Scenario {
    /// Loses the connection, as the driver does: after all events are taken.
    fn lose(&mut self) {
        self.look();
        self.core.detach(self.now);
        self.look();
    }

    fn attach(&mut self) {
        let decoder = FrameDecoder::new(FRAME_MAX);
        let attached = self.core.attach(decoder, &negotiated(), self.now);
        attached.unwrap();
    }

    /// Attaches another connection and begins to restore the channels.
    fn restore(&mut self) {
        self.attach();
        self.core.restore_channels(self.now);
        self.look();
    }

    /// Loses the connection and opens channel 1 on another one.
    fn reopen(&mut self) {
        self.lose();
        self.restore();
        assert_eq!(self.sent().first(), Some(&open()));
        self.peer_sends(1, channel::OpenOk::default());
    }

    fn gate(&mut self, id: ChannelId) -> Gate {
        self.core.gate(id)
    }

    fn resume(&mut self, id: ChannelId, tag: &'static str) {
        let now = self.now;
        self.core
            .resume_consumer(id, &tag.into(), |token| *token == tag, now);
        self.look();
    }
}

fn open() -> (u16, Method) {
    on(1, channel::Open::default())
}

fn consume(tag: &str) -> (u16, Method) {
    on(1, basic::Consume::new("q").consumer_tag(tag))
}

fn suspended(channel: &'static str, base: u64) -> Seen {
    let has_transactions = false;
    Seen::Suspended(
        channel,
        DetachedChannel {
            base,
            has_transactions,
        },
    )
}

/// The events of a channel that has no calls, and of the connection.
fn all_restored(channel: &'static str) -> [Seen; 3] {
    [
        Seen::Resumed(channel),
        Seen::ChannelRestored(channel),
        Seen::Restored,
    ]
}

#[test]
fn a_channel_goes_on_under_its_number_and_its_id() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.lose();
    assert_eq!(scenario.events(), [suspended("one", 0)]);
    assert!(scenario.core.is_detached() && scenario.core.is_open(id));
    assert_eq!(scenario.gate(id), Gate::Suspended);
    scenario.restore();
    assert_eq!(scenario.sent(), [open()]);
    assert_eq!(scenario.gate(id), Gate::Suspended);
    assert_eq!(scenario.core.unrestored().collect::<Vec<_>>(), [&"one"]);
    scenario.peer_sends(1, channel::OpenOk::default());
    assert_eq!(scenario.events(), all_restored("one"));
    assert_eq!(scenario.gate(id), Gate::Open);
    assert_eq!(scenario.core.unrestored().count(), 0);
    scenario.call(id, 1, queue::Declare::new("q"));
    assert_eq!(scenario.sent(), [on(1, queue::Declare::new("q"))]);
}

#[test]
fn a_connection_without_channels_is_restored_at_once() {
    let mut scenario = Scenario::new();
    scenario.lose();
    scenario.restore();
    assert_eq!(scenario.events(), [Seen::Restored]);
}

#[test]
fn nothing_of_the_lost_connection_reaches_the_next_one() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.peer_sends_content(1, deliver("c", 1), None, b"whole");
    scenario.settle_by_ledger("one", 1, Settle::Ack { multiple: false });
    // Half a message, half a frame, and output that is not taken.
    let mut half = frame(1, deliver("c", 2));
    half.extend(content_header(1, 100));
    half.extend([3, 0, 1, 0, 0, 0, 9, 1]);
    scenario.feed(&half);
    assert!(!scenario.core.output().is_empty());
    scenario.lose();
    assert_eq!(*scenario.core.output(), []);
    assert_eq!(scenario.core.announced(), 0);
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, consume_ok("c"));
    assert_eq!(scenario.sent(), [open(), consume("c")]);
    scenario.events();
    scenario.peer_sends_content(1, deliver("c", 1), None, b"again");
    assert_eq!(
        scenario.events(),
        [Seen::Delivery("c", 3, b"again".to_vec())]
    );
    for stale in [1, 2] {
        assert_eq!(
            scenario.settle_by_ledger("one", stale, Settle::Ack { multiple: false }),
            None
        );
    }
    scenario.settle_by_ledger("one", 3, Settle::Ack { multiple: true });
    assert_eq!(scenario.sent(), [on(1, basic::Ack::new(1).multiple(true))]);
}

#[test]
fn a_tag_at_the_end_of_its_range_settles_nothing() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.peer_sends_content(1, deliver("c", u64::MAX), None, b"x");
    scenario.reopen();
    scenario.peer_sends(1, consume_ok("c"));
    scenario.sent();
    scenario.events();
    scenario.peer_sends_content(1, deliver("c", 1), None, b"x");
    // The tag of the program has no value that could reach the wire.
    let delivery = Seen::Delivery("c", 0, b"x".to_vec());
    assert_eq!(scenario.events(), [delivery]);
    scenario.settle_by_ledger("one", u64::MAX, Settle::Ack { multiple: true });
    scenario.core.requeue(id, vec![u64::MAX]);
    assert_eq!(scenario.sent(), []);
}

#[test]
fn deliveries_that_were_held_back_are_forgotten() {
    let now = Instant::now();
    let limits = ConnectionLimits {
        read_budget: 1000,
        ..limits(None)
    };
    let decoder = FrameDecoder::new(FRAME_MAX);
    let core = Connection::new(decoder, &negotiated(), limits, now);
    let mut scenario = Scenario::of(core, now);
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    for tag in 1..=10 {
        let bytes = content(1, deliver("c", tag), None, &[0; 500]);
        scenario.feed(&bytes);
    }
    while scenario.core.poll_event().is_some() {}
    assert!(scenario.core.is_holding_back());
    scenario.core.set_untaken_bytes(0);
    scenario.core.requeue_held(now);
    assert!(scenario.core.is_expecting());
    scenario.core.detach(now);
    assert!(!scenario.core.is_holding_back() && !scenario.core.is_expecting());
    let mut bases = Vec::new();
    let mut requeued = Vec::new();
    while let Some(event) = scenario.core.poll_event() {
        match event {
            Event::Requeue { delivery_tag, .. } => requeued.push(delivery_tag),
            Event::ChannelSuspended { detached, .. } => bases.push(detached.base),
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(bases, [10]);
    assert!(!requeued.is_empty());
    scenario.core.requeue(id, requeued.clone());
    scenario.restore();
    scenario.peer_sends(1, channel::OpenOk::default());
    scenario.peer_sends(1, consume_ok("c"));
    scenario.core.requeue(id, requeued);
    assert_eq!(scenario.sent(), [open(), consume("c")]);
}

#[test]
fn the_state_of_the_lost_connection_is_over() {
    let mut scenario = Scenario::with(&Negotiated {
        heartbeat: 10,
        ..negotiated()
    });
    scenario.peer_sends(0, connection::Blocked::default().reason("memory"));
    scenario.events();
    scenario.lose();
    assert_eq!(scenario.events(), [Seen::Unblocked]);
    assert_eq!(scenario.core.poll_timeout(), None, "no heartbeat is due");
    scenario.pass(SECOND * 1000);
    assert_eq!(scenario.output(), []);
    let decoder = FrameDecoder::new(FRAME_MAX);
    let negotiated = Negotiated {
        heartbeat: 4,
        ..negotiated()
    };
    let attached = scenario.core.attach(decoder, &negotiated, scenario.now);
    assert_eq!(attached, Ok(()));
    scenario.pass(SECOND * 2);
    assert_eq!(scenario.output(), HEARTBEAT_FRAME);
    scenario.pass(SECOND * 6);
    let silence = Termination::Silence(SECOND * 8);
    assert_eq!(scenario.events(), [Seen::Closed(silence)]);
}

#[test]
fn smaller_limits_are_refused_and_larger_ones_change_nothing() {
    let mut scenario = Scenario::new();
    let attach = |scenario: &mut Scenario, channel_max, frame_max| {
        let negotiated = Negotiated {
            channel_max,
            frame_max,
            ..negotiated()
        };
        let decoder = FrameDecoder::new(frame_max);
        scenario.core.attach(decoder, &negotiated, scenario.now)
    };
    let error = attach(&mut scenario, 5, FRAME_MAX).unwrap_err();
    assert_eq!(error, AttachError::NotDetached);
    scenario.lose();
    let error = attach(&mut scenario, 4, FRAME_MAX).unwrap_err();
    assert!(error.to_string().contains("channel_max"), "{error}");
    let error = attach(&mut scenario, 5, FRAME_MAX - 1).unwrap_err();
    assert!(error.to_string().contains("frame_max"), "{error}");
    assert!(scenario.core.is_detached());
    assert_eq!(attach(&mut scenario, 2047, FRAME_MAX * 2), Ok(()));
    let out_of_range = scenario.core.reserve_channel(Some(6));
    assert_eq!(out_of_range, Err(NumberError::OutOfRange));
}

#[test]
fn bytes_behind_the_handshake_are_received() {
    let mut scenario = Scenario::new();
    scenario.lose();
    let mut decoder = FrameDecoder::new(FRAME_MAX);
    let bytes = frame(0, connection::Blocked::default().reason("disk"));
    decoder.space()[..bytes.len()].copy_from_slice(&bytes);
    decoder.filled(bytes.len());
    let attached = scenario.core.attach(decoder, &negotiated(), scenario.now);
    assert_eq!(attached, Ok(()));
    assert_eq!(scenario.events(), [Seen::Blocked("disk".into())]);
}

#[test]
fn ten_thousand_losses_need_no_memory() {
    let mut scenario = Scenario::new();
    let id = scenario.open_channel(1);
    scenario.consume(id, "c");
    scenario.call(id, 1, confirm::Select::default());
    scenario.peer_sends(1, confirm::SelectOk::default());
    let mut memory = Vec::new();
    for round in 0u64..10_000 {
        scenario.reopen();
        scenario.peer_sends(1, confirm::SelectOk::default());
        scenario.peer_sends(1, consume_ok("c"));
        scenario.peer_sends_content(1, deliver("c", 1), None, b"x");
        scenario.call(id, 2, queue::Declare::new("q"));
        assert_eq!(scenario.sent().len(), 3, "select, consume, declare");
        let seen = scenario.events();
        let delivery = Seen::Delivery("c", round + 1, b"x".to_vec());
        assert!(seen.contains(&delivery), "{seen:?}");
        if round % 2 == 0 {
            scenario.peer_sends(1, queue::DeclareOk::default());
            assert_eq!(scenario.events().len(), 1);
        } else {
            scenario.pass(RPC_TIMEOUT);
            assert_eq!(scenario.events().len(), 1);
        }
        if [101, 9_999].contains(&round) {
            memory.push(scenario.held() + scenario.core.output().capacity());
        }
    }
    // The numbers in the output have become longer.
    let (early, late) = (memory[0], memory[1]);
    assert!(late < early + 100, "{early} {late}");
    assert_eq!(scenario.core.poll_timeout(), None);
}
