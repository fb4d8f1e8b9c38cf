//! Publishing.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use super::{BlockingChannel, ChannelInner};
use crate::client::confirm::PublisherConfirm;
use crate::client::message::Message;
use crate::error::{Error, Result};
use crate::io::shared::channel::ChannelShared;
use crate::io::to_io::frames::Queued;
use crate::io::to_io::write_budget::WaitError;
use crate::io::to_program::publisher::Entered;
use crate::io::to_program::waiting_threads::Waiting;
use crate::protocol::confirms::Mandatory;
use crate::protocol::frame::{EncodedPublish, Publish};

/// # Publishing
impl BlockingChannel {
    /// Publishes a message to an exchange, with a routing key. The default exchange has the empty
    /// name and routes to the queue whose name is the routing key.
    ///
    /// The call returns when the message is on its way: the IO thread sends it. If too many bytes
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
    /// the outcome. A publish then also waits while `confirm_window` publishes are unconfirmed.
    /// Outside confirm mode `Ok` does not mean that the broker has the message.
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
    /// channel returns that, or its [`close`](Self::close).
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
            // Before any lock, for it looks at the whole body.
            let mandatory = publish.mandatory.then(|| Mandatory {
                fingerprint: publish.fingerprint(),
                properties: encoded.properties(),
            });
            inner.publish(&encoded, mandatory)
        })
    }
}

thread_local! {
    /// Where a publish is encoded, but for its body.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lends this thread's memory for a publish. A thread that ends may have dropped it already and
/// still publish, as may a logger inside a publish: these get memory of their own.
fn with_scratch<R>(publish: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
    let outcome = publish(&mut scratch);
    // Without a thread to keep it for, it goes.
    let _ = SCRATCH.try_with(|kept| kept.set(scratch));
    outcome
}

impl ChannelInner {
    /// Queues a publish, when there is room for it.
    fn publish(
        &self,
        encoded: &EncodedPublish<'_>,
        mandatory: Option<Mandatory<'_>>,
    ) -> Result<PublisherConfirm> {
        let ChannelShared {
            publisher,
            connection,
            id,
            ..
        } = &*self.shared;
        let send = |reserved, is_plain: bool| {
            connection.publish(*id, encoded, reserved, || {
                // Once it is gated the broker may count what follows.
                self.shared.takes_publishes() && !(is_plain && publisher.is_gated())
            })
        };
        if !publisher.is_gated() && send(false, true) == Queued::Done {
            return Ok(PublisherConfirm::none());
        }
        let mut room = Room {
            inner: self,
            size: encoded.size(),
            reserved: false,
            has_place: false,
            waiting: None,
        };
        loop {
            let reserved = room.reserved;
            match publisher.enter(mandatory, &mut room.has_place, || send(reserved, false)) {
                Entered::Plain => {
                    room.reserved = false;
                    return Ok(PublisherConfirm::none());
                }
                Entered::Numbered(number, slot) => {
                    room.reserved = false;
                    return Ok(PublisherConfirm::new(
                        number,
                        slot,
                        Arc::clone(&self.shared),
                    ));
                }
                Entered::Full => room.wait_for_window()?,
                Entered::Not(Queued::NoRoom) => room.wait_for_budget()?,
                Entered::Not(_) => return Err(self.closed_error()),
            }
        }
    }
}

/// What a publish waits for, and has.
struct Room<'a> {
    inner: &'a ChannelInner,
    size: usize,
    /// Whether it has room in the write budget.
    reserved: bool,
    /// Whether a place in the window is kept for it.
    has_place: bool,
    /// That it waits, and until when.
    waiting: Option<(Waiting<'a>, Instant)>,
}

impl Room<'_> {
    fn wait_for_window(&mut self) -> Result<()> {
        // Others may use it meanwhile.
        self.give_back();
        let deadline = self.deadline();
        let is_pointless = || !self.inner.is_open();
        let publisher = &self.inner.shared.publisher;
        let waited = publisher.wait_for_room(deadline, is_pointless);
        waited.map_err(|no_room| self.wait_failed(no_room))?;
        self.has_place = true;
        Ok(())
    }

    fn wait_for_budget(&mut self) -> Result<()> {
        let deadline = self.deadline();
        let is_pointless = || !self.inner.is_open();
        let commands = self.inner.shared.connection.commands();
        let waited = commands.reserve(self.size, deadline, is_pointless);
        waited.map_err(|no_room| self.wait_failed(no_room))?;
        self.reserved = true;
        Ok(())
    }

    fn deadline(&mut self) -> Instant {
        let inner = self.inner;
        let begin = || {
            let deadline = Instant::now() + inner.limits.publish_timeout;
            (inner.shared.connection.waiting(), deadline)
        };
        self.waiting.get_or_insert_with(begin).1
    }

    fn wait_failed(&self, no_room: WaitError) -> Error {
        match no_room {
            WaitError::Closed => self.inner.closed_error(),
            WaitError::TimedOut => Error::PublishTimeout {
                after: self.inner.limits.publish_timeout,
                blocked: self.inner.shared.connection.blocked(),
                paused: self.inner.shared.connection.pause(),
            },
        }
    }

    fn give_back(&mut self) {
        if std::mem::take(&mut self.reserved) {
            self.inner.shared.connection.commands().give_back(self.size);
        }
    }
}

impl Drop for Room<'_> {
    #[inline]
    fn drop(&mut self) {
        self.give_back();
        if self.has_place {
            self.inner.shared.publisher.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::client::channel::tests::channel;
    use crate::protocol::frame::PublishBody;

    const SECOND: Duration = Duration::from_secs(1);

    fn room(inner: &ChannelInner, size: usize) -> Room<'_> {
        Room {
            inner,
            size,
            reserved: false,
            has_place: false,
            waiting: None,
        }
    }

    fn publish(inner: &Arc<ChannelInner>) -> Result<PublisherConfirm> {
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
        inner.publish(&encoded, None)
    }

    fn waiting_bytes(inner: &ChannelInner) -> usize {
        inner.shared.connection.commands().waiting_bytes()
    }

    #[test]
    fn a_publish_that_fails_gives_back_its_place_in_the_window() {
        let inner = Arc::new(channel(1, Duration::ZERO));
        let publisher = &inner.shared.publisher;
        assert!(publisher.select(|| {}));
        publisher.select_done(true);
        let mut failing = room(&inner, 1);
        failing.wait_for_window().unwrap();
        let full = publish(&inner);
        assert!(matches!(full, Err(Error::PublishTimeout { .. })));
        drop(failing);
        assert_eq!(publish(&inner).unwrap().sequence_number(), Some(1));
    }

    #[test]
    fn a_publish_gives_back_the_room_that_it_does_not_use() {
        let inner = Arc::new(channel(1, SECOND));
        let mut failing = room(&inner, 100);
        failing.wait_for_budget().unwrap();
        assert_eq!(waiting_bytes(&inner), 100);
        drop(failing);
        assert_eq!(waiting_bytes(&inner), 0);
        // Nor does it keep any while it waits for the window.
        let mut waiting = room(&inner, 100);
        waiting.wait_for_budget().unwrap();
        waiting.wait_for_window().unwrap();
        assert_eq!(waiting_bytes(&inner), 0);
        drop(waiting);
        assert_eq!(waiting_bytes(&inner), 0);
    }

    #[test]
    fn what_was_published_in_room_that_was_waited_for_takes_it() {
        let inner = Arc::new(channel(1, SECOND * 30));
        publish(&inner).unwrap();
        let size = waiting_bytes(&inner);
        let budget = inner.shared.connection.budget();
        budget.take(1 << 20);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| publish(&inner));
            while !budget.is_awaited() {
                thread::yield_now();
            }
            inner.shared.connection.commands().release(1 << 20);
            waiting.join().unwrap().unwrap();
        });
        assert_eq!(waiting_bytes(&inner), 2 * size);
    }
}
