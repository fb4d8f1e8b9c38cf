//! The IO thread, which alone uses the socket and the core.
//!
//! One turn of its loop:
//!
//! ```text
//! commands -> core -> events -> callers, consumers
//!                 \-> bytes  -> outbox -> socket
//! wait (only if nothing is left to do), then read -> core
//! ```
//!
//! Each turn also handles the deadlines of the core, sets the signals for a due timer, and requeues
//! held-back deliveries that have room again. The loop ends when the core is closed.
//!
//! The IO thread blocks only in `poll` and in the [gather pause](crate::io::to_io::gather). It runs
//! no code of the program, except the log backend and the `Drop` of a body that was given away. A
//! thread that waits holds no lock that the IO thread takes. Before the IO thread ends, it
//! completes every call.
//!
//! Reading is in `reading` and `reading_pause`, waiting in `waiting`, every end in `ending`.

pub(crate) mod buffer_pool;
pub(crate) mod connecting;
mod delivery_stream;
mod ending;
mod events;
mod executing;
pub(crate) mod link;
pub(crate) mod outbox;
pub(crate) mod pause_record;
mod postponing;
mod reading;
mod reading_pause;
mod recovering;
mod recovery_reports;
mod reopening;
mod restoring;
mod suspending;
#[cfg(test)]
mod tests;
#[cfg(feature = "native-tls")]
pub(crate) mod tls;
mod tokens;
pub(crate) mod transport;
mod waiting;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use mio::{Events, Poll, Token, Waker};
use parking_lot::MutexGuard;

use crate::io::busy_wait::BusyWait;
use crate::io::driver::connecting::RecoverySettings;
use crate::io::driver::delivery_stream::DeliveryStream;
use crate::io::driver::link::Link;
use crate::io::driver::outbox::{Outbox, UnwrittenOutput};
use crate::io::driver::pause_record::{HeldBackWarnings, PauseRecord};
use crate::io::driver::postponing::Postponed;
use crate::io::driver::recovering::Recovering;
use crate::io::driver::tokens::DriverTokens;
use crate::io::driver::transport::Transport;
use crate::io::shared::command::Command;
use crate::io::shared::connection::{ConnectionShared, Settings};
use crate::io::to_io::command_queue::{CommandQueue, EntryReceiver, Taken};
use crate::io::to_io::frames::Frames;
use crate::io::to_io::wake::Wake;
use crate::protocol::connection::{Connection, ConnectionLimits};
use crate::protocol::event::{Event, Gate, Loss};
use crate::protocol::recovery::book::entity::Topology;
use crate::protocol::settlements::SettlementLedger;

pub(crate) const SOCKET: Token = Token(0);
pub(crate) const WAKE: Token = Token(1);

/// The busy wait for the next call is shorter than the one for a reply, by this factor: a program
/// may do something else between two calls, while a broker answers at once.
const CALL_BUSY_WAIT_SHARE: u32 = 5;

/// How long a spare buffer is unused before it is freed, at least.
const TRIM_PERIOD: Duration = Duration::from_secs(1);

/// Starts the IO thread of an open connection. `recovery` is `None` if a loss ends the connection.
pub(crate) fn spawn(
    link: Link,
    settings: Settings,
    recovery: Option<RecoverySettings>,
) -> io::Result<(Arc<ConnectionShared>, JoinHandle<()>)> {
    let driver = Driver::new(link, settings, recovery);
    let shared = Arc::clone(&driver.shared);
    let thread = thread::Builder::new()
        .name("cony-io".into())
        .spawn(move || driver.run())?;
    Ok((shared, thread))
}

struct Driver {
    poll: Poll,
    transport: Transport,
    core: Connection<DriverTokens>,
    /// The entries taken from the command queue and not executed yet.
    commands: VecDeque<Taken<Command>>,
    shared: Arc<ConnectionShared>,
    outbox: Outbox,
    /// The publishes and settlements of channels whose commit awaits its reply, and the publishes
    /// of channels that are not restored after a loss. They do not count in the write budget.
    kept: Vec<Frames>,
    /// Whether the socket may have bytes to read. A read that finds none clears it.
    readable: bool,
    /// Whether the socket may accept bytes. A write that it refuses clears it.
    writable: bool,
    /// The current reading pause, and the last long one.
    pause_record: PauseRecord,
    /// When the current pause at the soft limit of the read budget ends at the latest.
    soft_pause_end: Option<Instant>,
    /// Whether a pause has ended at `soft_pause_end`: the socket is then read until it is empty,
    /// before the next pause.
    drains_socket: bool,
    /// Whether a held-back delivery has room in the read budget now.
    can_requeue_held: bool,
    /// Whether the peer has ended its side, or the socket is broken. Reading continues until a read
    /// returns the end or the error.
    hung_up: bool,
    /// Whether this turn has executed a call or passed on a reply.
    has_call_traffic: bool,
    /// Whether threads of the program were spinning before the last turn. Such a thread has
    /// probably got its confirm or delivery in that turn, and will soon publish or acknowledge.
    had_spinning_threads: bool,
    delivery_stream: DeliveryStream,
    /// The busy wait for the reply to a call.
    reply_busy_wait: BusyWait,
    /// The busy wait for the next call.
    call_busy_wait: BusyWait,
    /// The number of publishes in the commands of this turn.
    publishes_taken: u64,
    /// The bytes of the core's own output that the socket has not accepted yet.
    unwritten_output: UnwrittenOutput,
    held_back_warnings: HeldBackWarnings,
    /// Whether the socket is closed without writing the rest of the outbox.
    discards_outbox: bool,
    /// When spare buffers that were not used lately are freed.
    trim_deadline: Option<Instant>,
    /// `None` if a loss ends the connection.
    recovery: Option<Box<Recovering>>,
    /// The closes that wait until publishes are sent.
    postponed: Postponed,
    /// The reason of the last loss that did not end the connection.
    loss: Option<Arc<Loss>>,
    /// The receiving side of the command queue. Dropping it drops the queued commands with the
    /// senders for their replies, which wakes the callers.
    entries: EntryReceiver<Command>,
    /// Ends the wait in `poll`; `Wake` has only a weak reference.
    waker: Arc<Waker>,
    /// Dropped last: its receivers wait for the end of this thread.
    _alive: Sender<()>,
}

/// The guard of a channel's settlement ledger, if the ledger must be locked.
type LedgerGuard<'a> = Option<MutexGuard<'a, SettlementLedger>>;

impl Driver {
    fn new(link: Link, settings: Settings, recovery: Option<RecoverySettings>) -> Self {
        let Link {
            transport,
            decoder,
            negotiated,
            poll,
            waker,
            ..
        } = link;
        let mut core = Connection::new(
            decoder,
            &negotiated,
            ConnectionLimits {
                message_size: settings.message_size,
                read_budget: settings.read_limit,
                blocked_timeout: settings.blocked_timeout,
            },
            Instant::now(),
        );
        let mut settings = settings;
        if recovery.is_none() {
            settings.unconfirmed_limit = None;
        }
        let recovery = recovery.map(|settings| {
            core.outlive_losses();
            if settings.topology != Topology::Off {
                core.record_topology();
            }
            Box::new(Recovering::new(settings, Instant::now()))
        });
        let wake = Arc::new(Wake::with(&waker));
        let (alive, ended) = bounded(0);
        let (queue, entries) = CommandQueue::new(
            settings.write_limit,
            settings.unconfirmed_limit.unwrap_or(0),
        );
        let outbox = Outbox::new(Arc::clone(queue.spare_buffers()));
        let shared = Arc::new(ConnectionShared::new(
            queue,
            wake,
            ended,
            negotiated,
            &settings,
            transport.is_tls(),
        ));
        Self {
            poll,
            outbox,
            transport,
            core,
            commands: VecDeque::new(),
            shared,
            kept: Vec::new(),
            // `poll` reports changes only, and the socket may be ready already.
            readable: true,
            writable: true,
            pause_record: PauseRecord::default(),
            soft_pause_end: None,
            drains_socket: false,
            can_requeue_held: false,
            hung_up: false,
            has_call_traffic: false,
            had_spinning_threads: false,
            delivery_stream: DeliveryStream::default(),
            reply_busy_wait: BusyWait::for_replies(settings.busy_wait),
            call_busy_wait: BusyWait::for_replies(settings.busy_wait / CALL_BUSY_WAIT_SHARE),
            publishes_taken: 0,
            unwritten_output: UnwrittenOutput::default(),
            held_back_warnings: HeldBackWarnings::default(),
            discards_outbox: false,
            trim_deadline: None,
            recovery,
            postponed: Postponed::default(),
            loss: None,
            entries,
            waker,
            _alive: alive,
        }
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(16);
        loop {
            let now = Instant::now();
            self.handle_loss(now);
            self.execute_commands(now);
            self.execute_postponed(now);
            if self.core.poll_timeout().is_some_and(|due| due <= now) {
                self.read_pending(&mut events);
                self.core.handle_timeout(now);
            }
            self.advance_recovery(now);
            self.signal_due_timer(now);
            self.requeue_held(now);
            self.dispatch();
            self.write(now);
            self.dispatch();
            self.handle_loss(now);
            self.dispatch();
            if self.core.is_closed() {
                break;
            }
            self.trim_spare_buffers(now);
            if let Err(error) = self.wait(&mut events) {
                self.fail(&error);
            }
            self.read();
            self.dispatch();
        }
        self.write_last_bytes(&mut events);
        self.transport.shut_down();
    }

    /// Takes and executes all commands.
    fn execute_commands(&mut self, now: Instant) {
        self.publishes_taken = 0;
        self.send_kept();
        self.core.end_commits();
        self.execute_queued(now, || None);
        while let Some((id, channel, change)) = self.core.next_change() {
            // The ledger changes and the queue is taken under one lock, so that exactly the
            // settlements that were queued before the change are sent before it.
            self.execute_queued(now, || {
                let mut settlements = channel.settlements.lock();
                settlements.change(change);
                Some(settlements)
            });
            // Requeues of deliveries must be sent before the change, too.
            self.dispatch();
            self.core.make_change(id);
        }
    }

    /// Takes the command queue under the lock that `lock` takes, and executes its entries.
    fn execute_queued<'a>(&mut self, now: Instant, lock: impl FnOnce() -> LedgerGuard<'a>) {
        let guard = lock();
        self.take_queued();
        drop(guard);
        // The entries stay in `self` until their turn: after a panic, a reply must not be dropped
        // before the reason of the end is there.
        while let Some(entry) = self.commands.pop_front() {
            match entry {
                Taken::Frames(frames) => self.push_frames(frames),
                Taken::Command(command) => self.execute(command, now),
            }
        }
    }

    /// Takes everything that is in the command queue now.
    fn take_queued(&mut self) {
        let commands = self.shared.commands();
        commands.take(&self.entries, &mut self.commands);
    }

    /// Takes the command queue together with all that is in the blocks of the channels. A part of a
    /// block may have been sealed already and be in the queue: the blocks are sealed too, so that
    /// the frames of a channel keep their order.
    fn take_with_blocks(&mut self) {
        for (channel, _) in self.core.channels() {
            self.shared.commands().seal(&channel.block);
        }
        self.take_queued();
    }

    /// Keeps `frames` until the channel's commit has its reply. The frames leave the write budget,
    /// because all channels share it. Later publishes of the channel wait in their calling threads.
    fn keep_for_commit(&mut self, frames: Frames) {
        self.shared.write_budget().release(frames.len());
        if let Some(channel) = self.core.channel(frames.channel) {
            channel.confirm_window.set_committing(true);
        }
        self.kept.push(frames);
    }

    /// Sends the kept frames whose channel may send again, in order.
    fn send_kept(&mut self) {
        let core = &mut self.core;
        let mut waits = |frames: &Frames| {
            matches!(
                core.gate(frames.channel),
                Gate::Committing | Gate::Suspended
            )
        };
        // In an outage many may wait for many turns, so they are not moved without a reason.
        if self.kept.iter().all(&mut waits) {
            return;
        }
        let (waiting, ready): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.kept).into_iter().partition(waits);
        self.kept = waiting;
        for frames in ready {
            if let Some(channel) = self.core.channel(frames.channel) {
                channel.confirm_window.set_committing(false);
            }
            self.shared.write_budget().take(frames.len());
            self.push_frames(frames);
        }
    }

    /// Signals the dispatching threads if a timer is due.
    fn signal_due_timer(&self, now: Instant) {
        if self.shared.take_due_timer(now) {
            self.shared.signal_own_event();
        }
    }

    /// Moves encoded publishes and settlements into the outbox if their channel is open.
    fn push_frames(&mut self, frames: Frames) {
        match self.core.gate(frames.channel) {
            Gate::Open => {
                self.collect_output();
                self.publishes_taken += frames.messages;
                self.shared.counters.frames_sent.add(frames.frames);
                // Publishes that are sent again have been counted before.
                if frames.numbers.is_empty() {
                    self.shared.counters.messages_published.add(frames.messages);
                }
                self.hand_over(frames);
            }
            Gate::Committing => self.keep_for_commit(frames),
            Gate::Suspended => self.keep_suspended(frames),
            Gate::Closed => {
                self.shared.write_budget().release(frames.len());
                self.shared.release_unconfirmed(frames.unconfirmed);
                self.outbox.keep(frames.bytes);
            }
        }
    }

    /// Hands frames to the outbox. Publishes that may be sent again are kept until they are
    /// confirmed.
    fn hand_over(&mut self, mut frames: Frames) {
        let channel = match &self.recovery {
            Some(_) => self.core.channel(frames.channel),
            None => None,
        };
        let Some(channel) = channel else {
            return self.outbox.push(frames);
        };
        let next = channel.confirm_window.written() + 1;
        if frames.numbers.is_empty() {
            channel.confirm_window.count_written(frames.messages);
        }
        if frames.unconfirmed == 0 {
            return self.outbox.push(frames);
        }
        let mut unconfirmed = channel.unconfirmed.lock();
        let before = unconfirmed.bytes();
        let shared = unconfirmed.keep(&mut frames, next, self.shared.commands().spare_buffers());
        // The budget counts the memory that is really used.
        let budget = self.shared.unconfirmed_budget();
        budget.take(unconfirmed.bytes() - before);
        self.shared.release_unconfirmed(frames.unconfirmed);
        match shared {
            Some(bytes) => self.outbox.push_shared(bytes),
            None => self.outbox.push(frames),
        }
    }

    /// Requeues held-back deliveries, as far as the read budget has room for them again.
    fn requeue_held(&mut self, now: Instant) {
        if self.core.is_holding_back() {
            self.dispatch();
            self.core
                .set_untaken_bytes(self.shared.read_budget().bytes());
            self.core.requeue_held(now);
        }
    }

    /// Moves the output of the core into the outbox, in order with the publishes.
    fn collect_output(&mut self) {
        if let Some(secret) = self.core.take_secret_output() {
            self.shared.write_budget().take(secret.as_bytes().len());
            self.outbox.push_secret(secret);
        }
        let output = self.core.output();
        if !output.is_empty() {
            self.shared.write_budget().take(output.len());
            self.outbox.push_copy(output);
            self.unwritten_output.push(output.len(), self.outbox.len());
            output.clear();
            let frames = self.core.take_frames_sent();
            self.shared.counters.frames_sent.add(frames);
        }
    }

    /// Frees spare buffers that no thread has needed for a while, also if the connection is idle.
    fn trim_spare_buffers(&mut self, now: Instant) {
        let has_spare_buffers = match self.trim_deadline {
            Some(due) if due <= now => self.outbox.trim(),
            Some(_) => return,
            None => self.outbox.has_spare_buffers(),
        };
        self.trim_deadline = has_spare_buffers.then(|| now + TRIM_PERIOD);
    }

    /// Passes the events of the core to the program's threads.
    fn dispatch(&mut self) {
        while let Some(event) = self.core.poll_event() {
            let Some(event) = self.take_recovery_event(event) else {
                continue;
            };
            if let Event::HeldBack { consumer, cost, .. } = &event {
                let consumer = &consumer.consumer;
                self.held_back_warnings
                    .note(consumer, *cost, &self.core, &self.shared);
            }
            self.has_call_traffic |= matches!(event, Event::Reply { .. });
            let mut command = None;
            if let Some(batches) = events::pass_on(&self.shared, event, |next| command = Some(next))
            {
                self.core.reuse(batches);
            }
            if let Some(command) = command {
                self.execute(command, Instant::now());
            }
        }
    }

    /// Writes the outbox, as far as the transport accepts it.
    fn write(&mut self, now: Instant) {
        self.collect_output();
        while self.writable && !self.outbox.is_empty() {
            match self.outbox.write_to(&mut self.transport) {
                Ok(0) => return self.fail(&io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.shared.write_budget().release(count);
                    self.unwritten_output.written(count);
                    self.shared.counters.bytes_sent.add(count as u64);
                    self.core.sent(now);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.writable = false,
                    io::ErrorKind::Interrupted => {}
                    _ => return self.read_after_failed_write(&error),
                },
            }
        }
        if self.outbox.is_empty() {
            self.shared.write_budget().all_released();
        }
        self.shared.detect_backpressure(self.outbox.len());
    }
}
