//! Options of TLS in a URL: those of RabbitMQ, and `ssl_options` of pika, a dict of Python.

use super::{decoded, decoded_secret, number, switch};
use crate::config::tls::{TlsOptions, TlsVersion};
use crate::error::{Error, Result};
use crate::protocol::secret::Secret;

#[derive(Default)]
pub(super) struct TlsQuery {
    cacertfile: Option<String>,
    certfile: Option<String>,
    keyfile: Option<String>,
    password: Option<Secret>,
    verify: Option<bool>,
    server_name_indication: Option<String>,
    min_protocol_version: Option<TlsVersion>,
}

impl TlsQuery {
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<()> {
        // Python writes a space as a plus.
        if name == "ssl_options" {
            return self.take_dict(&decoded(name, &value.replace('+', " "))?);
        }
        if name == "password" {
            return once(&mut self.password, name, decoded_secret(name, value)?);
        }
        let value = decoded(name, value)?;
        match name {
            "cacertfile" => once(&mut self.cacertfile, name, value),
            "certfile" => once(&mut self.certfile, name, value),
            "keyfile" => once(&mut self.keyfile, name, value),
            "server_name_indication" => once(&mut self.server_name_indication, name, value),
            // RabbitMQ lists this option for clients as well, but it is for servers.
            "fail_if_no_peer_cert" => switch(name, &value).map(drop),
            "depth" => ignore_depth(name, &value),
            _ => once(&mut self.verify, name, verify(name, &value)?),
        }
    }

    fn take_dict(&mut self, text: &str) -> Result<()> {
        for (key, value) in Dict::parse(text)? {
            let option = format!("ssl_options.{key}");
            match key.as_str() {
                "ca_certs" => once(&mut self.cacertfile, &option, value.path(&option)?),
                "certfile" => once(&mut self.certfile, &option, value.path(&option)?),
                "keyfile" => once(&mut self.keyfile, &option, value.path(&option)?),
                "cert_reqs" => once(&mut self.verify, &option, value.cert_reqs(&option)?),
                "ssl_version" => {
                    let version = value.ssl_version(&option)?;
                    once(&mut self.min_protocol_version, &option, version)
                }
                _ => {
                    let rule = "its keys are ca_certs, cert_reqs, certfile, keyfile, ssl_version";
                    Err(Error::invalid(option, "…", rule))
                }
            }?;
        }
        Ok(())
    }

    pub(super) fn options(self) -> Result<TlsOptions> {
        let mut options = TlsOptions::new();
        if let Some(path) = self.cacertfile {
            // As in Python and RabbitMQ, the system's authorities are not trusted then.
            options = options
                .authority_file("cacertfile", &path)
                .disable_built_in_roots(true);
        }
        match (&self.certfile, &self.keyfile, &self.password) {
            (None, Some(key), _) => {
                return Err(Error::invalid(
                    "keyfile",
                    key,
                    "it needs a certfile as well",
                ));
            }
            (None, None, Some(_)) => {
                let rule = "it is for a certfile, which is missing";
                return Err(Error::invalid("password", "…", rule));
            }
            (Some(_), Some(_), Some(_)) => {
                let rule = "a keyfile cannot be encrypted: convert it with openssl pkcs8 -topk8 \
                            -nocrypt, or put both into one certfile in PKCS #12";
                return Err(Error::invalid("password", "…", rule));
            }
            (Some(certificate), key, password) => {
                options = options.identity_files(certificate, key.as_deref(), password.clone());
            }
            (None, None, None) => {}
        }
        options = match self.server_name_indication.as_deref() {
            None => options,
            Some("disable") => options.server_name_indication(false),
            Some(name) => options.server_name(name),
        };
        if let Some(version) = self.min_protocol_version {
            options = options.min_protocol_version(version);
        }
        Ok(options.danger_accept_invalid_certificates(self.verify == Some(false)))
    }
}

/// Checks and ignores the option: the crate `native-tls` has no setting for it.
fn ignore_depth(name: &str, value: &str) -> Result<()> {
    let depth: u8 = number(name, value)?;
    log::warn!(
        "the option depth={depth} of a URL has no effect: the TLS library decides how many \
         authorities may be between a certificate and a trusted one"
    );
    Ok(())
}

fn once<T>(slot: &mut Option<T>, option: &str, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::invalid(option, "…", "it is given twice")),
    }
}

fn verify(option: &str, value: &str) -> Result<bool> {
    match value {
        "verify_peer" => Ok(true),
        "verify_none" => Ok(false),
        _ => {
            let rule = "it must be verify_peer or verify_none";
            Err(Error::invalid(option, value, rule))
        }
    }
}

/// A value of the dict. Errors do not show it: with a quote in the wrong place it may contain a
/// password that follows.
#[derive(Debug, PartialEq)]
enum Value {
    Text(String),
    /// A number, or a name such as `ssl.CERT_REQUIRED`, without the module.
    Constant(String),
}

impl Value {
    fn path(self, option: &str) -> Result<String> {
        match self {
            Self::Text(path) if !path.is_empty() => Ok(path),
            _ => Err(Error::invalid(option, "…", "it must be the path of a file")),
        }
    }

    fn cert_reqs(self, option: &str) -> Result<bool> {
        match self.constant(option)?.as_str() {
            "0" | "CERT_NONE" => Ok(false),
            // For a client these two are the same.
            "1" | "CERT_OPTIONAL" | "2" | "CERT_REQUIRED" => Ok(true),
            _ => {
                let rule = "it must be 0, 1, 2, CERT_NONE, CERT_OPTIONAL or CERT_REQUIRED";
                Err(Error::invalid(option, "…", rule))
            }
        }
    }

    fn ssl_version(self, option: &str) -> Result<TlsVersion> {
        match self.constant(option)?.as_str() {
            // The highest version that both sides support.
            "2" | "PROTOCOL_SSLv23" | "PROTOCOL_TLS" | "16" | "PROTOCOL_TLS_CLIENT" => {
                Ok(TlsVersion::Tls12)
            }
            "3" | "PROTOCOL_TLSv1" => Ok(TlsVersion::Tls10),
            "4" | "PROTOCOL_TLSv1_1" => Ok(TlsVersion::Tls11),
            "5" | "PROTOCOL_TLSv1_2" => Ok(TlsVersion::Tls12),
            _ => {
                let rule = "it must be one of Python's PROTOCOL_TLS, PROTOCOL_TLSv1, \
                            PROTOCOL_TLSv1_1, PROTOCOL_TLSv1_2 or their numbers; SSL is refused";
                Err(Error::invalid(option, "…", rule))
            }
        }
    }

    fn constant(self, option: &str) -> Result<String> {
        match self {
            Self::Constant(text) => Ok(text),
            Self::Text(_) => {
                let rule = "it must be a number or a name of Python's module ssl, not a string";
                Err(Error::invalid(option, "…", rule))
            }
        }
    }
}

/// Reads a dict of Python whose keys are strings: `{'key': 'text', "other": 2}`.
struct Dict<'a> {
    rest: &'a str,
}

impl<'a> Dict<'a> {
    fn parse(text: &'a str) -> Result<Vec<(String, Value)>> {
        let mut dict = Self { rest: text.trim() };
        let pairs = dict
            .pairs()
            .and_then(|pairs| dict.rest.trim().is_empty().then_some(pairs));
        pairs.ok_or_else(|| {
            let rule =
                "it must be a dict of Python, such as {'ca_certs': '/path/ca.pem', 'cert_reqs': 2}";
            // The text may contain a password.
            Error::invalid("ssl_options", "…", rule)
        })
    }

    fn pairs(&mut self) -> Option<Vec<(String, Value)>> {
        let mut pairs = Vec::new();
        self.expect('{')?;
        while self.expect('}').is_none() {
            let key = self.string()?;
            self.expect(':')?;
            if let Some(value) = self.value()? {
                pairs.push((key, value));
            }
            if self.expect(',').is_none() {
                self.expect('}')?;
                break;
            }
        }
        Some(pairs)
    }

    /// Takes this character if it is the next one.
    fn expect(&mut self, character: char) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(character)?;
        Some(())
    }

    /// Takes a value. Python's `None` is returned as `Some(None)`: the key counts as absent.
    fn value(&mut self) -> Option<Option<Value>> {
        if let Some(text) = self.string() {
            return Some(Some(Value::Text(text)));
        }
        let rest = self.rest.trim_start();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
            .unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        self.rest = rest;
        match name.strip_prefix("ssl.").unwrap_or(name) {
            "" => None,
            "None" => Some(None),
            constant => Some(Some(Value::Constant(constant.into()))),
        }
    }

    /// Takes a string in single or double quotes, if there is one.
    fn string(&mut self) -> Option<String> {
        let rest = self.rest.trim_start();
        let rest = rest.strip_prefix(['u', 'b']).unwrap_or(rest);
        let quote = rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let mut text = String::new();
        let mut characters = rest.char_indices().skip(1);
        while let Some((index, character)) = characters.next() {
            match character {
                '\\' => match characters.next() {
                    Some((_, escaped @ ('\\' | '\'' | '"'))) => text.push(escaped),
                    _ => return None,
                },
                end if end == quote => {
                    self.rest = rest.get(index + 1..).unwrap_or_default();
                    return Some(text);
                }
                other => text.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

    use super::*;
    use crate::ConnectionParameters;

    /// Returns the `Debug` output of the TLS options of a URL.
    fn shown(query: &str) -> String {
        let url = format!("amqps://h/?{query}");
        let parameters: ConnectionParameters = url.parse().unwrap();
        format!("{:?}", parameters.tls_options)
    }

    fn shown_dict(dict: &str) -> String {
        let encoded = utf8_percent_encode(dict, NON_ALPHANUMERIC);
        shown(&format!("ssl_options={encoded}"))
    }

    fn refused(query: &str) -> (String, String) {
        let url = format!("amqps://h/?{query}");
        match url.parse::<ConnectionParameters>() {
            Err(Error::InvalidOption { option, rule, .. }) => (option, rule),
            other => panic!("{query}: {other:?}"),
        }
    }

    fn refused_dict(dict: &str) -> String {
        let encoded = utf8_percent_encode(dict, NON_ALPHANUMERIC);
        refused(&format!("ssl_options={encoded}")).0
    }

    #[test]
    fn the_options_of_rabbitmq_are_understood() {
        let tls = TlsOptions::new;
        for (query, expected) in [
            ("", tls()),
            ("verify=verify_peer", tls()),
            (
                "verify=verify_none",
                tls().danger_accept_invalid_certificates(true),
            ),
            (
                "cacertfile=/a%20b/ca.pem",
                tls().ca_file("/a b/ca.pem").disable_built_in_roots(true),
            ),
            (
                "certfile=c.pem&keyfile=k.pem",
                tls().identity_pem_files("c.pem", "k.pem"),
            ),
            (
                "server_name_indication=rabbit.example",
                tls().server_name("rabbit.example"),
            ),
            (
                "server_name_indication=disable",
                tls().server_name_indication(false),
            ),
        ] {
            assert_eq!(shown(query), format!("{expected:?}"), "{query}");
        }
        let pkcs12 = shown("certfile=c.p12&password=hush");
        assert!(pkcs12.contains("File(c.p12, ***)"), "{pkcs12}");
        assert!(!pkcs12.contains("hush"), "{pkcs12}");
    }

    #[test]
    fn the_dict_of_pika_is_understood() {
        let whole = "{'ca_certs': '/path/ca.pem', 'cert_reqs': 2, 'certfile': \"c's.pem\", \
                     'keyfile': u'k\\\\.pem', 'ssl_version': 3}";
        let expected = TlsOptions::new()
            .ca_file("/path/ca.pem")
            .disable_built_in_roots(true)
            .identity_pem_files("c's.pem", "k\\.pem")
            .min_protocol_version(TlsVersion::Tls10);
        assert_eq!(shown_dict(whole), format!("{expected:?}"));
        let default = format!("{:?}", TlsOptions::new());
        for same in [
            "{}",
            " { } ",
            "{'keyfile': None,}",
            "{'cert_reqs':ssl.CERT_REQUIRED}",
            "{'cert_reqs': 1}",
            "{'ssl_version': PROTOCOL_TLSv1_2}",
            "{'ssl_version': ssl.PROTOCOL_SSLv23}",
        ] {
            assert_eq!(shown_dict(same), default, "{same}");
        }
        let unverified = TlsOptions::new().danger_accept_invalid_certificates(true);
        for none in ["{'cert_reqs': 0}", "{\"cert_reqs\": ssl.CERT_NONE}"] {
            assert_eq!(shown_dict(none), format!("{unverified:?}"), "{none}");
        }
    }

    #[test]
    fn the_dict_may_be_encoded_as_python_does_it() {
        let urlencoded = "ssl_options=%7B%27certfile%27%3A+%27%2Fetc%2Fa%2Bb.pem%27%2C+%27keyfile\
                          %27%3A+%27%2Fetc%2Fk.pem%27%7D";
        let expected = TlsOptions::new().identity_pem_files("/etc/a+b.pem", "/etc/k.pem");
        assert_eq!(shown(urlencoded), format!("{expected:?}"));
    }

    #[test]
    fn the_error_for_a_wrong_value_in_the_dict_names_its_key() {
        for (dict, option) in [
            ("{'colour': 1}", "ssl_options.colour"),
            ("{'ca_certs': 1}", "ssl_options.ca_certs"),
            ("{'ca_certs': ''}", "ssl_options.ca_certs"),
            ("{'cert_reqs': 3}", "ssl_options.cert_reqs"),
            ("{'cert_reqs': '2'}", "ssl_options.cert_reqs"),
            ("{'ssl_version': 1}", "ssl_options.ssl_version"),
            ("{'ssl_version': PROTOCOL_SSLv3}", "ssl_options.ssl_version"),
            ("{'certfile': 'a', 'certfile': 'b'}", "ssl_options.certfile"),
            ("{'keyfile': 'k'}", "keyfile"),
        ] {
            assert_eq!(refused_dict(dict), option, "{dict}");
        }
        for dict in [
            "x",
            "{",
            "{'a'}",
            "{'a': }",
            "{'a': 1",
            "{'a': 1} x",
            "{'a': 1 'b': 2}",
            "{'a\\n': 1}",
            "{'a",
            "{,}",
            "{1: 2}",
            "[]",
        ] {
            assert_eq!(refused_dict(dict), "ssl_options", "{dict}");
        }
    }

    #[test]
    fn options_of_rabbitmq_without_meaning_for_a_client_are_accepted_and_ignored() {
        for query in [
            "fail_if_no_peer_cert=true",
            "fail_if_no_peer_cert=false",
            "depth=2",
        ] {
            assert_eq!(shown(query), format!("{:?}", TlsOptions::new()), "{query}");
        }
        for (query, option) in [
            ("fail_if_no_peer_cert=maybe", "fail_if_no_peer_cert"),
            ("depth=deep", "depth"),
            ("depth=256", "depth"),
        ] {
            assert_eq!(refused(query).0, option, "{query}");
        }
    }

    #[test]
    fn the_error_for_a_malformed_dict_does_not_contain_it() {
        for dict in [
            "{'password': 'hush'",
            "{'password' 'hush'}",
            "hush",
            "{'a': hush-}",
            r#"{'cert_reqs': '2, "password": "hush"'}"#,
            "{'cert_reqs': hush}",
            "{'ssl_version': hush}",
            "{'certfile': hush}",
        ] {
            let encoded = utf8_percent_encode(dict, NON_ALPHANUMERIC);
            let url = format!("amqps://h/?ssl_options={encoded}");
            let error = url.parse::<ConnectionParameters>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
        }
    }

    #[test]
    fn options_that_exclude_each_other_are_refused() {
        for (query, option) in [
            ("verify=maybe", "verify"),
            ("keyfile=k.pem", "keyfile"),
            ("password=hush", "password"),
            ("certfile=c&keyfile=k&password=hush", "password"),
            ("cacertfile=", "cacertfile"),
            ("cacertfile=a&cacertfile=b", "cacertfile"),
            (
                "cacertfile=a&ssl_options=%7B%27ca_certs%27:%27b%27%7D",
                "ssl_options.ca_certs",
            ),
        ] {
            let (refused, rule) = refused(query);
            assert_eq!(refused, option, "{query}");
            assert!(!rule.contains("hush"), "{rule}");
        }
    }
}
