//! Reading a pool: what is there, and sweeping what is only half there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    format::{RecordError, read_record},
    index::{Index, Kept},
    pool::{Pool, create_directory, lock},
    record::{GroupRecord, SnapshotRecord, VolumeRecord},
    space,
};
use crate::kernel::{filesystem, tree};

impl Pool {
    /// Sweeps what is only half there and reads what is whole.
    pub(super) fn scan(&self) -> Result<Index, RecordError> {
        let homes = [self.volumes(), self.snapshots(), self.groups()];
        for directory in homes.iter().chain([&self.building()]) {
            create_directory(directory)?;
        }
        // Something that was made or unmade without being synced: what is believed from now on must be durable.
        for directory in homes.iter().chain([&self.building()]) {
            self.sync(directory).map_err(RecordError::io("sync", directory))?;
        }
        self.sweep()?;
        let index = self.read()?;
        self.enforce_all(&index);
        let (abilities, path) = (self.abilities(), &self.settings.path);
        let filesystem = fs::File::open(path).and_then(filesystem::name).map_err(RecordError::io("look at", path))?;
        tracing::info!(
            pool = self.settings.name,
            path = %path.display(),
            kind = self.settings.kind.as_str(),
            filesystem,
            volumes = index.volumes.len(),
            snapshots = index.snapshots.len(),
            copies = abilities.copies(),
            shares_blocks = abilities.shares_blocks,
            enforces_sizes = abilities.enforces_sizes,
            "pool is available"
        );
        Ok(index)
    }

    /// Reads what is whole, and changes nothing. What comes or goes meanwhile may be in it or not.
    pub(super) fn read(&self) -> Result<Index, RecordError> {
        let path = &self.settings.path;
        let device = filesystem::number(path).map_err(RecordError::io("look at", path))?;
        let mut index = Index { device, ..Index::default() };
        self.read_all::<VolumeRecord>(&self.volumes(), &mut index)?;
        self.read_all::<SnapshotRecord>(&self.snapshots(), &mut index)?;
        self.read_all::<GroupRecord>(&self.groups(), &mut index)?;
        let groups: Vec<PathBuf> = index.groups.iter().map(|group| self.folder(&**group)).collect();
        for group in groups {
            self.read_all::<SnapshotRecord>(&group, &mut index)?;
        }
        space::enter_all(self, &mut index)?;
        Ok(index)
    }

    /// Removes what a killed process left in `building`, as far as it can be removed.
    fn sweep(&self) -> Result<(), RecordError> {
        for path in entries(&self.building())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if lock(&self.sites).contains(&name) {
                continue;
            }
            let (pool, path) = (&self.settings.name, path.as_path());
            match tree::remove(path) {
                Ok(()) => tracing::info!(pool, path = %path.display(), "swept what was half made or half removed"),
                // Its space is lost until it can be removed, and nothing else.
                Err(error) => tracing::error!(pool, path = %path.display(), %error, "failed to sweep"),
            }
        }
        Ok(())
    }

    /// Reads the records of all folders in `home` that are named like an id.
    fn read_all<T: Kept>(&self, home: &Path, index: &mut Index) -> Result<(), RecordError> {
        for folder in entries(home)? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(id) = name.parse::<T::Id>() else {
                // A group's own record lies beside its snapshots.
                if name != GroupRecord::FILE {
                    tracing::warn!(pool = self.settings.name, path = %folder.display(), "is no {}; left alone", T::WHAT);
                }
                continue;
            };
            let reason = match read_record::<T>(&folder.join(T::FILE)) {
                Ok(Some(record)) if *record.id() == id && self.folder(&record) == folder => {
                    T::table_mut(index).insert(record);
                    continue;
                }
                Ok(Some(record)) => format!("its record is that of {}", record.id()),
                Ok(None) => "its record is missing".to_owned(),
                Err(error) => error.to_string(),
            };
            // Deleted since it was listed.
            if !folder.exists() {
                continue;
            }
            tracing::error!(pool = self.settings.name, id = %id, reason, "the {} can't be read", T::WHAT);
            index.damaged.insert(id.to_string(), reason);
        }
        Ok(())
    }
}

/// What lies in a directory; nothing if it isn't there.
pub(super) fn entries(path: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let failed = RecordError::io("list", path);
    match fs::read_dir(path) {
        Ok(listed) => listed.map(|entry| entry.map(|entry| entry.path()).map_err(&failed)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}
