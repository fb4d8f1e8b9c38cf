//! Dispatches that a callback interrupts by an error, a panic or a nested dispatch: the rest is
//! dispatched later.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, Delivery, Error, Message, basic};

use crate::support::peer::methods::*;
use crate::support::peer::{
    STEP_TIMEOUT, Wire, args, body, deliver, header, method, signal, with_channel,
};
use crate::support::{expect_error, panic_text};

/// Returns a message as unroutable.
fn send_back(wire: &mut Wire, text: &str) {
    let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
    wire.send_content(1, (60, 50), arguments, text);
}

/// Sends two deliveries in one write.
fn deliver_two(wire: &mut Wire) {
    let tag = wire.accept_consumer(1);
    let mut bytes = Vec::new();
    for number in 1..=2 {
        bytes.extend(method(1, BASIC_DELIVER, deliver(&tag, number)));
        bytes.extend(header(1, 1));
        bytes.extend(body(1, b"x"));
    }
    wire.raw(&bytes);
    for number in 1..=2 {
        assert_eq!(wire.expect_settled(1, BASIC_ACK), (number, 0));
    }
}

#[test]
fn after_a_panic_of_a_callback_the_next_dispatch_gets_the_other_deliveries() {
    with_channel(deliver_two, |channel| {
        let (note, noted) = mpsc::channel();
        channel
            .basic_consume("q", move |_, delivery| {
                delivery.ack()?;
                note.send(delivery.delivery_tag).unwrap();
                assert_ne!(delivery.delivery_tag, 1, "as a callback may panic");
                Ok(())
            })
            .unwrap();
        let connection = channel.connection();
        let first = catch_unwind(AssertUnwindSafe(|| {
            connection.process_data_events(STEP_TIMEOUT)
        }));
        assert!(panic_text(first).contains("as a callback may panic"));
        connection.process_data_events(STEP_TIMEOUT).unwrap();
        assert_eq!(noted.try_iter().collect::<Vec<_>>(), [1, 2]);
    });
}

#[test]
fn after_an_error_of_a_callback_the_next_dispatch_gets_the_other_returns() {
    with_channel(
        |wire| {
            for text in ["one", "two", "three"] {
                wire.expect_publish(1);
                send_back(wire, text);
            }
        },
        |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_return_callback(move |_, returned| {
                note.send(returned.body().clone()).unwrap();
                Err(Error::other("as a callback may fail"))
            });
            for _ in 0..3 {
                channel
                    .basic_publish("", "q", Message::new("x").mandatory(true))
                    .unwrap();
            }
            let connection = channel.connection();
            while connection.stats().messages_returned < 3 {
                connection.ready().recv_timeout(STEP_TIMEOUT).unwrap();
            }
            for text in ["one", "two", "three"] {
                expect_error!(
                    connection.process_data_events(STEP_TIMEOUT),
                    Error::Other(_)
                );
                assert_eq!(noted.try_recv().unwrap(), text);
                if text != "three" {
                    connection.ready().recv_timeout(STEP_TIMEOUT).unwrap();
                }
            }
        },
    );
}

#[test]
fn after_an_error_of_a_callback_the_next_dispatch_gets_the_other_confirms() {
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            for _ in 0..3 {
                wire.expect_publish(1);
            }
            wire.send(1, BASIC_ACK, args().u64(3).u8(1));
        },
        |channel| {
            channel.confirm_delivery().unwrap();
            let (note, noted) = mpsc::channel();
            channel.add_on_confirm_callback(move |_, confirmation| {
                note.send(confirmation.sequence_number).unwrap();
                match confirmation.sequence_number {
                    1 => Err(Error::other("as a callback may fail")),
                    2 => panic!("as a callback may panic"),
                    _ => Ok(()),
                }
            });
            for _ in 0..3 {
                channel.basic_publish("", "q", "x").unwrap();
            }
            let connection = channel.connection();
            expect_error!(
                connection.process_data_events(STEP_TIMEOUT),
                Error::Other(_)
            );
            let panics = || connection.process_data_events(STEP_TIMEOUT);
            let second = catch_unwind(AssertUnwindSafe(panics));
            assert_eq!(panic_text(second), "as a callback may panic");
            connection.process_data_events(STEP_TIMEOUT).unwrap();
            assert_eq!(noted.try_iter().collect::<Vec<_>>(), [1, 2, 3]);
        },
    );
}

#[test]
fn a_nested_dispatch_leaves_the_events_of_the_channel_to_the_outer_dispatch() {
    let (inside, is_inside) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer(1);
            wire.deliver(1, &tag, 1, "x");
            is_inside.wait();
            send_back(wire, "back");
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
        },
        move |channel| {
            let connection = channel.connection();
            let (note, noted) = mpsc::channel();
            let blocked = note.clone();
            connection.add_on_blocked_callback(move |_, _| {
                blocked.send("blocked").unwrap();
                Ok(())
            });
            let returned = note.clone();
            channel.add_on_return_callback(move |_, _| {
                returned.send("returned").unwrap();
                Ok(())
            });
            let consume = basic::Consume::new("q").no_ack(true);
            channel
                .basic_consume(consume, move |channel, _| {
                    inside.send(()).unwrap();
                    // The outer dispatch holds the channel, so the nested dispatch runs only
                    // callbacks of the connection.
                    channel.connection().process_data_events(STEP_TIMEOUT)?;
                    note.send("delivered").unwrap();
                    Ok(())
                })
                .unwrap();
            connection.process_data_events(STEP_TIMEOUT).unwrap();
            connection.process_data_events(STEP_TIMEOUT).unwrap();
            let told: Vec<_> = noted.try_iter().collect();
            assert_eq!(told, ["blocked", "delivered", "returned"]);
        },
    );
}

#[test]
fn start_consuming_sees_events_that_arrive_during_a_nested_dispatch() {
    let (inside, is_inside) = signal();
    with_channel(
        move |wire| {
            let tag = wire.accept_consumer(1);
            is_inside.wait();
            wire.send(0, CONNECTION_BLOCKED, args().short("low on memory"));
            wire.accept_cancel(1, &tag);
        },
        move |channel| {
            let connection = channel.connection();
            channel.basic_consume("q", |_, _| Ok(())).unwrap();
            let stop = channel.clone();
            connection.add_on_blocked_callback(move |_, _| {
                stop.stop_consuming()?;
                Ok(())
            });
            connection.add_timeout(Duration::ZERO, move |connection| {
                inside.send(()).unwrap();
                while !connection.is_blocked() {
                    connection.sleep(Duration::from_millis(1))?;
                }
                // The signal was given for the block, but this nested dispatch in a timer does
                // not run the blocked callback.
                connection.sleep(Duration::from_millis(1))
            });
            channel.start_consuming().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn run_stops_although_confirms_keep_arriving() {
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            let mut number = 0;
            while number < 3 {
                wire.expect_publish(1);
                number += 1;
                wire.send(1, BASIC_ACK, args().u64(number).u8(0));
            }
        },
        |channel| {
            channel.confirm_delivery().unwrap();
            let (note, noted) = mpsc::channel();
            channel.add_on_confirm_callback(move |channel, confirmation| {
                note.send(confirmation.sequence_number).unwrap();
                channel.connection().stop();
                Ok(())
            });
            for _ in 0..3 {
                channel.basic_publish("", "q", "x").unwrap();
            }
            channel.wait_for_confirms(STEP_TIMEOUT).unwrap();
            let connection = channel.connection();
            for number in 1..=3 {
                connection.run().unwrap();
                assert_eq!(noted.try_iter().collect::<Vec<_>>(), [number]);
            }
        },
    );
}

/// An error that the close itself has caused is not returned.
#[test]
fn an_error_of_a_callback_is_returned_although_its_channel_closes_meanwhile() {
    for is_caused in [false, true] {
        with_channel(
            |wire| {
                let tag = wire.accept_consumer(1);
                wire.deliver(1, &tag, 1, "x");
                wire.expect(1, CHANNEL_CLOSE);
                wire.send(1, CHANNEL_CLOSE_OK, args());
            },
            move |channel| {
                let callback = move |channel: &BlockingChannel, delivery: Delivery| {
                    let other = channel.clone();
                    let closing = thread::spawn(move || other.close());
                    closing.join().unwrap().unwrap();
                    match is_caused {
                        true => delivery.ack(),
                        false => Err(Error::other("its own")),
                    }
                };
                channel.basic_consume("q", callback).unwrap();
                match channel.start_consuming() {
                    Ok(()) => assert!(is_caused),
                    Err(Error::Other(_)) => assert!(!is_caused),
                    Err(error) => panic!("{error:?}"),
                }
            },
        );
    }
}

#[test]
fn at_the_end_the_first_of_several_callback_errors_is_returned() {
    with_channel(
        |wire| {
            wire.expect_publish(1);
            send_back(wire, "x");
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            let (note, noted) = mpsc::channel();
            let (returned, closed) = (note.clone(), note);
            channel.add_on_return_callback(move |_, _| {
                returned.send("returned").unwrap();
                Err(Error::other("the first"))
            });
            channel.add_on_close_callback(move |_, _| {
                closed.send("closed").unwrap();
                Err(Error::other("the second"))
            });
            let message = Message::new("x").mandatory(true);
            channel.basic_publish("", "q", message).unwrap();
            while channel.connection().stats().messages_returned == 0 {
                thread::yield_now();
            }
            let error = channel.close().unwrap_err();
            assert_eq!(error.to_string(), Error::other("the first").to_string());
            assert_eq!(noted.try_iter().collect::<Vec<_>>(), ["returned", "closed"]);
        },
    );
}
