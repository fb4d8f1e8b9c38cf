//! The options of recovery in a URL.

use super::{seconds, switch};
use crate::config::parameters::ConnectionParameters;
use crate::config::recovery::{Recovery, Topology};
use crate::error::{Error, Result};

/// The options of recovery, which are combined when all have been read.
#[derive(Default)]
pub(super) struct RecoveryQuery {
    is_on: Option<bool>,
    recovery: Recovery,
    /// The name of the last option that only recovery needs.
    detail: Option<&'static str>,
}

impl RecoveryQuery {
    /// Reads the option if it is one of recovery. Returns whether it is.
    pub(super) fn take(&mut self, name: &str, value: &str) -> Result<bool> {
        match name {
            "recovery" => {
                self.is_on = Some(match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(Error::invalid(name, value, "it must be on or off")),
                });
            }
            "recovery_max_delay" => {
                self.recovery.max_delay = seconds(name, value)?;
                self.detail = Some("recovery_max_delay");
            }
            "recovery_limit" => {
                self.recovery.limit = Some(seconds(name, value)?);
                self.detail = Some("recovery_limit");
            }
            "recovery_topology" => {
                self.recovery.topology = topology(name, value)?;
                self.detail = Some("recovery_topology");
            }
            "recovery_resend" => {
                self.recovery.resend = switch(name, value)?;
                self.detail = Some("recovery_resend");
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Sets the parameter, unless the URL has no option of recovery.
    pub(super) fn apply(self, parameters: ConnectionParameters) -> Result<ConnectionParameters> {
        match (self.is_on, self.detail) {
            (Some(false), Some(detail)) => {
                let rule = "the URL has recovery=off as well";
                Err(Error::invalid(detail, "…", rule))
            }
            (Some(false), None) => Ok(parameters.recovery(None)),
            (Some(true), _) | (None, Some(_)) => Ok(parameters.recovery(self.recovery)),
            (None, None) => Ok(parameters),
        }
    }
}

fn topology(name: &str, value: &str) -> Result<Topology> {
    match value {
        "all" => Ok(Topology::All),
        "transient" => Ok(Topology::Transient),
        "off" => Ok(Topology::Off),
        _ => {
            let rule = "it must be all, transient or off";
            Err(Error::invalid(name, value, rule))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(options: &str) -> Result<Option<Recovery>> {
        let parameters: ConnectionParameters = format!("amqp://h/?{options}").parse()?;
        Ok(parameters.get_recovery().cloned())
    }

    #[test]
    fn recovery_is_switched_on_and_off_by_name() {
        assert_eq!(parse("recovery=on").unwrap(), Some(Recovery::new()));
        assert_eq!(parse("recovery=off").unwrap(), None);
        assert_eq!(parse("heartbeat=10").unwrap(), Some(Recovery::new()));
    }

    #[test]
    fn a_url_sets_recovery_only_if_it_has_one_of_its_options() {
        for (options, expected) in [
            ("recovery=on", true),
            ("recovery=off", true),
            ("recovery_limit=9", true),
            ("heartbeat=10", false),
        ] {
            let parameters: ConnectionParameters = format!("amqp://h/?{options}").parse().unwrap();
            assert_eq!(parameters.is_recovery_set, expected, "{options}");
        }
    }

    #[test]
    fn an_option_of_recovery_switches_it_on_in_any_order() {
        let recovery = Recovery::new()
            .max_delay(Duration::from_millis(2500))
            .limit(Duration::from_secs(600))
            .topology(Topology::Transient)
            .resend(false);
        let options = [
            "recovery_max_delay=2.5",
            "recovery_limit=600",
            "recovery_topology=transient",
            "recovery_resend=f",
        ];
        let [delay, limit, topology, resend] = options;
        for url in [
            format!("{delay}&{limit}&{topology}&{resend}"),
            format!("recovery=on&{topology}&{limit}&{resend}&{delay}"),
            format!("{resend}&{topology}&{limit}&{delay}&recovery=on"),
        ] {
            assert_eq!(parse(&url).unwrap().as_ref(), Some(&recovery), "{url}");
        }
        for (name, topology) in [("all", Topology::All), ("off", Topology::Off)] {
            let recovery = parse(&format!("recovery_topology={name}")).unwrap();
            assert_eq!(recovery.unwrap().get_topology(), topology, "{name}");
        }
    }

    #[test]
    fn a_wrong_option_of_recovery_is_refused_by_name() {
        for (options, refused) in [
            ("recovery=yes", "recovery"),
            ("recovery=on&recovery=off", "recovery"),
            ("recovery_topology=some", "recovery_topology"),
            ("recovery_max_delay=soon", "recovery_max_delay"),
            ("recovery_max_delay=0", "recovery_max_delay"),
            ("recovery_limit=0", "recovery_limit"),
            ("recovery_resend=maybe", "recovery_resend"),
            ("recovery=off&recovery_limit=9", "recovery_limit"),
            ("recovery_topology=all&recovery=off", "recovery_topology"),
        ] {
            match parse(options) {
                Err(Error::InvalidOption { option, .. }) => assert_eq!(option, refused),
                other => panic!("{options}: {other:?}"),
            }
        }
    }
}
