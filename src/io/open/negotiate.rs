//! TLS and the AMQP handshake with one address, as far as they come without a wait.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
#[cfg(feature = "native-tls")]
use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsStream};

use super::{Cause, Failure, Target};
use crate::io::driver::transport::Transport;
use crate::protocol::frame::FrameDecoder;
use crate::protocol::handshake::{Handshake, Negotiated, Offer};
use crate::protocol::secret::Secret;
use crate::protocol::stage::Stage;

/// How many reads follow a write that has failed, to learn why.
const LAST_READS_MAX: usize = 16;

/// Where the handshake with an address stands.
pub(super) enum Talk {
    #[cfg(feature = "native-tls")]
    Tls(Box<Securing>),
    Amqp(Box<Amqp>),
}

/// How far it came.
pub(super) enum Progress {
    /// It goes on when the socket has something new to say.
    Waiting(Talk),
    /// It can go on at once.
    Ready(Talk),
    /// The connection is open.
    Done(Served),
}

/// The stream that the IO thread serves from now on, and the outcome of the handshake.
pub(super) type Served = (Transport, FrameDecoder, Negotiated);

impl Talk {
    /// Begins with a socket that is connected.
    #[cfg(not(feature = "native-tls"))]
    pub(super) fn begin(
        _: &Target,
        address: String,
        socket: TcpStream,
        offer: Offer,
    ) -> Result<Self, Failure> {
        Ok(Self::over(Transport::Plain(socket), address, offer))
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
                let outcome = tls.connector.connect(&tls.server_name, socket);
                Self::secured(outcome, address, offer)
            }
            None => Ok(Self::over(Transport::Plain(socket), address, offer)),
        }
    }

    #[cfg(feature = "native-tls")]
    fn secured(
        outcome: Result<TlsStream<TcpStream>, HandshakeError<TcpStream>>,
        address: String,
        offer: Offer,
    ) -> Result<Self, Failure> {
        match outcome {
            Ok(stream) => Ok(Self::over(Transport::Tls(Box::new(stream)), address, offer)),
            Err(HandshakeError::WouldBlock(unfinished)) => Ok(Self::Tls(Box::new(Securing {
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

    fn over(transport: Transport, address: String, offer: Offer) -> Self {
        Self::Amqp(Box::new(Amqp {
            address,
            transport,
            handshake: Handshake::new(offer),
            output: Secret::default(),
            written: 0,
        }))
    }

    /// Whether the peer has introduced itself.
    pub(super) fn is_introduced(&self) -> bool {
        match self {
            #[cfg(feature = "native-tls")]
            Self::Tls(_) => false,
            Self::Amqp(amqp) => amqp.handshake.stage() > Stage::Header,
        }
    }

    /// Goes on, for at most one read of AMQP, so that a peer which never stops talking prolongs
    /// nothing.
    pub(super) fn advance(self) -> Result<Progress, Failure> {
        match self {
            #[cfg(feature = "native-tls")]
            Self::Tls(tls) => tls.advance(),
            Self::Amqp(amqp) => amqp.advance(),
        }
    }

    /// Ends it, for this cause.
    pub(super) fn fail(self, cause: Cause) -> Failure {
        match self {
            #[cfg(feature = "native-tls")]
            Self::Tls(tls) => Failure::new(Stage::Tls, tls.address, cause),
            Self::Amqp(amqp) => amqp.fail(cause),
        }
    }
}

/// TLS that is being set up.
#[cfg(feature = "native-tls")]
pub(super) struct Securing {
    address: String,
    unfinished: MidHandshakeTlsStream<TcpStream>,
    /// For AMQP, which comes after it.
    offer: Offer,
}

#[cfg(feature = "native-tls")]
impl Securing {
    fn advance(self) -> Result<Progress, Failure> {
        let talk = Talk::secured(self.unfinished.handshake(), self.address, self.offer)?;
        Ok(match talk {
            Talk::Tls(_) => Progress::Waiting(talk),
            Talk::Amqp(_) => Progress::Ready(talk),
        })
    }
}

/// AMQP, over a stream that is ready for it.
pub(super) struct Amqp {
    address: String,
    transport: Transport,
    handshake: Handshake,
    /// The output that is being written, and how much of it is.
    output: Secret,
    written: usize,
}

impl Amqp {
    fn advance(mut self: Box<Self>) -> Result<Progress, Failure> {
        match self.exchange() {
            Ok(true) => {
                let (decoder, negotiated) = self.handshake.finish();
                Ok(Progress::Done((self.transport, decoder, negotiated)))
            }
            Ok(false) => Ok(Progress::Ready(Talk::Amqp(self))),
            Err(Cause::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                Ok(Progress::Waiting(Talk::Amqp(self)))
            }
            Err(Cause::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {
                Ok(Progress::Ready(Talk::Amqp(self)))
            }
            Err(cause) => Err(self.fail(cause)),
        }
    }

    /// Writes all output of the handshake, then reads once. `true`: the connection is open.
    fn exchange(&mut self) -> Result<bool, Cause> {
        if let Err(error) = self.write() {
            let words = match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => None,
                _ => self.last_words(),
            };
            return Err(words.unwrap_or_else(|| self.cause(error)));
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

    /// Why the peer takes nothing any more, if it has said so before it hung up.
    fn last_words(&mut self) -> Option<Cause> {
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

    /// The words of TLS, which are an error without a code of the system.
    #[cfg(feature = "native-tls")]
    fn tls_cause(&self, error: &io::Error) -> Option<Cause> {
        let own = self.transport.is_tls()
            && error.raw_os_error().is_none()
            && error.kind() == io::ErrorKind::Other;
        own.then(|| Cause::Tls(error.to_string()))
    }

    #[cfg(not(feature = "native-tls"))]
    fn tls_cause(&self, _: &io::Error) -> Option<Cause> {
        None
    }

    /// Ends it, for this cause.
    fn fail(mut self, cause: Cause) -> Failure {
        // A broker that closed is owed its close-ok; whether it arrives changes nothing.
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
