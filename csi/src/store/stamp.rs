//! Whether a file is still the one that was read before, told without reading it again.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

/// Which file it is, and when it was changed last: a write, or another file of that name, makes another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Device and inode number.
    pub(super) identity: (u64, u64),
    bytes: u64,
    /// Seconds and nanoseconds; nobody can set it.
    changed: (i64, i64),
}

impl From<Metadata> for Stamp {
    fn from(found: Metadata) -> Self {
        let changed = (found.ctime(), found.ctime_nsec());
        Self { identity: (found.dev(), found.ino()), bytes: found.size(), changed }
    }
}
