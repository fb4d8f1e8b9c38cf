//! Times on the wire: a point in time in seconds, and a lifetime in milliseconds as text.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::errors::{DecodeError, EncodeError};
use super::wire::{Field, Reader, ShortString, Writer};

/// A point in time in whole seconds since 1970-01-01 00:00 UTC, as AMQP has it.
///
/// Converts from a `SystemTime` and from a number of seconds. A fraction of a second is dropped;
/// a time before 1970 becomes 0, for AMQP has no earlier times.
///
/// ```
/// use std::time::SystemTime;
/// use cony::Timestamp;
///
/// let now = Timestamp::from(SystemTime::now());
/// assert!(now > Timestamp::from(1_700_000_000));
/// let time = now.to_system_time();
/// assert!(time.is_some_and(|time| time <= SystemTime::now()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Creates a time from the number of seconds since 1970-01-01 00:00 UTC.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds)
    }

    /// Returns the number of seconds since 1970-01-01 00:00 UTC.
    pub const fn as_secs(self) -> u64 {
        self.0
    }

    /// Returns the time as a `SystemTime`, or `None` if the platform has no time so late. (Some
    /// clients send milliseconds, which are 50,000 years away.)
    pub fn to_system_time(self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.0))
    }
}

impl From<u64> for Timestamp {
    fn from(seconds: u64) -> Self {
        Self(seconds)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH);
        Self(since_epoch.map_or(0, |duration| duration.as_secs()))
    }
}

impl Field for Timestamp {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        self.0.write(writer)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        u64::read(reader).map(Self)
    }
}

/// The lifetime of a message in a queue. On the wire it is a text: a number of milliseconds.
///
/// Converts from a `Duration`, rounded up to whole milliseconds, and from a text, which is sent
/// as it is. RabbitMQ closes the channel (406) if the text is no number, or the lifetime is more
/// than ten years (315,360,000,000 milliseconds).
///
/// ```
/// use std::time::Duration;
/// use cony::Expiration;
///
/// let minute = Expiration::from(Duration::from_secs(60));
/// assert_eq!(minute, "60000");
/// assert_eq!(minute.to_duration(), Some(Duration::from_secs(60)));
/// assert_eq!(Expiration::from("soon").to_duration(), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Expiration(ShortString);

impl Expiration {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the lifetime, or `None` if the text is no number of milliseconds.
    pub fn to_duration(&self) -> Option<Duration> {
        let is_number = self.0.bytes().all(|byte| byte.is_ascii_digit());
        let milliseconds = is_number.then(|| self.0.parse().ok())?;
        milliseconds.map(Duration::from_millis)
    }
}

impl From<Duration> for Expiration {
    fn from(lifetime: Duration) -> Self {
        Self(milliseconds(lifetime).to_string().into())
    }
}

macro_rules! expiration_from {
    ($($ty:ty)*) => { $(
        impl From<$ty> for Expiration {
            fn from(text: $ty) -> Self {
                Self(text.into())
            }
        }
    )* };
}

expiration_from!(&str String &String ShortString &ShortString);

impl PartialEq<str> for Expiration {
    fn eq(&self, other: &str) -> bool {
        self.0 == *other
    }
}

impl PartialEq<&str> for Expiration {
    fn eq(&self, other: &&str) -> bool {
        self.0 == **other
    }
}

impl fmt::Display for Expiration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Field for Expiration {
    fn write(&self, writer: &mut Writer<'_>) -> Result<(), EncodeError> {
        self.0.write(writer)
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        ShortString::read(reader).map(Self)
    }
}

/// Returns the duration in whole milliseconds. It is rounded up, because zero often has a
/// meaning of its own.
pub(crate) fn milliseconds(duration: Duration) -> i64 {
    let nanos = duration.as_nanos();
    i64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_time_does_not_become_zero() {
        assert_eq!(milliseconds(Duration::ZERO), 0);
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::from_micros(1001)), 2);
        assert_eq!(milliseconds(Duration::MAX), i64::MAX);
    }

    #[test]
    fn an_expiration_is_whole_milliseconds_as_text() {
        assert_eq!(Expiration::from(Duration::from_secs(60)), "60000");
        assert_eq!(Expiration::from(Duration::from_micros(1)).as_str(), "1");
        assert_eq!(Expiration::from(Duration::ZERO), Expiration::from("0"));
        assert_eq!(Expiration::from("007").to_string(), "007");
    }

    #[test]
    fn only_numbers_are_read_as_a_lifetime() {
        let read = |text| Expiration::from(text).to_duration();
        assert_eq!(read("1500"), Some(Duration::from_millis(1500)));
        assert_eq!(read("0"), Some(Duration::ZERO));
        for text in ["", "soon", "-1", "+1", "1.5", " 1", "99999999999999999999"] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_timestamp_has_whole_seconds_since_1970() {
        let time = UNIX_EPOCH + Duration::from_millis(1_999);
        assert_eq!(Timestamp::from(time).as_secs(), 1);
        let read = Timestamp::from(1).to_system_time();
        assert_eq!(read, Some(UNIX_EPOCH + Duration::from_secs(1)));
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Timestamp::from(before), Timestamp::from(0));
        assert_eq!(Timestamp::from(u64::MAX).to_system_time(), None);
    }
}
