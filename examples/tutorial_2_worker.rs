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

    // One task at a time: the broker sends the next task after the acknowledgement of this one.
    // So no task waits at a busy worker while another worker is idle.
    channel.basic_qos(1)?;

    channel.basic_consume("tutorial.tasks", |_, delivery| {
        let task = delivery.text()?;
        println!("received '{task}'");
        let dots = task.matches('.').count() as u64;
        // The work may take long: the IO thread keeps the connection alive.
        thread::sleep(Duration::from_secs(dots));
        println!("done");
        // Now the broker deletes the task. If this worker crashes before, another one gets it.
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
