//! What the user and the runtime may say: the node's config, the network config on stdin, the environment.

pub(crate) mod bandwidth;
pub(crate) mod dns;
mod fields;
pub(crate) mod invocation;
pub(crate) mod ipam;
pub(crate) mod mac;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod persona;
pub(crate) mod ports;
pub(crate) mod range;
pub(crate) mod result;
pub(crate) mod route;
mod section;
pub(crate) mod version;

pub use section::{NetworkMode, NetworkSection, NetworkSettings};
