//! The settings of a connection: parameters, credentials, options of TLS, and URLs.

pub(crate) mod credentials;
pub(crate) mod parameters;
#[cfg(feature = "native-tls")]
pub(crate) mod tls;
pub(crate) mod uri;
