//! Publishes: whole, in order, and refused here where the broker would refuse them
//! harder.

use std::collections::HashMap;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BasicProperties, BlockingChannel, BlockingConnection, Error, FieldTable, Message};

use crate::support::peer::methods::*;
use crate::support::peer::{
    Below, CURTAIN, Frame, Tune, args, body, close, header_with, method, play, play_over, signal,
    with_channel, with_channel_and,
};

#[test]
fn publishes_of_many_threads_on_one_channel_never_interleave() {
    const THREADS: u8 = 8;
    const EACH: usize = 100;
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune {
                frame_max: 4096,
                ..Tune::default()
            });
            wire.open_channel(1);
            let mut next: HashMap<String, usize> = HashMap::new();
            let (mut publishes, mut declares) = (0, 0);
            while publishes < usize::from(THREADS) * EACH || declares < EACH {
                match wire.next() {
                    Frame::Method(1, QUEUE_DECLARE, _) => declares += 1,
                    Frame::Method(1, BASIC_PUBLISH, arguments) => {
                        // Nothing may come between a method and the end of its content,
                        // which is what this asserts.
                        let body = wire.expect_content(1);
                        let text = String::from_utf8(arguments).unwrap();
                        let thread = text.chars().find(char::is_ascii_digit).unwrap();
                        assert!(body.iter().all(|byte| char::from(*byte) == thread));
                        // And each thread's come in its own order.
                        let next = next.entry(thread.to_string()).or_default();
                        assert_eq!(body.len(), size(*next));
                        *next += 1;
                        publishes += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            wire.finish();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            thread::scope(|scope| {
                for thread in 0..THREADS {
                    let channel = &channel;
                    scope.spawn(move || {
                        for number in 0..EACH {
                            let body = vec![b'0' + thread; size(number)];
                            let key = format!("of-{thread}-");
                            channel.basic_publish("", key, body).unwrap();
                        }
                    });
                }
                scope.spawn(|| {
                    for _ in 0..EACH {
                        channel.queue_declare_nowait("between").unwrap();
                    }
                });
            });
        },
    );
}

/// Bodies of none, one and several frames.
#[test]
fn each_of_many_threads_on_a_confirming_channel_learns_what_became_of_its_own() {
    const THREADS: usize = 8;
    const EACH: usize = 400;
    /// How many the peer settles at once, the last one first.
    const BATCH: u64 = 16;
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            let mut asked = Vec::new();
            for number in 1..=(THREADS * EACH) as u64 {
                let (_, body) = wire.expect_publish(1);
                asked.push((number, body));
                if number % BATCH == 0 {
                    for (number, body) in asked.drain(..).rev() {
                        let id = match &body[..] {
                            b"ack" => BASIC_ACK,
                            _ => BASIC_NACK,
                        };
                        wire.send(1, id, args().u64(number).u8(0));
                    }
                }
            }
        },
        |channel| {
            channel.confirm_delivery().unwrap();
            thread::scope(|scope| {
                for thread in 0..THREADS {
                    let channel = &channel;
                    scope.spawn(move || {
                        let is_taken = |number: usize| (number + thread) % 3 > 0;
                        let publish = |number| {
                            let body = if is_taken(number) { "ack" } else { "nack" };
                            channel.basic_publish("", "q", body).unwrap()
                        };
                        let confirms: Vec<_> = (0..EACH).map(publish).collect();
                        assert!(confirms.is_sorted_by_key(|confirm| confirm.number()));
                        for (number, confirm) in confirms.iter().enumerate() {
                            match confirm.wait() {
                                Ok(()) => assert!(is_taken(number)),
                                Err(Error::Nacked) => assert!(!is_taken(number)),
                                Err(other) => panic!("{other}"),
                            }
                        }
                    });
                }
            });
            let outcome = channel.wait_for_confirms(CURTAIN);
            let Err(Error::PublishFailures { failures, more, .. }) = outcome else {
                panic!("{outcome:?}");
            };
            let nacked: usize = (0..THREADS)
                .map(|thread| {
                    (0..EACH)
                        .filter(|number| (number + thread) % 3 == 0)
                        .count()
                })
                .sum();
            assert_eq!(failures.len() as u64 + more, nacked as u64);
        },
    );
}

fn size(number: usize) -> usize {
    (number % 10) * 1100
}

#[test]
fn a_name_of_256_bytes_is_refused_and_nothing_is_sent() {
    with_channel(
        |wire| {
            let (key, _) = wire.expect_publish(1);
            assert_eq!(key.len(), 255);
        },
        |channel| {
            for (exchange, key) in [(1, 256), (256, 1), (256, 256)] {
                let [exchange, key] = [exchange, key].map(|length| "x".repeat(length));
                let error = channel.basic_publish(exchange, key, "x").unwrap_err();
                let Error::TooLong {
                    size: 256,
                    limit: 255,
                    ..
                } = &error
                else {
                    panic!("{error:?}");
                };
                assert!(error.to_string().contains("basic.publish"), "{error}");
            }
            let error = channel.queue_declare("q".repeat(256)).unwrap_err();
            assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
            channel.basic_publish("", "k".repeat(255), "x").unwrap();
        },
    );
}

#[test]
fn properties_that_fit_no_frame_are_refused_and_nothing_is_sent() {
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune {
                frame_max: 4096,
                ..Tune::default()
            });
            wire.open_channel(1);
            wire.expect_publish(1);
            wire.finish();
        },
        |parameters| {
            let channel = BlockingConnection::open(parameters)
                .unwrap()
                .channel()
                .unwrap();
            let fat = FieldTable::from([("fat", "x".repeat(5000))]);
            let fat = BasicProperties::new().headers(fat);
            let message = Message::new("x").properties(&fat);
            let error = channel.basic_publish("", "q", message).unwrap_err();
            assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
            channel.basic_publish("", "q", "x").unwrap();
        },
    );
}

#[test]
fn bodies_are_cut_at_the_negotiated_size() {
    const CHUNK: usize = 4096 - 8;
    play(
        |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune {
                frame_max: 4096,
                ..Tune::default()
            });
            wire.open_channel(1);
            for expected in [
                &[][..],
                &[1],
                &[CHUNK - 1],
                &[CHUNK],
                &[CHUNK, 1],
                &[CHUNK, CHUNK],
                &[CHUNK, CHUNK, 1],
            ] {
                wire.expect(1, BASIC_PUBLISH);
                let Frame::Header(1, header) = wire.next() else {
                    panic!("a header was due");
                };
                let size: usize = expected.iter().sum();
                assert_eq!(header[4..12], (size as u64).to_be_bytes());
                for length in expected {
                    match wire.next() {
                        Frame::Body(1, payload) => assert_eq!(payload.len(), *length),
                        other => panic!("{other:?}"),
                    }
                }
            }
            wire.finish();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1] {
                channel.basic_publish("", "q", vec![0; size]).unwrap();
            }
        },
    );
}

#[test]
fn a_publish_without_room_says_whether_the_broker_blocks() {
    let (done, publishes) = signal();
    with_channel_and(
        |parameters| {
            parameters
                .write_budget(1024)
                .publish_timeout(Duration::from_millis(200))
        },
        move |wire| {
            publishes.wait();
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            publishes.wait();
            let (key, body) = wire.expect_publish(1);
            assert_eq!((&*key, body.len()), ("large", 32 << 20));
            // The two that found no room were never sent.
            let (key, _) = wire.expect_publish(1);
            assert_eq!(key, "at last");
        },
        move |channel| {
            channel
                .basic_publish("", "large", vec![0; 32 << 20])
                .unwrap();
            let error = channel.basic_publish("", "q", "x").unwrap_err();
            let expected = matches!(error, Error::PublishTimeout { blocked: None, .. });
            assert!(expected, "{error:?}");
            assert!(error.to_string().contains("more slowly"), "{error}");
            done.send(()).unwrap();
            while !channel.connection().is_blocked() {
                thread::yield_now();
            }
            let error = channel.basic_publish("", "q", "x").unwrap_err();
            assert!(error.to_string().contains("low on memory"), "{error}");
            assert!(error.is_timeout());
            done.send(()).unwrap();
            while channel.basic_publish("", "at last", "x").is_err() {}
            // What the peer does not take any more must not be waited for.
            channel.connection().close().unwrap();
        },
    );
}

/// Publishes until there is no room; how many were taken, the first of which is `next`.
fn fill(channel: &BlockingChannel, next: usize) -> usize {
    for number in next.. {
        match channel.basic_publish("", "q", numbered(number)) {
            Ok(_) => {}
            Err(Error::PublishTimeout { .. }) => return number - next,
            Err(other) => panic!("{other}"),
        }
    }
    unreachable!("{} publishes were taken", usize::MAX)
}

/// A body that tells its number and nothing else, of many sizes.
fn numbered(number: usize) -> Vec<u8> {
    let byte = u8::try_from(number % 251).unwrap();
    vec![byte; 1000 + number * 7919 % 150_000]
}

#[test]
fn a_peer_that_stalls_again_and_again_gets_every_publish_whole() {
    for &below in Below::ALL {
        stall_again_and_again(below);
    }
}

fn stall_again_and_again(below: Below) {
    const STALLS: usize = 3;
    let (published, counts) = mpsc::channel();
    let (taken, is_taken) = signal();
    play_over(
        below,
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            let mut next = 0;
            for _ in 0..STALLS {
                // Takes nothing until there is no more room.
                let count: usize = counts.recv_timeout(CURTAIN).unwrap();
                assert!(count > 0);
                for number in next..next + count {
                    let (_, body) = wire.expect_publish(1);
                    assert_eq!(body, numbered(number));
                }
                next += count;
                taken.send(()).unwrap();
            }
            wire.finish();
        },
        move |parameters| {
            let parameters = parameters.publish_timeout(Duration::from_millis(300));
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            let mut next = 0;
            for _ in 0..STALLS {
                let count = fill(&channel, next);
                next += count;
                published.send(count).unwrap();
                is_taken.wait();
            }
            connection.close().unwrap();
        },
    );
}

#[test]
fn acks_and_calls_pass_publishers_that_wait_for_room() {
    let (stuck, full) = signal();
    with_channel_and(
        |parameters| parameters.write_budget(1024),
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "x");
            full.wait();
            let mut came = Vec::new();
            for _ in 0..4 {
                came.push(match wire.next() {
                    Frame::Method(1, BASIC_PUBLISH, _) => {
                        wire.expect_content(1);
                        BASIC_PUBLISH
                    }
                    Frame::Method(1, id @ QUEUE_DECLARE, _) => {
                        wire.send(1, QUEUE_DECLARE_OK, crate::support::peer::declare_ok("q"));
                        id
                    }
                    Frame::Method(1, id, _) => id,
                    other => panic!("{other:?}"),
                });
            }
            // Both were queued while the second publish had no room.
            assert_eq!(came[1..3], [BASIC_ACK, QUEUE_DECLARE]);
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            let consumer = channel.consume("q").unwrap();
            let delivery = consumer.next().unwrap().unwrap();
            channel
                .basic_publish("", "large", vec![0; 32 << 20])
                .unwrap();
            thread::scope(|scope| {
                let waits = scope.spawn(|| channel.basic_publish("", "waits", "x"));
                delivery.ack().unwrap();
                let declared = scope.spawn(|| channel.queue_declare("q"));
                stuck.send(()).unwrap();
                declared.join().unwrap().unwrap();
                waits.join().unwrap().unwrap();
            });
            consumer.cancel().unwrap();
        },
    );
}

#[test]
fn a_publish_that_waits_while_a_close_begins_does_not_vanish_behind_it() {
    let (closing, silence) = signal();
    with_channel_and(
        |parameters| parameters.write_budget(1024),
        move |wire| {
            // Reading nothing, so that no room comes free before the close has begun.
            silence.wait_dropped();
            wire.serve();
        },
        move |channel| {
            let connection = channel.connection();
            channel
                .basic_publish("", "large", vec![0; 32 << 20])
                .unwrap();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| channel.basic_publish("", "q", "x"));
                let closes = scope.spawn(|| connection.close());
                while connection.is_open() {
                    thread::yield_now();
                }
                drop(closing);
                let error = waiting.join().unwrap().unwrap_err();
                assert!(matches!(error, Error::ConnectionClosed(_)), "{error:?}");
                closes.join().unwrap().unwrap();
            });
        },
    );
}

#[test]
fn a_publish_that_waits_for_room_ends_with_its_channel() {
    let (about_to, publishing) = signal();
    let (ready, close_it) = signal();
    let (done, silence) = signal();
    with_channel_and(
        |parameters| {
            parameters
                .write_budget(1024)
                .publish_timeout(Duration::from_secs(5))
        },
        move |wire| {
            close_it.wait();
            wire.send(0, CONNECTION_BLOCKED, args().short("to and fro"));
            close_it.wait();
            let text = "NOT_FOUND - no exchange 'nowhere'";
            wire.send(1, CHANNEL_CLOSE, close(404, text, BASIC_PUBLISH));
            // Reading nothing, so that no room comes free.
            silence.wait_dropped();
            wire.serve();
        },
        move |channel| {
            let large = vec![0; 32 << 20];
            channel.basic_publish("nowhere", "large", large).unwrap();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    about_to.send(()).unwrap();
                    channel.basic_publish("nowhere", "q", "x")
                });
                publishing.wait();
                // By the time that a signal has gone to the peer and come back, and
                // gone again, the publish waits. (If not, the test proves less.)
                ready.send(()).unwrap();
                while !channel.connection().is_blocked() {
                    thread::yield_now();
                }
                ready.send(()).unwrap();
                let error = waiting.join().unwrap().unwrap_err();
                assert!(matches!(error, Error::ChannelClosed(_)), "{error:?}");
                drop(done);
            });
        },
    );
}

#[test]
fn what_is_published_behind_a_commit_comes_before_the_call_behind_it() {
    let (committing, begun) = signal();
    let (queued, answer) = signal();
    with_channel(
        move |wire| {
            wire.open_channel(2);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.expect(1, TX_COMMIT);
            committing.send(()).unwrap();
            // So many round trips later the rollback waits for the commit, too.
            for _ in 0..100 {
                wire.accept_declare(2);
            }
            answer.wait();
            wire.send(1, TX_COMMIT_OK, args());
            assert_eq!(wire.expect_publish(1), ("undone".into(), b"x".to_vec()));
            wire.expect(1, TX_ROLLBACK);
            wire.send(1, TX_ROLLBACK_OK, args());
        },
        move |channel| {
            let other = channel.connection().channel().unwrap();
            channel.tx_select().unwrap();
            thread::scope(|scope| {
                let commits = scope.spawn(|| channel.tx_commit());
                begun.wait();
                let undoes = scope.spawn(|| {
                    channel.basic_publish("", "undone", "x").unwrap();
                    channel.tx_rollback()
                });
                for _ in 0..100 {
                    other.queue_declare("between").unwrap();
                }
                queued.send(()).unwrap();
                commits.join().unwrap().unwrap();
                undoes.join().unwrap().unwrap();
            });
        },
    );
}

#[test]
fn what_waits_behind_a_commit_takes_nobody_elses_room_and_is_bounded() {
    const BUDGET: usize = 64 * 1024;
    let (committing, begun) = signal();
    let (taken, is_taken) = signal();
    let (refused, is_refused) = signal();
    with_channel_and(
        |parameters| {
            let parameters = parameters.write_budget(BUDGET);
            parameters.publish_timeout(Duration::from_millis(100))
        },
        move |wire| {
            wire.open_channel(2);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.expect(1, TX_COMMIT);
            committing.send(()).unwrap();
            wire.accept_declare(2);
            assert_eq!(wire.expect_publish(2).0, "other");
            taken.send(()).unwrap();
            is_refused.wait();
            wire.send(1, TX_COMMIT_OK, args());
            for key in ["held", "later"] {
                assert_eq!(wire.expect_publish(1).0, key);
            }
        },
        move |channel| {
            let other = channel.connection().channel().unwrap();
            channel.tx_select().unwrap();
            let body = vec![0; BUDGET - 1000];
            thread::scope(|scope| {
                let commits = scope.spawn(|| channel.tx_commit());
                begun.wait();
                channel.basic_publish("", "held", &body).unwrap();
                // Behind it, so it is held back by now.
                other.queue_declare("between").unwrap();
                other.basic_publish("", "other", &body).unwrap();
                is_taken.wait();
                let error = channel.basic_publish("", "one too many", "x").unwrap_err();
                assert!(matches!(error, Error::PublishTimeout { .. }), "{error}");
                refused.send(()).unwrap();
                commits.join().unwrap().unwrap();
                channel.basic_publish("", "later", "x").unwrap();
            });
        },
    );
}

#[test]
fn a_thread_may_publish_from_what_it_drops_last() {
    use std::cell::RefCell;

    struct Farewell(BlockingChannel);

    impl Drop for Farewell {
        fn drop(&mut self) {
            self.0.basic_publish("", "farewell", "x").unwrap();
        }
    }

    thread_local! {
        static FAREWELL: RefCell<Option<Farewell>> = const { RefCell::new(None) };
    }

    with_channel(
        |wire| {
            assert_eq!(wire.expect_publish(1).0, "hello");
            assert_eq!(wire.expect_publish(1).0, "farewell");
        },
        |channel| {
            let thread = thread::spawn(move || {
                FAREWELL.set(Some(Farewell(channel.clone())));
                channel.basic_publish("", "hello", "x").unwrap();
            });
            thread.join().unwrap();
        },
    );
}

#[test]
fn a_message_that_came_back_as_another_one_leaves_all_unconfirmed_that_it_may_have_been() {
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            for _ in 0..3 {
                wire.expect_publish(1);
            }
            let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
            let mut bytes = method(1, BASIC_RETURN, arguments);
            // The message id is one that nobody has given.
            bytes.extend(header_with(1, 4, &args().u16(1 << 7).short("x").bytes()));
            bytes.extend(body(1, b"text"));
            bytes.extend(method(1, BASIC_ACK, args().u64(3).u8(1)));
            wire.raw(&bytes);
        },
        |channel| {
            channel.confirm_delivery().unwrap();
            let publish = |id: &str| {
                let properties = BasicProperties::new().message_id(id);
                let message = Message::new("text").properties(&properties);
                let message = message.mandatory(!id.is_empty());
                channel.basic_publish("", "q", message).unwrap()
            };
            let [plain, a, b] = ["", "a", "b"].map(publish);
            plain.wait().unwrap();
            for confirm in [&a, &b] {
                let error = confirm.wait().unwrap_err();
                let Error::Unconfirmed(reason) = &error else {
                    panic!("{error:?}");
                };
                let Error::AmbiguousReturn(returned) = &**reason else {
                    panic!("{reason:?}");
                };
                assert_eq!(returned.properties().message_id.as_deref(), Some("x"));
                assert!(error.to_string().contains("NO_ROUTE"), "{error}");
            }
            let Err(Error::PublishFailures {
                failures, more: 0, ..
            }) = channel.wait_for_confirms(CURTAIN)
            else {
                panic!("failures are due");
            };
            let numbers: Vec<_> = failures.iter().map(|failure| failure.number).collect();
            assert_eq!(numbers, [2, 3]);
        },
    );
}
