//! Limits of subvolumes: qgroups, of which every subvolume has one of its own, 0/id.
//!
//! We switch on full accounting, not simple quotas (Linux 6.7), although those are cheaper. Full accounting counts what
//! a subvolume refers to, shared or not: that is the size of a volume, whether new or a clone. Simple quotas count an
//! extent for the subvolume that wrote it: a clone of a full volume starts at 0 and could grow to twice its limit,
//! and what a snapshot keeps stays on the bill of the deleted source. They also make the filesystem unreadable for
//! older kernels. A filesystem on which somebody switched them on keeps them; [`QuotaState::kind`] tells.
//!
//! # How exact the figures are
//!
//! A write is checked when it enters the page cache: it fails with `EDQUOT` if what the subvolume refers to by the last
//! transaction, and what was written since, exceed the limit. Overwriting counts, too, until the next transaction, so
//! a volume near its limit may get `EDQUOT` before it is full. The figures that [`figures`] gives are those of the last
//! transaction: up to 30 s old (the mount option `commit`).
//!
//! Right after limits were switched on where there are volumes already, and when the kernel gave up counting (it does
//! so to delete a large subvolume quickly: `drop_subtree_threshold`), the figures are wrong until [`count_anew`]
//! is through. Limits hold meanwhile, against wrong figures.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use super::{super::filesystem::Usage, SubvolumeError, SubvolumeId, exists, failed, id, nested, sys};

/// How a btrfs counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuotaKind {
    /// What a subvolume refers to, shared or not.
    Full,
    /// What a subvolume wrote itself.
    Simple,
}

/// What a btrfs says about its quotas as of the last transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuotaState {
    pub(crate) kind: QuotaKind,
    /// Whether everything is being counted anew.
    pub(crate) counting: bool,
    /// Whether the figures are known to be wrong.
    pub(crate) inconsistent: bool,
}

/// What a subvolume takes, in bytes, with the blocks of its tree; as of the last transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    /// What it refers to, shared or not.
    pub(crate) referenced: u64,
    /// What nothing else refers to: that much becomes free when it is deleted.
    pub(crate) exclusive: u64,
    /// The limit of `referenced`.
    pub(crate) limit: Option<u64>,
}

/// What became of a qgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is gone; or was.
    Gone,
    /// It has a subvolume, or one that is deleted but not freed yet: to be tried again.
    InUse,
}

/// `BTRFS_QGROUP_STATUS_FLAG_*`
const ON: u64 = 1;
const RESCAN: u64 = 1 << 1;
const INCONSISTENT: u64 = 1 << 2;
const SIMPLE: u64 = 1 << 3;

/// The quotas of the filesystem that `file` lies on; none if they are off.
pub(crate) fn quota_state(file: impl AsFd) -> Result<Option<QuotaState>, SubvolumeError> {
    let failed = failed("ask for", "the state of quotas");
    // version, generation, flags, progress of the rescan
    let Some(flags) = one(file.as_fd(), sys::QGROUP_STATUS, 0).map_err(&failed)? else { return Ok(None) };
    let flags = flags.number(2).map_err(&failed)?;
    let state = QuotaState {
        kind: if flags & SIMPLE == 0 { QuotaKind::Full } else { QuotaKind::Simple },
        counting: flags & RESCAN != 0,
        inconsistent: flags & INCONSISTENT != 0,
    };
    Ok((flags & ON != 0).then_some(state))
}

/// Switches full accounting on, if quotas are off. The kernel counts what is there in the background.
pub(crate) fn enable_quota(file: impl AsFd) -> Result<(), SubvolumeError> {
    sys::enable_quota(file.as_fd()).map_err(failed("switch on", "quotas"))
}

/// Has the kernel count everything anew in the background, if it isn't at it already.
pub(crate) fn count_anew(file: impl AsFd) -> Result<(), SubvolumeError> {
    match sys::start_rescan(file.as_fd()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(failed("count", "quotas anew")(error)),
        _ => Ok(()),
    }
}

/// Limits the bytes that subvolume `id` refers to, or lets it grow without limit. A limit below what it takes is set all
/// the same: nothing more can be written then. `ENOTCONN` if quotas are off, `ENOENT` if it has no qgroup.
pub(crate) fn set_limit(file: impl AsFd, id: SubvolumeId, bytes: Option<u64>) -> Result<(), SubvolumeError> {
    let bytes = bytes.unwrap_or(sys::NO_LIMIT);
    sys::limit_qgroup(file.as_fd(), id.0, bytes).map_err(failed("set the limit of", id))
}

/// What subvolume `id` takes; none if it has no qgroup, as where quotas are off.
pub(crate) fn figures(file: impl AsFd, id: SubvolumeId) -> Result<Option<Figures>, SubvolumeError> {
    let read = || {
        // generation, referenced, the same compressed, exclusive, the same compressed
        let Some(info) = one(file.as_fd(), sys::QGROUP_INFO, id.0)? else { return Ok(None) };
        // flags, max_rfer, max_excl, rsv_rfer, rsv_excl
        let limit = match one(file.as_fd(), sys::QGROUP_LIMIT, id.0)? {
            Some(limits) if limits.number(0)? & sys::MAX_REFERENCED != 0 => Some(limits.number(1)?),
            _ => None,
        };
        Ok(Some(Figures { referenced: info.number(1)?, exclusive: info.number(3)?, limit }))
    };
    read().map_err(failed("ask for the figures of", id))
}

/// What the subvolume whose top directory is at `path` takes.
pub(crate) fn figures_at(path: &Path) -> Result<Option<Figures>, SubvolumeError> {
    let failed = failed("ask for the figures of", path.display());
    let top = File::open(path).map_err(&failed)?;
    id(&top).map_err(&failed)?.map(|id| figures(&top, id)).transpose().map(Option::flatten)
}

/// The usage of the volume whose top directory `volume` is: what its limit says, where it has one and the filesystem
/// isn't fuller. What lies in subvolumes that somebody made in it is counted, though nothing limits it.
pub(crate) fn usage(volume: impl AsFd) -> Result<Usage, SubvolumeError> {
    let volume = volume.as_fd();
    let failed = failed("ask for the usage of", "a subvolume");
    let filesystem = super::super::filesystem::usage(volume).map_err(&failed)?;
    let found = id(volume).map_err(&failed)?;
    let Some(id) = found else { return Ok(filesystem) };
    let Some(own) = figures(volume, id)? else { return Ok(filesystem) };
    let mut used = own.referenced;
    for inner in nested(volume, id)? {
        used = used.saturating_add(figures(volume, inner)?.map_or(0, |figures| figures.referenced));
    }
    Ok(within(filesystem, used, own.limit))
}

/// The usage of a volume that takes `used` bytes of a limited share of `filesystem`.
fn within(filesystem: Usage, used: u64, limit: Option<u64>) -> Usage {
    let total_bytes = limit.unwrap_or(filesystem.total_bytes);
    let available_bytes = total_bytes.saturating_sub(used).min(filesystem.available_bytes);
    Usage { total_bytes, available_bytes, used_bytes: used, ..filesystem }
}

/// Removes the qgroup of a deleted subvolume. Since Linux 6.10 the kernel does so itself when the subvolume is freed, and
/// refuses before; older ones never do.
pub(crate) fn remove_qgroup(file: impl AsFd, id: SubvolumeId) -> Result<Removal, SubvolumeError> {
    let file = file.as_fd();
    let failed = failed("remove the qgroup of", id);
    // Older kernels would remove the qgroup of a living one, and its limit.
    if exists(file, id.0).map_err(&failed)? {
        return Ok(Removal::InUse);
    }
    match sys::remove_qgroup(file, id.0) {
        Ok(()) => Ok(Removal::Gone),
        Err(error) => match error.raw_os_error() {
            // ENOTCONN: quotas are off.
            Some(libc::ENOENT | libc::ENOTCONN) => Ok(Removal::Gone),
            Some(libc::EBUSY) => Ok(Removal::InUse),
            _ => Err(failed(error)),
        },
    }
}

/// The item of one qgroup in the quota tree.
fn one(file: BorrowedFd<'_>, kind: u32, qgroup: u64) -> io::Result<Option<sys::Item>> {
    Ok(items(file, kind, qgroup, 1)?.into_iter().find(|item| item.offset == qgroup))
}

/// Items of the quota tree; none where quotas are off: there is no such tree then.
fn items(file: BorrowedFd<'_>, kind: u32, first: u64, limit: usize) -> io::Result<Vec<sys::Item>> {
    match sys::search(file, sys::QUOTA_TREE, (0, kind), first, limit) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_what_its_limit_leaves_and_the_filesystem_has() {
        let filesystem =
            Usage { total_bytes: 1000, available_bytes: 300, used_bytes: 700, total_inodes: 0, available_inodes: 0 };
        let shown = |used, limit| {
            let usage = within(filesystem, used, limit);
            (usage.total_bytes, usage.used_bytes, usage.available_bytes)
        };
        assert_eq!(shown(50, Some(100)), (100, 50, 50));
        assert_eq!(shown(50, Some(500)), (500, 50, 300));
        assert_eq!(shown(150, Some(100)), (100, 150, 0));
        assert_eq!(shown(150, None), (1000, 150, 300));
    }
}
