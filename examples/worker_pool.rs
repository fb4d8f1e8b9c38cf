//! Several threads work on one queue, until you press Enter; then each finishes what it
//! has begun, and nothing is lost.
//!
//!     cargo run --example worker_pool -- QUEUE [THREADS]
//!
//! To stop at Ctrl-C instead, have a signal handler (from a crate such as `ctrlc`) call
//! `cancel` on a clone of the consumer, as the end of the input does here.

use std::thread;

use cony::BlockingConnection;

fn main() -> cony::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let queue = arguments.next().unwrap_or_else(|| "tasks".into());
    let threads = arguments.next().and_then(|count| count.parse().ok());
    let threads: u16 = threads.unwrap_or(4);

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    channel.queue_declare(&queue)?;
    // One message in work for each thread, and one in reserve.
    channel.basic_qos(threads.saturating_mul(2))?;
    let consumer = channel.consume(&queue)?;

    // The clones share one consumer: each message goes to one thread.
    let workers: Vec<_> = (1..=threads)
        .map(|number| {
            let consumer = consumer.clone();
            thread::spawn(move || {
                let mut done = 0;
                consumer.for_each(|delivery| {
                    println!("worker {number}: {}", delivery.text()?);
                    // However long the work takes, the connection stays alive.
                    delivery.ack()?;
                    done += 1;
                    Ok(())
                })?;
                Ok::<_, cony::Error>(done)
            })
        })
        .collect();

    eprintln!("working on {queue}; press Enter to stop");
    let _ = std::io::stdin().read_line(&mut String::new());

    // What nobody has begun goes back to the queue, and every `for_each` ends.
    consumer.cancel()?;
    let mut total = 0;
    for worker in workers {
        total += worker
            .join()
            .map_err(|_| cony::Error::other("a worker panicked"))??;
    }
    println!("{total} messages done");
    connection.close()
}
