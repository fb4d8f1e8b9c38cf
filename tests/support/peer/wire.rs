//! The peer's end of one connection: the steps of a script.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::encoding::*;
use super::methods::*;
use super::{Method, PATIENCE};

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
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            trickles: false,
        }
    }

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
                Arguments::new(arguments)
            }
            other => panic!("{id:?} was due on channel {channel}, not {other:?}"),
        }
    }

    /// Awaits a content, and joins its body.
    pub(crate) fn expect_content(&mut self, channel: u16) -> Vec<u8> {
        let size = match self.next() {
            Frame::Header(on, payload) if on == channel => {
                Arguments::new(payload[4..].to_vec()).u64()
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
