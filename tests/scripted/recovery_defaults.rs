//! Recovery without a word about it, and with passwords that are erased.

use cony::{BlockingConnection, ConnectionParameters, Credentials, Error, Recovery};

use crate::support::log::TestLog;
use crate::support::peer::{Tune, play, signal};
use crate::support::until;

/// Returns the default parameters with the address of the peer.
fn defaults(of_peer: &ConnectionParameters) -> ConnectionParameters {
    ConnectionParameters::new()
        .host(of_peer.get_host())
        .port(of_peer.get_port())
}

/// Runs a client whose connection is lost after `before_loss`, and checks the reason of its end.
/// The peer expects no other connection.
fn lost_for_good(
    adjust: impl FnOnce(ConnectionParameters) -> ConnectionParameters + Send + 'static,
    before_loss: impl FnOnce() + Send + 'static,
    check: impl FnOnce(&Error) + Send + 'static,
) {
    let (ready, lossy) = signal();
    let (gone, client_gone) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            lossy.wait();
            drop(wire);
            client_gone.wait_dropped();
            listener.expect_no_client();
        },
        move |parameters| {
            let connection = BlockingConnection::open(adjust(parameters)).unwrap();
            before_loss();
            ready.send(()).unwrap();
            check(&connection.wait_closed());
            drop(gone);
        },
    );
}

#[test]
fn a_connection_recovers_by_default() {
    let (restored, is_restored) = signal();
    play(
        move |listener| {
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            drop(wire);
            let mut wire = listener.accept();
            wire.handshake(Tune::default());
            wire.open_channel(1);
            is_restored.wait();
            wire.finish();
        },
        move |of_peer| {
            let connection = BlockingConnection::open(defaults(&of_peer)).unwrap();
            let _channel = connection.channel().unwrap();
            until("a recovery", || connection.stats().recoveries == 1);
            restored.send(()).unwrap();
            connection.close().unwrap();
        },
    );
}

#[test]
fn erase_on_connect_switches_recovery_off_with_a_warning_for_those_who_asked_for_it() {
    TestLog::install();
    for (name, is_asked_for) in [("erased by default", false), ("erased on request", true)] {
        lost_for_good(
            move |of_peer| {
                let credentials = Credentials::plain("user", "password").erase_on_connect(true);
                let parameters = defaults(&of_peer).connection_name(name);
                let parameters = match is_asked_for {
                    true => parameters.recovery(Recovery::new()),
                    false => parameters,
                };
                parameters.credentials(credentials)
            },
            || {},
            |reason| assert!(matches!(reason, Error::ConnectionLost(_)), "{reason}"),
        );
        let warnings = TestLog::count(&format!("{name}: recovery is off"));
        assert_eq!(warnings, usize::from(is_asked_for), "{name}");
    }
}

#[test]
fn recovery_gives_up_if_the_password_is_erased_after_the_opening() {
    let credentials = Credentials::plain("user", "password");
    let clone = credentials.clone();
    lost_for_good(
        move |parameters| parameters.credentials(clone).recovery(Recovery::new()),
        move || credentials.erase(),
        |reason| {
            let Error::RecoveryFailed { attempts, last, .. } = reason else {
                panic!("{reason}");
            };
            assert_eq!(*attempts, 2);
            assert!(matches!(last.as_deref(), Some(Error::CredentialsErased)));
            assert!(!reason.is_retryable());
        },
    );
}
