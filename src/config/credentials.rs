//! Who one is to the broker.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::protocol::sasl::Mechanism;
use crate::protocol::secret::Secret;

/// User and password, or another way to say who one is; or several of them, in order.
///
/// ```
/// use cony::Credentials;
///
/// // The client certificate if the broker takes it, else the password.
/// let credentials = Credentials::external().or(Credentials::plain("guest", "secret"));
/// assert!(!format!("{credentials:?}").contains("secret"));
/// ```
///
/// A password never shows in `Debug` output, errors or the log. Whatever cony makes of it
/// is wiped from memory as soon as it is written, and the password itself when the last
/// copy of the credentials goes, or sooner: see [`erase_on_connect`](Self::erase_on_connect).
/// (What the TLS library and the system keep is out of reach, and so is the text of a URL
/// that the program holds.)
#[derive(Clone)]
pub struct Credentials {
    /// In order of preference.
    choices: Vec<Choice>,
    erase_on_connect: bool,
}

#[derive(Clone)]
enum Choice {
    Password {
        mechanism: PasswordMechanism,
        username: String,
        /// One for all clones, so that all are erased together.
        password: Arc<Mutex<Option<Secret>>>,
    },
    External,
    Anonymous,
    Custom(Arc<dyn Fn() -> Box<dyn Mechanism> + Send + Sync>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PasswordMechanism {
    Plain,
    AmqPlain,
}

impl Credentials {
    fn new(choice: Choice) -> Self {
        Self {
            choices: vec![choice],
            erase_on_connect: false,
        }
    }

    fn with_password(
        mechanism: PasswordMechanism,
        username: impl Into<String>,
        password: impl Into<Secret>,
    ) -> Self {
        Self::new(Choice::Password {
            mechanism,
            username: username.into(),
            password: Arc::new(Mutex::new(Some(password.into()))),
        })
    }

    /// User and password, sent with the SASL mechanism PLAIN (RFC 4616): readable on
    /// the network unless TLS is used. Neither can have a NUL in it.
    #[must_use]
    pub fn plain(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self::with_password(PasswordMechanism::Plain, username, password)
    }

    /// User and password, sent with AMQPLAIN, which some old brokers want: just as
    /// readable.
    #[must_use]
    pub fn amqplain(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self::with_password(PasswordMechanism::AmqPlain, username, password)
    }

    /// What the connection itself proves, such as a client certificate, with the SASL
    /// mechanism EXTERNAL (RFC 4422). RabbitMQ needs its plugin
    /// `rabbitmq_auth_mechanism_ssl` for it, and the listener must ask for a certificate.
    #[must_use]
    pub fn external() -> Self {
        Self::new(Choice::External)
    }

    /// Nobody in particular, with the SASL mechanism ANONYMOUS (RFC 4505); RabbitMQ has it
    /// from 4.0 on.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(Choice::Anonymous)
    }

    /// A mechanism of your own: see [`Mechanism`] for an example. The factory is called
    /// for every attempt to open a connection.
    #[must_use]
    pub fn custom<M, F>(factory: F) -> Self
    where
        M: Mechanism + 'static,
        F: Fn() -> M + Send + Sync + 'static,
    {
        Self::new(Choice::Custom(Arc::new(move || Box::new(factory()))))
    }

    /// These, or the others: the first in the list whose mechanism the broker announces
    /// is used. If the broker then refuses it, the opening fails; the next is not tried,
    /// since a broker would take that for guessing.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.choices.extend(other.choices);
        self.erase_on_connect |= other.erase_on_connect;
        self
    }

    /// Whether the passwords are wiped, in all clones, once a connection is open with
    /// them; then no second connection can be opened with them. Default: no.
    #[must_use]
    pub fn erase_on_connect(mut self, erase: bool) -> Self {
        self.erase_on_connect = erase;
        self
    }

    /// Wipes the passwords, in all clones. A later
    /// [`open`](crate::BlockingConnection::open) is [`Error::CredentialsErased`], unless
    /// there is another way in the list that needs no password.
    pub fn erase(&self) {
        for choice in &self.choices {
            if let Choice::Password { password, .. } = choice {
                password.lock().take();
            }
        }
    }

    /// A connection is open with these.
    pub(crate) fn connected(&self) {
        if self.erase_on_connect {
            self.erase();
        }
    }

    /// Checks that they can be used.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.are_erased() {
            return Err(Error::CredentialsErased);
        }
        self.choices.iter().try_for_each(Choice::validate)
    }

    /// Whether erased passwords are all there is.
    pub(crate) fn are_erased(&self) -> bool {
        self.choices.iter().all(|choice| match choice {
            Choice::Password { password, .. } => password.lock().is_none(),
            _ => false,
        })
    }

    /// The mechanisms to offer, in order of preference.
    pub(crate) fn mechanisms(&self) -> Vec<Box<dyn Mechanism>> {
        self.choices.iter().filter_map(Choice::mechanism).collect()
    }
}

impl Choice {
    fn validate(&self) -> Result<()> {
        let Self::Password {
            mechanism: PasswordMechanism::Plain,
            username,
            password,
        } = self
        else {
            return Ok(());
        };
        let rule = "PLAIN cannot carry a NUL; AMQPLAIN can";
        if username.contains('\0') {
            return Err(Error::invalid("username", username.escape_debug(), rule));
        }
        match password.lock().as_ref() {
            Some(password) if password.as_bytes().contains(&0) => {
                Err(Error::invalid("password", "…", rule))
            }
            _ => Ok(()),
        }
    }

    fn mechanism(&self) -> Option<Box<dyn Mechanism>> {
        let (name, response) = match self {
            Self::Password {
                mechanism,
                username,
                password,
            } => {
                let password = password.lock();
                (
                    mechanism.name(),
                    mechanism.response(username, password.as_ref()?),
                )
            }
            Self::External => ("EXTERNAL", Secret::default()),
            Self::Anonymous => ("ANONYMOUS", Secret::default()),
            Self::Custom(factory) => return Some(factory()),
        };
        Some(Box::new(OneResponse {
            name,
            response: Some(response),
        }))
    }
}

impl PasswordMechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::AmqPlain => "AMQPLAIN",
        }
    }

    fn response(self, username: &str, password: &Secret) -> Secret {
        let (username, password) = (username.as_bytes(), password.as_bytes());
        match self {
            Self::Plain => join(&[b"\0", username, b"\0", password]),
            // The fields of a table, without the length of the whole.
            Self::AmqPlain => join(&[
                b"\x05LOGINS",
                &long_length(username),
                username,
                b"\x08PASSWORDS",
                &long_length(password),
                password,
            ]),
        }
    }
}

/// The length of a long string. One that is too long for it is too long for the frame.
fn long_length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes()
}

fn join(parts: &[&[u8]]) -> Secret {
    let mut joined = Secret::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        joined.append(part);
    }
    joined
}

/// A mechanism that says one thing and answers no challenge.
struct OneResponse {
    name: &'static str,
    response: Option<Secret>,
}

impl Mechanism for OneResponse {
    fn name(&self) -> &str {
        self.name
    }

    fn respond(&mut self, challenge: Option<&[u8]>) -> Option<Secret> {
        match challenge {
            None => self.response.take(),
            Some(_) => None,
        }
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
        for (index, choice) in self.choices.iter().enumerate() {
            if index > 0 {
                f.write_str(" or ")?;
            }
            choice.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password {
                mechanism,
                username,
                ..
            } => write!(f, "{mechanism:?}({username:?}, ***)"),
            Self::External => f.write_str("External"),
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(credentials: &Credentials) -> Vec<u8> {
        let mut mechanisms = credentials.mechanisms();
        let response = mechanisms[0].respond(None).unwrap();
        response.as_bytes().to_vec()
    }

    fn names(credentials: &Credentials) -> Vec<String> {
        let mechanisms = credentials.mechanisms();
        mechanisms.iter().map(|one| one.name().into()).collect()
    }

    #[test]
    fn plain_is_user_and_password_behind_zeros() {
        let credentials = Credentials::plain("me", "pass");
        assert_eq!(response(&credentials), b"\0me\0pass");
    }

    #[test]
    fn amqplain_is_a_table_without_its_length() {
        let credentials = Credentials::amqplain("me", "pass");
        let expected = b"\x05LOGINS\0\0\0\x02me\x08PASSWORDS\0\0\0\x04pass";
        assert_eq!(response(&credentials), expected);
    }

    #[test]
    fn external_and_anonymous_have_nothing_to_say() {
        assert_eq!(response(&Credentials::external()), b"");
        assert_eq!(response(&Credentials::anonymous()), b"");
    }

    #[test]
    fn a_challenge_has_no_answer() {
        for credentials in [Credentials::default(), Credentials::external()] {
            let mut mechanisms = credentials.mechanisms();
            assert_eq!(mechanisms[0].respond(Some(b"more?")), None);
        }
    }

    #[test]
    fn a_list_keeps_its_order() {
        let list = Credentials::external()
            .or(Credentials::amqplain("a", "b"))
            .or(Credentials::plain("a", "b").or(Credentials::anonymous()));
        assert_eq!(names(&list), ["EXTERNAL", "AMQPLAIN", "PLAIN", "ANONYMOUS"]);
        let shown = r#"External or AmqPlain("a", ***) or Plain("a", ***) or Anonymous"#;
        assert_eq!(format!("{list:?}"), shown);
    }

    #[test]
    fn erased_is_erased_in_every_clone() {
        let credentials = Credentials::plain("me", "pass");
        let clone = credentials.clone();
        assert!(clone.validate().is_ok());
        credentials.erase();
        assert!(clone.mechanisms().is_empty());
        let outcome = clone.validate();
        assert!(
            matches!(outcome, Err(Error::CredentialsErased)),
            "{outcome:?}"
        );
        // What needs no password is still there.
        let list = clone.or(Credentials::external());
        assert!(list.validate().is_ok());
        assert_eq!(names(&list), ["EXTERNAL"]);
    }

    #[test]
    fn only_those_that_ask_for_it_are_erased_by_a_connection() {
        let kept = Credentials::plain("me", "pass");
        kept.connected();
        assert!(!kept.are_erased());
        let list = Credentials::external().or(kept.clone().erase_on_connect(true));
        list.connected();
        assert!(kept.are_erased(), "its clone is in the list");
    }

    #[test]
    fn plain_refuses_a_nul() {
        for (credentials, named) in [
            (Credentials::plain("a\0b", "hush"), "username"),
            (Credentials::plain("a", "hu\0sh"), "password"),
        ] {
            let error = credentials.validate().unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
            assert!(!error.to_string().contains("sh"), "{error}");
        }
        assert!(Credentials::amqplain("a\0b", "hu\0sh").validate().is_ok());
    }
}
