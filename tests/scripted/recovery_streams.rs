//! Consumers of a stream, which go on behind the last message that the program has taken.

use std::ops::RangeInclusive;
use std::sync::mpsc;
use std::time::{SystemTime, UNIX_EPOCH};

use cony::{BlockingChannel, Consumer, Delivery, RecoveryEvent, basic, queue};

use crate::common::{await_earlier_frames, dispatch_until};
use crate::recovery::{accept, events_of, open, take_events};
use crate::support::peer::methods::*;
use crate::support::peer::{Listener, Wire, args, declare_ok, deliver, header_with, play, signal};

/// The position of a consumer, as its argument has it.
#[derive(Debug, PartialEq)]
enum Start {
    /// No argument.
    Unset,
    Named(String),
    Offset(u64),
    Time(u64),
}

/// Expects a consumer on channel 1 that has at most an offset as argument, and accepts it.
fn accept_consumer(wire: &mut Wire) -> (String, Start) {
    let mut consume = wire.expect(1, BASIC_CONSUME);
    consume.u16();
    consume.short();
    let tag = consume.short();
    consume.u8();
    let start = match consume.u32() {
        0 => Start::Unset,
        _ => {
            assert_eq!(consume.short(), "x-stream-offset");
            match consume.u8() {
                b'S' => Start::Named(String::from_utf8(consume.long()).unwrap()),
                b'l' => Start::Offset(consume.u64()),
                b'T' => Start::Time(consume.u64()),
                kind => panic!("{kind}"),
            }
        }
    };
    wire.send(1, BASIC_CONSUME_OK, args().short(&tag));
    (tag, start)
}

/// Delivers a message of a stream, whose delivery tag is its number in this connection.
fn deliver_from_stream(wire: &mut Wire, consumer_tag: &str, delivery_tag: u64, offset: u64) {
    wire.send(1, BASIC_DELIVER, deliver(consumer_tag, delivery_tag));
    let field = args().short("x-stream-offset").u8(b'l').u64(offset);
    let properties = args().u16(1 << 13).long(field.bytes()).bytes();
    wire.raw(&header_with(1, 0, &properties));
}

/// Declares "q", so that the frames before the reply are read.
fn accept_declare(wire: &mut Wire) {
    wire.expect(1, QUEUE_DECLARE);
    wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
}

/// Accepts the next connection and the calls that declare "q" again, up to the consumer.
fn accept_again(wire: Wire, listener: &Listener) -> Wire {
    drop(wire);
    let mut wire = accept(listener);
    wire.open_channel(1);
    accept_declare(&mut wire);
    wire.expect(1, CHANNEL_CLOSE);
    wire.send(1, CHANNEL_CLOSE_OK, args());
    wire.open_channel(1);
    wire
}

fn offset_of(delivery: &Delivery) -> Option<i64> {
    delivery.header("x-stream-offset")?.as_i64()
}

/// Takes deliveries with these offsets.
fn take(consumer: &Consumer, offsets: impl IntoIterator<Item = i64>) {
    for offset in offsets {
        let delivery = consumer.recv().unwrap().unwrap();
        assert_eq!(offset_of(&delivery), Some(offset));
        delivery.ack().unwrap();
    }
}

/// Starts a consumer, which gets the first three of these offsets and takes `taken` of them. After
/// the loss it starts at `resumed`, and gets the messages from there.
fn go_on(started: basic::Consume, taken: usize, resumed: u64) {
    let (lose, is_lost) = signal();
    let (go_on, may_go_on) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let (tag, _) = accept_consumer(&mut wire);
            for delivery_tag in 1..=3 {
                deliver_from_stream(&mut wire, &tag, delivery_tag, 99 + delivery_tag);
            }
            accept_declare(&mut wire);
            is_lost.wait();
            // Twice: the position is kept over a connection without a delivery.
            let mut wire = accept_again(wire, listener);
            let again = (tag.clone(), Start::Offset(resumed));
            assert_eq!(accept_consumer(&mut wire), again);
            let mut wire = accept_again(wire, listener);
            assert_eq!(accept_consumer(&mut wire), again);
            go_on.send(()).unwrap();
            for delivery_tag in 1..=3 {
                deliver_from_stream(&mut wire, &tag, delivery_tag, resumed + delivery_tag - 1);
            }
            wire.expect_settled(1, BASIC_ACK);
            wire.serve();
        },
        move |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let consumer = channel.consume(started).unwrap();
            await_earlier_frames(&channel);
            take(&consumer, (100..).take(taken));
            lose.send(()).unwrap();
            // The rest of the first three is dropped by then.
            may_go_on.wait();
            take(&consumer, (resumed as i64..).take(3));
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_consumer_goes_on_behind_the_last_message_that_was_taken() {
    go_on(basic::Consume::new("q").stream_offset("first"), 2, 102);
    go_on(basic::Consume::new("q"), 3, 103);
}

#[test]
fn a_consumer_that_has_taken_nothing_goes_on_at_the_first_message_that_arrived() {
    go_on(basic::Consume::new("q").stream_offset("next"), 0, 100);
}

/// Declares "q" and starts a consumer that gets nothing before the loss. Passes on how it is
/// started after the loss, and the seconds between which it was started first.
fn start_after_silence(
    declare: fn() -> queue::Declare,
    begin: fn(basic::Consume) -> basic::Consume,
    check: fn(Start, RangeInclusive<u64>),
) {
    let (note, noted) = mpsc::channel();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            accept_declare(&mut wire);
            accept_consumer(&mut wire);
            let mut wire = accept_again(wire, listener);
            note.send(accept_consumer(&mut wire).1).unwrap();
            wire.serve();
        },
        move |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            channel.queue_declare(declare()).unwrap();
            let before = unix_time();
            let _consumer = channel.consume(begin(basic::Consume::new("q"))).unwrap();
            let after = unix_time();
            check(noted.recv().unwrap(), before..=after);
            connection.close().unwrap();
        },
    );
}

/// Returns the seconds since 1970.
fn unix_time() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.unwrap().as_secs()
}

fn is_ten_seconds_earlier(start: Start, started: RangeInclusive<u64>) {
    let Start::Time(time) = start else {
        panic!("{start:?}");
    };
    assert!(started.contains(&(time + 10)), "{time}, {started:?}");
}

#[test]
fn without_a_message_a_consumer_of_the_next_ones_begins_before_its_first_start() {
    let declare = || queue::Declare::new("q");
    let next = |consume: basic::Consume| consume.stream_offset("next");
    start_after_silence(declare, next, is_ten_seconds_earlier);
    // Without an argument cony has to know that the queue is a stream.
    let stream = || queue::Declare::new_stream("q");
    start_after_silence(stream, |consume| consume, is_ten_seconds_earlier);
}

#[test]
fn without_a_message_other_arguments_stay_as_they_are() {
    let declare = || queue::Declare::new("q");
    let first = |consume: basic::Consume| consume.stream_offset("first");
    start_after_silence(declare, first, |start, _| {
        assert_eq!(start, Start::Named("first".into()));
    });
    start_after_silence(
        declare,
        |consume| consume,
        |start, _| {
            assert_eq!(start, Start::Unset, "the queue may be no stream");
        },
    );
}

#[test]
fn consumers_with_callbacks_go_on_behind_their_own_last_message() {
    let (lose, is_lost) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            let tags = [(); 2].map(|()| accept_consumer(&mut wire).0);
            for (delivery_tag, (tag, offset)) in
                (1..).zip([(0, 10), (1, 20), (0, 11), (1, 21), (1, 22)])
            {
                deliver_from_stream(&mut wire, &tags[tag], delivery_tag, offset);
            }
            is_lost.wait();
            drop(wire);
            let mut wire = accept(listener);
            wire.open_channel(1);
            for (tag, offset) in tags.into_iter().zip([12, 23]) {
                assert_eq!(accept_consumer(&mut wire), (tag, Start::Offset(offset)));
            }
            wire.serve();
        },
        move |parameters| {
            let connection = open(parameters);
            let channel = connection.channel().unwrap();
            let (note, noted) = mpsc::channel();
            for _ in 0..2 {
                let note = note.clone();
                let consume = basic::Consume::new("q").stream_offset("first");
                let callback = move |_: &BlockingChannel, delivery: Delivery| {
                    note.send(offset_of(&delivery).unwrap()).unwrap();
                    delivery.ack()
                };
                channel.basic_consume(consume, callback).unwrap();
            }
            let mut offsets = Vec::new();
            while offsets.len() < 5 {
                // Several callbacks may run in one call.
                offsets.push(dispatch_until(&connection, &noted));
                offsets.extend(noted.try_iter());
            }
            offsets.sort_unstable();
            assert_eq!(offsets, [10, 11, 20, 21, 22]);
            let recoveries = events_of(&connection);
            lose.send(()).unwrap();
            let events = take_events(&connection, &recoveries);
            assert!(
                matches!(
                    events,
                    [RecoveryEvent::Lost(_), RecoveryEvent::Recovered(_)]
                ),
                "{events:?}"
            );
            connection.close().unwrap();
        },
    );
}
