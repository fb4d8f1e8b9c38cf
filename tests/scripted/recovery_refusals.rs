//! Brokers that refuse the next connection, or end it at once.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use cony::{BlockingConnection, Error, Recovery, RecoveryEvent};

use crate::common::dispatch_until;
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{Listener, STEP_TIMEOUT, Tune, Wire, close, play, signal};

fn recovery() -> Recovery {
    Recovery::new().max_delay(Duration::from_millis(10))
}

fn accept(listener: &Listener, tune: Tune) -> Wire {
    let mut wire = listener.accept();
    wire.handshake(tune);
    wire
}

/// Refuses the login as RabbitMQ does.
fn refuse_login(mut wire: Wire) {
    wire.expect_start_ok();
    let text = "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN";
    wire.send(0, CONNECTION_CLOSE, close(403, text, (0, 0)));
    wire.await_close_ok();
}

/// Accepts a connection with these limits, which the client closes.
fn offer_less(listener: &Listener, tune: Tune) {
    let mut wire = accept(listener, tune);
    let mut close = wire.expect(0, CONNECTION_CLOSE);
    assert_eq!(close.u16(), 530);
    assert!(close.short().contains("those of the first connection"));
    wire.expect_end();
}

/// Waits until recovery has ended, and returns its last failure and the number of attempts.
fn await_end(connection: &BlockingConnection) -> (Error, u32) {
    match connection.wait_closed() {
        Error::RecoveryFailed { last, attempts, .. } => (*last.unwrap(), attempts),
        other => panic!("{other:?}"),
    }
}

/// Asserts that the delays before the first three attempts grow.
///
/// An attempt never begins before its time, so the time of the next one is later by at least the
/// shortest delay, however busy the machine is.
fn assert_growing(connection: &BlockingConnection) {
    let (note, noted) = std::sync::mpsc::channel();
    connection.add_on_recovery_callback(move |_, event| {
        if let RecoveryEvent::Lost(outage) | RecoveryEvent::AttemptFailed(outage) = event {
            note.send((outage.attempts, outage.next_attempt)).unwrap();
        }
        Ok(())
    });
    // The shortest delays behind the loss, and behind the first and the second attempt.
    let shortest = [0, 500, 1000].map(Duration::from_millis);
    let mut last: Option<Instant> = None;
    loop {
        let (attempts, next) = dispatch_until(connection, &noted);
        let next = next.unwrap();
        if let Some(last) = last {
            let delay = next - last;
            assert!(
                delay >= shortest[attempts as usize],
                "{attempts}: {delay:?}"
            );
        }
        if attempts == 2 {
            return;
        }
        last = Some(next);
    }
}

#[test]
fn the_delays_grow_while_the_peer_accepts_and_closes_at_once() {
    let (seen, is_seen) = signal();
    play(
        move |listener| {
            drop(accept(listener, Tune::default()));
            for _ in 0..2 {
                drop(listener.accept());
            }
            is_seen.wait_dropped();
        },
        move |parameters| {
            let parameters = parameters.recovery(Recovery::new());
            let connection = BlockingConnection::open(parameters).unwrap();
            assert_growing(&connection);
            // The next attempt is a second away or more.
            connection.close().unwrap();
            drop(seen);
        },
    );
}

#[test]
fn the_delays_grow_while_the_peer_opens_the_connection_and_closes_it_at_once() {
    let (seen, is_seen) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener, Tune::default());
            wire.open_channel(1);
            drop(wire);
            for _ in 0..2 {
                let mut wire = accept(listener, Tune::default());
                // The channel is not restored, so that each loss belongs to the same outage.
                wire.expect(1, CHANNEL_OPEN);
            }
            is_seen.wait_dropped();
        },
        move |parameters| {
            let parameters = parameters.recovery(Recovery::new());
            let connection = BlockingConnection::open(parameters).unwrap();
            let channel = connection.channel().unwrap();
            assert_growing(&connection);
            connection.close().unwrap();
            assert!(channel.is_closed());
            drop(seen);
        },
    );
}

#[test]
fn a_broker_with_smaller_limits_is_left_and_the_next_attempt_recovers() {
    let smaller = [
        Tune {
            channel_max: 100,
            ..Tune::default()
        },
        Tune {
            frame_max: 4096,
            ..Tune::default()
        },
    ];
    for tune in smaller {
        play(
            move |listener| {
                drop(accept(listener, Tune::default()));
                offer_less(listener, tune);
                accept(listener, Tune::default()).oblige();
            },
            |parameters| {
                let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
                let limits = (connection.channel_max(), connection.frame_max());
                // This call is answered by the restored connection.
                connection.channel().unwrap();
                connection.wait_recovered(STEP_TIMEOUT).unwrap();
                assert_eq!((connection.channel_max(), connection.frame_max()), limits);
                assert_eq!(connection.stats().recovery_attempts, 2);
                connection.close().unwrap();
            },
        );
    }
}

#[test]
fn recovery_gives_up_when_every_broker_has_shown_twice_that_its_limits_are_smaller() {
    play(
        |listener| {
            drop(accept(listener, Tune::default()));
            let tune = Tune {
                frame_max: 4096,
                ..Tune::default()
            };
            offer_less(listener, tune);
            offer_less(listener, tune);
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
            let (last, attempts) = await_end(&connection);
            assert_eq!(attempts, 2);
            assert!(last.to_string().contains("frame_max 4096"), "{last}");
            expect_error!(connection.channel(), Error::RecoveryFailed { .. });
        },
    );
}

#[test]
fn a_login_that_is_refused_four_times_and_then_accepted_recovers() {
    play(
        |listener| {
            let mut wire = accept(listener, Tune::default());
            wire.open_channel(1);
            drop(wire);
            for _ in 0..4 {
                refuse_login(listener.accept());
            }
            accept(listener, Tune::default()).oblige();
        },
        |parameters| {
            let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
            let channel = connection.channel().unwrap();
            channel.queue_declare("q").unwrap();
            connection.wait_recovered(STEP_TIMEOUT).unwrap();
            assert_eq!(connection.stats().recovery_attempts, 5);
            connection.close().unwrap();
        },
    );
}

/// A cluster that starts may refuse logins for some seconds, so recovery goes on for 15 s.
#[test]
#[ignore = "takes more than 15 s"]
fn recovery_gives_up_when_the_login_is_refused_for_long_enough() {
    play(
        move |listener| {
            drop(accept(listener, Tune::default()));
            let mut refused = 0;
            while let Some(wire) = listener.accept_opening() {
                refuse_login(wire);
                refused += 1;
            }
            assert!(refused > 5, "{refused}");
        },
        move |parameters| {
            let port = parameters.get_port();
            let recovery = Recovery::new().max_delay(Duration::from_secs(2));
            let connection = BlockingConnection::open(parameters.recovery(recovery)).unwrap();
            let (last, attempts) = await_end(&connection);
            assert!(attempts > 5, "{attempts}");
            expect_error!(Err::<(), _>(last), Error::AuthenticationFailed { .. });
            // The peer waits for the next attempt.
            TcpStream::connect(("127.0.0.1", port)).unwrap();
        },
    );
}
