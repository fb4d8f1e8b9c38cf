//! The peer's TLS: a certificate of its own for each run of the tests, made by `openssl`.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use cony::ConnectionParameters;
use native_tls::{Certificate, Identity, TlsAcceptor, TlsConnector, TlsStream};

use super::Stream;

impl Stream for TlsStream<TcpStream> {
    fn socket(&self) -> &TcpStream {
        self.get_ref()
    }

    fn say_goodbye(&mut self) {
        // A client that is gone does not take it.
        let _ = self.shutdown();
    }
}

/// Certificate and key of 127.0.0.1, in PEM.
fn certificate() -> &'static [u8] {
    static PEM: OnceLock<Vec<u8>> = OnceLock::new();
    PEM.get_or_init(|| {
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", "/CN=peer"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            // Both into one.
            .args(["-keyout", "-", "-out", "-"])
            .stdin(Stdio::null())
            .output()
            .expect("the tests over TLS need openssl; `tests/with-broker --prepare` installs it");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl: {told}");
        output.stdout
    })
}

pub(crate) fn acceptor() -> &'static TlsAcceptor {
    static ACCEPTOR: OnceLock<TlsAcceptor> = OnceLock::new();
    ACCEPTOR.get_or_init(|| {
        let identity = Identity::from_pkcs8(certificate(), certificate()).unwrap();
        TlsAcceptor::new(identity).unwrap()
    })
}

/// Parameters for a client that trusts the peer.
pub(crate) fn trust(parameters: ConnectionParameters) -> ConnectionParameters {
    let connector = TlsConnector::builder()
        .add_root_certificate(Certificate::from_pem(certificate()).unwrap())
        .build()
        .unwrap();
    parameters.tls(true).tls_connector(connector)
}
