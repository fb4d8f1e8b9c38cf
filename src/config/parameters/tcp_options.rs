//! Options of the TCP socket.

use std::time::Duration;

use super::settings::settings;

/// Options of the TCP socket, for
/// [`ConnectionParameters::tcp_options`](super::ConnectionParameters::tcp_options).
///
/// ```
/// use std::time::Duration;
/// use cony::TcpOptions;
///
/// let options = TcpOptions::new().keepalive(Duration::from_secs(60));
/// assert_eq!(options.get_keepalive(), Some(Duration::from_secs(60)));
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
    /// Returns the defaults: `nodelay`, and everything else as the operating system has it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

settings! {
    impl TcpOptions {
        /// Sets whether small writes are sent at once (`TCP_NODELAY`). Default: `true`. cony
        /// gathers its writes itself, so `false` only makes calls slower.
        nodelay: bool, copy get_nodelay: bool;
        /// Sets the idle time after which the operating system probes the connection, from 1 to
        /// 32767 s. `None` switches that off. Default: `None`, because heartbeats notice a dead
        /// peer sooner.
        keepalive: impl Into<Option<Duration>>, copy get_keepalive: Option<Duration>;
        /// Sets the size of the socket's send buffer, in bytes. Default: `None`, that of the
        /// operating system.
        send_buffer: impl Into<Option<usize>>, copy get_send_buffer: Option<usize>;
        /// Sets the size of the socket's receive buffer, in bytes. Default: `None`, that of the
        /// operating system.
        receive_buffer: impl Into<Option<usize>>, copy get_receive_buffer: Option<usize>;
    }
}
