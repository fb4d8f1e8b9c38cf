//! The rules for values that their types allow and cony does not.

use std::time::Duration;

use super::{ConnectionParameters, TcpOptions};
use crate::error::{Error, Result};
use crate::protocol::frame::FRAME_MIN_SIZE;
use crate::protocol::wire::SHORT_STRING_MAX;

/// The largest `frame_max`: RabbitMQ's largest message in one frame.
const FRAME_MAX_SIZE: u32 = 128 * 1024 * 1024;

/// The largest `busy_wait`.
const BUSY_WAIT_MAX: Duration = Duration::from_millis(10);

impl ConnectionParameters {
    /// Checks all parameters.
    pub(crate) fn validate(&self) -> Result<()> {
        self.validate_target()?;
        self.validate_limits()?;
        self.validate_times()?;
        self.tcp_options.validate()?;
        self.credentials.validate()
    }

    fn validate_target(&self) -> Result<()> {
        let shown = self.host.escape_debug();
        if self.host.is_empty() {
            return Err(Error::invalid(
                "host",
                "",
                "it must be a name or an address",
            ));
        }
        if self.host.len() > 255 || self.host.contains(|c: char| c == '\0' || c.is_whitespace()) {
            let rule = "a name has at most 255 bytes, no NUL and no white space";
            return Err(Error::invalid("host", shown, rule));
        }
        if self.host.contains(',') {
            let rule = "it must be one name or address; for several brokers use \
                        BlockingConnection::open_any";
            return Err(Error::invalid("host", shown, rule));
        }
        if self.port == Some(0) {
            return Err(Error::invalid(
                "port",
                0,
                "it must be a number from 1 to 65535",
            ));
        }
        if self.locale.is_empty() {
            return Err(Error::invalid(
                "locale",
                "",
                "it must be a locale such as en_US",
            ));
        }
        for (option, value) in [
            ("virtual_host", &self.virtual_host),
            ("locale", &self.locale),
        ] {
            if value.len() > SHORT_STRING_MAX {
                return Err(Error::invalid(option, value, "at most 255 bytes"));
            }
        }
        Ok(())
    }

    fn validate_limits(&self) -> Result<()> {
        if self.frame_max != 0 && !(FRAME_MIN_SIZE..=FRAME_MAX_SIZE).contains(&self.frame_max) {
            let rule = "it must be 0, or from 4096 (RabbitMQ 4.1 and later: 8192) to 134217728";
            return Err(Error::invalid("frame_max", self.frame_max, rule));
        }
        for (option, is_zero) in [
            ("connection_attempts", self.connection_attempts == 0),
            ("max_message_size", self.max_message_size == 0),
            ("confirm_window", self.confirm_window == 0),
            ("write_budget", self.write_budget == 0),
            ("unconfirmed_budget", self.unconfirmed_budget == 0),
            ("read_budget", self.read_budget == 0),
        ] {
            if is_zero {
                return Err(Error::invalid(option, 0, "at least one"));
            }
        }
        Ok(())
    }

    fn validate_times(&self) -> Result<()> {
        // The IO thread spins as well, and must not miss heartbeats and deadlines meanwhile.
        if self.busy_wait > BUSY_WAIT_MAX {
            let shown = format!("{:?}", self.busy_wait);
            return Err(Error::invalid("busy_wait", shown, "at most 10 ms"));
        }
        let heartbeat = self.heartbeat;
        if heartbeat.subsec_nanos() != 0 || heartbeat.as_secs() > u64::from(u16::MAX) {
            let rule = "whole seconds up to 65535, or 0 for off";
            return Err(Error::invalid("heartbeat", format!("{heartbeat:?}"), rule));
        }
        let blocked = self.blocked_connection_timeout;
        let recovery = self.recovery.as_ref();
        let max_delay = recovery.map(|recovery| recovery.max_delay);
        let limit = recovery.and_then(|recovery| recovery.limit);
        // The last field: whether zero is allowed, for "do not wait".
        for (option, time, zero) in [
            ("socket_timeout", Some(self.socket_timeout), false),
            ("handshake_timeout", Some(self.handshake_timeout), false),
            ("rpc_timeout", Some(self.rpc_timeout), false),
            ("confirm_timeout", Some(self.confirm_timeout), false),
            ("blocked_connection_timeout", blocked, false),
            ("recovery_max_delay", max_delay, false),
            ("recovery_limit", limit, false),
            ("publish_timeout", Some(self.publish_timeout), true),
            ("close_timeout", Some(self.close_timeout), true),
            ("drop_timeout", Some(self.drop_timeout), true),
            ("retry_delay", Some(self.retry_delay), true),
        ] {
            let shown = format!("{:?}", time.unwrap_or_default());
            match time {
                Some(Duration::ZERO) if !zero => {
                    return Err(Error::invalid(option, shown, "more than zero"));
                }
                // A longer time could overflow an `Instant`.
                Some(time) if time > Duration::from_secs(100 * 365 * 86_400) => {
                    return Err(Error::invalid(option, shown, "at most a hundred years"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl TcpOptions {
    fn validate(&self) -> Result<()> {
        if let Some(idle) = self.keepalive {
            if !(1..=32_767).contains(&idle.as_secs()) {
                let rule = "it must be from 1 to 32767 seconds, the range of operating systems";
                return Err(Error::invalid("keepalive", format!("{idle:?}"), rule));
            }
        }
        for (option, size) in [
            ("send_buffer", self.send_buffer),
            ("receive_buffer", self.receive_buffer),
        ] {
            match size {
                Some(size) if size == 0 || i32::try_from(size).is_err() => {
                    let rule = "it must be from 1 to 2147483647 bytes";
                    return Err(Error::invalid(option, size, rule));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::credentials::Credentials;
    use crate::config::recovery::Recovery;

    fn refused(parameters: ConnectionParameters) -> String {
        match parameters.validate() {
            Err(Error::InvalidOption { option, .. }) => option,
            other => panic!("{other:?}"),
        }
    }

    type Set = fn(Duration) -> ConnectionParameters;

    fn new() -> ConnectionParameters {
        ConnectionParameters::new()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(new().validate().is_ok());
    }

    #[test]
    fn a_bad_name_is_refused() {
        assert_eq!(refused(new().host("")), "host");
        for bad in ["a\0b", "a b", "a\n", "one,two"] {
            assert_eq!(refused(new().host(bad)), "host", "{bad:?}");
        }
        assert_eq!(refused(new().host("h".repeat(256))), "host");
        assert_eq!(refused(new().port(0)), "port");
        assert_eq!(refused(new().virtual_host("v".repeat(256))), "virtual_host");
        assert_eq!(refused(new().locale("")), "locale");
        assert_eq!(refused(new().locale("l".repeat(256))), "locale");
        let nul = Credentials::plain("a\0b", "c");
        assert_eq!(refused(new().credentials(nul)), "username");
    }

    #[test]
    fn a_bad_limit_is_refused() {
        for bad in [1, 4095, 134_217_729, u32::MAX] {
            assert_eq!(refused(new().frame_max(bad)), "frame_max");
        }
        for good in [0, 4096, 134_217_728] {
            assert!(new().frame_max(good).validate().is_ok(), "{good}");
        }
        assert_eq!(refused(new().connection_attempts(0)), "connection_attempts");
        assert_eq!(refused(new().max_message_size(0)), "max_message_size");
        assert_eq!(refused(new().confirm_window(0)), "confirm_window");
        assert_eq!(refused(new().write_budget(0)), "write_budget");
        let no_budget = new().unconfirmed_budget(0);
        assert_eq!(refused(no_budget), "unconfirmed_budget");
        assert_eq!(refused(new().read_budget(0)), "read_budget");
    }

    #[test]
    fn a_bad_time_is_refused() {
        let long = Duration::from_micros(10_001);
        assert_eq!(refused(new().busy_wait(long)), "busy_wait");
        for bad in [Duration::from_millis(1500), Duration::from_secs(65_536)] {
            assert_eq!(refused(new().heartbeat(bad)), "heartbeat");
        }
        let set: [(&str, Set); 7] = [
            ("socket_timeout", |time| new().socket_timeout(time)),
            ("handshake_timeout", |time| new().handshake_timeout(time)),
            ("rpc_timeout", |time| new().rpc_timeout(time)),
            ("confirm_timeout", |time| new().confirm_timeout(time)),
            ("blocked_connection_timeout", |time| {
                new().blocked_connection_timeout(time)
            }),
            ("recovery_max_delay", |time| {
                new().recovery(Recovery::new().max_delay(time))
            }),
            ("recovery_limit", |time| {
                new().recovery(Recovery::new().limit(time))
            }),
        ];
        for (option, set) in set {
            assert_eq!(refused(set(Duration::ZERO)), option);
            assert_eq!(refused(set(Duration::MAX)), option);
            assert!(set(Duration::from_nanos(1)).validate().is_ok(), "{option}");
        }
        let set: [(&str, Set); 4] = [
            ("publish_timeout", |time| new().publish_timeout(time)),
            ("close_timeout", |time| new().close_timeout(time)),
            ("drop_timeout", |time| new().drop_timeout(time)),
            ("retry_delay", |time| new().retry_delay(time)),
        ];
        for (option, set) in set {
            assert_eq!(refused(set(Duration::MAX)), option);
            assert!(set(Duration::ZERO).validate().is_ok(), "{option}");
        }
    }

    #[test]
    fn a_bad_option_of_the_socket_is_refused() {
        let with = |options| new().tcp_options(options);
        let tcp = TcpOptions::new;
        for bad in [Duration::from_millis(999), Duration::from_secs(32_768)] {
            assert_eq!(refused(with(tcp().keepalive(bad))), "keepalive");
        }
        for bad in [0, usize::MAX] {
            assert_eq!(refused(with(tcp().send_buffer(bad))), "send_buffer");
            assert_eq!(refused(with(tcp().receive_buffer(bad))), "receive_buffer");
        }
        let good = tcp().keepalive(Duration::from_secs(60)).send_buffer(65_536);
        assert!(with(good).validate().is_ok());
    }
}
