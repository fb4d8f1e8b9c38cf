//! The values of the parameters that the handshake sends to the broker.

use super::ConnectionParameters;
use crate::config::credentials::Credentials;
use crate::protocol::handshake::Offer;
use crate::protocol::table::FieldTable;

impl ConnectionParameters {
    /// Returns the values for the handshake, with these credentials.
    pub(crate) fn offer(&self, credentials: &Credentials) -> Offer {
        Offer {
            client_properties: self.all_client_properties(),
            mechanisms: credentials.mechanisms(),
            locale: self.locale.as_str().into(),
            virtual_host: self.virtual_host.as_str().into(),
            channel_max: self.channel_max,
            frame_max: self.frame_max,
            heartbeat: u16::try_from(self.heartbeat.as_secs())
                .ok()
                .filter(|seconds| *seconds > 0),
        }
    }

    fn all_client_properties(&self) -> FieldTable {
        // RabbitMQ reports cancelled consumers, blocked connections and wrong credentials only to
        // clients with these capabilities.
        let capabilities = [
            "authentication_failure_close",
            "basic.nack",
            "connection.blocked",
            "consumer_cancel_notify",
            "exchange_exchange_bindings",
            "publisher_confirms",
        ];
        let capabilities: FieldTable = capabilities.map(|name| (name, true)).into();
        let platform = format!(
            "Rust ({}, {})",
            std::env::consts::OS,
            std::env::consts::ARCH
        );
        let mut properties = FieldTable::new()
            .with("product", "cony")
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("platform", platform)
            .with("capabilities", capabilities);
        if let Some(name) = &self.connection_name {
            properties.insert("connection_name", name.as_str());
        }
        let own = self.client_properties.clone();
        properties.extend(own);
        properties
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::table::field_value::FieldValue;

    #[test]
    fn client_properties_of_the_program_replace_those_of_cony() {
        let parameters = ConnectionParameters::new()
            .connection_name("worker 7")
            .client_properties([("product", "mine")]);
        let properties = parameters.all_client_properties();
        let text = |name: &str| properties.get(name).and_then(FieldValue::as_str);
        assert_eq!(text("product"), Some("mine"));
        assert_eq!(text("connection_name"), Some("worker 7"));
        let capabilities = properties
            .get("capabilities")
            .and_then(FieldValue::as_table);
        assert_eq!(capabilities.map(FieldTable::len), Some(6));
    }
}
