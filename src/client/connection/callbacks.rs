//! What a connection calls back for, and its timers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::BlockingConnection;
use super::timers::{Round, TimeoutId, Timers};
use crate::client::callbacks::list::CallbackList;
use crate::client::callbacks::lock::{DispatchGuard, DispatchLock};
use crate::error::{Error, Result};
use crate::io::to_program::dispatch_signal::Signal;
use crate::protocol::wire::ShortString;

/// What a connection calls back for.
#[derive(Default)]
pub(crate) struct Events {
    source: DispatchLock,
    on_close: CallbackList<BlockingConnection, Error>,
    on_blocked: CallbackList<BlockingConnection, ShortString>,
    on_unblocked: CallbackList<BlockingConnection, ()>,
    on_backpressure: CallbackList<BlockingConnection, usize>,
    told: Mutex<Told>,
    timers: Mutex<Timers<Timer>>,
    /// How many timers there are, so that nobody pays for a lock to find none.
    timer_count: AtomicU64,
    pub(super) ready: OnceLock<Arc<Signal>>,
}

/// What the callbacks know.
#[derive(Default)]
struct Told {
    blocked: bool,
    backpressure: bool,
}

type Timer = Box<dyn FnOnce(&BlockingConnection) -> Result<()> + Send>;

/// As good as never, and the clock can still reckon with it.
const FARTHEST_TIMER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// # Callbacks and timers
///
/// All of them run in threads that dispatch, and nowhere else: in
/// [`run`](Self::run), [`sleep`](Self::sleep) and
/// [`process_data_events`](Self::process_data_events), and in
/// [`start_consuming`](crate::BlockingChannel::start_consuming) of a channel of this
/// connection. With nobody dispatching nothing is called, and what would have been told
/// is kept as a state: of a connection that was blocked and unblocked meanwhile, nothing is
/// told. A callback may call whatever it likes; its error ends the dispatching call and
/// comes out of it. It is dropped when the connection is closed, so it should not capture a
/// handle of its own connection, which that would keep open.
impl BlockingConnection {
    /// Calls `callback` once, as soon as a thread dispatches.
    ///
    /// (The connection is open by then; in pika this is how one learns of that.)
    pub fn add_on_open_callback(
        &self,
        callback: impl FnOnce(&BlockingConnection) -> Result<()> + Send + 'static,
    ) {
        self.add_timeout(Duration::ZERO, callback);
    }

    /// Calls `callback` once when the connection is over, with the reason: after a
    /// [`close`](Self::close) by this program in that call itself, otherwise in a thread
    /// that dispatches.
    pub fn add_on_close_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection, Error) -> Result<()> + Send + 'static,
    ) {
        self.events()
            .on_close
            .add(move |connection, reason: &Error| callback(connection, reason.clone()));
        self.inner.shared.ring();
    }

    /// Calls `callback` with the reason when the broker takes no publishes any more, for lack
    /// of memory or disk. RabbitMQ says so only to connections that publish.
    /// (RabbitMQ, "Blocked Connection Notifications".)
    ///
    /// See also [`is_blocked`](Self::is_blocked) and `blocked_connection_timeout`.
    pub fn add_on_blocked_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection, ShortString) -> Result<()> + Send + 'static,
    ) {
        self.events()
            .on_blocked
            .add(move |connection, reason: &ShortString| callback(connection, reason.clone()));
        self.inner.shared.ring();
    }

    /// Calls `callback` when the broker takes publishes again.
    pub fn add_on_unblocked_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection) -> Result<()> + Send + 'static,
    ) {
        self.events()
            .on_unblocked
            .add(move |connection, ()| callback(connection));
    }

    /// Calls `callback` when far more waits to be written than the broker, or the network,
    /// takes: more than ten times the mean size of a frame, unless
    /// [`set_backpressure_multiplier`](Self::set_backpressure_multiplier) says otherwise. It
    /// is told how many bytes wait.
    ///
    /// Only with the parameter `backpressure_detection` on. Without all this publishes wait
    /// for room when more than `write_budget` is waiting, so it is a matter of being told.
    pub fn add_backpressure_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection, usize) -> Result<()> + Send + 'static,
    ) {
        self.events()
            .on_backpressure
            .add(move |connection, waiting: &usize| callback(connection, *waiting));
        self.inner.shared.ring();
    }

    /// How many frames of mean size may wait before that counts as backpressure. Default: 10.
    pub fn set_backpressure_multiplier(&self, multiplier: usize) {
        self.inner.shared.backpressure.set_multiplier(multiplier);
    }

    /// Calls `callback` once after `delay`, in a thread that dispatches. It may be late by as
    /// long as that thread runs another callback.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// use std::time::Duration;
    ///
    /// fn tick(connection: &cony::BlockingConnection) -> cony::Result<()> {
    ///     println!("still here");
    ///     // Again, for as long as somebody dispatches.
    ///     connection.add_timeout(Duration::from_secs(1), tick);
    ///     Ok(())
    /// }
    ///
    /// connection.add_timeout(Duration::ZERO, tick);
    /// connection.process_data_events(Duration::from_millis(10))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn add_timeout(
        &self,
        delay: Duration,
        callback: impl FnOnce(&BlockingConnection) -> Result<()> + Send + 'static,
    ) -> TimeoutId {
        let now = Instant::now();
        let when = now
            .checked_add(delay)
            .unwrap_or_else(|| now + FARTHEST_TIMER);
        let events = self.events();
        let mut timers = events.timers.lock();
        let id = timers.add(when, Box::new(callback));
        events.note_count(&timers);
        drop(timers);
        self.set_timer_deadline();
        self.inner.shared.ring();
        id
    }

    /// Forgets a timer; `false` if it has run already, runs now, or was forgotten before.
    pub fn remove_timeout(&self, id: TimeoutId) -> bool {
        let events = self.events();
        let mut timers = events.timers.lock();
        let removed = timers.remove(id);
        events.note_count(&timers);
        drop(timers);
        removed.is_some()
    }

    pub(super) fn events(&self) -> &Events {
        &self.inner.events
    }

    /// When the next timer is due.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let events = self.events();
        if events.timer_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        events.timers.lock().next()
    }

    /// Until when a dispatching thread may wait for its signal. Timers that another thread
    /// sees to, or one further out, are no reason to wake up.
    pub(crate) fn next_turn(&self) -> Option<Instant> {
        let when = self.next_timeout()?;
        self.events().source.is_free().then_some(when)
    }

    /// Has the IO thread ring when the next timer is due, for those who wait with `select!`
    /// and do not look at the clock.
    pub(super) fn set_timer_deadline(&self) {
        if self.events().ready.get().is_some() {
            self.inner.shared.set_timer_deadline(self.next_timeout());
        }
    }

    /// Calls back for what has happened to the connection itself, and for the timers that are
    /// due; tells how many of them.
    pub(crate) fn dispatch_own(&self, is_over: &dyn Fn() -> bool) -> Result<usize> {
        let shared = &self.inner.shared;
        let is_due = || {
            self.next_timeout()
                .is_some_and(|when| when <= Instant::now())
        };
        if !shared.has_own_news() && !is_due() {
            return Ok(0);
        }
        let events = self.events();
        // Whoever has it sees to it.
        let call_others = || shared.call_watchers();
        let Some(held) = events.source.hold(&call_others) else {
            return Ok(0);
        };
        let outcome = self.dispatch_held(&held, is_over);
        drop(held);
        if outcome.is_err() {
            // There may be more.
            shared.ring();
        }
        // A close that was done while this had the source has left that to it.
        let told = self.tell_closed();
        outcome.and_then(|dispatched| told.map(|()| dispatched))
    }

    fn dispatch_held(&self, held: &DispatchGuard<'_>, is_over: &dyn Fn() -> bool) -> Result<usize> {
        self.inner.shared.take_own_news();
        let told = self.tell_states(held)?;
        let fired = self.fire_timers(held, is_over)?;
        self.tell_closed_if(held)?;
        Ok(told + fired)
    }

    fn tell_states(&self, held: &DispatchGuard<'_>) -> Result<usize> {
        let events = self.events();
        let (blocked, backpressure) = (
            self.blocked_reason(),
            self.inner.shared.backpressure.is_on(),
        );
        let mut told = events.told.lock();
        let was_blocked = std::mem::replace(&mut told.blocked, blocked.is_some());
        let had_backpressure = std::mem::replace(&mut told.backpressure, backpressure);
        drop(told);
        let mut changes = 0;
        match blocked {
            Some(reason) if !was_blocked => {
                events.on_blocked.tell(held, self, &reason)?;
                changes += 1;
            }
            None if was_blocked => {
                events.on_unblocked.tell(held, self, &())?;
                changes += 1;
            }
            _ => {}
        }
        if backpressure && !had_backpressure {
            let waiting = self.inner.shared.commands().waiting_bytes();
            events.on_backpressure.tell(held, self, &waiting)?;
            changes += 1;
        }
        Ok(changes)
    }

    fn fire_timers(&self, held: &DispatchGuard<'_>, is_over: &dyn Fn() -> bool) -> Result<usize> {
        let events = self.events();
        let round = events.timers.lock().round(Instant::now());
        let mut fired = 0;
        while !is_over() {
            let Some(timer) = events.take_due(&round) else {
                break;
            };
            fired += 1;
            held.call(|| timer(self))?;
        }
        self.set_timer_deadline();
        Ok(fired)
    }

    /// Tells those who want to know that the connection is over, if it is, unless another
    /// thread is about to.
    pub(super) fn tell_closed(&self) -> Result<()> {
        if !self.is_closed() {
            return Ok(());
        }
        let call_others = || self.inner.shared.call_watchers();
        match self.events().source.hold(&call_others) {
            Some(held) => self.tell_closed_if(&held),
            None => Ok(()),
        }
    }

    fn tell_closed_if(&self, held: &DispatchGuard<'_>) -> Result<()> {
        let Some(reason) = self.close_reason() else {
            return Ok(());
        };
        let events = self.events();
        events.clear();
        events.on_close.tell_last(held, self, &reason)
    }
}

impl Events {
    /// The next timer of `round`.
    fn take_due(&self, round: &Round) -> Option<Timer> {
        let mut timers = self.timers.lock();
        let timer = timers.take(round)?;
        self.note_count(&timers);
        Some(timer)
    }

    fn note_count(&self, timers: &Timers<Timer>) {
        let count = timers.len() as u64;
        self.timer_count.store(count, Ordering::Release);
    }

    /// Drops the callbacks that will not be called any more, outside of locks.
    fn clear(&self) {
        self.on_blocked.clear();
        self.on_unblocked.clear();
        self.on_backpressure.clear();
        let timers = self.timers.lock().clear();
        self.timer_count.store(0, Ordering::Release);
        drop(timers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::connection::tests::connection;

    #[test]
    fn an_error_of_a_callback_leaves_the_rest_to_those_who_are_told_that_there_is_some() {
        let connection = connection();
        let ready = connection.ready();
        connection.add_timeout(Duration::ZERO, |_| Err(Error::other("as a callback may")));
        connection.add_timeout(Duration::ZERO, |_| Ok(()));
        while ready.try_recv().is_ok() {}
        connection.dispatch_own(&|| false).unwrap_err();
        assert!(ready.try_recv().is_ok(), "there is another one");
        assert_eq!(connection.dispatch_own(&|| false).unwrap(), 1);
        assert!(ready.try_recv().is_err(), "there is nothing more");
    }
}
