//! Where deliveries wait for the threads that take them.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_channel::Receiver;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::io::to_program::dispatch_signal::{Signal, Subscribers};
use crate::io::to_program::read_control::ReadControl;
use crate::protocol::content::DeliveredContent;
use crate::protocol::delivery_batch::{Batch, PackedDelivery};
use crate::protocol::wire::ShortString;

/// The end of a consumer in an inbox that several consumers share: the last entry of that one.
pub(crate) trait EndMark: Default {
    /// Whether the consumer is gone, so that its end concerns no thread any more.
    fn is_stale(&self) -> bool;
}

/// An entry of the queue.
#[derive(Debug)]
enum Entry<E> {
    /// With `true`, of deliveries that cannot be held back.
    Batch(Batch, bool),
    Ended(E),
}

impl<E> Entry<E> {
    fn len(&self) -> usize {
        match self {
            Self::Batch(run, _) => run.len(),
            Self::Ended(_) => 1,
        }
    }
}

/// The outcome of a look into an inbox.
#[derive(Debug)]
pub(crate) enum Next<E, M = DeliveredContent> {
    Message(M),
    /// The last entry of a consumer whose callback has had all its deliveries.
    ConsumerEnded(E),
    Empty,
    /// Empty, and nothing will come any more.
    Ended,
}

impl<E> Next<E, PackedDelivery> {
    /// Copies the message out of its batch. Done without the lock, for it is the largest part of
    /// the work.
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
/// The IO thread puts in what one read has brought with one lock; a whole consumer's
/// messages can be taken out from between the others, in order.
///
/// Of those who sleep, one at a time is woken: it takes what it was woken for, and if that has
/// left something, wakes the next. So as many come as there is work for. To wake one for each
/// message, or even all, would wake many in vain, for those who are awake take most of what
/// comes.
#[derive(Debug)]
pub(crate) struct Inbox<E: EndMark> {
    state: Mutex<State<E>>,
    moved: Condvar,
    read_control: Arc<ReadControl>,
    /// Who is told beside those that wait in [`pop`](Self::pop).
    subscribers: Subscribers,
    ready: OnceLock<Arc<Signal>>,
}

#[derive(Debug, Default)]
struct State<E> {
    queue: VecDeque<Entry<E>>,
    /// How many items that are.
    count: usize,
    /// What the queue costs.
    bytes: usize,
    ended: bool,
    /// Nothing is taken any more, though something may still come.
    stopped: bool,
    /// How many threads sleep until something comes.
    asleep: usize,
    /// How many were woken, and have not looked yet.
    woken: usize,
    /// What was taken and is not reported yet: one report for several items is cheaper.
    taken: Taking,
}

/// What was taken, in bytes.
#[derive(Debug, Default)]
struct Taking {
    cost: usize,
    /// How much of that could not be held back.
    fixed: usize,
}

/// How much may be taken before it is reported.
const UNREPORTED_BYTES_MAX: usize = 16 * 1024;

impl<E: EndMark> Inbox<E> {
    pub(crate) fn new(read_control: Arc<ReadControl>) -> Self {
        Self {
            state: Mutex::default(),
            moved: Condvar::new(),
            read_control,
            subscribers: Subscribers::default(),
            ready: OnceLock::new(),
        }
    }

    /// Puts in messages, in order. What comes after the end is dropped.
    pub(crate) fn push(&self, runs: &mut VecDeque<Batch>, is_fixed: bool) {
        let count = runs.iter().map(Batch::len).sum();
        let cost = runs.iter().map(Batch::cost).sum();
        let fixed = if is_fixed { cost } else { 0 };
        let entries = runs.drain(..).map(|run| Entry::Batch(run, is_fixed));
        self.put(count, cost, fixed, entries);
    }

    /// Puts in the end of a callback's consumer.
    pub(crate) fn push_end(&self, consumer: E) {
        self.put(1, 0, 0, std::iter::once(Entry::Ended(consumer)));
    }

    fn put(
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
        let stopped = state.stopped;
        state.queue.extend(entries.map(|entry| match entry {
            Entry::Batch(run, is_fixed) => Entry::Batch(run, is_fixed && !stopped),
            ended => ended,
        }));
        state.count += count;
        state.bytes += cost;
        let fixed = if stopped { 0 } else { fixed };
        self.read_control.budget.add(cost, fixed);
        self.wake_one(&mut state);
        drop(state);
        self.subscribers.ring();
    }

    /// Nothing is to be taken any more: for those who take, this is the end. What is there, and
    /// what still comes, waits for [`extract`](Self::extract), and does not stop reading: the
    /// reply to a cancel may be behind it.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let mut taken = std::mem::take(&mut state.taken);
        for entry in &mut state.queue {
            if let Entry::Batch(run, is_fixed) = entry {
                if std::mem::take(is_fixed) {
                    taken.fixed += run.cost();
                }
            }
        }
        self.wake_all(&mut state);
        drop(state);
        self.report(&taken);
        self.subscribers.ring();
    }

    /// What has come can be taken after all.
    pub(crate) fn resume(&self) {
        self.state.lock().stopped = false;
        self.subscribers.ring();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Nothing will come any more.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        self.wake_all(&mut state);
        drop(state);
        self.subscribers.ring();
    }

    /// Wakes all who sleep, for none of them will find anything more.
    fn wake_all(&self, state: &mut State<E>) {
        let woken = self.moved.notify_all();
        state.asleep -= woken;
        state.woken += woken;
    }

    /// Wakes one of those who sleep, if there is something to take and nobody is on the way.
    #[inline]
    fn wake_one(&self, state: &mut State<E>) {
        if state.asleep > 0 && state.woken == 0 && !state.queue.is_empty() {
            // Not one whose deadline has just passed: it has left, and looks once more.
            if self.moved.notify_one() {
                state.asleep -= 1;
                state.woken += 1;
            }
        }
    }

    /// Sleeps until it is woken; `false` at the deadline.
    // Apart, so that those who find something at once do not pay for it.
    #[cold]
    fn sleep(&self, state: &mut MutexGuard<'_, State<E>>, deadline: Option<Instant>) -> bool {
        state.asleep += 1;
        let _waiting = self.read_control.wait_for_delivery();
        let is_woken = match deadline {
            Some(deadline) => !self.moved.wait_until(state, deadline).timed_out(),
            None => {
                self.moved.wait(state);
                true
            }
        };
        match is_woken {
            true => state.woken -= 1,
            false => state.asleep -= 1,
        }
        is_woken
    }

    /// The next item, if there is one.
    pub(crate) fn try_pop(&self) -> Next<E> {
        let mut state = self.state.lock();
        let found = self.take(&mut state);
        let taken = self.to_report(&mut state);
        drop(state);
        if let Some(taken) = taken {
            self.report(&taken);
        }
        found.unpack()
    }

    /// The next item, waiting for it; `Empty` after the deadline.
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
        let taken = self.to_report(&mut state);
        drop(state);
        if let Some(taken) = taken {
            self.report(&taken);
        }
        found.unpack()
    }

    fn take(&self, state: &mut State<E>) -> Next<E, PackedDelivery> {
        let found = match state.queue.front_mut() {
            _ if state.stopped => Next::Ended,
            Some(Entry::Batch(run, is_fixed)) => {
                let message = run.pop();
                let cost = message.as_ref().map_or(0, |message| run.cost_of(message));
                if *is_fixed {
                    state.taken.fixed += cost;
                }
                if run.is_empty() {
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
        // Whoever waits with `select!` hears again of what is left, and all of the end.
        if let Some(signal) = self.ready.get() {
            if state.ended || state.stopped || !state.queue.is_empty() {
                signal.ring();
            }
        }
        found
    }

    /// What is to be reported now: when it has become much, when nothing is left to report
    /// it with, and when the IO thread waits for it.
    #[inline]
    fn to_report(&self, state: &mut State<E>) -> Option<Taking> {
        let is_due = state.taken.cost > UNREPORTED_BYTES_MAX
            || state.queue.is_empty()
            || self.read_control.budget.is_watched();
        is_due.then(|| std::mem::take(&mut state.taken))
    }

    /// Reports what was taken so far.
    pub(crate) fn report_taken(&self) {
        let taken = std::mem::take(&mut self.state.lock().taken);
        self.report(&taken);
    }

    fn report(&self, taken: &Taking) {
        if taken.cost > 0 || taken.fixed > 0 {
            self.read_control.handed_out(taken.cost, taken.fixed);
        }
    }

    /// What waits to be taken, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().count
    }

    /// Whether there is nothing, and nothing will come any more.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.ended && state.queue.is_empty()
    }

    /// Whether nothing will come any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Who is told when something comes.
    pub(crate) fn subscribers(&self) -> &Subscribers {
        &self.subscribers
    }

    /// A slot that is full when there is something to take, or an end to learn of; it may
    /// be full without.
    pub(crate) fn ready(&self) -> &Receiver<()> {
        let signal = self.ready.get_or_init(|| {
            let signal = Arc::new(Signal::new());
            self.subscribers.add(&signal);
            signal
        });
        let state = self.state.lock();
        if state.ended || state.stopped || !state.queue.is_empty() {
            signal.ring();
        }
        signal.receiver()
    }

    /// Drops the messages of every consumer that `wanted` picks by its tag.
    pub(crate) fn discard(&self, wanted: impl Fn(&ShortString) -> bool) {
        drop(self.extract(wanted));
    }

    /// Takes them out.
    pub(crate) fn extract(&self, wanted: impl Fn(&ShortString) -> bool) -> Extracted {
        let mut extracted = VecDeque::new();
        let mut kept = VecDeque::new();
        let mut state = self.state.lock();
        let mut taken = std::mem::take(&mut state.taken);
        let mut cost = 0;
        for entry in state.queue.drain(..) {
            match entry {
                Entry::Batch(run, is_fixed) if wanted(run.consumer_tag()) => {
                    cost += run.cost();
                    taken.fixed += if is_fixed { run.cost() } else { 0 };
                    extracted.push_back(run);
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
            runs: extracted,
        }
    }
}

/// Messages that were taken out of an inbox. They stay as small as they came until it is the
/// turn of each.
#[derive(Debug, Default)]
pub(crate) struct Extracted {
    runs: VecDeque<Batch>,
    len: usize,
}

impl Iterator for Extracted {
    type Item = DeliveredContent;

    fn next(&mut self) -> Option<DeliveredContent> {
        let run = self.runs.front_mut()?;
        let message = run.pop();
        if run.is_empty() {
            self.runs.pop_front();
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
    use crate::io::to_program::read_control::tests::read_control;
    use crate::protocol::delivery_batch::tests::packed;

    const SIZE: usize = 100;

    impl EndMark for () {
        fn is_stale(&self) -> bool {
            false
        }
    }

    fn inbox() -> Inbox<()> {
        Inbox::new(read_control(1 << 20))
    }

    /// Puts in so many messages at once, which cannot be held back.
    fn push(inbox: &Inbox<()>, count: usize) {
        inbox.push(&mut packed(&vec![(SIZE, "key"); count]), true);
    }

    /// How much is counted as waiting to be taken.
    fn waiting(inbox: &Inbox<()>) -> usize {
        inbox.read_control.budget.bytes()
    }

    #[test]
    fn all_who_wait_hear_of_several_messages_that_come_at_once() {
        const COUNT: usize = 3;
        let inbox = inbox();
        let all_have_one = Barrier::new(COUNT);
        let deadline = Instant::now() + Duration::from_secs(10);
        let take = || {
            let popped = inbox.pop(Some(deadline));
            let has_one = matches!(popped, Next::Message(_));
            // Who has one takes no other before everybody has.
            all_have_one.wait();
            has_one && Instant::now() < deadline
        };
        thread::scope(|scope| {
            let takers: Vec<_> = (0..COUNT).map(|_| scope.spawn(take)).collect();
            while inbox.state.lock().asleep < COUNT {
                thread::yield_now();
            }
            push(&inbox, COUNT);
            for taker in takers {
                assert!(taker.join().unwrap(), "one slept on");
            }
        });
    }

    #[test]
    fn those_who_wait_with_select_hear_of_messages_and_of_every_end() {
        let changes: [fn(&Inbox<()>); 4] = [
            |inbox| push(inbox, 1),
            |inbox| inbox.stop(),
            |inbox| inbox.resume(),
            |inbox| inbox.end(),
        ];
        let inbox = inbox();
        let ready = inbox.ready();
        assert!(ready.try_recv().is_err(), "there is nothing yet");
        for change in changes {
            change(&inbox);
            assert!(ready.try_recv().is_ok());
            assert!(ready.try_recv().is_err(), "told once");
        }
        // As to one who asks now.
        assert!(inbox.ready().try_recv().is_ok());
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
    fn one_whose_deadline_has_just_passed_is_not_taken_for_woken() {
        let inbox = inbox();
        // It has left the condition, and not got the lock yet.
        inbox.state.lock().asleep = 1;
        push(&inbox, 1);
        inbox.end();
        let state = inbox.state.lock();
        assert_eq!((state.asleep, state.woken), (1, 0));
    }

    #[test]
    fn who_sleeps_is_counted_until_it_is_woken_or_has_slept_enough() {
        let inbox = inbox();
        let counts = || {
            let state = inbox.state.lock();
            (state.asleep, state.woken)
        };
        assert!(matches!(inbox.pop(Some(Instant::now())), Next::Empty));
        assert_eq!(counts(), (0, 0));
        thread::scope(|scope| {
            let takers = [(); 2].map(|()| scope.spawn(|| inbox.pop(None)));
            while counts() != (2, 0) {
                thread::yield_now();
            }
            push(&inbox, 1);
            while takers.iter().filter(|taker| taker.is_finished()).count() < 1 {
                thread::yield_now();
            }
            assert_eq!(counts(), (1, 0));
            inbox.end();
            let ends = takers.map(|taker| matches!(taker.join().unwrap(), Next::Ended));
            assert_eq!(ends.iter().filter(|&&ended| ended).count(), 1);
        });
        assert_eq!(counts(), (0, 0));
    }

    #[test]
    fn what_is_taken_is_reported_together_unless_the_io_thread_waits_for_it() {
        let inbox = inbox();
        push(&inbox, 10);
        let all = waiting(&inbox);
        assert!(all >= 10 * SIZE);
        assert!(matches!(inbox.try_pop(), Next::Message(_)));
        assert_eq!(waiting(&inbox), all, "it is not worth a report");
        assert!(inbox.read_control.budget.wait_for(1, true));
        assert!(matches!(inbox.pop(None), Next::Message(_)));
        let left = waiting(&inbox);
        assert!(left <= all - 2 * SIZE, "{left} of {all}");
        assert!(matches!(inbox.try_pop(), Next::Message(_)));
        assert!(waiting(&inbox) <= left - SIZE);
    }

    #[test]
    fn much_that_is_taken_is_reported_and_so_is_the_last() {
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
    fn what_is_taken_out_or_dropped_with_the_inbox_waits_no_more() {
        let inbox = inbox();
        let budget = Arc::clone(&inbox.read_control);
        push(&inbox, 3);
        assert_eq!(inbox.len(), 3);
        // What was taken before and is not reported yet counts as well.
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
        assert_eq!(budget.budget.must_stop(false, false, 0), None);
    }
}
