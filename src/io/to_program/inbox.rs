//! The inbox: the queue of deliveries from the IO thread to the threads that take them.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::io::busy_wait::BusyWait;
use crate::io::to_program::dispatch_signal::{Signal, Subscribers};
use crate::io::to_program::read_control::ReadControl;
use crate::io::to_program::stream_position::StreamPosition;
use crate::protocol::content::DeliveredContent;
use crate::protocol::delivery_batch::{Batch, PackedDelivery};
use crate::protocol::wire::ShortString;

/// The last entry of a consumer in an inbox that several consumers share.
pub(crate) trait EndMark: Default {
    /// Returns whether the consumer is dropped, so that no thread needs the entry.
    fn is_stale(&self) -> bool;
}

/// An entry of the queue.
#[expect(clippy::large_enum_variant, reason = "almost all entries are batches")]
#[derive(Debug)]
enum Entry<E> {
    Batch {
        batch: Batch,
        /// Whether its deliveries are fixed: they cannot be held back.
        is_fixed: bool,
        /// The position of its consumer, if they are from a stream.
        position: Option<Arc<StreamPosition>>,
    },
    Ended(E),
}

impl<E> Entry<E> {
    fn len(&self) -> usize {
        match self {
            Self::Batch { batch, .. } => batch.len(),
            Self::Ended(_) => 1,
        }
    }
}

/// The result of taking an entry from an inbox.
#[derive(Debug)]
pub(crate) enum Next<E, M = DeliveredContent> {
    Message(M),
    /// The last entry of a consumer. Its callback has had all deliveries.
    ConsumerEnded(E),
    Empty,
    /// Empty, and there will be no more entries.
    Ended,
}

impl<E> Next<E, PackedDelivery> {
    /// Takes the message out of its batch. This is the largest part of the work, so it runs without
    /// the lock.
    fn unpack(self) -> Next<E> {
        match self {
            Self::Message(packed) => Next::Message(packed.unpack()),
            Self::ConsumerEnded(end) => Next::ConsumerEnded(end),
            Self::Empty => Next::Empty,
            Self::Ended => Next::Ended,
        }
    }
}

/// A queue of deliveries, for any number of threads.
///
/// The IO thread locks the inbox once for all batches of one read. The messages of one consumer can
/// be taken out of the queue. The other messages keep their order.
///
/// The inbox wakes one sleeping thread at a time. That thread takes an entry, and wakes the next
/// thread if there are more entries. So no more threads wake up than there are entries. Waking a
/// thread for each message, or all threads, would wake many of them in vain, because the threads
/// that are awake take most messages.
#[derive(Debug)]
pub(crate) struct Inbox<E: EndMark> {
    state: Mutex<State<E>>,
    changed: Condvar,
    /// The busy wait for a delivery.
    busy_wait: BusyWait,
    read_control: Arc<ReadControl>,
    /// The signals to set, in addition to the threads that sleep in [`pop`](Self::pop).
    subscribers: Subscribers,
    select_signal: OnceLock<Arc<Signal>>,
}

#[derive(Debug, Default)]
struct State<E> {
    queue: VecDeque<Entry<E>>,
    /// The number of messages and ends in the queue.
    count: usize,
    /// The cost of all batches in the queue.
    bytes: usize,
    ended: bool,
    /// Whether no more deliveries may be taken, although more may still arrive.
    stopped: bool,
    /// How many threads sleep until there is an entry.
    asleep: usize,
    /// How many threads were woken and have not locked the inbox yet.
    woken: usize,
    /// The taken deliveries that are not reported to the read budget. One report for several is
    /// cheaper.
    taken: TakenBytes,
}

impl<E> State<E> {
    /// Returns whether a thread that waits for a delivery has something to do.
    fn has_news(&self) -> bool {
        self.ended || self.stopped || !self.queue.is_empty()
    }
}

/// The cost of taken deliveries.
#[derive(Debug, Default)]
struct TakenBytes {
    cost: usize,
    /// The part of `cost` that fixed deliveries have.
    fixed: usize,
}

/// How many bytes may be taken before a report.
const UNREPORTED_BYTES_MAX: usize = 16 * 1024;

impl<E: EndMark> Inbox<E> {
    pub(crate) fn new(read_control: Arc<ReadControl>, busy_wait_limit: Duration) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            busy_wait: BusyWait::for_streams(busy_wait_limit),
            read_control,
            subscribers: Subscribers::default(),
            select_signal: OnceLock::new(),
        }
    }

    /// Appends batches, in their order. After the end of the inbox they are dropped.
    pub(crate) fn push(&self, batches: &mut VecDeque<Batch>, is_fixed: bool) {
        self.append_batches(batches, is_fixed, None);
    }

    /// Appends batches from a stream, which are fixed. `position` is noted when they are taken.
    pub(crate) fn push_of_stream(
        &self,
        batches: &mut VecDeque<Batch>,
        position: &Arc<StreamPosition>,
    ) {
        self.append_batches(batches, true, Some(position));
    }

    fn append_batches(
        &self,
        batches: &mut VecDeque<Batch>,
        is_fixed: bool,
        position: Option<&Arc<StreamPosition>>,
    ) {
        let count = batches.iter().map(Batch::len).sum();
        let cost = batches.iter().map(Batch::cost).sum();
        let fixed = if is_fixed { cost } else { 0 };
        let entries = batches.drain(..).map(|batch| Entry::Batch {
            batch,
            is_fixed,
            position: position.cloned(),
        });
        self.append(count, cost, fixed, entries);
    }

    /// Appends the end of a consumer with a callback.
    pub(crate) fn push_end(&self, consumer: E) {
        self.append(1, 0, 0, std::iter::once(Entry::Ended(consumer)));
    }

    fn append(
        &self,
        count: usize,
        cost: usize,
        fixed: usize,
        entries: impl Iterator<Item = Entry<E>>,
    ) {
        let mut state = self.state.lock();
        if state.ended {
            drop(state);
            return entries.for_each(drop);
        }
        // After a stop, deliveries do not count as fixed.
        let stopped = state.stopped;
        state.queue.extend(entries.map(|entry| match entry {
            Entry::Batch {
                batch,
                is_fixed,
                position,
            } => Entry::Batch {
                batch,
                is_fixed: is_fixed && !stopped,
                position,
            },
            ended => ended,
        }));
        state.count += count;
        state.bytes += cost;
        let fixed = if stopped { 0 } else { fixed };
        self.read_control.budget.add(cost, fixed);
        self.wake_one(&mut state);
        drop(state);
        self.subscribers.notify();
    }

    /// Stops the taking of deliveries: for the threads that take them, this is the end of the
    /// inbox. Present and later deliveries wait for [`extract`](Self::extract). They do not count
    /// as fixed any more, so they do not stop reading, because the reply to a cancel may be behind
    /// them.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let mut taken = std::mem::take(&mut state.taken);
        for entry in &mut state.queue {
            if let Entry::Batch {
                batch, is_fixed, ..
            } = entry
            {
                if std::mem::take(is_fixed) {
                    taken.fixed += batch.cost();
                }
            }
        }
        self.wake_all(&mut state);
        drop(state);
        self.report(&taken);
        self.subscribers.notify();
    }

    /// Allows the taking of deliveries again.
    pub(crate) fn resume(&self) {
        self.state.lock().stopped = false;
        self.subscribers.notify();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Ends the inbox: there will be no more entries.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.wake_all(&mut state);
        drop(state);
        self.subscribers.notify();
    }

    /// Wakes all sleeping threads, so that each of them sees the end or the stop.
    fn wake_all(&self, state: &mut State<E>) {
        let woken = self.changed.notify_all();
        state.asleep -= woken;
        state.woken += woken;
    }

    /// Wakes one sleeping thread, if there is an entry and no other thread is about to wake up.
    #[inline]
    fn wake_one(&self, state: &mut State<E>) {
        if state.asleep > 0 && state.woken == 0 && !state.queue.is_empty() {
            // A thread whose deadline has just passed is not notified: it has left the condition
            // variable, and checks the queue once more.
            if self.changed.notify_one() {
                state.asleep -= 1;
                state.woken += 1;
            }
        }
    }

    /// Sleeps until the thread is woken; returns `false` at the deadline.
    // A function of its own, so that a thread that finds an entry at once does not pay for it.
    #[cold]
    fn sleep(&self, state: &mut MutexGuard<'_, State<E>>, deadline: Option<Instant>) -> bool {
        state.asleep += 1;
        let _waiting = self.read_control.count_as_waiting_for_delivery();
        let is_woken = match deadline {
            Some(deadline) => !self.changed.wait_until(state, deadline).timed_out(),
            None => {
                self.changed.wait(state);
                true
            }
        };
        match is_woken {
            true => state.woken -= 1,
            false => state.asleep -= 1,
        }
        is_woken
    }

    /// Takes the next entry, if there is one.
    pub(crate) fn try_pop(&self) -> Next<E> {
        let mut state = self.state.lock();
        let found = self.take(&mut state);
        let taken = self.take_report(&mut state);
        drop(state);
        if let Some(taken) = taken {
            self.report(&taken);
        }
        found.unpack()
    }

    /// Spins until there is an entry or an end, if that pays and `deadline` is not too near.
    pub(crate) fn spin(&self, deadline: Option<Instant>) {
        self.spin_until(deadline, || self.has_news());
    }

    /// Spins until `is_over` returns `true`, if that pays and `deadline` is not too near.
    pub(crate) fn spin_until(&self, deadline: Option<Instant>, is_over: impl Fn() -> bool) {
        // Counted at the first look: where spinning does not pay, most waits do not spin.
        let mut spinning = None;
        self.busy_wait.look_until(deadline, || {
            spinning.get_or_insert_with(|| self.read_control.count_as_spinning_for_delivery());
            is_over().then_some(())
        });
    }

    fn has_news(&self) -> bool {
        self.state.lock().has_news()
    }

    /// Waits for the next entry and takes it. Returns `Empty` at the deadline.
    pub(crate) fn pop(&self, deadline: Option<Instant>) -> Next<E> {
        let mut state = self.state.lock();
        let found = loop {
            match self.take(&mut state) {
                Next::Empty => {}
                found => break found,
            }
            if !self.sleep(&mut state, deadline) {
                break self.take(&mut state);
            }
        };
        let taken = self.take_report(&mut state);
        drop(state);
        if let Some(taken) = taken {
            self.report(&taken);
        }
        found.unpack()
    }

    fn take(&self, state: &mut State<E>) -> Next<E, PackedDelivery> {
        let found = match state.queue.front_mut() {
            _ if state.stopped => Next::Ended,
            Some(Entry::Batch {
                batch,
                is_fixed,
                position,
            }) => {
                let message = batch.pop();
                // Under the lock: when the IO thread has dropped the untaken deliveries, the
                // position is behind all others.
                if let (Some(message), Some(position)) = (&message, position) {
                    position.note_taken(message.properties());
                }
                let cost = message.as_ref().map_or(0, |message| batch.cost_of(message));
                if *is_fixed {
                    state.taken.fixed += cost;
                }
                if batch.is_empty() {
                    state.queue.pop_front();
                }
                state.bytes -= cost;
                state.taken.cost += cost;
                message.map_or(Next::Empty, |message| {
                    state.count -= 1;
                    Next::Message(message)
                })
            }
            Some(Entry::Ended(consumer)) => {
                let consumer = std::mem::take(consumer);
                state.queue.pop_front();
                state.count -= 1;
                Next::ConsumerEnded(consumer)
            }
            None if state.ended => Next::Ended,
            None => Next::Empty,
        };
        self.wake_one(state);
        // A program that waits with `select!` is woken again for the remaining entries, and always
        // for an end.
        if let Some(signal) = self.select_signal.get() {
            if state.has_news() {
                signal.notify();
            }
        }
        found
    }

    /// Takes the cost of the taken deliveries out of `state` if it must be reported now. It must be
    /// reported when it is large, when the queue is empty (a later report may never come), and when
    /// the IO thread waits for every byte.
    #[inline]
    fn take_report(&self, state: &mut State<E>) -> Option<TakenBytes> {
        let is_due = state.taken.cost > UNREPORTED_BYTES_MAX
            || state.queue.is_empty()
            || self.read_control.budget.must_report_at_once();
        is_due.then(|| std::mem::take(&mut state.taken))
    }

    /// Reports the deliveries that were taken so far.
    pub(crate) fn report_taken(&self) {
        let taken = std::mem::take(&mut self.state.lock().taken);
        self.report(&taken);
    }

    fn report(&self, taken: &TakenBytes) {
        if taken.cost > 0 || taken.fixed > 0 {
            self.read_control.handed_out(taken.cost, taken.fixed);
        }
    }

    /// Returns the cost of the untaken deliveries.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of untaken messages and ends.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().count
    }

    /// Returns whether the inbox is empty and has ended.
    pub(crate) fn is_drained(&self) -> bool {
        let state = self.state.lock();
        state.ended && state.queue.is_empty()
    }

    /// Returns whether there will be no more entries.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Returns the signals that are set for a new entry.
    pub(crate) fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// Returns the slot for `select!`. The slot is full when there is an entry, or when no thread
    /// can take entries any more. It may also be full without a reason.
    pub(crate) fn select_signal(&self) -> &Receiver<()> {
        let signal = self.select_signal.get_or_init(|| {
            let signal = Arc::new(Signal::new());
            self.subscribers.add(&signal);
            signal
        });
        let state = self.state.lock();
        if state.has_news() {
            signal.notify();
        }
        signal.receiver()
    }

    /// Drops the deliveries of all consumers for whose tag `wanted` returns `true`.
    pub(crate) fn discard(&self, wanted: impl Fn(&ShortString) -> bool) {
        drop(self.extract(wanted));
    }

    /// Takes the deliveries of each consumer whose tag is `wanted` out of the queue, and drops the
    /// marks of consumers that are gone.
    pub(crate) fn extract(&self, wanted: impl Fn(&ShortString) -> bool) -> Extracted {
        let mut extracted = VecDeque::new();
        let mut kept = VecDeque::new();
        let mut state = self.state.lock();
        let mut taken = std::mem::take(&mut state.taken);
        let mut cost = 0;
        for entry in state.queue.drain(..) {
            match entry {
                Entry::Batch {
                    batch, is_fixed, ..
                } if wanted(batch.consumer_tag()) => {
                    cost += batch.cost();
                    taken.fixed += if is_fixed { batch.cost() } else { 0 };
                    extracted.push_back(batch);
                }
                Entry::Ended(consumer) if consumer.is_stale() => {}
                other => kept.push_back(other),
            }
        }
        state.count = kept.iter().map(Entry::len).sum();
        state.queue = kept;
        state.bytes -= cost;
        taken.cost += cost;
        drop(state);
        self.report(&taken);
        Extracted {
            len: extracted.iter().map(Batch::len).sum(),
            batches: extracted,
        }
    }
}

/// Deliveries that were extracted from an inbox. They stay in their batches until each is taken.
#[derive(Debug, Default)]
pub(crate) struct Extracted {
    batches: VecDeque<Batch>,
    len: usize,
}

impl Iterator for Extracted {
    type Item = DeliveredContent;

    fn next(&mut self) -> Option<DeliveredContent> {
        let batch = self.batches.front_mut()?;
        let message = batch.pop();
        if batch.is_empty() {
            self.batches.pop_front();
        }
        self.len = self.len.saturating_sub(1);
        message.map(PackedDelivery::unpack)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len, Some(self.len))
    }
}

impl ExactSizeIterator for Extracted {}

impl<E: EndMark> Drop for Inbox<E> {
    fn drop(&mut self) {
        self.discard(|_| true);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::io::to_program::read_budget::ReadState;
    use crate::io::to_program::read_control::tests::read_control;
    use crate::protocol::delivery_batch::tests::{of_stream, packed};

    const SIZE: usize = 100;

    impl EndMark for () {
        fn is_stale(&self) -> bool {
            false
        }
    }

    fn inbox() -> Inbox<()> {
        Inbox::new(read_control(1 << 20), Duration::ZERO)
    }

    /// Appends this many fixed deliveries at once.
    fn push(inbox: &Inbox<()>, count: usize) {
        inbox.push(&mut packed(&vec![(SIZE, "key"); count]), true);
    }

    #[test]
    fn a_spin_ends_with_a_delivery_a_stop_and_an_end_and_counts_as_a_wait() {
        let ends: [fn(&Inbox<()>); 4] = [
            |inbox| push(inbox, 1),
            Inbox::stop,
            Inbox::end,
            |inbox| {
                inbox.push_end(());
            },
        ];
        for end in ends {
            let inbox: Inbox<()> = Inbox::new(read_control(1 << 20), Duration::from_secs(600));
            let threads = &inbox.read_control.threads;
            thread::scope(|scope| {
                let spinning = scope.spawn(|| inbox.spin(None));
                while !threads.are_spinning() {
                    thread::yield_now();
                }
                assert!(threads.is_delivery_awaited() && !spinning.is_finished());
                end(&inbox);
            });
            assert!(!threads.are_spinning() && !threads.is_delivery_awaited());
        }
    }

    /// Returns how many untaken bytes the read budget counts.
    fn waiting(inbox: &Inbox<()>) -> usize {
        inbox.read_control.budget.bytes()
    }

    #[test]
    fn several_messages_at_once_wake_as_many_threads() {
        const COUNT: usize = 3;
        let inbox = inbox();
        let all_have_one = Barrier::new(COUNT);
        let deadline = Instant::now() + Duration::from_secs(10);
        let take = || {
            let popped = inbox.pop(Some(deadline));
            let has_one = matches!(popped, Next::Message(_));
            // Each thread takes one message only.
            all_have_one.wait();
            has_one && Instant::now() < deadline
        };
        thread::scope(|scope| {
            let consumers: Vec<_> = (0..COUNT).map(|_| scope.spawn(take)).collect();
            while inbox.state.lock().asleep < COUNT {
                thread::yield_now();
            }
            push(&inbox, COUNT);
            for consumer in consumers {
                assert!(consumer.join().unwrap(), "a thread was not woken");
            }
        });
    }

    #[test]
    fn the_slot_for_select_is_filled_by_messages_and_every_end() {
        let changes: [fn(&Inbox<()>); 4] = [
            |inbox| push(inbox, 1),
            |inbox| inbox.stop(),
            |inbox| inbox.resume(),
            |inbox| inbox.end(),
        ];
        let inbox = inbox();
        let ready = inbox.select_signal();
        assert!(ready.try_recv().is_err(), "the inbox is empty");
        for change in changes {
            change(&inbox);
            assert!(ready.try_recv().is_ok());
            assert!(ready.try_recv().is_err(), "the slot was filled once");
        }
        // The slot is full again for a thread that calls `select_signal` after the end.
        assert!(inbox.select_signal().try_recv().is_ok());
    }

    #[test]
    fn reading_goes_on_while_a_thread_waits_for_a_delivery() {
        let inbox = inbox();
        let threads = &inbox.read_control.threads;
        let deadline = Instant::now() + Duration::from_secs(10);
        thread::scope(|scope| {
            scope.spawn(|| inbox.pop(Some(deadline)));
            while !threads.is_delivery_awaited() {
                assert!(Instant::now() < deadline);
                thread::yield_now();
            }
            push(&inbox, 1);
        });
        assert!(!threads.is_delivery_awaited());
    }

    #[test]
    fn a_thread_whose_deadline_has_just_passed_does_not_count_as_woken() {
        let inbox = inbox();
        // The thread has left the condition variable, and does not hold the lock yet.
        inbox.state.lock().asleep = 1;
        push(&inbox, 1);
        inbox.end();
        let state = inbox.state.lock();
        assert_eq!((state.asleep, state.woken), (1, 0));
    }

    #[test]
    fn a_sleeping_thread_counts_until_it_is_woken_or_its_deadline() {
        let inbox = inbox();
        let counts = || {
            let state = inbox.state.lock();
            (state.asleep, state.woken)
        };
        assert!(matches!(inbox.pop(Some(Instant::now())), Next::Empty));
        assert_eq!(counts(), (0, 0));
        thread::scope(|scope| {
            let consumers = [(); 2].map(|()| scope.spawn(|| inbox.pop(None)));
            while counts() != (2, 0) {
                thread::yield_now();
            }
            push(&inbox, 1);
            while consumers
                .iter()
                .filter(|thread| thread.is_finished())
                .count()
                < 1
            {
                thread::yield_now();
            }
            assert_eq!(counts(), (1, 0));
            inbox.end();
            let ends = consumers.map(|thread| matches!(thread.join().unwrap(), Next::Ended));
            assert_eq!(ends.iter().filter(|&&ended| ended).count(), 1);
        });
        assert_eq!(counts(), (0, 0));
    }

    #[test]
    fn taken_deliveries_are_reported_together_unless_the_io_thread_waits_for_them() {
        let inbox = inbox();
        push(&inbox, 10);
        let all = waiting(&inbox);
        assert!(all >= 10 * SIZE);
        assert!(matches!(inbox.try_pop(), Next::Message(_)));
        assert_eq!(waiting(&inbox), all, "too few bytes for a report");
        assert!(inbox.read_control.budget.set_wake_bound(1, true));
        assert!(matches!(inbox.pop(None), Next::Message(_)));
        let left = waiting(&inbox);
        assert!(left <= all - 2 * SIZE, "{left} of {all}");
        assert!(matches!(inbox.try_pop(), Next::Message(_)));
        assert!(waiting(&inbox) <= left - SIZE);
    }

    #[test]
    fn many_taken_bytes_are_reported_and_so_is_the_last_delivery() {
        let inbox = inbox();
        let count = 2 * UNREPORTED_BYTES_MAX / SIZE;
        push(&inbox, count);
        let all = waiting(&inbox);
        let mut taken = 0;
        while waiting(&inbox) == all {
            assert!(matches!(inbox.try_pop(), Next::Message(_)));
            taken += SIZE;
        }
        assert!(taken <= UNREPORTED_BYTES_MAX, "{taken} bytes and more");
        while let Next::Message(_) = inbox.try_pop() {}
        assert_eq!(waiting(&inbox), 0);
        assert_eq!(inbox.bytes(), 0);
    }

    #[test]
    fn only_taken_deliveries_of_a_stream_are_noted_in_its_position() {
        let inbox = inbox();
        let position = Arc::new(StreamPosition::default());
        let mut batches = of_stream(&[4, 5, 6]);
        inbox.push_of_stream(&mut batches, &position);
        assert_eq!(position.next(), None);
        for next in [5, 6] {
            assert!(matches!(inbox.try_pop(), Next::Message(_)));
            assert_eq!(position.next(), Some(next));
        }
        inbox.discard(|_| true);
        inbox.push_of_stream(&mut of_stream(&[9]), &position);
        inbox.end();
        assert_eq!(position.next(), Some(6));
    }

    #[test]
    fn extracted_and_dropped_deliveries_leave_the_read_budget() {
        let inbox = inbox();
        let budget = Arc::clone(&inbox.read_control);
        push(&inbox, 3);
        assert_eq!(inbox.len(), 3);
        // Taken deliveries that are not reported count as well.
        assert!(matches!(inbox.try_pop(), Next::Message(_)));
        assert_eq!(inbox.extract(|tag| *tag == "other").count(), 0);
        assert_eq!(inbox.len(), 2);
        assert_eq!(waiting(&inbox), inbox.bytes());
        assert!(matches!(inbox.try_pop(), Next::Message(_)));
        assert_eq!(inbox.extract(|tag| *tag == "tag").count(), 1);
        assert_eq!((inbox.len(), waiting(&inbox)), (0, 0));
        push(&inbox, 3);
        assert!(matches!(inbox.try_pop(), Next::Message(_)));
        drop(inbox);
        assert_eq!(budget.budget.bytes(), 0);
        assert_eq!(budget.budget.reason_to_pause(ReadState::default()), None);
    }
}
