//! The node that a plugin runs on.

use std::path::PathBuf;

use crate::HostRoot;

/// What every plugin is told about its node: the part of the config that all four share.
#[derive(Clone, Debug)]
pub struct Node {
    /// The Kubernetes node's name.
    pub name: String,
    /// Where state that survives a reboot lives, `/var/lib/keelson` by default.
    pub state_dir: PathBuf,
    /// Where the host's trees are found.
    pub root: HostRoot,
}
