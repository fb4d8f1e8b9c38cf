//! Tests the way of the IO thread from a lost connection to the next one.

use super::*;
use crate::io::driver::connecting::AttemptError;
use crate::io::to_program::confirm_slot::Slot;
use crate::protocol::confirms::PublishOutcome;
use crate::protocol::methods::{confirm, exchange};
use crate::protocol::recovery::policy::AttemptFailure;
use crate::protocol::recovery::session::{self, BrokerOrder};
use crate::protocol::stage::Stage;

/// A running IO thread that outlives losses, and the listener to which it connects.
struct Recovery {
    play: Play,
    listener: TcpListener,
}

/// Returns a driver that outlives losses for `limit`, and connects to `listener`.
fn driver(listener: &TcpListener, limit: Option<Duration>) -> Driver {
    driver_with(listener, limit, None)
}

/// Returns a driver that keeps this number of bytes of unconfirmed publishes.
pub(super) fn driver_with(
    listener: &TcpListener,
    limit: Option<Duration>,
    unconfirmed_limit: Option<usize>,
) -> Driver {
    let address = listener.local_addr().unwrap();
    let connect = move |_: &_, _: &_| {
        link_to(address).map_err(|error| AttemptError {
            failure: AttemptFailure::Unreachable(Stage::Tcp),
            error: Box::new(Error::other(error)),
        })
    };
    let recovery = RecoverySettings {
        connect: Arc::new(connect),
        session: session::Settings {
            brokers: 1,
            order: BrokerOrder::Shuffled,
            max_delay: Duration::from_secs(1),
            limit,
            attempt_timeout: TEST_TIMEOUT,
        },
        topology: Topology::All,
        mark_resent: true,
        first_broker: 0,
    };
    let link = link_to(address).unwrap();
    let settings = Settings {
        unconfirmed_limit,
        ..settings(1 << 20)
    };
    Driver::new(link, settings, Some(recovery))
}

impl Recovery {
    fn begin() -> Self {
        Self::begin_with_limit(None)
    }

    fn begin_with_limit(limit: Option<Duration>) -> Self {
        Self::begin_with(|listener| driver(listener, limit))
    }

    /// Publishes in confirm mode are kept.
    fn begin_keeping() -> Self {
        Self::begin_with(|listener| driver_with(listener, None, Some(1 << 20)))
    }

    fn begin_with(driver: impl FnOnce(&TcpListener) -> Driver) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let driver = driver(&listener);
        let play = Play {
            shared: Arc::clone(&driver.shared),
            thread: thread::spawn(move || driver.run()),
            peer: accept(&listener),
        };
        Self { play, listener }
    }

    /// Ends the stream, and accepts the next connection.
    fn lose(&mut self) {
        let _ = self.play.peer.socket.shutdown(std::net::Shutdown::Both);
        self.play.peer = accept(&self.listener);
    }

    /// Declares an exchange and starts a consumer.
    fn use_channel(&mut self) -> (Arc<ChannelShared>, Arc<ConsumerShared>) {
        let play = &mut self.play;
        let channel = play.open_channel();
        let declared = channel.queue_call(exchange::Declare::new("e").into(), None, soon());
        play.peer.answer(exchange::Declare::ID);
        expect_reply(&declared);
        let consume = basic::Consume::new("q").consumer_tag("me");
        let (consumer, started) = begin_consume(&channel, consume);
        play.peer.answer(basic::Consume::ID);
        expect_reply(&started);
        (channel, consumer)
    }

    /// Expects the calls that restore a channel after `use_channel`.
    fn expect_restoration(&mut self) {
        for id in [
            channel::Open::ID,
            exchange::Declare::ID,
            channel::Close::ID,
            channel::Open::ID,
            basic::Consume::ID,
        ] {
            self.play.peer.answer(id);
        }
    }

    fn end(self) {
        self.play.shared.send(Command::Disconnect);
        self.play.thread.join().unwrap();
    }
}

impl Peer {
    /// Expects this method on channel 1, and answers it.
    fn answer(&mut self, id: MethodId) {
        self.expect(id);
        match id {
            channel::Open::ID => self.send(1, channel::OpenOk::default()),
            channel::Close::ID => self.send(1, channel::CloseOk::default()),
            confirm::Select::ID => self.send(1, confirm::SelectOk::default()),
            tx::Select::ID => self.send(1, tx::SelectOk::default()),
            exchange::Declare::ID => self.send(1, exchange::DeclareOk::default()),
            basic::Consume::ID => self.send(1, basic::ConsumeOk::default().consumer_tag("me")),
            _ => panic!("{id} has no answer here"),
        }
    }

    /// Expects a publish with its content. Returns the body, and whether the message is marked as
    /// sent again.
    fn expect_publish(&mut self) -> (Vec<u8>, bool) {
        self.expect(basic::Publish::ID);
        let (mut body, mut is_marked) = (Vec::new(), false);
        for part in ["header", "body"] {
            loop {
                let frame = self.decoder.next().unwrap();
                match frame {
                    Some(Frame::Header { payload, .. }) if part == "header" => {
                        is_marked = payload.windows(8).any(|it| it == b"x-resent");
                        break;
                    }
                    Some(Frame::Body { payload, .. }) if part == "body" => {
                        body.extend_from_slice(payload);
                        break;
                    }
                    Some(other) => panic!("{other:?}"),
                    None => {}
                }
                let count = self.socket.read(self.decoder.space()).unwrap();
                assert_ne!(count, 0, "the client has closed the stream");
                self.decoder.filled(count);
            }
        }
        (body, is_marked)
    }

    /// Expects these publishes, each with its mark.
    fn expect_publishes(&mut self, publishes: &[(&str, bool)]) {
        for (body, is_marked) in publishes {
            let (sent, mark) = self.expect_publish();
            assert_eq!(String::from_utf8_lossy(&sent), *body);
            assert_eq!(mark, *is_marked, "{body}");
        }
    }

    fn ack(&mut self, delivery_tag: u64, multiple: bool) {
        let ack = basic::Ack::default().delivery_tag(delivery_tag);
        self.send(1, ack.multiple(multiple));
    }
}

/// Publishes a message. `None`: the channel takes no publishes now, or is not in confirm mode.
fn publish(channel: &ChannelShared, body: &[u8]) -> Option<(u64, Arc<Slot>)> {
    publish_with(channel, body, false)
}

fn publish_with(
    channel: &ChannelShared,
    body: &[u8],
    is_sent_once: bool,
) -> Option<(u64, Arc<Slot>)> {
    let publish = to_queue(PublishBody::Borrowed(body));
    let mut scratch = Vec::new();
    let encoded = EncodedPublish::new(1, publish, FRAME_MAX as usize, &mut scratch).unwrap();
    let ticket = channel.confirm_window.begin(&mut false)?;
    let connection = &channel.connection;
    assert!(connection.write_budget().admit(encoded.size()));
    let is_kept = ticket.is_kept();
    if is_kept {
        assert!(connection.unconfirmed_budget().admit(encoded.size()));
    }
    connection
        .commands()
        .publish(channel.block.lock(), &encoded, is_kept)
        .unwrap();
    let numbered = ticket.commit(None, is_sent_once);
    connection.wake().notify();
    numbered
}

fn begin_confirms(channel: &ChannelShared, peer: &mut Peer) {
    let mut selected = None;
    let select = confirm::Select::default();
    assert!(channel.confirm_window.select(|| {
        selected = Some(channel.queue_call(select.into(), None, soon()));
    }));
    peer.answer(confirm::Select::ID);
    expect_reply(&selected.unwrap());
    channel.confirm_window.select_done(true);
}

#[test]
fn written_publishes_are_unconfirmed_and_numbers_go_on_after_a_loss() {
    let mut recovery = Recovery::begin();
    let channel = recovery.play.open_channel();
    begin_confirms(&channel, &mut recovery.play.peer);
    let (_, confirmed) = publish(&channel, b"body").unwrap();
    let (_, lost) = publish(&channel, b"body").unwrap();
    recovery.play.peer.expect_publish();
    recovery.play.peer.expect_publish();
    let ack = basic::Ack::default().delivery_tag(1);
    recovery.play.peer.send(1, ack.clone());
    wait_until(|| confirmed.get().is_some());
    recovery.lose();
    wait_until(|| lost.get().is_some());
    assert!(matches!(confirmed.get(), Some(PublishOutcome::Acked)));
    assert!(matches!(lost.get(), Some(PublishOutcome::Lost(_))));
    assert!(
        publish(&channel, b"body").is_none(),
        "the channel is not restored"
    );
    recovery.play.peer.answer(channel::Open::ID);
    recovery.play.peer.answer(confirm::Select::ID);
    wait_until(|| channel.confirm_window.begin(&mut false).is_some());
    let (number, later) = publish(&channel, b"body").unwrap();
    assert_eq!(number, 3);
    recovery.play.peer.expect_publish();
    recovery.play.peer.send(1, ack);
    wait_until(|| later.get().is_some());
    assert!(matches!(later.get(), Some(PublishOutcome::Acked)));
    recovery.end();
}

#[test]
fn a_publish_that_was_not_handed_to_the_lost_connection_goes_out_on_the_next_one() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut driver = driver(&listener, None);
    let mut peer = accept(&listener);
    let channel = open_channel(&mut driver, &mut peer);
    driver.core.lose(Termination::EndOfStream);
    channel.confirm_window.select(|| {});
    channel.confirm_window.select_done(true);
    let (_, queued) = publish(&channel, b"body").unwrap();
    queue_settlement(&channel, 1);
    driver.handle_loss(Instant::now());
    assert!(queued.get().is_none(), "its outcome is still to come");
    let shared = Arc::clone(&driver.shared);
    let thread = thread::spawn(move || driver.run());
    let mut peer = accept(&listener);
    peer.answer(channel::Open::ID);
    peer.expect_publish();
    assert!(queued.get().is_none());
    wait_until(|| shared.commands().waiting_bytes() == 0);
    shared.send(Command::Disconnect);
    thread.join().unwrap();
}

#[test]
fn a_close_ends_an_outage_at_once() {
    for command in [close_command(), Command::Disconnect] {
        let mut recovery = Recovery::begin();
        let (_, consumer) = recovery.use_channel();
        let Recovery { play, listener } = recovery;
        // No connection is accepted any more.
        drop(listener);
        drop(play.peer);
        play.shared.send(command);
        play.thread.join().unwrap();
        assert!(matches!(
            play.shared.termination(),
            Some(Termination::Closed(_))
        ));
        assert!(!consumer.is_alive());
    }
}

#[test]
fn an_outage_that_reaches_its_limit_before_an_attempt_ends_with_recovery_failed() {
    let recovery = Recovery::begin_with_limit(Some(Duration::from_millis(1)));
    let Recovery { play, listener } = recovery;
    drop(listener);
    drop(play.peer);
    play.thread.join().unwrap();
    let failure = play.shared.recovery.failure();
    assert!(
        matches!(failure, Some(Error::RecoveryFailed { .. })),
        "{failure:?}"
    );
}

/// Opens a channel in confirm mode on a driver without a thread.
fn open_confirming(driver: &mut Driver, peer: &mut Peer) -> Arc<ChannelShared> {
    let channel = open_channel(driver, peer);
    channel.confirm_window.select(|| {});
    channel.confirm_window.select_done(true);
    channel
}

#[test]
fn a_publish_that_is_not_written_whole_goes_out_on_the_next_connection() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut driver = driver(&listener, None);
    let mut peer = accept(&listener);
    let channel = open_confirming(&mut driver, &mut peer);
    let (_, written) = publish(&channel, b"body").unwrap();
    turn(&mut driver);
    peer.expect_publish();
    // The socket takes the first bytes only.
    let (_, unwritten) = publish(&channel, b"body").unwrap();
    driver.execute_commands(Instant::now());
    let mut first_bytes = [0; 20];
    let taken = driver.outbox.write_to(&mut &mut first_bytes[..]).unwrap();
    driver.shared.write_budget().release(taken);
    driver.writable = false;
    driver.core.lose(Termination::EndOfStream);
    driver.handle_loss(Instant::now());
    assert!(matches!(written.get(), Some(PublishOutcome::Lost(_))));
    assert!(unwritten.get().is_none(), "its outcome is still to come");
    assert_eq!(driver.shared.commands().waiting_bytes(), 0);
    assert_eq!(driver.shared.counters.messages_published.get(), 1);
    let shared = Arc::clone(&driver.shared);
    let thread = thread::spawn(move || driver.run());
    let mut peer = accept(&listener);
    peer.answer(channel::Open::ID);
    peer.expect_publish();
    peer.send(1, basic::Ack::default().delivery_tag(1));
    wait_until(|| unwritten.get().is_some());
    assert!(matches!(unwritten.get(), Some(PublishOutcome::Acked)));
    assert_eq!(shared.counters.messages_published.get(), 2);
    shared.send(Command::Disconnect);
    thread.join().unwrap();
}

pub(super) fn is_acked(slot: &Slot) -> bool {
    matches!(slot.get(), Some(PublishOutcome::Acked))
}

#[test]
fn unconfirmed_publishes_are_sent_again_in_their_order_and_before_later_ones() {
    let mut recovery = Recovery::begin_keeping();
    let channel = recovery.play.open_channel();
    begin_confirms(&channel, &mut recovery.play.peer);
    let [a, b, c] = ["a", "b", "c"].map(|body| publish(&channel, body.as_bytes()).unwrap().1);
    let peer = &mut recovery.play.peer;
    peer.expect_publishes(&[("a", false), ("b", false), ("c", false)]);
    peer.ack(2, false);
    wait_until(|| b.get().is_some());
    recovery.lose();
    wait_until(|| channel.confirm_window.is_suspended());
    let (number, d) = publish(&channel, b"d").unwrap();
    assert_eq!(number, 4);
    recovery.play.peer.answer(channel::Open::ID);
    recovery.play.peer.answer(confirm::Select::ID);
    let peer = &mut recovery.play.peer;
    peer.expect_publishes(&[("a", true), ("c", true), ("d", false)]);
    assert!([&a, &c, &d].iter().all(|slot| slot.get().is_none()));
    peer.ack(2, true);
    wait_until(|| is_acked(&c));
    assert!(is_acked(&a) && d.get().is_none());
    peer.ack(3, false);
    wait_until(|| is_acked(&d));
    let shared = &recovery.play.shared;
    wait_until(|| shared.unconfirmed_budget().taken() == 0);
    assert_eq!(shared.write_budget().taken(), 0);
    assert_eq!(shared.counters.messages_published.get(), 4);
    assert_eq!(shared.counters.messages_resent.get(), 2);
    recovery.end();
}

#[test]
fn a_second_loss_keeps_what_is_unconfirmed_in_each_phase() {
    let mut recovery = Recovery::begin_keeping();
    let channel = recovery.play.open_channel();
    begin_confirms(&channel, &mut recovery.play.peer);
    let [a, b] = ["a", "b"].map(|body| publish(&channel, body.as_bytes()).unwrap().1);
    recovery
        .play
        .peer
        .expect_publishes(&[("a", false), ("b", false)]);
    // Before the channel is restored, and then after its publishes are sent again.
    recovery.lose();
    recovery.play.peer.expect(channel::Open::ID);
    recovery.lose();
    recovery.play.peer.answer(channel::Open::ID);
    recovery.play.peer.answer(confirm::Select::ID);
    recovery
        .play
        .peer
        .expect_publishes(&[("a", true), ("b", true)]);
    let (_, c) = publish(&channel, b"c").unwrap();
    recovery.play.peer.expect_publishes(&[("c", false)]);
    recovery.play.peer.ack(1, false);
    wait_until(|| is_acked(&a));
    recovery.lose();
    recovery.play.peer.answer(channel::Open::ID);
    recovery.play.peer.answer(confirm::Select::ID);
    recovery
        .play
        .peer
        .expect_publishes(&[("b", true), ("c", true)]);
    recovery.play.peer.ack(2, true);
    wait_until(|| is_acked(&b) && is_acked(&c));
    let shared = &recovery.play.shared;
    wait_until(|| shared.unconfirmed_budget().taken() == 0);
    recovery.end();
}

#[test]
fn a_kept_publish_that_is_not_written_whole_is_sent_again_without_a_mark() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut driver = driver_with(&listener, None, Some(1 << 20));
    let mut peer = accept(&listener);
    let channel = open_confirming(&mut driver, &mut peer);
    let (_, whole) = publish(&channel, b"whole").unwrap();
    turn(&mut driver);
    peer.expect_publishes(&[("whole", false)]);
    let (_, cut) = publish(&channel, b"cut").unwrap();
    driver.execute_commands(Instant::now());
    let mut first_bytes = [0; 20];
    let taken = driver.outbox.write_to(&mut &mut first_bytes[..]).unwrap();
    driver.shared.write_budget().release(taken);
    driver.writable = false;
    driver.core.lose(Termination::EndOfStream);
    driver.handle_loss(Instant::now());
    assert!(whole.get().is_none() && cut.get().is_none());
    assert_eq!(driver.shared.commands().waiting_bytes(), 0);
    let shared = Arc::clone(&driver.shared);
    let thread = thread::spawn(move || driver.run());
    let mut peer = accept(&listener);
    peer.answer(channel::Open::ID);
    peer.expect_publishes(&[("whole", true), ("cut", false)]);
    peer.ack(2, true);
    wait_until(|| is_acked(&whole) && is_acked(&cut));
    assert_eq!(shared.counters.messages_published.get(), 2);
    assert_eq!(shared.counters.messages_resent.get(), 1);
    shared.send(Command::Disconnect);
    thread.join().unwrap();
}

#[test]
fn a_publish_that_is_sent_once_is_unconfirmed_after_a_loss_and_the_others_are_not() {
    let mut recovery = Recovery::begin_keeping();
    let channel = recovery.play.open_channel();
    begin_confirms(&channel, &mut recovery.play.peer);
    let [_, b] = ["a", "b"].map(|body| publish(&channel, body.as_bytes()).unwrap().1);
    let (_, once) = publish_with(&channel, b"once", true).unwrap();
    recovery
        .play
        .peer
        .expect_publishes(&[("a", false), ("b", false), ("once", false)]);
    recovery.lose();
    wait_until(|| once.get().is_some());
    assert!(matches!(once.get(), Some(PublishOutcome::Lost(_))));
    recovery.play.peer.answer(channel::Open::ID);
    recovery.play.peer.answer(confirm::Select::ID);
    let (_, next) = publish(&channel, b"next").unwrap();
    recovery
        .play
        .peer
        .expect_publishes(&[("a", true), ("b", true), ("next", false)]);
    recovery.play.peer.ack(3, true);
    wait_until(|| is_acked(&next));
    assert!(is_acked(&b));
    recovery.end();
}

#[test]
fn the_end_of_a_channel_frees_the_room_of_its_unconfirmed_publishes() {
    let mut recovery = Recovery::begin_keeping();
    let channel = recovery.play.open_channel();
    begin_confirms(&channel, &mut recovery.play.peer);
    publish(&channel, b"body").unwrap();
    recovery.play.peer.expect_publish();
    let shared = Arc::clone(&recovery.play.shared);
    assert!(shared.unconfirmed_budget().taken() > 0);
    // Without a culprit, the channel would be opened again.
    let close = channel::Close::default().reply_code(404u16);
    let close = close.class_id(60).method_id(40);
    recovery.play.peer.send(1, close);
    wait_until(|| shared.unconfirmed_budget().taken() == 0);
    recovery.end();
}

#[test]
fn a_close_of_the_broker_leaves_no_room_taken() {
    let mut recovery = Recovery::begin();
    let close = connection::Close::default().reply_code(320u16);
    let peer = &mut recovery.play.peer;
    peer.send(0, close);
    peer.expect(connection::CloseOk::ID);
    recovery.play.peer = accept(&recovery.listener);
    let shared = &recovery.play.shared;
    wait_until(|| shared.recovery.epoch() == 2 && shared.write_budget().taken() == 0);
    recovery.end();
}

#[test]
fn plain_publishes_before_a_select_without_a_reply_are_counted_and_get_no_numbers() {
    for unconfirmed_limit in [None, Some(1 << 20)] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut driver = driver_with(&listener, None, unconfirmed_limit);
        let mut peer = accept(&listener);
        let channel = open_channel(&mut driver, &mut peer);
        driver.writable = false;
        assert!(publish(&channel, b"plain").is_none());
        let select = confirm::Select::default().nowait(true);
        channel.confirm_window.select(|| {
            drop(channel.queue_call(select.into(), None, soon()));
        });
        channel.confirm_window.select_done(true);
        let (_, numbered) = publish(&channel, b"numbered").unwrap();
        driver.execute_commands(Instant::now());
        driver.core.lose(Termination::EndOfStream);
        driver.handle_loss(Instant::now());
        let doubt = driver.shared.recovery.take_doubt();
        assert_eq!((doubt.messages, doubt.unsent), (0, 1));
        let shared = Arc::clone(&driver.shared);
        let thread = thread::spawn(move || driver.run());
        let mut peer = accept(&listener);
        peer.answer(channel::Open::ID);
        peer.answer(confirm::Select::ID);
        peer.expect_publishes(&[("numbered", false)]);
        peer.ack(1, false);
        wait_until(|| is_acked(&numbered));
        shared.send(Command::Disconnect);
        thread.join().unwrap();
    }
}

#[test]
fn plain_publishes_before_a_pending_select_are_in_doubt_after_a_loss() {
    let mut recovery = Recovery::begin_keeping();
    let channel = recovery.play.open_channel();
    assert!(publish(&channel, b"plain").is_none());
    recovery.play.peer.expect_publish();
    let select = confirm::Select::default();
    channel.confirm_window.select(|| {
        drop(channel.queue_call(select.into(), None, soon()));
    });
    recovery.play.peer.expect(confirm::Select::ID);
    recovery.lose();
    let shared = &recovery.play.shared;
    wait_until(|| channel.confirm_window.is_suspended());
    let doubt = shared.recovery.take_doubt();
    assert_eq!((doubt.messages, doubt.unsent), (1, 0));
    recovery.end();
}

#[test]
fn a_reply_that_is_due_to_the_loss_proves_no_publish() {
    let mut recovery = Recovery::begin();
    let (channel, consumer) = recovery.use_channel();
    assert!(publish(&channel, b"body").is_none(), "not in confirm mode");
    recovery.play.peer.expect_publish();
    let cancelled = channel.queue_cancel(&consumer, false, soon());
    recovery.play.peer.expect(basic::Cancel::ID);
    recovery.lose();
    expect_reply(&cancelled);
    let doubt = recovery.play.shared.recovery.take_doubt();
    assert_eq!((doubt.messages, doubt.unsent), (1, 0));
    recovery.end();
}

#[test]
fn a_settlement_that_was_kept_behind_a_commit_is_lost_with_the_connection() {
    let mut recovery = Recovery::begin();
    let (channel, consumer) = recovery.use_channel();
    let peer = &mut recovery.play.peer;
    let selected = channel.queue_call(tx::Select::default().into(), None, soon());
    peer.answer(tx::Select::ID);
    expect_reply(&selected);
    peer.deliver("me", 1, b"one");
    wait_until(|| consumer.inbox().len() == 1);
    let committed = channel.queue_call(tx::Commit::default().into(), None, soon());
    peer.expect(tx::Commit::ID);
    channel.settle(1, Settle::Ack { multiple: false }).unwrap();
    wait_until(|| channel.connection.commands().waiting_bytes() == 0);
    recovery.lose();
    let outcome = committed.recv().unwrap();
    assert!(
        matches!(outcome, Err(CallFailure::Interrupted)),
        "{outcome:?}"
    );
    for id in [
        channel::Open::ID,
        exchange::Declare::ID,
        channel::Close::ID,
        channel::Open::ID,
        tx::Select::ID,
        basic::Consume::ID,
    ] {
        recovery.play.peer.answer(id);
    }
    let declared = channel.queue_call(exchange::Declare::new("e").into(), None, soon());
    recovery.play.peer.answer(exchange::Declare::ID);
    expect_reply(&declared);
    recovery.end();
}

#[test]
fn after_a_loss_topology_channel_and_consumer_come_back_and_old_deliveries_are_stale() {
    let mut recovery = Recovery::begin();
    let (channel, consumer) = recovery.use_channel();
    let ack = Settle::Ack { multiple: false };
    for epoch in 1..=3 {
        recovery.play.peer.deliver("me", 1, b"one");
        recovery.play.peer.deliver("me", 2, b"two");
        wait_until(|| consumer.inbox().len() == 2);
        let Next::Message(_) = consumer.inbox().try_pop() else {
            panic!("no delivery");
        };
        recovery.lose();
        recovery.expect_restoration();
        assert!(
            consumer.inbox().is_empty(),
            "an untaken delivery comes again"
        );
        channel.settle(2 * epoch, ack).unwrap();
    }
    recovery.play.peer.deliver("me", 1, b"again");
    wait_until(|| consumer.inbox().len() == 1);
    channel.settle(7, ack).unwrap();
    recovery.play.peer.expect(basic::Ack::ID);
    recovery.end();
}
