//! How to connect: parameters, credentials, TLS, and the URL that can hold all of them.

pub(crate) mod credentials;
pub(crate) mod parameters;
#[cfg(feature = "native-tls")]
pub(crate) mod tls;
pub(crate) mod uri;
