//! A line of threads that wait for the same resource, each woken separately.
//!
//! With one condition variable for all threads, each piece of the resource would wake all of them,
//! but only the first thread could take it; the others would sleep again. With many threads this
//! costs several times as much as the work itself. So each thread sleeps on a condition variable of
//! its own, and is woken once, when it has got its claim.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, MutexGuard};

/// Why a wait has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitError {
    TimedOut,
    Closed,
}

/// The waiting threads, in the order in which they are served. The line is kept under a lock.
#[derive(Debug)]
pub(crate) struct WaitingLine<W>(VecDeque<Arc<Waiter<W>>>);

/// A thread in the line.
#[derive(Debug)]
pub(crate) struct Waiter<W> {
    claim: W,
    /// Whether the thread has got its claim, and has left the line. Changed under the lock of the
    /// line.
    is_served: AtomicBool,
    changed: Condvar,
}

impl<W> Default for WaitingLine<W> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<W> WaitingLine<W> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds the calling thread at the end of the line.
    pub(crate) fn join(&mut self, claim: W) -> Arc<Waiter<W>> {
        self.join_at(self.0.len(), claim)
    }

    fn join_at(&mut self, index: usize, claim: W) -> Arc<Waiter<W>> {
        let waiter = Arc::new(Waiter {
            claim,
            is_served: AtomicBool::new(false),
            changed: Condvar::new(),
        });
        self.0.insert(index, Arc::clone(&waiter));
        waiter
    }

    /// Wakes threads from the front of the line, as long as `serve` returns that it has reserved
    /// the claim.
    pub(crate) fn serve_while(&mut self, mut serve: impl FnMut(&W) -> bool) {
        while let Some(first) = self.0.front() {
            if !serve(&first.claim) {
                return;
            }
            self.serve_first();
        }
    }

    /// Wakes the first thread in the line as served.
    pub(crate) fn serve_first(&mut self) {
        if let Some(first) = self.0.pop_front() {
            first.is_served.store(true, Ordering::Relaxed);
            first.changed.notify_one();
        }
    }

    /// Removes a thread from the line that was not served.
    pub(crate) fn leave(&mut self, waiter: &Arc<Waiter<W>>) {
        self.0.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    /// Wakes all threads in the line, so that each calls its `is_pointless` again.
    pub(crate) fn wake_to_recheck(&self) {
        for waiter in &self.0 {
            waiter.changed.notify_one();
        }
    }
}

impl<W: Ord> WaitingLine<W> {
    /// Adds the calling thread in front of the threads with larger claims.
    pub(crate) fn join_in_order(&mut self, claim: W) -> Arc<Waiter<W>> {
        let index = self.0.partition_point(|other| other.claim <= claim);
        self.join_at(index, claim)
    }
}

impl<W> Waiter<W> {
    pub(crate) fn claim(&self) -> &W {
        &self.claim
    }

    pub(crate) fn is_served(&self) -> bool {
        self.is_served.load(Ordering::Relaxed)
    }

    /// Waits until the thread is served. `guard` is the lock of the line. `is_pointless` is called
    /// before each sleep. After an error the thread is still in the line.
    pub(crate) fn wait<S>(
        &self,
        guard: &mut MutexGuard<'_, S>,
        deadline: Option<Instant>,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        wait_until(&self.changed, guard, deadline, is_pointless, || {
            self.is_served()
        })
    }
}

/// Waits on `changed` until `is_done` returns `true`.
pub(crate) fn wait_until<S>(
    changed: &Condvar,
    guard: &mut MutexGuard<'_, S>,
    deadline: Option<Instant>,
    is_pointless: impl Fn() -> bool,
    is_done: impl Fn() -> bool,
) -> Result<(), WaitError> {
    loop {
        if is_done() {
            return Ok(());
        }
        if is_pointless() {
            return Err(WaitError::Closed);
        }
        match deadline {
            None => changed.wait(guard),
            Some(deadline) => {
                if changed.wait_until(guard, deadline).timed_out() && !is_done() {
                    return Err(WaitError::TimedOut);
                }
            }
        }
    }
}
