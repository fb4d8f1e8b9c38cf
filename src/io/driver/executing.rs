//! Executes the commands of the program: hands them to the core.

use std::sync::Arc;
use std::time::Instant;

use super::Driver;
use super::recovering::random_bits;
use super::tokens::CallToken;
use crate::io::shared::channel::ChannelShared;
use crate::io::shared::command::{ChannelCommand, Command, Opener};
use crate::io::shared::consumer::{ConsumerShared, ConsumerToken};
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::event::{ChannelId, NumberError, Termination};
use crate::protocol::methods::{Method, basic};
use crate::protocol::recovery::book::names::client_made_name;
use crate::protocol::reply_code::ReplyCode;

impl Driver {
    /// Executes a command: hands it to the core.
    pub(super) fn execute(&mut self, command: Command, now: Instant) {
        match command {
            Command::OpenChannel(opener) => self.open_channel(opener),
            Command::Channel(id, command) => self.execute_on_channel(id, command, now),
            Command::UpdateSecret {
                secret,
                reason,
                deadline,
                reply,
            } => {
                let token = CallToken::Caller(reply);
                // See D95 in docs/decisions.md.
                let kept = self.recovery.as_ref().map(|_| secret.clone());
                let is_accepted = self.core.update_secret(secret, reason, token, deadline);
                if let (true, Some(recovery), Some(kept)) = (is_accepted, &mut self.recovery, kept)
                {
                    recovery.keep_secret(kept);
                }
            }
            Command::Close {
                code,
                text,
                deadline,
            } => {
                self.push_frames_before_close();
                if self.postpone_close(code, &text, deadline) {
                    return;
                }
                self.count_unsent(|_| true);
                self.core.close(code, text, deadline.max(now));
            }
            Command::Disconnect => {
                self.discards_outbox = true;
                let code = ReplyCode::REPLY_SUCCESS;
                let reason = CloseReason::new(ClosedBy::Application, code, "disconnected", None);
                self.core.terminate(Termination::Closed(reason));
            }
        }
    }

    pub(super) fn execute_on_channel(
        &mut self,
        id: ChannelId,
        command: ChannelCommand,
        now: Instant,
    ) {
        match command {
            ChannelCommand::Call {
                mut method,
                consumer,
                is_once,
                deadline,
                reply,
            } => {
                self.name_new_queue(&mut method);
                let token = self.call_token(id, &method, reply);
                self.has_call_traffic = true;
                match is_once {
                    true => self.core.call_once(id, *method, token, deadline),
                    false => self.core.call(id, *method, consumer, token, deadline),
                }
            }
            ChannelCommand::Cancel {
                consumer,
                nowait,
                deadline,
                reply,
            } => {
                let cancel = basic::Cancel::new(&consumer.tag).nowait(nowait);
                let is_meant = |token: &Arc<ConsumerToken>| Arc::ptr_eq(&token.consumer, &consumer);
                let token = CallToken::Caller(reply);
                self.has_call_traffic = true;
                self.core
                    .cancel_consumer(id, cancel, is_meant, token, deadline);
            }
            ChannelCommand::Discard { consumer } => {
                self.core.discard_consumer(id, &consumer.tag, |token| {
                    Arc::ptr_eq(&token.consumer, &consumer)
                });
                // Earlier deliveries must be in the inbox before it is emptied.
                self.dispatch();
                self.requeue_untaken(&consumer, now);
            }
            ChannelCommand::Requeue { delivery_tags } => self.core.requeue(id, delivery_tags),
            ChannelCommand::Close {
                by,
                code,
                text,
                reply,
            } => {
                if reply.is_none() && self.postpone_channel_close(id, by, code, &text) {
                    return;
                }
                self.count_unsent(|channel| channel == id);
                let call = reply.map(|(reply, deadline)| (CallToken::Caller(reply), deadline));
                self.core.close_channel(id, by, code, text, call);
            }
        }
    }

    /// Gives a queue without a name one that recovery can declare again. Nothing happens if the
    /// topology is not restored.
    fn name_new_queue(&mut self, method: &mut Method) {
        if let Method::QueueDeclare(declare) = method {
            if declare.queue.is_empty() && !declare.passive && self.core.book().is_some() {
                declare.queue = client_made_name(random_bits());
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

    /// Requeues the deliveries in the inbox of a dropped consumer.
    pub(super) fn requeue_untaken(&mut self, consumer: &ConsumerShared, now: Instant) {
        let left = consumer.take_remaining();
        if consumer.no_ack {
            if left.len() > 0 {
                log::warn!(
                    "{}: consumer {} was dropped with {} deliveries that need no acknowledgement; \
                     they are lost",
                    self.shared.name,
                    consumer.tag,
                    left.len()
                );
            }
            return;
        }
        let mut command = None;
        let send = |next| command = Some(next);
        consumer.requeue(left, send);
        if let Some(command) = command {
            self.execute_on_channel(consumer.channel.id, command, now);
        }
    }
}
