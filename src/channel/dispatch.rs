//! Running callbacks: `start_consuming` and what ends it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::consume::is_for;
use super::{BlockingChannel, Shared};
use crate::connection::InCallback;
use crate::delivery::Delivery;
use crate::error::{Error, Result};
use crate::io::inbox::{Incoming, Popped};
use crate::io::port::ConsumerPort;
use crate::protocol::content::{Content, ContentMethod};
use crate::protocol::methods::basic;
use crate::protocol::wire::ShortString;

pub(super) type Callback = Box<dyn FnMut(&BlockingChannel, Delivery) -> Result<()> + Send>;

/// The consumers with a callback, by their tag.
#[derive(Default)]
pub(super) struct Callbacks(Mutex<HashMap<ShortString, Entry>>);

pub(super) struct Entry {
    /// Taken out while it runs.
    callback: Option<Callback>,
    pub(super) port: Arc<ConsumerPort>,
    /// `stop_consuming` has cancelled it; what it has received is still to be handled.
    stopping: bool,
}

impl Callbacks {
    /// Adds a consumer, unless there is one of its name.
    pub(super) fn insert(&self, callback: Callback, port: &Arc<ConsumerPort>) -> Result<()> {
        let mut entries = self.0.lock();
        if entries.get(&port.tag).is_some_and(|entry| !entry.stopping) {
            return Err(Error::DuplicateConsumerTag(port.tag.clone()));
        }
        let entry = Entry {
            callback: Some(callback),
            port: Arc::clone(port),
            stopping: false,
        };
        let former = entries.insert(port.tag.clone(), entry);
        drop(entries);
        drop(former);
        Ok(())
    }

    /// Removes this very consumer, and not another one of the same name.
    pub(super) fn remove_exactly(&self, port: &Arc<ConsumerPort>) -> Option<Entry> {
        let mut entries = self.0.lock();
        match entries.get(&port.tag) {
            Some(entry) if Arc::ptr_eq(&entry.port, port) => entries.remove(&port.tag),
            _ => None,
        }
    }

    pub(super) fn tags(&self) -> Vec<ShortString> {
        let entries = self.0.lock();
        let live = entries.iter().filter(|(_, entry)| !entry.stopping);
        live.map(|(tag, _)| tag.clone()).collect()
    }

    fn set_stopping(&self, tag: &str, stopping: bool) {
        if let Some(entry) = self.0.lock().get_mut(tag) {
            entry.stopping = stopping;
        }
    }

    /// Drops all callbacks, outside the lock: what they captured may call anything.
    pub(super) fn clear(&self) {
        let entries = std::mem::take(&mut *self.0.lock());
        drop(entries);
    }
}

/// A callback on loan: put back when it has run, also when it has panicked.
struct Loan<'a> {
    callbacks: &'a Callbacks,
    tag: ShortString,
    no_ack: bool,
    callback: Option<Callback>,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let unwanted = match self.callbacks.0.lock().get_mut(&self.tag) {
            Some(entry) if entry.callback.is_none() => {
                entry.callback = self.callback.take();
                None
            }
            // Cancelled meanwhile, or even replaced by a new consumer of that name.
            _ => self.callback.take(),
        };
        drop(unwanted);
    }
}

/// What the dispatching thread finds.
enum Next<'a> {
    NoConsumers,
    Call { content: Content, loan: Loan<'a> },
    GiveBack(Content),
    ConsumerEnded(Weak<ConsumerPort>),
    LookAgain,
    Nothing,
    ChannelEnded,
}

/// Says that a thread dispatches the channel, for as long as it lives.
struct Dispatching<'a>(&'a AtomicBool);

impl Drop for Dispatching<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// # Running callbacks
impl BlockingChannel {
    /// Runs the callbacks of this channel's consumers, in this thread, until there are
    /// no more consumers.
    ///
    /// Returns Ok at once if there are none, and after
    /// [`stop_consuming`](Self::stop_consuming), a [`basic_cancel`](Self::basic_cancel)
    /// of the last one, or a `close` of the channel or its connection by this program.
    /// A panic in a callback goes through, and leaves the connection usable.
    ///
    /// # Errors
    ///
    /// A callback's own error; the reason, if channel or connection end otherwise;
    /// [`Error::ConsumerCancelled`] if the broker has cancelled the last consumer and
    /// nobody [listens for that](Self::add_on_cancel_callback);
    /// [`Error::AlreadyConsuming`].
    pub fn start_consuming(&self) -> Result<()> {
        let shared = self.shared();
        if shared.dispatching.swap(true, Ordering::AcqRel) {
            return Err(Error::AlreadyConsuming);
        }
        let _dispatching = Dispatching(&shared.dispatching);
        let mut warned = false;
        let mut cancelled = None;
        loop {
            self.tell_returns()?;
            match shared.next_event() {
                Next::NoConsumers => break,
                Next::Call { content, loan } => self.run_callback(content, loan)?,
                Next::GiveBack(content) => shared.give_back(&content),
                Next::ConsumerEnded(consumer) => {
                    cancelled = shared.end_callback(&consumer);
                    if !shared.on_cancel.is_empty() {
                        if let Some(tag) = cancelled.take() {
                            shared.on_cancel.tell(self, &tag)?;
                        }
                    }
                }
                Next::LookAgain => {}
                Next::Nothing => {
                    shared.warn_if_stalled(&mut warned);
                    shared.port.inbox.wait(None);
                }
                Next::ChannelEnded => {
                    shared.callbacks.clear();
                    return shared.ended_by_others().map_or(Ok(()), Err);
                }
            }
        }
        cancelled.map_or(Ok(()), |tag| Err(Error::ConsumerCancelled(tag)))
    }

    /// Runs the callback that `content` is for.
    fn run_callback(&self, content: Content, mut loan: Loan<'_>) -> Result<()> {
        let shared = self.shared();
        if !loan.no_ack && shared.check_open().is_err() {
            // It cannot be settled any more; the broker gives it out again.
            return Ok(());
        }
        match (loan.callback.as_mut(), shared.take(content, loan.no_ack)) {
            (Some(callback), Some(delivery)) => {
                let _in_callback = InCallback::enter();
                callback(self, delivery)
            }
            _ => Ok(()),
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
    /// The usual ones of a call.
    pub fn stop_consuming(&self) -> Result<()> {
        let shared = self.shared();
        for tag in shared.callbacks.tags() {
            shared.callbacks.set_stopping(&tag, true);
            if let Err(error) = self.call::<basic::CancelOk>(basic::Cancel::new(&tag)) {
                shared.callbacks.set_stopping(&tag, false);
                return Err(error);
            }
            shared.requeue_for(&tag);
        }
        Ok(())
    }
}

impl Shared {
    /// What the dispatching thread is to do next.
    ///
    /// Taken from the inbox under the lock of the callbacks, as a cancel takes what it
    /// hands back: so each message finds its consumer, or is handed back.
    fn next_event(&self) -> Next<'_> {
        let mut entries = self.callbacks.0.lock();
        if entries.is_empty() {
            return Next::NoConsumers;
        }
        let content = match self.port.inbox.try_pop() {
            Popped::Item(Incoming::Message(content)) => content,
            Popped::Item(Incoming::Ended(consumer)) => return Next::ConsumerEnded(consumer),
            Popped::Item(Incoming::Nudge) => return Next::LookAgain,
            Popped::Empty => return Next::Nothing,
            Popped::Ended => return Next::ChannelEnded,
        };
        let ContentMethod::Deliver(deliver) = &content.method else {
            return Next::LookAgain;
        };
        match entries.get_mut(&deliver.consumer_tag) {
            // What needs acknowledgement and nobody has seen goes back; the rest is here
            // for good and must be handed out.
            Some(entry) if entry.stopping && !entry.port.no_ack => Next::GiveBack(content),
            Some(entry) => Next::Call {
                loan: Loan {
                    callbacks: &self.callbacks,
                    tag: deliver.consumer_tag.clone(),
                    no_ack: entry.port.no_ack,
                    callback: entry.callback.take(),
                },
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
    pub(super) fn abandon_callback(self: &Arc<Self>, consumer: &Arc<ConsumerPort>) {
        let mut entries = self.callbacks.0.lock();
        let is_it = |entry: &Entry| Arc::ptr_eq(&entry.port, consumer);
        let entry = match entries.get(&consumer.tag).is_some_and(is_it) {
            true => entries.remove(&consumer.tag),
            false => None,
        };
        let left = match entry {
            Some(_) => self.port.extract(|content| is_for(content, &consumer.tag)),
            None => Vec::new(),
        };
        drop(entries);
        drop(entry);
        self.keep_or_give_back(left, consumer.no_ack);
        // Whoever waits for this consumer only has nothing to wait for any more.
        self.port.nudge();
    }

    /// Ends what a callback has of a consumer that was cancelled, and takes out what it
    /// has received and not handled.
    pub(super) fn remove_callback(&self, tag: &ShortString) -> Option<(Vec<Content>, bool)> {
        let mut entries = self.callbacks.0.lock();
        let entry = entries.remove(tag)?;
        let left = self.port.extract(|content| is_for(content, tag));
        drop(entries);
        let no_ack = entry.port.no_ack;
        drop(entry);
        Some((left, no_ack))
    }

    /// Forgets a callback whose consumer has ended; its tag, if the broker did that.
    fn end_callback(&self, consumer: &Weak<ConsumerPort>) -> Option<ShortString> {
        // Nothing holds a consumer that was cancelled by its tag before.
        let consumer = consumer.upgrade()?;
        drop(self.callbacks.remove_exactly(&consumer)?);
        if consumer.cancelled_by_broker() != Some(true) {
            return None;
        }
        log::warn!("the broker has cancelled consumer {}", consumer.tag);
        Some(consumer.tag.clone())
    }

    /// Gives back what waits for a consumer that was stopped, if that can be done.
    fn requeue_for(&self, tag: &ShortString) {
        let no_ack = match self.callbacks.0.lock().get(tag) {
            Some(entry) => entry.port.no_ack,
            None => return,
        };
        if !no_ack {
            for content in self.port.extract(|content| is_for(content, tag)) {
                self.give_back(&content);
            }
        }
    }

    /// Says once why nothing comes any more: everything the prefetch allows is out and
    /// unsettled.
    pub(crate) fn warn_if_stalled(&self, warned: &mut bool) {
        let prefetch = match self.prefetch.try_lock().as_deref() {
            Some(Some(prefetch)) if *prefetch > 0 && !*warned => u64::from(*prefetch),
            _ => return,
        };
        let settled = self.port.settlements.lock().count();
        if self
            .handed_out
            .load(Ordering::Relaxed)
            .saturating_sub(settled)
            >= prefetch
        {
            *warned = true;
            log::warn!(
                "{}: channel {} waits for deliveries, but all {prefetch} that its prefetch allows \
                 are out and unsettled; does the program acknowledge them?",
                self.port.connection.name,
                self.port.id.number
            );
        }
    }
}
