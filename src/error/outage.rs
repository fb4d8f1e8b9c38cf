//! The outages that errors and events report.

use std::fmt;
use std::time::Instant;

use super::Error;
use crate::protocol::recovery::session;

/// An outage: the time from the loss of a connection until recovery has restored it.
///
/// [`BlockingConnection::outage`](crate::BlockingConnection::outage) returns the present one.
/// [`Error::Timeout`] and [`Error::PublishTimeout`] contain it if there was one at the deadline.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Outage {
    /// The reason of the loss.
    pub lost: Error,
    /// The time of the loss.
    pub since: Instant,
    /// The number of attempts to open the connection again, including one that is under way.
    pub attempts: u32,
    /// The failure of the last attempt that has ended, or the loss of a connection that was not
    /// restored yet.
    pub last: Option<Error>,
    /// The time of the next attempt. `None` while one is under way, or while an open connection is
    /// being restored.
    pub next_attempt: Option<Instant>,
}

impl Outage {
    /// Creates the outage that a loss begins.
    #[cfg(test)]
    pub(crate) fn new(lost: Error, since: Instant) -> Self {
        Self {
            lost,
            since,
            attempts: 0,
            last: None,
            next_attempt: None,
        }
    }

    /// Returns an outage of the core. `last` is the error of the last attempt that has failed.
    pub(crate) fn of(outage: &session::Outage, last: Option<Error>) -> Self {
        Self {
            lost: (&outage.lost).into(),
            since: outage.since,
            attempts: outage.attempts,
            last: match &outage.last {
                None => None,
                Some(session::Failure::Attempt(_)) => last,
                Some(session::Failure::Lost(termination)) => Some(termination.into()),
            },
            next_attempt: outage.next_attempt,
        }
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the connection was lost {:.1} s ago ({}), ",
            self.since.elapsed().as_secs_f64(),
            Brief(&self.lost)
        )?;
        match self.attempts {
            0 => f.write_str("with no attempt to open it again so far")?,
            1 => f.write_str("with 1 attempt to open it again so far")?,
            attempts => write!(f, "with {attempts} attempts to open it again so far")?,
        }
        match &self.last {
            Some(last) => write!(f, ", and the last failure was: {last}"),
            None => Ok(()),
        }
    }
}

/// The reason of a loss, for a sentence that says already that the connection is lost.
pub(super) struct Brief<'a>(pub(super) &'a Error);

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Error::ConnectionLost(lost) => lost.fmt(f),
            error => error.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::tests::connect;
    use crate::error::{ConnectError, ConnectionLostError};
    use crate::protocol::event::Termination;
    use crate::protocol::recovery::policy::AttemptFailure;
    use crate::protocol::stage::Stage;

    #[test]
    fn the_last_failure_is_an_attempt_or_a_loss() {
        let now = Instant::now();
        let outage = |last| session::Outage {
            lost: Termination::EndOfStream,
            since: now,
            attempts: 2,
            last,
            next_attempt: Some(now),
        };
        let attempt = || Some(connect(ConnectError::EndOfStream));
        let silence = Termination::Silence(Duration::from_secs(20));
        let unreachable = AttemptFailure::Unreachable(Stage::Tcp);
        let failed = outage(Some(session::Failure::Attempt(unreachable)));
        let lost = outage(Some(session::Failure::Lost(silence.clone())));
        for (outage, last) in [
            (outage(None), None),
            (failed, attempt()),
            (lost, Some(Error::from(&silence))),
        ] {
            let shown = Outage::of(&outage, attempt());
            let text = |error: Option<Error>| error.map(|error| error.to_string());
            assert_eq!(text(shown.last), text(last));
            assert_eq!((shown.attempts, shown.since), (2, now));
            assert_eq!(shown.next_attempt, Some(now));
        }
    }

    #[test]
    fn the_sentence_has_the_time_the_attempts_and_the_last_failure() {
        let lost = Error::ConnectionLost(ConnectionLostError::Io {
            kind: std::io::ErrorKind::ConnectionReset,
            text: "reset by peer".into(),
        });
        let now = Instant::now();
        let mut outage = Outage::new(lost, now.checked_sub(Duration::from_secs(7)).unwrap_or(now));
        let text = outage.to_string();
        assert!(text.starts_with("the connection was lost "), "{text}");
        assert!(
            text.ends_with(" s ago (reset by peer), with no attempt to open it again so far"),
            "{text}"
        );
        outage.attempts = 1;
        let text = outage.to_string();
        assert!(
            text.ends_with("with 1 attempt to open it again so far"),
            "{text}"
        );
        outage.attempts = 12;
        outage.last = Some(connect(ConnectError::EndOfStream));
        let text = outage.to_string();
        let end = format!(
            "with 12 attempts to open it again so far, and the last failure was: {}",
            connect(ConnectError::EndOfStream)
        );
        assert!(text.ends_with(&end), "{text}");
    }
}
