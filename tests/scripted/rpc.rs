//! Requests and their answers, where a real broker seldom does what is tried here.

use std::thread;
use std::time::Duration;

use cony::{Error, ReplyCode, RpcClient};

use crate::support::peer::methods::*;
use crate::support::peer::{
    CURTAIN, Wire, args, body, close, connected, deliver, header_with, method, signal,
};

/// Accepts what a client does before its first request, on this channel; the consumer's tag.
fn accept_client(wire: &mut Wire, channel: u16) -> String {
    wire.open_channel(channel);
    wire.expect(channel, CONFIRM_SELECT);
    wire.send(channel, CONFIRM_SELECT_OK, args());
    wire.accept_consumer(channel)
}

/// An answer to the request `id`, which is the delivery of the same number.
fn answer(channel: u16, consumer_tag: &str, id: u64, text: &[u8]) -> Vec<u8> {
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

/// However much they are: they count as nobody's, and so stop no reading.
#[test]
fn answers_that_come_too_late_stand_in_nobodys_way() {
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
                wire.raw(&answer(1, &tag, id, &late));
            }
            wire.open_channel(2);
            wire.expect_publish(1);
            wire.raw(&answer(1, &tag, REQUESTS + 1, b"in time"));
        },
        move |connection| {
            let client = RpcClient::new(&connection).unwrap();
            for _ in 0..REQUESTS {
                let error = client.call("q", "?", Duration::ZERO).unwrap_err();
                assert!(error.is_timeout(), "{error}");
            }
            given_up.send(()).unwrap();
            let _second = connection.channel().unwrap();
            let answer = client.call("q", "?", CURTAIN).unwrap();
            assert_eq!(answer.text().unwrap(), "in time");
        },
    );
}

#[test]
fn an_answer_is_taken_whether_its_request_is_confirmed_or_not() {
    connected(
        |parameters| parameters,
        |wire| {
            let tag = accept_client(wire, 1);
            for id in 1..=3 {
                wire.expect_publish(1);
                wire.raw(&answer(1, &tag, id, b"!"));
            }
            wire.send(1, BASIC_ACK, args().u64(3).u8(1));
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            for _ in 0..3 {
                let answer = client.call("q", "?", CURTAIN).unwrap();
                assert_eq!(answer.text().unwrap(), "!");
            }
            // That they were not confirmed is nobody's loss.
            connection.close().unwrap();
        },
    );
}

#[test]
fn each_of_many_requests_learns_at_once_that_it_was_not_taken() {
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
                        let error = client.call("q", "?", CURTAIN).unwrap_err();
                        assert!(matches!(error, Error::Nacked), "{error}");
                    });
                }
            });
            // Who has asked was told.
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_client_whose_channel_has_ended_opens_one_for_all() {
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
            // Whoever has sent its request waits for the answer.
            for _ in 0..CALLERS {
                wire.expect_publish(1);
            }
            for id in 1..=CALLERS {
                wire.raw(&answer(1, &tag, CALLERS + id, b"!"));
            }
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            thread::scope(|scope| {
                for _ in 0..CALLERS {
                    scope.spawn(|| {
                        let error = client.call("q", "?", CURTAIN).unwrap_err();
                        let code = error.reply_code();
                        assert_eq!(code, Some(ReplyCode::PRECONDITION_FAILED), "{error}");
                    });
                }
            });
            thread::scope(|scope| {
                for _ in 0..CALLERS {
                    scope.spawn(|| client.call("q", "?", CURTAIN).unwrap());
                }
            });
            // Everybody knows what has ended the first channel.
            connection.close().unwrap();
        },
    );
}

/// It waits for room while its channel ends.
#[test]
fn a_request_that_was_not_sent_goes_over_another_channel() {
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
            // Reads nothing before that, so that no room comes free.
            wire.expect_publish(2);
            wire.expect(1, CHANNEL_CLOSE_OK);
            let tag = accept_client(wire, 1);
            wire.expect_publish(1);
            wire.raw(&answer(1, &tag, 1, b"!"));
        },
        move |connection| {
            let client = RpcClient::new(&connection).unwrap();
            let other = connection.channel().unwrap();
            other.basic_publish("", "large", vec![0; 32 << 20]).unwrap();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    about_to.send(()).unwrap();
                    client.call("q", "?", CURTAIN)
                });
                publishing.wait();
                // By the time that a signal has gone to the peer and come back, and
                // gone again, the request waits. (If not, the test proves less.)
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
fn a_client_whose_consumer_was_cancelled_opens_another_channel() {
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
            wire.raw(&answer(2, &tag, 1, b"!"));
            wire.serve();
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            while format!("{client:?}").contains("ended: false") {
                thread::yield_now();
            }
            client.call("q", "?", CURTAIN).unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn nothing_is_kept_of_a_request_that_has_got_no_answer() {
    connected(
        |parameters| parameters,
        |wire| {
            accept_client(wire, 1);
            wire.expect_publish(1);
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            client.call("q", "?", Duration::ZERO).unwrap_err();
            let shown = format!("{client:?}");
            assert!(shown.contains("waiting: Some(0)"), "{shown}");
            connection.disconnect();
        },
    );
}

#[test]
fn a_client_that_gets_no_other_channel_says_so_to_all_and_tries_again_later() {
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
            // The request before it has got no further than to its number.
            wire.raw(&answer(1, &tag, 2, b"!"));
        },
        |connection| {
            let client = RpcClient::new(&connection).unwrap();
            while format!("{client:?}").contains("ended: false") {
                thread::yield_now();
            }
            let error = client.call("q", "?", CURTAIN).unwrap_err();
            assert_eq!(error.reply_code(), Some(ReplyCode::ACCESS_REFUSED));
            client.call("q", "?", CURTAIN).unwrap();
        },
    );
}
