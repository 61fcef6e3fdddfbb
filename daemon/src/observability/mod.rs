//! Logs, health and metrics, the same for the supervisor and every plugin's process.

mod connection;
mod log;
mod server;

use prometheus_client::{metrics::info::Info, registry::Registry};

pub use log::{LogError, init as init_log};
pub use server::{Listener, ObservabilityError, Operations, Readiness, Shown, bind};

/// A registry that already says which build this is.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    // The text format appends `_info`.
    registry.register("keelson_build", "The running release", build);
    registry
}
