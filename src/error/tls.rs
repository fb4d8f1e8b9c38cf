//! What TLS libraries say, and what it means.

use std::fmt;

/// Why TLS did not come about, or was given up by the broker right behind it.
///
/// Told from the words of the TLS library, so it is as good as they are: where that is
/// not OpenSSL, more may be [`Other`](Self::Other).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsError {
    /// Nobody who is trusted here vouches for the broker's certificate.
    UntrustedCertificate,
    /// The broker's certificate is for another name.
    WrongName,
    /// The broker's certificate is not valid any more, or not yet.
    ExpiredCertificate,
    /// The broker demands a client certificate and got none.
    ClientCertificateMissing,
    /// The client certificate is not valid any more.
    ClientCertificateExpired,
    /// The broker does not trust the client certificate.
    ClientCertificateRefused,
    /// There is no version of TLS that both sides accept.
    NoCommonVersion,
    /// What answers does not speak TLS.
    NotTls,
    /// The broker does not go by the name that it was asked for (SNI).
    UnknownName,
    /// The broker gave up without a clear word: no cipher in common, or, before TLS 1.3, a
    /// client certificate that it demands and did not get.
    Refused,
    /// Something else, which the text says.
    Other,
}

/// Words of OpenSSL, in lower case, and what they mean; the first that fits counts. What
/// an alert says is the peer's opinion of this side.
#[cfg(feature = "tls")]
const ALERTS: &[(&str, TlsError)] = &[
    ("certificate required", TlsError::ClientCertificateMissing),
    ("certificate expired", TlsError::ClientCertificateExpired),
    ("bad certificate", TlsError::ClientCertificateRefused),
    (
        "unsupported certificate",
        TlsError::ClientCertificateRefused,
    ),
    ("certificate revoked", TlsError::ClientCertificateRefused),
    ("certificate unknown", TlsError::ClientCertificateRefused),
    ("unknown ca", TlsError::ClientCertificateRefused),
    ("access denied", TlsError::ClientCertificateRefused),
    ("protocol version", TlsError::NoCommonVersion),
    ("unrecognized name", TlsError::UnknownName),
    // Whoever alerts speaks TLS.
    ("alert", TlsError::Refused),
];

/// The same for what this side says itself.
#[cfg(feature = "tls")]
const FINDINGS: &[(&str, TlsError)] = &[
    ("hostname mismatch", TlsError::WrongName),
    ("ip address mismatch", TlsError::WrongName),
    ("certificate has expired", TlsError::ExpiredCertificate),
    ("certificate is not yet valid", TlsError::ExpiredCertificate),
    ("certificate verify failed", TlsError::UntrustedCertificate),
    ("wrong version number", TlsError::NotTls),
    ("packet length too long", TlsError::NotTls),
    ("http request", TlsError::NotTls),
    ("record layer failure", TlsError::NotTls),
    ("unsupported protocol", TlsError::NoCommonVersion),
];

impl TlsError {
    #[cfg(feature = "tls")]
    pub(crate) fn told_from(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        let table = match text.contains("alert") {
            true => ALERTS,
            false => FINDINGS,
        };
        table
            .iter()
            .find(|(words, _)| text.contains(words))
            .map_or(Self::Other, |(_, failure)| *failure)
    }

    /// What usually helps.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::UntrustedCertificate => {
                "; a private authority has to be named, with TlsOptions::ca_file or the URL \
                 option cacertfile, and with it all authorities above it, up to the root"
            }
            Self::WrongName => {
                "; connect under a name that the certificate has, or say which one it has with \
                 TlsOptions::server_name or the URL option server_name_indication"
            }
            Self::ExpiredCertificate => {
                "; the broker needs a new one, unless it is this machine's clock that is wrong"
            }
            Self::ClientCertificateMissing => {
                "; hand one in, with TlsOptions::identity_pem_files or the URL options certfile \
                 and keyfile"
            }
            Self::ClientCertificateExpired => "; have a new one made",
            Self::ClientCertificateRefused => {
                "; is it signed by an authority that the broker trusts (its \
                 ssl_options.cacertfile)? The broker's log says more"
            }
            Self::NoCommonVersion => {
                "; see TlsOptions::min_protocol_version, and the broker's ssl_options.versions"
            }
            Self::NotTls => "; is this a TLS port (usually 5671)? Without TLS it is amqp://",
            Self::UnknownName => {
                "; ask for a name that it has, with TlsOptions::server_name, or for none, with \
                 TlsOptions::server_name_indication; in a URL server_name_indication is for both"
            }
            Self::Refused => {
                "; does the broker demand a client certificate (TlsOptions::identity_pem_files)? \
                 Its log says more"
            }
            Self::Other => "; is this a TLS port (usually 5671)?",
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UntrustedCertificate => {
                "nobody who is trusted here vouches for the broker's certificate"
            }
            Self::WrongName => "the broker's certificate is for another name",
            Self::ExpiredCertificate => "the broker's certificate is out of date",
            Self::ClientCertificateMissing => "the broker demands a client certificate",
            Self::ClientCertificateExpired => "the client certificate is out of date",
            Self::ClientCertificateRefused => "the broker does not accept the client certificate",
            Self::NoCommonVersion => "there is no version of TLS that both sides accept",
            Self::NotTls => "what answers does not speak TLS",
            Self::UnknownName => "the broker does not know the name that it was asked for",
            Self::Refused => "the broker gave TLS up",
            Self::Other => "TLS failed",
        })
    }
}

impl std::error::Error for TlsError {}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_openssl_3_and_of_older_ones_are_understood() {
        for (words, failure) in [
            (
                "error:0A000086:SSL routines:tls_post_process_server_certificate:certificate \
                 verify failed:../ssl/statem/statem_clnt.c:1889: (unable to get local issuer \
                 certificate)",
                TlsError::UntrustedCertificate,
            ),
            (
                "certificate verify failed: (Hostname mismatch)",
                TlsError::WrongName,
            ),
            (
                "certificate verify failed: (IP address mismatch)",
                TlsError::WrongName,
            ),
            (
                "certificate verify failed: (certificate has expired)",
                TlsError::ExpiredCertificate,
            ),
            (
                "error:1409445C:SSL routines:ssl3_read_bytes:tlsv13 alert certificate required",
                TlsError::ClientCertificateMissing,
            ),
            (
                "error:0A000415:SSL routines::sslv3 alert certificate expired",
                TlsError::ClientCertificateExpired,
            ),
            (
                "ssl/tls alert bad certificate",
                TlsError::ClientCertificateRefused,
            ),
            ("tlsv1 alert unknown ca", TlsError::ClientCertificateRefused),
            ("sslv3 alert handshake failure", TlsError::Refused),
            (
                "error:0A000458:SSL routines:ssl3_read_bytes:tlsv1 unrecognized name:../ssl/record/\
                 rec_layer_s3.c:1605:SSL alert number 112",
                TlsError::UnknownName,
            ),
            ("tlsv1 alert insufficient security", TlsError::Refused),
            ("tlsv1 alert internal error", TlsError::Refused),
            (
                "tlsv1 alert access denied",
                TlsError::ClientCertificateRefused,
            ),
            ("tlsv1 alert protocol version", TlsError::NoCommonVersion),
            ("unsupported protocol", TlsError::NoCommonVersion),
            ("wrong version number", TlsError::NotTls),
            ("Connection reset by peer (os error 104)", TlsError::Other),
        ] {
            assert_eq!(TlsError::told_from(words), failure, "{words}");
        }
    }
}
