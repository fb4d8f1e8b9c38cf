//! Two tables: the calls that wait, and what can happen to the peer meanwhile. Every
//! call meets every fault. A new call or a new fault is one more entry.

use std::panic::resume_unwind;
use std::sync::mpsc::Sender;
use std::sync::{LazyLock, Once};
use std::thread;
use std::time::{Duration, Instant};

use cony::{
    BlockingChannel, BlockingConnection, Confirm, ConnectionLostError, ConnectionParameters, Error,
    ReplyCode, RpcClient, TcpOptions, queue,
};

use parking_lot::Mutex;

use crate::support::peer::methods::*;
use crate::support::peer::{
    Below, CURTAIN, Signal, Tune, Wire, args, body, close, declare_ok, deliver, get_ok,
    header_with, method, play_over, signal,
};

/// What happens to the peer while a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It falls silent: it reads and writes nothing.
    Silence,
    /// It says that nothing more comes.
    Fin,
    /// It throws the connection away.
    Reset,
    /// It closes the channel.
    ChannelClosed,
    /// It closes the connection.
    ConnectionClosed,
    /// It answers after the deadline of the call.
    LateReply,
    /// It vanishes, and not even its TCP acknowledges anything.
    HalfOpen,
    /// It falls silent in the middle of a frame.
    MidFrame,
    /// It answers, but everything that it ever says comes byte by byte.
    ByteByByte,
    /// It takes no more, for want of memory.
    MemoryAlarm,
    /// It takes no more, for want of disk space, for longer than the program wants to wait.
    DiskAlarm,
    /// It does nothing, but the client's IO thread panics.
    IoThreadGone,
}

impl Fault {
    pub(crate) const ALL: [Self; 12] = [
        Self::Silence,
        Self::Fin,
        Self::Reset,
        Self::ChannelClosed,
        Self::ConnectionClosed,
        Self::LateReply,
        Self::HalfOpen,
        Self::MidFrame,
        Self::ByteByByte,
        Self::MemoryAlarm,
        Self::DiskAlarm,
        Self::IoThreadGone,
    ];
}

/// How a call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Ok,
    Timeout,
    PublishTimeout,
    /// A publish did not go out, and why the broker takes none.
    PublishBlocked,
    BlockedTooLong,
    EndOfStream,
    Io,
    MissedHeartbeats,
    CloseTimedOut,
    /// With code and text of the peer.
    ChannelClosed,
    /// With code and text of the peer.
    ConnectionClosed,
    /// The fault says nothing to this call.
    None,
}

use self::Ending as E;
use self::Fault as F;

const CHANNEL_TEXT: &str = "PRECONDITION_FAILED - by the script";
const MEMORY: &str = "low on memory";
const DISK: &str = "low on disk";
const CONNECTION_TEXT: &str = "CONNECTION_FORCED - by the script";

impl Ending {
    /// How a call ends that expects a reply on a channel.
    fn usual(fault: Fault) -> Self {
        match fault {
            F::Silence | F::LateReply | F::HalfOpen | F::MidFrame | F::MemoryAlarm => E::Timeout,
            F::Fin => E::EndOfStream,
            F::Reset | F::IoThreadGone => E::Io,
            F::ByteByByte => E::Ok,
            F::DiskAlarm => E::BlockedTooLong,
            F::ChannelClosed => E::ChannelClosed,
            F::ConnectionClosed => E::ConnectionClosed,
        }
    }

    fn of(outcome: &Result<(), Error>) -> Option<Self> {
        Some(match outcome {
            Ok(()) => E::Ok,
            Err(Error::Timeout { .. }) => E::Timeout,
            Err(Error::PublishTimeout { blocked: None, .. }) => E::PublishTimeout,
            Err(Error::PublishTimeout {
                blocked: Some(reason),
                ..
            }) if *reason == MEMORY => E::PublishBlocked,
            Err(Error::ConnectionLost(loss)) => match loss {
                ConnectionLostError::EndOfStream => E::EndOfStream,
                ConnectionLostError::Io { .. } => E::Io,
                ConnectionLostError::MissedHeartbeats(_) => E::MissedHeartbeats,
                ConnectionLostError::CloseTimedOut => E::CloseTimedOut,
                ConnectionLostError::BlockedTooLong { reason, .. } if *reason == DISK => {
                    E::BlockedTooLong
                }
                _ => return None,
            },
            Err(Error::ChannelClosed(reason))
                if (reason.code, &*reason.text)
                    == (ReplyCode::PRECONDITION_FAILED, CHANNEL_TEXT) =>
            {
                E::ChannelClosed
            }
            Err(Error::ConnectionClosed(reason))
                if (reason.code, &*reason.text)
                    == (ReplyCode::CONNECTION_FORCED, CONNECTION_TEXT) =>
            {
                E::ConnectionClosed
            }
            Err(_) => return None,
        })
    }
}

/// What the client has. A call may take its handles.
pub(crate) struct Handles {
    connection: Option<BlockingConnection>,
    channel: Option<BlockingChannel>,
}

impl Handles {
    fn connection(&self) -> &BlockingConnection {
        self.connection.as_ref().unwrap()
    }

    fn channel(&self) -> &BlockingChannel {
        self.channel.as_ref().unwrap()
    }
}

/// A call that waits.
pub(crate) struct Call {
    pub(crate) name: &'static str,
    run: fn(&mut Handles) -> Result<(), Error>,
    /// The peer's part, up to the point at which the call waits for nothing but the
    /// peer.
    until_it_waits: fn(&mut Wire),
    /// On which channel it waits.
    channel: u16,
    /// Sends the reply.
    reply: Option<fn(&mut Wire)>,
    /// Sees what a late reply did undone.
    undone: fn(&mut Wire),
    /// Where it does not end as calls usually do.
    unusual: &'static [(Fault, Ending)],
}

impl Call {
    /// A call on channel 1 that ends as calls usually do.
    const fn new(
        name: &'static str,
        run: fn(&mut Handles) -> Result<(), Error>,
        until_it_waits: fn(&mut Wire),
        reply: Option<fn(&mut Wire)>,
    ) -> Self {
        Self {
            name,
            run,
            until_it_waits,
            channel: 1,
            reply,
            undone: |_| {},
            unusual: &[],
        }
    }

    const fn on_channel(mut self, channel: u16) -> Self {
        self.channel = channel;
        self
    }

    const fn undone(mut self, undone: fn(&mut Wire)) -> Self {
        self.undone = undone;
        self
    }

    const fn unusual(mut self, unusual: &'static [(Fault, Ending)]) -> Self {
        self.unusual = unusual;
        self
    }

    fn ending(&self, fault: Fault) -> Ending {
        // To a call it is the same.
        let alike = match fault {
            F::HalfOpen | F::MidFrame => F::Silence,
            other => other,
        };
        let unusual = self.unusual.iter().find(|(f, _)| *f == alike);
        match (unusual, fault) {
            (Some((_, ending)), _) => *ending,
            (None, F::LateReply | F::ByteByByte) if self.reply.is_none() => E::None,
            (None, _) => Ending::usual(fault),
        }
    }
}

/// A plain call: its method, the reply, and the reply's arguments.
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

/// A wait that no deadline of its own ends, for a consumer.
const PATIENT: &[(Fault, Ending)] = &[
    (F::Silence, E::MissedHeartbeats),
    // Nobody says that messages stop coming.
    (F::MemoryAlarm, E::None),
];

/// What an answer to our own close would also end.
const CLOSING: &[(Fault, Ending)] = &[
    (F::Silence, E::CloseTimedOut),
    (F::Fin, E::Ok),
    (F::Reset, E::Ok),
    (F::LateReply, E::None),
    (F::MemoryAlarm, E::CloseTimedOut),
    // Behind our close nothing else is listened to.
    (F::DiskAlarm, E::None),
    (F::IoThreadGone, E::None),
];

const WHATEVER_HAPPENS: &[(Fault, Ending)] = &[
    (F::Silence, E::Ok),
    (F::Fin, E::Ok),
    (F::Reset, E::Ok),
    (F::ChannelClosed, E::Ok),
    (F::ConnectionClosed, E::Ok),
    (F::MemoryAlarm, E::Ok),
    // Behind our close nothing else is listened to.
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
    ),
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
    .unusual(CLOSING),
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
    ]),
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
    .unusual(PATIENT),
    Call::new(
        "iterating a Consumer",
        |handles| {
            let consumer = handles.channel().consume("q")?;
            consumer.iter().try_for_each(|delivery| delivery.map(drop))
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT),
    Call::new(
        "for_each",
        |handles| handles.channel().consume("q")?.for_each(|_| Ok(())),
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT),
    Call::new(
        "recv_timeout",
        |handles| {
            let consumer = handles.channel().consume("q")?;
            consumer.recv_timeout(CURTAIN).map(drop)
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT),
    Call::new(
        "run",
        |handles| {
            handles.channel().basic_consume("q", |_, _| Ok(()))?;
            handles.connection().run()
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT),
    Call::new(
        "sleep",
        |handles| {
            handles.channel().basic_consume("q", |_, _| Ok(()))?;
            handles.connection().sleep(CURTAIN)
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT),
    Call::new(
        "process_data_events",
        |handles| {
            handles.channel().basic_consume("q", |_, _| Ok(()))?;
            handles.connection().process_data_events(CURTAIN)
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(&[
        (F::Silence, E::MissedHeartbeats),
        // That the broker blocks is an event, after which it returns.
        (F::MemoryAlarm, E::Ok),
        (F::DiskAlarm, E::Ok),
        // It is made to panic while it tells of such a block, which may be first.
        (F::IoThreadGone, E::None),
    ]),
    Call::new(
        "waiting for Consumer::ready",
        |handles| {
            let consumer = handles.channel().consume("q")?;
            let _ = consumer.ready().recv_timeout(CURTAIN);
            consumer.try_next().map(drop)
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT),
    Call::new(
        "waiting for BlockingConnection::ready",
        |handles| {
            let connection = handles.connection();
            handles.channel().basic_consume("q", |_, _| Ok(()))?;
            // It may be ready without anything to tell.
            loop {
                let _ = connection.ready().recv_timeout(CURTAIN);
                connection.process_data_events(Duration::ZERO)?;
            }
        },
        |wire| drop(wire.accept_consumer(1)),
        None,
    )
    .unusual(PATIENT),
    Call::new(
        "Confirm::wait",
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
    // Its own deadline may come first.
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
    ),
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
    ),
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
    // Its own deadline may come first.
    .unusual(&[(F::DiskAlarm, E::None)]),
    Call::new(
        "basic_publish that waits for room",
        |handles| {
            let channel = handles.channel();
            // The first is larger than all buffers on the way, so it stays in the budget
            // until the peer reads on; which some faulty ones do.
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
    ]),
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
        // The peer may notice first, or the client close first.
        (F::Fin, E::None),
        (F::Reset, E::None),
        (F::ConnectionClosed, E::None),
        (F::MemoryAlarm, E::CloseTimedOut),
        (F::DiskAlarm, E::None),
        (F::IoThreadGone, E::None),
    ]),
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
    .unusual(WHATEVER_HAPPENS),
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
    .unusual(WHATEVER_HAPPENS),
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
    ]),
];

/// Goes on with the channel when one message is published and not confirmed, which is all
/// that its window takes.
fn unconfirmed(
    channel: &BlockingChannel,
    go_on: fn(&BlockingChannel, Confirm) -> Result<(), Error>,
) -> Result<(), Error> {
    channel.confirm_delivery()?;
    let confirm = channel.basic_publish("", "q", "x")?;
    // What is unknown for a reason is said to end for that reason.
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

/// Opens channel 2, which goes into confirm mode.
fn accept_confirms(wire: &mut Wire) {
    wire.open_channel(2);
    wire.expect(2, CONFIRM_SELECT);
    wire.send(2, CONFIRM_SELECT_OK, args());
}

/// The bits of basic.nack.
const REQUEUE: u8 = 2;

fn late_consumer(wire: &mut Wire) {
    assert_eq!(wire.expect_cancel(1), "late");
    // What comes nevertheless goes back.
    wire.deliver(1, "late", 1, "too late");
    assert_eq!(wire.expect_settled(1, BASIC_NACK), (1, REQUEUE));
    wire.send(1, BASIC_CANCEL_OK, args().short("late"));
}

/// Short deadlines where they are what is tried, long ones where they must not matter.
fn adjust(parameters: ConnectionParameters, fault: Fault) -> ConnectionParameters {
    let parameters = parameters
        .write_budget(64 * 1024)
        .tcp_options(TcpOptions::new().send_buffer(64 * 1024));
    let (seconds, heartbeat) = match fault {
        // Far apart, so that a busy machine does not mix them up.
        F::Silence | F::HalfOpen | F::MidFrame => (2, 3),
        F::LateReply | F::MemoryAlarm => (2, 0),
        _ => (10, 0),
    };
    let parameters = match fault {
        F::DiskAlarm => parameters.blocked_connection_timeout(Duration::from_secs(1)),
        F::IoThreadGone => parameters.connection_name(DOOMED.to_owned()),
        _ => parameters,
    };
    let deadline = Duration::from_secs(seconds);
    parameters
        .heartbeat(Duration::from_secs(heartbeat))
        .rpc_timeout(deadline)
        .publish_timeout(deadline)
        .close_timeout(deadline)
        .drop_timeout(deadline)
        .confirm_window(1)
}

/// Whether this call has anything to do with this fault.
pub(crate) fn applies(call: &Call, fault: Fault) -> bool {
    call.ending(fault) != E::None
}

/// Lets `call` meet `fault`. Panics unless it ends as it should, the handles say the
/// same afterwards, and closing and dropping them ends too.
pub(crate) fn meet(call: &'static Call, fault: Fault, below: Below) {
    if fault == F::IoThreadGone {
        Saboteur::install();
    }
    // Sent when a deadline has passed, and dropped when the client is done.
    let (past, deadline) = signal();
    play_over(
        below,
        move |listener| {
            let mut wire = listener.accept();
            if fault == F::ByteByByte {
                wire.trickle();
            }
            wire.handshake(Tune::default());
            wire.open_channel(1);
            (call.until_it_waits)(&mut wire);
            inflict(call, fault, wire, &deadline);
        },
        move |parameters| {
            let connection = BlockingConnection::open(adjust(parameters, fault)).unwrap();
            let channel = connection.channel().unwrap();
            let mut handles = Handles {
                connection: Some(connection),
                channel: Some(channel),
            };
            let outcome = (call.run)(&mut handles);
            let expected = call.ending(fault);
            assert_eq!(
                Ending::of(&outcome),
                Some(expected),
                "it ended with {outcome:?}"
            );
            if let Err(Error::Timeout { channel, .. }) = &outcome {
                assert_eq!(*channel, (call.channel > 0).then_some(call.channel));
            }
            if let (Err(error), Some(connection)) = (&outcome, &handles.connection) {
                look_again(call, fault, error, connection, handles.channel(), &past);
            }
            // However these end, they end.
            if let Some(channel) = handles.channel.take() {
                let _ = channel.close();
            }
            if let (Some(connection), F::LateReply | F::ChannelClosed | F::ByteByByte) =
                (&handles.connection, fault)
            {
                assert_numbers_are_free(connection);
            }
            if let Some(connection) = handles.connection.take() {
                let _ = connection.close();
            }
            drop(handles);
            drop(past);
        },
    );
}

/// The peer's part after its call.
fn inflict(call: &Call, fault: Fault, mut wire: Wire, deadline: &Signal) {
    match fault {
        F::Silence => deadline.wait_dropped(),
        F::HalfOpen => {
            wire.vanish();
            deadline.wait_dropped();
            // Heartbeats and the end of the client's stream were sent meanwhile.
            wire.expect_nothing();
            wire.reset();
        }
        F::MidFrame => {
            let whole = body(call.channel, &[0; 1000]);
            wire.raw(&whole[..500]);
            deadline.wait_dropped();
        }
        F::ByteByByte => {
            if let Some(reply) = call.reply {
                reply(&mut wire);
            }
            wire.serve();
        }
        F::MemoryAlarm => {
            wire.send(0, CONNECTION_BLOCKED, args().short(MEMORY));
            deadline.wait_dropped();
        }
        F::DiskAlarm => {
            wire.send(0, CONNECTION_BLOCKED, args().short(DISK));
            wire.drain();
        }
        F::IoThreadGone => {
            // The client logs it.
            wire.send(0, CONNECTION_BLOCKED, args().short(MEMORY));
            wire.drain();
        }
        F::Fin => {
            wire.shut_down();
            wire.drain();
        }
        F::Reset => wire.reset(),
        F::ChannelClosed => {
            let channel = call.channel;
            let mut bytes = method(
                channel,
                CHANNEL_CLOSE,
                close(406, CHANNEL_TEXT, QUEUE_DECLARE),
            );
            // A close that crosses ours is sent in addition to the answer to ours.
            match call.name {
                "channel.close" => bytes.extend(method(channel, CHANNEL_CLOSE_OK, args())),
                "connection.close" | "drop" => {
                    bytes.extend(method(0, CONNECTION_CLOSE_OK, args()));
                }
                _ => {}
            }
            wire.raw(&bytes);
            wire.serve();
        }
        F::ConnectionClosed => {
            let close = close(320, CONNECTION_TEXT, (0, 0));
            wire.send(0, CONNECTION_CLOSE, close);
            wire.await_close_ok();
        }
        F::LateReply => {
            deadline.wait();
            if let Some(reply) = call.reply {
                reply(&mut wire);
                (call.undone)(&mut wire);
            }
            wire.serve();
        }
    }
}

/// What the handles say after a call has failed: the same, if something has died; else
/// that all is well.
fn look_again(
    call: &Call,
    fault: Fault,
    error: &Error,
    connection: &BlockingConnection,
    channel: &BlockingChannel,
    past: &Sender<()>,
) {
    let same = |other: Error| assert_eq!(other.to_string(), error.to_string());
    match error {
        Error::ConnectionLost(_) | Error::ConnectionClosed(_) => {
            same(connection.wait_closed());
            same(connection.close_reason().unwrap());
            same(connection.channel().map(drop).unwrap_err());
            // A channel that the program was closing stays closed for that reason.
            if call.name != "channel.close" {
                same(channel.close_reason().unwrap());
                same(channel.queue_declare("again").unwrap_err());
                same(channel.basic_publish("", "again", "again").unwrap_err());
            }
            assert!(connection.is_closed() && !connection.is_open());
        }
        Error::ChannelClosed(_) => {
            if call.channel == channel.number() {
                same(channel.close_reason().unwrap());
                same(channel.queue_declare("again").unwrap_err());
                same(channel.basic_publish("", "again", "again").unwrap_err());
            }
            if call.name.starts_with("connection.close") {
                return assert!(connection.is_closed());
            }
            let other = connection.channel().unwrap();
            other.queue_declare("again").unwrap();
        }
        _ if fault == F::LateReply => {
            past.send(()).unwrap();
            // A machine that is busy may need more than one deadline.
            let again = || match channel.is_open() {
                true => channel.queue_declare("again").map(drop),
                false => connection.channel().map(drop),
            };
            let outcome = (0..10)
                .map(|_| again())
                .find(|outcome| !matches!(outcome, Err(Error::Timeout { .. })));
            outcome
                .expect("ten calls after the late reply timed out")
                .unwrap();
        }
        _ => assert!(connection.is_open()),
    }
}

/// With no channel open, the first and the second number are free again.
fn assert_numbers_are_free(connection: &BlockingConnection) {
    let deadline = Instant::now() + CURTAIN;
    for number in [1, 2] {
        // A channel whose last handle went is closed in the background.
        while let Err(error) = connection.channel_with_number(number) {
            let in_use = matches!(error, Error::ChannelNumberInUse(_));
            assert!(in_use || !connection.is_open(), "channel {number}: {error}");
            if !in_use {
                return;
            }
            assert!(Instant::now() < deadline, "channel {number} is never free");
            thread::yield_now();
        }
    }
}

/// The name of a connection whose IO thread does not survive what it has to log.
const DOOMED: &str = "doomed";

/// And the same whenever it has anything to say, down to details.
pub(crate) const WORDY: &str = "wordy";

/// The name of a connection whose IO thread takes this long to log anything: longer than a
/// peer may be silent that is to send something every second.
pub(crate) const SLUGGISH: &str = "sluggish";
const STALL: Duration = Duration::from_millis(2500);

/// Told whenever such a thread begins to log.
pub(crate) static STALLS: LazyLock<Channel> = LazyLock::new(crossbeam_channel::unbounded);
type Channel = (
    crossbeam_channel::Sender<()>,
    crossbeam_channel::Receiver<()>,
);

/// A log that panics or takes its time, as no log should; and keeps what it is told.
pub(crate) struct Saboteur;

static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Saboteur {
    pub(crate) fn install() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            log::set_logger(&Self).unwrap();
            log::set_max_level(log::LevelFilter::Debug);
        });
    }
}

impl Saboteur {
    /// How many lines have these words.
    pub(crate) fn count(words: &str) -> usize {
        LOGGED
            .lock()
            .iter()
            .filter(|line| line.contains(words))
            .count()
    }
}

impl log::Log for Saboteur {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let is_io_thread = thread::current().name() == Some("cony-io");
        if record.level() == log::Level::Debug {
            let is_wordy = record.args().to_string().starts_with(WORDY);
            if is_io_thread && is_wordy {
                resume_unwind(Box::new("by the log, again and again"));
            }
            return;
        }
        LOGGED.lock().push(record.args().to_string());
        if is_io_thread && record.args().to_string().starts_with(DOOMED) {
            // Without a word on the test's output.
            resume_unwind(Box::new("by the log"));
        }
        if is_io_thread && record.args().to_string().starts_with(SLUGGISH) {
            STALLS.0.send(()).unwrap();
            thread::sleep(STALL);
        }
    }

    fn flush(&self) {}
}
