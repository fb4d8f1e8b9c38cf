//! The bound of what waits to be written, in bytes, and the line of those who wait for room.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

pub(crate) use crate::io::waiting_line::WaitError;
use crate::io::waiting_line::WaitingLine;

/// Room for bytes that wait to be written. Publishers wait for it, first come first
/// served; everything else takes it without asking, so that acknowledgements and
/// closes are never stuck behind a publisher.
///
/// What waits in the queue of commands is counted there, under its lock; this counts what
/// the IO thread has taken, and what is reserved for those who have waited.
///
/// When a quarter of the room is free, the IO thread reserves room for as many as there is room
/// for, in their order, and wakes just these. To wake all of them, or each for one message, would
/// cost several times what it costs to publish. So each that is served has a share of the room,
/// for what it publishes next: that it may queue past those who still wait. If the line is empty
/// after that, everyone publishes without waiting until the room is used up again.
#[derive(Debug)]
pub(crate) struct WriteBudget {
    limit: usize,
    taken: AtomicUsize,
    /// How many publishers wait, so that nobody else pays for the lock. Changed under it.
    waiting: AtomicUsize,
    /// What is left of all shares.
    shares: AtomicUsize,
    /// In which round shares were given that are still good. No other budget has one of this
    /// number.
    round: AtomicU64,
    line: Mutex<WaitingLine<Claim>>,
}

/// What a publisher waits for.
#[derive(Debug)]
struct Claim {
    bytes: usize,
    /// What it has got beside that.
    share: OnceLock<Share>,
}

/// What a thread may queue past those who wait.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    round: u64,
    bytes: usize,
}

thread_local! {
    /// What is left of the share that this thread was given last.
    static SHARE: Cell<Share> = const { Cell::new(Share { round: 0, bytes: 0 }) };
}

/// The last round of any budget.
static LAST_ROUND: AtomicU64 = AtomicU64::new(0);

impl WriteBudget {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            shares: AtomicUsize::new(0),
            round: AtomicU64::new(0),
            line: Mutex::default(),
        }
    }

    /// Whether `bytes` more may be queued behind `queued`. Not past those who wait, but for what
    /// is left of this thread's share. What is larger than the whole budget passes when nothing
    /// else waits.
    pub(crate) fn has_room(&self, queued: usize, bytes: usize) -> bool {
        self.fits(queued, bytes) && (!self.is_awaited() || self.take_share(bytes))
    }

    fn take_share(&self, bytes: usize) -> bool {
        let share = own_share();
        let is_good = share.round == self.round.load(Ordering::SeqCst) && share.bytes >= bytes;
        if is_good {
            self.use_up(bytes);
            set_own_share(Share {
                bytes: share.bytes - bytes,
                ..share
            });
        }
        is_good
    }

    fn use_up(&self, bytes: usize) {
        // Another thread may begin a new round at the same time.
        let less = |shares: usize| Some(shares.saturating_sub(bytes));
        let _ = self
            .shares
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
    }

    /// How large the share is of a publisher that waits for so much, that included: some messages
    /// of its size, and if these are small, enough for a while.
    fn share_of(&self, bytes: usize) -> usize {
        let some = bytes.saturating_mul(4).max(self.limit / 64);
        some.min(self.limit / 16).max(bytes)
    }

    /// Takes all shares back that were given so far. Called under the lock of the line.
    fn begin_round(&self) {
        let round = LAST_ROUND.fetch_add(1, Ordering::SeqCst) + 1;
        self.round.store(round, Ordering::SeqCst);
        self.shares.store(0, Ordering::SeqCst);
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

    /// Gives room back. `true`: there is enough to [`serve`](Self::serve) those who wait.
    #[must_use]
    pub(crate) fn release(&self, bytes: usize) -> bool {
        let left = self.taken.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        let is_enough = |used: usize| used <= self.limit - self.limit / 4;
        self.is_awaited() && is_enough(left + self.shares.load(Ordering::SeqCst))
    }

    /// Whether anybody waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Reserves room for those who wait, in their order, and wakes them, as long as `try_take`
    /// finds some: it takes room for so many bytes if as many more are left beside.
    pub(crate) fn serve(&self, try_take: impl Fn(usize, usize) -> bool) {
        self.serve_line(&mut self.line.lock(), try_take);
    }

    /// The same when nothing more will be given back for now: if all that is left is shares that
    /// nobody uses, it goes to those who wait.
    pub(crate) fn serve_all(&self, try_take: impl Fn(usize, usize) -> bool) {
        let mut line = self.line.lock();
        let before = line.len();
        self.serve_line(&mut line, &try_take);
        // Those who were served publish, so this is called again.
        if line.len() == before {
            self.begin_round();
            self.serve_line(&mut line, &try_take);
        }
    }

    fn serve_line(&self, line: &mut WaitingLine<Claim>, try_take: impl Fn(usize, usize) -> bool) {
        line.serve_while(|claim| {
            let shares = self.shares.load(Ordering::SeqCst);
            let more = self.share_of(claim.bytes) - claim.bytes;
            if try_take(claim.bytes, shares + more) {
                let _ = claim.share.set(Share {
                    round: self.round.load(Ordering::SeqCst),
                    bytes: more,
                });
                self.shares.fetch_add(more, Ordering::SeqCst);
                return true;
            }
            // Better than nothing.
            shares == 0 && try_take(claim.bytes, 0)
        });
        self.waiting.store(line.len(), Ordering::SeqCst);
    }

    /// Lets everyone who waits ask whether it still has a point.
    pub(crate) fn look_again(&self) {
        self.line.lock().look_again();
    }

    /// Waits in line until there is room for `bytes`, which is what `try_take` finds and
    /// reserves. `is_pointless` is asked while it waits.
    pub(crate) fn queue_for(
        &self,
        bytes: usize,
        try_take: impl Fn(usize, usize) -> bool,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut line = self.line.lock();
        let left = own_share();
        if left.round == self.round.load(Ordering::SeqCst) {
            self.use_up(left.bytes);
        }
        let waiter = line.join(Claim {
            bytes,
            share: OnceLock::new(),
        });
        let is_first = line.len() == 1;
        if is_first {
            self.begin_round();
        }
        // Said first and looked then, for who gives room back looks whether anybody waits.
        self.waiting.store(line.len(), Ordering::SeqCst);
        if is_first {
            // What was given back before this is told to nobody again.
            self.serve_line(&mut line, &try_take);
        }
        let waited = waiter.wait(&mut line, Some(deadline), is_pointless);
        set_own_share(waiter.wants().share.get().copied().unwrap_or_default());
        let Err(no_room) = waited else {
            return Ok(());
        };
        if no_room == WaitError::TimedOut {
            // There may be room that was not worth a word, or that nobody has used.
            self.begin_round();
            self.serve_line(&mut line, &try_take);
        }
        if waiter.is_served() {
            return Ok(());
        }
        line.leave(&waiter);
        // Those behind may need less.
        self.serve_line(&mut line, &try_take);
        Err(no_room)
    }
}

fn own_share() -> Share {
    // A thread that ends may publish still.
    SHARE.try_with(Cell::get).unwrap_or_default()
}

fn set_own_share(share: Share) {
    let _ = SHARE.try_with(|own| own.set(share));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn never() -> bool {
        false
    }

    fn reserve(budget: &WriteBudget, bytes: usize, deadline: Instant) -> Result<(), WaitError> {
        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
        budget.queue_for(bytes, try_take, deadline, never)
    }

    fn release(budget: &WriteBudget, bytes: usize) {
        if budget.release(bytes) {
            all_released(budget);
        }
    }

    fn all_released(budget: &WriteBudget) {
        budget.serve_all(|bytes, beside| budget.take_if_room(beside, bytes));
    }

    #[test]
    fn what_fits_passes_and_what_does_not_waits_for_its_deadline() {
        let budget = WriteBudget::new(100);
        assert!(budget.has_room(40, 60));
        assert_eq!(reserve(&budget, 60, soon()), Ok(()));
        assert!(budget.has_room(40, 0) && !budget.has_room(40, 1));
        assert_eq!(reserve(&budget, 40, soon()), Ok(()));
        let now = Instant::now();
        assert_eq!(reserve(&budget, 1, now), Err(WaitError::TimedOut));
        release(&budget, 50);
        assert_eq!(reserve(&budget, 50, soon()), Ok(()));
    }

    #[test]
    fn what_exceeds_the_budget_passes_alone() {
        let budget = WriteBudget::new(100);
        budget.take(1);
        let now = Instant::now();
        assert_eq!(reserve(&budget, 500, now), Err(WaitError::TimedOut));
        release(&budget, 1);
        assert!(!budget.has_room(1, 500));
        assert!(budget.has_room(0, 500));
        assert_eq!(reserve(&budget, 500, soon()), Ok(()));
        assert_eq!(reserve(&budget, 1, now), Err(WaitError::TimedOut));
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
                budget.queue_for(
                    1,
                    |bytes, beside| budget.take_if_room(beside, bytes),
                    soon(),
                    is_over,
                )
            });
            while budget.waiting.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            // Room for the small one only; the large one is first in line.
            release(&budget, 50);
            assert!(!budget.has_room(0, 1), "past those who wait");
            release(&budget, 50);
            assert_eq!(large.join().unwrap(), Ok(()));
            assert!(!small.is_finished());
            over.store(true, Ordering::SeqCst);
            budget.look_again();
            assert_eq!(small.join().unwrap(), Err(WaitError::Closed));
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
            release(&budget, 20);
            assert!(!waiter.is_finished());
            release(&budget, 5);
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        budget.take(15);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| reserve(&budget, 10, soon()));
            while budget.waiting.load(Ordering::SeqCst) < 1 {
                thread::yield_now();
            }
            // The rest is held for long, behind a commit.
            release(&budget, 15);
            all_released(&budget);
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        release(&budget, 10);
        // 85 are taken; a wait that is over at once is one at its deadline.
        assert_eq!(reserve(&budget, 15, Instant::now()), Ok(()));
        assert_eq!(
            reserve(&budget, 1, Instant::now()),
            Err(WaitError::TimedOut)
        );
    }

    /// Waits until so many are in line.
    fn await_line(budget: &WriteBudget, count: usize) {
        while budget.waiting.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
    }

    #[test]
    fn those_who_fit_are_served_together_and_nobody_else_is_woken() {
        let budget = WriteBudget::new(100);
        budget.take(100);
        let asked = AtomicUsize::new(0);
        thread::scope(|scope| {
            let waiters: Vec<_> = (1..=4)
                .map(|count| {
                    let wait = || {
                        // Asked before the first wait and after each wake-up.
                        let is_pointless = || asked.fetch_add(1, Ordering::SeqCst) == usize::MAX;
                        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
                        budget.queue_for(12, try_take, soon(), is_pointless)
                    };
                    let waiter = scope.spawn(wait);
                    await_line(&budget, count);
                    waiter
                })
                .collect();
            // All of them have asked, and sleep or are about to.
            while asked.load(Ordering::SeqCst) < 4 {
                thread::yield_now();
            }
            release(&budget, 25);
            assert_eq!(budget.waiting.load(Ordering::SeqCst), 2);
            assert!(!waiters[2].is_finished() && !waiters[3].is_finished());
            assert_eq!(asked.load(Ordering::SeqCst), 4);
            release(&budget, 75);
            assert!(
                waiters
                    .into_iter()
                    .all(|waiter| waiter.join().unwrap().is_ok())
            );
            assert_eq!(asked.load(Ordering::SeqCst), 4, "nobody was woken in vain");
        });
        assert_eq!(budget.taken(), 48);
        assert!(!budget.is_awaited());
    }

    #[test]
    fn where_not_all_fit_fewer_are_served_and_each_has_a_share_for_more() {
        const SIZE: usize = 25;
        let budget = WriteBudget::new(1600);
        budget.take(1600);
        let publish_as_many_as_pass = || {
            let mut count = 0;
            while budget.has_room(0, SIZE) {
                budget.take(SIZE);
                count += 1;
            }
            count
        };
        let go = AtomicBool::new(false);
        let publisher = || {
            assert_eq!(reserve(&budget, SIZE, soon()), Ok(()));
            while !go.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            publish_as_many_as_pass()
        };
        let waiting = || budget.waiting.load(Ordering::SeqCst);
        let serve = |bytes| {
            if budget.release(bytes) {
                budget.serve(|bytes, beside| budget.take_if_room(beside, bytes));
            }
            waiting()
        };
        thread::scope(|scope| {
            let publishers = (1..=12).map(|count| {
                let publisher = scope.spawn(publisher);
                await_line(&budget, count);
                publisher
            });
            let mut publishers: Vec<_> = publishers.collect();
            assert_eq!(serve(399), 12);
            // A quarter: four of them, and three messages more for each.
            assert_eq!(serve(1), 8);
            assert_eq!(serve(100), 8, "what they have not used is theirs");
            assert_eq!(publish_as_many_as_pass(), 0, "not somebody else's");
            go.store(true, Ordering::SeqCst);
            for publisher in publishers.drain(..4) {
                assert_eq!(publisher.join().unwrap(), 3);
            }
            go.store(false, Ordering::SeqCst);
            assert_eq!(serve(299), 8);
            assert_eq!(serve(1), 4);
            // Nothing more comes for now, and nobody uses the shares.
            all_released(&budget);
            assert_eq!(waiting(), 1);
            all_released(&budget);
            assert_eq!(waiting(), 0);
            go.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn who_waits_again_gives_back_what_is_left_of_its_share() {
        let budget = WriteBudget::new(1600);
        let in_line = |bytes| reserve(&budget, bytes, Instant::now());
        budget.take(1600);
        assert_eq!(in_line(10), Err(WaitError::TimedOut));
        thread::scope(|scope| {
            let large = scope.spawn(|| reserve(&budget, 5000, soon()));
            await_line(&budget, 1);
            // Behind the large one nobody is served, so this is by hand.
            let round = budget.round.load(Ordering::SeqCst);
            budget.shares.store(90, Ordering::SeqCst);
            set_own_share(Share { round, bytes: 90 });
            budget.taken.store(1500, Ordering::SeqCst);
            assert!(budget.has_room(0, 60) && !budget.has_room(0, 60));
            assert_eq!(budget.shares.load(Ordering::SeqCst), 30);
            assert_eq!(in_line(60), Err(WaitError::TimedOut));
            assert_eq!(budget.shares.load(Ordering::SeqCst), 0);
            assert!(!budget.has_room(0, 10), "it has none any more");
            release(&budget, 1500);
            assert_eq!(large.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn room_that_was_not_worth_a_word_is_found_at_the_deadline() {
        let budget = WriteBudget::new(100);
        budget.take(100);
        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
        let given_back = AtomicBool::new(false);
        // Asked when it is in line already.
        let is_pointless = || {
            if !given_back.swap(true, Ordering::SeqCst) {
                assert!(!budget.release(10), "that is no quarter");
            }
            false
        };
        let waited = budget.queue_for(10, try_take, Instant::now(), is_pointless);
        assert_eq!(waited, Ok(()));
        assert_eq!(budget.taken(), 100);
    }

    #[test]
    fn a_share_is_for_some_messages_and_no_large_part_of_the_room() {
        let budget = WriteBudget::new(6400);
        let shares = [1, 50, 99, 200, 1000].map(|bytes| budget.share_of(bytes));
        assert_eq!(shares, [100, 200, 396, 400, 1000]);
    }

    #[test]
    fn a_share_is_good_for_its_own_round_only() {
        let budget = WriteBudget::new(1600);
        budget.take(1600);
        let over = AtomicBool::new(false);
        let is_over = || over.load(Ordering::SeqCst);
        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.queue_for(5000, try_take, soon(), is_over));
            await_line(&budget, 1);
            budget.taken.store(100, Ordering::SeqCst);
            let round = budget.round.load(Ordering::SeqCst);
            set_own_share(Share { round, bytes: 90 });
            assert!(budget.has_room(0, 10));
            // The first in line finds no room, so that nothing else comes of it.
            all_released(&budget);
            assert!(!budget.has_room(0, 10), "another round has begun");
            over.store(true, Ordering::SeqCst);
            budget.look_again();
            assert_eq!(large.join().unwrap(), Err(WaitError::Closed));
        });
    }

    #[test]
    fn when_the_first_in_line_gives_up_the_next_is_served() {
        let budget = WriteBudget::new(100);
        budget.take(90);
        let over = AtomicBool::new(false);
        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
        let is_over = || over.load(Ordering::SeqCst);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.queue_for(1000, try_take, soon(), is_over));
            await_line(&budget, 1);
            let small = scope.spawn(|| budget.queue_for(10, try_take, soon(), never));
            await_line(&budget, 2);
            over.store(true, Ordering::SeqCst);
            budget.look_again();
            assert_eq!(large.join().unwrap(), Err(WaitError::Closed));
            assert_eq!(small.join().unwrap(), Ok(()));
        });
        // The same when its time is up.
        let soon_over = Instant::now() + Duration::from_millis(50);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.queue_for(1000, try_take, soon_over, never));
            await_line(&budget, 1);
            let small = scope.spawn(|| budget.queue_for(0, try_take, soon(), never));
            assert_eq!(large.join().unwrap(), Err(WaitError::TimedOut));
            assert_eq!(small.join().unwrap(), Ok(()));
        });
    }
}
