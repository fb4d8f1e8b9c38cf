//! The credentials of a connection.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::protocol::sasl::Mechanism;
use crate::protocol::secret::Secret;

/// How to authenticate: user and password, a client certificate, anonymous access, credentials from
/// a function of the program, or a list of these in order of preference.
///
/// ```
/// use cony::Credentials;
///
/// // The client certificate if the broker accepts certificates, otherwise the password.
/// let credentials = Credentials::external().or(Credentials::plain("guest", "secret"));
/// assert!(!format!("{credentials:?}").contains("secret"));
/// ```
///
/// The default is the user `guest` with the password `guest`, which RabbitMQ accepts from localhost
/// only.
///
/// # Secrets
///
/// A password never appears in `Debug` output, errors or the log. The bytes that cony sends are
/// wiped from memory when they are written. The password is wiped when the last clone of the
/// credentials is dropped, or sooner: see [`erase_on_connect`](Self::erase_on_connect). Credentials
/// from a [`provider`](Self::provider) are dropped after each attempt. Copies in the TLS library
/// and the operating system cannot be wiped, nor can the text of a URL that the program holds.
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
        /// Shared by all clones, so that all are erased together.
        password: Arc<Mutex<Option<Secret>>>,
    },
    External,
    Anonymous,
    Custom(Arc<dyn Fn() -> Box<dyn Mechanism> + Send + Sync>),
    Provider(Arc<Provider>),
}

/// A function of the program that returns credentials.
struct Provider {
    provide: Box<dyn Fn() -> Result<Credentials> + Send + Sync>,
    /// The number of its calls in progress. Most attempts have given up those that hang.
    running: AtomicUsize,
}

/// The number of calls of one provider in progress above which no other one begins. A provider that
/// hangs would otherwise cost a thread for each attempt, forever.
const RUNNING_MAX: usize = 100;

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

    /// Returns credentials of user and password, for the SASL mechanism PLAIN (RFC 4616). Neither
    /// of them may contain a NUL. Without TLS the password can be read on the network.
    ///
    /// ```
    /// use cony::{ConnectionParameters, Credentials};
    ///
    /// let password = std::env::var("RABBIT_PASSWORD").unwrap_or_default();
    /// let credentials = Credentials::plain("www-data", password);
    /// let parameters = ConnectionParameters::new().credentials(credentials);
    /// # let _ = parameters;
    /// ```
    #[must_use]
    pub fn plain(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self::with_password(PasswordMechanism::Plain, username, password)
    }

    /// Returns credentials of user and password, for the mechanism AMQPLAIN, which some old brokers
    /// need. Without TLS the password can be read on the network.
    #[must_use]
    pub fn amqplain(username: impl Into<String>, password: impl Into<Secret>) -> Self {
        Self::with_password(PasswordMechanism::AmqPlain, username, password)
    }

    /// Returns credentials that rely on the client certificate of the TLS connection, for the SASL
    /// mechanism EXTERNAL (RFC 4422). RabbitMQ needs its plugin `rabbitmq_auth_mechanism_ssl`, and
    /// a listener that verifies client certificates.
    #[must_use]
    pub fn external() -> Self {
        Self::new(Choice::External)
    }

    /// Returns anonymous credentials, for the SASL mechanism ANONYMOUS (RFC 4505). RabbitMQ has it
    /// since 4.0.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::new(Choice::Anonymous)
    }

    /// Returns credentials for a SASL mechanism of the program: see [`Mechanism`] for an example.
    /// `factory` is called for every attempt to open a connection.
    #[must_use]
    pub fn custom<M, F>(factory: F) -> Self
    where
        M: Mechanism + 'static,
        F: Fn() -> M + Send + Sync + 'static,
    {
        Self::new(Choice::Custom(Arc::new(move || Box::new(factory()))))
    }

    /// Returns credentials that `provider` provides anew for each attempt to open a connection:
    /// each one of [`open`](crate::BlockingConnection::open), of
    /// [`connection_attempts`](crate::ConnectionParameters::connection_attempts), of each broker of
    /// [`open_any`](crate::BlockingConnection::open_any), and of
    /// [recovery](crate::ConnectionParameters::recovery). This is for passwords and tokens that
    /// change, such as OAuth 2 tokens, and the users of HashiCorp Vault, whose names change too.
    ///
    /// ```
    /// use cony::{BlockingConnection, ConnectionParameters, Credentials, Error};
    ///
    /// # let folder = std::env::temp_dir().join(format!("cony-provider-{}", std::process::id()));
    /// # std::fs::create_dir_all(&folder).unwrap();
    /// # std::fs::write(folder.join("user"), "guest").unwrap();
    /// # std::fs::write(folder.join("password"), "guest\n").unwrap();
    /// # let (user, password) = (folder.join("user"), folder.join("password"));
    /// // Two files that another program replaces, such as the agent of Vault.
    /// let credentials = Credentials::provider(move || {
    ///     let read = |file| std::fs::read_to_string(file).map_err(Error::other);
    ///     Ok(Credentials::plain(read(&user)?.trim(), read(&password)?.trim()))
    /// });
    /// # let url = std::env::var("AMQP_URL").unwrap();
    /// let parameters: ConnectionParameters = url.parse()?;
    /// let connection = BlockingConnection::open(parameters.credentials(credentials))?;
    /// # connection.close()?;
    /// # std::fs::remove_dir_all(&folder).unwrap();
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// For an OAuth 2 token return `Credentials::plain("", token)`: RabbitMQ takes the user from
    /// the token. If the provider keeps a token for later calls, it must see to it that the token
    /// is still valid: a call may also mean that the broker has refused the last one.
    ///
    /// # A call
    ///
    /// The call comes before the name of the host is resolved, so it is made even if the broker
    /// cannot be reached. Its time counts in
    /// [`handshake_timeout`](crate::ConnectionParameters::handshake_timeout). It runs on a thread
    /// of its own, and the calls for several connections may run at the same time. cony holds no
    /// lock meanwhile, so the provider may use other connections. It must not have a handle of the
    /// connection that it is for: that connection would never be dropped, and its calls wait for
    /// the end of the outage.
    ///
    /// At the timeout, and when the program cancels the opening or closes the connection, cony does
    /// not wait for the call any longer. The call itself cannot be interrupted, and the credentials
    /// that it returns later are dropped. While 100 calls of one provider are in progress, each
    /// further attempt fails.
    ///
    /// # Errors
    ///
    /// Pass errors of your own with [`Error::other`]. An opening whose provider fails returns
    /// [`Error::ProviderFailed`] with the error inside. It is retryable if the error is your own or
    /// itself retryable. A panic counts as an error of your own. Credentials that cannot be used
    /// are a failure too, which is not retryable: erased ones, a NUL for PLAIN, another provider.
    ///
    /// For recovery each of these is a failed attempt, which another one follows.
    /// [`Outage::last`](crate::Outage::last) has the error.
    ///
    /// If the broker refuses the returned credentials, recovery asks the provider again for the
    /// next attempt. It gives up after five refusals in a row, in 15 s or more, as with a password.
    ///
    /// # With other settings
    ///
    /// - In a list ([`or`](Self::or)) the returned credentials stand at the place of the provider.
    ///   The provider is called even if an entry before it is used.
    /// - The provider is called for each attempt after
    ///   [`update_secret`](crate::BlockingConnection::update_secret) as well, and the new secret
    ///   does not replace its answer.
    /// - `erase_on_connect` of the returned credentials has no effect: cony drops them after the
    ///   attempt.
    #[must_use]
    pub fn provider<F>(provider: F) -> Self
    where
        F: Fn() -> Result<Self> + Send + Sync + 'static,
    {
        Self::new(Choice::Provider(Arc::new(Provider {
            provide: Box::new(provider),
            running: AtomicUsize::new(0),
        })))
    }

    /// Appends `other` to the list. The first entry whose mechanism the broker offers is used.
    ///
    /// If the broker refuses that entry, the opening fails. The next entry is not tried, because
    /// the broker would count a second attempt as guessing.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        self.choices.extend(other.choices);
        self.erase_on_connect |= other.erase_on_connect;
        self
    }

    /// Sets whether the passwords are wiped, in all clones, when a connection has been opened with
    /// them. With `true` the credentials are good for one connection only, so
    /// [recovery](crate::ConnectionParameters::recovery) is off. Default: `false`.
    #[must_use]
    pub fn erase_on_connect(mut self, erase: bool) -> Self {
        self.erase_on_connect = erase;
        self
    }

    /// Wipes the passwords, in all clones. A later [`open`](crate::BlockingConnection::open) fails
    /// with [`Error::CredentialsErased`], unless the list has an entry without a password. So does
    /// the recovery of a connection, with [`Error::RecoveryFailed`].
    pub fn erase(&self) {
        for choice in &self.choices {
            if let Choice::Password { password, .. } = choice {
                password.lock().take();
            }
        }
    }

    /// Returns the user of the first entry with a user and a password. Returns `None` if there is
    /// no such entry. The password is never returned.
    ///
    /// ```
    /// use cony::Credentials;
    ///
    /// let credentials = Credentials::external().or(Credentials::plain("www-data", "secret"));
    /// assert_eq!(credentials.get_username(), Some("www-data"));
    /// ```
    pub fn get_username(&self) -> Option<&str> {
        self.usernames().next()
    }

    /// Returns the setting [`erase_on_connect`](Self::erase_on_connect).
    pub fn get_erase_on_connect(&self) -> bool {
        self.erase_on_connect
    }

    /// Returns these credentials with `secret` as the password of each user of `others`. An erased
    /// password stays erased.
    pub(crate) fn renewed(&self, others: &Self, secret: &Secret) -> Self {
        let mut renewed = self.clone();
        for choice in &mut renewed.choices {
            if let Choice::Password {
                username, password, ..
            } = choice
            {
                let is_kept = password.lock().is_some();
                if is_kept && others.usernames().any(|other| other == username) {
                    // A lock of its own: the clones of the program keep their password.
                    *password = Arc::new(Mutex::new(Some(secret.clone())));
                }
            }
        }
        renewed
    }

    fn usernames(&self) -> impl Iterator<Item = &str> {
        self.choices.iter().filter_map(|choice| match choice {
            Choice::Password { username, .. } => Some(username.as_str()),
            Choice::External | Choice::Anonymous | Choice::Custom(_) | Choice::Provider(_) => None,
        })
    }

    /// Notes that a connection has been opened with these credentials.
    pub(crate) fn connected(&self) {
        if self.erase_on_connect {
            self.erase();
        }
    }

    /// Checks that these credentials can be used.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.are_erased() {
            return Err(Error::CredentialsErased);
        }
        self.choices.iter().try_for_each(Choice::validate)
    }

    /// Returns whether the list has only entries with an erased password.
    pub(crate) fn are_erased(&self) -> bool {
        self.choices.iter().all(|choice| match choice {
            Choice::Password { password, .. } => password.lock().is_none(),
            _ => false,
        })
    }

    /// Returns whether the list has a provider, so that it can be used only after
    /// [`provided`](Self::provided).
    pub(crate) fn have_provider(&self) -> bool {
        let mut choices = self.choices.iter();
        choices.any(|choice| matches!(choice, Choice::Provider(_)))
    }

    /// Calls the providers of the list. Returns the list with their credentials in their places.
    pub(crate) fn provided(&self) -> Result<Self> {
        let mut choices = Vec::with_capacity(self.choices.len());
        for choice in &self.choices {
            match choice {
                Choice::Provider(provider) => choices.extend(provider.call()?.choices),
                other => choices.push(other.clone()),
            }
        }
        Ok(Self {
            choices,
            erase_on_connect: self.erase_on_connect,
        })
    }

    /// Returns the mechanisms, in order of preference.
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
            Self::Provider(_) => return None,
        };
        Some(Box::new(OneResponse {
            name,
            response: Some(response),
        }))
    }
}

impl Provider {
    fn call(&self) -> Result<Credentials> {
        let running = Running(&self.running);
        if running.0.fetch_add(1, Ordering::Relaxed) >= RUNNING_MAX {
            let text = format!("{RUNNING_MAX} calls of it have not returned");
            return Err(Error::other(text));
        }
        let provided = (self.provide)()?;
        if provided.have_provider() {
            let rule = "a provider must return no other provider";
            return Err(Error::invalid("credentials", "Provider", rule));
        }
        provided.validate()?;
        Ok(provided)
    }
}

/// A call in progress. Dropping it counts the end of the call, also after a panic.
struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
            // The fields of an AMQP table, without the length in front of it.
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

/// Returns the length prefix of a long string. A string that is too long for it does not fit into
/// the frame, which is an error later.
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

/// A mechanism with one response, and no answer to a challenge.
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
    /// Returns the user `guest` with the password `guest`.
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
            Self::Provider(_) => f.write_str("Provider"),
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
    fn plain_sends_user_and_password_behind_nuls() {
        let credentials = Credentials::plain("me", "pass");
        assert_eq!(response(&credentials), b"\0me\0pass");
    }

    #[test]
    fn amqplain_sends_a_table_without_its_length() {
        let credentials = Credentials::amqplain("me", "pass");
        let expected = b"\x05LOGINS\0\0\0\x02me\x08PASSWORDS\0\0\0\x04pass";
        assert_eq!(response(&credentials), expected);
    }

    #[test]
    fn external_and_anonymous_send_an_empty_response() {
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
    fn the_first_user_and_erase_on_connect_can_be_read() {
        assert_eq!(Credentials::default().get_username(), Some("guest"));
        assert_eq!(Credentials::external().get_username(), None);
        let list = Credentials::anonymous()
            .or(Credentials::amqplain("a", "hush"))
            .or(Credentials::plain("b", "hush"));
        assert_eq!(list.get_username(), Some("a"));
        list.erase();
        assert_eq!(list.get_username(), Some("a"), "only the password is wiped");
        assert!(!list.get_erase_on_connect());
        assert!(list.erase_on_connect(true).get_erase_on_connect());
    }

    #[test]
    fn a_new_secret_replaces_the_password_of_its_user_in_one_connection() {
        let own = Credentials::plain("me", "old");
        let list = own.clone().or(Credentials::amqplain("other", "theirs"));
        let renewed = list.renewed(&own, &"new".into());
        let mut mechanisms = renewed.mechanisms();
        let mut responses = mechanisms.iter_mut().map(|one| one.respond(None).unwrap());
        assert_eq!(responses.next().unwrap().as_bytes(), b"\0me\0new");
        let other = responses.next().unwrap();
        assert!(other.as_bytes().ends_with(b"theirs"));
        assert_eq!(response(&own), b"\0me\0old", "the program's own");
        own.erase();
        let renewed = own.renewed(&own, &"new".into());
        assert!(renewed.are_erased(), "an erased password is not replaced");
    }

    #[test]
    fn erase_wipes_the_password_of_every_clone() {
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
        // An entry without a password can still be used.
        let list = clone.or(Credentials::external());
        assert!(list.validate().is_ok());
        assert_eq!(names(&list), ["EXTERNAL"]);
    }

    #[test]
    fn a_connection_erases_only_credentials_with_erase_on_connect() {
        let kept = Credentials::plain("me", "pass");
        kept.connected();
        assert!(!kept.are_erased());
        let list = Credentials::external().or(kept.clone().erase_on_connect(true));
        list.connected();
        assert!(kept.are_erased(), "its clone is in the list");
    }

    #[test]
    fn credentials_of_a_provider_take_its_place_in_the_list() {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let list = Credentials::external()
            .or(Credentials::provider(move || {
                let call = counted.fetch_add(1, Ordering::Relaxed);
                let rotated = Credentials::plain(format!("user {call}"), "hush");
                Ok(rotated.or(Credentials::anonymous()))
            }))
            .or(Credentials::amqplain("last", "hush"));
        assert!(list.validate().is_ok());
        assert_eq!(calls.load(Ordering::Relaxed), 0, "only an attempt calls it");
        assert_eq!(list.get_username(), Some("last"));
        let shown = r#"External or Provider or AmqPlain("last", ***)"#;
        assert_eq!(format!("{list:?}"), shown);
        for call in 0..2 {
            let provided = list.provided().unwrap();
            assert_eq!(
                names(&provided),
                ["EXTERNAL", "PLAIN", "ANONYMOUS", "AMQPLAIN"]
            );
            let user = format!("user {call}");
            assert_eq!(provided.get_username(), Some(user.as_str()));
        }
    }

    #[test]
    fn the_credentials_of_a_provider_are_wiped_after_the_attempt() {
        let password = Arc::new(Mutex::new(Some("hush".into())));
        let kept = password.clone();
        let provider = Credentials::provider(move || {
            Ok(Credentials::new(Choice::Password {
                mechanism: PasswordMechanism::Plain,
                username: "me".into(),
                password: kept.clone(),
            })
            .erase_on_connect(true))
        });
        let provided = provider.provided().unwrap();
        assert!(!provided.get_erase_on_connect(), "recovery stays on");
        assert_eq!(Arc::strong_count(&password), 3);
        drop(provided);
        assert_eq!(Arc::strong_count(&password), 2, "the provider's own");
    }

    #[test]
    fn a_new_secret_does_not_replace_the_answer_of_a_provider() {
        let provider = Credentials::provider(|| Ok(Credentials::plain("me", "provided")));
        let list = provider.or(Credentials::plain("me", "old"));
        let renewed = list.renewed(&list, &"new".into()).provided().unwrap();
        let mut mechanisms = renewed.mechanisms();
        let responses = mechanisms.iter_mut().map(|one| one.respond(None).unwrap());
        let responses: Vec<_> = responses.map(|one| one.as_bytes().to_vec()).collect();
        assert_eq!(responses, [&b"\0me\0provided"[..], b"\0me\0new"]);
    }

    #[test]
    fn erase_leaves_a_provider() {
        let provider = Credentials::provider(|| Ok(Credentials::default()));
        let list = provider.or(Credentials::plain("me", "hush"));
        list.erase();
        assert!(list.validate().is_ok());
        let provided = list.provided().unwrap();
        assert_eq!(provided.mechanisms().len(), 1);
        assert_eq!(response(&provided), b"\0guest\0guest");
    }

    #[test]
    fn credentials_of_a_provider_that_cannot_be_used_are_an_error() {
        let provided = |returned: fn() -> Result<Credentials>| {
            let error = Credentials::provider(returned).provided().unwrap_err();
            assert!(!error.to_string().contains("hush"), "{error}");
            error
        };
        let erased = provided(|| {
            let erased = Credentials::plain("me", "hush");
            erased.erase();
            Ok(erased)
        });
        assert!(matches!(erased, Error::CredentialsErased), "{erased}");
        let with_nul = provided(|| Ok(Credentials::plain("me", "hu\0sh")));
        assert!(with_nul.to_string().contains("password"), "{with_nul}");
        let nested = provided(|| Ok(Credentials::provider(|| Ok(Credentials::default()))));
        assert!(nested.to_string().contains("no other provider"), "{nested}");
        let own = provided(|| Err(Error::other("down")));
        assert_eq!(own.to_string(), "down");
    }

    #[test]
    fn a_provider_whose_calls_do_not_return_gets_no_further_call() {
        let provider = Arc::new(Provider {
            provide: Box::new(|| Ok(Credentials::default())),
            running: AtomicUsize::new(RUNNING_MAX - 1),
        });
        let credentials = Credentials::new(Choice::Provider(provider.clone()));
        for _ in 0..2 {
            assert!(credentials.provided().is_ok());
        }
        let last = Running(&provider.running);
        last.0.fetch_add(1, Ordering::Relaxed);
        for _ in 0..2 {
            let error = credentials.provided().unwrap_err();
            assert!(error.to_string().contains("have not returned"), "{error}");
        }
        drop(last);
        assert!(credentials.provided().is_ok());
    }

    #[test]
    fn a_call_that_panics_has_ended() {
        let provider = Arc::new(Provider {
            provide: Box::new(|| panic!("as the test wants it")),
            running: AtomicUsize::new(0),
        });
        let call = std::panic::AssertUnwindSafe(|| provider.call());
        assert!(std::panic::catch_unwind(call).is_err());
        assert_eq!(provider.running.load(Ordering::Relaxed), 0);
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
