//! What the user and the runtime may say: the node's config, the network config on stdin, the environment.

pub(crate) mod names;
pub(crate) mod range;
mod section;

pub use section::{NetworkSection, NetworkSettings};
