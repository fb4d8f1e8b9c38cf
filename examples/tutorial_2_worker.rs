//! Tutorial 2, work queues: one of several workers that share the tasks of a queue.
//!
//!     cargo run --example tutorial_2_worker
//!
//! Start several; each task goes to one of them. Press Enter to stop one.

use std::thread;
use std::time::Duration;

use cony::BlockingConnection;

fn main() -> cony::Result<()> {
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    channel.queue_declare("tutorial.tasks")?;

    // One task at a time: the broker sends the next one when this one is acknowledged, so
    // that nobody sits on tasks while others are idle.
    channel.basic_qos(1)?;

    channel.basic_consume("tutorial.tasks", |_, delivery| {
        let task = delivery.text()?;
        println!("received '{task}'");
        let dots = task.matches('.').count() as u64;
        // However long this takes, another thread keeps the connection alive.
        thread::sleep(Duration::from_secs(dots));
        println!("done");
        // Only now does the broker forget the task. Had this worker died before, another
        // one would get it.
        delivery.ack()
    })?;

    let stopping = channel.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        stopping.stop_consuming()
    });
    println!("waiting for tasks; press Enter to stop");
    channel.start_consuming()?;
    connection.close()
}
