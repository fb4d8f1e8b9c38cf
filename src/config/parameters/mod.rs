//! The settings of a connection.

mod offer;
mod oversized;
pub(super) mod settings;
mod tcp_options;
mod validation;

use std::fmt;
use std::time::Duration;

pub use self::oversized::Oversized;
use self::settings::settings;
pub use self::tcp_options::TcpOptions;
use crate::config::credentials::Credentials;
use crate::config::recovery::Recovery;
#[cfg(feature = "native-tls")]
use crate::config::tls::TlsOptions;
use crate::io::cancellation::CancellationToken;
use crate::protocol::table::FieldTable;

/// The port of `amqp://`.
pub(crate) const DEFAULT_PORT: u16 = 5672;
/// The port of `amqps://`.
pub(crate) const DEFAULT_TLS_PORT: u16 = 5671;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The settings of a connection: address, credentials, limits and timeouts.
///
/// Set them with methods, or parse a URL with `parse()` or `ConnectionParameters::try_from(url)`.
/// Both can be combined:
///
/// ```
/// use std::time::Duration;
/// use cony::{ConnectionParameters, Credentials};
///
/// let by_methods = ConnectionParameters::new()
///     .host("rabbit1")
///     .virtual_host("web_messages")
///     .credentials(Credentials::plain("www-data", "rabbit_pwd"))
///     .heartbeat(Duration::from_secs(30));
///
/// let from_url: ConnectionParameters =
///     "amqp://www-data:rabbit_pwd@rabbit1/web_messages?heartbeat=30".parse()?;
/// assert_eq!(from_url.get_host(), by_methods.get_host());
/// let named = from_url.connection_name("worker");
/// # let _ = named;
/// # Ok::<(), cony::Error>(())
/// ```
///
/// Each setting has two methods: `host("…")` sets it, and `get_host()` returns it. Values are
/// checked when a connection is opened; a wrong one is an
/// [`Error::InvalidOption`](crate::Error::InvalidOption).
///
/// # URLs
///
/// The form is `amqp://user:password@host:port/virtual_host?option=value&…`, with `amqps://` for
/// TLS. Every part is optional. No path, or `/` alone, means the virtual host `/`.
///
/// Some characters must be percent-encoded:
///
/// | where | characters |
/// |---|---|
/// | everywhere | `%` (as `%25`), `#` (as `%23`), and control characters |
/// | in user and password | `/ ? @ :` (as `%2F`, `%3F`, `%40`, `%3A`) |
/// | in the name of the virtual host | `/ ?`, and `@` if the URL has no user |
/// | in the value of an option | `&` (as `%26`), and `@` if the URL has no user |
///
/// Other punctuation may be percent-encoded as well.
///
/// The options are the methods below that are marked "URL option". Durations are in seconds, with
/// fractions, unless noted. An option that is unknown, empty or given twice is an error.
///
/// These options are for the URL only:
///
/// | option of a URL | |
/// |---|---|
/// | `auth_mechanism` | `plain`, `amqplain`, `external` or `anonymous`, instead of `plain`; repeated, it names the next choice: [`Credentials::or`] |
/// | `cacertfile` | trusts only the authorities in this file. ([`TlsOptions::ca_file`] alone trusts those of the system as well; with `disable_built_in_roots(true)` it is the same) |
/// | `certfile`, `keyfile` | the client certificate and its key: [`TlsOptions::identity_pem_files`]; without `keyfile`, `certfile` has both, as PEM or PKCS #12 |
/// | `password` | the password of a `certfile` in PKCS #12 |
/// | `verify` | `verify_peer`, or `verify_none`: [`TlsOptions::danger_accept_invalid_certificates`] |
/// | `server_name_indication` | [`TlsOptions::server_name`], or `disable`: [`TlsOptions::server_name_indication`] |
/// | `depth`, `fail_if_no_peer_cert` | accepted, because RabbitMQ's specification has them, and ignored |
/// | `ssl_options` | the options of TLS in the form of pika: a dict of Python with the keys `ca_certs`, `cert_reqs`, `certfile`, `keyfile`, `ssl_version` |
///
/// Options of TLS need the scheme `amqps`. In `ssl_options`, the values of `cert_reqs` and
/// `ssl_version` are constants of Python's module `ssl`, written as a name (`ssl.CERT_REQUIRED`) or
/// as a number (`2`). `ssl_version` sets the lowest version to accept. Without `cert_reqs` the
/// broker's certificate is verified.
///
/// # Defaults that differ from pika 0.9.6
///
/// cony has all that the documentation of pika 0.9.6 describes, a client for Python. If you do not
/// move a program from pika to cony, you can skip this table.
///
/// | | pika | cony | because |
/// |---|---|---|---|
/// | [`heartbeat`](Self::heartbeat) | off | 10 s | otherwise a dead network goes unnoticed |
/// | [`recovery`](Self::recovery) | none | on | a restart of the broker is not the end of a program |
/// | [`socket_timeout`](Self::socket_timeout) | 0.25 s | 10 s | real networks are slower |
/// | [`channel_max`](Self::channel_max) | 0 | 2047 | the broker's default, known in advance |
/// | `cert_reqs` in `ssl_options` | `CERT_NONE` | `CERT_REQUIRED` | TLS without verification does not protect |
/// | [`connection_attempts`](Self::connection_attempts) | ignored by its blocking connection | 1, honoured | |
/// | [`default_prefetch`](Self::default_prefetch) | none | 200 | a consumer of a long queue must not run out of memory |
///
/// Also, every wait has a deadline here; pika waits without a limit.
#[cfg_attr(
    not(feature = "native-tls"),
    doc = "",
    doc = "[`TlsOptions::ca_file`]: index.html#features",
    doc = "[`TlsOptions::identity_pem_files`]: index.html#features",
    doc = "[`TlsOptions::danger_accept_invalid_certificates`]: index.html#features",
    doc = "[`TlsOptions::server_name`]: index.html#features",
    doc = "[`TlsOptions::server_name_indication`]: index.html#features"
)]
#[derive(Clone)]
pub struct ConnectionParameters {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    pub(crate) virtual_host: String,
    pub(crate) credentials: Credentials,
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    pub(crate) heartbeat: Duration,
    pub(crate) locale: String,
    pub(crate) connection_name: Option<String>,
    pub(crate) client_properties: FieldTable,
    pub(crate) tls: bool,
    #[cfg(feature = "native-tls")]
    pub(crate) tls_options: TlsOptions,
    #[cfg(feature = "native-tls")]
    pub(crate) tls_connector: Option<native_tls::TlsConnector>,
    pub(crate) connection_attempts: u32,
    pub(crate) retry_delay: Duration,
    pub(crate) cancellation_token: CancellationToken,
    pub(crate) tcp_options: TcpOptions,
    pub(crate) socket_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) rpc_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) confirm_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) drop_timeout: Duration,
    pub(crate) blocked_connection_timeout: Option<Duration>,
    pub(crate) recovery: Option<Recovery>,
    /// Whether `recovery` was set, and is not the default.
    pub(crate) is_recovery_set: bool,
    pub(crate) backpressure_detection: bool,
    pub(crate) busy_wait: Duration,
    pub(crate) max_message_size: u64,
    pub(crate) oversized: Oversized,
    pub(crate) default_prefetch: u16,
    pub(crate) confirm_window: usize,
    pub(crate) write_budget: usize,
    pub(crate) unconfirmed_budget: usize,
    pub(crate) read_budget: usize,
}

impl Default for ConnectionParameters {
    fn default() -> Self {
        Self {
            host: "localhost".into(),
            port: None,
            virtual_host: "/".into(),
            credentials: Credentials::default(),
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: Duration::from_secs(10),
            locale: "en_US".into(),
            connection_name: None,
            client_properties: FieldTable::new(),
            tls: false,
            #[cfg(feature = "native-tls")]
            tls_options: TlsOptions::new(),
            #[cfg(feature = "native-tls")]
            tls_connector: None,
            connection_attempts: 1,
            retry_delay: Duration::from_secs(2),
            cancellation_token: CancellationToken::new(),
            tcp_options: TcpOptions::new(),
            socket_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(15),
            rpc_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(120),
            confirm_timeout: Duration::from_secs(120),
            close_timeout: Duration::from_secs(10),
            drop_timeout: Duration::from_secs(2),
            blocked_connection_timeout: None,
            recovery: Some(Recovery::new()),
            is_recovery_set: false,
            backpressure_detection: false,
            busy_wait: Duration::from_micros(100),
            max_message_size: 128 * MIB as u64,
            oversized: Oversized::CloseChannel,
            default_prefetch: 200,
            confirm_window: 1000,
            write_budget: 4 * MIB,
            unconfirmed_budget: 16 * MIB,
            read_budget: 64 * MIB,
        }
    }
}

impl ConnectionParameters {
    /// Returns the defaults: `amqp://guest:guest@localhost:5672/%2f`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the port of the broker. Default: 5672, with TLS 5671.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Sets the name of this connection in RabbitMQ's management pages and in the log of cony.
    /// Default: none; the log uses host and port. URL option.
    #[must_use]
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        self.connection_name = Some(name.into());
        self
    }

    /// Sets how a lost connection is opened again. `None` switches recovery off: the loss then ends
    /// the connection. Default: [`Recovery::new`]. URL option, `on` or `off`.
    ///
    /// Recovery begins when the connection is open. The attempts of the opening itself are set with
    /// [`connection_attempts`](Self::connection_attempts). The guide has a page about
    /// [recovery](crate::guide::recovery).
    ///
    /// Recovery is off if the credentials have
    /// [`erase_on_connect`](crate::Credentials::erase_on_connect), because cony cannot log in again
    /// without the password. If you have set recovery as well, a warning in the log says so.
    ///
    /// ```
    /// use std::time::Duration;
    /// use cony::{ConnectionParameters, Recovery};
    ///
    /// let parameters = ConnectionParameters::new();
    /// assert_eq!(parameters.get_recovery(), Some(&Recovery::new()));
    /// let limited = parameters.clone().recovery(Recovery::new().limit(Duration::from_secs(600)));
    /// # let by_url: ConnectionParameters = "amqp://?recovery_limit=600".parse()?;
    /// # assert_eq!(by_url.get_recovery(), limited.get_recovery());
    /// let without = parameters.recovery(None);
    /// assert_eq!(without.get_recovery(), None);
    /// # Ok::<(), cony::Error>(())
    /// ```
    #[must_use]
    pub fn recovery(mut self, recovery: impl Into<Option<Recovery>>) -> Self {
        self.recovery = recovery.into();
        self.is_recovery_set = true;
        self
    }
}

settings! {
    impl ConnectionParameters {
        /// Sets the name or the address of the broker's host. Default: `localhost`. If the name has
        /// several addresses, they are tried 250 ms apart, and the first that connects is used.
        host: impl Into<String>, reference get_host: str;
        /// Sets the virtual host. Default: `/`.
        virtual_host: impl Into<String>, reference get_virtual_host: str;
        /// Sets the credentials. Default: the user `guest` with the password `guest`. Credentials
        /// that change come from a [provider](crate::Credentials::provider).
        credentials: Credentials, reference get_credentials: Credentials;
        /// Sets the highest channel number to request; the broker may lower it. 0 leaves it to the
        /// broker. Default: 2047, as in RabbitMQ. URL option.
        channel_max: u16, copy get_channel_max: u16;
        /// Sets the size of the largest frame to request, in bytes; the broker may lower it. 0
        /// leaves it to the broker. From 4096 (for RabbitMQ 4.1 and later from 8192, see
        /// [`ConnectError::FrameMaxRefused`](crate::ConnectError::FrameMaxRefused)) to 134217728
        /// (128 MiB). Default: 131072. URL option.
        frame_max: u32, copy get_frame_max: u32;
        /// Sets the heartbeat interval to request, in whole seconds; the broker may lower it. Zero
        /// switches heartbeats off. A connection on which nothing arrives for two intervals is
        /// lost. Default: 10 s. URL options `heartbeat` and `heartbeat_interval`.
        ///
        /// Both sides check this: a program that stands still for two to three intervals loses its
        /// connection as well.
        heartbeat: Duration, copy get_heartbeat: Duration;
        /// Sets the language of the broker's texts. Default: `en_US`, which every broker has. URL
        /// option.
        locale: impl Into<String>, reference get_locale: str;
        /// Adds client properties for the broker. They replace properties of cony with the same
        /// name. Default: none.
        client_properties: impl Into<FieldTable>, reference get_client_properties: FieldTable;
        /// Sets the number of attempts to connect, at least 1. An error that another attempt cannot
        /// change, such as a wrong password, ends the attempts: see
        /// [`Error::is_retryable`](crate::Error::is_retryable). Default: 1. URL option.
        connection_attempts: u32, copy get_connection_attempts: u32;
        /// Sets the pause between two attempts. Default: 2 s. URL option.
        retry_delay: Duration, copy get_retry_delay: Duration;
        /// Sets the token with which another thread can cancel the opening. Default: a token that
        /// nothing cancels. With [`open_any`](crate::BlockingConnection::open_any), give each entry
        /// of the list a clone of it.
        cancellation_token: CancellationToken, reference get_cancellation_token: CancellationToken;
        /// Sets the options of the TCP socket. Default: [`TcpOptions::new`].
        tcp_options: TcpOptions, reference get_tcp_options: TcpOptions;
        /// Sets how long TCP may take to connect to one address of the host. Default: 10 s. URL
        /// options `socket_timeout`, and `connection_timeout` in milliseconds.
        socket_timeout: Duration, copy get_socket_timeout: Duration;
        /// Sets how long one attempt may take in all: name, TCP, TLS and AMQP. The addresses of the
        /// host share this time. Default: 15 s. URL option.
        handshake_timeout: Duration, copy get_handshake_timeout: Duration;
        /// Sets how long a call waits for the reply of the broker before it fails with
        /// [`Error::Timeout`](crate::Error::Timeout). Default: 30 s. URL option.
        ///
        /// This applies to every method with a reply, such as `queue_declare`. A `close` has
        /// [`close_timeout`](Self::close_timeout) instead, and the wait for a confirm has
        /// [`confirm_timeout`](Self::confirm_timeout). A request of an
        /// [`RpcClient`](crate::RpcClient) has a timeout of its own, the argument of its call.
        rpc_timeout: Duration, copy get_rpc_timeout: Duration;
        /// Sets how long a publish waits for room before it fails with
        /// [`Error::PublishTimeout`](crate::Error::PublishTimeout). Zero: it fails at once, also in
        /// an outage. Default: 120 s. URL option.
        publish_timeout: Duration, copy get_publish_timeout: Duration;
        /// Sets how long [`PublisherConfirm::wait`](crate::PublisherConfirm::wait) waits for the
        /// confirm of the broker before it fails with [`Error::Timeout`](crate::Error::Timeout).
        /// Default: 120 s. URL option.
        confirm_timeout: Duration, copy get_confirm_timeout: Duration;
        /// Sets how long `close` of a connection or of a channel may take, including the wait for
        /// confirms. After this time a connection closes its socket without the broker's reply.
        /// Default: 10 s.
        close_timeout: Duration, copy get_close_timeout: Duration;
        /// Sets how long dropping the last handle of a connection waits for its close. Default: 2
        /// s.
        drop_timeout: Duration, copy get_drop_timeout: Duration;
        /// Sets how long the broker may block publishes, for lack of memory or disk, before the
        /// connection is lost with [`BlockedTooLong`](crate::ConnectionLostError::BlockedTooLong).
        /// `None` is no limit. Default: `None`. URL option.
        blocked_connection_timeout: impl Into<Option<Duration>>,
            copy get_blocked_connection_timeout: Option<Duration>;
        /// Sets whether the callbacks of
        /// [`add_backpressure_callback`](crate::BlockingConnection::add_backpressure_callback) are
        /// called. Default: `false`. URL option, `t` or `f`.
        backpressure_detection: bool, copy get_backpressure_detection: bool;
        /// Sets how long a waiting thread checks in a loop (*spins*) before it sleeps. At most 10
        /// ms. Default: 100 µs. Zero switches spinning off.
        ///
        /// A broker nearby replies in less time than it takes to wake a sleeping thread, so
        /// spinning makes round trips faster. It costs processor time. cony spins
        ///
        /// - for the reply to a call, and for the confirm of one message;
        /// - for a place in a confirm window of at most 32 messages;
        /// - for a delivery, on a channel with a prefetch of at most 32.
        ///
        /// If the event often does not come soon enough, cony spins more rarely.
        busy_wait: Duration, copy get_busy_wait: Duration;
        /// Sets the size of the largest body to accept, in bytes. A larger one closes its channel
        /// (311), unless [`oversized`](Self::oversized) is set. Default: 128 MiB.
        max_message_size: u64, copy get_max_message_size: u64;
        /// Sets how to handle a message that is larger than `max_message_size`. Default:
        /// [`Oversized::CloseChannel`].
        oversized: Oversized, copy get_oversized: Oversized;
        /// Sets the prefetch for channels on which your program does not call
        /// [`basic_qos`](crate::BlockingChannel::basic_qos); 0 is no limit. Default: 200.
        ///
        /// cony sends this prefetch to the broker before the first consumer of a channel that
        /// acknowledges. A call of `basic_qos` on the channel takes its place.
        default_prefetch: u16, copy get_default_prefetch: u16;
        /// Sets how many publishes of a channel in confirm mode may be unconfirmed. The next
        /// publish waits, at most for [`publish_timeout`](Self::publish_timeout). Default: 1000.
        ///
        /// The confirm window counts publishes until the broker confirms them;
        /// [`write_budget`](Self::write_budget) counts bytes until they are written to the socket.
        confirm_window: usize, copy get_confirm_window: usize;
        /// Sets how many bytes may wait to be written to the socket. While more bytes wait, each
        /// publish waits too, at most for [`publish_timeout`](Self::publish_timeout). Default: 4
        /// MiB.
        ///
        /// This limits the memory for publishes; [`read_budget`](Self::read_budget) limits the
        /// memory for deliveries.
        write_budget: usize, copy get_write_budget: usize;
        /// Sets how many bytes of unconfirmed publishes may be kept, to send them again after a
        /// loss of the connection. At this limit a publish in confirm mode waits, at most for
        /// [`publish_timeout`](Self::publish_timeout). Default: 16 MiB. URL option
        /// `unconfirmed_budget`, in bytes.
        ///
        /// The bytes count for all channels of the connection together, from the publish to its
        /// confirm. Publishes outside confirm mode do not count, and with [`Recovery::resend`] off
        /// none does. A larger message passes when no other one is kept. In an outage, publishes in
        /// confirm mode are accepted until the budget or the
        /// [`confirm_window`](Self::confirm_window) is used up.
        unconfirmed_budget: usize, copy get_unconfirmed_budget: usize;
        /// Sets how many bytes of deliveries may wait to be taken by the program. Default: 64 MiB.
        ///
        /// While more bytes wait, the IO thread pauses reading from the socket, for at most 5 s.
        /// The IO thread does not pause while a thread of your program waits for the broker: for a
        /// reply, a confirm, room to publish, or a delivery.
        ///
        /// When the IO thread reads on, more deliveries arrive. Up to twice the budget they are
        /// kept. A delivery beyond that is *held back*: cony drops its content, and requeues it
        /// when there is room again. The broker then delivers the message once more. So at most
        /// twice the budget is in memory, plus one message that is larger than the budget. A
        /// message of which only a part has arrived counts with its whole size.
        ///
        /// Deliveries of `no_ack` consumers, of streams, and on channels with transactions cannot
        /// be requeued. When twice the budget is used up and they take more than a sixteenth of it,
        /// the IO thread reads nothing until your program takes some of them. RabbitMQ closes the
        /// connection of a client that reads nothing for about half a minute
        /// ([`NotRead`](crate::ConnectionLostError::NotRead)).
        read_budget: usize, copy get_read_budget: usize;
    }
}

impl ConnectionParameters {
    /// Returns the setting [`port`](Self::port), or the default port for the scheme.
    pub fn get_port(&self) -> u16 {
        self.port.unwrap_or(match self.tls {
            true => DEFAULT_TLS_PORT,
            false => DEFAULT_PORT,
        })
    }

    /// Returns the setting [`connection_name`](Self::connection_name).
    pub fn get_connection_name(&self) -> Option<&str> {
        self.connection_name.as_deref()
    }

    /// Returns the setting [`recovery`](Self::recovery).
    pub fn get_recovery(&self) -> Option<&Recovery> {
        self.recovery.as_ref()
    }
}

/// # TLS
#[cfg(feature = "native-tls")]
impl ConnectionParameters {
    /// Sets whether to use TLS. Default: `false`. In a URL this is the scheme `amqps`.
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Uses TLS with these options. Default: [`TlsOptions::new`].
    #[must_use]
    pub fn tls_options(mut self, options: TlsOptions) -> Self {
        self.tls = true;
        self.tls_options = options;
        self
    }

    /// Uses TLS with this connector. Of the [`TlsOptions`] only
    /// [`server_name`](TlsOptions::server_name) then has an effect. The type is re-exported as
    /// [`cony::native_tls`](crate::native_tls).
    ///
    /// ```
    /// use cony::{ConnectionParameters, native_tls::TlsConnector};
    ///
    /// let connector = TlsConnector::builder().use_sni(false).build()?;
    /// let parameters = ConnectionParameters::new().tls_connector(connector);
    /// assert!(parameters.get_tls());
    /// # Ok::<(), cony::native_tls::Error>(())
    /// ```
    #[must_use]
    pub fn tls_connector(mut self, connector: native_tls::TlsConnector) -> Self {
        self.tls = true;
        self.tls_connector = Some(connector);
        self
    }

    /// Returns the setting [`tls`](Self::tls).
    pub fn get_tls(&self) -> bool {
        self.tls
    }

    /// Returns the setting [`tls_options`](Self::tls_options).
    pub fn get_tls_options(&self) -> &TlsOptions {
        &self.tls_options
    }

    /// Returns the setting [`tls_connector`](Self::tls_connector).
    pub fn get_tls_connector(&self) -> Option<&native_tls::TlsConnector> {
        self.tls_connector.as_ref()
    }
}

impl fmt::Debug for ConnectionParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ConnectionParameters");
        // The `Debug` of each of these types hides its secrets.
        shown
            .field("host", &self.host)
            .field("port", &self.get_port())
            .field("virtual_host", &self.virtual_host)
            .field("credentials", &self.credentials)
            .field("channel_max", &self.channel_max)
            .field("frame_max", &self.frame_max)
            .field("heartbeat", &self.heartbeat)
            .field("locale", &self.locale)
            .field("connection_name", &self.connection_name)
            .field("client_properties", &self.client_properties)
            .field("tls", &self.tls);
        #[cfg(feature = "native-tls")]
        shown
            .field("tls_options", &self.tls_options)
            .field("tls_connector", &self.tls_connector);
        shown
            .field("connection_attempts", &self.connection_attempts)
            .field("retry_delay", &self.retry_delay)
            .field("cancellation_token", &self.cancellation_token)
            .field("tcp_options", &self.tcp_options)
            .field("socket_timeout", &self.socket_timeout)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("rpc_timeout", &self.rpc_timeout)
            .field("publish_timeout", &self.publish_timeout)
            .field("confirm_timeout", &self.confirm_timeout)
            .field("close_timeout", &self.close_timeout)
            .field("drop_timeout", &self.drop_timeout)
            .field(
                "blocked_connection_timeout",
                &self.blocked_connection_timeout,
            )
            .field("recovery", &self.recovery)
            .field("backpressure_detection", &self.backpressure_detection)
            .field("busy_wait", &self.busy_wait)
            .field("max_message_size", &self.max_message_size)
            .field("oversized", &self.oversized)
            .field("default_prefetch", &self.default_prefetch)
            .field("confirm_window", &self.confirm_window)
            .field("write_budget", &self.write_budget)
            .field("unconfirmed_budget", &self.unconfirmed_budget)
            .field("read_budget", &self.read_budget)
            .finish()
    }
}

impl From<&ConnectionParameters> for ConnectionParameters {
    fn from(parameters: &ConnectionParameters) -> Self {
        parameters.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let shown = format!("{:?}", ConnectionParameters::new());
        for part in [
            "channel_max: 2047",
            "frame_max: 131072",
            "heartbeat: 10s",
            "connection_attempts: 1",
            "retry_delay: 2s",
            "socket_timeout: 10s",
            "handshake_timeout: 15s",
            "rpc_timeout: 30s",
            "publish_timeout: 120s",
            "confirm_timeout: 120s",
            "recovery: Some(Recovery { max_delay: 30s, limit: None, ",
            "close_timeout: 10s",
            "drop_timeout: 2s",
            "max_message_size: 134217728",
            "default_prefetch: 200",
            "confirm_window: 1000",
            "write_budget: 4194304",
            "unconfirmed_budget: 16777216",
            "read_budget: 67108864",
        ] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    }

    #[test]
    fn debug_shows_everything_but_secrets() {
        let parameters = ConnectionParameters::new().credentials(Credentials::plain("u", "hush"));
        #[cfg(feature = "native-tls")]
        let parameters = parameters.tls_options(
            TlsOptions::new()
                .identity_pkcs12("hush", "hush")
                .ca_file("ca.pem"),
        );
        let shown = format!("{parameters:?} {parameters:#?}");
        assert!(!shown.contains("hush"), "{shown}");
        for part in [
            "Plain(\"u\", ***)",
            "retry_delay: 2s",
            "read_budget: 67108864",
        ] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    }

    #[test]
    fn a_getter_returns_the_value_of_the_setter_with_its_name() {
        let second = Duration::from_secs(1);
        let parameters = ConnectionParameters::new()
            .host("h")
            .port(7)
            .virtual_host("v")
            .connection_name("worker")
            .client_properties([("product", "mine")])
            .channel_max(5)
            .rpc_timeout(second)
            .confirm_timeout(second * 4)
            .blocked_connection_timeout(second * 2)
            .oversized(Oversized::Reject)
            .tcp_options(TcpOptions::new().keepalive(second * 3).nodelay(false));
        assert_eq!(parameters.get_host(), "h");
        assert_eq!(parameters.get_port(), 7);
        assert_eq!(parameters.get_virtual_host(), "v");
        assert_eq!(parameters.get_connection_name(), Some("worker"));
        assert_eq!(parameters.get_client_properties().len(), 1);
        assert_eq!(parameters.get_channel_max(), 5);
        assert_eq!(parameters.get_rpc_timeout(), second);
        assert_eq!(parameters.get_confirm_timeout(), second * 4);
        let blocked = parameters.get_blocked_connection_timeout();
        assert_eq!(blocked, Some(second * 2));
        assert_eq!(parameters.get_oversized(), Oversized::Reject);
        let tcp = parameters.get_tcp_options();
        assert_eq!(tcp.get_keepalive(), Some(second * 3));
        assert!(!tcp.get_nodelay());
        let token = parameters.get_cancellation_token();
        token.cancel();
        assert!(
            parameters.cancellation_token.is_cancelled(),
            "it is a clone"
        );
    }

    #[test]
    fn the_port_depends_on_the_scheme_unless_it_is_set() {
        assert_eq!(ConnectionParameters::new().get_port(), 5672);
        assert_eq!(ConnectionParameters::new().get_connection_name(), None);
        #[cfg(feature = "native-tls")]
        assert_eq!(ConnectionParameters::new().tls(true).get_port(), 5671);
    }
}
