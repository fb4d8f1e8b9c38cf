//! Ends the opening of connections from another thread.
//!
//! An opening waits in its `Poll` only, and registers the waker of that with the token before it
//! looks at the token for the first time. So a cancel either comes before that look, or finds the
//! waker.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use mio::Waker;
use parking_lot::{Condvar, Mutex};

/// Gives up the opening of connections, from another thread: at Ctrl-C, for instance, while a
/// broker does not answer.
///
/// Clones are the same token. It goes to
/// [`ConnectionParameters::cancellation_token`](crate::ConnectionParameters::cancellation_token),
/// and may serve any number of openings, also at the same time. Once cancelled it stays so: each
/// of them ends with [`Error::OpenCancelled`](crate::Error::OpenCancelled), and so does each later
/// one. An opening that succeeds at the same moment may still be Ok. Connections that are open go
/// on.
///
/// The opening ends at once, wherever it is: in the resolver, TCP, TLS, the AMQP handshake, or in
/// the pause between two attempts. Its sockets are closed. Only the program's own code is waited
/// for, if that is running: a [`Mechanism`](crate::Mechanism). A thread in the system's resolver
/// ends by itself later.
///
/// ```
/// use std::{thread, time::Duration};
/// use cony::{BlockingConnection, CancellationToken, ConnectionParameters, Error};
///
/// let token = CancellationToken::new();
/// let parameters = ConnectionParameters::new()
///     .host("127.0.0.1")
///     .port(1) // nothing listens there
///     .connection_attempts(1000)
///     .retry_delay(Duration::from_secs(60))
///     .cancellation_token(token.clone());
///
/// // In place of this, the thread that waits for Ctrl-C.
/// thread::spawn(move || token.cancel());
///
/// let error = BlockingConnection::open(parameters).unwrap_err();
/// assert!(matches!(error, Error::OpenCancelled { .. }));
/// ```
#[derive(Clone, Default)]
pub struct CancellationToken {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the threads in a pause between two attempts.
    cancelled: Condvar,
}

#[derive(Default)]
struct State {
    is_cancelled: bool,
    /// The wakers of the openings under way.
    wakers: Vec<Arc<Waker>>,
}

impl CancellationToken {
    /// A token that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the openings that have this token, and those to come. Returns at once, and does
    /// nothing the second time.
    ///
    /// It takes a lock, so call it from a thread, and not from inside a signal handler.
    pub fn cancel(&self) {
        let wakers = {
            let mut state = self.shared.state.lock();
            state.is_cancelled = true;
            mem::take(&mut state.wakers)
        };
        self.shared.cancelled.notify_all();
        wakers.iter().for_each(|waker| wake(waker));
    }

    /// Whether it was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.state.lock().is_cancelled
    }

    /// Waits so long, or until it is cancelled; whether it is.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let mut state = self.shared.state.lock();
        let pending = |state: &mut State| !state.is_cancelled;
        self.shared
            .cancelled
            .wait_while_for(&mut state, pending, time);
        state.is_cancelled
    }

    /// From now on a cancel rings this waker.
    pub(super) fn watch(&self, waker: &Arc<Waker>) -> Watch {
        self.shared.state.lock().wakers.push(waker.clone());
        Watch {
            token: self.clone(),
            waker: waker.clone(),
        }
    }
}

impl fmt::Debug for CancellationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancellationToken")
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}

/// An opening under way, whose waker its token rings.
pub(super) struct Watch {
    token: CancellationToken,
    waker: Arc<Waker>,
}

impl Watch {
    pub(super) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }
}

/// Afterwards the waker is the IO thread's, or is closed.
impl Drop for Watch {
    fn drop(&mut self) {
        let mut state = self.token.shared.state.lock();
        state
            .wakers
            .retain(|waker| !Arc::ptr_eq(waker, &self.waker));
    }
}

/// Wakes a thread that opens a connection.
pub(super) fn wake(waker: &Waker) {
    if let Err(error) = waker.wake() {
        log::error!("a thread that opens a connection cannot be woken: {error}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #[cfg(target_os = "linux")]
    use std::{fs, path::Path, thread, time::Instant};

    use mio::{Poll, Token};

    use super::*;

    /// How long a test waits for one thing.
    #[cfg(target_os = "linux")]
    const PATIENCE: Duration = Duration::from_secs(10);

    /// More than a test may take.
    #[cfg(target_os = "linux")]
    pub(crate) const HOUR: Duration = Duration::from_secs(3600);

    /// Does it on a thread, and cancels that while it sleeps, after `until`: how both end.
    #[cfg(target_os = "linux")]
    pub(crate) fn cancelled<R: Send + 'static, T>(
        act: impl FnOnce(&CancellationToken) -> R + Send + 'static,
        until: impl FnOnce() -> T,
    ) -> (R, T) {
        let token = CancellationToken::new();
        let given = token.clone();
        let (started, sleeper) = crossbeam_channel::bounded(1);
        let (ended, outcome) = crossbeam_channel::bounded(1);
        let thread = thread::spawn(move || {
            let link = fs::read_link("/proc/thread-self").unwrap();
            started.send(link).unwrap();
            ended.send(act(&given)).unwrap();
        });
        let stat = Path::new("/proc")
            .join(sleeper.recv().unwrap())
            .join("stat");
        let seen = until();
        let deadline = Instant::now() + PATIENCE;
        // The state is told behind the name, which is in parentheses.
        while !fs::read_to_string(&stat).unwrap().contains(") S ") {
            assert!(Instant::now() < deadline, "it never sleeps");
            thread::yield_now();
        }
        token.cancel();
        let outcome = outcome.recv_timeout(PATIENCE);
        let outcome = outcome.expect("a cancel does not end it");
        thread.join().unwrap();
        (outcome, seen)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_cancel_ends_a_pause_under_way() {
        let (is_cancelled, ()) = cancelled(|token| token.wait(HOUR), || {});
        assert!(is_cancelled);
    }

    #[test]
    fn a_token_that_is_cancelled_has_no_pause() {
        let token = CancellationToken::new();
        assert!(!token.wait(Duration::from_millis(1)));
        token.cancel();
        assert!(token.wait(Duration::from_secs(10)));
    }

    #[test]
    fn an_opening_that_is_over_leaves_no_waker_behind() {
        let polls = [(); 2].map(|()| Poll::new().unwrap());
        let wakers = polls
            .each_ref()
            .map(|poll| Arc::new(Waker::new(poll.registry(), Token(0)).unwrap()));
        let token = CancellationToken::new();
        let [over, under_way] = wakers.each_ref().map(|waker| token.watch(waker));
        drop(over);
        assert_eq!(Arc::strong_count(&wakers[0]), 1, "a waker is a descriptor");
        assert_eq!(token.shared.state.lock().wakers.len(), 1);
        token.cancel();
        assert!(under_way.is_cancelled());
        assert!(token.shared.state.lock().wakers.is_empty());
    }
}
