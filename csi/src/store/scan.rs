//! Reading a pool: what is there, and sweeping what is only half there.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::TryLockError,
};

use super::{
    format::{RecordError, read_record},
    identity::{MARKER, Remembered},
    index::{Index, Kept},
    pool::{Pool, create_directory, lock},
    record::{GroupRecord, SnapshotRecord, VolumeRecord},
    space,
    templates::HALF,
};
use crate::{
    kernel::{filesystem, tree},
    policy::GroupId,
};

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
        self.sweep_halves();
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
        // Its snapshots are there also where a group's own record can't be read.
        let is_group = |name: &OsStr| name.to_str().is_some_and(|name| name.parse::<GroupId>().is_ok());
        for group in entries(&self.groups())? {
            if group.is_dir() && group.file_name().is_some_and(is_group) {
                self.read_all::<SnapshotRecord>(&group, &mut index)?;
            }
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
                Ok(deleted) => {
                    tracing::info!(pool, path = %path.display(), "swept what was half made or half removed");
                    self.forget_qgroups(&deleted);
                }
                // Its space is lost until it can be removed, and nothing else.
                Err(error) => tracing::error!(pool, path = %path.display(), %error, "failed to sweep"),
            }
        }
        Ok(())
    }

    /// Removes what a killed process left beside a record that it was replacing, and half a template.
    fn sweep_halves(&self) {
        let memory = Remembered::path_of(&self.state_dir, &self.settings.name);
        let mut records = vec![self.settings.path.join(MARKER), memory];
        let volumes = entries(&self.volumes()).unwrap_or_default();
        records.extend(volumes.iter().filter(|path| path.is_dir()).map(|folder| folder.join(VolumeRecord::FILE)));
        let mut halves: Vec<_> = records.iter().flat_map(|record| halves_of(record)).collect();
        // Whoever is making one has it.
        let making = self.making_template.try_lock();
        let half = self.templates().join(HALF);
        if !matches!(making, Err(TryLockError::WouldBlock)) && half.exists() {
            halves.push(half);
        }
        for path in halves {
            let (pool, removed) = (&self.settings.name, fs::remove_file(&path));
            match removed {
                Ok(()) => tracing::info!(pool, path = %path.display(), "swept what was half written"),
                Err(error) => tracing::error!(pool, path = %path.display(), %error, "failed to sweep"),
            }
        }
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

/// What [`keelson_host::write_atomic`] left of writing `record`: `.NAME.PID.N.tmp`.
fn halves_of(record: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (record.parent(), record.file_name().and_then(OsStr::to_str)) else {
        return Vec::new();
    };
    let start = format!(".{name}.");
    let is_half = |path: &PathBuf| {
        let found = path.file_name().and_then(OsStr::to_str);
        found.is_some_and(|found| found.starts_with(&start) && found.ends_with(".tmp"))
    };
    entries(directory).unwrap_or_default().into_iter().filter(is_half).collect()
}
