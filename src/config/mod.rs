//! The settings of a connection: parameters, credentials, recovery, options of
//! TLS, and URLs.

pub(crate) mod credentials;
pub(crate) mod parameters;
pub(crate) mod recovery;
#[cfg(feature = "native-tls")]
pub(crate) mod tls;
pub(crate) mod uri;
