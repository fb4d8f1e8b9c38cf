//! A line of threads that wait for the same kind of thing, each woken on its own.
//!
//! With one condition for all of them, each bit that comes wakes all for what only the first
//! can have; the others find nothing and sleep again. With many threads that costs several
//! times what it brings. So each sleeps on a condition of its own, and is woken once, with what
//! it waits for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, MutexGuard};

/// Why a wait was in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitError {
    TimedOut,
    Closed,
}

/// Those who wait, in the order in which they are served. Lives under a lock.
#[derive(Debug)]
pub(crate) struct WaitingLine<W>(VecDeque<Arc<Waiter<W>>>);

/// A thread in the line.
#[derive(Debug)]
pub(crate) struct Waiter<W> {
    wants: W,
    /// Whether it has got that, and has left the line. Changed under the lock of the line.
    is_served: AtomicBool,
    moved: Condvar,
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

    /// Joins the line at its end.
    pub(crate) fn join(&mut self, wants: W) -> Arc<Waiter<W>> {
        self.join_at(self.0.len(), wants)
    }

    fn join_at(&mut self, index: usize, wants: W) -> Arc<Waiter<W>> {
        let waiter = Arc::new(Waiter {
            wants,
            is_served: AtomicBool::new(false),
            moved: Condvar::new(),
        });
        self.0.insert(index, Arc::clone(&waiter));
        waiter
    }

    /// Serves the first ones, as long as `serve` says that there is what they want, and wakes
    /// them.
    pub(crate) fn serve_while(&mut self, mut serve: impl FnMut(&W) -> bool) {
        while let Some(first) = self.0.front() {
            if !serve(&first.wants) {
                return;
            }
            self.serve_first();
        }
    }

    /// Serves the first one, if there is one, and wakes it.
    pub(crate) fn serve_first(&mut self) {
        if let Some(first) = self.0.pop_front() {
            first.is_served.store(true, Ordering::Relaxed);
            first.moved.notify_one();
        }
    }

    /// Leaves without having been served.
    pub(crate) fn leave(&mut self, waiter: &Arc<Waiter<W>>) {
        self.0.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    /// Lets everyone ask whether its wait still has a point.
    pub(crate) fn look_again(&self) {
        for waiter in &self.0 {
            waiter.moved.notify_one();
        }
    }
}

impl<W: Ord> WaitingLine<W> {
    /// Joins the line before those who want more.
    pub(crate) fn join_in_order(&mut self, wants: W) -> Arc<Waiter<W>> {
        let index = self.0.partition_point(|other| other.wants <= wants);
        self.join_at(index, wants)
    }
}

impl<W> Waiter<W> {
    pub(crate) fn wants(&self) -> &W {
        &self.wants
    }

    pub(crate) fn is_served(&self) -> bool {
        self.is_served.load(Ordering::Relaxed)
    }

    /// Waits until it is served; `guard` is that of the line. `is_pointless` is asked before
    /// each sleep. After an error it is in the line still.
    pub(crate) fn wait<S>(
        &self,
        guard: &mut MutexGuard<'_, S>,
        deadline: Option<Instant>,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        wait_until(&self.moved, guard, deadline, is_pointless, || {
            self.is_served()
        })
    }
}

/// Waits on `moved` until `is_done`.
pub(crate) fn wait_until<S>(
    moved: &Condvar,
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
            None => moved.wait(guard),
            Some(deadline) => {
                if moved.wait_until(guard, deadline).timed_out() && !is_done() {
                    return Err(WaitError::TimedOut);
                }
            }
        }
    }
}
