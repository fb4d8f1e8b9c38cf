//! What the program's threads hold of the IO thread: the queue of commands, the
//! wake-up, the bounds, and why things ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};
use parking_lot::Mutex;

use crate::error::{Error, ReadingPause};
use crate::io::backpressure::Backpressure;
use crate::io::busy_wait::BusyWait;
use crate::io::counters::Counters;
use crate::io::shared::command::{Command, Outcome};
use crate::io::to_io::command_queue::CommandQueue;
use crate::io::to_io::gather::GatherPause;
use crate::io::to_io::wake::Wake;
use crate::io::to_io::write_budget::WriteBudget;
use crate::io::to_program::dispatch_signal::Subscribers;
use crate::io::to_program::read_budget::ReadBudget;
use crate::io::to_program::read_control::ReadControl;
use crate::io::to_program::ready_list::ReadyList;
use crate::io::to_program::retained::RetainedBytes;
use crate::io::to_program::waiting_threads::Waiting;
use crate::protocol::assembly::SizeLimit;
use crate::protocol::event::{CallFailure, ChannelId, Termination};
use crate::protocol::frame::Settle;
use crate::protocol::handshake::Negotiated;
use crate::protocol::wire::ShortString;

/// What a connection is run with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// For the log.
    pub(crate) name: String,
    pub(crate) write_limit: usize,
    pub(crate) read_limit: usize,
    pub(crate) message_size: SizeLimit,
    /// How long the broker may block this connection's publishes.
    pub(crate) blocked_timeout: Option<Duration>,
    pub(crate) backpressure_detection: bool,
    /// How long a wait for a confirm takes at most, unless the program says otherwise.
    pub(crate) rpc_timeout: Duration,
    /// How long to look for an answer before sleeping for it.
    pub(crate) busy_wait: Duration,
}

/// The consumer that has the most waiting.
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
    /// Whether large bodies are passed on as they are: TLS copies them anyway, and makes a
    /// record of each piece.
    pub(crate) shares_bodies: bool,
    /// What all channels keep for a program that may never ask for it.
    pub(crate) retained: RetainedBytes,
    pub(crate) read_control: Arc<ReadControl>,
    pub(crate) negotiated: Negotiated,
    pub(crate) rpc_timeout: Duration,
    /// The connection's name, for the log.
    pub(crate) name: String,
    /// Why the connection ended. Written once, before anything is disconnected.
    closed: OnceLock<Termination>,
    closing: AtomicBool,
    /// Whether the program has no handle of it any more.
    abandoned: AtomicBool,
    /// Why the broker takes no publishes, while it does not.
    blocked: Mutex<Blocked>,
    /// Since when nothing is read, and for whose deliveries.
    paused: Mutex<Option<(Instant, SlowestConsumer)>>,
    pub(crate) backpressure: Backpressure,
    pub(crate) counters: Counters,
    /// Whether something has come for the connection itself, or a timer is new or due.
    own_news: AtomicBool,
    /// Who is told of that.
    pub(crate) own_events: Subscribers,
    /// Who is told of events of the connection and of all its channels.
    pub(crate) anything: Subscribers,
    /// The channels with something to dispatch.
    pub(crate) ready_list: ReadyList,
    /// When to tell the subscribers that a timer is due, for those who do not watch the clock.
    timer_deadline: Mutex<Option<Instant>>,
    /// How it went to look for replies, and for confirms.
    reply_busy_wait: BusyWait,
    pub(crate) confirm_busy_wait: BusyWait,
    /// The same for answers to RPC requests.
    pub(crate) rpc_busy_wait: BusyWait,
    /// Disconnected when the IO thread has ended.
    ended: Receiver<()>,
}

/// Whether the broker blocks the connection, and for how long it has done so.
#[derive(Debug, Default)]
struct Blocked {
    reason: Option<ShortString>,
    /// When the block that lasts began.
    since: Option<Instant>,
    /// How long all former ones took.
    total: Duration,
}

impl Blocked {
    fn set(&mut self, reason: Option<ShortString>, now: Instant) {
        match reason {
            // The broker may repeat that it blocks, with another reason.
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
        wake: Arc<Wake>,
        ended: Receiver<()>,
        negotiated: Negotiated,
        settings: &Settings,
        busy_wait_limit: Duration,
        is_tls: bool,
    ) -> Self {
        let read_control = Arc::new(ReadControl::new(settings.read_limit, Arc::clone(&wake)));
        Self {
            commands: CommandQueue::new(settings.write_limit),
            wake,
            gather_pause: GatherPause::default(),
            shares_bodies: !is_tls,
            retained: RetainedBytes::default(),
            read_control,
            negotiated,
            rpc_timeout: settings.rpc_timeout,
            name: settings.name.clone(),
            closed: OnceLock::new(),
            closing: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            blocked: Mutex::default(),
            paused: Mutex::default(),
            backpressure: Backpressure::new(settings.backpressure_detection),
            counters: Counters::default(),
            own_news: AtomicBool::new(false),
            own_events: Subscribers::default(),
            anything: Subscribers::default(),
            ready_list: ReadyList::default(),
            timer_deadline: Mutex::default(),
            reply_busy_wait: BusyWait::new(busy_wait_limit),
            confirm_busy_wait: BusyWait::new(busy_wait_limit),
            rpc_busy_wait: BusyWait::new(busy_wait_limit),
            ended,
        }
    }

    /// Queues `command` and wakes the IO thread if it waits. After the end of the
    /// connection the command vanishes, and with it whatever it would be answered on.
    pub(crate) fn send(&self, command: Command) {
        let ends = matches!(command, Command::Close { .. } | Command::Disconnect);
        self.send_and(command, || {
            if ends {
                self.closing.store(true, Ordering::Release);
            }
        });
    }

    /// The same; what `note` notes, those who queue something behind it see.
    pub(crate) fn send_and(&self, command: Command, note: impl FnOnce()) {
        if self.commands.send(command, note) {
            self.gather_pause.end();
            self.wake.notify();
        }
    }

    /// Queues the settlement of a delivery.
    pub(crate) fn settle(&self, channel: ChannelId, delivery_tag: u64, settle: Settle) {
        self.commands.settle(channel, delivery_tag, settle);
        self.wake.notify();
    }

    pub(crate) fn commands(&self) -> &CommandQueue<Command> {
        &self.commands
    }

    pub(crate) fn budget(&self) -> &WriteBudget {
        &self.commands.budget
    }

    pub(crate) fn read_budget(&self) -> &ReadBudget {
        &self.read_control.budget
    }

    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Why the connection is over, if it is.
    pub(crate) fn termination(&self) -> Option<&Termination> {
        self.closed.get()
    }

    /// Why nothing can be done on the connection, if so: also while it is being closed.
    pub(crate) fn end(&self) -> Option<Error> {
        match self.termination() {
            Some(termination) => Some(termination.into()),
            None => self.is_closing().then(Error::being_closed),
        }
    }

    /// Whether the connection can be used. This is [`end`](Self::end) without making the error.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.termination().is_none() && !self.is_closing()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The program has no handle of the connection any more: nobody will ask why it ended.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// Records the end. Only the first reason counts.
    pub(crate) fn terminate(&self, termination: Termination) {
        let _ = self.closed.set(termination);
        self.blocked.lock().stop_clock(Instant::now());
        self.budget().look_again();
        self.ring();
    }

    /// Tells whoever dispatches that something has come for the connection itself.
    pub(crate) fn ring(&self) {
        self.own_news.store(true, Ordering::SeqCst);
        self.call_watchers();
    }

    /// Has whoever dispatches events of the connection itself look for some.
    pub(crate) fn call_watchers(&self) {
        self.own_events.ring();
        self.anything.ring();
    }

    /// Whether something has come for the connection itself since it was dispatched last.
    pub(crate) fn has_own_news(&self) -> bool {
        self.own_news.load(Ordering::SeqCst)
    }

    /// Whoever does this looks at all there is after it.
    pub(crate) fn take_own_news(&self) {
        self.own_news.store(false, Ordering::SeqCst);
    }

    /// When a timer is due.
    pub(crate) fn timer_deadline(&self) -> Option<Instant> {
        *self.timer_deadline.lock()
    }

    /// Has the subscribers told at `when`.
    pub(crate) fn set_timer_deadline(&self, when: Option<Instant>) {
        *self.timer_deadline.lock() = when;
        self.wake.notify();
    }

    /// Whether that is so now. It is said once: an alarm that stayed would let the IO thread
    /// wait no more.
    pub(crate) fn take_due_timer(&self, now: Instant) -> bool {
        let mut deadline = self.timer_deadline.lock();
        let is_due = deadline.is_some_and(|when| when <= now);
        if is_due {
            *deadline = None;
        }
        is_due
    }

    /// Waits until the IO thread has ended; `false` at the deadline.
    pub(crate) fn wait_ended(&self, deadline: Option<Instant>) -> bool {
        use crossbeam_channel::RecvTimeoutError::Timeout;
        match deadline {
            None => self.ended.recv().is_err(),
            Some(deadline) => self.ended.recv_deadline(deadline) != Err(Timeout),
        }
    }

    /// To be held while waiting for confirms or for room: the IO thread then reads on
    /// where it would pause.
    pub(crate) fn waiting(&self) -> Waiting<'_> {
        let waiting = self.read_control.threads.wait();
        self.end_pause();
        waiting
    }

    /// Whether anybody waits for something that only reading can bring.
    pub(crate) fn needs_reading(&self) -> bool {
        self.is_awaited() || self.read_control.threads.is_delivery_awaited()
    }

    /// To be held while waiting for the confirm of one message.
    pub(crate) fn waiting_for_confirm(&self) -> [Waiting<'_>; 2] {
        let waiting = self.read_control.threads.wait_for_confirm();
        self.end_pause();
        waiting
    }

    /// Somebody waits from now on for something that the IO thread has to read.
    fn end_pause(&self) {
        self.gather_pause.end();
        if self.read_budget().is_paused() || self.read_budget().is_resting() {
            self.wake.notify();
        }
    }

    /// Whether anybody waits for the confirm of one message.
    pub(crate) fn is_confirm_awaited(&self) -> bool {
        self.read_control.threads.is_confirm_awaited()
    }

    /// Waits for what becomes of a call. The IO thread answers at the deadline, and when it
    /// ends; so this always returns.
    pub(crate) fn finish(&self, outcome: &Receiver<Outcome>) -> Outcome {
        let found = self.reply_busy_wait.look_for(|| match outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(CallFailure::Closed)),
        });
        found.unwrap_or_else(|| outcome.recv().unwrap_or(Err(CallFailure::Closed)))
    }

    /// Whether anybody waits for confirms or for room.
    pub(crate) fn is_awaited(&self) -> bool {
        self.read_control.threads.is_promised()
    }

    /// Why the broker takes no publishes now.
    pub(crate) fn blocked(&self) -> Option<ShortString> {
        self.blocked.lock().reason.clone()
    }

    /// Returns for how long the broker has blocked the connection, all blocks taken together.
    pub(crate) fn blocked_time(&self) -> Duration {
        self.blocked.lock().time(Instant::now())
    }

    /// Notes that nothing is read for the deliveries of a consumer, or that this is over.
    pub(crate) fn set_paused(&self, paused: Option<(Instant, SlowestConsumer)>) {
        *self.paused.lock() = paused;
    }

    /// The pause in reading that goes on, if one does.
    pub(crate) fn pause(&self) -> Option<Box<ReadingPause>> {
        let (since, slowest) = self.paused.lock().clone()?;
        Some(Box::new(ReadingPause {
            length: since.elapsed(),
            channel: slowest.channel,
            consumer: slowest.consumer,
            bytes: slowest.bytes,
        }))
    }

    /// The deadline of `operation` has passed; and what the answer may be waiting for.
    pub(crate) fn timeout(
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
            paused: self.pause(),
        }
    }

    pub(crate) fn set_blocked(&self, reason: Option<ShortString>) {
        self.blocked.lock().set(reason, Instant::now());
        self.ring();
    }

    /// Says so when far more waits, in bytes, than the peer takes.
    pub(crate) fn detect_backpressure(&self, waiting: usize) {
        let mean_frame = self.counters.bytes_sent.get() / self.counters.frames_sent.get().max(1);
        if self.backpressure.begins(waiting, mean_frame) {
            self.ring();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use mio::{Poll, Token, Waker};

    use super::*;
    use crate::protocol::table::FieldTable;

    pub(crate) fn negotiated() -> Negotiated {
        Negotiated {
            channel_max: 10,
            frame_max: 4096,
            heartbeat: 0,
            server_properties: FieldTable::new(),
        }
    }

    /// Settings with so much room for what waits to be taken.
    pub(crate) fn settings(read_limit: usize) -> Settings {
        Settings {
            name: "test".into(),
            write_limit: 1 << 20,
            read_limit,
            message_size: SizeLimit {
                bytes: 1 << 20,
                rejects: false,
            },
            blocked_timeout: None,
            backpressure_detection: false,
            rpc_timeout: Duration::ZERO,
            busy_wait: Duration::ZERO,
        }
    }

    /// The shared state of a connection without an IO thread.
    pub(crate) fn shared(read_limit: usize) -> Arc<ConnectionShared> {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let wake = Arc::new(Wake::with(&waker));
        let (_, ended) = crossbeam_channel::bounded(0);
        let settings = settings(read_limit);
        let busy_wait_limit = Duration::ZERO;
        let shared =
            ConnectionShared::new(wake, ended, negotiated(), &settings, busy_wait_limit, false);
        Arc::new(shared)
    }

    #[test]
    fn the_time_of_all_blocks_is_added_up() {
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
    fn who_begins_to_wait_wakes_an_io_thread_that_does_not_read_and_no_other() {
        let mut poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let wake = Arc::new(Wake::with(&waker));
        let (_, ended) = crossbeam_channel::bounded(0);
        let settings = settings(1 << 20);
        let shared =
            ConnectionShared::new(wake, ended, negotiated(), &settings, Duration::ZERO, false);
        let mut events = mio::Events::with_capacity(1);
        let waits: [fn(&ConnectionShared); 3] = [
            |shared| drop(shared.waiting()),
            |shared| drop(shared.waiting_for_confirm()),
            |shared| drop(shared.read_control.wait_for_delivery()),
        ];
        for (wait, is_paused) in waits.iter().flat_map(|it| [(it, false), (it, true)]) {
            shared.read_budget().wait_for(1, is_paused);
            shared.wake().announce();
            wait(&shared);
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert_eq!(!events.is_empty(), is_paused);
        }
    }

    #[test]
    fn an_alarm_is_due_at_its_time_and_once() {
        let (shared, t0) = (shared(1 << 20), Instant::now());
        let when = t0 + Duration::from_secs(5);
        assert!(!shared.take_due_timer(when), "there is none");
        shared.set_timer_deadline(Some(when));
        assert!(!shared.take_due_timer(when - Duration::from_nanos(1)));
        assert_eq!(shared.timer_deadline(), Some(when));
        assert!(shared.take_due_timer(when));
        assert_eq!(shared.timer_deadline(), None);
        assert!(!shared.take_due_timer(when));
    }

    #[test]
    fn backpressure_begins_each_time_that_too_much_waits() {
        let backpressure = Backpressure::new(true);
        backpressure.set_multiplier(2);
        assert!(!backpressure.begins(200, 100));
        assert!(backpressure.begins(201, 100) && backpressure.is_on());
        assert!(!backpressure.begins(1000, 100), "it is on");
        assert!(!backpressure.begins(200, 100) && !backpressure.is_on());
        assert!(backpressure.begins(201, 100), "it begins again");
        assert!(!Backpressure::new(false).begins(usize::MAX, 1));
    }
}
