//! Opening a connection, on the thread of the caller and under one deadline: names,
//! TCP, TLS and the AMQP handshake, over the stream that the IO thread then takes over.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll};

use super::driver::{self, SOCKET};
use super::port::{ConnectionPort, Settings};
use super::transport::{self, SocketOptions, Transport};
use crate::protocol::handshake::{Handshake, HandshakeFailure, Offer, Stage};

/// How many reads follow a write that has failed, to learn why.
const LAST_READS: usize = 16;

/// Where to connect to, and within what bounds.
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) socket: SocketOptions,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
    /// For each address.
    pub(crate) socket_timeout: Duration,
    /// For everything together.
    pub(crate) handshake_timeout: Duration,
    pub(crate) settings: Settings,
}

/// How to set up TLS.
#[cfg(feature = "tls")]
pub(crate) struct Tls {
    pub(crate) connector: native_tls::TlsConnector,
    /// The name that the certificate must be for.
    pub(crate) server_name: String,
}

/// How far it came, and what stopped it.
#[derive(Debug)]
pub(crate) struct OpenError {
    pub(crate) stage: Stage,
    /// The address that was tried, or the host if there was none yet.
    pub(crate) address: String,
    /// The SASL mechanism in use.
    pub(crate) mechanism: Option<String>,
    /// How large the frame with our credentials was, if it came to that.
    pub(crate) answer_size: usize,
    pub(crate) cause: Cause,
}

impl OpenError {
    /// Before any mechanism was chosen.
    fn new(stage: Stage, address: String, cause: Cause) -> Self {
        Self {
            stage,
            address,
            mechanism: None,
            answer_size: 0,
            cause,
        }
    }

    /// Whether another address of the same broker would refuse just the same. Credentials
    /// that are refused must not be tried once for each address: brokers count that. Before
    /// `authentication_failure_close` there was no word for it, so a peer hangs up.
    fn is_refused(&self) -> bool {
        match self.stage {
            Stage::Start => self.cause.is_hang_up() || matches!(self.cause, Cause::Handshake(_)),
            Stage::Open => matches!(self.cause, Cause::Handshake(_)),
            _ => false,
        }
    }
}

#[derive(Debug)]
pub(crate) enum Cause {
    Io(io::Error),
    TimedOut(Duration),
    EndOfStream,
    #[cfg(feature = "tls")]
    Tls(String),
    Handshake(HandshakeFailure),
}

impl Cause {
    /// Whether the peer hung up without a word.
    pub(crate) fn is_hang_up(&self) -> bool {
        match self {
            Self::EndOfStream => true,
            // A peer that hangs up with something unread resets the connection.
            Self::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionAborted
            ),
            _ => false,
        }
    }
}

/// An open connection, and the thread that serves it.
pub(crate) type Opened = (Arc<ConnectionPort>, JoinHandle<()>);

/// Opens a connection; `offer` is made anew for each address.
pub(crate) fn open(target: Target, offer: impl Fn() -> Offer) -> Result<Opened, OpenError> {
    let start = Instant::now();
    let deadline = start + target.handshake_timeout;
    let addresses = transport::resolve(&target.host, target.port, deadline).map_err(|error| {
        let cause = io_cause(error, target.handshake_timeout);
        OpenError::new(Stage::Resolve, target.host.clone(), cause)
    })?;
    let attempt = |address| {
        let attempt = Attempt {
            target: &target,
            address,
            deadline,
        };
        attempt.run(offer())
    };
    first_of(addresses, attempt).map_err(|failure| {
        failure.unwrap_or_else(|| {
            let cause = Cause::Io(io::ErrorKind::NotFound.into());
            OpenError::new(Stage::Resolve, target.host.clone(), cause)
        })
    })
}

/// Attempts one address after the other until one succeeds, or refuses for good. Without a
/// success, the failure that tells most; `None` if there is no address.
fn first_of<T>(
    addresses: impl IntoIterator<Item = SocketAddr>,
    attempt: impl Fn(SocketAddr) -> Result<T, OpenError>,
) -> Result<T, Option<OpenError>> {
    let mut last = None;
    for address in addresses {
        match attempt(address) {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                log::debug!("{address}: {} {:?}", error.stage, error.cause);
                let is_refused = error.is_refused();
                last = Some(match last {
                    Some(last) => further(last, error),
                    None => error,
                });
                if is_refused {
                    break;
                }
            }
        }
    }
    Err(last)
}

/// Of two failures the one that came further, as the one that tells more: behind a name
/// there may be addresses where nobody listens at all.
fn further(one: OpenError, other: OpenError) -> OpenError {
    match other.stage >= one.stage {
        true => other,
        false => one,
    }
}

fn io_cause(error: io::Error, timeout: Duration) -> Cause {
    match error.kind() {
        io::ErrorKind::TimedOut => Cause::TimedOut(timeout),
        _ => Cause::Io(error),
    }
}

/// One try at one address.
struct Attempt<'a> {
    target: &'a Target,
    address: SocketAddr,
    deadline: Instant,
}

impl Attempt<'_> {
    fn run(&self, offer: Offer) -> Result<Opened, OpenError> {
        let timeout = self.target.socket_timeout.min(self.left());
        let mut socket = transport::connect(self.address, &self.target.socket, timeout)
            .map_err(|error| self.error(Stage::Tcp, io_cause(error, timeout)))?;
        let mut readiness = Readiness::new(&mut socket)
            .map_err(|error| self.error(Stage::Tcp, Cause::Io(error)))?;
        let mut transport = self.secure(socket, &mut readiness)?;
        let mut handshake = Handshake::new(offer);
        if let Err(cause) = self.shake_hands(&mut handshake, &mut transport, &mut readiness) {
            // A broker that closed is owed its close-ok; whether it arrives changes nothing.
            let _ = transport.write(handshake.take_output().as_bytes());
            transport.shut_down();
            return Err(OpenError {
                mechanism: handshake.mechanism().map(str::to_owned),
                answer_size: handshake.answer_size(),
                ..self.error(handshake.stage(), cause)
            });
        }
        let (decoder, negotiated) = handshake.finish();
        driver::spawn(
            readiness.poll,
            transport,
            decoder,
            negotiated,
            self.target.settings.clone(),
        )
        .map_err(|error| self.error(Stage::Open, Cause::Io(error)))
    }

    fn shake_hands(
        &self,
        handshake: &mut Handshake,
        transport: &mut Transport,
        readiness: &mut Readiness,
    ) -> Result<(), Cause> {
        loop {
            let output = handshake.take_output();
            if let Err(cause) = self.write_all(output.as_bytes(), transport, readiness) {
                return Err(self.last_words(handshake, transport).unwrap_or(cause));
            }
            // A peer that never stops talking must not prolong this.
            if self.left().is_zero() {
                return Err(Cause::TimedOut(self.timeout()));
            }
            match transport.read(handshake.space()) {
                Ok(0) => return Err(Cause::EndOfStream),
                Ok(count) => {
                    if handshake.received(count).map_err(Cause::Handshake)? {
                        return Ok(());
                    }
                }
                Err(error) => self.wait_for(error, readiness)?,
            }
        }
    }

    /// Why the peer takes nothing any more, if it has said so before it hung up.
    fn last_words(&self, handshake: &mut Handshake, transport: &mut Transport) -> Option<Cause> {
        for _ in 0..LAST_READS {
            match transport.read(handshake.space()) {
                Ok(0) => return None,
                Ok(count) => match handshake.received(count) {
                    Ok(_) => {}
                    Err(failure) => return Some(Cause::Handshake(failure)),
                },
                Err(error) => return self.tls_cause(&error),
            }
        }
        None
    }

    /// What TLS has to say, which it does as an error without a code of the system.
    #[cfg(feature = "tls")]
    fn tls_cause(&self, error: &io::Error) -> Option<Cause> {
        let own = self.target.tls.is_some()
            && error.raw_os_error().is_none()
            && error.kind() == io::ErrorKind::Other;
        own.then(|| Cause::Tls(error.to_string()))
    }

    #[cfg(not(feature = "tls"))]
    fn tls_cause(&self, _: &io::Error) -> Option<Cause> {
        None
    }

    fn write_all(
        &self,
        bytes: &[u8],
        transport: &mut Transport,
        readiness: &mut Readiness,
    ) -> Result<(), Cause> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match transport.write(rest) {
                Ok(0) => return Err(Cause::EndOfStream),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) => self.wait_for(error, readiness)?,
            }
        }
        Ok(())
    }

    /// Waits if that is all that `error` asks for.
    fn wait_for(&self, error: io::Error, readiness: &mut Readiness) -> Result<(), Cause> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => readiness.wait(self.deadline, self.timeout()),
            io::ErrorKind::UnexpectedEof => Err(Cause::EndOfStream),
            _ => Err(self.tls_cause(&error).unwrap_or(Cause::Io(error))),
        }
    }

    #[cfg(not(feature = "tls"))]
    fn secure(&self, socket: TcpStream, _: &mut Readiness) -> Result<Transport, OpenError> {
        Ok(Transport::Plain(socket))
    }

    #[cfg(feature = "tls")]
    fn secure(&self, socket: TcpStream, readiness: &mut Readiness) -> Result<Transport, OpenError> {
        use native_tls::HandshakeError::{Failure, WouldBlock};

        let Some(tls) = &self.target.tls else {
            return Ok(Transport::Plain(socket));
        };
        let mut outcome = tls.connector.connect(&tls.server_name, socket);
        loop {
            match outcome {
                Ok(stream) => return Ok(Transport::Tls(Box::new(stream))),
                Err(Failure(error)) => {
                    return Err(self.error(Stage::Tls, Cause::Tls(error.to_string())));
                }
                Err(WouldBlock(unfinished)) => {
                    readiness
                        .wait(self.deadline, self.timeout())
                        .map_err(|cause| self.error(Stage::Tls, cause))?;
                    outcome = unfinished.handshake();
                }
            }
        }
    }

    fn timeout(&self) -> Duration {
        self.target.handshake_timeout
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn error(&self, stage: Stage, cause: Cause) -> OpenError {
        OpenError::new(stage, self.address.to_string(), cause)
    }
}

/// Waits for the socket to have something new to say.
struct Readiness {
    poll: Poll,
    events: Events,
}

impl Readiness {
    fn new(socket: &mut TcpStream) -> io::Result<Self> {
        let poll = Poll::new()?;
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(socket, SOCKET, both)?;
        Ok(Self {
            poll,
            events: Events::with_capacity(4),
        })
    }

    fn wait(&mut self, deadline: Instant, timeout: Duration) -> Result<(), Cause> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Cause::TimedOut(timeout));
            }
            match self.poll.poll(&mut self.events, Some(left)) {
                Ok(()) if self.events.is_empty() => {}
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Cause::Io(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::protocol::failure::{CloseReason, ClosedBy};

    #[test]
    fn credentials_that_were_refused_are_for_no_other_address() {
        let refuses = |stage, cause| OpenError::new(stage, String::new(), cause).is_refused();
        let closed = || Cause::Handshake(HandshakeFailure::NotAmqp(Vec::new()));
        let reset = || Cause::Io(io::ErrorKind::ConnectionReset.into());
        for stage in [Stage::Start, Stage::Open] {
            assert!(refuses(stage, closed()));
        }
        assert!(refuses(Stage::Start, Cause::EndOfStream) && refuses(Stage::Start, reset()));
        // These got none, or they were taken.
        for stage in [Stage::Tcp, Stage::Tls, Stage::Header, Stage::Open] {
            assert!(!refuses(stage, Cause::EndOfStream) && !refuses(stage, reset()));
        }
        assert!(!refuses(Stage::Header, closed()));
        let late = Cause::TimedOut(Duration::from_secs(1));
        assert!(!refuses(Stage::Start, late));
    }

    #[test]
    fn of_several_addresses_the_one_that_came_furthest_is_told_of() {
        let at = |stage| OpenError::new(stage, format!("{stage:?}"), Cause::EndOfStream);
        for (one, other, told) in [
            (Stage::Tls, Stage::Tcp, Stage::Tls),
            (Stage::Tcp, Stage::Header, Stage::Header),
            (Stage::Tcp, Stage::Tcp, Stage::Tcp),
        ] {
            assert_eq!(further(at(one), at(other)).stage, told);
        }
    }

    /// How many of three addresses are attempted that all fail like this, and what is told.
    fn attempts(stage: Stage, cause: impl Fn() -> Cause) -> (usize, Stage) {
        let count = Cell::new(0);
        let addresses = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let outcome: Result<(), _> = first_of(addresses, |address| {
            count.set(count.get() + 1);
            Err(OpenError::new(stage, address.to_string(), cause()))
        });
        (count.get(), outcome.unwrap_err().unwrap().stage)
    }

    #[test]
    fn a_broker_that_refuses_is_asked_at_one_of_its_addresses_only() {
        let refused = |code: u16| {
            let reason = CloseReason::new(ClosedBy::Broker, code, "refused", None);
            Cause::Handshake(HandshakeFailure::Closed(reason))
        };
        assert_eq!(
            attempts(Stage::Start, || refused(403)),
            (1, Stage::Start),
            "credentials"
        );
        assert_eq!(
            attempts(Stage::Open, || refused(530)),
            (1, Stage::Open),
            "virtual host"
        );
        let hung_up = || Cause::EndOfStream;
        // So did brokers refuse credentials before they had a word for it.
        assert_eq!(attempts(Stage::Start, hung_up), (1, Stage::Start));
        assert_eq!(attempts(Stage::Header, hung_up), (3, Stage::Header));
        assert_eq!(attempts(Stage::Tcp, hung_up), (3, Stage::Tcp));
    }

    #[test]
    fn the_first_address_that_lets_in_is_the_last_that_is_tried() {
        let addresses = [1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let outcome = first_of(addresses, |address| match address.port() {
            1 => Err(OpenError::new(
                Stage::Tcp,
                address.to_string(),
                Cause::EndOfStream,
            )),
            port => Ok(port),
        });
        assert_eq!(outcome.ok(), Some(2));
        assert!(matches!(first_of([], Ok), Err(None)));
    }
}
