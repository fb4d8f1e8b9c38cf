//! What becomes of a content that is whole.

use super::super::consumers::{Consumers, Recipient};
use super::super::content::{Content, ContentMethod, Head, Parts, is_of_stream, may_be_of_stream};
use super::super::delivery_batch::Delivery;
use super::super::errors::ProtocolError;
use super::super::event::{Event, Tokens};
use super::super::last_names::LastNames;
use super::super::output::Output;
use super::super::reply_code::{ClosedBy, ReplyCode};
use super::Channel;

/// A content that no consumer takes.
pub(super) enum Undelivered {
    Got(Content),
    Returned(Content),
    Unwanted {
        delivery_tag: u64,
        no_ack: bool,
        /// Whether there is a way back for it.
        is_of_queue: bool,
    },
}

/// Hands a delivery to its consumer; what is something else is left.
pub(super) fn deliver<T: Tokens>(
    channel: u16,
    consumers: &mut Consumers<T::Consumer>,
    names: &LastNames,
    is_transactional: bool,
    head: Head,
    parts: Parts<'_>,
    out: &mut Output<T>,
) -> Option<Undelivered> {
    let content = |method, parts: Parts<'_>| {
        let (properties, body) = parts.unpack();
        Content {
            method,
            properties,
            body,
        }
    };
    let (delivery_tag, redelivered) = match head {
        Head::Deliver {
            delivery_tag,
            redelivered,
        } => (delivery_tag, redelivered),
        Head::GetOk(get_ok) => {
            return Some(Undelivered::Got(content(
                ContentMethod::GetOk(*get_ok),
                parts,
            )));
        }
        Head::Return(returned) => {
            let method = ContentMethod::Return(*returned);
            return Some(Undelivered::Returned(content(method, parts)));
        }
    };
    let tag = names.consumer_tag();
    let (no_ack, is_of_queue) = match consumers.recipient(tag, names.tag_version()) {
        Recipient::Consumer(consumer) if !consumer.discard => {
            let shows_queue = !consumer.is_of_queue && !may_be_of_stream(parts.properties());
            let is_of_queue = consumer.is_of_queue || shows_queue;
            let never_held_back = consumer.never_held_back() || is_transactional || !is_of_queue;
            if shows_queue {
                // First, for whoever has the delivery may have to give it back.
                let consumer = consumer.token.clone();
                out.events.push_back(Event::OfQueue { consumer });
            }
            let delivery = Delivery {
                tag: delivery_tag,
                redelivered,
                names,
                parts,
            };
            out.deliver(
                channel,
                || consumer.token.clone(),
                never_held_back,
                delivery,
            );
            if shows_queue {
                consumers.note_queue(tag);
            }
            return None;
        }
        Recipient::Consumer(consumer) => (consumer.no_ack, consumer.is_of_queue),
        Recipient::Cancelled {
            no_ack,
            is_of_queue,
        } => (no_ack, is_of_queue),
        Recipient::Unknown => {
            log::debug!("a delivery came for the unknown consumer {tag}");
            return None;
        }
    };
    let shows_queue = !is_of_queue && !is_of_stream(parts.properties());
    if shows_queue {
        consumers.note_queue(tag);
    }
    let is_of_queue = is_of_queue || shows_queue;
    Some(Undelivered::Unwanted {
        delivery_tag,
        no_ack,
        is_of_queue,
    })
}

impl<T: Tokens> Channel<T> {
    /// A content header came that is too large to be kept.
    pub(crate) fn refuse_header(
        &mut self,
        size: u32,
        limit: u32,
        out: &mut Output<T>,
    ) -> Result<(), ProtocolError> {
        if self.closing {
            return Ok(());
        }
        let Some(method) = self.assembly.begun() else {
            return Err(ProtocolError::UnexpectedContent(
                "a content header came where none was due",
            ));
        };
        let text = format!("a content header of {size} bytes exceeds the limit of {limit}");
        let code = ReplyCode::CONTENT_TOO_LARGE;
        self.close(code, text.into(), ClosedBy::Library, Some(method), out);
        Ok(())
    }
}
