//! What outlives the process: CDI files, and what was known of the devices.

mod cdi;
mod known;

pub(crate) use cdi::CdiStore;
pub(crate) use known::KnownStore;

use std::{io, path::PathBuf};

/// Why something could not be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("failed to create the directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("failed to write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("failed to read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("failed to remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("failed to write {} as JSON", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
}
