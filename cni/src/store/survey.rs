//! What lies in a store, for whoever looks after it: nothing is changed here.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ATTACHMENTS_LOCK, Store, StoreError, boot, is_being_written, is_temporary, list, read_json};

/// Where the allocation from a range set stands.
#[derive(Debug, Deserialize)]
pub(crate) struct Allocation {
    /// The ranges that addresses were last given from: `10.88.0.1-10.88.255.254`, with commas in between.
    pub(crate) ranges: String,
    head: u64,
    tail: u64,
}

impl Allocation {
    /// How many addresses were released and wait to be given again.
    pub(crate) fn released(&self) -> u64 {
        self.tail.saturating_sub(self.head)
    }
}

impl Store {
    /// Whether a network was ever used whose store is `directory`.
    pub(crate) fn is_at(directory: &Path) -> bool {
        directory.join(ATTACHMENTS_LOCK).is_file()
    }

    /// What earlier boots and killed processes left.
    pub(crate) fn leftovers(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut left = boot::others(&self.network_dir, &self.boot_id)?;
        for directory in [self.boot_dir(), self.boot_dir().join("attachments")] {
            left.extend(list(&directory)?.into_iter().filter(|path| is_temporary(path) && !is_being_written(path)));
        }
        Ok(left)
    }

    /// The range sets that addresses were given from, each by its number.
    pub(crate) fn allocations(&self) -> Result<Vec<(usize, Allocation)>, StoreError> {
        let mut allocations = Vec::new();
        for set in self.allocators()? {
            // Removed since: then the next ADD begins it anew.
            if let Some(allocation) = read_json::<Allocation>(&self.allocator_path(set))? {
                allocations.push((set, allocation));
            }
        }
        allocations.sort_by_key(|(set, _)| *set);
        Ok(allocations)
    }
}
