//! The bounds of memory in both directions, in bytes: what waits to be written, and
//! what was received and not yet handed out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::protocol::content::Content;
use crate::protocol::holding::MESSAGE_OVERHEAD;

/// Room for bytes that wait to be written. Publishers wait for it, first come first
/// served; everything else takes it without asking, so that acknowledgements and
/// closes are never stuck behind a publisher.
///
/// What waits in the queue of commands is counted there, under its lock; this counts what
/// the IO thread has taken, and what is reserved for those who have waited.
#[derive(Debug)]
pub(crate) struct WriteBudget {
    limit: usize,
    taken: AtomicUsize,
    /// How many publishers wait, so that nobody else pays for the lock.
    waiting: AtomicUsize,
    line: Mutex<Line>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    tickets: VecDeque<u64>,
    next: u64,
}

/// How much room is something to speak of, unless the whole is small.
const STEP: usize = 64 * 1024;

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoRoom {
    TimedOut,
    Pointless,
}

impl WriteBudget {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
            moved: Condvar::new(),
        }
    }

    /// Whether `bytes` more may be queued behind `queued`. Not past those who wait. What is
    /// larger than the whole budget passes when nothing else waits.
    pub(crate) fn has_room(&self, queued: usize, bytes: usize) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.fits(queued, bytes)
    }

    /// Takes room for `bytes`, if there is some beside what is `queued`.
    pub(crate) fn take_if_room(&self, queued: usize, bytes: usize) -> bool {
        let fits = self.fits(queued, bytes);
        if fits {
            self.take(bytes);
        }
        fits
    }

    fn fits(&self, queued: usize, bytes: usize) -> bool {
        let used = queued + self.taken();
        used == 0 || used.saturating_add(bytes) <= self.limit
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Takes room for `bytes` whether there is some or not.
    pub(crate) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Gives room back. Those who wait hear of it when there is some to speak of: to be woken
    /// for each message would cost them more than to publish it.
    pub(crate) fn release(&self, bytes: usize) {
        let left = self.taken.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        let is_worth_it = left <= self.limit - STEP.min(self.limit / 4);
        if is_worth_it && self.waiting.load(Ordering::SeqCst) > 0 {
            self.look_again();
        }
    }

    /// Nothing more will be given back for now.
    pub(crate) fn all_released(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.look_again();
        }
    }

    /// Lets everyone who waits ask whether it still has a point.
    pub(crate) fn look_again(&self) {
        let _line = self.line.lock();
        self.moved.notify_all();
    }

    /// Waits in line until `try_take` succeeds. `is_pointless` is asked while it waits.
    pub(crate) fn queue_for(
        &self,
        try_take: impl Fn() -> bool,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), NoRoom> {
        let mut line = self.line.lock();
        let ticket = line.next;
        line.next += 1;
        line.tickets.push_back(ticket);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let outcome = loop {
            if is_pointless() {
                break Err(NoRoom::Pointless);
            }
            if line.tickets.front() == Some(&ticket) && try_take() {
                break Ok(());
            }
            if self.moved.wait_until(&mut line, deadline).timed_out() {
                // There may be room that was not worth a word.
                let is_first = line.tickets.front() == Some(&ticket);
                break match is_first && !is_pointless() && try_take() {
                    true => Ok(()),
                    false => Err(NoRoom::TimedOut),
                };
            }
        };
        line.tickets.retain(|&other| other != ticket);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.moved.notify_all();
        outcome
    }
}

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
pub(crate) struct Backlog {
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
const REST_ABOVE: usize = 2 * 1024 * 1024;

impl Backlog {
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
    pub(crate) fn cost(content: &Content) -> usize {
        // They may still be in front of the body as well.
        let properties = 2 * content.properties.len();
        content.body.len() + properties + MESSAGE_OVERHEAD
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
            || left <= REST_ABOVE / 2 && is_first(&self.resting)
    }

    /// Whether so much waits that the IO thread should rest for a moment. From now on it is
    /// woken when half is taken, and by who begins to wait.
    pub(crate) fn begin_rest(&self) -> bool {
        let rests = self.bytes() > REST_ABOVE;
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
            && self.fixed.load(Ordering::SeqCst) > self.soft_limit / 4
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
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn never() -> bool {
        false
    }

    fn reserve(budget: &WriteBudget, bytes: usize, deadline: Instant) -> Result<(), NoRoom> {
        budget.queue_for(|| budget.take_if_room(0, bytes), deadline, never)
    }

    #[test]
    fn what_fits_passes_and_what_does_not_waits_for_its_deadline() {
        let budget = WriteBudget::new(100);
        assert!(budget.has_room(40, 60));
        assert_eq!(reserve(&budget, 60, soon()), Ok(()));
        assert!(budget.has_room(40, 0) && !budget.has_room(40, 1));
        assert_eq!(reserve(&budget, 40, soon()), Ok(()));
        let now = Instant::now();
        assert_eq!(reserve(&budget, 1, now), Err(NoRoom::TimedOut));
        budget.release(50);
        assert_eq!(reserve(&budget, 50, soon()), Ok(()));
    }

    #[test]
    fn what_exceeds_the_budget_passes_alone() {
        let budget = WriteBudget::new(100);
        budget.take(1);
        let now = Instant::now();
        assert_eq!(reserve(&budget, 500, now), Err(NoRoom::TimedOut));
        budget.release(1);
        assert!(!budget.has_room(1, 500));
        assert!(budget.has_room(0, 500));
        assert_eq!(reserve(&budget, 500, soon()), Ok(()));
        assert_eq!(reserve(&budget, 1, now), Err(NoRoom::TimedOut));
    }

    #[test]
    fn waiters_are_served_in_their_order_and_sent_home_at_the_end() {
        let budget = WriteBudget::new(100);
        budget.take(100);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let large = scope.spawn(|| reserve(&budget, 1000, soon()));
            while budget.waiting.load(Ordering::SeqCst) < 1 {
                thread::yield_now();
            }
            let small = scope.spawn(|| {
                let is_over = || over.load(Ordering::SeqCst);
                budget.queue_for(|| budget.take_if_room(0, 1), soon(), is_over)
            });
            while budget.waiting.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            // Room for the small one only; the large one is first in line.
            budget.release(50);
            assert!(!budget.has_room(0, 1), "past those who wait");
            budget.release(50);
            assert_eq!(large.join().unwrap(), Ok(()));
            assert!(!small.is_finished());
            over.store(true, Ordering::SeqCst);
            budget.look_again();
            assert_eq!(small.join().unwrap(), Err(NoRoom::Pointless));
        });
    }

    #[test]
    fn who_gives_up_leaves_its_place_to_the_next_one() {
        let budget = WriteBudget::new(100);
        budget.take(90);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let large = scope.spawn(|| {
                let deadline = Instant::now() + Duration::from_millis(100);
                reserve(&budget, 50, deadline)
            });
            while budget.waiting.load(Ordering::SeqCst) < 1 {
                thread::yield_now();
            }
            // There is room for it, but another one is before it.
            let small = scope.spawn(|| {
                let is_pointless = || is_over.load(Ordering::SeqCst);
                let far = Instant::now() + Duration::from_secs(3600);
                budget.queue_for(|| budget.take_if_room(0, 10), far, is_pointless)
            });
            assert_eq!(large.join().unwrap(), Err(NoRoom::TimedOut));
            let patience = soon();
            while !small.is_finished() && Instant::now() < patience {
                thread::yield_now();
            }
            // Whatever came of it, it must not wait on.
            is_over.store(true, Ordering::SeqCst);
            budget.look_again();
            assert_eq!(small.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn those_who_wait_hear_of_room_to_speak_of_and_find_the_rest_at_their_deadline() {
        let budget = WriteBudget::new(100);
        budget.take(100);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| reserve(&budget, 10, soon()));
            while budget.waiting.load(Ordering::SeqCst) < 1 {
                thread::yield_now();
            }
            budget.release(20);
            assert!(!waiter.is_finished());
            budget.release(5);
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        budget.take(15);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| reserve(&budget, 10, soon()));
            while budget.waiting.load(Ordering::SeqCst) < 1 {
                thread::yield_now();
            }
            // The rest is held for long, behind a commit.
            budget.release(15);
            budget.all_released();
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        budget.release(10);
        // 85 are taken; a wait that is over at once is one at its deadline.
        assert_eq!(reserve(&budget, 15, Instant::now()), Ok(()));
        assert_eq!(reserve(&budget, 1, Instant::now()), Err(NoRoom::TimedOut));
    }

    #[test]
    fn a_pause_lasts_until_a_quarter_of_the_soft_limit_is_free_or_somebody_waits() {
        let backlog = Backlog::new(1000);
        backlog.add(1000, 0);
        assert_eq!(backlog.must_stop(false, false, 0), None);
        backlog.add(1, 0);
        assert_eq!(backlog.must_stop(false, true, 0), None);
        assert_eq!(backlog.must_stop(false, false, 0), Some((Stop::Soft, 751)));
        assert!(backlog.wait_for(751, true) && backlog.is_paused());
        assert!(!backlog.remove(250, 0), "751 are left");
        assert!(backlog.must_stop(true, false, 0).is_some());
        assert!(backlog.remove(1, 0));
        assert!(!backlog.remove(1, 0), "told once");
        assert_eq!(backlog.must_stop(true, false, 0), None);
    }

    #[test]
    fn only_what_cannot_be_held_back_stops_reading_in_any_case() {
        let backlog = Backlog::new(1000);
        backlog.add(2500, 250);
        assert_eq!(backlog.must_stop(false, true, 0), None);
        backlog.add(1, 1);
        let stop = Some((Stop::Fixed, usize::MAX));
        assert_eq!(backlog.must_stop(false, true, 0), stop);
        assert!(backlog.wait_for(usize::MAX, true));
        assert!(backlog.remove(500, 0));
        assert_eq!(backlog.must_stop(false, true, 0), stop);
        backlog.wait_for(usize::MAX, true);
        assert!(backlog.remove(1, 1));
        assert_eq!(backlog.must_stop(false, true, 0), None);
    }

    #[test]
    fn half_messages_take_room_but_not_the_last_quarter() {
        let backlog = Backlog::new(1000);
        backlog.add(400, 0);
        assert_eq!(backlog.must_stop(false, false, 600), None);
        let stop = Some((Stop::Soft, 188));
        assert_eq!(
            backlog.must_stop(false, false, 601),
            Some((Stop::Soft, 188))
        );
        assert!(backlog.must_stop(true, false, 561).is_some());
        assert!(!backlog.remove(150, 0));
        assert_eq!(
            backlog.must_stop(false, false, usize::MAX),
            None,
            "{stop:?}"
        );
    }
}
