//! Publishers in confirm mode, which account for each message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use cony::{
    BlockingChannel, BlockingConnection, Delivery, Error, Message, PublisherConfirm, Result,
};
use cony::{basic, queue};

use crate::support::node::Node;
use crate::support::{next_delivery, unique, until};

const THREADS: usize = 8;

/// How many publishes of a thread may wait for their confirms.
const WINDOW: usize = 200;

/// Each message of this many is published to no queue, and comes back.
const RETURNED_EACH: u64 = 50;

const END: &str = "end";

/// The header of a message that the program itself has published again.
const AGAIN: &str = "again";

/// A publisher of numbered messages.
struct Publisher<'a> {
    channel: BlockingChannel,
    queue: &'a str,
    name: usize,
    body: &'a [u8],
    /// The publishes without an outcome.
    pending: VecDeque<Pending>,
    /// The messages that cony has sent again.
    resent: BTreeSet<u64>,
}

/// The messages of a publisher to its queue.
pub(super) struct Published {
    count: u64,
    resent: BTreeSet<u64>,
}

struct Pending {
    number: u64,
    /// Whether the message reaches no queue.
    is_returned: bool,
    confirm: PublisherConfirm,
}

impl Publisher<'_> {
    /// Publishes until the end. Returns the messages when all are confirmed.
    fn run(mut self, published: &AtomicU64, is_ending: &AtomicBool) -> Result<Published> {
        let mut count = 0;
        while !is_ending.load(Ordering::SeqCst) {
            if count % RETURNED_EACH == 0 {
                let message = self.message(count).mandatory(true);
                self.publish("no.such.queue", count, message)?;
            }
            self.publish(self.queue, count, self.message(count))?;
            count += 1;
            published.fetch_add(1, Ordering::SeqCst);
            while self.pending.len() > WINDOW {
                self.expect_outcome()?;
            }
        }
        while !self.pending.is_empty() {
            self.expect_outcome()?;
        }
        // A second return of a message would belong to no publish.
        let extra = self.channel.try_next_return();
        assert!(extra.is_none(), "a message came back twice: {extra:?}");
        let resent = self.resent;
        Ok(Published { count, resent })
    }

    fn message(&self, number: u64) -> Message<'static> {
        Message::new(self.body.to_vec())
            .app_id(self.name.to_string())
            .message_id(number.to_string())
            .persistent()
    }

    fn publish(&mut self, key: &str, number: u64, message: Message<'_>) -> Result<()> {
        let is_returned = key != self.queue;
        let confirm = self.channel.basic_publish("", key, message)?;
        self.pending.push_back(Pending {
            number,
            is_returned,
            confirm,
        });
        Ok(())
    }

    fn expect_outcome(&mut self) -> Result<()> {
        let Pending {
            number,
            is_returned,
            confirm,
        } = self.pending.pop_front().unwrap();
        let outcome = confirm.wait();
        if confirm.was_resent() && !is_returned {
            self.resent.insert(number);
        }
        match outcome {
            Ok(()) if !is_returned => Ok(()),
            Err(Error::Unroutable(_)) if is_returned => Ok(()),
            // A quorum queue that has no leader yet refuses messages.
            Err(Error::Nacked) if !is_returned => {
                let again = self.message(number).header(AGAIN, true);
                self.publish(self.queue, number, again)
            }
            outcome => panic!("{number}, returned: {is_returned}: {outcome:?}"),
        }
    }
}

/// Publishes to each queue with several threads, which share a connection, while `disturb` runs.
/// Returns the messages of each thread.
pub(super) fn publish_while(
    connection: &BlockingConnection,
    queues: &[String],
    body: &[u8],
    disturb: impl FnOnce(&AtomicU64),
) -> Vec<Published> {
    let (published, is_ending) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..THREADS)
            .map(|name| {
                let channel = connection.channel().unwrap();
                channel.confirm_delivery().unwrap();
                let publisher = Publisher {
                    channel,
                    queue: &queues[name % queues.len()],
                    name,
                    body,
                    pending: VecDeque::new(),
                    resent: BTreeSet::new(),
                };
                let (published, is_ending) = (&published, &is_ending);
                scope.spawn(move || publisher.run(published, is_ending))
            })
            .collect();
        // A panic must end the publishers, too.
        let end = EndPublishers(&is_ending);
        disturb(&published);
        drop(end);
        let publishers = publishers.into_iter();
        publishers.map(|it| it.join().unwrap().unwrap()).collect()
    })
}

struct EndPublishers<'a>(&'a AtomicBool);

impl Drop for EndPublishers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until more messages are published.
pub(super) fn await_progress(published: &AtomicU64, messages: u64) {
    let before = published.load(Ordering::SeqCst);
    until("more messages", || {
        published.load(Ordering::SeqCst) >= before + messages
    });
}

/// Declares a classic queue and a quorum queue.
pub(super) fn declare(connection: &BlockingConnection) -> Vec<String> {
    let channel = connection.channel().unwrap();
    let queues = [queue::Type::Classic, queue::Type::Quorum].map(|kind| {
        let name = unique("publishing");
        let declare = queue::Declare::new(&name).durable(true).queue_type(kind);
        channel.queue_declare(declare).unwrap();
        name
    });
    queues.into()
}

/// Returns whether cony has marked the message as sent again, and whether the program has published
/// it again.
fn marks(delivery: &Delivery) -> (bool, bool) {
    let has = |name| delivery.header(name).is_some();
    (has("x-resent"), has(AGAIN))
}

/// Takes all messages of the queues, deletes them, and asserts that every message is there: in its
/// order, once or with a mark, and with the mark of cony only if its publisher knows of it.
pub(super) fn check(node: &Node, queues: &[String], published: &[Published]) {
    let connection = node.connect();
    let channel = connection.channel().unwrap();
    channel.confirm_delivery().unwrap();
    let mut found: BTreeMap<usize, BTreeMap<u64, [usize; 2]>> = BTreeMap::new();
    for queue in queues {
        channel
            .basic_publish("", queue, END)
            .unwrap()
            .wait()
            .unwrap();
        let consumer = channel
            .consume(basic::Consume::new(queue).no_ack(true))
            .unwrap();
        let mut last: BTreeMap<usize, u64> = BTreeMap::new();
        loop {
            let delivery = next_delivery(&consumer);
            if delivery.body.as_ref() == END.as_bytes() {
                break;
            }
            let (is_resent, is_again) = marks(&delivery);
            let is_marked = is_resent || is_again;
            let name: usize = text(&delivery.properties().app_id).parse().unwrap();
            let number: u64 = text(&delivery.properties().message_id).parse().unwrap();
            assert!(
                !is_resent || published[name].resent.contains(&number),
                "thread {name}: {number} was sent again"
            );
            let former = last.insert(name, number);
            assert!(
                is_marked || former.is_none_or(|former| former < number),
                "thread {name}: {number} comes behind {former:?} without a mark"
            );
            let copies = found.entry(name).or_default().entry(number).or_default();
            copies[usize::from(is_marked)] += 1;
        }
        drop(consumer);
        channel.queue_delete(queue).unwrap();
    }
    connection.close().unwrap();
    for (name, Published { count, .. }) in published.iter().enumerate() {
        let found = found.get(&name).cloned().unwrap_or_default();
        let missing: Vec<_> = (0..*count).filter(|it| !found.contains_key(it)).collect();
        assert!(missing.is_empty(), "thread {name} has lost {missing:?}");
        assert_eq!(found.len() as u64, *count);
        let twice: Vec<_> = found.iter().filter(|(_, copies)| copies[0] > 1).collect();
        assert!(
            twice.is_empty(),
            "thread {name}: twice without a mark: {twice:?}"
        );
    }
}

fn text(name: &Option<cony::ShortString>) -> &str {
    name.as_deref().unwrap()
}
