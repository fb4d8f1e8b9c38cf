//! Publishing.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use super::{BlockingChannel, ChannelInner};
use crate::client::confirm::PublisherConfirm;
use crate::client::message::Message;
use crate::error::{Error, Result};
use crate::io::to_io::byte_budget::WaitError;
use crate::io::to_program::confirm_window::Ticket;
use crate::io::to_program::waiting_threads::Waiting;
use crate::protocol::confirms::Mandatory;
use crate::protocol::frame::{EncodedPublish, Publish};

/// # Publishing
impl BlockingChannel {
    /// Publishes a message to an exchange, with a routing key. The default exchange has the empty
    /// name and routes to the queue whose name is the routing key.
    ///
    /// The call passes the message to the IO thread, which sends it, and returns. If too many bytes
    /// wait to be written (`write_budget`, default 4 MiB), the call first waits for room, at most
    /// for `publish_timeout`. Publishes of several threads on one channel are never interleaved.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::Message;
    ///
    /// channel.basic_publish("", "tasks", "hello")?;
    /// let order = Message::new("{}").content_type("application/json");
    /// channel.basic_publish("amq.topic", "order.new", order)?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// On a channel in [confirm mode](Self::confirm_delivery) the returned [`PublisherConfirm`] has
    /// the outcome. A publish then also waits while `confirm_window` publishes, or more than
    /// `unconfirmed_budget` bytes (default 16 MiB), are unconfirmed. Outside confirm mode `Ok` does
    /// not mean that the broker has the message.
    ///
    /// In an [outage](crate::BlockingConnection::outage), a publish in confirm mode returns as long
    /// as there is room, and the message is sent when the connection is restored. Outside confirm
    /// mode it waits.
    ///
    /// # Errors
    ///
    /// In all these cases the message was not sent:
    ///
    /// - [`Error::PublishTimeout`] if there was no room within `publish_timeout`.
    /// - [`Error::TooLong`] for a name of more than 255 bytes, or properties that do not fit into a
    ///   frame.
    /// - [`Error::NotFinite`] for an infinite float in the headers.
    /// - [`Error::ChannelClosed`], [`Error::ConnectionClosed`] or [`Error::ConnectionLost`] if
    ///   channel or connection have ended.
    ///
    /// If the exchange does not exist, the broker closes the channel (404). A later call on the
    /// channel returns this error, at the latest its [`close`](Self::close).
    pub fn basic_publish<'a>(
        &self,
        exchange: impl AsRef<str>,
        routing_key: impl AsRef<str>,
        message: impl Into<Message<'a>>,
    ) -> Result<PublisherConfirm> {
        let inner = self.inner();
        let shared = &inner.shared;
        inner.check_open()?;
        let message = message.into();
        let publish = Publish {
            exchange: exchange.as_ref(),
            routing_key: routing_key.as_ref(),
            mandatory: message.mandatory,
            immediate: message.immediate,
            properties: message.get_properties(),
            body: message.body.to_publish(shared.connection.shares_bodies),
        };
        let frame_max = shared.connection.negotiated.frame_max as usize;
        with_scratch(|scratch| {
            let encoded = EncodedPublish::new(shared.id.number, publish, frame_max, scratch)?;
            // Before any lock is taken, because the fingerprint reads the whole body.
            let mandatory = publish.mandatory.then(|| Mandatory {
                fingerprint: publish.fingerprint(),
                properties: encoded.properties(),
            });
            inner.publish(&encoded, mandatory, !message.resend)
        })
    }
}

thread_local! {
    /// The buffer into which this thread encodes a publish, without its body.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Calls `publish` with the buffer of this thread. A thread that is ending may have dropped the
/// buffer already, and a log backend may publish inside a publish: these get a new one.
fn with_scratch<R>(publish: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
    let outcome = publish(&mut scratch);
    // If the thread-local is already destroyed, this drops the buffer.
    let _ = SCRATCH.try_with(|kept| kept.set(scratch));
    outcome
}

impl ChannelInner {
    /// Queues a publish as soon as there is room for it.
    fn publish(
        &self,
        encoded: &EncodedPublish<'_>,
        mandatory: Option<Mandatory<'_>>,
        is_sent_once: bool,
    ) -> Result<PublisherConfirm> {
        let channel = &*self.shared;
        let mut room = Room::new(self, encoded.size());
        loop {
            // The lock of the confirm window is taken first, and held until the publish is queued:
            // so sequence numbers and the queue have one order. Outside confirm mode it is not
            // needed.
            let ticket = match channel.confirm_window.must_check_state() {
                false => None,
                true => match channel.confirm_window.begin(&mut room.has_place) {
                    Some(ticket) => Some(ticket),
                    None => {
                        room.wait_for_window()?;
                        continue;
                    }
                },
            };
            let is_kept = ticket.as_ref().is_some_and(Ticket::is_kept);
            // Before the block is locked, so that its lock is held for the copy only.
            if let Err(exhausted) = room.take_bytes(is_kept) {
                room.give_up_attempt(ticket);
                room.wait_for_budget(exhausted)?;
                continue;
            }
            let block = channel.block.lock();
            if !channel.takes_frames() {
                drop(block);
                room.give_up_attempt(ticket);
                return Err(self.closed_error());
            }
            // If another thread has queued `confirm.select` since, the broker counts this publish,
            // so it needs a ticket.
            if ticket.is_none() && channel.confirm_window.must_check_state() {
                continue;
            }
            let queued = channel
                .connection
                .commands()
                .publish(block, encoded, is_kept);
            let Ok(must_wake) = queued else {
                room.give_up_attempt(ticket);
                return Err(self.closed_error());
            };
            room.use_bytes();
            let numbered = ticket.and_then(|ticket| ticket.commit(mandatory, is_sent_once));
            if must_wake {
                channel.connection.wake().notify();
            }
            return Ok(match numbered {
                None => PublisherConfirm::none(),
                Some((number, slot)) => {
                    PublisherConfirm::new(number, slot, Arc::clone(&self.shared))
                }
            });
        }
    }
}

/// A budget without room for a publish.
enum Exhausted {
    Write,
    Unconfirmed,
}

/// The room that a publish needs: a place in the confirm window, bytes of the write budget, and
/// bytes of the unconfirmed budget if it is kept. Dropping it frees the part that the publish has
/// not used.
struct Room<'a> {
    inner: &'a ChannelInner,
    size: usize,
    /// Whether bytes of the write budget are reserved.
    reserved: bool,
    /// Whether bytes of the unconfirmed budget are reserved.
    reserved_unconfirmed: bool,
    /// Whether a place in the confirm window is reserved.
    has_place: bool,
    /// Set while the publish waits: the mark of a waiting thread, and the deadline.
    waiting: Option<(Waiting<'a>, Instant)>,
}

impl<'a> Room<'a> {
    fn new(inner: &'a ChannelInner, size: usize) -> Self {
        Self {
            inner,
            size,
            reserved: false,
            reserved_unconfirmed: false,
            has_place: false,
            waiting: None,
        }
    }

    /// Gives up an attempt. If its ticket has taken over the reserved place, this publish gets the
    /// place back.
    fn give_up_attempt(&mut self, ticket: Option<Ticket<'_>>) {
        if let Some(ticket) = ticket {
            self.has_place = ticket.cancel();
        }
    }

    fn wait_for_window(&mut self) -> Result<()> {
        // Other publishes may use the bytes while this one waits.
        self.release_bytes();
        let deadline = self.deadline();
        let is_pointless = || !self.inner.is_open();
        let confirm_window = &self.inner.shared.confirm_window;
        let threads = &self.inner.shared.connection.read_control.threads;
        let waited = confirm_window.wait_for_room(deadline, threads, is_pointless);
        waited.map_err(|no_room| self.wait_failed(no_room))?;
        self.has_place = true;
        Ok(())
    }

    /// Takes the bytes that are not reserved already: of the write budget, and of the unconfirmed
    /// budget if the publish is kept.
    #[inline]
    fn take_bytes(&mut self, is_kept: bool) -> Result<(), Exhausted> {
        let connection = &self.inner.shared.connection;
        self.reserved = self.reserved || connection.write_budget().admit(self.size);
        if !self.reserved {
            return Err(Exhausted::Write);
        }
        if is_kept && !self.reserved_unconfirmed {
            self.reserved_unconfirmed = connection.unconfirmed_budget().admit(self.size);
            if !self.reserved_unconfirmed {
                return Err(Exhausted::Unconfirmed);
            }
        }
        Ok(())
    }

    /// The queued publish has taken over the reserved bytes.
    #[inline]
    fn use_bytes(&mut self) {
        self.reserved = false;
        self.reserved_unconfirmed = false;
    }

    fn wait_for_budget(&mut self, exhausted: Exhausted) -> Result<()> {
        // Other publishes may use the bytes of the other budget meanwhile.
        self.release_bytes();
        let deadline = self.deadline();
        let is_pointless = || !self.inner.is_open();
        let connection = &self.inner.shared.connection;
        let (budget, reserved) = match exhausted {
            Exhausted::Write => (connection.write_budget(), &mut self.reserved),
            Exhausted::Unconfirmed => (
                connection.unconfirmed_budget(),
                &mut self.reserved_unconfirmed,
            ),
        };
        let waited = budget.reserve(self.size, deadline, is_pointless);
        *reserved = waited.is_ok();
        waited.map_err(|no_room| self.wait_failed(no_room))
    }

    fn deadline(&mut self) -> Instant {
        let inner = self.inner;
        let begin = || {
            let deadline = Instant::now() + inner.limits.publish_timeout;
            (
                inner
                    .shared
                    .connection
                    .count_as_waiting_for_room_or_confirm(),
                deadline,
            )
        };
        self.waiting.get_or_insert_with(begin).1
    }

    fn wait_failed(&self, no_room: WaitError) -> Error {
        match no_room {
            WaitError::Closed => self.inner.closed_error(),
            WaitError::TimedOut => Error::PublishTimeout {
                after: self.inner.limits.publish_timeout,
                blocked: self.inner.shared.connection.blocked(),
                paused: self.inner.shared.connection.reading_pause(),
                outage: self.inner.shared.connection.recovery.outage().map(Box::new),
            },
        }
    }

    fn release_bytes(&mut self) {
        let connection = &self.inner.shared.connection;
        if std::mem::take(&mut self.reserved) {
            connection.write_budget().release_reserved(self.size);
        }
        if std::mem::take(&mut self.reserved_unconfirmed) {
            connection.unconfirmed_budget().release_reserved(self.size);
        }
    }
}

impl Drop for Room<'_> {
    #[inline]
    fn drop(&mut self) {
        self.release_bytes();
        if self.has_place {
            self.inner.shared.confirm_window.release_place();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::client::channel::tests::channel;
    use crate::error::Outage;
    use crate::protocol::event::Termination;
    use crate::protocol::frame::PublishBody;

    const SECOND: Duration = Duration::from_secs(1);

    fn publish(inner: &ChannelInner) -> Result<PublisherConfirm> {
        let publish = Publish {
            exchange: "",
            routing_key: "q",
            mandatory: false,
            immediate: false,
            properties: None,
            body: PublishBody::Borrowed(b"x"),
        };
        let mut scratch = Vec::new();
        let encoded = EncodedPublish::new(1, publish, 4096, &mut scratch)?;
        inner.publish(&encoded, None, false)
    }

    fn waiting_bytes(inner: &ChannelInner) -> usize {
        inner.shared.connection.commands().waiting_bytes()
    }

    #[test]
    fn a_publish_that_fails_frees_its_place_in_the_confirm_window() {
        let (inner, _entries) = channel(1, Duration::ZERO);
        let confirm_window = &inner.shared.confirm_window;
        assert!(confirm_window.select(|| {}));
        confirm_window.select_done(true);
        let mut failing = Room::new(&inner, 1);
        failing.wait_for_window().unwrap();
        let full = publish(&inner);
        let none = matches!(full, Err(Error::PublishTimeout { outage: None, .. }));
        assert!(none, "{full:?}");
        let lost = Error::from(&Termination::EndOfStream);
        let recovery = &inner.shared.connection.recovery;
        recovery.set_outage(Some(Outage::new(lost, Instant::now())));
        let in_outage = publish(&inner);
        let some = matches!(
            in_outage,
            Err(Error::PublishTimeout {
                outage: Some(_),
                ..
            })
        );
        assert!(some, "{in_outage:?}");
        recovery.set_outage(None);
        drop(failing);
        assert_eq!(publish(&inner).unwrap().sequence_number(), Some(1));
    }

    #[test]
    fn a_publish_frees_the_room_that_it_does_not_use() {
        let (inner, _entries) = channel(1, SECOND);
        let mut failing = Room::new(&inner, 100);
        failing.wait_for_budget(Exhausted::Write).unwrap();
        assert_eq!(waiting_bytes(&inner), 100);
        drop(failing);
        assert_eq!(waiting_bytes(&inner), 0);
        // A publish that waits for the confirm window frees its bytes as well.
        let mut waiting = Room::new(&inner, 100);
        waiting.wait_for_budget(Exhausted::Write).unwrap();
        waiting.wait_for_window().unwrap();
        assert_eq!(waiting_bytes(&inner), 0);
        drop(waiting);
        assert_eq!(waiting_bytes(&inner), 0);
    }

    #[test]
    fn a_publish_that_has_waited_for_room_takes_its_size_of_the_budget() {
        let (inner, _entries) = channel(1, SECOND * 30);
        publish(&inner).unwrap();
        let size = waiting_bytes(&inner);
        let budget = inner.shared.connection.write_budget();
        budget.take(1 << 20);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| publish(&inner));
            while !budget.has_line() {
                thread::yield_now();
            }
            inner.shared.connection.write_budget().release(1 << 20);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(waiting_bytes(&inner), 2 * size);
    }

    #[test]
    fn a_place_in_the_window_survives_a_wait_for_the_write_budget_outside_confirm_mode() {
        let (inner, _entries) = channel(1, SECOND * 30);
        let confirm_window = &inner.shared.confirm_window;
        let budget = inner.shared.connection.write_budget();
        confirm_window.set_flow(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| publish(&inner));
            while !confirm_window.is_room_awaited() {
                thread::yield_now();
            }
            budget.take(1 << 20);
            confirm_window.set_flow(true);
            while !budget.has_line() {
                thread::yield_now();
            }
            budget.release(1 << 20);
            waiting.join().unwrap().unwrap();
        });
        assert!(confirm_window.select(|| {}));
        confirm_window.select_done(true);
        assert_eq!(publish(&inner).unwrap().sequence_number(), Some(1));
    }
}
