//! What a program wants to be told of a channel beside its deliveries.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{BlockingChannel, Shared};
use crate::confirm::Returned;
use crate::connection::InCallback;
use crate::error::Result;
use crate::protocol::wire::ShortString;

/// Callbacks of one kind, in the order in which they were added.
pub(super) struct Listeners<A>(Mutex<Vec<Listener<A>>>);

type Listener<A> = Box<dyn FnMut(&BlockingChannel, &A) -> Result<()> + Send>;

impl<A> Default for Listeners<A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<A> Listeners<A> {
    fn add(&self, listener: Listener<A>) {
        self.0.lock().push(listener);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Drops all, outside the lock: what they captured may call anything.
    pub(super) fn clear(&self) {
        let listeners = std::mem::take(&mut *self.0.lock());
        drop(listeners);
    }

    /// Calls each, outside the lock, until one fails. What is added meanwhile comes in
    /// behind them.
    pub(super) fn tell(&self, channel: &BlockingChannel, what: &A) -> Result<()> {
        let mut loan = Loan {
            listeners: self,
            taken: std::mem::take(&mut *self.0.lock()),
        };
        let _in_callback = InCallback::enter();
        loan.taken
            .iter_mut()
            .try_for_each(|listener| listener(channel, what))
    }
}

/// Listeners on loan: put back when they have run, also when one has panicked.
struct Loan<'a, A> {
    listeners: &'a Listeners<A>,
    taken: Vec<Listener<A>>,
}

impl<A> Drop for Loan<'_, A> {
    fn drop(&mut self) {
        let mut listeners = self.listeners.0.lock();
        self.taken.append(&mut listeners);
        std::mem::swap(&mut self.taken, &mut listeners);
    }
}

/// # Returned messages and cancelled consumers
impl BlockingChannel {
    /// Calls `callback` with each mandatory message that came back because it reached no
    /// queue: in the thread that runs [`start_consuming`](Self::start_consuming), while it
    /// runs. Elsewhere, take them with [`try_next_return`](Self::try_next_return).
    ///
    /// In [confirm mode](Self::confirm_delivery) a message that comes back is told by its
    /// [`Confirm`](crate::Confirm), and not here. The callback's error ends
    /// `start_consuming`.
    pub fn add_on_return_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, Returned) -> Result<()> + Send + 'static,
    ) {
        self.shared()
            .on_return
            .add(Box::new(move |channel, returned: &Returned| {
                callback(channel, returned.clone())
            }));
    }

    /// The next message that came back, if there is one. The last thousand are kept.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::Message;
    ///
    /// channel.basic_publish("", "no such queue", Message::new("hi").mandatory(true))?;
    /// // The broker returns it before it answers what is asked after it.
    /// channel.basic_qos(1)?;
    /// if let Some(returned) = channel.try_next_return() {
    ///     println!("{} came back: {}", returned.routing_key(), returned.reply_text());
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn try_next_return(&self) -> Option<Returned> {
        self.shared().port.take_return().map(Returned::new)
    }

    /// Calls `callback` with the tag of each consumer with a callback that the broker
    /// cancels, because its queue was deleted for instance: in the thread that runs
    /// [`start_consuming`](Self::start_consuming), while it runs.
    ///
    /// With such a callback `start_consuming` takes the cancellation of its last consumer
    /// as dealt with, and returns Ok. The callback's error ends it.
    pub fn add_on_cancel_callback(
        &self,
        mut callback: impl FnMut(&BlockingChannel, ShortString) -> Result<()> + Send + 'static,
    ) {
        self.shared()
            .on_cancel
            .add(Box::new(move |channel, tag: &ShortString| {
                callback(channel, tag.clone())
            }));
    }

    /// Tells the listeners of messages that came back.
    pub(super) fn tell_returns(&self) -> Result<()> {
        let shared: &Arc<Shared> = self.shared();
        while !shared.on_return.is_empty() {
            match self.try_next_return() {
                Some(returned) => shared.on_return.tell(self, &returned)?,
                None => break,
            }
        }
        Ok(())
    }
}
