//! A pool: its identity, the volumes in it, and the two renames that make and unmake one.
//!
//! ```text
//! <pool>/keelson-pool.json              which pool this is
//! <pool>/volumes/<id>/volume.json       what the volume is
//! <pool>/volumes/<id>/image | data/     its content
//! <pool>/building/<id>/                 a volume that isn't one yet, or isn't one any more; swept at start
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::metrics::gauge::Gauge;

use super::{
    identity::{Marker, RecordError, Remembered, is_empty},
    volume::{VolumeRecord, image},
};
use crate::{
    config::{PoolKind, PoolSettings},
    kernel::filesystem,
    policy::{Content, VolumeId, charge},
};

/// One pool of the config, whether its disk is there or not.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) settings: PoolSettings,
    state_dir: PathBuf,
    /// The volumes, once the pool was recognised; none again when it is lost. Never held while the disk is asked:
    /// a disk that doesn't answer must not hold up who only looks whether a volume is here.
    index: Mutex<Option<Index>>,
    /// Held while the disk is scanned.
    scanning: Mutex<()>,
    /// 1 while it is available.
    available: Gauge,
}

#[derive(Debug, Default)]
struct Index {
    /// The device number of the filesystem that the pool lies on.
    device: u64,
    volumes: BTreeMap<VolumeId, VolumeRecord>,
    by_name: HashMap<String, VolumeId>,
    /// Folders whose record can't be read, and why.
    damaged: BTreeMap<VolumeId, String>,
}

/// The pool can't be used now. All calls that concern it wait for its disk.
#[derive(Debug, thiserror::Error)]
#[error("pool {pool} at {} is unavailable", path.display())]
pub(crate) struct Unavailable {
    pub(crate) pool: String,
    path: PathBuf,
    source: IdentityError,
}

/// Why what lies at a pool's path isn't taken for the pool.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("the directory does not exist: is its disk mounted?")]
    Missing,
    #[error("it is a symbolic link or not a directory")]
    NotADirectory,
    #[error("it has no marker, though the pool was used before: is its disk mounted?")]
    NoMarker,
    #[error("it is another pool: its marker has UUID {found}, remembered is {remembered} in {}", memory.display())]
    OtherPool { found: uuid::Uuid, remembered: uuid::Uuid, memory: PathBuf },
    #[error("it is a copy on another filesystem: UUID {found}, remembered is {remembered} in {}", memory.display())]
    OtherFilesystem { found: uuid::Uuid, remembered: uuid::Uuid, memory: PathBuf },
    #[error("it was made as kind {found}, the config says {wanted}", found = found.as_str(), wanted = wanted.as_str())]
    OtherKind { found: PoolKind, wanted: PoolKind },
    #[error("it holds files and is no pool; name an empty directory")]
    NotEmpty,
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("its filesystem can't be asked for its UUID")]
    Filesystem(#[source] io::Error),
}

/// Why a volume could not be made or unmade.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("failed to {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// What a pool knows of an id.
#[derive(Debug)]
pub(crate) enum Lookup {
    Found(VolumeRecord),
    Damaged(String),
    Absent,
}

impl Pool {
    pub(crate) fn new(settings: PoolSettings, state_dir: &Path, available: Gauge) -> Self {
        let state_dir = state_dir.to_owned();
        Self { settings, state_dir, index: Mutex::default(), scanning: Mutex::default(), available }
    }

    /// Makes sure that what is mounted now is the pool that is remembered, and that its volumes are known.
    ///
    /// The first use ever makes the marker and the memory of it; the first use after a start, or after the disk came
    /// back, sweeps what was half-made and reads every record.
    pub(crate) fn check(&self) -> Result<(), Unavailable> {
        let checked = self.recognise().and_then(|()| self.ensure_scanned());
        self.available.set(i64::from(checked.is_ok()));
        checked.map_err(|source| {
            // What was known may be wrong when the disk is back.
            *self.lock() = None;
            Unavailable { pool: self.settings.name.clone(), path: self.settings.path.clone(), source }
        })
    }

    fn ensure_scanned(&self) -> Result<(), IdentityError> {
        if self.lock().is_none() {
            let _scanning = self.scanning.lock().unwrap_or_else(PoisonError::into_inner);
            if self.lock().is_none() {
                let index = self.scan()?;
                *self.lock() = Some(index);
            }
        }
        Ok(())
    }

    fn recognise(&self) -> Result<(), IdentityError> {
        let PoolSettings { name, path, kind, may_create } = &self.settings;
        let remembered = Remembered::read(&self.state_dir, name)?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(IdentityError::NotADirectory),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if remembered.is_some() || !may_create {
                    return Err(IdentityError::Missing);
                }
                create_directory(path)?;
            }
            Err(error) => return Err(RecordError::io("look at", path)(error).into()),
        }
        let marker = match (Marker::read(path)?, &remembered) {
            (Some(marker), _) => marker,
            (None, Some(_)) => return Err(IdentityError::NoMarker),
            (None, None) => {
                if !is_empty(path).map_err(RecordError::io("list", path))? {
                    return Err(IdentityError::NotEmpty);
                }
                let marker = Marker::generate(*kind);
                marker.write(path)?;
                marker
            }
        };
        if marker.kind != *kind {
            return Err(IdentityError::OtherKind { found: marker.kind, wanted: *kind });
        }
        let filesystem_uuid = filesystem::uuid(path).map_err(IdentityError::Filesystem)?;
        let Some(remembered) = remembered else {
            // A pool that comes from elsewhere, or whose memory was lost, is recognised by its marker alone.
            Remembered::new(&marker, filesystem_uuid, path).write(&self.state_dir, name)?;
            return Ok(());
        };
        let memory = || Remembered::path_of(&self.state_dir, name);
        if marker.uuid != remembered.uuid {
            let (found, remembered) = (marker.uuid, remembered.uuid);
            return Err(IdentityError::OtherPool { found, remembered, memory: memory() });
        }
        match (filesystem_uuid, remembered.filesystem_uuid) {
            (Some(found), Some(remembered)) if found != remembered => {
                Err(IdentityError::OtherFilesystem { found, remembered, memory: memory() })
            }
            _ => Ok(()),
        }
    }

    /// Sweeps what isn't a volume and reads what is.
    fn scan(&self) -> Result<Index, RecordError> {
        for directory in [self.volumes(), self.building()] {
            create_directory(&directory)?;
        }
        for path in entries(&self.building())? {
            remove_tree(&path).map_err(RecordError::io("remove", &path))?;
            tracing::info!(pool = self.settings.name, path = %path.display(), "swept a half-made volume");
        }
        let path = &self.settings.path;
        let device = fs::metadata(path).map_err(RecordError::io("look at", path))?.dev();
        let mut index = Index { device, ..Index::default() };
        for folder in entries(&self.volumes())? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(id) = name.parse::<VolumeId>() else {
                tracing::warn!(pool = self.settings.name, path = %folder.display(), "is not a volume; left alone");
                continue;
            };
            let reason = match VolumeRecord::read(&folder) {
                Ok(Some(record)) if record.id == id => {
                    index.insert(record);
                    continue;
                }
                Ok(Some(record)) => format!("its record is that of {}", record.id),
                Ok(None) => "its record is missing".to_owned(),
                Err(error) => error.to_string(),
            };
            tracing::error!(pool = self.settings.name, volume = %id, reason, "the volume can't be read");
            index.damaged.insert(id, reason);
        }
        tracing::info!(
            pool = self.settings.name,
            path = %path.display(),
            kind = self.settings.kind.as_str(),
            volumes = index.volumes.len(),
            "pool is available"
        );
        Ok(index)
    }

    pub(crate) fn find(&self, id: &VolumeId) -> Lookup {
        let index = self.lock();
        let Some(index) = index.as_ref() else { return Lookup::Absent };
        match (index.volumes.get(id), index.damaged.get(id)) {
            (Some(record), _) => Lookup::Found(record.clone()),
            (None, Some(reason)) => Lookup::Damaged(reason.clone()),
            (None, None) => Lookup::Absent,
        }
    }

    pub(crate) fn find_by_name(&self, name: &str) -> Option<VolumeRecord> {
        let index = self.lock();
        let index = index.as_ref()?;
        index.volumes.get(index.by_name.get(name)?).cloned()
    }

    /// All volumes, by id.
    pub(crate) fn all(&self) -> BTreeMap<VolumeId, VolumeRecord> {
        self.lock().as_ref().map(|index| index.volumes.clone()).unwrap_or_default()
    }

    /// A volume's folder.
    pub(crate) fn folder(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(id.as_str())
    }

    /// Starts a new volume in a folder that is no volume yet.
    pub(crate) fn build(&self, id: &VolumeId) -> Result<Draft<'_>, StoreError> {
        let folder = self.building().join(id.as_str());
        DirBuilder::new().mode(0o700).create(&folder).map_err(StoreError::io("create", &folder))?;
        Ok(Draft { pool: self, folder })
    }

    /// Unmakes a volume: once the rename is durable it is gone, whatever becomes of the rest.
    pub(crate) fn remove(&self, id: &VolumeId) -> Result<(), StoreError> {
        let (folder, grave) = (self.folder(id), self.building().join(id.as_str()));
        fs::rename(&folder, &grave).map_err(StoreError::io("rename", &folder))?;
        if let Some(index) = self.lock().as_mut() {
            index.remove(id);
        }
        sync_directory(&self.volumes())?;
        if let Err(error) = remove_tree(&grave) {
            // Its space comes back when the next start sweeps it.
            tracing::warn!(volume = %id, path = %grave.display(), %error, "failed to remove a deleted volume's folder");
        }
        Ok(())
    }

    /// The device number of the filesystem that the pool lies on; none while the pool is unavailable.
    pub(crate) fn device(&self) -> Option<u64> {
        self.lock().as_ref().map(|index| index.device)
    }

    /// What the volumes may still come to take of the pool's free space.
    pub(crate) fn outstanding(&self) -> Result<u64, StoreError> {
        let images: Vec<(VolumeId, Option<u64>)> = match self.lock().as_ref() {
            None => return Ok(0),
            Some(index) => index
                .volumes
                .values()
                .filter(|record| record.content != Content::Directory)
                .map(|record| (record.id.clone(), Some(record.bytes)))
                // Whatever a damaged volume is, its file may be filled.
                .chain(index.damaged.keys().map(|id| (id.clone(), None)))
                .collect(),
        };
        let mut sum = 0_u64;
        for (id, bytes) in images {
            let path = image(&self.folder(&id));
            let found = match fs::metadata(&path) {
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(StoreError::io("look at", &path)(error)),
            };
            let promised = charge(bytes.unwrap_or(found.len()));
            sum = sum.saturating_add(promised.saturating_sub(found.blocks().saturating_mul(512)));
        }
        Ok(sum)
    }

    /// Usage of the filesystem that the pool lies on.
    pub(crate) fn usage(&self) -> Result<filesystem::Usage, StoreError> {
        let path = &self.settings.path;
        File::open(path).and_then(filesystem::usage).map_err(StoreError::io("ask for the free space of", path))
    }

    fn volumes(&self) -> PathBuf {
        self.settings.path.join("volumes")
    }

    fn building(&self) -> PathBuf {
        self.settings.path.join("building")
    }

    /// The index is whole after every single change, so one that a panicking thread held is as good as any.
    fn lock(&self) -> MutexGuard<'_, Option<Index>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn insert(&mut self, record: VolumeRecord) {
        self.by_name.insert(record.name.clone(), record.id.clone());
        self.volumes.insert(record.id.clone(), record);
    }

    fn remove(&mut self, id: &VolumeId) {
        if let Some(record) = self.volumes.remove(id) {
            self.by_name.remove(&record.name);
        }
    }
}

/// A volume in the making; dropped before [`Draft::commit`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pool: &'a Pool,
    folder: PathBuf,
}

impl Draft<'_> {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the draft a volume: from the rename on it is one. Its content must be durable already.
    pub(crate) fn commit(self, record: VolumeRecord) -> Result<(), StoreError> {
        record.write(&self.folder)?;
        let target = self.pool.folder(&record.id);
        fs::rename(&self.folder, &target).map_err(StoreError::io("rename", &self.folder))?;
        let synced = sync_directory(&self.pool.volumes());
        let mut index = self.pool.lock();
        match (&synced, index.as_mut()) {
            (Ok(()), Some(known)) => known.insert(record),
            // Whether it will be there after a power cut is open: look again.
            _ => *index = None,
        }
        synced
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.folder) {
            tracing::warn!(path = %self.folder.display(), %error, "failed to remove a half-made volume");
        }
    }
}

/// Makes a directory that only root may enter, with what is missing above it; one that is there is fine.
fn create_directory(path: &Path) -> Result<(), RecordError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(RecordError::io("create", path))
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(StoreError::io("sync", path))
}

fn entries(path: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let failed = RecordError::io("list", path);
    fs::read_dir(path).map_err(&failed)?.map(|entry| entry.map(|entry| entry.path()).map_err(&failed)).collect()
}

/// Removes a file or folder of the pool's own; nothing there is fine. No link inside is followed.
fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes an image that is one hole.
pub(crate) fn create_image(path: &Path, bytes: u64) -> Result<File, StoreError> {
    let file = File::create_new(path).map_err(StoreError::io("create", path))?;
    file.set_len(bytes).map_err(StoreError::io("set the size of", path))?;
    Ok(file)
}

/// Takes the space of an image's holes.
pub(crate) fn fill_holes(image: &File, path: &Path, bytes: u64) -> Result<(), StoreError> {
    rustix::fs::fallocate(image, rustix::fs::FallocateFlags::empty(), 0, bytes)
        .map_err(|error| StoreError::io("allocate the space of", path)(error.into()))
}
