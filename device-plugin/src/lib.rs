//! Keelson's device plugin: finds device nodes and offers them to the kubelet as countable resources.
//!
//! [`DevicesSection`] is what the user may say, [`Plugin`] runs, [`uninstall`] takes away what it left on the node.

mod conditions;
mod config;
mod error;
mod kernel;
mod kubelet;
mod metrics;
mod patience;
mod plugin;
mod policy;
mod service;
mod stock;
mod store;

pub use config::{DevicesSection, DevicesSettings, PciSection, ResourceSection, SelectorSection, SimulatedSection};
pub use error::{Error, UninstallError};
pub use plugin::{Plugin, uninstall};
