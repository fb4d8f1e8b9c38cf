//! The kinds of TLS errors, and the texts of TLS libraries that they are recognised by.

use std::fmt;

/// The reason why TLS could not be set up, or why the broker ended it directly afterwards.
///
/// The kind is derived from the text of the TLS library. The texts of OpenSSL are known; with
/// another library more errors may be [`Other`](Self::Other). The text itself is in
/// [`ConnectError::Tls`](crate::ConnectError::Tls).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TlsError {
    /// No trusted authority has signed the broker's certificate.
    UntrustedCertificate,
    /// The broker's certificate is for another name.
    WrongName,
    /// The broker's certificate has expired, or is not valid yet.
    ExpiredCertificate,
    /// The broker demands a client certificate, and none was sent.
    ClientCertificateMissing,
    /// The client certificate has expired.
    ClientCertificateExpired,
    /// The broker does not trust the client certificate.
    ClientCertificateRefused,
    /// There is no version of TLS that both sides accept.
    NoCommonVersion,
    /// The peer does not speak TLS.
    NotTls,
    /// The broker has no certificate for the requested name (SNI).
    UnknownName,
    /// The broker ended TLS without a clear reason: there is no common cipher, or, before TLS 1.3,
    /// a client certificate that the broker demands is missing.
    Refused,
    /// Another reason, which the text names.
    Other,
}

/// Texts of OpenSSL about an alert of the peer, in lower case. The first match counts.
#[cfg(feature = "native-tls")]
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
    // An alert without another meaning still shows that the peer speaks TLS.
    ("alert", TlsError::Refused),
];

/// Texts of OpenSSL about errors that this side has found, in lower case. The first match counts.
#[cfg(feature = "native-tls")]
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
    /// Derives the kind from the text of the TLS library.
    #[cfg(feature = "native-tls")]
    pub(crate) fn from_text(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        let table = match text.contains("alert") {
            true => ALERTS,
            false => FINDINGS,
        };
        table
            .iter()
            .find(|(words, _)| text.contains(words))
            .map_or(Self::Other, |(_, error)| *error)
    }

    /// Returns a hint: the remedy to try.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::UntrustedCertificate => {
                "; a private authority must be named with TlsOptions::ca_file or the URL option \
                 cacertfile, together with all authorities above it, up to the root"
            }
            Self::WrongName => {
                "; connect with a name that is in the certificate, or set that name with \
                 TlsOptions::server_name or the URL option server_name_indication"
            }
            Self::ExpiredCertificate => {
                "; the broker needs a new one, unless the clock of this machine is wrong"
            }
            Self::ClientCertificateMissing => {
                "; set one with TlsOptions::identity_pem_files or the URL options certfile and \
                 keyfile"
            }
            Self::ClientCertificateExpired => "; it has to be renewed",
            Self::ClientCertificateRefused => {
                "; check that an authority has signed it which the broker trusts (its \
                 ssl_options.cacertfile); the broker's log has the details"
            }
            Self::NoCommonVersion => {
                "; see TlsOptions::min_protocol_version, and the broker's ssl_options.versions"
            }
            Self::NotTls => {
                "; check that this is a TLS port (usually 5671); without TLS the scheme is amqp://"
            }
            Self::UnknownName => {
                "; request a name that it has with TlsOptions::server_name, or none with \
                 TlsOptions::server_name_indication; the URL option server_name_indication does both"
            }
            Self::Refused => {
                "; the broker may demand a client certificate (TlsOptions::identity_pem_files), \
                 and its log has the details"
            }
            Self::Other => "; check that this is a TLS port (usually 5671)",
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UntrustedCertificate => {
                "no trusted authority has signed the broker's certificate"
            }
            Self::WrongName => "the broker's certificate is for another name",
            Self::ExpiredCertificate => "the broker's certificate is out of date",
            Self::ClientCertificateMissing => "the broker demands a client certificate",
            Self::ClientCertificateExpired => "the client certificate is out of date",
            Self::ClientCertificateRefused => "the broker does not accept the client certificate",
            Self::NoCommonVersion => "there is no version of TLS that both sides accept",
            Self::NotTls => "the peer does not speak TLS",
            Self::UnknownName => "the broker has no certificate for the requested name",
            Self::Refused => "the broker ended TLS",
            Self::Other => "TLS failed",
        })
    }
}

impl std::error::Error for TlsError {}

#[cfg(all(test, feature = "native-tls"))]
mod tests {
    use super::*;

    #[test]
    fn texts_of_openssl_3_and_older_versions_are_recognised() {
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
            assert_eq!(TlsError::from_text(words), failure, "{words}");
        }
    }
}
