//! The IO thread between commands as the program's threads queue them, and a peer that the
//! test plays itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use crossbeam_channel::Receiver;
use mio::Interest;
use socket2::SockRef;

use super::*;
use crate::io::shared::command::{Opener, Outcome};
use crate::io::shared::connection::tests::{negotiated, settings};
use crate::io::shared::consumer::Route;
use crate::io::to_program::inbox::Next;
use crate::protocol::event::CallFailure;
use crate::protocol::frame::decode_method;
use crate::protocol::frame::tests::encode_content;
use crate::protocol::frame::{Frame, Settle, encode_method};
use crate::protocol::methods::{Method, MethodId, channel, connection, queue, tx};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(10);

const FRAME_MAX: u32 = 4096;

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Waits until it is so.
fn until(is_so: impl Fn() -> bool) {
    let deadline = soon();
    while !is_so() {
        assert!(Instant::now() < deadline, "it never happens");
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

    /// Awaits a method, and nothing before it.
    fn expect(&mut self, id: MethodId) {
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                let Frame::Method { payload, .. } = frame else {
                    panic!("{frame:?}");
                };
                return assert_eq!(decode_method(payload).unwrap().id(), id);
            }
            let count = self.socket.read(self.decoder.space()).unwrap();
            assert_ne!(count, 0, "the client hung up");
            self.decoder.filled(count);
        }
    }

    /// Throws the connection away (RST).
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

/// An IO thread, and its peer.
struct Play {
    shared: Arc<ConnectionShared>,
    thread: JoinHandle<()>,
    peer: Peer,
}

/// What moves between an IO thread, which does not run yet, and its peer.
fn connected(settings: Settings) -> (Driver, Peer) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, _) = listener.accept().unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut client = mio::net::TcpStream::from_std(client);
    let poll = Poll::new().unwrap();
    let both = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(&mut client, SOCKET, both).unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), WAKE).unwrap());
    let decoder = FrameDecoder::new(FRAME_MAX);
    let transport = Transport::Plain(client);
    let driver = prepare(poll, waker, transport, decoder, negotiated(), settings).unwrap();
    let peer = Peer {
        socket,
        decoder: FrameDecoder::new(FRAME_MAX),
    };
    (driver, peer)
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

    /// A consumer of that name; `no_ack`, so that its deliveries cannot be held back.
    fn consume(&mut self, channel: &Arc<ChannelShared>, tag: &str) -> Arc<ConsumerShared> {
        let (consumer, outcome) = ask_for_consumer(channel, tag);
        self.peer.expect(basic::Consume::ID);
        self.peer
            .send(1, basic::ConsumeOk::default().consumer_tag(tag));
        answered(&outcome);
        consumer
    }
}

/// One that needs no acknowledgements, so that its deliveries cannot be held back.
fn ask_for_consumer(
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
    let route = Arc::new(Route {
        consumer: Arc::clone(&consumer),
    });
    let outcome = channel.begin(consume.into(), Some(route), soon());
    (consumer, outcome)
}

/// Awaits a good end of a call.
fn answered(outcome: &Receiver<Outcome>) {
    outcome.recv().unwrap().unwrap();
}

#[test]
fn a_consumer_is_not_cancelled_in_place_of_a_former_one_of_its_name() {
    let mut play = Play::begin(settings(1 << 20));
    let channel = play.open_channel();
    let consumer = play.consume(&channel, "me");
    // The broker had cancelled it, which its owner did not know yet when it was dropped.
    let consume = basic::Consume::new("q").consumer_tag("me").no_ack(true);
    let former = ConsumerShared::with_inbox(&consume, Arc::clone(&channel));
    play.shared.send(Command::Discard {
        channel: channel.id,
        consumer: former,
    });
    let outcome = channel.begin(queue::Declare::new("q").into(), None, soon());
    play.peer.expect(queue::Declare::ID);
    play.peer.deliver("me", 1, b"x");
    play.peer.send(1, queue::DeclareOk::default());
    answered(&outcome);
    let Next::Message(content) = consumer.inbox().try_pop() else {
        panic!("its delivery has gone back");
    };
    assert_eq!(content.method.delivery_tag, 1);
    play.shared.send(Command::Disconnect);
    play.thread.join().unwrap();
}

#[test]
fn a_cancel_that_comes_too_late_is_for_no_later_consumer_of_its_name() {
    let mut play = Play::begin(settings(1 << 20));
    let channel = play.open_channel();
    let former = play.consume(&channel, "me");
    // It gets no answer in time, and the program begins again.
    let cancelled = channel.begin_cancel(&former, false, Instant::now());
    play.peer.expect(basic::Cancel::ID);
    let outcome = cancelled.recv().unwrap();
    assert!(matches!(outcome, Err(CallFailure::TimedOut)), "{outcome:?}");
    let (later, started) = ask_for_consumer(&channel, "me");
    let again = channel.begin_cancel(&former, false, soon());
    play.shared.send(Command::Discard {
        channel: channel.id,
        consumer: former,
    });
    play.peer
        .send(1, basic::CancelOk::default().consumer_tag("me"));
    play.peer.expect(basic::Consume::ID);
    play.peer
        .send(1, basic::ConsumeOk::default().consumer_tag("me"));
    answered(&started);
    answered(&again);
    let outcome = channel.begin(queue::Declare::new("q").into(), None, soon());
    play.peer.expect(queue::Declare::ID);
    play.peer.deliver("me", 1, b"x");
    play.peer.send(1, queue::DeclareOk::default());
    answered(&outcome);
    assert_eq!(later.inbox().len(), 1);
    assert!(later.is_alive());
    play.shared.send(Command::Disconnect);
    play.thread.join().unwrap();
}

/// Says what is to be said, without reading.
fn turn(driver: &mut Driver) {
    driver.take_commands(Instant::now());
    driver.dispatch();
    driver.write(Instant::now());
}

/// Reads as before a deadline that seems to be missed.
fn read_until(driver: &mut Driver, is_so: impl Fn() -> bool) {
    let mut events = Events::with_capacity(16);
    let deadline = soon();
    while !is_so() {
        assert!(Instant::now() < deadline, "it never comes");
        driver.catch_up(&mut events);
    }
}

fn open_channel(driver: &mut Driver, peer: &mut Peer) -> Arc<ChannelShared> {
    let (reply, opened) = bounded(1);
    driver.shared.send(Command::OpenChannel(Opener {
        number: None,
        window: 10,
        deadline: soon(),
        reply,
    }));
    turn(driver);
    peer.expect(channel::Open::ID);
    peer.send(1, channel::OpenOk::default());
    read_until(driver, || !opened.is_empty());
    opened.recv().unwrap().unwrap()
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
    answered(&outcome);
    consumer
}

#[test]
fn what_waits_behind_a_commit_goes_out_before_the_io_thread_sleeps() {
    let (mut driver, mut peer) = connected(settings(1 << 20));
    let channel = open_channel(&mut driver, &mut peer);
    let committed = channel.begin(tx::Commit::default().into(), None, soon());
    turn(&mut driver);
    channel
        .connection
        .settle(channel.id, 1, Settle::Ack { multiple: false });
    let declared = channel.begin(queue::Declare::new("q").into(), None, soon());
    turn(&mut driver);
    peer.expect(tx::Commit::ID);
    peer.send(1, tx::CommitOk::default());
    read_until(&mut driver, || !committed.is_empty());
    answered(&committed);
    assert!(driver.is_busy(), "it would wait for something else");
    turn(&mut driver);
    peer.expect(basic::Ack::ID);
    peer.expect(queue::Declare::ID);
    assert!(!driver.is_busy());
    drop(driver);
    assert!(!matches!(declared.recv(), Ok(Ok(_))));
}

/// An IO thread that does not read, because more than the soft limit waits to be taken.
fn paused() -> (Driver, Peer, Arc<ConsumerShared>) {
    const READ_LIMIT: usize = 40_000;
    let (mut driver, mut peer) = connected(settings(READ_LIMIT));
    let consumer = consume(&mut driver, &mut peer, "slow");
    peer.deliver("slow", 1, &[b'x'; READ_LIMIT + 1000]);
    read_until(&mut driver, || consumer.inbox().len() == 1);
    driver.pause_or_resume();
    assert!(driver.read_pauses.is_on());
    (driver, peer, consumer)
}

#[test]
fn a_pause_lasts_for_five_seconds_and_then_all_is_read_that_is_there() {
    let (mut driver, ..) = paused();
    let least = Duration::from_millis(4900);
    let end = |driver: &Driver| driver.breath_due.expect("a pause has an end");
    let until_end = |driver: &Driver| end(driver).saturating_duration_since(Instant::now());
    assert!(until_end(&driver) <= Duration::from_secs(5));
    driver.pause_or_resume();
    assert!(driver.read_pauses.is_on());
    driver.breath_due = Some(Instant::now());
    for readable in [true, true, false] {
        assert_eq!(driver.breath_due.is_some(), driver.read_pauses.is_on());
        driver.readable = readable;
        driver.pause_or_resume();
        assert_eq!(driver.read_pauses.is_on(), !readable);
    }
    assert!(end(&driver) > Instant::now() + least, "another one");
}

#[test]
fn a_turn_that_has_filled_the_room_reads_no_more() {
    const SIZE: usize = 9000;
    let (mut driver, mut peer) = connected(settings(4000));
    let consumer = consume(&mut driver, &mut peer, "busy");
    peer.deliver("busy", 1, &[b'x'; SIZE]);
    let deadline = soon();
    while !matches!(driver.transport.socket().peek(&mut [0; SIZE]), Ok(SIZE)) {
        assert!(Instant::now() < deadline, "it never comes");
        thread::yield_now();
    }
    driver.readable = true;
    // Else a read that has not filled its memory is the last one anyway.
    driver.hung_up = true;
    driver.read();
    assert!(driver.core.is_full());
    assert!(driver.readable, "it has not asked for more");
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
            assert!(Instant::now() < deadline, "it never comes");
            let before = shared.counters.bytes_received.get();
            driver.readable = true;
            // Else a read that has not filled its memory is the last one anyway.
            driver.hung_up = true;
            driver.read();
            driver.dispatch();
            let received = shared.counters.bytes_received.get() - before;
            // The last read may go beyond it.
            assert!(received < (256 + 128) * 1024, "{received} bytes at once");
        }
    });
}

#[test]
fn nobody_has_to_wait_for_reading_to_go_on_while_something_is_to_come_again() {
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
    driver.give_back_held(Instant::now());
    assert!(driver.core.is_expecting());
    peer.deliver("other", 4, &[b'x'; READ_LIMIT + 1000]);
    read_until(&mut driver, || other.inbox().len() == 1);
    driver.pause_or_resume();
    assert!(!driver.read_pauses.is_on());
    // By then another consumer may have it.
    let later = Instant::now() + Duration::from_secs(2);
    driver.core.handle_timeout(later);
    assert!(!driver.core.is_expecting());
    driver.pause_or_resume();
    assert!(driver.read_pauses.is_on());
}

#[test]
fn a_close_lifts_a_pause_that_nothing_else_does() {
    const READ_LIMIT: usize = 40_000;
    let (mut driver, mut peer) = connected(settings(READ_LIMIT));
    let consumer = consume(&mut driver, &mut peer, "slow");
    peer.deliver("slow", 1, &[b'x'; 2 * READ_LIMIT]);
    read_until(&mut driver, || consumer.inbox().len() == 1);
    driver.pause_or_resume();
    assert!(driver.read_pauses.current().is_some(), "for the slow one");
    driver.shared.send(Command::Close {
        code: ReplyCode::REPLY_SUCCESS,
        text: "done".into(),
        deadline: soon(),
    });
    turn(&mut driver);
    driver.pause_or_resume();
    assert!(!driver.read_pauses.is_on());
}

#[test]
fn what_is_read_last_is_bounded_as_everything_is() {
    const READ_LIMIT: usize = 40_000;
    const SIZE: usize = 100_000;
    let (mut driver, mut peer) = connected(settings(READ_LIMIT));
    let consumer = consume(&mut driver, &mut peer, "slow");
    let bytes = delivery("slow", 1, &[b'x'; SIZE]);
    thread::scope(|scope| {
        let socket = &mut peer.socket;
        // In the end nobody takes it.
        scope.spawn(move || (0..40).try_for_each(|_| socket.write_all(&bytes)));
        let deadline = soon();
        while !matches!(driver.transport.socket().peek(&mut [0; 1]), Ok(1)) {
            assert!(Instant::now() < deadline, "it never comes");
        }
        driver.fail_to_write(&io::ErrorKind::BrokenPipe.into());
        driver.dispatch();
        assert!(driver.core.is_closed());
        // The room, and the bytes that the last read may bring beyond that.
        let most = (2 * READ_LIMIT + 128 * 1024) / SIZE;
        assert!(consumer.inbox().len() <= most);
        drop(driver);
    });
}

#[test]
fn what_is_there_is_read_before_a_deadline_counts_as_missed_also_after_a_pause() {
    let (mut driver, mut peer, consumer) = paused();
    let declare = queue::Declare::new("q").into();
    let declared = consumer.channel.begin(declare, None, soon());
    turn(&mut driver);
    peer.expect(queue::Declare::ID);
    peer.send(1, queue::DeclareOk::default());
    read_until(&mut driver, || !declared.is_empty());
    answered(&declared);
}

#[test]
fn nothing_is_read_of_a_peer_that_takes_no_answers() {
    const MAX: usize = 16 << 20;
    let (mut driver, _peer) = connected(settings(1 << 20));
    for (more, is_on) in [(MAX, false), (1, true)] {
        let waiting = driver.untaken.bytes() + more;
        driver.untaken.push(more, waiting);
        driver.pause_or_resume();
        assert_eq!(driver.read_pauses.is_on(), is_on);
    }
    driver.untaken.written(MAX + 1);
    driver.pause_or_resume();
    assert!(!driver.read_pauses.is_on());
}

#[test]
fn the_io_thread_wakes_at_the_end_of_a_pause() {
    let (mut driver, _peer, _consumer) = paused();
    let start = Instant::now();
    driver.breath_due = Some(start + Duration::from_millis(100));
    // Else nothing would wake it.
    driver.shared.set_timer_deadline(Some(start + PATIENCE));
    let mut events = Events::with_capacity(16);
    while driver.breath_due.is_some_and(|due| Instant::now() < due) {
        driver.wait(&mut events).unwrap();
    }
    assert!(Instant::now() < start + PATIENCE);
}

#[test]
fn what_the_broker_said_last_is_read_when_it_takes_nothing_any_more() {
    const READ_LIMIT: usize = 40_000;
    let mut play = Play::begin(settings(READ_LIMIT));
    let channel = play.open_channel();
    let _consumer = play.consume(&channel, "slow");
    // More than may wait, so that nothing is read; but not so much that nothing ever is.
    play.peer.deliver("slow", 1, &[b'x'; READ_LIMIT + 1000]);
    until(|| play.shared.read_budget().is_paused());
    let close = connection::Close::default()
        .reply_code(320)
        .reply_text("going down");
    play.peer.send(0, close);
    play.peer.reset();
    until(|| {
        channel
            .connection
            .settle(channel.id, 1, Settle::Ack { multiple: false });
        play.shared.termination().is_some()
    });
    match play.shared.termination() {
        Some(Termination::Closed(reason)) => assert_eq!(reason.code, ReplyCode::from(320)),
        other => panic!("{other:?}"),
    }
    play.thread.join().unwrap();
}

#[test]
fn the_io_thread_waits_until_the_first_deadline_and_no_longer() {
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
fn what_is_queued_for_a_channel_that_is_gone_takes_no_room() {
    let mut play = Play::begin(settings(1 << 20));
    let channel = play.open_channel();
    play.peer.send(1, channel::Close::default().reply_code(404));
    play.peer.expect(channel::CloseOk::ID);
    for tag in 1..=100 {
        channel
            .connection
            .settle(channel.id, tag, Settle::Ack { multiple: false });
    }
    until(|| play.shared.commands().waiting_bytes() == 0);
    play.shared.send(Command::Disconnect);
    play.thread.join().unwrap();
}
