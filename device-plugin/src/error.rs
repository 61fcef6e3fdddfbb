//! Why the plugin could not run.

use std::{io, path::PathBuf};

/// Why the plugin could not start or go on.
///
/// A kubelet that is absent, restarts or refuses the plugin is none of these, nor is a device that is missing: that
/// makes the plugin not ready, or the device unhealthy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory of the plugin's own could not be made.
    #[error("failed to create {}", path.display())]
    CreateDirectory {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What [`crate::uninstall`] could not remove.
#[derive(Debug, thiserror::Error)]
#[error("failed to remove {}", .0.iter().map(|(path, error)| format!("{}: {error}", path.display())).collect::<Vec<_>>().join("; "))]
pub struct UninstallError(pub Vec<(PathBuf, io::Error)>);
