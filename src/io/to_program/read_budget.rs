//! The bound of what was received and not yet handed out, in bytes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::protocol::content::ReturnedContent;
use crate::protocol::read_room::{MESSAGE_OVERHEAD_BYTES, reserved_share};

/// What was received and not yet handed out.
///
/// Past the soft limit the IO thread pauses, unless somebody waits for something that only
/// reading can bring. Past the hard limit, twice that, deliveries are held back (see
/// `protocol/holding.rs`). Some cannot be: they are *fixed*, and only those stop reading in any
/// case.
///
/// Messages of which a part is here take room as well, for whole ones. But only reading can
/// make them whole, so a quarter of the room stays for what was received: else a few
/// deliveries that one thread leaves lying would end large messages for all others.
#[derive(Debug)]
pub(crate) struct ReadBudget {
    soft_limit: usize,
    bytes: AtomicUsize,
    /// How much of that is fixed.
    fixed: AtomicUsize,
    /// The IO thread is woken when less than this waits; 0 is never.
    wake_below: AtomicUsize,
    /// Whether that depends on every byte, so that what is taken is reported at once.
    watched: AtomicBool,
    paused: AtomicBool,
    /// The IO thread lets those catch up who take.
    resting: AtomicBool,
}

/// Why nothing is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The soft limit is exceeded, and nobody waits.
    Soft,
    /// The hard limit is, by deliveries that cannot be held back.
    Fixed,
}

/// With more bytes than this the IO thread rests for a moment, if it may: what lies long in memory
/// has left the caches of the processors, and a thread that takes may want the one that this
/// runs on.
const REST_ABOVE_BYTES: usize = 2 * 1024 * 1024;

impl ReadBudget {
    pub(crate) fn new(soft_limit: usize) -> Self {
        Self {
            soft_limit,
            bytes: AtomicUsize::new(0),
            fixed: AtomicUsize::new(0),
            wake_below: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        }
    }

    pub(crate) fn soft_limit(&self) -> usize {
        self.soft_limit
    }

    /// What a message takes that stands for itself.
    pub(crate) fn cost(content: &ReturnedContent) -> usize {
        // They may still be in front of the body as well.
        let properties = 2 * content.properties.len();
        content.body.len() + properties + MESSAGE_OVERHEAD_BYTES
    }

    /// Adds deliveries, of which so much is `fixed`.
    pub(crate) fn add(&self, cost: usize, fixed: usize) {
        self.bytes.fetch_add(cost, Ordering::SeqCst);
        if fixed > 0 {
            self.fixed.fetch_add(fixed, Ordering::SeqCst);
        }
    }

    /// How much waits to be taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Takes `cost` off, of which so much is `fixed`. `true`: the IO thread waits for this and
    /// should be woken.
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

    /// Whether so much waits that the IO thread should rest for a moment. From now on it is
    /// woken when half is taken, and by who begins to wait.
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

    /// The IO thread rests no more.
    pub(crate) fn end_rest(&self) {
        self.resting.store(false, Ordering::SeqCst);
    }

    /// Whether the IO thread does not read, or is about not to.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Whether what is taken has to be reported at once.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst)
    }

    /// Says what the IO thread waits for: that less than this many bytes wait to be taken,
    /// 0 for nothing; and whether it does not read until then. `true` if this is the first
    /// time that every byte counts: what was taken before is to be reported now.
    pub(crate) fn wait_for(&self, below: usize, is_paused: bool) -> bool {
        if below == 0 && !self.is_watched() {
            return false;
        }
        self.paused.store(is_paused, Ordering::SeqCst);
        self.wake_below.store(below, Ordering::SeqCst);
        !self.watched.swap(below > 0, Ordering::SeqCst)
    }

    /// What `limit` leaves for whole messages.
    fn room(limit: usize, announced: usize) -> usize {
        limit.saturating_sub(announced).max(limit / 4)
    }

    /// Why nothing must be read now, if so, and below how many waiting bytes that is over.
    /// `announced` is what the messages will take of which a part is here.
    pub(crate) fn must_stop(
        &self,
        is_paused: bool,
        is_awaited: bool,
        announced: usize,
    ) -> Option<(Stop, usize)> {
        let bytes = self.bytes();
        if bytes <= self.soft_limit / 4 {
            return None;
        }
        let hard = self.soft_limit.saturating_mul(2);
        if bytes > Self::room(hard, announced)
            && self.fixed.load(Ordering::SeqCst) > reserved_share(self.soft_limit)
        {
            // Taking anything may be enough.
            return Some((Stop::Fixed, usize::MAX));
        }
        let enough = Self::room(self.soft_limit - self.soft_limit / 4, announced);
        let limit = match is_paused {
            true => enough,
            false => Self::room(self.soft_limit, announced),
        };
        (!is_awaited && bytes > limit).then_some((Stop::Soft, enough + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_lasts_until_a_quarter_of_the_soft_limit_is_free_or_somebody_waits() {
        let read_budget = ReadBudget::new(1000);
        read_budget.add(1000, 0);
        assert_eq!(read_budget.must_stop(false, false, 0), None);
        read_budget.add(1, 0);
        assert_eq!(read_budget.must_stop(false, true, 0), None);
        assert_eq!(
            read_budget.must_stop(false, false, 0),
            Some((Stop::Soft, 751))
        );
        assert!(read_budget.wait_for(751, true) && read_budget.is_paused());
        assert!(!read_budget.remove(250, 0), "751 are left");
        assert!(read_budget.must_stop(true, false, 0).is_some());
        assert!(read_budget.remove(1, 0));
        assert!(!read_budget.remove(1, 0), "told once");
        assert_eq!(read_budget.must_stop(true, false, 0), None);
    }

    #[test]
    fn only_what_cannot_be_held_back_stops_reading_in_any_case() {
        let read_budget = ReadBudget::new(1000);
        read_budget.add(2500, 125);
        assert_eq!(read_budget.must_stop(false, true, 0), None);
        read_budget.add(1, 1);
        let stop = Some((Stop::Fixed, usize::MAX));
        assert_eq!(read_budget.must_stop(false, true, 0), stop);
        assert!(read_budget.wait_for(usize::MAX, true));
        assert!(read_budget.remove(500, 0));
        assert_eq!(read_budget.must_stop(false, true, 0), stop);
        read_budget.wait_for(usize::MAX, true);
        assert!(read_budget.remove(1, 1));
        assert_eq!(read_budget.must_stop(false, true, 0), None);
    }

    #[test]
    fn a_rest_begins_above_a_bound_and_ends_when_half_of_that_is_left() {
        let read_budget = ReadBudget::new(4 * REST_ABOVE_BYTES);
        read_budget.add(REST_ABOVE_BYTES, 0);
        assert!(!read_budget.begin_rest() && !read_budget.is_resting());
        read_budget.add(1, 0);
        assert!(read_budget.begin_rest() && read_budget.is_resting());
        assert!(
            !read_budget.remove(REST_ABOVE_BYTES / 2, 0),
            "a byte too many is left"
        );
        assert!(read_budget.remove(1, 0));
        assert!(!read_budget.remove(1, 0), "told once");
        read_budget.add(REST_ABOVE_BYTES, 0);
        assert!(read_budget.begin_rest());
        read_budget.end_rest();
        assert!(!read_budget.remove(REST_ABOVE_BYTES, 0), "it is over");
    }

    #[test]
    fn half_messages_take_room_but_not_the_last_quarter() {
        let read_budget = ReadBudget::new(1000);
        read_budget.add(400, 0);
        assert_eq!(read_budget.must_stop(false, false, 600), None);
        let stop = Some((Stop::Soft, 188));
        assert_eq!(
            read_budget.must_stop(false, false, 601),
            Some((Stop::Soft, 188))
        );
        assert!(read_budget.must_stop(true, false, 561).is_some());
        assert!(!read_budget.remove(150, 0));
        assert_eq!(
            read_budget.must_stop(false, false, usize::MAX),
            None,
            "{stop:?}"
        );
    }
}
