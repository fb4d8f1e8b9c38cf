//! Who one is to the broker.

use std::fmt;

use zeroize::Zeroizing;

use crate::protocol::handshake::Mechanism;
use crate::protocol::wire::LongString;

/// User and password, or another way to say who one is.
///
/// The password is wiped from memory when the last copy of this goes, and never shows in
/// `Debug` output, errors or the log. (What was sent to the broker is not wiped yet.)
///
/// ```
/// use cony::Credentials;
///
/// let credentials = Credentials::plain("guest", "secret");
/// assert!(!format!("{credentials:?}").contains("secret"));
/// ```
#[derive(Clone)]
pub struct Credentials(Kind);

#[derive(Clone)]
enum Kind {
    Plain {
        username: String,
        password: Zeroizing<String>,
    },
    External,
}

impl Credentials {
    /// User and password, sent with the SASL mechanism PLAIN (RFC 4616): readable on
    /// the network unless TLS is used.
    pub fn plain(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self(Kind::Plain {
            username: username.into(),
            password: Zeroizing::new(password.into()),
        })
    }

    /// What the connection itself proves, such as a client certificate, with the SASL
    /// mechanism EXTERNAL.
    pub fn external() -> Self {
        Self(Kind::External)
    }

    /// The mechanisms to offer, in order of preference.
    pub(crate) fn mechanisms(&self) -> Vec<Box<dyn Mechanism + Send>> {
        vec![Box::new(self.clone())]
    }
}

impl Default for Credentials {
    /// `guest` with the password `guest`, whom RabbitMQ lets in from localhost only.
    fn default() -> Self {
        Self::plain("guest", "guest")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Plain { username, .. } => write!(f, "Plain({username:?}, ***)"),
            Kind::External => f.write_str("External"),
        }
    }
}

impl Mechanism for Credentials {
    fn name(&self) -> &str {
        match self.0 {
            Kind::Plain { .. } => "PLAIN",
            Kind::External => "EXTERNAL",
        }
    }

    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<LongString> {
        match (&self.0, challenge) {
            (Kind::Plain { username, password }, None) => {
                let response = format!("\0{username}\0{}", password.as_str());
                Some(response.into())
            }
            (Kind::External, None) => Some("".into()),
            (_, Some(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_user_and_password_behind_zeros() {
        let response = Credentials::plain("me", "pass").respond(None).unwrap();
        assert_eq!(&*response, b"\0me\0pass");
    }

    #[test]
    fn a_challenge_has_no_answer() {
        assert_eq!(Credentials::default().respond(Some(b"more?")), None);
        assert_eq!(Credentials::external().respond(Some(b"")), None);
    }
}
