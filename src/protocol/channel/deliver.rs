//! Passes on each content when it is complete.

use super::super::assembly::Head;
use super::super::close_reason::ClosedBy;
use super::super::consumers::{Consumers, Recipient};
use super::super::content::{
    Content, GotContent, Parts, ReturnedContent, is_of_stream, may_be_of_stream,
};
use super::super::delivery_batch::Delivery;
use super::super::errors::ProtocolError;
use super::super::event::{Event, Tokens};
use super::super::last_names::LastNames;
use super::super::output::Output;
use super::super::reply_code::ReplyCode;
use super::Channel;

/// A content that does not go to a consumer.
pub(super) enum Undelivered {
    Got(GotContent),
    Returned(ReturnedContent),
    Unwanted {
        delivery_tag: u64,
        no_ack: bool,
        /// Whether the broker accepts a requeue of it.
        is_requeueable: bool,
    },
}

/// The parts of a channel that are needed to find the consumer of a delivery.
pub(super) struct Destination<'a, C> {
    pub(super) channel: u16,
    pub(super) consumers: &'a mut Consumers<C>,
    pub(super) names: &'a LastNames,
    pub(super) is_transactional: bool,
}

/// Adds a delivery for its consumer to the output. Returns any other content.
// Inlined into its only caller, because it runs for each message.
#[inline]
pub(super) fn deliver<T: Tokens>(
    to: Destination<'_, T::Consumer>,
    head: Head,
    parts: Parts<'_>,
    out: &mut Output<T>,
) -> Option<Undelivered> {
    let Destination {
        channel,
        consumers,
        names,
        is_transactional,
    } = to;
    let (delivery_tag, redelivered) = match head {
        Head::Deliver {
            delivery_tag,
            redelivered,
        } => (delivery_tag, redelivered),
        Head::GetOk(get_ok) => {
            let content = Content::new(*get_ok, parts.unpack());
            return Some(Undelivered::Got(content));
        }
        Head::Return(returned) => {
            let content = Content::new(*returned, parts.unpack());
            return Some(Undelivered::Returned(content));
        }
    };
    let tag = names.consumer_tag();
    let (no_ack, is_requeueable) = match consumers.recipient(tag, names.tag_version()) {
        Recipient::Consumer(consumer) if !consumer.discard => {
            let shows_queue = !consumer.is_requeueable && !may_be_of_stream(parts.properties());
            let is_requeueable = consumer.is_requeueable || shows_queue;
            let is_fixed = consumer.has_fixed_deliveries() || is_transactional || !is_requeueable;
            if shows_queue {
                // This event comes first, because the consumer's thread may have to requeue the
                // delivery at once.
                let consumer = consumer.token.clone();
                out.events.push_back(Event::Requeueable { consumer });
            }
            let delivery = Delivery {
                tag: delivery_tag,
                redelivered,
                names,
                parts,
            };
            out.deliver(channel, || consumer.token.clone(), is_fixed, delivery);
            if shows_queue {
                consumers.note_requeueable(tag);
            }
            return None;
        }
        Recipient::Consumer(consumer) => (consumer.no_ack, consumer.is_requeueable),
        Recipient::Cancelled {
            no_ack,
            is_requeueable,
        } => (no_ack, is_requeueable),
        Recipient::Unknown => {
            log::debug!("delivery for unknown consumer {tag} dropped");
            return None;
        }
    };
    let shows_queue = !is_requeueable && !is_of_stream(parts.properties());
    if shows_queue {
        consumers.note_requeueable(tag);
    }
    let is_requeueable = is_requeueable || shows_queue;
    Some(Undelivered::Unwanted {
        delivery_tag,
        no_ack,
        is_requeueable,
    })
}

impl<T: Tokens> Channel<T> {
    /// Closes the channel after a content header that exceeds the decoder's limit.
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
                "a content header arrived where none was expected",
            ));
        };
        let text = format!("a content header of {size} bytes exceeds the limit of {limit}");
        let code = ReplyCode::CONTENT_TOO_LARGE;
        self.close(code, text.into(), ClosedBy::Library, Some(method), out);
        Ok(())
    }
}
