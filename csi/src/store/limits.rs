//! What keeps a directory or subvolume within its volume's size: project quotas of ext4 and xfs, qgroups of btrfs.
//!
//! A project id is taken as long as the kernel knows it: something has it, or it has limits. A directory gets its id
//! before that gets its limits, so an id with limits that nothing has is a leak, whoever's pool it was in. The record
//! follows with the volume's other properties; a volume that never became one leaves such a leak, no volume.

use std::{
    fs::File,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use super::{
    index::Index,
    pool::{IdentityError, Pool, StoreError, lock},
    pools::Pools,
    record::{VolumeRecord, data},
};
use crate::{
    config::PoolKind,
    kernel::{
        quota::{self, Enforcement, Limits, Quota},
        subvolume::{self, QuotaKind, Removal, SubvolumeId, Support},
    },
    policy::{ContentKind, PROJECTS, free_project, leaked_projects},
};

/// The name of the subvolume in `building` that is made to see whether one can be.
const SCRATCH: &str = "probe";

/// How many qgroups of deleted subvolumes are tried at a time: the kernel removes most itself, and frees some late.
const MOST_QGROUPS: usize = 16;

impl Pools {
    /// Limits a volume in the making, in `folder`, to what its record says, where the pool's filesystem can do that.
    pub(crate) fn limit(&self, pool: &Pool, folder: &Path, record: &mut VolumeRecord) -> Result<(), StoreError> {
        let content = data(folder);
        if record.content.kind() == ContentKind::Directory && pool.abilities().enforces_sizes {
            let project = self.assign_project(pool, &content).map_err(StoreError::io("limit", &content))?;
            record.project = Some(project);
        }
        pool.enforce_in(folder, record)
    }

    /// Puts a new directory under a project of its own.
    fn assign_project(&self, pool: &Pool, path: &Path) -> io::Result<u32> {
        let directory = File::open(path)?;
        let recorded: Vec<u32> = self.on_filesystem_of(pool).flat_map(Pool::projects).collect();
        let assigning = self.assigning(pool);
        // Until the id is assigned, only this keeps others from taking it.
        let _assigning = lock(&assigning);
        let none_left = || io::Error::from_raw_os_error(libc::ENOSPC);
        let mut project = free_project(&recorded, &[]).ok_or_else(none_left)?;
        if quota::quota(&directory, project).map_err(|error| error.source)? != Quota::default() {
            let known = quota::projects(&directory, PROJECTS).map_err(|error| error.source)?;
            project = free_project(&recorded, &known).ok_or_else(none_left)?;
        }
        quota::assign(&directory, project).map_err(|error| error.source)?;
        Ok(project)
    }
}

/// Held while a project id is chosen and assigned.
pub(super) type Assigning = Arc<Mutex<()>>;

impl Pool {
    /// Whether the volume can't grow beyond its size. One that was made while nothing could limit it has no limit later.
    pub(crate) fn enforces(&self, record: &VolumeRecord) -> bool {
        match record.content.kind() {
            ContentKind::Block | ContentKind::Filesystem(_) => true,
            ContentKind::Subvolume => self.abilities().enforces_sizes,
            ContentKind::Directory => self.abilities().enforces_sizes && record.project.is_some(),
        }
    }

    /// Limits a volume to what its record says, where the pool's filesystem can do that.
    pub(crate) fn enforce(&self, record: &VolumeRecord) -> Result<(), StoreError> {
        self.enforce_in(&self.folder(record), record)
    }

    fn enforce_in(&self, folder: &Path, record: &VolumeRecord) -> Result<(), StoreError> {
        let content = data(folder);
        let limited = if self.enforces(record) { set_limits(&content, record) } else { Ok(()) };
        limited.map_err(StoreError::io("limit", &content))
    }

    /// Forgets the limits of a volume whose content is gone; until then its project is nobody else's.
    pub(super) fn forget_project(&self, project: u32) {
        let cleared =
            File::open(&self.settings.path).and_then(|top| quota::clear(top, project).map_err(|error| error.source));
        if let Err(error) = cleared {
            // The next scan does it.
            tracing::warn!(pool = self.settings.name, project, %error, "failed to clear the limits of a project");
        }
        lock(&self.leaving).remove(&project);
    }

    /// Remembers subvolumes that were deleted, and removes the qgroups of those that the kernel has freed since. Those of
    /// others are never touched: who made them may have a use for them.
    pub(super) fn forget_qgroups(&self, deleted: &[SubvolumeId]) {
        let due: Vec<SubvolumeId> = {
            let mut all = lock(&self.deleted);
            all.extend(deleted);
            let count = all.len().min(MOST_QGROUPS.max(deleted.len()));
            all.drain(..count).collect()
        };
        if due.is_empty() {
            return;
        }
        let Ok(top) = File::open(&self.settings.path) else {
            lock(&self.deleted).extend(due);
            return;
        };
        for id in due {
            match subvolume::remove_qgroup(&top, id) {
                Ok(Removal::Gone) => {}
                Ok(Removal::InUse) => lock(&self.deleted).push_back(id),
                Err(error) => {
                    let error = keelson_host::error_chain(&error);
                    tracing::warn!(pool = self.settings.name, error, "a qgroup of no subvolume stays");
                }
            }
        }
    }

    pub(super) fn projects(&self) -> Vec<u32> {
        // Whoever leaves has entered the latter before the index loses it.
        let index = self.lock();
        let recorded = index.iter().flat_map(|index| index.volumes.iter()).filter_map(|volume| volume.project);
        recorded.chain(lock(&self.leaving).iter().copied()).collect()
    }

    /// Whether subvolumes can be made, by making one.
    pub(super) fn probe_subvolumes(&self, read_only: bool) -> Result<(), IdentityError> {
        let path = &self.settings.path;
        if !File::open(path).and_then(subvolume::is_btrfs).map_err(IdentityError::Filesystem)? {
            return Err(IdentityError::NotBtrfs);
        }
        if read_only {
            return Ok(());
        }
        super::pool::create_directory(&self.building())?;
        let building = File::open(self.building()).map_err(IdentityError::Filesystem)?;
        match subvolume::probe(&building, SCRATCH).map_err(IdentityError::Filesystem)? {
            Support::Full => Ok(()),
            Support::OtherFilesystem => Err(IdentityError::NotBtrfs),
            Support::Refused(error) => Err(IdentityError::NoSubvolumes(error)),
        }
    }

    /// Whether the pool's filesystem enforces sizes, or else why not. On a btrfs quotas are switched on for that.
    pub(super) fn probe_limits(&self, read_only: bool) -> Result<(), String> {
        let top = File::open(&self.settings.path).map_err(|error| error.to_string())?;
        match self.settings.kind {
            PoolKind::Image => Ok(()),
            PoolKind::Subvolume => self.probe_qgroups(&top, read_only),
            PoolKind::Directory => match quota::enforcement(&top) {
                Ok(Enforcement::Enforced) => Ok(()),
                Ok(Enforcement::AccountingOnly) => {
                    Err("its filesystem counts, but isn't mounted with prjquota".to_owned())
                }
                Ok(Enforcement::Off) => {
                    Err("its filesystem has no project quotas, or isn't mounted with prjquota".to_owned())
                }
                Ok(Enforcement::Unsupported) => Err("its filesystem can't have project quotas".to_owned()),
                Err(error) => Err(format!("its filesystem can't be asked for project quotas: {error}")),
            },
        }
    }

    fn probe_qgroups(&self, top: &File, read_only: bool) -> Result<(), String> {
        let failed = |error: subvolume::SubvolumeError| keelson_host::error_chain(&error);
        match subvolume::quota_state(top).map_err(failed)? {
            Some(state) => {
                if state.kind == QuotaKind::Simple {
                    tracing::warn!(
                        pool = self.settings.name,
                        "the filesystem has simple quotas: what a clone shares with its source doesn't count for it"
                    );
                }
                Ok(())
            }
            None if read_only => Err("quotas are off, and the filesystem is read-only".to_owned()),
            None => {
                subvolume::enable_quota(top).map_err(failed)?;
                tracing::info!(
                    pool = self.settings.name,
                    "switched quotas on; the kernel counts what is there already"
                );
                Ok(())
            }
        }
    }

    /// Whether what the kernel says about the space of subvolumes is right. Where it gave up counting, as it does to
    /// delete a large subvolume quickly, it is told to count anew; until it has, limits don't hold.
    pub(crate) fn counts(&self) -> bool {
        if self.settings.kind != PoolKind::Subvolume {
            return true;
        }
        let look = || -> Result<bool, subvolume::SubvolumeError> {
            let Ok(top) = File::open(&self.settings.path) else { return Ok(false) };
            let Some(state) = subvolume::quota_state(&top)? else { return Ok(false) };
            // Only who uses the pool changes something there.
            if state.inconsistent && !state.counting && self.is_claimed() {
                subvolume::count_anew(&top)?;
                tracing::info!(pool = self.settings.name, "the kernel counts the space of all subvolumes anew");
            }
            Ok(!state.inconsistent && !state.counting)
        };
        look().unwrap_or_else(|error| {
            tracing::warn!(pool = self.settings.name, error = keelson_host::error_chain(&error), "can't see quotas");
            false
        })
    }

    /// Gives every volume the limits that its record says, and takes limits away that no volume has. Where that fails,
    /// the volumes are still there.
    pub(super) fn enforce_all(&self, index: &Index) {
        let pool = &self.settings.name;
        let mut unlimited = 0_usize;
        for volume in index.volumes.iter().filter(|volume| !volume.content.kind().is_image()) {
            if !self.enforces(volume) {
                unlimited += 1;
            } else if let Err(error) = set_limits_anew(&data(&self.folder(&**volume)), volume) {
                tracing::error!(pool, volume = %volume.id, %error, "failed to limit a volume");
            }
        }
        if unlimited > 0 && self.abilities().enforces_sizes {
            tracing::warn!(pool, unlimited, "volumes were made when nothing could limit them, and have no limit");
        }
        if self.abilities().enforces_sizes
            && let Err(error) = self.sweep_limits(index)
        {
            tracing::warn!(pool, %error, "failed to look for limits that no volume has");
        }
    }

    fn sweep_limits(&self, index: &Index) -> io::Result<()> {
        let top = File::open(&self.settings.path)?;
        match self.settings.kind {
            PoolKind::Image => {}
            // What was deleted right before the kernel has freed only some of.
            PoolKind::Subvolume => self.forget_qgroups(&[]),
            PoolKind::Directory => {
                let recorded: Vec<u32> = index.volumes.iter().filter_map(|volume| volume.project).collect();
                let known = quota::projects(&top, PROJECTS).map_err(|error| error.source)?;
                for project in leaked_projects(&recorded, &known) {
                    let found = quota::quota(&top, project).map_err(|error| error.source)?;
                    // What something has may be another pool's.
                    if (found.used_bytes, found.used_inodes) == (0, 0) {
                        quota::clear(&top, project).map_err(|error| error.source)?;
                        tracing::info!(pool = self.settings.name, project, "swept the limits of no volume");
                    }
                }
            }
        }
        Ok(())
    }
}

fn limits_of(record: &VolumeRecord) -> Limits {
    Limits { bytes: Some(record.bytes), inodes: record.settings.inodes }
}

/// Limits the volume's content at `path`.
fn set_limits(path: &Path, record: &VolumeRecord) -> io::Result<()> {
    match (record.content.kind(), record.project) {
        (ContentKind::Subvolume, _) => {
            let (top, id) = open_subvolume(path)?;
            subvolume::set_limit(top, id, Some(record.bytes)).map_err(|error| error.source)
        }
        (ContentKind::Directory, Some(project)) => {
            quota::set_limits(File::open(path)?, project, limits_of(record)).map_err(|error| error.source)
        }
        _ => Ok(()),
    }
}

/// The same if the limits are others.
fn set_limits_anew(path: &Path, record: &VolumeRecord) -> io::Result<()> {
    let as_recorded = match (record.content.kind(), record.project) {
        (ContentKind::Subvolume, _) => {
            let (top, id) = open_subvolume(path)?;
            let figures = subvolume::figures(top, id).map_err(|error| error.source)?;
            figures.and_then(|figures| figures.limit) == Some(record.bytes)
        }
        (ContentKind::Directory, Some(project)) => {
            let found = quota::quota(File::open(path)?, project).map_err(|error| error.source)?;
            found.limits == limits_of(record)
        }
        _ => true,
    };
    if as_recorded {
        return Ok(());
    }
    tracing::info!(volume = %record.id, bytes = record.bytes, "set the limits of a volume anew");
    set_limits(path, record)
}

fn open_subvolume(path: &Path) -> io::Result<(File, subvolume::SubvolumeId)> {
    let top = File::open(path)?;
    let id = subvolume::id(&top)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTDIR))?;
    Ok((top, id))
}
