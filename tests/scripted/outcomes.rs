//! `PublisherConfirm::try_outcome`: the outcome of a publish without waiting.

use std::thread;

use cony::{BlockingChannel, Error, PublisherConfirm};

use crate::support::peer::methods::*;
use crate::support::peer::{Wire, args, close, signal, with_channel};

/// Accepts confirm mode and two publishes.
fn accept_two_publishes(wire: &mut Wire) {
    wire.expect(1, CONFIRM_SELECT);
    wire.send(1, CONFIRM_SELECT_OK, args());
    wire.expect_publish(1);
    wire.expect_publish(1);
}

fn publish_two(channel: &BlockingChannel) -> [PublisherConfirm; 2] {
    channel.confirm_delivery().unwrap();
    [(); 2].map(|()| channel.basic_publish("", "q", "x").unwrap())
}

fn await_outcome(confirm: &PublisherConfirm) -> Result<(), Error> {
    loop {
        match confirm.try_outcome() {
            Some(outcome) => return outcome,
            None => thread::yield_now(),
        }
    }
}

#[test]
fn an_outcome_is_none_until_the_broker_has_confirmed_the_message() {
    let (looked, has_looked) = signal();
    with_channel(
        move |wire| {
            accept_two_publishes(wire);
            has_looked.wait();
            wire.send(1, BASIC_ACK, args().u64(1).u8(0));
            wire.send(1, BASIC_NACK, args().u64(2).u8(0));
        },
        move |channel| {
            let [taken, refused] = publish_two(&channel);
            assert!(taken.try_outcome().is_none());
            assert!(refused.try_outcome().is_none());
            looked.send(()).unwrap();
            assert!(matches!(await_outcome(&refused), Err(Error::Nacked)));
            assert!(matches!(taken.try_outcome(), Some(Ok(()))));
            // The program has got the failure, so the close does not report it once more.
            channel.close().unwrap();
        },
    );
}

#[test]
fn the_outcome_of_an_unconfirmed_message_is_unknown_after_the_end_of_the_channel() {
    with_channel(
        |wire| {
            accept_two_publishes(wire);
            wire.send(1, BASIC_ACK, args().u64(1).u8(0));
            wire.send(1, CHANNEL_CLOSE, close(404, "no exchange", BASIC_PUBLISH));
            wire.expect(1, CHANNEL_CLOSE_OK);
        },
        |channel| {
            let [taken, lost] = publish_two(&channel);
            let error = await_outcome(&lost).unwrap_err();
            assert!(
                matches!(&error, Error::Unconfirmed(reason) if matches!(**reason, Error::ChannelClosed(_))),
                "{error}"
            );
            assert!(matches!(taken.try_outcome(), Some(Ok(()))));
        },
    );
}
