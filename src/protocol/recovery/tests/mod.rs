//! The book and the restoration against a naive model of the broker.

mod any_topology;
pub(super) mod model;
