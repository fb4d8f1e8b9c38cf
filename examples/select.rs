//! One thread waits for two connections, and for channels of its own.
//!
//!     cargo run --example select
//!
//! pika has its Tornado and asyncore adapters for this: the program has a loop of its own, and
//! AMQP is one of several things that the loop waits for.

use std::thread;
use std::time::Duration;

use cony::{BlockingConnection, queue};
use crossbeam_channel::{bounded, never, select, tick};

fn main() -> cony::Result<()> {
    // Two connections, perhaps to two brokers.
    let (orders, audit) = (
        BlockingConnection::open_default()?,
        BlockingConnection::open_default()?,
    );

    // On the first connection a consumer without a callback.
    let channel = orders.channel()?;
    let order_queue = channel
        .queue_declare(queue::Declare::new_exclusive())?
        .queue;
    let consumer = channel.consume(&order_queue)?;

    // On the second connection a consumer with a callback.
    let trail = audit.channel()?;
    let trail_queue = trail.queue_declare(queue::Declare::new_exclusive())?.queue;
    let (note, audited) = bounded(10);
    trail.basic_consume(&trail_queue, move |_, delivery| {
        println!("audit: {}", delivery.text()?);
        note.send(()).map_err(cony::Error::other)?;
        delivery.ack()
    })?;

    // Input from another thread, and a clock: neither has to do with AMQP.
    let (input, mut lines) = bounded(1);
    thread::spawn(move || {
        ["a book", "a lamp"]
            .iter()
            .try_for_each(|line| input.send(*line))
    });
    let clock = tick(Duration::from_secs(60));

    let mut open = 2;
    while open > 0 {
        select! {
            recv(lines) -> line => match line {
                Ok(line) => channel.basic_publish("", &order_queue, line).map(drop)?,
                // A closed channel is always ready, so stop waiting for it.
                Err(_) => lines = never(),
            },
            // `ready` means that there may be a delivery, so do not wait for one.
            recv(consumer.ready()) -> _ => {
                if let Some(order) = consumer.try_recv()? {
                    println!("order: {}", order.text()?);
                    trail.basic_publish("", &trail_queue, format!("sold {}", order.text()?))?;
                    order.ack()?;
                }
            }
            recv(audit.ready()) -> _ => audit.process_data_events(Duration::ZERO)?,
            recv(audited) -> _ => open -= 1,
            recv(clock) -> _ => println!("{:?}", orders.stats()),
        }
    }
    orders.close()?;
    audit.close()
}
