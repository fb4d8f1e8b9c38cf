//! Where to connect to, as whom, and within what limits.

use std::fmt;
use std::time::Duration;

use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::protocol::frame::FRAME_MIN_SIZE;
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
/// percent-encoded, and `/` in the name of a virtual host must be (`%2f`). No path, or
/// `/` alone, means the virtual host `/`. The options of a URL are those methods below
/// that say so; durations are in seconds, with fractions, unless noted. An unknown
/// option is an error.
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
    pub(crate) tls_connector: Option<native_tls::TlsConnector>,
    pub(crate) connection_attempts: u32,
    pub(crate) retry_delay: Duration,
    pub(crate) backpressure_detection: bool,
    pub(crate) blocked_connection_timeout: Option<Duration>,
    pub(crate) tcp_options: TcpOptions,
    pub(crate) socket_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) rpc_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(crate) close_timeout: Duration,
    pub(crate) drop_timeout: Duration,
    pub(crate) max_message_size: u64,
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
            tls_connector: None,
            connection_attempts: 1,
            retry_delay: Duration::from_secs(2),
            backpressure_detection: false,
            blocked_connection_timeout: None,
            tcp_options: TcpOptions::new(),
            socket_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(15),
            rpc_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(10),
            drop_timeout: Duration::from_secs(2),
            max_message_size: 128 * MIB as u64,
            default_prefetch: 1000,
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
        /// the broker. At least 4096, for RabbitMQ 4.1 and later 8192. Default: 131072.
        /// URL option.
        frame_max: u32,
        /// The heartbeat interval to ask for, in whole seconds; the broker may lower it.
        /// Zero switches heartbeats off. Default: 60 s (pika: off; a dead network would
        /// then go unnoticed). URL options `heartbeat` and `heartbeat_interval`.
        heartbeat: Duration,
        /// The language of the broker's messages. Default: `en_US`. URL option.
        locale: impl Into<String>,
        /// What RabbitMQ's management pages call this connection. URL option.
        connection_name: impl Into<Option<String>>,
        /// More that the broker should know of this client; overrides what cony says.
        client_properties: impl Into<FieldTable>,
        /// How often to try to connect, at least once. Default: 1. URL option.
        connection_attempts: u32,
        /// How long to wait between attempts. Default: 2 s. URL option.
        retry_delay: Duration,
        /// Whether to call back on backpressure. Default: no.
        backpressure_detection: bool,
        /// How long the broker may block publishes. Default: no limit.
        blocked_connection_timeout: impl Into<Option<Duration>>,
        /// Options of the socket. Default: [`TcpOptions::new`].
        tcp_options: TcpOptions,
        /// How long TCP may take to connect, for each address of the host. Default: 10 s
        /// (pika: 0.25 s, too short for real networks). URL options `socket_timeout`, and
        /// `connection_timeout` in milliseconds.
        socket_timeout: Duration,
        /// How long one attempt may take altogether: name, TCP, TLS and AMQP. Default: 15 s.
        handshake_timeout: Duration,
        /// How long a call may wait for its reply. Default: 30 s.
        rpc_timeout: Duration,
        /// How long a publish may wait for room. Default: 30 s.
        publish_timeout: Duration,
        /// How long a graceful close may take before the socket is dropped. Default: 10 s.
        close_timeout: Duration,
        /// How long dropping the last handle may wait for a graceful close. Default: 2 s.
        drop_timeout: Duration,
        /// The largest body to accept, in bytes; a larger one closes its channel (311).
        /// Default: 128 MiB.
        max_message_size: u64,
        /// The prefetch of channels whose first consumer starts before any `basic_qos`;
        /// 0 means none. Default: 1000.
        default_prefetch: u16,
        /// How many publishes of a channel in confirm mode may be unconfirmed before the
        /// next one waits. Default: 1000.
        confirm_window: usize,
        /// How many bytes may wait to be written before publishes wait. Default: 4 MiB.
        write_budget: usize,
        /// How many bytes of deliveries may wait to be taken before reading pauses.
        /// Default: 64 MiB.
        read_budget: usize,
    }

    /// Whether to use TLS. Default: no. In a URL: the scheme `amqps`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// Uses TLS, set up as `connector` says, instead of with the system's roots.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_connector(mut self, connector: native_tls::TlsConnector) -> Self {
        self.tls = true;
        self.tls_connector = Some(connector);
        self
    }

    /// Checks what the types do not.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.host.is_empty() {
            return Err(Error::invalid("host", "", "it needs a name or an address"));
        }
        if self.frame_max != 0 && self.frame_max < FRAME_MIN_SIZE {
            let rule = "it must be 0 or at least 4096 (RabbitMQ 4.1 and later: 8192)";
            return Err(Error::invalid("frame_max", self.frame_max, rule));
        }
        if self.connection_attempts == 0 {
            return Err(Error::invalid("connection_attempts", 0, "at least one"));
        }
        let heartbeat = self.heartbeat;
        if heartbeat.subsec_nanos() != 0 || heartbeat.as_secs() > u64::from(u16::MAX) {
            let rule = "whole seconds up to 65535, or 0 for off";
            return Err(Error::invalid("heartbeat", format!("{heartbeat:?}"), rule));
        }
        for (option, value) in [
            ("virtual_host", &self.virtual_host),
            ("locale", &self.locale),
        ] {
            if value.len() > 255 {
                return Err(Error::invalid(option, value, "at most 255 bytes"));
            }
        }
        for (option, timeout) in [
            ("socket_timeout", self.socket_timeout),
            ("handshake_timeout", self.handshake_timeout),
            ("rpc_timeout", self.rpc_timeout),
            ("publish_timeout", self.publish_timeout),
            ("close_timeout", self.close_timeout),
            ("drop_timeout", self.drop_timeout),
            ("retry_delay", self.retry_delay),
        ] {
            // More would overflow the clock's arithmetic.
            if timeout > Duration::from_secs(100 * 365 * 86_400) {
                let rule = "at most a hundred years";
                return Err(Error::invalid(option, format!("{timeout:?}"), rule));
            }
        }
        for (option, timeout) in [
            ("socket_timeout", self.socket_timeout),
            ("handshake_timeout", self.handshake_timeout),
        ] {
            if timeout.is_zero() {
                return Err(Error::invalid(option, 0, "more than zero"));
            }
        }
        Ok(())
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
        f.debug_struct("ConnectionParameters")
            .field("host", &self.host)
            .field("port", &self.port_or_default())
            .field("virtual_host", &self.virtual_host)
            .field("credentials", &self.credentials)
            .field("tls", &self.tls)
            .field("connection_name", &self.connection_name)
            .field("channel_max", &self.channel_max)
            .field("frame_max", &self.frame_max)
            .field("heartbeat", &self.heartbeat)
            .finish_non_exhaustive()
    }
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
    use crate::protocol::table::FieldValue;

    fn refused(parameters: ConnectionParameters) -> String {
        match parameters.validate() {
            Err(Error::InvalidOption { option, .. }) => option,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(ConnectionParameters::new().validate().is_ok());
    }

    #[test]
    fn a_bad_value_names_its_option() {
        let new = ConnectionParameters::new;
        assert_eq!(refused(new().host("")), "host");
        assert_eq!(refused(new().frame_max(4095)), "frame_max");
        assert_eq!(refused(new().connection_attempts(0)), "connection_attempts");
        assert_eq!(
            refused(new().heartbeat(Duration::from_millis(1500))),
            "heartbeat"
        );
        assert_eq!(
            refused(new().heartbeat(Duration::from_secs(65_536))),
            "heartbeat"
        );
        assert_eq!(refused(new().virtual_host("v".repeat(256))), "virtual_host");
        assert_eq!(
            refused(new().handshake_timeout(Duration::ZERO)),
            "handshake_timeout"
        );
        assert_eq!(refused(new().rpc_timeout(Duration::MAX)), "rpc_timeout");
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
    fn secrets_do_not_show() {
        let parameters = ConnectionParameters::new().credentials(Credentials::plain("u", "hush"));
        assert!(!format!("{parameters:?}").contains("hush"));
    }
}
