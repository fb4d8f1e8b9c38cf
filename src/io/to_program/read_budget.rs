//! The read budget: bounds the deliveries that are received and not yet taken, in bytes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::protocol::content::ReturnedContent;
use crate::protocol::read_room::{MESSAGE_OVERHEAD_BYTES, reserved_share};

/// The bytes of the deliveries that were received and not yet taken.
///
/// Above the soft limit the IO thread pauses reading, unless a thread waits for an event that only
/// reading can bring. Above the hard limit, which is twice the soft limit, deliveries are held back
/// (see `protocol/held_deliveries.rs`). *Fixed* deliveries cannot be held back, and only they stop
/// reading unconditionally.
///
/// Incomplete messages count with their whole size. But only reading can complete them, so a
/// quarter of the room stays reserved for complete ones. Otherwise, beside large incomplete
/// messages, a few untaken deliveries would stop the reading that completes them (D42).
#[derive(Debug)]
pub(crate) struct ReadBudget {
    soft_limit: usize,
    bytes: AtomicUsize,
    /// The bytes of the fixed deliveries among them.
    fixed: AtomicUsize,
    /// The wake bound: the IO thread is woken when fewer bytes are untaken; 0 stands for never.
    wake_below: AtomicUsize,
    /// Whether each taken delivery is reported at once, because every byte counts.
    must_report_at_once: AtomicBool,
    paused: AtomicBool,
    /// Whether the IO thread rests, so that consuming threads can catch up.
    resting: AtomicBool,
}

/// Why reading must pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PauseReason {
    /// The soft limit is exceeded, and no thread waits for received bytes.
    SoftLimit,
    /// The hard limit is exceeded by deliveries that cannot be held back.
    FixedDeliveries,
}

/// The state on which a reading pause depends, beside the untaken bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ReadState {
    /// Whether reading is paused already. It goes on when a quarter of the room is free.
    pub(crate) is_paused: bool,
    /// Whether a thread waits for an event that only reading can bring.
    pub(crate) is_awaited: bool,
    /// The whole size of the incomplete messages, in bytes.
    pub(crate) announced: usize,
}

/// With more untaken bytes than this the IO thread rests for a moment, if it may. Bytes that stay
/// in memory for long have left the caches of the processors, and a consuming thread may need the
/// processor of the IO thread.
const REST_ABOVE_BYTES: usize = 2 * 1024 * 1024;

impl ReadBudget {
    pub(crate) fn new(soft_limit: usize) -> Self {
        Self {
            soft_limit,
            bytes: AtomicUsize::new(0),
            fixed: AtomicUsize::new(0),
            wake_below: AtomicUsize::new(0),
            must_report_at_once: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        }
    }

    pub(crate) fn soft_limit(&self) -> usize {
        self.soft_limit
    }

    /// Returns the cost of a message that is not in a batch.
    pub(crate) fn cost(content: &ReturnedContent) -> usize {
        // The buffer of the body may contain the encoded properties as well.
        let properties = 2 * content.properties.len();
        content.body.len() + properties + MESSAGE_OVERHEAD_BYTES
    }

    /// Adds deliveries of this cost; `fixed` bytes of it are of fixed deliveries.
    pub(crate) fn add(&self, cost: usize, fixed: usize) {
        self.bytes.fetch_add(cost, Ordering::SeqCst);
        if fixed > 0 {
            self.fixed.fetch_add(fixed, Ordering::SeqCst);
        }
    }

    /// Returns how many bytes of deliveries are not taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Removes deliveries of this cost; `fixed` bytes of it are of fixed deliveries. Returns `true`
    /// if the IO thread waits for this room and must be woken.
    #[must_use]
    pub(crate) fn remove(&self, cost: usize, fixed: usize) -> bool {
        if fixed > 0 {
            self.fixed.fetch_sub(fixed, Ordering::SeqCst);
        }
        let left = self.bytes.fetch_sub(cost, Ordering::SeqCst) - cost;
        let is_first =
            |flag: &AtomicBool| flag.load(Ordering::SeqCst) && flag.swap(false, Ordering::SeqCst);
        left < self.wake_below.load(Ordering::SeqCst)
            && self.wake_below.swap(0, Ordering::SeqCst) > 0
            || left <= REST_ABOVE_BYTES / 2 && is_first(&self.resting)
    }

    /// Begins a rest if there are enough untaken bytes, and returns whether it has begun. The IO
    /// thread is woken when half of the bound is taken, or when a thread begins to wait.
    pub(crate) fn begin_rest(&self) -> bool {
        let rests = self.bytes() > REST_ABOVE_BYTES;
        if rests {
            self.resting.store(true, Ordering::SeqCst);
        }
        rests
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.resting.load(Ordering::SeqCst)
    }

    /// Ends the rest.
    pub(crate) fn end_rest(&self) {
        self.resting.store(false, Ordering::SeqCst);
    }

    /// Returns whether the IO thread is in a reading pause, or about to begin one.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Returns whether each taken delivery must be reported at once.
    pub(crate) fn must_report_at_once(&self) -> bool {
        self.must_report_at_once.load(Ordering::SeqCst)
    }

    /// Sets the wake bound: the IO thread is woken when fewer bytes than `below` are untaken; 0
    /// stands for never. `is_paused` is whether the IO thread stops reading until then.
    ///
    /// Returns `true` if each taken delivery must be reported at once from now on, and was not
    /// before. The caller then reports the deliveries that were taken earlier.
    pub(crate) fn set_wake_bound(&self, below: usize, is_paused: bool) -> bool {
        if below == 0 && !self.must_report_at_once() {
            return false;
        }
        self.paused.store(is_paused, Ordering::SeqCst);
        self.wake_below.store(below, Ordering::SeqCst);
        !self.must_report_at_once.swap(below > 0, Ordering::SeqCst)
    }

    /// Returns the part of `limit` for complete messages.
    fn room(limit: usize, announced: usize) -> usize {
        limit.saturating_sub(announced).max(limit / 4)
    }

    /// Returns why reading must pause now, and the number of untaken bytes below which it may go
    /// on.
    pub(crate) fn reason_to_pause(&self, state: ReadState) -> Option<(PauseReason, usize)> {
        let bytes = self.bytes();
        if bytes <= self.soft_limit / 4 {
            return None;
        }
        let hard = self.soft_limit.saturating_mul(2);
        if bytes > Self::room(hard, state.announced)
            && self.fixed.load(Ordering::SeqCst) > reserved_share(self.soft_limit)
        {
            // Every taken delivery wakes the IO thread, because it may be a fixed one whose room is
            // enough.
            return Some((PauseReason::FixedDeliveries, usize::MAX));
        }
        let enough = Self::room(self.soft_limit - self.soft_limit / 4, state.announced);
        let limit = match state.is_paused {
            true => enough,
            false => Self::room(self.soft_limit, state.announced),
        };
        (!state.is_awaited && bytes > limit).then_some((PauseReason::SoftLimit, enough + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: ReadState = ReadState {
        is_paused: false,
        is_awaited: false,
        announced: 0,
    };
    const PAUSED: ReadState = ReadState {
        is_paused: true,
        ..READING
    };
    const AWAITED: ReadState = ReadState {
        is_awaited: true,
        ..READING
    };

    fn with_announced(state: ReadState, announced: usize) -> ReadState {
        ReadState { announced, ..state }
    }

    #[test]
    fn a_pause_lasts_until_a_quarter_of_the_soft_limit_is_free_or_a_thread_waits() {
        let read_budget = ReadBudget::new(1000);
        read_budget.add(1000, 0);
        assert_eq!(read_budget.reason_to_pause(READING), None);
        read_budget.add(1, 0);
        assert_eq!(read_budget.reason_to_pause(AWAITED), None);
        assert_eq!(
            read_budget.reason_to_pause(READING),
            Some((PauseReason::SoftLimit, 751))
        );
        assert!(read_budget.set_wake_bound(751, true) && read_budget.is_paused());
        assert!(!read_budget.remove(250, 0), "751 are left");
        assert!(read_budget.reason_to_pause(PAUSED).is_some());
        assert!(read_budget.remove(1, 0));
        assert!(!read_budget.remove(1, 0), "the IO thread is woken once");
        assert_eq!(read_budget.reason_to_pause(PAUSED), None);
    }

    #[test]
    fn only_fixed_deliveries_stop_reading_while_a_thread_waits() {
        let read_budget = ReadBudget::new(1000);
        read_budget.add(2500, 125);
        assert_eq!(read_budget.reason_to_pause(AWAITED), None);
        read_budget.add(1, 1);
        let stop = Some((PauseReason::FixedDeliveries, usize::MAX));
        assert_eq!(read_budget.reason_to_pause(AWAITED), stop);
        assert!(read_budget.set_wake_bound(usize::MAX, true));
        assert!(read_budget.remove(500, 0));
        assert_eq!(read_budget.reason_to_pause(AWAITED), stop);
        read_budget.set_wake_bound(usize::MAX, true);
        assert!(read_budget.remove(1, 1));
        assert_eq!(read_budget.reason_to_pause(AWAITED), None);
    }

    #[test]
    fn a_rest_begins_above_a_bound_and_ends_at_half_of_it() {
        let read_budget = ReadBudget::new(4 * REST_ABOVE_BYTES);
        read_budget.add(REST_ABOVE_BYTES, 0);
        assert!(!read_budget.begin_rest() && !read_budget.is_resting());
        read_budget.add(1, 0);
        assert!(read_budget.begin_rest() && read_budget.is_resting());
        assert!(
            !read_budget.remove(REST_ABOVE_BYTES / 2, 0),
            "one byte too many is left"
        );
        assert!(read_budget.remove(1, 0));
        assert!(!read_budget.remove(1, 0), "the IO thread is woken once");
        read_budget.add(REST_ABOVE_BYTES, 0);
        assert!(read_budget.begin_rest());
        read_budget.end_rest();
        assert!(!read_budget.remove(REST_ABOVE_BYTES, 0), "the rest is over");
    }

    #[test]
    fn incomplete_messages_take_room_but_not_the_last_quarter() {
        let read_budget = ReadBudget::new(1000);
        read_budget.add(400, 0);
        assert_eq!(
            read_budget.reason_to_pause(with_announced(READING, 600)),
            None
        );
        let stop = Some((PauseReason::SoftLimit, 188));
        assert_eq!(
            read_budget.reason_to_pause(with_announced(READING, 601)),
            Some((PauseReason::SoftLimit, 188))
        );
        assert!(
            read_budget
                .reason_to_pause(with_announced(PAUSED, 561))
                .is_some()
        );
        assert!(!read_budget.remove(150, 0));
        assert_eq!(
            read_budget.reason_to_pause(with_announced(READING, usize::MAX)),
            None,
            "{stop:?}"
        );
    }
}
