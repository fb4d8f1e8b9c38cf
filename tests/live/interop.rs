//! Messages to and from other clients: librabbitmq, its command-line tools, and pika.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cony::{BasicProperties, Bytes, DeliveryMode, FieldTable, FieldValue, Message, queue};

use crate::support::{await_ready, channel, get, run, unique, url};

fn tool(name: &str, queue: &str) -> Command {
    let mut command = Command::new(name);
    command.args([
        "--url",
        &url(),
        if name == "amqp-publish" { "-r" } else { "-q" },
        queue,
    ]);
    command
}

#[test]
fn a_message_of_amqp_publish_can_be_got() {
    let channel = channel();
    let queue = unique("from-tool");
    channel.queue_declare(&queue).unwrap();
    let mut publish = tool("amqp-publish", &queue);
    publish.args(["-C", "text/plain", "-p", "-b", "from the tool"]);
    run(&mut publish, b"");
    let message = get(&channel, &queue);
    assert_eq!(message.text().unwrap(), "from the tool");
    let properties = message.properties();
    assert_eq!(properties.content_type.as_deref(), Some("text/plain"));
    assert_eq!(properties.delivery_mode, Some(DeliveryMode::Persistent));
    channel.queue_delete(&queue).unwrap();
}

#[test]
fn amqp_get_gets_a_published_message() {
    let channel = channel();
    let queue = unique("to-tool");
    channel.queue_declare(&queue).unwrap();
    let body: Vec<u8> = (0..=255).cycle().take(400_000).collect();
    channel.basic_publish("", &queue, &body).unwrap();
    await_ready(&channel, &queue, 1);
    assert_eq!(run(&mut tool("amqp-get", &queue), b""), body);
    channel.queue_delete(&queue).unwrap();
}

#[test]
fn amqp_consume_consumes_published_messages() {
    let channel = channel();
    let queue = unique("consumed");
    channel.queue_declare(&queue).unwrap();
    for body in ["a", "b", "c"] {
        channel.basic_publish("", &queue, body).unwrap();
    }
    let mut consume = tool("amqp-consume", &queue);
    consume.args(["-c", "3", "cat"]);
    assert_eq!(run(&mut consume, b""), b"abc");
    channel
        .queue_delete(queue::Delete::new(&queue).if_empty(true))
        .unwrap();
}

#[test]
fn a_message_of_amqp_publish_can_be_consumed() {
    let channel = channel();
    let queue = unique("worked");
    channel.queue_declare(&queue).unwrap();
    let body = vec![b'x'; 200_000];
    run(&mut tool("amqp-publish", &queue), &body);
    let consumer = channel.consume(&queue).unwrap();
    let delivery = consumer.recv().unwrap().unwrap();
    assert_eq!(delivery.body, body);
    delivery.ack().unwrap();
    channel.queue_delete(&queue).unwrap();
}

/// A program in `tests/interop` with another client. It publishes one message to a queue, or gets
/// one and prints it.
#[derive(Clone, Copy)]
enum Peer {
    Pika,
    Librabbitmq,
}

impl Peer {
    /// Runs the program and returns its lines of output.
    fn run(self, action: &str, queue: &str) -> Vec<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
        let mut command = match self {
            Self::Pika => {
                // Debian's packages are for this Python. Another one may be first in PATH.
                let mut python = Command::new("/usr/bin/python3");
                python.arg(folder.join("pika_peer.py"));
                python
            }
            Self::Librabbitmq => Command::new(compiled(&folder.join("librabbitmq_peer.c"))),
        };
        command.args([action, &url(), queue]);
        let output = String::from_utf8(run(&mut command, b"")).unwrap();
        output.lines().map(str::to_owned).collect()
    }
}

/// Compiles a C source once and returns the program.
fn compiled(source: &Path) -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.args(["--cflags", "--libs", "librabbitmq"]);
        let flags = String::from_utf8(run(&mut pkg_config, b"")).unwrap();
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("librabbitmq_peer");
        // Renamed at the end, because another test run may be running the former program.
        let fresh = program.with_extension(std::process::id().to_string());
        let mut compiler = Command::new("cc");
        compiler.arg("-o").arg(&fresh).arg(source);
        compiler.args(flags.split_whitespace());
        run(&mut compiler, b"");
        std::fs::rename(&fresh, &program).unwrap();
        program
    })
}

fn octets() -> Vec<u8> {
    (0..=255).collect()
}

/// Returns all properties but the headers. The programs publish the same.
fn properties() -> BasicProperties {
    BasicProperties::new()
        .content_type("text/plain")
        .content_encoding("utf-8")
        .delivery_mode(DeliveryMode::Persistent)
        .priority(5)
        .correlation_id("correlation")
        .reply_to("reply")
        .expiration("600000")
        .message_id("message")
        .timestamp(1_700_000_000)
        .message_type("type")
        .user_id("guest")
        .app_id("app")
        .cluster_id("cluster")
}

/// Asserts that the message of `peer` has these headers and the other properties.
fn assert_publishes(peer: Peer, headers: &FieldTable) {
    let channel = channel();
    let queue = unique("from-peer");
    channel.queue_declare(&queue).unwrap();
    peer.run("publish", &queue);
    let message = get(&channel, &queue);
    assert_eq!(message.exchange, "");
    assert_eq!(message.routing_key, queue);
    assert_eq!(message.body, octets());
    let got = message.properties();
    let got_headers = got.headers.as_ref().unwrap();
    assert_eq!(got_headers.len(), headers.len(), "{got_headers:?}");
    for (name, value) in headers.iter() {
        assert_eq!(got_headers.get(name), Some(value), "{name}");
    }
    assert_eq!(*got, properties().headers(headers.clone()));
    channel.queue_delete(&queue).unwrap();
}

/// Asserts that `peer` gets a message with these headers and prints these lines.
fn assert_gets(peer: Peer, headers: FieldTable, expected: &[&str]) {
    let channel = channel();
    let queue = unique("to-peer");
    channel.queue_declare(&queue).unwrap();
    let properties = properties().headers(headers);
    let body = octets();
    let message = Message::new(&body).properties(&properties);
    channel.basic_publish("", &queue, message).unwrap();
    await_ready(&channel, &queue, 1);
    let hex: String = body.iter().map(|octet| format!("{octet:02x}")).collect();
    let mut expected: Vec<String> = expected
        .iter()
        .map(|line| line.replace("QUEUE", &queue).replace("OCTETS", &hex))
        .collect();
    let mut lines = peer.run("get", &queue);
    // RabbitMQ 4 sorts headers.
    expected.sort();
    lines.sort();
    assert_eq!(lines, expected);
    channel.queue_delete(&queue).unwrap();
}

/// Returns the decimal that the programs publish.
fn decimal() -> FieldValue {
    FieldValue::Decimal {
        scale: 2,
        value: 314,
    }
}

/// Returns a negative decimal, for clients that support the sign.
fn negative() -> FieldValue {
    FieldValue::Decimal {
        scale: 2,
        value: -314,
    }
}

const TIME: FieldValue = FieldValue::Timestamp(cony::Timestamp::from_secs(1_700_000_000));

#[test]
fn a_message_of_pika_arrives_with_every_property_and_header() {
    let headers = FieldTable::new()
        .with("true", true)
        .with("false", false)
        .with("int", -3i32)
        .with("long", 1i64 << 40)
        .with("negative long", -(1i64 << 40))
        .with("decimal", decimal())
        .with("negative decimal", negative())
        .with("string", "tëxt")
        .with("bytes", Bytes::from_static(b"\0\xff"))
        .with("timestamp", TIME)
        .with(
            "array",
            vec![
                FieldValue::from(1i32),
                "two".into(),
                FieldValue::Void,
                vec![FieldValue::from(3i32)].into(),
            ],
        )
        .with(
            "table",
            FieldTable::from([("inner", FieldTable::from([("deep", 1i32)]))]),
        )
        .with("void", FieldValue::Void);
    assert_publishes(Peer::Pika, &headers);
}

#[test]
fn a_message_of_librabbitmq_arrives_with_every_property_and_header() {
    let headers = FieldTable::new()
        .with("boolean", true)
        .with("i8", -1i8)
        .with("u8", 255u8)
        .with("i16", -2i16)
        .with("u16", 65535u16)
        .with("i32", -3i32)
        .with("u32", u32::MAX)
        .with("i64", i64::MIN)
        .with("u64", i64::MAX)
        .with("f32", 1.5f32)
        .with("f64", -0.25f64)
        .with("decimal", decimal())
        .with("utf8", "tëxt")
        .with(
            "array",
            vec![FieldValue::from(1i32), "two".into(), FieldValue::Void],
        )
        .with("timestamp", TIME)
        .with("table", FieldTable::from([("inner", 1i32)]))
        .with("void", FieldValue::Void)
        .with("bytes", Bytes::from_static(b"\0\xff"));
    assert_publishes(Peer::Librabbitmq, &headers);
}

/// Returns one value of each type that pika 1.2 decodes correctly. It confuses signed and unsigned
/// integers of some widths, and truncates floats.
fn headers_for_all() -> FieldTable {
    FieldTable::new()
        .with("bool", true)
        .with("i8", 1i8)
        .with("u8", 127u8)
        .with("i16", -2i16)
        .with("u16", 65535u16)
        .with("i32", -3i32)
        .with("u32", u32::MAX)
        .with("i64", i64::MAX)
        .with("f32", 1.0f32)
        .with("f64", -2.0f64)
        .with("decimal", decimal())
        .with("negative", negative())
        .with("string", "tëxt")
        .with("bytes", Bytes::from_static(b"\0\xff"))
        .with("time", TIME)
        .with("void", FieldValue::Void)
        .with(
            "array",
            vec![FieldValue::from(1i32), "two".into(), FieldValue::Void],
        )
        .with(
            "table",
            FieldTable::from([("inner", FieldTable::from([("deep", 1i32)]))]),
        )
        .with("empty", FieldTable::new())
}

#[test]
fn pika_gets_every_property_and_header() {
    let expected = [
        "exchange: str ''",
        "routing_key: str 'QUEUE'",
        "body: str 'OCTETS'",
        "content_type: str 'text/plain'",
        "content_encoding: str 'utf-8'",
        "delivery_mode: number 2",
        "priority: number 5",
        "correlation_id: str 'correlation'",
        "reply_to: str 'reply'",
        "expiration: str '600000'",
        "message_id: str 'message'",
        "timestamp: number 1700000000",
        "type: str 'type'",
        "user_id: str 'guest'",
        "app_id: str 'app'",
        "cluster_id: str 'cluster'",
        "headers: dict of 19",
        "headers.bool: bool True",
        "headers.i8: number 1",
        "headers.u8: number 127",
        "headers.i16: number -2",
        "headers.u16: number 65535",
        "headers.i32: number -3",
        "headers.u32: number 4294967295",
        "headers.i64: number 9223372036854775807",
        "headers.f32: number 1",
        "headers.f64: number -2",
        "headers.decimal: Decimal Decimal('3.14')",
        "headers.negative: Decimal Decimal('-3.14')",
        "headers.string: str 'tëxt'",
        "headers.bytes: bytes b'\\x00\\xff'",
        "headers.time: datetime datetime.datetime(2023, 11, 14, 22, 13, 20)",
        "headers.void: NoneType None",
        "headers.array: list of 3",
        "headers.array.0: number 1",
        "headers.array.1: str 'two'",
        "headers.array.2: NoneType None",
        "headers.table: dict of 1",
        "headers.table.inner: dict of 1",
        "headers.table.inner.deep: number 1",
        "headers.empty: dict of 0",
    ];
    assert_gets(Peer::Pika, headers_for_all(), &expected);
}

#[test]
fn librabbitmq_gets_every_property_and_header() {
    let headers = headers_for_all()
        .with("negative i8", -1i8)
        .with("large u8", 255u8)
        .with("negative i64", i64::MIN)
        .with("fraction f32", 1.5f32)
        .with("fraction f64", -0.25f64);
    let expected = [
        "exchange: utf8 ",
        "routing_key: utf8 QUEUE",
        "body: bytes OCTETS",
        "flags: fffc",
        "content_type: utf8 text/plain",
        "content_encoding: utf8 utf-8",
        "delivery_mode: u8 2",
        "priority: u8 5",
        "correlation_id: utf8 correlation",
        "reply_to: utf8 reply",
        "expiration: utf8 600000",
        "message_id: utf8 message",
        "timestamp: u64 1700000000",
        "type: utf8 type",
        "user_id: utf8 guest",
        "app_id: utf8 app",
        "cluster_id: utf8 cluster",
        "headers: table of 24",
        "headers.bool: boolean 1",
        "headers.i8: i8 1",
        "headers.u8: u8 127",
        "headers.i16: i16 -2",
        "headers.u16: u16 65535",
        "headers.i32: i32 -3",
        "headers.u32: u32 4294967295",
        "headers.i64: i64 9223372036854775807",
        "headers.f32: f32 1",
        "headers.f64: f64 -2",
        "headers.decimal: decimal 314 / 10^2",
        // librabbitmq has no sign and prints the same bits.
        "headers.negative: decimal 4294966982 / 10^2",
        "headers.string: utf8 tëxt",
        "headers.bytes: bytes 00ff",
        "headers.time: timestamp 1700000000",
        "headers.void: void",
        "headers.array: array of 3",
        "headers.array.0: i32 1",
        "headers.array.1: utf8 two",
        "headers.array.2: void",
        "headers.table: table of 1",
        "headers.table.inner: table of 1",
        "headers.table.inner.deep: i32 1",
        "headers.empty: table of 0",
        "headers.negative i8: i8 -1",
        "headers.large u8: u8 255",
        "headers.negative i64: i64 -9223372036854775808",
        "headers.fraction f32: f32 1.5",
        "headers.fraction f64: f64 -0.25",
    ];
    assert_gets(Peer::Librabbitmq, headers, &expected);
}
