//! Measures whether a message costs more with more channels, consumers, unconfirmed messages or
//! earlier messages.
//!
//!     AMQP_URL=... cargo test --release --test curves -- --ignored --nocapture --test-threads 1
//!
//! The measurements assert nothing, so they are ignored and run by name. Each point is a line of
//! JSON with the median of five rounds. A round is the difference between a run and a run of twice
//! the length, so that the beginning and the end of a run do not count. The measurements need a
//! peer that stores no messages, and delivers as many messages as the name of a queue says
//! (`bench.sSIZE.nMESSAGES.NUMBER`).

#![allow(
    clippy::cast_possible_truncation,
    reason = "the numbers are those of the curves"
)]

use std::env::VarError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, iter};

use cony::{
    BlockingChannel, BlockingConnection, ConnectionParameters, Error, Result, basic, queue,
};

const BODY: [u8; 16] = [b'x'; 16];
const ROUNDS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(60);

/// The processor time of all threads and the elapsed time of a run, in nanoseconds.
struct Took {
    cpu: f64,
    wall: f64,
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<Took> {
    let (cpu, start) = (cpu_time(), Instant::now());
    act()?;
    Ok(Took {
        cpu: cpu_time() - cpu,
        wall: start.elapsed().as_nanos() as f64,
    })
}

/// Returns the processor time of all running threads, from `/proc`.
fn cpu_time() -> f64 {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let times = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    times.sum()
}

/// Prints the cost per message of `run(2 * messages)` in excess of `run(messages)`.
fn point(curve: &str, count: u64, messages: u64, run: impl Fn(u64) -> Result<Took>) -> Result<()> {
    run(messages)?;
    let (mut cpu, mut wall) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (short, long) = (run(messages)?, run(2 * messages)?);
        cpu.push((long.cpu - short.cpu) / messages as f64);
        wall.push((long.wall - short.wall) / messages as f64);
    }
    println!(
        "{{\"curve\":\"{curve}\",\"count\":{count},\"messages\":{messages},\
         \"cpu_ns\":{:.1},\"wall_ns\":{:.1}}}",
        median(cpu),
        median(wall),
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn connect(window: usize) -> Result<BlockingConnection> {
    let parameters = match std::env::var("AMQP_URL") {
        Ok(url) => url.parse()?,
        Err(VarError::NotPresent) => ConnectionParameters::default(),
        Err(error) => return Err(Error::other(error)),
    };
    // The callbacks run only after the last consumer has started, whose reply comes behind all
    // earlier deliveries. So the read budget must hold them all.
    let parameters = parameters.confirm_window(window).read_budget(1 << 30);
    BlockingConnection::open(parameters)
}

fn queue_of(channel: &BlockingChannel, messages: u64, number: u64) -> Result<String> {
    let name = format!("bench.s{}.n{messages}.{number}", BODY.len());
    channel.queue_declare(queue::Declare::new(&name).exclusive(true))?;
    Ok(name)
}

/// Waits until the broker has read all earlier frames: one round trip.
fn arrived(channel: &BlockingChannel, queue: &str) -> Result<()> {
    let passive = queue::Declare::new(queue).passive(true);
    channel.queue_declare(passive).map(drop)
}

/// Publishes from one thread on `channels` channels, `at_a_time` messages on each in turn.
fn publish_on(channels: u64, at_a_time: u64, messages: u64) -> Result<Took> {
    let connection = connect(1000)?;
    let channels: Vec<_> = iter::repeat_with(|| connection.channel())
        .take(channels as usize)
        .collect::<Result<_>>()?;
    let queue = queue_of(&channels[0], 0, 0)?;
    let took = timed(|| {
        for number in 0..messages {
            let channel = (number / at_a_time) as usize % channels.len();
            channels[channel].basic_publish("", &queue, &BODY)?;
        }
        arrived(&channels[0], &queue)
    })?;
    connection.close()?;
    Ok(took)
}

/// Publishes with confirms and this confirm window.
fn publish_confirmed(window: u64, messages: u64) -> Result<Took> {
    let connection = connect(window as usize)?;
    let channel = connection.channel()?;
    let queue = queue_of(&channel, 0, 0)?;
    channel.confirm_delivery()?;
    let took = timed(|| {
        for _ in 0..messages {
            channel.basic_publish("", &queue, &BODY)?;
        }
        channel.wait_for_confirms(PATIENCE)
    })?;
    connection.close()?;
    Ok(took)
}

/// Consumes with `consumers` callbacks of one channel, each from a queue of its own.
fn consume_with(consumers: u64, messages: u64) -> Result<Took> {
    let connection = connect(1000)?;
    let channel = connection.channel()?;
    let each = messages / consumers;
    let queues: Vec<_> = (0..consumers)
        .map(|number| queue_of(&channel, each, number))
        .collect::<Result<_>>()?;
    let left = Arc::new(AtomicU64::new(each * consumers));
    let took = timed(|| {
        for queue in &queues {
            let left = Arc::clone(&left);
            channel.basic_consume(
                basic::Consume::new(queue).no_ack(true),
                move |channel, _| match left.fetch_sub(1, Ordering::Relaxed) {
                    1 => channel.stop_consuming(),
                    _ => Ok(()),
                },
            )?;
        }
        channel.start_consuming()
    })?;
    connection.close()?;
    Ok(took)
}

#[test]
#[ignore = "measures, asserts nothing"]
fn channels() -> Result<()> {
    for count in [1, 100, 2000] {
        point(
            "channels, 100 messages at a time",
            count,
            1_000_000,
            |messages| publish_on(count, 100, messages),
        )?;
    }
    for count in [1, 2, 100, 2000] {
        point(
            "channels, one message at a time",
            count,
            500_000,
            |messages| publish_on(count, 1, messages),
        )?;
    }
    Ok(())
}

#[test]
#[ignore = "measures, asserts nothing"]
fn consumers() -> Result<()> {
    for count in [1, 100, 2000] {
        point("consumers", count, 1_000_000, |messages| {
            consume_with(count, messages)
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "measures, asserts nothing"]
fn unconfirmed() -> Result<()> {
    for window in [10, 1000, 100_000] {
        point("unconfirmed", window, 1_000_000, |messages| {
            publish_confirmed(window, messages)
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "measures, asserts nothing"]
fn messages() -> Result<()> {
    for count in [10_000, 100_000, 1_000_000, 10_000_000] {
        point("messages published", count, count, |messages| {
            publish_confirmed(1000, messages)
        })?;
        point("messages consumed", count, count, |messages| {
            consume_with(1, messages)
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "takes a minute"]
fn a_hundred_million_messages() -> Result<()> {
    let count = 100_000_000;
    let took = publish_confirmed(1000, count)?;
    println!(
        "{{\"curve\":\"messages published\",\"count\":{count},\"messages\":{count},\
         \"cpu_ns\":{:.1},\"wall_ns\":{:.1}}}",
        took.cpu / count as f64,
        took.wall / count as f64,
    );
    Ok(())
}
