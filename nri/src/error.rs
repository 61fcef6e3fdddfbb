//! Why the plugin could not run.

use std::{io, path::PathBuf};

use keelson_host::InspectError;

/// Why the plugin could not start or go on.
///
/// A runtime that is absent, restarts or refuses the plugin is none of these: that makes the plugin not ready, and it
/// tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine's topology could not be read.
    #[error("failed to read this machine's CPU topology")]
    Topology(#[source] InspectError),
    /// The directory of placement records could not be made.
    #[error("failed to create {}", path.display())]
    Store {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}
