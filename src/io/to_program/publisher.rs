//! The publishing side of a channel: sequence numbers, the confirm window and the outcomes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use crate::io::to_program::confirm_slot::Slot;
use crate::io::to_program::publish_failures::{Failures, Taken, cost};
use crate::io::to_program::retained::{Retained, RetainedBytes};
use crate::io::to_program::rpc_replies::RpcReplies;
use crate::io::waiting_line::{WaitError, WaitingLine};
use crate::protocol::confirms::{ConfirmLedger, Mandatory, PublishOutcome};
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

/// The publishing side of one channel. Its lock is held for a few instructions only, and never
/// while a thread waits.
#[derive(Debug)]
pub(crate) struct Publisher {
    window: usize,
    total: RetainedBytes,
    /// Whether a publish must check the state: in confirm mode, while `channel.flow` stops
    /// publishes, or during a commit. Each publish reads this flag without the lock.
    gated: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// Whether the broker has stopped publishes with `channel.flow`.
    held: bool,
    /// Whether publishes wait for the reply to `tx.commit`, because a buffer is already kept back
    /// for it.
    committing: bool,
    ledger: ConfirmLedger<Arc<Slot>, Arc<ReturnedContent>>,
    failures: Failures,
    /// The outcomes for callbacks; `None` if there are no callbacks for confirms.
    outcomes: Option<OutcomeQueue>,
    /// Whether the program has dropped the channel, so that failures and outcomes are not stored.
    abandoned: bool,
    /// The RPC replies, whose threads are woken at once by a failed publish.
    rpc_replies: Option<Arc<RpcReplies>>,
    /// The sequence number of the last publish for which a close has waited.
    closing_at: u64,
    /// The threads that wait for room in the confirm window. While there are any, a new publish
    /// finds no room, because all free places are reserved for them.
    room_line: WaitingLine<()>,
    /// How many places in the window are reserved for threads that were served and have not
    /// published yet.
    reserved_places: usize,
    /// The threads that wait until all publishes up to a number are confirmed.
    settled_line: WaitingLine<u64>,
    /// The threads that wait for the reply to `confirm.select`.
    select_line: WaitingLine<()>,
    /// Slots without a holder, for reuse. There are at most as many as the window has places.
    slots: Vec<Arc<Slot>>,
}

/// The outcomes for callbacks, in the order in which the broker has confirmed them.
#[derive(Debug)]
struct OutcomeQueue {
    kept: Retained<OutcomeRun>,
    /// How many entries were dropped, because no thread dispatches the callbacks.
    dropped: u64,
}

/// The common outcome of the publishes `first` to `last`.
#[derive(Debug)]
struct OutcomeRun {
    first: u64,
    last: u64,
    /// The outcome; `None` if the channel has ended before the confirm.
    settled: Option<PublishOutcome<Arc<ReturnedContent>>>,
}

/// How many entries of outcomes are kept. Acked publishes in a row share one entry.
const CONFIRM_OUTCOMES_MAX: usize = 10_000;

/// A publish that has begun. It holds the lock of the publisher.
pub(crate) struct Ticket<'a> {
    state: MutexGuard<'a, State>,
    had_place: bool,
}

impl Ticket<'_> {
    /// Records that the publish is queued. Returns its number and its slot, in confirm mode.
    pub(crate) fn commit(mut self, mandatory: Option<Mandatory<'_>>) -> Option<(u64, Arc<Slot>)> {
        if self.state.mode == Mode::Plain {
            return None;
        }
        let slot = self.state.new_slot();
        let number = self.state.ledger.publish(Arc::clone(&slot), mandatory);
        Some((number, slot))
    }

    /// Gives up this attempt. Returns whether a place in the window stays reserved.
    pub(crate) fn cancel(mut self) -> bool {
        self.state.reserved_places += usize::from(self.had_place);
        self.had_place
    }
}

/// The effect of a confirm.
#[derive(Debug)]
pub(crate) struct Confirmed {
    /// How many publishes the confirm covers.
    pub(crate) count: u64,
    /// Whether callbacks for confirms must be dispatched.
    pub(crate) has_outcomes: bool,
}

impl Publisher {
    /// Creates the publisher of a channel. Its failures and outcomes count in `total`.
    pub(crate) fn new(window: usize, total: &RetainedBytes) -> Self {
        Self {
            window: window.max(1),
            total: total.clone(),
            gated: AtomicBool::new(false),
            state: Mutex::new(State {
                mode: Mode::Plain,
                held: false,
                committing: false,
                ledger: ConfirmLedger::new(),
                failures: Failures::new(total),
                outcomes: None,
                abandoned: false,
                rpc_replies: None,
                closing_at: 0,
                room_line: WaitingLine::default(),
                reserved_places: 0,
                settled_line: WaitingLine::default(),
                select_line: WaitingLine::default(),
                slots: Vec::new(),
            }),
        }
    }

    /// Waits in the line until a place in the window is reserved, for the next
    /// [`begin`](Self::begin) or until [`give_back`](Self::give_back).
    pub(crate) fn wait_for_room(
        &self,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        let waiter = state.room_line.join(());
        // A confirm may have made room before this thread joined the line.
        state.serve(self.window);
        let waited = waiter.wait(&mut state, Some(deadline), is_pointless);
        if waited.is_err() {
            state.room_line.leave(&waiter);
        }
        waited
    }

    /// Gives a reserved place back that will not be used.
    pub(crate) fn give_back(&self) {
        let mut state = self.state.lock();
        state.reserved_places -= 1;
        state.serve(self.window);
    }

    /// Returns whether a publish needs [`begin`](Self::begin) before it is queued.
    pub(crate) fn is_gated(&self) -> bool {
        self.gated.load(Ordering::Acquire)
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
            .has_room(self.window)
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
        self.gated.store(true, Ordering::Release);
        send();
        true
    }

    pub(crate) fn select_done(&self, selected: bool) {
        let mut state = self.state.lock();
        state.mode = match selected {
            true => Mode::Confirming,
            false => Mode::Plain,
        };
        self.gated.store(state.is_gated(), Ordering::Release);
        state.select_line.serve_while(|()| true);
        state.serve(self.window);
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
    pub(crate) fn wait_settled(
        &self,
        number: u64,
        deadline: Option<Instant>,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        if state.ledger.is_confirmed_up_to(number) {
            return Ok(());
        }
        let waiter = state.settled_line.join_in_order(number);
        let waited = waiter.wait(&mut state, deadline, is_pointless);
        if waited.is_err() {
            state.settled_line.leave(&waiter);
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
        state.closing_at = last;
        drop(state);
        // The close itself reports the publishes that are still unconfirmed.
        self.wait_settled(last, Some(deadline), is_pointless)
    }

    /// Takes the failures that were not reported, and returns whether publishes for which a close
    /// has waited are unconfirmed. The latter is returned once.
    pub(crate) fn take_unreported(&self) -> (Taken, bool) {
        let mut state = self.state.lock();
        let last = std::mem::take(&mut state.closing_at);
        let is_settled = state.ledger.is_confirmed_up_to(last);
        (state.failures.take_unreported(), !is_settled)
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

    /// Reports each failed publish to `rpc_replies` from now on.
    pub(crate) fn set_rpc_replies(&self, rpc_replies: &Arc<RpcReplies>) {
        self.state.lock().rpc_replies = Some(Arc::clone(rpc_replies));
    }

    /// Records a confirm of the broker.
    pub(crate) fn confirmed(&self, number: u64, multiple: bool, ack: bool) -> Confirmed {
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
        ledger.confirm(number, multiple, ack, |number, mut slot, settled| {
            let is_taken = matches!(settled, PublishOutcome::Acked);
            if !is_taken && !*abandoned {
                failures.add(number, settled.clone(), &slot, outcomes.is_some());
            }
            if let Some(outcomes) = outcomes {
                outcomes.add(number, Some(settled.clone()));
            }
            match Arc::get_mut(&mut slot) {
                // No thread holds the confirm, so the slot can be used again.
                Some(_) if slots.len() < self.window => slots.push(slot),
                Some(_) => {}
                None => slot.fill(settled),
            }
            if let (false, Some(rpc_replies)) = (is_taken, &rpc_replies) {
                rpc_replies.publish_failed(number);
            }
        });
        let dropped = outcomes.as_ref().map_or(0, |outcomes| outcomes.dropped);
        let confirmed = Confirmed {
            count: (unconfirmed_before - ledger.unconfirmed()) as u64,
            has_outcomes: outcomes.is_some(),
        };
        state.serve(self.window);
        let State {
            ledger,
            settled_line,
            ..
        } = &mut *state;
        settled_line.serve_while(|number| ledger.is_confirmed_up_to(*number));
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

    /// Takes the sequence number and the outcome of the next publish. The outcome is `None` if the
    /// channel has ended before the confirm.
    pub(crate) fn take_outcome(
        &self,
    ) -> Option<(u64, Option<PublishOutcome<Arc<ReturnedContent>>>)> {
        self.state.lock().outcomes.as_mut()?.take()
    }

    /// Returns how many publishes the broker has confirmed.
    pub(crate) fn settled(&self) -> u64 {
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
        state.held = !active;
        self.gated.store(state.is_gated(), Ordering::Release);
        state.serve(self.window);
    }

    /// Makes publishes wait for the reply to `tx.commit`, so that no more of them are kept back.
    pub(crate) fn set_committing(&self, committing: bool) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.committing, committing) == committing {
            return;
        }
        self.gated.store(state.is_gated(), Ordering::Release);
        state.serve(self.window);
    }

    /// Returns whether the broker accepts publishes, according to `channel.flow`.
    pub(crate) fn is_flow_active(&self) -> bool {
        !self.state.lock().held
    }

    /// Wakes all waiting threads after the end of the channel: no more confirms will arrive.
    pub(crate) fn channel_ended(&self) {
        let mut state = self.state.lock();
        let State {
            ledger, outcomes, ..
        } = &mut *state;
        ledger.each_unconfirmed(|number, slot| {
            if let Some(outcomes) = outcomes {
                outcomes.add(number, None);
            }
            slot.wake_to_recheck();
        });
        state.room_line.wake_to_recheck();
        state.settled_line.wake_to_recheck();
        state.select_line.wake_to_recheck();
    }

    /// Records a returned message as the outcome of its publish. Gives the message back if it
    /// belongs to no publish in confirm mode.
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

    fn is_gated(&self) -> bool {
        self.held || self.committing || self.mode != Mode::Plain
    }

    fn has_room(&self, window: usize) -> bool {
        match self.mode {
            _ if self.held || self.committing => false,
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

impl OutcomeQueue {
    fn new(total: &RetainedBytes) -> Self {
        Self {
            kept: Retained::new(CONFIRM_OUTCOMES_MAX, total),
            dropped: 0,
        }
    }

    fn take(&mut self) -> Option<(u64, Option<PublishOutcome<Arc<ReturnedContent>>>)> {
        let run = self.kept.first_mut()?;
        let number = run.first;
        if number < run.last {
            run.first += 1;
            return Some((number, run.settled.clone()));
        }
        let run = self.kept.pop()?;
        Some((number, run.settled))
    }

    fn add(&mut self, number: u64, settled: Option<PublishOutcome<Arc<ReturnedContent>>>) {
        // Extends the last entry if the outcome is the same; most outcomes are acks.
        if let Some(last) = self.kept.last_mut() {
            if last.last + 1 == number && is_same_outcome(&last.settled, &settled) {
                last.last = number;
                return;
            }
        }
        let cost = settled.as_ref().map_or(0, cost);
        let run = OutcomeRun {
            first: number,
            last: number,
            settled,
        };
        let removed = self.kept.push(cost, run);
        self.dropped += removed.len() as u64;
    }
}

fn is_same_outcome<R>(one: &Option<PublishOutcome<R>>, other: &Option<PublishOutcome<R>>) -> bool {
    matches!(
        (one, other),
        (None, None)
            | (Some(PublishOutcome::Acked), Some(PublishOutcome::Acked))
            | (Some(PublishOutcome::Nacked), Some(PublishOutcome::Nacked))
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::io::to_program::rpc_replies::RpcEvent;
    use crate::protocol::methods::basic;

    fn confirming(window: usize, total: &RetainedBytes) -> Publisher {
        let publisher = Publisher::new(window, total);
        assert!(publisher.select(|| {}));
        publisher.select_done(true);
        publisher
    }

    /// Publishes in confirm mode. Returns the sequence number and the slot, or `None` if the window
    /// is full.
    fn enter(publisher: &Publisher) -> Option<(u64, Arc<Slot>)> {
        let ticket = publisher.begin(&mut false)?;
        Some(ticket.commit(None).expect("confirm mode"))
    }

    /// Publishes like `enter`, with a reserved place.
    fn enter_with_place(publisher: &Publisher) -> Option<(u64, Arc<Slot>)> {
        let mut has_place = true;
        let ticket = publisher.begin(&mut has_place);
        assert!(!has_place);
        Some(ticket?.commit(None).expect("confirm mode"))
    }

    fn number(publisher: &Publisher) -> Option<u64> {
        enter(publisher).map(|(number, _)| number)
    }

    fn slot(publisher: &Publisher) -> Arc<Slot> {
        enter(publisher).expect("room in the window").1
    }

    #[test]
    fn the_window_bounds_the_unconfirmed_publishes() {
        let publisher = confirming(2, &RetainedBytes::default());
        let numbers = [(); 3].map(|()| number(&publisher));
        assert_eq!(numbers, [Some(1), Some(2), None]);
        publisher.confirmed(2, false, true);
        assert_eq!(number(&publisher), Some(3));
        assert_eq!(number(&publisher), None);
        publisher.confirmed(3, true, true);
        assert_eq!(number(&publisher), Some(4));
    }

    impl Publisher {
        /// Whether a publish waits for room in the window.
        pub(crate) fn is_room_awaited(&self) -> bool {
            !self.state.lock().room_line.is_empty()
        }
    }

    fn in_line(publisher: &Publisher) -> usize {
        let state = publisher.state.lock();
        state.room_line.len() + state.settled_line.len() + state.select_line.len()
    }

    type Wait<'a> = &'a (dyn Fn(Instant) -> Result<(), WaitError> + Sync);

    /// Returns the result of `wait`, during which `change` is called.
    fn woken_by(
        publisher: &Publisher,
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
            while in_line(publisher) == 0 {
                thread::yield_now();
            }
            change();
            waiter.join().unwrap()
        })
    }

    #[test]
    fn waiting_threads_are_woken_by_the_event_that_ends_their_wait() {
        let publisher = Publisher::new(1, &RetainedBytes::default());
        let room = |deadline| publisher.wait_for_room(deadline, || false);
        let selected = |deadline| publisher.wait_selected(deadline, || false);
        for (wait, succeeds) in [(&room as Wait<'_>, false), (&selected, true)] {
            assert!(publisher.select(|| {}));
            let done = || publisher.select_done(succeeds);
            assert_eq!(woken_by(&publisher, wait, done), Ok(()));
        }
        publisher.give_back();
        assert_eq!(number(&publisher), Some(1));
        let confirm = || {
            let confirmed = publisher.confirmed(1, false, true);
            assert!(!confirmed.has_outcomes, "there is no callback for confirms");
            assert_eq!(confirmed.count, 1);
        };
        assert_eq!(woken_by(&publisher, room, confirm), Ok(()));
        publisher.give_back();
        publisher.set_flow(false);
        let flow = || publisher.set_flow(true);
        assert_eq!(woken_by(&publisher, room, flow), Ok(()));
        publisher.give_back();
        publisher.set_committing(true);
        let commit = || publisher.set_committing(false);
        assert_eq!(woken_by(&publisher, room, commit), Ok(()));
        publisher.give_back();
        assert_eq!(number(&publisher), Some(2));
        let is_over = AtomicBool::new(false);
        let settled = |deadline| {
            let is_pointless = || is_over.load(Ordering::SeqCst);
            publisher.wait_settled(2, Some(deadline), is_pointless)
        };
        let end = || {
            is_over.store(true, Ordering::SeqCst);
            publisher.channel_ended();
        };
        assert_eq!(woken_by(&publisher, settled, end), Err(WaitError::Closed));
        assert_eq!(in_line(&publisher), 0);
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

    #[test]
    fn a_confirm_wakes_one_thread_for_each_free_place_in_their_order() {
        const WINDOW: usize = 4;
        let publisher = confirming(WINDOW, &RetainedBytes::default());
        (1..=WINDOW as u64).for_each(|next| assert_eq!(number(&publisher), Some(next)));
        thread::scope(|scope| {
            let wait =
                |is_pointless: &dyn Fn() -> bool| publisher.wait_for_room(soon(), is_pointless);
            let mut sleepers: Vec<_> = (0..16).map(|_| Sleeper::start(scope, wait)).collect();
            for (up_to, multiple, places) in [(3, false, 1), (3, true, 2), (4, true, 1)] {
                publisher.confirmed(up_to, multiple, true);
                let served: Vec<_> = sleepers.drain(..places).collect();
                served.into_iter().for_each(Sleeper::assert_served);
                assert_eq!(publisher.state.lock().room_line.len(), sleepers.len());
                assert_asleep(&sleepers);
                // The served threads keep their places.
                assert_eq!(number(&publisher), None);
            }
            for next in 5..=8 {
                let entered = enter_with_place(&publisher);
                assert!(matches!(entered, Some((number, _)) if number == next));
            }
            // A place that is given back serves the next thread.
            publisher.confirmed(8, false, true);
            sleepers.remove(0).assert_served();
            publisher.give_back();
            sleepers.remove(0).assert_served();
            assert_asleep(&sleepers);
            for number in 5..=7 {
                publisher.confirmed(number, false, true);
                sleepers.remove(0).assert_served();
            }
            assert_asleep(&sleepers);
            // Each served thread publishes, and its confirm serves the next one.
            for number in 9.. {
                let entered = enter_with_place(&publisher);
                assert!(matches!(entered, Some((given, _)) if given == number));
                if sleepers.is_empty() {
                    break;
                }
                publisher.confirmed(number, true, true);
                sleepers.remove(0).assert_served();
            }
        });
        assert_eq!(in_line(&publisher), 0);
    }

    #[test]
    fn a_reserved_place_survives_a_cancelled_attempt_but_not_channel_flow() {
        let publisher = confirming(1, &RetainedBytes::default());
        let room = || publisher.wait_for_room(Instant::now(), || false);
        assert_eq!(room(), Ok(()));
        assert_eq!(room(), Err(WaitError::TimedOut));
        let mut has_place = true;
        let ticket = publisher.begin(&mut has_place).unwrap();
        assert!(!has_place && ticket.cancel());
        assert_eq!(number(&publisher), None);
        publisher.set_flow(false);
        assert!(enter_with_place(&publisher).is_none());
        publisher.set_flow(true);
        assert_eq!(number(&publisher), Some(1));
    }

    #[test]
    fn a_confirm_wakes_only_the_threads_that_wait_for_it() {
        let publisher = confirming(10, &RetainedBytes::default());
        let slots: Vec<_> = (0..8).map(|_| slot(&publisher)).collect();
        thread::scope(|scope| {
            let publisher = &publisher;
            let mut sleepers: Vec<_> = slots
                .iter()
                .map(|slot| {
                    Sleeper::start(scope, |is_pointless| {
                        publisher.wait_slot(slot, Some(soon()), is_pointless)
                    })
                })
                .collect();
            let last = Sleeper::start(scope, |is_pointless| {
                publisher.wait_slot(&slots[7], None, is_pointless)
            });
            publisher.confirmed(6, false, true);
            sleepers.remove(5).assert_served();
            assert_asleep(&sleepers);
            publisher.confirmed(3, true, false);
            let served: Vec<_> = sleepers.drain(..3).collect();
            served.into_iter().for_each(Sleeper::assert_served);
            assert_asleep(&sleepers);
            publisher.confirmed(8, true, true);
            sleepers.into_iter().for_each(Sleeper::assert_served);
            last.assert_served();
        });
    }

    #[test]
    fn a_wait_for_all_publishes_up_to_a_number_ends_when_they_are_confirmed() {
        let publisher = confirming(10, &RetainedBytes::default());
        (1..=4).for_each(|next| assert_eq!(number(&publisher), Some(next)));
        thread::scope(|scope| {
            let publisher = &publisher;
            // The threads start in another order than they are served.
            let [third, first, second] = [4, 2, 3].map(|number| {
                Sleeper::start(scope, move |is_pointless| {
                    publisher.wait_settled(number, Some(soon()), is_pointless)
                })
            });
            publisher.confirmed(2, false, true);
            publisher.confirmed(3, false, true);
            let sleepers = [first, second, third];
            assert_asleep(&sleepers);
            publisher.confirmed(1, false, true);
            let [first, second, third] = sleepers;
            first.assert_served();
            second.assert_served();
            assert_asleep(std::slice::from_ref(&third));
            publisher.confirmed(4, false, true);
            third.assert_served();
        });
    }

    #[test]
    fn the_end_of_the_channel_wakes_all_waiting_threads() {
        let publisher = confirming(2, &RetainedBytes::default());
        let slots = [(); 2].map(|()| slot(&publisher));
        let is_over = AtomicBool::new(false);
        let asked = AtomicUsize::new(0);
        let is_pointless = || {
            asked.fetch_add(1, Ordering::SeqCst);
            is_over.load(Ordering::SeqCst)
        };
        thread::scope(|scope| {
            let waits = [
                scope.spawn(|| publisher.wait_slot(&slots[1], None, is_pointless)),
                scope.spawn(|| publisher.wait_settled(1, None, is_pointless)),
                scope.spawn(|| publisher.wait_for_room(soon(), is_pointless)),
            ];
            while asked.load(Ordering::SeqCst) < waits.len() {
                thread::yield_now();
            }
            is_over.store(true, Ordering::SeqCst);
            publisher.channel_ended();
            for wait in waits {
                assert_eq!(wait.join().unwrap(), Err(WaitError::Closed));
            }
        });
        assert_eq!(in_line(&publisher), 0);
    }

    #[test]
    fn channel_flow_still_stops_publishes_after_a_failed_confirm_select() {
        let publisher = Publisher::new(2, &RetainedBytes::default());
        publisher.set_flow(false);
        assert!(publisher.select(|| {}));
        publisher.select_done(false);
        assert!(publisher.is_gated());
        assert!(enter(&publisher).is_none());
        publisher.set_flow(true);
        assert!(!publisher.is_gated());
    }

    #[test]
    fn a_failure_without_room_is_counted() {
        let total = RetainedBytes::default();
        let others: Vec<_> = (0..4)
            .map(|_| {
                let mut kept = Retained::new(10, &total);
                kept.push((16 << 20) - 64, ());
                kept
            })
            .collect();
        let publisher = confirming(10, &total);
        let mandatory = Mandatory {
            fingerprint: 7,
            properties: &[0, 0],
        };
        let ticket = publisher.begin(&mut false).unwrap();
        let slot = ticket.commit(Some(mandatory));
        drop(slot);
        let returned = ReturnedContent {
            method: basic::Return::default(),
            properties: Default::default(),
            body: Bytes::from(vec![0; 1 << 20]),
        };
        assert_eq!(publisher.returned(7, returned), None);
        publisher.confirmed(1, false, true);
        let failures = publisher.take_failures();
        assert!(failures.kept.is_empty());
        assert_eq!(failures.more, 1);
        drop(others);
    }

    /// Publishes `count` messages that the broker nacks.
    fn nacked(publisher: &Publisher, count: u64) -> Vec<Arc<Slot>> {
        let slots = (0..count).map(|_| match enter(publisher) {
            Some((number, slot)) => {
                publisher.confirmed(number, false, false);
                slot
            }
            _ => panic!("not confirming"),
        });
        slots.collect()
    }

    #[test]
    fn a_failure_is_unreported_until_the_program_gets_it() {
        let publisher = confirming(10, &RetainedBytes::default());
        let slots = nacked(&publisher, 1200);
        // Some of these failures are kept, others are only counted.
        for slot in [&slots[0], &slots[1], &slots[1100], &slots[0]] {
            publisher.mark_reported(slot);
        }
        let (unreported, unsettled) = publisher.take_unreported();
        assert_eq!((unreported.kept.len(), unreported.more), (998, 199));
        assert_eq!(unreported.kept[0].number, 3);
        assert!(!unsettled);
        // A failure of an earlier count does not change the later one.
        let later = nacked(&publisher, 2);
        slots.iter().for_each(|slot| publisher.mark_reported(slot));
        publisher.mark_reported(&later[0]);
        let (unreported, _) = publisher.take_unreported();
        assert_eq!((unreported.kept.len(), unreported.more), (1, 0));
        nacked(&publisher, 3);
        assert_eq!(publisher.take_failures().kept.len(), 3);
        let (unreported, _) = publisher.take_unreported();
        assert_eq!((unreported.kept.len(), unreported.more), (0, 0));
    }

    #[test]
    fn publishes_that_stay_unconfirmed_after_a_close_are_reported_once() {
        let publisher = confirming(10, &RetainedBytes::default());
        number(&publisher);
        assert!(!publisher.take_unreported().1, "no close has waited");
        let now = Instant::now();
        assert!(publisher.wait_for_last(now, || false).is_err());
        assert_eq!(
            [(); 2].map(|()| publisher.take_unreported().1),
            [true, false]
        );
        assert!(publisher.wait_for_last(now, || false).is_err());
        // The close has not waited for this publish.
        number(&publisher);
        publisher.confirmed(1, false, true);
        assert!(!publisher.take_unreported().1);
    }

    #[test]
    fn failures_of_a_dropped_channel_are_not_kept() {
        let (total, rpc_replies) = (RetainedBytes::default(), Arc::default());
        let publisher = confirming(10, &total);
        publisher.abandon();
        publisher.set_rpc_replies(&rpc_replies);
        let events = rpc_replies.expect(7);
        rpc_replies.note_publish(7, 2);
        let slots = nacked(&publisher, 2);
        assert!(matches!(slots[1].get(), Some(PublishOutcome::Nacked)));
        assert!(matches!(events.try_recv(), Ok(RpcEvent::PublishFailed)));
        assert!(
            events.try_recv().is_err(),
            "the other publish is not its request"
        );
        assert!(publisher.take_failures().kept.is_empty());
        assert!(publisher.take_unreported().0.kept.is_empty());
    }
}
