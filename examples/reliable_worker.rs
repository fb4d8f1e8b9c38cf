//! A worker for production: it waits for its broker, works in four threads, goes on after a lost
//! connection, moves messages that fail three times to another queue, and stops in good order at
//! Ctrl-C or SIGTERM.
//!
//!     cargo run --example reliable_worker -- QUEUE
//!
//! The page docs/guide/worker.md explains each part.

use std::time::Duration;
use std::{env, panic, thread};

use cony::{BlockingConnection, CancellationToken, ConnectionParameters, Consumer, Error, Result};

fn main() -> Result<()> {
    let queue = env::args().nth(1).unwrap_or_else(|| "jobs".into());
    let url = env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".into());

    // `ctrlc` calls the closure in a thread of its own, not inside the signal handler.
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    ctrlc::set_handler(move || stopping.cancel()).map_err(Error::other)?;

    // Opening tries again every five seconds until the broker is there or the token is cancelled.
    let parameters = ConnectionParameters::try_from(url)?
        .connection_name(format!("worker of {queue}"))
        .connection_attempts(u32::MAX)
        .retry_delay(Duration::from_secs(5))
        .cancellation_token(stop.clone());
    println!("waiting for the broker");
    match BlockingConnection::open(parameters) {
        Err(Error::OpenCancelled { .. }) => {}
        connection => work(&connection?, &queue, &stop)?,
    }
    println!("stopped");
    Ok(())
}

/// Works until the token is cancelled. After a loss cony opens the connection again, and restores
/// the queues and the consumer; the loops below only wait for longer.
fn work(connection: &BlockingConnection, queue: &str, stop: &CancellationToken) -> Result<()> {
    let channel = connection.channel()?;
    let dead = format!("{queue}.dead");
    channel.queue_declare(&dead)?;
    // Two returns to the queue are allowed: after the third failure the message is dead.
    let jobs = cony::queue::Declare::new_quorum(queue).delivery_limit(2);
    channel.queue_declare(jobs.dead_letter_exchange("").dead_letter_routing_key(dead))?;
    channel.basic_qos(8)?; // for each thread one message in work and one in reserve
    let consumer = channel.consume(queue)?;
    println!("waiting for messages in {queue}");
    thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(|| work_on(&consumer, stop)));
        let panicked = |_| Error::other("a thread panicked");
        (threads.into_iter()).try_for_each(|thread| thread.join().map_err(panicked)?)
    })?;
    connection.close() // unsettled deliveries go back to the queue
}

fn work_on(consumer: &Consumer, stop: &CancellationToken) -> Result<()> {
    while !stop.is_cancelled() {
        if let Some(delivery) = consumer.recv_timeout(Duration::from_millis(500))? {
            let body = &delivery.body[..];
            match panic::catch_unwind(|| handle(body)) {
                Ok(Ok(())) => delivery.ack()?,
                Ok(Err(_)) | Err(_) => delivery.requeue()?, // requeues
            }
        }
    }
    Ok(())
}

/// The work itself. It fails if the body is not a number, and panics for 0.
fn handle(body: &[u8]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let number: u32 = std::str::from_utf8(body)?.parse()?;
    println!("100 / {number} = {}", 100 / number);
    Ok(())
}
