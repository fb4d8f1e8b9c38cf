//! SASL mechanisms.

use super::secret::Secret;

/// A way to prove who one is: a SASL mechanism (RFC 4422) of your own, for
/// [`Credentials::custom`](crate::Credentials::custom).
///
/// The broker names its mechanisms. The one that is chosen speaks first; then it answers
/// what the broker asks, if it asks something, until the broker is content or hangs up.
/// All of this happens inside [`open`](crate::BlockingConnection::open), on its thread,
/// and counts towards `handshake_timeout`, so do not wait for anything in here.
///
/// RabbitMQ has one that is there to try this out, if it is told to (`auth_mechanisms`):
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
    /// Its name, as brokers announce it.
    fn name(&self) -> &str;

    /// The answer to `challenge`, or the initial response if there is none yet.
    /// `None`: there is no answer; the opening fails with
    /// [`ConnectFailure::NoAnswer`](crate::ConnectFailure::NoAnswer).
    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret>;
}
