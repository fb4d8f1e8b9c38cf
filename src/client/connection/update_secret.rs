//! `update_secret`: a new secret for an open connection.

use crossbeam_channel::bounded;

use super::BlockingConnection;
use crate::client::channel::call_error;
use crate::error::Result;
use crate::io::shared::command::Command;
use crate::protocol::secret::Secret;
use crate::protocol::wire::ShortString;

impl BlockingConnection {
    /// Sends a new secret before the old one expires, such as an OAuth 2 token
    /// (`rabbitmq_auth_backend_oauth2`). `reason` is for the broker's log and is cut at 255 bytes.
    ///
    /// Secrets are sent one at a time, so a call may wait for an earlier one. This wait counts in
    /// [`rpc_timeout`](crate::ConnectionParameters::rpc_timeout). The secret is wiped from memory
    /// when it is written, or with [recovery](crate::ConnectionParameters::recovery) at the end of
    /// the connection; copies in the TLS library are not.
    ///
    /// From the call on, each attempt of recovery logs in with the new secret, in place of the
    /// password of the same user in [`Credentials`](crate::Credentials). This holds for every
    /// broker of [`open_any`](Self::open_any). The credentials of the program stay as they are, and
    /// a [`Mechanism`](crate::Mechanism) of the program provides its own secrets. A
    /// [`provider`](crate::Credentials::provider) is asked for each login as before, so the new
    /// secret is for the open connection only. In an outage the call waits for the next connection,
    /// whose login already uses the new secret.
    ///
    /// RabbitMQ passes the secret to the authentication backend of the user. The backend for
    /// passwords accepts any secret and ignores it. So pass such a user's real password, or the
    /// next login is refused.
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
    /// - [`Error::Timeout`](crate::Error::Timeout) if the reply does not arrive within
    ///   `rpc_timeout`.
    /// - [`Error::TooLong`](crate::Error::TooLong) for a secret that does not fit into one frame.
    /// - [`Error::ConnectionClosed`](crate::Error::ConnectionClosed) or
    ///   [`Error::ConnectionLost`](crate::Error::ConnectionLost) if the connection has ended. The
    ///   broker closes it (530) if it refuses the secret.
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
        let shared = &self.inner.shared;
        match shared.await_outcome(&outcome) {
            Ok(_) => Ok(()),
            Err(failure) => {
                let operation = "connection.update-secret";
                Err(call_error(shared, None, failure, operation, after, None))
            }
        }
    }
}
