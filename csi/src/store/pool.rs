//! A pool: its identity, the volumes in it, and the two renames that make and unmake one.
//!
//! ```text
//! <pool>/keelson-pool.json              which pool this is
//! <pool>/volumes/<id>/volume.json       what the volume is
//! <pool>/volumes/<id>/image | data/     its content
//! <pool>/building/<id>/                 a volume that isn't one yet, or isn't one any more; swept by a scan
//! ```

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    identity::{MARKER, Marker, RecordError, Remembered, is_empty},
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
    /// Held while the pool is used for the first time, while it is scanned, and while a volume becomes one or ceases
    /// to be: a scan sees each either before or after, and its index is that of the pool.
    arranging: Mutex<()>,
    /// What this process is at work on in `building`. No scan sweeps that.
    building: Mutex<HashSet<VolumeId>>,
    /// Whether its filesystem was read-only when it was last used: so a failing disk ends up.
    read_only: AtomicBool,
    /// The marker, locked: no other process uses the pool while this one does, and sweeps what it is building.
    claim: Mutex<Option<File>>,
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
    #[error("it is in use by another process, which may be one that was killed and is stuck in the kernel")]
    InUse,
    #[error("its filesystem is read-only; look at the kernel's log for why")]
    ReadOnly,
    #[error("it was lost while it was used; try again")]
    Lost,
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
    /// The pool is unavailable, so nobody knows.
    Unknown,
}

impl Pool {
    pub(crate) fn new(settings: PoolSettings, state_dir: &Path) -> Self {
        Self {
            settings,
            state_dir: state_dir.to_owned(),
            index: Mutex::default(),
            arranging: Mutex::default(),
            building: Mutex::default(),
            read_only: AtomicBool::default(),
            claim: Mutex::default(),
        }
    }

    /// Makes sure that what is mounted now is the pool that is remembered, and that its volumes are known.
    ///
    /// The first use ever makes the marker and the memory of it; the first use after a start, or after the disk came
    /// back, sweeps what was half-made and reads every record.
    pub(crate) fn check(&self) -> Result<(), Unavailable> {
        let checked = self.recognise().and_then(|()| self.ensure_scanned()).and_then(|()| {
            let read_only = filesystem::is_read_only(&self.settings.path).map_err(IdentityError::Filesystem)?;
            self.read_only.store(read_only, Ordering::Relaxed);
            Ok(())
        });
        checked.map_err(|source| {
            // What was known may be wrong when the disk is back.
            *self.lock() = None;
            if lock(&self.building).is_empty() {
                self.release();
            }
            self.unavailable(source)
        })
    }

    /// As [`Pool::check`], for what needs to write: what only takes away from Pods works on a read-only disk as well.
    pub(crate) fn check_writable(&self) -> Result<(), Unavailable> {
        self.check()?;
        if self.read_only.load(Ordering::Relaxed) { Err(self.unavailable(IdentityError::ReadOnly)) } else { Ok(()) }
    }

    fn unavailable(&self, source: IdentityError) -> Unavailable {
        Unavailable { pool: self.settings.name.clone(), path: self.settings.path.clone(), source }
    }

    fn ensure_scanned(&self) -> Result<(), IdentityError> {
        if self.lock().is_none() {
            let _arranging = lock(&self.arranging);
            if self.lock().is_none() {
                let index = self.scan()?;
                *self.lock() = Some(index);
            }
        }
        Ok(())
    }

    fn recognise(&self) -> Result<(), IdentityError> {
        let remembered = || Remembered::read(&self.state_dir, &self.settings.name);
        if let known @ Some(_) = remembered()? {
            return self.recognise_as(known);
        }
        // Two first uses would each write a marker and a memory, and mix them. Whoever comes second finds both.
        let _arranging = lock(&self.arranging);
        self.recognise_as(remembered()?)
    }

    fn recognise_as(&self, remembered: Option<Remembered>) -> Result<(), IdentityError> {
        let PoolSettings { name, path, kind, may_create, .. } = &self.settings;
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
            self.claim()?;
            // Until now another process could make it its own pool.
            let marker = Marker::read(path)?.ok_or(IdentityError::NoMarker)?;
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
            _ => self.claim(),
        }
    }

    /// Makes sure that no other process uses the pool: neither one with the same config, nor a predecessor that is
    /// stuck in the kernel and may still write.
    fn claim(&self) -> Result<(), IdentityError> {
        let path = self.settings.path.join(MARKER);
        let failed = RecordError::io("lock", &path);
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let marker = fs::metadata(&path).map(identity).map_err(&failed)?;
        let mut claim = lock(&self.claim);
        match claim.as_ref().map(File::metadata).transpose().map_err(&failed)?.map(identity) {
            Some(held) if held == marker => Ok(()),
            _ => {
                *claim = filesystem::lock(&self.settings.path, MARKER).map_err(&failed)?;
                if claim.is_some() { Ok(()) } else { Err(IdentityError::InUse) }
            }
        }
    }

    /// Lets other processes use the pool.
    pub(crate) fn release(&self) {
        *lock(&self.claim) = None;
    }

    /// Sweeps what isn't a volume and reads what is.
    fn scan(&self) -> Result<Index, RecordError> {
        for directory in [self.volumes(), self.building()] {
            create_directory(&directory)?;
        }
        // A volume that was made or unmade without being synced: what is believed from now on must be durable.
        for directory in [self.volumes(), self.building()] {
            sync(&directory).map_err(RecordError::io("sync", &directory))?;
        }
        for path in entries(&self.building())? {
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            if id.is_some_and(|id: VolumeId| lock(&self.building).contains(&id)) {
                continue;
            }
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
        let Some(index) = index.as_ref() else { return Lookup::Unknown };
        match (index.volumes.get(id), index.damaged.get(id)) {
            (Some(record), _) => Lookup::Found(record.clone()),
            (None, Some(reason)) => Lookup::Damaged(reason.clone()),
            (None, None) => Lookup::Absent,
        }
    }

    pub(crate) fn find_by_name(&self, name: &str) -> Result<Option<VolumeRecord>, Unavailable> {
        let index = self.lock();
        let index = index.as_ref().ok_or_else(|| self.lost())?;
        Ok(index.by_name.get(name).and_then(|id| index.volumes.get(id)).cloned())
    }

    /// The pool was available, and is no longer.
    pub(super) fn lost(&self) -> Unavailable {
        self.unavailable(IdentityError::Lost)
    }

    /// All volumes, by id.
    pub(crate) fn all(&self) -> Result<BTreeMap<VolumeId, VolumeRecord>, Unavailable> {
        self.lock().as_ref().map(|index| index.volumes.clone()).ok_or_else(|| self.lost())
    }

    /// A volume's folder.
    pub(crate) fn folder(&self, id: &VolumeId) -> PathBuf {
        self.volumes().join(id.as_str())
    }

    /// Starts a new volume in a folder that is no volume yet.
    pub(crate) fn build(&self, id: &VolumeId) -> Result<Draft<'_>, StoreError> {
        let folder = self.building().join(id.as_str());
        let site = Site::open(self, id);
        DirBuilder::new().mode(0o700).create(&folder).map_err(StoreError::io("create", &folder))?;
        Ok(Draft { site, folder })
    }

    /// Unmakes a volume: once the rename is durable it is gone, whatever becomes of the rest.
    pub(crate) fn remove(&self, id: &VolumeId) -> Result<(), StoreError> {
        let (folder, grave) = (self.folder(id), self.building().join(id.as_str()));
        let _site = Site::open(self, id);
        self.rename(&folder, &grave, |index| index.remove(id))?;
        if let Err(error) = remove_tree(&grave) {
            // Its space comes back when the next scan sweeps it.
            tracing::warn!(volume = %id, path = %grave.display(), %error, "failed to remove a deleted volume's folder");
        }
        Ok(())
    }

    /// Makes a volume one, or none any more: what is renamed is in the index, and durable. Else the index is lost, and
    /// the next check looks at what is there.
    fn rename(&self, from: &Path, to: &Path, change: impl FnOnce(&mut Index)) -> Result<(), StoreError> {
        let _arranging = lock(&self.arranging);
        fs::rename(from, to).map_err(StoreError::io("rename", from))?;
        let volumes = self.volumes();
        let synced = sync(&volumes).map_err(StoreError::io("sync", &volumes));
        let mut index = self.lock();
        match (&synced, index.as_mut()) {
            (Ok(()), Some(known)) => change(known),
            _ => *index = None,
        }
        synced
    }

    /// Whether the pool was recognised and could be written to when it was last used.
    pub(crate) fn is_available(&self) -> bool {
        self.lock().is_some() && !self.read_only.load(Ordering::Relaxed)
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
                .filter_map(|record| match record.content {
                    Content::Block | Content::Filesystem { .. } => Some((record.id.clone(), Some(record.bytes))),
                    Content::Directory => None,
                })
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

    fn lock(&self) -> MutexGuard<'_, Option<Index>> {
        lock(&self.index)
    }
}

/// What these locks guard is whole after every single change, so one that a panicking thread held is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A folder in `building` that this process is at work on; no scan sweeps it until this is dropped.
#[derive(Debug)]
struct Site<'a> {
    pool: &'a Pool,
    id: VolumeId,
}

impl<'a> Site<'a> {
    fn open(pool: &'a Pool, id: &VolumeId) -> Self {
        lock(&pool.building).insert(id.clone());
        Self { pool, id: id.clone() }
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        lock(&self.pool.building).remove(&self.id);
    }
}

/// A volume in the making; dropped before [`Draft::commit`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    site: Site<'a>,
    folder: PathBuf,
}

impl Draft<'_> {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the draft a volume: from the rename on it is one. Its content must be durable already.
    pub(crate) fn commit(self, record: VolumeRecord) -> Result<(), StoreError> {
        record.write(&self.folder)?;
        let pool = self.site.pool;
        pool.rename(&self.folder, &pool.folder(&record.id), |index| index.insert(record))
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
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
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

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;
    use crate::policy::Provisioning;

    /// A pool of directories in a directory of its own.
    fn pool(directory: &Path) -> Pool {
        let path = directory.join("pool");
        let (name, resolved) = ("pool".to_owned(), path.clone());
        let settings = PoolSettings { name, path, resolved, kind: PoolKind::Directory, may_create: true };
        Pool::new(settings, &directory.join("state"))
    }

    fn record(id: &VolumeId) -> VolumeRecord {
        VolumeRecord::new(id.clone(), "pvc-1".to_owned(), 0, Provisioning::Thin, Content::Directory)
    }

    #[test]
    fn a_scan_leaves_alone_what_is_being_built() {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(directory.path());
        pool.check().unwrap();
        let id = VolumeId::generate();
        let draft = pool.build(&id).unwrap();
        fs::create_dir(draft.folder().join("data")).unwrap();
        let left = pool.building().join(VolumeId::generate().as_str());
        fs::create_dir(&left).unwrap();
        // The pool's disk was gone for a moment.
        fs::rename(&pool.settings.path, directory.path().join("away")).unwrap();
        pool.check().unwrap_err();
        fs::rename(directory.path().join("away"), &pool.settings.path).unwrap();
        pool.check().unwrap();
        assert!(!left.exists());
        draft.commit(record(&id)).unwrap();
        assert!(pool.folder(&id).join("data").is_dir());
        assert_eq!(pool.find_by_name("pvc-1").unwrap(), Some(record(&id)));
        assert!(lock(&pool.building).is_empty());
    }

    #[test]
    fn a_pool_that_is_lost_knows_nothing_rather_than_that_nothing_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(directory.path());
        let id = VolumeId::generate();
        assert!(matches!(pool.find(&id), Lookup::Unknown));
        pool.find_by_name("pvc-1").unwrap_err();
        pool.all().unwrap_err();
        pool.check().unwrap();
        assert!(matches!(pool.find(&id), Lookup::Absent));
    }

    #[test]
    fn two_first_uses_at_once_make_one_pool() {
        for _ in 0..30 {
            let directory = tempfile::tempdir().unwrap();
            let (pool, start) = (pool(directory.path()), Barrier::new(2));
            thread::scope(|scope| {
                let uses = [(); 2].map(|()| {
                    scope.spawn(|| {
                        start.wait();
                        pool.check()
                    })
                });
                for used in uses {
                    used.join().unwrap().unwrap();
                }
            });
            pool.check().unwrap();
        }
    }

    #[test]
    fn an_unmade_volume_that_is_not_durable_is_no_longer_believed_to_be_gone() {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(directory.path());
        pool.check().unwrap();
        let id = VolumeId::generate();
        let draft = pool.build(&id).unwrap();
        draft.commit(record(&id)).unwrap();
        let (folder, away) = (pool.folder(&id), directory.path().join("away"));
        // The rename works; then there is no directory to sync.
        let failed = pool.rename(&pool.volumes(), &away, |index| index.remove(&id));
        failed.unwrap_err();
        assert!(!pool.is_available());
        fs::rename(&away, pool.volumes()).unwrap();
        pool.check().unwrap();
        assert!(matches!(pool.find(&id), Lookup::Found(_)) && folder.is_dir());
        pool.remove(&id).unwrap();
        assert!(matches!(pool.find(&id), Lookup::Absent) && !folder.exists());
    }
}
