//! The callers that wait for a channel number: none is free, but a channel is closing, and its
//! number becomes free with the close-ok.

use std::time::Instant;

use super::super::event::{Event, NumberError, Tokens};
use super::super::output::Output;
use super::{Connection, Router};

/// A caller that waits for a channel number.
#[derive(Debug)]
struct QueuedOpener<T: Tokens> {
    /// The number of the call, by which its deadline is found.
    call: u64,
    /// The required number; `None` accepts any.
    number: Option<u16>,
    deadline: Instant,
    opener: T::Opener,
}

/// The waiting callers, in the order of their calls.
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

    /// Ends the waiting after the end of the connection.
    pub(super) fn end_with_connection(&mut self, out: &mut Output<T>) {
        let number_queue = self.waiting.drain(..).map(|waiting| waiting.opener);
        out.events
            .extend(number_queue.map(|opener| Event::OpenerLost { opener }));
    }
}

impl<T: Tokens> Connection<T> {
    /// Queues a caller for which [`reserve_channel`](Self::reserve_channel) failed with
    /// [`Closing`](NumberError::Closing). An event reports when it is worthwhile to try again.
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
        if !state.accepts_commands() {
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
    /// Gives `number`, which has become free, to the first caller that accepts it. Callers for
    /// which no other number can become free do not wait any longer either.
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

    /// Ends the waiting of `call` after its deadline.
    pub(super) fn time_out_opener(&mut self, call: u64) {
        let waiting = &mut self.number_queue.waiting;
        if let Some(index) = waiting.iter().position(|waiting| waiting.call == call) {
            let QueuedOpener { number, opener, .. } = waiting.remove(index);
            // `None` cannot occur: without a closing channel, `serve_openers` would have ended the
            // waiting.
            let error = match self.closing(number) {
                Some(number) => NumberError::Closing(number),
                None => NumberError::NoneFree,
            };
            let event = Event::NoNumber { opener, error };
            self.out.events.push_back(event);
        }
    }

    /// Returns the number of a channel that is closing: `number`, or any. A maintenance channel
    /// counts as closing, because its number becomes free soon, unless that belongs to a suspended
    /// channel.
    pub(super) fn closing(&self, number: Option<u16>) -> Option<u16> {
        let is_closing = |number: &u16| match self.channel(*number) {
            Some(channel) => !channel.is_open(),
            None => self.maintenance.contains_key(number),
        };
        match number {
            Some(number) => Some(number).filter(is_closing),
            None => {
                let channels = self.channels.iter().flatten();
                let mut numbers = channels
                    .map(|channel| channel.id().number)
                    .chain(self.maintenance.keys().copied());
                numbers.find(is_closing)
            }
        }
    }
}
