//! A pool: its identity, and what lies in it.
//!
//! ```text
//! <pool>/keelson-pool.json                    which pool this is
//! <pool>/volumes/<id>/volume.json             what the volume is
//! <pool>/volumes/<id>/image | data/           its content
//! <pool>/snapshots/<id>/snapshot.json         what the snapshot is; its content as a volume's
//! <pool>/groups/<id>/group.json               what the group of snapshots is
//! <pool>/groups/<id>/<snapshot id>/           its snapshots
//! <pool>/building/<id>/                       what isn't one of these yet, or isn't one any more; swept by a scan
//! <pool>/templates/                           formatted images that new ones are cloned from; can be removed any time
//! ```

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_NOW};

use super::{
    format::RecordError,
    identity::{MARKER, Marker, Remembered, is_empty},
    index::{Index, Kept},
    stamp::Stamp,
    together::Together,
};
use crate::{
    config::{PoolKind, PoolSettings},
    kernel::{
        filesystem, reflink,
        subvolume::{self, SubvolumeError, SubvolumeId},
        superblock::Head,
    },
    policy::{Abilities, FilesystemType, PoolFault, VolumeId},
};

/// One pool of the config, whether its disk is there or not.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) settings: PoolSettings,
    pub(super) state_dir: PathBuf,
    /// The volumes, once the pool was recognised; none again when it is lost. Never held while the disk is asked:
    /// a disk that doesn't answer must not hold up who only looks whether a volume is here.
    pub(super) index: Mutex<Option<Index>>,
    /// Held alone while the pool is used for the first time and while it is scanned, and shared while a volume becomes
    /// one or ceases to be: a scan sees each either before or after, and its index is that of the pool.
    pub(super) arranging: RwLock<()>,
    /// The syncs of the directories in which things lie.
    pub(super) syncs: Syncs,
    /// What made the pool be recognised.
    seen: Mutex<Option<Seen>>,
    /// The first blocks of templates.
    pub(super) heads: Mutex<Heads>,
    /// How many calls are at work on it.
    turns: AtomicU32,
    /// What this process is at work on in `building`, by folder name. No scan sweeps that.
    pub(super) sites: Mutex<HashSet<String>>,
    /// What its filesystem can do; told by the last scan.
    pub(super) abilities: Mutex<Option<Abilities>>,
    /// The volumes that a Pod, or somebody else, may be writing to.
    pub(super) attached: Mutex<HashSet<VolumeId>>,
    /// Projects of deleted volumes whose limits are still to be cleared: nobody else's until then.
    pub(super) leaving: Mutex<HashSet<u32>>,
    /// Deleted subvolumes whose qgroups may be there still.
    pub(super) deleted: Mutex<VecDeque<SubvolumeId>>,
    /// Whether something was deleted whose space may not be free yet.
    pub(super) unsettled: AtomicBool,
    /// Held while a template is made.
    pub(super) making_template: Mutex<()>,
    /// Whether its filesystem was read-only when it was last used: so a failing disk ends up.
    pub(super) read_only: AtomicBool,
    /// The marker, locked: no other process uses the pool while this one does, and sweeps what it is building.
    claim: Mutex<Option<File>>,
}

/// The first blocks of templates, by filesystem and bytes, each with what file it was read from.
pub(super) type Heads = HashMap<(FilesystemType, u64), (Stamp, Arc<Head>)>;

/// The files that show which pool it is, as they were when it was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    directory: (u64, u64),
    marker: Stamp,
    memory: Stamp,
}

/// The syncs of the directories in which a pool's things lie.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    pub(super) volumes: Together,
    pub(super) snapshots: Together,
    pub(super) groups: Together,
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
    #[error("{MOST_TURNS} calls are at work on it and don't end: does its disk still answer?")]
    Busy,
    #[error("its filesystem is read-only; look at the kernel's log for why")]
    ReadOnly,
    #[error("a pool of kind subvolume needs btrfs, and the directory lies on another filesystem: is its disk mounted?")]
    NotBtrfs,
    #[error("its filesystem makes no subvolumes")]
    NoSubvolumes(#[source] SubvolumeError),
    #[error("it was lost while it was used; try again")]
    Lost,
}

impl Unavailable {
    /// What that is, as the health of the pool.
    pub(crate) fn fault(&self) -> PoolFault {
        match &self.source {
            IdentityError::Missing | IdentityError::NotADirectory | IdentityError::NoMarker | IdentityError::Lost => {
                PoolFault::Missing
            }
            IdentityError::OtherPool { .. }
            | IdentityError::OtherFilesystem { .. }
            | IdentityError::OtherKind { .. }
            | IdentityError::NotBtrfs
            | IdentityError::NotEmpty => PoolFault::WrongDisk,
            IdentityError::Record(_) | IdentityError::Filesystem(_) | IdentityError::NoSubvolumes(_) => {
                PoolFault::IoErrors
            }
            IdentityError::InUse => PoolFault::InUse,
            IdentityError::Busy => PoolFault::NotResponding,
            IdentityError::ReadOnly => PoolFault::ReadOnly,
        }
    }
}

/// Why a volume could not be made or unmade.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("failed to {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// What a pool knows of an id.
#[derive(Debug)]
pub(crate) enum Lookup<T> {
    Found(Arc<T>),
    Damaged(String),
    Absent,
    /// The pool is unavailable, so nobody knows.
    Unknown,
}

/// How many calls may be at work on one pool: far more than any node has at once. A disk that has stopped answering
/// holds up no more, and leaves the others of the driver to the other pools.
const MOST_TURNS: u32 = 64;

/// The right to work on a pool, until dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Pool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // What was done in the turn comes before what another process does once the pool is given up.
        self.0.turns.fetch_sub(1, Ordering::Release);
    }
}

impl Pool {
    /// Begins work on the pool. To be held by every call that may wait for its disk.
    pub(crate) fn enter(&self) -> Result<Turn<'_>, Unavailable> {
        let turn = Turn(self);
        // The count includes this one; a turn that is refused is dropped, and so counted out again.
        if self.turns.fetch_add(1, Ordering::Relaxed) >= MOST_TURNS {
            return Err(self.unavailable(IdentityError::Busy));
        }
        Ok(turn)
    }

    pub(crate) fn new(settings: PoolSettings, state_dir: &Path) -> Self {
        Self {
            settings,
            state_dir: state_dir.to_owned(),
            index: Mutex::default(),
            arranging: RwLock::default(),
            syncs: Syncs::default(),
            seen: Mutex::default(),
            heads: Mutex::default(),
            turns: AtomicU32::default(),
            sites: Mutex::default(),
            unsettled: AtomicBool::default(),
            making_template: Mutex::default(),
            abilities: Mutex::default(),
            attached: Mutex::default(),
            leaving: Mutex::default(),
            deleted: Mutex::default(),
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
            self.release_if_alone();
            self.unavailable(source)
        })
    }

    /// As [`Pool::check`], for what needs to write: what only takes away from Pods works on a read-only disk as well.
    pub(crate) fn check_writable(&self) -> Result<(), Unavailable> {
        self.check()?;
        if self.read_only.load(Ordering::Relaxed) { Err(self.unavailable(IdentityError::ReadOnly)) } else { Ok(()) }
    }

    pub(super) fn unavailable(&self, source: IdentityError) -> Unavailable {
        Unavailable { pool: self.settings.name.clone(), path: self.settings.path.clone(), source }
    }

    fn ensure_scanned(&self) -> Result<(), IdentityError> {
        if self.lock().is_none() {
            let _arranging = self.arranging.write().unwrap_or_else(PoisonError::into_inner);
            if self.lock().is_none() {
                *lock(&self.abilities) = Some(self.probe()?);
                let index = self.scan()?;
                *self.lock() = Some(index);
            }
        }
        Ok(())
    }

    fn recognise(&self) -> Result<(), IdentityError> {
        let look = || -> io::Result<Seen> {
            let memory = Remembered::path_of(&self.state_dir, &self.settings.name);
            Ok(Seen {
                directory: fs::symlink_metadata(&self.settings.path).map(|found| identity(&found))?,
                marker: fs::symlink_metadata(self.settings.path.join(MARKER))?.into(),
                memory: fs::symlink_metadata(memory)?.into(),
            })
        };
        // Whatever keeps it from being looked at, the thorough way tells.
        let found = look().ok();
        // The marker is held open, so its device number means the very filesystem that was recognised.
        if found.is_some() && *lock(&self.seen) == found && lock(&self.claim).is_some() {
            return Ok(());
        }
        *lock(&self.seen) = None;
        self.recognise_anew()?;
        *lock(&self.seen) = found;
        Ok(())
    }

    fn recognise_anew(&self) -> Result<(), IdentityError> {
        let remembered = || Remembered::read(&self.state_dir, &self.settings.name);
        if let known @ Some(_) = remembered()? {
            return self.recognise_as(known);
        }
        // Two first uses would each write a marker and a memory, and mix them. Whoever comes second finds both.
        let _arranging = self.arranging.write().unwrap_or_else(PoisonError::into_inner);
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
                let btrfs = || File::open(path).and_then(subvolume::is_btrfs).map_err(IdentityError::Filesystem);
                if *kind == PoolKind::Subvolume && !btrfs()? {
                    return Err(IdentityError::NotBtrfs);
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
        self.compare(&marker, filesystem_uuid, &remembered)?;
        self.claim()
    }

    /// Whether what was found is what is remembered.
    pub(super) fn compare(
        &self,
        marker: &Marker,
        filesystem_uuid: Option<uuid::Uuid>,
        remembered: &Remembered,
    ) -> Result<(), IdentityError> {
        let memory = || Remembered::path_of(&self.state_dir, &self.settings.name);
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

    /// Makes sure that no other process uses the pool: neither one with the same config, nor a predecessor that is
    /// stuck in the kernel and may still write.
    pub(super) fn claim(&self) -> Result<(), IdentityError> {
        let path = self.settings.path.join(MARKER);
        let failed = RecordError::io("lock", &path);
        let marker = fs::metadata(&path).map(|found| identity(&found)).map_err(&failed)?;
        let mut claim = lock(&self.claim);
        match claim.as_ref().map(File::metadata).transpose().map_err(&failed)?.as_ref().map(identity) {
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

    /// Lets other processes use the pool, unless calls other than this one's are at work on it.
    fn release_if_alone(&self) {
        // Who enters later looks for the claim after this, as the lock is held, and finds none.
        let mut claim = lock(&self.claim);
        if self.turns.load(Ordering::Acquire) <= 1 && lock(&self.sites).is_empty() {
            *claim = None;
        }
    }

    /// Whether no other process uses the pool, as this one does.
    pub(super) fn is_claimed(&self) -> bool {
        lock(&self.claim).is_some()
    }

    /// Gives the pool up to other processes, for good, unless a call is at work on it. Gives whether that is so.
    pub(crate) fn retire(&self) -> bool {
        // With all turns taken, no call that comes later gets one.
        let is_idle = self.turns.compare_exchange(0, MOST_TURNS, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if is_idle {
            self.release();
        }
        is_idle
    }

    /// What the pool's filesystem can do.
    fn probe(&self) -> Result<Abilities, IdentityError> {
        let path = &self.settings.path;
        let read_only = filesystem::is_read_only(path).map_err(IdentityError::Filesystem)?;
        // On a read-only disk nothing can be tried, and nothing made.
        let kind = self.settings.kind;
        let shares_blocks = match kind {
            PoolKind::Image => !read_only && reflink::can_clone(path).map_err(IdentityError::Filesystem)?,
            PoolKind::Subvolume => self.probe_subvolumes(read_only).map(|()| true)?,
            PoolKind::Directory => false,
        };
        let limits = self.probe_limits(read_only);
        if let Err(reason) = &limits {
            let told = if self.settings.unenforced_sizes { "as asked for" } else { "as unknown" };
            let pool = &self.settings.name;
            tracing::warn!(
                pool,
                reason,
                told,
                "NOTHING ENFORCES THE SIZES OF THIS POOL'S VOLUMES: each can fill the disk, for the other pools on it too"
            );
        }
        Ok(Abilities { kind, shares_blocks, enforces_sizes: limits.is_ok() })
    }

    /// What the pool's filesystem can do; of a pool that was never available, what any of its kind can.
    pub(crate) fn abilities(&self) -> Abilities {
        lock(&self.abilities).unwrap_or_else(|| Abilities::least(self.settings.kind))
    }

    pub(crate) fn find<T: Kept>(&self, id: &T::Id) -> Lookup<T> {
        let index = self.lock();
        let Some(index) = index.as_ref() else { return Lookup::Unknown };
        match (T::table(index).get(id), index.damaged.get(&id.to_string())) {
            (Some(record), _) => Lookup::Found(Arc::clone(record)),
            (None, Some(reason)) => Lookup::Damaged(reason.clone()),
            (None, None) => Lookup::Absent,
        }
    }

    pub(crate) fn find_by_name<T: Kept>(&self, name: &str) -> Result<Option<Arc<T>>, Unavailable> {
        self.look(|index| T::table(index).named(name).cloned())
    }

    /// At most `count` records, by id, whose ids come after `after`.
    pub(crate) fn after<T: Kept>(&self, after: Option<&T::Id>, count: usize) -> Result<Vec<Arc<T>>, Unavailable> {
        self.look(|index| T::table(index).after(after, count))
    }

    /// All records that `wanted` picks, by id.
    pub(crate) fn filtered<T: Kept>(&self, wanted: impl Fn(&T) -> bool) -> Result<Vec<Arc<T>>, Unavailable> {
        self.look(|index| T::table(index).iter().filter(|record| wanted(record)).cloned().collect())
    }

    /// How many of a kind there are; none while the pool is unavailable.
    pub(crate) fn count<T: Kept>(&self) -> Option<usize> {
        self.lock().as_ref().map(|index| T::table(index).len())
    }

    /// Folders whose record can't be read, by name, and why.
    pub(crate) fn damaged(&self) -> Result<Vec<(String, String)>, Unavailable> {
        self.look(|index| index.damaged.iter().map(|(name, reason)| (name.clone(), reason.clone())).collect())
    }

    fn look<R>(&self, question: impl FnOnce(&Index) -> R) -> Result<R, Unavailable> {
        self.lock().as_ref().map(question).ok_or_else(|| self.lost())
    }

    /// The pool was available, and is no longer.
    pub(super) fn lost(&self) -> Unavailable {
        self.unavailable(IdentityError::Lost)
    }

    /// The folder in which a record's thing lies.
    pub(crate) fn folder<T: Kept>(&self, record: &T) -> PathBuf {
        record.folder(self)
    }

    /// Tells that the volume may be written to from now on, until [`Pool::detached`].
    pub(crate) fn attached(&self, id: &VolumeId) {
        lock(&self.attached).insert(id.clone());
    }

    /// Tells that nobody writes to the volume any more.
    pub(crate) fn detached(&self, id: &VolumeId) {
        lock(&self.attached).remove(id);
        if let Some(index) = self.lock().as_mut() {
            index.ledger.touch(id.as_str());
        }
    }

    /// Whether the pool was recognised and could be written to when it was last used.
    pub(crate) fn is_available(&self) -> bool {
        self.lock().is_some() && !self.read_only.load(Ordering::Relaxed)
    }

    /// The number of the filesystem that the pool lies on; none while the pool is unavailable.
    pub(crate) fn device(&self) -> Option<u64> {
        self.lock().as_ref().map(|index| index.device)
    }

    /// Whether its marker is on the filesystem of this number, so it promises something there even while it is unavailable.
    pub(super) fn lies_on(&self, device: Option<u64>) -> bool {
        // Only there is the disk asked: another one may not answer.
        filesystem::number(&self.settings.path).ok() == device
            && fs::symlink_metadata(self.settings.path.join(MARKER)).is_ok()
    }

    /// Writes to the pool what changes nothing, all the way to the disk.
    pub(crate) fn touch(&self) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        rustix::fs::utimensat(rustix::fs::CWD, &self.settings.path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        self.sync(&self.settings.path)
    }

    /// Usage of the filesystem that the pool lies on.
    pub(crate) fn usage(&self) -> Result<filesystem::Usage, StoreError> {
        let path = &self.settings.path;
        File::open(path).and_then(filesystem::usage).map_err(StoreError::io("ask for the free space of", path))
    }

    pub(super) fn volumes(&self) -> PathBuf {
        self.settings.path.join("volumes")
    }

    pub(super) fn snapshots(&self) -> PathBuf {
        self.settings.path.join("snapshots")
    }

    pub(super) fn groups(&self) -> PathBuf {
        self.settings.path.join("groups")
    }

    pub(super) fn building(&self) -> PathBuf {
        self.settings.path.join("building")
    }

    pub(super) fn templates(&self) -> PathBuf {
        self.settings.path.join("templates")
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Index>> {
        lock(&self.index)
    }
}

/// Device and inode number.
fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// What these locks guard is whole after every single change, so one that a panicking thread held is as good as any.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a directory that only root may enter, with what is missing above it; one that is there is fine.
pub(super) fn create_directory(path: &Path) -> Result<(), RecordError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(RecordError::io("create", path))
}

impl Pool {
    /// Makes the entries of a folder durable that is renamed next. Where that puts everything on the disk, nothing is to
    /// be done now.
    pub(super) fn sync_new(&self, folder: &Path) -> io::Result<()> {
        if self.settings.kind == PoolKind::Subvolume { Ok(()) } else { self.sync(folder) }
    }

    /// Makes the entries of a directory durable; of subvolumes, everything that was made and renamed so far.
    pub(super) fn sync(&self, directory: &Path) -> io::Result<()> {
        let directory = File::open(directory)?;
        match self.settings.kind {
            PoolKind::Image | PoolKind::Directory => directory.sync_all(),
            PoolKind::Subvolume => subvolume::commit(directory),
        }
    }
}
