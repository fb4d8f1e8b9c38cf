//! The sentences that errors say to their readers.

use std::fmt;
use std::io::ErrorKind;

use super::{ConnectFailure, ConnectionLoss, Error, TlsFailure};
use crate::protocol::handshake::Stage;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidOption {
                option,
                value,
                rule,
            } => write!(f, "the option {option} cannot be '{value}': {rule}"),
            Self::Connect {
                address,
                stage,
                tls,
                cause,
            } => {
                write!(f, "no connection to {address}: {cause}, {stage}")?;
                f.write_str(advice(*stage, *tls, cause))
            }
            Self::AuthenticationFailed {
                mechanism,
                text,
                certain: true,
            } => {
                write!(
                    f,
                    "the broker refused the credentials ({mechanism}): {text}"
                )?;
                f.write_str(match mechanism.as_str() {
                    "EXTERNAL" => {
                        "; is there a client certificate, and a user of the name in it \
                         (ssl_cert_login_from)?"
                    }
                    _ => "; note that RabbitMQ lets 'guest' in from localhost only",
                })
            }
            Self::AuthenticationFailed { mechanism, .. } => write!(
                f,
                "the broker hung up while it checked the credentials ({mechanism}); probably user \
                 or password are wrong"
            ),
            Self::CredentialsErased => f.write_str(
                "the passwords of these credentials are erased: make new ones for every \
                 connection, or do not let them be erased",
            ),
            Self::AccessDenied {
                virtual_host,
                reason,
            } => write!(
                f,
                "the broker does not open the virtual host '{virtual_host}': {} ({}); does it \
                 exist, and has the user permissions on it?",
                reason.text, reason.code
            ),
            Self::UnsupportedProtocol { offered } => write!(
                f,
                "the peer does not speak AMQP 0-9-1; it offers \"{}\"",
                offered.escape_ascii()
            ),
            Self::NotAmqp { address, received } => {
                let hint = match received.as_slice() {
                    [0x15 | 0x16, 3, ..] => "; that is TLS: use amqps://",
                    _ => "; is the port right? (AMQP usually has 5672)",
                };
                write!(
                    f,
                    "{address} is no AMQP broker: it sent \"{}\"{hint}",
                    received.escape_ascii()
                )
            }
            Self::ConnectionClosed(reason) => write!(f, "the connection was {reason}"),
            Self::ConnectionLost(loss) => write!(f, "the connection is lost: {loss}"),
            Self::Protocol(error) => write!(f, "the broker broke the protocol: {error}"),
            Self::ChannelClosed(reason) => write!(f, "the channel was {reason}"),
            Self::InvalidChannelNumber { number, max } => {
                write!(
                    f,
                    "there is no channel {number}: numbers go from 1 to {max}"
                )
            }
            Self::ChannelNumberInUse(number) => write!(f, "channel {number} is in use"),
            Self::NoFreeChannels { max } => write!(
                f,
                "all {max} channels of the connection are in use: close some, or open another \
                 connection"
            ),
            Self::Timeout { operation, after } => {
                write!(f, "no answer to {operation} within {after:?}")
            }
            Self::PublishTimeout {
                after,
                blocked: None,
            } => write!(
                f,
                "no room to publish within {after:?}: the broker or the network takes messages \
                 more slowly than they are published"
            ),
            Self::PublishTimeout {
                after,
                blocked: Some(reason),
            } => write!(
                f,
                "no room to publish within {after:?}: the broker takes no messages at the moment \
                 ({reason})"
            ),
            Self::TooLong { what, size, limit } => {
                write!(f, "{what}: {size} bytes exceed the limit of {limit}")
            }
            Self::NotFinite { what } => write!(
                f,
                "{what}: a float has to be finite, or RabbitMQ closes the connection; say it in \
                 another way, such as a string"
            ),
            Self::DuplicateConsumerTag(tag) => {
                write!(f, "the channel already has a consumer '{tag}'")
            }
            Self::ConsumerCancelled(tag) => write!(f, "the consumer '{tag}' was cancelled"),
            Self::AlreadyConsuming => f.write_str(
                "the callbacks of this channel are being run already, by another thread or by the \
                 caller of this one",
            ),
            Self::MethodRefused { method, instead } => {
                write!(f, "{method} is not sent like this: {instead}")
            }
            Self::UnknownDeliveryTag(tag) => {
                write!(f, "this channel has delivered no message {tag}")
            }
            Self::AlreadySettled(tag) => {
                write!(
                    f,
                    "message {tag} is settled already, or was taken with no_ack"
                )
            }
            Self::NotConfirming => f.write_str(
                "the channel is not in confirm mode: call confirm_delivery before publishing",
            ),
            Self::Nacked => f.write_str(
                "the broker did not take the message: its queue had a problem, or is full",
            ),
            Self::Unroutable(returned) => write!(
                f,
                "the message reached no queue: {} (exchange '{}', routing key '{}')",
                returned.reply_text(),
                returned.exchange(),
                returned.routing_key()
            ),
            Self::Unconfirmed(reason) => {
                write!(f, "nobody knows whether the message was taken: {reason}")
            }
            Self::PublishFailures { failures, more } => {
                let count = failures.len() as u64 + more;
                write!(f, "{count} messages were not taken")?;
                match failures.first() {
                    Some(first) => write!(f, "; number {}: {}", first.number, first.error),
                    None => Ok(()),
                }
            }
            Self::NotUtf8(error) => write!(f, "the body is not UTF-8: {error}"),
            Self::Other(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What usually helps.
fn advice(stage: Stage, tls: bool, cause: &ConnectFailure) -> &'static str {
    match (stage, cause) {
        (_, ConnectFailure::Tls(failure, _)) => failure.advice(),
        (Stage::Tcp, ConnectFailure::Io(ErrorKind::ConnectionRefused, _)) => {
            "; is the broker running, and is the port right?"
        }
        (Stage::Tls, ConnectFailure::EndOfStream | ConnectFailure::Io(..)) => {
            TlsFailure::Other.advice()
        }
        // With TLS 1.3 the client is done before the broker has looked at its certificate.
        (Stage::Header, ConnectFailure::EndOfStream | ConnectFailure::Io(..)) if tls => {
            "; perhaps the broker demands another client certificate; its log says more"
        }
        (Stage::Header, ConnectFailure::EndOfStream | ConnectFailure::Io(..)) => {
            "; a TLS port (usually 5671) needs amqps://"
        }
        (Stage::Header, ConnectFailure::TimedOut(_)) => {
            "; whatever listens there does not speak AMQP, or is overloaded"
        }
        _ => "",
    }
}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_, text) => f.write_str(text),
            Self::TimedOut(after) => write!(f, "nothing happened within {after:?}"),
            Self::EndOfStream => f.write_str("the peer hung up"),
            Self::Tls(failure, text) => write!(f, "{failure} ({text})"),
            Self::Closed(reason) => reason.fmt(f),
            Self::NoMechanism { offered } => write!(
                f,
                "the broker takes none of the credentials' mechanisms, but: {offered}"
            ),
            Self::NoAnswer { mechanism } => {
                write!(f, "the broker asks for more than {mechanism} has to say")
            }
            Self::Protocol(error) => write!(f, "the peer broke the protocol: {error}"),
        }
    }
}

impl fmt::Display for ConnectionLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfStream => f.write_str("the broker hung up without a word"),
            Self::Io(_, text) => f.write_str(text),
            Self::MissedHeartbeats(silent) => {
                write!(f, "not a byte came from the broker for {silent:?}")
            }
            Self::CloseTimedOut => f.write_str("the broker did not answer the close in time"),
            Self::BlockedTooLong { after, reason } => write!(
                f,
                "the broker took no messages for {after:?} ({reason}), which is as long as \
                 blocked_connection_timeout allows"
            ),
            Self::NotRead {
                paused,
                channel,
                cause,
            } => write!(
                f,
                "{cause}, after reading was paused for {} s, because the deliveries of channel \
                 {channel} were not taken; set a prefetch (basic_qos), take them faster, or raise \
                 read_budget",
                paused.as_secs()
            ),
        }
    }
}
