//! Options of TLS.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use native_tls::{Certificate, Identity, Protocol, TlsConnector};

use crate::error::{Error, Result};
use crate::protocol::secret::Secret;

/// Options of TLS, for
/// [`ConnectionParameters::tls_options`](crate::ConnectionParameters::tls_options).
///
/// By default cony trusts the certificate authorities of the operating system. The broker's
/// certificate must be signed by one of them, be valid, and name the host of the connection.
///
/// ```
/// use cony::{ConnectionParameters, Credentials, TlsOptions};
///
/// let tls = TlsOptions::new()
///     .ca_file("ca.pem")
///     .identity_pem_files("client.pem", "client-key.pem");
/// let parameters: ConnectionParameters = "amqps://rabbit.example".parse()?;
/// // The broker takes the user from the certificate.
/// let parameters = parameters.tls_options(tls).credentials(Credentials::external());
/// # let _ = parameters;
/// # Ok::<(), cony::Error>(())
/// ```
///
/// Files are read each time a connection is opened, so renewed certificates need no restart.
///
/// There is no option `verify`, because the broker's certificate is always verified, unless you
/// switch that off with
/// [`danger_accept_invalid_certificates`](Self::danger_accept_invalid_certificates).
#[doc(alias = "verify")]
#[derive(Debug, Clone)]
pub struct TlsOptions {
    authorities: Vec<Input>,
    disable_built_in_roots: bool,
    identity: Option<Proof>,
    pub(crate) server_name: Option<String>,
    server_name_indication: bool,
    min_protocol_version: TlsVersion,
    danger_accept_invalid_certificates: bool,
    danger_accept_invalid_host_names: bool,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TlsVersion {
    /// TLS 1.0, out of use since 2021 (RFC 8996).
    Tls10,
    /// TLS 1.1, out of use since 2021 (RFC 8996).
    Tls11,
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3. The TLS library of macOS cannot require it.
    Tls13,
}

/// The value of an option: bytes, or a file.
#[derive(Clone)]
struct Input {
    option: &'static str,
    place: Place,
}

#[derive(Clone)]
enum Place {
    File(PathBuf),
    /// A secret, because it may be a key.
    Bytes(Secret),
}

/// A client certificate and its key.
#[derive(Clone)]
enum Proof {
    Pkcs12 {
        file: Input,
        password: Secret,
    },
    Pem {
        certificate: Input,
        key: Input,
    },
    /// One file with both: PEM, or else PKCS #12.
    Either {
        file: Input,
        password: Secret,
    },
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            authorities: Vec::new(),
            disable_built_in_roots: false,
            identity: None,
            server_name: None,
            server_name_indication: true,
            min_protocol_version: TlsVersion::Tls12,
            danger_accept_invalid_certificates: false,
            danger_accept_invalid_host_names: false,
        }
    }
}

impl TlsOptions {
    /// Returns the defaults: the authorities of the operating system, and full verification.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in this PEM file, in addition to those of the operating system. Can
    /// be called several times.
    ///
    /// The option `cacertfile` of a URL trusts only the authorities of its file. For the same
    /// effect, also call [`disable_built_in_roots`](Self::disable_built_in_roots).
    ///
    /// The file needs all authorities up to the root. An intermediate authority without its root is
    /// not trusted.
    #[must_use]
    pub fn ca_file(self, path: impl Into<PathBuf>) -> Self {
        self.authority(Input::file("ca_file", path))
    }

    /// Trusts these authorities (PEM), in addition to the others. Can be called several times.
    #[must_use]
    pub fn ca_pem(self, pem: impl AsRef<[u8]>) -> Self {
        self.authority(Input::bytes("ca_pem", pem.as_ref()))
    }

    pub(crate) fn authority_file(self, option: &'static str, path: &str) -> Self {
        self.authority(Input::file(option, path))
    }

    fn authority(mut self, input: Input) -> Self {
        self.authorities.push(input);
        self
    }

    /// Sets whether only the authorities of these options are trusted, and not those of the
    /// operating system. Default: `false`.
    #[must_use]
    pub fn disable_built_in_roots(mut self, disable: bool) -> Self {
        self.disable_built_in_roots = disable;
        self
    }

    /// Sends the client certificate in this PKCS #12 file (`.p12`, `.pfx`), which has this
    /// password.
    ///
    /// If the file has several intermediate authorities, OpenSSL 3 sends them in reverse order.
    /// RabbitMQ accepts any order. For another broker use
    /// [`identity_pem_files`](Self::identity_pem_files), which keeps the order of the file.
    #[must_use]
    pub fn identity_pkcs12_file(
        self,
        path: impl Into<PathBuf>,
        password: impl Into<Secret>,
    ) -> Self {
        self.identity(Proof::Pkcs12 {
            file: Input::file("identity_pkcs12_file", path),
            password: password.into(),
        })
    }

    /// Sends the client certificate in these bytes of a PKCS #12 file, which has this password.
    #[must_use]
    pub fn identity_pkcs12(self, der: impl Into<Secret>, password: impl Into<Secret>) -> Self {
        self.identity(Proof::Pkcs12 {
            file: Input::bytes("identity_pkcs12", der),
            password: password.into(),
        })
    }

    /// Sends the client certificate in the PEM file `certificate`. Intermediate authorities follow
    /// the certificate in that file.
    ///
    /// `key` is the PEM file with the private key; it may be the same file. The key must be
    /// unencrypted and in PKCS #8, as `openssl genpkey` writes it (`-----BEGIN PRIVATE KEY-----`).
    /// For another format the error names the command that converts it.
    #[must_use]
    pub fn identity_pem_files(
        self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        let option = "identity_pem_files";
        self.identity(Proof::Pem {
            certificate: Input::file(option, certificate),
            key: Input::file(option, key),
        })
    }

    /// Sends the client certificate in these bytes: the contents of the two files of
    /// [`identity_pem_files`](Self::identity_pem_files).
    #[must_use]
    pub fn identity_pem(self, certificate: impl AsRef<[u8]>, key: impl Into<Secret>) -> Self {
        let option = "identity_pem";
        self.identity(Proof::Pem {
            certificate: Input::bytes(option, certificate.as_ref()),
            key: Input::bytes(option, key),
        })
    }

    /// Sets the client certificate of a URL: the certificate, the file of its key unless it is in
    /// the same file, and a password.
    pub(crate) fn identity_files(
        self,
        certificate: &str,
        key: Option<&str>,
        password: Option<Secret>,
    ) -> Self {
        let file = Input::file("certfile", certificate);
        self.identity(match key {
            Some(key) => Proof::Pem {
                certificate: file,
                key: Input::file("keyfile", key),
            },
            None => Proof::Either {
                file,
                password: password.unwrap_or_default(),
            },
        })
    }

    fn identity(mut self, identity: Proof) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Sets the name that the broker's certificate must have, and that is sent to the broker (SNI).
    /// Default: the host of the connection.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Sets whether the name is sent to the broker (SNI). The certificate is verified in any case.
    /// Default: `true`.
    #[must_use]
    pub fn server_name_indication(mut self, indicate: bool) -> Self {
        self.server_name_indication = indicate;
        self
    }

    /// Sets the lowest version of TLS to accept. Default: [`TlsVersion::Tls12`].
    #[must_use]
    pub fn min_protocol_version(mut self, version: TlsVersion) -> Self {
        self.min_protocol_version = version;
        self
    }

    /// Sets whether to accept any certificate, even a forged one. Default: `false`.
    ///
    /// **Dangerous:** an attacker on the network can read and change everything, including the
    /// password. To trust a private authority, use [`ca_file`](Self::ca_file) instead. The log has
    /// a warning for every connection.
    #[must_use]
    pub fn danger_accept_invalid_certificates(mut self, accept: bool) -> Self {
        self.danger_accept_invalid_certificates = accept;
        self
    }

    /// Sets whether to accept a certificate for any name. Default: `false`.
    ///
    /// **Dangerous:** the owner of any certificate from a trusted authority can pose as the broker.
    /// If the broker's certificate has another name than the host of the connection, set that name
    /// with [`server_name`](Self::server_name) instead. The log has a warning for every connection.
    #[must_use]
    pub fn danger_accept_invalid_host_names(mut self, accept: bool) -> Self {
        self.danger_accept_invalid_host_names = accept;
        self
    }

    /// Returns a warning for the log if these options are dangerous.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        if self.danger_accept_invalid_certificates {
            Some("TLS without verification: an attacker on the network can pose as the broker")
        } else if self.danger_accept_invalid_host_names {
            Some("TLS accepts a certificate for any name: its owner can pose as the broker")
        } else {
            None
        }
    }

    pub(crate) fn connector(&self) -> Result<TlsConnector> {
        let mut builder = TlsConnector::builder();
        for input in &self.authorities {
            for certificate in input.certificates()? {
                builder.add_root_certificate(certificate);
            }
        }
        if let Some(identity) = &self.identity {
            builder.identity(identity.load()?);
        }
        builder
            .disable_built_in_roots(self.disable_built_in_roots)
            .use_sni(self.server_name_indication)
            .min_protocol_version(Some(self.min_protocol_version.into()))
            .danger_accept_invalid_certs(self.danger_accept_invalid_certificates)
            .danger_accept_invalid_hostnames(
                self.danger_accept_invalid_host_names || self.danger_accept_invalid_certificates,
            )
            .build()
            .map_err(|error| match &self.identity {
                Some(identity) => identity.mismatch(&error),
                None => Error::invalid("tls_options", "…", error.to_string()),
            })
    }
}

/// # Reading the options
///
/// Each option has a getter. Certificates, keys and passwords are not returned: of these you can
/// read the paths of the files.
impl TlsOptions {
    /// Returns the paths that were given to [`ca_file`](Self::ca_file), or in the URL.
    pub fn get_ca_files(&self) -> impl Iterator<Item = &Path> {
        self.authorities.iter().filter_map(Input::path)
    }

    /// Returns whether there is a client certificate, from a file or from bytes.
    pub fn has_identity(&self) -> bool {
        self.identity.is_some()
    }

    /// Returns the path of the file with the client certificate. Returns `None` if there is no
    /// client certificate, or if it was given as bytes.
    pub fn get_identity_file(&self) -> Option<&Path> {
        match self.identity.as_ref()? {
            Proof::Pkcs12 { file, .. } | Proof::Either { file, .. } => file.path(),
            Proof::Pem { certificate, .. } => certificate.path(),
        }
    }

    /// Returns the setting [`disable_built_in_roots`](Self::disable_built_in_roots).
    pub fn get_disable_built_in_roots(&self) -> bool {
        self.disable_built_in_roots
    }

    /// Returns the setting [`server_name`](Self::server_name). `None` stands for the host of the
    /// connection.
    pub fn get_server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// Returns the setting [`server_name_indication`](Self::server_name_indication).
    pub fn get_server_name_indication(&self) -> bool {
        self.server_name_indication
    }

    /// Returns the setting [`min_protocol_version`](Self::min_protocol_version).
    pub fn get_min_protocol_version(&self) -> TlsVersion {
        self.min_protocol_version
    }

    /// Returns the setting
    /// [`danger_accept_invalid_certificates`](Self::danger_accept_invalid_certificates).
    pub fn get_danger_accept_invalid_certificates(&self) -> bool {
        self.danger_accept_invalid_certificates
    }

    /// Returns the setting
    /// [`danger_accept_invalid_host_names`](Self::danger_accept_invalid_host_names).
    pub fn get_danger_accept_invalid_host_names(&self) -> bool {
        self.danger_accept_invalid_host_names
    }
}

impl From<TlsVersion> for Protocol {
    fn from(version: TlsVersion) -> Self {
        match version {
            TlsVersion::Tls10 => Self::Tlsv10,
            TlsVersion::Tls11 => Self::Tlsv11,
            TlsVersion::Tls12 => Self::Tlsv12,
            TlsVersion::Tls13 => Self::Tlsv13,
        }
    }
}

impl Input {
    fn file(option: &'static str, path: impl Into<PathBuf>) -> Self {
        let place = Place::File(path.into());
        Self { option, place }
    }

    fn bytes(option: &'static str, bytes: impl Into<Secret>) -> Self {
        let place = Place::Bytes(bytes.into());
        Self { option, place }
    }

    fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::File(path) => Some(path),
            Place::Bytes(_) => None,
        }
    }

    fn read(&self) -> Result<Secret> {
        match &self.place {
            Place::File(path) => fs::read(path)
                .map(Secret::from)
                .map_err(|error| self.wrong(format!("the file cannot be read ({error})"))),
            Place::Bytes(bytes) => Ok(bytes.clone()),
        }
    }

    fn wrong(&self, rule: impl Into<String>) -> Error {
        Error::invalid(self.option, self, rule)
    }

    fn certificates(&self) -> Result<Vec<Certificate>> {
        let certificates = Certificate::stack_from_pem(self.read()?.as_bytes())
            .map_err(|error| self.wrong(format!("its certificates are damaged ({error})")))?;
        match certificates.is_empty() {
            true => Err(self.wrong("there is no certificate in PEM in it")),
            false => Ok(certificates),
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File(path) => path.display().fmt(f),
            Place::Bytes(_) => f.write_str("…"),
        }
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Proof {
    fn load(&self) -> Result<Identity> {
        match self {
            Self::Pkcs12 { file, password } => pkcs12(file, file.read()?.as_bytes(), password),
            Self::Pem { certificate, key } => {
                pem(certificate, &certificate.read()?, key, &key.read()?)
            }
            Self::Either { file, password } => {
                let bytes = file.read()?;
                match find(bytes.as_bytes(), b"-----BEGIN ") {
                    Some(_) => pem(file, &bytes, file, &bytes),
                    None => pkcs12(file, bytes.as_bytes(), password),
                }
            }
        }
    }

    /// Returns the error for a certificate and a key that do not belong together.
    fn mismatch(&self, error: &native_tls::Error) -> Error {
        let input = match self {
            Self::Pkcs12 { file, .. } | Self::Either { file, .. } => file,
            Self::Pem { key, .. } => key,
        };
        input.wrong(format!("TLS cannot be set up with it ({error})"))
    }
}

fn pkcs12(input: &Input, der: &[u8], password: &Secret) -> Result<Identity> {
    let password = std::str::from_utf8(password.as_bytes())
        .ok()
        // OpenSSL would use the part in front of a NUL, and `native-tls` panics.
        .filter(|password| !password.contains('\0'))
        .ok_or_else(|| {
            let rule = "for a PKCS #12 file it must be UTF-8 without NUL";
            Error::invalid("password", "…", rule)
        })?;
    Identity::from_pkcs12(der, password).map_err(|error| {
        let mut rule =
            format!("it is no PKCS #12 file, or the password is not the right one ({error})");
        if rule.contains("unsupported") {
            rule += "; openssl pkcs12 -export writes one with today's ciphers";
        }
        input.wrong(rule)
    })
}

fn pem(certificate: &Input, pem: &Secret, key: &Input, key_pem: &Secret) -> Result<Identity> {
    if find(pem.as_bytes(), b"-----BEGIN CERTIFICATE-----").is_none() {
        return Err(certificate.wrong("there is no certificate in PEM in it"));
    }
    let key_pem = pkcs8_key(key, key_pem.as_bytes())?;
    Identity::from_pkcs8(pem.as_bytes(), key_pem)
        .map_err(|error| key.wrong(format!("certificate or key is damaged ({error})")))
}

/// Returns the first key, which must be in PKCS #8: `native-tls` accepts no other format.
fn pkcs8_key<'a>(input: &Input, pem: &'a [u8]) -> Result<&'a [u8]> {
    const END: &[u8] = b"-----END PRIVATE KEY-----";
    if let Some(start) = find(pem, b"-----BEGIN PRIVATE KEY-----") {
        let key = pem.get(start..).unwrap_or_default();
        let end = find(key, END).map_or(key.len(), |end| end + END.len());
        return Ok(key.get(..end).unwrap_or_default());
    }
    Err(input.wrong(match find(pem, b"PRIVATE KEY-----") {
        None => "there is no private key in PEM in it".into(),
        Some(_) => format!(
            "its key must be an unencrypted one in PKCS #8; convert it with: openssl pkcs8 -topk8 \
             -nocrypt -in {input} -out key-pkcs8.pem"
        ),
    }))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pkcs12 { file, .. } => write!(f, "Pkcs12({file}, ***)"),
            Self::Pem { certificate, key } => write!(f, "Pem({certificate}, {key})"),
            Self::Either { file, .. } => write!(f, "File({file}, ***)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_options_have_a_warning() {
        assert_eq!(TlsOptions::new().warning(), None);
        let none = TlsOptions::new().danger_accept_invalid_certificates(true);
        assert!(none.warning().unwrap().contains("without verification"));
        let any = TlsOptions::new().danger_accept_invalid_host_names(true);
        assert!(any.warning().unwrap().contains("any name"));
    }

    #[test]
    fn each_option_can_be_read_and_the_defaults_verify() {
        let defaults = TlsOptions::new();
        assert_eq!(defaults.get_ca_files().count(), 0);
        assert!(!defaults.has_identity());
        assert_eq!(defaults.get_identity_file(), None);
        assert!(!defaults.get_disable_built_in_roots());
        assert_eq!(defaults.get_server_name(), None);
        assert!(defaults.get_server_name_indication());
        assert_eq!(defaults.get_min_protocol_version(), TlsVersion::Tls12);
        assert!(!defaults.get_danger_accept_invalid_certificates());
        assert!(!defaults.get_danger_accept_invalid_host_names());

        let options = TlsOptions::new()
            .ca_file("a.pem")
            .ca_pem("bytes have no path")
            .ca_file("b.pem")
            .disable_built_in_roots(true)
            .server_name("rabbit")
            .server_name_indication(false)
            .min_protocol_version(TlsVersion::Tls13)
            .danger_accept_invalid_certificates(true)
            .danger_accept_invalid_host_names(true);
        let files: Vec<_> = options.get_ca_files().collect();
        assert_eq!(files, [Path::new("a.pem"), Path::new("b.pem")]);
        assert!(options.get_disable_built_in_roots());
        assert_eq!(options.get_server_name(), Some("rabbit"));
        assert!(!options.get_server_name_indication());
        assert_eq!(options.get_min_protocol_version(), TlsVersion::Tls13);
        assert!(options.get_danger_accept_invalid_certificates());
        assert!(options.get_danger_accept_invalid_host_names());
    }

    #[test]
    fn the_path_of_the_client_certificate_can_be_read() {
        let file = Some(Path::new("client"));
        for options in [
            TlsOptions::new().identity_pkcs12_file("client", "hush"),
            TlsOptions::new().identity_pem_files("client", "key"),
            TlsOptions::new().identity_files("client", None, None),
        ] {
            assert!(options.has_identity());
            assert_eq!(options.get_identity_file(), file);
        }
        for options in [
            TlsOptions::new().identity_pkcs12("hush", "hush"),
            TlsOptions::new().identity_pem("hush", "hush"),
        ] {
            assert!(options.has_identity());
            assert_eq!(options.get_identity_file(), None);
        }
    }

    #[test]
    fn a_password_that_a_pkcs12_file_cannot_have_is_refused_and_does_not_show() {
        for password in [&b"hush\0hush"[..], b"hush\xff", b"\0"] {
            let options = TlsOptions::new().identity_pkcs12("hush", password);
            let error = options.connector().unwrap_err();
            let Error::InvalidOption { option, value, .. } = &error else {
                panic!("{error}");
            };
            assert_eq!((option.as_str(), value.as_str()), ("password", "…"));
            assert!(!error.to_string().contains("hush"), "{error}");
        }
    }

    #[test]
    fn the_key_is_found_in_a_file_with_other_sections() {
        let input = Input::bytes("identity_pem", "");
        let key = "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----";
        let text = format!("Bag Attributes\n{key}\n-----BEGIN CERTIFICATE-----");
        assert_eq!(pkcs8_key(&input, text.as_bytes()).unwrap(), key.as_bytes());
    }

    #[test]
    fn debug_and_errors_contain_no_key_and_no_password() {
        let options = TlsOptions::new()
            .identity_pkcs12("hush", "hush")
            .identity_pem("hush", "hush")
            .ca_pem("hush");
        assert!(!format!("{options:?}").contains("hush"));
        let error = options.connector().unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}
