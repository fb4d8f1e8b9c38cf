//! Consumers whose deliveries a program takes one by one.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::client::channel::{BlockingChannel, ChannelInner};
use crate::client::delivery::Delivery;
use crate::error::{Error, Result};
use crate::io::shared::command::ChannelCommand;
use crate::io::shared::consumer::ConsumerShared;
use crate::io::to_program::inbox::Next;
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::frame::Settle;
use crate::protocol::wire::ShortString;

/// A consumer whose deliveries you take one by one, from any number of threads.
///
/// [`BlockingChannel::consume`](crate::BlockingChannel::consume) starts one. The methods have the
/// names of a crossbeam receiver: [`recv`](Self::recv) waits for a delivery,
/// [`recv_timeout`](Self::recv_timeout) waits for a limited time, [`try_recv`](Self::try_recv) does
/// not wait. [`iter`](Self::iter) and `for delivery in &consumer` iterate,
/// [`for_each`](Self::for_each) calls a closure.
///
/// Clone the consumer to share it between threads. Each delivery goes to one of them. A consumer
/// keeps its channel and its connection open. Dropping the last clone cancels the consumer.
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
///     // Ends `for_each` in all four threads.
///     consumer.cancel()
/// })?;
/// # channel.queue_delete("images")?;
/// # Ok::<(), cony::Error>(())
/// ```
///
/// # How a consumer ends
///
/// | end | `recv` | `try_recv`, `recv_timeout` | iterators | `for_each` |
/// |---|---|---|---|---|
/// | your program cancels the consumer, or closes the channel or the connection | `Ok(None)` | `Ok(None)` | `None` | `Ok(())` |
/// | the broker cancels the consumer: its queue was deleted, or [recovery](crate::Recovery) is off | [`Error::ConsumerCancelled`] | the same | the error once, then `None` | the error |
/// | the broker closes the channel or the connection, or the connection is lost | [`Error::ChannelClosed`], [`Error::ConnectionClosed`], [`Error::ConnectionLost`] | the same | the error once, then `None` | the error |
///
/// With [recovery](crate::Recovery), a consumer that the broker cancels goes on if its queue is
/// still there. That is so after a `consumer_timeout` of RabbitMQ 4.3, or when a node was down.
///
/// The methods return the same outcome again on every later call and in every clone.
///
/// The kind of end decides about deliveries that have arrived and that no thread has taken:
///
/// - If the broker has cancelled the consumer, the methods first return these deliveries. They are
///   [stale](Delivery::is_stale): settling them sends nothing.
/// - If the channel or the connection has ended, the methods first return the deliveries of a
///   `no_ack` consumer. They skip the deliveries of all other consumers. These can no longer be
///   settled, and the broker delivers them again.
/// - After [`cancel`](Self::cancel) the methods return no delivery. `cancel` requeues the
///   deliveries of a consumer that acknowledges, and returns those of a `no_ack` consumer.
#[must_use = "a consumer that is dropped is cancelled"]
pub struct Consumer {
    handle: Arc<Handle>,
    /// Whether the warning about a used-up prefetch was logged. Clones do not log it.
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
            warned: AtomicBool::new(false),
        }
    }

    /// Returns the consumer tag: the name of this consumer on its channel.
    pub fn consumer_tag(&self) -> &ShortString {
        &self.handle.shared.tag
    }

    /// Returns the channel that this consumer belongs to.
    pub fn channel(&self) -> &BlockingChannel {
        &self.handle.channel
    }

    /// Waits for the next delivery, without a limit. Returns `None` after your program has ended
    /// the consumer.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("postcards")?;
    /// # channel.basic_publish("", "postcards", "hello")?;
    /// let consumer = channel.consume("postcards")?;
    /// while let Some(delivery) = consumer.recv()? {
    ///     println!("{}", delivery.text()?);
    ///     delivery.ack()?;
    /// #   consumer.cancel()?;
    /// }
    /// # channel.queue_delete("postcards")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The reason for the end, if your program did not end the consumer: [see
    /// above](Self#how-a-consumer-ends).
    pub fn recv(&self) -> Result<Option<Delivery>> {
        self.recv_until(None)
    }

    /// Waits for the next delivery, at most for `timeout`. Returns `None` if no delivery has
    /// arrived by then. After your program has ended the consumer, returns `None` at once.
    ///
    /// [`is_cancelled`](Self::is_cancelled) distinguishes the two cases. A loop that goes on after
    /// `None` must check it. Otherwise the loop spins after another thread has called
    /// [`cancel`](Self::cancel).
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("parcels")?;
    /// use std::time::Duration;
    ///
    /// let consumer = channel.consume("parcels")?;
    /// # let other_clone = consumer.clone();
    /// # std::thread::spawn(move || other_clone.cancel());
    /// while !consumer.is_cancelled() {
    ///     match consumer.recv_timeout(Duration::from_secs(1))? {
    ///         Some(delivery) => delivery.ack()?,
    ///         None => println!("nothing to do"),
    ///     }
    /// }
    /// # channel.queue_delete("parcels")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<Delivery>> {
        // If the clock cannot express the deadline, there is none.
        self.recv_until(Instant::now().checked_add(timeout))
    }

    /// Returns the next delivery if one has arrived, without waiting.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<Option<Delivery>> {
        self.recv_until(Some(Instant::now()))
    }

    /// Returns an iterator that waits for each delivery, as [`recv`](Self::recv) does.
    ///
    /// `for delivery in &consumer` is the same. The consumer itself is no iterator, because several
    /// threads may take from it at the same time.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("anthems")?;
    /// # for song in ["la", "li", "lo"] { channel.basic_publish("", "anthems", song)?; }
    /// let consumer = channel.consume("anthems")?;
    /// for delivery in consumer.iter().take(3) {
    ///     let delivery = delivery?;
    ///     println!("{}", delivery.text()?);
    ///     delivery.ack()?;
    /// }
    /// # channel.queue_delete("anthems")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            consumer: self,
            has_ended: false,
        }
    }

    /// Returns whether your program has ended this consumer and no delivery is left to take. A
    /// cancel by the broker does not count. Your own [`cancel`](Self::cancel) does, and so does a
    /// close of the channel or the connection by your program.
    ///
    /// A loop over the consumer can end when this is true. If the broker or the network has ended
    /// the consumer, `is_cancelled` returns `false`, and [`recv`](Self::recv) returns the reason as
    /// an error.
    pub fn is_cancelled(&self) -> bool {
        let shared = &self.handle.shared;
        let inbox = shared.inbox();
        if !inbox.is_stopped() && !inbox.is_drained() {
            return false;
        }
        match shared.canceller() {
            Some(canceller) => canceller != ClosedBy::Broker,
            // (`ended_by_others` would record that the program got the reason.)
            None => !shared
                .channel
                .end_error()
                .is_some_and(|end| end.is_of_others()),
        }
    }

    /// Calls `act` with each delivery until the consumer ends, or `act` fails.
    ///
    /// `act` may borrow local variables. Several threads may call `for_each` at once, each with its
    /// own `act`.
    ///
    /// If `act` panics, the delivery is [requeued](Delivery::requeue) at once, so that another
    /// worker gets it. This does not apply to a delivery that `act` has settled, one that needs no
    /// acknowledgement, one of a stream, and one on a channel with transactions.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # channel.queue_declare("telegrams")?;
    /// # channel.basic_publish("", "telegrams", "hello")?;
    /// let consumer = channel.consume("telegrams")?;
    /// consumer.for_each(|delivery| {
    ///     println!("{}", delivery.text()?);
    ///     delivery.ack()?;
    /// #   consumer.cancel()?;
    ///     Ok(())
    /// })?;
    /// # channel.queue_delete("telegrams")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of `act`. It does not end the consumer: call `for_each` again, or
    /// [`cancel`](Self::cancel). Otherwise as [`recv`](Self::recv).
    pub fn for_each(&self, mut act: impl FnMut(Delivery) -> Result<()>) -> Result<()> {
        while let Some(delivery) = self.recv()? {
            let unfinished = Unfinished {
                consumer: self,
                delivery_tag: delivery.delivery_tag,
            };
            let outcome = act(delivery);
            std::mem::forget(unfinished);
            outcome?;
        }
        Ok(())
    }

    /// Cancels the consumer. It ends in all clones at once, even if the broker does not reply.
    ///
    /// Deliveries that have arrived and that nothing has taken are requeued. Those of a `no_ack`
    /// consumer cannot be requeued, so this call returns them. Deliveries that your program has
    /// taken can still be settled.
    ///
    /// After a call that returned `Ok`, further calls do nothing.
    ///
    /// # Errors
    ///
    /// The [errors of a call](crate::BlockingChannel#errors-of-a-call): a refusal by the broker,
    /// the end of the channel or connection, or a timeout. After [`Error::Timeout`] the consumer
    /// has ended nevertheless, but its untaken deliveries are not requeued yet. To requeue them,
    /// call `cancel` again or drop the consumer.
    pub fn cancel(&self) -> Result<Vec<Delivery>> {
        let shared = &self.handle.shared;
        shared.inbox().stop();
        if shared.canceller().is_none() {
            if let Err(error) = self.inner().cancel(shared, false) {
                if !error.is_timeout() {
                    // No further delivery arrives, so the remaining ones can be taken.
                    shared.inbox().resume();
                }
                return Err(error);
            }
        }
        Ok(self
            .inner()
            .keep_or_requeue(shared.take_remaining(), shared))
    }

    /// Returns a receiver for `crossbeam_channel::select!`. It is ready when a delivery can be
    /// taken, or the consumer has ended. The receiver is only a signal, of the type `()`: it does
    /// not return the deliveries.
    ///
    /// Use it to wait for several consumers, [connections](crate::BlockingConnection::ready) and
    /// channels of your program in one `select!`, and then take with [`try_recv`](Self::try_recv).
    /// The receiver may be ready without a delivery. If several deliveries wait, it is ready again
    /// after each that is taken. After the end it stays ready, so leave the loop when
    /// [`is_cancelled`](Self::is_cancelled) is true.
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
    ///     if let Some(delivery) = consumer.try_recv()? {
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
        self.handle.shared.inbox().select_signal()
    }

    fn inner(&self) -> &Arc<ChannelInner> {
        self.handle.channel.inner()
    }

    /// Waits for the next delivery, without a limit if there is no deadline. Returns `None` at the
    /// deadline, and after this program has ended the consumer.
    fn recv_until(&self, deadline: Option<Instant>) -> Result<Option<Delivery>> {
        let shared = &self.handle.shared;
        let inbox = shared.inbox();
        loop {
            let popped = match inbox.try_pop() {
                Next::Empty => {
                    let mut warned = self.warned.load(Ordering::Relaxed);
                    self.inner().warn_if_stalled(&mut warned);
                    self.warned.store(warned, Ordering::Relaxed);
                    if !shared.no_ack && shared.channel.has_small_prefetch() {
                        inbox.spin(deadline);
                    }
                    inbox.pop(deadline)
                }
                popped => popped,
            };
            match popped {
                Next::Message(content) => {
                    // After the end of the channel a delivery cannot be settled any more. The
                    // broker delivers it again.
                    if shared.no_ack || self.inner().is_open() {
                        return Ok(Some(self.inner().hand_out(content, shared.no_ack)));
                    }
                }
                Next::ConsumerEnded(_) => {}
                Next::Empty => return Ok(None),
                Next::Ended => return self.end().map(|()| None),
            }
        }
    }

    /// Returns the reason for the end as an error, unless this program has ended the consumer.
    fn end(&self) -> Result<()> {
        let shared = &self.handle.shared;
        match shared.canceller() {
            Some(ClosedBy::Broker) => Err(Error::ConsumerCancelled(shared.tag.clone())),
            Some(_) => Ok(()),
            None => shared.channel.ended_by_others().map_or(Ok(()), Err),
        }
    }
}

/// Requeues a delivery whose handler has panicked, which would otherwise stay unsettled until the
/// channel closes. After a handler that returns, `for_each` forgets this guard.
struct Unfinished<'a> {
    consumer: &'a Consumer,
    delivery_tag: u64,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.consumer.handle.shared.can_requeue() {
            return;
        }
        let inner = self.consumer.inner();
        if !inner.shared.settlements.lock().has_transactions() {
            // A reject, because RabbitMQ does not count a nack for `delivery_limit`: a message
            // whose handler always panics would be delivered forever. An error is ignored: the
            // delivery is settled already, or the channel has ended and the broker requeues it.
            let reject = Settle::Reject { requeue: true };
            let _ = inner.shared.settle(self.delivery_tag, reject);
        }
    }
}

impl Clone for Consumer {
    fn clone(&self) -> Self {
        Self {
            handle: Arc::clone(&self.handle),
            warned: AtomicBool::new(true),
        }
    }
}

/// An iterator over the deliveries of a borrowed [`Consumer`], which waits for each of them.
///
/// [`Consumer::iter`] returns it. If the consumer fails, the iterator returns the error once, and
/// then `None`.
#[derive(Debug, Clone)]
#[must_use = "iterators are lazy and take nothing unless consumed"]
pub struct Iter<'a> {
    consumer: &'a Consumer,
    has_ended: bool,
}

impl Iterator for Iter<'_> {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Self::Item> {
        next(self.consumer, &mut self.has_ended)
    }
}

impl FusedIterator for Iter<'_> {}

/// An iterator that owns a [`Consumer`] and returns its deliveries. Dropping the iterator drops the
/// consumer.
///
/// [`Consumer::into_iter`](IntoIterator::into_iter) returns it. Otherwise it is like [`Iter`].
#[derive(Debug, Clone)]
#[must_use = "iterators are lazy and take nothing unless consumed"]
pub struct IntoIter {
    consumer: Consumer,
    has_ended: bool,
}

impl Iterator for IntoIter {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Self::Item> {
        next(&self.consumer, &mut self.has_ended)
    }
}

impl FusedIterator for IntoIter {}

/// Returns the next item of an iterator. After an error or the end there is none.
fn next(consumer: &Consumer, has_ended: &mut bool) -> Option<Result<Delivery>> {
    if *has_ended {
        return None;
    }
    match consumer.recv() {
        Ok(Some(delivery)) => Some(Ok(delivery)),
        end => {
            *has_ended = true;
            end.transpose()
        }
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
        IntoIter {
            consumer: self,
            has_ended: false,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let channel = self.channel.inner();
        if self.shared.canceller().is_some() || !channel.is_open() {
            // The consumer has ended before, so only its untaken deliveries are left.
            channel.requeue_or_log(self.shared.take_remaining(), &self.shared);
        } else {
            let consumer = Arc::clone(&self.shared);
            channel.shared.send(ChannelCommand::Discard { consumer });
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
