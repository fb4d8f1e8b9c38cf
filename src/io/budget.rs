//! The bounds of memory in both directions, in bytes: what waits to be written, and
//! what was received and not yet handed out.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::protocol::content::Content;
use crate::protocol::run::{Packed, Run};

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
/// Past the soft limit the IO thread stops reading, unless somebody waits for
/// something that only reading can bring; past the hard limit it stops in any case.
///
/// Messages of which a part is here take room as well, for whole ones. But only reading can
/// make them whole, so a quarter of the room stays for what was received: else a few
/// deliveries that one thread leaves lying would end large messages for all others.
#[derive(Debug)]
pub(crate) struct Backlog {
    soft_limit: usize,
    bytes: AtomicUsize,
    /// What the messages take of which a part is here.
    assembling: AtomicUsize,
    paused: AtomicBool,
    /// The IO thread lets those catch up who take.
    resting: AtomicBool,
}

/// With more bytes than this the IO thread rests for a moment, if it may: what lies long in memory
/// has left the caches of the processors, and a thread that takes may want the one that this
/// runs on.
const REST_ABOVE: usize = 2 * 1024 * 1024;

/// What a message that stands for itself costs beside its body and properties, or a run of
/// them beside its messages: its place, and names.
const MESSAGE_OVERHEAD: usize = 256;

/// What one takes that waits together with others.
const EXTENT_OVERHEAD: usize = 8;

impl Backlog {
    pub(crate) fn new(soft_limit: usize) -> Self {
        Self {
            soft_limit,
            bytes: AtomicUsize::new(0),
            assembling: AtomicUsize::new(0),
            paused: AtomicBool::new(false),
            resting: AtomicBool::new(false),
        }
    }

    /// What a message takes that stands for itself.
    pub(crate) fn cost(content: &Content) -> usize {
        // They may still be in front of the body as well.
        let properties = 2 * content.properties.len();
        content.body.len() + properties + MESSAGE_OVERHEAD
    }

    /// What messages take that wait together.
    pub(crate) fn cost_of_run(run: &Run) -> usize {
        MESSAGE_OVERHEAD + run.origins_size() + run.size() + run.len() * EXTENT_OVERHEAD
    }

    /// What one of them takes, that was just taken from `run`: as the last one, also what they
    /// had in common.
    pub(crate) fn cost_in_run(message: &Packed, run: &Run) -> usize {
        let shared = match run.is_empty() {
            true => MESSAGE_OVERHEAD + run.origins_size(),
            false => 0,
        };
        message.size() + EXTENT_OVERHEAD + shared
    }

    pub(crate) fn add(&self, cost: usize) {
        self.bytes.fetch_add(cost, Ordering::SeqCst);
    }

    /// How much waits to be taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Takes `cost` off. `true`: the IO thread waits for this and should be woken.
    #[must_use]
    pub(crate) fn remove(&self, cost: usize) -> bool {
        let left = self.bytes.fetch_sub(cost, Ordering::SeqCst) - cost;
        let is_first =
            |flag: &AtomicBool| flag.load(Ordering::SeqCst) && flag.swap(false, Ordering::SeqCst);
        left <= self.room(self.soft_limit / 2) && is_first(&self.paused)
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

    /// Nobody need wake the IO thread for room.
    fn is_not_paused(&self) -> bool {
        if self.is_paused() {
            self.paused.store(false, Ordering::SeqCst);
        }
        false
    }

    /// What `limit` leaves for whole messages.
    fn room(&self, limit: usize) -> usize {
        let assembling = self.assembling.load(Ordering::SeqCst);
        limit.saturating_sub(assembling).max(limit / 4)
    }

    /// Whether the IO thread must not read now. Asked again after every change. Once
    /// paused, it is until half of the limit is free. `assembling` is what messages take of
    /// which a part is here; it is not asked where it does not matter.
    pub(crate) fn must_pause(
        &self,
        is_paused: bool,
        awaited: bool,
        assembling: impl FnOnce() -> usize,
    ) -> bool {
        let limit = match (awaited, is_paused) {
            (true, _) => self.soft_limit.saturating_mul(2),
            (false, false) => self.soft_limit,
            (false, true) => self.soft_limit / 2,
        };
        if self.bytes.load(Ordering::SeqCst) <= limit / 4 {
            return self.is_not_paused();
        }
        self.assembling.store(assembling(), Ordering::SeqCst);
        let limit = self.room(limit);
        if self.bytes.load(Ordering::SeqCst) <= limit {
            return self.is_not_paused();
        }
        // Said first and looked again, so that no removal in between goes unnoticed.
        self.paused.store(true, Ordering::SeqCst);
        self.bytes.load(Ordering::SeqCst) > limit
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
    fn what_waits_together_costs_what_it_takes_and_all_of_that_comes_back() {
        use crate::protocol::run::tests::packed;

        let (long, other) = ("k".repeat(255), "o".repeat(255));
        for (count, size, keys) in [
            (1, 0, ["", ""]),
            (1000, 16, ["key", "key"]),
            (1000, 0, [&*long, &*other]),
            (10, 100_000, ["key", "other"]),
        ] {
            let deliveries: Vec<_> = (0..count).map(|index| (size, keys[index % 2])).collect();
            let mut runs = packed(&deliveries);
            let cost: usize = runs.iter().map(Backlog::cost_of_run).sum();
            let names = if keys[0] == keys[1] { 0 } else { keys[0].len() };
            assert!(cost >= MESSAGE_OVERHEAD + count * (size + names), "{cost}");
            let mut left = cost;
            for run in &mut runs {
                while let Some(message) = run.pop() {
                    left -= Backlog::cost_in_run(&message, run);
                }
            }
            assert_eq!(left, 0, "{count} of {size}");
        }
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
    fn the_backlog_pauses_at_the_soft_limit_or_at_twice_that_when_awaited() {
        let backlog = Backlog::new(1000);
        backlog.add(1001);
        assert!(backlog.must_pause(false, false, || 0));
        assert!(!backlog.must_pause(true, true, || 0));
        backlog.add(1000);
        assert!(backlog.must_pause(false, true, || 0));
        assert!(!backlog.remove(1000), "still above half the limit");
        assert!(backlog.remove(501));
        assert!(!backlog.remove(1), "told once");
    }

    #[test]
    fn half_messages_take_room_but_not_the_last_quarter() {
        let backlog = Backlog::new(1000);
        backlog.add(400);
        assert!(!backlog.must_pause(false, false, || 600));
        assert!(backlog.must_pause(false, false, || 601));
        assert!(!backlog.remove(200), "half of the room is not free yet");
        assert!(backlog.remove(75));
        assert!(!backlog.must_pause(true, false, || 601));
        // However much of them there is, what a thread leaves lying stops nobody.
        backlog.add(125);
        assert!(!backlog.must_pause(false, false, || usize::MAX));
        backlog.add(1);
        assert!(backlog.must_pause(false, false, || usize::MAX));
    }
}
