//! Running callbacks: `start_consuming` and what ends it.

use std::sync::{Arc, Weak};

use super::{BlockingChannel, ChannelInner};
use crate::client::callbacks::consumers::ConsumerLoan;
use crate::client::callbacks::lock::DispatchGuard;
use crate::client::delivery::Delivery;
use crate::error::{Error, Result};
use crate::io::shared::consumer::ConsumerShared;
use crate::io::to_program::dispatch_signal::Signal;
use crate::io::to_program::inbox::{self, Extracted};
use crate::protocol::content::DeliveredContent;
use crate::protocol::reply_code::ClosedBy;
use crate::protocol::wire::ShortString;

type Loan<'a> = ConsumerLoan<'a, BlockingChannel, Delivery>;

/// How many events of one channel are dispatched before it is another's turn.
pub(crate) const EVENTS_PER_TURN_MAX: usize = 64;

/// What the dispatching thread finds.
enum Next<'a> {
    NoConsumers,
    Call {
        content: DeliveredContent,
        no_ack: bool,
        loan: Loan<'a>,
    },
    GiveBack(DeliveredContent, Arc<ConsumerShared>),
    ConsumerEnded(Weak<ConsumerShared>),
    LookAgain,
    Nothing,
    ChannelEnded,
}

/// What a dispatching thread did.
enum Step {
    Handled,
    /// There is nothing to do now.
    Idle,
    NoConsumers,
    /// There is nothing to do any more.
    Ended,
}

/// What one dispatching call has to remember.
#[derive(Default)]
struct Consuming {
    /// Whether it has been said that everything is out and unsettled.
    warned: bool,
    /// The consumer that the broker has cancelled last, if nobody listens for that.
    cancelled: Option<ShortString>,
}

/// # Running callbacks
impl BlockingChannel {
    /// Runs the callbacks of this channel's consumers, in this thread, until there are
    /// no more consumers; and meanwhile those of its connection, timers included.
    ///
    /// Returns Ok at once if there are none on an open channel, and after
    /// [`stop_consuming`](Self::stop_consuming), a [`basic_cancel`](Self::basic_cancel)
    /// of the last one, or a `close` of the channel or its connection by this program.
    /// A panic in a callback goes through, and leaves the connection usable. To serve
    /// several channels in one thread, see [`run`](crate::BlockingConnection::run).
    ///
    /// # Errors
    ///
    /// A callback's own error; the reason, if channel or connection end otherwise;
    /// [`Error::ConsumerCancelled`] if the broker has cancelled the last consumer and
    /// nobody [listens for that](Self::add_on_cancel_callback);
    /// [`Error::AlreadyConsuming`] if another thread runs this channel's callbacks, or the
    /// caller is one of them.
    pub fn start_consuming(&self) -> Result<()> {
        let inner = self.inner();
        let announce = || inner.shared.announce();
        let held = inner
            .source
            .hold(&announce)
            .ok_or(Error::AlreadyConsuming)?;
        let outcome = self.consume_all(&held);
        let told = self.tell_closed_if(&held);
        drop(held);
        // Others may see to what is left.
        inner.shared.announce();
        // A close that was done while this had the source has left that to it.
        outcome.and(told).and_then(|()| self.tell_closed())
    }

    fn consume_all(&self, held: &DispatchGuard<'_>) -> Result<()> {
        let inner = self.inner();
        let connection = self.connection();
        let signal = Signal::of_this_thread();
        let _watch = inner.shared.inbox.subscribers().watch(&signal);
        let _watch_connection = inner.shared.connection.own_events.watch(&signal);
        let mut consuming = Consuming::default();
        if !inner.callbacks.has_some() {
            // Those that there were have ended with the channel.
            if let Some(error) = inner.ended_by_others() {
                return Err(error);
            }
        }
        loop {
            let told = connection.dispatch_own(&|| false)?
                + self.tell_notices(held, EVENTS_PER_TURN_MAX, &|| false)?;
            match self.step(held, &mut consuming)? {
                // Of others that go on, this one is not the end.
                Step::Handled if inner.callbacks.has_some() => consuming.cancelled = None,
                Step::Handled => {}
                // More may have come for those behind which this was.
                Step::Idle if told > 0 => {}
                Step::Idle => {
                    inner.warn_if_stalled(&mut consuming.warned);
                    let _waiting = inner.shared.connection.read_control.wait_for_delivery();
                    signal.wait(connection.next_turn());
                }
                Step::NoConsumers => break,
                Step::Ended => {
                    inner.callbacks.clear();
                    // The connection may have taken the channel along.
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

    /// Calls back for `share` events at most, unless another thread does; tells how many
    /// there were.
    pub(crate) fn dispatch_some(&self, share: usize, is_over: &dyn Fn() -> bool) -> Result<usize> {
        let inner = self.inner();
        inner.shared.unlist();
        let announce = || inner.shared.announce();
        let Some(held) = inner.source.hold(&announce) else {
            return Ok(0);
        };
        let outcome = self.dispatch_share(&held, share, is_over);
        drop(held);
        let is_done = outcome.as_ref().is_ok_and(|&done| done < share) && !is_over();
        if !is_done || inner.has_more() {
            inner.shared.announce();
        }
        // A close that was done while this had the source has left that to it.
        let told = self.tell_closed();
        outcome.and_then(|done| told.map(|()| done))
    }

    fn dispatch_share(
        &self,
        held: &DispatchGuard<'_>,
        share: usize,
        is_over: &dyn Fn() -> bool,
    ) -> Result<usize> {
        let inner = self.inner();
        let mut consuming = Consuming::default();
        let mut done = self.tell_notices(held, share, is_over)?;
        for _ in 0..inner.shared.inbox.len().min(share) {
            if is_over() {
                return Ok(done);
            }
            match self.step(held, &mut consuming)? {
                Step::Handled => done += 1,
                Step::Idle | Step::NoConsumers | Step::Ended => break,
            }
            if let Some(tag) = consuming.cancelled.take() {
                return Err(Error::ConsumerCancelled(tag));
            }
        }
        if inner.shared.inbox.is_over() {
            let unheard = inner.on_close.is_empty() && inner.callbacks.has_some();
            inner.callbacks.clear();
            self.tell_closed_if(held)?;
            match inner.shared.closed() {
                // With the connection, its reason is told by that.
                Some(reason) if unheard && reason.by != ClosedBy::Application => {
                    return Err(Error::ChannelClosed(reason));
                }
                _ => {}
            }
        }
        Ok(done)
    }

    /// Does what is next.
    fn step(&self, held: &DispatchGuard<'_>, consuming: &mut Consuming) -> Result<Step> {
        let inner = self.inner();
        match inner.next_event() {
            Next::NoConsumers => return Ok(Step::NoConsumers),
            Next::Nothing => return Ok(Step::Idle),
            Next::ChannelEnded => return Ok(Step::Ended),
            Next::LookAgain => {}
            Next::Call {
                content,
                no_ack,
                loan,
            } => self.run_callback(held, content, no_ack, loan)?,
            Next::GiveBack(content, consumer) => {
                inner.give_back(&consumer, std::iter::once(content));
            }
            Next::ConsumerEnded(consumer) => {
                if let Some(tag) = inner.end_callback(&consumer) {
                    self.tell_cancelled(held, tag, consuming)?;
                }
            }
        }
        Ok(Step::Handled)
    }

    /// Tells of a consumer that the broker has cancelled; if nobody listens, the dispatching
    /// call will.
    fn tell_cancelled(
        &self,
        held: &DispatchGuard<'_>,
        tag: ShortString,
        consuming: &mut Consuming,
    ) -> Result<()> {
        let inner = self.inner();
        if inner.on_cancel.is_empty() {
            consuming.cancelled = Some(tag);
            return Ok(());
        }
        inner.on_cancel.call_all(held, self, &tag)
    }

    /// Runs the callback that `content` is for.
    fn run_callback(
        &self,
        held: &DispatchGuard<'_>,
        content: DeliveredContent,
        no_ack: bool,
        mut loan: Loan<'_>,
    ) -> Result<()> {
        let inner = self.inner();
        if !no_ack && !inner.is_open() {
            // It cannot be settled any more; the broker gives it out again.
            return Ok(());
        }
        let delivery = inner.take(content, no_ack);
        let Some(callback) = loan.callbacks() else {
            return Ok(());
        };
        let outcome = held.call(|| callback(self, delivery));
        // A close by this program, from another thread, is no failure of the callback that it
        // interrupts.
        match (outcome, inner.shared.end()) {
            (Err(error), Some(end)) if !error.is_of_others() && !end.is_of_others() => Ok(()),
            (outcome, _) => outcome,
        }
    }

    /// Cancels this channel's consumers with a callback, so that
    /// [`start_consuming`](Self::start_consuming) returns: from a callback, or from
    /// another thread.
    ///
    /// What they had received and not yet handled goes back to its queue, or, if it
    /// needed no acknowledgement, still goes to its callback first. Before
    /// `start_consuming`, this makes that one return at once.
    ///
    /// # Errors
    ///
    /// [The usual ones of a call](crate::BlockingChannel#errors-of-a-call).
    pub fn stop_consuming(&self) -> Result<()> {
        let inner = self.inner();
        for consumer in inner.callbacks.running() {
            inner.callbacks.set_stopping(&consumer, true);
            if let Err(error) = inner.cancel(&consumer, false) {
                inner.callbacks.set_stopping(&consumer, false);
                return Err(error);
            }
            inner.requeue_for(&consumer);
        }
        Ok(())
    }
}

impl ChannelInner {
    /// What the dispatching thread is to do next.
    ///
    /// Taken from the inbox under the lock of the callbacks, as a cancel takes what it
    /// hands back: so each message finds its consumer, or is handed back.
    fn next_event(&self) -> Next<'_> {
        let mut entries = self.callbacks.lock();
        if entries.is_empty() {
            return Next::NoConsumers;
        }
        let content = match self.shared.inbox.try_pop() {
            inbox::Next::Message(content) => content,
            inbox::Next::ConsumerEnded(consumer) => return Next::ConsumerEnded(consumer),
            inbox::Next::Empty => return Next::Nothing,
            inbox::Next::Ended => return Next::ChannelEnded,
        };
        let deliver = &content.method;
        match entries.with_tag(&deliver.consumer_tag) {
            // A delivery that needs no acknowledgement cannot be requeued, so its callback still
            // gets it.
            Some(entry) if !entry.is_running() && !entry.shared.no_ack => {
                Next::GiveBack(content, Arc::clone(&entry.shared))
            }
            Some(entry) => Next::Call {
                no_ack: entry.shared.no_ack,
                loan: entry.lend(&self.callbacks),
                content,
            },
            None => {
                log::warn!("a delivery came for {}, who is gone", deliver.consumer_tag);
                Next::LookAgain
            }
        }
    }

    /// Forgets a callback whose consumer did not start in time, and gives back what has
    /// come for it all the same.
    pub(super) fn abandon_callback(self: &Arc<Self>, consumer: &Arc<ConsumerShared>) {
        let mut entries = self.callbacks.lock();
        let entry = entries.remove(consumer);
        let left = match entry {
            Some(_) => self.extract_for(&consumer.tag),
            None => Extracted::default(),
        };
        drop(entries);
        drop(entry);
        self.keep_or_give_back(left, consumer);
        // Whoever waits for this consumer only has nothing to wait for any more.
        self.shared.announce();
    }

    /// Takes out what has come for the callback of this tag.
    fn extract_for(&self, tag: &ShortString) -> Extracted {
        self.shared.inbox.extract(|known| known == tag)
    }

    /// Whether dispatching would find something to do.
    fn has_more(&self) -> bool {
        self.callbacks.has_some() && !self.shared.inbox.is_empty()
    }

    /// Ends what a callback has of a consumer that was cancelled, and takes out what it
    /// has received and not handled.
    pub(super) fn remove_callback(&self, consumer: &Arc<ConsumerShared>) -> Option<Extracted> {
        let mut entries = self.callbacks.lock();
        let entry = entries.remove(consumer)?;
        let left = self.extract_for(&consumer.tag);
        drop(entries);
        drop(entry);
        Some(left)
    }

    /// Forgets a callback whose consumer has ended; its tag, if the broker did that.
    fn end_callback(&self, consumer: &Weak<ConsumerShared>) -> Option<ShortString> {
        // Nothing holds a consumer that was cancelled by its tag before.
        let consumer = consumer.upgrade()?;
        let entry = self.callbacks.lock().remove(&consumer);
        // Outside the lock, for the callback may call anything when it is dropped.
        drop(entry?);
        if consumer.cancelled_by_broker() != Some(true) {
            return None;
        }
        log::warn!("the broker has cancelled consumer {}", consumer.tag);
        Some(consumer.tag.clone())
    }

    /// Gives back what waits for a consumer that was stopped, if that can be done.
    fn requeue_for(&self, consumer: &Arc<ConsumerShared>) {
        let entries = self.callbacks.lock();
        // The deliveries of a later consumer with the same tag are left alone.
        if consumer.no_ack || !entries.contains(consumer) {
            return;
        }
        let left = self.extract_for(&consumer.tag);
        drop(entries);
        self.give_back(consumer, left);
    }

    /// Says once why nothing comes any more: everything the prefetch allows is out and
    /// unsettled.
    pub(crate) fn warn_if_stalled(&self, warned: &mut bool) {
        let prefetch = match self.shared.prefetch() {
            Some(prefetch) if prefetch > 0 && !*warned => u64::from(prefetch),
            _ => return,
        };
        if self.shared.in_hand() >= prefetch {
            *warned = true;
            log::warn!(
                "{}: channel {} waits for deliveries, but all {prefetch} that its prefetch allows \
                 are out and unsettled; does the program acknowledge them?",
                self.shared.connection.name,
                self.shared.id.number
            );
        }
    }
}
