//! Callbacks of one kind.

use parking_lot::Mutex;

use crate::error::Result;
use crate::source::Held;

/// Callbacks of one kind, in the order in which they were added. Each gets the handle that
/// it was added to, and what has happened.
pub(crate) struct Listeners<H, A>(Mutex<Vec<Listener<H, A>>>);

type Listener<H, A> = Box<dyn FnMut(&H, &A) -> Result<()> + Send>;

impl<H, A> Default for Listeners<H, A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<H, A> Listeners<H, A> {
    pub(crate) fn add(&self, listener: impl FnMut(&H, &A) -> Result<()> + Send + 'static) {
        self.0.lock().push(Box::new(listener));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Drops all, outside the lock: what they captured may call anything.
    pub(crate) fn clear(&self) {
        let listeners = std::mem::take(&mut *self.0.lock());
        drop(listeners);
    }

    /// Calls each, outside the lock, until one fails. What is added meanwhile comes in
    /// behind them.
    pub(crate) fn tell(&self, held: &Held<'_>, handle: &H, what: &A) -> Result<()> {
        let mut loan = Loan {
            listeners: self,
            taken: std::mem::take(&mut *self.0.lock()),
        };
        loan.taken
            .iter_mut()
            .try_for_each(|listener| held.call(|| listener(handle, what)))
    }

    /// Calls each for the last time, and tells the first error.
    pub(crate) fn tell_last(&self, held: &Held<'_>, handle: &H, what: &A) -> Result<()> {
        let listeners = std::mem::take(&mut *self.0.lock());
        let mut outcome = Ok(());
        for mut listener in listeners {
            let told = held.call(|| listener(handle, what));
            outcome = outcome.and(told);
        }
        outcome
    }
}

/// Listeners on loan: put back when they have run, also when one has panicked.
struct Loan<'a, H, A> {
    listeners: &'a Listeners<H, A>,
    taken: Vec<Listener<H, A>>,
}

impl<H, A> Drop for Loan<'_, H, A> {
    fn drop(&mut self) {
        let mut listeners = self.listeners.0.lock();
        self.taken.append(&mut listeners);
        std::mem::swap(&mut self.taken, &mut listeners);
    }
}
