//! Publishes a file line by line, shows the progress, and checks that every line has arrived.
//!
//!     cargo run --example publish_file -- QUEUE FILE

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use cony::{BlockingConnection, Error, Message};

fn main() -> cony::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [queue, path] = arguments.as_slice() else {
        eprintln!("usage: publish_file QUEUE FILE");
        std::process::exit(2);
    };
    let file = File::open(path).map_err(Error::other)?;
    let size = file.metadata().map_err(Error::other)?.len().max(1);

    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    channel.queue_declare(queue)?;
    channel.confirm_delivery()?;

    let (mut lines, mut bytes, mut shown) = (0u64, 0, 0);
    for line in BufReader::new(file).lines() {
        let line = line.map_err(Error::other)?;
        // Does not wait for the confirm of this line. But if the broker is slower than the disk,
        // the publish waits for room, so that a large file does not fill the memory.
        channel.basic_publish("", queue, Message::new(&line).persistent())?;
        lines += 1;
        bytes += line.len() as u64 + 1;
        let percent = (bytes * 100 / size).min(100);
        if percent > shown {
            shown = percent;
            eprint!("\r[{:<50}] {percent} %", bar(percent));
        }
    }
    eprintln!();

    // Waits for the confirms of all lines. The error lists the lines that have failed.
    match channel.wait_for_confirms(Duration::from_secs(60)) {
        Ok(()) => println!("{lines} lines are in {queue}"),
        Err(Error::PublishFailures { failures, more, .. }) => {
            for failure in failures.iter() {
                eprintln!("line {}: {}", failure.sequence_number, failure.error);
            }
            println!("{} of {lines} lines are lost", failures.len() as u64 + more);
            std::process::exit(1);
        }
        Err(error) => return Err(error),
    }
    connection.close()
}

/// Returns one mark for every two percent.
fn bar(percent: u64) -> String {
    (0..percent / 2).map(|_| '#').collect()
}
