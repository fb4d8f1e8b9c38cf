//! Settlements of deliveries from before a loss: the deliveries are stale, so nothing is sent.

use cony::{BlockingChannel, Consumer, Delivery, Error};

use super::{Phase, assert_reason, end, lose};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{STEP_TIMEOUT, Wire};

/// Starts a consumer, and takes its two deliveries.
fn take_two(channel: &BlockingChannel) -> (Consumer, [Delivery; 2]) {
    let consumer = channel.consume("q").unwrap();
    let deliveries = [(); 2].map(|()| consumer.recv().unwrap().unwrap());
    channel.queue_declare_passive("q").unwrap();
    (consumer, deliveries)
}

/// Delivers twice, and waits until the client has taken both: a loss drops the others.
fn deliver_two(wire: &mut Wire) {
    wire.accept_consumer_and_deliver(1, 2);
    wire.accept_declare(1);
}

/// Settles the second delivery in the phase, or after a loss and its outage.
fn settle_in(phase: Phase, settle: fn(&Delivery) -> Result<(), Error>) {
    lose(phase, deliver_two, move |client| {
        let (_consumer, [_, delivery]) = take_two(&client.channel);
        match phase {
            Phase::Connected => {
                // This call is answered by the next connection.
                client.channel.queue_unbind("q", "x", "k").unwrap();
                client.connection.wait_recovered(STEP_TIMEOUT).unwrap();
            }
            Phase::Reconnecting | Phase::Restoring => client.await_phase(),
        }
        assert!(delivery.is_stale());
        settle(&delivery).unwrap();
        assert_eq!(client.connection.stats().stale_settlements, 1);
        match phase {
            Phase::Connected => {}
            Phase::Reconnecting | Phase::Restoring => client.recover(),
        }
        let arrived = client.finish();
        let sent = [BASIC_ACK, BASIC_NACK, BASIC_REJECT].map(|id| arrived.count(1, id));
        assert_eq!(sent, [0; 3]);
    });
}

fn settle_after_the_end(settle: fn(&Delivery) -> Result<(), Error>) {
    end(
        deliver_two,
        take_two,
        move |_, (_, [_, delivery]), reason| {
            assert_reason(settle(&delivery), reason);
        },
    );
}

/// Defines the tests of settlements.
macro_rules! settlements {
    ($($name:ident: $settle:expr;)*) => {
        $(mod $name {
            use super::*;

            #[test]
            fn is_ok_and_sends_nothing_after_a_loss() {
                settle_in(Phase::Connected, $settle);
            }

            #[test]
            fn is_ok_and_sends_nothing_while_cony_reconnects() {
                settle_in(Phase::Reconnecting, $settle);
            }

            #[test]
            fn is_ok_and_sends_nothing_while_the_channel_is_restored() {
                settle_in(Phase::Restoring, $settle);
            }

            #[test]
            fn returns_the_reason_after_the_end() {
                settle_after_the_end($settle);
            }
        })*
    };
}

settlements! {
    ack: Delivery::ack;
    ack_multiple: Delivery::ack_multiple;
    requeue: Delivery::requeue;
    reject: Delivery::reject;
}

mod a_second_ack {
    use super::*;

    /// Accepts the first ack, and replies to the call behind it.
    fn accept_ack(wire: &mut Wire) {
        deliver_two(wire);
        wire.expect(1, BASIC_ACK);
        wire.accept_declare(1);
    }

    fn ack(channel: &BlockingChannel) -> (Consumer, [Delivery; 2]) {
        let taken = take_two(channel);
        taken.1[1].ack().unwrap();
        channel.queue_declare_passive("q").unwrap();
        taken
    }

    #[test]
    fn fails_while_connected_and_is_ok_after_a_loss() {
        let script = |wire: &mut Wire| {
            accept_ack(wire);
            wire.accept_declare(1);
        };
        lose(Phase::Connected, script, |client| {
            let (_consumer, [_, delivery]) = ack(&client.channel);
            expect_error!(delivery.ack(), Error::AlreadySettled(2));
            client.channel.queue_declare_passive("q").unwrap();
            // This call is answered by the next connection.
            client.channel.queue_unbind("q", "x", "k").unwrap();
            delivery.ack().unwrap();
            assert_eq!(client.finish().count(1, BASIC_ACK), 0);
        });
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        end(accept_ack, ack, |_, (_, [_, delivery]), reason| {
            assert_reason(delivery.ack(), reason);
        });
    }
}
