//! The table of blocking calls.

use std::time::Duration;

use cony::{BlockingChannel, Error, PublisherConfirm, RpcClient, exchange, queue};

use super::{AfterLoss, Call, Ending as E, Fault as F};
use crate::support::peer::methods::*;
use crate::support::peer::{
    REQUEUE, TEST_TIMEOUT, Wire, args, body, declare_ok, deliver, get_ok, header_with, method,
};

/// Defines a call of one method and its reply.
macro_rules! plain {
    ($name:literal, $method:ident, $reply:ident $arguments:expr, $run:expr) => {
        Call::new(
            $name,
            |handles| {
                #[allow(clippy::redundant_closure_call, reason = "gives the closure its type")]
                let outcome =
                    ($run as fn(&BlockingChannel) -> Result<(), Error>)(handles.channel());
                outcome
            },
            |wire| drop(wire.expect(1, $method)),
            Some(|wire| wire.send(1, $reply, $arguments)),
        )
    };
}

/// The endings of a wait for deliveries, which has no deadline.
const PATIENT: &[(F, E)] = &[
    (F::Silence, E::MissedHeartbeats),
    // A memory alarm does not end the wait for deliveries.
    (F::MemoryAlarm, E::None),
];

/// The endings of a connection close.
const CLOSING: &[(F, E)] = &[
    (F::Silence, E::CloseTimedOut),
    (F::Fin, E::Ok),
    (F::Reset, E::Ok),
    (F::LateReply, E::None),
    (F::MemoryAlarm, E::CloseTimedOut),
    // After its own close the client ignores `connection.blocked`.
    (F::DiskAlarm, E::None),
    (F::IoThreadGone, E::None),
];

const ALWAYS_OK: &[(F, E)] = &[
    (F::Silence, E::Ok),
    (F::Fin, E::Ok),
    (F::Reset, E::Ok),
    (F::ChannelClosed, E::Ok),
    (F::ConnectionClosed, E::Ok),
    (F::MemoryAlarm, E::Ok),
    // After its own close the client ignores `connection.blocked`.
    (F::DiskAlarm, E::None),
    (F::IoThreadGone, E::None),
];

pub(crate) const CALLS: &[Call] = &[
    plain!(
        "queue_declare",
        QUEUE_DECLARE,
        QUEUE_DECLARE_OK declare_ok("q"),
        |channel| channel.queue_declare("q").map(drop)
    ),
    plain!(
        "queue_bind",
        QUEUE_BIND,
        QUEUE_BIND_OK args(),
        |channel| channel.queue_bind("q", "x", "k")
    ),
    plain!(
        "queue_unbind",
        QUEUE_UNBIND,
        QUEUE_UNBIND_OK args(),
        |channel| channel.queue_unbind("q", "x", "k")
    ),
    plain!(
        "queue_purge",
        QUEUE_PURGE,
        QUEUE_PURGE_OK args().u32(7),
        |channel| channel.queue_purge("q").map(drop)
    )
    .after_loss(AfterLoss::Interrupted),
    plain!(
        "queue_delete",
        QUEUE_DELETE,
        QUEUE_DELETE_OK args().u32(7),
        |channel| channel.queue_delete("q").map(drop)
    ),
    plain!(
        "exchange_declare",
        EXCHANGE_DECLARE,
        EXCHANGE_DECLARE_OK args(),
        |channel| channel.exchange_declare("x")
    ),
    plain!(
        "exchange_delete",
        EXCHANGE_DELETE,
        EXCHANGE_DELETE_OK args(),
        |channel| channel.exchange_delete("x")
    ),
    plain!(
        "exchange_bind",
        EXCHANGE_BIND,
        EXCHANGE_BIND_OK args(),
        |channel| channel.exchange_bind("x", "y", "k")
    ),
    plain!(
        "exchange_unbind",
        EXCHANGE_UNBIND,
        EXCHANGE_UNBIND_OK args(),
        |channel| channel.exchange_unbind("x", "y", "k")
    ),
    plain!(
        "basic_qos",
        BASIC_QOS,
        BASIC_QOS_OK args(),
        |channel| channel.basic_qos(5)
    ),
    plain!(
        "basic_get, answered by nothing",
        BASIC_GET,
        BASIC_GET_EMPTY args().short(""),
        |channel| channel.basic_get("q").map(drop)
    ),
    Call::new(
        "basic_get",
        |handles| handles.channel().basic_get("q").map(drop),
        |wire| drop(wire.expect(1, BASIC_GET)),
        Some(|wire| {
            wire.send_content(1, BASIC_GET_OK, get_ok(1), "late");
        }),
    )
    .undone(|wire| assert_eq!(wire.expect_settled(1, BASIC_NACK), (1, REQUEUE))),
    Call::new(
        "basic_consume",
        |handles| {
            let consume = cony::basic::Consume::new("q").consumer_tag("late");
            let started = handles.channel().basic_consume(consume, |_, _| Ok(()));
            started.map(drop)
        },
        |wire| drop(wire.expect_consume(1)),
        Some(|wire| wire.send(1, BASIC_CONSUME_OK, args().short("late"))),
    )
    .undone(late_consumer),
    Call::new(
        "consume",
        |handles| {
            let consume = cony::basic::Consume::new("q").consumer_tag("late");
            handles.channel().consume(consume).map(drop)
        },
        |wire| drop(wire.expect_consume(1)),
        Some(|wire| wire.send(1, BASIC_CONSUME_OK, args().short("late"))),
    )
    .undone(late_consumer),
    plain!(
        "basic_cancel",
        BASIC_CANCEL,
        BASIC_CANCEL_OK args().short("tag"),
        |channel| channel.basic_cancel("tag").map(drop)
    ),
    Call::new(
        "Consumer::cancel",
        |handles| handles.channel().consume("q")?.cancel().map(drop),
        |wire| {
            wire.accept_consumer(1);
            wire.expect_cancel(1);
        },
        Some(|wire| wire.send(1, BASIC_CANCEL_OK, args().short("tag"))),
    ),
    Call::new(
        "stop_consuming",
        |handles| {
            let channel = handles.channel();
            channel.basic_consume("q", |_, _| Ok(()))?;
            channel.stop_consuming()
        },
        |wire| {
            wire.accept_consumer(1);
            wire.expect_cancel(1);
        },
        Some(|wire| wire.send(1, BASIC_CANCEL_OK, args().short("tag"))),
    ),
    Call::new(
        "channel",
        |handles| handles.connection().channel().map(drop),
        |wire| drop(wire.expect(2, CHANNEL_OPEN)),
        Some(|wire| wire.send(2, CHANNEL_OPEN_OK, args().long(""))),
    )
    .undone(|wire| wire.serve_until(2, CHANNEL_CLOSE))
    .on_channel(2),
    Call::new(
        "channel.close",
        |handles| handles.channel().close(),
        |wire| drop(wire.expect(1, CHANNEL_CLOSE)),
        Some(|wire| wire.send(1, CHANNEL_CLOSE_OK, args())),
    ),
    Call::new(
        "connection.close",
        |handles| handles.connection().close(),
        |wire| drop(wire.expect(0, CONNECTION_CLOSE)),
        Some(|wire| wire.send(0, CONNECTION_CLOSE_OK, args())),
    )
    .unusual(CLOSING)
    .after_loss(AfterLoss::Closes),
    Call::new(
        "wait_closed",
        |handles| Err(handles.connection().wait_closed()),
        |_| {},
        None,
    )
    .unusual(&[
        (F::Silence, E::MissedHeartbeats),
        (F::ChannelClosed, E::None),
        (F::MemoryAlarm, E::None),
    ])
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "start_consuming",
        |handles| {
            let channel = handles.channel();
            channel.basic_consume("q", |_, _| Ok(()))?;
            channel.start_consuming()
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT)
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "iterating a Consumer",
        |handles| {
            let consumer = handles.channel().consume("q")?;
            consumer.iter().try_for_each(|delivery| delivery.map(drop))
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT)
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "for_each",
        |handles| handles.channel().consume("q")?.for_each(|_| Ok(())),
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT)
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "recv_timeout",
        |handles| {
            let consumer = handles.channel().consume("q")?;
            consumer.recv_timeout(TEST_TIMEOUT).map(drop)
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT)
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "run",
        |handles| {
            handles.channel().basic_consume("q", |_, _| Ok(()))?;
            handles.connection().run()
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT)
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "sleep",
        |handles| {
            handles.channel().basic_consume("q", |_, _| Ok(()))?;
            handles.connection().sleep(TEST_TIMEOUT)
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT)
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "process_data_events",
        |handles| {
            handles.channel().basic_consume("q", |_, _| Ok(()))?;
            handles.connection().process_data_events(TEST_TIMEOUT)
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(&[
        (F::Silence, E::MissedHeartbeats),
        // `connection.blocked` is an event, and the call returns after the first event.
        (F::MemoryAlarm, E::Ok),
        (F::DiskAlarm, E::Ok),
        // The IO thread panics while it logs the block, and the call may return before that.
        (F::IoThreadGone, E::None),
    ])
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "waiting for Consumer::ready",
        |handles| {
            let consumer = handles.channel().consume("q")?;
            let _ = consumer.ready().recv_timeout(TEST_TIMEOUT);
            consumer.try_recv().map(drop)
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT)
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "waiting for BlockingConnection::ready",
        |handles| {
            let connection = handles.connection();
            handles.channel().basic_consume("q", |_, _| Ok(()))?;
            // The signal may come without an event.
            loop {
                let _ = connection.ready().recv_timeout(TEST_TIMEOUT);
                connection.process_data_events(Duration::ZERO)?;
            }
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT)
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "PublisherConfirm::wait",
        |handles| unconfirmed(handles.channel(), |_, confirm| confirm.wait()),
        expect_unconfirmed,
        Some(|wire| wire.send(1, BASIC_ACK, args().u64(1).u8(0))),
    ),
    Call::new(
        "wait_for_confirms",
        |handles| {
            unconfirmed(handles.channel(), |channel, _| {
                channel.wait_for_confirms(Duration::from_secs(1))
            })
        },
        expect_unconfirmed,
        Some(|wire| wire.send(1, BASIC_ACK, args().u64(1).u8(0))),
    )
    // The deadline of the call may pass first.
    .unusual(&[(F::DiskAlarm, E::None)]),
    Call::new(
        "basic_publish that waits for the confirm window",
        |handles| {
            unconfirmed(handles.channel(), |channel, _| {
                channel.basic_publish("", "q", "more").map(drop)
            })
        },
        expect_unconfirmed,
        None,
    )
    .unusual(&[
        (F::Silence, E::PublishTimeout),
        (F::MemoryAlarm, E::PublishBlocked),
    ]),
    Call::new(
        "confirm_delivery",
        |handles| handles.channel().confirm_delivery(),
        |wire| drop(wire.expect(1, CONFIRM_SELECT)),
        Some(|wire| wire.send(1, CONFIRM_SELECT_OK, args())),
    )
    .unusual(&[(F::LateReply, E::None)]),
    plain!(
        "tx_select",
        TX_SELECT,
        TX_SELECT_OK args(),
        |channel| channel.tx_select()
    ),
    plain!(
        "tx_commit",
        TX_COMMIT,
        TX_COMMIT_OK args(),
        |channel| channel.tx_commit()
    )
    .after_loss(AfterLoss::Interrupted),
    plain!(
        "tx_rollback",
        TX_ROLLBACK,
        TX_ROLLBACK_OK args(),
        |channel| channel.tx_rollback()
    ),
    plain!(
        "basic_recover",
        BASIC_RECOVER,
        BASIC_RECOVER_OK args(),
        |channel| channel.basic_recover(cony::basic::Recover::default())
    ),
    plain!(
        "flow",
        CHANNEL_FLOW,
        CHANNEL_FLOW_OK args().u8(1),
        |channel| channel.flow(true).map(drop)
    ),
    plain!(
        "access_request",
        ACCESS_REQUEST,
        ACCESS_REQUEST_OK args().u16(1),
        |channel| channel.access_request(cony::methods::access::Request::default()).map(drop)
    ),
    plain!(
        "send_method",
        QUEUE_PURGE,
        QUEUE_PURGE_OK args().u32(7),
        |channel| {
            let purge = queue::Purge::new("q");
            channel.connection().send_method(1, purge, None).map(drop)
        }
    )
    .after_loss(AfterLoss::Interrupted),
    Call::new(
        "queue_exists",
        |handles| handles.connection().queue_exists("q").map(drop),
        |wire| {
            wire.open_channel(2);
            wire.expect(2, QUEUE_DECLARE);
        },
        Some(|wire| wire.send(2, QUEUE_DECLARE_OK, declare_ok("q"))),
    )
    .undone(|wire| wire.serve_until(2, CHANNEL_CLOSE))
    .on_channel(2),
    Call::new(
        "exchange_exists",
        |handles| handles.connection().exchange_exists("x").map(drop),
        |wire| {
            wire.open_channel(2);
            wire.expect(2, EXCHANGE_DECLARE);
        },
        Some(|wire| wire.send(2, EXCHANGE_DECLARE_OK, args())),
    )
    .undone(|wire| wire.serve_until(2, CHANNEL_CLOSE))
    .on_channel(2),
    Call::new(
        "RpcClient::new",
        |handles| RpcClient::new(handles.connection()).map(drop),
        |wire| {
            accept_confirms(wire);
            wire.expect_consume(2);
        },
        Some(|wire| wire.send(2, BASIC_CONSUME_OK, args().short("cony-2.1"))),
    )
    .undone(|wire| wire.serve_until(2, CHANNEL_CLOSE))
    .on_channel(2),
    Call::new(
        "RpcClient::call",
        |handles| {
            let client = RpcClient::new(handles.connection())?;
            client.call("q", "?", Duration::from_secs(1)).map(drop)
        },
        |wire| {
            accept_confirms(wire);
            wire.accept_consumer(2);
            wire.expect_publish(2);
            wire.send(2, BASIC_ACK, args().u64(1).u8(0));
        },
        Some(|wire| {
            let correlation_id = b"\x04\0\x011";
            wire.raw(&method(2, BASIC_DELIVER, deliver("cony-2.1", 1)));
            wire.raw(&header_with(2, 1, correlation_id));
            wire.raw(&body(2, b"!"));
        }),
    )
    .undone(|wire| wire.serve_until(2, CHANNEL_CLOSE))
    .on_channel(2)
    // The deadline of the call may pass first.
    .unusual(&[(F::DiskAlarm, E::None)])
    .after_loss(AfterLoss::Interrupted),
    Call::new(
        "basic_publish that waits for room",
        |handles| {
            let channel = handles.channel();
            // This publish is larger than all buffers between the client and the peer. It takes
            // room in the write budget until the peer reads on, which some faults let it do.
            channel.basic_publish("", "large", vec![0; 8 << 20])?;
            loop {
                channel.basic_publish("", "waits", vec![0; 1 << 10])?;
            }
        },
        |wire| drop(wire.expect(1, BASIC_PUBLISH)),
        None,
    )
    .unusual(&[
        (F::Silence, E::PublishTimeout),
        (F::MemoryAlarm, E::PublishBlocked),
    ])
    .after_loss(AfterLoss::GoesOn),
    Call::new(
        "connection.close behind a publish that does not leave",
        |handles| {
            let large = vec![0; 8 << 20];
            handles.channel().basic_publish("", "large", large)?;
            handles.connection().close()
        },
        |wire| drop(wire.expect(1, BASIC_PUBLISH)),
        None,
    )
    .unusual(&[
        (F::Silence, E::CloseTimedOut),
        // Either the peer or the client may end the connection first.
        (F::Fin, E::None),
        (F::Reset, E::None),
        (F::ConnectionClosed, E::None),
        (F::MemoryAlarm, E::CloseTimedOut),
        (F::DiskAlarm, E::None),
        (F::IoThreadGone, E::None),
    ])
    .after_loss(AfterLoss::Closes),
    Call::new(
        "drop",
        |handles| {
            handles.connection = None;
            handles.channel = None;
            Ok(())
        },
        |wire| {
            wire.expect(1, CHANNEL_CLOSE);
            wire.expect(0, CONNECTION_CLOSE);
        },
        None,
    )
    .unusual(ALWAYS_OK)
    .after_loss(AfterLoss::Closes),
    Call::new(
        "drop behind a publish that does not leave",
        |handles| {
            let large = vec![0; 8 << 20];
            handles.channel().basic_publish("", "large", large)?;
            handles.connection = None;
            handles.channel = None;
            Ok(())
        },
        |wire| drop(wire.expect(1, BASIC_PUBLISH)),
        None,
    )
    .unusual(ALWAYS_OK)
    .after_loss(AfterLoss::Closes),
    Call::new(
        "disconnect",
        |handles| {
            handles.connection().disconnect();
            Ok(())
        },
        |_| {},
        None,
    )
    .unusual(&[
        (F::Silence, E::Ok),
        (F::Fin, E::None),
        (F::Reset, E::None),
        (F::ChannelClosed, E::None),
        (F::ConnectionClosed, E::None),
        (F::MemoryAlarm, E::Ok),
        (F::DiskAlarm, E::None),
        (F::IoThreadGone, E::None),
    ])
    .after_loss(AfterLoss::Closes),
];

/// Publishes one message without a confirm, which fills the confirm window, and calls `go_on`.
fn unconfirmed(
    channel: &BlockingChannel,
    go_on: fn(&BlockingChannel, PublisherConfirm) -> Result<(), Error>,
) -> Result<(), Error> {
    channel.confirm_delivery()?;
    let confirm = channel.basic_publish("", "q", "x")?;
    // The table names the reason within `Error::Unconfirmed`.
    go_on(channel, confirm).map_err(|error| match error {
        Error::Unconfirmed(reason) => *reason,
        error => error,
    })
}

fn expect_unconfirmed(wire: &mut Wire) {
    wire.expect(1, CONFIRM_SELECT);
    wire.send(1, CONFIRM_SELECT_OK, args());
    wire.expect_publish(1);
}

/// Accepts channel 2 and its confirm mode.
fn accept_confirms(wire: &mut Wire) {
    wire.open_channel(2);
    wire.expect(2, CONFIRM_SELECT);
    wire.send(2, CONFIRM_SELECT_OK, args());
}

fn late_consumer(wire: &mut Wire) {
    assert_eq!(wire.expect_cancel(1), "late");
    // The client requeues a delivery for the consumer that it cancels.
    wire.deliver(1, "late", 1, "too late");
    assert_eq!(wire.expect_settled(1, BASIC_NACK), (1, REQUEUE));
    wire.send(1, BASIC_CANCEL_OK, args().short("late"));
}
