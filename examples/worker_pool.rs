//! Several threads work on one queue until you press Enter. Then each thread finishes its message,
//! and no message is lost.
//!
//!     cargo run --example worker_pool -- QUEUE [THREADS]
//!
//! The example `reliable_worker` stops at Ctrl-C and SIGTERM instead.

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
    // For each thread one message in work and one in reserve.
    channel.basic_qos(threads.saturating_mul(2))?;
    let consumer = channel.consume(&queue)?;

    // The clones share one consumer: each delivery goes to one thread.
    let workers: Vec<_> = (1..=threads)
        .map(|number| {
            let consumer = consumer.clone();
            thread::spawn(move || {
                let mut done = 0;
                consumer.for_each(|delivery| {
                    println!("worker {number}: {}", delivery.text()?);
                    // The work may take long: the IO thread keeps the connection alive.
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

    // Ends every `for_each`. Deliveries that no thread has taken go back to the queue.
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
