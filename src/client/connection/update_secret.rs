//! A fresh secret for an open connection.

use crossbeam_channel::bounded;

use super::BlockingConnection;
use crate::error::Result;
use crate::io::shared::command::Command;
use crate::protocol::event::CallFailure;
use crate::protocol::secret::Secret;
use crate::protocol::wire::ShortString;

impl BlockingConnection {
    /// Hands in a fresh secret before the old one expires, such as a new OAuth 2 token
    /// (`rabbitmq_auth_backend_oauth2`). The reason goes to the broker's log, cut at 255
    /// bytes.
    ///
    /// One secret at a time is on its way; others wait, and that counts towards
    /// `rpc_timeout`. The secret is wiped from memory once it is written; what the TLS
    /// library keeps of it is out of reach.
    ///
    /// RabbitMQ passes it to the authentication backend that has let the user in. That of
    /// users with a password takes any secret, and changes nothing for it.
    ///
    /// ```
    /// # let connection = cony::BlockingConnection::open_default()?;
    /// # let token = String::from("a new token");
    /// connection.update_secret(token, "the old one expires")?;
    /// # Ok::<(), cony::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`](crate::Error::Timeout); [`Error::TooLong`](crate::Error::TooLong) for a secret that does not fit into one
    /// frame; the end of the connection, which is also what a secret costs that the
    /// broker does not take (530).
    pub fn update_secret(&self, new_secret: impl Into<Secret>, reason: &str) -> Result<()> {
        self.inner.check_open()?;
        let after = self.inner.limits.rpc_timeout;
        let (reply, outcome) = bounded(1);
        self.inner.shared.send(Command::UpdateSecret {
            secret: new_secret.into(),
            reason: ShortString::truncated(reason),
            deadline: self.inner.limits.call_deadline(),
            reply,
        });
        match self.inner.shared.finish(&outcome) {
            Ok(_) => Ok(()),
            Err(CallFailure::TimedOut) => {
                Err(self
                    .inner
                    .shared
                    .timeout("connection.update-secret", None, after))
            }
            Err(CallFailure::Encode(error)) => Err(error.into()),
            Err(_) => Err(self.inner.closed_error()),
        }
    }
}
