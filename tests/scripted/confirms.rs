//! Publisher confirms in any order, and returns that match more than one publish.

use std::sync::mpsc;
use std::thread;

use cony::{BasicProperties, Error, Message};

use crate::support::peer::methods::*;
use crate::support::peer::{
    STEP_TIMEOUT, TEST_TIMEOUT, args, body, close, header_with, method, with_channel,
};

#[test]
fn each_of_many_threads_gets_the_confirms_of_its_own_publishes() {
    const THREADS: usize = 8;
    const EACH: usize = 400;
    /// The peer confirms this many publishes at a time, in reverse order.
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
                        assert!(confirms.is_sorted_by_key(|confirm| confirm.sequence_number()));
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
            let outcome = channel.wait_for_confirms(TEST_TIMEOUT);
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

#[test]
fn an_ambiguous_return_leaves_all_possible_publishes_unconfirmed() {
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            for _ in 0..3 {
                wire.expect_publish(1);
            }
            let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
            let mut bytes = method(1, BASIC_RETURN, arguments);
            // No publish has this message id.
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
                let text = error.to_string();
                assert!(text.contains("NO_ROUTE"), "{text}");
                // There may be a single candidate.
                assert!(!text.contains("one of several"), "{text}");
            }
            let Err(Error::PublishFailures {
                failures, more: 0, ..
            }) = channel.wait_for_confirms(TEST_TIMEOUT)
            else {
                panic!("two publishes are unconfirmed");
            };
            let numbers: Vec<_> = failures
                .iter()
                .map(|failure| failure.sequence_number)
                .collect();
            assert_eq!(numbers, [2, 3]);
        },
    );
}

#[test]
fn the_confirm_callback_gets_each_publish_once_in_the_order_of_the_broker() {
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            for _ in 0..8 {
                wire.expect_publish(1);
            }
            wire.send(1, BASIC_ACK, args().u64(3).u8(0));
            wire.send(1, BASIC_NACK, args().u64(2).u8(1));
            wire.send(1, BASIC_ACK, args().u64(5).u8(1));
            // A repeated confirm, and a confirm of an unknown sequence number.
            wire.send(1, BASIC_ACK, args().u64(5).u8(1));
            wire.send(1, BASIC_ACK, args().u64(99).u8(0));
            wire.send(1, CHANNEL_CLOSE, close(404, "gone", (60, 40)));
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            channel.confirm_delivery().unwrap();
            let (note, noted) = mpsc::channel();
            channel.add_on_confirm_callback(move |_, confirmation| {
                note.send(confirmation).unwrap();
                Ok(())
            });
            let confirms: Vec<_> = (0..8)
                .map(|_| channel.basic_publish("", "q", "x").unwrap())
                .collect();
            let connection = channel.connection();
            let mut told = Vec::new();
            while told.len() < 8 {
                connection.process_data_events(STEP_TIMEOUT).unwrap();
                told.extend(noted.try_iter());
            }
            let outcomes: Vec<_> = told
                .iter()
                .map(|it| {
                    (
                        it.sequence_number,
                        match &it.outcome {
                            Ok(()) => "acked",
                            Err(Error::Nacked) => "nacked",
                            Err(Error::Unconfirmed(why)) if why.reply_code() == Some(404) => {
                                "unknown"
                            }
                            Err(other) => panic!("{other}"),
                        },
                    )
                })
                .collect();
            assert_eq!(
                outcomes,
                [
                    (3, "acked"),
                    (1, "nacked"),
                    (2, "nacked"),
                    (4, "acked"),
                    (5, "acked"),
                    (6, "unknown"),
                    (7, "unknown"),
                    (8, "unknown")
                ]
            );
            for confirm in confirms {
                assert!(confirm.has_outcome(), "{confirm:?}");
                assert!(confirm.try_outcome().is_some(), "{confirm:?}");
            }
        },
    );
}
