//! What lies in a store, for whoever looks after it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{
    ATTACHMENTS_LOCK, Store, StoreError, boot,
    file::{list, read_json, temporary_name},
};

/// Nothing takes as long to write.
const LONGEST_WRITE: Duration = Duration::from_secs(60);

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
            let found = list(&directory)?.into_iter();
            left.extend(found.filter(|path| temporary_name(path).is_some() && !may_be_being_written(path)));
        }
        Ok(left)
    }

    /// Removes what earlier boots left, and nothing else that lies beside it.
    pub(crate) fn remove_earlier_boots(&self) -> Result<(), StoreError> {
        boot::remove_others(&self.network_dir, &self.boot_id)
    }

    /// The range sets that addresses were given from, each by its number.
    pub(crate) fn allocations(&self) -> Result<Vec<(usize, Allocation)>, StoreError> {
        let number = |path: &Path| path.file_stem()?.to_str()?.strip_prefix("allocator-")?.parse::<usize>().ok();
        let mut allocations = Vec::new();
        for path in list(&self.boot_dir())? {
            let Some(set) = number(&path) else { continue };
            match read_json::<Allocation>(&path) {
                Ok(Some(allocation)) => allocations.push((set, allocation)),
                // Removed, or damaged: the next ADD begins it anew.
                Ok(None) | Err(StoreError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        allocations.sort_by_key(|(set, _)| *set);
        Ok(allocations)
    }
}

fn may_be_being_written(path: &Path) -> bool {
    let age = fs::metadata(path).and_then(|found| found.modified()).ok().and_then(|changed| changed.elapsed().ok());
    age.is_none_or(|age| age < LONGEST_WRITE)
}
