//! The connection that follows a lost one: the parameters of recovery, and the opening, which runs
//! on a thread of its own (`io/driver/connecting.rs`).
//!
//! Each opening begins from the parameters of its broker. So it resolves the name, reads the files
//! of TLS and asks the credentials anew, as a restart of the program would do.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use super::open;
use crate::config::parameters::ConnectionParameters;
use crate::config::recovery::Recovery;
use crate::error::{ConnectError, Error, Result};
use crate::io::cancellation::CancellationToken;
use crate::io::driver::connecting::{AttemptError, Connect, ConnectOrder, RecoverySettings};
use crate::io::driver::link::Link;
use crate::io::open::{Cause, Failure};
use crate::protocol::addresses::share_of_host;
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::frame::{FRAME_MIN_SIZE, encode_method};
use crate::protocol::handshake::{INITIAL_FRAME_SAFE_BYTES, Negotiated, Offer, combine};
use crate::protocol::methods::connection;
use crate::protocol::recovery::policy::AttemptFailure;
use crate::protocol::recovery::session;
use crate::protocol::reply_code::ReplyCode;
use crate::protocol::stage::Stage;

/// Returns the parameters of recovery for a connection that was opened with `parameters`, or `None`
/// if a loss ends it. `index` is the position of `parameters` in `brokers`; if it is beyond the
/// end, `parameters` are appended.
pub(super) fn recovery(
    parameters: &ConnectionParameters,
    brokers: &[ConnectionParameters],
    index: usize,
    negotiated: &Negotiated,
) -> Option<RecoverySettings> {
    let recovery = parameters.recovery.as_ref()?;
    let settings = settings(recovery, parameters, brokers.to_vec(), index, negotiated);
    if settings.is_none() && parameters.is_recovery_set {
        let name = open::name(parameters);
        log::warn!(
            "{name}: recovery is off, because credentials with erase_on_connect allow no second \
             login"
        );
    }
    settings
}

fn settings(
    recovery: &Recovery,
    parameters: &ConnectionParameters,
    mut brokers: Vec<ConnectionParameters>,
    index: usize,
    negotiated: &Negotiated,
) -> Option<RecoverySettings> {
    let first_broker = index.min(brokers.len());
    if first_broker == brokers.len() {
        brokers.push(parameters.clone());
    }
    Some(RecoverySettings {
        session: session::Settings {
            brokers: brokers.len(),
            order: recovery.brokers.into(),
            max_delay: recovery.max_delay,
            limit: recovery.limit,
            attempt_timeout: parameters.handshake_timeout,
        },
        topology: recovery.topology.into(),
        mark_resent: recovery.mark_resent,
        first_broker,
        connect: connect_again(brokers, Limits::of(negotiated))?,
    })
}

/// The limits of the first connection.
///
/// The next connections ask for no more, because a larger heartbeat would lengthen deadlines. They
/// need no less, because encoded frames and open channels have these limits.
#[derive(Debug, Clone, Copy)]
struct Limits {
    channel_max: u16,
    frame_max: u32,
    /// In seconds; 0: heartbeats are off.
    heartbeat: u16,
}

impl Limits {
    fn of(negotiated: &Negotiated) -> Self {
        Self {
            channel_max: negotiated.channel_max,
            frame_max: negotiated.frame_max,
            heartbeat: negotiated.heartbeat,
        }
    }

    /// Lowers the limits of an offer to these.
    fn bound(self, offer: Offer) -> Offer {
        Offer {
            channel_max: combine(offer.channel_max, self.channel_max),
            frame_max: combine(offer.frame_max, self.frame_max),
            heartbeat: offer.heartbeat.map(|ours| combine(ours, self.heartbeat)),
            ..offer
        }
    }

    fn are_met_by(self, negotiated: &Negotiated) -> bool {
        negotiated.channel_max >= self.channel_max && negotiated.frame_max >= self.frame_max
    }
}

/// Returns the function that opens the next connection. `None` if the passwords of a broker are
/// erased once it is connected.
fn connect_again(brokers: Vec<ConnectionParameters>, limits: Limits) -> Option<Arc<Connect>> {
    let mut all = brokers.iter();
    if all.any(|parameters| parameters.credentials.get_erase_on_connect()) {
        return None;
    }
    let is_only = brokers.len() == 1;
    Some(Arc::new(move |order, token| {
        let Some(parameters) = brokers.get(order.broker) else {
            let error = Error::invalid("broker", order.broker, "the list of brokers is shorter");
            return Err(unprepared(error));
        };
        match renewed(parameters, &brokers, order) {
            Some(renewed) => attempt(&renewed, limits, order.deadline, is_only, token),
            None => attempt(parameters, limits, order.deadline, is_only, token),
        }
    }))
}

/// Returns the parameters with the secret of the last `update_secret`, if there was one.
fn renewed(
    parameters: &ConnectionParameters,
    brokers: &[ConnectionParameters],
    order: &ConnectOrder,
) -> Option<ConnectionParameters> {
    let newest = order.newest_secret.as_ref()?;
    let updated = &brokers.get(newest.broker)?.credentials;
    let credentials = parameters.credentials.renewed(updated, &newest.secret);
    Some(parameters.clone().credentials(credentials))
}

fn attempt(
    parameters: &ConnectionParameters,
    limits: Limits,
    deadline: Instant,
    is_only: bool,
    token: &CancellationToken,
) -> Result<Link, AttemptError> {
    parameters.validate().map_err(unprepared)?;
    let mut target = open::target(parameters).map_err(unprepared)?;
    // The program's token is for the opening that it waits for. Open connections are not affected.
    target.cancellation = token.clone();
    let time = deadline.saturating_duration_since(Instant::now());
    if !is_only {
        // A frozen host must not hold up the others.
        target.answer_timeout = share_of_host(target.handshake_timeout);
    }
    target.handshake_timeout = target.handshake_timeout.min(time);
    let bound = |offer| limits.bound(offer);
    let link = open::connect(parameters, target, bound).map_err(|error| AttemptError {
        failure: attempt_failure(&error.failure),
        error: Box::new(open::opening_error(error, parameters)),
    })?;
    match limits.are_met_by(&link.negotiated) {
        true => Ok(link),
        false => Err(refuse(link, limits, parameters)),
    }
}

/// Returns the error of an attempt that was not begun.
fn unprepared(error: Error) -> AttemptError {
    AttemptError {
        failure: match error {
            // No later attempt has a password again.
            Error::CredentialsErased => AttemptFailure::Erased,
            _ => AttemptFailure::Preparation,
        },
        error: Box::new(error),
    }
}

/// Returns the failure for the policy.
fn attempt_failure(failure: &Failure) -> AttemptFailure {
    let stage = failure.stage;
    match &failure.cause {
        Cause::Handshake(failure) => AttemptFailure::Handshake(stage, failure.clone()),
        #[cfg(feature = "native-tls")]
        Cause::Tls(text) if !is_passing(crate::error::TlsError::from_text(text)) => {
            AttemptFailure::Tls
        }
        cause
            if stage == Stage::Start
                && cause.is_hang_up()
                && failure.answer_size > INITIAL_FRAME_SAFE_BYTES =>
        {
            AttemptFailure::TooLargeBeforeTune
        }
        _ => AttemptFailure::Unreachable(stage),
    }
}

/// Returns whether TLS may succeed later: the error has no clear reason.
#[cfg(feature = "native-tls")]
fn is_passing(error: crate::error::TlsError) -> bool {
    use crate::error::TlsError;
    matches!(error, TlsError::Refused | TlsError::Other)
}

/// Closes a connection whose limits are too small.
fn refuse(mut link: Link, limits: Limits, parameters: &ConnectionParameters) -> AttemptError {
    let text = format!(
        "channel_max {} and frame_max {} are below {} and {}, those of the first connection",
        link.negotiated.channel_max,
        link.negotiated.frame_max,
        limits.channel_max,
        limits.frame_max,
    );
    let code = ReplyCode::NOT_ALLOWED;
    let close = connection::Close::default()
        .reply_code(code.into())
        .reply_text(text.as_str());
    let mut frame = Vec::new();
    // The smallest limit, which every connection keeps.
    if encode_method(&mut frame, 0, &close.into(), FRAME_MIN_SIZE as usize).is_ok() {
        // The broker then logs the reason. Without it, the end of the stream has the same effect.
        let _ = link.transport.write(&frame);
    }
    link.transport.shut_down();
    AttemptError {
        failure: AttemptFailure::SmallerLimits,
        error: Box::new(Error::Connect {
            address: link.address,
            stage: Stage::Open,
            tls: parameters.tls,
            cause: ConnectError::Closed(CloseReason::new(ClosedBy::Library, code, text, None)),
            others: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::config::credentials::Credentials;
    use crate::io::open::tests::{Peer, play};
    use crate::protocol::handshake::HandshakeFailure;
    use crate::protocol::methods::Method;
    use crate::protocol::table::FieldTable;

    const TEST_TIMEOUT: Duration = Duration::from_secs(10);

    const FIRST: Limits = Limits {
        channel_max: 100,
        frame_max: 10_000,
        heartbeat: 10,
    };

    fn negotiated(channel_max: u16, frame_max: u32) -> Negotiated {
        Negotiated {
            channel_max,
            frame_max,
            heartbeat: 10,
            server_properties: FieldTable::new(),
        }
    }

    fn at(address: SocketAddr) -> ConnectionParameters {
        ConnectionParameters::new()
            .host("127.0.0.1")
            .port(address.port())
    }

    fn order(broker: usize, time: Duration) -> ConnectOrder {
        ConnectOrder {
            broker,
            deadline: Instant::now() + time,
            newest_secret: None,
        }
    }

    /// Opens the next connection with these parameters.
    fn connected(parameters: ConnectionParameters, time: Duration) -> Result<Link, AttemptError> {
        let connect = connect_again(vec![parameters], FIRST).unwrap();
        connect(&order(0, time), &CancellationToken::new())
    }

    #[test]
    fn a_silent_broker_is_given_up_after_its_share_unless_it_is_the_only_one() {
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let parameters = at(silent.local_addr().unwrap());
        let parameters = parameters.handshake_timeout(Duration::from_millis(3200));
        for (brokers, time) in [(2, "3s"), (1, "3.2s")] {
            let connect = connect_again(vec![parameters.clone(); brokers], FIRST).unwrap();
            let connected = connect(&order(0, TEST_TIMEOUT), &CancellationToken::new());
            let text = connected.err().unwrap().error.to_string();
            assert!(text.contains(&format!("no answer within {time}")), "{text}");
        }
    }

    /// Plays the broker up to tune-ok, which it returns.
    fn tuned(peer: &mut Peer, channel_max: u16, frame_max: u32) -> connection::TuneOk {
        peer.start();
        let tune = connection::Tune::default().heartbeat(60);
        peer.send(tune.channel_max(channel_max).frame_max(frame_max));
        let Method::ConnectionTuneOk(tune_ok) = peer.next_method() else {
            panic!("no tune-ok");
        };
        peer.expect(connection::Open::ID);
        peer.send(connection::OpenOk::default());
        tune_ok
    }

    #[test]
    fn the_next_connection_asks_for_no_more_than_the_first_one_had() {
        let (address, peer) = play(|peer| {
            let tune_ok = tuned(peer, 0, 0);
            assert_eq!(tune_ok.channel_max, FIRST.channel_max);
            assert_eq!(tune_ok.frame_max, FIRST.frame_max);
            assert_eq!(tune_ok.heartbeat, FIRST.heartbeat);
            peer.expect_end();
        });
        let token = CancellationToken::new();
        // The token of the first opening is for that opening only.
        token.cancel();
        let link = connected(at(address).cancellation_token(token), TEST_TIMEOUT);
        assert!(link.is_ok());
        drop(link);
        peer.join().unwrap();
    }

    #[test]
    fn heartbeats_that_are_off_stay_off() {
        let offer = ConnectionParameters::new()
            .heartbeat(Duration::ZERO)
            .offer(&Credentials::default());
        assert_eq!(FIRST.bound(offer).heartbeat, None);
    }

    #[test]
    fn a_connection_with_smaller_limits_is_closed_with_the_reason() {
        for (channel_max, frame_max) in [(99, 10_000), (100, 9_999)] {
            let (address, peer) = play(move |peer| {
                tuned(peer, channel_max, frame_max);
                let Method::ConnectionClose(close) = peer.next_method() else {
                    panic!("no close");
                };
                assert_eq!(ReplyCode::from(close.reply_code), ReplyCode::NOT_ALLOWED);
                peer.expect_end();
            });
            let refused = connected(at(address), TEST_TIMEOUT).err().unwrap();
            assert_eq!(refused.failure, AttemptFailure::SmallerLimits);
            let text = refused.error.to_string();
            assert!(text.contains("those of the first connection"), "{text}");
            peer.join().unwrap();
        }
    }

    #[test]
    fn an_attempt_ends_at_its_deadline() {
        let (address, peer) = play(|peer| {
            peer.expect_protocol_header();
            peer.expect_end();
        });
        let late = connected(at(address), Duration::from_millis(100))
            .err()
            .unwrap();
        assert_eq!(late.failure, AttemptFailure::Unreachable(Stage::Header));
        peer.join().unwrap();
    }

    #[test]
    fn an_attempt_that_cannot_begin_connects_to_no_broker() {
        let erased = Credentials::plain("user", "password");
        erased.erase();
        let parameters = ConnectionParameters::new().credentials(erased);
        let error = connected(parameters, TEST_TIMEOUT).err().unwrap();
        assert_eq!(error.failure, AttemptFailure::Erased);
        assert!(matches!(*error.error, Error::CredentialsErased));

        let connect = connect_again(vec![ConnectionParameters::new()], FIRST).unwrap();
        let error = connect(&order(1, TEST_TIMEOUT), &CancellationToken::new()).err();
        assert_eq!(error.unwrap().failure, AttemptFailure::Preparation);
    }

    #[cfg(feature = "native-tls")]
    #[test]
    fn files_of_tls_are_read_for_each_attempt() {
        let options = crate::TlsOptions::new().ca_file("/nonexistent/ca.pem");
        // The connection cannot have been opened with this file: it is gone.
        let parameters = ConnectionParameters::new().tls_options(options);
        let error = connected(parameters, TEST_TIMEOUT).err().unwrap();
        assert_eq!(error.failure, AttemptFailure::Preparation);
        assert!(
            error.error.to_string().contains("ca_file"),
            "{}",
            error.error
        );
    }

    #[test]
    fn passwords_that_are_erased_allow_no_recovery() {
        let kept = ConnectionParameters::new();
        let erased = Credentials::plain("user", "password").erase_on_connect(true);
        let erased = ConnectionParameters::new().credentials(erased);
        assert!(connect_again(vec![kept.clone(), erased], FIRST).is_none());
        assert!(connect_again(vec![kept], FIRST).is_some());
    }

    #[test]
    fn the_list_of_brokers_has_the_first_one() {
        let broker = |name: &str| ConnectionParameters::new().host(name);
        let list = [broker("a"), broker("b")];
        for (brokers, index, count) in [(&list[..], 1, 2), (&list[..], 7, 3), (&[], 0, 1)] {
            let negotiated = negotiated(100, 10_000);
            let settings = settings(
                &Recovery::new(),
                &list[1],
                brokers.to_vec(),
                index,
                &negotiated,
            )
            .unwrap();
            assert_eq!(settings.session.brokers, count);
            assert_eq!(settings.first_broker, index.min(count - 1));
        }
    }

    #[test]
    fn every_failure_of_an_opening_has_its_meaning_for_the_policy() {
        use AttemptFailure::{TooLargeBeforeTune, Unreachable};

        let reset = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let other = || std::io::Error::other("no route");
        let too_large = INITIAL_FRAME_SAFE_BYTES + 1;
        let refused = HandshakeFailure::NotAmqp(vec![21]);
        #[cfg_attr(not(feature = "native-tls"), expect(unused_mut, reason = "no TLS"))]
        let mut table = vec![
            (
                Stage::Credentials,
                0,
                Cause::Provider(Box::new(Error::CredentialsErased)),
                Unreachable(Stage::Credentials),
            ),
            (
                Stage::Resolve,
                0,
                Cause::Io(other()),
                Unreachable(Stage::Resolve),
            ),
            (
                Stage::Tcp,
                0,
                Cause::TimedOut(TEST_TIMEOUT),
                Unreachable(Stage::Tcp),
            ),
            (Stage::Tls, 0, Cause::Io(reset()), Unreachable(Stage::Tls)),
            (
                Stage::Start,
                100,
                Cause::EndOfStream,
                Unreachable(Stage::Start),
            ),
            (
                Stage::Start,
                too_large,
                Cause::EndOfStream,
                TooLargeBeforeTune,
            ),
            (
                Stage::Start,
                too_large,
                Cause::Io(reset()),
                TooLargeBeforeTune,
            ),
            (
                Stage::Start,
                too_large,
                Cause::Io(other()),
                Unreachable(Stage::Start),
            ),
            (
                Stage::Open,
                too_large,
                Cause::EndOfStream,
                Unreachable(Stage::Open),
            ),
            (
                Stage::Header,
                0,
                Cause::Cancelled,
                Unreachable(Stage::Header),
            ),
            (
                Stage::Header,
                0,
                Cause::Handshake(refused.clone()),
                AttemptFailure::Handshake(Stage::Header, refused),
            ),
        ];
        #[cfg(feature = "native-tls")]
        for (text, meaning) in [
            (
                "certificate verify failed: (certificate has expired)",
                AttemptFailure::Tls,
            ),
            (
                "certificate verify failed: (Hostname mismatch)",
                AttemptFailure::Tls,
            ),
            ("wrong version number", AttemptFailure::Tls),
            ("tlsv1 alert protocol version", AttemptFailure::Tls),
            ("sslv3 alert handshake failure", Unreachable(Stage::Tls)),
            ("unexpected eof", Unreachable(Stage::Tls)),
        ] {
            table.push((Stage::Tls, 0, Cause::Tls(text.into()), meaning));
        }
        for (stage, answer_size, cause, meaning) in table {
            let failure = Failure {
                stage,
                address: String::new(),
                mechanism: None,
                answer_size,
                cause,
            };
            assert_eq!(attempt_failure(&failure), meaning, "{failure:?}");
        }
    }
}
