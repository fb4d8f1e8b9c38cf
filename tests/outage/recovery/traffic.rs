//! A publisher that repeats unconfirmed messages, and a worker, which account for each message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use cony::{
    BlockingChannel, BlockingConnection, Consumer, Delivery, Error, Message, PublisherConfirm,
    Result,
};
use parking_lot::Mutex;

use crate::support::until;

const END: &str = "end";

/// The number of publishes that wait for their confirms.
const WINDOW: usize = 20;

/// The number of deliveries that may be unsettled.
const PREFETCH: u16 = 10;

/// The account of the messages.
#[derive(Default)]
struct Account {
    /// How often each message was published.
    published: Mutex<BTreeMap<String, usize>>,
    confirmed: Mutex<BTreeSet<String>>,
    /// How often each message was handled as one that was not delivered before.
    handled: Mutex<BTreeMap<String, usize>>,
    is_ending: AtomicBool,
}

/// A publisher and a worker on one queue, each in a thread.
pub(super) struct Traffic {
    account: Arc<Account>,
    publisher: JoinHandle<Result<()>>,
    worker: JoinHandle<Result<()>>,
}

impl Traffic {
    /// Begins to publish and to work on a queue that is declared.
    pub(super) fn begin(
        publishing: BlockingConnection,
        working: BlockingConnection,
        queue: &str,
    ) -> Self {
        let account = Arc::new(Account::default());
        let channel = publishing.channel().unwrap();
        channel.confirm_delivery().unwrap();
        let (queue, its) = (queue.to_owned(), Arc::clone(&account));
        let worker_channel = working.channel().unwrap();
        worker_channel.basic_qos(PREFETCH).unwrap();
        let consumer = worker_channel.consume(&queue).unwrap();
        let publisher = thread::spawn(move || {
            publish(&channel, &queue, &its)?;
            publishing.close()
        });
        let its = Arc::clone(&account);
        let worker = thread::spawn(move || {
            work(&consumer, &its)?;
            working.close()
        });
        Self {
            account,
            publisher,
            worker,
        }
    }

    /// Waits until more messages are confirmed, and more are handled.
    pub(super) fn await_progress(&self) {
        let counts = || {
            let confirmed = self.account.confirmed.lock().len();
            [confirmed, self.account.handled.lock().len()]
        };
        let before = counts();
        until("messages are confirmed and handled", || {
            self.publisher.is_finished()
                || self.worker.is_finished()
                || (0..2).all(|index| counts()[index] >= before[index] + 3 * WINDOW)
        });
    }

    /// Ends both threads, and asserts that each confirmed message was handled. Returns the messages
    /// that came more often than they were published, without the mark of a second delivery.
    pub(super) fn finish(self) -> Vec<String> {
        self.account.is_ending.store(true, Ordering::SeqCst);
        self.publisher.join().unwrap().unwrap();
        self.worker.join().unwrap().unwrap();
        let handled = self.account.handled.lock();
        let confirmed = self.account.confirmed.lock();
        let missing = confirmed.iter().filter(|text| !handled.contains_key(*text));
        let missing: Vec<_> = missing.collect();
        assert!(missing.is_empty(), "confirmed, not handled: {missing:?}");
        let published = self.account.published.lock();
        let unmarked = handled
            .iter()
            .filter(|(text, count)| **count > published[*text]);
        unmarked.map(|(text, _)| text.clone()).collect()
    }
}

/// Publishes numbered messages until the end, each until the broker has confirmed it.
fn publish(channel: &BlockingChannel, queue: &str, account: &Account) -> Result<()> {
    let mut pending = VecDeque::new();
    for number in 0.. {
        pending.push_back(publish_one(
            channel,
            queue,
            format!("{number:06}"),
            account,
        )?);
        while pending.len() > WINDOW {
            confirm_first(channel, queue, &mut pending, account)?;
        }
        if account.is_ending.load(Ordering::SeqCst) {
            break;
        }
    }
    // The last message is published when all others are confirmed.
    for is_last in [false, true] {
        if is_last {
            pending.push_back(publish_one(channel, queue, END.into(), account)?);
        }
        while !pending.is_empty() {
            confirm_first(channel, queue, &mut pending, account)?;
        }
    }
    Ok(())
}

fn publish_one(
    channel: &BlockingChannel,
    queue: &str,
    text: String,
    account: &Account,
) -> Result<(String, PublisherConfirm)> {
    *account.published.lock().entry(text.clone()).or_default() += 1;
    let message = Message::new(&text).persistent();
    let confirm = channel.basic_publish("", queue, message)?;
    Ok((text, confirm))
}

/// Waits for the outcome of the oldest publish, and repeats it if the outcome is unknown.
fn confirm_first(
    channel: &BlockingChannel,
    queue: &str,
    pending: &mut VecDeque<(String, PublisherConfirm)>,
    account: &Account,
) -> Result<()> {
    let (text, confirm) = pending.pop_front().unwrap();
    match confirm.wait() {
        Ok(()) => drop(account.confirmed.lock().insert(text)),
        Err(Error::Unconfirmed(_)) => {
            pending.push_back(publish_one(channel, queue, text, account)?);
        }
        Err(other) => return Err(other),
    }
    Ok(())
}

/// Returns whether the message may have been delivered before: by the mark of the broker, or by
/// that of cony on the second copy of a publish.
fn is_marked(delivery: &Delivery) -> bool {
    let headers = delivery.properties().headers.as_ref();
    delivery.redelivered || headers.is_some_and(|headers| headers.contains_key("x-resent"))
}

fn work(consumer: &Consumer, account: &Account) -> Result<()> {
    for delivery in consumer {
        let delivery = delivery?;
        let text = delivery.text()?.to_owned();
        let is_end = text == END;
        let mut handled = account.handled.lock();
        *handled.entry(text).or_default() += usize::from(!is_marked(&delivery));
        drop(handled);
        delivery.ack()?;
        if is_end {
            break;
        }
    }
    Ok(())
}
