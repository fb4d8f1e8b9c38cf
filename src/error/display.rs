//! The texts of errors: one sentence with the reason and a hint.

use std::fmt;
use std::time::Duration;

use super::Error;
use super::outage::{Brief, Outage};
use crate::protocol::close_reason::{CloseReason, ClosedBy};
use crate::protocol::reply_code::ReplyCode;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The value may be a secret, so only the name is shown.
            Self::InvalidOption {
                option,
                value,
                rule,
            } if value == HIDDEN => write!(f, "the option {option} is refused: {rule}"),
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
                f.write_str(cause.hint(*stage, *tls))?;
                if !others.is_empty() {
                    write!(f, " (other addresses of the host: {})", others.join("; "))?;
                }
                Ok(())
            }
            Self::OpenCancelled { address, stage } => {
                write!(f, "this program cancelled the opening to {address}, ")?;
                match stage {
                    Some(stage) => stage.fmt(f)?,
                    None => f.write_str("while no attempt was under way")?,
                }
                f.write_str("; another opening needs parameters with a new CancellationToken")
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
                        "; check that there is a client certificate, and a user with its name \
                         (ssl_cert_login_from)"
                    }
                    _ => {
                        "; check user and password, and note that RabbitMQ accepts 'guest' from \
                         localhost only"
                    }
                })
            }
            Self::AuthenticationFailed { mechanism, .. } => write!(
                f,
                "the broker closed the stream while it checked the credentials ({mechanism}); \
                 probably user or password are wrong"
            ),
            Self::CredentialsErased => f.write_str(
                "the passwords of these credentials are erased: create new credentials for every \
                 connection, or do not have them erased",
            ),
            Self::ProviderFailed(error) => {
                write!(f, "the provider of the credentials failed: {error}")
            }
            Self::AccessDenied {
                virtual_host,
                reason,
            } => write!(
                f,
                "the broker denies access to the virtual host '{virtual_host}': {} ({}); check \
                 that it exists and that the user has permissions for it",
                reason.words(),
                reason.code
            ),
            Self::UnsupportedProtocol { offered } => write!(
                f,
                "the peer does not speak AMQP 0-9-1, but offers \"{}\"; the listener for AMQP \
                 0-9-1 may have another port",
                offered.escape_ascii()
            ),
            Self::NotAmqp { address, received } => {
                let hint = match received.as_slice() {
                    [0x15 | 0x16, 3, ..] => "; that is TLS: use amqps://",
                    _ => "; check the port (AMQP usually has 5672)",
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
            Self::ConnectionLost(error) => write!(f, "the connection is lost: {error}"),
            Self::Protocol(error) => write!(
                f,
                "the broker violated the protocol: {error}; please report this, with the broker's \
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
                "channel {number} is in use: close it first, or call channel(), which chooses a \
                 free number"
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
                outage,
            } => {
                match *operation {
                    RECOVERY => f.write_str("the connection was not restored")?,
                    "a confirm" | "confirms" => f.write_str("no confirm")?,
                    LAST_PUBLISHES => write!(f, "no confirm of {operation}")?,
                    _ => write!(f, "no reply to {operation}")?,
                }
                if let Some(number) = channel {
                    write!(f, " on channel {number}")?;
                }
                write!(f, " within {after:?}")?;
                match (paused, blocked) {
                    _ if outage.is_some() => write_outage(f, outage.as_deref()),
                    (Some(pause), _) => write!(f, "; {pause}"),
                    (None, Some(reason)) => write!(
                        f,
                        "; the broker blocks this connection ({reason}), because it has published, \
                         and reads nothing from it until the alarm ends: use another connection \
                         for publishing than for other calls"
                    ),
                    (None, None) => f.write_str(timeout_hint(operation)),
                }
            }
            Self::PublishTimeout {
                after,
                outage: outage @ Some(_),
                ..
            } => {
                write!(f, "no room to publish within {after:?}")?;
                write_outage(f, outage.as_deref())
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
                "no room to publish within {after:?}: the broker blocks publishes ({reason}) until \
                 the alarm ends; its log has the details"
            ),
            Self::TooLong { what, size, limit } => {
                write!(
                    f,
                    "{what}: {size} bytes exceed the limit of {limit}; nothing was sent"
                )
            }
            Self::NotFinite { what } => write!(
                f,
                "{what}: a float must be finite, or RabbitMQ closes the connection; use another \
                 type, such as a string"
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
                 queue may be deleted, its node down, or a delivery of a quorum queue unsettled \
                 for longer than consumer_timeout"
            ),
            Self::AlreadyConsuming => f.write_str(
                "the callbacks of this channel are being run already, by another thread or by an \
                 outer call of this one: only one at a time can do that",
            ),
            Self::MethodRefused { method, instead } => {
                write!(f, "send_method does not send {method}: {instead}")
            }
            Self::UnknownDeliveryTag(tag) => {
                write!(
                    f,
                    "the channel has no delivery {tag}: a delivery is settled on the channel that \
                     received it"
                )
            }
            Self::AlreadySettled(tag) => {
                write!(
                    f,
                    "delivery {tag} is settled already, or was taken with no_ack: settle each \
                     delivery once"
                )
            }
            Self::NoReplyTo(tag) => write!(
                f,
                "delivery {tag} has no reply_to: publish the reply to a queue of your choice, or \
                 reject the request"
            ),
            Self::NotConfirming => f.write_str(
                "the channel is not in confirm mode: call confirm_delivery before publishing",
            ),
            Self::Nacked => f.write_str(
                "the broker did not take the message: its queue had a problem, or is full; publish \
                 it again later",
            ),
            Self::Unroutable(returned) => write!(
                f,
                "the message reached no queue: {} (exchange '{}', routing key '{}'); check that a \
                 queue is bound there",
                returned.reply_text(),
                returned.exchange(),
                returned.routing_key()
            ),
            Self::AmbiguousReturn(returned) => write!(
                f,
                "the broker returned a message that reached no queue, and it may be this one: it has \
                 the same body, but other properties, which a plugin of the broker may have changed: \
                 {} (exchange '{}', routing key '{}')",
                returned.reply_text(),
                returned.exchange(),
                returned.routing_key()
            ),
            Self::Unconfirmed(reason) => {
                write!(f, "the outcome of the publish is unknown: {reason}")
            }
            Self::RecoveryFailed {
                lost,
                last,
                attempts,
                after,
            } => write_failed_recovery(f, lost, last.as_deref(), *attempts, *after),
            Self::Interrupted {
                operation,
                channel,
                reason,
            } => {
                write!(f, "the connection was lost during {operation}")?;
                if let Some(number) = channel {
                    write!(f, " on channel {number}")?;
                }
                write!(
                    f,
                    ", which may have taken effect or not: repeat it if a second time does no harm \
                     ({})",
                    Brief(reason)
                )
            }
            Self::TransactionLost(reason) => write!(
                f,
                "nothing was committed, because the connection was lost during the transaction: \
                 begin it again ({})",
                Brief(reason)
            ),
            Self::InDoubt {
                messages,
                unsent,
                reason,
            } => write_doubt(f, *messages, *unsent, reason),
            Self::PublishFailures { failures, more } => {
                let count = failures.len() as u64 + more;
                match count {
                    1 => f.write_str("a message was not taken")?,
                    _ => write!(f, "{count} messages were not taken")?,
                }
                match failures.first() {
                    Some(first) => write!(f, "; {first}"),
                    None => Ok(()),
                }
            }
            Self::NotUtf8(_) => {
                f.write_str("the body is not UTF-8; its bytes are in Delivery::body")
            }
            Self::Other(error) => error.fmt(f),
        }
    }
}

fn write_outage(f: &mut fmt::Formatter<'_>, outage: Option<&Outage>) -> fmt::Result {
    match outage {
        Some(outage) => write!(f, "; {outage}"),
        None => Ok(()),
    }
}

fn write_failed_recovery(
    f: &mut fmt::Formatter<'_>,
    lost: &Error,
    last: Option<&Error>,
    attempts: u32,
    after: Duration,
) -> fmt::Result {
    write!(f, "the connection was lost ({}), and ", Brief(lost))?;
    match attempts {
        1 => f.write_str("1 attempt has")?,
        _ => write!(f, "{attempts} attempts have")?,
    }
    write!(f, " not restored it within {:.1} s", after.as_secs_f64())?;
    match last {
        Some(last) => write!(f, "; the last failure was: {last}"),
        None => Ok(()),
    }
}

fn write_doubt(
    f: &mut fmt::Formatter<'_>,
    messages: u64,
    unsent: u64,
    reason: &Error,
) -> fmt::Result {
    if messages > 0 || unsent == 0 {
        write!(
            f,
            "the broker may not have got {messages} of the published messages"
        )?;
    }
    if messages > 0 && unsent > 0 {
        f.write_str(", and ")?;
    }
    if unsent > 0 {
        write!(f, "{unsent} of the published messages were never sent")?;
    }
    write!(
        f,
        ", because the connection was lost: publish in confirm mode to know the outcome of each \
         ({})",
        Brief(reason)
    )
}

/// Stands for the value of an option that an error does not show.
const HIDDEN: &str = "…";

/// Returns a hint for a close by the broker. Where a code has several meanings, the text of
/// RabbitMQ decides; these texts have not changed since 3.0.
pub(super) fn remedy(reason: &CloseReason) -> &'static str {
    if reason.by != ClosedBy::Broker {
        return "";
    }
    let contains = |words| reason.text.contains(words);
    match reason.code {
        ReplyCode::CONNECTION_FORCED => "; an operator or a shutdown did that",
        ReplyCode::ACCESS_REFUSED if contains("refused for user") => {
            "; the user needs that permission (rabbitmqctl set_permissions)"
        }
        ReplyCode::NOT_FOUND if reason.is_of_absent_node() => {
            "; it exists: try again when its node is back"
        }
        ReplyCode::NOT_FOUND => "; it has to be declared first",
        ReplyCode::RESOURCE_LOCKED => "; it is exclusive to the connection that declared it",
        ReplyCode::PRECONDITION_FAILED if contains("inequivalent arg") => {
            "; it exists with other properties: declare it with those, or delete it first"
        }
        ReplyCode::PRECONDITION_FAILED if contains("delivery acknowledgement") => {
            "; acknowledge sooner, or raise the broker's consumer_timeout"
        }
        ReplyCode::NOT_ALLOWED if contains("connection limit (") => {
            "; try again when other connections have ended"
        }
        // The answers to tx.commit by RabbitMQ 4.0 and 4.3.
        ReplyCode::PRECONDITION_FAILED if contains("partial tx completion") => PARTIAL_COMMIT,
        ReplyCode::RESOURCE_ERROR if contains("failed to deliver message") => PARTIAL_COMMIT,
        ReplyCode::INTERNAL_ERROR if contains("`transient_nonexcl_queues` is deprecated") => {
            "; declare the queue as durable or as exclusive"
        }
        ReplyCode::INTERNAL_ERROR if contains("metadata store") => {
            "; this node reaches no majority of its cluster: use another node, or try again later"
        }
        ReplyCode::INTERNAL_ERROR => "; the broker's log has the details",
        _ => "",
    }
}

/// The hint for a commit that had only a part of its effect.
const PARTIAL_COMMIT: &str = "; a queue that the transaction has published to was deleted, and the \
     rest of the transaction may have taken effect";

/// The operation in the error of a close that ends before all confirms have arrived.
pub(crate) const LAST_PUBLISHES: &str = "the last publishes";

/// The operation in the error of a wait for the end of an outage.
pub(crate) const RECOVERY: &str = "recovery";

/// Returns a hint for a call without a reply.
fn timeout_hint(operation: &str) -> &'static str {
    match operation {
        "a confirm" | "confirms" => "; you can wait for it again",
        LAST_PUBLISHES => {
            "; they were sent before the close, so publish them again where a duplicate does no \
             harm, or raise close_timeout"
        }
        "an RPC request" => "; check that a server is running and fast enough",
        "channel.close before channel.open" => {
            "; until the broker answers, the number of that channel stays in use: try again, or \
             raise rpc_timeout"
        }
        RECOVERY => "; you can wait for it again",
        "channel.close" | "connection.close" => "; close_timeout is the limit for it",
        _ => "; the broker is busy or cannot be reached: try again, or raise rpc_timeout",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::error::{ConnectError, ConnectionLostError, ReadingPause, tests::connect};

    /// The texts of RabbitMQ 4.0.5 and 4.3.6.
    #[test]
    fn the_hint_for_a_close_follows_the_text_of_rabbitmq_4() {
        for (code, text, hint) in [
            (
                ReplyCode::PRECONDITION_FAILED,
                "PRECONDITION_FAILED - partial tx completion",
                "was deleted",
            ),
            (
                ReplyCode::RESOURCE_ERROR,
                "RESOURCE_ERROR - failed to deliver message: {not_found,{resource,<<\"/\">>,queue,\
                 <<\"q\">>}}",
                "was deleted",
            ),
            (
                ReplyCode::INTERNAL_ERROR,
                "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.",
                "durable or as exclusive",
            ),
            (
                ReplyCode::INTERNAL_ERROR,
                "INTERNAL_ERROR - metadata store operation timed out",
                "no majority",
            ),
            (
                ReplyCode::NOT_FOUND,
                "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout",
                "it exists",
            ),
            (ReplyCode::INTERNAL_ERROR, "INTERNAL_ERROR", "log"),
        ] {
            let reason = CloseReason {
                by: ClosedBy::Broker,
                code,
                text: text.into(),
                method: None,
            };
            assert!(remedy(&reason).contains(hint), "{text}");
        }
    }

    fn lost() -> Box<Error> {
        Box::new(Error::ConnectionLost(ConnectionLostError::EndOfStream))
    }

    #[test]
    fn a_timeout_in_an_outage_names_the_outage_and_no_other_cause() {
        let outage = Outage::new(*lost(), Instant::now());
        let (after, operation) = (Duration::from_secs(2), "queue.declare");
        let paused = ReadingPause {
            length: after,
            channel: 7,
            consumer: "slow".into(),
            bytes: 1,
        };
        let timeout = |operation| Error::Timeout {
            operation,
            channel: Some(3),
            after,
            blocked: Some("low on memory".into()),
            paused: Some(Box::new(paused.clone())),
            outage: Some(Box::new(outage.clone())),
        };
        let publish = Error::PublishTimeout {
            after,
            blocked: Some("low on memory".into()),
            paused: Some(Box::new(paused.clone())),
            outage: Some(Box::new(outage.clone())),
        };
        for (error, begin) in [
            (
                timeout(operation),
                "no reply to queue.declare on channel 3 within 2s; ",
            ),
            (timeout("confirms"), "no confirm on channel 3 within 2s; "),
            (
                timeout(RECOVERY),
                "the connection was not restored on channel 3 within 2s; ",
            ),
            (publish, "no room to publish within 2s; "),
        ] {
            let text = error.to_string();
            let rest = text.strip_prefix(begin).unwrap_or_else(|| panic!("{text}"));
            assert!(rest.starts_with("the connection was lost "), "{text}");
            assert!(
                rest.ends_with("no attempt to open it again so far"),
                "{text}"
            );
        }
    }

    #[test]
    fn the_errors_of_recovery_name_the_loss_once() {
        let refused = connect(ConnectError::EndOfStream);
        let failed = |attempts, last: Option<&Error>| Error::RecoveryFailed {
            lost: lost(),
            last: last.cloned().map(Box::new),
            attempts,
            after: Duration::from_millis(61_500),
        };
        let interrupted = |channel| Error::Interrupted {
            operation: "queue.purge",
            channel,
            reason: lost(),
        };
        let in_doubt = |messages, unsent| Error::InDoubt {
            messages,
            unsent,
            reason: lost(),
        };
        let why = ConnectionLostError::EndOfStream;
        let repeat = "which may have taken effect or not: repeat it if a second time does no harm";
        let confirm =
            "because the connection was lost: publish in confirm mode to know the outcome of each";
        for (error, text) in [
            (
                failed(4, Some(&refused)),
                format!(
                    "the connection was lost ({why}), and 4 attempts have not restored it \
                     within 61.5 s; the last failure was: {refused}"
                ),
            ),
            (
                failed(1, None),
                format!(
                    "the connection was lost ({why}), and 1 attempt has not restored it \
                     within 61.5 s"
                ),
            ),
            (
                interrupted(Some(3)),
                format!(
                    "the connection was lost during queue.purge on channel 3, {repeat} ({why})"
                ),
            ),
            (
                interrupted(None),
                format!("the connection was lost during queue.purge, {repeat} ({why})"),
            ),
            (
                Error::TransactionLost(lost()),
                format!(
                    "nothing was committed, because the connection was lost during the \
                     transaction: begin it again ({why})"
                ),
            ),
            (
                in_doubt(3, 0),
                format!(
                    "the broker may not have got 3 of the published messages, {confirm} ({why})"
                ),
            ),
            (
                in_doubt(0, 2),
                format!("2 of the published messages were never sent, {confirm} ({why})"),
            ),
            (
                in_doubt(3, 2),
                format!(
                    "the broker may not have got 3 of the published messages, and 2 of the \
                     published messages were never sent, {confirm} ({why})"
                ),
            ),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }
}
