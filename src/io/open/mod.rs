//! Opens a connection under one deadline: name resolution, TCP, TLS and the AMQP handshake. The
//! result is a [`Link`]. For the first connection, [`start`] then starts the IO thread, which takes
//! over the stream. After a loss the IO thread has the next link opened on a thread of its own
//! ([`connecting`](crate::io::driver::connecting)).
//!
//! The opening runs on its calling thread, which waits in one place only: a `Poll` for all sockets
//! and a waker. [`protocol::addresses`](crate::protocol::addresses) decides which address is tried;
//! `negotiate` has the handshake with one address. Only the system's resolver blocks elsewhere, on
//! a thread of its own, because it has no deadline. This thread wakes the calling thread when it is
//! done, and is abandoned at the deadline.
//!
//! A [`CancellationToken`] wakes the calling thread as well, from any thread, and each turn of each
//! loop checks the token first. So a cancelled opening ends at once, with two exceptions. A call of
//! `getaddrinfo` cannot be interrupted: its thread is abandoned, and its result is dropped. A
//! mechanism of the program runs on the calling thread, so the cancel takes effect after it
//! returns. A provider of credentials runs before the opening, on a thread of its own
//! (`provider`).

mod negotiate;
mod provider;
#[cfg(test)]
pub(crate) mod tests;

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Waker};

use self::negotiate::{Negotiation, OpenStream, Progress};
pub(crate) use self::provider::call_provider;
use super::cancellation::{CancellationToken, Registration, wake};
use super::driver::{self, SOCKET, WAKE};
use crate::io::driver::connecting::RecoverySettings;
use crate::io::driver::link::Link;
use crate::io::driver::transport::{self, SocketOptions};
use crate::io::shared::connection::{ConnectionShared, Settings};
use crate::protocol::addresses::{Addresses, Bounds, Pace, Step};
use crate::protocol::handshake::{HandshakeFailure, Offer};
use crate::protocol::stage::Stage;

/// The address of the broker, and the options and timeouts of the opening.
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) socket: SocketOptions,
    #[cfg(feature = "native-tls")]
    pub(crate) tls: Option<Tls>,
    /// The timeout of the TCP connect to each address.
    pub(crate) socket_timeout: Duration,
    /// The timeout of the whole opening.
    pub(crate) handshake_timeout: Duration,
    /// The time in which one address must send `connection.start`. It is shorter than
    /// `handshake_timeout` if another host can be tried.
    pub(crate) answer_timeout: Duration,
    pub(crate) pace: Pace,
    /// Cancels the opening from another thread.
    pub(crate) cancellation: CancellationToken,
}

/// The options of TLS.
#[cfg(feature = "native-tls")]
pub(crate) struct Tls {
    pub(crate) connector: native_tls::TlsConnector,
    /// The name that the broker's certificate must have.
    pub(crate) server_name: String,
}

/// The failures of an opening.
#[derive(Debug)]
pub(crate) struct OpenError {
    /// The most informative failure.
    pub(crate) failure: Box<Failure>,
    /// The failures of the host's other addresses.
    pub(crate) others: Vec<Failure>,
    /// The addresses for which there was no time.
    pub(crate) untried: Vec<SocketAddr>,
}

/// The failure at one address: the stage and the cause.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    /// The address, or the host before it was resolved.
    pub(crate) address: String,
    /// The SASL mechanism in use.
    pub(crate) mechanism: Option<String>,
    /// The size of the frame with the credentials in bytes; 0 if none was sent.
    pub(crate) answer_size: usize,
    pub(crate) cause: Cause,
}

/// The cause of a failure at one address.
#[derive(Debug)]
pub(crate) enum Cause {
    Io(io::Error),
    TimedOut(Duration),
    EndOfStream,
    #[cfg(feature = "native-tls")]
    Tls(String),
    Handshake(HandshakeFailure),
    /// The provider of the credentials returned this error, or panicked.
    Provider(Box<dyn Error + Send + Sync>),
    /// The program has cancelled the token.
    Cancelled,
}

impl From<Failure> for OpenError {
    fn from(failure: Failure) -> Self {
        Self {
            failure: Box::new(failure),
            others: Vec::new(),
            untried: Vec::new(),
        }
    }
}

impl Failure {
    /// Returns a failure without a SASL mechanism.
    fn new(stage: Stage, address: String, cause: Cause) -> Self {
        Self {
            stage,
            address,
            mechanism: None,
            answer_size: 0,
            cause,
        }
    }

    /// Returns whether another address of the same broker would refuse as well. Refused credentials
    /// must not be tried again at each address, because brokers count failed logins. A broker
    /// without the capability `authentication_failure_close` refuses credentials by closing the
    /// stream.
    fn is_refused(&self) -> bool {
        match self.stage {
            Stage::Start => self.cause.is_hang_up() || matches!(self.cause, Cause::Handshake(_)),
            Stage::Open => matches!(self.cause, Cause::Handshake(_)),
            _ => false,
        }
    }

    /// Returns the time after which the address timed out, or zero for another cause.
    fn waited(&self) -> Duration {
        match self.cause {
            Cause::TimedOut(after) => after,
            _ => Duration::ZERO,
        }
    }
}

impl Cause {
    /// Returns whether the peer closed the stream without a `connection.close`.
    pub(crate) fn is_hang_up(&self) -> bool {
        match self {
            Self::EndOfStream => true,
            // A stream that is closed with unread bytes is reset.
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
pub(crate) type Opened = (Arc<ConnectionShared>, JoinHandle<()>);

/// Opens a connection. `offer` is called once for each address.
pub(crate) fn connect(target: &Target, offer: impl Fn() -> Offer) -> Result<Link, OpenError> {
    let start = Instant::now();
    let mut readiness =
        Readiness::new(&target.cancellation).map_err(|error| target.failure(Cause::Io(error)))?;
    let addresses = readiness
        .resolve(target, start + target.answer_timeout())
        .map_err(|cause| target.failure(cause))?;
    connect_to(&addresses, target, readiness, start, offer)
}

/// Starts the IO thread of an open connection.
pub(crate) fn start(
    link: Link,
    settings: Settings,
    recovery: Option<RecoverySettings>,
) -> Result<Opened, OpenError> {
    let address = link.address.clone();
    driver::spawn(link, settings, recovery)
        .map_err(|error| Failure::new(Stage::Open, address, Cause::Io(error)).into())
}

/// Opens a connection to one of these addresses.
fn connect_to(
    addresses: &[SocketAddr],
    target: &Target,
    readiness: Readiness,
    start: Instant,
    offer: impl Fn() -> Offer,
) -> Result<Link, OpenError> {
    let bounds = Bounds {
        start,
        deadline: start + target.handshake_timeout,
        answer_deadline: start + target.answer_timeout(),
        connect_timeout: target.socket_timeout,
        pace: target.pace,
    };
    let candidate = |address: &SocketAddr| Candidate {
        address: *address,
        socket: None,
    };
    let attempt = Attempt {
        target,
        offer,
        readiness,
        schedule: Addresses::new(addresses.len(), bounds),
        candidates: addresses.iter().map(candidate).collect(),
        negotiation: None,
        failures: Vec::new(),
    };
    attempt.run()
}

impl Target {
    /// Returns the answer timeout, within what is left for the opening.
    fn answer_timeout(&self) -> Duration {
        self.answer_timeout.min(self.handshake_timeout)
    }

    /// Returns a failure before the host was resolved.
    fn failure(&self, cause: Cause) -> Failure {
        Failure::new(Stage::Resolve, self.host.clone(), cause)
    }
}

/// Waits until a socket is ready, or the waker is woken.
struct Readiness {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    registration: Registration,
}

impl Readiness {
    fn new(cancellation: &CancellationToken) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        Ok(Self {
            poll,
            events: Events::with_capacity(16),
            registration: cancellation.register(&waker),
            waker,
        })
    }

    /// Waits at most until `until`. The caller checks all sockets afterwards, so the events are not
    /// needed.
    fn wait(&mut self, until: Instant) -> Result<(), Cause> {
        let time = until.saturating_duration_since(Instant::now());
        match self.poll.poll(&mut self.events, Some(time)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(Cause::Io(error)),
            _ => Ok(()),
        }
    }

    fn register(&self, socket: &mut TcpStream) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(socket, SOCKET, both)
    }

    /// Returns all addresses of the host.
    fn resolve(&mut self, target: &Target, deadline: Instant) -> Result<Vec<SocketAddr>, Cause> {
        let waker = Arc::downgrade(&self.waker);
        let found = transport::resolve(&target.host, target.port, move || wake_opening(&waker));
        match self.receive(&found.map_err(Cause::Io)?, deadline)? {
            Some(outcome) => outcome.map_err(Cause::Io),
            None => Err(Cause::TimedOut(target.answer_timeout())),
        }
    }

    /// Waits for a value from a thread that wakes the waker after it was sent; `None` at the
    /// deadline.
    fn receive<T>(&mut self, sent: &Receiver<T>, deadline: Instant) -> Result<Option<T>, Cause> {
        loop {
            if self.registration.is_cancelled() {
                return Err(Cause::Cancelled);
            }
            let received = sent.try_recv().ok();
            if received.is_some() || Instant::now() >= deadline {
                return Ok(received);
            }
            self.wait(deadline)?;
        }
    }
}

/// Wakes the thread that opens a connection, if the opening is still in progress.
fn wake_opening(waker: &Weak<Waker>) {
    if let Some(waker) = waker.upgrade() {
        wake(&waker);
    }
}

/// One attempt at all addresses of a host. Dropping the attempt closes its sockets.
struct Attempt<'a, F> {
    target: &'a Target,
    offer: F,
    readiness: Readiness,
    schedule: Addresses,
    candidates: Vec<Candidate>,
    /// The address with which TLS and AMQP are negotiated, by its index.
    negotiation: Option<(usize, Negotiation)>,
    failures: Vec<Failure>,
}

struct Candidate {
    address: SocketAddr,
    /// The socket from the start of the connect until the negotiation.
    socket: Option<TcpStream>,
}

impl<F: Fn() -> Offer> Attempt<'_, F> {
    fn run(mut self) -> Result<Link, OpenError> {
        loop {
            // In every turn, because a peer that sends without end causes no wait.
            if self.readiness.registration.is_cancelled() {
                return Err(self.cancelled().into());
            }
            match self.schedule.next(Instant::now()) {
                Step::Connect(index) => self.connect(index),
                Step::Negotiate(index) => self.begin_negotiation(index),
                Step::Close(index) => drop(self.take_socket(index)),
                Step::GiveUp(index, after) => self.give_up(index, Cause::TimedOut(after)),
                Step::Exhausted => return Err(self.error()),
                Step::Wait(until) => match self.negotiation.take() {
                    Some((index, negotiation)) => {
                        if let Some(stream) = self.advance(index, negotiation, until)? {
                            return Ok(self.into_link(index, stream));
                        }
                    }
                    None => self.wait(until)?,
                },
            }
            if self.is_refused() {
                return Err(self.error());
            }
        }
    }

    fn connect(&mut self, index: usize) {
        let Some(candidate) = self.candidates.get_mut(index) else {
            return;
        };
        let socket = transport::begin_connect(candidate.address, &self.target.socket);
        let registered = socket.and_then(|socket| {
            let socket = candidate.socket.insert(socket);
            self.readiness.register(socket)
        });
        match registered {
            Ok(()) => self.check_connect(index),
            Err(error) => self.give_up(index, Cause::Io(error)),
        }
    }

    /// Checks whether a connect has succeeded or failed.
    fn check_connect(&mut self, index: usize) {
        let candidate = self.candidates.get(index);
        let Some(socket) = candidate.and_then(|candidate| candidate.socket.as_ref()) else {
            return;
        };
        match transport::is_connected(socket) {
            Ok(true) => self.schedule.connected(index),
            Ok(false) => {}
            Err(error) => self.give_up(index, Cause::Io(error)),
        }
    }

    /// Waits until a socket is ready, and checks all connects.
    fn wait(&mut self, until: Instant) -> Result<(), OpenError> {
        self.readiness
            .wait(until)
            .map_err(|cause| self.target.failure(cause))?;
        for index in 0..self.candidates.len() {
            self.check_connect(index);
        }
        Ok(())
    }

    fn begin_negotiation(&mut self, index: usize) {
        let Some(socket) = self.take_socket(index) else {
            return;
        };
        match Negotiation::begin(self.target, self.address(index), socket, (self.offer)()) {
            Ok(negotiation) => self.negotiation = Some((index, negotiation)),
            Err(failure) => self.fail(index, failure),
        }
    }

    /// Makes one step of the negotiation, and waits if the next one needs a ready socket. Returns
    /// `Some` if the connection is open.
    fn advance(
        &mut self,
        index: usize,
        negotiation: Negotiation,
        until: Instant,
    ) -> Result<Option<OpenStream>, OpenError> {
        let (negotiation, must_wait) = match negotiation.advance() {
            Ok(Progress::Done(stream)) => return Ok(Some(stream)),
            Ok(Progress::Ready(negotiation)) => (negotiation, false),
            Ok(Progress::Waiting(negotiation)) => (negotiation, true),
            Err(failure) => {
                self.fail(index, failure);
                return Ok(None);
            }
        };
        if negotiation.has_answered() {
            self.schedule.answered(index);
        }
        self.negotiation = Some((index, negotiation));
        if must_wait {
            self.wait(until)?;
        }
        Ok(None)
    }

    fn take_socket(&mut self, index: usize) -> Option<TcpStream> {
        self.candidates.get_mut(index)?.socket.take()
    }

    fn address(&self, index: usize) -> String {
        let candidate = self.candidates.get(index);
        candidate.map_or_else(String::new, |candidate| candidate.address.to_string())
    }

    /// Gives up an address for this cause.
    fn give_up(&mut self, index: usize, cause: Cause) {
        drop(self.take_socket(index));
        let failure = match self.negotiation.take_if(|(other, _)| *other == index) {
            Some((_, negotiation)) => negotiation.fail(cause),
            None => Failure::new(Stage::Tcp, self.address(index), cause),
        };
        self.fail(index, failure);
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        log::debug!("{}: {} {:?}", failure.address, failure.stage, failure.cause);
        self.schedule.failed(index, Instant::now());
        self.failures.push(failure);
    }

    fn is_refused(&self) -> bool {
        self.failures.last().is_some_and(Failure::is_refused)
    }

    /// Returns the failure for a cancelled token, with the current stage.
    fn cancelled(self) -> Failure {
        match self.negotiation {
            Some((_, negotiation)) => negotiation.fail(Cause::Cancelled),
            None => Failure::new(Stage::Tcp, self.target.host.clone(), Cause::Cancelled),
        }
    }

    fn error(mut self) -> OpenError {
        // After a refusal no further address is tried, so no address lacked time.
        let untried = match self.is_refused() {
            true => Vec::new(),
            false => {
                let addresses = self.candidates.iter().map(|candidate| candidate.address);
                let is_untried = |(index, _): &(usize, _)| self.schedule.is_untried(*index);
                let untried = addresses.enumerate().filter(is_untried);
                untried.map(|(_, address)| address).collect()
            }
        };
        let failure = match most_informative(&self.failures) {
            Some(index) => self.failures.remove(index),
            // The deadline passed during the name resolution, before any connect.
            None => self
                .target
                .failure(Cause::TimedOut(self.target.handshake_timeout)),
        };
        OpenError {
            failure: Box::new(failure),
            others: self.failures,
            untried,
        }
    }

    fn into_link(self, index: usize, stream: OpenStream) -> Link {
        let address = self.address(index);
        let (transport, decoder, negotiated) = stream;
        let Readiness { poll, waker, .. } = self.readiness;
        Link {
            transport,
            decoder,
            negotiated,
            poll,
            waker,
            address,
        }
    }
}

/// Returns the index of the most informative failure: a refusal first, then the latest stage, then
/// the longest wait, then the last one. So an address without a listener, which fails at once,
/// does not hide the others.
fn most_informative(failures: &[Failure]) -> Option<usize> {
    let weights = failures
        .iter()
        .map(|failure| (failure.is_refused(), failure.stage, failure.waited()));
    let heaviest = weights.enumerate().max_by_key(|(_, weight)| *weight);
    heaviest.map(|(index, _)| index)
}
