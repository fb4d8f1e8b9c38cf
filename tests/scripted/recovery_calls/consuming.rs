//! Waits for deliveries, which go on over an outage.

use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use cony::{BlockingChannel, Consumer, Delivery, Error};

use super::{OUTAGE, Phase, assert_reason, end, lose, lose_with, unchanged};
use crate::support::peer::methods::*;
use crate::support::peer::{Wire, signal};

fn consume(channel: &BlockingChannel) -> Consumer {
    channel.consume("q").unwrap()
}

fn accept_consume(wire: &mut Wire) {
    wire.accept_consumer(1);
}

/// A wait that ends after two deliveries, or with an error.
type Wait = Box<dyn FnOnce() -> Result<(), Error>>;

/// Starts a consumer, and returns the wait for its deliveries, which passes on their texts.
type Begin = fn(&BlockingChannel, Sender<String>) -> Wait;

fn take(delivery: &Delivery, note: &Sender<String>) -> Result<(), Error> {
    note.send(delivery.text()?.to_owned()).unwrap();
    delivery.ack()
}

fn iterate(channel: &BlockingChannel, note: Sender<String>) -> Wait {
    let consumer = consume(channel);
    Box::new(move || {
        let mut deliveries = consumer.iter().take(2);
        deliveries.try_for_each(|delivery| take(&delivery?, &note))
    })
}

fn call_for_each(channel: &BlockingChannel, note: Sender<String>) -> Wait {
    let consumer = consume(channel);
    Box::new(move || {
        consumer.for_each(|delivery| {
            take(&delivery, &note)?;
            match delivery.text()? {
                "message 2" => consumer.cancel().map(drop),
                _ => Ok(()),
            }
        })
    })
}

fn start(channel: &BlockingChannel, note: Sender<String>) -> Wait {
    let callback = move |channel: &BlockingChannel, delivery: Delivery| {
        take(&delivery, &note)?;
        match delivery.text()? {
            "message 2" => channel.stop_consuming(),
            _ => Ok(()),
        }
    };
    channel.basic_consume("q", callback).unwrap();
    let channel = channel.clone();
    Box::new(move || channel.start_consuming())
}

fn run_connection(channel: &BlockingChannel, note: Sender<String>) -> Wait {
    let callback = move |channel: &BlockingChannel, delivery: Delivery| {
        take(&delivery, &note)?;
        if delivery.text()? == "message 2" {
            channel.connection().stop();
        }
        Ok(())
    };
    channel.basic_consume("q", callback).unwrap();
    let connection = channel.connection();
    Box::new(move || connection.run())
}

/// Begins the wait in the phase. The restored connection delivers two messages.
fn wait_over(phase: Phase, begin: Begin) {
    // The first connection is lost when the wait has begun, or is about to.
    let (begun, has_begun) = signal();
    let script = move |wire: &mut Wire| {
        wire.accept_consumer(1);
        if phase == Phase::Connected {
            has_begun.wait();
        }
    };
    lose_with(2, phase, unchanged, script, move |client| {
        let (note, noted) = channel();
        let wait = begin(&client.channel, note);
        match phase {
            Phase::Connected => begun.send(()).unwrap(),
            Phase::Reconnecting | Phase::Restoring => {
                client.await_phase();
                client.go_on();
            }
        }
        wait().unwrap();
        let texts: Vec<_> = noted.try_iter().collect();
        assert_eq!(texts, ["message 1", "message 2"]);
        assert_eq!(client.finish().count(1, BASIC_ACK), 2);
    });
}

fn wait_after_the_end(begin: Begin) {
    let prepare = move |channel: &BlockingChannel| begin(channel, channel_of_texts());
    end(accept_consume, prepare, |_, wait, reason| {
        assert_reason(wait(), reason);
    });
}

/// Returns a sender whose texts are not needed.
fn channel_of_texts() -> Sender<String> {
    channel().0
}

/// Defines the tests of calls that wait for deliveries.
macro_rules! waits {
    ($($call:ident: $begin:ident;)*) => {
        $(mod $call {
            use super::*;

            #[test]
            fn goes_on_over_a_loss() {
                wait_over(Phase::Connected, $begin);
            }

            #[test]
            fn goes_on_while_cony_reconnects() {
                wait_over(Phase::Reconnecting, $begin);
            }

            #[test]
            fn goes_on_while_the_channel_is_restored() {
                wait_over(Phase::Restoring, $begin);
            }

            #[test]
            fn returns_the_reason_after_the_end() {
                wait_after_the_end($begin);
            }
        })*
    };
}

waits! {
    iterating_a_consumer: iterate;
    for_each: call_for_each;
    start_consuming: start;
    run: run_connection;
}

mod recv_timeout {
    use super::*;

    #[test]
    fn returns_nothing_at_its_time_over_a_loss() {
        let (begun, has_begun) = signal();
        let script = move |wire: &mut Wire| {
            wire.accept_consumer(1);
            has_begun.wait();
        };
        lose(Phase::Connected, script, move |client| {
            let consumer = consume(&client.channel);
            begun.send(()).unwrap();
            let outcome = consumer.recv_timeout(Duration::from_millis(200));
            assert!(outcome.unwrap().is_none());
            client.finish();
        });
    }

    #[test]
    fn returns_nothing_at_its_time_in_an_outage() {
        for phase in OUTAGE {
            lose(phase, accept_consume, |client| {
                let consumer = consume(&client.channel);
                client.await_phase();
                let outcome = consumer.recv_timeout(Duration::from_millis(20));
                assert!(outcome.unwrap().is_none());
                client.recover();
                client.finish();
            });
        }
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        end(accept_consume, consume, |_, consumer, reason| {
            assert_reason(consumer.recv_timeout(Duration::ZERO), reason);
        });
    }
}

mod try_recv_and_ready {
    use super::*;

    #[test]
    fn have_nothing_in_an_outage() {
        for phase in OUTAGE {
            lose(phase, accept_consume, |client| {
                let consumer = consume(&client.channel);
                client.await_phase();
                // The signal may come without a delivery.
                let _ = consumer.ready().recv_timeout(Duration::from_millis(20));
                assert!(consumer.try_recv().unwrap().is_none());
                client.recover();
                client.finish();
            });
        }
    }

    #[test]
    fn have_the_first_delivery_after_an_outage() {
        lose_with(
            1,
            Phase::Reconnecting,
            unchanged,
            accept_consume,
            |client| {
                let consumer = consume(&client.channel);
                client.await_phase();
                client.go_on();
                let delivery = loop {
                    consumer.ready().recv().unwrap();
                    if let Some(delivery) = consumer.try_recv().unwrap() {
                        break delivery;
                    }
                };
                assert_eq!(delivery.text().unwrap(), "message 1");
                delivery.ack().unwrap();
                client.finish();
            },
        );
    }

    #[test]
    fn return_the_reason_after_the_end() {
        end(accept_consume, consume, |_, consumer, reason| {
            consumer.ready().recv().unwrap();
            assert_reason(consumer.try_recv(), reason);
        });
    }
}

mod cancelling_a_consumer {
    use super::*;

    #[test]
    fn is_done_by_a_loss() {
        let script = |wire: &mut Wire| {
            wire.accept_consumer(1);
            wire.expect_cancel(1);
        };
        lose(Phase::Connected, script, |client| {
            consume(&client.channel).cancel().unwrap();
            client.channel.queue_declare("next").unwrap();
            let arrived = client.finish();
            assert_eq!(
                (
                    arrived.count(1, BASIC_CONSUME),
                    arrived.count(1, BASIC_CANCEL)
                ),
                (0, 0)
            );
        });
    }

    #[test]
    fn returns_at_once_while_cony_reconnects() {
        lose(Phase::Reconnecting, accept_consume, |client| {
            let consumer = consume(&client.channel);
            client.await_phase();
            consumer.cancel().unwrap();
            assert!(consumer.recv().unwrap().is_none());
            client.recover();
            let arrived = client.finish();
            assert_eq!(
                (
                    arrived.count(1, BASIC_CONSUME),
                    arrived.count(1, BASIC_CANCEL)
                ),
                (0, 0)
            );
        });
    }

    #[test]
    fn waits_while_the_channel_is_restored() {
        lose(Phase::Restoring, accept_consume, |client| {
            let consumer = consume(&client.channel);
            client.await_phase();
            client.go_on();
            consumer.cancel().unwrap();
            assert!(consumer.recv().unwrap().is_none());
            let arrived = client.finish();
            assert_eq!(
                (
                    arrived.count(1, BASIC_CONSUME),
                    arrived.count(1, BASIC_CANCEL)
                ),
                (1, 1)
            );
        });
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        end(accept_consume, consume, |_, consumer, reason| {
            assert_reason(consumer.cancel(), reason);
        });
    }
}
