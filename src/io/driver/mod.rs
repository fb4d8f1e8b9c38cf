//! The IO thread: the only one that touches the socket and the core.
//!
//! One turn of its loop:
//!
//! ```text
//! commands -> core -> events -> callers, consumers
//!                 \-> bytes  -> outbox -> socket
//! wait (only if nothing is left to do), then read -> core
//! ```
//!
//! It blocks only in `poll` and for its [`nap`](crate::io::to_io::gather), runs no code of the user
//! but the log backend and the `Drop` of a body's owner, takes no lock that is held across a wait,
//! and answers everyone before it ends. Reading is in `reading`, the wait in `waiting`.

pub(crate) mod buffer_pool;
mod events;
pub(crate) mod outbox;
pub(crate) mod read_pauses;
mod reading;
#[cfg(test)]
mod tests;
mod tokens;
pub(crate) mod transport;
mod waiting;

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};
use mio::{Events, Poll, Token, Waker};
use parking_lot::MutexGuard;

use crate::io::busy_wait::{self, BusyWait};
use crate::io::driver::outbox::{Outbox, Untaken};
use crate::io::driver::read_pauses::{HeldBackWarnings, ReadPauses};
use crate::io::driver::tokens::{CallToken, DriverTokens};
use crate::io::driver::transport::Transport;
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{Command, Opener};
use crate::io::shared::connection::{ConnectionShared, Settings};
use crate::io::shared::consumer::{ConsumerShared, Route};
use crate::io::to_io::command_queue::Entry;
use crate::io::to_io::frames::Frames;
use crate::io::to_io::wake::Wake;
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::connection::{Connection, ConnectionLimits};
use crate::protocol::event::{Event, Gate, NumberError, Termination};
use crate::protocol::frame::FrameDecoder;
use crate::protocol::handshake::Negotiated;
use crate::protocol::methods::basic;
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::settlements::SettlementLedger;

pub(crate) const SOCKET: Token = Token(0);
pub(crate) const WAKE: Token = Token(1);

/// Which part of the time that a reply is looked for the next call is: a program may do
/// something else between two calls, while a broker answers at once.
const CALL_BUSY_WAIT_SHARE: u32 = 5;

/// Starts the IO thread of an open connection; `waker` ends a wait in `poll`.
pub(crate) fn spawn(
    poll: Poll,
    waker: Arc<Waker>,
    transport: Transport,
    decoder: FrameDecoder,
    negotiated: Negotiated,
    settings: Settings,
) -> io::Result<(Arc<ConnectionShared>, JoinHandle<()>)> {
    let driver = prepare(poll, waker, transport, decoder, negotiated, settings)?;
    let shared = Arc::clone(&driver.shared);
    let thread = thread::Builder::new()
        .name("cony-io".into())
        .spawn(move || driver.run())?;
    Ok((shared, thread))
}

fn prepare(
    poll: Poll,
    waker: Arc<Waker>,
    transport: Transport,
    decoder: FrameDecoder,
    negotiated: Negotiated,
    settings: Settings,
) -> io::Result<Driver> {
    let core = Connection::new(
        decoder,
        &negotiated,
        ConnectionLimits {
            message_size: settings.message_size,
            read_budget: settings.read_limit,
            blocked_timeout: settings.blocked_timeout,
        },
        Instant::now(),
    );
    let wake = Arc::new(Wake::with(&waker));
    let (alive, ended) = bounded(0);
    let busy_wait_limit = busy_wait::limit_for_this_machine(settings.busy_wait);
    let shared = Arc::new(ConnectionShared::new(
        wake,
        ended,
        negotiated,
        &settings,
        busy_wait_limit,
        transport.is_tls(),
    ));
    Ok(Driver {
        poll,
        outbox: Outbox::default(),
        transport,
        core,
        commands: VecDeque::new(),
        shared,
        held: Vec::new(),
        // Whatever the socket can do already is announced by no further event.
        readable: true,
        writable: true,
        read_pauses: ReadPauses::default(),
        breath_due: None,
        catching_breath: false,
        gives_back: false,
        hung_up: false,
        in_talk: false,
        reply_busy_wait: BusyWait::new(busy_wait_limit),
        call_busy_wait: BusyWait::new(busy_wait_limit / CALL_BUSY_WAIT_SHARE),
        streamed: 0,
        untaken: Untaken::default(),
        held_back_warnings: HeldBackWarnings::default(),
        abandoned: false,
        _waker: waker,
        _alive: alive,
    })
}

struct Driver {
    poll: Poll,
    transport: Transport,
    core: Connection<DriverTokens>,
    /// What was taken from the queue, until it is obeyed.
    commands: VecDeque<Entry<Command>>,
    shared: Arc<ConnectionShared>,
    outbox: Outbox,
    /// Publishes and settlements of channels whose commit awaits its reply.
    held: Vec<Frames>,
    /// The socket may have bytes; cleared when it says that it has none.
    readable: bool,
    /// The socket may take bytes; cleared when it says that it takes none.
    writable: bool,
    /// Nothing is read while too much is not handed out yet.
    read_pauses: ReadPauses,
    /// When a pause that others could do without has lasted long enough.
    breath_due: Option<Instant>,
    /// It was long enough: everything is read that is there, before the next one.
    catching_breath: bool,
    /// There is room for something that was held back.
    gives_back: bool,
    /// The peer has ended its side, or the socket is broken: reading goes on until that shows.
    hung_up: bool,
    /// A call has just gone out, or its reply has come.
    in_talk: bool,
    /// How it went to look for the reply to a call, and for the next call.
    reply_busy_wait: BusyWait,
    call_busy_wait: BusyWait,
    /// How many publishes the last commands had.
    streamed: u64,
    /// How much of what the core had to say the peer has not taken.
    untaken: Untaken,
    held_back_warnings: HeldBackWarnings,
    /// The socket is to be dropped as it is.
    abandoned: bool,
    /// What ends the wait of this thread.
    _waker: Arc<Waker>,
    /// Dropped last, which tells those who wait for the end of this thread.
    _alive: Sender<()>,
}

/// A lock on the settlements of a channel, if one is needed.
type Lock<'a> = Option<MutexGuard<'a, SettlementLedger>>;

impl Driver {
    fn run(mut self) {
        let mut events = Events::with_capacity(16);
        loop {
            let now = Instant::now();
            self.take_commands(now);
            if self.core.poll_timeout().is_some_and(|due| due <= now) {
                self.catch_up(&mut events);
                self.core.handle_timeout(now);
            }
            self.signal_due_timer(now);
            self.give_back_held(now);
            self.dispatch();
            self.write(now);
            self.dispatch();
            if self.core.is_closed() {
                break;
            }
            if let Err(error) = self.wait(&mut events) {
                self.fail(&error);
            }
            self.read();
            self.dispatch();
        }
        self.linger(&mut events);
        self.transport.shut_down();
    }

    fn take_commands(&mut self, now: Instant) {
        self.streamed = 0;
        self.let_go();
        self.core.end_commits();
        self.obey_all(now, || None);
        while let Some((id, channel, change)) = self.core.next_change() {
            // In one step, so that whatever was settled before goes out before it, and
            // nothing that is settled after it.
            self.obey_all(now, || {
                let mut settlements = channel.settlements.lock();
                settlements.change(change);
                Some(settlements)
            });
            // A delivery that goes back does so before this, too.
            self.dispatch();
            self.core.make_change(id);
        }
    }

    /// Takes what the program asks for, under the lock that `lock` takes.
    fn obey_all<'a>(&mut self, now: Instant, lock: impl FnOnce() -> Lock<'a>) {
        let mut commands = std::mem::take(&mut self.commands);
        let written = self.outbox.written();
        let lock = lock();
        self.shared.commands().take(&mut commands, written);
        drop(lock);
        for entry in commands.drain(..) {
            match entry {
                Entry::Frames(frames) => self.push_frames(frames),
                Entry::Command(command) => self.obey(command, now),
            }
        }
        // Its memory serves again.
        self.commands = commands;
    }

    /// Holds back what is said while the channel's commit awaits its reply. It leaves the room
    /// that all channels share, and what the channel publishes further waits in its thread.
    fn hold(&mut self, frames: Frames) {
        self.shared.commands().release(frames.len());
        if let Some(channel) = self.core.channel(frames.channel) {
            channel.publisher.set_committing(true);
        }
        self.held.push(frames);
    }

    /// Sends what was held back behind commits that are done, in order.
    fn let_go(&mut self) {
        for frames in std::mem::take(&mut self.held) {
            if self.core.gate(frames.channel) == Gate::Committing {
                self.held.push(frames);
                continue;
            }
            if let Some(channel) = self.core.channel(frames.channel) {
                channel.publisher.set_committing(false);
            }
            self.shared.budget().take(frames.len());
            self.push_frames(frames);
        }
    }

    /// A timer of the program's is due.
    fn signal_due_timer(&self, now: Instant) {
        if self.shared.take_due_timer(now) {
            self.shared.signal_own_event();
        }
    }

    /// Moves encoded publishes and settlements into the outbox, if their channel is open.
    fn push_frames(&mut self, frames: Frames) {
        match self.core.gate(frames.channel) {
            Gate::Open => {
                self.collect_output();
                self.streamed += frames.messages;
                self.shared.counters.messages_published.add(frames.messages);
                self.shared.counters.frames_sent.add(frames.frames);
                self.outbox.push(frames);
            }
            Gate::Committing => self.hold(frames),
            Gate::Closed => {
                self.shared.commands().release(frames.len());
                self.outbox.keep(frames.bytes);
            }
        }
    }

    fn obey(&mut self, command: Command, now: Instant) {
        match command {
            Command::Call {
                channel,
                method,
                consumer,
                deadline,
                reply,
            } => {
                let token = CallToken::Caller(reply);
                self.in_talk = true;
                self.core.call(channel, *method, consumer, token, deadline);
            }
            Command::Cancel {
                channel,
                consumer,
                nowait,
                deadline,
                reply,
            } => {
                let cancel = basic::Cancel::new(&consumer.tag).nowait(nowait);
                let is_meant = |route: &Arc<Route>| Arc::ptr_eq(&route.consumer, &consumer);
                let token = CallToken::Caller(reply);
                self.in_talk = true;
                self.core
                    .cancel_consumer(channel, cancel, is_meant, token, deadline);
            }
            Command::OpenChannel(opener) => self.open_channel(opener),
            Command::Discard { channel, consumer } => {
                self.core.discard_consumer(channel, &consumer.tag, |route| {
                    Arc::ptr_eq(&route.consumer, &consumer)
                });
                // What came before has to be in the inbox by now.
                self.dispatch();
                self.requeue(&consumer, now);
            }
            Command::GiveBack {
                channel,
                delivery_tags,
            } => self.core.requeue(channel, delivery_tags),
            Command::CloseChannel {
                channel,
                by,
                code,
                text,
                reply,
            } => {
                let call = reply.map(|(reply, deadline)| (CallToken::Caller(reply), deadline));
                self.core.close_channel(channel, by, code, text, call);
            }
            Command::UpdateSecret {
                secret,
                reason,
                deadline,
                reply,
            } => {
                let token = CallToken::Caller(reply);
                self.core.update_secret(secret, reason, token, deadline);
            }
            Command::Close {
                code,
                text,
                deadline,
            } => self.core.close(code, text, deadline.max(now)),
            Command::Disconnect => {
                self.abandoned = true;
                let code = ReplyCode::REPLY_SUCCESS;
                let reason = CloseReason::new(ClosedBy::Application, code, "disconnected", None);
                self.core.terminate(Termination::Closed(reason));
            }
        }
    }

    fn open_channel(&mut self, opener: Opener) {
        match self.core.reserve_channel(opener.number) {
            Ok(id) => {
                let shared = Arc::clone(&self.shared);
                let channel = Arc::new(ChannelShared::new(id, shared, opener.window));
                let token = CallToken::Opener {
                    channel: Arc::clone(&channel),
                    reply: opener.reply,
                };
                self.core.open_channel(id, channel, token, opener.deadline);
            }
            Err(NumberError::Closing(_)) => {
                self.core
                    .await_number(opener.number, opener.deadline, opener);
            }
            Err(error) => opener.refuse(error),
        }
    }

    /// Gives back what a consumer has that nobody will take.
    fn requeue(&mut self, consumer: &ConsumerShared, now: Instant) {
        let left = consumer.take_remaining();
        if consumer.no_ack {
            if left.len() > 0 {
                log::warn!(
                    "{}: consumer {} was dropped with {} messages that needed no acknowledgement; \
                     they are lost",
                    self.shared.name,
                    consumer.tag,
                    left.len()
                );
            }
            return;
        }
        let mut command = None;
        let send = |it| command = Some(it);
        consumer.give_back(left, send);
        if let Some(command) = command {
            self.obey(command, now);
        }
    }

    /// Gives back what was held back, as far as there is room for it again.
    fn give_back_held(&mut self, now: Instant) {
        if self.core.is_holding_back() {
            self.dispatch();
            self.core.set_waiting(self.shared.read_budget().bytes());
            self.core.requeue_held(now);
        }
    }

    /// Moves what the core has to say into the outbox, in order with everything else.
    fn collect_output(&mut self) {
        if let Some(secret) = self.core.take_secret_output() {
            self.shared.budget().take(secret.as_bytes().len());
            self.outbox.push_secret(secret);
        }
        let output = self.core.output();
        if !output.is_empty() {
            self.shared.budget().take(output.len());
            self.outbox.push_copy(output);
            self.untaken.push(output.len(), self.outbox.len());
            output.clear();
            let frames = self.core.take_frames_sent();
            self.shared.counters.frames_sent.add(frames);
        }
    }

    /// Tells everyone what happened.
    fn dispatch(&mut self) {
        while let Some(event) = self.core.poll_event() {
            if let Event::HeldBack { consumer, cost, .. } = &event {
                let consumer = &consumer.consumer;
                self.held_back_warnings
                    .note(consumer, *cost, &self.core, &self.shared);
            }
            self.in_talk |= matches!(event, Event::Reply { .. });
            let mut command = None;
            if let Some(runs) = events::tell(&self.shared, event, |it| command = Some(it)) {
                self.core.reuse(runs);
            }
            if let Some(command) = command {
                self.obey(command, Instant::now());
            }
        }
    }

    fn write(&mut self, now: Instant) {
        self.collect_output();
        while self.writable && !self.outbox.is_empty() {
            match self.outbox.write_to(&mut self.transport) {
                Ok(0) => return self.fail(&io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.shared.commands().release(count);
                    self.untaken.written(count);
                    self.shared.counters.bytes_sent.add(count as u64);
                    self.core.sent(now);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => self.writable = false,
                    io::ErrorKind::Interrupted => {}
                    _ => return self.fail_to_write(&error),
                },
            }
        }
        if self.outbox.is_empty() {
            self.shared.commands().all_released();
        }
        self.shared.detect_backpressure(self.outbox.len());
    }
}

impl Driver {
    /// Tells everyone after a panic. What has panicked, the core or the log backend, may do so
    /// again at any step, so each is taken by itself.
    fn speak_last_words(&mut self, termination: Termination) {
        let channels: Vec<_> = self.core.channels().map(|(it, _)| Arc::clone(it)).collect();
        let terminate = AssertUnwindSafe(|| self.core.terminate(termination));
        let _ = catch_unwind(terminate);
        let mut is_done = false;
        while !is_done {
            // What panics is gone, so this comes to an end.
            let tell = AssertUnwindSafe(|| match self.core.poll_event() {
                // Nothing goes out any more.
                Some(event) => drop(events::tell(&self.shared, event, drop)),
                None => is_done = true,
            });
            let _ = catch_unwind(tell);
        }
        for channel in channels {
            channel.end_with_connection();
        }
    }
}

impl Drop for Driver {
    /// Whatever ends this thread, nobody waits on for a reason.
    fn drop(&mut self) {
        if self.shared.termination().is_none() {
            let kind = io::ErrorKind::Other;
            let termination = Termination::Io(kind, "the IO thread has panicked".into());
            self.shared.terminate(termination.clone());
            self.speak_last_words(termination);
        }
        // With what waits in there, those wake who wait for an answer to it.
        self.shared.commands().close();
    }
}
