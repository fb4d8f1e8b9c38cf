//! Workers with large queues. A call, a confirm and an RPC from inside a worker get their replies
//! in time, although many deliveries wait. Each test is a cell of a matrix, and all parameters but
//! those of the cell have their defaults.
//!
//! The cells take minutes and gigabytes, so they are ignored and run by name:
//!
//!     tests/with-broker cargo test --release --test workers -- --ignored --nocapture \
//!         --test-threads 1
//!
//! Every deadline is five seconds, so a later reply fails the worker. Each cell prints the time of
//! the slowest reply and the largest number of waiting bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::panic,
    missing_docs,
    reason = "a test that fails should panic"
)]

mod support;

use std::iter;
use std::ops::AddAssign;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Delivery, Message, RpcClient, basic,
    queue,
};

use crate::support::{await_ready, connect, unique, url};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The longest time of a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest time of the next delivery, and of the publishes of a queue.
const PATIENCE: Duration = Duration::from_secs(120);

/// The default of `read_budget`.
const READ_BUDGET: usize = 64 * MIB;

/// A queue for each channel, with messages of one size, and workers that share the queues.
#[derive(Clone, Copy)]
struct Cell {
    kind: &'static str,
    size: usize,
    channels: usize,
    /// The messages in each queue.
    messages: u32,
    prefetch: u16,
    /// The workers of all channels together.
    workers: usize,
    work: Duration,
    heartbeat: Duration,
    /// The number of deliveries after which the workers stop.
    handled: u32,
}

const CELL: Cell = Cell {
    kind: "classic",
    size: 200 * KIB,
    channels: 1,
    messages: 1100,
    prefetch: 1000,
    workers: 1,
    work: Duration::ZERO,
    heartbeat: Duration::from_secs(60),
    handled: 1100,
};

/// The number of replies, and the time of the slowest.
#[derive(Clone, Copy, Default)]
struct Replies {
    count: u32,
    slowest: Duration,
}

impl Replies {
    fn time<T>(&mut self, ask: impl FnOnce() -> cony::Result<T>) -> cony::Result<T> {
        let start = Instant::now();
        let answer = ask();
        *self += Self {
            count: 1,
            slowest: start.elapsed(),
        };
        answer
    }
}

impl AddAssign for Replies {
    fn add_assign(&mut self, other: Self) {
        self.count += other.count;
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// The queues of a cell. Dropping this deletes them.
struct Stock {
    channel: BlockingChannel,
    queues: Vec<String>,
}

impl Stock {
    fn new(cell: &Cell) -> Self {
        let channel = connect().channel().unwrap();
        channel.confirm_delivery().unwrap();
        let mut body = vec![7; cell.size];
        let queues = (0..cell.channels).map(|_| {
            let queue = unique("stock");
            channel
                .queue_declare(queue::Declare::new(&queue).queue_type(cell.kind))
                .unwrap();
            for number in 0..cell.messages {
                body[..4].copy_from_slice(&number.to_be_bytes());
                let message = Message::new(&body).mandatory(true);
                channel.basic_publish("", &queue, message).unwrap();
            }
            channel.wait_for_confirms(PATIENCE).unwrap();
            await_ready(&channel, &queue, cell.messages);
            queue
        });
        let queues = queues.collect();
        Self { channel, queues }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        for queue in &self.queues {
            let _ = self.channel.queue_delete(queue.as_str());
        }
    }
}

/// Serves RPC requests on a connection of its own.
fn serve() -> (
    BlockingChannel,
    String,
    thread::JoinHandle<cony::Result<()>>,
) {
    let channel = connect().channel().unwrap();
    let declare = queue::Declare::new_exclusive();
    let requests = channel.queue_declare(declare).unwrap().queue.to_string();
    channel
        .basic_consume(basic::Consume::new(&requests).no_ack(true), reply)
        .unwrap();
    let serving = channel.clone();
    (
        channel,
        requests,
        thread::spawn(move || serving.start_consuming()),
    )
}

fn reply(channel: &BlockingChannel, request: Delivery) -> cony::Result<()> {
    let asked = request.properties();
    let mut answer = Message::new("done");
    if let Some(id) = &asked.correlation_id {
        answer = answer.correlation_id(id);
    }
    let reply_to = asked.reply_to.as_deref().unwrap_or_default();
    channel.basic_publish("", reply_to, answer).map(drop)
}

fn run(name: &str, cell: Cell) {
    let stock = Stock::new(&cell);
    let (server, requests, serving) = serve();
    let parameters = ConnectionParameters::try_from(url())
        .unwrap()
        .rpc_timeout(REPLY_TIMEOUT)
        .heartbeat(cell.heartbeat)
        .default_prefetch(cell.prefetch);
    let connection = BlockingConnection::open(parameters).unwrap();
    let publisher = connection.channel().unwrap();
    let declare = queue::Declare::new_exclusive();
    let results = publisher.queue_declare(declare).unwrap().queue;
    publisher.confirm_delivery().unwrap();
    let client = RpcClient::new(&connection).unwrap();
    // Each queue has its own workers, and an equal share of the deliveries.
    let each = cell.handled / cell.channels as u32;
    let left: Vec<_> = iter::repeat_with(|| AtomicU32::new(each))
        .take(cell.channels)
        .collect();
    let answers = Mutex::new(Replies::default());
    let most = Mutex::new(0);
    let start = Instant::now();
    let consumers: Vec<_> = stock
        .queues
        .iter()
        .map(|queue| {
            let channel = connection.channel().unwrap();
            channel.consume(queue.as_str()).unwrap()
        })
        .collect();
    thread::scope(|scope| {
        for worker in 0..cell.workers.max(cell.channels) {
            let consumer = consumers[worker % cell.channels].clone();
            let (connection, publisher, client) = (&connection, &publisher, &client);
            let (results, requests) = (&results, requests.as_str());
            let (left, answers, most) = (&left[worker % cell.channels], &answers, &most);
            scope.spawn(move || {
                let (mut own, mut next) = (Replies::default(), 0);
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok()
                {
                    let delivery = consumer.recv_timeout(PATIENCE).unwrap();
                    let delivery = delivery.expect("no delivery in time");
                    assert_eq!(delivery.body.len(), cell.size);
                    let number = u32::from_be_bytes(*delivery.body.first_chunk().unwrap());
                    // A quorum queue of RabbitMQ 3.x puts requeued messages at its end.
                    assert!(number == next || cell.workers > 1 || cell.kind == "quorum");
                    next = number + 1;
                    thread::sleep(cell.work);
                    let result = publisher.basic_publish("", results, "done").unwrap();
                    own.time(|| result.wait_timeout(REPLY_TIMEOUT)).unwrap();
                    match delivery.delivery_tag % 8 {
                        0 => {
                            let open = || connection.channel();
                            own.time(open).unwrap().close().unwrap();
                        }
                        4 => {
                            let ask = || client.call(requests, "?", REPLY_TIMEOUT);
                            let _ = own.time(ask).unwrap();
                        }
                        _ => {}
                    }
                    drop(delivery.ack());
                    let waits = connection.stats().bytes_to_take;
                    let mut most = most.lock().unwrap();
                    *most = waits.max(*most);
                }
                *answers.lock().unwrap() += own;
            });
        }
    });
    let took = start.elapsed();
    let stats = connection.stats();
    let (answers, most) = (*answers.lock().unwrap(), *most.lock().unwrap());
    println!(
        "{name}: {} handled in {:.1} s, {} replies, the slowest {:.2} s; at most {:.1} MiB waited, \
         {} deliveries of {} were held back",
        cell.handled,
        took.as_secs_f64(),
        answers.count,
        answers.slowest.as_secs_f64(),
        most as f64 / MIB as f64,
        stats.deliveries_held_back,
        stats.messages_received + stats.deliveries_held_back,
    );
    assert!(most <= 2 * READ_BUDGET + cell.size, "{most} bytes waited");
    connection.close().unwrap();
    server.stop_consuming().unwrap();
    serving.join().unwrap().unwrap();
}

macro_rules! cells {
    ($($name:ident: $cell:expr;)*) => {
        $(
            #[test]
            #[ignore = "takes minutes; see the top of the file"]
            fn $name() {
                run(stringify!($name), $cell);
            }
        )*
    };
}

const SECOND: Duration = Duration::from_secs(1);

cells! {
    sixteen_bytes_with_one_worker: Cell { size: 16, messages: 20_000, handled: 20_000, ..CELL };
    sixteen_bytes_with_fifty_workers_of_a_quorum_queue: Cell {
        kind: "quorum",
        size: 16,
        messages: 20_000,
        handled: 20_000,
        workers: 50,
        heartbeat: SECOND,
        ..CELL
    };
    large_results_of_one_worker: CELL;
    large_results_of_one_worker_of_a_quorum_queue: Cell { kind: "quorum", ..CELL };
    sixteen_kibibytes_with_fifty_workers_on_ten_channels: Cell {
        size: 16 * KIB,
        channels: 10,
        messages: 4000,
        prefetch: 4000,
        handled: 40_000,
        workers: 50,
        heartbeat: SECOND,
        ..CELL
    };
    a_quarter_of_a_mebibyte_with_a_prefetch_of_a_gibibyte: Cell {
        size: 256 * KIB,
        messages: 4096,
        prefetch: 4096,
        handled: 4096,
        heartbeat: 10 * SECOND,
        ..CELL
    };
    a_mebibyte_on_four_channels_with_a_gibibyte_each: Cell {
        size: MIB,
        channels: 4,
        messages: 1024,
        prefetch: 1024,
        handled: 4096,
        workers: 50,
        ..CELL
    };
    a_mebibyte_on_four_channels_with_slow_workers: Cell {
        size: MIB,
        channels: 4,
        messages: 1024,
        prefetch: 1024,
        handled: 1000,
        workers: 50,
        work: SECOND,
        heartbeat: SECOND,
        ..CELL
    };
    a_mebibyte_of_a_quorum_queue_with_slow_workers: Cell {
        kind: "quorum",
        size: MIB,
        messages: 500,
        handled: 500,
        workers: 50,
        work: SECOND,
        heartbeat: 10 * SECOND,
        ..CELL
    };
    sixteen_mebibytes_with_one_worker: Cell {
        size: 16 * MIB,
        messages: 70,
        prefetch: 64,
        handled: 70,
        heartbeat: 10 * SECOND,
        ..CELL
    };
    sixteen_mebibytes_with_one_slow_worker: Cell {
        size: 16 * MIB,
        messages: 64,
        prefetch: 64,
        handled: 45,
        work: SECOND,
        heartbeat: SECOND,
        ..CELL
    };
    sixteen_mebibytes_with_fifty_workers_of_a_quorum_queue: Cell {
        kind: "quorum",
        size: 16 * MIB,
        messages: 64,
        prefetch: 64,
        handled: 64,
        workers: 50,
        ..CELL
    };
    a_slow_worker: Cell {
        size: 100 * KIB,
        messages: 1500,
        handled: 85,
        work: SECOND,
        ..CELL
    };
    a_slow_worker_with_fast_heartbeats: Cell {
        size: 100 * KIB,
        messages: 1500,
        handled: 85,
        work: SECOND,
        heartbeat: SECOND,
        ..CELL
    };
    a_slow_worker_without_a_prefetch: Cell {
        size: 100 * KIB,
        messages: 1500,
        prefetch: 0,
        handled: 85,
        work: SECOND,
        heartbeat: 10 * SECOND,
        ..CELL
    };
}
