//! Opening a connection under one deadline: names, TCP, TLS and the AMQP handshake, over the
//! stream that the IO thread then takes over.
//!
//! All of it happens on the caller's thread, which waits in one place only: a `Poll` for every
//! socket and for a waker. Which address gets the time is decided by
//! [`protocol::addresses`](crate::protocol::addresses); `talk` speaks with one of them. Only the
//! system's resolver waits elsewhere, on a thread of its own that rings the waker: it knows no
//! deadline, and is left to itself when that passes.
//!
//! A [`CancellationToken`] rings the waker as well, from any thread, and each turn of each loop
//! looks at the token first. So all of this ends at once, but for two things that nothing can
//! interrupt. `getaddrinfo` goes on: its thread is left to itself, as at the deadline, and its
//! answer is dropped. A mechanism of the program's own runs on the caller's thread, so a cancel is
//! noticed behind it.

mod negotiate;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Waker};

use self::negotiate::{Progress, Served, Talk};
use super::cancellation::{CancellationToken, Watch, wake};
use super::driver::{self, SOCKET, WAKE};
use crate::io::driver::transport::{self, SocketOptions};
use crate::io::shared::connection::{ConnectionShared, Settings};
use crate::protocol::addresses::{Addresses, Bounds, Pace, Step};
use crate::protocol::handshake::{HandshakeFailure, Offer};
use crate::protocol::stage::Stage;

/// Where to connect to, and within what bounds.
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) socket: SocketOptions,
    #[cfg(feature = "native-tls")]
    pub(crate) tls: Option<Tls>,
    /// For each address.
    pub(crate) socket_timeout: Duration,
    /// For everything together.
    pub(crate) handshake_timeout: Duration,
    pub(crate) pace: Pace,
    /// Ends it from another thread.
    pub(crate) cancellation: CancellationToken,
    pub(crate) settings: Settings,
}

/// How to set up TLS.
#[cfg(feature = "native-tls")]
pub(crate) struct Tls {
    pub(crate) connector: native_tls::TlsConnector,
    /// The name that the certificate must be for.
    pub(crate) server_name: String,
}

/// Why no address let in.
#[derive(Debug)]
pub(crate) struct OpenError {
    /// The failure that tells most.
    pub(crate) failure: Box<Failure>,
    /// Those of the host's other addresses.
    pub(crate) others: Vec<Failure>,
    /// The addresses that there was no time for.
    pub(crate) untried: Vec<SocketAddr>,
}

/// How far it came with one address, and what stopped it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    /// The address that was tried, or the host if there was none yet.
    pub(crate) address: String,
    /// The SASL mechanism in use.
    pub(crate) mechanism: Option<String>,
    /// How large the frame with our credentials was, if it came to that.
    pub(crate) answer_size: usize,
    pub(crate) cause: Cause,
}

#[derive(Debug)]
pub(crate) enum Cause {
    Io(io::Error),
    TimedOut(Duration),
    EndOfStream,
    #[cfg(feature = "native-tls")]
    Tls(String),
    Handshake(HandshakeFailure),
    /// The program does not want the connection any more.
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

    /// How long the address was waited for in vain.
    fn waited(&self) -> Duration {
        match self.cause {
            Cause::TimedOut(after) => after,
            _ => Duration::ZERO,
        }
    }
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
pub(crate) type Opened = (Arc<ConnectionShared>, JoinHandle<()>);

/// Opens a connection; `offer` is made anew for each address.
pub(crate) fn open(target: &Target, offer: impl Fn() -> Offer) -> Result<Opened, OpenError> {
    let start = Instant::now();
    let mut readiness =
        Readiness::new(&target.cancellation).map_err(|error| target.failure(Cause::Io(error)))?;
    let addresses = readiness
        .resolve(target, start + target.handshake_timeout)
        .map_err(|cause| target.failure(cause))?;
    open_at(&addresses, target, readiness, start, offer)
}

/// Opens a connection to one of these addresses.
fn open_at(
    addresses: &[SocketAddr],
    target: &Target,
    readiness: Readiness,
    start: Instant,
    offer: impl Fn() -> Offer,
) -> Result<Opened, OpenError> {
    let bounds = Bounds {
        start,
        deadline: start + target.handshake_timeout,
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
        turns: Addresses::new(addresses.len(), bounds),
        candidates: addresses.iter().map(candidate).collect(),
        talk: None,
        failures: Vec::new(),
    };
    attempt.run()
}

impl Target {
    /// A failure before there was an address.
    fn failure(&self, cause: Cause) -> Failure {
        Failure::new(Stage::Resolve, self.host.clone(), cause)
    }
}

/// Waits for sockets to have something new to say, or for the waker.
struct Readiness {
    poll: Poll,
    events: Events,
    waker: Arc<Waker>,
    watch: Watch,
}

impl Readiness {
    fn new(cancellation: &CancellationToken) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        Ok(Self {
            poll,
            events: Events::with_capacity(16),
            watch: cancellation.watch(&waker),
            waker,
        })
    }

    /// Waits, at most until then. All sockets are looked at afterwards, so it does not matter
    /// which one it was.
    fn wait(&mut self, until: Instant) -> Result<(), Cause> {
        let time = until.saturating_duration_since(Instant::now());
        match self.poll.poll(&mut self.events, Some(time)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(Cause::Io(error)),
            _ => Ok(()),
        }
    }

    fn watch(&self, socket: &mut TcpStream) -> io::Result<()> {
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(socket, SOCKET, both)
    }

    /// All addresses of the host.
    fn resolve(&mut self, target: &Target, deadline: Instant) -> Result<Vec<SocketAddr>, Cause> {
        let waker = Arc::downgrade(&self.waker);
        let found = transport::resolve(&target.host, target.port, move || ring(&waker));
        match self.receive(&found.map_err(Cause::Io)?, deadline)? {
            Some(outcome) => outcome.map_err(Cause::Io),
            None => Err(Cause::TimedOut(target.handshake_timeout)),
        }
    }

    /// Waits for a value from a thread that rings the waker behind it; `None` at the deadline.
    fn receive<T>(&mut self, sent: &Receiver<T>, deadline: Instant) -> Result<Option<T>, Cause> {
        loop {
            if self.watch.is_cancelled() {
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

/// Wakes the thread that opens a connection, if it still does.
fn ring(waker: &Weak<Waker>) {
    if let Some(waker) = waker.upgrade() {
        wake(&waker);
    }
}

/// One attempt at all addresses of a host. Its sockets are closed with it.
struct Attempt<'a, F> {
    target: &'a Target,
    offer: F,
    readiness: Readiness,
    turns: Addresses,
    candidates: Vec<Candidate>,
    /// The address that is talked to, by its number.
    talk: Option<(usize, Talk)>,
    failures: Vec<Failure>,
}

struct Candidate {
    address: SocketAddr,
    /// While it connects, and until it is talked to.
    socket: Option<TcpStream>,
}

impl<F: Fn() -> Offer> Attempt<'_, F> {
    fn run(mut self) -> Result<Opened, OpenError> {
        loop {
            // In every turn, because a peer that never stops talking causes no wait.
            if self.readiness.watch.is_cancelled() {
                return Err(self.cancelled().into());
            }
            match self.turns.next(Instant::now()) {
                Step::Connect(index) => self.connect(index),
                Step::Negotiate(index) => self.begin_talk(index),
                Step::Close(index) => drop(self.take_socket(index)),
                Step::GiveUp(index, after) => self.give_up(index, Cause::TimedOut(after)),
                Step::Exhausted => return Err(self.error()),
                Step::Wait(until) => match self.talk.take() {
                    Some((index, talk)) => {
                        if let Some(served) = self.advance(index, talk, until)? {
                            return self.serve(index, served);
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
        let watched = socket.and_then(|socket| {
            let socket = candidate.socket.insert(socket);
            self.readiness.watch(socket)
        });
        match watched {
            Ok(()) => self.look_at(index),
            Err(error) => self.give_up(index, Cause::Io(error)),
        }
    }

    /// Looks whether a connect has succeeded.
    fn look_at(&mut self, index: usize) {
        let candidate = self.candidates.get(index);
        let Some(socket) = candidate.and_then(|candidate| candidate.socket.as_ref()) else {
            return;
        };
        match transport::is_connected(socket) {
            Ok(true) => self.turns.connected(index),
            Ok(false) => {}
            Err(error) => self.give_up(index, Cause::Io(error)),
        }
    }

    /// Waits, and looks which connects have succeeded.
    fn wait(&mut self, until: Instant) -> Result<(), OpenError> {
        self.readiness
            .wait(until)
            .map_err(|cause| self.target.failure(cause))?;
        for index in 0..self.candidates.len() {
            self.look_at(index);
        }
        Ok(())
    }

    fn begin_talk(&mut self, index: usize) {
        let Some(socket) = self.take_socket(index) else {
            return;
        };
        match Talk::begin(self.target, self.address(index), socket, (self.offer)()) {
            Ok(talk) => self.talk = Some((index, talk)),
            Err(failure) => self.fail(index, failure),
        }
    }

    /// Goes on with the talk, or waits; `Some` if the connection is open.
    fn advance(
        &mut self,
        index: usize,
        talk: Talk,
        until: Instant,
    ) -> Result<Option<Served>, OpenError> {
        let (talk, must_wait) = match talk.advance() {
            Ok(Progress::Done(served)) => return Ok(Some(served)),
            Ok(Progress::Ready(talk)) => (talk, false),
            Ok(Progress::Waiting(talk)) => (talk, true),
            Err(failure) => {
                self.fail(index, failure);
                return Ok(None);
            }
        };
        if talk.is_introduced() {
            self.turns.answered(index);
        }
        self.talk = Some((index, talk));
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

    /// Ends it with an address, for this cause.
    fn give_up(&mut self, index: usize, cause: Cause) {
        drop(self.take_socket(index));
        let failure = match self.talk.take_if(|(talking, _)| *talking == index) {
            Some((_, talk)) => talk.fail(cause),
            None => Failure::new(Stage::Tcp, self.address(index), cause),
        };
        self.fail(index, failure);
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        log::debug!("{}: {} {:?}", failure.address, failure.stage, failure.cause);
        self.turns.failed(index, Instant::now());
        self.failures.push(failure);
    }

    fn is_refused(&self) -> bool {
        self.failures.last().is_some_and(Failure::is_refused)
    }

    /// The end that the program wants, wherever it is.
    fn cancelled(self) -> Failure {
        match self.talk {
            Some((_, talk)) => talk.fail(Cause::Cancelled),
            None => Failure::new(Stage::Tcp, self.target.host.clone(), Cause::Cancelled),
        }
    }

    fn error(mut self) -> OpenError {
        // Behind one that has refused no further address is tried, so none lacked the time.
        let untried = match self.is_refused() {
            true => Vec::new(),
            false => {
                let addresses = self.candidates.iter().map(|candidate| candidate.address);
                let is_untried = |(index, _): &(usize, _)| self.turns.is_untried(*index);
                let untried = addresses.enumerate().filter(is_untried);
                untried.map(|(_, address)| address).collect()
            }
        };
        let failure = match most_telling(&self.failures) {
            Some(index) => self.failures.remove(index),
            // The time was over as soon as the name was resolved.
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

    fn serve(self, index: usize, served: Served) -> Result<Opened, OpenError> {
        let address = self.address(index);
        let (transport, decoder, negotiated) = served;
        let Readiness { poll, waker, .. } = self.readiness;
        let settings = self.target.settings.clone();
        driver::spawn(poll, waker, transport, decoder, negotiated, settings)
            .map_err(|error| Failure::new(Stage::Open, address, Cause::Io(error)).into())
    }
}

/// Which failure tells most: a refusal; else of those that came furthest the one that took the
/// most time, for behind a name there may be addresses where nobody listens; of equals the last.
fn most_telling(failures: &[Failure]) -> Option<usize> {
    let weights = failures
        .iter()
        .map(|failure| (failure.is_refused(), failure.stage, failure.waited()));
    let heaviest = weights.enumerate().max_by_key(|(_, weight)| *weight);
    heaviest.map(|(index, _)| index)
}
