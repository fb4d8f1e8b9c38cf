//! [`BlockingConnection`]. What stands in the way of one is in `opening`; what it calls back
//! for in `events`, and the loops that do that in `dispatch`.

mod callbacks;
mod exists;
mod open;
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
use crate::client::callbacks::lock::is_in_callback;
use crate::client::channel::{BlockingChannel, Unheard, WeakChannel, confirms_share};
use crate::config::parameters::ConnectionParameters;
use crate::error::{Error, Result};
use crate::io;
use crate::io::shared::command::Command;
use crate::io::shared::connection::ConnectionShared;
use crate::protocol::event::{ChannelId, Termination};
use crate::protocol::reply_code::{ClosedBy, ReplyCode};
use crate::protocol::table::FieldTable;
use crate::protocol::wire::ShortString;

/// A connection to a broker.
///
/// Cheap to clone and safe to share: every clone is the same connection. It closes when
/// the last clone is dropped, and the last [`BlockingChannel`] and
/// [`Consumer`](crate::Consumer) of it. A script need not do more: dropping waits until the
/// broker has confirmed the close, at most for `drop_timeout`, so that what was
/// published last arrives. [`close`](Self::close) does the same and tells how it went.
///
/// One background thread owns the socket and sends the heartbeats, so a connection
/// stays alive whatever the program's threads do.
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

/// What the handles share; the last one closes.
pub(crate) struct ConnectionInner {
    pub(crate) shared: Arc<ConnectionShared>,
    pub(crate) limits: Limits,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The channels that have handles, by their generation.
    channels: Mutex<HashMap<u64, WeakChannel>>,
    callbacks: ConnectionCallbacks,
    timers: Timers,
    stops: Stops,
}

/// The parameters that channels and calls go by.
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
    /// When a call that begins now has to have its reply.
    pub(crate) fn call_deadline(&self) -> Instant {
        Instant::now() + self.rpc_timeout
    }
}

/// What to wait beyond the IO thread's own deadline before it counts as gone.
const DEADLINE_GRACE: Duration = Duration::from_secs(2);

impl BlockingConnection {
    /// Opens a connection, to where a URL or [`ConnectionParameters`] say.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`]; [`Error::Connect`] with how far it came;
    /// [`Error::AuthenticationFailed`], [`Error::AccessDenied`],
    /// [`Error::UnsupportedProtocol`], [`Error::NotAmqp`]. [`Error::OpenCancelled`], if another
    /// thread cancels its [token](ConnectionParameters::cancellation_token).
    pub fn open<P>(parameters: P) -> Result<Self>
    where
        P: TryInto<ConnectionParameters>,
        Error: From<P::Error>,
    {
        let parameters = parameters.try_into()?;
        parameters.validate()?;
        let mut attempt = 1;
        let mut pause = Duration::ZERO;
        loop {
            if parameters.cancellation_token.wait(pause) {
                return Err(Error::OpenCancelled {
                    address: parameters.host,
                    stage: None,
                });
            }
            match Self::try_open(&parameters) {
                Ok(connection) => return Ok(connection),
                Err(error)
                    if attempt >= parameters.connection_attempts || !error.is_retryable() =>
                {
                    return Err(error);
                }
                Err(error) => log::warn!("attempt {attempt} to connect: {error}"),
            }
            attempt += 1;
            pause = parameters.retry_delay;
        }
    }

    /// Opens a connection to where the environment variable `AMQP_URL` says; without
    /// one, or if it is empty, with the default parameters.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); [`Error::InvalidOption`] as well for a variable that is not
    /// UTF-8.
    pub fn open_default() -> Result<Self> {
        Self::open(open::default_parameters(std::env::var_os("AMQP_URL"))?)
    }

    /// Opens a connection to the first broker of a list that lets it.
    ///
    /// Each is tried in turn, with its own attempts; what stood in the way of the earlier
    /// ones is in the log.
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
    /// As [`open`](Self::open), of the last one; [`Error::InvalidOption`] for an empty list;
    /// [`Error::OpenCancelled`] of any one, and then no further one is tried.
    pub fn open_any<P>(list: impl IntoIterator<Item = P>) -> Result<Self>
    where
        P: TryInto<ConnectionParameters>,
        Error: From<P::Error>,
    {
        let mut last = Error::invalid("brokers", "none", "the list needs at least one");
        for parameters in list {
            match Self::open(parameters) {
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

    fn try_open(parameters: &ConnectionParameters) -> Result<Self> {
        let target = open::target(parameters)?;
        let (shared, thread) = io::open::open(&target, || parameters.offer())
            .map_err(|error| open::refused(error, parameters))?;
        parameters.credentials.connected();
        log::info!("{}: connected", shared.name);
        Ok(Self {
            inner: Arc::new(ConnectionInner {
                shared,
                limits: Limits {
                    rpc_timeout: parameters.rpc_timeout,
                    publish_timeout: parameters.publish_timeout,
                    close_timeout: parameters.close_timeout,
                    drop_timeout: parameters.drop_timeout,
                    default_prefetch: parameters.default_prefetch,
                    confirm_window: parameters.confirm_window,
                },
                thread: Mutex::new(Some(thread)),
                channels: Mutex::default(),
                callbacks: ConnectionCallbacks::default(),
                timers: Timers::default(),
                stops: Stops::default(),
            }),
        })
    }

    pub(crate) fn from_inner(inner: Arc<ConnectionInner>) -> Self {
        Self { inner }
    }

    /// Opens a channel, under the lowest number that is free.
    ///
    /// The number of a channel that is closed is free when the broker has answered. If all
    /// others are taken, this waits for that, until `rpc_timeout`.
    ///
    /// # Errors
    ///
    /// [`Error::NoFreeChannels`] if every number is taken and none is about to be free;
    /// [`Error::Timeout`], the end of the connection.
    pub fn channel(&self) -> Result<BlockingChannel> {
        BlockingChannel::open(&self.inner, None)
    }

    /// Opens a channel under this number, from 1 to [`channel_max`](Self::channel_max). If the
    /// last channel of that number is closing, this waits for the broker's answer.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidChannelNumber`], [`Error::ChannelNumberInUse`], and those of
    /// [`channel`](Self::channel).
    pub fn channel_with_number(&self, number: u16) -> Result<BlockingChannel> {
        BlockingChannel::open(&self.inner, Some(number))
    }

    /// Closes the connection: what was published goes out, outstanding confirms are waited
    /// for, channels and consumers end.
    ///
    /// Returns when the broker has confirmed, or else when `close_timeout` has passed
    /// and the socket is dropped. Closing a connection that this program has closed
    /// before is Ok.
    ///
    /// # Errors
    ///
    /// The reason, if the connection had ended before, or ends now in another way, also by a
    /// close of the broker that crosses this one: then what was published last may be lost.
    /// So it is if the stream ends in place of the broker's answer, unless everything that was
    /// published is confirmed.
    /// What the program has not been told of a channel that it has a handle of:
    /// [`Error::ChannelClosed`], if the broker has ended that, with what was published on it;
    /// in confirm mode also [`Error::Unconfirmed`] and [`Error::PublishFailures`], as
    /// [`BlockingChannel::close`] has them, of all channels together.
    pub fn close(&self) -> Result<()> {
        self.close_with(ReplyCode::REPLY_SUCCESS, "Normal shutdown")
    }

    /// The same with a code and a text for the broker's log. The text is cut at 255
    /// bytes.
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
        let told = self.tell_closed();
        match self.inner.shared.termination() {
            Some(Termination::Closed(reason)) if reason.by == ClosedBy::Application => {
                let ends = channels.iter().zip(interrupted).filter(|_| is_first);
                let unheard = ends.map(|(channel, end)| channel.inner().unheard(end));
                Unheard::sum(unheard).map_or(told, Err)
            }
            Some(termination) => Err(termination.into()),
            None => Err(self.inner.shared.timeout("connection.close", None, timeout)),
        }
    }

    /// Drops the socket now, without a word to the broker. Nothing waits for anything.
    ///
    /// What calls back [when the connection is over](Self::add_on_close_callback) is left to
    /// whoever dispatches.
    pub fn disconnect(&self) {
        self.inner.shared.send(Command::Disconnect);
        self.inner.wait_ended(Instant::now() + DEADLINE_GRACE);
    }

    /// Whether the connection is neither closing nor closed.
    ///
    /// This is the state that this side knows: `true` does not promise that the broker can be
    /// reached, and the next call may still fail.
    pub fn is_open(&self) -> bool {
        !self.is_closing() && !self.is_closed()
    }

    /// Whether this program has begun to close the connection, and the close is not finished.
    pub fn is_closing(&self) -> bool {
        self.inner.shared.is_closing() && !self.is_closed()
    }

    /// Whether the connection has ended for good, with [`close_reason`](Self::close_reason).
    pub fn is_closed(&self) -> bool {
        self.inner.shared.termination().is_some()
    }

    /// Returns the reason of the end, if the connection has ended.
    pub fn close_reason(&self) -> Option<Error> {
        self.inner.shared.termination().map(Error::from)
    }

    /// Waits until the connection is over, and tells why.
    pub fn wait_closed(&self) -> Error {
        self.inner.shared.wait_ended(None);
        self.inner.closed_error()
    }

    /// What the broker says of itself: product, version, capabilities and more.
    pub fn server_properties(&self) -> &FieldTable {
        &self.inner.shared.negotiated.server_properties
    }

    /// Whether the broker knows `basic.nack`.
    pub fn supports_basic_nack(&self) -> bool {
        self.has_capability("basic.nack")
    }

    /// Whether the broker tells when it cancels a consumer.
    pub fn supports_consumer_cancel_notify(&self) -> bool {
        self.has_capability("consumer_cancel_notify")
    }

    /// Whether the broker can bind exchanges to exchanges.
    pub fn supports_exchange_exchange_bindings(&self) -> bool {
        self.has_capability("exchange_exchange_bindings")
    }

    /// Whether the broker can confirm publishes.
    pub fn supports_publisher_confirms(&self) -> bool {
        self.has_capability("publisher_confirms")
    }

    fn has_capability(&self, name: &str) -> bool {
        self.server_properties()
            .get("capabilities")
            .and_then(|value| value.as_table()?.get(name)?.as_bool())
            .unwrap_or(false)
    }

    /// The highest channel number that was negotiated.
    pub fn channel_max(&self) -> u16 {
        self.inner.shared.negotiated.channel_max
    }

    /// The largest frame that was negotiated, in bytes.
    pub fn frame_max(&self) -> u32 {
        self.inner.shared.negotiated.frame_max
    }

    /// The heartbeat interval that was negotiated; zero means off.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.inner.shared.negotiated.heartbeat.into())
    }

    /// Whether the broker takes no publishes for now, for lack of memory or disk.
    pub fn is_blocked(&self) -> bool {
        self.blocked_reason().is_some()
    }

    /// Why the broker takes no publishes, if it does not.
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
    /// The reason, if the connection is over or about to be.
    pub(crate) fn check_open(&self) -> Result<()> {
        match self.shared.end() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Why the connection is over, now that something has failed for it.
    pub(crate) fn closed_error(&self) -> Error {
        self.shared.end().unwrap_or_else(Error::being_closed)
    }

    fn close(&self, code: ReplyCode, text: &str, deadline: Instant) {
        self.shared.send(Command::Close {
            code,
            text: ShortString::truncated(text),
            deadline,
        });
        // The IO thread keeps the deadline; a little more, and it must be gone.
        self.wait_ended(deadline + DEADLINE_GRACE);
    }

    /// Notes a channel, until [`forget_channel`](Self::forget_channel).
    pub(crate) fn add_channel(&self, id: ChannelId, channel: WeakChannel) {
        self.channels.lock().insert(id.generation, channel);
    }

    pub(crate) fn forget_channel(&self, id: ChannelId) {
        self.channels.lock().remove(&id.generation);
    }

    /// The channel, unless its last handle is gone.
    fn channel(&self, id: ChannelId) -> Option<BlockingChannel> {
        // Upgraded outside the lock, which the end of a last handle takes.
        let channel = self.channels.lock().get(&id.generation).cloned();
        channel.and_then(|channel| channel.upgrade())
    }

    /// All channels that have handles.
    fn open_channels(&self) -> Vec<BlockingChannel> {
        let channels: Vec<_> = self.channels.lock().values().cloned().collect();
        let channels = channels.iter();
        channels.filter_map(WeakChannel::upgrade).collect()
    }

    /// Waits for the end of the IO thread, unless it is late.
    fn wait_ended(&self, deadline: Instant) {
        if self.shared.wait_ended(Some(deadline)) {
            if let Some(thread) = self.thread.lock().take() {
                // Its panic is reported as the connection's end.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for ConnectionInner {
    /// Closes, and waits for it a little: a script that ends here must not take its last
    /// publishes with it. Not while panicking, not in a callback, whose loop waits for
    /// it, and not when the broker has said that it takes nothing.
    fn drop(&mut self) {
        self.shared.abandon();
        let patient = !thread::panicking()
            && !is_in_callback()
            && self.shared.blocked().is_none()
            && self.shared.termination().is_none();
        let now = Instant::now();
        let deadline = now + self.limits.drop_timeout;
        // What this does not wait for goes on in the background.
        self.shared.send(Command::Close {
            code: ReplyCode::REPLY_SUCCESS,
            text: "dropped".into(),
            deadline: deadline.max(now + self.limits.close_timeout),
        });
        if patient || self.shared.termination().is_some() {
            self.wait_ended(deadline);
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
