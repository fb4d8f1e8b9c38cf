//! The router: passes received frames to their channels, and handles the methods of the connection
//! itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::assembly::SizeLimit;
use super::super::channel::{Channel, Fate};
use super::super::close_reason::CloseReason;
use super::super::errors::ProtocolError;
use super::super::event::{ChannelId, Event, NumberError, Termination, Tokens};
use super::super::frame::Frame;
use super::super::frame::{decode_method, split_method};
use super::super::heartbeat::Heartbeat;
use super::super::methods::{Method, MethodId, channel, connection};
use super::super::output::Output;
use super::super::wire::ShortString;
use super::maintenance::MaintenanceChannel;
use super::number_queue::NumberQueue;
use super::secret_updates::SecretUpdates;

#[derive(Debug)]
pub(super) enum ConnectionState {
    Open,
    /// The connection is lost for this reason. The driver decides whether another one takes its
    /// place.
    Lost(Termination),
    /// The connection is lost, and another one is to take its place.
    Detached,
    Closing {
        reason: CloseReason,
        deadline: Instant,
    },
    Closed,
}

impl ConnectionState {
    /// Returns whether commands of the program are executed, now or after another connection is
    /// attached.
    pub(super) fn accepts_commands(&self) -> bool {
        matches!(self, Self::Open | Self::Lost(_) | Self::Detached)
    }
}

/// The connection without its decoder. The two are apart because frames borrow from the decoder.
#[derive(Debug)]
pub(super) struct Router<T: Tokens> {
    pub(super) out: Output<T>,
    pub(super) channel_max: u16,
    pub(super) message_size: SizeLimit,
    /// The channels by number. Index 0 stays empty, since channel 0 is the connection itself.
    pub(super) channels: Vec<Option<Box<Channel<T>>>>,
    /// The channels that are not opened again yet, by number. They are apart, so that no received
    /// frame finds them.
    pub(super) suspended: BTreeMap<u16, Box<Channel<T>>>,
    /// When channels are opened again that the broker has closed, by number. They are suspended.
    pub(super) reopenings: BTreeMap<u16, Instant>,
    pub(super) maintenance: BTreeMap<u16, MaintenanceChannel<T>>,
    /// Whether all channels stay suspended, because the topology is not declared again yet.
    pub(super) is_preparing: bool,
    /// All numbers below this one are in use.
    pub(super) lowest_free: u16,
    pub(super) generations: u64,
    pub(super) heartbeat: Heartbeat,
    pub(super) blocked: Blocked,
    pub(super) frames_received: u64,
    pub(super) secret_updates: SecretUpdates<T>,
    pub(super) number_queue: NumberQueue<T>,
    pub(super) state: ConnectionState,
}

/// The time since which the broker blocks publishes, and its limit.
#[derive(Debug)]
pub(super) struct Blocked {
    pub(super) timeout: Option<Duration>,
    pub(super) since: Option<(Instant, ShortString)>,
}

impl Blocked {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let (since, _) = self.since.as_ref()?;
        Some(*since + self.timeout?)
    }

    /// Returns the termination if the broker has blocked publishes for too long.
    pub(super) fn is_over(&self, now: Instant) -> Option<Termination> {
        let after = self.timeout?;
        let (since, reason) = self.since.as_ref()?;
        (now >= *since + after).then(|| Termination::BlockedTooLong {
            after,
            reason: reason.clone(),
        })
    }
}

impl<T: Tokens> Router<T> {
    // Inlined into its only caller, because it runs for each frame.
    #[inline]
    pub(super) fn route(&mut self, frame: Frame<'_>, now: Instant) -> Result<(), ProtocolError> {
        self.frames_received += 1;
        // After our close only close and close-ok count (specification, connection.close).
        if !matches!(self.state, ConnectionState::Open) && !is_end(frame) {
            self.receive_late_close(frame);
            return Ok(());
        }
        let (number, kind) = match frame {
            Frame::Heartbeat => return Ok(()),
            Frame::Method {
                channel: 0,
                payload,
            } => {
                return self.receive_connection_method(decode_method(payload)?, now);
            }
            Frame::Method { channel, .. } => (channel, "a method"),
            Frame::Header { channel, .. } => (channel, "a content header"),
            Frame::Body { channel, .. } => (channel, "a content body"),
            Frame::Oversized { channel, .. } => (channel, "a content header"),
        };
        if number == 0 || number > self.channel_max {
            let channel = number;
            return Err(ProtocolError::Channel {
                channel,
                frame: kind,
            });
        }
        let slot = self.channels.get_mut(usize::from(number));
        let Some(Some(channel)) = slot else {
            return self.receive_elsewhere(number, frame);
        };
        let out = &mut self.out;
        match frame {
            Frame::Method { payload, .. } => {
                match channel.receive_method(payload, out)? {
                    Fate::Lives => {}
                    Fate::Suspended { until } => self.suspend(number, until),
                    Fate::Gone => self.free(number),
                }
                Ok(())
            }
            Frame::Header { payload, .. } => {
                channel.receive_header(payload, self.message_size, out)
            }
            Frame::Body { payload, .. } => channel.receive_body(payload, out),
            Frame::Oversized { size, limit, .. } => channel.refuse_header(size, limit, out),
            Frame::Heartbeat => Ok(()),
        }
    }

    /// Handles a frame for a channel that has ended. Such frames are not an error, but a close must
    /// be answered: if it crossed ours, the broker ignores all methods on this number until the
    /// close-ok arrives, so the next `channel.open` would get no reply.
    pub(super) fn receive_late(&mut self, number: u16, frame: Frame<'_>) {
        if method_id(frame) == Some(channel::Close::ID) {
            self.out.send(number, &channel::CloseOk::default().into());
        }
    }

    /// Handles a close of a channel by the broker after our close of the connection. The reason is
    /// reported with the end of the connection. A close-ok would come too late.
    fn receive_late_close(&mut self, frame: Frame<'_>) {
        let Frame::Method { channel, payload } = frame else {
            return;
        };
        let Some(Some(channel)) = self.channels.get_mut(usize::from(channel)) else {
            return;
        };
        if method_id(frame) == Some(channel::Close::ID) {
            if let Ok(Method::ChannelClose(close)) = decode_method(payload) {
                channel.receive_late_close(CloseReason::of_channel(&close), &mut self.out);
            }
        }
    }

    fn receive_connection_method(
        &mut self,
        method: Method,
        now: Instant,
    ) -> Result<(), ProtocolError> {
        match (&self.state, method) {
            (_, Method::ConnectionClose(close)) => {
                self.out.send(0, &connection::CloseOk::default().into());
                // Also if this close crosses ours: the broker may have dropped methods that we sent
                // before ours, so the program must get its reason.
                self.lose(Termination::Closed(CloseReason::of_connection(&close)));
            }
            (ConnectionState::Closing { reason, .. }, Method::ConnectionCloseOk(_)) => {
                let reason = reason.clone();
                self.terminate(Termination::Closed(reason));
            }
            (_, Method::ConnectionBlocked(blocked)) => {
                // A repeated `connection.blocked` does not restart the timeout.
                let since = self.blocked.since.take().map_or(now, |(since, _)| since);
                self.blocked.since = Some((since, blocked.reason.clone()));
                self.out.events.push_back(Event::Blocked(blocked.reason));
            }
            (_, Method::ConnectionUnblocked(_)) => {
                self.blocked.since = None;
                self.out.events.push_back(Event::Unblocked);
            }
            (_, Method::ConnectionUpdateSecretOk(_))
                if self.secret_updates.receive_ok(&mut self.out) => {}
            (_, method) => {
                return Err(ProtocolError::UnexpectedMethod {
                    method: method.id(),
                    state: "on an open connection, where it is not allowed",
                });
            }
        }
        Ok(())
    }

    /// Ends the connection after a violation of the protocol, and reports it to the broker.
    pub(super) fn fail(&mut self, error: ProtocolError) {
        let text: String = error.to_string().chars().take(60).collect();
        let close = connection::Close::default()
            .reply_code(error.reply_code().into())
            .reply_text(text);
        self.out.send(0, &close.into());
        self.lose(Termination::Protocol(error));
    }

    /// Ends the connection, unless another one may take its place.
    pub(super) fn lose(&mut self, termination: Termination) {
        match self.state {
            ConnectionState::Open if self.out.outlives_losses => {
                self.state = ConnectionState::Lost(termination);
            }
            ConnectionState::Lost(_) | ConnectionState::Detached => {}
            _ => self.terminate(termination),
        }
    }

    pub(super) fn terminate(&mut self, termination: Termination) {
        if matches!(self.state, ConnectionState::Closed) {
            return;
        }
        self.state = ConnectionState::Closed;
        self.out.events.push_back(Event::Closed(termination));
        self.out.reports_restored = false;
        self.reopenings.clear();
        let suspended = std::mem::take(&mut self.suspended).into_values();
        for channel in self.channels.drain(..).flatten().chain(suspended) {
            channel.end_with_connection(&mut self.out);
        }
        for (_, channel) in std::mem::take(&mut self.maintenance) {
            channel.end_with_connection(&mut self.out);
        }
        self.secret_updates.end_with_connection(&mut self.out);
        self.number_queue.end_with_connection(&mut self.out);
        self.out.forget_deadlines();
    }

    pub(super) fn reserve(&mut self, number: Option<u16>) -> Result<ChannelId, NumberError> {
        let number = match number {
            Some(number) if number == 0 || number > self.channel_max => {
                return Err(NumberError::OutOfRange);
            }
            Some(number) if self.is_taken(number) => {
                return Err(match self.closing(Some(number)) {
                    Some(number) => NumberError::Closing(number),
                    None => NumberError::InUse,
                });
            }
            Some(number) => number,
            None => match self.lowest_free() {
                Some(number) => number,
                None => {
                    let closing = self.closing(None).map(NumberError::Closing);
                    return Err(closing.unwrap_or(NumberError::NoneFree));
                }
            },
        };
        self.generations += 1;
        Ok(ChannelId {
            number,
            generation: self.generations,
        })
    }

    pub(super) fn is_taken(&self, number: u16) -> bool {
        self.channel(number).is_some() || self.maintenance.contains_key(&number)
    }

    fn lowest_free(&mut self) -> Option<u16> {
        let number = (self.lowest_free..=self.channel_max).find(|&number| !self.is_taken(number));
        self.lowest_free = number.unwrap_or(self.channel_max);
        number
    }

    pub(super) fn free(&mut self, number: u16) {
        if let Some(slot) = self.channels.get_mut(usize::from(number)) {
            *slot = None;
        }
        self.lowest_free = self.lowest_free.min(number);
        self.serve_openers(number);
    }

    pub(super) fn find(&self, id: ChannelId) -> Option<&Channel<T>> {
        self.channel(id.number).filter(|channel| channel.id() == id)
    }

    pub(super) fn channel(&self, number: u16) -> Option<&Channel<T>> {
        let in_place = self.channels.get(usize::from(number));
        let in_place = in_place.and_then(Option::as_ref);
        in_place
            .or_else(|| self.suspended.get(&number))
            .map(Box::as_ref)
    }

    fn channel_mut(&mut self, number: u16) -> Option<(&mut Channel<T>, &mut Output<T>)> {
        let in_place = self.channels.get_mut(usize::from(number));
        let in_place = in_place.and_then(Option::as_mut);
        let channel = in_place.or_else(|| self.suspended.get_mut(&number))?;
        Some((channel, &mut self.out))
    }

    /// Returns the numbers of the channels with deliveries that are held back or expected again.
    pub(super) fn channels_holding_back(&self) -> Vec<u16> {
        self.out.held_back_channels.iter().copied().collect()
    }

    /// Returns the first instant at which an expected delivery is overdue.
    pub(super) fn held_back_deadline(&self) -> Option<Instant> {
        let channels = self.out.held_back_channels.iter();
        let channels = channels.filter_map(|number| self.channel(*number));
        channels
            .filter_map(|channel| channel.held_back_deadline(&self.out))
            .min()
    }

    /// Gives up the expected deliveries that have gone to other consumers.
    pub(super) fn give_up_strays(&mut self) {
        for (queue, cost) in self.out.room.take_strays() {
            for number in self.channels_holding_back() {
                let mut given_up = false;
                self.with_number(number, |channel, out| {
                    given_up = channel.give_up(queue, cost, out);
                });
                if given_up {
                    break;
                }
            }
        }
    }

    pub(super) fn with_number(
        &mut self,
        number: u16,
        act: impl FnOnce(&mut Channel<T>, &mut Output<T>),
    ) {
        if let Some((channel, out)) = self.channel_mut(number) {
            act(channel, out);
        }
    }

    pub(super) fn find_mut(&mut self, id: ChannelId) -> Option<&mut Channel<T>> {
        let (channel, _) = self.channel_mut(id.number)?;
        (channel.id() == id).then_some(channel)
    }

    pub(super) fn with_channel(
        &mut self,
        id: ChannelId,
        act: impl FnOnce(&mut Channel<T>, &mut Output<T>),
    ) {
        if let Some((channel, out)) = self.channel_mut(id.number) {
            if channel.id() == id {
                act(channel, out);
            }
        }
    }
}

fn method_id(frame: Frame<'_>) -> Option<MethodId> {
    match frame {
        Frame::Method { payload, .. } => split_method(payload).ok().map(|(id, _)| id),
        _ => None,
    }
}

/// Returns whether a frame is the close or close-ok of the connection.
fn is_end(frame: Frame<'_>) -> bool {
    matches!(frame, Frame::Method { channel: 0, .. })
        && matches!(
            method_id(frame),
            Some(connection::Close::ID | connection::CloseOk::ID)
        )
}
