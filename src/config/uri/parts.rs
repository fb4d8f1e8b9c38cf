//! The parts of a URL.
//!
//! The crate `url` splits a URL, and repairs it first, as browsers do. A broker's URL that has to
//! be repaired is a mistake, often a password with a character that should be encoded. So this
//! module checks the URL before `url` parses it.

use std::net::Ipv4Addr;

use url::{ParseError, Url};
use zeroize::Zeroizing;

use super::decoded;
use crate::error::{Error, Result};

/// The rule where a character may have ended a password too early.
const ENCODE: &str = "in user and password these characters are percent-encoded: % as %25, / as \
                      %2F, ? as %3F, # as %23, @ as %40, : as %3A; in a virtual host or an \
                      option @ is %40, too, if no user is named";

#[derive(Debug)]
pub(super) struct Parts {
    pub(super) is_tls: bool,
    /// The decoded host; an IPv6 address is in brackets.
    pub(super) host: Option<String>,
    /// The whole URL, not decoded. It may contain a password.
    pub(super) url: Url,
}

impl Parts {
    pub(super) fn of(text: &str) -> Result<Self> {
        let text = text.trim_ascii();
        if text.contains(char::is_control) {
            return Err(refused(
                "it contains a tab, a line break or another control character; a control character \
                 must be percent-encoded",
            ));
        }
        let (is_tls, rest) = scheme(text)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, behind) = rest.split_at(end);
        if behind.contains('#') {
            return Err(refused("'#' must be written as %23, in a password as well"));
        }
        let (user, address) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
        let path = behind.split('?').next().unwrap_or_default();
        if user.is_empty() && is_cut(address, path) {
            return Err(refused(ENCODE));
        }
        if has_dot_segment(path) {
            let rule = "set a name of dots with ConnectionParameters::virtual_host";
            return Err(Error::invalid("virtual_host", "…", rule));
        }
        let explained = |error| match behind.contains('@') {
            // The address may be the beginning of a password.
            true if user.is_empty() => refused(ENCODE),
            _ => error,
        };
        let (host, zone, port) = address_parts(address).map_err(explained)?;
        // By the specification the host is optional even if a user or a port is given.
        let default = match authority.is_empty() || !host.is_empty() {
            true => "",
            false => "localhost",
        };
        let scheme = if is_tls { "amqps://" } else { "amqp://" };
        let closing = if zone.is_some() { "]" } else { "" };
        let parts = [scheme, user, default, host, closing, port, behind];
        // Allocated at its full size: a buffer that grows leaves copies of the password in memory.
        let size = parts.iter().map(|part| part.len()).sum();
        let mut whole = Zeroizing::new(String::with_capacity(size));
        for part in parts {
            whole.push_str(part);
        }
        let url = Url::parse(&whole).map_err(|error| explained(reason(error)))?;
        let host = match url.host_str().filter(|_| !host.is_empty()) {
            Some(host) => Some(with_zone(decoded("host", host)?, zone)?),
            None => None,
        };
        Ok(Self { is_tls, host, url })
    }
}

/// Returns an error that contains no part of the URL, because any part may be the password.
pub(super) fn refused(rule: impl Into<String>) -> Error {
    Error::invalid("url", "…", rule)
}

/// Returns whether the scheme uses TLS, and the text behind the scheme.
fn scheme(text: &str) -> Result<(bool, &str)> {
    let is_in_scheme = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    match text.split_once("://") {
        Some((scheme, rest)) if scheme.chars().all(is_in_scheme) => {
            match scheme.to_ascii_lowercase().as_str() {
                "amqp" => Ok((false, rest)),
                "amqps" if cfg!(feature = "native-tls") => Ok((true, rest)),
                "amqps" => {
                    let rule = "cony was built without its feature native-tls";
                    Err(Error::invalid("url", "amqps", rule))
                }
                _ => Err(Error::invalid(
                    "url",
                    scheme,
                    "the scheme must be amqp or amqps",
                )),
            }
        }
        _ => Err(refused(
            "a URL begins with amqp:// or amqps://, such as amqp://user:password@host:port/vhost",
        )),
    }
}

/// Returns whether a slash may have split a password: then the first part is in the place of a
/// port, and the path contains an '@'. (In the options this does no harm, because an error shows
/// only values of known options.)
fn is_cut(address: &str, path: &str) -> bool {
    let Some((before, _)) = path.rsplit_once('@') else {
        return false;
    };
    before.contains(':') || address.contains(':') && !is_plain(address)
}

/// Returns whether an address with a port is certainly not a user and a part of a password.
fn is_plain(address: &str) -> bool {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    host.starts_with('[')
        || host == "localhost"
        || host.parse::<Ipv4Addr>().is_ok()
        || matches!(port, "5671" | "5672")
}

/// Returns the host, the zone of an IPv6 address, and the port with its colon. With a zone, the
/// host has no closing bracket.
///
/// The zone is written behind `%25` (RFC 6874), or in most cases behind `%`.
fn address_parts(address: &str) -> Result<(&str, Option<&str>, &str)> {
    if address.contains(',') {
        return Err(refused(
            "a URL has one host; for several brokers pass a URL for each to \
             BlockingConnection::open_any",
        ));
    }
    let behind_brackets = address.rfind(']').map_or(0, |at| at + 1);
    let colon = address[behind_brackets..].find(':');
    let colon = colon.map_or(address.len(), |at| behind_brackets + at);
    let (host, port) = address.split_at(colon);
    if port.matches(':').count() > 1 {
        return Err(no_address());
    }
    match host.strip_prefix('[').and_then(|it| it.split_once('%')) {
        Some((inside, zone)) => {
            let zone = zone.strip_suffix(']').ok_or_else(no_address)?;
            let bare = zone.strip_prefix("25").filter(|zone| !zone.is_empty());
            Ok((&host[..=inside.len()], Some(bare.unwrap_or(zone)), port))
        }
        None => Ok((host, None, port)),
    }
}

fn with_zone(host: String, zone: Option<&str>) -> Result<String> {
    let Some(zone) = zone else {
        return Ok(host);
    };
    match (host.strip_suffix(']'), decoded("host", zone)?) {
        (Some(address), zone) if !zone.is_empty() => Ok(format!("{address}%{zone}]")),
        _ => Err(no_address()),
    }
}

/// Returns whether a segment of the path, decoded, is `.` or `..`, which the crate `url` would
/// resolve.
fn has_dot_segment(path: &str) -> bool {
    path.split('/').any(|segment| {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        plain == "." || plain == ".."
    })
}

fn reason(error: ParseError) -> Error {
    match error {
        ParseError::InvalidPort => Error::invalid("port", "…", "a number from 1 to 65535"),
        ParseError::InvalidIpv6Address | ParseError::InvalidIpv4Address => no_address(),
        error => refused(format!(
            "it is no URL ({error}); the form is amqp://user:password@host:port/vhost"
        )),
    }
}

fn no_address() -> Error {
    let rule = "an IPv6 address must be in brackets, with the port behind them: [::1]:5672";
    Error::invalid("host", "…", rule)
}

/// Returns the name of the virtual host: `/` if there is no path, or a slash alone.
pub(super) fn virtual_host(path: &str) -> Result<String> {
    match path.strip_prefix('/').unwrap_or(path) {
        "" => Ok("/".into()),
        name if name.contains('/') => {
            let rule = "write a '/' in its name as %2f";
            Err(Error::invalid("virtual_host", "…", rule))
        }
        name => decoded("virtual_host", name),
    }
}

/// Returns the options, each with its decoded name and its value as it is.
pub(super) fn options(query: &str) -> impl Iterator<Item = Result<(String, &str)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| match pair.split_once('=') {
        Some((name, value)) => Ok((decoded("url", name)?, value)),
        None => Err(refused(
            "an option must have the form name=value; write a '?' in a password as %3F",
        )),
    })
}

#[cfg(test)]
mod tests {
    use crate::ConnectionParameters;
    use crate::error::Error;

    fn parse(url: &str) -> ConnectionParameters {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// Returns the option and the rule of the error, after a check that it contains nothing of the
    /// URL.
    #[track_caller]
    fn refused(url: &str) -> (String, String) {
        match url.parse::<ConnectionParameters>() {
            Err(Error::InvalidOption {
                option,
                value,
                rule,
            }) => {
                assert!(!format!("{value}{rule}").contains("hush"), "{url}");
                (option, rule)
            }
            other => panic!("{url}: {other:?}"),
        }
    }

    #[track_caller]
    fn refused_with(url: &str, words: &str) {
        let (_, rule) = refused(url);
        assert!(rule.contains(words), "{url}: {rule}");
    }

    fn user(url: &str) -> String {
        format!("{:?}", parse(url).credentials)
    }

    #[test]
    fn control_characters_inside_are_refused_and_white_space_around_is_ignored() {
        for character in ["\t", "\n", "\r", "\0", "\x0b", "\x7f", "\u{85}"] {
            for url in [
                format!("amqp://u:hu{character}sh@h"),
                format!("amqp://u{character}:p@h"),
                format!("amqp://h/v{character}w"),
                format!("amqp://h?connection_name=a{character}b"),
                format!("am{character}qp://h"),
            ] {
                refused_with(&url, "control character");
            }
        }
        assert_eq!(parse(" amqp://h/v\n").virtual_host, "v");
        assert_eq!(parse("amqp://u:a%09b@h/v%0aw").virtual_host, "v\nw");
    }

    #[test]
    fn a_malformed_percent_encoding_is_refused_with_the_name_of_its_part() {
        for (url, name) in [
            ("amqp://u:hush%@h", "password"),
            ("amqp://u:hush%4@h", "password"),
            ("amqp://u:100%hush@h", "password"),
            ("amqp://u:hush%%41@h", "password"),
            ("amqp://u%zz:p@h", "username"),
            ("amqp://h%", "host"),
            ("amqp://h/50%", "virtual_host"),
            ("amqp://h?connection_name=50%", "connection_name"),
            ("amqp://h?connection%name=x", "url"),
        ] {
            let (option, rule) = refused(url);
            assert_eq!(option, name, "{url}");
            assert!(rule.contains("%25"), "{url}: {rule}");
        }
        assert_eq!(parse("amqp://h/50%25").virtual_host, "50%");
    }

    #[test]
    fn without_a_scheme_and_two_slashes_it_is_no_url() {
        for url in [
            "",
            "hush",
            "amqp:",
            "amqp:broker",
            "amqp:/broker",
            "broker:5672",
            "u:hush@broker",
            "u:hush://broker",
            "amqp:u:hush@h?x=://",
            "//broker",
        ] {
            refused_with(url, "a URL begins with amqp:// or amqps://");
        }
        assert_eq!(parse("AMQP://Broker").host, "Broker");
        let (_, rule) = refused("http://h");
        assert_eq!(rule, "the scheme must be amqp or amqps");
    }

    #[test]
    fn the_error_names_the_encoding_of_characters_that_end_a_password_too_early() {
        for (url, encoded) in [
            ("amqp://u:hush/x@h", "%2F"),
            ("amqp://u:12/hush@h/v", "%2F"),
            ("amqp://u:/hush@h", "%2F"),
            ("amqp://us/er:hush@h", "%2F"),
            ("amqp://u:hush?x@h", "%3F"),
            ("amqp://u:hush?x=1@h", "%3F"),
            ("amqp://u:12?hush@h", "%3F"),
            ("amqp://u:p@a?hush@h", "%3F"),
            ("amqp://u:hush#x@h", "%23"),
            ("amqp://u:p@hush#x@h", "%23"),
            ("amqp://h/v#hush", "%23"),
        ] {
            refused_with(url, encoded);
        }
        let ends_early = "amqp://u:hu%23%3f%2f%40%3a%25sh@h";
        assert_eq!(user(ends_early), "Plain(\"u\", ***)");
    }

    #[test]
    fn an_at_sign_may_stand_in_virtual_host_and_options() {
        for url in [
            "amqp://u:p@h:5672/v@w",
            "amqp://u:p@h/v@w?connection_name=a@b",
            "amqp://h/v@w?connection_name=a@b",
            "amqp://[::1]:99/v@w",
            "amqp://localhost:99/v@w",
            "amqp://127.0.0.1:99/v@w",
            "amqp://h:5672/v@w",
            "amqp://h:5671/v@w",
            "amqp:///v@w",
            "amqp://u@h/v%40w",
        ] {
            assert_eq!(parse(url).virtual_host, "v@w", "{url}");
        }
        let named = parse("amqp://h:5672/v?connection_name=me@host");
        assert_eq!(named.connection_name.as_deref(), Some("me@host"));
        assert_eq!((named.host.as_str(), named.port), ("h", Some(5672)));
        // It ends the user's part where it stands last.
        assert_eq!(user("amqp://me@work:p@ss@h"), "Plain(\"me@work\", ***)");
        assert_eq!(parse("amqp://me@work:p@ss@h").host, "h");
        // A password may have been cut in two here.
        refused_with("amqp://h:99/v@w", "@ is %40, too, if no user is named");
        refused_with("amqp://localhost:hush/v@w", "%2F");
    }

    #[test]
    fn a_virtual_host_of_dots_is_refused() {
        for url in [
            "amqp://h/.",
            "amqp://h/..",
            "amqp://h/%2e%2E",
            "amqp://h/v/../w",
        ] {
            refused_with(url, "ConnectionParameters::virtual_host");
        }
        assert_eq!(parse("amqp://h/...").virtual_host, "...");
        assert_eq!(parse("amqp://h/a.b").virtual_host, "a.b");
    }

    #[test]
    fn the_error_for_a_list_of_hosts_names_open_any() {
        for url in [
            "amqp://one,two/v",
            "amqp://u:hush@one:5672,two:5672/v",
            "amqp://[::1],[::2]",
            "amqp://one:5671,two",
        ] {
            refused_with(url, "open_any");
        }
    }

    #[test]
    fn an_ipv6_address_may_have_a_zone() {
        for (url, host, port) in [
            ("amqp://[::1]", "[::1]", None),
            (
                "amqp://u:p@[fe80::1%25eth0]:99/",
                "[fe80::1%eth0]",
                Some(99),
            ),
            ("amqp://[fe80::1%eth0]/", "[fe80::1%eth0]", None),
            ("amqp://[fe80::1%252]", "[fe80::1%2]", None),
            ("amqp://[fe80::1%25]", "[fe80::1%25]", None),
            ("amqp://[fe80::1%25my%2dlan]:1", "[fe80::1%my-lan]", Some(1)),
            ("amqp://[0:0:0:0:0:0:0:1]:", "[::1]", None),
        ] {
            let parameters = parse(url);
            assert_eq!((&*parameters.host, parameters.port), (host, port), "{url}");
        }
        for url in [
            "amqp://::1",
            "amqp://fe80::1%25eth0/",
            "amqp://[::1",
            "amqp://[::1]5672",
            "amqp://[::1]:1:2",
            "amqp://[localhost]",
            "amqp://[127.0.0.1]",
            "amqp://[]",
            "amqp://[::1%]",
            "amqp://h:1:2",
        ] {
            refused_with(url, "in brackets");
        }
    }

    #[test]
    fn the_error_for_a_port_that_is_no_number_does_not_contain_it() {
        for port in ["hush", "+1", "-1", "99999", "1e3", "%35"] {
            let (option, _) = refused(&format!("amqp://u:p@h:{port}/v"));
            assert_eq!(option, "port", "{port}");
        }
        assert_eq!(parse("amqp://h:0005672").port, Some(5672));
        assert_eq!(parse("amqp://h:/v").port, None);
    }
}
