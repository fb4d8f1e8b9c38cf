//! The stages of the opening of a connection.

use std::fmt;

/// How far the opening of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The host's name is being resolved.
    Resolve,
    /// The TCP connection is being made.
    Tcp,
    /// TLS is being set up.
    Tls,
    /// The protocol header is sent; the broker should introduce itself.
    Header,
    /// The client has introduced itself; the broker checks its credentials.
    Start,
    /// Limits are agreed and the virtual host is asked for.
    Open,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolve => "while the host name was being resolved",
            Self::Tcp => "while TCP was connecting",
            Self::Tls => "while TLS was being set up",
            Self::Header => "after the protocol header was sent",
            Self::Start => "while the broker checked the credentials",
            Self::Open => "while the virtual host was being opened",
        })
    }
}
