//! Keelson's NRI plugin: pins containers to CPUs and NUMA nodes.
//!
//! [`PinningSection`] is what the user may say, [`Plugin`] runs, [`DeviceLocality`] is what it wants to know of devices.
//! Inside, `connection` speaks the runtime's protocol and knows nothing of containers, `policy` decides and knows nothing
//! of protocols, `service` stands between the two, and `store` remembers.

mod config;
mod connection;
mod error;
mod locality;
mod metrics;
mod plugin;
mod policy;
mod service;
mod store;

pub use config::{Mode, PinningSection, PinningSettings};
pub use error::Error;
pub use locality::DeviceLocality;
pub use plugin::Plugin;
