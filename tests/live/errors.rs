//! Every variant of `Error`, `ConnectError` and `ConnectionLostError`, with its text: the cause,
//! the place and the remedy. A new variant needs an entry in the table.
//!
//! RabbitMQ does not cause all of them on request, so a scripted peer causes the others. The file
//! `tls.rs` tests [`TlsError`].
//!
//! [`TlsError`]: cony::TlsError

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use cony::{
    BlockingChannel, BlockingConnection, CancellationToken, ConnectError, ConnectionLostError,
    ConnectionParameters, Credentials, Error, Message, Result, basic, queue,
};

use crate::support::peer::methods::*;
use crate::support::peer::{
    Listener, Tune, Wire, args, body, close, deliver, frame, header, header_with, method, play,
    start,
};
use crate::support::{channel, connect, exclusive_queue, get, url, variable};

/// A function that causes a variant, and words that its text must have.
struct Case {
    of: &'static str,
    variant: &'static str,
    cause: fn() -> Error,
    is: fn(&Error) -> bool,
    words: &'static [&'static str],
}

macro_rules! cases {
    ($($of:ident::$variant:ident: $cause:expr, $words:expr;)*) => {
        const CASES: &[Case] = &[$(Case {
            of: stringify!($of),
            variant: stringify!($variant),
            cause: $cause,
            is: cases!(@is $of $variant),
            words: &$words,
        }),*];
    };
    (@is Error $variant:ident) => {
        |error| matches!(error, Error::$variant { .. })
    };
    (@is ConnectError $variant:ident) => {
        |error| matches!(error, Error::Connect { cause: ConnectError::$variant { .. }, .. })
    };
    (@is ConnectionLostError $variant:ident) => {
        |error| matches!(error, Error::ConnectionLost(ConnectionLostError::$variant { .. }))
    };
}

cases! {
    Error::InvalidOption: || refused("amqp://localhost?heartbeat=soon"), ["heartbeat", "'soon'"];
    Error::Connect: || refused("amqp://127.0.0.1:1"), ["127.0.0.1:1", "the broker is running"];
    Error::OpenCancelled: || {
        let token = CancellationToken::new();
        token.cancel();
        refused(broker().cancellation_token(token))
    }, ["this program cancelled the opening to", "no attempt was under way", "a new CancellationToken"];
    Error::AuthenticationFailed: || {
        refused(broker().credentials(Credentials::plain("guest", "a secret")))
    }, ["refused the credentials", "PLAIN", "check user and password", "localhost only"];
    Error::CredentialsErased: || {
        let credentials = Credentials::plain("guest", "guest");
        credentials.erase();
        refused(broker().credentials(credentials))
    }, ["erased", "create new credentials"];
    Error::ProviderFailed: || {
        let provider = Credentials::provider(|| Err(Error::other("the vault is sealed")));
        refused(broker().credentials(provider))
    }, ["the provider of the credentials failed", "the vault is sealed"];
    Error::AccessDenied: || refused(broker().virtual_host("none")),
        ["'none'", "not found", "530", "the user has permissions"];
    Error::UnsupportedProtocol: || banner(b"AMQP\0\x01\0\0"),
        ["does not speak AMQP 0-9-1", r"AMQP\x00\x01\x00\x00", "another port"];
    Error::NotAmqp: || banner(b"HTTP/1.1 400 Bad Request"),
        ["127.0.0.1:", "no AMQP broker", "HTTP/1.1", "check the port", "5672"];
    Error::ConnectionClosed: || {
        let channel = channel();
        let message = Message::new("x").immediate(true);
        channel.basic_publish("", "q", message).unwrap();
        channel.connection().wait_closed()
    }, ["the connection was closed by the broker", "540 NOT_IMPLEMENTED", "immediate",
        "basic.publish"];
    Error::ConnectionLost: || lost(hang_up), ["the connection is lost"];
    Error::Protocol: || lost(|mut wire| {
        wire.raw(&frame(9, 0, b"?"));
        wire.drain();
    }),
        ["violated the protocol", "frame type 9", "report this"];
    Error::ChannelClosed: || {
        failed(channel().queue_declare_passive("none"))
    }, ["the channel was closed by the broker", "404 NOT_FOUND (no queue 'none'",
        "caused by queue.declare", "has to be declared first"];
    Error::InvalidChannelNumber: || failed(connect().channel_with_number(0)),
        ["no channel 0", "from 1 to"];
    Error::ChannelNumberInUse: || {
        let connection = connect();
        let _channel = connection.channel_with_number(5).unwrap();
        failed(connection.channel_with_number(5))
    }, ["channel 5 is in use", "close it first"];
    Error::NoFreeChannels: || {
        let connection = BlockingConnection::open(broker().channel_max(1)).unwrap();
        let _channel = connection.channel().unwrap();
        failed(connection.channel())
    }, ["the 1 channels", "open another connection"];
    Error::Timeout: || with_peer(Duration::from_millis(100), fall_silent, |channel| {
        failed(channel.queue_declare("q"))
    }), ["no reply to queue.declare on channel 1 within 100ms", "raise rpc_timeout"];
    Error::PublishTimeout: || with_peer(Duration::from_secs(10), |mut wire| {
        accept_confirms(&mut wire);
        wire.drain();
    }, |channel| {
        channel.confirm_delivery().unwrap();
        channel.basic_publish("", "q", "one").unwrap();
        failed(channel.basic_publish("", "q", "two"))
    }), ["no room to publish within 100ms", "more slowly", "publish_timeout"];
    Error::TooLong: || failed(channel().queue_declare("q".repeat(256))),
        ["queue.declare queue", "256 bytes exceed the limit of 255", "nothing was sent"];
    Error::NotFinite: || {
        let message = Message::new("x").header("ratio", f64::NAN);
        failed(channel().basic_publish("", "q", message))
    }, ["ratio", "NaN", "finite", "string"];
    Error::DuplicateConsumerTag: || {
        let channel = channel();
        let queue = exclusive_queue(&channel);
        let consume = basic::Consume::new(queue).consumer_tag("me");
        let _first = channel.consume(consume.clone()).unwrap();
        failed(channel.consume(consume))
    }, ["already has a consumer 'me'", "choose another"];
    Error::ConsumerCancelled: || {
        let channel = channel();
        let queue = exclusive_queue(&channel);
        let consumer = channel.consume(basic::Consume::new(&queue).consumer_tag("me")).unwrap();
        channel.queue_delete(&queue).unwrap();
        failed(consumer.recv())
    }, ["'me' was cancelled", "queue may be deleted"];
    Error::AlreadyConsuming: || in_callback(|channel| channel.start_consuming()),
        ["being run already", "only one at a time"];
    Error::OutOfRange: || {
        let message = Message::new("x").header("size", u64::MAX);
        failed(channel().basic_publish("", "q", message))
    }, ["size", "18446744073709551615", "i64::MAX", "string"];
    Error::MethodRefused: || {
        let channel = channel();
        failed(channel.connection().send_method(1, basic::Get::new("q"), None))
    },
        ["does not send basic.get", "use basic_get"];
    Error::UnknownDeliveryTag: || failed(channel().basic_ack(7)),
        ["no delivery 7", "the channel that received it"];
    Error::AlreadySettled: || failed(taken("x").ack()), ["delivery 1", "no_ack", "once"];
    Error::NoReplyTo: || failed(taken("x").reply("a response")),
        ["delivery 1 has no reply_to", "reject the request"];
    Error::NotConfirming: || failed(channel().basic_publish("", "q", "x").unwrap().wait()),
        ["not in confirm mode", "call confirm_delivery"];
    Error::Nacked: || {
        let channel = channel();
        let full = queue::Declare::new_exclusive().max_length(0).overflow(queue::Overflow::RejectPublish);
        let full = channel.queue_declare(full).unwrap().queue;
        channel.confirm_delivery().unwrap();
        // RabbitMQ accepts one message before it counts the queue as full.
        let outcomes = [(); 2].map(|()| channel.basic_publish("", &full, "x").unwrap().wait());
        outcomes.into_iter().find_map(Result::err).unwrap()
    }, ["did not take the message", "is full", "again later"];
    Error::Unroutable: || {
        let channel = channel();
        channel.confirm_delivery().unwrap();
        let message = Message::new("x").mandatory(true);
        failed(channel.basic_publish("amq.direct", "none", message).unwrap().wait())
    }, ["reached no queue", "NO_ROUTE", "'amq.direct'", "'none'", "a queue is bound"];
    Error::AmbiguousReturn: || with_peer(Duration::from_secs(10), |mut wire| {
        accept_confirms(&mut wire);
        let arguments = args().u16(312).short("NO_ROUTE").short("").short("q");
        wire.send(1, BASIC_RETURN, arguments);
        // The returned message has a message id, the published one has none.
        wire.raw(&header_with(1, 1, &args().u16(1 << 7).short("x").bytes()));
        wire.raw(&body(1, b"x"));
        wire.send(1, BASIC_ACK, args().u64(1).u8(0));
        wire.drain();
    }, |channel| {
        channel.confirm_delivery().unwrap();
        let message = Message::new("x").mandatory(true);
        match failed(channel.basic_publish("", "q", message).unwrap().wait()) {
            Error::Unconfirmed(reason) => *reason,
            other => other,
        }
    }), ["reached no queue", "other properties", "NO_ROUTE", "a plugin"];
    Error::Unconfirmed: || with_peer(Duration::from_secs(10), |mut wire| {
        accept_confirms(&mut wire);
        hang_up(wire);
    }, |channel| {
        channel.confirm_delivery().unwrap();
        failed(channel.basic_publish("", "q", "x").unwrap().wait())
    }), ["the outcome of the publish is unknown", "the connection is lost"];
    Error::PublishFailures: || {
        let channel = channel();
        channel.confirm_delivery().unwrap();
        for key in ["none", "neither"] {
            let message = Message::new("x").mandatory(true);
            channel.basic_publish("amq.direct", key, message).unwrap();
        }
        failed(channel.wait_for_confirms(Duration::from_secs(30)))
    }, ["2 messages were not taken", "number 1", "reached no queue", "'none'"];
    Error::NotUtf8: || failed(taken([0xff]).text()), ["not UTF-8", "Delivery::body"];
    Error::Other: || in_callback(|_| Err(Error::other("the disk is full"))), ["the disk is full"];

    ConnectError::Io: || refused("amqp://127.0.0.1:1"), ["refused", "TCP", "the port is right"];
    ConnectError::TimedOut: || not_opened(Wire::drain),
        ["no answer within", "after the protocol header", "does not speak AMQP"];
    ConnectError::EndOfStream: || not_opened(|wire| {
        wire.expect_protocol_header();
        wire.shut_down();
    }), ["127.0.0.1:", "closed the stream", "after the protocol header", "amqps://"];
    ConnectError::Tls: || refused(variable("CONY_BROKER_TLS_URL")),
        ["while TLS was being set up", "no trusted authority", "TlsOptions::ca_file"];
    ConnectError::Closed: || not_opened(|wire| {
        wire.expect_start_ok();
        wire.tune(TUNE);
        wire.send(0, CONNECTION_CLOSE, close(541, "INTERNAL_ERROR", (10, 40)));
        wire.drain();
    }), ["541 INTERNAL_ERROR", "log has the details", "while the virtual host was being opened"];
    ConnectError::NoLocale: || not_opened(|wire| {
        wire.expect_protocol_header();
        let introduction = args().u8(0).u8(9).long("").long("PLAIN").long("tlh");
        wire.send(0, CONNECTION_START, introduction);
        wire.drain();
    }), ["neither the locale en_US", "but: tlh", "the option locale"];
    ConnectError::NoMechanism: || not_opened(|wire| {
        wire.expect_protocol_header();
        wire.send(0, CONNECTION_START, start(&[], "EXTERNAL"));
        wire.drain();
    }), ["none of the credentials' mechanisms, but: EXTERNAL", "auth_mechanism"];
    ConnectError::NoAnswer: || not_opened(|wire| {
        wire.expect_start_ok();
        wire.send(0, CONNECTION_SECURE, args().long("prove it"));
        wire.drain();
    }), ["more than PLAIN can answer", "another mechanism"];
    ConnectError::TooLargeBeforeTune: || {
        refused(broker().client_properties([("token", "x".repeat(100_000))]))
    }, ["closed the stream after 100", "while the broker checked the credentials", "initial_frame_max"];
    ConnectError::FrameMaxRefused: || from_peer(
        |listener| {
            let mut wire = listener.accept();
            wire.expect_start_ok();
            wire.tune(TUNE);
            hang_up(wire);
        },
        |parameters| refused(parameters.frame_max(4096)),
    ), ["closed the stream after frame_max 4096", "while the virtual host was being opened",
        "below 8192"];
    ConnectError::Protocol: || not_opened(|wire| {
        wire.expect_start_ok();
        wire.raw(&frame(9, 0, b"?"));
        wire.drain();
    }), ["violated the protocol", "frame type 9", "check the port"];

    ConnectionLostError::EndOfStream: || lost(hang_up),
        ["closed the stream without an AMQP close", "log may name the reason"];
    ConnectionLostError::Io: || lost(Wire::reset), ["reset"];
    ConnectionLostError::MissedHeartbeats: || lost(fall_silent),
        ["nothing was received", "for 2s", "twice the heartbeat interval"];
    ConnectionLostError::CloseTimedOut: || with_peer(Duration::from_secs(10), fall_silent, |channel| {
        failed(channel.connection().close())
    }), ["did not answer the close", "close_timeout", "may be lost"];
    ConnectionLostError::BlockedTooLong: || lost(|mut wire| {
        wire.send(0, CONNECTION_BLOCKED, args().short("low on disk"));
        wire.drain();
    }), ["blocked publishes for 500ms", "low on disk", "blocked_connection_timeout"];
    ConnectionLostError::NotRead: || with_peer(Duration::from_secs(10), flood, |channel| {
        let consumer = channel.consume(basic::Consume::new("q").no_ack(true)).unwrap();
        let error = channel.connection().wait_closed();
        drop(consumer);
        error
    }), ["after a reading pause", "channel 1", "basic_qos", "read_budget"];
}

// Functions that cause the errors.

const TUNE: Tune = Tune {
    channel_max: 10,
    frame_max: 131_072,
    heartbeat: 1,
};

fn failed<T: Debug>(outcome: Result<T>) -> Error {
    outcome.unwrap_err()
}

fn broker() -> ConnectionParameters {
    url().parse().unwrap()
}

fn refused<P>(parameters: P) -> Error
where
    P: TryInto<ConnectionParameters>,
    Error: From<P::Error>,
{
    failed(BlockingConnection::open(parameters))
}

/// Returns a message that was got with no_ack.
fn taken(body: impl AsRef<[u8]>) -> cony::Delivery {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel
        .basic_publish("", &queue, Message::new(body.as_ref()))
        .unwrap();
    let delivery = get(&channel, &queue);
    // The delivery does not keep its channel open.
    KEPT.with_borrow_mut(|kept| kept.push(channel));
    delivery
}

thread_local! {
    static KEPT: RefCell<Vec<BlockingChannel>> = const { RefCell::new(Vec::new()) };
}

/// Returns the error of `start_consuming` whose callback calls `act`.
fn in_callback(act: fn(&BlockingChannel) -> Result<()>) -> Error {
    let channel = channel();
    let queue = exclusive_queue(&channel);
    channel.basic_publish("", &queue, "x").unwrap();
    channel
        .basic_consume(&queue, move |channel, _| act(channel))
        .unwrap();
    failed(channel.start_consuming())
}

/// Returns the error of `client` with a scripted peer.
fn from_peer(
    script: impl FnOnce(&Listener) + Send + 'static,
    client: impl FnOnce(ConnectionParameters) -> Error + Send + 'static,
) -> Error {
    const SHORT: Duration = Duration::from_millis(100);
    let (note, noted) = mpsc::channel();
    play(script, move |parameters| {
        let parameters = parameters
            .publish_timeout(SHORT)
            .close_timeout(SHORT)
            .drop_timeout(SHORT)
            .confirm_window(1)
            .read_budget(64 * 1024)
            .heartbeat(Duration::from_secs(1))
            .blocked_connection_timeout(Duration::from_millis(500));
        note.send(client(parameters)).unwrap();
    });
    noted.recv().unwrap()
}

/// Returns the error of opening a connection to this peer.
fn not_opened(script: fn(&mut Wire)) -> Error {
    from_peer(
        move |listener| script(&mut listener.accept()),
        |parameters| refused(parameters.handshake_timeout(Duration::from_millis(500))),
    )
}

/// Returns the error of opening a connection to a peer that answers the protocol header with these
/// bytes.
fn banner(bytes: &'static [u8]) -> Error {
    from_peer(
        move |listener| {
            let mut wire = listener.accept();
            wire.expect_protocol_header();
            wire.raw(bytes);
            wire.drain();
        },
        refused,
    )
}

fn hang_up(mut wire: Wire) {
    wire.shut_down();
    wire.drain();
}

fn fall_silent(mut wire: Wire) {
    wire.drain();
}

/// Returns the close reason of an open connection after the peer has called `act`.
fn lost(act: fn(Wire)) -> Error {
    from_peer(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(TUNE);
            act(wire);
        },
        |parameters| BlockingConnection::open(parameters).unwrap().wait_closed(),
    )
}

/// Returns the error of `client`, which gets channel 1 of a connection to this peer.
fn with_peer(
    rpc_timeout: Duration,
    script: fn(Wire),
    client: fn(BlockingChannel) -> Error,
) -> Error {
    from_peer(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(TUNE);
            wire.open_channel(1);
            script(wire);
        },
        move |parameters| {
            let parameters = parameters.rpc_timeout(rpc_timeout);
            let connection = BlockingConnection::open(parameters).unwrap();
            client(connection.channel().unwrap())
        },
    )
}

/// Accepts confirm mode and the first publish, and does not confirm it.
fn accept_confirms(wire: &mut Wire) {
    wire.expect(1, CONFIRM_SELECT);
    wire.send(1, CONFIRM_SELECT_OK, args());
    wire.expect_publish(1);
}

/// Sends deliveries until the client has not read for a long time.
fn flood(mut wire: Wire) {
    let tag = wire.accept_consumer(1);
    let delivery = [
        method(1, BASIC_DELIVER, deliver(&tag, 1)),
        header(1, 1000),
        body(1, &[7; 1000]),
    ];
    wire.flood_until_stuck(&delivery.concat().repeat(100), Duration::from_secs(6));
    wire.reset();
}

// The tests.

#[test]
fn every_error_text_has_cause_place_and_remedy() {
    let caused: Vec<_> = CASES
        .iter()
        .map(|case| (case, thread::spawn(case.cause)))
        .collect();
    let mut wrong = Vec::new();
    for (case, caused) in caused {
        let name = format!("{}::{}", case.of, case.variant);
        match caused.join() {
            Err(_) => wrong.push(format!("{name} was not caused")),
            Ok(error) => {
                println!("{name}: {error}");
                if !(case.is)(&error) {
                    wrong.push(format!("expected {name}: {error}"));
                }
                let text = error.to_string();
                let missing = case.words.iter().filter(|words| !text.contains(**words));
                wrong.extend(missing.map(|words| format!("{name} lacks '{words}': {text}")));
                if text.contains("a secret") {
                    wrong.push(format!("{name} shows a secret"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The variants of `Error` that only recovery causes. The unit tests in `src/error/display.rs`
/// check their texts.
const OF_RECOVERY: [&str; 4] = [
    "Interrupted",
    "TransactionLost",
    "InDoubt",
    "RecoveryFailed",
];

/// Reads the names of the variants from the source.
fn variants(of: &str) -> BTreeSet<String> {
    let source = concat!(
        include_str!("../../src/error/mod.rs"),
        include_str!("../../src/error/connect.rs"),
        include_str!("../../src/error/connection_lost.rs"),
    );
    let (_, rest) = source.split_once(&format!("pub enum {of} {{\n")).unwrap();
    let (body, _) = rest.split_once("\n}").unwrap();
    body.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(char::is_uppercase))
        .map(|line| line.split([' ', '(', ',']).next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_variant_has_an_entry_in_the_table() {
    for of in ["Error", "ConnectError", "ConnectionLostError"] {
        let cases = CASES.iter().filter(|case| case.of == of);
        let found: BTreeSet<String> = cases.map(|case| case.variant.to_owned()).collect();
        assert!(found.len() > 5);
        let mut expected = variants(of);
        if of == "Error" {
            for variant in OF_RECOVERY {
                assert!(expected.remove(variant), "{variant}");
            }
        }
        assert_eq!(expected, found, "{of}");
    }
}
