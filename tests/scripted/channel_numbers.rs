//! When the number of a channel is free for the next channel.

use std::thread;
use std::time::Duration;

use cony::Error;

use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{args, close, connected, declare_ok, signal};

#[test]
fn a_channel_number_is_not_reused_before_close_ok() {
    connected(
        |parameters| parameters,
        move |wire| {
            wire.open_channel(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.open_channel(2);
            wire.expect(2, QUEUE_DECLARE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
            wire.send(2, QUEUE_DECLARE_OK, declare_ok("q"));
        },
        move |connection| {
            let channel = connection.channel().unwrap();
            let first = thread::scope(|scope| {
                let closing = scope.spawn(|| channel.close());
                while channel.is_open() {
                    thread::yield_now();
                }
                let second = connection.channel().unwrap();
                assert_eq!(second.number(), 2);
                // The peer sends the close-ok behind this call. The opening waits for number 1.
                let declaring = scope.spawn(move || second.queue_declare("q").unwrap());
                let first = connection.channel_with_number(1).unwrap();
                assert_eq!(first.number(), 1);
                closing.join().unwrap().unwrap();
                declaring.join().unwrap();
                first
            });
            drop(first);
        },
    );
}

#[test]
fn opening_a_channel_waits_until_close_ok_frees_the_last_number() {
    let (asked, asks) = signal();
    connected(
        |parameters| parameters.channel_max(1),
        move |wire| {
            wire.open_channel(1);
            wire.accept_declare(1);
            wire.expect(1, CHANNEL_CLOSE);
            asks.wait();
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.open_channel(1);
            wire.accept_declare(1);
        },
        move |connection| {
            assert!(connection.queue_exists("queue").unwrap().is_some());
            asked.send(()).unwrap();
            assert!(connection.queue_exists("queue").unwrap().is_some());
        },
    );
}

#[test]
fn an_opening_that_waits_for_the_number_of_a_closing_channel_fails_at_the_deadline() {
    connected(
        |parameters| {
            let short = Duration::from_millis(100);
            parameters
                .channel_max(1)
                .rpc_timeout(short)
                .close_timeout(short)
                .drop_timeout(short)
        },
        |wire| {
            wire.expect(1, CHANNEL_OPEN);
            wire.send(1, CHANNEL_OPEN_OK, args().long(""));
            wire.expect(1, CHANNEL_CLOSE);
            wire.drain();
        },
        |connection| {
            // On a busy machine the first opening may time out. cony then closes the late channel,
            // with the same result.
            drop(connection.channel());
            for error in [
                connection.channel().map(drop).unwrap_err(),
                connection.channel_with_number(1).map(drop).unwrap_err(),
            ] {
                let Error::Timeout {
                    operation: "channel.close before channel.open",
                    channel: Some(1),
                    ..
                } = &error
                else {
                    panic!("{error:?}");
                };
                let text = error.to_string();
                assert!(text.contains("until the broker answers"), "{text}");
            }
            assert!(connection.is_open());
        },
    );
}

#[test]
fn an_opening_that_waits_for_a_number_fails_when_the_connection_is_lost() {
    let (asked, asks) = signal();
    connected(
        |parameters| parameters.channel_max(1),
        move |wire| {
            wire.open_channel(1);
            wire.expect(1, CHANNEL_CLOSE);
            asks.wait();
            wire.shut_down();
        },
        move |connection| {
            drop(connection.channel().unwrap());
            asked.send(()).unwrap();
            expect_error!(connection.channel().map(drop), Error::ConnectionLost(_));
        },
    );
}

#[test]
fn a_close_by_the_broker_frees_the_channel_number() {
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            wire.expect(1, QUEUE_DECLARE);
            wire.send(1, CHANNEL_CLOSE, close(404, "NOT_FOUND", QUEUE_DECLARE));
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
        },
        |connection| {
            let channel = connection.channel().unwrap();
            expect_error!(channel.queue_declare("q"), Error::ChannelClosed(_));
            let again = connection.channel().unwrap();
            assert_eq!((channel.number(), again.number()), (1, 1));
            assert!(channel.is_closed() && again.is_open());
            // The old handle has no effect on the new channel.
            expect_error!(channel.close(), Error::ChannelClosed(_));
            drop(channel);
            assert!(again.is_open());
        },
    );
}
