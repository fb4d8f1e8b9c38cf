//! A broker that does what its script says: a thread behind a real loopback socket that
//! reads and writes raw bytes.
//!
//! It has an encoder and a decoder of its own, a few lines each, so that a mistake in
//! cony's cannot hide behind the same mistake here. Every wait is bounded, so whatever
//! goes wrong fails a test and never hangs it.

#[cfg(feature = "tls")]
#[path = "tls_peer.rs"]
mod tls_peer;

use std::any::Any;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use cony::{BlockingChannel, BlockingConnection, ConnectionParameters};
use socket2::SockRef;

/// How long the peer waits for one thing that is due.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long a whole play may take, and no deadline of a client is longer than that.
pub(crate) const CURTAIN: Duration = Duration::from_secs(30);

/// Class and method number.
pub(crate) type Method = (u16, u16);

/// The methods that scripts name, in the order of the specification.
pub(crate) mod methods {
    use super::Method;

    pub(crate) const CONNECTION_START: Method = (10, 10);
    pub(crate) const CONNECTION_START_OK: Method = (10, 11);
    pub(crate) const CONNECTION_SECURE: Method = (10, 20);
    pub(crate) const CONNECTION_SECURE_OK: Method = (10, 21);
    pub(crate) const CONNECTION_TUNE: Method = (10, 30);
    pub(crate) const CONNECTION_TUNE_OK: Method = (10, 31);
    pub(crate) const CONNECTION_OPEN: Method = (10, 40);
    pub(crate) const CONNECTION_OPEN_OK: Method = (10, 41);
    pub(crate) const CONNECTION_CLOSE: Method = (10, 50);
    pub(crate) const CONNECTION_CLOSE_OK: Method = (10, 51);
    pub(crate) const CONNECTION_BLOCKED: Method = (10, 60);
    pub(crate) const CONNECTION_UNBLOCKED: Method = (10, 61);
    pub(crate) const CONNECTION_UPDATE_SECRET: Method = (10, 70);
    pub(crate) const CONNECTION_UPDATE_SECRET_OK: Method = (10, 71);
    pub(crate) const CHANNEL_OPEN: Method = (20, 10);
    pub(crate) const CHANNEL_OPEN_OK: Method = (20, 11);
    pub(crate) const CHANNEL_FLOW: Method = (20, 20);
    pub(crate) const CHANNEL_FLOW_OK: Method = (20, 21);
    pub(crate) const CHANNEL_CLOSE: Method = (20, 40);
    pub(crate) const CHANNEL_CLOSE_OK: Method = (20, 41);
    pub(crate) const ACCESS_REQUEST: Method = (30, 10);
    pub(crate) const ACCESS_REQUEST_OK: Method = (30, 11);
    pub(crate) const EXCHANGE_DECLARE: Method = (40, 10);
    pub(crate) const EXCHANGE_DECLARE_OK: Method = (40, 11);
    pub(crate) const EXCHANGE_DELETE: Method = (40, 20);
    pub(crate) const EXCHANGE_DELETE_OK: Method = (40, 21);
    pub(crate) const EXCHANGE_BIND: Method = (40, 30);
    pub(crate) const EXCHANGE_BIND_OK: Method = (40, 31);
    pub(crate) const EXCHANGE_UNBIND: Method = (40, 40);
    pub(crate) const EXCHANGE_UNBIND_OK: Method = (40, 51);
    pub(crate) const QUEUE_DECLARE: Method = (50, 10);
    pub(crate) const QUEUE_DECLARE_OK: Method = (50, 11);
    pub(crate) const QUEUE_BIND: Method = (50, 20);
    pub(crate) const QUEUE_BIND_OK: Method = (50, 21);
    pub(crate) const QUEUE_PURGE: Method = (50, 30);
    pub(crate) const QUEUE_PURGE_OK: Method = (50, 31);
    pub(crate) const QUEUE_DELETE: Method = (50, 40);
    pub(crate) const QUEUE_DELETE_OK: Method = (50, 41);
    pub(crate) const QUEUE_UNBIND: Method = (50, 50);
    pub(crate) const QUEUE_UNBIND_OK: Method = (50, 51);
    pub(crate) const BASIC_QOS: Method = (60, 10);
    pub(crate) const BASIC_QOS_OK: Method = (60, 11);
    pub(crate) const BASIC_CONSUME: Method = (60, 20);
    pub(crate) const BASIC_CONSUME_OK: Method = (60, 21);
    pub(crate) const BASIC_CANCEL: Method = (60, 30);
    pub(crate) const BASIC_CANCEL_OK: Method = (60, 31);
    pub(crate) const BASIC_PUBLISH: Method = (60, 40);
    pub(crate) const BASIC_RETURN: Method = (60, 50);
    pub(crate) const BASIC_DELIVER: Method = (60, 60);
    pub(crate) const BASIC_GET: Method = (60, 70);
    pub(crate) const BASIC_GET_OK: Method = (60, 71);
    pub(crate) const BASIC_GET_EMPTY: Method = (60, 72);
    pub(crate) const BASIC_ACK: Method = (60, 80);
    pub(crate) const BASIC_REJECT: Method = (60, 90);
    pub(crate) const BASIC_RECOVER: Method = (60, 110);
    pub(crate) const BASIC_RECOVER_OK: Method = (60, 111);
    pub(crate) const BASIC_NACK: Method = (60, 120);
    pub(crate) const CONFIRM_SELECT: Method = (85, 10);
    pub(crate) const CONFIRM_SELECT_OK: Method = (85, 11);
    pub(crate) const TX_SELECT: Method = (90, 10);
    pub(crate) const TX_SELECT_OK: Method = (90, 11);
    pub(crate) const TX_COMMIT: Method = (90, 20);
    pub(crate) const TX_COMMIT_OK: Method = (90, 21);
    pub(crate) const TX_ROLLBACK: Method = (90, 30);
    pub(crate) const TX_ROLLBACK_OK: Method = (90, 31);
}

use self::methods::*;

// What goes out.

/// The arguments of a method, one field after the other.
#[derive(Default, Clone)]
pub(crate) struct Args(Vec<u8>);

pub(crate) fn args() -> Args {
    Args::default()
}

impl Args {
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.raw(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.raw(&value.to_be_bytes())
    }

    /// A short string; bytes, because not all that comes is UTF-8.
    pub(crate) fn short(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.u8(value.len().try_into().unwrap()).raw(value)
    }

    /// A long string, or the encoded pairs of a table.
    pub(crate) fn long(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.u32(value.len().try_into().unwrap()).raw(value)
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const HEARTBEAT_FRAME: u8 = 8;
const FRAME_END: u8 = 0xce;

pub(crate) fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let start = args().u8(kind).u16(channel);
    start.long(payload).u8(FRAME_END).bytes()
}

pub(crate) fn method(channel: u16, method: Method, arguments: Args) -> Vec<u8> {
    let payload = args().u16(method.0).u16(method.1).raw(&arguments.0);
    frame(METHOD_FRAME, channel, &payload.0)
}

/// A content header without properties.
pub(crate) fn header(channel: u16, body_size: u64) -> Vec<u8> {
    header_with(channel, body_size, &[0, 0])
}

/// A content header with these flags and properties.
pub(crate) fn header_with(channel: u16, body_size: u64, properties: &[u8]) -> Vec<u8> {
    let payload = args().u16(60).u16(0).u64(body_size).raw(properties);
    frame(HEADER_FRAME, channel, &payload.0)
}

pub(crate) fn body(channel: u16, bytes: &[u8]) -> Vec<u8> {
    frame(BODY_FRAME, channel, bytes)
}

pub(crate) fn heartbeat() -> Vec<u8> {
    frame(HEARTBEAT_FRAME, 0, &[])
}

/// The arguments of basic.deliver.
pub(crate) fn deliver(consumer_tag: impl AsRef<[u8]>, delivery_tag: u64) -> Args {
    let start = args().short(consumer_tag).u64(delivery_tag).u8(0);
    start.short("exchange").short("key")
}

/// The arguments of basic.get-ok.
pub(crate) fn get_ok(delivery_tag: u64) -> Args {
    let start = args().u64(delivery_tag).u8(0);
    start.short("exchange").short("key").u32(0)
}

/// The arguments of queue.declare-ok.
pub(crate) fn declare_ok(queue: &str) -> Args {
    args().short(queue).u32(0).u32(0)
}

/// The arguments of connection.close and channel.close.
pub(crate) fn close(code: u16, text: &str, culprit: Method) -> Args {
    args().u16(code).short(text).u16(culprit.0).u16(culprit.1)
}

/// The arguments of connection.start.
pub(crate) fn start(server_properties: &[u8], mechanisms: &str) -> Args {
    let version = args().u8(0).u8(9);
    version
        .long(server_properties)
        .long(mechanisms)
        .long("en_US")
}

/// The limits that the peer proposes.
#[derive(Clone, Copy)]
pub(crate) struct Tune {
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    pub(crate) heartbeat: u16,
}

impl Default for Tune {
    /// RabbitMQ's own limits; heartbeats as the client wants them.
    fn default() -> Self {
        Self {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 0,
        }
    }
}

impl Tune {
    fn arguments(self) -> Args {
        args()
            .u16(self.channel_max)
            .u32(self.frame_max)
            .u16(self.heartbeat)
    }
}

// What comes in.

/// Reads the arguments of a method, one field after the other.
pub(crate) struct Arguments(std::vec::IntoIter<u8>);

impl Arguments {
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let bytes: Vec<u8> = self.0.by_ref().take(count).collect();
        assert_eq!(bytes.len(), count, "a field is cut off");
        bytes
    }

    pub(crate) fn u8(&mut self) -> u8 {
        self.bytes(1)[0]
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap())
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }

    pub(crate) fn short(&mut self) -> String {
        let length = self.u8().into();
        String::from_utf8(self.bytes(length)).unwrap()
    }

    pub(crate) fn long(&mut self) -> Vec<u8> {
        let length = self.u32().try_into().unwrap();
        self.bytes(length)
    }
}

/// What a client sent.
#[derive(Debug)]
pub(crate) enum Frame {
    Method(u16, Method, Vec<u8>),
    Header(u16, Vec<u8>),
    Body(u16, Vec<u8>),
    Heartbeat,
}

/// What is below AMQP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    Tcp,
    #[cfg(feature = "tls")]
    Tls,
}

impl Below {
    pub(crate) const ALL: &[Self] = &[
        Self::Tcp,
        #[cfg(feature = "tls")]
        Self::Tls,
    ];
}

/// Where the peer listens.
pub(crate) struct Listener {
    listener: TcpListener,
    below: Below,
}

impl Listener {
    pub(crate) fn bind() -> Self {
        Self::bind_below(Below::Tcp)
    }

    fn bind_below(below: Below) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // Bounds accept as well.
        let socket = SockRef::from(&listener);
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { listener, below }
    }

    /// Waits so long for the next client.
    pub(crate) fn set_patience(&self, patience: Duration) {
        let socket = SockRef::from(&self.listener);
        socket.set_read_timeout(Some(patience)).unwrap();
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    pub(crate) fn accept(&self) -> Wire {
        let (stream, _) = self.listener.accept().expect("no client came in time");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire {
            stream: match self.below {
                Below::Tcp => Box::new(stream),
                #[cfg(feature = "tls")]
                Below::Tls => Box::new(tls_peer::acceptor().accept(stream).unwrap()),
            },
            trickles: false,
        }
    }
}

/// The peer's stream, whatever is below AMQP.
pub(crate) trait Stream: Read + Write + Send {
    fn socket(&self) -> &TcpStream;

    /// Says below AMQP that nothing more comes.
    fn say_goodbye(&mut self) {}
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// The peer's end of one connection.
pub(crate) struct Wire {
    stream: Box<dyn Stream>,
    /// What is sent goes out a byte at a time.
    trickles: bool,
}

impl Wire {
    // Sending.

    /// Sends whatever bytes, in one write if the system can, unless it trickles.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        match self.trickles {
            false => self.stream.write_all(bytes).unwrap(),
            true => (bytes.chunks(1)).for_each(|byte| self.stream.write_all(byte).unwrap()),
        }
    }

    /// From now on sends a byte at a time.
    pub(crate) fn trickle(&mut self) {
        self.trickles = true;
    }

    /// Sends `bytes` again and again, so many at a time, until the client hangs up.
    pub(crate) fn flood(&mut self, bytes: &[u8], at_a_time: usize) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for chunk in bytes.chunks(at_a_time) {
                if self.stream.write_all(chunk).is_err() {
                    return;
                }
            }
        }
        panic!("the client listens to a flood without end");
    }

    /// Sends `bytes` again and again until nothing has gone out for so long, or the client
    /// is gone; how much that was. The last time may be cut off anywhere.
    pub(crate) fn flood_until_stuck(&mut self, bytes: &[u8], patience: Duration) -> usize {
        self.stream
            .socket()
            .set_write_timeout(Some(patience))
            .unwrap();
        let mut sent = 0;
        loop {
            let rest = &bytes[sent % bytes.len()..];
            match self.stream.write(rest) {
                Ok(count) => sent += count,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    _ => return sent,
                },
            }
        }
    }

    /// Sends bytes to a client that may have left.
    fn offer(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends a method to a client that may have left.
    pub(crate) fn offer_method(&mut self, channel: u16, id: Method, arguments: Args) {
        self.offer(&method(channel, id, arguments));
    }

    pub(crate) fn send(&mut self, channel: u16, id: Method, arguments: Args) {
        self.raw(&method(channel, id, arguments));
    }

    /// Sends a method and a content that goes with it.
    pub(crate) fn send_content(&mut self, channel: u16, id: Method, arguments: Args, text: &str) {
        let mut bytes = method(channel, id, arguments);
        bytes.extend(header(channel, text.len() as u64));
        if !text.is_empty() {
            bytes.extend(body(channel, text.as_bytes()));
        }
        self.raw(&bytes);
    }

    pub(crate) fn deliver(&mut self, channel: u16, consumer_tag: &str, tag: u64, text: &str) {
        self.send_content(channel, BASIC_DELIVER, deliver(consumer_tag, tag), text);
    }

    /// Delivers a message of so many bytes, in as many frames as it takes.
    pub(crate) fn deliver_sized(
        &mut self,
        channel: u16,
        consumer_tag: &str,
        tag: u64,
        size: usize,
    ) {
        let mut bytes = method(channel, BASIC_DELIVER, deliver(consumer_tag, tag));
        bytes.extend(header(channel, size as u64));
        for chunk in vec![b'x'; size].chunks(100_000) {
            bytes.extend(body(channel, chunk));
        }
        self.raw(&bytes);
    }

    // Receiving.

    /// The next `count` bytes; `None` if the client has hung up.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => panic!("nothing came in time"),
                _ => None,
            },
        }
    }

    /// The next frame; `None` if the client has hung up.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut start = Arguments(self.bytes(7)?.into_iter());
        let (kind, channel, size) = (start.u8(), start.u16(), start.u32());
        let payload = self.bytes(size.try_into().unwrap())?;
        assert_eq!(self.bytes(1)?, [FRAME_END]);
        Some(match kind {
            METHOD_FRAME => {
                let mut payload = Arguments(payload.into_iter());
                let id = (payload.u16(), payload.u16());
                Frame::Method(channel, id, payload.0.collect())
            }
            HEADER_FRAME => Frame::Header(channel, payload),
            BODY_FRAME => Frame::Body(channel, payload),
            HEARTBEAT_FRAME => Frame::Heartbeat,
            _ => panic!("the client sent a frame of type {kind}"),
        })
    }

    /// The next frame that is no heartbeat, which must come.
    pub(crate) fn next(&mut self) -> Frame {
        loop {
            match self.frame().expect("the client hung up") {
                Frame::Heartbeat => {}
                other => return other,
            }
        }
    }

    /// Awaits this method, on this channel, before anything else.
    pub(crate) fn expect(&mut self, channel: u16, id: Method) -> Arguments {
        match self.next() {
            Frame::Method(on, came, arguments) if (on, came) == (channel, id) => {
                Arguments(arguments.into_iter())
            }
            other => panic!("{id:?} was due on channel {channel}, not {other:?}"),
        }
    }

    /// Awaits a content, and joins its body.
    pub(crate) fn expect_content(&mut self, channel: u16) -> Vec<u8> {
        let size = match self.next() {
            Frame::Header(on, payload) if on == channel => {
                Arguments(payload.into_iter().skip(4).collect::<Vec<u8>>().into_iter()).u64()
            }
            other => panic!("a content header was due on channel {channel}, not {other:?}"),
        };
        let mut joined = Vec::new();
        while (joined.len() as u64) < size {
            match self.next() {
                Frame::Body(on, payload) if on == channel => joined.extend(payload),
                other => panic!("a content body was due on channel {channel}, not {other:?}"),
            }
        }
        joined
    }

    /// Awaits a publish; its routing key and body.
    pub(crate) fn expect_publish(&mut self, channel: u16) -> (String, Vec<u8>) {
        let mut publish = self.expect(channel, BASIC_PUBLISH);
        publish.u16();
        publish.short();
        let routing_key = publish.short();
        (routing_key, self.expect_content(channel))
    }

    pub(crate) fn expect_heartbeat(&mut self) {
        match self.frame() {
            Some(Frame::Heartbeat) => {}
            other => panic!("a heartbeat was due, not {other:?}"),
        }
    }

    /// Awaits an ack, nack or reject: its delivery tag and its bits.
    pub(crate) fn expect_settled(&mut self, channel: u16, id: Method) -> (u64, u8) {
        let mut settled = self.expect(channel, id);
        (settled.u64(), settled.u8())
    }

    /// Awaits that the client hangs up, and that it says nothing more.
    pub(crate) fn expect_end(&mut self) {
        if let Some(frame) = self.frame() {
            panic!("the client should have hung up, but sent {frame:?}");
        }
    }

    /// The same over TLS, where the client has to say so below AMQP too. That word is all that may
    /// come, and it is encrypted; the peer's own TLS would take an end without it as well.
    #[cfg(feature = "tls")]
    pub(crate) fn expect_goodbye(&mut self) {
        let mut record = Vec::new();
        self.stream.socket().read_to_end(&mut record).unwrap();
        // An alert; from TLS 1.3 on it is dressed as data.
        assert!(matches!(record.first(), Some(21 | 23)), "{record:?}");
        let length = 5 + usize::from(u16::from_be_bytes([record[3], record[4]]));
        assert_eq!(record.len(), length, "one record");
    }

    /// Reads whatever still comes until the client hangs up.
    pub(crate) fn drain(&mut self) {
        while self.bytes(1).is_some() {}
    }

    // Opening.

    pub(crate) fn expect_protocol_header(&mut self) {
        assert_eq!(
            self.bytes(8).expect("the client hung up"),
            b"AMQP\0\0\x09\x01"
        );
    }

    /// Up to the point where the client has introduced itself: user and password as
    /// they came.
    pub(crate) fn introduce(&mut self) -> Vec<u8> {
        self.expect_protocol_header();
        self.send(0, CONNECTION_START, start(&[], "AMQPLAIN PLAIN"));
        let mut start_ok = self.expect(0, CONNECTION_START_OK);
        start_ok.long();
        assert_eq!(start_ok.short(), "PLAIN");
        start_ok.long()
    }

    /// From there to the point where the client asks for a virtual host, which it
    /// names. The limits that it has chosen, and the host.
    pub(crate) fn tune(&mut self, tune: Tune) -> (Tune, String) {
        self.send(0, CONNECTION_TUNE, tune.arguments());
        let mut tune_ok = self.expect(0, CONNECTION_TUNE_OK);
        let agreed = Tune {
            channel_max: tune_ok.u16(),
            frame_max: tune_ok.u32(),
            heartbeat: tune_ok.u16(),
        };
        (agreed, self.expect(0, CONNECTION_OPEN).short())
    }

    pub(crate) fn handshake(&mut self, tune: Tune) {
        self.introduce();
        self.tune(tune);
        self.send(0, CONNECTION_OPEN_OK, args().short(""));
    }

    pub(crate) fn open_channel(&mut self, channel: u16) {
        self.expect(channel, CHANNEL_OPEN);
        self.send(channel, CHANNEL_OPEN_OK, args().long(""));
    }

    /// Awaits a consumer and lets it start; its tag.
    pub(crate) fn accept_consumer(&mut self, channel: u16) -> String {
        let tag = self.expect_consume(channel);
        self.send(channel, BASIC_CONSUME_OK, args().short(&tag));
        tag
    }

    /// Awaits a consumer; its tag.
    pub(crate) fn expect_consume(&mut self, channel: u16) -> String {
        let mut consume = self.expect(channel, BASIC_CONSUME);
        consume.u16();
        consume.short();
        consume.short()
    }

    /// Awaits the cancel of a consumer; its tag.
    pub(crate) fn expect_cancel(&mut self, channel: u16) -> String {
        self.expect(channel, BASIC_CANCEL).short()
    }

    /// Awaits the cancel of this consumer, and confirms it.
    pub(crate) fn accept_cancel(&mut self, channel: u16, consumer_tag: &str) {
        assert_eq!(self.expect_cancel(channel), consumer_tag);
        self.send(channel, BASIC_CANCEL_OK, args().short(consumer_tag));
    }

    /// Cancels this consumer as RabbitMQ does, and awaits that the client frees its tag.
    pub(crate) fn cancel_consumer(&mut self, channel: u16, consumer_tag: &str) {
        self.send(channel, BASIC_CANCEL, args().short(consumer_tag).u8(1));
        self.expect_quiet_cancel(channel, consumer_tag);
    }

    /// Awaits a cancel of this consumer that wants no answer.
    pub(crate) fn expect_quiet_cancel(&mut self, channel: u16, consumer_tag: &str) {
        let mut cancel = self.expect(channel, BASIC_CANCEL);
        assert_eq!((cancel.short(), cancel.u8()), (consumer_tag.into(), 1));
    }

    pub(crate) fn accept_declare(&mut self, channel: u16) {
        self.expect(channel, QUEUE_DECLARE);
        self.send(channel, QUEUE_DECLARE_OK, declare_ok("queue"));
    }

    // Ending.

    /// Awaits an orderly end: channels may close, then the connection does. Anything
    /// else fails the test, so a script notices what it does not expect.
    pub(crate) fn finish(&mut self) {
        loop {
            match self.frame() {
                None => return,
                Some(Frame::Heartbeat) => {}
                Some(Frame::Method(channel, CHANNEL_CLOSE, _)) => {
                    self.offer(&method(channel, CHANNEL_CLOSE_OK, args()));
                }
                Some(Frame::Method(0, CONNECTION_CLOSE, _)) => {
                    self.offer(&method(0, CONNECTION_CLOSE_OK, args()));
                    return self.expect_end();
                }
                Some(other) => panic!("nobody expected {other:?}"),
            }
        }
    }

    /// Serves what a healthy client may want at the end of a test, and ignores the rest,
    /// until the client hangs up.
    pub(crate) fn serve(&mut self) {
        while self.serve_one().is_some() {}
    }

    /// The same until the client sends this method, which is still served.
    pub(crate) fn serve_until(&mut self, channel: u16, id: Method) {
        while self.serve_one().expect("the client hung up") != (channel, id) {}
    }

    /// Serves the next method, and tells which it was.
    fn serve_one(&mut self) -> Option<(u16, Method)> {
        loop {
            let Frame::Method(channel, id, _) = self.frame()? else {
                continue;
            };
            self.offer(&match id {
                CHANNEL_OPEN => method(channel, CHANNEL_OPEN_OK, args().long("")),
                QUEUE_DECLARE => method(channel, QUEUE_DECLARE_OK, declare_ok("queue")),
                CHANNEL_CLOSE => method(channel, CHANNEL_CLOSE_OK, args()),
                CONNECTION_CLOSE => method(0, CONNECTION_CLOSE_OK, args()),
                BASIC_CANCEL => method(channel, BASIC_CANCEL_OK, args().short("tag")),
                _ => Vec::new(),
            });
            return Some((channel, id));
        }
    }

    /// Awaits the answer to a close of the connection, whatever comes before it, and
    /// then the end.
    pub(crate) fn await_close_ok(&mut self) {
        loop {
            let came = self.frame().expect("the client hung up without a close-ok");
            if let Frame::Method(0, CONNECTION_CLOSE_OK, _) = came {
                return self.expect_end();
            }
        }
    }

    /// Says that nothing more comes (FIN), and goes on listening.
    pub(crate) fn shut_down(&mut self) {
        self.stream.say_goodbye();
        self.stream.socket().shutdown(Shutdown::Write).unwrap();
    }

    /// The same without a word to TLS, which by its rules owes one.
    #[cfg(feature = "tls")]
    pub(crate) fn shut_down_without_goodbye(&mut self) {
        self.stream.socket().shutdown(Shutdown::Write).unwrap();
    }

    /// From now on whatever the client sends is lost before this side's TCP has seen it,
    /// which does not even acknowledge it: as if the machine were gone.
    #[cfg(target_os = "linux")]
    pub(crate) fn vanish(&mut self) {
        // BPF_RET with 0: of each packet, nothing is kept.
        let nothing = [socket2::SockFilter::new(6, 0, 0, 0)];
        let socket = SockRef::from(self.stream.socket());
        socket.attach_filter(&nothing).unwrap();
        self.stream.socket().set_nonblocking(true).unwrap();
        // What came before that.
        while self.stream.read(&mut [0; 65_536]).is_ok() {}
    }

    /// That nothing has come since it has vanished.
    pub(crate) fn expect_nothing(&mut self) {
        let error = self.stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    /// A second hand on a plain connection, for what comes while the first one sends.
    pub(crate) fn another(&self) -> Self {
        Self {
            stream: Box::new(self.stream.socket().try_clone().unwrap()),
            trickles: false,
        }
    }

    /// Throws the connection away (RST).
    pub(crate) fn reset(self) {
        let socket = SockRef::from(self.stream.socket());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}

// The two actors.

/// Parameters for a client of the peer at `port`: no heartbeats and no prefetch, which
/// only some scripts want, and deadlines beyond those of the peer.
pub(crate) fn parameters(port: u16) -> ConnectionParameters {
    ConnectionParameters::new()
        .host("127.0.0.1")
        .port(port)
        .heartbeat(Duration::ZERO)
        .default_prefetch(0)
        .rpc_timeout(CURTAIN)
        .publish_timeout(CURTAIN)
        .close_timeout(CURTAIN)
        .drop_timeout(CURTAIN)
}

/// Runs the script and the client to their ends, each in its thread. Fails if one of
/// them does, or does not come to its end.
pub(crate) fn play(
    script: impl FnOnce(&Listener) + Send + 'static,
    client: impl FnOnce(ConnectionParameters) + Send + 'static,
) {
    play_over(Below::Tcp, script, client);
}

/// The same over TLS, if told so.
pub(crate) fn play_over(
    below: Below,
    script: impl FnOnce(&Listener) + Send + 'static,
    client: impl FnOnce(ConnectionParameters) + Send + 'static,
) {
    let listener = Listener::bind_below(below);
    let parameters = match below {
        Below::Tcp => parameters(listener.port()),
        #[cfg(feature = "tls")]
        Below::Tls => tls_peer::trust(parameters(listener.port())),
    };
    let peer = Actor::enter("peer", move || script(&listener));
    let client = Actor::enter("client", move || client(parameters));
    let outcomes = [client.leave(), peer.leave()];
    for outcome in outcomes {
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    }
}

/// A play whose client is connected, and whose script begins behind the handshake and
/// ends with an orderly close.
pub(crate) fn connected(
    adjust: impl FnOnce(ConnectionParameters) -> ConnectionParameters + Send + 'static,
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(BlockingConnection) + Send + 'static,
) {
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            script(&mut wire);
            wire.finish();
        },
        move |parameters| client(BlockingConnection::open(adjust(parameters)).unwrap()),
    );
}

/// The same with channel 1 open; the client has no other handle.
pub(crate) fn with_channel(
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(BlockingChannel) + Send + 'static,
) {
    with_channel_and(|parameters| parameters, script, client);
}

/// The same with other parameters.
pub(crate) fn with_channel_and(
    adjust: impl FnOnce(ConnectionParameters) -> ConnectionParameters + Send + 'static,
    script: impl FnOnce(&mut Wire) + Send + 'static,
    client: impl FnOnce(BlockingChannel) + Send + 'static,
) {
    connected(
        adjust,
        move |wire| {
            wire.open_channel(1);
            script(wire);
        },
        move |connection| {
            let channel = connection.channel().unwrap();
            drop(connection);
            client(channel);
        },
    );
}

/// A thread that must end in time.
struct Actor {
    name: &'static str,
    thread: JoinHandle<()>,
    ended: Receiver<()>,
}

impl Actor {
    fn enter(name: &'static str, act: impl FnOnce() + Send + 'static) -> Self {
        let (alive, ended) = channel::<()>();
        let thread = Builder::new().name(name.into()).spawn(move || {
            let _alive = alive;
            act();
        });
        Self {
            name,
            thread: thread.unwrap(),
            ended,
        }
    }

    fn leave(self) -> Result<(), Box<dyn Any + Send>> {
        match self.ended.recv_timeout(CURTAIN + PATIENCE) {
            Err(RecvTimeoutError::Timeout) => Err(Box::new(format!(
                "the {} did not come to its end",
                self.name
            ))),
            _ => self.thread.join(),
        }
    }
}

/// A signal from one actor to the other: sent, or implied by leaving.
pub(crate) fn signal() -> (Sender<()>, Signal) {
    let (sender, receiver) = channel();
    (sender, Signal(receiver))
}

pub(crate) struct Signal(Receiver<()>);

impl Signal {
    /// Awaits the signal.
    pub(crate) fn wait(&self) {
        self.0.recv_timeout(CURTAIN).expect("no signal came");
    }

    /// Awaits that the other side lets its end go.
    pub(crate) fn wait_dropped(&self) {
        let outcome = self.0.recv_timeout(CURTAIN);
        assert_eq!(outcome, Err(RecvTimeoutError::Disconnected));
    }
}
