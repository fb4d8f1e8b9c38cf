//! Failures that no call has reported yet: `close` returns them, and a drop logs them.

use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, Error, PublisherConfirm};

use crate::common::open_when_free;
use crate::support::expect_error;
use crate::support::log::TestLog;
use crate::support::peer::methods::*;
use crate::support::peer::{
    TEST_TIMEOUT, args, close, connected, signal, with_channel, with_channel_and,
};

#[test]
fn an_unreported_close_reason_of_a_channel_is_logged() {
    TestLog::install();
    connected(
        |parameters| parameters,
        |wire| {
            wire.open_channel(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE, close(404, "unheard 1", BASIC_PUBLISH));
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
            wire.send(1, CHANNEL_CLOSE, close(404, "unheard 2", BASIC_PUBLISH));
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
            wire.expect(1, CHANNEL_CLOSE);
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(1, CHANNEL_CLOSE, close(404, "unheard 3", BASIC_PUBLISH));
            wire.send(0, CONNECTION_CLOSE_OK, args());
            wire.expect_end();
        },
        |connection| {
            let open = || open_when_free(&connection, 1);
            drop(open());
            let second = open();
            assert_eq!(TestLog::count("unheard 1"), 1);
            // The number becomes free when the second channel ends. No call has returned its error.
            let third = open();
            drop(second);
            assert_eq!(TestLog::count("unheard 2"), 1);
            drop(third);
            connection.close().unwrap();
            assert_eq!(TestLog::count("unheard 3"), 1);
        },
    );
}

#[test]
fn a_close_by_the_broker_that_crosses_the_last_drop_is_logged() {
    TestLog::install();
    with_channel(
        |wire| {
            wire.expect(1, CHANNEL_CLOSE);
            wire.expect(0, CONNECTION_CLOSE);
            wire.send(0, CONNECTION_CLOSE, close(540, "unheard 4", BASIC_PUBLISH));
            wire.expect(0, CONNECTION_CLOSE_OK);
            wire.expect_end();
        },
        |channel| {
            drop(channel);
            assert_eq!(TestLog::count("unheard 4"), 1);
        },
    );
}

/// With and without confirm mode; the channel closes before the close of the connection, while that
/// close waits for confirms, or after connection.close was sent.
#[test]
fn closing_a_connection_reports_an_unreported_channel_close() {
    #[derive(Clone, Copy, PartialEq)]
    enum When {
        Before,
        Waiting,
        Behind,
    }
    for (when, confirms) in [
        (When::Before, false),
        (When::Before, true),
        (When::Waiting, true),
        (When::Behind, false),
    ] {
        let (go_on, may_go) = signal();
        with_channel(
            move |wire| {
                if confirms {
                    wire.expect(1, CONFIRM_SELECT);
                    wire.send(1, CONFIRM_SELECT_OK, args());
                }
                wire.expect_publish(1);
                match when {
                    When::Before => {}
                    When::Waiting => may_go.wait(),
                    When::Behind => drop(wire.expect(0, CONNECTION_CLOSE)),
                }
                wire.send(1, CHANNEL_CLOSE, close(404, "NOT_FOUND", BASIC_PUBLISH));
                if when == When::Behind {
                    return wire.send(0, CONNECTION_CLOSE_OK, args());
                }
                wire.expect(1, CHANNEL_CLOSE_OK);
                if when == When::Before {
                    // The client opens channel 1 again as soon as the close has arrived.
                    wire.open_channel(1);
                }
            },
            move |channel| {
                let connection = channel.connection();
                if confirms {
                    channel.confirm_delivery().unwrap();
                }
                channel.basic_publish("nowhere", "q", "lost").unwrap();
                let mut second = None;
                while when == When::Before && second.is_none() {
                    second = connection.channel_with_number(1).ok();
                }
                let error = thread::scope(|scope| {
                    let closing = scope.spawn(|| connection.close());
                    if when == When::Waiting {
                        go_on.send(()).unwrap();
                    }
                    closing.join().unwrap().unwrap_err()
                });
                assert!(matches!(error, Error::ChannelClosed(_)), "{error:?}");
                assert_eq!(error.reply_code(), Some(404));
                // The second close does not report the error again.
                connection.close().unwrap();
            },
        );
    }
}

#[test]
fn closing_a_connection_does_not_report_a_channel_close_twice() {
    with_channel(
        |wire| {
            wire.expect(1, QUEUE_DECLARE);
            wire.send(1, CHANNEL_CLOSE, close(404, "NOT_FOUND", QUEUE_DECLARE));
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            expect_error!(channel.queue_declare("q"), Error::ChannelClosed(_));
            channel.connection().close().unwrap();
        },
    );
}

/// Looks at some outcomes of a client with two channels. On each channel the first of two publishes
/// is nacked.
type Inspect = fn(&[BlockingChannel; 2], &[PublisherConfirm]);

#[test]
fn closing_a_connection_reports_the_unreported_publish_failures() {
    let nothing: Inspect = |_, _| {};
    let one_confirm: Inspect = |_, confirms| drop(confirms[0].wait());
    let all_confirms: Inspect = |_, confirms| confirms.iter().for_each(|it| drop(it.wait()));
    let both_channels: Inspect = |channels, _| {
        for channel in channels {
            expect_error!(
                channel.wait_for_confirms(TEST_TIMEOUT),
                Error::PublishFailures { .. }
            );
        }
    };
    let close_one: Inspect = |channels, _| match channels[0].close() {
        Err(Error::PublishFailures {
            failures, more: 0, ..
        }) => assert_eq!(failures.len(), 1),
        other => panic!("{other:?}"),
    };
    let cases: [(Inspect, &[u16]); 5] = [
        (nothing, &[1, 2]),
        (one_confirm, &[2]),
        (all_confirms, &[]),
        (both_channels, &[]),
        (close_one, &[2]),
    ];
    for (inspect, unreported) in cases {
        two_channels_with_failures(
            |_| {},
            move |connection, channels, confirms| {
                inspect(&channels, &confirms);
                match connection.close() {
                    Ok(()) => assert!(unreported.is_empty()),
                    Err(Error::PublishFailures {
                        failures, more: 0, ..
                    }) => {
                        let reported: Vec<_> = failures
                            .iter()
                            .map(|it| (it.channel, it.sequence_number))
                            .collect();
                        let unreported: Vec<_> =
                            unreported.iter().map(|channel| (*channel, 1)).collect();
                        assert_eq!(reported, unreported);
                    }
                    Err(error) => panic!("{error:?}"),
                }
                connection.close().unwrap();
                for channel in channels {
                    channel.close().unwrap();
                }
                // A confirm keeps its outcome.
                expect_error!(confirms[0].wait(), Error::Nacked);
            },
        );
    }
}

#[test]
fn closing_does_not_report_failures_that_a_callback_received() {
    let listen = |channel: &BlockingChannel| channel.add_on_confirm_callback(|_, _| Ok(()));
    two_channels_with_failures(listen, |connection, channels, confirms| {
        drop(confirms);
        channels[0].close().unwrap();
        connection.close().unwrap();
    });
}

#[test]
fn dropping_a_channel_logs_the_unreported_publish_failures() {
    TestLog::install();
    const WORDS: &str = "publish failures that no call has reported: 1";
    two_channels_with_failures(
        |_| {},
        |_, channels, confirms| {
            let before = TestLog::count(WORDS);
            expect_error!(confirms[0].wait(), Error::Nacked);
            let [first, second] = channels;
            drop(first);
            assert_eq!(TestLog::count(WORDS), before);
            confirms[3].wait().unwrap();
            drop(second);
            assert_eq!(TestLog::count(WORDS), before + 1);
        },
    );
}

fn two_channels_with_failures(
    prepare: fn(&BlockingChannel),
    client: impl FnOnce(BlockingConnection, [BlockingChannel; 2], Vec<PublisherConfirm>)
    + Send
    + 'static,
) {
    connected(
        |parameters| parameters,
        |wire| {
            for channel in [1, 2] {
                wire.open_channel(channel);
                wire.expect(channel, CONFIRM_SELECT);
                wire.send(channel, CONFIRM_SELECT_OK, args());
                wire.expect_publish(channel);
                wire.expect_publish(channel);
                wire.send(channel, BASIC_NACK, args().u64(1).u8(0));
                wire.send(channel, BASIC_ACK, args().u64(2).u8(0));
            }
        },
        move |connection| {
            let mut confirms = Vec::new();
            let channels = [(); 2].map(|()| {
                let channel = connection.channel().unwrap();
                prepare(&channel);
                channel.confirm_delivery().unwrap();
                for _ in 0..2 {
                    confirms.push(channel.basic_publish("", "q", "x").unwrap());
                }
                channel
            });
            client(connection, channels, confirms);
        },
    );
}

/// The peer answers the close at once, but never sends the confirm.
#[test]
fn a_close_with_unconfirmed_publishes_fails_with_unconfirmed_and_still_closes() {
    for of_connection in [false, true] {
        with_channel_and(
            |parameters| parameters.close_timeout(Duration::from_secs(2)),
            move |wire| {
                wire.expect(1, CONFIRM_SELECT);
                wire.send(1, CONFIRM_SELECT_OK, args());
                wire.expect_publish(1);
            },
            move |channel| {
                channel.confirm_delivery().unwrap();
                let confirm = channel.basic_publish("", "q", "x").unwrap();
                let connection = channel.connection();
                let outcome = match of_connection {
                    true => connection.close(),
                    false => channel.close(),
                };
                let error = outcome.unwrap_err();
                let Error::Unconfirmed(reason) = &error else {
                    panic!("{error:?}");
                };
                assert!(matches!(
                    **reason,
                    Error::Timeout {
                        channel: Some(1),
                        ..
                    }
                ));
                let text = error.to_string();
                assert!(text.contains("the outcome of the publish is unknown"));
                assert!(text.contains("close_timeout"), "{text}");
                expect_error!(confirm.wait(), Error::Unconfirmed(_));
                channel.close().unwrap();
                connection.close().unwrap();
            },
        );
    }
}
