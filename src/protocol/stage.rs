//! The stages of the opening of a connection.

use std::fmt;

/// A stage of the opening of a connection, in the order in which they follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The [provider](crate::Credentials::provider) of the credentials runs.
    Credentials,
    /// The host name is being resolved.
    Resolve,
    /// The TCP connection is being established.
    Tcp,
    /// TLS is being established.
    Tls,
    /// The protocol header is sent, and the broker has not answered yet.
    Header,
    /// The credentials are sent, and the broker checks them.
    Start,
    /// The limits are negotiated, and the virtual host is being opened.
    Open,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Credentials => "while the provider of the credentials ran",
            Self::Resolve => "while the host name was being resolved",
            Self::Tcp => "while TCP was connecting",
            Self::Tls => "while TLS was being set up",
            Self::Header => "after the protocol header was sent",
            Self::Start => "while the broker checked the credentials",
            Self::Open => "while the virtual host was being opened",
        })
    }
}
