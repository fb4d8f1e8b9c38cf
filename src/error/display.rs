//! The sentences that errors say to their readers.

use std::fmt;
use std::io::ErrorKind;

use super::{ConnectError, ConnectionLostError, Error, ReadingPause, TlsError};
use crate::protocol::reply_code::{CloseReason, ClosedBy, ReplyCode};
use crate::protocol::stage::Stage;

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
                others,
            } => {
                write!(f, "no connection to {address}: {cause}, {stage}")?;
                f.write_str(advice(*stage, *tls, cause))?;
                if !others.is_empty() {
                    write!(f, " (the host has other addresses: {})", others.join("; "))?;
                }
                Ok(())
            }
            Self::OpenCancelled { address, stage } => {
                write!(f, "this program gave up connecting to {address}, ")?;
                match stage {
                    Some(stage) => stage.fmt(f)?,
                    None => f.write_str("while no attempt was under way")?,
                }
                f.write_str("; to connect after all, use parameters with a new CancellationToken")
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
                    _ => {
                        "; are user and password right? Note that RabbitMQ lets 'guest' in from \
                         localhost only"
                    }
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
                reason.words(),
                reason.code
            ),
            Self::UnsupportedProtocol { offered } => write!(
                f,
                "the peer does not speak AMQP 0-9-1; it offers \"{}\". Is there a listener for AMQP \
                 0-9-1 on another port?",
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
            Self::ConnectionClosed(reason) => {
                write!(f, "the connection was {reason}{}", remedy(reason))
            }
            Self::ConnectionLost(loss) => write!(f, "the connection is lost: {loss}"),
            Self::Protocol(error) => write!(
                f,
                "the broker broke the protocol: {error}; please report this, with the broker's \
                 name and version"
            ),
            Self::ChannelClosed(reason) => {
                write!(f, "the channel was {reason}{}", remedy(reason))
            }
            Self::InvalidChannelNumber { number, max } => {
                write!(
                    f,
                    "there is no channel {number}: numbers go from 1 to {max}"
                )
            }
            Self::ChannelNumberInUse(number) => write!(
                f,
                "channel {number} is in use: close it first, or have a free number chosen \
                 (channel)"
            ),
            Self::NoFreeChannels { max } => write!(
                f,
                "each of the {max} channels of the connection is in use: close some, or open another \
                 connection"
            ),
            Self::Timeout {
                operation,
                channel,
                after,
                blocked,
                paused,
            } => {
                write!(f, "no answer to {operation}")?;
                if let Some(number) = channel {
                    write!(f, " on channel {number}")?;
                }
                write!(f, " within {after:?}")?;
                match (paused, blocked) {
                    (Some(pause), _) => write!(f, "; {pause}"),
                    (None, Some(reason)) => write!(
                        f,
                        "; the broker blocks this connection at the moment ({reason}), because that \
                         has published, and reads nothing from it until it has room again: ask and \
                         cancel on another connection than you publish on"
                    ),
                    (None, None) => f.write_str(patience(operation)),
                }
            }
            Self::PublishTimeout {
                after,
                paused: Some(pause),
                ..
            } => write!(f, "no room to publish within {after:?}; {pause}"),
            Self::PublishTimeout {
                after,
                blocked: None,
                ..
            } => write!(
                f,
                "no room to publish within {after:?}: the broker or the network takes messages \
                 more slowly than they are published; try again later, or raise publish_timeout"
            ),
            Self::PublishTimeout {
                after,
                blocked: Some(reason),
                ..
            } => write!(
                f,
                "no room to publish within {after:?}: the broker takes no messages at the moment \
                 ({reason}), until it has room again; its log says more"
            ),
            Self::TooLong { what, size, limit } => {
                write!(
                    f,
                    "{what}: {size} bytes exceed the limit of {limit}; nothing was sent"
                )
            }
            Self::NotFinite { what } => write!(
                f,
                "{what}: a float has to be finite, or RabbitMQ closes the connection; say it in \
                 another way, such as a string"
            ),
            Self::OutOfRange { what } => write!(
                f,
                "{what}: RabbitMQ has no integer above 9223372036854775807 (i64::MAX); send it in \
                 another form, such as a string"
            ),
            Self::DuplicateConsumerTag(tag) => {
                write!(
                    f,
                    "the channel already has a consumer '{tag}': choose another tag, or none"
                )
            }
            Self::ConsumerCancelled(tag) => write!(
                f,
                "the consumer '{tag}' was cancelled, by the broker unless this program did: its \
                 queue may be deleted, or out of reach"
            ),
            Self::AlreadyConsuming => f.write_str(
                "the callbacks of this channel are being run already, by another thread or by the \
                 caller of this one: only one at a time can do that",
            ),
            Self::MethodRefused { method, instead } => {
                write!(f, "{method} is not sent like this: {instead}")
            }
            Self::UnknownDeliveryTag(tag) => {
                write!(
                    f,
                    "this channel has delivered no message {tag}: a message is settled on the \
                     channel that it came on"
                )
            }
            Self::AlreadySettled(tag) => {
                write!(
                    f,
                    "message {tag} is settled already, or was taken with no_ack: each is settled \
                     once"
                )
            }
            Self::NotConfirming => f.write_str(
                "the channel is not in confirm mode: call confirm_delivery before publishing",
            ),
            Self::Nacked => f.write_str(
                "the broker did not take the message: its queue had a problem, or is full; publish \
                 it again later",
            ),
            Self::Unroutable(returned) => write!(
                f,
                "the message reached no queue: {} (exchange '{}', routing key '{}'); is a queue \
                 bound there?",
                returned.reply_text(),
                returned.exchange(),
                returned.routing_key()
            ),
            Self::AmbiguousReturn(returned) => write!(
                f,
                "one of several messages with the same body reached no queue, and came back with \
                 other properties than all of them: {} (exchange '{}', routing key '{}'); does a \
                 plugin of the broker change these?",
                returned.reply_text(),
                returned.exchange(),
                returned.routing_key()
            ),
            Self::Unconfirmed(reason) => {
                write!(f, "nobody knows whether the message was taken: {reason}")
            }
            Self::PublishFailures { failures, more } => {
                let count = failures.len() as u64 + more;
                match count {
                    1 => f.write_str("a message was not taken")?,
                    _ => write!(f, "{count} messages were not taken")?,
                }
                match failures.first() {
                    Some(first) => write!(
                        f,
                        "; number {} of channel {}: {}",
                        first.number, first.channel, first.error
                    ),
                    None => Ok(()),
                }
            }
            Self::NotUtf8(error) => write!(
                f,
                "the body is not UTF-8: {error}; its bytes are in Delivery::body"
            ),
            Self::Other(error) => error.fmt(f),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What helps when the broker has closed something, told from its code, and where that has
/// several meanings from the words that RabbitMQ has had for them since 3.0.
fn remedy(reason: &CloseReason) -> &'static str {
    if reason.by != ClosedBy::Broker {
        return "";
    }
    let says = |words| reason.text.contains(words);
    match reason.code {
        ReplyCode::CONNECTION_FORCED => "; an operator or a shutdown did that: connect again",
        ReplyCode::ACCESS_REFUSED if says("refused for user") => {
            "; the user needs that permission (rabbitmqctl set_permissions)"
        }
        ReplyCode::NOT_FOUND => "; it has to be declared first",
        ReplyCode::RESOURCE_LOCKED => "; it is for the connection that has declared it",
        ReplyCode::PRECONDITION_FAILED if says("inequivalent arg") => {
            "; it exists with other properties: declare it with those, or delete it first"
        }
        ReplyCode::PRECONDITION_FAILED if says("delivery acknowledgement") => {
            "; acknowledge sooner, or raise the broker's consumer_timeout"
        }
        ReplyCode::NOT_ALLOWED if says("connection limit (") => {
            "; it passes when other connections end"
        }
        ReplyCode::INTERNAL_ERROR => "; the broker's log says more",
        _ => "",
    }
}

/// What helps when an answer does not come.
fn patience(operation: &str) -> &'static str {
    match operation {
        "a confirm" | "confirms" => "; one may wait for it again",
        "the last publishes" => {
            "; they went out before the close, so publish them again where a second copy does no \
             harm, or raise close_timeout"
        }
        "an RPC request" => "; is a server running, and fast enough?",
        "channel.close before channel.open" => {
            "; until the broker answers, the number of that channel cannot be used again: try again, \
             or raise rpc_timeout"
        }
        "channel.close" | "connection.close" => "; close_timeout says how long to wait",
        _ => "; the broker is busy, or out of reach: try again, or raise rpc_timeout",
    }
}

/// What usually helps.
fn advice(stage: Stage, tls: bool, cause: &ConnectError) -> &'static str {
    match (stage, cause) {
        (_, ConnectError::Tls(failure, _)) => failure.advice(),
        (_, ConnectError::Closed(reason)) => remedy(reason),
        (_, ConnectError::NoLocale { .. }) => "; the option locale may name one of these",
        (_, ConnectError::NoMechanism { .. }) => {
            "; give Credentials that it takes, or the URL option auth_mechanism"
        }
        (_, ConnectError::NoAnswer { .. }) => "; give credentials for another mechanism",
        (_, ConnectError::TooLargeBeforeTune { .. }) => {
            "; RabbitMQ takes 8192 there, before 4.1 only 4096: use a shorter token and fewer \
             client properties, or raise its initial_frame_max"
        }
        (_, ConnectError::Protocol(_)) => "; is the port right? (AMQP usually has 5672)",
        (Stage::Resolve, _) => "; is the name right, and is there a network?",
        (Stage::Tcp, ConnectError::TimedOut(_)) => {
            "; is the address right, and does a firewall let this through?"
        }
        (Stage::Tcp, ConnectError::Io(ErrorKind::ConnectionRefused, _)) => {
            "; is the broker running, and is the port right?"
        }
        (Stage::Tls, ConnectError::EndOfStream | ConnectError::Io(..)) => TlsError::Other.advice(),
        // With TLS 1.3 the client is done before the broker has looked at its certificate.
        (Stage::Header, ConnectError::EndOfStream | ConnectError::Io(..)) if tls => {
            "; perhaps the broker demands another client certificate; its log says more"
        }
        (Stage::Header, ConnectError::EndOfStream | ConnectError::Io(..)) => {
            "; a TLS port (usually 5671) needs amqps://"
        }
        (Stage::Header, ConnectError::TimedOut(_)) => {
            "; whatever listens there does not speak AMQP, or is overloaded"
        }
        _ => "",
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(_, text) => f.write_str(text),
            Self::TimedOut(after) => write!(f, "nothing happened within {after:?}"),
            Self::EndOfStream => f.write_str("the peer hung up"),
            Self::Tls(failure, text) => write!(f, "{failure} ({text})"),
            Self::Closed(reason) => reason.fmt(f),
            Self::NoLocale { offered } => write!(
                f,
                "the broker does not have the locale en_US, as it must, nor the one asked for, \
                 but: {offered}"
            ),
            Self::NoMechanism { offered } => write!(
                f,
                "the broker takes none of the credentials' mechanisms, but: {offered}"
            ),
            Self::NoAnswer { mechanism } => {
                write!(f, "the broker asks for more than {mechanism} has to say")
            }
            Self::TooLargeBeforeTune { size } => write!(
                f,
                "the broker hung up on the {size} bytes with credentials and client properties"
            ),
            Self::Protocol(error) => write!(f, "the peer broke the protocol: {error}"),
        }
    }
}

impl fmt::Display for ReadingPause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "reading is paused for {:.1} s by now, because {} bytes of deliveries for consumer {} on \
             channel {} were not taken, which cannot be given back; take them faster, let the \
             consumer acknowledge with a prefetch (basic_qos), or raise read_budget",
            self.length.as_secs_f64(),
            self.bytes,
            self.consumer,
            self.channel
        )
    }
}

impl fmt::Display for ConnectionLostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfStream => {
                f.write_str("the broker hung up without a word; its log may say why")
            }
            Self::Io(_, text) => f.write_str(text),
            Self::MissedHeartbeats(silent) => {
                write!(
                    f,
                    "not a byte came from the broker for {silent:.0?}, which is twice the heartbeat \
                     interval; the broker or the network is down"
                )
            }
            Self::CloseTimedOut => f.write_str(
                "the broker did not answer the close within close_timeout; what was published \
                 last may be lost",
            ),
            Self::BlockedTooLong { after, reason } => write!(
                f,
                "the broker took no messages for {after:?} ({reason}), which is as long as \
                 blocked_connection_timeout allows"
            ),
            Self::NotRead {
                paused,
                channel,
                consumer,
                bytes,
                cause,
            } => write!(
                f,
                "{cause}, after reading was paused for {} s, because {bytes} bytes of deliveries \
                 for consumer {consumer} on channel {channel} were not taken, which cannot be given \
                 back; take them faster, let the consumer acknowledge with a prefetch (basic_qos), \
                 or raise read_budget",
                paused.as_secs()
            ),
        }
    }
}
