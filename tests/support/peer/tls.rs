//! TLS of the peer. `openssl` makes a new certificate for each run of the tests.

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

    fn send_close_notify(&mut self) {
        // The client may have closed its socket.
        let _ = self.shutdown();
    }
}

/// Returns the certificate of 127.0.0.1 and its key, in PEM.
fn certificate() -> &'static [u8] {
    static PEM: OnceLock<Vec<u8>> = OnceLock::new();
    PEM.get_or_init(|| {
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
            .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-subj", "/CN=peer"])
            .args(["-addext", "subjectAltName=IP:127.0.0.1"])
            // Both on standard output.
            .args(["-keyout", "-", "-out", "-"])
            .stdin(Stdio::null())
            .output()
            .expect("the tests over TLS need openssl; `tests/with-broker --prepare` installs it");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl: {text}");
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

/// Changes the parameters of a client so that it trusts the peer.
pub(crate) fn trust(parameters: ConnectionParameters) -> ConnectionParameters {
    // One for all clients: each new one reads all authorities of the system, which takes longer
    // than most tests.
    static CONNECTOR: OnceLock<TlsConnector> = OnceLock::new();
    let connector = CONNECTOR.get_or_init(|| {
        TlsConnector::builder()
            .add_root_certificate(Certificate::from_pem(certificate()).unwrap())
            .build()
            .unwrap()
    });
    parameters.tls(true).tls_connector(connector.clone())
}
