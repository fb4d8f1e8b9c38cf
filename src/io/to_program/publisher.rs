//! Where a channel's publishes get their numbers, and their confirms come home.

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
    /// `confirm.select` is under way: publishes wait, for the broker counts those behind
    /// it and not those before it.
    Selecting,
    Confirming,
}

/// The publishing side of one channel. Its lock is held for moments only, and never
/// while anybody waits.
#[derive(Debug)]
pub(crate) struct Publisher {
    window: usize,
    total: RetainedBytes,
    /// Whether publishes have to look at more than the write budget.
    gated: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// The broker has asked to hold publishes back (`channel.flow`).
    held: bool,
    /// Something waits already for a commit that is under way.
    committing: bool,
    ledger: ConfirmLedger<Arc<Slot>, Arc<ReturnedContent>>,
    failures: Failures,
    /// What callbacks are to be told of confirms; `None` as long as there are none.
    news: Option<News>,
    /// Whether nobody will ever ask for failures or news.
    abandoned: bool,
    /// Who is told at once of publishes that were not taken.
    rpc_replies: Option<Arc<RpcReplies>>,
    /// The last publish that a close has waited for.
    closing_at: u64,
    /// Those who wait for room. Newcomers find none as long as there are any, for all that there
    /// is is promised to these.
    for_room: WaitingLine<()>,
    /// How many places in the window are kept for those of them who are served, and have not
    /// published yet.
    promised: usize,
    /// Those who wait until everything up to a number is settled.
    for_settled: WaitingLine<u64>,
    /// Those who wait for the end of `confirm.select`.
    for_select: WaitingLine<()>,
    /// Slots that nobody holds any more, to be used again: no more than a window takes.
    slots: Vec<Arc<Slot>>,
}

/// What became of publishes, in the order in which it was learnt.
#[derive(Debug)]
struct News {
    kept: Retained<Outcomes>,
    /// How many were dropped, because nobody took them.
    dropped: u64,
}

/// What became of the publishes `first` to `last`.
#[derive(Debug)]
struct Outcomes {
    first: u64,
    last: u64,
    /// `None`: the channel ended before the broker has said anything.
    settled: Option<PublishOutcome<Arc<ReturnedContent>>>,
}

/// How many entries of that kind are kept; runs of acknowledged ones are one.
const CONFIRM_NEWS_MAX: usize = 10_000;

/// A publish that has begun, and the lock of its channel's publishes.
pub(crate) struct Ticket<'a> {
    state: MutexGuard<'a, State>,
    had_place: bool,
}

impl Ticket<'_> {
    /// Notes that the publish is queued. Returns its sequence number and its slot, in confirm mode.
    pub(crate) fn commit(mut self, mandatory: Option<Mandatory<'_>>) -> Option<(u64, Arc<Slot>)> {
        if self.state.mode == Mode::Plain {
            return None;
        }
        let slot = self.state.new_slot();
        let number = self.state.ledger.publish(Arc::clone(&slot), mandatory);
        Some((number, slot))
    }

    /// Gives up this attempt. Returns whether a place in the window stays kept for the next one.
    pub(crate) fn cancel(mut self) -> bool {
        self.state.promised += usize::from(self.had_place);
        self.had_place
    }
}

/// The effect of a confirm.
#[derive(Debug)]
pub(crate) struct Confirmed {
    /// How many publishes it settled.
    pub(crate) count: u64,
    /// Whether callbacks for confirms have something to do.
    pub(crate) has_news: bool,
}

impl Publisher {
    /// What is kept for a program that may ask for it counts against `total`.
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
                news: None,
                abandoned: false,
                rpc_replies: None,
                closing_at: 0,
                for_room: WaitingLine::default(),
                promised: 0,
                for_settled: WaitingLine::default(),
                for_select: WaitingLine::default(),
                slots: Vec::new(),
            }),
        }
    }

    /// Waits in line until there is room, and keeps it for the next [`enter`](Self::enter), or
    /// until it is [given back](Self::give_back).
    pub(crate) fn wait_for_room(
        &self,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        let waiter = state.for_room.join(());
        // There may be some by now.
        state.serve(self.window);
        let waited = waiter.wait(&mut state, Some(deadline), is_pointless);
        if waited.is_err() {
            state.for_room.leave(&waiter);
        }
        waited
    }

    /// Gives a place back that was kept, and will not be used.
    pub(crate) fn give_back(&self) {
        let mut state = self.state.lock();
        state.promised -= 1;
        state.serve(self.window);
    }

    /// Whether publishes have to look at more than the room in the queue.
    pub(crate) fn is_gated(&self) -> bool {
        self.gated.load(Ordering::Acquire)
    }

    /// Begins a publish: returns the lock under which it is queued and gets its sequence number, so
    /// that both have one order. Returns `None` if the confirm window is full.
    ///
    /// `has_place` is whether a place in the window was kept for this publish. The place goes to the
    /// ticket.
    pub(crate) fn begin(&self, has_place: &mut bool) -> Option<Ticket<'_>> {
        let mut state = self.state.lock();
        let had_place = std::mem::take(has_place);
        state.promised -= usize::from(had_place);
        state
            .has_room(self.window)
            .then_some(Ticket { state, had_place })
    }

    /// Begins confirm mode: calls `send`, which queues `confirm.select`, and lets
    /// publishes wait until [`select_done`](Self::select_done). `false` if it is on, or
    /// being switched on by another thread.
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
        state.for_select.serve_while(|()| true);
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
        let waiter = state.for_select.join(());
        let waited = waiter.wait(&mut state, Some(deadline), is_pointless);
        if waited.is_err() {
            state.for_select.leave(&waiter);
        }
        waited
    }

    pub(crate) fn is_confirming(&self) -> bool {
        self.state.lock().mode == Mode::Confirming
    }

    /// The number of the last publish that is to be confirmed.
    pub(crate) fn last_number(&self) -> u64 {
        self.state.lock().ledger.last()
    }

    /// Waits until everything up to `number` is settled.
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
        let waiter = state.for_settled.join_in_order(number);
        let waited = waiter.wait(&mut state, deadline, is_pointless);
        if waited.is_err() {
            state.for_settled.leave(&waiter);
        }
        waited
    }

    /// Waits until `slot` is filled.
    pub(crate) fn wait_slot(
        &self,
        slot: &Slot,
        deadline: Option<Instant>,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        slot.wait(&mut self.state.lock(), deadline, is_pointless)
    }

    /// The failures since they were last asked for.
    pub(crate) fn take_failures(&self) -> Taken {
        self.state.lock().failures.take()
    }

    /// Waits for all that was published before a close.
    pub(crate) fn wait_for_last(
        &self,
        deadline: Instant,
        is_pointless: impl Fn() -> bool,
    ) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        let last = state.ledger.last();
        state.closing_at = last;
        drop(state);
        // What is not settled by then is told with the close.
        self.wait_settled(last, Some(deadline), is_pointless)
    }

    /// Those of them that nobody was told of, and whether something that a close has waited for
    /// is not settled; once.
    pub(crate) fn take_unheard(&self) -> (Taken, bool) {
        let mut state = self.state.lock();
        let last = std::mem::take(&mut state.closing_at);
        let is_settled = state.ledger.is_confirmed_up_to(last);
        (state.failures.take_unheard(), !is_settled)
    }

    /// Tells of a failure whoever holds its slot.
    pub(crate) fn hear(&self, slot: &Slot) {
        let count = slot.hear();
        if count > 0 {
            self.state.lock().failures.heard(count);
        }
    }

    /// Nobody will ever ask for what is kept, but single confirms may still be waited for.
    /// How many failures nobody was told of.
    pub(crate) fn abandon(&self) -> u64 {
        let mut state = self.state.lock();
        state.abandoned = true;
        let unheard = state.failures.unheard();
        let failures = state.failures.empty();
        let news = state.news.take();
        drop(state);
        // Outside the lock, for there may be much of it.
        drop((failures, news));
        unheard
    }

    /// Who is told at once of each publish that is not taken.
    pub(crate) fn tell_of_failures(&self, rpc_replies: &Arc<RpcReplies>) {
        self.state.lock().rpc_replies = Some(Arc::clone(rpc_replies));
    }

    /// Records a confirm of the broker.
    pub(crate) fn confirmed(&self, number: u64, multiple: bool, ack: bool) -> Confirmed {
        let mut state = self.state.lock();
        let State {
            ledger,
            failures,
            news,
            abandoned,
            rpc_replies,
            slots,
            ..
        } = &mut *state;
        let dropped_before = news.as_ref().map_or(0, |news| news.dropped);
        let unconfirmed_before = ledger.unconfirmed();
        ledger.confirm(number, multiple, ack, |number, mut slot, settled| {
            let is_taken = matches!(settled, PublishOutcome::Acked);
            if !is_taken && !*abandoned {
                failures.add(number, settled.clone(), &slot, news.is_some());
            }
            if let Some(news) = news {
                news.add(number, Some(settled.clone()));
            }
            match Arc::get_mut(&mut slot) {
                // Nobody will ever ask.
                Some(_) if slots.len() < self.window => slots.push(slot),
                Some(_) => {}
                None => slot.fill(settled),
            }
            if let (false, Some(rpc_replies)) = (is_taken, &rpc_replies) {
                rpc_replies.not_taken(number);
            }
        });
        let dropped = news.as_ref().map_or(0, |news| news.dropped);
        let confirmed = Confirmed {
            count: (unconfirmed_before - ledger.unconfirmed()) as u64,
            has_news: news.is_some(),
        };
        state.serve(self.window);
        let State {
            ledger,
            for_settled,
            ..
        } = &mut *state;
        for_settled.serve_while(|number| ledger.is_confirmed_up_to(*number));
        drop(state);
        // Outside the lock, for the program's logger may publish.
        if dropped > 0 && dropped_before == 0 {
            log::warn!("nobody dispatches the callbacks for confirms; the oldest are dropped");
        }
        confirmed
    }

    /// From now on keeps what becomes of publishes, for callbacks.
    pub(crate) fn keep_news(&self) {
        let mut state = self.state.lock();
        state.news.get_or_insert_with(|| News::new(&self.total));
    }

    /// What became of one more publish, and which; `None` inside: nobody will ever know.
    pub(crate) fn take_news(&self) -> Option<(u64, Option<PublishOutcome<Arc<ReturnedContent>>>)> {
        self.state.lock().news.as_mut()?.take()
    }

    /// How many publishes the broker has confirmed or refused.
    pub(crate) fn settled(&self) -> u64 {
        let ledger = &self.state.lock().ledger;
        ledger.last() - ledger.unconfirmed() as u64
    }

    /// How many publishes the broker has said nothing of yet.
    pub(crate) fn outstanding(&self) -> usize {
        self.state.lock().ledger.unconfirmed()
    }

    /// The broker asks to hold publishes back, or to go on.
    pub(crate) fn set_flow(&self, active: bool) {
        let mut state = self.state.lock();
        state.held = !active;
        self.gated.store(state.is_gated(), Ordering::Release);
        state.serve(self.window);
    }

    /// Lets publishes wait for the end of a commit, so that no more of them has to be kept.
    pub(crate) fn set_committing(&self, committing: bool) {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.committing, committing) == committing {
            return;
        }
        self.gated.store(state.is_gated(), Ordering::Release);
        state.serve(self.window);
    }

    /// Whether the broker lets publishes pass.
    pub(crate) fn is_flow_active(&self) -> bool {
        !self.state.lock().held
    }

    /// The channel is over: what is not settled will never be.
    pub(crate) fn channel_ended(&self) {
        let mut state = self.state.lock();
        let State { ledger, news, .. } = &mut *state;
        ledger.each_unconfirmed(|number, slot| {
            if let Some(news) = news {
                news.add(number, None);
            }
            slot.look_again();
        });
        state.for_room.look_again();
        state.for_settled.look_again();
        state.for_select.look_again();
    }

    /// A message came back. Gives it back if it is not one that is to be confirmed.
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
            Mode::Confirming => self.ledger.unconfirmed() + self.promised < window,
        }
    }

    /// Keeps a place for each of those who wait, in their order, as long as there is room, and
    /// wakes these.
    fn serve(&mut self, window: usize) {
        while !self.for_room.is_empty() && self.has_room(window) {
            self.promised += 1;
            self.for_room.serve_first();
        }
    }
}

impl News {
    fn new(total: &RetainedBytes) -> Self {
        Self {
            kept: Retained::new(CONFIRM_NEWS_MAX, total),
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
        // Mostly one entry for a whole run.
        if let Some(last) = self.kept.last_mut() {
            if last.last + 1 == number && is_one_run(&last.settled, &settled) {
                last.last = number;
                return;
            }
        }
        let cost = settled.as_ref().map_or(0, cost);
        let outcomes = Outcomes {
            first: number,
            last: number,
            settled,
        };
        let gone = self.kept.push(cost, outcomes);
        self.dropped += gone.len() as u64;
    }
}

fn is_one_run<R>(one: &Option<PublishOutcome<R>>, other: &Option<PublishOutcome<R>>) -> bool {
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
    use crate::io::to_program::rpc_replies::Heard;
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

    /// Does the same for a publish for which a place is kept.
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
    fn no_more_are_unconfirmed_than_the_window_has() {
        let publisher = confirming(2, &RetainedBytes::default());
        let numbers = [(); 3].map(|()| number(&publisher));
        assert_eq!(numbers, [Some(1), Some(2), None]);
        publisher.confirmed(2, false, true);
        assert_eq!(number(&publisher), Some(3));
        assert_eq!(number(&publisher), None);
        publisher.confirmed(3, true, true);
        assert_eq!(number(&publisher), Some(4));
    }

    fn in_line(publisher: &Publisher) -> usize {
        let state = publisher.state.lock();
        state.for_room.len() + state.for_settled.len() + state.for_select.len()
    }

    type Wait<'a> = &'a (dyn Fn(Instant) -> Result<(), WaitError> + Sync);

    /// What `wait` ends with after `change`, which comes while it waits.
    fn woken_by(
        publisher: &Publisher,
        wait: impl FnOnce(Instant) -> Result<(), WaitError> + Send,
        change: impl FnOnce(),
    ) -> Result<(), WaitError> {
        let deadline = Instant::now() + Duration::from_secs(10);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let outcome = wait(deadline);
                // Late is never.
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
    fn those_who_wait_are_woken_by_whatever_changes_it() {
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
            assert!(!confirmed.has_news, "nobody listens");
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

    /// A thread that waits, and how often it has asked whether that has a point: before its
    /// first sleep, and each time when it was woken and was not served.
    struct Sleeper<'scope> {
        asked: Arc<AtomicUsize>,
        thread: thread::ScopedJoinHandle<'scope, Result<(), WaitError>>,
    }

    impl<'scope> Sleeper<'scope> {
        /// Begins `wait`, and sees it asleep, or about to be and with the lock until then.
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

        /// Sees that it was served, and woken for nothing else.
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
    fn a_confirm_wakes_as_many_as_it_makes_room_for_in_their_order() {
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
                assert_eq!(publisher.state.lock().for_room.len(), sleepers.len());
                assert_asleep(&sleepers);
                // What they have got is theirs.
                assert_eq!(number(&publisher), None);
            }
            for next in 5..=8 {
                let entered = enter_with_place(&publisher);
                assert!(matches!(entered, Some((number, _)) if number == next));
            }
            // Who gives up makes room for the next.
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
            // Each that is served publishes, and its confirm serves the next.
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
    fn a_place_that_is_kept_survives_a_wait_for_the_queue_and_goes_with_a_hold() {
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
    fn a_confirm_wakes_those_who_wait_for_it_and_nobody_else() {
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
    fn who_waits_until_all_is_settled_is_woken_when_it_is() {
        let publisher = confirming(10, &RetainedBytes::default());
        (1..=4).for_each(|next| assert_eq!(number(&publisher), Some(next)));
        thread::scope(|scope| {
            let publisher = &publisher;
            // In another order than they are served.
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
    fn the_end_of_the_channel_wakes_all_who_wait() {
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
    fn what_holds_publishes_back_survives_a_confirm_select_that_fails() {
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
    fn a_failure_that_finds_no_room_is_counted() {
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

    /// Publishes of which the broker takes none.
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
    fn a_failure_is_unheard_until_somebody_is_told_however_many_there_are() {
        let publisher = confirming(10, &RetainedBytes::default());
        let slots = nacked(&publisher, 1200);
        // Of those that are kept, and of those that are only counted.
        for slot in [&slots[0], &slots[1], &slots[1100], &slots[0]] {
            publisher.hear(slot);
        }
        let (unheard, unsettled) = publisher.take_unheard();
        assert_eq!((unheard.kept.len(), unheard.more), (998, 199));
        assert_eq!(unheard.kept[0].number, 3);
        assert!(!unsettled);
        // What belongs to an earlier count says nothing of a later one.
        let later = nacked(&publisher, 2);
        slots.iter().for_each(|slot| publisher.hear(slot));
        publisher.hear(&later[0]);
        let (unheard, _) = publisher.take_unheard();
        assert_eq!((unheard.kept.len(), unheard.more), (1, 0));
        nacked(&publisher, 3);
        assert_eq!(publisher.take_failures().kept.len(), 3);
        let (unheard, _) = publisher.take_unheard();
        assert_eq!((unheard.kept.len(), unheard.more), (0, 0));
    }

    #[test]
    fn what_a_close_has_waited_for_in_vain_is_told_once() {
        let publisher = confirming(10, &RetainedBytes::default());
        number(&publisher);
        assert!(!publisher.take_unheard().1, "no close has waited");
        let now = Instant::now();
        assert!(publisher.wait_for_last(now, || false).is_err());
        assert_eq!([(); 2].map(|()| publisher.take_unheard().1), [true, false]);
        assert!(publisher.wait_for_last(now, || false).is_err());
        // What comes in meanwhile is the business of those who publish.
        number(&publisher);
        publisher.confirmed(1, false, true);
        assert!(!publisher.take_unheard().1);
    }

    #[test]
    fn failures_that_nobody_can_ask_for_are_not_kept() {
        let (total, rpc_replies) = (RetainedBytes::default(), Arc::default());
        let publisher = confirming(10, &total);
        publisher.abandon();
        publisher.tell_of_failures(&rpc_replies);
        let heard = rpc_replies.expect(7);
        rpc_replies.note_publish(7, 2);
        let slots = nacked(&publisher, 2);
        assert!(matches!(slots[1].get(), Some(PublishOutcome::Nacked)));
        assert!(matches!(heard.try_recv(), Ok(Heard::NotTaken)));
        assert!(
            heard.try_recv().is_err(),
            "the other one is not its request"
        );
        assert!(publisher.take_failures().kept.is_empty());
        assert!(publisher.take_unheard().0.kept.is_empty());
    }
}
