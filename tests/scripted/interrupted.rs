//! Dispatching that a callback interrupts, by its failure, its panic, or by dispatching
//! itself: what is left is told later.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{BlockingChannel, Delivery, Error, Message};

use crate::support::peer::methods::*;
use crate::support::peer::{
    PATIENCE, Wire, args, body, deliver, header, method, signal, with_channel, with_channel_and,
};

/// Sends a message back that reached no queue.
fn send_back(wire: &mut Wire, text: &str) {
    let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
    wire.send_content(1, (60, 50), arguments, text);
}

/// Two messages that come together.
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
fn a_panic_of_a_callback_leaves_the_other_deliveries_to_who_comes_next() {
    with_channel(deliver_two, |channel| {
        let (note, noted) = mpsc::channel();
        channel
            .basic_consume("q", move |_, delivery| {
                delivery.ack()?;
                note.send(delivery.delivery_tag).unwrap();
                assert_ne!(delivery.delivery_tag, 1, "as a callback may fail");
                Ok(())
            })
            .unwrap();
        let connection = channel.connection();
        let first = catch_unwind(AssertUnwindSafe(|| {
            connection.process_data_events(PATIENCE)
        }));
        assert!(first.is_err());
        connection.process_data_events(PATIENCE).unwrap();
        assert_eq!(noted.try_iter().collect::<Vec<_>>(), [1, 2]);
    });
}

#[test]
fn an_error_of_a_callback_leaves_the_rest_ready_for_who_comes_next() {
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
                connection.ready().recv_timeout(PATIENCE).unwrap();
            }
            for text in ["one", "two", "three"] {
                connection.process_data_events(PATIENCE).unwrap_err();
                assert_eq!(noted.try_recv().unwrap(), text);
                if text != "three" {
                    connection.ready().recv_timeout(PATIENCE).unwrap();
                }
            }
        },
    );
}

#[test]
fn an_error_amid_confirms_that_come_together_leaves_the_rest_of_them() {
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
                note.send(confirmation.number).unwrap();
                match confirmation.number {
                    1 => Err(Error::other("as a callback may fail")),
                    2 => panic!("as a callback may"),
                    _ => Ok(()),
                }
            });
            for _ in 0..3 {
                channel.basic_publish("", "q", "x").unwrap();
            }
            let connection = channel.connection();
            connection.process_data_events(PATIENCE).unwrap_err();
            let panics = || connection.process_data_events(PATIENCE);
            assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
            connection.process_data_events(PATIENCE).unwrap();
            assert_eq!(noted.try_iter().collect::<Vec<_>>(), [1, 2, 3]);
        },
    );
}

#[test]
fn what_a_callback_that_dispatches_may_not_take_is_told_after_it() {
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
            let consume = cony::basic::Consume::new("q").no_ack(true);
            channel
                .basic_consume(consume, move |channel, _| {
                    inside.send(()).unwrap();
                    // The channel is not its to dispatch: only what is the connection's.
                    channel.connection().process_data_events(PATIENCE)?;
                    note.send("delivered").unwrap();
                    Ok(())
                })
                .unwrap();
            connection.process_data_events(PATIENCE).unwrap();
            connection.process_data_events(PATIENCE).unwrap();
            let told: Vec<_> = noted.try_iter().collect();
            assert_eq!(told, ["blocked", "delivered", "returned"]);
        },
    );
}

#[test]
fn start_consuming_hears_what_came_while_a_timer_dispatched() {
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
                // It has rung for that, and this is not the place to tell of it.
                connection.sleep(Duration::from_millis(1))
            });
            channel.start_consuming().unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn a_close_that_is_not_answered_is_the_end_all_the_same() {
    with_channel_and(
        |parameters| parameters.close_timeout(Duration::from_millis(50)),
        |wire| {
            wire.expect(1, CHANNEL_CLOSE);
        },
        |channel| {
            let (note, noted) = mpsc::channel();
            channel.add_on_close_callback(move |_, reason| {
                note.send(reason).unwrap();
                Ok(())
            });
            let error = channel.close().unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error}");
            assert!(channel.is_closed() && !channel.is_closing());
            assert!(matches!(
                noted.try_iter().collect::<Vec<_>>()[..],
                [Error::ChannelClosed(_)]
            ));
            channel.connection().disconnect();
        },
    );
}

#[test]
fn a_close_tells_what_it_has_waited_for() {
    with_channel(
        |wire| {
            wire.expect(1, CONFIRM_SELECT);
            wire.send(1, CONFIRM_SELECT_OK, args());
            wire.expect_publish(1);
            wire.send(1, BASIC_ACK, args().u64(1).u8(0));
            wire.expect(1, CHANNEL_CLOSE);
            wire.send(1, CHANNEL_CLOSE_OK, args());
        },
        |channel| {
            channel.confirm_delivery().unwrap();
            let (note, noted) = mpsc::channel();
            let confirmed = note.clone();
            channel.add_on_confirm_callback(move |_, confirmation| {
                confirmation.outcome?;
                confirmed.send("confirmed").unwrap();
                Ok(())
            });
            channel.add_on_close_callback(move |_, _| {
                note.send("closed").unwrap();
                Ok(())
            });
            channel.basic_publish("", "q", "x").unwrap();
            channel.close().unwrap();
            assert_eq!(
                noted.try_iter().collect::<Vec<_>>(),
                ["confirmed", "closed"]
            );
        },
    );
}

#[test]
fn a_run_stops_however_many_confirms_come() {
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
                note.send(confirmation.number).unwrap();
                channel.connection().stop();
                Ok(())
            });
            for _ in 0..3 {
                channel.basic_publish("", "q", "x").unwrap();
            }
            channel.wait_for_confirms(PATIENCE).unwrap();
            let connection = channel.connection();
            for number in 1..=3 {
                connection.run().unwrap();
                assert_eq!(noted.try_iter().collect::<Vec<_>>(), [number]);
            }
        },
    );
}

/// One that the close itself has caused is none.
#[test]
fn an_error_of_a_callback_is_told_though_its_channel_is_closed_meanwhile() {
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
fn of_several_errors_of_callbacks_at_the_end_the_first_is_told() {
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
