//! Ends the opening of connections from another thread.
//!
//! An opening waits in its `Poll` only. It registers the waker of this `Poll` with the token before
//! it checks the token for the first time. So `cancel` either comes before that check, or finds the
//! waker.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use mio::Waker;
use parking_lot::{Condvar, Mutex};

/// Cancels the opening of connections from another thread, for example at Ctrl-C while a broker
/// does not answer.
///
/// Clones are the same token. Pass it to
/// [`ConnectionParameters::cancellation_token`](crate::ConnectionParameters::cancellation_token).
/// One token may serve any number of openings, also at the same time. A cancelled token stays
/// cancelled: each of its openings ends with
/// [`Error::OpenCancelled`](crate::Error::OpenCancelled), and so does each later one. An opening
/// that succeeds at the same moment may still return `Ok`. Open connections are not affected.
///
/// The opening ends at once in every stage: in the [provider](crate::Credentials::provider) of the
/// credentials, the resolver, TCP, TLS, the AMQP handshake, and in the pause between two attempts.
/// Its sockets are closed. Only a [`Mechanism`](crate::Mechanism) of your own is not interrupted:
/// the opening ends when it returns. A thread in the system's resolver or in a provider ends by
/// itself later.
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
/// // In your program this is the thread that waits for Ctrl-C.
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
    /// The wakers of the openings in progress.
    wakers: Vec<Arc<Waker>>,
}

impl CancellationToken {
    /// Returns a new token, which is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels all openings with this token, now and later. Returns at once. A second call has no
    /// effect.
    ///
    /// This method takes a lock, so call it from a thread, never inside a signal handler.
    pub fn cancel(&self) {
        let wakers = {
            let mut state = self.shared.state.lock();
            state.is_cancelled = true;
            mem::take(&mut state.wakers)
        };
        self.shared.cancelled.notify_all();
        wakers.iter().for_each(|waker| wake(waker));
    }

    /// Returns whether the token was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.state.lock().is_cancelled
    }

    /// Waits for `time` or until the token is cancelled, and returns whether it is.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let mut state = self.shared.state.lock();
        let pending = |state: &mut State| !state.is_cancelled;
        self.shared
            .cancelled
            .wait_while_for(&mut state, pending, time);
        state.is_cancelled
    }

    /// Registers the waker of an opening, which `cancel` wakes from now on.
    pub(super) fn register(&self, waker: &Arc<Waker>) -> Registration {
        self.shared.state.lock().wakers.push(waker.clone());
        Registration {
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

/// The registration of an opening in progress with its token.
pub(super) struct Registration {
    token: CancellationToken,
    waker: Arc<Waker>,
}

impl Registration {
    pub(super) fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }
}

/// Removes the waker: after the opening it belongs to the IO thread, or its `Poll` is closed.
impl Drop for Registration {
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
        log::error!("cannot wake a thread that opens a connection: {error}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #[cfg(target_os = "linux")]
    use std::{fs, path::Path, thread, time::Instant};

    use mio::{Poll, Token};

    use super::*;

    /// The deadline of every wait in these tests.
    #[cfg(target_os = "linux")]
    const TEST_TIMEOUT: Duration = Duration::from_secs(10);

    /// A time that no test reaches.
    #[cfg(target_os = "linux")]
    pub(crate) const HOUR: Duration = Duration::from_secs(3600);

    /// Runs `act` on a thread, then `until` on this one, and cancels the token while the thread
    /// sleeps. Returns the results of both.
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
        let deadline = Instant::now() + TEST_TIMEOUT;
        // The state of the thread follows its name, which is in parentheses.
        while !fs::read_to_string(&stat).unwrap().contains(") S ") {
            assert!(
                Instant::now() < deadline,
                "the thread does not sleep in time"
            );
            thread::yield_now();
        }
        token.cancel();
        let outcome = outcome.recv_timeout(TEST_TIMEOUT);
        let outcome = outcome.expect("the cancel does not end `act`");
        thread.join().unwrap();
        (outcome, seen)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_cancel_ends_a_wait_in_progress() {
        let (is_cancelled, ()) = cancelled(|token| token.wait(HOUR), || {});
        assert!(is_cancelled);
    }

    #[test]
    fn a_cancelled_token_does_not_wait() {
        let token = CancellationToken::new();
        assert!(!token.wait(Duration::from_millis(1)));
        token.cancel();
        assert!(token.wait(Duration::from_secs(10)));
    }

    #[test]
    fn an_ended_opening_leaves_no_waker_in_its_token() {
        let polls = [(); 2].map(|()| Poll::new().unwrap());
        let wakers = polls
            .each_ref()
            .map(|poll| Arc::new(Waker::new(poll.registry(), Token(0)).unwrap()));
        let token = CancellationToken::new();
        let [ended, in_progress] = wakers.each_ref().map(|waker| token.register(waker));
        drop(ended);
        assert_eq!(
            Arc::strong_count(&wakers[0]),
            1,
            "a waker has a file descriptor"
        );
        assert_eq!(token.shared.state.lock().wakers.len(), 1);
        token.cancel();
        assert!(in_progress.is_cancelled());
        assert!(token.shared.state.lock().wakers.is_empty());
    }
}
