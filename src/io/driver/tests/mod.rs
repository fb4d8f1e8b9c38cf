//! Tests the IO thread between queued commands and a peer that the test plays itself.

mod cut_publishes;
mod recovering;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use mio::Interest;
use socket2::SockRef;

use super::*;
use crate::error::Error;
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{ChannelCommand, Opener, Outcome};
use crate::io::shared::connection::tests::{negotiated, settings};
use crate::io::shared::consumer::{ConsumerShared, ConsumerToken};
use crate::io::to_program::inbox::Next;
use crate::protocol::event::{CallFailure, Termination};
use crate::protocol::frame::decode_method;
use crate::protocol::frame::tests::{encode_content, to_queue};
use crate::protocol::frame::{
    EncodedPublish, Frame, FrameDecoder, PublishBody, Settle, encode_method,
};
use crate::protocol::methods::{Method, MethodId, basic, channel, connection, queue, tx};
use crate::protocol::reply_code::ReplyCode;

/// The deadline of every wait in these tests.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

const FRAME_MAX: u32 = 4096;

fn soon() -> Instant {
    Instant::now() + TEST_TIMEOUT
}

/// Waits until the condition holds.
fn wait_until(condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "the condition does not hold in time"
        );
        thread::yield_now();
    }
}

struct Peer {
    socket: TcpStream,
    decoder: FrameDecoder,
}

impl Peer {
    fn send(&mut self, channel: u16, method: impl Into<Method>) {
        let mut bytes = Vec::new();
        encode_method(&mut bytes, channel, &method.into(), FRAME_MAX as usize).unwrap();
        self.socket.write_all(&bytes).unwrap();
    }

    fn deliver(&mut self, consumer_tag: &str, delivery_tag: u64, body: &[u8]) {
        let bytes = delivery(consumer_tag, delivery_tag, body);
        self.socket.write_all(&bytes).unwrap();
    }

    /// Expects this method as the next frame.
    fn expect(&mut self, id: MethodId) {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                let Frame::Method { payload, .. } = frame else {
                    panic!("{frame:?}");
                };
                return assert_eq!(decode_method(payload).unwrap().id(), id);
            }
            let count = self.socket.read(self.decoder.space()).unwrap();
            assert_ne!(count, 0, "the client has closed the stream");
            self.decoder.filled(count);
        }
    }

    /// Resets the TCP connection (RST).
    fn reset(self) {
        let socket = SockRef::from(&self.socket);
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}

fn delivery(consumer_tag: &str, delivery_tag: u64, body: &[u8]) -> Vec<u8> {
    let deliver = basic::Deliver::default()
        .consumer_tag(consumer_tag)
        .delivery_tag(delivery_tag);
    let mut bytes = Vec::new();
    encode_method(&mut bytes, 1, &deliver.into(), FRAME_MAX as usize).unwrap();
    encode_content(&mut bytes, 1, None, body, FRAME_MAX as usize).unwrap();
    bytes
}

/// A running IO thread and its peer.
struct Play {
    shared: Arc<ConnectionShared>,
    thread: JoinHandle<()>,
    peer: Peer,
}

/// Returns a driver without a thread, and its peer.
fn connected(settings: Settings) -> (Driver, Peer) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let link = link_to(listener.local_addr().unwrap()).unwrap();
    let driver = Driver::new(link, settings, None);
    (driver, accept(&listener))
}

/// Accepts a connection, without a handshake.
fn accept(listener: &TcpListener) -> Peer {
    let (socket, _) = listener.accept().unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    Peer {
        socket,
        decoder: FrameDecoder::new(FRAME_MAX),
    }
}

/// Connects to a peer, without a handshake.
fn link_to(address: SocketAddr) -> io::Result<Link> {
    let client = TcpStream::connect(address)?;
    client.set_nonblocking(true)?;
    let mut client = mio::net::TcpStream::from_std(client);
    let poll = Poll::new()?;
    let both = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(&mut client, SOCKET, both)?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    Ok(Link {
        transport: Transport::Plain(client),
        decoder: FrameDecoder::new(FRAME_MAX),
        negotiated: negotiated(),
        poll,
        waker,
        address: String::new(),
    })
}

impl Play {
    fn begin(settings: Settings) -> Self {
        let (driver, peer) = connected(settings);
        Self {
            shared: Arc::clone(&driver.shared),
            thread: thread::spawn(move || driver.run()),
            peer,
        }
    }

    fn open_channel(&mut self) -> Arc<ChannelShared> {
        let (reply, opened) = bounded(1);
        self.shared.send(Command::OpenChannel(Opener {
            number: None,
            window: 10,
            deadline: soon(),
            reply,
        }));
        self.peer.expect(channel::Open::ID);
        self.peer.send(1, channel::OpenOk::default());
        opened.recv().unwrap().unwrap()
    }

    /// Starts a consumer with this tag and with `no_ack`, so that its deliveries cannot be held
    /// back.
    fn consume(&mut self, channel: &Arc<ChannelShared>, tag: &str) -> Arc<ConsumerShared> {
        let (consumer, outcome) = begin_no_ack_consume(channel, tag);
        self.peer.expect(basic::Consume::ID);
        self.peer
            .send(1, basic::ConsumeOk::default().consumer_tag(tag));
        expect_reply(&outcome);
        consumer
    }
}

/// Sends `basic.consume` with `no_ack`, so that the deliveries cannot be held back.
fn begin_no_ack_consume(
    channel: &Arc<ChannelShared>,
    tag: &str,
) -> (Arc<ConsumerShared>, Receiver<Outcome>) {
    let consume = basic::Consume::new("q").consumer_tag(tag).no_ack(true);
    begin_consume(channel, consume)
}

fn begin_consume(
    channel: &Arc<ChannelShared>,
    consume: basic::Consume,
) -> (Arc<ConsumerShared>, Receiver<Outcome>) {
    let consumer = ConsumerShared::with_inbox(&consume, Arc::clone(channel));
    let token = Arc::new(ConsumerToken {
        consumer: Arc::clone(&consumer),
    });
    let outcome = channel.queue_call(consume.into(), Some(token), soon());
    (consumer, outcome)
}

/// Waits for the reply to a call.
fn expect_reply(outcome: &Receiver<Outcome>) {
    outcome.recv().unwrap().unwrap();
}

#[test]
fn discarding_a_former_consumer_keeps_the_new_one_with_the_same_tag() {
    let mut play = Play::begin(settings(1 << 20));
    let channel = play.open_channel();
    let consumer = play.consume(&channel, "me");
    // The broker has cancelled the former consumer, and the program drops it only now.
    let consume = basic::Consume::new("q").consumer_tag("me").no_ack(true);
    let former = ConsumerShared::with_inbox(&consume, Arc::clone(&channel));
    channel.send(ChannelCommand::Discard { consumer: former });
    let outcome = channel.queue_call(queue::Declare::new("q").into(), None, soon());
    play.peer.expect(queue::Declare::ID);
    play.peer.deliver("me", 1, b"x");
    play.peer.send(1, queue::DeclareOk::default());
    expect_reply(&outcome);
    let Next::Message(content) = consumer.inbox().try_pop() else {
        panic!("the delivery was requeued");
    };
    assert_eq!(content.method.delivery_tag, 1);
    play.shared.send(Command::Disconnect);
    play.thread.join().unwrap();
}

#[test]
fn a_late_cancel_ok_keeps_a_later_consumer_with_the_same_tag() {
    let mut play = Play::begin(settings(1 << 20));
    let channel = play.open_channel();
    let former = play.consume(&channel, "me");
    // The cancel gets no reply in time, and the program consumes again with the same tag.
    let cancelled = channel.queue_cancel(&former, false, Instant::now());
    play.peer.expect(basic::Cancel::ID);
    let outcome = cancelled.recv().unwrap();
    assert!(matches!(outcome, Err(CallFailure::TimedOut)), "{outcome:?}");
    let (later, started) = begin_no_ack_consume(&channel, "me");
    let again = channel.queue_cancel(&former, false, soon());
    channel.send(ChannelCommand::Discard { consumer: former });
    play.peer
        .send(1, basic::CancelOk::default().consumer_tag("me"));
    play.peer.expect(basic::Consume::ID);
    play.peer
        .send(1, basic::ConsumeOk::default().consumer_tag("me"));
    expect_reply(&started);
    expect_reply(&again);
    let outcome = channel.queue_call(queue::Declare::new("q").into(), None, soon());
    play.peer.expect(queue::Declare::ID);
    play.peer.deliver("me", 1, b"x");
    play.peer.send(1, queue::DeclareOk::default());
    expect_reply(&outcome);
    assert_eq!(later.inbox().len(), 1);
    assert!(later.is_alive());
    play.shared.send(Command::Disconnect);
    play.thread.join().unwrap();
}

/// Executes commands and writes, without reading.
fn turn(driver: &mut Driver) {
    driver.execute_commands(Instant::now());
    driver.dispatch();
    driver.write(Instant::now());
}

/// Reads pending bytes, as the driver does before a deadline, until the condition holds.
fn read_until(driver: &mut Driver, condition: impl Fn() -> bool) {
    let mut events = Events::with_capacity(16);
    let deadline = soon();
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "the condition does not hold in time"
        );
        driver.read_pending(&mut events);
    }
}

fn open_channel(driver: &mut Driver, peer: &mut Peer) -> Arc<ChannelShared> {
    open_channel_with_number(1, driver, peer)
}

fn open_channel_with_number(
    number: u16,
    driver: &mut Driver,
    peer: &mut Peer,
) -> Arc<ChannelShared> {
    let (reply, opened) = bounded(1);
    driver.shared.send(Command::OpenChannel(Opener {
        number: Some(number),
        window: 10,
        deadline: soon(),
        reply,
    }));
    turn(driver);
    peer.expect(channel::Open::ID);
    peer.send(number, channel::OpenOk::default());
    read_until(driver, || !opened.is_empty());
    opened.recv().unwrap().unwrap()
}

/// Queues an acknowledgement, like a thread that has found channel and connection open.
fn queue_settlement(channel: &ChannelShared, delivery_tag: u64) {
    let settle = Settle::Ack { multiple: false };
    let commands = channel.connection.commands();
    let _ = commands.settle(
        channel.block.lock(),
        channel.id.number,
        delivery_tag,
        settle,
    );
    channel.connection.wake().notify();
}

fn close_command() -> Command {
    Command::Close {
        code: ReplyCode::REPLY_SUCCESS,
        text: "done".into(),
        deadline: soon(),
    }
}

fn consume(driver: &mut Driver, peer: &mut Peer, tag: &str) -> Arc<ConsumerShared> {
    let channel = open_channel(driver, peer);
    let consume = basic::Consume::new("q").consumer_tag(tag).no_ack(true);
    consume_on(&channel, driver, peer, consume)
}

fn consume_on(
    channel: &Arc<ChannelShared>,
    driver: &mut Driver,
    peer: &mut Peer,
    consume: basic::Consume,
) -> Arc<ConsumerShared> {
    let (consumer, outcome) = begin_consume(channel, consume);
    turn(driver);
    peer.expect(basic::Consume::ID);
    let consume_ok = basic::ConsumeOk::default().consumer_tag(&consumer.tag);
    peer.send(1, consume_ok);
    read_until(driver, || !outcome.is_empty());
    expect_reply(&outcome);
    consumer
}

#[test]
fn frames_kept_behind_a_commit_are_sent_before_the_io_thread_waits() {
    let (mut driver, mut peer) = connected(settings(1 << 20));
    let channel = open_channel(&mut driver, &mut peer);
    let committed = channel.queue_call(tx::Commit::default().into(), None, soon());
    turn(&mut driver);
    queue_settlement(&channel, 1);
    let declared = channel.queue_call(queue::Declare::new("q").into(), None, soon());
    turn(&mut driver);
    peer.expect(tx::Commit::ID);
    peer.send(1, tx::CommitOk::default());
    read_until(&mut driver, || !committed.is_empty());
    expect_reply(&committed);
    assert!(driver.is_busy(), "the next turn has work");
    turn(&mut driver);
    peer.expect(basic::Ack::ID);
    peer.expect(queue::Declare::ID);
    assert!(!driver.is_busy());
    drop(driver);
    assert!(!matches!(declared.recv(), Ok(Ok(_))));
}

/// Returns a driver in a reading pause, because untaken deliveries exceed the soft limit.
fn paused() -> (Driver, Peer, Arc<ConsumerShared>) {
    const READ_LIMIT: usize = 40_000;
    let (mut driver, mut peer) = connected(settings(READ_LIMIT));
    let consumer = consume(&mut driver, &mut peer, "slow");
    peer.deliver("slow", 1, &[b'x'; READ_LIMIT + 1000]);
    read_until(&mut driver, || consumer.inbox().len() == 1);
    driver.pause_or_resume();
    assert!(driver.pause_record.is_paused());
    (driver, peer, consumer)
}

#[test]
fn a_soft_pause_ends_after_five_seconds_until_the_socket_is_empty() {
    let (mut driver, ..) = paused();
    let least = Duration::from_millis(4900);
    let end = |driver: &Driver| driver.soft_pause_end.expect("a pause has an end");
    let until_end = |driver: &Driver| end(driver).saturating_duration_since(Instant::now());
    assert!(until_end(&driver) <= Duration::from_secs(5));
    driver.pause_or_resume();
    assert!(driver.pause_record.is_paused());
    driver.soft_pause_end = Some(Instant::now());
    for readable in [true, true, false] {
        assert_eq!(
            driver.soft_pause_end.is_some(),
            driver.pause_record.is_paused()
        );
        driver.readable = readable;
        driver.pause_or_resume();
        assert_eq!(driver.pause_record.is_paused(), !readable);
    }
    assert!(
        end(&driver) > Instant::now() + least,
        "a new pause has the full length"
    );
}

#[test]
fn a_turn_reads_no_more_once_the_read_budget_is_full() {
    const SIZE: usize = 9000;
    let (mut driver, mut peer) = connected(settings(4000));
    let consumer = consume(&mut driver, &mut peer, "busy");
    peer.deliver("busy", 1, &[b'x'; SIZE]);
    let deadline = soon();
    while !matches!(driver.transport.socket().peek(&mut [0; SIZE]), Ok(SIZE)) {
        assert!(Instant::now() < deadline, "the bytes do not arrive in time");
        thread::yield_now();
    }
    driver.readable = true;
    // Otherwise a read that does not fill the buffer would end the loop.
    driver.hung_up = true;
    driver.read();
    assert!(driver.core.is_full());
    assert!(driver.readable, "the socket may have more bytes");
    read_until(&mut driver, || consumer.inbox().len() == 1);
}

#[test]
fn one_turn_reads_a_bounded_number_of_bytes() {
    const COUNT: u64 = 40;
    let (mut driver, mut peer) = connected(settings(8 << 20));
    let consumer = consume(&mut driver, &mut peer, "busy");
    let shared = Arc::clone(&driver.shared);
    let deadline = soon();
    thread::scope(|scope| {
        scope.spawn(|| (1..=COUNT).for_each(|tag| peer.deliver("busy", tag, &[b'x'; 100_000])));
        while (consumer.inbox().len() as u64) < COUNT {
            assert!(Instant::now() < deadline, "the bytes do not arrive in time");
            let before = shared.counters.bytes_received.get();
            driver.readable = true;
            // Otherwise a read that does not fill the buffer would end the loop.
            driver.hung_up = true;
            driver.read();
            driver.dispatch();
            let received = shared.counters.bytes_received.get() - before;
            // The last read may exceed the limit.
            assert!(received < (256 + 128) * 1024, "{received} bytes at once");
        }
    });
}

#[test]
fn reading_is_not_paused_while_a_requeued_delivery_is_expected() {
    const READ_LIMIT: usize = 40_000;
    let (mut driver, mut peer) = connected(settings(READ_LIMIT));
    let channel = open_channel(&mut driver, &mut peer);
    let [acking, other] = [("acking", false), ("other", true)].map(|(tag, no_ack)| {
        let consume = basic::Consume::new("q").consumer_tag(tag).no_ack(no_ack);
        consume_on(&channel, &mut driver, &mut peer, consume)
    });
    for tag in 1..=3 {
        peer.deliver("acking", tag, &[b'x'; 30_000]);
    }
    let shared = Arc::clone(&driver.shared);
    read_until(&mut driver, || {
        shared.counters.deliveries_held_back.get() == 1
    });
    while !acking.inbox().is_empty() {
        drop(acking.inbox().try_pop());
    }
    driver.requeue_held(Instant::now());
    assert!(driver.core.is_expecting());
    peer.deliver("other", 4, &[b'x'; READ_LIMIT + 1000]);
    read_until(&mut driver, || other.inbox().len() == 1);
    driver.pause_or_resume();
    assert!(!driver.pause_record.is_paused());
    // Another consumer may have got the delivery by then.
    let later = Instant::now() + Duration::from_secs(2);
    driver.core.handle_timeout(later);
    assert!(!driver.core.is_expecting());
    driver.pause_or_resume();
    assert!(driver.pause_record.is_paused());
}

#[test]
fn a_close_ends_a_pause_at_the_hard_limit() {
    const READ_LIMIT: usize = 40_000;
    let (mut driver, mut peer) = connected(settings(READ_LIMIT));
    let consumer = consume(&mut driver, &mut peer, "slow");
    peer.deliver("slow", 1, &[b'x'; 2 * READ_LIMIT]);
    read_until(&mut driver, || consumer.inbox().len() == 1);
    driver.pause_or_resume();
    assert!(
        driver.pause_record.current().is_some(),
        "the pause has a slowest consumer"
    );
    driver.shared.send(close_command());
    turn(&mut driver);
    driver.pause_or_resume();
    assert!(!driver.pause_record.is_paused());
}

#[test]
fn reads_after_a_failed_write_keep_the_read_budget() {
    const READ_LIMIT: usize = 40_000;
    const SIZE: usize = 100_000;
    let (mut driver, mut peer) = connected(settings(READ_LIMIT));
    let consumer = consume(&mut driver, &mut peer, "slow");
    let bytes = delivery("slow", 1, &[b'x'; SIZE]);
    thread::scope(|scope| {
        let socket = &mut peer.socket;
        // The writes fail in the end, because the driver is dropped.
        scope.spawn(move || (0..40).try_for_each(|_| socket.write_all(&bytes)));
        let deadline = soon();
        while !matches!(driver.transport.socket().peek(&mut [0; 1]), Ok(1)) {
            assert!(Instant::now() < deadline, "the bytes do not arrive in time");
        }
        driver.read_after_failed_write(&io::ErrorKind::BrokenPipe.into());
        driver.dispatch();
        assert!(driver.core.is_closed());
        // The hard limit, and the bytes by which the last read may exceed it.
        let most = (2 * READ_LIMIT + 128 * 1024) / SIZE;
        assert!(consumer.inbox().len() <= most);
        drop(driver);
    });
}

#[test]
fn a_pending_reply_is_read_before_its_deadline_counts_as_missed_also_in_a_pause() {
    let (mut driver, mut peer, consumer) = paused();
    let declare = queue::Declare::new("q").into();
    let declared = consumer.channel.queue_call(declare, None, soon());
    turn(&mut driver);
    peer.expect(queue::Declare::ID);
    peer.send(1, queue::DeclareOk::default());
    read_until(&mut driver, || !declared.is_empty());
    expect_reply(&declared);
}

#[test]
fn reading_is_paused_while_the_peer_does_not_read_the_answers() {
    const MAX: usize = 16 << 20;
    let (mut driver, _peer) = connected(settings(1 << 20));
    for (more, is_on) in [(MAX, false), (1, true)] {
        let waiting = driver.unwritten_output.bytes() + more;
        driver.unwritten_output.push(more, waiting);
        driver.pause_or_resume();
        assert_eq!(driver.pause_record.is_paused(), is_on);
    }
    driver.unwritten_output.written(MAX + 1);
    driver.pause_or_resume();
    assert!(!driver.pause_record.is_paused());
}

#[test]
fn the_io_thread_wakes_at_the_end_of_a_soft_pause() {
    let (mut driver, _peer, _consumer) = paused();
    let start = Instant::now();
    driver.soft_pause_end = Some(start + Duration::from_millis(100));
    // Ends the wait if the end of the pause does not.
    driver.shared.set_timer_deadline(Some(start + TEST_TIMEOUT));
    let mut events = Events::with_capacity(16);
    while driver
        .soft_pause_end
        .is_some_and(|due| Instant::now() < due)
    {
        driver.wait(&mut events).unwrap();
    }
    assert!(Instant::now() < start + TEST_TIMEOUT);
}

#[test]
fn a_close_before_a_reset_is_read_after_a_failed_write() {
    const READ_LIMIT: usize = 40_000;
    let mut play = Play::begin(settings(READ_LIMIT));
    let channel = play.open_channel();
    let _consumer = play.consume(&channel, "slow");
    // More than the soft limit, so that reading is paused, but less than the hard limit.
    play.peer.deliver("slow", 1, &[b'x'; READ_LIMIT + 1000]);
    wait_until(|| play.shared.read_budget().is_paused());
    let close = connection::Close::default()
        .reply_code(320)
        .reply_text("going down");
    play.peer.send(0, close);
    play.peer.reset();
    wait_until(|| {
        queue_settlement(&channel, 1);
        play.shared.termination().is_some()
    });
    match play.shared.termination() {
        Some(Termination::Closed(reason)) => assert_eq!(reason.code, ReplyCode::from(320)),
        other => panic!("{other:?}"),
    }
    play.thread.join().unwrap();
}

#[test]
fn the_io_thread_waits_until_the_first_deadline() {
    let now = Instant::now();
    let at = |millis| Some(now + Duration::from_millis(millis));
    let left = |millis| Some(Duration::from_millis(millis));
    assert_eq!(waiting::until_first([None; 3], now), None);
    assert_eq!(waiting::until_first([at(3), None, at(2)], now), left(2));
    assert_eq!(waiting::until_first([at(3), at(1), at(2)], now), left(1));
    assert_eq!(waiting::until_first([at(0), at(1), None], now), left(0));
    let later = now + Duration::from_millis(5);
    assert_eq!(waiting::until_first([None, at(1), None], later), left(0));
}

#[test]
fn settlements_of_a_closed_channel_leave_the_write_budget() {
    let mut play = Play::begin(settings(1 << 20));
    let channel = play.open_channel();
    play.peer.send(1, channel::Close::default().reply_code(404));
    play.peer.expect(channel::CloseOk::ID);
    for tag in 1..=100 {
        queue_settlement(&channel, tag);
    }
    wait_until(|| play.shared.commands().waiting_bytes() == 0);
    play.shared.send(Command::Disconnect);
    play.thread.join().unwrap();
}

#[test]
fn frames_of_threads_that_have_not_seen_the_close_go_out_before_it() {
    let (mut driver, mut peer) = connected(settings(1 << 20));
    let channel = open_channel(&mut driver, &mut peer);
    queue_settlement(&channel, 1);
    assert!(driver.shared.commands().send(close_command()));
    // These threads have found the connection open, before the close was queued. One part of the
    // block is sealed by a call, the other is announced.
    queue_settlement(&channel, 2);
    let declared = channel.queue_call(queue::Declare::new("q").into(), None, soon());
    queue_settlement(&channel, 3);
    turn(&mut driver);
    for _ in 1..=3 {
        peer.expect(basic::Ack::ID);
    }
    peer.expect(connection::Close::ID);
    assert!(!matches!(declared.recv(), Ok(Ok(_))));
}

#[test]
fn a_settlement_does_not_pass_a_requeue_that_stands_behind_the_close() {
    let (mut driver, mut peer) = connected(settings(1 << 20));
    let channel = open_channel(&mut driver, &mut peer);
    channel.record_delivery_tag(10);
    driver.shared.send(close_command());
    channel.requeue([5], |requeue| channel.send(requeue));
    let settled = channel.settle(10, Settle::Ack { multiple: true });
    assert!(matches!(settled, Err(Error::ConnectionClosed(_))));
    turn(&mut driver);
    peer.expect(connection::Close::ID);
    assert!(driver.outbox.is_empty());
}

#[test]
fn spare_buffers_that_are_not_needed_are_freed_when_the_connection_is_idle() {
    let (mut driver, mut peer) = connected(settings(1 << 20));
    let channel = open_channel(&mut driver, &mut peer);
    for _ in 0..200 {
        queue_settlement(&channel, 1);
        turn(&mut driver);
    }
    let spare = Arc::clone(driver.shared.commands().spare_buffers());
    assert!((1..=2).contains(&spare.count()), "{}", spare.count());
    let mut now = Instant::now();
    for _ in 0..3 {
        driver.trim_spare_buffers(now);
        now += TRIM_PERIOD;
    }
    assert_eq!(spare.count(), 0);
    assert_eq!(
        driver.trim_deadline, None,
        "an idle connection has no deadline"
    );
}

#[test]
fn a_queued_call_ends_although_the_drop_of_a_queued_body_panics() {
    struct PanicsInDrop(Vec<u8>);
    impl AsRef<[u8]> for PanicsInDrop {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("the program's own panic");
        }
    }

    let (mut driver, mut peer) = connected(settings(1 << 20));
    let channel = open_channel(&mut driver, &mut peer);
    let body = Bytes::from_owner(PanicsInDrop(vec![b'x'; 100_000]));
    let publish = to_queue(PublishBody::Shared(&body));
    let mut scratch = Vec::new();
    let encoded = EncodedPublish::new(1, publish, 4096, &mut scratch).unwrap();
    let queued = driver
        .shared
        .commands()
        .publish(channel.block.lock(), &encoded, false);
    assert!(queued.is_ok());
    drop(body);
    let declared = channel.queue_call(queue::Declare::new("q").into(), None, soon());
    drop(driver);
    assert!(!matches!(declared.recv_timeout(TEST_TIMEOUT), Ok(Ok(_))));
    assert!(channel.block.take().is_none());
}
