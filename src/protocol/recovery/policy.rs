//! The policy: which losses and which failed attempts are followed by another attempt.
//!
//! A fault of the network or of a node passes. A refusal of this program does not, because the next
//! connection would be refused as well. The code of a close and its culprit decide, never its text.

use super::super::close_reason::{CloseReason, ClosedBy};
use super::super::event::Termination;
use super::super::handshake::HandshakeFailure;
use super::super::methods::basic;
use super::super::reply_code::ReplyCode;
use super::super::stage::Stage;

/// The consequence of a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LossVerdict {
    /// The connection is opened again.
    Passes,
    /// The connection is opened again, but not after several losses of this kind.
    Counts(CountedLoss),
    /// The loss is the end.
    Final,
}

/// The kinds of losses of which several are the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CountedLoss {
    /// One of the two sides violates the protocol.
    Protocol,
    /// The program does not take its deliveries.
    NotRead,
}

/// The calls that were on the wire at the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Culprit {
    /// Calls of the program. The same call would close the next connection as well.
    Program,
    /// Calls of the restoration, one of which the close names. Each costs at most two connections,
    /// because it is then left out.
    Restoration,
}

/// Decides about the loss of an open connection.
pub(crate) fn after_loss(termination: &Termination, culprit: Culprit) -> LossVerdict {
    match termination {
        Termination::Closed(reason) if reason.by == ClosedBy::Broker => {
            after_close(reason, culprit)
        }
        // The program asked for these ends.
        Termination::Closed(_)
        | Termination::CloseTimedOut
        | Termination::BlockedTooLong { .. } => LossVerdict::Final,
        Termination::Silence(_) | Termination::EndOfStream | Termination::Io(..) => {
            LossVerdict::Passes
        }
        Termination::Protocol(_) => LossVerdict::Counts(CountedLoss::Protocol),
        Termination::NotRead { .. } => LossVerdict::Counts(CountedLoss::NotRead),
    }
}

fn after_close(reason: &CloseReason, culprit: Culprit) -> LossVerdict {
    match (reason.code, reason.method) {
        // An operator or a shutdown closes the connection, whichever method is under way.
        (ReplyCode::CONNECTION_FORCED | ReplyCode::REPLY_SUCCESS, _) => LossVerdict::Passes,
        (ReplyCode::ACCESS_REFUSED | ReplyCode::INVALID_PATH, _) => LossVerdict::Final,
        // A message that ends one connection would end the next one.
        (_, Some(basic::Publish::ID)) => LossVerdict::Final,
        (ReplyCode::INTERNAL_ERROR | ReplyCode::RESOURCE_ERROR, _) => LossVerdict::Passes,
        (_, Some(_)) if culprit == Culprit::Restoration => LossVerdict::Passes,
        (_, Some(_)) => LossVerdict::Final,
        // The broker does not understand a frame.
        (_, None) => LossVerdict::Counts(CountedLoss::Protocol),
    }
}

/// The failure of an attempt to open a connection, as far as the policy distinguishes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AttemptFailure {
    /// A TLS file could not be read anew.
    Preparation,
    /// The passwords were erased after the first connection was opened.
    Erased,
    /// The provider of the credentials, the host name, TCP, TLS or the stream failed, or the time
    /// was over. A TLS failure without a clear reason counts here.
    Unreachable(Stage),
    /// TLS failed because of a certificate, a name or a version, on either side, or because the
    /// peer does not use TLS.
    #[cfg_attr(
        not(any(test, feature = "native-tls")),
        expect(dead_code, reason = "without TLS no attempt fails in it")
    )]
    Tls,
    /// The broker closed the stream after the frame with the credentials, which exceeds the limit
    /// before the negotiation.
    TooLargeBeforeTune,
    /// The broker refused the handshake, or violated the protocol in it.
    Handshake(Stage, HandshakeFailure),
    /// The connection was open, but its `frame_max` or `channel_max` is smaller than that of the
    /// first connection. It was closed.
    SmallerLimits,
}

/// The consequence of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptVerdict {
    /// Another attempt follows.
    Passes,
    /// The broker refused the login or the virtual host. After some of these no attempt follows.
    Refused,
    /// This broker does not fit. When every broker has answered so twice, no attempt follows.
    Unfit,
}

/// Decides about a failed attempt.
pub(crate) fn after_attempt(failure: &AttemptFailure) -> AttemptVerdict {
    match failure {
        AttemptFailure::Preparation | AttemptFailure::Unreachable(_) => AttemptVerdict::Passes,
        AttemptFailure::Erased
        | AttemptFailure::Tls
        | AttemptFailure::TooLargeBeforeTune
        | AttemptFailure::SmallerLimits => AttemptVerdict::Unfit,
        AttemptFailure::Handshake(_, HandshakeFailure::Closed(reason)) => match reason.code {
            ReplyCode::CONNECTION_FORCED
            | ReplyCode::INTERNAL_ERROR
            | ReplyCode::RESOURCE_ERROR => AttemptVerdict::Passes,
            ReplyCode::ACCESS_REFUSED | ReplyCode::INVALID_PATH | ReplyCode::NOT_ALLOWED => {
                AttemptVerdict::Refused
            }
            _ => AttemptVerdict::Unfit,
        },
        AttemptFailure::Handshake(
            _,
            HandshakeFailure::Version(_)
            | HandshakeFailure::NotAmqp(_)
            | HandshakeFailure::NoLocale { .. }
            | HandshakeFailure::NoMechanism { .. }
            | HandshakeFailure::NoAnswer { .. }
            | HandshakeFailure::Encode(_)
            | HandshakeFailure::Protocol(_),
        ) => AttemptVerdict::Unfit,
    }
}

impl AttemptFailure {
    /// Returns whether the attempt ended before the broker had answered the protocol header.
    pub(crate) fn is_early(&self) -> bool {
        match self {
            Self::Preparation | Self::Erased | Self::Tls => true,
            Self::Unreachable(stage) | Self::Handshake(stage, _) => *stage <= Stage::Header,
            Self::TooLargeBeforeTune | Self::SmallerLimits => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use super::super::super::errors::{EncodeError, ProtocolError};
    use super::super::super::method_id::MethodId;
    use super::super::super::methods::queue;
    use super::*;

    fn close(code: u16, method: Option<MethodId>) -> Termination {
        Termination::Closed(CloseReason::new(ClosedBy::Broker, code, "text", method))
    }

    #[test]
    fn every_loss_has_its_verdict() {
        use LossVerdict::{Counts, Final, Passes};
        let protocol = Counts(CountedLoss::Protocol);
        let by = |by| Termination::Closed(CloseReason::new(by, 200, "", None));
        let table = [
            (by(ClosedBy::Application), Final),
            (by(ClosedBy::Library), Final),
            (Termination::CloseTimedOut, Final),
            (
                Termination::BlockedTooLong {
                    after: Duration::from_secs(1),
                    reason: "low on memory".into(),
                },
                Final,
            ),
            (Termination::Silence(Duration::from_secs(20)), Passes),
            (Termination::EndOfStream, Passes),
            (
                Termination::Io(ErrorKind::ConnectionReset, String::new()),
                Passes,
            ),
            (Termination::Protocol(ProtocolError::BodyTooLong), protocol),
            (
                Termination::NotRead {
                    paused: Duration::from_secs(30),
                    channel: 1,
                    consumer: "tag".into(),
                    bytes: 1,
                    cause: String::new(),
                },
                Counts(CountedLoss::NotRead),
            ),
        ];
        for (termination, expected) in table {
            for culprit in [Culprit::Program, Culprit::Restoration] {
                let verdict = after_loss(&termination, culprit);
                assert_eq!(verdict, expected, "{termination:?}");
            }
        }
    }

    #[test]
    fn every_close_of_the_broker_has_its_verdict() {
        use LossVerdict::{Counts, Final, Passes};
        let protocol = Counts(CountedLoss::Protocol);
        let publish = Some(basic::Publish::ID);
        let declare = Some(queue::Declare::ID);
        // For each code: without a culprit, with a call of the program, of the restoration, with a
        // publish.
        let mut table = vec![
            (320, [Passes; 4]),
            (200, [Passes; 4]),
            (403, [Final; 4]),
            (402, [Final; 4]),
            (541, [Passes, Passes, Passes, Final]),
            (506, [Passes, Passes, Passes, Final]),
        ];
        for code in [
            311, 404, 405, 406, 501, 502, 503, 504, 505, 530, 540, 542, 999,
        ] {
            table.push((code, [protocol, Final, Passes, Final]));
        }
        for (code, expected) in table {
            let verdicts = [
                after_loss(&close(code, None), Culprit::Program),
                after_loss(&close(code, declare), Culprit::Program),
                after_loss(&close(code, declare), Culprit::Restoration),
                after_loss(&close(code, publish), Culprit::Restoration),
            ];
            assert_eq!(verdicts, expected, "{code}");
            let verdict = after_loss(&close(code, publish), Culprit::Program);
            assert_eq!(verdict, expected[3], "{code}");
        }
    }

    #[test]
    fn every_failure_of_an_attempt_has_its_verdict() {
        use AttemptVerdict::{Passes, Refused, Unfit};
        let closed =
            |code| HandshakeFailure::Closed(CloseReason::new(ClosedBy::Broker, code, "text", None));
        let offered = String::new;
        let mut table = vec![
            (AttemptFailure::Preparation, Passes, true),
            (AttemptFailure::Erased, Unfit, true),
            (
                AttemptFailure::Unreachable(Stage::Credentials),
                Passes,
                true,
            ),
            (AttemptFailure::Unreachable(Stage::Resolve), Passes, true),
            (AttemptFailure::Unreachable(Stage::Tcp), Passes, true),
            (AttemptFailure::Unreachable(Stage::Tls), Passes, true),
            (AttemptFailure::Unreachable(Stage::Header), Passes, true),
            (AttemptFailure::Unreachable(Stage::Start), Passes, false),
            (AttemptFailure::Unreachable(Stage::Open), Passes, false),
            (AttemptFailure::Tls, Unfit, true),
            (AttemptFailure::TooLargeBeforeTune, Unfit, false),
            (AttemptFailure::SmallerLimits, Unfit, false),
        ];
        for (failure, verdict) in [
            (HandshakeFailure::Version(*b"AMQP\x00\x01\x00\x00"), Unfit),
            (HandshakeFailure::NotAmqp(vec![21]), Unfit),
            (HandshakeFailure::NoLocale { offered: offered() }, Unfit),
            (HandshakeFailure::NoMechanism { offered: offered() }, Unfit),
            (
                HandshakeFailure::NoAnswer {
                    mechanism: offered(),
                },
                Unfit,
            ),
            (
                HandshakeFailure::Encode(EncodeError::short_string(256)),
                Unfit,
            ),
            (
                HandshakeFailure::Protocol(ProtocolError::BodyTooLong),
                Unfit,
            ),
            (closed(320), Passes),
            (closed(541), Passes),
            (closed(506), Passes),
            (closed(403), Refused),
            (closed(402), Refused),
            (closed(530), Refused),
            (closed(501), Unfit),
            (closed(540), Unfit),
        ] {
            let early = AttemptFailure::Handshake(Stage::Header, failure.clone());
            table.push((early, verdict, true));
            let late = AttemptFailure::Handshake(Stage::Open, failure);
            table.push((late, verdict, false));
        }
        for (failure, verdict, is_early) in table {
            assert_eq!(after_attempt(&failure), verdict, "{failure:?}");
            assert_eq!(failure.is_early(), is_early, "{failure:?}");
        }
    }
}
