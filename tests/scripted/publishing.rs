//! Publishes on the wire: whole, in order, and refused before they are sent if the broker would
//! close the channel or the connection for them.

use std::collections::HashMap;
use std::thread;

use cony::{BasicProperties, BlockingChannel, BlockingConnection, Error, FieldTable, Message};

use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{Frame, Tune, args, play, signal, with_channel};

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
                        // `expect_content` fails if another frame comes between the method
                        // and the end of its content.
                        let body = wire.expect_content(1);
                        let text = String::from_utf8(arguments).unwrap();
                        let thread = text.chars().find(char::is_ascii_digit).unwrap();
                        assert!(body.iter().all(|byte| char::from(*byte) == thread));
                        // The publishes of each thread arrive in its order.
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
            expect_error!(
                channel.queue_declare("q".repeat(256)),
                Error::TooLong { .. }
            );
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
            expect_error!(
                channel.basic_publish("", "q", message),
                Error::TooLong { .. }
            );
            channel.basic_publish("", "q", "x").unwrap();
        },
    );
}

#[test]
fn bodies_are_split_at_the_negotiated_frame_size() {
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
                    panic!("expected a content header");
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
fn a_publish_during_a_commit_is_sent_before_the_next_call() {
    let (committing, begun) = signal();
    let (queued, answer) = signal();
    with_channel(
        move |wire| {
            wire.open_channel(2);
            wire.expect(1, TX_SELECT);
            wire.send(1, TX_SELECT_OK, args());
            wire.expect(1, TX_COMMIT);
            committing.send(()).unwrap();
            // After 100 round trips the rollback is queued behind the commit.
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
fn a_thread_may_publish_from_the_destructor_of_a_thread_local() {
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
