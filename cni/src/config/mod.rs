//! What the user and the runtime may say: the node's config, the network config on stdin, the environment.

pub(crate) mod bandwidth;
mod cooldown;
pub(crate) mod dns;
pub(crate) mod fields;
pub(crate) mod invocation;
pub(crate) mod ipam;
pub(crate) mod link_options;
pub(crate) mod mac;
pub(crate) mod names;
pub(crate) mod network;
mod pattern;
pub(crate) mod persona;
pub(crate) mod ports;
pub(crate) mod range;
pub(crate) mod result;
pub(crate) mod route;
mod section;
pub(crate) mod source_routing;
pub(crate) mod sysctl;
pub(crate) mod version;
pub(crate) mod vlan;

pub use section::{NetworkMode, NetworkSection, NetworkSettings};
