//! The state by which the program's threads influence whether the IO thread reads.

use std::sync::Arc;

use crate::io::to_io::wake::Wake;
use crate::io::to_program::read_budget::ReadBudget;
use crate::io::to_program::waiting_threads::{Waiting, WaitingThreads};

/// The read budget, the threads that wait for an event that only reading can bring, and the wake-up
/// of the IO thread. Each inbox of a connection has a reference to it.
#[derive(Debug)]
pub(crate) struct ReadControl {
    pub(crate) budget: ReadBudget,
    pub(crate) threads: WaitingThreads,
    wake: Arc<Wake>,
}

impl ReadControl {
    pub(crate) fn new(soft_limit: usize, wake: Arc<Wake>) -> Self {
        Self {
            budget: ReadBudget::new(soft_limit),
            threads: WaitingThreads::default(),
            wake,
        }
    }

    /// Counts the calling thread among those that wait for a delivery, until the guard is dropped.
    /// The thread has found an empty inbox. A reading pause would last until other threads have
    /// taken their deliveries, so the IO thread is woken to end it.
    pub(crate) fn count_as_waiting_for_delivery(&self) -> Waiting<'_> {
        let waiting = self.threads.count_as_waiting_for_delivery();
        if self.budget.is_paused() {
            self.wake.notify();
        }
        waiting
    }

    /// Counts the calling thread as one that spins for a delivery, until the guards are dropped.
    pub(crate) fn count_as_spinning_for_delivery(&self) -> [Waiting<'_>; 2] {
        [
            self.count_as_waiting_for_delivery(),
            self.threads.count_as_spinning(),
        ]
    }

    /// Frees room in the read budget, because the program has taken deliveries of this cost.
    /// `fixed` bytes of the cost are those of fixed deliveries.
    pub(crate) fn handed_out(&self, cost: usize, fixed: usize) {
        if self.budget.remove(cost, fixed) {
            self.wake.notify();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the read control of a connection whose IO thread has ended.
    pub(crate) fn read_control(soft_limit: usize) -> Arc<ReadControl> {
        let poll = mio::Poll::new().unwrap();
        let waker = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap());
        Arc::new(ReadControl::new(soft_limit, Arc::new(Wake::with(&waker))))
    }
}
