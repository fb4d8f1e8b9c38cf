//! The peer's side of one connection: the steps of which a script consists.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::encoding::*;
use super::methods::*;
use super::{Method, STEP_TIMEOUT};

/// The stream of the peer, over TCP or TLS.
pub(crate) trait Stream: Read + Write + Send {
    fn socket(&self) -> &TcpStream;

    /// Sends the `close_notify` of TLS. Plain TCP has none.
    fn send_close_notify(&mut self) {}
}

impl Stream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// The peer's side of one connection.
pub(crate) struct Wire {
    stream: Box<dyn Stream>,
    /// Whether each byte is sent in a write of its own.
    trickles: bool,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            trickles: false,
        }
    }

    // Sending.

    /// Sends raw bytes, in one write unless the connection trickles.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        match self.trickles {
            false => self.stream.write_all(bytes).unwrap(),
            true => (bytes.chunks(1)).for_each(|byte| self.stream.write_all(byte).unwrap()),
        }
    }

    /// Sends everything byte by byte from now on.
    pub(crate) fn trickle(&mut self) {
        self.trickles = true;
    }

    /// Sends `bytes` repeatedly, `at_a_time` bytes in a write, until the client hangs up.
    pub(crate) fn flood(&mut self, bytes: &[u8], at_a_time: usize) {
        let deadline = Instant::now() + STEP_TIMEOUT;
        while Instant::now() < deadline {
            for chunk in bytes.chunks(at_a_time) {
                if self.stream.write_all(chunk).is_err() {
                    return;
                }
            }
        }
        panic!("the client reads an endless flood");
    }

    /// Sends `bytes` repeatedly until a write has made no progress for `patience`, or the client
    /// has hung up. Returns the number of bytes that were sent. The last repetition may be
    /// truncated.
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

    /// Sends bytes to a client that may have hung up.
    pub(super) fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends a method to a client that may have hung up.
    pub(crate) fn try_send_method(&mut self, channel: u16, id: Method, arguments: Args) {
        self.try_send(&method(channel, id, arguments));
    }

    pub(crate) fn send(&mut self, channel: u16, id: Method, arguments: Args) {
        self.raw(&method(channel, id, arguments));
    }

    /// Sends a method with a content.
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

    /// Delivers a message of `size` bytes, in several body frames if it is large.
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

    /// Returns the next `count` bytes, or `None` if the client has hung up.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => panic!("no bytes in time"),
                _ => None,
            },
        }
    }

    /// Returns the next frame, or `None` if the client has hung up.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut start = Arguments::new(self.bytes(7)?);
        let (kind, channel, size) = (start.u8(), start.u16(), start.u32());
        let payload = self.bytes(size.try_into().unwrap())?;
        assert_eq!(self.bytes(1)?, [FRAME_END]);
        Some(match kind {
            METHOD_FRAME => {
                let mut payload = Arguments::new(payload);
                let id = (payload.u16(), payload.u16());
                Frame::Method(channel, id, payload.rest())
            }
            HEADER_FRAME => Frame::Header(channel, payload),
            BODY_FRAME => Frame::Body(channel, payload),
            HEARTBEAT_FRAME => Frame::Heartbeat,
            _ => panic!("the client sent a frame of type {kind}"),
        })
    }

    /// Returns the next frame that is no heartbeat.
    pub(crate) fn next(&mut self) -> Frame {
        loop {
            match self.frame().expect("the client hung up") {
                Frame::Heartbeat => {}
                other => return other,
            }
        }
    }

    /// Expects this method on this channel as the next frame, and returns its arguments.
    pub(crate) fn expect(&mut self, channel: u16, id: Method) -> Arguments {
        match self.next() {
            Frame::Method(on, came, arguments) if (on, came) == (channel, id) => {
                Arguments::new(arguments)
            }
            other => panic!("expected {id:?} on channel {channel}, got {other:?}"),
        }
    }

    /// Expects a content, and returns its whole body.
    pub(crate) fn expect_content(&mut self, channel: u16) -> Vec<u8> {
        let size = match self.next() {
            Frame::Header(on, payload) if on == channel => {
                Arguments::new(payload[4..].to_vec()).u64()
            }
            other => panic!("expected a content header on channel {channel}, got {other:?}"),
        };
        let mut joined = Vec::new();
        while (joined.len() as u64) < size {
            match self.next() {
                Frame::Body(on, payload) if on == channel => joined.extend(payload),
                other => panic!("expected a content body on channel {channel}, got {other:?}"),
            }
        }
        joined
    }

    /// Expects a publish, and returns its routing key and its body.
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
            other => panic!("expected a heartbeat, got {other:?}"),
        }
    }

    /// Expects an ack, nack or reject, and returns its delivery tag and its bits.
    pub(crate) fn expect_settled(&mut self, channel: u16, id: Method) -> (u64, u8) {
        let mut settled = self.expect(channel, id);
        (settled.u64(), settled.u8())
    }

    /// Expects that the client requeues these deliveries, each with a nack of its own.
    pub(crate) fn expect_requeued(&mut self, channel: u16, tags: impl IntoIterator<Item = u64>) {
        for tag in tags {
            assert_eq!(self.expect_settled(channel, BASIC_NACK), (tag, REQUEUE));
        }
    }

    /// Expects that the client hangs up without another frame.
    pub(crate) fn expect_end(&mut self) {
        if let Some(frame) = self.frame() {
            panic!("expected the end of the stream, got {frame:?}");
        }
    }

    /// Expects that the client ends its TLS stream with `close_notify` and sends nothing else. The
    /// alert is read from the socket, because the TLS library of the peer accepts an end without
    /// it.
    #[cfg(feature = "native-tls")]
    pub(crate) fn expect_close_notify(&mut self) {
        let mut record = Vec::new();
        self.stream.socket().read_to_end(&mut record).unwrap();
        // 21 is an alert. In TLS 1.3 an encrypted alert has the type of data, 23.
        assert!(matches!(record.first(), Some(21 | 23)), "{record:?}");
        let length = 5 + usize::from(u16::from_be_bytes([record[3], record[4]]));
        assert_eq!(record.len(), length, "one record");
    }

    /// Reads and ignores everything until the client hangs up.
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

    /// Runs the handshake up to `connection.start-ok`. Returns the SASL response of the client.
    pub(crate) fn expect_start_ok(&mut self) -> Vec<u8> {
        self.expect_protocol_header();
        self.send(0, CONNECTION_START, start(&[], "AMQPLAIN PLAIN"));
        let mut start_ok = self.expect(0, CONNECTION_START_OK);
        start_ok.long();
        assert_eq!(start_ok.short(), "PLAIN");
        start_ok.long()
    }

    /// Runs the handshake from there to `connection.open`. Returns the limits and the virtual host
    /// that the client has sent.
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
        self.expect_start_ok();
        self.tune(tune);
        self.send(0, CONNECTION_OPEN_OK, args().short(""));
    }

    pub(crate) fn open_channel(&mut self, channel: u16) {
        self.expect(channel, CHANNEL_OPEN);
        self.send(channel, CHANNEL_OPEN_OK, args().long(""));
    }

    /// Accepts a consumer, and returns its consumer tag.
    pub(crate) fn accept_consumer(&mut self, channel: u16) -> String {
        let tag = self.expect_consume(channel);
        self.send(channel, BASIC_CONSUME_OK, args().short(&tag));
        tag
    }

    /// Accepts a consumer and delivers "message 1" to "message `count`". Returns the consumer tag.
    pub(crate) fn accept_consumer_and_deliver(&mut self, channel: u16, count: u64) -> String {
        let consumer_tag = self.accept_consumer(channel);
        for number in 1..=count {
            let text = format!("message {number}");
            self.deliver(channel, &consumer_tag, number, &text);
        }
        consumer_tag
    }

    /// Expects a consumer, and returns its consumer tag.
    pub(crate) fn expect_consume(&mut self, channel: u16) -> String {
        let mut consume = self.expect(channel, BASIC_CONSUME);
        consume.u16();
        consume.short();
        consume.short()
    }

    /// Expects the cancel of a consumer, and returns its consumer tag.
    pub(crate) fn expect_cancel(&mut self, channel: u16) -> String {
        self.expect(channel, BASIC_CANCEL).short()
    }

    /// Expects the cancel of this consumer, and sends cancel-ok.
    pub(crate) fn accept_cancel(&mut self, channel: u16, consumer_tag: &str) {
        assert_eq!(self.expect_cancel(channel), consumer_tag);
        self.send(channel, BASIC_CANCEL_OK, args().short(consumer_tag));
    }

    /// Cancels this consumer as RabbitMQ does, and expects that the client frees its consumer tag.
    pub(crate) fn cancel_consumer(&mut self, channel: u16, consumer_tag: &str) {
        self.send(channel, BASIC_CANCEL, args().short(consumer_tag).u8(1));
        self.expect_nowait_cancel(channel, consumer_tag);
    }

    /// Expects a cancel of this consumer with nowait.
    pub(crate) fn expect_nowait_cancel(&mut self, channel: u16, consumer_tag: &str) {
        let mut cancel = self.expect(channel, BASIC_CANCEL);
        assert_eq!((cancel.short(), cancel.u8()), (consumer_tag.into(), 1));
    }

    pub(crate) fn accept_declare(&mut self, channel: u16) {
        self.expect(channel, QUEUE_DECLARE);
        self.send(channel, QUEUE_DECLARE_OK, declare_ok("queue"));
    }

    // Ending.

    /// Serves an orderly end: closes of channels, then the close of the connection. Any other
    /// method fails the test.
    pub(crate) fn finish(&mut self) {
        loop {
            match self.frame() {
                None => return,
                Some(Frame::Heartbeat) => {}
                Some(Frame::Method(channel, CHANNEL_CLOSE, _)) => {
                    self.try_send(&method(channel, CHANNEL_CLOSE_OK, args()));
                }
                Some(Frame::Method(0, CONNECTION_CLOSE, _)) => {
                    self.try_send(&method(0, CONNECTION_CLOSE_OK, args()));
                    return self.expect_end();
                }
                Some(other) => panic!("expected a close, got {other:?}"),
            }
        }
    }

    /// Replies to the usual calls at the end of a test and ignores all other frames, until the
    /// client hangs up.
    pub(crate) fn serve(&mut self) {
        while self.serve_one().is_some() {}
    }

    /// Replies to the usual calls up to and including this method.
    pub(crate) fn serve_until(&mut self, channel: u16, id: Method) {
        while self.serve_one().expect("the client hung up") != (channel, id) {}
    }

    /// Replies to the next method, and returns its channel and its number.
    fn serve_one(&mut self) -> Option<(u16, Method)> {
        loop {
            let Frame::Method(channel, id, _) = self.frame()? else {
                continue;
            };
            self.try_send(&match id {
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

    /// Ignores all frames before `connection.close-ok`, and expects the end behind it.
    pub(crate) fn await_close_ok(&mut self) {
        loop {
            let came = self.frame().expect("the client hung up without a close-ok");
            if let Frame::Method(0, CONNECTION_CLOSE_OK, _) = came {
                return self.expect_end();
            }
        }
    }

    /// Ends the outgoing stream (`close_notify` and FIN). The peer may still read.
    pub(crate) fn shut_down(&mut self) {
        self.stream.send_close_notify();
        self.stream.socket().shutdown(Shutdown::Write).unwrap();
    }

    /// Sends FIN without the `close_notify` that TLS requires.
    #[cfg(feature = "native-tls")]
    pub(crate) fn shut_down_without_close_notify(&mut self) {
        self.stream.socket().shutdown(Shutdown::Write).unwrap();
    }

    /// Drops every packet of the client from now on, so that the TCP of this side does not even
    /// acknowledge it. The client sees a machine that has vanished.
    #[cfg(target_os = "linux")]
    pub(crate) fn vanish(&mut self) {
        // BPF_RET with 0 keeps no byte of a packet.
        let nothing = [socket2::SockFilter::new(6, 0, 0, 0)];
        let socket = SockRef::from(self.stream.socket());
        socket.attach_filter(&nothing).unwrap();
        self.stream.socket().set_nonblocking(true).unwrap();
        // Bytes from before the filter.
        while self.stream.read(&mut [0; 65_536]).is_ok() {}
    }

    /// Expects that no byte has arrived since [`Self::vanish`].
    pub(crate) fn expect_nothing(&mut self) {
        let error = self.stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }

    /// Returns a second handle of a plain connection, which may read while the first handle sends.
    pub(crate) fn another(&self) -> Self {
        Self {
            stream: Box::new(self.stream.socket().try_clone().unwrap()),
            trickles: false,
        }
    }

    /// Resets the connection (RST).
    pub(crate) fn reset(self) {
        let socket = SockRef::from(self.stream.socket());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
}
