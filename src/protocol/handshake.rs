//! From the protocol header to an open connection.
//!
//! ```text
//!  protocol header ->            Header: awaits connection.start
//!  <- start    start-ok ->       Start:  awaits tune (or secure)
//!  <- secure   secure-ok ->      Start
//!  <- tune     tune-ok, open ->  Open:   awaits open-ok
//!  <- open-ok                    done
//! ```
//!
//! In every state the broker may answer with connection.close; RabbitMQ does so for
//! wrong credentials (403), a wrong virtual host (530) and limits it does not like
//! (530). It says nothing at all, and hangs up after some seconds, on an unknown
//! mechanism or a frame over its limit.
//!
//! Rules: AMQP 0-9-1 specification, sections 2.2.4 and 4.2.2.

use std::fmt;

use super::errors::{EncodeError, ProtocolError};
use super::frame::{FRAME_MIN_SIZE, Frame, FrameDecoder, PROTOCOL_HEADER, encode_method};
use super::methods::{Method, MethodId, connection};
use super::reply_code::CloseReason;
use super::secret::{Secret, encode_secret};
use super::table::FieldTable;
use super::wire::{Reader, ShortString};

/// The largest frame that goes out or comes in before limits are agreed.
const INITIAL_FRAME_MAX: u32 = 128 * 1024;

/// The largest one that every broker takes. What RabbitMQ takes is configured
/// (`initial_frame_max`, 8192 by default, before 4.1 this), and it hangs up on a longer one
/// without a word.
pub(crate) const INITIAL_FRAME_SAFE: usize = 4096;

/// The version of the protocol, as brokers introduce it: 0-9-1 is the revision 1 of 0-9.
const VERSION: (u8, u8) = (0, 9);

/// The language that every broker has to have (specification, connection.start).
const LOCALE: &str = "en_US";

/// What is used where neither side names a limit.
const FRAME_MAX_UNLIMITED: u32 = 128 * 1024;

/// How far the opening of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The host's name is being resolved.
    Resolve,
    /// The TCP connection is being made.
    Tcp,
    /// TLS is being set up.
    Tls,
    /// The protocol header is sent; the broker should introduce itself.
    Header,
    /// The client has introduced itself; the broker checks its credentials.
    Start,
    /// Limits are agreed and the virtual host is asked for.
    Open,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "while the host name was being resolved",
            Self::Tcp => "while TCP was connecting",
            Self::Tls => "while TLS was being set up",
            Self::Header => "after the protocol header was sent",
            Self::Start => "while the broker checked the credentials",
            Self::Open => "while the virtual host was being opened",
        })
    }
}

/// A way to prove who one is: a SASL mechanism (RFC 4422) of your own, for
/// [`Credentials::custom`](crate::Credentials::custom).
///
/// The broker names its mechanisms. The one that is chosen speaks first; then it answers
/// what the broker asks, if it asks something, until the broker is content or hangs up.
/// All of this happens inside [`open`](crate::BlockingConnection::open), on its thread,
/// and counts towards `handshake_timeout`, so do not wait for anything in here.
///
/// RabbitMQ has one that is there to try this out, if it is told to (`auth_mechanisms`):
///
/// ```
/// use cony::{BlockingConnection, ConnectionParameters, Credentials, Mechanism, Secret};
///
/// struct Demo;
///
/// impl Mechanism for Demo {
///     fn name(&self) -> &str {
///         "RABBIT-CR-DEMO"
///     }
///
///     fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
///         match challenge {
///             None => Some("guest".into()),
///             Some(b"Please tell me your password") => Some("My password is guest".into()),
///             Some(_) => None,
///         }
///     }
/// }
///
/// # let url = std::env::var("AMQP_URL").expect("AMQP_URL names a broker");
/// # /*
/// let url = "amqp://localhost";
/// # */
/// let parameters: ConnectionParameters = url.parse()?;
/// let credentials = Credentials::custom(|| Demo).or(Credentials::default());
/// let parameters = parameters.credentials(credentials);
/// BlockingConnection::open(parameters)?.close()?;
/// # Ok::<(), cony::Error>(())
/// ```
pub trait Mechanism {
    /// Its name, as brokers announce it.
    fn name(&self) -> &str;

    /// The answer to `challenge`, or the initial response if there is none yet.
    /// `None`: there is no answer; the opening fails with
    /// [`ConnectFailure::NoAnswer`](crate::ConnectFailure::NoAnswer).
    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret>;
}

/// What the client asks for.
pub(crate) struct Offer {
    pub(crate) client_properties: FieldTable,
    /// In order of preference.
    pub(crate) mechanisms: Vec<Box<dyn Mechanism>>,
    pub(crate) locale: ShortString,
    pub(crate) virtual_host: ShortString,
    /// For these two, 0 means that the broker decides.
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    /// In seconds. `None`: off whatever the broker says; 0: the broker decides.
    pub(crate) heartbeat: Option<u16>,
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Negotiated {
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    /// In seconds; 0: off.
    pub(crate) heartbeat: u16,
    pub(crate) server_properties: FieldTable,
}

/// Why no connection came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The peer speaks another version of AMQP.
    Version([u8; 8]),
    /// What came is no AMQP at all; its first bytes.
    NotAmqp(Vec<u8>),
    /// The broker refused.
    Closed(CloseReason),
    /// The broker has no language that we know.
    NoLocale { offered: String },
    /// The broker takes none of our mechanisms.
    NoMechanism { offered: String },
    /// The broker asked for more proof than the mechanism has.
    NoAnswer { mechanism: String },
    /// What we would have to say cannot be sent.
    Encode(EncodeError),
    /// The peer broke the protocol.
    Protocol(ProtocolError),
}

/// Where the handshake stands.
enum HandshakeState {
    Header,
    Start { mechanism: Box<dyn Mechanism> },
    Open,
    Done,
}

/// The client's side of the handshake: bytes in, bytes out.
pub(crate) struct Handshake {
    decoder: FrameDecoder,
    /// Wiped, for it holds secrets.
    output: Secret,
    offer: Offer,
    negotiated: Negotiated,
    /// How large the last start-ok or secure-ok was, as a frame.
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

    /// Takes in `count` bytes. `Ok(true)`: the connection is open.
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

    /// Bytes for the peer; also after a failure, when it is owed a close-ok.
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

    /// The name of the mechanism in use.
    pub(crate) fn mechanism(&self) -> Option<&str> {
        match &self.state {
            HandshakeState::Start { mechanism } => Some(mechanism.name()),
            _ => None,
        }
    }

    /// How large the last start-ok or secure-ok was, in bytes.
    pub(crate) fn answer_size(&self) -> usize {
        self.answer_size
    }

    /// The decoder, with what came behind open-ok still in it.
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
                            "something else than a method of channel 0 came during the handshake",
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
                        state: "during the handshake, out of order",
                    },
                ))
            }
        }
    }

    fn start(&mut self, start: connection::Start) -> Result<(), HandshakeFailure> {
        self.state = HandshakeState::Header;
        // Credentials are for a peer that speaks this protocol.
        let (major, minor) = (start.version_major, start.version_minor);
        if (major, minor) != VERSION {
            return Err(HandshakeFailure::Version([
                b'A', b'M', b'Q', b'P', 0, major, minor, 0,
            ]));
        }
        let offered = start.locales.to_string();
        if !lists(&offered, LOCALE) && !lists(&offered, &self.offer.locale) {
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
        // Neither the output nor the mechanisms: they hold secrets.
        f.debug_struct("Handshake")
            .field("stage", &self.stage())
            .finish_non_exhaustive()
    }
}

impl From<EncodeError> for HandshakeFailure {
    fn from(error: EncodeError) -> Self {
        // The parts of a start-ok have no limit of their own.
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

/// Whether a list of names, separated by spaces, has this one.
fn lists(names: &str, name: &str) -> bool {
    let mut names = names.split_ascii_whitespace();
    names.any(|listed| listed.eq_ignore_ascii_case(name))
}

/// The smaller of two limits, of which 0 means "the other side decides".
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

/// The method in the payload of a method frame.
pub(crate) fn decode_method(payload: &[u8]) -> Result<Method, ProtocolError> {
    let (id, mut arguments) = split_method(payload)?;
    match Method::read(id, &mut arguments) {
        None => Err(ProtocolError::UnknownMethod(id)),
        Some(result) => result.map_err(|error| ProtocolError::Malformed { method: id, error }),
    }
}

/// Which method a payload holds, and a reader at its arguments.
pub(crate) fn split_method(payload: &[u8]) -> Result<(MethodId, Reader<'_>), ProtocolError> {
    let mut reader = Reader::new(payload);
    let mut number = || {
        reader.u16().map_err(|_| {
            ProtocolError::UnexpectedContent("a method frame is too short for a method")
        })
    };
    let id = MethodId {
        class: number()?,
        method: number()?,
    };
    Ok((id, reader))
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

#[cfg(test)]
mod tests {
    use super::super::errors::Flaw;
    use super::super::frame::tests::feed;
    use super::*;

    struct Fixed(&'static str, &'static str);

    impl Mechanism for Fixed {
        fn name(&self) -> &str {
            self.0
        }

        fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
            challenge.is_none().then(|| self.1.into())
        }
    }

    fn offer() -> Offer {
        Offer {
            client_properties: FieldTable::new(),
            mechanisms: vec![Box::new(Fixed("PLAIN", "\0guest\0guest"))],
            locale: "en_US".into(),
            virtual_host: "/".into(),
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: Some(60),
        }
    }

    fn frame(method: impl Into<Method>) -> Vec<u8> {
        let mut out = Vec::new();
        encode_method(&mut out, 0, &method.into(), 1 << 20).unwrap();
        out
    }

    fn receive(handshake: &mut Handshake, bytes: &[u8]) -> Result<bool, HandshakeFailure> {
        feed(&mut handshake.decoder, bytes);
        handshake.received(0)
    }

    fn sent(handshake: &mut Handshake) -> Vec<Method> {
        let mut decoder = FrameDecoder::new(1 << 20);
        feed(&mut decoder, handshake.take_output().as_bytes());
        let mut methods = Vec::new();
        while let Some(frame) = decoder.next().unwrap() {
            let Frame::Method {
                channel: 0,
                payload,
            } = frame
            else {
                panic!("{frame:?}");
            };
            methods.push(decode_method(payload).unwrap());
        }
        methods
    }

    fn tune(channel_max: u16, frame_max: u32, heartbeat: u16) -> connection::Tune {
        connection::Tune::default()
            .channel_max(channel_max)
            .frame_max(frame_max)
            .heartbeat(heartbeat)
    }

    /// A handshake that waits for tune.
    fn to_tune(offer: Offer) -> Handshake {
        let mut handshake = Handshake::new(offer);
        assert_eq!(handshake.take_output().as_bytes(), PROTOCOL_HEADER);
        let start = connection::Start::default().mechanisms("AMQPLAIN PLAIN");
        assert_eq!(receive(&mut handshake, &frame(start)), Ok(false));
        handshake
    }

    #[test]
    fn the_whole_way() {
        let mut handshake = to_tune(offer());
        assert_eq!(handshake.stage(), Stage::Start);
        let [Method::ConnectionStartOk(start_ok)] = &sent(&mut handshake)[..] else {
            panic!("start-ok is due");
        };
        assert_eq!(start_ok.mechanism, "PLAIN");
        assert_eq!(start_ok.response.as_bytes(), b"\0guest\0guest");
        assert_eq!(
            receive(&mut handshake, &frame(tune(0, 4096, 580))),
            Ok(false)
        );
        assert_eq!(handshake.stage(), Stage::Open);
        assert_eq!(
            sent(&mut handshake),
            [
                Method::from(
                    connection::TuneOk::default()
                        .channel_max(2047)
                        .frame_max(4096)
                        .heartbeat(60)
                ),
                connection::Open::new("/").into(),
            ]
        );
        let mut bytes = frame(connection::OpenOk::default());
        bytes.extend(frame(connection::Unblocked::default()));
        assert_eq!(receive(&mut handshake, &bytes), Ok(true));
        let (mut decoder, negotiated) = handshake.finish();
        assert_eq!(negotiated.frame_max, 4096);
        assert!(decoder.next().unwrap().is_some(), "what follows is kept");
    }

    #[test]
    fn every_chunking_is_the_same() {
        let mut bytes = frame(connection::Start::default());
        bytes.extend(frame(tune(2047, 131_072, 60)));
        bytes.extend(frame(connection::OpenOk::default()));
        let mut handshake = Handshake::new(offer());
        let (last, rest) = bytes.split_last().unwrap();
        for byte in rest {
            assert_eq!(receive(&mut handshake, &[*byte]), Ok(false));
        }
        assert_eq!(receive(&mut handshake, &[*last]), Ok(true));
    }

    #[test]
    fn zero_means_that_the_other_side_decides() {
        for (ours, theirs, agreed) in [
            ((0, 0), (0, 0), (u16::MAX, 131_072)),
            ((0, 0), (100, 8192), (100, 8192)),
            ((100, 8192), (0, 0), (100, 8192)),
            ((100, 8192), (50, 131_072), (50, 8192)),
        ] {
            let mut handshake = to_tune(Offer {
                channel_max: ours.0,
                frame_max: ours.1,
                ..offer()
            });
            receive(&mut handshake, &frame(tune(theirs.0, theirs.1, 0))).unwrap();
            let negotiated = &handshake.negotiated;
            assert_eq!((negotiated.channel_max, negotiated.frame_max), agreed);
        }
    }

    #[test]
    fn frames_smaller_than_the_smallest_are_refused() {
        for (theirs, agreed) in [(4096, true), (4095, false), (1, false)] {
            let mut handshake = to_tune(offer());
            let outcome = receive(&mut handshake, &frame(tune(0, theirs, 0)));
            assert_eq!(outcome.is_ok(), agreed, "{theirs}");
        }
    }

    #[test]
    fn heartbeats_are_the_smaller_interval_unless_switched_off() {
        for (ours, theirs, agreed) in [
            (None, 60, 0),
            (Some(0), 60, 60),
            (Some(10), 60, 10),
            (Some(60), 10, 10),
            (Some(60), 0, 60),
        ] {
            let mut handshake = to_tune(Offer {
                heartbeat: ours,
                ..offer()
            });
            receive(&mut handshake, &frame(tune(0, 0, theirs))).unwrap();
            assert_eq!(handshake.negotiated.heartbeat, agreed);
        }
    }

    #[test]
    fn a_close_is_answered_and_told_in_every_state() {
        let close = frame(
            connection::Close::default()
                .reply_code(530)
                .reply_text("NOT_ALLOWED")
                .class_id(10)
                .method_id(40),
        );
        let mut at_header = Handshake::new(offer());
        at_header.take_output();
        let mut at_start = to_tune(offer());
        sent(&mut at_start);
        let mut at_open = to_tune(offer());
        receive(&mut at_open, &frame(tune(0, 0, 0))).unwrap();
        sent(&mut at_open);
        for (mut handshake, stage) in [
            (at_header, Stage::Header),
            (at_start, Stage::Start),
            (at_open, Stage::Open),
        ] {
            let failure = receive(&mut handshake, &close).unwrap_err();
            let HandshakeFailure::Closed(reason) = failure else {
                panic!("{failure:?}");
            };
            assert_eq!(reason.code, ReplyCodeOf::NOT_ALLOWED);
            assert_eq!(reason.method, Some(connection::Open::ID));
            assert_eq!(handshake.stage(), stage);
            assert_eq!(
                sent(&mut handshake),
                [connection::CloseOk::default().into()]
            );
        }
    }

    use super::super::reply_code::ReplyCode as ReplyCodeOf;

    #[test]
    fn what_is_no_amqp_is_shown() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request"[..],
            b"\x15\x03\x01\0\x02\x02\x46",
            b"SSH-2.0",
        ] {
            let failure = receive(&mut Handshake::new(offer()), bytes).unwrap_err();
            let start = bytes.iter().take(16).copied().collect();
            assert_eq!(failure, HandshakeFailure::NotAmqp(start));
        }
        assert_eq!(
            receive(&mut Handshake::new(offer()), b"AMQP\x03\x01\0\0"),
            Err(HandshakeFailure::Version(*b"AMQP\x03\x01\0\0"))
        );
    }

    #[test]
    fn no_common_mechanism_names_what_the_broker_has() {
        let start = connection::Start::default().mechanisms("EXTERNAL GSSAPI");
        assert_eq!(
            receive(&mut Handshake::new(offer()), &frame(start)),
            Err(HandshakeFailure::NoMechanism {
                offered: "EXTERNAL GSSAPI".into()
            })
        );
    }

    #[test]
    fn a_peer_that_does_not_speak_this_protocol_gets_no_credentials() {
        let start = connection::Start::default;
        for (start, failure) in [
            (
                start().version_major(8).version_minor(0),
                HandshakeFailure::Version(*b"AMQP\0\x08\0\0"),
            ),
            (
                start().version_minor(10),
                HandshakeFailure::Version(*b"AMQP\0\0\x0a\0"),
            ),
            (
                start().locales("de_DE en_USA"),
                HandshakeFailure::NoLocale {
                    offered: "de_DE en_USA".into(),
                },
            ),
            (
                start().locales(""),
                HandshakeFailure::NoLocale {
                    offered: String::new(),
                },
            ),
        ] {
            let mut handshake = Handshake::new(offer());
            handshake.take_output();
            assert_eq!(receive(&mut handshake, &frame(start)), Err(failure));
            assert!(handshake.take_output().as_bytes().is_empty());
            assert_eq!(handshake.stage(), Stage::Header);
        }
    }

    #[test]
    fn the_language_of_every_broker_will_do_and_so_will_the_one_asked_for() {
        for (ours, theirs) in [
            ("de_DE", "en_US"),
            ("de_DE", "de_DE"),
            ("en_US", "de_DE en_us"),
        ] {
            let mut handshake = Handshake::new(Offer {
                locale: ours.into(),
                ..offer()
            });
            let start = connection::Start::default().locales(theirs);
            assert_eq!(receive(&mut handshake, &frame(start)), Ok(false));
            assert_eq!(handshake.stage(), Stage::Start);
        }
    }

    #[test]
    fn a_challenge_that_the_mechanism_cannot_answer_is_named() {
        let mut handshake = to_tune(offer());
        assert_eq!(
            receive(&mut handshake, &frame(connection::Secure::default())),
            Err(HandshakeFailure::NoAnswer {
                mechanism: "PLAIN".into()
            })
        );
    }

    /// Asks back as often as there are answers.
    struct Chatty(Vec<&'static str>);

    impl Mechanism for Chatty {
        fn name(&self) -> &str {
            "CHATTY"
        }

        fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
            match challenge {
                None => Some("hello".into()),
                Some(_) => self.0.pop().map(Secret::from),
            }
        }
    }

    #[test]
    fn every_challenge_is_answered_in_turn() {
        let mut handshake = Handshake::new(Offer {
            mechanisms: vec![Box::new(Chatty(vec!["second", "first"]))],
            ..offer()
        });
        handshake.take_output();
        let mut bytes = frame(connection::Start::default().mechanisms("PLAIN CHATTY"));
        bytes.extend(frame(connection::Secure::default()));
        bytes.extend(frame(connection::Secure::default()));
        assert_eq!(receive(&mut handshake, &bytes), Ok(false));
        let answers: Vec<_> = sent(&mut handshake)
            .into_iter()
            .map(|method| match method {
                Method::ConnectionStartOk(start_ok) => start_ok.response,
                Method::ConnectionSecureOk(secure_ok) => secure_ok.response,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(answers, ["hello", "first", "second"].map(Secret::from));
        assert_eq!(handshake.mechanism(), Some("CHATTY"));
    }

    #[test]
    fn the_first_mechanism_that_the_broker_has_too_is_used() {
        for (broker, used) in [
            ("PLAIN EXTERNAL", "EXTERNAL"),
            ("PLAIN AMQPLAIN", "PLAIN"),
            ("amqplain", "AMQPLAIN"),
        ] {
            let ours = ["EXTERNAL", "PLAIN", "AMQPLAIN"];
            let mut handshake = Handshake::new(Offer {
                mechanisms: ours
                    .iter()
                    .map(|name| Box::new(Fixed(name, "")) as Box<dyn Mechanism>)
                    .collect(),
                ..offer()
            });
            let start = connection::Start::default().mechanisms(broker);
            receive(&mut handshake, &frame(start)).unwrap();
            assert_eq!(handshake.mechanism(), Some(used));
        }
    }

    #[test]
    fn methods_out_of_order_and_content_are_errors() {
        let mut handshake = Handshake::new(offer());
        assert!(matches!(
            receive(&mut handshake, &frame(connection::OpenOk::default())),
            Err(HandshakeFailure::Protocol(
                ProtocolError::UnexpectedMethod { .. }
            ))
        ));
        let mut handshake = to_tune(offer());
        assert!(matches!(
            receive(&mut handshake, b"\x03\0\x01\0\0\0\x01x\xce"),
            Err(HandshakeFailure::Protocol(
                ProtocolError::UnexpectedContent(_)
            ))
        ));
    }

    #[test]
    fn a_start_ok_over_the_limit_stays_here() {
        let mut handshake = Handshake::new(Offer {
            client_properties: FieldTable::from([("fat", "x".repeat(140_000))]),
            ..offer()
        });
        handshake.take_output();
        assert!(matches!(
            receive(&mut handshake, &frame(connection::Start::default())),
            Err(HandshakeFailure::Encode(EncodeError { what, flaw: Flaw::TooLong { limit: 131_072, .. } }))
                if what.contains("connection name")
        ));
        assert!(handshake.take_output().as_bytes().is_empty());
    }
}
