//! The state of a connection that the program's threads share with the IO thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use parking_lot::Mutex;

use crate::error::{Error, RECOVERY, ReadingPause};
use crate::io::backpressure::Backpressure;
use crate::io::busy_wait::BusyWait;
use crate::io::counters::Counters;
use crate::io::shared::command::{Command, Outcome};
use crate::io::shared::recovery::{RecoveryNotice, RecoveryState};
use crate::io::to_io::byte_budget::ByteBudget;
use crate::io::to_io::command_queue::CommandQueue;
use crate::io::to_io::gather::GatherPause;
use crate::io::to_io::wake::Wake;
use crate::io::to_program::bounded_queue::TotalBytes;
use crate::io::to_program::dispatch_signal::Subscribers;
use crate::io::to_program::read_budget::ReadBudget;
use crate::io::to_program::read_control::ReadControl;
use crate::io::to_program::ready_list::ReadyList;
use crate::io::to_program::waiting_threads::Waiting;
use crate::io::waiting_line::WaitError;
use crate::protocol::assembly::SizeLimit;
use crate::protocol::event::{CallFailure, Termination};
use crate::protocol::handshake::Negotiated;
use crate::protocol::wire::ShortString;

/// The parameters of a connection that the IO thread needs.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The connection's name, for the log.
    pub(crate) name: String,
    pub(crate) write_limit: usize,
    /// The unconfirmed budget. `None`: publishes are not kept until they are confirmed.
    pub(crate) unconfirmed_limit: Option<usize>,
    pub(crate) read_limit: usize,
    pub(crate) message_size: SizeLimit,
    /// How long the broker may block the connection until it counts as lost.
    pub(crate) blocked_timeout: Option<Duration>,
    pub(crate) backpressure_detection: bool,
    /// How long [`PublisherConfirm::wait`](crate::PublisherConfirm::wait) waits for a confirm.
    pub(crate) confirm_timeout: Duration,
    /// How long a thread spins before it sleeps, at most.
    pub(crate) busy_wait: Duration,
}

/// The consumer with the most bytes of untaken deliveries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlowestConsumer {
    pub(crate) channel: u16,
    pub(crate) consumer: ShortString,
    pub(crate) bytes: usize,
}

/// The shared state of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionShared {
    commands: CommandQueue<Command>,
    wake: Arc<Wake>,
    pub(crate) gather_pause: GatherPause,
    /// Whether large bodies are written without a copy in the outbox. With TLS they are not: TLS
    /// copies them anyway, and makes a separate record of each piece.
    pub(crate) shares_bodies: bool,
    /// Whether publishes in confirm mode are kept until they are confirmed, to send them again
    /// after a loss.
    pub(crate) keeps_unconfirmed: bool,
    /// The bytes of all notices, failures and outcomes of the connection's channels.
    pub(crate) kept_bytes: TotalBytes,
    pub(crate) read_control: Arc<ReadControl>,
    pub(crate) negotiated: Negotiated,
    pub(crate) confirm_timeout: Duration,
    /// The connection's name, for the log.
    pub(crate) name: String,
    /// Why the connection ended. It is written once, before the IO thread disconnects any channel
    /// of crossbeam. So a disconnected receiver always finds the reason here.
    termination: OnceLock<Termination>,
    closing: AtomicBool,
    /// Whether the program has dropped all handles of the connection.
    abandoned: AtomicBool,
    /// The state of `connection.blocked`.
    blocked: Mutex<Blocked>,
    /// The beginning of the current reading pause, and the slowest consumer.
    reading_pause: Mutex<Option<(Instant, SlowestConsumer)>>,
    pub(crate) recovery: RecoveryState,
    pub(crate) backpressure: Backpressure,
    pub(crate) counters: Counters,
    /// Whether a dispatching thread must look for events of the connection itself: a block, the
    /// backpressure, the end, or a timer that is new or due.
    own_event: AtomicBool,
    /// The signals to set for events of the connection itself.
    pub(crate) own_subscribers: Subscribers,
    /// The signals to set for events of the connection and of all its channels.
    pub(crate) all_subscribers: Subscribers,
    /// The channels with something to dispatch.
    pub(crate) ready_list: ReadyList,
    /// The time of the next timer. At this time the IO thread sets the signals, because a program
    /// that waits with `select!` has no deadline of its own for its timers.
    timer_deadline: Mutex<Option<Instant>>,
    /// How long a thread spins before it sleeps, at most.
    pub(crate) busy_wait_limit: Duration,
    /// The busy wait of a caller for the reply to its call.
    caller_busy_wait: BusyWait,
    /// The busy wait for the confirm of one publish.
    pub(crate) confirm_busy_wait: BusyWait,
    /// The busy wait for an RPC reply.
    pub(crate) rpc_busy_wait: BusyWait,
    /// This receiver is disconnected when the IO thread has ended.
    ended: Receiver<()>,
}

/// Whether the broker blocks the connection, and for how long in total.
#[derive(Debug, Default)]
struct Blocked {
    reason: Option<ShortString>,
    /// The beginning of the current block.
    since: Option<Instant>,
    /// The total length of all former blocks.
    total: Duration,
}

impl Blocked {
    fn set(&mut self, reason: Option<ShortString>, now: Instant) {
        match reason {
            // A repeated `connection.blocked` may have another reason, but does not restart the
            // clock.
            Some(_) => drop(self.since.get_or_insert(now)),
            None => self.stop_clock(now),
        }
        self.reason = reason;
    }

    fn stop_clock(&mut self, now: Instant) {
        self.total = self.time(now);
        self.since = None;
    }

    fn time(&self, now: Instant) -> Duration {
        let current = self.since.map(|since| now.saturating_duration_since(since));
        self.total + current.unwrap_or_default()
    }
}

impl ConnectionShared {
    pub(crate) fn new(
        commands: CommandQueue<Command>,
        wake: Arc<Wake>,
        ended: Receiver<()>,
        negotiated: Negotiated,
        settings: &Settings,
        is_tls: bool,
    ) -> Self {
        let kept_bytes = TotalBytes::default();
        let read_control = Arc::new(ReadControl::new(settings.read_limit, Arc::clone(&wake)));
        Self {
            commands,
            wake,
            gather_pause: GatherPause::default(),
            shares_bodies: !is_tls,
            keeps_unconfirmed: settings.unconfirmed_limit.is_some(),
            recovery: RecoveryState::new(&kept_bytes),
            kept_bytes,
            read_control,
            negotiated,
            confirm_timeout: settings.confirm_timeout,
            name: settings.name.clone(),
            termination: OnceLock::new(),
            closing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            blocked: Mutex::default(),
            reading_pause: Mutex::default(),
            backpressure: Backpressure::new(settings.backpressure_detection),
            counters: Counters::default(),
            own_event: AtomicBool::new(false),
            own_subscribers: Subscribers::default(),
            all_subscribers: Subscribers::default(),
            ready_list: ReadyList::default(),
            timer_deadline: Mutex::default(),
            busy_wait_limit: settings.busy_wait,
            caller_busy_wait: BusyWait::for_replies(settings.busy_wait),
            confirm_busy_wait: BusyWait::for_replies(settings.busy_wait),
            rpc_busy_wait: BusyWait::for_replies(settings.busy_wait),
            ended,
        }
    }

    /// Queues a command that concerns no channel, and wakes the IO thread if it waits. After the
    /// end of the connection the command is dropped with the sender for its reply, which wakes the
    /// caller.
    pub(crate) fn send(&self, command: Command) {
        if matches!(command, Command::Close { .. } | Command::Disconnect) {
            // Before the command is queued: the IO thread relies on it when it executes the close.
            self.closing.store(true, Ordering::SeqCst);
        }
        if self.commands.send(command) {
            self.wake_for_command();
        }
    }

    /// Wakes the IO thread for a command.
    pub(crate) fn wake_for_command(&self) {
        self.gather_pause.end();
        self.wake.notify();
    }

    pub(crate) fn commands(&self) -> &CommandQueue<Command> {
        &self.commands
    }

    pub(crate) fn write_budget(&self) -> &ByteBudget {
        &self.commands.budget
    }

    pub(crate) fn unconfirmed_budget(&self) -> &ByteBudget {
        &self.commands.unconfirmed_budget
    }

    /// Frees room of the unconfirmed budget, and serves the publishers that wait for it.
    #[inline]
    pub(crate) fn release_unconfirmed(&self, bytes: usize) {
        if bytes > 0 {
            self.unconfirmed_budget().release(bytes);
            self.unconfirmed_budget().all_released();
        }
    }

    /// Wakes all publishers that wait for room in a budget, because their channel may have ended.
    pub(crate) fn wake_publishers(&self) {
        self.write_budget().wake_to_recheck();
        self.unconfirmed_budget().wake_to_recheck();
    }

    pub(crate) fn read_budget(&self) -> &ReadBudget {
        &self.read_control.budget
    }

    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Returns the reason of the end, if the connection has ended.
    pub(crate) fn termination(&self) -> Option<&Termination> {
        self.termination.get()
    }

    /// Returns the reason why the connection cannot be used, as an error: its end, or a close that
    /// the program has begun.
    pub(crate) fn end_error(&self) -> Option<Error> {
        match self.termination() {
            Some(termination) => Some(self.final_error(termination)),
            None => self.is_closing().then(Error::being_closed),
        }
    }

    /// Returns the reason of the end, if the connection has ended.
    pub(crate) fn close_reason(&self) -> Option<Error> {
        let termination = self.termination()?;
        Some(self.final_error(termination))
    }

    fn final_error(&self, termination: &Termination) -> Error {
        let failure = self.recovery.failure();
        failure.map_or_else(|| termination.into(), Error::clone)
    }

    /// Returns whether the connection can be used: [`end_error`](Self::end_error) would return
    /// `None`. This function creates no error.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.termination().is_none() && !self.is_closing()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Records that the program has dropped all handles of the connection, so that the close reason
    /// is reported to no thread.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Records the end. The first reason counts.
    pub(crate) fn terminate(&self, termination: Termination) {
        let _ = self.termination.set(termination);
        self.blocked.lock().stop_clock(Instant::now());
        self.recovery.end();
        self.wake_publishers();
        self.signal_own_event();
    }

    /// Records an event of the connection itself, and wakes the threads that dispatch it.
    pub(crate) fn signal_own_event(&self) {
        self.own_event.store(true, Ordering::SeqCst);
        self.wake_dispatchers();
    }

    /// Wakes the threads that dispatch events of the connection itself.
    pub(crate) fn wake_dispatchers(&self) {
        self.own_subscribers.notify();
        self.all_subscribers.notify();
    }

    /// Returns whether there is an event of the connection itself that no thread has dispatched.
    pub(crate) fn has_own_event(&self) -> bool {
        self.own_event.load(Ordering::SeqCst)
    }

    /// Clears the mark of such an event. The caller looks for events after this call, not before
    /// it.
    pub(crate) fn clear_own_event(&self) {
        self.own_event.store(false, Ordering::SeqCst);
    }

    /// Returns when the next timer is due.
    pub(crate) fn timer_deadline(&self) -> Option<Instant> {
        *self.timer_deadline.lock()
    }

    /// Sets the time at which the IO thread wakes the dispatching threads for a timer.
    pub(crate) fn set_timer_deadline(&self, when: Option<Instant>) {
        *self.timer_deadline.lock() = when;
        self.wake.notify();
    }

    /// Returns whether a timer is due, and then removes its deadline. With a deadline in the past
    /// the IO thread would not wait any more.
    pub(crate) fn take_due_timer(&self, now: Instant) -> bool {
        let mut deadline = self.timer_deadline.lock();
        let is_due = deadline.is_some_and(|when| when <= now);
        if is_due {
            *deadline = None;
        }
        is_due
    }

    /// Waits until the IO thread has ended. Returns `false` at the deadline.
    pub(crate) fn wait_for_io_thread(&self, deadline: Option<Instant>) -> bool {
        use crossbeam_channel::RecvTimeoutError::Timeout;
        match deadline {
            None => self.ended.recv().is_err(),
            Some(deadline) => self.ended.recv_deadline(deadline) != Err(Timeout),
        }
    }

    /// Counts the calling thread among those that wait for confirms or for room, until the guard is
    /// dropped. The IO thread does not pause reading meanwhile.
    pub(crate) fn count_as_waiting_for_room_or_confirm(&self) -> Waiting<'_> {
        let waiting = self
            .read_control
            .threads
            .count_as_waiting_for_room_or_confirm();
        self.wake_reading();
        waiting
    }

    /// Returns whether a thread waits for an event that only reading can bring.
    pub(crate) fn needs_reading(&self) -> bool {
        self.is_room_or_confirm_awaited() || self.read_control.threads.is_delivery_awaited()
    }

    /// Counts the calling thread among those that wait for the confirm of one publish, until the
    /// guards are dropped.
    pub(crate) fn count_as_waiting_for_confirm(&self) -> [Waiting<'_>; 2] {
        let waiting = self.read_control.threads.count_as_waiting_for_confirm();
        self.wake_reading();
        waiting
    }

    /// Wakes the IO thread if it does not read, because a thread begins to wait for received bytes.
    fn wake_reading(&self) {
        self.gather_pause.end();
        let is_paused = self.read_budget().is_paused() || self.read_budget().is_resting();
        // A publish of this thread may be in a block that another thread has announced, without
        // having woken the IO thread yet.
        if is_paused || !self.commands.is_empty() {
            self.wake.notify();
        }
    }

    /// Returns whether a thread waits for the confirm of one publish.
    pub(crate) fn is_confirm_awaited(&self) -> bool {
        self.read_control.threads.is_confirm_awaited()
    }

    /// Waits for the outcome of a call. There is always one: the IO thread replies at the deadline,
    /// and at its own end.
    pub(crate) fn await_outcome(&self, outcome: &Receiver<Outcome>) -> Outcome {
        let found = self.caller_busy_wait.look_for(|| match outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(CallFailure::Closed)),
        });
        found.unwrap_or_else(|| outcome.recv().unwrap_or(Err(CallFailure::Closed)))
    }

    /// Returns whether a thread waits for confirms or for room.
    pub(crate) fn is_room_or_confirm_awaited(&self) -> bool {
        self.read_control.threads.is_room_or_confirm_awaited()
    }

    /// Returns the reason of the current `connection.blocked`.
    pub(crate) fn blocked(&self) -> Option<ShortString> {
        self.blocked.lock().reason.clone()
    }

    /// Returns for how long the broker has blocked the connection in total.
    pub(crate) fn blocked_time(&self) -> Duration {
        self.blocked.lock().time(Instant::now())
    }

    /// Records the beginning of a reading pause and the slowest consumer, or with `None` its end.
    pub(crate) fn set_reading_pause(&self, pause: Option<(Instant, SlowestConsumer)>) {
        *self.reading_pause.lock() = pause;
    }

    /// Returns the current reading pause.
    pub(crate) fn reading_pause(&self) -> Option<Box<ReadingPause>> {
        let (since, slowest) = self.reading_pause.lock().clone()?;
        Some(Box::new(ReadingPause {
            length: since.elapsed(),
            channel: slowest.channel,
            consumer: slowest.consumer,
            bytes: slowest.bytes,
        }))
    }

    /// Returns the error of an `operation` whose deadline has passed. The error contains possible
    /// reasons: a block by the broker, a reading pause, or an outage.
    pub(crate) fn timeout_error(
        &self,
        operation: &'static str,
        channel: Option<u16>,
        after: Duration,
    ) -> Error {
        Error::Timeout {
            operation,
            channel,
            after,
            blocked: self.blocked(),
            paused: self.reading_pause(),
            outage: self.recovery.outage().map(Box::new),
        }
    }

    /// Stores a notice about recovery, and wakes the threads that dispatch it.
    pub(crate) fn push_recovery_notice(&self, notice: RecoveryNotice) {
        let dropped = self.recovery.push(notice);
        if dropped > 0 {
            log::debug!(
                "{}: {dropped} events of recovery are dropped, because no callback has taken them",
                self.name
            );
        }
        self.signal_own_event();
    }

    /// Records that recovery gives up. `reason` becomes the reason of the end. The driver calls
    /// [`terminate`](Self::terminate) next.
    pub(crate) fn give_up(&self, reason: Error) {
        self.recovery.fail(reason.clone());
        self.push_recovery_notice(RecoveryNotice::GaveUp(reason));
    }

    /// Returns the reason of the last loss, for a call that it has ended.
    pub(crate) fn last_loss(&self) -> Error {
        let lost = self.recovery.last_loss().or_else(|| self.end_error());
        lost.unwrap_or_else(Error::being_closed)
    }

    /// Waits until the connection is no longer in an outage. Returns at once if it is in none.
    ///
    /// # Errors
    ///
    /// The reason of the end; `Timeout` at the deadline, which is `timeout` after the call.
    pub(crate) fn wait_recovered(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now().checked_add(timeout);
        let waited = self
            .recovery
            .wait(deadline, || self.termination().is_some());
        match (self.end_error(), waited) {
            (Some(end), _) => Err(end),
            (None, Err(WaitError::TimedOut)) => Err(self.timeout_error(RECOVERY, None, timeout)),
            (None, _) => Ok(()),
        }
    }

    pub(crate) fn set_blocked(&self, reason: Option<ShortString>) {
        self.blocked.lock().set(reason, Instant::now());
        self.signal_own_event();
    }

    /// Signals an event when backpressure begins; `waiting` is how many bytes are still to be
    /// written.
    pub(crate) fn detect_backpressure(&self, waiting: usize) {
        let mean_frame = self.counters.bytes_sent.get() / self.counters.frames_sent.get().max(1);
        if self.backpressure.begins(waiting, mean_frame) {
            self.signal_own_event();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use mio::{Poll, Token, Waker};

    use super::*;
    use crate::error::Outage;
    use crate::io::to_io::command_queue::EntryReceiver;
    use crate::protocol::table::FieldTable;

    pub(crate) fn negotiated() -> Negotiated {
        Negotiated {
            channel_max: 10,
            frame_max: 4096,
            heartbeat: 0,
            server_properties: FieldTable::new(),
        }
    }

    /// Returns settings with this soft limit of the read budget.
    pub(crate) fn settings(read_limit: usize) -> Settings {
        Settings {
            name: "test".into(),
            write_limit: 1 << 20,
            unconfirmed_limit: None,
            read_limit,
            message_size: SizeLimit {
                bytes: 1 << 20,
                rejects: false,
            },
            blocked_timeout: None,
            backpressure_detection: false,
            confirm_timeout: Duration::ZERO,
            busy_wait: Duration::ZERO,
        }
    }

    /// Returns the shared state of a connection whose IO thread has ended.
    pub(crate) fn shared(read_limit: usize) -> Arc<ConnectionShared> {
        shared_with_entries(read_limit).0
    }

    /// Returns the shared state of a connection without an IO thread, and the receiving side of its
    /// command queue.
    pub(crate) fn shared_with_entries(
        read_limit: usize,
    ) -> (Arc<ConnectionShared>, EntryReceiver<Command>) {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let wake = Arc::new(Wake::with(&waker));
        let (_, ended) = crossbeam_channel::bounded(0);
        let settings = settings(read_limit);
        let (commands, entries) = CommandQueue::new(settings.write_limit, 0);
        let shared = ConnectionShared::new(commands, wake, ended, negotiated(), &settings, false);
        (Arc::new(shared), entries)
    }

    fn outage() -> Outage {
        Outage::new((&Termination::EndOfStream).into(), Instant::now())
    }

    #[test]
    fn the_error_of_a_deadline_contains_the_outage() {
        let (shared, after) = (shared(1 << 20), Duration::from_secs(1));
        let found = || match shared.timeout_error("queue.declare", Some(1), after) {
            Error::Timeout { outage, .. } => outage,
            other => panic!("{other:?}"),
        };
        assert!(found().is_none());
        shared.recovery.set_outage(Some(outage()));
        assert_eq!(found().unwrap().attempts, 0);
        shared.recovery.set_outage(None);
        assert!(found().is_none());
    }

    #[test]
    fn a_wait_for_the_end_of_an_outage_ends_with_it_or_with_the_connection() {
        let shared = shared(1 << 20);
        assert!(shared.wait_recovered(Duration::MAX).is_ok(), "no outage");
        shared.recovery.set_outage(Some(outage()));
        let timed_out = shared.wait_recovered(Duration::ZERO).unwrap_err();
        let text = timed_out.to_string();
        assert!(
            text.starts_with("the connection was not restored within 0ns"),
            "{text}"
        );
        let waiting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.wait_recovered(Duration::MAX)
        });
        shared.give_up(Error::RecoveryFailed {
            lost: Box::new(outage().lost),
            last: None,
            attempts: 0,
            after: Duration::ZERO,
        });
        shared.terminate(Termination::EndOfStream);
        let ended = waiting.join().unwrap();
        assert!(
            matches!(ended, Err(Error::RecoveryFailed { .. })),
            "{ended:?}"
        );
        assert!(!shared.recovery.is_recovering());
        let reason = shared.close_reason();
        assert!(
            matches!(reason, Some(Error::RecoveryFailed { .. })),
            "{reason:?}"
        );
    }

    #[test]
    fn a_notice_about_recovery_wakes_the_dispatching_threads() {
        let shared = shared(1 << 20);
        assert!(!shared.has_own_event());
        shared.push_recovery_notice(RecoveryNotice::Lost(outage()));
        assert!(shared.has_own_event());
        let notice = shared.recovery.pop();
        assert!(
            matches!(notice, Some(RecoveryNotice::Lost(_))),
            "{notice:?}"
        );
    }

    #[test]
    fn the_lengths_of_all_blocks_are_added_up() {
        let (mut blocked, t0) = (Blocked::default(), Instant::now());
        let at = |seconds| t0 + Duration::from_secs(seconds);
        let reason = || Some(ShortString::from("low on memory"));
        assert_eq!(blocked.time(at(5)), Duration::ZERO);
        blocked.set(reason(), at(10));
        blocked.set(reason(), at(13));
        assert_eq!(blocked.time(at(15)), Duration::from_secs(5));
        blocked.set(None, at(16));
        assert_eq!(blocked.time(at(100)), Duration::from_secs(6));
        blocked.set(reason(), at(200));
        blocked.stop_clock(at(201));
        assert_eq!(blocked.time(at(300)), Duration::from_secs(7), "the end");
    }

    #[test]
    fn a_thread_that_begins_to_wait_wakes_the_io_thread_only_in_a_reading_pause() {
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let wake = Arc::new(Wake::with(&waker));
        let (_, ended) = crossbeam_channel::bounded(0);
        let settings = settings(1 << 20);
        let (commands, entries) = CommandQueue::new(settings.write_limit, 0);
        let shared = ConnectionShared::new(commands, wake, ended, negotiated(), &settings, false);
        let mut events = mio::Events::with_capacity(1);
        let waits: [fn(&ConnectionShared); 3] = [
            |shared| drop(shared.count_as_waiting_for_room_or_confirm()),
            |shared| drop(shared.count_as_waiting_for_confirm()),
            |shared| drop(shared.read_control.count_as_waiting_for_delivery()),
        ];
        for (wait, is_paused) in waits.iter().flat_map(|it| [(it, false), (it, true)]) {
            shared.read_budget().set_wake_bound(1, is_paused);
            shared.wake().begin_wait();
            wait(&shared);
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert_eq!(!events.is_empty(), is_paused);
        }
        // Another thread has queued an entry, and has not woken the IO thread yet.
        shared.read_budget().set_wake_bound(1, false);
        shared.wake().begin_wait();
        assert!(shared.commands().send(Command::Disconnect));
        waits[0](&shared);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(!events.is_empty());
        drop(entries);
    }

    #[test]
    fn a_timer_is_due_at_its_time_and_once() {
        let (shared, t0) = (shared(1 << 20), Instant::now());
        let when = t0 + Duration::from_secs(5);
        assert!(!shared.take_due_timer(when), "no timer is set");
        shared.set_timer_deadline(Some(when));
        assert!(!shared.take_due_timer(when - Duration::from_nanos(1)));
        assert_eq!(shared.timer_deadline(), Some(when));
        assert!(shared.take_due_timer(when));
        assert_eq!(shared.timer_deadline(), None);
        assert!(!shared.take_due_timer(when));
    }

    #[test]
    fn backpressure_begins_each_time_that_too_many_bytes_wait() {
        let backpressure = Backpressure::new(true);
        backpressure.set_multiplier(2);
        assert!(!backpressure.begins(200, 100));
        assert!(backpressure.begins(201, 100) && backpressure.is_on());
        assert!(!backpressure.begins(1000, 100), "it is on already");
        assert!(!backpressure.begins(200, 100) && !backpressure.is_on());
        assert!(backpressure.begins(201, 100), "it begins again");
        assert!(!Backpressure::new(false).begins(usize::MAX, 1));
    }
}
