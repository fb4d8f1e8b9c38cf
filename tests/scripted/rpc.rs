//! `RpcClient`: late replies, nacks, and channels that close.

use std::thread;
use std::time::Duration;

use cony::{Error, RpcClient};

use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    TEST_TIMEOUT, Wire, args, body, close, connected, deliver, header_with, method, signal,
};

/// Accepts the calls of a new `RpcClient` on this channel, and returns the consumer tag.
fn accept_client(wire: &mut Wire, channel: u16) -> String {
    wire.open_channel(channel);
    wire.expect(channel, CONFIRM_SELECT);
    wire.send(channel, CONFIRM_SELECT_OK, args());
    wire.accept_consumer(channel)
}

/// Encodes a reply to the request `id`, with `id` as its delivery tag.
fn reply(channel: u16, consumer_tag: &str, id: u64, text: &[u8]) -> Vec<u8> {
    let mut bytes = method(channel, BASIC_DELIVER, deliver(consumer_tag, id));
    let correlation_id = args().u16(1 << 10).short(id.to_string());
    bytes.extend(header_with(
        channel,
        text.len() as u64,
        &correlation_id.bytes(),
    ));
    if !text.is_empty() {
        bytes.extend(body(channel, text));
    }
    bytes
}

/// Replies that no caller waits for are dropped, so they never cause a reading pause.
#[test]
fn late_replies_do_not_count_against_the_read_budget() {
    const REQUESTS: u64 = 10;
    let (given_up, all_gave_up) = signal();
    connected(
        |parameters| parameters.read_budget(64 * 1024),
        move |wire| {
            let tag = accept_client(wire, 1);
            for _ in 0..REQUESTS {
                wire.expect_publish(1);
            }
            all_gave_up.wait();
            let late = vec![b'x'; 100_000];
            for id in 1..=REQUESTS {
                wire.raw(&reply(1, &tag, id, &late));
            }
            wire.open_channel(2);
            wire.expect_publish(1);
            wire.raw(&reply(1, &tag, REQUESTS + 1, b"in time"));
        },
        move |connection| {
            let client = RpcClient::new(&connection).unwrap();
            for _ in 0..REQUESTS {
                let error = client.call("q", "?", Duration::ZERO).unwrap_err();
                assert!(error.is_timeout(), "{error}");
            }
            given_up.send(()).unwrap();
            let _second = connection.channel().unwrap();
            let reply = client.call("q", "?", TEST_TIMEOUT).unwrap();
            assert_eq!(reply.text().unwrap(), "in time");
        },
    );
}

#[test]
fn a_reply_is_returned_without_a_confirm_of_its_request() {
    connected(
        |parameters| parameters,
        |wire| {
            let tag = accept_client(wire, 1);
            for id in 1..=3 {
                wire.expect_publish(1);
                wire.raw(&reply(1, &tag, id, b"!"));
            }
            wire.send(1, BASIC_ACK, args().u64(3).u8(1));
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            for _ in 0..3 {
                let reply = client.call("q", "?", TEST_TIMEOUT).unwrap();
                assert_eq!(reply.text().unwrap(), "!");
            }
            // The unconfirmed requests have their replies, so close returns no error.
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_nack_fails_each_of_many_waiting_requests_at_once() {
    const REQUESTS: usize = 20;
    connected(
        |parameters| parameters,
        |wire| {
            accept_client(wire, 1);
            for _ in 0..REQUESTS {
                wire.expect_publish(1);
            }
            wire.send(1, BASIC_NACK, args().u64(REQUESTS as u64).u8(1));
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            thread::scope(|scope| {
                for _ in 0..REQUESTS {
                    scope.spawn(|| {
                        expect_error!(client.call("q", "?", TEST_TIMEOUT), Error::Nacked);
                    });
                }
            });
            // Each caller has its error, so close returns none.
            connection.close().unwrap();
        },
    );
}

#[test]
fn after_a_channel_close_the_client_opens_one_channel_for_all_callers() {
    const CALLERS: u64 = 8;
    connected(
        |parameters| parameters,
        |wire| {
            accept_client(wire, 1);
            for _ in 0..CALLERS {
                wire.expect_publish(1);
            }
            let text = "PRECONDITION_FAILED - user_id";
            wire.send(1, CHANNEL_CLOSE, close(406, text, BASIC_PUBLISH));
            wire.expect(1, CHANNEL_CLOSE_OK);
            let tag = accept_client(wire, 1);
            // All callers wait for a reply.
            for _ in 0..CALLERS {
                wire.expect_publish(1);
            }
            for id in 1..=CALLERS {
                wire.raw(&reply(1, &tag, CALLERS + id, b"!"));
            }
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            thread::scope(|scope| {
                for _ in 0..CALLERS {
                    scope.spawn(|| {
                        let error = client.call("q", "?", TEST_TIMEOUT).unwrap_err();
                        let code = error.reply_code();
                        assert_eq!(code, Some(406), "{error}");
                    });
                }
            });
            thread::scope(|scope| {
                for _ in 0..CALLERS {
                    scope.spawn(|| client.call("q", "?", TEST_TIMEOUT).unwrap());
                }
            });
            // All callers have the error of the first channel, so close returns none.
            connection.close().unwrap();
        },
    );
}

/// The request waits for room in the write budget while its channel closes.
#[test]
fn a_request_that_waits_for_room_moves_to_a_new_channel() {
    let (about_to, publishing) = signal();
    let (ready, close_it) = signal();
    connected(
        |parameters| parameters.write_budget(1024),
        move |wire| {
            accept_client(wire, 1);
            wire.open_channel(2);
            close_it.wait();
            wire.send(0, CONNECTION_BLOCKED, args().short("to and fro"));
            close_it.wait();
            wire.send(1, CHANNEL_CLOSE, close(406, "gone", BASIC_PUBLISH));
            // The peer reads nothing before this, so that no room becomes free.
            wire.expect_publish(2);
            wire.expect(1, CHANNEL_CLOSE_OK);
            let tag = accept_client(wire, 1);
            wire.expect_publish(1);
            wire.raw(&reply(1, &tag, 1, b"!"));
        },
        move |connection| {
            let client = RpcClient::new(&connection).unwrap();
            let other = connection.channel().unwrap();
            other.basic_publish("", "large", vec![0; 32 << 20]).unwrap();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    about_to.send(()).unwrap();
                    client.call("q", "?", TEST_TIMEOUT)
                });
                publishing.wait();
                // After a round trip to the peer the request probably waits. If it does not, the
                // test passes without checking the wait.
                ready.send(()).unwrap();
                while !connection.is_blocked() {
                    thread::yield_now();
                }
                ready.send(()).unwrap();
                assert_eq!(waiting.join().unwrap().unwrap().text().unwrap(), "!");
            });
        },
    );
}

#[test]
fn a_client_whose_consumer_is_cancelled_opens_another_channel() {
    connected(
        |parameters| parameters,
        |wire| {
            let tag = accept_client(wire, 1);
            wire.send(1, BASIC_CANCEL, args().short(&tag).u8(1));
            wire.expect(1, BASIC_CANCEL);
            wire.expect(1, CHANNEL_CLOSE);
            let tag = accept_client(wire, 2);
            wire.send(1, CHANNEL_CLOSE_OK, args());
            wire.expect_publish(2);
            wire.raw(&reply(2, &tag, 1, b"!"));
            wire.serve();
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            while format!("{client:?}").contains("ended: false") {
                thread::yield_now();
            }
            let _ = client.call("q", "?", TEST_TIMEOUT).unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_request_that_timed_out_leaves_nothing_behind() {
    connected(
        |parameters| parameters,
        |wire| {
            accept_client(wire, 1);
            wire.expect_publish(1);
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            expect_error!(client.call("q", "?", Duration::ZERO), Error::Timeout { .. });
            let shown = format!("{client:?}");
            assert!(shown.contains("waiting: Some(0)"), "{shown}");
            connection.disconnect();
        },
    );
}

#[test]
fn a_client_that_cannot_open_a_channel_fails_its_calls_and_retries_later() {
    connected(
        |parameters| parameters,
        |wire| {
            accept_client(wire, 1);
            wire.send(1, CHANNEL_CLOSE, close(406, "gone", BASIC_PUBLISH));
            wire.expect(1, CHANNEL_CLOSE_OK);
            wire.open_channel(1);
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CHANNEL_CLOSE, close(403, "not now", CONFIRM_SELECT));
            wire.expect(1, CHANNEL_CLOSE_OK);
            let tag = accept_client(wire, 1);
            wire.expect_publish(1);
            // The failed request has used number 1 and was not sent.
            wire.raw(&reply(1, &tag, 2, b"!"));
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            while format!("{client:?}").contains("ended: false") {
                thread::yield_now();
            }
            let error = client.call("q", "?", TEST_TIMEOUT).unwrap_err();
            assert_eq!(error.reply_code(), Some(403));
            let _ = client.call("q", "?", TEST_TIMEOUT).unwrap();
        },
    );
}
