//! TLS and the AMQP handshake with one address, in steps that never block.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
#[cfg(feature = "native-tls")]
use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsStream};

use super::{Cause, Failure, Target};
#[cfg(feature = "native-tls")]
use crate::io::driver::tls::{TlsSocket, TlsTransport};
use crate::io::driver::transport::Transport;
use crate::protocol::frame::FrameDecoder;
use crate::protocol::handshake::{Handshake, Negotiated, Offer};
use crate::protocol::secret::Secret;
use crate::protocol::stage::Stage;

/// The most reads after a failed write. The peer may have sent the reason before.
const LAST_READS_MAX: usize = 16;

/// The state of TLS and of the AMQP handshake with one address.
pub(super) enum Negotiation {
    #[cfg(feature = "native-tls")]
    Tls(Box<TlsHandshake>),
    Amqp(Box<AmqpHandshake>),
}

/// The result of one step.
pub(super) enum Progress {
    /// The next step needs a ready socket.
    Waiting(Negotiation),
    /// The next step is possible at once.
    Ready(Negotiation),
    /// The connection is open.
    Done(OpenStream),
}

/// The open stream for the IO thread, its decoder, and the outcome of the handshake.
pub(super) type OpenStream = (Transport, FrameDecoder, Negotiated);

impl Negotiation {
    /// Begins with a socket that is connected.
    #[cfg(not(feature = "native-tls"))]
    pub(super) fn begin(
        _: &Target,
        address: String,
        socket: TcpStream,
        offer: Offer,
    ) -> Result<Self, Failure> {
        Ok(Self::over_stream(Transport::Plain(socket), address, offer))
    }

    /// Begins with a socket that is connected.
    #[cfg(feature = "native-tls")]
    pub(super) fn begin(
        target: &Target,
        address: String,
        socket: TcpStream,
        offer: Offer,
    ) -> Result<Self, Failure> {
        match &target.tls {
            Some(tls) => {
                let outcome = tls
                    .connector
                    .connect(&tls.server_name, TlsSocket::new(socket));
                Self::after_tls(outcome, address, offer)
            }
            None => Ok(Self::over_stream(Transport::Plain(socket), address, offer)),
        }
    }

    #[cfg(feature = "native-tls")]
    fn after_tls(
        outcome: Result<TlsStream<TlsSocket>, HandshakeError<TlsSocket>>,
        address: String,
        offer: Offer,
    ) -> Result<Self, Failure> {
        match outcome {
            Ok(stream) => Ok(Self::over_stream(
                Transport::Tls(Box::new(TlsTransport::new(stream))),
                address,
                offer,
            )),
            Err(HandshakeError::WouldBlock(unfinished)) => Ok(Self::Tls(Box::new(TlsHandshake {
                address,
                unfinished,
                offer,
            }))),
            Err(HandshakeError::Failure(error)) => {
                let cause = Cause::Tls(error.to_string());
                Err(Failure::new(Stage::Tls, address, cause))
            }
        }
    }

    fn over_stream(transport: Transport, address: String, offer: Offer) -> Self {
        Self::Amqp(Box::new(AmqpHandshake {
            address,
            transport,
            handshake: Handshake::new(offer),
            output: Secret::default(),
            written: 0,
        }))
    }

    /// Returns whether the peer has sent `connection.start`.
    pub(super) fn has_answered(&self) -> bool {
        match self {
            #[cfg(feature = "native-tls")]
            Self::Tls(_) => false,
            Self::Amqp(amqp) => amqp.handshake.stage() > Stage::Header,
        }
    }

    /// Makes one step, with at most one read of AMQP. Between the steps the caller checks the
    /// deadline, so that a peer which sends without end cannot exceed it.
    pub(super) fn advance(self) -> Result<Progress, Failure> {
        match self {
            #[cfg(feature = "native-tls")]
            Self::Tls(tls) => tls.advance(),
            Self::Amqp(amqp) => amqp.advance(),
        }
    }

    /// Ends the negotiation for this cause.
    pub(super) fn fail(self, cause: Cause) -> Failure {
        match self {
            #[cfg(feature = "native-tls")]
            Self::Tls(tls) => Failure::new(Stage::Tls, tls.address, cause),
            Self::Amqp(amqp) => amqp.fail(cause),
        }
    }
}

/// A TLS handshake in progress.
#[cfg(feature = "native-tls")]
pub(super) struct TlsHandshake {
    address: String,
    unfinished: MidHandshakeTlsStream<TlsSocket>,
    /// For the AMQP handshake, which follows.
    offer: Offer,
}

#[cfg(feature = "native-tls")]
impl TlsHandshake {
    fn advance(self) -> Result<Progress, Failure> {
        let negotiation =
            Negotiation::after_tls(self.unfinished.handshake(), self.address, self.offer)?;
        Ok(match negotiation {
            Negotiation::Tls(_) => Progress::Waiting(negotiation),
            Negotiation::Amqp(_) => Progress::Ready(negotiation),
        })
    }
}

/// An AMQP handshake in progress.
pub(super) struct AmqpHandshake {
    address: String,
    transport: Transport,
    handshake: Handshake,
    /// The output of the handshake that is being written.
    output: Secret,
    /// The number of written bytes of `output`.
    written: usize,
}

impl AmqpHandshake {
    fn advance(mut self: Box<Self>) -> Result<Progress, Failure> {
        match self.exchange() {
            Ok(true) => {
                let (decoder, negotiated) = self.handshake.finish();
                Ok(Progress::Done((self.transport, decoder, negotiated)))
            }
            Ok(false) => Ok(Progress::Ready(Negotiation::Amqp(self))),
            Err(Cause::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Progress::Waiting(Negotiation::Amqp(self)))
            }
            Err(Cause::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {
                Ok(Progress::Ready(Negotiation::Amqp(self)))
            }
            Err(cause) => Err(self.fail(cause)),
        }
    }

    /// Writes all output of the handshake, then reads once. Returns whether the connection is open.
    fn exchange(&mut self) -> Result<bool, Cause> {
        if let Err(error) = self.write() {
            let reason = match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => None,
                _ => self.read_reason(),
            };
            return Err(reason.unwrap_or_else(|| self.cause(error)));
        }
        match self.transport.read(self.handshake.space()) {
            Ok(0) => Err(Cause::EndOfStream),
            Ok(count) => self.handshake.received(count).map_err(Cause::Handshake),
            Err(error) => Err(self.cause(error)),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        loop {
            let rest = self.output.as_bytes().get(self.written..);
            let rest = rest.unwrap_or_default();
            if !rest.is_empty() {
                match self.transport.write(rest)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => self.written += count,
                }
                continue;
            }
            self.output = self.handshake.take_output();
            self.written = 0;
            if self.output.as_bytes().is_empty() {
                return Ok(());
            }
        }
    }

    /// Returns the reason that the peer sent before it closed the stream, if there is one.
    fn read_reason(&mut self) -> Option<Cause> {
        for _ in 0..LAST_READS_MAX {
            match self.transport.read(self.handshake.space()) {
                Ok(0) => return None,
                Ok(count) => match self.handshake.received(count) {
                    Ok(_) => {}
                    Err(failure) => return Some(Cause::Handshake(failure)),
                },
                Err(error) => return self.tls_cause(&error),
            }
        }
        None
    }

    fn cause(&self, error: io::Error) -> Cause {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Cause::EndOfStream,
            _ => self.tls_cause(&error).unwrap_or(Cause::Io(error)),
        }
    }

    /// Returns the cause of a TLS error, which is recognized by its missing system error code.
    #[cfg(feature = "native-tls")]
    fn tls_cause(&self, error: &io::Error) -> Option<Cause> {
        let is_of_tls = self.transport.is_tls()
            && error.raw_os_error().is_none()
            && error.kind() == io::ErrorKind::Other;
        is_of_tls.then(|| Cause::Tls(error.to_string()))
    }

    #[cfg(not(feature = "native-tls"))]
    fn tls_cause(&self, _: &io::Error) -> Option<Cause> {
        None
    }

    /// Ends the handshake for this cause.
    fn fail(mut self, cause: Cause) -> Failure {
        // A broker that has sent `connection.close` gets its close-ok. A failed write changes
        // nothing, because the opening fails anyway.
        let _ = self
            .transport
            .write(self.handshake.take_output().as_bytes());
        self.transport.shut_down();
        Failure {
            mechanism: self.handshake.mechanism().map(str::to_owned),
            answer_size: self.handshake.answer_size(),
            ..Failure::new(self.handshake.stage(), self.address, cause)
        }
    }
}
