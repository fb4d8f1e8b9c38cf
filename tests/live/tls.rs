//! TLS: what must work, and every way in which it must not, with an error that says why.
//!
//! What the configuration of the test broker cannot show is tried against
//! `openssl s_server`, which never gets as far as AMQP.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use cony::{
    BlockingConnection, ConnectError, ConnectionParameters, Credentials, Error, Stage, TlsError,
    TlsOptions, TlsVersion,
};

use crate::support::{run, unique, variable};

fn parameters() -> ConnectionParameters {
    variable("CONY_BROKER_TLS_URL").parse().unwrap()
}

/// Trusts the authority of the test broker.
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

/// That the opening fails for this reason, at this stage, with these words.
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

/// That these options are refused before anything is sent, naming option and file.
#[track_caller]
fn refused(options: TlsOptions, named: &str, words: &str) {
    // Nobody listens there.
    let parameters = ConnectionParameters::new().port(1).tls_options(options);
    let error = BlockingConnection::open(parameters).unwrap_err();
    let Error::InvalidOption { option, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(option, named, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

/// A folder that goes with the test.
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

/// A TLS server that does as its arguments say.
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
            .expect("the server says where it listens");
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
        panic!("they did not come");
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

// Who is trusted.

#[test]
fn a_private_authority_is_trusted_when_it_is_named() {
    opens_with(trusting());
    opens_with(trusting().disable_built_in_roots(true));
    let pem = fs::read(variable("CONY_BROKER_CA")).unwrap();
    opens_with(TlsOptions::new().ca_pem(pem));
    let both = TlsOptions::new().ca_file(variable("CONY_BROKER_WRONG_CA"));
    opens_with(both.ca_file(variable("CONY_BROKER_CA")));
}

#[test]
fn an_authority_that_nobody_named_is_not_trusted() {
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
fn a_certificate_for_another_name_is_refused() {
    let options = trusting().server_name("rabbit.example");
    let parameters = || parameters().tls_options(options.clone());
    let failure = TlsError::WrongName;
    fails(parameters(), Stage::Tls, failure, "TlsOptions::server_name");
    // The address that the certificate is not for.
    let other = parameters().tls_options(trusting().server_name("127.0.0.2"));
    fails(other, Stage::Tls, failure, "for another name");
}

#[test]
fn a_server_name_says_which_name_the_certificate_has() {
    let by_address = parameters().host("127.0.0.1");
    opens(by_address.clone().tls_options(trusting()));
    opens(
        by_address
            .clone()
            .tls_options(trusting().server_name("localhost")),
    );
    // The dot that says to the resolver that the name is whole is in no certificate.
    opens(by_address.tls_options(trusting().server_name("localhost.")));
    opens_with(trusting().server_name_indication(false));
}

#[test]
fn without_sni_the_name_is_still_checked() {
    let options = trusting()
        .server_name_indication(false)
        .server_name("rabbit.example");
    let parameters = parameters().tls_options(options);
    fails(parameters, Stage::Tls, TlsError::WrongName, "another name");
}

#[test]
fn what_is_dangerous_is_possible() {
    opens_with(TlsOptions::new().danger_accept_invalid_certificates(true));
    let any_name = trusting().server_name("rabbit.example");
    opens_with(any_name.clone().danger_accept_invalid_host_names(true));
    opens_with(any_name.danger_accept_invalid_certificates(true));
    // A name is one thing, the authority is another.
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
fn a_server_certificate_out_of_date_is_refused() {
    let (certificate, key) = ("CONY_BROKER_OLD_SERVER_CERT", "CONY_BROKER_OLD_SERVER_KEY");
    // A second attempt, which would change nothing, would find nobody.
    let server = Server::start(certificate, key, &["-naccept", "1"]);
    let failure = TlsError::ExpiredCertificate;
    let parameters = server.parameters(trusting()).connection_attempts(2);
    fails(parameters, Stage::Tls, failure, "out of date");
}

/// Another certificate stands ready, but only for another name.
#[test]
fn a_name_that_the_broker_does_not_go_by_is_told_as_such() {
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

/// A bridge of certificates: root, one in between, and the server's, which the one in between
/// has signed.
#[test]
fn an_authority_in_the_middle_is_no_good_without_those_above_it() {
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
    // With the root TLS comes about; it is AMQP that never does.
    let error = BlockingConnection::open(whole.handshake_timeout(Duration::from_secs(1)));
    let error = error.unwrap_err();
    let expected = matches!(
        &error,
        Error::Connect {
            stage: Stage::Header,
            ..
        }
    );
    assert!(expected, "{error}");
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

// Who one is.

#[test]
fn a_client_certificate_is_as_good_as_a_password() {
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
fn a_url_says_all_of_it() {
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
fn external_without_a_certificate_is_told_as_such() {
    let parameters = parameters().tls_options(trusting());
    let error = BlockingConnection::open(parameters.credentials(Credentials::external()));
    let error = error.unwrap_err();
    let refused = matches!(
        &error,
        Error::AuthenticationFailed { mechanism, .. } if mechanism == "EXTERNAL"
    );
    assert!(refused, "{error}");
    assert!(error.to_string().contains("client certificate"), "{error}");
}

#[test]
fn a_client_certificate_out_of_date_is_told_as_such() {
    let certificate = variable("CONY_BROKER_EXPIRED_CERT");
    let key = variable("CONY_BROKER_EXPIRED_KEY");
    let options = trusting().identity_pem_files(certificate, key);
    let error = BlockingConnection::open(parameters().tls_options(options)).unwrap_err();
    // With TLS 1.3 the broker looks at it when the client is done with TLS.
    let expected = matches!(
        &error,
        Error::Connect {
            stage: Stage::Tls | Stage::Header,
            cause: ConnectError::Tls {
                error: TlsError::ClientCertificateExpired,
                ..
            },
            ..
        }
    );
    assert!(expected, "{error}");
    assert!(error.to_string().contains("has to be renewed"), "{error}");
}

#[test]
fn a_client_certificate_of_a_stranger_is_told_as_such() {
    let certificate = variable("CONY_BROKER_WRONG_CA");
    let key = certificate.replace(".pem", "-key.pem");
    let options = trusting().identity_pem_files(certificate, key);
    let error = BlockingConnection::open(parameters().tls_options(options)).unwrap_err();
    let expected = matches!(
        &error,
        Error::Connect {
            cause: ConnectError::Tls {
                error: TlsError::ClientCertificateRefused,
                ..
            },
            ..
        }
    );
    assert!(expected, "{error}");
    assert!(
        error.to_string().contains("ssl_options.cacertfile"),
        "{error}"
    );
}

#[test]
fn a_client_certificate_that_is_missing_is_told_as_such() {
    let demanding = ["-Verify", "1", "-verify_return_error"];
    let server = Server::good(&demanding);
    let failure = TlsError::ClientCertificateMissing;
    let words = "TlsOptions::identity_pem_files";
    // The alert comes when TLS is set up and the protocol header is sent.
    fails(server.parameters(trusting()), Stage::Header, failure, words);
    // Before TLS 1.3 there is no alert of its own for it.
    let server = Server::good(&[&demanding[..], &["-tls1_2"]].concat());
    fails(
        server.parameters(trusting()),
        Stage::Tls,
        TlsError::Refused,
        words,
    );
}

#[test]
fn a_peer_that_dies_behind_tls_is_not_advised_to_use_tls() {
    let mut server = Server::good(&[]);
    let parameters = server.parameters(trusting());
    let client = std::thread::spawn(|| BlockingConnection::open(parameters).unwrap_err());
    server.await_bytes(b"AMQP\0\0\x09\x01");
    server.kill();
    let error = client.join().unwrap();
    let expected = matches!(
        &error,
        Error::Connect {
            stage: Stage::Header,
            tls: true,
            cause: ConnectError::EndOfStream | ConnectError::Io { .. },
            ..
        }
    );
    assert!(expected, "{error}");
    assert!(!error.to_string().contains("amqps://"), "{error}");
    assert!(error.to_string().contains("client certificate"), "{error}");
}

// What cannot be used is refused before anything is sent.

#[test]
fn a_file_that_is_missing_is_named() {
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
fn a_file_of_another_kind_is_named() {
    let folder = Folder::new();
    let text = folder.write("text.pem", "nothing to see");
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
    // The command does what it says.
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
