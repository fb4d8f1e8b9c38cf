//! The consumers of a channel that have a callback.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::loan::{Lender, Loan};
use crate::error::{Error, Result};
use crate::io::shared::consumer::ConsumerShared;
use crate::protocol::wire::ShortString;

/// The callback of a consumer. It gets the channel's handle `H` and each delivery `D`.
pub(crate) type Callback<H, D> = Box<dyn FnMut(&H, D) -> Result<()> + Send>;

type Entries<H, D> = HashMap<ShortString, Entry<H, D>>;

/// The consumers of a channel that have a callback, by their tag.
pub(crate) struct ConsumerCallbacks<H, D>(Mutex<Entries<H, D>>);

pub(crate) struct Entry<H, D> {
    /// `None` while the callback runs.
    callback: Option<Callback<H, D>>,
    pub(crate) shared: Arc<ConsumerShared>,
    /// `stop_consuming` has cancelled the consumer; its last deliveries are still to be handled.
    stopping: bool,
    /// A cancel of the consumer has no reply yet.
    cancelling: bool,
}

impl<H, D> Default for ConsumerCallbacks<H, D> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<H, D> Entry<H, D> {
    /// Returns whether the callback still gets deliveries that could be requeued instead.
    pub(crate) fn is_running(&self) -> bool {
        !self.stopping && !self.cancelling
    }

    /// Takes the callback out of `callbacks`, the table of this entry, to call it without the lock.
    pub(crate) fn lend<'a>(
        &mut self,
        callbacks: &'a ConsumerCallbacks<H, D>,
    ) -> ConsumerLoan<'a, H, D> {
        let lender = TableSlot {
            callbacks,
            tag: self.shared.tag.clone(),
        };
        Loan::new(lender, self.callback.take())
    }
}

impl<H, D> ConsumerCallbacks<H, D> {
    /// Adds a consumer, unless another one has its tag.
    pub(crate) fn insert(
        &self,
        callback: Callback<H, D>,
        shared: &Arc<ConsumerShared>,
    ) -> Result<()> {
        let mut entries = self.0.lock();
        if entries
            .get(&shared.tag)
            .is_some_and(|entry| !entry.stopping)
        {
            return Err(Error::DuplicateConsumerTag(shared.tag.clone()));
        }
        let entry = Entry {
            callback: Some(callback),
            shared: Arc::clone(shared),
            stopping: false,
            cancelling: false,
        };
        let former = entries.insert(shared.tag.clone(), entry);
        // Dropped outside the lock: the `Drop` of a captured value may use this channel.
        drop(entries);
        drop(former);
        Ok(())
    }

    /// Returns the tags of the consumers that `stop_consuming` has not cancelled.
    pub(crate) fn tags(&self) -> Vec<ShortString> {
        let entries = self.0.lock();
        let live = entries.iter().filter(|(_, entry)| !entry.stopping);
        live.map(|(tag, _)| tag.clone()).collect()
    }

    /// Returns whether there are any consumers, including those that are stopping.
    pub(crate) fn has_some(&self) -> bool {
        !self.0.lock().is_empty()
    }

    /// Returns the consumer with this tag.
    pub(crate) fn shared(&self, tag: &ShortString) -> Option<Arc<ConsumerShared>> {
        let entries = self.0.lock();
        entries.get(tag).map(|entry| Arc::clone(&entry.shared))
    }

    /// Returns the consumers that `stop_consuming` has not cancelled.
    pub(crate) fn running(&self) -> Vec<Arc<ConsumerShared>> {
        let entries = self.0.lock();
        let running = entries.values().filter(|entry| !entry.stopping);
        running.map(|entry| Arc::clone(&entry.shared)).collect()
    }

    pub(crate) fn set_stopping(&self, shared: &Arc<ConsumerShared>, stopping: bool) {
        if let Some(entry) = self.lock().get(shared) {
            entry.stopping = stopping;
        }
    }

    /// Notes that a cancel of this consumer begins, or has failed.
    pub(crate) fn set_cancelling(&self, shared: &Arc<ConsumerShared>, cancelling: bool) {
        if let Some(entry) = self.lock().get(shared) {
            entry.cancelling = cancelling;
        }
    }

    /// Drops all callbacks.
    pub(crate) fn clear(&self) {
        // Outside the lock, as in `insert`.
        let entries = std::mem::take(&mut *self.0.lock());
        drop(entries);
    }

    /// Locks the table. Deliveries are taken out of the channel's inbox under this lock, so that
    /// each delivery either finds its callback or goes with the cancel of its consumer.
    pub(crate) fn lock(&self) -> Locked<'_, H, D> {
        Locked(self.0.lock())
    }
}

/// The table under its lock.
pub(crate) struct Locked<'a, H, D>(MutexGuard<'a, Entries<H, D>>);

impl<H, D> Locked<'_, H, D> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the entry of the consumer that has this tag now.
    pub(crate) fn with_tag(&mut self, tag: &ShortString) -> Option<&mut Entry<H, D>> {
        self.0.get_mut(tag)
    }

    /// Returns the entry of this very consumer, not of another one with the same tag.
    fn get(&mut self, shared: &Arc<ConsumerShared>) -> Option<&mut Entry<H, D>> {
        let entry = self.0.get_mut(&shared.tag)?;
        Arc::ptr_eq(&entry.shared, shared).then_some(entry)
    }

    pub(crate) fn contains(&self, shared: &Arc<ConsumerShared>) -> bool {
        let entry = self.0.get(&shared.tag);
        entry.is_some_and(|entry| Arc::ptr_eq(&entry.shared, shared))
    }

    /// Removes this very consumer. Drop the entry outside the lock.
    #[must_use]
    pub(crate) fn remove(&mut self, shared: &Arc<ConsumerShared>) -> Option<Entry<H, D>> {
        match self.contains(shared) {
            true => self.0.remove(&shared.tag),
            false => None,
        }
    }
}

/// A consumer's callback while it runs.
pub(crate) type ConsumerLoan<'a, H, D> = Loan<TableSlot<'a, H, D>>;

/// The place of a callback in the table.
pub(crate) struct TableSlot<'a, H, D> {
    callbacks: &'a ConsumerCallbacks<H, D>,
    tag: ShortString,
}

impl<H, D> Lender for TableSlot<'_, H, D> {
    type Callbacks = Callback<H, D>;

    fn take_back(&self, callback: Callback<H, D>) {
        let unwanted = match self.callbacks.0.lock().get_mut(&self.tag) {
            Some(entry) if entry.callback.is_none() => {
                entry.callback = Some(callback);
                None
            }
            // The consumer was cancelled meanwhile, or another one has its tag now.
            _ => Some(callback),
        };
        drop(unwanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::shared::channel::ChannelShared;
    use crate::io::shared::connection::tests::shared;
    use crate::protocol::event::ChannelId;
    use crate::protocol::methods::basic;

    fn consumer() -> Arc<ConsumerShared> {
        let id = ChannelId {
            number: 1,
            generation: 1,
        };
        let channel = Arc::new(ChannelShared::new(id, shared(1 << 20), 1));
        let consume = basic::Consume::new("q").consumer_tag("me");
        ConsumerShared::with_callback(&consume, channel)
    }

    fn callback() -> Callback<(), ()> {
        Box::new(|&(), ()| Ok(()))
    }

    #[test]
    fn removing_a_consumer_keeps_another_one_with_the_same_tag() {
        let (former, latter) = (consumer(), consumer());
        let callbacks = ConsumerCallbacks::default();
        callbacks.insert(callback(), &former).unwrap();
        let refused = callbacks.insert(callback(), &latter);
        assert!(matches!(refused, Err(Error::DuplicateConsumerTag(_))));
        callbacks.set_stopping(&latter, true);
        assert_eq!(callbacks.tags(), ["me"], "only the former one is known");
        callbacks.set_stopping(&former, true);
        assert_eq!(callbacks.tags(), [] as [&str; 0]);
        callbacks.insert(callback(), &latter).unwrap();
        assert!(callbacks.lock().remove(&former).is_none());
        assert_eq!(callbacks.tags(), ["me"]);
        assert!(callbacks.lock().remove(&latter).is_some());
        assert!(!callbacks.has_some());
    }

    #[test]
    fn a_callback_returns_from_its_loan_unless_its_consumer_is_gone() {
        let consumer = consumer();
        let callbacks = ConsumerCallbacks::default();
        callbacks.insert(callback(), &consumer).unwrap();
        let lend = || {
            let mut entries = callbacks.lock();
            entries.with_tag(&consumer.tag).unwrap().lend(&callbacks)
        };
        let (mut loan, mut second) = (lend(), lend());
        assert!(loan.callbacks().is_some());
        assert!(second.callbacks().is_none(), "it runs already");
        drop((loan, second));
        let mut loan = lend();
        assert!(loan.callbacks().is_some());
        let removed = callbacks.lock().remove(&consumer);
        drop(removed);
        drop(loan);
        assert!(!callbacks.has_some());
    }
}
