//! `amqp://` and `amqps://` URLs.
//!
//! Rules: RabbitMQ, "RabbitMQ URI Specification" and "RabbitMQ URI Query Parameters";
//! the option names are those of pika 0.9.6 and of RabbitMQ.

use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::parameters::ConnectionParameters;

impl FromStr for ConnectionParameters {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The text may hold a password, so it is not repeated in the error.
        let url = Url::parse(text).map_err(|error| {
            let rule =
                format!("it is no URL ({error}); amqp://user:password@host:port/vhost is one");
            Error::invalid("url", "…", rule)
        })?;
        Self::try_from(&url)
    }
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
        text.parse()
    }
}

impl TryFrom<Url> for ConnectionParameters {
    type Error = Error;

    fn try_from(url: Url) -> Result<Self> {
        Self::try_from(&url)
    }
}

impl TryFrom<&Url> for ConnectionParameters {
    type Error = Error;

    fn try_from(url: &Url) -> Result<Self> {
        let mut parameters = Self::new();
        // Otherwise part of a password would be taken, and shown, for something else.
        if url.path().contains('@') || url.query().is_some_and(|query| query.contains('@')) {
            let rule = "in user and password the characters / ? # @ : are percent-encoded";
            return Err(Error::invalid("url", "…", rule));
        }
        match url.scheme() {
            "amqp" => {}
            #[cfg(feature = "tls")]
            "amqps" => parameters.tls = true,
            #[cfg(not(feature = "tls"))]
            "amqps" => {
                return Err(Error::invalid(
                    "url",
                    "amqps",
                    "cony was built without its feature tls",
                ));
            }
            other => return Err(Error::invalid("url", other, "the scheme is amqp or amqps")),
        }
        if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
            parameters.host = decoded("host", host)?;
        }
        parameters.port = url.port();
        if let Some(credentials) = credentials(url)? {
            parameters.credentials = credentials;
        }
        parameters.virtual_host = virtual_host(url.path())?;
        if url.fragment().is_some() {
            return Err(Error::invalid("url", "#…", "'#' must be written as %23"));
        }
        for pair in url.query().unwrap_or_default().split('&') {
            if let Some((name, value)) = pair.split_once('=') {
                let name = decoded("url", name)?;
                let value = decoded(&name, value)?;
                option(&mut parameters, &name, &value)?;
            } else if !pair.is_empty() {
                return Err(Error::invalid("url", "…", "an option reads name=value"));
            }
        }
        Ok(parameters)
    }
}

fn decoded(option: &str, text: &str) -> Result<String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| Error::invalid(option, text, "percent-encoded bytes must be UTF-8"))
}

fn credentials(url: &Url) -> Result<Option<Credentials>> {
    let (username, password) = (url.username(), url.password());
    if username.is_empty() && password.is_none() {
        return Ok(None);
    }
    let secret = percent_decode_str(password.unwrap_or_default())
        .decode_utf8()
        .map_err(|_| Error::invalid("password", "…", "percent-encoded bytes must be UTF-8"))?;
    let username = decoded("username", username)?;
    Ok(Some(Credentials::plain(username, secret)))
}

fn virtual_host(path: &str) -> Result<String> {
    match path.strip_prefix('/').unwrap_or(path) {
        "" => Ok("/".into()),
        name if name.contains('/') => {
            let rule = "it is one segment; a '/' in its name is written as %2f";
            Err(Error::invalid("virtual_host", "…", rule))
        }
        name => decoded("virtual_host", name),
    }
}

fn option(parameters: &mut ConnectionParameters, name: &str, value: &str) -> Result<()> {
    match name {
        "channel_max" => parameters.channel_max = number(name, value)?,
        "frame_max" => parameters.frame_max = number(name, value)?,
        "heartbeat" | "heartbeat_interval" => {
            parameters.heartbeat = Duration::from_secs(number::<u16>(name, value)?.into());
        }
        "locale" => parameters.locale = value.into(),
        "connection_attempts" => parameters.connection_attempts = number(name, value)?,
        "retry_delay" => parameters.retry_delay = seconds(name, value)?,
        "socket_timeout" => parameters.socket_timeout = seconds(name, value)?,
        "connection_timeout" => {
            parameters.socket_timeout = Duration::from_millis(number::<u32>(name, value)?.into());
        }
        "connection_name" => parameters.connection_name = Some(value.into()),
        // The value of an option that this does not know may be a secret.
        _ => return Err(Error::invalid(name, "…", "there is no such option")),
    }
    Ok(())
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
    fn every_part_may_be_left_out() {
        for url in [
            "amqp://",
            "amqp:///",
            "amqp://localhost",
            "amqp://guest:guest@localhost:5672/%2F",
        ] {
            let parameters = parse(url);
            assert_eq!(parameters.host, "localhost", "{url}");
            assert_eq!(parameters.port_or_default(), 5672, "{url}");
            assert_eq!(parameters.virtual_host, "/", "{url}");
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
             &locale=de_DE&connection_name=my%20app",
        );
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
    fn what_is_wrong_is_named() {
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
    fn no_error_repeats_a_password() {
        for url in [
            "amqp://user:hush@h:99999",
            "amqp://user:hush%ff@h",
            "amqp://u:hush@h/a/b",
            "amqp://u:12/hush@h",
            "amqp://u:12?hush@h",
            "amqp://u:12#hush@h",
            "amqp://h/?password=hush",
            "amqp://h/?hush",
        ] {
            let error = url.parse::<ConnectionParameters>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn amqps_means_tls_and_its_port() {
        let parameters = parse("amqps://h");
        assert!(parameters.tls);
        assert_eq!(parameters.port_or_default(), 5671);
    }
}
