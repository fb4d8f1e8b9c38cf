//! The way of a suspended channel back into use: a script of calls of the core itself, which
//! precede the waiting calls of the program.
//!
//! ```text
//! suspended -- begin_restore --> restoring --------------------------> in use
//!     ^                           |  |  ^                                |
//!     |                           |  |  | a consumer is refused: the     | resume_consumer: a part
//!     |                           |  +--+ channel opens again without it | of the script, for a
//!     +---- loss ------ loss -----+                                      v refused consumer
//! ```
//!
//! The script: `channel.open`, the global prefetch, confirm mode or transactions, then the
//! consumers in the order of their consumes, each with the prefetch that it had, and the last
//! prefetch. Then the *gate* opens: publishes may be sent, and after them the waiting calls. A
//! `basic.consume` without a reply opens the gate for publishes after [`CONSUME_PATIENCE`]: a queue
//! that no node leads now must not stop them. Settlements may be sent from the first consume on.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::close_reason::CloseReason;
use super::super::consumers::Strikes;
use super::super::event::{Event, Gate, PendingCall, Purpose, SuspensionCause, Tokens};
use super::super::methods::{Method, basic, channel, confirm, tx};
use super::super::output::Output;
use super::super::reply_code::ReplyCode;
use super::super::wire::ShortString;
use super::detach::is_open;
use super::{Channel, Pause};

/// How long a `basic.consume` of the script may hold up publishes and settlements.
const CONSUME_PATIENCE: Duration = Duration::from_secs(5);

/// The number of connections that the start of a consumer may cost. Then the consumer ends.
const STRIKES_MAX: u32 = 2;

/// The rest of a script.
#[derive(Debug)]
pub(super) struct Restore {
    steps: VecDeque<Step>,
    /// The prefetch that the script has sent last.
    prefetch: Option<u16>,
    /// Whether publishes and settlements may be sent.
    is_gate_open: bool,
    /// Whether settlements may be sent, even if publishes may not: the script has come to the
    /// consumers.
    takes_settlements: bool,
    /// Whether this is the script of the whole channel, and not of a refused or cancelled consumer.
    is_of_channel: bool,
}

#[derive(Debug)]
enum Step {
    Send(Method),
    /// Starts a consumer, unless it has ended meanwhile.
    Consume {
        tag: ShortString,
        number: u64,
    },
    /// Sets the prefetch of consumers that start later.
    LastPrefetch,
}

impl Restore {
    pub(super) fn is_gate_open(&self) -> bool {
        self.is_gate_open
    }

    /// Puts a method without a reply in front of the rest.
    pub(super) fn precede(&mut self, method: Method) {
        self.steps.push_front(Step::Send(method));
    }
}

impl<T: Tokens> Channel<T> {
    /// Begins the script of a suspended channel.
    pub(crate) fn begin_restore(&mut self, out: &mut Output<T>) {
        self.pause = None;
        self.set_suspects_aside(out);
        self.restore = Some(Box::new(Restore {
            steps: self.script(),
            prefetch: None,
            is_gate_open: false,
            takes_settlements: false,
            is_of_channel: true,
        }));
        // The program may wait for the opening itself.
        let first = self.waiting.front();
        let open = match first.is_some_and(|call| is_open(&call.method)) {
            true => self.waiting.pop_front(),
            false => None,
        };
        let open = open.unwrap_or_else(|| self.quiet_call(channel::Open::default().into(), out));
        self.transmit(open, out);
    }

    /// Leaves the consumers out under which the broker closed an earlier connection. One that has
    /// cost too many of them ends; another one is tried alone.
    fn set_suspects_aside(&mut self, out: &mut Output<T>) {
        for (tag, Strikes { count, reason }) in self.consumers.struck() {
            match count < STRIKES_MAX {
                true => self.report_refusal(&tag, reason, true, out),
                false => self.skip_consumer(&tag, |_| true, reason, out),
            }
        }
    }

    fn report_refusal(
        &mut self,
        tag: &ShortString,
        reason: CloseReason,
        is_suspect: bool,
        out: &mut Output<T>,
    ) {
        self.consumers.note_refusal(tag);
        if let Some(consumer) = self.consumers.get(tag) {
            out.events.push_back(Event::ConsumerRefused {
                consumer: consumer.token.clone(),
                reason,
                is_suspect,
            });
        }
    }

    /// Ends a consumer that is not started again.
    pub(crate) fn skip_consumer(
        &mut self,
        tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
        reason: CloseReason,
        out: &mut Output<T>,
    ) {
        let consumer = self.consumers.get(tag);
        let Some(consumer) = consumer.filter(|it| is_meant(&it.token)) else {
            return;
        };
        let consumer = consumer.token.clone();
        out.events
            .push_back(Event::ConsumerSkipped { consumer, reason });
        self.end_consumer(tag, true, out);
    }

    /// Returns whether a settlement may be sent, and adds it to the transaction.
    pub(crate) fn settlement_gate(&mut self) -> Gate {
        let restore = self.restore.as_ref().filter(|_| !self.closing);
        match restore.is_some_and(|restore| restore.takes_settlements) {
            true => {
                self.transaction.begin();
                Gate::Open
            }
            false => self.gate(),
        }
    }

    fn script(&self) -> VecDeque<Step> {
        let mut steps = VecDeque::new();
        if let Some(qos) = &self.global_qos {
            steps.push_back(Step::Send(qos.clone().into()));
        }
        if self.is_confirming {
            steps.push_back(Step::Send(confirm::Select::default().into()));
        }
        if self.transaction.is_selected() {
            steps.push_back(Step::Send(tx::Select::default().into()));
        }
        let consumers = self.consumers.in_order().into_iter();
        steps.extend(consumers.map(|(number, tag)| Step::Consume { tag, number }));
        steps.push_back(Step::LastPrefetch);
        steps
    }

    /// Returns the next call of the script. At its end, waiting calls follow.
    pub(super) fn next_of_script(&mut self, out: &mut Output<T>) -> Option<PendingCall<T>> {
        loop {
            let restore = self.restore.as_mut()?;
            match restore.steps.pop_front() {
                None => {
                    self.end_script(out);
                    return None;
                }
                Some(Step::Send(method)) => return Some(self.quiet_call(method, out)),
                Some(Step::Consume { tag, number }) => {
                    restore.takes_settlements = true;
                    let Some(subscription) = self.consumers.subscription(&tag, number) else {
                        continue;
                    };
                    if subscription.prefetch != restore.prefetch {
                        let prefetch = subscription.prefetch;
                        restore.steps.push_front(Step::Consume { tag, number });
                        return Some(self.quiet_qos(prefetch, out));
                    }
                    let Some(consumer) = self.consumers.get(&tag) else {
                        continue;
                    };
                    let progress = T::stream_progress(&consumer.token);
                    let book = out.book.as_ref();
                    let queue_type = book.and_then(|it| it.queue_type(&subscription.consume.queue));
                    let consume = subscription.consume_again(&progress, queue_type);
                    let mut call = self.quiet_call(consume.into(), out);
                    call.deadline = Some(out.room.now() + CONSUME_PATIENCE);
                    out.watch(self.id.number, &call);
                    return Some(call);
                }
                Some(Step::LastPrefetch) => {
                    if restore.prefetch != self.prefetch {
                        return Some(self.quiet_qos(self.prefetch, out));
                    }
                }
            }
        }
    }

    pub(super) fn quiet_call(&self, method: Method, out: &mut Output<T>) -> PendingCall<T> {
        PendingCall {
            purpose: Purpose::Restore,
            ..self.internal_call(method, out)
        }
    }

    fn quiet_qos(&mut self, prefetch: Option<u16>, out: &mut Output<T>) -> PendingCall<T> {
        if let Some(restore) = &mut self.restore {
            restore.prefetch = prefetch;
        }
        self.quiet_call(basic::Qos::new(prefetch.unwrap_or(0)).into(), out)
    }

    /// Handles the reply to a call of the script.
    pub(super) fn receive_script_reply(&mut self, method: &Method, out: &mut Output<T>) {
        if let Method::BasicConsume(consume) = method {
            if self.consumers.end_refusal(&consume.consumer_tag) {
                if let Some(consumer) = self.consumers.get(&consume.consumer_tag) {
                    let consumer = consumer.token.clone();
                    out.events.push_back(Event::ConsumerResumed { consumer });
                }
            }
        }
    }

    fn end_script(&mut self, out: &mut Output<T>) {
        let Some(restore) = self.restore.take().filter(|it| it.is_of_channel) else {
            return;
        };
        // The publishes and settlements that waited for the gate are sent before the next call,
        // because the program made them before it.
        self.pause = Some(Pause::AfterPublishes);
        match restore.is_gate_open {
            true => out.committed.push(self.id),
            false => self.report_open_gate(out),
        }
        out.events.push_back(Event::ChannelRestored {
            channel: self.token.clone(),
        });
        out.note_restored(self.id.number);
    }

    fn report_open_gate(&self, out: &mut Output<T>) {
        out.committed.push(self.id);
        out.events.push_back(Event::ChannelResumed {
            channel: self.token.clone(),
        });
    }

    /// Opens the gate for publishes and settlements, because a consume has no reply yet.
    pub(super) fn open_gate(&mut self, out: &mut Output<T>) {
        if let Some(restore) = &mut self.restore {
            if !std::mem::replace(&mut restore.is_gate_open, true) {
                self.report_open_gate(out);
            }
        }
    }

    /// Returns the tag of the consumer that the broker refuses with this close of the channel or of
    /// the connection.
    pub(crate) fn refused_consumer(&self, reason: &CloseReason) -> Option<ShortString> {
        let active = self.active.as_ref();
        match active.map(|call| (call.purpose, &call.method)) {
            Some((Purpose::Restore, Method::BasicConsume(consume)))
                if reason.method == Some(basic::Consume::ID) =>
            {
                Some(consume.consumer_tag.clone())
            }
            _ => None,
        }
    }

    /// Opens the channel again without a consumer that the broker has refused.
    pub(super) fn restore_without(
        &mut self,
        tag: &ShortString,
        reason: CloseReason,
        out: &mut Output<T>,
    ) {
        self.suspend(SuspensionCause::ConsumerRefused(reason.clone()), out);
        if reason.code == ReplyCode::PRECONDITION_FAILED {
            self.consumers.note_refused_arguments(tag);
        }
        let resumed = self.resumed_consumers();
        self.report_refusal(tag, reason, false, out);
        out.unrestored.insert(self.id.number);
        self.begin_restore(out);
        if let Some(restore) = &mut self.restore {
            restore.steps.extend(resumed);
            restore.steps.push_back(Step::LastPrefetch);
        }
    }

    /// Returns the steps for refused consumers that were to be started when another one was
    /// refused.
    fn resumed_consumers(&mut self) -> Vec<Step> {
        let steps = self
            .restore
            .take()
            .map_or_else(VecDeque::new, |it| it.steps);
        let is_resumed = |step: &Step| match step {
            Step::Consume { tag, .. } => self.consumers.is_refused(tag),
            Step::Send(_) | Step::LastPrefetch => false,
        };
        steps.into_iter().filter(is_resumed).collect()
    }

    /// Starts a consumer again that the broker has refused or cancelled. An event has the outcome.
    pub(crate) fn resume_consumer(
        &mut self,
        tag: &ShortString,
        is_meant: impl FnOnce(&T::Consumer) -> bool,
        out: &mut Output<T>,
    ) {
        let consumer = self.consumers.get(tag);
        let consumer = consumer.filter(|it| !it.discard && is_meant(&it.token));
        let Some(number) = consumer.map(|it| it.number) else {
            return;
        };
        // A suspended channel tries all consumers when it is restored.
        if self.is_suspended() || !self.consumers.is_refused(tag) {
            return;
        }
        let prefetch = self.prefetch;
        let restore = self.restore.get_or_insert_with(|| {
            Box::new(Restore {
                steps: VecDeque::new(),
                prefetch,
                is_gate_open: true,
                takes_settlements: true,
                is_of_channel: false,
            })
        });
        let tag = tag.clone();
        restore.steps.push_back(Step::Consume { tag, number });
        restore.steps.push_back(Step::LastPrefetch);
        self.advance(out);
    }

    /// Names the queue of a method that means the queue that the channel declared last: a channel
    /// that was opened again has declared none.
    pub(super) fn name_last_queue(&self, method: &mut Method) {
        let queue = match method {
            Method::QueueBind(bind) => {
                fill_key(&bind.queue, &mut bind.routing_key, &self.last_queue);
                &mut bind.queue
            }
            Method::QueueUnbind(unbind) => {
                fill_key(&unbind.queue, &mut unbind.routing_key, &self.last_queue);
                &mut unbind.queue
            }
            Method::QueuePurge(purge) => &mut purge.queue,
            Method::QueueDelete(delete) => &mut delete.queue,
            Method::BasicConsume(consume) => &mut consume.queue,
            Method::BasicGet(get) => &mut get.queue,
            _ => return,
        };
        if queue.is_empty() {
            queue.clone_from(&self.last_queue);
        }
    }
}

/// Fills an empty routing key, which together with an empty queue means the name of the queue.
fn fill_key(queue: &ShortString, routing_key: &mut ShortString, last_queue: &ShortString) {
    if queue.is_empty() && routing_key.is_empty() {
        routing_key.clone_from(last_queue);
    }
}
