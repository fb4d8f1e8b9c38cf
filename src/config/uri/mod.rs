//! `amqp://` and `amqps://` URLs.
//!
//! Rules: RabbitMQ, "RabbitMQ URI Specification" and "RabbitMQ URI Query Parameters";
//! the option names are those of pika 0.9.6 and of RabbitMQ.

mod parts;
mod recovery;
#[cfg(feature = "native-tls")]
mod tls;

use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use zeroize::{Zeroize, Zeroizing};

use self::parts::Parts;
use self::recovery::RecoveryQuery;
#[cfg(feature = "native-tls")]
use self::tls::TlsQuery;
use crate::config::credentials::Credentials;
use crate::config::parameters::ConnectionParameters;
use crate::error::{Error, Result};
use crate::protocol::secret::Secret;

impl FromStr for ConnectionParameters {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = Parts::of(text)?;
        let parameters = from_parts(&parts);
        // The URL may contain a password.
        String::from(parts.url).zeroize();
        parameters
    }
}

fn from_parts(parts: &Parts) -> Result<ConnectionParameters> {
    let url = &parts.url;
    let mut parameters = ConnectionParameters::new();
    parameters.tls = parts.is_tls;
    if let Some(host) = &parts.host {
        parameters.host.clone_from(host);
    }
    parameters.port = url.port();
    parameters.virtual_host = parts::virtual_host(url.path())?;
    let mut query = Query::default();
    for option in parts::options(url.query().unwrap_or_default()) {
        let (name, value) = option?;
        query.take(&mut parameters, &name, value)?;
    }
    let password = url.password().filter(|password| !password.is_empty());
    let credentials = credentials(url.username(), password, &query.mechanisms)?;
    if let Some(credentials) = credentials {
        parameters.credentials = credentials;
    }
    parameters = query.recovery.apply(parameters)?;
    #[cfg(feature = "native-tls")]
    {
        parameters.tls_options = query.tls.options()?;
    }
    parameters.validate()?;
    Ok(parameters)
}

impl TryFrom<&str> for ConnectionParameters {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<&String> for ConnectionParameters {
    type Error = Error;

    fn try_from(text: &String) -> Result<Self> {
        text.parse()
    }
}

impl TryFrom<String> for ConnectionParameters {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Zeroizing::new(text).parse()
    }
}

/// The options of a URL that are combined into parameters when all have been read.
#[derive(Default)]
struct Query {
    /// The names of the options that have been read.
    seen: Vec<String>,
    mechanisms: Vec<String>,
    recovery: RecoveryQuery,
    #[cfg(feature = "native-tls")]
    tls: TlsQuery,
}

/// The options of TLS.
const TLS_OPTIONS: [&str; 9] = [
    "cacertfile",
    "certfile",
    "depth",
    "fail_if_no_peer_cert",
    "keyfile",
    "password",
    "verify",
    "server_name_indication",
    "ssl_options",
];

impl Query {
    fn take(
        &mut self,
        parameters: &mut ConnectionParameters,
        name: &str,
        value: &str,
    ) -> Result<()> {
        self.check_first(name)?;
        if value.is_empty() {
            return Err(Error::invalid(name, "", "it has no value"));
        }
        if name == "auth_mechanism" {
            self.mechanisms.push(decoded(name, value)?);
            return Ok(());
        }
        if !TLS_OPTIONS.contains(&name) {
            let value = decoded(name, value)?;
            return match self.recovery.take(name, &value)? {
                true => Ok(()),
                false => option(parameters, name, &value),
            };
        }
        if !parameters.tls {
            let rule = "options of TLS need the scheme amqps";
            return Err(Error::invalid(name, "…", rule));
        }
        #[cfg(feature = "native-tls")]
        self.tls.take(name, value)?;
        Ok(())
    }

    /// Refuses an option that was read before: see D11 in docs/decisions.md.
    fn check_first(&mut self, name: &str) -> Result<()> {
        let setting = match name {
            "heartbeat_interval" => "heartbeat",
            "connection_timeout" => "socket_timeout",
            other => other,
        };
        if setting != "auth_mechanism" && self.seen.iter().any(|seen| seen == setting) {
            let rule = format!("{setting} is given twice");
            return Err(Error::invalid(name, "…", rule));
        }
        self.seen.push(setting.to_owned());
        Ok(())
    }
}

/// Returns the text if it can be decoded. The error does not contain it, because it may be a
/// secret.
fn checked<'a>(option: &str, text: &'a str) -> Result<&'a str> {
    let mut behind = text.split('%').skip(1);
    match behind.all(|part| {
        part.bytes()
            .take_while(u8::is_ascii_hexdigit)
            .nth(1)
            .is_some()
    }) {
        true => Ok(text),
        false => {
            let rule = "two hexadecimal digits must follow a '%'; write %25 for a '%' itself";
            Err(Error::invalid(option, "…", rule))
        }
    }
}

fn decoded(option: &str, text: &str) -> Result<String> {
    percent_decode_str(checked(option, text)?)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| not_utf8(option))
}

/// Decodes a secret, and leaves no copies of it in memory.
fn decoded_secret(option: &str, text: &str) -> Result<Secret> {
    let mut secret = Secret::with_capacity(text.len());
    for byte in percent_decode_str(checked(option, text)?) {
        secret.append(&[byte]);
    }
    match std::str::from_utf8(secret.as_bytes()) {
        Ok(_) => Ok(secret),
        Err(_) => Err(not_utf8(option)),
    }
}

fn not_utf8(option: &str) -> Error {
    Error::invalid(option, "…", "percent-encoded bytes must be UTF-8")
}

fn credentials(
    username: &str,
    password: Option<&str>,
    mechanisms: &[String],
) -> Result<Option<Credentials>> {
    let is_given = !username.is_empty() || password.is_some();
    let (username, password) = match is_given {
        true => (
            decoded("username", username)?,
            decoded_secret("password", password.unwrap_or_default())?,
        ),
        false => ("guest".to_owned(), Secret::from("guest")),
    };
    if mechanisms.is_empty() {
        return Ok(is_given.then(|| Credentials::plain(username, password)));
    }
    mechanisms.iter().try_fold(None, |list, name| {
        let (username, password) = (username.clone(), password.clone());
        let next = match name.to_ascii_lowercase().as_str() {
            "plain" => Credentials::plain(username, password),
            "amqplain" => Credentials::amqplain(username, password),
            "external" => Credentials::external(),
            "anonymous" => Credentials::anonymous(),
            _ => {
                let rule = "it must be plain, amqplain, external or anonymous";
                return Err(Error::invalid("auth_mechanism", name, rule));
            }
        };
        Ok(Some(match list {
            None => next,
            Some(list) => Credentials::or(list, next),
        }))
    })
}

fn option(parameters: &mut ConnectionParameters, name: &str, value: &str) -> Result<()> {
    match name {
        "backpressure_detection" => parameters.backpressure_detection = switch(name, value)?,
        "blocked_connection_timeout" => {
            parameters.blocked_connection_timeout = Some(seconds(name, value)?);
        }
        "channel_max" => parameters.channel_max = number(name, value)?,
        "confirm_timeout" => parameters.confirm_timeout = seconds(name, value)?,
        "connection_attempts" => parameters.connection_attempts = number(name, value)?,
        "connection_name" => parameters.connection_name = Some(value.into()),
        "connection_timeout" => {
            parameters.socket_timeout = Duration::from_millis(number::<u32>(name, value)?.into());
        }
        "frame_max" => parameters.frame_max = number(name, value)?,
        "handshake_timeout" => parameters.handshake_timeout = seconds(name, value)?,
        "heartbeat" | "heartbeat_interval" => {
            parameters.heartbeat = Duration::from_secs(number::<u16>(name, value)?.into());
        }
        "locale" => parameters.locale = value.into(),
        "publish_timeout" => parameters.publish_timeout = seconds(name, value)?,
        "retry_delay" => parameters.retry_delay = seconds(name, value)?,
        "rpc_timeout" => parameters.rpc_timeout = seconds(name, value)?,
        "socket_timeout" => parameters.socket_timeout = seconds(name, value)?,
        "unconfirmed_budget" => parameters.unconfirmed_budget = number(name, value)?,
        // The value of an unknown option may be a secret.
        _ => {
            return Err(Error::invalid(
                name,
                "…",
                "URLs have no option of this name",
            ));
        }
    }
    Ok(())
}

fn switch(name: &str, value: &str) -> Result<bool> {
    match value {
        "t" | "true" | "1" => Ok(true),
        "f" | "false" | "0" => Ok(false),
        _ => Err(Error::invalid(name, value, "it must be t or f")),
    }
}

fn number<T: FromStr<Err: ToString>>(name: &str, value: &str) -> Result<T> {
    value.parse().map_err(|error: T::Err| {
        Error::invalid(
            name,
            value,
            format!("it must be a number ({})", error.to_string()),
        )
    })
}

fn seconds(name: &str, value: &str) -> Result<Duration> {
    value
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| Error::invalid(name, value, "it must be a number of seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> ConnectionParameters {
        url.parse().unwrap()
    }

    fn refused(url: &str) -> (String, String) {
        match url.parse::<ConnectionParameters>() {
            Err(Error::InvalidOption { option, value, .. }) => (option, value),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_part_is_optional() {
        for url in [
            "amqp://",
            "amqp:///",
            "amqp://localhost",
            "amqp://guest:guest@localhost:5672/%2F",
            "amqp://guest:guest@",
            "amqp://:5672",
            "amqp://guest:guest@:5672/",
            "amqp://?channel_max=2047",
        ] {
            let parameters = parse(url);
            assert_eq!(parameters.host, "localhost", "{url}");
            assert_eq!(parameters.get_port(), 5672, "{url}");
            assert_eq!(parameters.virtual_host, "/", "{url}");
            let credentials = format!("{:?}", parameters.credentials);
            assert_eq!(credentials, "Plain(\"guest\", ***)", "{url}");
        }
    }

    /// The examples of RabbitMQ's URI specification, appendix A. Where the specification has an
    /// empty name for a virtual host, cony has the default one, as most clients do.
    #[test]
    fn the_examples_of_the_specification_are_understood() {
        for (url, host, port, virtual_host, user) in [
            (
                "amqp://user:pass@host:10000/vhost",
                "host",
                10_000,
                "vhost",
                "user",
            ),
            (
                "amqp://user%61:%61pass@ho%61st:10000/v%2fhost",
                "hoast",
                10_000,
                "v/host",
                "usera",
            ),
            ("amqp://user@", "localhost", 5672, "/", "user"),
            ("amqp://user:pass@", "localhost", 5672, "/", "user"),
            ("amqp://host", "host", 5672, "/", "guest"),
            ("amqp://:10000", "localhost", 10_000, "/", "guest"),
            ("amqp:///vhost", "localhost", 5672, "vhost", "guest"),
            ("amqp://host/", "host", 5672, "/", "guest"),
            ("amqp://host/%2f", "host", 5672, "/", "guest"),
            ("amqp://[::1]", "[::1]", 5672, "/", "guest"),
        ] {
            let parameters = parse(url);
            assert_eq!(parameters.host, host, "{url}");
            assert_eq!(parameters.get_port(), port, "{url}");
            assert_eq!(parameters.virtual_host, virtual_host, "{url}");
            let credentials = format!("{:?}", parameters.credentials);
            assert_eq!(credentials, format!("Plain({user:?}, ***)"), "{url}");
        }
    }

    #[test]
    fn every_part_is_read_and_decoded() {
        let parameters = parse("amqp://us%65r:p%40ss@broker:1234/a%2fb?heartbeat=5&frame_max=8192");
        assert_eq!(
            format!("{:?}", parameters.credentials),
            "Plain(\"user\", ***)"
        );
        assert_eq!(parameters.host, "broker");
        assert_eq!(parameters.port, Some(1234));
        assert_eq!(parameters.virtual_host, "a/b");
        assert_eq!(parameters.heartbeat, Duration::from_secs(5));
        assert_eq!(parameters.frame_max, 8192);
        assert_eq!(parse("amqp://[::1]:99/").host, "[::1]");
    }

    #[test]
    fn options_have_their_units() {
        let parameters = parse(
            "amqp://h/?socket_timeout=0.25&retry_delay=1.5&connection_attempts=3&channel_max=7\
             &locale=de_DE&connection_name=my%20app&handshake_timeout=3&rpc_timeout=4.5\
             &blocked_connection_timeout=60&heartbeat_interval=9&publish_timeout=0\
             &confirm_timeout=120.5",
        );
        assert_eq!(parameters.handshake_timeout, Duration::from_secs(3));
        assert_eq!(parameters.rpc_timeout, Duration::from_millis(4500));
        assert_eq!(parameters.publish_timeout, Duration::ZERO);
        assert_eq!(parameters.confirm_timeout, Duration::from_millis(120_500));
        let blocked = parameters.blocked_connection_timeout;
        assert_eq!(blocked, Some(Duration::from_secs(60)));
        assert_eq!(parameters.heartbeat, Duration::from_secs(9));
        assert_eq!(parameters.socket_timeout, Duration::from_millis(250));
        assert_eq!(parameters.retry_delay, Duration::from_millis(1500));
        assert_eq!(parameters.connection_attempts, 3);
        assert_eq!(parameters.channel_max, 7);
        assert_eq!(parameters.locale, "de_DE");
        assert_eq!(parameters.connection_name.as_deref(), Some("my app"));
        let milliseconds = parse("amqp://h/?connection_timeout=2500");
        assert_eq!(milliseconds.socket_timeout, Duration::from_millis(2500));
    }

    #[test]
    fn a_switch_is_on_or_off() {
        assert!(!parse("amqp://h").backpressure_detection);
        for on in ["t", "true", "1"] {
            let url = format!("amqp://h/?backpressure_detection={on}");
            assert!(parse(&url).backpressure_detection, "{on}");
        }
        for off in ["f", "false", "0"] {
            let url = format!("amqp://h/?backpressure_detection={off}");
            assert!(!parse(&url).backpressure_detection, "{off}");
        }
        let bad = refused("amqp://h/?backpressure_detection=yes");
        assert_eq!(bad, ("backpressure_detection".into(), "yes".into()));
    }

    #[test]
    fn mechanisms_are_a_list_in_order() {
        let shown = |url: &str| format!("{:?}", parse(url).credentials);
        assert_eq!(shown("amqp://u:p@h/?auth_mechanism=external"), "External");
        assert_eq!(
            shown(
                "amqp://u:p@h/?auth_mechanism=EXTERNAL&auth_mechanism=amqplain&auth_mechanism=plain"
            ),
            r#"External or AmqPlain("u", ***) or Plain("u", ***)"#
        );
        assert_eq!(
            shown("amqp://h/?auth_mechanism=anonymous&auth_mechanism=plain"),
            r#"Anonymous or Plain("guest", ***)"#
        );
        let bad = refused("amqp://h/?auth_mechanism=scram");
        assert_eq!(bad, ("auth_mechanism".into(), "scram".into()));
    }

    #[test]
    fn a_url_with_a_user_or_a_password_does_not_use_guest() {
        for (url, credentials) in [
            ("amqp://me:secret@host", "Plain(\"me\", ***)"),
            ("amqp://me@host", "Plain(\"me\", ***)"),
            ("amqp://:secret@host", "Plain(\"\", ***)"),
        ] {
            assert_eq!(format!("{:?}", parse(url).credentials), credentials);
        }
    }

    #[test]
    fn an_option_given_twice_or_empty_is_refused() {
        for (url, option) in [
            ("amqp://h/?heartbeat=1&heartbeat=1", "heartbeat"),
            (
                "amqp://h/?heartbeat=1&heartbeat_interval=2",
                "heartbeat_interval",
            ),
            (
                "amqp://h/?connection_timeout=1&socket_timeout=2",
                "socket_timeout",
            ),
            ("amqp://h/?locale=a&locale=b", "locale"),
            ("amqp://h/?connection_name=", "connection_name"),
            ("amqp://h/?auth_mechanism=", "auth_mechanism"),
        ] {
            assert_eq!(refused(url).0, option, "{url}");
        }
    }

    #[test]
    fn options_of_tls_need_amqps() {
        for option in TLS_OPTIONS {
            let url = format!("amqp://h/?{option}=x");
            let error = url.parse::<ConnectionParameters>().unwrap_err();
            assert!(error.to_string().contains("amqps"), "{error}");
            assert_eq!(refused(&url).0, option);
        }
    }

    #[test]
    fn a_value_out_of_bounds_is_refused_at_once() {
        for (url, option) in [
            ("amqp://h/?frame_max=4095", "frame_max"),
            ("amqp://h/?frame_max=134217729", "frame_max"),
            ("amqp://h/?connection_attempts=0", "connection_attempts"),
            ("amqp://h/?rpc_timeout=0", "rpc_timeout"),
            ("amqp://h/?socket_timeout=1e300", "socket_timeout"),
            ("amqp://h:0", "port"),
            ("amqp://a%00b", "host"),
        ] {
            assert_eq!(refused(url).0, option, "{url}");
        }
    }

    #[test]
    fn the_error_names_the_wrong_part() {
        assert_eq!(refused("http://h").0, "url");
        assert_eq!(refused("amqp://h/a/b"), ("virtual_host".into(), "…".into()));
        assert_eq!(
            refused("amqp://h/?colour=red"),
            ("colour".into(), "…".into())
        );
        assert_eq!(refused("amqp://h/?channel_max=70000").0, "channel_max");
        assert_eq!(refused("amqp://h/?retry_delay=-1").0, "retry_delay");
        assert_eq!(refused("amqp://h/?retry_delay=nan").0, "retry_delay");
        assert_eq!(refused("amqp://h/?heartbeat"), ("url".into(), "…".into()));
    }

    #[test]
    fn the_error_of_an_unknown_option_contains_its_name_and_not_its_value() {
        let outcome = "amqp://h/?colour=red".parse::<ConnectionParameters>();
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "the option colour is refused: URLs have no option of this name"
        );
    }

    #[test]
    fn no_error_contains_a_password() {
        for url in [
            "amqp://user:hush@h:99999",
            "amqp://user:hush%ff@h",
            "amqp://u:hush@h/a/b",
            "amqp://u:12/hush@h",
            "amqp://u:12?hush@h",
            "amqp://u:12#hush@h",
            "amqp://h/?password=hush",
            "amqp://h/?passwort=hush",
            "amqp://h/?passwort=hush%ff",
            "amqps://h/?password=hush",
            "amqps://h/?password=hush%ff",
            "amqps://h/?password=hush&certfile=c&keyfile=k",
            "amqps://h/?password=hush&password=hush",
            "amqp://h/?hush",
        ] {
            let error = url.parse::<ConnectionParameters>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
        }
    }

    #[cfg(feature = "native-tls")]
    #[test]
    fn amqps_means_tls_and_its_port() {
        let parameters = parse("amqps://h");
        assert!(parameters.tls);
        assert_eq!(parameters.get_port(), 5671);
    }
}
