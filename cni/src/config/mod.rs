//! What the user and the runtime may say: the node's config, the network config on stdin, the environment.

pub(crate) mod bandwidth;
mod fields;
pub(crate) mod invocation;
pub(crate) mod mac;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod ports;
pub(crate) mod previous;
pub(crate) mod range;
mod section;
pub(crate) mod version;

pub use section::{NetworkSection, NetworkSettings};
