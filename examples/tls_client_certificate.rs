//! Connects with TLS, and shows a certificate instead of a password.
//!
//!     cargo run --example tls_client_certificate -- HOST PORT CA CERTIFICATE KEY
//!
//! All three are PEM files: the authority that has signed the broker's certificate, one's
//! own certificate, and the key to it (PKCS #8). The broker needs
//! `ssl_options.verify = verify_peer` and the plugin rabbitmq_auth_mechanism_ssl, and a user
//! of the name in the certificate.

use cony::{BlockingConnection, ConnectionParameters, Credentials, TlsOptions};

fn main() -> cony::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, ca, certificate, key] = arguments.as_slice() else {
        eprintln!("usage: tls_client_certificate HOST PORT CA CERTIFICATE KEY");
        std::process::exit(2);
    };

    // Without ca_file the system's authorities are trusted. The broker's name is checked in
    // any case.
    let options = TlsOptions::new()
        .ca_file(ca)
        .identity_pem_files(certificate, key);
    let parameters = ConnectionParameters::new()
        .host(host.as_str())
        .port(port.parse().map_err(cony::Error::other)?)
        .tls_options(options)
        // The certificate says who this is. With a user and a password besides, leave the
        // credentials out here.
        .credentials(Credentials::external());

    let connection = BlockingConnection::open(parameters)?;
    connection.channel()?;
    println!("connected with TLS, without a password");
    connection.close()
}
