//! The confirm window: how many publishes of a channel may be unconfirmed, and the threads that
//! wait for a place in it. Also the sequence numbers and outcomes of the publishes; their record is
//! the confirm ledger (`protocol/confirms.rs`).

mod losses;
mod outcomes;
mod ticket;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use self::outcomes::Outcomes;
pub(crate) use self::ticket::Ticket;
use crate::io::busy_wait::{BusyWait, ROUND_TRIP_MESSAGES_MAX};
use crate::io::to_program::bounded_queue::TotalBytes;
use crate::io::to_program::confirm_slot::Slot;
use crate::io::to_program::outcome_queue::{KeptOutcome, OutcomeQueue};
use crate::io::to_program::publish_failures::{Failures, Taken};
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::io::to_program::waiting_threads::WaitingThreads;
use crate::io::waiting_line::{WaitError, WaitingLine};
use crate::protocol::confirms::ConfirmLedger;
use crate::protocol::content::ReturnedContent;

#[derive(Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Plain,
    /// `confirm.select` has no reply yet. Publishes wait, because the broker counts those behind it
    /// and not those before it.
    Selecting,
    Confirming,
}

/// The confirm window of one channel. It also stops publishes for `channel.flow`, during a commit
/// and after a loss of the connection, whether or not the channel is in confirm mode.
///
/// The lock is held for a few instructions only, and never while a thread waits.
#[derive(Debug)]
pub(crate) struct ConfirmWindow {
    /// How many publishes may be unconfirmed.
    size: usize,
    /// The busy wait for a place in a small window.
    busy_wait: BusyWait,
    total: TotalBytes,
    /// Whether a publish must check the state: in confirm mode, while `channel.flow` stops
    /// publishes, or during a commit. Each publish reads this flag without the lock.
    must_check_state: AtomicBool,
    /// The number of publishes that were handed to the outbox; in confirm mode the number of the
    /// last one, or less than zero as long as publishes without a number precede the first one. The
    /// IO thread counts them if the connection can outlive a loss.
    written: AtomicI64,
    /// How many of these publishes the broker has certainly got, outside confirm mode.
    proven: AtomicU64,
    /// How many publishes before the pending `confirm.select` are in doubt at a loss.
    unproven_before_select: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Whether `confirm.select` was sent, so that publishes behind it have numbers.
    numbers_begun: bool,
    /// Whether the broker has stopped publishes with `channel.flow`.
    flow_stopped: bool,
    /// Whether publishes wait for the reply to `tx.commit`, because a buffer is already kept back
    /// for it.
    committing: bool,
    /// Whether the channel is not restored after a loss of the connection. Publishes wait until it
    /// is, unless they are kept.
    suspended: bool,
    /// Whether publishes in confirm mode are kept until they are confirmed, to send them again
    /// after a loss.
    keeps: bool,
    ledger: ConfirmLedger<Arc<Slot>, Arc<ReturnedContent>>,
    failures: Failures,
    /// The outcomes for callbacks; `None` if there are no callbacks for confirms.
    outcomes: Option<OutcomeQueue>,
    /// Whether the program has dropped the channel, so that failures and outcomes are not stored.
    abandoned: bool,
    /// The RPC replies, whose threads are woken at once by a failed publish.
    rpc_replies: Option<Arc<RpcReplies>>,
    /// The sequence number of the last publish for which a close has waited.
    last_before_close: u64,
    /// The threads that wait for room in the confirm window. While there are any, a new publish
    /// finds no room, because all free places are reserved for them.
    room_line: WaitingLine<()>,
    /// How many places in the window are reserved for threads that were served and have not
    /// published yet.
    reserved_places: usize,
    /// The threads that wait until all publishes up to a number are confirmed.
    confirmed_line: WaitingLine<u64>,
    /// The threads that wait for the reply to `confirm.select`.
    select_line: WaitingLine<()>,
    /// Slots without a holder, for reuse. There are at most as many as the window has places.
    slots: Vec<Arc<Slot>>,
}

/// The effect of a confirm.
#[derive(Debug)]
pub(crate) struct Confirmed {
    /// How many publishes the confirm covers.
    pub(crate) count: u64,
    /// Whether callbacks for confirms must be dispatched.
    pub(crate) has_outcomes: bool,
}

impl ConfirmWindow {
    /// Creates the confirm window of a channel, with `size` places. Its failures and outcomes count
    /// in `total`. `keeps` is whether publishes are kept until they are confirmed.
    pub(crate) fn new(
        size: usize,
        busy_wait_limit: Duration,
        keeps: bool,
        total: &TotalBytes,
    ) -> Self {
        Self {
            size: size.max(1),
            busy_wait: BusyWait::for_streams(busy_wait_limit),
            total: total.clone(),
            must_check_state: AtomicBool::new(false),
            written: AtomicI64::new(0),
            proven: AtomicU64::new(0),
            unproven_before_select: AtomicU64::new(0),
            state: Mutex::new(State {
                mode: Mode::Plain,
                numbers_begun: false,
                flow_stopped: false,
                committing: false,
                suspended: false,
                keeps,
                ledger: ConfirmLedger::new(),
                failures: Failures::new(total),
                outcomes: None,
                abandoned: false,
                rpc_replies: None,
                last_before_close: 0,
                room_line: WaitingLine::default(),
                reserved_places: 0,
                confirmed_line: WaitingLine::default(),
                select_line: WaitingLine::default(),
                slots: Vec::new(),
            }),
        }
    }

    /// Waits in the line until a place in the window is reserved, for the next
    /// [`begin`](Self::begin) or until [`release_place`](Self::release_place).
    pub(crate) fn wait_for_room(
        &self,
        deadline: Instant,
        threads: &WaitingThreads,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        let waiter = state.room_line.join(());
        // A confirm may have made room before this thread joined the line.
        state.serve(self.size);
        if self.size <= ROUND_TRIP_MESSAGES_MAX && !waiter.is_served() {
            // Counted at the first look: where spinning does not pay, most waits do not spin.
            let mut spinning = None;
            let look = || {
                spinning.get_or_insert_with(|| threads.count_as_spinning());
                (waiter.is_served() || is_pointless()).then_some(())
            };
            MutexGuard::unlocked(&mut state, || {
                self.busy_wait.look_until(Some(deadline), look);
            });
        }
        let waited = waiter.wait(&mut state, Some(deadline), is_pointless);
        if waited.is_err() {
            state.room_line.leave(&waiter);
        }
        waited
    }

    /// Frees a reserved place that will not be used.
    pub(crate) fn release_place(&self) {
        let mut state = self.state.lock();
        state.reserved_places -= 1;
        state.serve(self.size);
    }

    /// Returns whether a publish needs [`begin`](Self::begin) before it is queued.
    pub(crate) fn must_check_state(&self) -> bool {
        self.must_check_state.load(Ordering::Acquire)
    }

    /// Begins a publish: returns the lock under which it is queued and gets its sequence number, so
    /// that numbers and queue have one order. Returns `None` if the confirm window is full.
    ///
    /// `has_place` is whether a place in the window is reserved for this publish. The ticket takes
    /// the place over.
    pub(crate) fn begin(&self, has_place: &mut bool) -> Option<Ticket<'_>> {
        let mut state = self.state.lock();
        let had_place = std::mem::take(has_place);
        state.reserved_places -= usize::from(had_place);
        state
            .has_room(self.size)
            .then_some(Ticket { state, had_place })
    }

    /// Begins confirm mode: calls `send`, which queues `confirm.select`, and makes publishes wait
    /// until [`select_done`](Self::select_done). Returns `false` if confirm mode is on already, or
    /// another thread is switching it on.
    pub(crate) fn select(&self, send: impl FnOnce()) -> bool {
        let mut state = self.state.lock();
        if state.mode != Mode::Plain {
            return false;
        }
        state.mode = Mode::Selecting;
        self.must_check_state.store(true, Ordering::Release);
        send();
        true
    }

    pub(crate) fn select_done(&self, selected: bool) {
        if selected {
            self.prove_before_select();
        }
        let mut state = self.state.lock();
        state.numbers_begun &= selected;
        state.mode = match selected {
            true => Mode::Confirming,
            false => Mode::Plain,
        };
        self.must_check_state
            .store(state.must_check_state(), Ordering::Release);
        state.select_line.serve_while(|()| true);
        state.serve(self.size);
    }

    /// Waits until confirm mode is on, or could not be switched on.
    pub(crate) fn wait_selected(
        &self,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        if state.mode != Mode::Selecting {
            return Ok(());
        }
        let waiter = state.select_line.join(());
        let waited = waiter.wait(&mut state, Some(deadline), is_pointless);
        if waited.is_err() {
            state.select_line.leave(&waiter);
        }
        waited
    }

    pub(crate) fn is_confirming(&self) -> bool {
        self.state.lock().mode == Mode::Confirming
    }

    /// Returns the sequence number of the last publish.
    pub(crate) fn last_number(&self) -> u64 {
        self.state.lock().ledger.last()
    }

    /// Waits until all publishes up to `number` are confirmed.
    pub(crate) fn wait_confirmed(
        &self,
        number: u64,
        deadline: Option<Instant>,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        if state.ledger.is_confirmed_up_to(number) {
            return Ok(());
        }
        let waiter = state.confirmed_line.join_in_order(number);
        let waited = waiter.wait(&mut state, deadline, is_pointless);
        if waited.is_err() {
            state.confirmed_line.leave(&waiter);
        }
        waited
    }

    /// Waits until `slot` has an outcome.
    pub(crate) fn wait_slot(
        &self,
        slot: &Slot,
        deadline: Option<Instant>,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        slot.wait(&mut self.state.lock(), deadline, is_pointless)
    }

    /// Takes the failures since the last call.
    pub(crate) fn take_failures(&self) -> Taken {
        self.state.lock().failures.take()
    }

    /// Waits until all publishes before a close are confirmed.
    pub(crate) fn wait_for_last(
        &self,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        let last = state.ledger.last();
        state.last_before_close = last;
        drop(state);
        // The close itself reports the publishes that are still unconfirmed.
        self.wait_confirmed(last, Some(deadline), is_pointless)
    }

    /// Takes the failures that were not reported, and returns whether publishes for which a close
    /// has waited are unconfirmed. The latter is returned once.
    pub(crate) fn take_unreported(&self) -> (Taken, bool) {
        let mut state = self.state.lock();
        let last = std::mem::take(&mut state.last_before_close);
        let is_confirmed = state.ledger.is_confirmed_up_to(last);
        (state.failures.take_unreported(), !is_confirmed)
    }

    /// Records that the holder of `slot` gets its failure.
    pub(crate) fn mark_reported(&self, slot: &Slot) {
        let count = slot.mark_reported();
        if count > 0 {
            self.state.lock().failures.mark_reported(count);
        }
    }

    /// Drops all failures and outcomes, because the program has dropped the channel. Threads may
    /// still wait for single confirms. Returns how many failures were not reported.
    pub(crate) fn abandon(&self) -> u64 {
        let mut state = self.state.lock();
        state.abandoned = true;
        let unreported = state.failures.unreported();
        let failures = state.failures.empty();
        let outcomes = state.outcomes.take();
        drop(state);
        // The lock is free again before the items are dropped, because many megabytes may be freed.
        drop((failures, outcomes));
        unreported
    }

    /// Reports each failed publish to `rpc_replies` from now on. Requests are not sent again after
    /// a loss, because a server may have done the work.
    pub(crate) fn set_rpc_replies(&self, rpc_replies: &Arc<RpcReplies>) {
        let mut state = self.state.lock();
        state.rpc_replies = Some(Arc::clone(rpc_replies));
        state.keeps = false;
    }

    /// Records a confirm of the broker. `settle` is called with the number of each publish.
    pub(crate) fn confirmed(
        &self,
        number: u64,
        multiple: bool,
        ack: bool,
        mut settle: impl FnMut(u64),
    ) -> Confirmed {
        self.prove_before_select();
        self.end_publishes(|ledger, outcomes| {
            ledger.confirm(number, multiple, ack, |number, slot, outcome| {
                settle(number);
                outcomes.record(number, slot, outcome);
            });
        })
    }

    /// Lets `act` record the outcomes of publishes.
    #[inline]
    fn end_publishes(
        &self,
        act: impl FnOnce(&mut ConfirmLedger<Arc<Slot>, Arc<ReturnedContent>>, &mut Outcomes<'_>),
    ) -> Confirmed {
        let mut state = self.state.lock();
        let State {
            ledger,
            failures,
            outcomes,
            abandoned,
            rpc_replies,
            slots,
            ..
        } = &mut *state;
        let dropped_before = outcomes.as_ref().map_or(0, |outcomes| outcomes.dropped);
        let unconfirmed_before = ledger.unconfirmed();
        let mut recorder = Outcomes {
            failures,
            outcomes,
            is_abandoned: *abandoned,
            rpc_replies: rpc_replies.as_deref(),
            slots,
            slots_max: self.size,
        };
        act(ledger, &mut recorder);
        let dropped = outcomes.as_ref().map_or(0, |outcomes| outcomes.dropped);
        let confirmed = Confirmed {
            count: (unconfirmed_before - ledger.unconfirmed()) as u64,
            has_outcomes: outcomes.is_some(),
        };
        state.serve(self.size);
        let State {
            ledger,
            confirmed_line,
            ..
        } = &mut *state;
        confirmed_line.serve_while(|number| ledger.is_confirmed_up_to(*number));
        drop(state);
        // The lock is free before, because the program's log backend may publish.
        if dropped > 0 && dropped_before == 0 {
            log::warn!("no thread dispatches the callbacks for confirms; the oldest are dropped");
        }
        confirmed
    }

    /// Stores the outcomes of publishes for callbacks from now on.
    pub(crate) fn keep_outcomes(&self) {
        let mut state = self.state.lock();
        state
            .outcomes
            .get_or_insert_with(|| OutcomeQueue::new(&self.total));
    }

    /// Takes the outcome of the next publish.
    pub(crate) fn take_outcome(&self) -> Option<KeptOutcome> {
        self.state.lock().outcomes.as_mut()?.take()
    }

    /// Returns how many publishes the broker has confirmed.
    pub(crate) fn confirmed_count(&self) -> u64 {
        let ledger = &self.state.lock().ledger;
        ledger.last() - ledger.unconfirmed() as u64
    }

    /// Returns how many publishes are unconfirmed.
    pub(crate) fn outstanding(&self) -> usize {
        self.state.lock().ledger.unconfirmed()
    }

    /// Stops or resumes publishes, for `channel.flow`.
    pub(crate) fn set_flow(&self, active: bool) {
        let mut state = self.state.lock();
        state.flow_stopped = !active;
        self.must_check_state
            .store(state.must_check_state(), Ordering::Release);
        state.serve(self.size);
    }

    /// Makes publishes wait for the reply to `tx.commit`, so that no more of them are kept back.
    pub(crate) fn set_committing(&self, committing: bool) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.committing, committing) == committing {
            return;
        }
        self.must_check_state
            .store(state.must_check_state(), Ordering::Release);
        state.serve(self.size);
    }

    /// Returns whether the broker accepts publishes, according to `channel.flow`.
    pub(crate) fn is_flow_active(&self) -> bool {
        !self.state.lock().flow_stopped
    }

    /// Wakes all waiting threads after the end of the channel: no more confirms will arrive.
    pub(crate) fn channel_ended(&self) {
        let mut state = self.state.lock();
        let State {
            ledger, outcomes, ..
        } = &mut *state;
        ledger.each_unconfirmed(|number, slot| {
            if let Some(outcomes) = outcomes {
                outcomes.add(number, None, slot.is_resent());
            }
            slot.wake_to_recheck();
        });
        state.room_line.wake_to_recheck();
        state.confirmed_line.wake_to_recheck();
        state.select_line.wake_to_recheck();
    }

    /// Records a returned message as the outcome of its publish. Returns the message if it belongs
    /// to no publish in confirm mode.
    pub(crate) fn returned(
        &self,
        fingerprint: u64,
        message: ReturnedContent,
    ) -> Option<Arc<ReturnedContent>> {
        let message = Arc::new(message);
        let mut state = self.state.lock();
        let ledger = &mut state.ledger;
        ledger.returned(fingerprint, &message.properties, Arc::clone(&message))
    }
}

impl State {
    fn new_slot(&mut self) -> Arc<Slot> {
        self.slots.pop().unwrap_or_default()
    }

    fn must_check_state(&self) -> bool {
        self.flow_stopped || self.committing || self.suspended || self.mode != Mode::Plain
    }

    fn is_kept(&self) -> bool {
        self.keeps && self.mode == Mode::Confirming
    }

    fn has_room(&self, window: usize) -> bool {
        match self.mode {
            _ if self.flow_stopped || self.committing => false,
            _ if self.suspended && !self.is_kept() => false,
            Mode::Plain => true,
            Mode::Selecting => false,
            Mode::Confirming => self.ledger.unconfirmed() + self.reserved_places < window,
        }
    }

    /// Reserves places for the first threads in the line, as long as there is room, and wakes them.
    fn serve(&mut self, window: usize) {
        while !self.room_line.is_empty() && self.has_room(window) {
            self.reserved_places += 1;
            self.room_line.serve_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::io::to_program::bounded_queue::BoundedQueue;
    use crate::io::to_program::rpc_replies::RpcEvent;
    use crate::protocol::confirms::{Mandatory, PublishOutcome};
    use crate::protocol::methods::basic;

    fn confirming(window: usize, total: &TotalBytes) -> ConfirmWindow {
        let confirm_window = ConfirmWindow::new(window, Duration::ZERO, false, total);
        assert!(confirm_window.select(|| {}));
        confirm_window.select_done(true);
        confirm_window
    }

    fn wait_for_room(
        confirm_window: &ConfirmWindow,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        confirm_window.wait_for_room(deadline, &WaitingThreads::default(), is_pointless)
    }

    /// Publishes in confirm mode. Returns the sequence number and the slot, or `None` if the window
    /// is full.
    fn enter(confirm_window: &ConfirmWindow) -> Option<(u64, Arc<Slot>)> {
        let ticket = confirm_window.begin(&mut false)?;
        Some(ticket.commit(None, false).expect("confirm mode"))
    }

    /// Publishes like `enter`, with a reserved place.
    fn enter_with_place(confirm_window: &ConfirmWindow) -> Option<(u64, Arc<Slot>)> {
        let mut has_place = true;
        let ticket = confirm_window.begin(&mut has_place);
        assert!(!has_place);
        Some(ticket?.commit(None, false).expect("confirm mode"))
    }

    fn number(confirm_window: &ConfirmWindow) -> Option<u64> {
        enter(confirm_window).map(|(number, _)| number)
    }

    fn slot(confirm_window: &ConfirmWindow) -> Arc<Slot> {
        enter(confirm_window).expect("room in the window").1
    }

    #[test]
    fn the_window_bounds_the_unconfirmed_publishes() {
        let confirm_window = confirming(2, &TotalBytes::default());
        let numbers = [(); 3].map(|()| number(&confirm_window));
        assert_eq!(numbers, [Some(1), Some(2), None]);
        confirm_window.confirmed(2, false, true, |_| {});
        assert_eq!(number(&confirm_window), Some(3));
        assert_eq!(number(&confirm_window), None);
        confirm_window.confirmed(3, true, true, |_| {});
        assert_eq!(number(&confirm_window), Some(4));
    }

    impl ConfirmWindow {
        /// Whether a publish waits for room in the window.
        pub(crate) fn is_room_awaited(&self) -> bool {
            !self.state.lock().room_line.is_empty()
        }
    }

    fn in_line(confirm_window: &ConfirmWindow) -> usize {
        let state = confirm_window.state.lock();
        state.room_line.len() + state.confirmed_line.len() + state.select_line.len()
    }

    type Wait<'a> = &'a (dyn Fn(Instant) -> Result<(), WaitError> + Sync);

    /// Returns the result of `wait`, during which `change` is called.
    fn woken_by(
        confirm_window: &ConfirmWindow,
        wait: impl FnOnce(Instant) -> Result<(), WaitError> + Send,
        change: impl FnOnce(),
    ) -> Result<(), WaitError> {
        let deadline = Instant::now() + Duration::from_secs(10);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let outcome = wait(deadline);
                // A wait that `change` does not end fails here.
                assert!(Instant::now() < deadline);
                outcome
            });
            while in_line(confirm_window) == 0 {
                thread::yield_now();
            }
            change();
            waiter.join().unwrap()
        })
    }

    #[test]
    fn waiting_threads_are_woken_by_the_event_that_ends_their_wait() {
        let confirm_window = ConfirmWindow::new(1, Duration::ZERO, false, &TotalBytes::default());
        let room = |deadline| wait_for_room(&confirm_window, deadline, || false);
        let selected = |deadline| confirm_window.wait_selected(deadline, || false);
        for (wait, succeeds) in [(&room as Wait<'_>, false), (&selected, true)] {
            assert!(confirm_window.select(|| {}));
            let done = || confirm_window.select_done(succeeds);
            assert_eq!(woken_by(&confirm_window, wait, done), Ok(()));
        }
        confirm_window.release_place();
        assert_eq!(number(&confirm_window), Some(1));
        let confirm = || {
            let confirmed = confirm_window.confirmed(1, false, true, |_| {});
            assert!(!confirmed.has_outcomes, "there is no callback for confirms");
            assert_eq!(confirmed.count, 1);
        };
        assert_eq!(woken_by(&confirm_window, room, confirm), Ok(()));
        confirm_window.release_place();
        confirm_window.set_flow(false);
        let flow = || confirm_window.set_flow(true);
        assert_eq!(woken_by(&confirm_window, room, flow), Ok(()));
        confirm_window.release_place();
        confirm_window.set_committing(true);
        let commit = || confirm_window.set_committing(false);
        assert_eq!(woken_by(&confirm_window, room, commit), Ok(()));
        confirm_window.release_place();
        assert_eq!(number(&confirm_window), Some(2));
        let is_over = AtomicBool::new(false);
        let confirmed = |deadline| {
            let is_pointless = || is_over.load(Ordering::SeqCst);
            confirm_window.wait_confirmed(2, Some(deadline), is_pointless)
        };
        let end = || {
            is_over.store(true, Ordering::SeqCst);
            confirm_window.channel_ended();
        };
        assert_eq!(
            woken_by(&confirm_window, confirmed, end),
            Err(WaitError::Closed)
        );
        assert_eq!(in_line(&confirm_window), 0);
    }

    /// A waiting thread, and how often it has called `is_pointless`: before its first sleep, and
    /// each time it was woken without being served.
    struct Sleeper<'scope> {
        asked: Arc<AtomicUsize>,
        thread: thread::ScopedJoinHandle<'scope, Result<(), WaitError>>,
    }

    impl<'scope> Sleeper<'scope> {
        /// Starts a thread that runs `wait`, and returns when it sleeps, or still holds the lock
        /// and is about to.
        fn start<'env>(
            scope: &'scope thread::Scope<'scope, 'env>,
            wait: impl FnOnce(&dyn Fn() -> bool) -> Result<(), WaitError> + Send + 'scope,
        ) -> Self {
            let asked = Arc::new(AtomicUsize::new(0));
            let counter = Arc::clone(&asked);
            let thread = scope.spawn(move || {
                wait(&|| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    false
                })
            });
            while asked.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            Self { asked, thread }
        }

        /// Asserts that the thread was served, and was woken once.
        fn assert_served(self) {
            assert_eq!(self.thread.join().unwrap(), Ok(()));
            assert_eq!(self.asked.load(Ordering::SeqCst), 1, "woken in vain");
        }
    }

    fn assert_asleep(sleepers: &[Sleeper<'_>]) {
        for sleeper in sleepers {
            assert!(!sleeper.thread.is_finished());
            assert_eq!(sleeper.asked.load(Ordering::SeqCst), 1, "woken in vain");
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// Returns a full confirm window with a longest spin of ten minutes.
    fn full(size: usize) -> ConfirmWindow {
        let spin = Duration::from_secs(600);
        let confirm_window = ConfirmWindow::new(size, spin, false, &TotalBytes::default());
        assert!(confirm_window.select(|| {}));
        confirm_window.select_done(true);
        while enter(&confirm_window).is_some() {}
        confirm_window
    }

    #[test]
    fn a_thread_spins_for_a_place_in_a_small_window_until_a_confirm_or_the_end() {
        let confirm_window = full(ROUND_TRIP_MESSAGES_MAX);
        let (threads, is_over) = (WaitingThreads::default(), AtomicBool::new(false));
        let wait = || {
            let deadline = Instant::now() + Duration::from_secs(3600);
            let is_pointless = || is_over.load(Ordering::SeqCst);
            confirm_window.wait_for_room(deadline, &threads, is_pointless)
        };
        let wait_while_spinning = |then: &dyn Fn()| {
            thread::scope(|scope| {
                let waiting = scope.spawn(wait);
                while !threads.are_spinning() {
                    thread::yield_now();
                }
                then();
                waiting.join().unwrap()
            })
        };
        let confirm = || assert_eq!(confirm_window.confirmed(1, false, true, |_| {}).count, 1);
        assert_eq!(wait_while_spinning(&confirm), Ok(()));
        assert!(enter_with_place(&confirm_window).is_some());
        let end = || is_over.store(true, Ordering::SeqCst);
        assert_eq!(wait_while_spinning(&end), Err(WaitError::Closed));
        assert!(!threads.are_spinning());
    }

    #[test]
    fn a_thread_sleeps_at_once_at_a_large_window_and_with_a_near_deadline() {
        let threads = WaitingThreads::default();
        let wait = |confirm_window: &ConfirmWindow, deadline| {
            // Called before each sleep. A spin would call it as well, while the thread is counted.
            let is_pointless = || {
                assert!(!threads.are_spinning());
                true
            };
            confirm_window.wait_for_room(deadline, &threads, is_pointless)
        };
        let far = Instant::now() + Duration::from_secs(3600);
        let large = full(ROUND_TRIP_MESSAGES_MAX + 1);
        assert_eq!(wait(&large, far), Err(WaitError::Closed));
        let small = full(1);
        let late = thread::scope(|scope| {
            let wait = || small.wait_for_room(Instant::now(), &threads, || false);
            scope.spawn(wait).join().unwrap()
        });
        assert_eq!(late, Err(WaitError::TimedOut));
    }

    #[test]
    fn a_confirm_wakes_one_thread_for_each_free_place_in_their_order() {
        const WINDOW: usize = 4;
        let confirm_window = confirming(WINDOW, &TotalBytes::default());
        (1..=WINDOW as u64).for_each(|next| assert_eq!(number(&confirm_window), Some(next)));
        thread::scope(|scope| {
            let wait = |is_pointless: &dyn Fn() -> bool| {
                wait_for_room(&confirm_window, soon(), is_pointless)
            };
            let mut sleepers: Vec<_> = (0..16).map(|_| Sleeper::start(scope, wait)).collect();
            for (up_to, multiple, places) in [(3, false, 1), (3, true, 2), (4, true, 1)] {
                confirm_window.confirmed(up_to, multiple, true, |_| {});
                let served: Vec<_> = sleepers.drain(..places).collect();
                served.into_iter().for_each(Sleeper::assert_served);
                assert_eq!(confirm_window.state.lock().room_line.len(), sleepers.len());
                assert_asleep(&sleepers);
                // The served threads keep their places.
                assert_eq!(number(&confirm_window), None);
            }
            for next in 5..=8 {
                let entered = enter_with_place(&confirm_window);
                assert!(matches!(entered, Some((number, _)) if number == next));
            }
            // A place that is freed without a publish serves the next thread.
            confirm_window.confirmed(8, false, true, |_| {});
            sleepers.remove(0).assert_served();
            confirm_window.release_place();
            sleepers.remove(0).assert_served();
            assert_asleep(&sleepers);
            for number in 5..=7 {
                confirm_window.confirmed(number, false, true, |_| {});
                sleepers.remove(0).assert_served();
            }
            assert_asleep(&sleepers);
            // Each served thread publishes, and its confirm serves the next one.
            for number in 9.. {
                let entered = enter_with_place(&confirm_window);
                assert!(matches!(entered, Some((given, _)) if given == number));
                if sleepers.is_empty() {
                    break;
                }
                confirm_window.confirmed(number, true, true, |_| {});
                sleepers.remove(0).assert_served();
            }
        });
        assert_eq!(in_line(&confirm_window), 0);
    }

    #[test]
    fn a_reserved_place_survives_a_cancelled_attempt_but_not_channel_flow() {
        let confirm_window = confirming(1, &TotalBytes::default());
        let room = || wait_for_room(&confirm_window, Instant::now(), || false);
        assert_eq!(room(), Ok(()));
        assert_eq!(room(), Err(WaitError::TimedOut));
        let mut has_place = true;
        let ticket = confirm_window.begin(&mut has_place).unwrap();
        assert!(!has_place && ticket.cancel());
        assert_eq!(number(&confirm_window), None);
        confirm_window.set_flow(false);
        assert!(enter_with_place(&confirm_window).is_none());
        confirm_window.set_flow(true);
        assert_eq!(number(&confirm_window), Some(1));
    }

    #[test]
    fn a_confirm_wakes_only_the_threads_that_wait_for_it() {
        let confirm_window = confirming(10, &TotalBytes::default());
        let slots: Vec<_> = (0..8).map(|_| slot(&confirm_window)).collect();
        thread::scope(|scope| {
            let confirm_window = &confirm_window;
            let mut sleepers: Vec<_> = slots
                .iter()
                .map(|slot| {
                    Sleeper::start(scope, |is_pointless| {
                        confirm_window.wait_slot(slot, Some(soon()), is_pointless)
                    })
                })
                .collect();
            let last = Sleeper::start(scope, |is_pointless| {
                confirm_window.wait_slot(&slots[7], None, is_pointless)
            });
            confirm_window.confirmed(6, false, true, |_| {});
            sleepers.remove(5).assert_served();
            assert_asleep(&sleepers);
            confirm_window.confirmed(3, true, false, |_| {});
            let served: Vec<_> = sleepers.drain(..3).collect();
            served.into_iter().for_each(Sleeper::assert_served);
            assert_asleep(&sleepers);
            confirm_window.confirmed(8, true, true, |_| {});
            sleepers.into_iter().for_each(Sleeper::assert_served);
            last.assert_served();
        });
    }

    #[test]
    fn a_wait_for_all_publishes_up_to_a_number_ends_when_they_are_confirmed() {
        let confirm_window = confirming(10, &TotalBytes::default());
        (1..=4).for_each(|next| assert_eq!(number(&confirm_window), Some(next)));
        thread::scope(|scope| {
            let confirm_window = &confirm_window;
            // The threads start in another order than they are served.
            let [third, first, second] = [4, 2, 3].map(|number| {
                Sleeper::start(scope, move |is_pointless| {
                    confirm_window.wait_confirmed(number, Some(soon()), is_pointless)
                })
            });
            confirm_window.confirmed(2, false, true, |_| {});
            confirm_window.confirmed(3, false, true, |_| {});
            let sleepers = [first, second, third];
            assert_asleep(&sleepers);
            confirm_window.confirmed(1, false, true, |_| {});
            let [first, second, third] = sleepers;
            first.assert_served();
            second.assert_served();
            assert_asleep(std::slice::from_ref(&third));
            confirm_window.confirmed(4, false, true, |_| {});
            third.assert_served();
        });
    }

    #[test]
    fn the_end_of_the_channel_wakes_all_waiting_threads() {
        let confirm_window = confirming(2, &TotalBytes::default());
        let slots = [(); 2].map(|()| slot(&confirm_window));
        let is_over = AtomicBool::new(false);
        let asked = AtomicUsize::new(0);
        let is_pointless = || {
            asked.fetch_add(1, Ordering::SeqCst);
            is_over.load(Ordering::SeqCst)
        };
        thread::scope(|scope| {
            let waits = [
                scope.spawn(|| confirm_window.wait_slot(&slots[1], None, is_pointless)),
                scope.spawn(|| confirm_window.wait_confirmed(1, None, is_pointless)),
                scope.spawn(|| wait_for_room(&confirm_window, soon(), is_pointless)),
            ];
            while asked.load(Ordering::SeqCst) < waits.len() {
                thread::yield_now();
            }
            is_over.store(true, Ordering::SeqCst);
            confirm_window.channel_ended();
            for wait in waits {
                assert_eq!(wait.join().unwrap(), Err(WaitError::Closed));
            }
        });
        assert_eq!(in_line(&confirm_window), 0);
    }

    #[test]
    fn channel_flow_still_stops_publishes_after_a_failed_confirm_select() {
        let confirm_window = ConfirmWindow::new(2, Duration::ZERO, false, &TotalBytes::default());
        confirm_window.set_flow(false);
        assert!(confirm_window.select(|| {}));
        confirm_window.select_done(false);
        assert!(confirm_window.must_check_state());
        assert!(enter(&confirm_window).is_none());
        confirm_window.set_flow(true);
        assert!(!confirm_window.must_check_state());
    }

    #[test]
    fn a_failure_without_room_is_counted() {
        let total = TotalBytes::default();
        let others: Vec<_> = (0..4)
            .map(|_| {
                let mut kept = BoundedQueue::new(10, &total);
                kept.push((16 << 20) - 64, ());
                kept
            })
            .collect();
        let confirm_window = confirming(10, &total);
        let mandatory = Mandatory {
            fingerprint: 7,
            properties: &[0, 0],
        };
        let ticket = confirm_window.begin(&mut false).unwrap();
        let slot = ticket.commit(Some(mandatory), false);
        drop(slot);
        let returned = ReturnedContent {
            method: basic::Return::default(),
            properties: Default::default(),
            body: Bytes::from(vec![0; 1 << 20]),
        };
        assert_eq!(confirm_window.returned(7, returned), None);
        confirm_window.confirmed(1, false, true, |_| {});
        let failures = confirm_window.take_failures();
        assert!(failures.kept.is_empty());
        assert_eq!(failures.more, 1);
        drop(others);
    }

    /// Publishes `count` messages that the broker nacks.
    fn nacked(confirm_window: &ConfirmWindow, count: u64) -> Vec<Arc<Slot>> {
        let slots = (0..count).map(|_| match enter(confirm_window) {
            Some((number, slot)) => {
                confirm_window.confirmed(number, false, false, |_| {});
                slot
            }
            _ => panic!("not confirming"),
        });
        slots.collect()
    }

    #[test]
    fn a_failure_is_unreported_until_the_program_gets_it() {
        let confirm_window = confirming(10, &TotalBytes::default());
        let slots = nacked(&confirm_window, 1200);
        // Some of these failures are kept, others are only counted.
        for slot in [&slots[0], &slots[1], &slots[1100], &slots[0]] {
            confirm_window.mark_reported(slot);
        }
        let (unreported, is_unconfirmed) = confirm_window.take_unreported();
        assert_eq!((unreported.kept.len(), unreported.more), (998, 199));
        assert_eq!(unreported.kept[0].number, 3);
        assert!(!is_unconfirmed);
        // A failure of an earlier count does not change the later one.
        let later = nacked(&confirm_window, 2);
        slots
            .iter()
            .for_each(|slot| confirm_window.mark_reported(slot));
        confirm_window.mark_reported(&later[0]);
        let (unreported, _) = confirm_window.take_unreported();
        assert_eq!((unreported.kept.len(), unreported.more), (1, 0));
        nacked(&confirm_window, 3);
        assert_eq!(confirm_window.take_failures().kept.len(), 3);
        let (unreported, _) = confirm_window.take_unreported();
        assert_eq!((unreported.kept.len(), unreported.more), (0, 0));
    }

    #[test]
    fn publishes_that_stay_unconfirmed_after_a_close_are_reported_once() {
        let confirm_window = confirming(10, &TotalBytes::default());
        number(&confirm_window);
        assert!(!confirm_window.take_unreported().1, "no close has waited");
        let now = Instant::now();
        assert!(confirm_window.wait_for_last(now, || false).is_err());
        assert_eq!(
            [(); 2].map(|()| confirm_window.take_unreported().1),
            [true, false]
        );
        assert!(confirm_window.wait_for_last(now, || false).is_err());
        // The close has not waited for this publish.
        number(&confirm_window);
        confirm_window.confirmed(1, false, true, |_| {});
        assert!(!confirm_window.take_unreported().1);
    }

    #[test]
    fn failures_of_a_dropped_channel_are_not_kept() {
        let (total, rpc_replies) = (TotalBytes::default(), Arc::default());
        let confirm_window = confirming(10, &total);
        confirm_window.abandon();
        confirm_window.set_rpc_replies(&rpc_replies);
        let events = rpc_replies.expect(7);
        rpc_replies.note_publish(7, 2);
        let slots = nacked(&confirm_window, 2);
        assert!(matches!(slots[1].get(), Some(PublishOutcome::Nacked)));
        assert!(matches!(events.try_recv(), Ok(RpcEvent::PublishFailed)));
        assert!(
            events.try_recv().is_err(),
            "the other publish is not its request"
        );
        assert!(confirm_window.take_failures().kept.is_empty());
        assert!(confirm_window.take_unreported().0.kept.is_empty());
    }
}
