//! `connection.update-secret`: calls of the connection itself, of which at most one is on the wire.
//!
//! A call keeps its place after its deadline, until its reply arrives. Otherwise the reply would be
//! taken for that of the next call.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::event::{CallFailure, Reply, Tokens};
use super::super::methods::connection;
use super::super::output::Output;
use super::super::secret::{Secret, encode_secret};
use super::super::wire::ShortString;
use super::{Connection, Router};

impl<T: Tokens> Connection<T> {
    /// Sends a new secret after the earlier updates are answered. Returns `false` if the call has
    /// failed already.
    pub(crate) fn update_secret(
        &mut self,
        secret: Secret,
        reason: ShortString,
        call: T::Call,
        deadline: Instant,
    ) -> bool {
        let Router {
            out,
            state,
            secret_updates,
            ..
        } = &mut self.router;
        if !state.accepts_commands() {
            out.fail(Some(call), CallFailure::Closed);
            return false;
        }
        let bare = connection::UpdateSecret::default().reason(reason);
        let fill = connection::UpdateSecret::new_secret;
        match encode_secret(bare, secret, fill, out.frame_max()) {
            Ok(frame) => {
                secret_updates.call(frame, call, deadline, out);
                true
            }
            Err(error) => {
                out.fail(Some(call), CallFailure::Encode(error));
                false
            }
        }
    }

    /// Returns a frame that must be wiped from memory after it is written. It precedes
    /// [`output`](Self::output).
    pub(crate) fn take_secret_output(&mut self) -> Option<Secret> {
        self.router.secret_updates.output.take()
    }
}

#[derive(Debug)]
struct Update<T: Tokens> {
    number: u64,
    /// The caller; `None` after its deadline.
    token: Option<T::Call>,
    deadline: Instant,
    /// The encoded frame; empty after it was sent.
    frame: Secret,
}

/// The updates without a reply. The first one is on the wire.
#[derive(Debug)]
pub(super) struct SecretUpdates<T: Tokens> {
    updates: VecDeque<Update<T>>,
    /// The frame to be sent. It is apart from the other output because it is wiped after it is
    /// written.
    output: Option<Secret>,
    /// Whether there is no connection now.
    is_detached: bool,
}

impl<T: Tokens> SecretUpdates<T> {
    pub(super) fn new() -> Self {
        Self {
            updates: VecDeque::new(),
            output: None,
            is_detached: false,
        }
    }

    /// Notes that the connection is lost. The next one is opened with the secret of the update on
    /// the wire.
    pub(super) fn detach(&mut self) {
        self.is_detached = true;
        self.output = None;
    }

    /// Answers the update that was on the wire of the lost connection, and sends the next one.
    pub(super) fn attach(&mut self, out: &mut Output<T>) {
        self.is_detached = false;
        match self.is_first_sent() {
            true => drop(self.receive_ok(out)),
            false => self.send_first(),
        }
    }

    fn is_first_sent(&self) -> bool {
        let first = self.updates.front();
        first.is_some_and(|update| update.frame.as_bytes().is_empty())
    }

    fn call(&mut self, frame: Secret, token: T::Call, deadline: Instant, out: &mut Output<T>) {
        let number = out.next_call();
        out.watch_until(0, number, Some(deadline));
        self.updates.push_back(Update {
            number,
            token: Some(token),
            deadline,
            frame,
        });
        if self.updates.len() == 1 && !self.is_detached {
            self.send_first();
        }
    }

    fn send_first(&mut self) {
        self.output = self
            .updates
            .front_mut()
            .map(|update| std::mem::take(&mut update.frame));
    }

    /// Handles an update-secret-ok. Returns `false` if no update was sent.
    pub(super) fn receive_ok(&mut self, out: &mut Output<T>) -> bool {
        let Some(update) = self.updates.pop_front() else {
            return false;
        };
        if let Some(token) = update.token {
            out.unwatch_until(0, update.number, Some(update.deadline));
            let ok = connection::UpdateSecretOk::default();
            out.answer(token, Ok(Reply::Method(ok.into())));
        }
        self.send_first();
        true
    }

    pub(super) fn time_out(&mut self, number: u64, out: &mut Output<T>) {
        let position = self
            .updates
            .iter()
            .position(|update| update.number == number);
        match position {
            None => {}
            Some(0) => {
                let token = self
                    .updates
                    .front_mut()
                    .and_then(|first| first.token.take());
                out.fail(token, CallFailure::TimedOut);
            }
            Some(index) => {
                let update = self.updates.remove(index);
                out.fail(
                    update.and_then(|update| update.token),
                    CallFailure::TimedOut,
                );
            }
        }
    }

    /// Fails all updates after the end of the connection.
    pub(super) fn end_with_connection(&mut self, out: &mut Output<T>) {
        self.output = None;
        for update in self.updates.drain(..) {
            out.fail(update.token, CallFailure::Closed);
        }
    }
}
