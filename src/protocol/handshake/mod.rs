//! The handshake: from the protocol header to an open connection.
//!
//! ```text
//!  protocol header ->            Header: expects connection.start
//!  <- start    start-ok ->       Start:  expects tune (or secure)
//!  <- secure   secure-ok ->      Start
//!  <- tune     tune-ok, open ->  Open:   expects open-ok
//!  <- open-ok                    done
//! ```
//!
//! In every state the broker may send `connection.close`. RabbitMQ does so for wrong credentials
//! (403), a wrong virtual host (530) and limits that it does not accept (530). After an unknown
//! mechanism or a frame beyond its limit it closes the stream without an answer, after some
//! seconds.
//!
//! Rules: AMQP 0-9-1 specification, sections 2.2.4 and 4.2.2.

#[cfg(test)]
mod tests;

use std::fmt;

use super::close_reason::CloseReason;
use super::errors::{EncodeError, ProtocolError};
use super::frame::{
    FRAME_MIN_SIZE, Frame, FrameDecoder, PROTOCOL_HEADER, decode_method, encode_method,
};
use super::methods::{Method, connection};
use super::sasl::Mechanism;
use super::secret::{Secret, encode_secret};
use super::stage::Stage;
use super::table::FieldTable;
use super::wire::ShortString;

/// The largest frame before limits are negotiated, in both directions.
const INITIAL_FRAME_MAX: u32 = 128 * 1024;

/// The largest frame that every broker accepts before limits are negotiated. RabbitMQ's limit is
/// configured (`initial_frame_max`: 8192 by default, 4096 before 4.1), and it closes the stream
/// without an answer after a longer frame.
pub(crate) const INITIAL_FRAME_SAFE_BYTES: usize = 4096;

/// The smallest `frame_max` that every broker accepts. RabbitMQ from 4.1 on closes the stream
/// without an answer, after some seconds, if a smaller one is negotiated.
pub(crate) const FRAME_MAX_SAFE: u32 = 8192;

/// The version of the protocol in `connection.start`. 0-9-1 is revision 1 of 0-9.
const PROTOCOL_VERSION: (u8, u8) = (0, 9);

/// The locale that every broker must support (specification, connection.start).
const REQUIRED_LOCALE: &str = "en_US";

/// The `frame_max` if neither side has a limit.
const FRAME_MAX_UNLIMITED: u32 = 128 * 1024;

/// The parameters of the client.
pub(crate) struct Offer {
    pub(crate) client_properties: FieldTable,
    /// In order of preference.
    pub(crate) mechanisms: Vec<Box<dyn Mechanism>>,
    pub(crate) locale: ShortString,
    pub(crate) virtual_host: ShortString,
    /// For `channel_max` and `frame_max`, 0 means that the broker decides.
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    /// In seconds. `None`: heartbeats are off, even if the broker requests them. 0: the broker
    /// decides.
    pub(crate) heartbeat: Option<u16>,
}

/// The negotiated parameters.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Negotiated {
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    /// In seconds; 0: heartbeats are off.
    pub(crate) heartbeat: u16,
    pub(crate) server_properties: FieldTable,
}

/// The reason why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The broker uses another version of AMQP.
    Version([u8; 8]),
    /// The peer does not use AMQP. These are its first bytes.
    NotAmqp(Vec<u8>),
    /// The broker sent a close.
    Closed(CloseReason),
    /// The broker supports neither the client's locale nor `en_US`.
    NoLocale { offered: String },
    /// The broker supports none of the client's mechanisms.
    NoMechanism { offered: String },
    /// The mechanism has no answer to a challenge of the broker.
    NoAnswer { mechanism: String },
    /// A method of the handshake cannot be encoded.
    Encode(EncodeError),
    /// The broker violated the protocol.
    Protocol(ProtocolError),
}

/// The state of a handshake.
enum HandshakeState {
    Header,
    Start { mechanism: Box<dyn Mechanism> },
    Open,
    Done,
}

/// The client's side of a handshake: bytes go in, bytes come out.
pub(crate) struct Handshake {
    decoder: FrameDecoder,
    /// A `Secret`, because it contains credentials and must be wiped from memory.
    output: Secret,
    offer: Offer,
    negotiated: Negotiated,
    /// The size of the last start-ok or secure-ok, with its frame.
    answer_size: usize,
    state: HandshakeState,
}

impl Handshake {
    pub(crate) fn new(offer: Offer) -> Self {
        Self {
            decoder: FrameDecoder::new(INITIAL_FRAME_MAX),
            output: Secret::from(&PROTOCOL_HEADER),
            offer,
            negotiated: Negotiated {
                channel_max: 0,
                frame_max: 0,
                heartbeat: 0,
                server_properties: FieldTable::new(),
            },
            answer_size: 0,
            state: HandshakeState::Header,
        }
    }

    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.decoder.space()
    }

    /// Handles `count` received bytes. Returns `true` if the connection is open.
    pub(crate) fn received(&mut self, count: usize) -> Result<bool, HandshakeFailure> {
        self.decoder.filled(count);
        while !matches!(self.state, HandshakeState::Done) {
            let Some(method) = self.next_method()? else {
                return Ok(false);
            };
            self.step(method)?;
        }
        Ok(true)
    }

    /// Returns the bytes for the broker. After a failure these may be a close-ok.
    pub(crate) fn take_output(&mut self) -> Secret {
        std::mem::take(&mut self.output)
    }

    pub(crate) fn stage(&self) -> Stage {
        match self.state {
            HandshakeState::Header => Stage::Header,
            HandshakeState::Start { .. } => Stage::Start,
            HandshakeState::Open | HandshakeState::Done => Stage::Open,
        }
    }

    /// Returns the name of the mechanism in use.
    pub(crate) fn mechanism(&self) -> Option<&str> {
        match &self.state {
            HandshakeState::Start { mechanism } => Some(mechanism.name()),
            _ => None,
        }
    }

    /// Returns the size of the last start-ok or secure-ok, in bytes.
    pub(crate) fn answer_size(&self) -> usize {
        self.answer_size
    }

    /// Returns the decoder, which may contain bytes that arrived after open-ok, and the negotiated
    /// parameters.
    pub(crate) fn finish(self) -> (FrameDecoder, Negotiated) {
        (self.decoder, self.negotiated)
    }

    fn next_method(&mut self) -> Result<Option<Method>, HandshakeFailure> {
        let first_frame = matches!(self.state, HandshakeState::Header);
        let start: Vec<u8> = match first_frame {
            true => self.decoder.pending().iter().take(16).copied().collect(),
            false => Vec::new(),
        };
        let payload = loop {
            match self.decoder.next() {
                Ok(None) => return Ok(None),
                Ok(Some(Frame::Heartbeat)) => {}
                Ok(Some(Frame::Method {
                    channel: 0,
                    payload,
                })) => break payload,
                Err(ProtocolError::ProtocolHeader(header)) => {
                    return Err(HandshakeFailure::Version(header));
                }
                Err(_) if first_frame => return Err(HandshakeFailure::NotAmqp(start)),
                Err(error) => return Err(HandshakeFailure::Protocol(error)),
                Ok(Some(_)) => {
                    return Err(HandshakeFailure::Protocol(
                        ProtocolError::UnexpectedContent(
                            "a frame that is not a method of channel 0 arrived during the handshake",
                        ),
                    ));
                }
            }
        };
        decode_method(payload)
            .map(Some)
            .map_err(HandshakeFailure::Protocol)
    }

    fn step(&mut self, method: Method) -> Result<(), HandshakeFailure> {
        match (
            std::mem::replace(&mut self.state, HandshakeState::Done),
            method,
        ) {
            (state, Method::ConnectionClose(close)) => {
                self.state = state;
                self.send(connection::CloseOk::default())?;
                Err(HandshakeFailure::Closed(CloseReason::of_connection(&close)))
            }
            (HandshakeState::Header, Method::ConnectionStart(start)) => self.start(start),
            (HandshakeState::Start { mechanism }, Method::ConnectionSecure(secure)) => {
                self.secure(mechanism, &secure)
            }
            (HandshakeState::Start { .. }, Method::ConnectionTune(tune)) => self.tune(&tune),
            (HandshakeState::Open, Method::ConnectionOpenOk(_)) => Ok(()),
            (state, method) => {
                self.state = state;
                Err(HandshakeFailure::Protocol(
                    ProtocolError::UnexpectedMethod {
                        method: method.id(),
                        state: "out of order during the handshake",
                    },
                ))
            }
        }
    }

    fn start(&mut self, start: connection::Start) -> Result<(), HandshakeFailure> {
        self.state = HandshakeState::Header;
        // The version is checked before credentials are sent.
        let (major, minor) = (start.version_major, start.version_minor);
        if (major, minor) != PROTOCOL_VERSION {
            return Err(HandshakeFailure::Version([
                b'A', b'M', b'Q', b'P', 0, major, minor, 0,
            ]));
        }
        let offered = start.locales.to_string();
        if !lists(&offered, REQUIRED_LOCALE) && !lists(&offered, &self.offer.locale) {
            return Err(HandshakeFailure::NoLocale { offered });
        }
        let offered = start.mechanisms.to_string();
        let mut mechanisms = self.offer.mechanisms.iter();
        let position = mechanisms.position(|mechanism| lists(&offered, mechanism.name()));
        let Some(position) = position else {
            return Err(HandshakeFailure::NoMechanism { offered });
        };
        let mut mechanism = self.offer.mechanisms.swap_remove(position);
        let response = respond(&mut *mechanism, None)?;
        self.negotiated.server_properties = start.server_properties;
        let start_ok = connection::StartOk::default()
            .client_properties(self.offer.client_properties.clone())
            .mechanism(mechanism.name())
            .locale(self.offer.locale.clone());
        self.send_secret(start_ok, response, connection::StartOk::response)?;
        self.state = HandshakeState::Start { mechanism };
        Ok(())
    }

    fn secure(
        &mut self,
        mut mechanism: Box<dyn Mechanism>,
        secure: &connection::Secure,
    ) -> Result<(), HandshakeFailure> {
        let response = respond(&mut *mechanism, Some(&secure.challenge));
        self.state = HandshakeState::Start { mechanism };
        let secure_ok = connection::SecureOk::default();
        self.send_secret(secure_ok, response?, connection::SecureOk::response)
    }

    fn tune(&mut self, tune: &connection::Tune) -> Result<(), HandshakeFailure> {
        let negotiated = &mut self.negotiated;
        negotiated.channel_max = match combine(self.offer.channel_max, tune.channel_max) {
            0 => u16::MAX,
            max => max,
        };
        negotiated.frame_max = match combine(self.offer.frame_max, tune.frame_max) {
            0 => FRAME_MAX_UNLIMITED,
            max => max,
        };
        if negotiated.frame_max < FRAME_MIN_SIZE {
            return Err(HandshakeFailure::Protocol(ProtocolError::FrameTooLarge {
                size: FRAME_MIN_SIZE,
                limit: negotiated.frame_max,
            }));
        }
        negotiated.heartbeat = match self.offer.heartbeat {
            None => 0,
            Some(ours) => combine(ours, tune.heartbeat),
        };
        self.decoder.set_frame_max(negotiated.frame_max);
        let tune_ok = connection::TuneOk::default()
            .channel_max(negotiated.channel_max)
            .frame_max(negotiated.frame_max)
            .heartbeat(negotiated.heartbeat);
        self.send(tune_ok)?;
        let open = connection::Open::new(self.offer.virtual_host.clone());
        self.send(open)?;
        self.state = HandshakeState::Open;
        Ok(())
    }

    fn send(&mut self, method: impl Into<Method>) -> Result<(), HandshakeFailure> {
        let mut frame = Vec::new();
        encode_method(&mut frame, 0, &method.into(), INITIAL_FRAME_MAX as usize)?;
        self.output.append(&frame);
        Ok(())
    }

    fn send_secret<M: Clone + Into<Method>>(
        &mut self,
        bare: M,
        secret: Secret,
        fill: impl FnOnce(M, Secret) -> M,
    ) -> Result<(), HandshakeFailure> {
        let frame = encode_secret(bare, secret, fill, INITIAL_FRAME_MAX as usize)?;
        self.answer_size = frame.as_bytes().len();
        self.output.append(frame.as_bytes());
        Ok(())
    }
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without output and mechanisms, which contain secrets.
        f.debug_struct("Handshake")
            .field("stage", &self.stage())
            .finish_non_exhaustive()
    }
}

impl From<EncodeError> for HandshakeFailure {
    fn from(error: EncodeError) -> Self {
        // No part of a start-ok has a limit of its own, so the error names all of them.
        let what = match error.what.as_str() {
            "connection.start-ok (frame)" => {
                "connection.start-ok (client properties, connection name and credentials)".into()
            }
            _ => error.what,
        };
        let flaw = error.flaw;
        Self::Encode(EncodeError { what, flaw })
    }
}

/// Returns whether a list of names, separated by spaces, contains `name`.
fn lists(names: &str, name: &str) -> bool {
    let mut names = names.split_ascii_whitespace();
    names.any(|listed| listed.eq_ignore_ascii_case(name))
}

/// Returns the smaller of two limits, of which 0 means that the other side decides.
pub(crate) fn combine<T: Ord + Default>(a: T, b: T) -> T {
    let zero = T::default();
    if a == zero {
        b
    } else if b == zero {
        a
    } else {
        a.min(b)
    }
}

fn respond(
    mechanism: &mut dyn Mechanism,
    challenge: Option<&[u8]>,
) -> Result<Secret, HandshakeFailure> {
    mechanism
        .respond(challenge)
        .ok_or_else(|| HandshakeFailure::NoAnswer {
            mechanism: mechanism.name().to_owned(),
        })
}
