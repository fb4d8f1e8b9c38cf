//! `connection.update-secret`: calls of the connection itself, of which at most one is
//! on the wire.
//!
//! One that timed out keeps its place until its reply comes, or that reply would be taken
//! for the next one's.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::event::{CallFailure, Reply, Tokens};
use super::super::methods::connection;
use super::super::output::Output;
use super::super::secret::{Secret, encode_secret};
use super::super::wire::ShortString;
use super::{Connection, ConnectionState, Router};

impl<T: Tokens> Connection<T> {
    /// Hands in a fresh secret, when those before it are answered.
    pub(crate) fn update_secret(
        &mut self,
        secret: Secret,
        reason: ShortString,
        call: T::Call,
        deadline: Instant,
    ) {
        let Router {
            out,
            state,
            secret_updates,
            ..
        } = &mut self.router;
        if !matches!(state, ConnectionState::Open) {
            return out.fail(Some(call), CallFailure::Closed);
        }
        let bare = connection::UpdateSecret::default().reason(reason);
        let fill = connection::UpdateSecret::new_secret;
        match encode_secret(bare, secret, fill, out.frame_max()) {
            Ok(frame) => secret_updates.call(frame, call, deadline, out),
            Err(error) => out.fail(Some(call), CallFailure::Encode(error)),
        }
    }

    /// A frame for the peer that is to be wiped behind the wire; it goes before
    /// [`output`](Self::output).
    pub(crate) fn take_secret_output(&mut self) -> Option<Secret> {
        self.router.secret_updates.output.take()
    }
}

#[derive(Debug)]
struct Update<T: Tokens> {
    number: u64,
    /// Who waits for the outcome; nobody any more after a timeout.
    token: Option<T::Call>,
    deadline: Instant,
    /// Empty once it went out.
    frame: Secret,
}

/// The updates that have no answer yet, the one on the wire first.
#[derive(Debug)]
pub(super) struct SecretUpdates<T: Tokens> {
    updates: VecDeque<Update<T>>,
    /// A frame to be sent: apart from the others, since it is wiped behind the wire.
    output: Option<Secret>,
}

impl<T: Tokens> SecretUpdates<T> {
    pub(super) fn new() -> Self {
        Self {
            updates: VecDeque::new(),
            output: None,
        }
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
        if self.updates.len() == 1 {
            self.send_first();
        }
    }

    fn send_first(&mut self) {
        self.output = self
            .updates
            .front_mut()
            .map(|update| std::mem::take(&mut update.frame));
    }

    /// An update-secret-ok came. `false`: nobody has asked for it.
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

    /// The connection is over.
    pub(super) fn lose(&mut self, out: &mut Output<T>) {
        self.output = None;
        for update in self.updates.drain(..) {
            out.fail(update.token, CallFailure::Closed);
        }
    }
}
