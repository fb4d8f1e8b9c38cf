//! The callbacks of a connection, and the dispatching of its own callbacks.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::BlockingConnection;
use super::recovery::RecoveryEvent;
use crate::client::callbacks::dispatch_lock::{DispatchGuard, DispatchLock};
use crate::client::callbacks::list::CallbackList;
use crate::error::{Error, Result};
use crate::io::to_program::dispatch_signal::Signal;
use crate::protocol::wire::ShortString;

/// The callbacks of a connection.
#[derive(Default)]
pub(super) struct ConnectionCallbacks {
    /// Guards the dispatching of the callbacks and of the timers.
    lock: DispatchLock,
    on_close: CallbackList<BlockingConnection, Error>,
    on_blocked: CallbackList<BlockingConnection, ShortString>,
    on_unblocked: CallbackList<BlockingConnection, ()>,
    on_backpressure: CallbackList<BlockingConnection, usize>,
    pub(super) on_recovery: CallbackList<BlockingConnection, RecoveryEvent>,
    reported: Mutex<ReportedState>,
    pub(super) ready: OnceLock<Arc<Signal>>,
}

/// The state that the callbacks were last called with.
#[derive(Default)]
struct ReportedState {
    blocked: bool,
    backpressure: bool,
}

/// # Callbacks
///
/// Callbacks run only in threads that dispatch, that is inside of
/// [`run`](Self::run), [`sleep`](Self::sleep) and
/// [`process_data_events`](Self::process_data_events), and inside of
/// [`start_consuming`](crate::BlockingChannel::start_consuming) of a channel of this
/// connection. While no thread dispatches, no callback runs, and only the last state is kept: if
/// the connection was blocked and unblocked meanwhile, neither callback is called.
///
/// A callback may call every method of cony. If it returns an error, the dispatching call ends and
/// returns that error.
///
/// Callbacks are dropped when the connection is closed. A callback that captures a handle of its
/// own connection keeps that connection open, so use the handle that it is called with.
impl BlockingConnection {
    /// Calls `callback` once with the reason when the connection has ended.
    ///
    /// If this program closes the connection, the callback runs inside of [`close`](Self::close).
    /// Otherwise it runs in a thread that dispatches.
    pub fn add_on_close_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection, Error) -> Result<()> + Send + 'static,
    ) {
        self.callbacks()
            .on_close
            .add(move |connection, reason: &Error| callback(connection, reason.clone()));
        self.inner.shared.signal_own_event();
    }

    /// Calls `callback` with the broker's reason when the broker begins to block publishes, for
    /// lack of memory or disk. RabbitMQ blocks only connections that publish. (RabbitMQ, "Blocked
    /// Connection Notifications".)
    ///
    /// See also [`is_blocked`](Self::is_blocked) and
    /// [`blocked_connection_timeout`](crate::ConnectionParameters::blocked_connection_timeout).
    pub fn add_on_blocked_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection, ShortString) -> Result<()> + Send + 'static,
    ) {
        self.callbacks()
            .on_blocked
            .add(move |connection, reason: &ShortString| callback(connection, reason.clone()));
        self.inner.shared.signal_own_event();
    }

    /// Calls `callback` when the broker no longer blocks publishes.
    pub fn add_on_unblocked_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection) -> Result<()> + Send + 'static,
    ) {
        self.callbacks()
            .on_unblocked
            .add(move |connection, ()| callback(connection));
    }

    /// Calls `callback` when publishes are produced faster than the broker or the network takes
    /// them: when more bytes wait to be written than ten frames of mean size have. The callback
    /// gets the number of waiting bytes.
    ///
    /// This needs the parameter
    /// [`backpressure_detection`](crate::ConnectionParameters::backpressure_detection).
    /// [`set_backpressure_multiplier`](Self::set_backpressure_multiplier) changes the number of
    /// frames. It is only a report: the [`write_budget`](crate::ConnectionParameters::write_budget)
    /// bounds the waiting bytes in any case. The name is that of pika.
    pub fn add_backpressure_callback(
        &self,
        mut callback: impl FnMut(&BlockingConnection, usize) -> Result<()> + Send + 'static,
    ) {
        self.callbacks()
            .on_backpressure
            .add(move |connection, waiting: &usize| callback(connection, *waiting));
        self.inner.shared.signal_own_event();
    }

    /// Sets how many frames of mean size may wait before
    /// [`add_backpressure_callback`](Self::add_backpressure_callback) reports it. Default: 10.
    pub fn set_backpressure_multiplier(&self, multiplier: usize) {
        self.inner.shared.backpressure.set_multiplier(multiplier);
    }

    pub(super) fn callbacks(&self) -> &ConnectionCallbacks {
        &self.inner.callbacks
    }

    /// Returns the time until which a dispatching thread may wait for its signal. `None` if no
    /// timer is pending, or if another thread, or an outer call of this one, dispatches them.
    pub(crate) fn next_turn(&self) -> Option<Instant> {
        let when = self.next_timeout()?;
        self.callbacks().lock.is_free().then_some(when)
    }

    /// Runs the callbacks for the events of the connection itself, and the timers that are due.
    /// Returns the number of callbacks.
    pub(crate) fn dispatch_own(&self, is_over: &dyn Fn() -> bool) -> Result<usize> {
        let shared = &self.inner.shared;
        let is_due = || {
            self.next_timeout()
                .is_some_and(|when| when <= Instant::now())
        };
        if !shared.has_own_event() && !is_due() {
            return Ok(0);
        }
        let callbacks = self.callbacks();
        // If another thread has the lock, it dispatches these events too.
        let call_others = || shared.wake_dispatchers();
        let Some(guard) = callbacks.lock.hold(&call_others) else {
            return Ok(0);
        };
        let outcome = self.dispatch_under(&guard, is_over);
        drop(guard);
        if outcome.is_err() {
            // The error may have left events behind, for the next dispatching call.
            shared.signal_own_event();
        }
        // A `close` in another thread could not take the dispatch lock meanwhile, so this thread
        // runs the close callbacks.
        let closed = self.call_close_callbacks();
        outcome.and_then(|dispatched| closed.map(|()| dispatched))
    }

    fn dispatch_under(
        &self,
        guard: &DispatchGuard<'_>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<usize> {
        self.inner.shared.clear_own_event();
        let changes = self.call_state_callbacks(guard)? + self.call_recovery_callbacks(guard)?;
        let timers = self.run_timers(guard, is_over)?;
        self.call_close_callbacks_under(guard)?;
        Ok(changes + timers)
    }

    /// Runs the callbacks for a state that differs from the one they were last called with.
    fn call_state_callbacks(&self, guard: &DispatchGuard<'_>) -> Result<usize> {
        let callbacks = self.callbacks();
        let (blocked, backpressure) = (
            self.blocked_reason(),
            self.inner.shared.backpressure.is_on(),
        );
        let mut reported = callbacks.reported.lock();
        let was_blocked = std::mem::replace(&mut reported.blocked, blocked.is_some());
        let had_backpressure = std::mem::replace(&mut reported.backpressure, backpressure);
        drop(reported);
        let mut changes = 0;
        match blocked {
            Some(reason) if !was_blocked => {
                callbacks.on_blocked.call_all(guard, self, &reason)?;
                changes += 1;
            }
            None if was_blocked => {
                callbacks.on_unblocked.call_all(guard, self, &())?;
                changes += 1;
            }
            _ => {}
        }
        if backpressure && !had_backpressure {
            let waiting = self.inner.shared.commands().waiting_bytes();
            callbacks.on_backpressure.call_all(guard, self, &waiting)?;
            changes += 1;
        }
        Ok(changes)
    }

    /// Runs the close callbacks if the connection has ended, unless another thread dispatches.
    pub(super) fn call_close_callbacks(&self) -> Result<()> {
        if !self.is_closed() {
            return Ok(());
        }
        let call_others = || self.inner.shared.wake_dispatchers();
        match self.callbacks().lock.hold(&call_others) {
            Some(guard) => self.call_close_callbacks_under(&guard),
            None => Ok(()),
        }
    }

    fn call_close_callbacks_under(&self, guard: &DispatchGuard<'_>) -> Result<()> {
        let Some(reason) = self.close_reason() else {
            return Ok(());
        };
        let callbacks = self.callbacks();
        // The last event of recovery may still wait.
        let recovery = match self.inner.shared.recovery.failure() {
            Some(_) => self.call_recovery_callbacks(guard).map(drop),
            None => Ok(()),
        };
        callbacks.clear();
        self.inner.timers.clear();
        let closed = callbacks.on_close.call_all_once(guard, self, &reason);
        recovery.and(closed)
    }
}

/// # For programs that come from pika
impl BlockingConnection {
    /// Calls `callback` once, as soon as a thread dispatches.
    ///
    /// The connection is open already when [`open`](Self::open) returns. This method is there for
    /// programs that come from pika, where the callback reports the opening.
    pub fn add_on_open_callback(
        &self,
        callback: impl FnOnce(&BlockingConnection) -> Result<()> + Send + 'static,
    ) {
        self.add_timeout(Duration::ZERO, callback);
    }
}

impl ConnectionCallbacks {
    /// Drops the callbacks that cannot be called any more, that is all but those for the end.
    fn clear(&self) {
        self.on_blocked.clear();
        self.on_unblocked.clear();
        self.on_backpressure.clear();
        self.on_recovery.clear();
    }
}
