//! Consumers to be read like an iterator.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::client::channel::BlockingChannel;
use crate::client::delivery::Delivery;
use crate::error::{Error, Result};
use crate::io::shared::command::Command;
use crate::io::shared::consumer::ConsumerShared;
use crate::io::to_program::inbox::Next;
use crate::protocol::frame::Settle;
use crate::protocol::wire::ShortString;

/// A consumer whose deliveries are taken one by one, by any number of threads.
///
/// As an iterator it waits for each delivery. It ends after a [`cancel`](Self::cancel);
/// when something else ends it, it says what, once, and then ends: in every clone. Clone
/// it to share it between threads: each delivery goes to one of them. It keeps its
/// channel and connection open. Dropping the last clone cancels the consumer.
///
/// ```
/// # let channel = cony::BlockingConnection::open_default()?.channel()?;
/// # channel.queue_declare("images")?;
/// let consumer = channel.consume("images")?;
/// std::thread::scope(|scope| {
///     for _ in 0..4 {
///         let worker = consumer.clone();
///         scope.spawn(move || worker.for_each(|delivery| delivery.ack()));
///     }
///     // Until something ends the consumer.
///     consumer.cancel()
/// })?;
/// # channel.queue_delete("images")?;
/// # Ok::<(), cony::Error>(())
/// ```
#[must_use = "a consumer that is dropped is cancelled"]
pub struct Consumer {
    handle: Arc<Handle>,
    /// Whether this clone has told why it ended.
    told: AtomicBool,
    warned: AtomicBool,
}

struct Handle {
    shared: Arc<ConsumerShared>,
    channel: BlockingChannel,
}

impl Consumer {
    pub(crate) fn new(shared: Arc<ConsumerShared>, channel: BlockingChannel) -> Self {
        Self {
            handle: Arc::new(Handle { shared, channel }),
            told: AtomicBool::new(false),
            warned: AtomicBool::new(false),
        }
    }

    /// The consumer's name on its channel.
    pub fn consumer_tag(&self) -> &ShortString {
        &self.handle.shared.tag
    }

    /// The channel that it is on.
    pub fn channel(&self) -> &BlockingChannel {
        &self.handle.channel
    }

    /// Waits for the next delivery. `None` after the end.
    ///
    /// # Errors
    ///
    /// Why the consumer has ended, once, unless it was by its own
    /// [`cancel`](Self::cancel).
    pub fn next(&self) -> Option<Result<Delivery>> {
        match self.take(None) {
            Ok(delivery) => delivery.map(Ok),
            Err(_) if self.is_cancelled_here() => None,
            Err(error) => (!self.told.swap(true, Ordering::Relaxed)).then_some(Err(error)),
        }
    }

    /// The deliveries one by one, as [`next`](Self::next) gives them.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self)
    }

    /// The next delivery if it is here already, else `None`.
    ///
    /// # Errors
    ///
    /// Why the consumer has ended, if it has: [`Error::ConsumerCancelled`] also after
    /// its own [`cancel`](Self::cancel).
    pub fn try_next(&self) -> Result<Option<Delivery>> {
        self.take(Some(Instant::now()))
    }

    /// The next delivery, waiting for it at most this long; `None` if none has come.
    ///
    /// # Errors
    ///
    /// As [`try_next`](Self::try_next).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Delivery>> {
        // A deadline that the clock cannot express is none.
        self.take(Instant::now().checked_add(timeout))
    }

    /// Calls `act` with each delivery until the consumer ends, or `act` fails.
    ///
    /// `act` may borrow. Several threads may do this at once, each with its own `act`.
    ///
    /// If `act` panics, the delivery goes back to its queue at once, so that another worker gets
    /// it. A delivery that `act` has settled does not, nor one that needs no acknowledgement, one
    /// of a stream, and one on a channel with transactions.
    ///
    /// # Errors
    ///
    /// The error of `act`; why the consumer has ended, unless it was by its own
    /// [`cancel`](Self::cancel) or a close by this program.
    pub fn for_each(&self, mut act: impl FnMut(Delivery) -> Result<()>) -> Result<()> {
        loop {
            match self.take(None) {
                Ok(Some(delivery)) => {
                    let unfinished = Unfinished {
                        consumer: self,
                        delivery_tag: delivery.delivery_tag,
                    };
                    let outcome = act(delivery);
                    std::mem::forget(unfinished);
                    outcome?;
                }
                Ok(None) => {}
                Err(_) if self.is_cancelled_here() => return Ok(()),
                Err(error) => {
                    let by_us = self.handle.shared.cancelled_by_broker().is_none()
                        && self.inner().ended_by_others().is_none();
                    return if by_us { Ok(()) } else { Err(error) };
                }
            }
        }
    }

    /// Ends the consumer, and hands back what had come for it, if that needs no
    /// acknowledgement; everything else goes back to its queue. What was handed out
    /// before can still be settled.
    ///
    /// From the call on the consumer and its clones hand out nothing more, whether the broker
    /// answers or not.
    ///
    /// # Errors
    ///
    /// [The usual ones of a call](crate::BlockingChannel#errors-of-a-call). A second cancel is Ok.
    /// After [`Error::Timeout`] the iterators have ended as well. The deliveries that had come go
    /// back when the consumer is dropped, or with another cancel.
    pub fn cancel(&self) -> Result<Vec<Delivery>> {
        let shared = &self.handle.shared;
        shared.inbox().stop();
        if shared.cancelled_by_broker().is_none() {
            if let Err(error) = self.inner().cancel(shared, false) {
                if !error.is_timeout() {
                    // Nothing more comes, and what has come and is here for good can be taken.
                    shared.inbox().resume();
                }
                return Err(error);
            }
        }
        Ok(self.inner().keep_or_give_back(shared.take_left(), shared))
    }

    /// Becomes ready when there is a delivery to take, or an end to learn of: to wait for
    /// several consumers, [connections](crate::BlockingConnection::ready) and channels of the
    /// program's own in one `select!`. It may be ready without, so take with
    /// [`try_next`](Self::try_next). With more than one delivery there it is ready again after
    /// each that is taken.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("orders")?;
    /// # channel.queue_declare("returns")?;
    /// # channel.basic_publish("", "orders", "a book")?;
    /// use crossbeam_channel::select;
    ///
    /// let (orders, returns) = (channel.consume("orders")?, channel.consume("returns")?);
    /// let stop = crossbeam_channel::after(std::time::Duration::from_secs(60));
    /// loop {
    ///     let consumer = select! {
    ///         recv(orders.ready()) -> _ => &orders,
    ///         recv(returns.ready()) -> _ => &returns,
    ///         recv(stop) -> _ => break,
    ///     };
    ///     if let Some(delivery) = consumer.try_next()? {
    ///         println!("{}: {}", delivery.routing_key, delivery.text()?);
    ///         delivery.ack()?;
    /// #       break;
    ///     }
    /// }
    /// # channel.queue_delete("orders")?;
    /// # channel.queue_delete("returns")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn ready(&self) -> &Receiver<()> {
        self.handle.shared.inbox().ready()
    }

    fn inner(&self) -> &Arc<crate::client::channel::ChannelInner> {
        self.handle.channel.inner()
    }

    /// The next delivery; `Ok(None)` at the deadline, `Err` at the consumer's end.
    fn take(&self, deadline: Option<Instant>) -> Result<Option<Delivery>> {
        let shared = &self.handle.shared;
        let inbox = shared.inbox();
        loop {
            let popped = match inbox.try_pop() {
                Next::Empty => {
                    let mut warned = self.warned.load(Ordering::Relaxed);
                    self.inner().warn_if_stalled(&mut warned);
                    self.warned.store(warned, Ordering::Relaxed);
                    inbox.pop(deadline)
                }
                popped => popped,
            };
            match popped {
                Next::Message(content) => {
                    // What cannot be settled any more is given out again by the broker.
                    if shared.no_ack || self.inner().is_open() {
                        return Ok(Some(self.inner().take(content, shared.no_ack)));
                    }
                }
                Next::ConsumerEnded(_) => {}
                Next::Empty => return Ok(None),
                Next::Ended => return Err(self.end()),
            }
        }
    }

    /// Whether this program has ended the consumer, or is about to.
    fn is_cancelled_here(&self) -> bool {
        let shared = &self.handle.shared;
        match shared.cancelled_by_broker() {
            Some(by_broker) => !by_broker,
            None => {
                // (The shared state is asked, for the channel would take the reason for told.)
                let end = self.inner().shared.end();
                shared.inbox().is_stopped() && !end.is_some_and(|error| error.is_of_others())
            }
        }
    }

    /// Why nothing comes any more.
    fn end(&self) -> Error {
        match self.handle.shared.cancelled_by_broker() {
            None if !self.is_cancelled_here() => self.inner().closed_error(),
            _ => Error::ConsumerCancelled(self.handle.shared.tag.clone()),
        }
    }
}

/// A delivery that is being handled. It is dropped only if that panics, and then the delivery goes
/// back to its queue: else it would be unsettled for as long as the channel lives.
struct Unfinished<'a> {
    consumer: &'a Consumer,
    delivery_tag: u64,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.consumer.handle.shared.is_returnable() {
            return;
        }
        let inner = self.consumer.inner();
        if !inner.shared.settlements.lock().has_transactions() {
            let nack = Settle::Nack {
                multiple: false,
                requeue: true,
            };
            // It may be settled already, and a dead channel gives it back anyway.
            let _ = inner.settle(self.delivery_tag, nack);
        }
    }
}

impl Clone for Consumer {
    fn clone(&self) -> Self {
        Self {
            handle: Arc::clone(&self.handle),
            told: AtomicBool::new(false),
            warned: AtomicBool::new(true),
        }
    }
}

/// Takes the deliveries of a borrowed [`Consumer`].
#[derive(Debug)]
pub struct Iter<'a>(&'a Consumer);

impl Iterator for Iter<'_> {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

/// Takes the deliveries of a [`Consumer`], and keeps it.
#[derive(Debug)]
pub struct IntoIter(Consumer);

impl Iterator for IntoIter {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl<'a> IntoIterator for &'a Consumer {
    type Item = Result<Delivery>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Consumer {
    type Item = Result<Delivery>;
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter(self)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let channel = self.channel.inner();
        if self.shared.cancelled_by_broker().is_some() || !channel.is_open() {
            // It has ended before, and not all of what it had was taken.
            let left = self.shared.take_left();
            match left.len() {
                0 => {}
                _ if !self.shared.no_ack => channel.give_back(&self.shared, left),
                count => log::warn!(
                    "consumer {} was dropped with {count} messages that needed no \
                     acknowledgement; they are lost",
                    self.shared.tag
                ),
            }
        } else {
            channel.shared.connection.send(Command::Discard {
                channel: channel.shared.id,
                consumer: Arc::clone(&self.shared),
            });
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("consumer_tag", self.consumer_tag())
            .field("channel", &self.handle.channel.number())
            .finish_non_exhaustive()
    }
}
