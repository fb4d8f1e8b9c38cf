//! `{:#?}` of an error: its variant and fields.

use std::fmt;

use super::Error;

/// Formats each variant as `#[derive(Debug)]` would.
macro_rules! structure {
    (
        $error:ident, $f:ident;
        $($plain:ident,)*;
        $($tuple:ident(_),)*;
        $($record:ident { $($field:ident),* },)*
    ) => {
        match $error {
            $(Error::$plain => $f.write_str(stringify!($plain)),)*
            $(Error::$tuple(field) => $f.debug_tuple(stringify!($tuple)).field(field).finish(),)*
            $(Error::$record { $($field),* } => $f
                .debug_struct(stringify!($record))
                $(.field(stringify!($field), $field))*
                .finish(),)*
        }
    };
}

impl fmt::Debug for Error {
    /// Writes the sentence of `Display`, or with `{:#?}` the structure: see D49 in
    /// `docs/decisions.md`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt::Display::fmt(self, f);
        }
        structure!(
            self, f;
            CredentialsErased,
            AlreadyConsuming,
            NotConfirming,
            Nacked,;
            ConnectionClosed(_),
            ConnectionLost(_),
            Protocol(_),
            ChannelClosed(_),
            ChannelNumberInUse(_),
            DuplicateConsumerTag(_),
            ConsumerCancelled(_),
            UnknownDeliveryTag(_),
            AlreadySettled(_),
            NoReplyTo(_),
            Unroutable(_),
            AmbiguousReturn(_),
            Unconfirmed(_),
            ProviderFailed(_),
            TransactionLost(_),
            NotUtf8(_),
            Other(_),;
            InvalidOption { option, value, rule },
            Connect { address, stage, tls, cause, others },
            OpenCancelled { address, stage },
            AuthenticationFailed { mechanism, text, certain },
            AccessDenied { virtual_host, reason },
            UnsupportedProtocol { offered },
            NotAmqp { address, received },
            InvalidChannelNumber { number, max },
            NoFreeChannels { max },
            Timeout { operation, channel, after, blocked, paused, outage },
            PublishTimeout { after, blocked, paused, outage },
            RecoveryFailed { lost, last, attempts, after },
            Interrupted { operation, channel, reason },
            InDoubt { messages, unsent, reason },
            TooLong { what, size, limit },
            NotFinite { what },
            OutOfRange { what },
            MethodRefused { method, instead },
            PublishFailures { failures, more },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ConnectionLostError;

    #[test]
    fn debug_is_the_sentence_and_alternate_debug_the_structure() {
        let lost = Error::ConnectionLost(ConnectionLostError::CloseTimedOut);
        let error = Error::Unconfirmed(Box::new(lost));
        assert_eq!(format!("{error:?}"), error.to_string());
        let structure = "Unconfirmed(\n    ConnectionLost(\n        CloseTimedOut,\n    ),\n)";
        assert_eq!(format!("{error:#?}"), structure);
        let error = Error::TooLong {
            what: "queue".into(),
            size: 256,
            limit: 255,
        };
        let structure = "TooLong {\n    what: \"queue\",\n    size: 256,\n    limit: 255,\n}";
        assert_eq!(format!("{error:#?}"), structure);
        assert_eq!(format!("{:#?}", Error::Nacked), "Nacked");
    }

    #[test]
    fn debug_of_a_value_that_holds_an_error_has_the_sentence_inside() {
        let outcome: Result<(), Error> = Err(Error::Nacked);
        assert_eq!(format!("{outcome:?}"), format!("Err({})", Error::Nacked));
        assert_eq!(format!("{outcome:#?}"), "Err(\n    Nacked,\n)");
    }
}
