//! Deliveries that wait to be taken or are held back, and when those go back.

use std::time::Instant;

use super::super::event::Tokens;
use super::Connection;

impl<T: Tokens> Connection<T> {
    /// Whether something that was given back is to come again, or it is yet to be seen whether more
    /// is on its way.
    pub(crate) fn is_expecting(&self) -> bool {
        self.router.holding_deadline().is_some()
    }

    /// The room that the messages will take of which a part is here, in bytes.
    pub(crate) fn announced(&self) -> usize {
        self.router.out.room.announced()
    }

    /// Whether more waits to be taken than may.
    pub(crate) fn is_full(&self) -> bool {
        self.router.out.room.is_full()
    }

    /// Says how many bytes of deliveries wait to be taken. To be said before bytes are
    /// [`received`](Self::received), with all events told.
    pub(crate) fn set_waiting(&mut self, bytes: usize) {
        let out = &mut self.router.out;
        let all_told = out.events.is_empty();
        out.room.set_waiting(bytes, all_told);
    }

    /// Whether deliveries are held back, or expected after that.
    pub(crate) fn is_holding(&self) -> bool {
        !self.router.out.holding.is_empty()
    }

    /// Gives back what was held back, as far as there is room for it again.
    pub(crate) fn requeue_held(&mut self, now: Instant) {
        self.router.out.room.set_now(now);
        self.router.give_up_strays();
        while self.is_holding() {
            let mut any = false;
            for number in self.router.holding() {
                self.router.with_number(number, |channel, out| {
                    any |= channel.requeue_some(out);
                });
            }
            if !any {
                return;
            }
        }
    }

    /// Whether [`requeue_held`](Self::requeue_held) would do something.
    pub(crate) fn can_requeue(&self) -> bool {
        let router = &self.router;
        let mut holding = router.out.holding.iter();
        holding.any(|number| {
            let channel = router.channel(*number);
            channel.is_some_and(|channel| channel.can_requeue(&router.out))
        })
    }

    /// With fewer bytes than this that wait to be taken, [`requeue_held`](Self::requeue_held) may
    /// have something to do; 0 if nothing is held back.
    pub(crate) fn requeues_below(&self) -> usize {
        let router = &self.router;
        let holding = router.out.holding.iter();
        let channels = holding.filter_map(|number| router.channel(*number));
        channels
            .filter_map(|channel| channel.fits_below(&router.out))
            .max()
            .unwrap_or_default()
    }
}
