//! Where to connect to, as whom, and within what limits.

mod validation;

use std::fmt;
use std::time::Duration;

use crate::config::credentials::Credentials;
#[cfg(feature = "tls")]
use crate::config::tls::TlsOptions;
use crate::io::cancellation::CancellationToken;
use crate::protocol::handshake::Offer;
use crate::protocol::table::FieldTable;

/// The port of `amqp://`.
pub(crate) const DEFAULT_PORT: u16 = 5672;
/// The port of `amqps://`.
pub(crate) const DEFAULT_TLS_PORT: u16 = 5671;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Where to connect to, as whom, and within what limits.
///
/// Built by hand, or from a URL:
///
/// ```
/// use std::time::Duration;
/// use cony::{ConnectionParameters, Credentials};
///
/// let by_hand = ConnectionParameters::new()
///     .host("rabbit1")
///     .virtual_host("web_messages")
///     .credentials(Credentials::plain("www-data", "rabbit_pwd"))
///     .heartbeat(Duration::from_secs(30));
///
/// let from_url: ConnectionParameters =
///     "amqp://www-data:rabbit_pwd@rabbit1/web_messages?heartbeat=30".parse()?;
/// # let _ = (by_hand, from_url);
/// # Ok::<(), cony::Error>(())
/// ```
///
/// A URL is `amqp://user:password@host:port/virtual_host?option=value&…`, or `amqps://`
/// for TLS. Every part may be left out; everything but letters and digits can be
/// percent-encoded. `%` must be (`%25`), `/` in the name of a virtual host (`%2f`), and each of
/// `/ ? # @ :` in user and password; control characters as well. No path, or
/// `/` alone, means the virtual host `/`. The options of a URL are those methods below
/// that say so; durations are in seconds, with fractions, unless noted. An option that is
/// unknown, empty or given twice is an error.
///
/// These options have no method of their own:
///
/// | option of a URL | |
/// |---|---|
/// | `auth_mechanism` | `plain`, `amqplain`, `external` or `anonymous`, instead of `plain`; given again, it names the next choice: [`Credentials::or`] |
/// | `cacertfile` | the authorities to trust, instead of the system's: [`TlsOptions::ca_file`] |
/// | `certfile`, `keyfile` | the client certificate and its key: [`TlsOptions::identity_pem_files`]; without `keyfile`, `certfile` has both, as PEM or PKCS #12 |
/// | `password` | the password of a `certfile` in PKCS #12 |
/// | `verify` | `verify_peer`, or `verify_none`: [`TlsOptions::danger_accept_invalid_certificates`] |
/// | `server_name_indication` | [`TlsOptions::server_name`], or `disable`: [`TlsOptions::server_name_indication`] |
/// | `depth`, `fail_if_no_peer_cert` | RabbitMQ's names; they have no effect on a client here |
/// | `ssl_options` | all of this in pika's form, a dict of Python with `ca_certs`, `cert_reqs`, `certfile`, `keyfile`, `ssl_version` |
///
/// Those of TLS need the scheme `amqps`. The numbers and names of Python's `ssl` are both
/// understood. `ssl_version` is taken for the lowest version to accept, and without
/// `cert_reqs` the broker's certificate is verified.
///
/// # Where the defaults are not those of pika 0.9.6
///
/// | | pika | cony | because |
/// |---|---|---|---|
/// | [`heartbeat`](Self::heartbeat) | off | 60 s | otherwise a dead network goes unnoticed |
/// | [`socket_timeout`](Self::socket_timeout) | 0.25 s | 10 s | real networks are slower |
/// | [`channel_max`](Self::channel_max) | 0 | 2047 | the broker's number, known beforehand |
/// | `cert_reqs` in `ssl_options` | `CERT_NONE` | `CERT_REQUIRED` | TLS without verification protects from nobody |
/// | [`connection_attempts`](Self::connection_attempts) | ignored by its blocking connection | 1, honoured | |
/// | [`default_prefetch`](Self::default_prefetch) | none | 200 | a worker on a deep queue must live |
///
/// And every wait has a deadline, where pika waits for ever.
#[cfg_attr(
    not(feature = "tls"),
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
    #[cfg(feature = "tls")]
    pub(crate) tls_options: TlsOptions,
    #[cfg(feature = "tls")]
    pub(crate) tls_connector: Option<native_tls::TlsConnector>,
    pub(crate) connection_attempts: u32,
    pub(crate) retry_delay: Duration,
    pub(crate) cancellation_token: CancellationToken,
    pub(crate) tcp_options: TcpOptions,
    pub(crate) socket_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) rpc_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) drop_timeout: Duration,
    pub(crate) blocked_connection_timeout: Option<Duration>,
    pub(crate) backpressure_detection: bool,
    pub(crate) busy_wait: Duration,
    pub(crate) max_message_size: u64,
    pub(crate) oversized: Oversized,
    pub(crate) default_prefetch: u16,
    pub(crate) confirm_window: usize,
    pub(crate) write_budget: usize,
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
            heartbeat: Duration::from_secs(60),
            locale: "en_US".into(),
            connection_name: None,
            client_properties: FieldTable::new(),
            tls: false,
            #[cfg(feature = "tls")]
            tls_options: TlsOptions::new(),
            #[cfg(feature = "tls")]
            tls_connector: None,
            connection_attempts: 1,
            retry_delay: Duration::from_secs(2),
            cancellation_token: CancellationToken::new(),
            tcp_options: TcpOptions::new(),
            socket_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(15),
            rpc_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(10),
            drop_timeout: Duration::from_secs(2),
            blocked_connection_timeout: None,
            backpressure_detection: false,
            busy_wait: Duration::from_micros(100),
            max_message_size: 128 * MIB as u64,
            oversized: Oversized::CloseChannel,
            default_prefetch: 200,
            confirm_window: 1000,
            write_budget: 4 * MIB,
            read_budget: 64 * MIB,
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $field:ident: $ty:ty,)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $field(mut self, $field: $ty) -> Self {
                self.$field = $field.into();
                self
            }
        )*
    };
}

impl ConnectionParameters {
    /// The defaults: `amqp://guest:guest@localhost:5672/%2f`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// The broker's name or address. Default: `localhost`.
        host: impl Into<String>,
        /// The broker's port. Default: 5672, with TLS 5671.
        port: u16,
        /// The virtual host. Default: `/`.
        virtual_host: impl Into<String>,
        /// Who one is. Default: `guest` with password `guest`.
        credentials: Credentials,
        /// The highest channel number to ask for; the broker may lower it. 0 leaves it to
        /// the broker. Default: 2047, RabbitMQ's own. URL option.
        channel_max: u16,
        /// The largest frame to ask for, in bytes; the broker may lower it. 0 leaves it to
        /// the broker. From 4096, for RabbitMQ 4.1 and later 8192, to 134217728 (128 MiB).
        /// Default: 131072. URL option.
        frame_max: u32,
        /// The heartbeat interval to ask for, in whole seconds; the broker may lower it.
        /// Zero switches heartbeats off. Default: 60 s (pika: off; a dead network would
        /// then go unnoticed). URL options `heartbeat` and `heartbeat_interval`.
        heartbeat: Duration,
        /// The language to ask for in the broker's messages. Default: `en_US`, which every
        /// broker has. URL option.
        locale: impl Into<String>,
        /// What RabbitMQ's management pages call this connection. URL option.
        connection_name: impl Into<Option<String>>,
        /// More that the broker should know of this client; overrides what cony says.
        client_properties: impl Into<FieldTable>,
        /// How often to try to connect, at least once. What another attempt cannot mend, such
        /// as a wrong password or certificate, ends them. Default: 1. URL option.
        connection_attempts: u32,
        /// How long to wait between attempts. Default: 2 s. URL option.
        retry_delay: Duration,
        /// Lets another thread give up the opening, whatever that waits for. Default: a token
        /// that is never cancelled. Those of a list
        /// ([`open_any`](crate::BlockingConnection::open_any)) need it each.
        cancellation_token: CancellationToken,
        /// Options of the socket. Default: [`TcpOptions::new`].
        tcp_options: TcpOptions,
        /// How long TCP may take to connect, for each address of the host. Default: 10 s
        /// (pika: 0.25 s, too short for real networks). URL options `socket_timeout`, and
        /// `connection_timeout` in milliseconds.
        socket_timeout: Duration,
        /// How long one attempt may take altogether: name, TCP, TLS and AMQP. All addresses of
        /// the host share it. Default: 15 s. URL option.
        handshake_timeout: Duration,
        /// How long a call may wait for its reply. Default: 30 s. URL option.
        rpc_timeout: Duration,
        /// How long a publish may wait for room. Default: 30 s.
        publish_timeout: Duration,
        /// How long a graceful close may take before the socket is dropped. Default: 10 s.
        close_timeout: Duration,
        /// How long dropping the last handle may wait for a graceful close. Default: 2 s.
        drop_timeout: Duration,
        /// How long the broker may block publishes, for lack of memory or disk, before the
        /// connection counts as lost. Default: for ever. URL option.
        blocked_connection_timeout: impl Into<Option<Duration>>,
        /// Whether the callbacks of pika's backpressure detection are called: when more
        /// waits to be written than some frames of average size. Default: no. URL option,
        /// `t` or `f`.
        backpressure_detection: bool,
        /// How long a thread looks for an answer before it goes to sleep for it: a round
        /// trip to a broker nearby takes less time than waking a thread. It looks only after
        /// it has asked, and less and less where that is in vain. Zero switches it off, as
        /// does a machine with one processor. At most 10 ms. Default: 100 µs.
        busy_wait: Duration,
        /// The largest body to accept, in bytes. A larger one closes its channel (311), unless
        /// [`oversized`](Self::oversized) says otherwise. Default: 128 MiB.
        max_message_size: u64,
        /// What becomes of a message that is larger than `max_message_size`. Default:
        /// [`Oversized::CloseChannel`].
        oversized: Oversized,
        /// The prefetch of channels whose first consumer starts before any `basic_qos`;
        /// 0 means none. Default: 200.
        default_prefetch: u16,
        /// How many publishes of a channel in confirm mode may be unconfirmed before the
        /// next one waits. Default: 1000.
        confirm_window: usize,
        /// How many bytes may wait to be written before publishes wait. Default: 4 MiB.
        write_budget: usize,
        /// How many bytes of deliveries may wait to be taken before reading pauses. A pause lasts
        /// 5 s at most, and there is none while a thread waits for the broker: for the reply to a
        /// call, for a confirm, for room to publish or for a delivery. Twice as many bytes are
        /// the most that waits, beside one message that is larger. A delivery that finds
        /// no room goes back to its queue and comes again later. Those that cannot go back
        /// (`no_ack`, streams, channels with transactions) stop reading, and RabbitMQ drops a
        /// client that reads nothing for half a minute or so
        /// ([`ConnectionLostError::NotRead`](crate::ConnectionLostError::NotRead)). Messages of which a part
        /// is here count as whole ones. Default: 64 MiB.
        read_budget: usize,
    }

    /// Whether to use TLS. Default: no. In a URL: the scheme `amqps`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Uses TLS, set up as these say. Default: [`TlsOptions::new`].
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_options(mut self, options: TlsOptions) -> Self {
        self.tls = true;
        self.tls_options = options;
        self
    }

    /// Uses TLS, set up as `connector` says. Of the [`TlsOptions`] only the
    /// [`server_name`](TlsOptions::server_name) then counts.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_connector(mut self, connector: native_tls::TlsConnector) -> Self {
        self.tls = true;
        self.tls_connector = Some(connector);
        self
    }

    pub(crate) fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(match self.tls {
            true => DEFAULT_TLS_PORT,
            false => DEFAULT_PORT,
        })
    }

    /// What goes into the handshake.
    pub(crate) fn offer(&self) -> Offer {
        Offer {
            client_properties: self.all_client_properties(),
            mechanisms: self.credentials.mechanisms(),
            locale: self.locale.as_str().into(),
            virtual_host: self.virtual_host.as_str().into(),
            channel_max: self.channel_max,
            frame_max: self.frame_max,
            heartbeat: u16::try_from(self.heartbeat.as_secs())
                .ok()
                .filter(|seconds| *seconds > 0),
        }
    }

    fn all_client_properties(&self) -> FieldTable {
        // Some of these change what RabbitMQ does: without them it says nothing of
        // cancelled consumers, of blocked publishers, and of wrong credentials.
        let capabilities = [
            "authentication_failure_close",
            "basic.nack",
            "connection.blocked",
            "consumer_cancel_notify",
            "exchange_exchange_bindings",
            "publisher_confirms",
        ];
        let capabilities: FieldTable = capabilities.map(|name| (name, true)).into();
        let platform = format!(
            "Rust ({}, {})",
            std::env::consts::OS,
            std::env::consts::ARCH
        );
        let mut properties = FieldTable::new()
            .with("product", "cony")
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("platform", platform)
            .with("capabilities", capabilities);
        if let Some(name) = &self.connection_name {
            properties.insert("connection_name", name.as_str());
        }
        let own = self.client_properties.clone();
        properties.extend(own);
        properties
    }
}

impl fmt::Debug for ConnectionParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ConnectionParameters");
        // None of these shows a secret of its own.
        shown
            .field("host", &self.host)
            .field("port", &self.port_or_default())
            .field("virtual_host", &self.virtual_host)
            .field("credentials", &self.credentials)
            .field("channel_max", &self.channel_max)
            .field("frame_max", &self.frame_max)
            .field("heartbeat", &self.heartbeat)
            .field("locale", &self.locale)
            .field("connection_name", &self.connection_name)
            .field("client_properties", &self.client_properties)
            .field("tls", &self.tls);
        #[cfg(feature = "tls")]
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
            .field("close_timeout", &self.close_timeout)
            .field("drop_timeout", &self.drop_timeout)
            .field(
                "blocked_connection_timeout",
                &self.blocked_connection_timeout,
            )
            .field("backpressure_detection", &self.backpressure_detection)
            .field("busy_wait", &self.busy_wait)
            .field("max_message_size", &self.max_message_size)
            .field("oversized", &self.oversized)
            .field("default_prefetch", &self.default_prefetch)
            .field("confirm_window", &self.confirm_window)
            .field("write_budget", &self.write_budget)
            .field("read_budget", &self.read_budget)
            .finish()
    }
}

/// What becomes of a message that is larger than
/// [`max_message_size`](ConnectionParameters::max_message_size). Its body takes no memory in either
/// case.
///
/// ```
/// use cony::{ConnectionParameters, Oversized};
///
/// let parameters = ConnectionParameters::new()
///     .max_message_size(1024 * 1024)
///     .oversized(Oversized::Reject);
/// # let _ = parameters;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Oversized {
    /// It closes its channel with 311, so that nobody overlooks it. The message goes back to its
    /// queue with all that is unsettled there, and comes again for the next consumer.
    #[default]
    CloseChannel,
    /// The program does not get it. It is rejected without requeue, as with
    /// [`basic_reject`](crate::BlockingChannel::basic_reject): the broker moves it to the dead
    /// letters of its queue, or drops it if the queue has none. The log has a warning, and
    /// [`stats`](crate::BlockingConnection::stats) counts it.
    ///
    /// What a `no_ack` consumer gets is lost. A stream keeps its message, which is acknowledged. A
    /// `basic_get` returns the next message that is small enough. On a channel with transactions
    /// the reject goes out with the next commit, or with one of the library's own as soon as the
    /// transaction is empty, and a rollback does not undo it. A mandatory message that comes back
    /// still closes the channel, for it belongs to a publish.
    Reject,
}

/// Options of the TCP socket.
///
/// ```
/// use std::time::Duration;
/// use cony::TcpOptions;
///
/// let options = TcpOptions::new().keepalive(Duration::from_secs(60));
/// # let _ = options;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpOptions {
    pub(crate) nodelay: bool,
    pub(crate) keepalive: Option<Duration>,
    pub(crate) send_buffer: Option<usize>,
    pub(crate) receive_buffer: Option<usize>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: None,
            send_buffer: None,
            receive_buffer: None,
        }
    }
}

impl TcpOptions {
    /// Nodelay on, everything else as the system has it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Whether small writes leave at once (`TCP_NODELAY`). Default: yes. cony gathers
        /// its writes itself; without this every call would wait for the network.
        nodelay: bool,
        /// Lets the system probe an idle connection after this time. Default: off;
        /// heartbeats notice sooner.
        keepalive: impl Into<Option<Duration>>,
        /// The size of the socket's send buffer in bytes. Default: the system's.
        send_buffer: impl Into<Option<usize>>,
        /// The size of the socket's receive buffer in bytes. Default: the system's.
        receive_buffer: impl Into<Option<usize>>,
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
    use crate::protocol::field_value::FieldValue;

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let shown = format!("{:?}", ConnectionParameters::new());
        for part in [
            "channel_max: 2047",
            "frame_max: 131072",
            "heartbeat: 60s",
            "connection_attempts: 1",
            "retry_delay: 2s",
            "socket_timeout: 10s",
            "handshake_timeout: 15s",
            "rpc_timeout: 30s",
            "publish_timeout: 30s",
            "close_timeout: 10s",
            "drop_timeout: 2s",
            "max_message_size: 134217728",
            "default_prefetch: 200",
            "confirm_window: 1000",
            "write_budget: 4194304",
            "read_budget: 67108864",
        ] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
    }

    #[test]
    fn own_client_properties_win() {
        let parameters = ConnectionParameters::new()
            .connection_name("worker 7".to_owned())
            .client_properties([("product", "mine")]);
        let properties = parameters.all_client_properties();
        let text = |name: &str| properties.get(name).and_then(FieldValue::as_str);
        assert_eq!(text("product"), Some("mine"));
        assert_eq!(text("connection_name"), Some("worker 7"));
        let capabilities = properties
            .get("capabilities")
            .and_then(FieldValue::as_table);
        assert_eq!(capabilities.map(FieldTable::len), Some(6));
    }

    #[test]
    fn all_but_secrets_shows() {
        let parameters = ConnectionParameters::new().credentials(Credentials::plain("u", "hush"));
        #[cfg(feature = "tls")]
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
}
