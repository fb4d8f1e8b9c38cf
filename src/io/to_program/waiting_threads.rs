//! Counts the threads that wait for an event that only reading can bring.

use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(crate) struct WaitingThreads {
    /// The threads that wait for confirms or for room.
    room_or_confirm: AtomicUsize,
    /// The threads that wait for the confirm of one publish. They count in `room_or_confirm` as
    /// well.
    single_confirm: AtomicUsize,
    /// The threads that wait for a delivery at an empty inbox.
    delivery: AtomicUsize,
    /// The threads that spin for a place in a confirm window or for a delivery.
    spinning: AtomicUsize,
}

/// Counts its thread as waiting until it is dropped.
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
    pub(crate) fn count_as_waiting_for_room_or_confirm(&self) -> Waiting<'_> {
        Waiting::new(&self.room_or_confirm)
    }

    pub(crate) fn count_as_waiting_for_confirm(&self) -> [Waiting<'_>; 2] {
        [&self.single_confirm, &self.room_or_confirm].map(Waiting::new)
    }

    pub(crate) fn count_as_waiting_for_delivery(&self) -> Waiting<'_> {
        Waiting::new(&self.delivery)
    }

    pub(crate) fn count_as_spinning(&self) -> Waiting<'_> {
        Waiting::new(&self.spinning)
    }

    /// Returns whether a thread waits for confirms or for room.
    pub(crate) fn is_room_or_confirm_awaited(&self) -> bool {
        self.room_or_confirm.load(Ordering::SeqCst) > 0
    }

    /// Returns whether a thread waits for the confirm of one publish.
    pub(crate) fn is_confirm_awaited(&self) -> bool {
        self.single_confirm.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn is_delivery_awaited(&self) -> bool {
        self.delivery.load(Ordering::SeqCst) > 0
    }

    /// Returns whether a thread spins for a place in a confirm window or for a delivery.
    pub(crate) fn are_spinning(&self) -> bool {
        self.spinning.load(Ordering::SeqCst) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_counts_for_its_purpose_until_it_is_over() {
        let threads = WaitingThreads::default();
        let awaited = || {
            [
                threads.is_room_or_confirm_awaited(),
                threads.is_confirm_awaited(),
                threads.is_delivery_awaited(),
                threads.are_spinning(),
            ]
        };
        let waiting = threads.count_as_waiting_for_room_or_confirm();
        assert_eq!(awaited(), [true, false, false, false]);
        drop(waiting);
        // A wait for one confirm needs an IO thread that reads, like all waits for confirms.
        let waiting = threads.count_as_waiting_for_confirm();
        assert_eq!(awaited(), [true, true, false, false]);
        drop(waiting);
        let waiting = threads.count_as_waiting_for_delivery();
        assert_eq!(awaited(), [false, false, true, false]);
        drop(waiting);
        let spinning = threads.count_as_spinning();
        assert_eq!(awaited(), [false, false, false, true]);
        drop(spinning);
        assert_eq!(awaited(), [false; 4]);
    }
}
