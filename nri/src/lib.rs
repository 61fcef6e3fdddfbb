//! Keelson's NRI plugin: pins containers to CPUs and NUMA nodes.
//!
//! [`PinningSection`] is what the user may say, [`Plugin`] runs, [`DeviceLocality`] is what it wants to know of devices.

mod config;
mod error;
mod locality;
mod plugin;

pub use config::{Mode, PinningSection, PinningSettings};
pub use error::Error;
pub use locality::DeviceLocality;
pub use plugin::Plugin;
