//! An attempt to open the next connection after a loss, on a thread of its own.
//!
//! ```text
//! IO thread       begin ---------------------------> result, drop
//!                   |                                  ^  |
//!                   v                            wake  |  | cancel, join
//! cony-connect      connect: name, TCP, TLS, AMQP -----+  v
//! ```
//!
//! The IO thread goes on with its commands and deadlines meanwhile. When it needs the attempt no
//! longer, because the program has closed the connection, it cancels the token of the attempt. The
//! opening then ends at once, so the IO thread waits for the end of the thread. Only a mechanism of
//! the program, or a file system that does not answer, may hold the thread up longer. After
//! [`CANCEL_TIME`] the thread is abandoned, and its connection is closed as soon as it is there. A
//! provider of credentials has a thread of its own, so it does not hold up this one.

use std::io;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use mio::Waker;

use super::link::Link;
use crate::error::{ConnectError, Error};
use crate::io::cancellation::{CancellationToken, wake};
use crate::protocol::recovery::book::entity::Topology;
use crate::protocol::recovery::policy::AttemptFailure;
use crate::protocol::recovery::session;
use crate::protocol::secret::Secret;
use crate::protocol::stage::Stage;

/// How long the IO thread waits for the end of a cancelled attempt.
const CANCEL_TIME: Duration = Duration::from_millis(250);

/// Opens a connection, until the deadline of the order or until the token is cancelled.
pub(crate) type Connect =
    dyn Fn(&ConnectOrder, &CancellationToken) -> Result<Link, AttemptError> + Send + Sync;

/// The order to make an attempt.
#[derive(Debug)]
pub(crate) struct ConnectOrder {
    /// The index of the broker in the list of brokers.
    pub(crate) broker: usize,
    pub(crate) deadline: Instant,
    pub(crate) newest_secret: Option<NewestSecret>,
}

/// The secret of the last `update_secret`.
#[derive(Debug, Clone)]
pub(crate) struct NewestSecret {
    /// The broker of the connection whose user has this secret.
    pub(crate) broker: usize,
    pub(crate) secret: Secret,
}

/// The failure of an attempt.
#[derive(Debug)]
pub(crate) struct AttemptError {
    /// The failure for the policy.
    pub(crate) failure: AttemptFailure,
    /// The failure for the program.
    pub(crate) error: Box<Error>,
}

/// The parameters of recovery.
pub(crate) struct RecoverySettings {
    pub(crate) connect: Arc<Connect>,
    pub(crate) session: session::Settings,
    pub(crate) topology: Topology,
    /// Whether messages that the broker may have already are marked when they are sent again.
    pub(crate) mark_resent: bool,
    /// The broker of the first connection, by its index in the list.
    pub(crate) first_broker: usize,
}

/// An attempt in progress. Dropping it cancels the attempt.
pub(crate) struct Connecting {
    token: CancellationToken,
    outcome: Receiver<Result<Link, AttemptError>>,
    /// `None` after its end, or once it is abandoned.
    thread: Option<JoinHandle<()>>,
}

impl Connecting {
    /// Begins an attempt. `waker` is woken when it has ended.
    pub(crate) fn begin(
        connect: Arc<Connect>,
        order: ConnectOrder,
        waker: &Arc<Waker>,
    ) -> io::Result<Self> {
        let token = CancellationToken::new();
        let (sender, outcome) = bounded(1);
        // Weak, so that an abandoned thread keeps no descriptor of the connection.
        let waker = Arc::downgrade(waker);
        let given = token.clone();
        let thread = thread::Builder::new()
            .name("cony-connect".into())
            .spawn(move || attempt(&*connect, order, &given, sender, waker))?;
        Ok(Self {
            token,
            outcome,
            thread: Some(thread),
        })
    }

    /// Returns the outcome, once, as soon as the attempt has ended.
    pub(crate) fn result(&self) -> Option<Result<Link, AttemptError>> {
        match self.outcome.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(AttemptError::panicked())),
        }
    }

    /// Cancels the attempt, and waits for the end of its thread for `time`. Returns whether the
    /// thread has ended.
    pub(crate) fn cancel(&mut self, time: Duration) -> bool {
        self.token.cancel();
        let Some(thread) = self.thread.take() else {
            return true;
        };
        match self.outcome.recv_timeout(time) {
            // After the result, or after a panic, the thread only wakes the IO thread.
            Ok(_) | Err(RecvTimeoutError::Disconnected) => {
                // The hook of the program has reported a panic already.
                let _ = thread.join();
                true
            }
            Err(RecvTimeoutError::Timeout) => {
                log::warn!(
                    "a cancelled attempt to connect is abandoned: the credentials or files of the \
                     program hold it up"
                );
                false
            }
        }
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        self.cancel(CANCEL_TIME);
    }
}

impl AttemptError {
    fn panicked() -> Self {
        Self {
            failure: AttemptFailure::Preparation,
            error: Box::new(Error::Connect {
                address: "the broker".into(),
                stage: Stage::Resolve,
                tls: false,
                cause: ConnectError::Io {
                    kind: io::ErrorKind::Other,
                    text: "the thread that connects has panicked".into(),
                },
                others: Vec::new(),
            }),
        }
    }
}

/// Makes an attempt, and sends its result. Wakes the IO thread also after a panic.
fn attempt(
    connect: &Connect,
    order: ConnectOrder,
    token: &CancellationToken,
    sender: Sender<Result<Link, AttemptError>>,
    waker: Weak<Waker>,
) {
    // Dropped in the reverse order: the sender first, so that the woken thread finds its end.
    let _wake = WakeAtEnd(waker);
    let sender = sender;
    let result = connect(&order, token);
    // Fails if the attempt was abandoned. That closes the connection.
    let _ = sender.send(result);
}

struct WakeAtEnd(Weak<Waker>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        if let Some(waker) = self.0.upgrade() {
            wake(&waker);
        }
    }
}
