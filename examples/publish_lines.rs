//! Publishes each line of a file as a message. After a failure or a crash, the next run goes on
//! behind the last line that the broker has confirmed.
//!
//!     cargo run --example publish_lines -- QUEUE FILE
//!
//! FILE.confirmed has the number of lines that are done.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};

use cony::{BlockingConnection, Error, Message, PublisherConfirm};

/// How many publishes may be unconfirmed at a time.
const WINDOW: usize = 500;

fn main() -> cony::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [queue, path] = arguments.as_slice() else {
        eprintln!("usage: publish_lines QUEUE FILE");
        std::process::exit(2);
    };
    let record = format!("{path}.confirmed");
    let saved = fs::read_to_string(&record).unwrap_or_else(|_| "0".into()); // the first run
    let confirmed = saved.parse().map_err(Error::other)?;
    let mut progress = Progress { record, confirmed };
    let outcome = publish(queue, path, &mut progress);
    progress.save()?;
    println!("{} lines are confirmed", progress.confirmed);
    outcome
}

fn publish(queue: &str, path: &str, progress: &mut Progress) -> cony::Result<()> {
    let file = BufReader::new(File::open(path).map_err(Error::other)?);
    let connection = BlockingConnection::open_default()?;
    let channel = connection.channel()?;
    channel.confirm_delivery()?;

    let mut unconfirmed = VecDeque::new();
    for (index, line) in file.lines().enumerate().skip(progress.confirmed) {
        let line = line.map_err(Error::other)?;
        // A line that is published again has the same id, so that consumers can skip it.
        let message = Message::new(line).message_id(format!("line {}", index + 1));
        let message = message.persistent().mandatory(true);
        unconfirmed.push_back(channel.basic_publish("", queue, message)?);
        progress.wait(&mut unconfirmed, WINDOW)?;
    }
    progress.wait(&mut unconfirmed, 0)?;
    connection.close()
}

/// How many lines are confirmed, counted from the first line without a gap.
struct Progress {
    record: String,
    confirmed: usize,
}

impl Progress {
    /// Replaces the record as a whole, so that a crash leaves the old number or the new one.
    fn save(&self) -> cony::Result<()> {
        let new = format!("{}.new", self.record);
        fs::write(&new, self.confirmed.to_string()).map_err(Error::other)?;
        fs::rename(&new, &self.record).map_err(Error::other)
    }

    /// Waits for the oldest confirms until at most `rest` are missing.
    fn wait(&mut self, sent: &mut VecDeque<PublisherConfirm>, rest: usize) -> cony::Result<()> {
        let excess = sent.len().saturating_sub(rest);
        for oldest in sent.drain(..excess) {
            oldest.wait()?;
            self.confirmed += 1;
            if self.confirmed % 1000 == 0 {
                self.save()?;
            }
        }
        Ok(())
    }
}
