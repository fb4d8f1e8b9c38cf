//! Two tables: the blocking calls, and the faults that can happen during a call. Every call meets
//! every fault. A new call or a new fault is one more entry. `recovering` has the same for a
//! connection that recovers.

mod calls;
mod recovering;

use crate::support::log::{DOOMED, TestLog};
use crate::support::pause;
use crate::support::peer::methods::*;
use crate::support::peer::{
    Signal, TEST_TIMEOUT, Transport, Tune, Wire, args, body, close, declare_ok, deliver, get_ok,
    header_with, method, play_over, signal,
};
use cony::{
    BlockingChannel, BlockingConnection, ConnectionLostError, ConnectionParameters, Error,
    PublisherConfirm, Recovery, ReplyCode, RpcClient, TcpOptions, exchange, queue,
};
use parking_lot::Mutex;
use std::panic::resume_unwind;
use std::sync::mpsc::Sender;
use std::sync::{LazyLock, Once};
use std::time::{Duration, Instant};

use self::Ending as E;
use self::Fault as F;
pub(crate) use self::calls::CALLS;
pub(crate) use self::recovering::{AfterLoss, applies_with_recovery, meet_with_recovery};

/// A fault that happens while a call waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The peer falls silent: it reads and writes nothing.
    Silence,
    /// The peer sends FIN.
    Fin,
    /// The peer sends RST.
    Reset,
    /// The peer closes the channel.
    ChannelClosed,
    /// The peer closes the connection.
    ConnectionClosed,
    /// The peer replies after the deadline of the call.
    LateReply,
    /// The peer vanishes: not even its TCP acknowledges anything.
    HalfOpen,
    /// The peer falls silent in the middle of a frame.
    MidFrame,
    /// The peer replies, but sends everything byte by byte.
    ByteByByte,
    /// The peer blocks the connection because of low memory.
    MemoryAlarm,
    /// The peer blocks the connection for longer than `blocked_connection_timeout`.
    DiskAlarm,
    /// The IO thread of the client panics.
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
    /// `Error::PublishTimeout` with the reason for which the broker blocks the connection.
    PublishBlocked,
    BlockedTooLong,
    EndOfStream,
    Io,
    MissedHeartbeats,
    CloseTimedOut,
    /// With the code and the text of the peer.
    ChannelClosed,
    /// With the code and the text of the peer.
    ConnectionClosed,
    /// The fault does not apply to this call.
    None,
}

const CHANNEL_TEXT: &str = "PRECONDITION_FAILED - by the script";

const MEMORY: &str = "low on memory";

const DISK: &str = "low on disk";

const CONNECTION_TEXT: &str = "CONNECTION_FORCED - by the script";

impl Ending {
    /// Returns how a call ends that expects a reply on a channel.
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

/// The handles of the client. A call may take them.
pub(crate) struct Handles {
    connection: Option<BlockingConnection>,
    channel: Option<BlockingChannel>,
}

impl Handles {
    pub(crate) fn new(connection: &BlockingConnection, channel: &BlockingChannel) -> Self {
        Self {
            connection: Some(connection.clone()),
            channel: Some(channel.clone()),
        }
    }

    pub(crate) fn connection(&self) -> &BlockingConnection {
        self.connection.as_ref().unwrap()
    }

    pub(crate) fn channel(&self) -> &BlockingChannel {
        self.channel.as_ref().unwrap()
    }
}

/// A blocking call.
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&mut Handles) -> Result<(), Error>,
    /// The steps of the peer until the call waits for the peer only.
    pub(crate) until_it_waits: fn(&mut Wire),
    /// The channel of the call, or 0.
    channel: u16,
    /// Sends the reply.
    reply: Option<fn(&mut Wire)>,
    /// The steps of the peer while the client undoes a late reply.
    undone: fn(&mut Wire),
    /// The faults for which the call ends otherwise than `Ending::usual`.
    unusual: &'static [(Fault, Ending)],
    /// How the call ends if the connection recovers from the fault.
    after_loss: AfterLoss,
}

impl Call {
    /// Returns a call on channel 1 that always ends as `Ending::usual`.
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
            after_loss: AfterLoss::Ok,
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

    const fn after_loss(mut self, after_loss: AfterLoss) -> Self {
        self.after_loss = after_loss;
        self
    }

    fn ending(&self, fault: Fault) -> Ending {
        // The client sees silence in each of these cases.
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

/// Sets short deadlines for faults that must end at a deadline, and long deadlines for the others.
fn adjust(parameters: ConnectionParameters, fault: Fault) -> ConnectionParameters {
    let parameters = parameters
        .write_budget(64 * 1024)
        .tcp_options(TcpOptions::new().send_buffer(64 * 1024));
    let (seconds, heartbeat) = match fault {
        // Far apart, so that their order is certain on a busy machine.
        F::Silence | F::HalfOpen | F::MidFrame => (2, 3),
        F::LateReply | F::MemoryAlarm => (2, 0),
        _ => (10, 0),
    };
    let parameters = match fault {
        F::DiskAlarm => parameters.blocked_connection_timeout(Duration::from_secs(1)),
        F::IoThreadGone => parameters.connection_name(DOOMED),
        _ => parameters,
    };
    let deadline = Duration::from_secs(seconds);
    parameters
        .heartbeat(Duration::from_secs(heartbeat))
        .rpc_timeout(deadline)
        .publish_timeout(deadline)
        .confirm_timeout(deadline)
        .close_timeout(deadline)
        .drop_timeout(deadline)
        .confirm_window(1)
}

/// Returns whether the fault applies to the call.
pub(crate) fn applies(call: &Call, fault: Fault) -> bool {
    call.ending(fault) != E::None
}

/// Runs `call` with `fault`. Panics unless the call ends as expected, the handles return the same
/// error afterwards, and closing and dropping the handles ends.
pub(crate) fn meet(call: &'static Call, fault: Fault, transport: Transport) {
    meet_with(call, fault, transport, None);
}

/// Does so with this setting of recovery. The connection must not be lost by the fault.
fn meet_with(call: &'static Call, fault: Fault, transport: Transport, recovery: Option<Recovery>) {
    if fault == F::IoThreadGone {
        TestLog::install();
    }
    // Sent when the deadline has passed, dropped when the client has ended.
    let (past, deadline) = signal();
    play_over(
        transport,
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
            let parameters = adjust(parameters, fault).recovery(recovery);
            let connection = BlockingConnection::open(parameters).unwrap();
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
                "the call ended with {outcome:?}"
            );
            if let Err(Error::Timeout { channel, .. }) = &outcome {
                assert_eq!(*channel, (call.channel > 0).then_some(call.channel));
            }
            if let (Err(error), Some(connection)) = (&outcome, &handles.connection) {
                check_handles(call, fault, error, connection, handles.channel(), &past);
            }
            // These closes may fail, but they must return.
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

/// Runs the steps of the peer from the fault on.
fn inflict(call: &Call, fault: Fault, mut wire: Wire, deadline: &Signal) {
    match fault {
        F::Silence => deadline.wait_dropped(),
        F::HalfOpen => {
            wire.vanish();
            deadline.wait_dropped();
            // The client has sent heartbeats and the end of its stream meanwhile.
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
            // The IO thread logs the block, and the logger panics.
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
            // A close that crosses the client's close comes in addition to close-ok.
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

/// Checks the handles after a failed call: they return the same error if the channel or the
/// connection has ended, and work otherwise.
fn check_handles(
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
            // A channel whose close had begun keeps the close by the program as its reason.
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
            // On a busy machine more than one call may time out.
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

/// Checks that the first and the second channel number are free again, when no channel is open.
fn assert_numbers_are_free(connection: &BlockingConnection) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    for number in [1, 2] {
        // Dropping the last handle closes a channel in the background.
        while let Err(error) = connection.channel_with_number(number) {
            let in_use = matches!(error, Error::ChannelNumberInUse(_));
            assert!(in_use || !connection.is_open(), "channel {number}: {error}");
            if !in_use {
                return;
            }
            assert!(Instant::now() < deadline, "channel {number} is never free");
            pause();
        }
    }
}
