//! Who waits for a channel number: none is free, but one of them is only closing, and its
//! close-ok is on its way.

use std::time::Instant;

use super::super::event::{Event, NumberError, Tokens};
use super::super::output::Output;
use super::{Connection, ConnectionState, Router};

/// One who waits.
#[derive(Debug)]
struct QueuedOpener<T: Tokens> {
    /// By this its deadline is found.
    call: u64,
    /// The number that it wants; any, if none.
    number: Option<u16>,
    deadline: Instant,
    opener: T::Opener,
}

/// Those who wait, in the order in which they asked.
#[derive(Debug)]
pub(super) struct NumberQueue<T: Tokens> {
    waiting: Vec<QueuedOpener<T>>,
}

impl<T: Tokens> NumberQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: Vec::new(),
        }
    }

    /// The connection is over.
    pub(super) fn lose(&mut self, out: &mut Output<T>) {
        let number_queue = self.waiting.drain(..).map(|waiting| waiting.opener);
        out.events
            .extend(number_queue.map(|opener| Event::OpenerLost { opener }));
    }
}

impl<T: Tokens> Connection<T> {
    /// Has `opener` come back as soon as it is worth while to
    /// [`reserve_channel`](Self::reserve_channel) again, which has said
    /// [`Closing`](NumberError::Closing).
    pub(crate) fn await_number(
        &mut self,
        number: Option<u16>,
        deadline: Instant,
        opener: T::Opener,
    ) {
        let Router {
            out,
            state,
            number_queue,
            ..
        } = &mut self.router;
        if !matches!(state, ConnectionState::Open) {
            return out.events.push_back(Event::OpenerLost { opener });
        }
        let call = out.next_call();
        out.watch_until(0, call, Some(deadline));
        number_queue.waiting.push(QueuedOpener {
            call,
            number,
            deadline,
            opener,
        });
    }
}

impl<T: Tokens> Router<T> {
    /// `number` is free: for the first who wants it. If nothing closes any more that another
    /// could have, that one need not wait either.
    pub(super) fn serve_openers(&mut self, number: u16) {
        let mut is_taken = false;
        for waiting in std::mem::take(&mut self.number_queue.waiting) {
            let fits = waiting.number.is_none_or(|wanted| wanted == number);
            let is_served = fits && !std::mem::replace(&mut is_taken, true);
            if is_served || self.closing(waiting.number).is_none() {
                let out = &mut self.out;
                out.unwatch_until(0, waiting.call, Some(waiting.deadline));
                let opener = waiting.opener;
                out.events.push_back(Event::NumberFree { opener });
            } else {
                self.number_queue.waiting.push(waiting);
            }
        }
    }

    /// The deadline of `call` has passed.
    pub(super) fn time_out_opener(&mut self, call: u64) {
        let waiting = &mut self.number_queue.waiting;
        if let Some(index) = waiting.iter().position(|waiting| waiting.call == call) {
            let QueuedOpener { number, opener, .. } = waiting.remove(index);
            // With nothing that closes it would have been served.
            let error = match self.closing(number) {
                Some(number) => NumberError::Closing(number),
                None => NumberError::NoneFree,
            };
            let event = Event::NoNumber { opener, error };
            self.out.events.push_back(event);
        }
    }

    /// The first channel that closes and has this number, or any.
    pub(super) fn closing(&self, number: Option<u16>) -> Option<u16> {
        match number {
            Some(number) => self.channel(number).filter(|it| !it.is_open()),
            None => self
                .channels
                .iter()
                .flatten()
                .map(Box::as_ref)
                .find(|it| !it.is_open()),
        }
        .map(|channel| channel.id().number)
    }
}
