//! The write budget: bounds the bytes that wait to be written, and keeps the line of publishers
//! that wait for room.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

pub(crate) use crate::io::waiting_line::WaitError;
use crate::io::waiting_line::WaitingLine;

/// The room for bytes that wait to be written. Publishers wait for room, and are served in the
/// order in which they came. All other commands take room unconditionally, so that acknowledgements
/// and closes are never stuck behind a publisher.
///
/// Bytes in the command queue are counted there, under its lock. `taken` counts the bytes that the
/// IO thread has taken from the queue, and the room that is reserved for publishers that have
/// waited.
///
/// When a quarter of the room is free, the IO thread reserves room for the first publishers in the
/// line, and wakes only these. It would cost several times as much as publishing to wake all of
/// them, or to wake each for a single message. So each served publisher also gets a *share*: room
/// for its next messages, which it may queue before the publishers that still wait. When the line
/// is empty, all threads publish without waiting until the room is used up.
#[derive(Debug)]
pub(crate) struct WriteBudget {
    limit: usize,
    taken: AtomicUsize,
    /// How many publishers wait. It is changed under the lock of the line, and read without it,
    /// because most publishes find no line.
    waiting: AtomicUsize,
    /// The unused bytes of all shares.
    shares: AtomicUsize,
    /// The number of the current round. Shares of earlier rounds are void. The number is unique
    /// over all budgets, because a thread has one share for all of them.
    round: AtomicU64,
    line: Mutex<WaitingLine<Claim>>,
}

/// The room that a publisher waits for.
#[derive(Debug)]
struct Claim {
    bytes: usize,
    /// The share that the publisher gets in addition.
    share: OnceLock<Share>,
}

/// How many bytes a thread may queue before the waiting publishers.
#[derive(Debug, Clone, Copy, Default)]
struct Share {
    round: u64,
    bytes: usize,
}

thread_local! {
    /// The unused rest of the share that this thread got last.
    static SHARE: Cell<Share> = const { Cell::new(Share { round: 0, bytes: 0 }) };
}

/// The number of the last round of any budget.
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

    /// Returns whether `bytes` more may be queued behind `queued` bytes. While publishers wait, the
    /// bytes must fit into the share of the calling thread, and leave it. A message that is larger
    /// than the whole budget passes if no other byte waits.
    pub(crate) fn admit(&self, queued: usize, bytes: usize) -> bool {
        self.fits(queued, bytes) && (!self.has_line() || self.take_share(bytes))
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
        // Another thread may begin a new round at the same time and set this to 0.
        let less = |shares: usize| Some(shares.saturating_sub(bytes));
        let _ = self
            .shares
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
    }

    /// Returns the size of a claim together with its share, in bytes: four messages of the claimed
    /// size, and for small messages enough to publish for a while.
    fn claim_with_share(&self, bytes: usize) -> usize {
        let some = bytes.saturating_mul(4).max(self.limit / 64);
        some.min(self.limit / 16).max(bytes)
    }

    /// Makes all shares void. The caller holds the lock of the line.
    fn begin_round(&self) {
        let round = LAST_ROUND.fetch_add(1, Ordering::SeqCst) + 1;
        self.round.store(round, Ordering::SeqCst);
        self.shares.store(0, Ordering::SeqCst);
    }

    /// Takes room for `bytes`, if they fit behind `queued` bytes.
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

    /// Takes room for `bytes`, even if that exceeds the limit.
    pub(crate) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Frees room for `bytes`. Returns `true` if there is now enough to [`serve`](Self::serve) the
    /// waiting publishers. `queued` returns the bytes in the command queue, which count as well.
    #[must_use]
    pub(crate) fn release(&self, bytes: usize, queued: impl FnOnce() -> usize) -> bool {
        let left = self.taken.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        let is_enough = |used: usize| used <= self.limit - self.limit / 4;
        self.has_line() && {
            let used = left + self.shares.load(Ordering::SeqCst);
            // Without enough room the queue need not be locked for its bytes.
            is_enough(used) && is_enough(used + queued())
        }
    }

    /// Returns whether a publisher waits.
    pub(crate) fn has_line(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Reserves room for the first publishers in the line, and wakes them. `try_take` takes room
    /// for its first argument if as many bytes as its second argument remain free.
    pub(crate) fn serve(&self, try_take: impl Fn(usize, usize) -> bool) {
        self.serve_line(&mut self.line.lock(), try_take);
    }

    /// Serves the line like [`serve`](Self::serve), when no more room will be freed for now.
    /// If the free room consists of unused shares, the shares become void, and the waiting
    /// publishers get that room.
    pub(crate) fn serve_all(&self, try_take: impl Fn(usize, usize) -> bool) {
        let mut line = self.line.lock();
        let before = line.len();
        self.serve_line(&mut line, &try_take);
        // The served publishers will publish, and then this function is called again. So shares
        // become void only if no publisher could be served.
        if line.len() == before {
            self.begin_round();
            self.serve_line(&mut line, &try_take);
        }
    }

    fn serve_line(&self, line: &mut WaitingLine<Claim>, try_take: impl Fn(usize, usize) -> bool) {
        line.serve_while(|claim| {
            let shares = self.shares.load(Ordering::SeqCst);
            let more = self.claim_with_share(claim.bytes) - claim.bytes;
            if try_take(claim.bytes, shares + more) {
                let _ = claim.share.set(Share {
                    round: self.round.load(Ordering::SeqCst),
                    bytes: more,
                });
                self.shares.fetch_add(more, Ordering::SeqCst);
                return true;
            }
            // Without room for a share the claim is served alone, unless the free room is reserved
            // for unused shares.
            shares == 0 && try_take(claim.bytes, 0)
        });
        self.waiting.store(line.len(), Ordering::SeqCst);
    }

    /// Wakes all waiting publishers, so that each calls its `is_pointless` again.
    pub(crate) fn wake_to_recheck(&self) {
        self.line.lock().wake_to_recheck();
    }

    /// Waits in the line until `try_take` has reserved room for `bytes`. `is_pointless` is called
    /// before each sleep.
    pub(crate) fn wait_in_line(
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
        // The count is stored before the room is checked again. `release` frees room before it
        // reads the count. So either this thread finds the room, or `release` serves the line.
        self.waiting.store(line.len(), Ordering::SeqCst);
        if is_first {
            // `release` has not served room that was freed before the count was stored.
            self.serve_line(&mut line, &try_take);
        }
        let waited = waiter.wait(&mut line, Some(deadline), is_pointless);
        set_own_share(waiter.claim().share.get().copied().unwrap_or_default());
        let Err(no_room) = waited else {
            return Ok(());
        };
        if no_room == WaitError::TimedOut {
            // There may be less room than `release` serves, or room in shares that are not used.
            self.begin_round();
            self.serve_line(&mut line, &try_take);
        }
        if waiter.is_served() {
            return Ok(());
        }
        line.leave(&waiter);
        // The next publishers in the line may need less room.
        self.serve_line(&mut line, &try_take);
        Err(no_room)
    }
}

fn own_share() -> Share {
    // A destructor of the thread may publish after this thread-local is gone.
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
        budget.wait_in_line(bytes, try_take, deadline, never)
    }

    fn release(budget: &WriteBudget, bytes: usize) {
        if budget.release(bytes, || 0) {
            all_released(budget);
        }
    }

    fn all_released(budget: &WriteBudget) {
        budget.serve_all(|bytes, beside| budget.take_if_room(beside, bytes));
    }

    #[test]
    fn a_claim_that_fits_passes_and_a_larger_one_waits_until_its_deadline() {
        let budget = WriteBudget::new(100);
        assert!(budget.admit(40, 60));
        assert_eq!(reserve(&budget, 60, soon()), Ok(()));
        assert!(budget.admit(40, 0) && !budget.admit(40, 1));
        assert_eq!(reserve(&budget, 40, soon()), Ok(()));
        let now = Instant::now();
        assert_eq!(reserve(&budget, 1, now), Err(WaitError::TimedOut));
        release(&budget, 50);
        assert_eq!(reserve(&budget, 50, soon()), Ok(()));
    }

    #[test]
    fn a_publisher_is_served_when_a_quarter_is_free_of_taken_and_queued_bytes() {
        let budget = WriteBudget::new(100);
        budget.take(60);
        assert!(!budget.release(1, || panic!("no publisher waits")));
        budget.waiting.store(1, Ordering::SeqCst);
        assert!(!budget.release(19, || 36), "76 are used");
        assert!(budget.release(1, || 36));
        budget.take(40);
        assert!(!budget.release(1, || panic!("78 are used without the queue")));
    }

    #[test]
    fn a_claim_larger_than_the_budget_passes_when_the_budget_is_empty() {
        let budget = WriteBudget::new(100);
        budget.take(1);
        let now = Instant::now();
        assert_eq!(reserve(&budget, 500, now), Err(WaitError::TimedOut));
        release(&budget, 1);
        assert!(!budget.admit(1, 500));
        assert!(budget.admit(0, 500));
        assert_eq!(reserve(&budget, 500, soon()), Ok(()));
        assert_eq!(reserve(&budget, 1, now), Err(WaitError::TimedOut));
    }

    #[test]
    fn waiting_publishers_are_served_in_their_order_and_fail_at_the_end() {
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
                budget.wait_in_line(
                    1,
                    |bytes, beside| budget.take_if_room(beside, bytes),
                    soon(),
                    is_over,
                )
            });
            while budget.waiting.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            // There is room for the small claim only, but the large one is the first in the line.
            release(&budget, 50);
            assert!(!budget.admit(0, 1), "before the waiting publishers");
            release(&budget, 50);
            assert_eq!(large.join().unwrap(), Ok(()));
            assert!(!small.is_finished());
            over.store(true, Ordering::SeqCst);
            budget.wake_to_recheck();
            assert_eq!(small.join().unwrap(), Err(WaitError::Closed));
        });
    }

    #[test]
    fn a_quarter_of_the_room_serves_the_line_and_less_is_found_at_the_deadline() {
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
            // The rest stays taken for long, as behind a commit.
            release(&budget, 15);
            all_released(&budget);
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        release(&budget, 10);
        // 85 bytes are taken. The wait has a deadline that has passed already.
        assert_eq!(reserve(&budget, 15, Instant::now()), Ok(()));
        assert_eq!(
            reserve(&budget, 1, Instant::now()),
            Err(WaitError::TimedOut)
        );
    }

    /// Waits until this many threads are in the line.
    fn await_line(budget: &WriteBudget, count: usize) {
        while budget.waiting.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
    }

    #[test]
    fn claims_that_fit_are_served_together_and_no_other_thread_is_woken() {
        let budget = WriteBudget::new(100);
        budget.take(100);
        let asked = AtomicUsize::new(0);
        thread::scope(|scope| {
            let waiters: Vec<_> = (1..=4)
                .map(|count| {
                    let wait = || {
                        // Called before the first sleep and after each wake-up.
                        let is_pointless = || asked.fetch_add(1, Ordering::SeqCst) == usize::MAX;
                        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
                        budget.wait_in_line(12, try_take, soon(), is_pointless)
                    };
                    let waiter = scope.spawn(wait);
                    await_line(&budget, count);
                    waiter
                })
                .collect();
            // All threads have called `is_pointless`, and sleep or are about to.
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
            assert_eq!(
                asked.load(Ordering::SeqCst),
                4,
                "no thread was woken in vain"
            );
        });
        assert_eq!(budget.taken(), 48);
        assert!(!budget.has_line());
    }

    #[test]
    fn if_not_all_claims_fit_fewer_are_served_and_each_gets_a_share() {
        const SIZE: usize = 25;
        let budget = WriteBudget::new(1600);
        budget.take(1600);
        let publish_as_many_as_pass = || {
            let mut count = 0;
            while budget.admit(0, SIZE) {
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
            if budget.release(bytes, || 0) {
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
            // A quarter of the room: four claims, each with a share of three messages.
            assert_eq!(serve(1), 8);
            assert_eq!(serve(100), 8, "unused shares stay reserved");
            assert_eq!(publish_as_many_as_pass(), 0, "this thread has no share");
            go.store(true, Ordering::SeqCst);
            for publisher in publishers.drain(..4) {
                assert_eq!(publisher.join().unwrap(), 3);
            }
            go.store(false, Ordering::SeqCst);
            assert_eq!(serve(299), 8);
            assert_eq!(serve(1), 4);
            // No more room is freed for now, and the shares are not used.
            all_released(&budget);
            assert_eq!(waiting(), 1);
            all_released(&budget);
            assert_eq!(waiting(), 0);
            go.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn a_publisher_that_waits_again_gives_back_the_rest_of_its_share() {
        let budget = WriteBudget::new(1600);
        let in_line = |bytes| reserve(&budget, bytes, Instant::now());
        budget.take(1600);
        assert_eq!(in_line(10), Err(WaitError::TimedOut));
        thread::scope(|scope| {
            let large = scope.spawn(|| reserve(&budget, 5000, soon()));
            await_line(&budget, 1);
            // Behind the large claim no publisher is served, so the test sets the share itself.
            let round = budget.round.load(Ordering::SeqCst);
            budget.shares.store(90, Ordering::SeqCst);
            set_own_share(Share { round, bytes: 90 });
            budget.taken.store(1500, Ordering::SeqCst);
            assert!(budget.admit(0, 60) && !budget.admit(0, 60));
            assert_eq!(budget.shares.load(Ordering::SeqCst), 30);
            assert_eq!(in_line(60), Err(WaitError::TimedOut));
            assert_eq!(budget.shares.load(Ordering::SeqCst), 0);
            assert!(!budget.admit(0, 10), "the share was given back");
            release(&budget, 1500);
            assert_eq!(large.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn room_of_less_than_a_quarter_is_found_at_the_deadline() {
        let budget = WriteBudget::new(100);
        budget.take(100);
        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
        let given_back = AtomicBool::new(false);
        // Called when the thread is in the line already.
        let is_pointless = || {
            if !given_back.swap(true, Ordering::SeqCst) {
                assert!(!budget.release(10, || 0), "this is less than a quarter");
            }
            false
        };
        let waited = budget.wait_in_line(10, try_take, Instant::now(), is_pointless);
        assert_eq!(waited, Ok(()));
        assert_eq!(budget.taken(), 100);
    }

    #[test]
    fn a_share_is_for_four_messages_but_no_large_part_of_the_room() {
        let budget = WriteBudget::new(6400);
        let shares = [1, 50, 99, 200, 1000].map(|bytes| budget.claim_with_share(bytes));
        assert_eq!(shares, [100, 200, 396, 400, 1000]);
    }

    #[test]
    fn a_share_of_an_earlier_round_is_void() {
        let budget = WriteBudget::new(1600);
        budget.take(1600);
        let over = AtomicBool::new(false);
        let is_over = || over.load(Ordering::SeqCst);
        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.wait_in_line(5000, try_take, soon(), is_over));
            await_line(&budget, 1);
            budget.taken.store(100, Ordering::SeqCst);
            let round = budget.round.load(Ordering::SeqCst);
            set_own_share(Share { round, bytes: 90 });
            assert!(budget.admit(0, 10));
            // The first publisher in the line finds no room, so it is not served.
            all_released(&budget);
            assert!(!budget.admit(0, 10), "another round has begun");
            over.store(true, Ordering::SeqCst);
            budget.wake_to_recheck();
            assert_eq!(large.join().unwrap(), Err(WaitError::Closed));
        });
    }

    #[test]
    fn the_next_publisher_is_served_when_the_first_one_gives_up() {
        let budget = WriteBudget::new(100);
        budget.take(90);
        let over = AtomicBool::new(false);
        let try_take = |bytes, beside| budget.take_if_room(beside, bytes);
        let is_over = || over.load(Ordering::SeqCst);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.wait_in_line(1000, try_take, soon(), is_over));
            await_line(&budget, 1);
            let small = scope.spawn(|| budget.wait_in_line(10, try_take, soon(), never));
            await_line(&budget, 2);
            over.store(true, Ordering::SeqCst);
            budget.wake_to_recheck();
            assert_eq!(large.join().unwrap(), Err(WaitError::Closed));
            assert_eq!(small.join().unwrap(), Ok(()));
        });
        // The next publisher is also served when the first one times out.
        let soon_over = Instant::now() + Duration::from_millis(50);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.wait_in_line(1000, try_take, soon_over, never));
            await_line(&budget, 1);
            let small = scope.spawn(|| budget.wait_in_line(0, try_take, soon(), never));
            assert_eq!(large.join().unwrap(), Err(WaitError::TimedOut));
            assert_eq!(small.join().unwrap(), Ok(()));
        });
    }
}
