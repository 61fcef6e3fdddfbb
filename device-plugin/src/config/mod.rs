//! The config's `devices` section: what the user may say, and what the plugin makes of it.

mod name;
mod pattern;
mod section;
mod settings;

pub use section::{DevicesSection, PciSection, ResourceSection, SelectorSection, SimulatedSection};
pub use settings::DevicesSettings;

pub(crate) use name::ResourceName;
pub(crate) use pattern::NodePattern;
pub(crate) use settings::{Resource, Selector, Source};
