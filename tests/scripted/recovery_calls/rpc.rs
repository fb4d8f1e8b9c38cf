//! RPC requests and new secrets.

use std::time::Duration;

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters, Error, RpcClient};

use super::{OUTAGE, Phase, assert_reason, come_back, end, lose, lose_with, recovery};
use crate::support::expect_error;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Listener, STEP_TIMEOUT, Tune, Wire, args, body, close, deliver, header_with, method, play,
    signal,
};

/// Accepts the session of a new client on this channel. Returns the tag of its consumer.
fn accept_session(wire: &mut Wire, channel: u16) -> String {
    wire.open_channel(channel);
    accept_confirms_and_consumer(wire, channel)
}

fn accept_confirms_and_consumer(wire: &mut Wire, channel: u16) -> String {
    wire.expect(channel, CONFIRM_SELECT);
    wire.send(channel, CONFIRM_SELECT_OK, args());
    wire.accept_consumer(channel)
}

mod rpc_call {
    use super::*;

    /// The reply is lost with the connection, and the broker has confirmed the request.
    #[test]
    fn with_a_confirm_is_interrupted_by_a_loss_and_not_repeated() {
        let script = |wire: &mut Wire| {
            accept_session(wire, 2);
            wire.expect_publish(2);
            wire.send(2, BASIC_ACK, args().u64(1).u8(0));
        };
        lose(Phase::Connected, script, |client| {
            let rpc = RpcClient::new(&client.connection).unwrap();
            let outcome = rpc.call("q", "?", STEP_TIMEOUT);
            expect_error!(outcome, Error::Interrupted { .. });
            assert_eq!(client.finish().count(2, BASIC_PUBLISH), 0);
        });
    }

    #[test]
    fn without_a_confirm_is_interrupted_by_a_loss_and_not_repeated() {
        let script = |wire: &mut Wire| {
            accept_session(wire, 2);
            wire.expect_publish(2);
        };
        lose(Phase::Connected, script, |client| {
            let rpc = RpcClient::new(&client.connection).unwrap();
            let outcome = rpc.call("q", "?", STEP_TIMEOUT);
            expect_error!(outcome, Error::Interrupted { .. });
            assert_eq!(client.finish().count(2, BASIC_PUBLISH), 0);
        });
    }

    /// Expects a request on channel 1, and sends the reply with this correlation id.
    fn answer(wire: &mut Wire, consumer_tag: &str, id: &str) {
        wire.expect_publish(1);
        let mut reply = method(1, BASIC_DELIVER, deliver(consumer_tag, 1));
        reply.extend(header_with(1, 1, &args().u16(1 << 10).short(id).bytes()));
        reply.extend(body(1, b"!"));
        wire.raw(&reply);
    }

    #[test]
    fn that_may_be_repeated_is_sent_again_after_a_loss() {
        play(
            |listener| {
                for confirms in [true, false] {
                    let mut wire = listener.accept();
                    wire.handshake(Tune::default());
                    accept_session(&mut wire, 1);
                    wire.expect_publish(1);
                    if confirms {
                        wire.send(1, BASIC_ACK, args().u64(1).u8(0));
                    }
                }
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                let tag = accept_session(&mut wire, 1);
                answer(&mut wire, &tag, "3");
                wire.finish();
            },
            |parameters| {
                let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
                let rpc = RpcClient::new(&connection).unwrap();
                let reply = rpc.call_again("q", "?", STEP_TIMEOUT).unwrap();
                assert_eq!(reply.text().unwrap(), "!");
                connection.close().unwrap();
            },
        );
    }

    /// Begins a call in an outage, shortly before its end.
    fn call_in(phase: Phase) {
        let (begin, in_phase) = signal();
        let (go_on, going_on) = signal();
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                accept_session(&mut wire, 1);
                drop(wire);
                let mut wire = come_back(listener, phase, &begin, &going_on);
                if phase == Phase::Reconnecting {
                    wire.open_channel(1);
                }
                let tag = accept_confirms_and_consumer(&mut wire, 1);
                answer(&mut wire, &tag, "1");
                wire.finish();
            },
            move |parameters| {
                let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
                let rpc = RpcClient::new(&connection).unwrap();
                in_phase.wait();
                go_on.send(()).unwrap();
                let reply = rpc.call("q", "?", STEP_TIMEOUT).unwrap();
                assert_eq!(reply.text().unwrap(), "!");
                connection.close().unwrap();
            },
        );
    }

    #[test]
    fn waits_while_cony_reconnects() {
        call_in(Phase::Reconnecting);
    }

    #[test]
    fn waits_while_the_channel_is_restored() {
        call_in(Phase::Restoring);
    }

    #[test]
    fn fails_at_the_publish_timeout_in_an_outage() {
        let adjust = |parameters: ConnectionParameters| {
            parameters.publish_timeout(Duration::from_millis(100))
        };
        let script = |wire: &mut Wire| drop(accept_session(wire, 2));
        for phase in OUTAGE {
            lose_with(0, phase, adjust, script, |client| {
                let rpc = RpcClient::new(&client.connection).unwrap();
                client.await_phase();
                expect_error!(
                    rpc.call("q", "?", STEP_TIMEOUT),
                    Error::PublishTimeout {
                        outage: Some(_),
                        ..
                    }
                );
                client.recover();
                assert_eq!(client.finish().count(2, BASIC_PUBLISH), 0);
            });
        }
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        let script = |wire: &mut Wire| drop(accept_session(wire, 2));
        let prepare = |channel: &BlockingChannel| RpcClient::new(&channel.connection()).unwrap();
        end(script, prepare, |_, rpc, reason| {
            assert_reason(rpc.call("q", "?", STEP_TIMEOUT), reason);
        });
    }
}

mod update_secret {
    use super::*;

    fn update(connection: &BlockingConnection) -> Result<(), Error> {
        connection.update_secret("new", "it expires")
    }

    /// Accepts the next connection. Returns the secret of its login.
    fn accept_login(listener: &Listener) -> (Wire, String) {
        let mut wire = listener.accept();
        let response = wire.expect_start_ok();
        let secret = response.rsplit(|byte| *byte == 0).next().unwrap();
        (wire, String::from_utf8(secret.to_vec()).unwrap())
    }

    fn end_handshake(mut wire: Wire) -> Wire {
        wire.tune(Tune::default());
        wire.send(0, CONNECTION_OPEN_OK, args().short(""));
        wire
    }

    #[test]
    fn gives_the_secret_of_each_later_login() {
        play(
            |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                for secret in ["new", "newer"] {
                    wire.expect(0, CONNECTION_UPDATE_SECRET);
                    wire.send(0, CONNECTION_UPDATE_SECRET_OK, args());
                    drop(wire);
                    // A login that fails does not bring the old secret back.
                    let (hung_up, login) = accept_login(listener);
                    assert_eq!(login, secret);
                    drop(hung_up);
                    let (restored, login) = accept_login(listener);
                    assert_eq!(login, secret);
                    wire = end_handshake(restored);
                }
                wire.finish();
            },
            |parameters| {
                let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
                for (secret, epoch) in [("new", 1), ("newer", 2)] {
                    connection.update_secret(secret, "it expires").unwrap();
                    while connection.stats().recoveries < epoch {
                        std::thread::yield_now();
                    }
                }
                connection.close().unwrap();
            },
        );
    }

    /// The secret of the opening has expired. So the outage ends only with the new one.
    #[test]
    fn in_an_outage_gives_the_secret_of_the_next_login() {
        let (refused, is_refused) = signal();
        play(
            move |listener| {
                let mut wire = listener.accept();
                wire.handshake(Tune::default());
                drop(wire);
                let mut refused = Some(refused);
                let wire = loop {
                    let (mut wire, login) = accept_login(listener);
                    if login == "new" {
                        break wire;
                    }
                    let close = close(403, "ACCESS_REFUSED - expired", (0, 0));
                    wire.send(0, CONNECTION_CLOSE, close);
                    wire.expect(0, CONNECTION_CLOSE_OK);
                    if let Some(refused) = refused.take() {
                        refused.send(()).unwrap();
                    }
                };
                let mut wire = end_handshake(wire);
                wire.expect(0, CONNECTION_UPDATE_SECRET);
                wire.send(0, CONNECTION_UPDATE_SECRET_OK, args());
                wire.finish();
            },
            move |parameters| {
                let connection = BlockingConnection::open(parameters.recovery(recovery())).unwrap();
                is_refused.wait();
                update(&connection).unwrap();
                connection.close().unwrap();
            },
        );
    }

    #[test]
    fn is_done_when_the_next_connection_is_open_after_a_loss() {
        let script = |wire: &mut Wire| drop(wire.expect(0, CONNECTION_UPDATE_SECRET));
        lose(Phase::Connected, script, |client| {
            update(&client.connection).unwrap();
            client.finish();
        });
    }

    #[test]
    fn waits_for_the_next_connection_in_an_outage() {
        for phase in OUTAGE {
            lose(
                phase,
                |_| {},
                |client| {
                    client.await_phase();
                    client.go_on();
                    update(&client.connection).unwrap();
                    client.finish();
                },
            );
        }
    }

    #[test]
    fn returns_the_reason_after_the_end() {
        end(
            |_| {},
            |_| {},
            |channel, (), reason| {
                assert_reason(update(&channel.connection()), reason);
            },
        );
    }
}
