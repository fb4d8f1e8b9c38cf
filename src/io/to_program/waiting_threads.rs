//! How many threads wait for something that only reading can bring.

use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(crate) struct WaitingThreads {
    /// For confirms, or for room.
    promised: AtomicUsize,
    /// For the confirm of one message; they are among the promised as well.
    confirms: AtomicUsize,
    /// For a delivery, where none is.
    deliveries: AtomicUsize,
}

/// A thread counts for as long as it holds this.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl WaitingThreads {
    pub(crate) fn wait(&self) -> Waiting<'_> {
        Waiting::new(&self.promised)
    }

    pub(crate) fn wait_for_confirm(&self) -> [Waiting<'_>; 2] {
        [&self.confirms, &self.promised].map(Waiting::new)
    }

    pub(crate) fn wait_for_delivery(&self) -> Waiting<'_> {
        Waiting::new(&self.deliveries)
    }

    /// Whether anybody waits for confirms or for room.
    pub(crate) fn is_promised(&self) -> bool {
        self.promised.load(Ordering::SeqCst) > 0
    }

    /// Whether anybody waits for the confirm of one message.
    pub(crate) fn is_confirm_awaited(&self) -> bool {
        self.confirms.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn is_delivery_awaited(&self) -> bool {
        self.deliveries.load(Ordering::SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_says_what_it_is_for_until_it_is_over() {
        let waiters = WaitingThreads::default();
        let awaited = || {
            [
                waiters.is_promised(),
                waiters.is_confirm_awaited(),
                waiters.is_delivery_awaited(),
            ]
        };
        let waiting = waiters.wait();
        assert_eq!(awaited(), [true, false, false]);
        drop(waiting);
        // It needs an IO thread that reads, as everything that is promised.
        let waiting = waiters.wait_for_confirm();
        assert_eq!(awaited(), [true, true, false]);
        drop(waiting);
        let waiting = waiters.wait_for_delivery();
        assert_eq!(awaited(), [false, false, true]);
        drop(waiting);
        assert_eq!(awaited(), [false; 3]);
    }
}
