//! Closes in each phase: they win at once, and recovery ends with the connection.

use cony::{BlockingChannel, BlockingConnection, ClosedBy, Consumer};

use super::{Phase, assert_reason, end, lose, recovery};
use crate::support::peer::methods::*;
use crate::support::peer::{Frame, Listener, Tune, Wire, play, signal};

mod channel_close {
    use super::*;

    #[test]
    fn is_done_by_a_loss() {
        let script = |wire: &mut Wire| drop(wire.expect(1, CHANNEL_CLOSE));
        lose(Phase::Connected, script, |client| {
            client.channel.close().unwrap();
            // The number is free again.
            client.connection.channel_with_number(1).unwrap();
            let arrived = client.finish();
            assert_eq!(arrived.count(1, CHANNEL_OPEN), 1);
        });
    }

    #[test]
    fn returns_at_once_while_cony_reconnects() {
        lose(
            Phase::Reconnecting,
            |_| {},
            |client| {
                client.await_phase();
                client.channel.close().unwrap();
                assert!(client.channel.is_closed());
                client.recover();
                let arrived = client.finish();
                assert_eq!(
                    (
                        arrived.count(1, CHANNEL_OPEN),
                        arrived.count(1, CHANNEL_CLOSE)
                    ),
                    (0, 0)
                );
            },
        );
    }

    #[test]
    fn is_sent_while_the_channel_is_restored() {
        lose(
            Phase::Restoring,
            |_| {},
            |client| {
                client.await_phase();
                client.go_on();
                client.channel.close().unwrap();
                assert!(client.channel.is_closed());
                assert_eq!(client.finish().count(1, CHANNEL_CLOSE), 1);
            },
        );
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        end(
            |_| {},
            |_| {},
            |channel, (), reason| {
                assert_reason(channel.close(), reason);
            },
        );
    }
}

/// The handles of a client.
struct Handles {
    connection: BlockingConnection,
    channel: BlockingChannel,
    consumer: Consumer,
}

/// Runs a client that ends its connection in the phase. `script` is for a connection that is lost
/// during that. Otherwise the peer answers closes only.
fn end_in(phase: Phase, script: fn(&mut Wire), act: fn(Handles)) {
    let (begin, in_phase) = signal();
    let (ended, client_ended) = signal();
    play(
        move |listener| {
            let mut wire = accept(listener);
            wire.open_channel(1);
            wire.accept_consumer(1);
            if phase == Phase::Connected {
                begin.send(()).unwrap();
                script(&mut wire);
            }
            drop(wire);
            match phase {
                Phase::Connected => {}
                Phase::Reconnecting => {
                    let mut wire = listener.accept();
                    wire.expect_protocol_header();
                    begin.send(()).unwrap();
                    wire.expect_end();
                }
                Phase::Restoring => {
                    let mut wire = accept(listener);
                    wire.expect(1, CHANNEL_OPEN);
                    begin.send(()).unwrap();
                    wire.oblige();
                }
            }
            client_ended.wait_dropped();
            listener.expect_no_client();
        },
        move |parameters| {
            let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
            let channel = connection.channel().unwrap();
            let consumer = channel.consume("q").unwrap();
            in_phase.wait();
            assert_eq!(connection.is_recovering(), phase != Phase::Connected);
            act(Handles {
                connection,
                channel,
                consumer,
            });
            drop(ended);
        },
    );
}

fn accept(listener: &Listener) -> Wire {
    let mut wire = listener.accept();
    wire.handshake(Tune::default());
    wire
}

/// Asserts that every handle has ended with a close by the program.
fn assert_ended(handles: &Handles) {
    assert!(handles.connection.is_closed() && !handles.connection.is_recovering());
    assert!(handles.connection.outage().is_none());
    assert!(handles.consumer.recv().unwrap().is_none());
    for reason in [
        handles.connection.close_reason(),
        handles.channel.close_reason(),
    ] {
        let reason = reason.unwrap();
        assert_eq!(reason.close_reason().unwrap().by, ClosedBy::Application);
    }
}

fn close(handles: Handles) {
    handles.connection.close().unwrap();
    assert_ended(&handles);
    handles.connection.close().unwrap();
}

fn disconnect(handles: Handles) {
    handles.connection.disconnect();
    assert_ended(&handles);
}

fn expect_close(wire: &mut Wire) {
    wire.expect(0, CONNECTION_CLOSE);
}

mod connection_close {
    use super::*;

    #[test]
    fn is_done_by_a_loss() {
        end_in(Phase::Connected, expect_close, close);
    }

    #[test]
    fn wins_at_once_while_cony_reconnects() {
        end_in(Phase::Reconnecting, expect_close, close);
    }

    #[test]
    fn wins_at_once_while_the_channel_is_restored() {
        end_in(Phase::Restoring, expect_close, close);
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        end(
            |_| {},
            |_| {},
            |channel, (), reason| {
                assert_reason(channel.connection().close(), reason);
            },
        );
    }
}

mod disconnect {
    use super::*;

    #[test]
    fn wins_at_once_in_each_phase() {
        for phase in [Phase::Connected, Phase::Reconnecting, Phase::Restoring] {
            end_in(phase, Wire::expect_end, disconnect);
        }
    }
}

mod the_drop_of_the_last_handle {
    use super::*;

    /// Reads the close of the connection, and all before it.
    fn read_close(wire: &mut Wire) {
        while !matches!(wire.next(), Frame::Method(0, CONNECTION_CLOSE, _)) {}
    }

    #[test]
    fn wins_at_once_in_each_phase() {
        for phase in [Phase::Connected, Phase::Reconnecting, Phase::Restoring] {
            end_in(phase, read_close, drop);
        }
    }
}
