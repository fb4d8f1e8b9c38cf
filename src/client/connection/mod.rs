//! [`BlockingConnection`]: its handles, its closing and its state. `open` turns parameters into a
//! target and failures of the opening into errors. `connect_again` opens the connection after a
//! lost one. `callbacks` and `timers` hold the callbacks of the connection, and `run` has the loops
//! that dispatch them. `recovery` has the outage and its events.

mod callbacks;
mod connect_again;
mod exists;
mod open;
pub(crate) mod recovery;
mod run;
mod send_method;
mod stats;
mod timers;
mod update_secret;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::callbacks::ConnectionCallbacks;
use self::run::Stops;
pub use self::stats::Stats;
pub use self::timers::TimerId;
use self::timers::Timers;
use crate::client::callbacks::dispatch_lock::is_in_callback;
use crate::client::channel::{BlockingChannel, UnreportedErrors, WeakChannel, confirms_share};
use crate::config::parameters::ConnectionParameters;
use crate::error::{Error, Result};
use crate::io::shared::command::Command;
use crate::io::shared::connection::ConnectionShared;
use crate::protocol::close_reason::ClosedBy;
use crate::protocol::event::{ChannelId, Termination};
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::table::FieldTable;
use crate::protocol::wire::ShortString;

/// A connection to a broker.
///
/// A handle is cheap to clone and can be used from several threads; all clones are handles of the
/// same connection. One background thread, the IO thread, owns the socket and sends the heartbeats,
/// so the connection stays alive while the program's threads do other work.
///
/// The connection closes when its last handle, and the last handle of each [`BlockingChannel`] and
/// [`Consumer`](crate::Consumer) on it, have been dropped. The last drop waits for the broker's
/// reply to the close, at most for [`drop_timeout`](ConnectionParameters::drop_timeout), so that
/// the last publishes of a script arrive. [`close`](Self::close) also returns the errors.
///
/// ```
/// use cony::BlockingConnection;
///
/// # let url = std::env::var("AMQP_URL").expect("AMQP_URL names a broker");
/// # /*
/// let url = "amqp://guest:guest@localhost:5672/%2f";
/// # */
/// let connection = BlockingConnection::open(url)?;
/// let channel = connection.channel()?;
/// channel.queue_declare("tasks")?;
/// channel.basic_publish("", "tasks", "hello")?;
/// connection.close()?;
/// # Ok::<(), cony::Error>(())
/// ```
#[derive(Clone)]
pub struct BlockingConnection {
    inner: Arc<ConnectionInner>,
}

/// The state that all handles share. Dropping it closes the connection.
pub(crate) struct ConnectionInner {
    pub(crate) shared: Arc<ConnectionShared>,
    pub(crate) limits: Limits,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The channels with handles, by their generation.
    channels: Mutex<HashMap<u64, WeakChannel>>,
    callbacks: ConnectionCallbacks,
    timers: Timers,
    stops: Stops,
}

/// The parameters that channels and calls need.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) rpc_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) drop_timeout: Duration,
    pub(crate) default_prefetch: u16,
    pub(crate) confirm_window: usize,
}

impl Limits {
    /// Returns the deadline of a call that begins now.
    pub(crate) fn call_deadline(&self) -> Instant {
        Instant::now() + self.rpc_timeout
    }
}

/// How long a thread waits for the end of the IO thread beyond the deadline that the IO thread
/// keeps itself.
const DEADLINE_GRACE: Duration = Duration::from_secs(2);

/// The number of brokers of a list to which a lost connection is opened again. The list may be
/// endless.
const BROKERS_MAX: usize = 100;

impl BlockingConnection {
    /// Opens a connection with a URL or with [`ConnectionParameters`].
    ///
    /// Returns when the broker has opened the virtual host. That takes at most
    /// [`handshake_timeout`](ConnectionParameters::handshake_timeout) for each of the
    /// [`connection_attempts`](ConnectionParameters::connection_attempts).
    ///
    /// ```
    /// use cony::{BlockingConnection, ConnectionParameters};
    ///
    /// # let url = std::env::var("AMQP_URL").expect("AMQP_URL names a broker");
    /// # /*
    /// let url = "amqp://guest:guest@localhost:5672/%2f";
    /// # */
    /// let parameters: ConnectionParameters = url.parse()?;
    /// let connection = BlockingConnection::open(parameters.connection_name("worker"))?;
    /// # connection.close()?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Error::InvalidOption`] for a parameter that cannot be used, and
    ///   [`Error::CredentialsErased`]: nothing was sent.
    /// - [`Error::Connect`] with the stage that failed.
    /// - [`Error::AuthenticationFailed`] and [`Error::AccessDenied`] if the broker refuses the user
    ///   or the virtual host.
    /// - [`Error::UnsupportedProtocol`] and [`Error::NotAmqp`] if the peer is no broker for
    ///   AMQP 0-9-1.
    /// - [`Error::OpenCancelled`] if another thread cancels the
    ///   [token](ConnectionParameters::cancellation_token).
    pub fn open<P>(parameters: P) -> Result<Self>
    where
        P: TryInto<ConnectionParameters>,
        Error: From<P::Error>,
    {
        Self::open_listed(&open::checked(parameters)?, &[], 0, true)
    }

    /// Opens a connection with the URL in the environment variable `AMQP_URL`, or with the default
    /// parameters if the variable is empty or not set.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`Error::InvalidOption`] if the variable is not UTF-8.
    pub fn open_default() -> Result<Self> {
        Self::open(open::default_parameters(std::env::var_os("AMQP_URL"))?)
    }

    /// Opens a connection to the first broker of a list that can be reached.
    ///
    /// The brokers are tried in order, each with its own parameters. The log has a warning for each
    /// that fails. A broker that has sent nothing after a third of its
    /// [`handshake_timeout`](ConnectionParameters::handshake_timeout) (5 s by default, at least
    /// 3 s) is given up for the next one; the last of the list has all the time.
    ///
    /// [Recovery](ConnectionParameters::recovery) tries all of them again after a loss, the lost
    /// one last. The entry that opened first decides about recovery, and its deadlines and budgets
    /// hold for the life of the connection.
    ///
    /// ```
    /// # let url = std::env::var("AMQP_URL").expect("AMQP_URL names a broker");
    /// # let second = url.as_str();
    /// let connection = cony::BlockingConnection::open_any(["amqp://127.0.0.1:1", second])?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of [`open`](Self::open) for the last broker of the list. [`Error::InvalidOption`]
    /// for an empty list. After an [`Error::OpenCancelled`] no further broker is tried.
    pub fn open_any<P>(list: impl IntoIterator<Item = P>) -> Result<Self>
    where
        P: TryInto<ConnectionParameters>,
        Error: From<P::Error>,
    {
        let mut list = list.into_iter().map(open::checked);
        // Recovery needs all of them from the beginning.
        let entries = Vec::from_iter(list.by_ref().take(BROKERS_MAX));
        let brokers = Vec::from_iter(entries.iter().flatten().cloned());
        let mut index = 0;
        let mut last = Error::invalid("brokers", "none", "the list needs at least one");
        let mut entries = entries.into_iter().chain(list).peekable();
        while let Some(entry) = entries.next() {
            let is_last = entries.peek().is_none();
            let opened = entry.and_then(|parameters| {
                index += 1;
                Self::open_listed(&parameters, &brokers, index - 1, is_last)
            });
            match opened {
                Ok(connection) => return Ok(connection),
                Err(error @ Error::OpenCancelled { .. }) => return Err(error),
                Err(error) => {
                    log::warn!("{error}");
                    last = error;
                }
            }
        }
        Err(last)
    }

    pub(crate) fn from_inner(inner: Arc<ConnectionInner>) -> Self {
        Self { inner }
    }

    /// Opens a channel with the lowest free number.
    ///
    /// The number of a closed channel becomes free when the broker has replied to the close. If all
    /// other numbers are in use, this call waits for that reply, at most for
    /// [`rpc_timeout`](ConnectionParameters::rpc_timeout).
    ///
    /// # Errors
    ///
    /// [`Error::NoFreeChannels`] if every number is in use and no channel is closing.
    /// [`Error::Timeout`], or the end of the connection.
    pub fn channel(&self) -> Result<BlockingChannel> {
        BlockingChannel::open(&self.inner, None)
    }

    /// Opens a channel with this number, from 1 to [`channel_max`](Self::channel_max). If a channel
    /// with this number is closing, this call waits for the broker's reply.
    ///
    /// Most programs call [`channel`](Self::channel), which chooses the number.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidChannelNumber`], [`Error::ChannelNumberInUse`], and the errors of
    /// [`channel`](Self::channel).
    pub fn channel_with_number(&self, number: u16) -> Result<BlockingChannel> {
        BlockingChannel::open(&self.inner, Some(number))
    }

    /// Closes the connection with its channels and consumers.
    ///
    /// Before the close is sent, the waiting publishes are written, and channels in confirm mode
    /// wait for their confirms. The call returns when the broker has replied to the close. If the
    /// reply has not arrived after [`close_timeout`](ConnectionParameters::close_timeout), the
    /// socket is closed. A second call returns `Ok`.
    ///
    /// # Errors
    ///
    /// - The reason of the end, if the connection ended before this call, or if the broker closes
    ///   it at the same time. Also if the stream ends before the broker's reply, unless every
    ///   publish is confirmed. The last publishes may be lost in these cases.
    /// - [`Error::Timeout`] if the broker does not reply in time.
    /// - Errors of channels with a handle, unless an earlier call or callback has reported them:
    ///   [`Error::ChannelClosed`] if the broker has closed one, and in confirm mode
    ///   [`Error::Unconfirmed`] and [`Error::PublishFailures`], as for [`BlockingChannel::close`].
    ///   The failures of all channels are in one error.
    /// - [`Error::InDoubt`], if a loss may have cost messages outside confirm mode: see
    ///   [`take_in_doubt`](Self::take_in_doubt).
    /// - The error of a close callback.
    pub fn close(&self) -> Result<()> {
        self.close_with(ReplyCode::REPLY_SUCCESS, "Normal shutdown")
    }

    /// Closes the connection as [`close`](Self::close) does, with a code and a text for the
    /// broker's log. The text is cut at 255 bytes.
    ///
    /// # Errors
    ///
    /// As [`close`](Self::close).
    pub fn close_with(&self, code: impl Into<ReplyCode>, text: &str) -> Result<()> {
        let timeout = self.inner.limits.close_timeout;
        let start = Instant::now();
        let is_first = self.is_open();
        let mut channels = self.inner.open_channels();
        channels.sort_by_key(BlockingChannel::number);
        let deadline = start + confirms_share(timeout);
        let interrupted: Vec<_> = channels
            .iter()
            .map(|channel| channel.inner().await_confirms(deadline))
            .collect();
        self.inner.close(code.into(), text, start + timeout);
        let called = self.call_close_callbacks();
        match self.inner.shared.termination() {
            Some(Termination::Closed(reason)) if reason.by == ClosedBy::Application => {
                let ends = channels.iter().zip(interrupted).filter(|_| is_first);
                let unreported = ends.map(|(channel, end)| channel.inner().unreported_errors(end));
                let in_doubt = || self.take_doubt_error().filter(|_| is_first);
                let error = UnreportedErrors::sum(unreported).or_else(in_doubt);
                error.map_or(called, Err)
            }
            Some(_) => Err(self.inner.closed_error()),
            None => Err(self
                .inner
                .shared
                .timeout_error("connection.close", None, timeout)),
        }
    }

    /// Closes the socket at once, without an AMQP close. Waiting publishes and calls fail.
    ///
    /// Use `disconnect` in an emergency only. Publishes that are not yet written are lost, and
    /// confirms that have not arrived are lost too. [`close`](Self::close) first waits for both.
    ///
    /// [Close callbacks](Self::add_on_close_callback) are not called here, but in a thread that
    /// dispatches.
    pub fn disconnect(&self) {
        self.inner.shared.send(Command::Disconnect);
        self.inner
            .wait_for_io_thread(Instant::now() + DEADLINE_GRACE);
    }

    /// Returns whether the connection is neither closing nor closed. In an
    /// [outage](Self::is_recovering) it is open.
    ///
    /// The broker may have closed the connection a moment ago: `true` does not promise that the
    /// broker can be reached, and the next call may still fail.
    pub fn is_open(&self) -> bool {
        !self.is_closing() && !self.is_closed()
    }

    /// Returns whether this program has begun to close the connection, and the close is not
    /// finished.
    pub fn is_closing(&self) -> bool {
        self.inner.shared.is_closing() && !self.is_closed()
    }

    /// Returns whether the connection has ended for good. [`close_reason`](Self::close_reason) then
    /// returns the reason.
    pub fn is_closed(&self) -> bool {
        self.inner.shared.termination().is_some()
    }

    /// Returns the reason of the end, if the connection has ended.
    pub fn close_reason(&self) -> Option<Error> {
        self.inner.shared.close_reason()
    }

    /// Waits until the connection has ended, without a limit, and returns the reason.
    pub fn wait_closed(&self) -> Error {
        self.inner.shared.wait_for_io_thread(None);
        self.inner.closed_error()
    }

    /// Returns the properties of the broker: product, version, capabilities and others.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// let properties = connection.server_properties();
    /// if let Some(version) = properties.get("version").and_then(|value| value.as_str()) {
    ///     println!("version {version}");
    /// }
    /// # Ok::<(), cony::Error>(())
    /// ```
    pub fn server_properties(&self) -> &FieldTable {
        &self.inner.shared.negotiated.server_properties
    }

    /// Returns whether the broker supports `basic.nack`.
    #[doc(alias = "basic_nack_supported")]
    pub fn supports_basic_nack(&self) -> bool {
        self.has_capability("basic.nack")
    }

    /// Returns whether the broker reports a consumer that it cancels.
    #[doc(alias = "consumer_cancel_notify_supported")]
    pub fn supports_consumer_cancel_notify(&self) -> bool {
        self.has_capability("consumer_cancel_notify")
    }

    /// Returns whether the broker can bind exchanges to exchanges.
    #[doc(alias = "exchange_exchange_bindings_supported")]
    pub fn supports_exchange_exchange_bindings(&self) -> bool {
        self.has_capability("exchange_exchange_bindings")
    }

    /// Returns whether the broker supports publisher confirms.
    #[doc(alias = "publisher_confirms_supported")]
    pub fn supports_publisher_confirms(&self) -> bool {
        self.has_capability("publisher_confirms")
    }

    fn has_capability(&self, name: &str) -> bool {
        self.server_properties()
            .get("capabilities")
            .and_then(|value| value.as_table()?.get(name)?.as_bool())
            .unwrap_or(false)
    }

    /// Returns the highest channel number that was negotiated.
    pub fn channel_max(&self) -> u16 {
        self.inner.shared.negotiated.channel_max
    }

    /// Returns the largest size of a frame that was negotiated, in bytes.
    pub fn frame_max(&self) -> u32 {
        self.inner.shared.negotiated.frame_max
    }

    /// Returns the heartbeat interval that was negotiated; zero if heartbeats are off.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.inner.shared.negotiated.heartbeat.into())
    }

    /// Returns whether the broker blocks publishes at the moment, for lack of memory or disk.
    pub fn is_blocked(&self) -> bool {
        self.blocked_reason().is_some()
    }

    /// Returns the broker's reason if it blocks publishes at the moment.
    pub fn blocked_reason(&self) -> Option<ShortString> {
        self.inner.shared.blocked()
    }
}

impl fmt::Debug for BlockingConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingConnection")
            .field("name", &self.inner.shared.name)
            .field("close_reason", &self.close_reason())
            .finish_non_exhaustive()
    }
}

impl ConnectionInner {
    /// Returns the reason as an error if the connection has ended or is closing.
    pub(crate) fn check_open(&self) -> Result<()> {
        match self.shared.end_error() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Returns the reason of the end, for a call that failed because of it.
    pub(crate) fn closed_error(&self) -> Error {
        self.shared.end_error().unwrap_or_else(Error::being_closed)
    }

    fn close(&self, code: ReplyCode, text: &str, deadline: Instant) {
        self.shared.send(Command::Close {
            code,
            text: ShortString::truncated(text),
            deadline,
        });
        // The IO thread has the same deadline and ends the connection itself.
        self.wait_for_io_thread(deadline + DEADLINE_GRACE);
    }

    /// Adds a channel to the list, until [`forget_channel`](Self::forget_channel).
    pub(crate) fn add_channel(&self, id: ChannelId, channel: WeakChannel) {
        self.channels.lock().insert(id.generation, channel);
    }

    pub(crate) fn forget_channel(&self, id: ChannelId) {
        self.channels.lock().remove(&id.generation);
    }

    /// Returns the channel, unless its last handle has been dropped.
    fn channel(&self, id: ChannelId) -> Option<BlockingChannel> {
        // Upgraded outside the lock: dropping a last handle takes it.
        let channel = self.channels.lock().get(&id.generation).cloned();
        channel.and_then(|channel| channel.upgrade())
    }

    /// Returns all channels that have handles.
    fn open_channels(&self) -> Vec<BlockingChannel> {
        let channels: Vec<_> = self.channels.lock().values().cloned().collect();
        let channels = channels.iter();
        channels.filter_map(WeakChannel::upgrade).collect()
    }

    /// Waits for the end of the IO thread until `deadline`.
    fn wait_for_io_thread(&self, deadline: Instant) {
        if self.shared.wait_for_io_thread(Some(deadline)) {
            if let Some(thread) = self.thread.lock().take() {
                // A panic of the thread is reported as the reason of the end.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for ConnectionInner {
    /// Closes the connection and waits for the end, at most for `drop_timeout`, so that the last
    /// publishes of a script arrive. Does not wait during a panic; in a callback, because the
    /// dispatching thread would wait; and while the broker blocks the connection, because it reads
    /// nothing then.
    fn drop(&mut self) {
        self.shared.abandon();
        let patient = !thread::panicking()
            && !is_in_callback()
            && self.shared.blocked().is_none()
            && self.shared.termination().is_none();
        let now = Instant::now();
        let deadline = now + self.limits.drop_timeout;
        // If the drop does not wait, the IO thread finishes the close in the background.
        self.shared.send(Command::Close {
            code: ReplyCode::REPLY_SUCCESS,
            text: "dropped".into(),
            deadline: deadline.max(now + self.limits.close_timeout),
        });
        if patient || self.shared.termination().is_some() {
            self.wait_for_io_thread(deadline);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::io::shared::connection::tests::shared;

    pub(crate) fn limits() -> Limits {
        let second = Duration::from_secs(1);
        Limits {
            rpc_timeout: second * 7,
            publish_timeout: second,
            close_timeout: second,
            drop_timeout: second,
            default_prefetch: 0,
            confirm_window: 1,
        }
    }

    /// A connection without an IO thread.
    pub(super) fn connection() -> BlockingConnection {
        BlockingConnection::from_inner(Arc::new(ConnectionInner {
            shared: shared(1 << 20),
            limits: limits(),
            thread: Mutex::default(),
            channels: Mutex::default(),
            callbacks: ConnectionCallbacks::default(),
            timers: Timers::default(),
            stops: Stops::default(),
        }))
    }
}
