//! Micro-benchmarks of the single steps of publishing and consuming.
//!
//!     cargo test --release --lib micro -- --ignored --nocapture --test-threads 1
//!
//! The benchmarks are unit tests of the library, because the steps are private. They are ignored,
//! because they assert nothing about the time. The first figure of a line is the best round: the
//! cost of the code. The second figure is the median: the cost on a machine with other work.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use mio::{Events, Poll, Token, Waker};

use crate::io::driver::buffer_pool::BufferPool;
use crate::io::driver::outbox::Outbox;
use crate::io::shared::command::Command;
use crate::io::to_io::block::Block;
use crate::io::to_io::command_queue::{CommandQueue, Taken};
use crate::io::to_io::frames::Frames;
use crate::io::to_io::spare_buffers::SpareBuffers;
use crate::io::to_io::wake::Wake;
use crate::io::to_program::bounded_queue::TotalBytes;
use crate::io::to_program::confirm_window::ConfirmWindow;
use crate::protocol::assembly::SizeLimit;
use crate::protocol::connection::{Connection, ConnectionLimits};
use crate::protocol::event::{ChannelId, Event, Tokens};
use crate::protocol::frame::tests::encode_content;
use crate::protocol::frame::{
    EncodedPublish, FrameDecoder, Publish, PublishBody, Settle, encode_method, encode_settle,
};
use crate::protocol::handshake::Negotiated;
use crate::protocol::methods::{Method, basic, channel};
use crate::protocol::properties::{BasicProperties, DeliveryMode};
use crate::protocol::settlements::SettlementLedger;
use crate::protocol::stream_progress::StreamProgress;
use crate::protocol::table::FieldTable;
use crate::protocol::table::field_value::FieldValue;
use crate::protocol::wire::{Reader, Writer};

const FRAME_MAX: u32 = 131_072;
const SIZES: [usize; 3] = [16, 1024, 65_536];

/// The length of one round.
const ROUND: Duration = Duration::from_millis(20);
const ROUNDS: usize = 15;

/// Prints the time of one operation. `act` does `count` operations.
fn measure(name: &str, count: u32, mut act: impl FnMut()) {
    let mut timed = |calls: u32| {
        let start = Instant::now();
        (0..calls).for_each(|_| act());
        start.elapsed()
    };
    let mut calls = 1;
    while timed(calls) < ROUND && calls < u32::MAX / 2 {
        calls *= 2;
    }
    let things = f64::from(calls) * f64::from(count);
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| timed(calls).as_secs_f64() * 1e9 / things)
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!(
        "{name:<46} {:>9.1} ns  (median {:>9.1})",
        rounds[0],
        rounds[ROUNDS / 2]
    );
}

fn headers() -> FieldTable {
    FieldTable::new()
        .with("tenant", "north")
        .with("attempt", 3)
        .with("urgent", true)
        .with("weight", 0.5)
        .with(
            "trace",
            FieldValue::from("0af7651916cd43dd8448eb211c80319c"),
        )
}

fn persistent() -> BasicProperties {
    BasicProperties::new()
        .content_type("application/json")
        .delivery_mode(DeliveryMode::Persistent)
}

#[test]
#[ignore = "a benchmark"]
fn encode_a_publish() {
    let (plain, with_headers) = (persistent(), persistent().headers(headers()));
    let kinds = [
        ("no properties", None),
        ("two properties", Some(&plain)),
        ("five headers", Some(&with_headers)),
    ];
    for size in SIZES {
        let body = vec![b'x'; size];
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        for (kind, properties) in kinds {
            measure(&format!("encode a publish, {size} B, {kind}"), 1, || {
                let publish = Publish {
                    exchange: "",
                    routing_key: "bench.queue.of.some.length",
                    mandatory: false,
                    immediate: false,
                    properties,
                    body: PublishBody::Borrowed(black_box(&body)),
                };
                let frame_max = FRAME_MAX as usize;
                let encoded = EncodedPublish::new(1, publish, frame_max, &mut scratch).unwrap();
                out.clear();
                encoded.write_to(&mut out, |_, _| {});
                black_box(&out);
            });
        }
    }
}

#[test]
#[ignore = "a benchmark"]
fn encode_an_ack() {
    let mut out = Vec::with_capacity(1 << 20);
    measure("encode an ack", 1000, || {
        out.clear();
        for tag in 0..1000 {
            encode_settle(&mut out, 1, tag, Settle::Ack { multiple: false });
        }
        black_box(&out);
    });
}

#[test]
#[ignore = "a benchmark"]
fn note_a_settlement() {
    let mut settlements = SettlementLedger::default();
    let mut tag = 0;
    measure("note a settlement, in order", 1, || {
        tag += 1;
        black_box(settlements.settle(tag));
    });
}

#[test]
#[ignore = "a benchmark"]
fn write_the_outbox() {
    for size in SIZES {
        let frames = vec![0; size + 64];
        let id = ChannelId {
            number: 1,
            generation: 1,
        };
        let mut outbox = Outbox::new(Arc::new(SpareBuffers::new()));
        measure(
            &format!("clone, gather, write a chunk of {size} B"),
            100,
            || {
                for _ in 0..100 {
                    outbox.push(Frames::new(id, black_box(&frames).clone()));
                }
                while !outbox.is_empty() {
                    outbox.write_to(&mut std::io::sink()).unwrap();
                }
            },
        );
    }
}

#[test]
#[ignore = "a benchmark"]
fn round_trip_a_table() {
    let table = headers();
    let mut bytes = Vec::new();
    table.encode(&mut Writer::new(&mut bytes)).unwrap();
    measure("encode a table of five", 1, || {
        let mut out = Vec::with_capacity(256);
        black_box(&table)
            .encode(&mut Writer::new(&mut out))
            .unwrap();
        black_box(out);
    });
    measure("decode a table of five", 1, || {
        black_box(FieldTable::decode(&mut Reader::new(black_box(&bytes))).unwrap());
    });
    measure("look a name up in a table of five", 1, || {
        black_box(black_box(&table).get("trace"));
    });
}

// ------------------------------------------------------------- received deliveries --

#[derive(Debug)]
struct NoTokens;

impl Tokens for NoTokens {
    type Call = ();
    type Channel = ();
    type Consumer = ();
    type Opener = ();
    type Buffers = BufferPool;

    fn has_untaken((): &()) -> bool {
        false
    }

    fn stream_progress((): &()) -> StreamProgress {
        StreamProgress {
            next: None,
            since: 0.into(),
        }
    }

    fn settled_deliveries((): &()) -> u64 {
        0
    }
}

/// Returns the core of an open connection whose channel 1 has a consumer "tag".
fn consuming() -> Connection<NoTokens> {
    let negotiated = Negotiated {
        channel_max: 5,
        frame_max: FRAME_MAX,
        heartbeat: 60,
        server_properties: FieldTable::new(),
    };
    let now = Instant::now();
    let decoder = FrameDecoder::new(FRAME_MAX);
    let limits = ConnectionLimits {
        message_size: SizeLimit {
            bytes: 1 << 27,
            rejects: false,
        },
        read_budget: 64 << 20,
        blocked_timeout: None,
    };
    let mut core = Connection::new(decoder, &negotiated, limits, now);
    let id = core.reserve_channel(None).unwrap();
    core.open_channel(id, (), (), now);
    receive(&mut core, &frame(channel::OpenOk::default()), now);
    let consume = basic::Consume::new("queue").consumer_tag("tag");
    core.call(id, consume.into(), Some(()), (), now);
    let consume_ok = basic::ConsumeOk::default().consumer_tag("tag");
    receive(&mut core, &frame(consume_ok), now);
    while core.poll_event().is_some() {}
    core
}

fn receive(core: &mut Connection<NoTokens>, bytes: &[u8], now: Instant) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = core.space();
        let count = rest.len().min(space.len());
        space[..count].copy_from_slice(&rest[..count]);
        core.set_untaken_bytes(0);
        core.received(count, now);
        rest = &rest[count..];
    }
}

fn frame(method: impl Into<Method>) -> Vec<u8> {
    let mut out = Vec::new();
    encode_method(&mut out, 1, &method.into(), FRAME_MAX as usize).unwrap();
    out
}

/// Returns the frames of one delivery.
fn delivery(tag: u64, properties: Option<&BasicProperties>, body: &[u8]) -> Vec<u8> {
    let deliver = basic::Deliver::default()
        .consumer_tag("tag")
        .delivery_tag(tag)
        .routing_key("bench.queue.of.some.length");
    let mut out = frame(deliver);
    encode_content(&mut out, 1, properties, body, FRAME_MAX as usize).unwrap();
    out
}

#[test]
#[ignore = "a benchmark"]
fn decode_a_delivery() {
    let (plain, with_headers) = (persistent(), persistent().headers(headers()));
    let kinds = [
        ("no properties", None),
        ("two properties", Some(&plain)),
        ("five headers", Some(&with_headers)),
    ];
    for size in SIZES {
        for (kind, properties) in kinds {
            let body = vec![b'x'; size];
            let count = (64 * 1024 / (size + 64)).max(1);
            let bytes: Vec<u8> = (1..=count as u64)
                .flat_map(|tag| delivery(tag, properties, &body))
                .collect();
            let mut core = consuming();
            let now = Instant::now();
            let mut seen = 0;
            measure(
                &format!("decode a delivery, {size} B, {kind}"),
                u32::try_from(count).unwrap(),
                || {
                    receive(&mut core, &bytes, now);
                    while let Some(event) = core.poll_event() {
                        if let Event::Deliveries { mut batches, .. } = event {
                            seen += batches.drain(..).map(|run| run.len()).sum::<usize>();
                            core.reuse(batches);
                        }
                    }
                },
            );
            assert_eq!(seen % count, 0, "every round decodes whole batches");
            assert!(seen > 0);
        }
    }
}

// ---------------------------------------------------- between the program and IO thread --

#[test]
#[ignore = "a benchmark"]
fn enter_a_publish() {
    let (commands, entries) = CommandQueue::<Command>::new(4 << 20, 16 << 20);
    let id = ChannelId {
        number: 1,
        generation: 1,
    };
    let publish = Publish {
        exchange: "",
        routing_key: "bench.queue.of.some.length",
        mandatory: false,
        immediate: false,
        properties: None,
        body: PublishBody::Borrowed(b"sixteen bytes .."),
    };
    let mut scratch = Vec::new();
    let encoded = EncodedPublish::new(1, publish, FRAME_MAX as usize, &mut scratch).unwrap();
    let block = Block::new(id);
    let mut taken = VecDeque::new();
    measure("queue a publish, taken 100 at once", 100, || {
        for _ in 0..100 {
            assert!(commands.budget.admit(encoded.size()));
            let queued = commands.publish(block.lock(), black_box(&encoded), false);
            assert!(queued.is_ok());
        }
        commands.take(&entries, &mut taken);
        for entry in taken.drain(..) {
            if let Taken::Frames(frames) = entry {
                commands.budget.release(frames.bytes.len());
                commands.spare_buffers().put(frames.bytes);
            }
        }
    });
    let plain = ConfirmWindow::new(1000, Duration::ZERO, false, &TotalBytes::default());
    measure("enter a publish, no confirms", 1, || {
        let ticket = plain.begin(&mut false).unwrap();
        assert!(ticket.commit(None, false).is_none());
    });
    let confirming = ConfirmWindow::new(1000, Duration::ZERO, false, &TotalBytes::default());
    assert!(confirming.select(|| ()));
    confirming.select_done(true);
    measure("enter and confirm a publish, 100 at once", 100, || {
        let mut last = 0;
        for _ in 0..100 {
            let ticket = confirming.begin(&mut false).unwrap();
            if let Some((number, slot)) = ticket.commit(None, false) {
                last = number;
                black_box(slot);
            }
        }
        confirming.confirmed(last, true, true, |_| {});
    });
}

#[test]
#[ignore = "a benchmark"]
fn cross_the_thread_one_way() {
    // As large as the commands and deliveries that are passed between the threads.
    type Item = [u64; 8];
    let (sender, items) = unbounded::<Item>();
    let (taken, is_taken) = bounded::<()>(1);
    let taker = thread::spawn(move || {
        while let Ok(item) = items.recv() {
            if black_box(item)[0] == 1 {
                taken.send(()).unwrap();
            }
        }
    });
    measure("queue an item, taken by another thread", 10_000, || {
        for left in (1..=10_000).rev() {
            sender.send([left; 8]).unwrap();
        }
        is_taken.recv().unwrap();
    });
    drop(sender);
    taker.join().unwrap();
}

/// Waits for commands and replies to them, as the IO thread does.
fn answering(commands: Receiver<Sender<u64>>, poll: Poll, wake: Arc<Wake>) {
    let mut poll = poll;
    let mut events = Events::with_capacity(4);
    loop {
        loop {
            match commands.try_recv() {
                Ok(reply) => reply.send(1).unwrap(),
                Err(error) if error.is_disconnected() => return,
                Err(_) => break,
            }
        }
        wake.begin_wait();
        let timeout = (!commands.is_empty()).then_some(Duration::ZERO);
        // The timeout is bounded, because a dropped sender does not wake this thread.
        let timeout = timeout.or(Some(Duration::from_millis(100)));
        poll.poll(&mut events, timeout).unwrap();
        wake.end_wait();
    }
}

#[test]
#[ignore = "a benchmark"]
fn cross_the_thread_and_back() {
    let poll = Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), Token(1)).unwrap());
    let wake = Arc::new(Wake::with(&waker));
    let (sender, commands) = unbounded();
    let thread = thread::spawn({
        let wake = Arc::clone(&wake);
        move || answering(commands, poll, wake)
    });
    measure("wake the IO thread and wait for its reply", 1, || {
        let (reply, answer) = bounded(1);
        sender.send(reply).unwrap();
        wake.notify();
        black_box(answer.recv().unwrap());
    });
    measure("notify, while the IO thread is busy", 1, || {
        wake.end_wait();
        wake.notify();
    });
    drop(sender);
    thread.join().unwrap();
}
