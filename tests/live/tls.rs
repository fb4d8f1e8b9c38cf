//! TLS: trust, names, versions and client certificates, and the error of every failure.
//!
//! Cases that the test broker is not configured for use `openssl s_server`, which speaks no AMQP.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use cony::{
    BlockingConnection, ConnectError, ConnectionParameters, Credentials, Error, Stage, TlsError,
    TlsOptions, TlsVersion,
};

use crate::support::{exclusive_queue, expect_error, get, run, unique, variable};

fn parameters() -> ConnectionParameters {
    variable("CONY_BROKER_TLS_URL").parse().unwrap()
}

/// Returns options that trust the authority of the test broker.
fn trusting() -> TlsOptions {
    TlsOptions::new().ca_file(variable("CONY_BROKER_CA"))
}

fn opens(parameters: ConnectionParameters) {
    let connection = BlockingConnection::open(parameters).unwrap();
    connection.channel().unwrap();
    connection.close().unwrap();
}

fn opens_with(options: TlsOptions) {
    opens(parameters().tls_options(options));
}

/// Asserts that opening fails at this stage for this reason, with these words.
#[track_caller]
fn fails(parameters: ConnectionParameters, stage: Stage, failure: TlsError, words: &str) {
    let error = BlockingConnection::open(parameters).unwrap_err();
    match &error {
        Error::Connect {
            stage: came,
            tls: true,
            cause: ConnectError::Tls { error: failed, .. },
            ..
        } => assert_eq!((*came, *failed), (stage, failure), "{error}"),
        _ => panic!("{error}"),
    }
    assert!(error.to_string().contains(words), "{error}");
}

/// Asserts that these options are refused before a connection is made, with these words.
#[track_caller]
fn refused(options: TlsOptions, named: &str, words: &str) {
    // The port is closed, so a connection would fail with another error.
    let parameters = ConnectionParameters::new().port(1).tls_options(options);
    let error = BlockingConnection::open(parameters).unwrap_err();
    let Error::InvalidOption { option, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(option, named, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

/// A folder that is removed after the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique("tls"));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn openssl(arguments: &[&str]) {
    run(Command::new("openssl").args(arguments), b"");
}

/// A TLS server: `openssl s_server` with arguments.
struct Server {
    process: Child,
    output: BufReader<ChildStdout>,
    port: u16,
}

impl Server {
    fn start(certificate: &str, key: &str, arguments: &[&str]) -> Self {
        Self::with_files(&variable(certificate), &variable(key), arguments)
    }

    fn with_files(certificate: &str, key: &str, arguments: &[&str]) -> Self {
        let mut process = Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0"])
            .args(["-cert", certificate, "-key", key])
            .args(["-CAfile", &variable("CONY_BROKER_CA")])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl runs; tests/with-broker installs it");
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let port = (&mut output)
            .lines()
            .map(Result::unwrap)
            .find_map(|line| line.strip_prefix("ACCEPT 127.0.0.1:")?.parse().ok())
            .expect("the server prints its port");
        Self {
            process,
            output,
            port,
        }
    }

    /// Waits until a client has sent these bytes, which the server prints.
    fn await_bytes(&mut self, wanted: &[u8]) {
        let came = (&mut self.output).bytes().map(Result::unwrap);
        let mut last = Vec::new();
        for byte in came {
            last.push(byte);
            if last.ends_with(wanted) {
                return;
            }
        }
        panic!("the server has not received {wanted:?}");
    }

    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    fn good(arguments: &[&str]) -> Self {
        Self::start(
            "CONY_BROKER_SERVER_CERT",
            "CONY_BROKER_SERVER_KEY",
            arguments,
        )
    }

    fn parameters(&self, options: TlsOptions) -> ConnectionParameters {
        let parameters = ConnectionParameters::new().host("127.0.0.1");
        parameters.port(self.port).tls_options(options)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

// Trust.

#[test]
fn an_authority_in_ca_file_or_ca_pem_is_trusted() {
    opens_with(trusting());
    opens_with(trusting().disable_built_in_roots(true));
    let pem = fs::read(variable("CONY_BROKER_CA")).unwrap();
    opens_with(TlsOptions::new().ca_pem(pem));
    let both = TlsOptions::new().ca_file(variable("CONY_BROKER_WRONG_CA"));
    opens_with(both.ca_file(variable("CONY_BROKER_CA")));
}

#[test]
fn an_authority_that_is_not_in_the_options_is_not_trusted() {
    let wrong = variable("CONY_BROKER_WRONG_CA");
    for options in [
        TlsOptions::new(),
        TlsOptions::new().disable_built_in_roots(true),
        TlsOptions::new().ca_file(wrong),
    ] {
        let failure = TlsError::UntrustedCertificate;
        let parameters = parameters().tls_options(options);
        fails(parameters, Stage::Tls, failure, "TlsOptions::ca_file");
    }
}

#[test]
fn an_authority_that_the_system_does_not_have_is_not_trusted() {
    expect_error!(
        BlockingConnection::open(variable("CONY_BROKER_TLS_URL")),
        Error::Connect {
            stage: Stage::Tls,
            cause: ConnectError::Tls { .. },
            ..
        }
    );
}

#[test]
fn a_connector_of_the_program_carries_small_and_large_messages() {
    let ca = fs::read(variable("CONY_BROKER_CA")).unwrap();
    let connector = native_tls::TlsConnector::builder()
        .add_root_certificate(native_tls::Certificate::from_pem(&ca).unwrap())
        .build()
        .unwrap();
    let parameters: ConnectionParameters = variable("CONY_BROKER_TLS_URL").parse().unwrap();
    let connection = BlockingConnection::open(parameters.tls_connector(connector)).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    for size in [0, 1, 16_384, 48 * 1024, 1_000_000] {
        let body: Vec<u8> = (0..=250).cycle().take(size).collect();
        channel.basic_publish("", &queue, &body).unwrap();
        assert_eq!(get(&channel, &queue).body, body, "{size}");
    }
    connection.close().unwrap();
}

/// The bodies end near each size at which bytes are divided: the read buffer and its half, a
/// record, and several of these. A reader that took a record for the last one would wait for ever.
#[test]
fn messages_that_end_near_any_boundary_arrive_whole_and_in_order() {
    let connection = BlockingConnection::open(parameters().tls_options(trusting())).unwrap();
    let channel = connection.channel().unwrap();
    let queue = exclusive_queue(&channel);
    let boundaries = [4, 8, 16, 24, 32, 64, 128].map(|kib: usize| kib * 1024);
    let sizes: Vec<usize> = boundaries
        .iter()
        .flat_map(|boundary| (0..=120).step_by(15).map(move |less| boundary - less))
        .chain(1..50)
        .collect();
    let body = |size: usize| -> Vec<u8> { (0..=250).cycle().skip(size % 251).take(size).collect() };
    let consumer = channel.consume(&queue).unwrap();
    for &size in &sizes {
        channel.basic_publish("", &queue, body(size)).unwrap();
    }
    for &size in &sizes {
        let delivery = consumer.recv_timeout(Duration::from_secs(30)).unwrap();
        let delivery = delivery.expect("a delivery within the time");
        assert_eq!(delivery.body, body(size), "{size}");
        delivery.ack().unwrap();
    }
    connection.close().unwrap();
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let options = trusting().server_name("rabbit.example");
    let parameters = || parameters().tls_options(options.clone());
    let failure = TlsError::WrongName;
    fails(parameters(), Stage::Tls, failure, "TlsOptions::server_name");
    // The certificate is for another address.
    let other = parameters().tls_options(trusting().server_name("127.0.0.2"));
    fails(other, Stage::Tls, failure, "for another name");
}

#[test]
fn server_name_is_the_name_that_the_certificate_must_have() {
    let by_address = parameters().host("127.0.0.1");
    opens(by_address.clone().tls_options(trusting()));
    opens(
        by_address
            .clone()
            .tls_options(trusting().server_name("localhost")),
    );
    // The dot at the end of an absolute name is not part of the name in the certificate.
    opens(by_address.tls_options(trusting().server_name("localhost.")));
    opens_with(trusting().server_name_indication(false));
}

#[test]
fn the_name_is_checked_also_without_sni() {
    let options = trusting()
        .server_name_indication(false)
        .server_name("rabbit.example");
    let parameters = parameters().tls_options(options);
    fails(parameters, Stage::Tls, TlsError::WrongName, "another name");
}

#[test]
fn the_checks_of_certificates_and_names_can_be_switched_off() {
    opens_with(TlsOptions::new().danger_accept_invalid_certificates(true));
    let any_name = trusting().server_name("rabbit.example");
    opens_with(any_name.clone().danger_accept_invalid_host_names(true));
    opens_with(any_name.danger_accept_invalid_certificates(true));
    // Accepting every name does not accept every authority.
    let options = TlsOptions::new().danger_accept_invalid_host_names(true);
    let failure = TlsError::UntrustedCertificate;
    fails(
        parameters().tls_options(options),
        Stage::Tls,
        failure,
        "no trusted authority",
    );
}

#[test]
fn an_expired_server_certificate_is_refused() {
    let (certificate, key) = ("CONY_BROKER_OLD_SERVER_CERT", "CONY_BROKER_OLD_SERVER_KEY");
    // The server accepts one connection. A second attempt would fail with another error.
    let server = Server::start(certificate, key, &["-naccept", "1"]);
    let failure = TlsError::ExpiredCertificate;
    let parameters = server.parameters(trusting()).connection_attempts(2);
    fails(parameters, Stage::Tls, failure, "out of date");
}

/// The server has a certificate for `rabbit.example` and refuses every other name.
#[test]
fn a_name_that_the_server_refuses_is_reported_as_unknown() {
    let certificate = variable("CONY_BROKER_SERVER_CERT");
    let key = variable("CONY_BROKER_SERVER_KEY");
    let server = Server::good(&[
        "-servername",
        "rabbit.example",
        "-servername_fatal",
        "-cert2",
        &certificate,
        "-key2",
        &key,
    ]);
    let options = trusting().server_name("localhost");
    let failure = TlsError::UnknownName;
    let words = "TlsOptions::server_name_indication";
    fails(server.parameters(options), Stage::Tls, failure, words);
}

/// The root has signed the certificate of an intermediate authority, which has signed the
/// certificate of the server.
#[test]
fn an_intermediate_authority_is_not_trusted_without_its_root() {
    let folder = Folder::new();
    let path = |name: &str| folder.file(name).display().to_string();
    let extensions = folder.write(
        "extensions",
        "[ca]\nbasicConstraints=critical,CA:TRUE\n[server]\nsubjectAltName=IP:127.0.0.1\n",
    );
    let extensions = extensions.display().to_string();
    let make = |name: &str, section: &str, signer: Option<&str>| {
        let (key, request) = (path(&format!("{name}.key")), path(&format!("{name}.csr")));
        let subject = format!("/CN={name}");
        openssl(&[
            "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", &key, "-out", &request,
            "-subj", &subject,
        ]);
        let out = path(&format!("{name}.pem"));
        let signer = signer.unwrap_or(name);
        let (ca, ca_key) = (
            path(&format!("{signer}.pem")),
            path(&format!("{signer}.key")),
        );
        let by = match signer == name {
            true => vec!["-signkey", &key],
            false => vec!["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"],
        };
        let common = [
            "x509",
            "-req",
            "-in",
            &request,
            "-days",
            "2",
            "-out",
            &out,
            "-extfile",
            &extensions,
            "-extensions",
            section,
        ];
        openssl(&[&common[..], &by].concat());
        out
    };
    let root = make("root", "ca", None);
    let middle = make("middle", "ca", Some("root"));
    let server = make("server", "server", Some("middle"));
    let key = path("server.key");
    let server = Server::with_files(&server, &key, &[]);
    let alone = TlsOptions::new().ca_file(&middle);
    let failure = TlsError::UntrustedCertificate;
    let words = "all authorities above it, up to the root";
    fails(server.parameters(alone.clone()), Stage::Tls, failure, words);
    let whole = server.parameters(alone.ca_file(&root));
    // With the root the TLS handshake succeeds. The server then speaks no AMQP.
    expect_error!(
        BlockingConnection::open(whole.handshake_timeout(Duration::from_secs(1))),
        Error::Connect {
            stage: Stage::Header,
            ..
        }
    );
}

#[test]
fn a_version_below_the_minimum_is_refused() {
    let server = Server::good(&["-tls1_2"]);
    let options = trusting().min_protocol_version(TlsVersion::Tls13);
    let words = "TlsOptions::min_protocol_version";
    let failure = TlsError::NoCommonVersion;
    fails(server.parameters(options), Stage::Tls, failure, words);
    opens_with(trusting().min_protocol_version(TlsVersion::Tls13));
}

// Client certificates.

#[test]
fn a_client_certificate_replaces_the_password() {
    let certificate = variable("CONY_BROKER_CLIENT_CERT");
    let key = variable("CONY_BROKER_CLIENT_KEY");
    let pkcs12 = variable("CONY_BROKER_CLIENT_P12");
    let read = |path: &str| fs::read(path).unwrap();
    for options in [
        trusting().identity_pem_files(&certificate, &key),
        trusting().identity_pem(read(&certificate), read(&key)),
        trusting().identity_pkcs12_file(&pkcs12, "cony"),
        trusting().identity_pkcs12(read(&pkcs12), "cony"),
    ] {
        let credentials = Credentials::external();
        opens(parameters().tls_options(options).credentials(credentials));
    }
}

#[test]
fn all_tls_options_can_be_given_in_a_url() {
    let ca = variable("CONY_BROKER_CA");
    let certificate = variable("CONY_BROKER_CLIENT_CERT");
    let key = variable("CONY_BROKER_CLIENT_KEY");
    let pkcs12 = variable("CONY_BROKER_CLIENT_P12");
    let folder = Folder::new();
    let both = [&key, &certificate].map(|path| fs::read_to_string(path).unwrap());
    let both = folder.write("both.pem", &both.concat());
    let both = both.display();
    let dict = format!(
        "%7B'ca_certs':'{ca}','cert_reqs':2,'certfile':'{certificate}','keyfile':'{key}',\
         'ssl_version':ssl.PROTOCOL_TLSv1_2%7D"
    );
    for query in [
        format!("cacertfile={ca}&certfile={certificate}&keyfile={key}&verify=verify_peer"),
        format!("cacertfile={ca}&certfile={pkcs12}&password=cony"),
        format!("cacertfile={ca}&certfile={both}&server_name_indication=localhost"),
        format!("verify=verify_none&certfile={both}&server_name_indication=disable"),
        format!("ssl_options={dict}"),
    ] {
        let url = variable("CONY_BROKER_TLS_URL");
        let url = format!("{url}?auth_mechanism=external&{query}");
        opens(url.parse().unwrap());
    }
}

#[test]
fn external_without_a_certificate_is_reported_as_failed_authentication() {
    let parameters = parameters().tls_options(trusting());
    let error = expect_error!(
        BlockingConnection::open(parameters.credentials(Credentials::external())),
        Error::AuthenticationFailed { mechanism, .. } if mechanism == "EXTERNAL"
    );
    assert!(error.to_string().contains("client certificate"), "{error}");
}

#[test]
fn an_expired_client_certificate_is_reported() {
    let certificate = variable("CONY_BROKER_EXPIRED_CERT");
    let key = variable("CONY_BROKER_EXPIRED_KEY");
    let options = trusting().identity_pem_files(certificate, key);
    // With TLS 1.3 the broker checks the certificate after the client has finished the handshake.
    let error = expect_error!(
        BlockingConnection::open(parameters().tls_options(options)),
        Error::Connect {
            stage: Stage::Tls | Stage::Header,
            cause: ConnectError::Tls {
                error: TlsError::ClientCertificateExpired,
                ..
            },
            ..
        }
    );
    assert!(error.to_string().contains("has to be renewed"), "{error}");
}

#[test]
fn a_client_certificate_of_an_unknown_authority_is_reported() {
    let certificate = variable("CONY_BROKER_WRONG_CA");
    let key = certificate.replace(".pem", "-key.pem");
    let options = trusting().identity_pem_files(certificate, key);
    let error = expect_error!(
        BlockingConnection::open(parameters().tls_options(options)),
        Error::Connect {
            cause: ConnectError::Tls {
                error: TlsError::ClientCertificateRefused,
                ..
            },
            ..
        }
    );
    assert!(
        error.to_string().contains("ssl_options.cacertfile"),
        "{error}"
    );
}

#[test]
fn a_missing_client_certificate_is_reported() {
    let demanding = ["-Verify", "1", "-verify_return_error"];
    let server = Server::good(&demanding);
    let failure = TlsError::ClientCertificateMissing;
    let words = "TlsOptions::identity_pem_files";
    // The alert arrives after the handshake, when the protocol header has been sent.
    fails(server.parameters(trusting()), Stage::Header, failure, words);
    // TLS 1.2 has no alert for a missing certificate.
    let server = Server::good(&[&demanding[..], &["-tls1_2"]].concat());
    fails(
        server.parameters(trusting()),
        Stage::Tls,
        TlsError::Refused,
        words,
    );
}

#[test]
fn the_error_of_a_lost_tls_connection_does_not_advise_tls() {
    let mut server = Server::good(&[]);
    let parameters = server.parameters(trusting());
    let client = std::thread::spawn(|| BlockingConnection::open(parameters));
    server.await_bytes(b"AMQP\0\0\x09\x01");
    server.kill();
    let error = expect_error!(
        client.join().unwrap(),
        Error::Connect {
            stage: Stage::Header,
            tls: true,
            cause: ConnectError::EndOfStream | ConnectError::Io { .. },
            ..
        }
    );
    assert!(!error.to_string().contains("amqps://"), "{error}");
    assert!(error.to_string().contains("client certificate"), "{error}");
}

// Options that are refused before a connection is made.

#[test]
fn a_missing_file_is_named_in_the_error() {
    let missing = "/nonexistent/cony.pem";
    let certificate = variable("CONY_BROKER_CLIENT_CERT");
    let tls = TlsOptions::new;
    refused(tls().ca_file(missing), "ca_file", missing);
    let pkcs12 = tls().identity_pkcs12_file(missing, "cony");
    refused(pkcs12, "identity_pkcs12_file", missing);
    let pem = tls().identity_pem_files(missing, missing);
    refused(pem, "identity_pem_files", missing);
    let key = tls().identity_pem_files(certificate, missing);
    refused(key, "identity_pem_files", missing);
    for (query, option) in [
        (format!("cacertfile={missing}"), "cacertfile"),
        (format!("certfile={missing}"), "certfile"),
    ] {
        let url = format!("amqps://127.0.0.1:1/?{query}");
        let error = BlockingConnection::open(url).unwrap_err().to_string();
        assert!(error.contains(option) && error.contains(missing), "{error}");
    }
}

#[test]
fn an_invalid_file_is_named_in_the_error() {
    let folder = Folder::new();
    let text = folder.write("text.pem", "neither a certificate nor a key");
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let damaged = folder.write("damaged.pem", damaged);
    let certificate = variable("CONY_BROKER_CLIENT_CERT");
    let key = variable("CONY_BROKER_CLIENT_KEY");
    let tls = TlsOptions::new;
    refused(tls().ca_file(&text), "ca_file", "text.pem");
    refused(tls().ca_file(&damaged), "ca_file", "damaged");
    refused(tls().ca_pem("text"), "ca_pem", "no certificate in PEM");
    let pem = |certificate: &Path, key: &Path| tls().identity_pem_files(certificate, key);
    let option = "identity_pem_files";
    refused(pem(&text, key.as_ref()), option, "text.pem");
    refused(pem(&damaged, key.as_ref()), option, "damaged");
    refused(pem(certificate.as_ref(), &text), option, "no private key");
    let other_key = variable("CONY_BROKER_SERVER_KEY");
    let other = pem(certificate.as_ref(), other_key.as_ref());
    refused(other, option, &other_key);
    let option = "identity_pkcs12_file";
    refused(
        tls().identity_pkcs12_file(&text, "cony"),
        option,
        "text.pem",
    );
    let pkcs12 = variable("CONY_BROKER_CLIENT_P12");
    let wrong = tls().identity_pkcs12_file(&pkcs12, "QzXvJkWp");
    assert!(!format!("{wrong:?}").contains("QzXv"));
    refused(wrong, option, "the password is not the right one");
    refused(tls().server_name(""), "server_name", "a name");
    refused(tls().server_name("a\0b"), "server_name", "a name");
    let nul = tls().identity_pkcs12_file(&pkcs12, "co\0ny");
    refused(nul, "password", "without NUL");
}

#[test]
fn a_key_of_another_format_is_refused_with_the_command_that_converts_it() {
    let folder = Folder::new();
    let path = |name: &str| folder.file(name).display().to_string();
    let original = variable("CONY_BROKER_CLIENT_KEY");
    let certificate = variable("CONY_BROKER_CLIENT_CERT");
    let (ec, rsa, encrypted) = (path("ec.pem"), path("rsa.pem"), path("encrypted.pem"));
    openssl(&["ec", "-in", &original, "-out", &ec]);
    openssl(&["genrsa", "-traditional", "-out", &rsa, "2048"]);
    openssl(&[
        "pkcs8", "-topk8", "-in", &original, "-out", &encrypted, "-passout", "pass:x",
    ]);
    for (key, kind) in [
        (&ec, "BEGIN EC PRIVATE KEY"),
        (&rsa, "BEGIN RSA PRIVATE KEY"),
        (&encrypted, "BEGIN ENCRYPTED PRIVATE KEY"),
    ] {
        assert!(fs::read_to_string(key).unwrap().contains(kind), "{key}");
        let command = format!("openssl pkcs8 -topk8 -nocrypt -in {key} -out key-pkcs8.pem");
        let options = TlsOptions::new().identity_pem_files(&certificate, key);
        refused(options, "identity_pem_files", &command);
    }
    // The command converts the key to a format that is accepted.
    let converted = path("key-pkcs8.pem");
    openssl(&[
        "pkcs8", "-topk8", "-nocrypt", "-in", &ec, "-out", &converted,
    ]);
    let options = trusting().identity_pem_files(&certificate, &converted);
    opens(
        parameters()
            .tls_options(options)
            .credentials(Credentials::external()),
    );
}
