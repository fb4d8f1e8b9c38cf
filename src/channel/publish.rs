//! Publishing.

use std::sync::Arc;
use std::time::Instant;

use super::BlockingChannel;
use crate::confirm::Confirm;
use crate::delivery::Message;
use crate::error::{Error, Result};
use crate::io::budget::NoRoom;
use crate::io::port::Command;
use crate::io::publishing::Entered;
use crate::protocol::frame::{Publish, content_frames, encode_publish};

/// # Publishing
impl BlockingChannel {
    /// Publishes a message to an exchange, under a routing key. The default exchange,
    /// whose name is empty, takes the key for the name of a queue.
    ///
    /// Returns when the message is on its way: the IO thread sends it, together with
    /// whatever else is waiting. If too much is waiting (`write_budget`), it waits for
    /// room first, at most for `publish_timeout`. A message goes out whole or not at
    /// all, also from several threads on one channel.
    ///
    /// ```
    /// # let channel = cony::BlockingConnection::open_default()?.channel()?;
    /// use cony::{BasicProperties, Message};
    ///
    /// channel.basic_publish("", "tasks", "hello")?;
    /// let properties = BasicProperties::new().content_type("application/json");
    /// channel.basic_publish("amq.topic", "order.new", Message::new("{}").properties(&properties))?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// On a channel in [confirm mode](Self::confirm_delivery) the [`Confirm`] tells what
    /// becomes of the message, and a publish also waits while too many are unconfirmed.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`] for names of more than 255 bytes and properties that do not
    /// fit a frame; [`Error::NotFinite`]; [`Error::PublishTimeout`]; the reason if channel or connection are
    /// closed. In all these cases the message was not sent. A broker that refuses it,
    /// because there is no such exchange, closes the channel later.
    pub fn basic_publish<'a>(
        &self,
        exchange: impl AsRef<str>,
        routing_key: impl AsRef<str>,
        message: impl Into<Message<'a>>,
    ) -> Result<Confirm> {
        let shared = self.shared();
        let port = &shared.port;
        shared.check_open()?;
        let message = message.into();
        let publish = Publish {
            exchange: exchange.as_ref(),
            routing_key: routing_key.as_ref(),
            mandatory: message.mandatory,
            immediate: message.immediate,
            properties: message.properties,
            body: message.body.as_slice(),
        };
        let frame_max = port.connection.negotiated.frame_max as usize;
        let frames = encode_publish(port.id.number, publish, frame_max)?;
        let count = content_frames(publish.body.len(), frame_max);
        let after = shared.limits.publish_timeout;
        let is_pointless = || shared.check_open().is_err();
        let in_vain = |no_room| match no_room {
            NoRoom::Pointless => shared.closed_error(),
            NoRoom::TimedOut => Error::PublishTimeout {
                after,
                blocked: port.connection.blocked(),
            },
        };
        let budget = &port.connection.budget;
        let bytes = frames.len();
        // Before the lock, for it looks at the whole body.
        let fingerprint = publish.mandatory.then(|| publish.fingerprint());
        let mut frames = Some(frames);
        let mut waiting = None;
        loop {
            // Asked for their deadline, these two are about to wait; a publish that finds
            // room does not even look at the clock.
            let mut begin_waiting = || {
                let begin = || (port.connection.waiting(), Instant::now() + after);
                waiting.get_or_insert_with(begin).1
            };
            port.publishing
                .wait_for_room(&mut begin_waiting, is_pointless)
                .map_err(in_vain)?;
            budget
                .reserve(bytes, &mut begin_waiting, is_pointless)
                .map_err(in_vain)?;
            // A close that began meanwhile would let this vanish behind it.
            if waiting.is_some() && is_pointless() {
                budget.release(bytes);
                return Err(shared.closed_error());
            }
            let entered = port.publishing.enter(fingerprint, || {
                if let Some(frames) = frames.take() {
                    let channel = port.id;
                    port.connection.send(Command::Publish {
                        channel,
                        frames,
                        count,
                    });
                }
            });
            match entered {
                Entered::Plain => return Ok(Confirm::none()),
                Entered::Numbered(number, slot) => {
                    return Ok(Confirm::new(number, slot, Arc::clone(shared)));
                }
                // Another thread has taken the room.
                Entered::Full => budget.release(bytes),
            }
        }
    }
}
