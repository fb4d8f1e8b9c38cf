//! A byte budget: bounds the bytes of publishes, and keeps the line of publishers that wait for
//! room.
//!
//! A connection has two: the write budget for what waits to be written, and the unconfirmed budget
//! for what may have to be sent again.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

pub(crate) use crate::io::waiting_line::WaitError;
use crate::io::waiting_line::WaitingLine;

/// The room for the bytes of publishes. Publishers wait for room, and are served in the order in
/// which they came. All other commands take room unconditionally, so that acknowledgements and
/// closes are never stuck behind a publisher.
///
/// `taken` counts the bytes in the blocks of all channels, those that the IO thread has taken and
/// not released yet, and the room that is reserved for publishers that have waited. It is one
/// atomic number, so that publishers on different channels share no lock.
///
/// When a quarter of the room is free, the IO thread reserves room for the first publishers in the
/// line, and wakes only these. It would cost several times as much as publishing to wake all of
/// them, or to wake each for a single message. So each served publisher also gets a *share*: room
/// for its next messages, which it may queue before the publishers that still wait. When the line
/// is empty, all threads publish without waiting until the room is used up.
#[derive(Debug)]
pub(crate) struct ByteBudget {
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

impl ByteBudget {
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

    /// Takes room for the `bytes` of a publish, if there is room. While publishers wait, the bytes
    /// must fit into the share of the calling thread, and leave it. A message that is larger than
    /// the whole budget passes if no other byte waits.
    #[inline]
    pub(crate) fn admit(&self, bytes: usize) -> bool {
        match self.has_line() {
            false => self.take_if_room(bytes, 0),
            true => self.take_from_share(bytes),
        }
    }

    fn take_from_share(&self, bytes: usize) -> bool {
        let share = own_share();
        let is_good = share.round == self.round.load(Ordering::SeqCst) && share.bytes >= bytes;
        let has_room = is_good && self.take_if_room(bytes, 0);
        if has_room {
            self.use_up(bytes);
            set_own_share(Share {
                bytes: share.bytes - bytes,
                ..share
            });
        }
        has_room
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

    /// Takes room for `bytes`, if `beside` more bytes would fit as well.
    #[inline]
    fn take_if_room(&self, bytes: usize, beside: usize) -> bool {
        let mut used = self.taken.load(Ordering::SeqCst);
        loop {
            let all = used.saturating_add(beside).saturating_add(bytes);
            if used + beside > 0 && all > self.limit {
                return false;
            }
            let more = used + bytes;
            match self
                .taken
                .compare_exchange_weak(used, more, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return true,
                Err(changed) => used = changed,
            }
        }
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Takes room for `bytes`, even if that exceeds the limit.
    pub(crate) fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Frees room for `bytes`, and serves the waiting publishers when a quarter of the room is
    /// free.
    pub(crate) fn release(&self, bytes: usize) {
        let left = self.taken.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        let is_enough = |used: usize| used <= self.limit - self.limit / 4;
        if self.has_line() && is_enough(left + self.shares.load(Ordering::SeqCst)) {
            self.serve_line(&mut self.line.lock());
        }
    }

    /// Frees reserved room that will not be used.
    pub(crate) fn release_reserved(&self, bytes: usize) {
        self.release(bytes);
        self.all_released();
    }

    /// Returns whether a publisher waits.
    pub(crate) fn has_line(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Serves the waiting publishers when no more room will be freed for now. If the free room
    /// consists of unused shares, the shares become void, and the waiting publishers get that room.
    pub(crate) fn all_released(&self) {
        if !self.has_line() {
            return;
        }
        let mut line = self.line.lock();
        let before = line.len();
        self.serve_line(&mut line);
        // The served publishers will publish, and then this function is called again. So shares
        // become void only if no publisher could be served.
        if line.len() == before {
            self.begin_round();
            self.serve_line(&mut line);
        }
    }

    /// Reserves room for the first publishers in the line, and wakes them.
    fn serve_line(&self, line: &mut WaitingLine<Claim>) {
        line.serve_while(|claim| {
            let shares = self.shares.load(Ordering::SeqCst);
            let more = self.claim_with_share(claim.bytes) - claim.bytes;
            if self.take_if_room(claim.bytes, shares + more) {
                let _ = claim.share.set(Share {
                    round: self.round.load(Ordering::SeqCst),
                    bytes: more,
                });
                self.shares.fetch_add(more, Ordering::SeqCst);
                return true;
            }
            // Without room for a share the claim is served alone, unless the free room is reserved
            // for unused shares.
            shares == 0 && self.take_if_room(claim.bytes, 0)
        });
        self.waiting.store(line.len(), Ordering::SeqCst);
    }

    /// Wakes all waiting publishers, so that each calls its `is_pointless` again.
    pub(crate) fn wake_to_recheck(&self) {
        self.line.lock().wake_to_recheck();
    }

    /// Waits in the line until there is room for `bytes`, and reserves it. `is_pointless` is called
    /// before each sleep.
    pub(crate) fn reserve(
        &self,
        bytes: usize,
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
            self.serve_line(&mut line);
        }
        let waited = waiter.wait(&mut line, Some(deadline), is_pointless);
        set_own_share(waiter.claim().share.get().copied().unwrap_or_default());
        let Err(no_room) = waited else {
            return Ok(());
        };
        if no_room == WaitError::TimedOut {
            // There may be less room than `release` serves, or room in shares that are not used.
            self.begin_round();
            self.serve_line(&mut line);
        }
        if waiter.is_served() {
            return Ok(());
        }
        line.leave(&waiter);
        // The next publishers in the line may need less room.
        self.serve_line(&mut line);
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

    fn reserve(budget: &ByteBudget, bytes: usize, deadline: Instant) -> Result<(), WaitError> {
        budget.reserve(bytes, deadline, never)
    }

    #[test]
    fn a_claim_that_fits_passes_and_a_larger_one_waits_until_its_deadline() {
        let budget = ByteBudget::new(100);
        assert!(budget.admit(60));
        assert_eq!(reserve(&budget, 40, soon()), Ok(()));
        assert!(budget.admit(0) && !budget.admit(1));
        let now = Instant::now();
        assert_eq!(reserve(&budget, 1, now), Err(WaitError::TimedOut));
        budget.release(50);
        assert_eq!(reserve(&budget, 50, soon()), Ok(()));
    }

    #[test]
    fn a_claim_larger_than_the_budget_passes_when_the_budget_is_empty() {
        let budget = ByteBudget::new(100);
        budget.take(1);
        let now = Instant::now();
        assert_eq!(reserve(&budget, 500, now), Err(WaitError::TimedOut));
        budget.release(1);
        assert!(budget.admit(500));
        assert!(!budget.admit(1));
        budget.release(500);
        assert_eq!(reserve(&budget, 500, soon()), Ok(()));
        assert_eq!(reserve(&budget, 1, now), Err(WaitError::TimedOut));
    }

    #[test]
    fn waiting_publishers_are_served_in_their_order_and_fail_at_the_end() {
        let budget = ByteBudget::new(100);
        budget.take(100);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let large = scope.spawn(|| reserve(&budget, 1000, soon()));
            while budget.waiting.load(Ordering::SeqCst) < 1 {
                thread::yield_now();
            }
            let small = scope.spawn(|| {
                let is_over = || over.load(Ordering::SeqCst);
                budget.reserve(1, soon(), is_over)
            });
            while budget.waiting.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            // There is room for the small claim only, but the large one is the first in the line.
            budget.release(50);
            assert!(!budget.admit(1), "before the waiting publishers");
            budget.release(50);
            assert_eq!(large.join().unwrap(), Ok(()));
            assert!(!small.is_finished());
            over.store(true, Ordering::SeqCst);
            budget.wake_to_recheck();
            assert_eq!(small.join().unwrap(), Err(WaitError::Closed));
        });
    }

    #[test]
    fn a_quarter_of_the_room_serves_the_line_and_less_is_found_at_the_deadline() {
        let budget = ByteBudget::new(100);
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
            // The rest stays taken for long, as behind a commit.
            budget.release(15);
            budget.all_released();
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        budget.release(10);
        // 85 bytes are taken. The wait has a deadline that has passed already.
        assert_eq!(reserve(&budget, 15, Instant::now()), Ok(()));
        assert_eq!(
            reserve(&budget, 1, Instant::now()),
            Err(WaitError::TimedOut)
        );
    }

    /// Waits until this many threads are in the line.
    fn await_line(budget: &ByteBudget, count: usize) {
        while budget.waiting.load(Ordering::SeqCst) < count {
            thread::yield_now();
        }
    }

    #[test]
    fn claims_that_fit_are_served_together_and_no_other_thread_is_woken() {
        let budget = ByteBudget::new(100);
        budget.take(100);
        let asked = AtomicUsize::new(0);
        thread::scope(|scope| {
            let waiters: Vec<_> = (1..=4)
                .map(|count| {
                    let wait = || {
                        // Called before the first sleep and after each wake-up.
                        let is_pointless = || asked.fetch_add(1, Ordering::SeqCst) == usize::MAX;
                        budget.reserve(12, soon(), is_pointless)
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
            budget.release(25);
            assert_eq!(budget.waiting.load(Ordering::SeqCst), 2);
            assert!(!waiters[2].is_finished() && !waiters[3].is_finished());
            assert_eq!(asked.load(Ordering::SeqCst), 4);
            budget.release(75);
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
        let budget = ByteBudget::new(1600);
        budget.take(1600);
        let publish_as_many_as_pass = || {
            let mut count = 0;
            while budget.admit(SIZE) {
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
            budget.release(bytes);
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
            budget.all_released();
            assert_eq!(waiting(), 1);
            budget.all_released();
            assert_eq!(waiting(), 0);
            go.store(true, Ordering::SeqCst);
        });
    }

    #[test]
    fn a_publisher_that_waits_again_gives_back_the_rest_of_its_share() {
        let budget = ByteBudget::new(1600);
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
            assert!(budget.admit(60) && !budget.admit(60));
            assert_eq!(budget.shares.load(Ordering::SeqCst), 30);
            assert_eq!(in_line(60), Err(WaitError::TimedOut));
            assert_eq!(budget.shares.load(Ordering::SeqCst), 0);
            assert!(!budget.admit(10), "the share was given back");
            budget.release(1560);
            assert_eq!(large.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn room_of_less_than_a_quarter_is_found_at_the_deadline() {
        let budget = ByteBudget::new(100);
        budget.take(100);
        let given_back = AtomicBool::new(false);
        // Called when the thread is in the line already.
        let is_pointless = || {
            if !given_back.swap(true, Ordering::SeqCst) {
                // This is less than a quarter, so the line is not served.
                budget.release(10);
                assert!(budget.has_line());
            }
            false
        };
        let waited = budget.reserve(10, Instant::now(), is_pointless);
        assert_eq!(waited, Ok(()));
        assert_eq!(budget.taken(), 100);
    }

    #[test]
    fn a_share_is_for_four_messages_but_no_large_part_of_the_room() {
        let budget = ByteBudget::new(6400);
        let shares = [1, 50, 99, 200, 1000].map(|bytes| budget.claim_with_share(bytes));
        assert_eq!(shares, [100, 200, 396, 400, 1000]);
    }

    #[test]
    fn a_share_of_an_earlier_round_is_void() {
        let budget = ByteBudget::new(1600);
        budget.take(1600);
        let over = AtomicBool::new(false);
        let is_over = || over.load(Ordering::SeqCst);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.reserve(5000, soon(), is_over));
            await_line(&budget, 1);
            budget.taken.store(100, Ordering::SeqCst);
            let round = budget.round.load(Ordering::SeqCst);
            set_own_share(Share { round, bytes: 90 });
            assert!(budget.admit(10));
            // The first publisher in the line finds no room, so it is not served.
            budget.all_released();
            assert!(!budget.admit(10), "another round has begun");
            over.store(true, Ordering::SeqCst);
            budget.wake_to_recheck();
            assert_eq!(large.join().unwrap(), Err(WaitError::Closed));
        });
    }

    #[test]
    fn the_next_publisher_is_served_when_the_first_one_gives_up() {
        let budget = ByteBudget::new(100);
        budget.take(90);
        let over = AtomicBool::new(false);
        let is_over = || over.load(Ordering::SeqCst);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.reserve(1000, soon(), is_over));
            await_line(&budget, 1);
            let small = scope.spawn(|| budget.reserve(10, soon(), never));
            await_line(&budget, 2);
            over.store(true, Ordering::SeqCst);
            budget.wake_to_recheck();
            assert_eq!(large.join().unwrap(), Err(WaitError::Closed));
            assert_eq!(small.join().unwrap(), Ok(()));
        });
        // The next publisher is also served when the first one times out.
        let soon_over = Instant::now() + Duration::from_millis(50);
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.reserve(1000, soon_over, never));
            await_line(&budget, 1);
            let small = scope.spawn(|| budget.reserve(0, soon(), never));
            assert_eq!(large.join().unwrap(), Err(WaitError::TimedOut));
            assert_eq!(small.join().unwrap(), Ok(()));
        });
    }
}
