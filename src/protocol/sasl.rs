//! The interface of SASL mechanisms.

use super::secret::Secret;

/// A SASL mechanism (RFC 4422) of your own, for
/// [`Credentials::custom`](crate::Credentials::custom).
///
/// The broker announces its mechanisms, and cony uses your first one that it supports. The
/// mechanism sends an initial response. Then it answers each challenge of the broker, until the
/// broker accepts the credentials or refuses them. All of this happens inside
/// [`open`](crate::BlockingConnection::open), on the calling thread, and counts towards
/// `handshake_timeout`. So a mechanism should not block.
///
/// The following mechanism of RabbitMQ is meant for trying this out. The broker offers it if it is
/// enabled (`auth_mechanisms`):
///
/// ```
/// use cony::{BlockingConnection, ConnectionParameters, Credentials, Mechanism, Secret};
///
/// struct Demo;
///
/// impl Mechanism for Demo {
///     fn name(&self) -> &str {
///         "RABBIT-CR-DEMO"
///     }
///
///     fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
///         match challenge {
///             None => Some("guest".into()),
///             Some(b"Please tell me your password") => Some("My password is guest".into()),
///             Some(_) => None,
///         }
///     }
/// }
///
/// # let url = std::env::var("AMQP_URL").expect("AMQP_URL names a broker");
/// # /*
/// let url = "amqp://localhost";
/// # */
/// let parameters: ConnectionParameters = url.parse()?;
/// let credentials = Credentials::custom(|| Demo).or(Credentials::default());
/// let parameters = parameters.credentials(credentials);
/// BlockingConnection::open(parameters)?.close()?;
/// # Ok::<(), cony::Error>(())
/// ```
pub trait Mechanism {
    /// Returns the name that brokers announce.
    fn name(&self) -> &str;

    /// Returns the answer to `challenge`, or the initial response if `challenge` is `None`.
    ///
    /// If it returns `None`, the opening fails with
    /// [`ConnectError::NoAnswer`](crate::ConnectError::NoAnswer).
    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret>;
}
