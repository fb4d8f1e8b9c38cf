//! The read budget of the connection: waiting and held-back deliveries, and their requeuing.

use std::time::Instant;

use super::super::event::Tokens;
use super::Connection;

impl<T: Tokens> Connection<T> {
    /// Returns whether a requeued delivery is expected again, or deliveries that the broker sent
    /// earlier may still arrive.
    pub(crate) fn is_expecting(&self) -> bool {
        self.router.held_back_deadline().is_some()
    }

    /// Returns the size of the contents of which a part has arrived, in bytes.
    pub(crate) fn announced(&self) -> usize {
        self.router.out.room.announced()
    }

    /// Returns whether more deliveries wait than the read budget allows.
    pub(crate) fn is_full(&self) -> bool {
        self.router.out.room.is_full()
    }

    /// Sets the size of the deliveries that wait in inboxes, in bytes. Call it before
    /// [`received`](Self::received), when all events have been taken.
    pub(crate) fn set_untaken_bytes(&mut self, bytes: usize) {
        let out = &mut self.router.out;
        let all_reported = out.events.is_empty();
        out.room.set_untaken_bytes(bytes, all_reported);
    }

    /// Returns whether deliveries are held back, or requeued and expected again.
    pub(crate) fn is_holding_back(&self) -> bool {
        !self.router.out.held_back_channels.is_empty()
    }

    /// Requeues held-back deliveries for which there is room again.
    pub(crate) fn requeue_held(&mut self, now: Instant) {
        self.router.out.room.set_now(now);
        self.router.give_up_strays();
        while self.is_holding_back() {
            let mut any = false;
            for number in self.router.channels_holding_back() {
                self.router.with_number(number, |channel, out| {
                    any |= channel.requeue_some(out);
                });
            }
            if !any {
                return;
            }
        }
    }

    /// Returns whether [`requeue_held`](Self::requeue_held) would requeue a delivery.
    pub(crate) fn can_requeue(&self) -> bool {
        let router = &self.router;
        let mut holding = router.out.held_back_channels.iter();
        holding.any(|number| {
            let channel = router.channel(*number);
            channel.is_some_and(|channel| channel.can_requeue(&router.out))
        })
    }

    /// Returns the number of untaken bytes below which [`requeue_held`](Self::requeue_held) may
    /// requeue a delivery; 0 if none is held back.
    pub(crate) fn requeues_below(&self) -> usize {
        let router = &self.router;
        let holding = router.out.held_back_channels.iter();
        let channels = holding.filter_map(|number| router.channel(*number));
        channels
            .filter_map(|channel| channel.fits_below(&router.out))
            .max()
            .unwrap_or_default()
    }
}
