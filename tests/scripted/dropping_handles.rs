//! Dropping the last handle of a channel or connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::open_when_free;
use crate::support::peer::methods::*;
use crate::support::peer::{
    args, body, connected, declare_ok, get_ok, header, signal, with_channel,
};

#[test]
fn dropping_the_last_handle_of_a_channel_closes_the_channel() {
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            let tag = wire.accept_consumer(1);
            // Both channel handles are dropped, but the consumer keeps the channel open.
            wire.accept_declare(1);
            assert_eq!(wire.expect_cancel(1), tag);
            assert_eq!(wire.expect(1, CHANNEL_CLOSE).u16(), 200);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
        },
        |connection| {
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            drop(channel.clone());
            drop(channel);
            consumer.channel().queue_declare("q").unwrap();
            drop(consumer);
            // The number is free after close-ok.
            open_when_free(&connection, 1);
        },
    );
}

#[test]
fn dropping_the_last_handle_of_a_channel_frees_its_undispatched_returns() {
    // All channels together keep 64 MiB of undispatched returns.
    const SIZE: usize = 30 << 20;
    const ROUNDS: usize = 3;
    connected(
        |parameters| parameters,
        |wire| {
            let large = vec![b'x'; SIZE];
            for _ in 0..ROUNDS {
                wire.open_channel(1);
                wire.expect(1, BASIC_GET);
                wire.send_content(1, BASIC_GET_OK, get_ok(1), "x");
                wire.expect(1, QUEUE_DECLARE);
                let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
                wire.send(1, BASIC_RETURN, arguments);
                wire.raw(&header(1, SIZE as u64));
                for chunk in large.chunks(100_000) {
                    wire.raw(&body(1, chunk));
                }
                wire.send(1, QUEUE_DECLARE_OK, declare_ok("q"));
                wire.expect(1, CHANNEL_CLOSE);
                wire.send(1, CHANNEL_CLOSE_OK, args());
            }
        },
        |connection| {
            let mut held = Vec::new();
            for round in 1..=ROUNDS {
                let channel = open_when_free(&connection, 1);
                // This delivery keeps the channel's state alive.
                held.push(channel.basic_get("q").unwrap().unwrap());
                channel.queue_declare("q").unwrap();
                if round == ROUNDS {
                    let returned = channel
                        .try_next_return()
                        .expect("the dropped channels have freed their returns");
                    assert_eq!(returned.body().len(), SIZE);
                }
            }
        },
    );
}

#[test]
fn dropping_the_last_handle_of_a_connection_waits_for_close_ok_after_the_last_publish() {
    let dropped = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&dropped);
    with_channel(
        move |wire| {
            for number in 0..100 {
                let (_, body) = wire.expect_publish(1);
                assert_eq!(body, format!("message {number}").into_bytes());
            }
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.expect(0, CONNECTION_CLOSE);
            assert!(
                !dropped.load(Ordering::SeqCst),
                "the drop returned before close-ok"
            );
            wire.send(0, CONNECTION_CLOSE_OK, args());
            wire.expect_end();
        },
        move |channel| {
            for number in 0..100 {
                let body = format!("message {number}");
                channel.basic_publish("", "q", body).unwrap();
            }
            drop(channel);
            seen.store(true, Ordering::SeqCst);
        },
    );
}

#[test]
fn dropping_a_connection_takes_at_most_the_drop_timeout() {
    let (gone, silence) = signal();
    connected(
        |parameters| {
            parameters
                .drop_timeout(Duration::from_millis(200))
                // The time that the close may take in the background.
                .close_timeout(Duration::from_millis(400))
        },
        move |wire| {
            silence.wait_dropped();
            wire.expect(0, CONNECTION_CLOSE);
            wire.expect_end();
        },
        move |connection| {
            drop(connection);
            drop(gone);
        },
    );
}

#[test]
fn dropping_a_blocked_connection_does_not_wait() {
    let (gone, silence) = signal();
    with_channel(
        move |wire| {
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            silence.wait_dropped();
        },
        move |channel| {
            let connection = channel.connection();
            while !connection.is_blocked() {
                thread::yield_now();
            }
            assert_eq!(connection.blocked_reason().unwrap(), "low on memory");
            // A drop that waited would take drop_timeout, the whole time of the test.
            drop(connection);
            drop(channel);
            drop(gone);
        },
    );
}
