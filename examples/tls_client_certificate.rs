//! Connects with TLS, and authenticates with a certificate instead of a password.
//!
//!     cargo run --example tls_client_certificate -- HOST PORT CA CERTIFICATE KEY
//!
//! CA, CERTIFICATE and KEY are PEM files: the authority that has signed the broker's certificate,
//! your own certificate, and its private key (PKCS #8). The broker needs the setting
//! `ssl_options.verify = verify_peer`, the plugin rabbitmq_auth_mechanism_ssl, and a user with
//! the name in the certificate.

use cony::{BlockingConnection, ConnectionParameters, Credentials, TlsOptions};

fn main() -> cony::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, ca, certificate, key] = arguments.as_slice() else {
        eprintln!("usage: tls_client_certificate HOST PORT CA CERTIFICATE KEY");
        std::process::exit(2);
    };

    // Without `ca_file` cony trusts only the authorities of the system. It checks the name of the
    // broker in any case.
    let options = TlsOptions::new()
        .ca_file(ca)
        .identity_pem_files(certificate, key);
    let parameters = ConnectionParameters::new()
        .host(host.as_str())
        .port(port.parse().map_err(cony::Error::other)?)
        .tls_options(options)
        // The certificate names the user. If the broker also expects a user and a password, use
        // `Credentials::plain` instead.
        .credentials(Credentials::external());

    let connection = BlockingConnection::open(parameters)?;
    connection.channel()?;
    println!("connected with TLS, without a password");
    connection.close()
}
