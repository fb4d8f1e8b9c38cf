//! Runs the callbacks of one channel: `start_consuming`, `stop_consuming`, and the channel's share
//! of `run`.

use std::sync::{Arc, Weak};

use super::{BlockingChannel, ChannelInner};
use crate::client::callbacks::consumers::ConsumerLoan;
use crate::client::callbacks::dispatch_lock::DispatchGuard;
use crate::client::delivery::Delivery;
use crate::error::{Error, Result};
use crate::io::shared::consumer::ConsumerShared;
use crate::io::to_program::dispatch_signal::Signal;
use crate::io::to_program::inbox::{self, Extracted};
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::content::DeliveredContent;
use crate::protocol::wire::ShortString;

type Loan<'a> = ConsumerLoan<'a, BlockingChannel, Delivery>;

/// The number of events of one channel that are dispatched before another channel has its turn.
pub(crate) const EVENTS_PER_TURN_MAX: usize = 64;

/// The next event for the dispatching thread.
enum NextEvent<'a> {
    NoConsumers,
    Call {
        content: DeliveredContent,
        no_ack: bool,
        loan: Loan<'a>,
    },
    Requeue(DeliveredContent, Arc<ConsumerShared>),
    ConsumerEnded(Weak<ConsumerShared>),
    /// There was a delivery without a consumer, and it was dropped.
    Dropped,
    /// No event has arrived.
    Empty,
    ChannelEnded,
}

/// The outcome of one step of a dispatching thread.
enum Step {
    Handled,
    /// There is no event now.
    Idle,
    NoConsumers,
    /// There will be no more events.
    Ended,
}

/// The state of one dispatching call.
#[derive(Default)]
struct Consuming {
    /// Whether the log has the warning that the prefetch is used up.
    warned: bool,
    /// The consumer that the broker cancelled last. Always `None` if the channel has a cancel
    /// callback.
    cancelled: Option<ShortString>,
}

/// # Running callbacks
impl BlockingChannel {
    /// Runs the callbacks of this channel in the calling thread until the channel has no more
    /// consumers with a callback. Also runs the callbacks and timers of the connection.
    ///
    /// Returns `Ok`:
    ///
    /// - after [`stop_consuming`](Self::stop_consuming), or a
    ///   [`basic_cancel`](Self::basic_cancel) of the last consumer;
    /// - after a `close` of the channel or of the connection by this program;
    /// - at once, if an open channel has no such consumer.
    ///
    /// A panic of a callback leaves this call, and the connection stays usable. To run the
    /// callbacks of several channels in one thread, use [`run`](crate::BlockingConnection::run).
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// # let queue = channel.queue_declare(cony::queue::Declare::new_exclusive())?.queue;
    /// # channel.basic_publish("", &queue, "hello")?;
    /// channel.basic_consume(&queue, |channel, delivery| {
    ///     println!("{}", delivery.text()?);
    ///     channel.basic_ack(delivery.delivery_tag)?;
    ///     channel.stop_consuming()
    /// })?;
    /// channel.start_consuming()?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - The error of a callback.
    /// - The reason, if the channel or the connection ends without a close by this program.
    /// - [`Error::ConsumerCancelled`] if the broker has cancelled the last consumer and there is no
    ///   [cancel callback](Self::add_on_cancel_callback).
    /// - [`Error::AlreadyConsuming`] if another thread runs the callbacks of this channel, or if
    ///   one of these callbacks calls `start_consuming`.
    pub fn start_consuming(&self) -> Result<()> {
        let inner = self.inner();
        let announce = || inner.shared.mark_ready();
        let guard = inner
            .dispatch_lock
            .hold(&announce)
            .ok_or(Error::AlreadyConsuming)?;
        let outcome = self.consume_all(&guard);
        let called = self.call_close_callbacks_under(&guard);
        drop(guard);
        // Other dispatching threads handle the remaining events.
        inner.shared.mark_ready();
        // A `close` in another thread could not take the dispatch lock meanwhile, so this thread
        // runs the close callbacks.
        outcome
            .and(called)
            .and_then(|()| self.call_close_callbacks())
    }

    fn consume_all(&self, guard: &DispatchGuard<'_>) -> Result<()> {
        let inner = self.inner();
        let connection = self.connection();
        let signal = Signal::of_this_thread();
        let _subscription = inner.shared.inbox.subscribers().subscribe(&signal);
        let _connection_subscription = inner.shared.connection.own_subscribers.subscribe(&signal);
        let mut consuming = Consuming::default();
        if !inner.consumer_callbacks.has_some() {
            // Earlier consumers may have ended with the channel.
            if let Some(error) = inner.ended_by_others() {
                return Err(error);
            }
        }
        loop {
            let dispatched = connection.dispatch_own(&|| false)?
                + self.call_notice_callbacks(guard, EVENTS_PER_TURN_MAX, &|| false)?;
            match self.step(guard, &mut consuming)? {
                // The channel still has consumers, so `start_consuming` goes on.
                Step::Handled if inner.consumer_callbacks.has_some() => consuming.cancelled = None,
                Step::Handled => {}
                // Callbacks ran above and may have queued more work: check again before sleeping.
                Step::Idle if dispatched > 0 => {}
                Step::Idle => {
                    inner.warn_if_stalled(&mut consuming.warned);
                    if inner.shared.has_small_prefetch() {
                        let is_set = || signal.is_set();
                        inner
                            .shared
                            .inbox
                            .spin_until(connection.next_turn(), is_set);
                    }
                    let _waiting = inner
                        .shared
                        .connection
                        .read_control
                        .count_as_waiting_for_delivery();
                    signal.wait(connection.next_turn());
                }
                Step::NoConsumers => break,
                Step::Ended => {
                    inner.consumer_callbacks.clear();
                    // The channel may have ended with its connection.
                    connection.dispatch_own(&|| false)?;
                    return inner.ended_by_others().map_or(Ok(()), Err);
                }
            }
        }
        match consuming.cancelled {
            Some(tag) => Err(Error::ConsumerCancelled(tag)),
            None => Ok(()),
        }
    }

    /// Runs the callbacks for at most `share` events, unless another thread dispatches this
    /// channel. Returns the number of events.
    pub(crate) fn dispatch_some(&self, share: usize, is_over: &dyn Fn() -> bool) -> Result<usize> {
        let inner = self.inner();
        inner.shared.clear_ready();
        let announce = || inner.shared.mark_ready();
        let Some(guard) = inner.dispatch_lock.hold(&announce) else {
            return Ok(0);
        };
        let outcome = self.dispatch_share(&guard, share, is_over);
        drop(guard);
        let is_done = outcome.as_ref().is_ok_and(|&done| done < share) && !is_over();
        if !is_done || inner.has_more() {
            inner.shared.mark_ready();
        }
        // A `close` in another thread could not take the dispatch lock meanwhile, so this thread
        // runs the close callbacks.
        let called = self.call_close_callbacks();
        outcome.and_then(|done| called.map(|()| done))
    }

    fn dispatch_share(
        &self,
        guard: &DispatchGuard<'_>,
        share: usize,
        is_over: &dyn Fn() -> bool,
    ) -> Result<usize> {
        let inner = self.inner();
        let mut consuming = Consuming::default();
        let mut done = self.call_notice_callbacks(guard, share, is_over)?;
        for _ in 0..inner.shared.inbox.len().min(share) {
            if is_over() {
                return Ok(done);
            }
            match self.step(guard, &mut consuming)? {
                Step::Handled => done += 1,
                Step::Idle | Step::NoConsumers | Step::Ended => break,
            }
            if let Some(tag) = consuming.cancelled.take() {
                return Err(Error::ConsumerCancelled(tag));
            }
        }
        if inner.shared.inbox.is_drained() {
            let is_unreported = inner.on_close.is_empty() && inner.consumer_callbacks.has_some();
            inner.consumer_callbacks.clear();
            self.call_close_callbacks_under(guard)?;
            match inner.shared.closed() {
                // If the connection has ended, its own callbacks report the reason.
                Some(reason) if is_unreported && reason.by != ClosedBy::Application => {
                    return Err(Error::ChannelClosed(reason));
                }
                _ => {}
            }
        }
        Ok(done)
    }

    /// Handles the next event.
    fn step(&self, guard: &DispatchGuard<'_>, consuming: &mut Consuming) -> Result<Step> {
        let inner = self.inner();
        match inner.next_event() {
            NextEvent::NoConsumers => return Ok(Step::NoConsumers),
            NextEvent::Empty => return Ok(Step::Idle),
            NextEvent::ChannelEnded => return Ok(Step::Ended),
            NextEvent::Dropped => {}
            NextEvent::Call {
                content,
                no_ack,
                loan,
            } => self.run_callback(guard, content, no_ack, loan)?,
            NextEvent::Requeue(content, consumer) => {
                inner.requeue(&consumer, std::iter::once(content));
            }
            NextEvent::ConsumerEnded(consumer) => {
                if let Some(tag) = inner.remove_ended_callback(&consumer) {
                    self.call_cancel_callbacks(guard, tag, consuming)?;
                }
            }
        }
        Ok(Step::Handled)
    }

    /// Calls the cancel callbacks. If there is none, records the tag of the consumer, and the
    /// dispatching call ends with an error.
    fn call_cancel_callbacks(
        &self,
        guard: &DispatchGuard<'_>,
        tag: ShortString,
        consuming: &mut Consuming,
    ) -> Result<()> {
        let inner = self.inner();
        if inner.on_cancel.is_empty() {
            consuming.cancelled = Some(tag);
            return Ok(());
        }
        inner.on_cancel.call_all(guard, self, &tag)
    }

    /// Runs the callback for `content`.
    fn run_callback(
        &self,
        guard: &DispatchGuard<'_>,
        content: DeliveredContent,
        no_ack: bool,
        mut loan: Loan<'_>,
    ) -> Result<()> {
        let inner = self.inner();
        if !no_ack && !inner.is_open() {
            // The delivery cannot be settled any more. The broker requeues it.
            return Ok(());
        }
        let delivery = inner.hand_out(content, no_ack);
        let Some(callback) = loan.callbacks() else {
            return Ok(());
        };
        let outcome = guard.call(|| callback(self, delivery));
        // If another thread of this program closes the channel, calls of the callback fail. That is
        // no error of the callback.
        match (outcome, inner.shared.end_error()) {
            (Err(error), Some(end)) if !error.is_of_others() && !end.is_of_others() => Ok(()),
            (outcome, _) => outcome,
        }
    }

    /// Cancels all consumers of this channel that have a callback, so that
    /// [`start_consuming`](Self::start_consuming) returns. You can call `stop_consuming` from a
    /// callback and from any thread.
    ///
    /// Deliveries that have arrived and that no callback has received are requeued. Those of a
    /// `no_ack` consumer cannot be requeued, so its callback still receives them before
    /// `start_consuming` returns. After `stop_consuming`, a new call of `start_consuming` returns
    /// at once, unless consumers were started in between.
    ///
    /// # Errors
    ///
    /// The [errors of a call](crate::BlockingChannel#errors-of-a-call): a refusal by the broker,
    /// the end of the channel or connection, or a timeout.
    pub fn stop_consuming(&self) -> Result<()> {
        let inner = self.inner();
        for consumer in inner.consumer_callbacks.running() {
            inner.consumer_callbacks.set_stopping(&consumer, true);
            if let Err(error) = inner.cancel(&consumer, false) {
                inner.consumer_callbacks.set_stopping(&consumer, false);
                return Err(error);
            }
            inner.requeue_for(&consumer);
        }
        Ok(())
    }
}

impl ChannelInner {
    /// Takes the next event.
    ///
    /// The inbox is read under the lock of the table of callbacks. A cancel takes out the untaken
    /// deliveries under the same lock. So each delivery either finds its callback or goes with the
    /// cancel.
    fn next_event(&self) -> NextEvent<'_> {
        let mut entries = self.consumer_callbacks.lock();
        if entries.is_empty() {
            return NextEvent::NoConsumers;
        }
        let content = match self.shared.inbox.try_pop() {
            inbox::Next::Message(content) => content,
            inbox::Next::ConsumerEnded(consumer) => return NextEvent::ConsumerEnded(consumer),
            inbox::Next::Empty => return NextEvent::Empty,
            inbox::Next::Ended => return NextEvent::ChannelEnded,
        };
        let deliver = &content.method;
        match entries.with_tag(&deliver.consumer_tag) {
            // A delivery that needs no acknowledgement cannot be requeued, so its callback still
            // gets it.
            Some(entry) if !entry.is_running() && !entry.shared.no_ack => {
                NextEvent::Requeue(content, Arc::clone(&entry.shared))
            }
            Some(entry) => NextEvent::Call {
                no_ack: entry.shared.no_ack,
                loan: entry.lend(&self.consumer_callbacks),
                content,
            },
            None => {
                // Outside the lock, because a log backend that uses this channel would deadlock.
                drop(entries);
                log::warn!(
                    "a delivery for the unknown consumer {} is dropped",
                    deliver.consumer_tag
                );
                NextEvent::Dropped
            }
        }
    }

    /// Removes the callback of a consumer whose start failed. Deliveries that have arrived for the
    /// consumer are requeued. Those of a `no_ack` consumer cannot be requeued: they are lost.
    pub(super) fn remove_unstarted_callback(self: &Arc<Self>, consumer: &Arc<ConsumerShared>) {
        let mut entries = self.consumer_callbacks.lock();
        let entry = entries.remove(consumer);
        let left = match entry {
            Some(_) => self.extract_for(&consumer.tag),
            None => Extracted::default(),
        };
        drop(entries);
        drop(entry);
        self.requeue_or_log(left, consumer);
        // A thread in `start_consuming` may have waited for this consumer only.
        self.shared.mark_ready();
    }

    /// Takes out the deliveries for the consumer with this tag.
    fn extract_for(&self, tag: &ShortString) -> Extracted {
        self.shared.inbox.extract(|known| known == tag)
    }

    /// Returns whether there are events to dispatch.
    fn has_more(&self) -> bool {
        self.consumer_callbacks.has_some() && !self.shared.inbox.is_empty()
    }

    /// Removes the callback of a cancelled consumer, and takes out the deliveries that it has not
    /// handled.
    pub(super) fn remove_cancelled_callback(
        &self,
        consumer: &Arc<ConsumerShared>,
    ) -> Option<Extracted> {
        let mut entries = self.consumer_callbacks.lock();
        let entry = entries.remove(consumer)?;
        let left = self.extract_for(&consumer.tag);
        drop(entries);
        drop(entry);
        Some(left)
    }

    /// Removes the callback of a consumer that has ended. Returns its tag if the broker has
    /// cancelled it.
    fn remove_ended_callback(&self, consumer: &Weak<ConsumerShared>) -> Option<ShortString> {
        // `None` if the program has cancelled this consumer by its tag before.
        let consumer = consumer.upgrade()?;
        let entry = self.consumer_callbacks.lock().remove(&consumer);
        // Dropped outside the lock: the `Drop` of a captured value may use this channel.
        drop(entry?);
        if consumer.canceller() != Some(ClosedBy::Broker) {
            return None;
        }
        log::warn!("the broker has cancelled consumer {}", consumer.tag);
        Some(consumer.tag.clone())
    }

    /// Requeues the untaken deliveries of a stopped consumer, unless they need no acknowledgement.
    fn requeue_for(&self, consumer: &Arc<ConsumerShared>) {
        let entries = self.consumer_callbacks.lock();
        // The deliveries of a later consumer with the same tag are left alone.
        if consumer.no_ack || !entries.contains(consumer) {
            return;
        }
        let left = self.extract_for(&consumer.tag);
        drop(entries);
        self.requeue(consumer, left);
    }

    /// Logs, once, that no more deliveries can arrive because the prefetch is used up by unsettled
    /// deliveries.
    pub(crate) fn warn_if_stalled(&self, warned: &mut bool) {
        let prefetch = match self.shared.prefetch() {
            Some(prefetch) if prefetch > 0 && !*warned => u64::from(prefetch),
            _ => return,
        };
        if self.shared.unsettled_deliveries() >= prefetch {
            *warned = true;
            log::warn!(
                "{}: channel {} waits for deliveries, but all {prefetch} that its prefetch allows \
                 are unsettled; check that the program acknowledges them",
                self.shared.connection.name,
                self.shared.id.number
            );
        }
    }
}
