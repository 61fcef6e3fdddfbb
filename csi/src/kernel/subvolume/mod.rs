//! Subvolumes of btrfs and the limits of their sizes, by ioctl on handles of directories; no program is run.
//!
//! A subvolume is a directory with inodes, and an id, of its own. A snapshot is a subvolume that shares everything
//! with its source at first; subvolumes that lie *in* the source are empty directories in it. A subvolume can be renamed
//! to another directory of the same filesystem like any directory; a read-only one can't (`EROFS`: its `..` would
//! change), but a directory that holds it can.
//!
//! # What survives a loss of power
//!
//! Only what a transaction has committed: by default the filesystem ends one every 30 s. Making a snapshot ends one;
//! making a subvolume does so only before Linux 6.5, renaming and deleting never do. So after a rename into place call
//! [`commit`]: it ends the running transaction, with everything before it, and doesn't wait for the bytes that other
//! volumes have still to write, as syncfs(2) and `BTRFS_IOC_SYNC` do. The content of files isn't part of a transaction:
//! it needs its own fsync(2) before.
//!
//! # What a Pod can do
//!
//! Whoever may make a directory may make a subvolume in it, also without privileges, and the kernel counts that one on
//! its own, without the limit of the outer one: limits protect against accidents, not against intent. [`nested`] finds
//! such subvolumes, and [`delete`] takes them along.

pub(crate) mod qgroup;
pub(super) mod sys;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::fs::{FileType, Mode, OFlags, Stat};

pub(crate) use qgroup::{
    Figures, QuotaKind, Removal, count_anew, enable_quota, figures, figures_at, quota_state, remove_qgroup, set_limit,
    usage,
};

/// include/uapi/linux/magic.h: `BTRFS_SUPER_MAGIC`
const BTRFS: u64 = 0x9123_683E;

/// How deep subvolumes may lie in one another before something must be wrong with what the kernel says.
const DEEPEST: usize = 4096;

/// Why something could not be done to a subvolume.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} {subject}")]
pub(crate) struct SubvolumeError {
    what: &'static str,
    subject: String,
    pub(crate) source: io::Error,
}

pub(super) fn failed(what: &'static str, subject: impl ToString) -> impl Fn(io::Error) -> SubvolumeError {
    move |source| SubvolumeError { what, subject: subject.to_string(), source }
}

/// The number of a subvolume, and of its own qgroup (0/id). It is never used again while the filesystem lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SubvolumeId(pub(crate) u64);

impl std::fmt::Display for SubvolumeId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "subvolume {}", self.0)
    }
}

/// What the filesystem of a directory can do.
#[derive(Debug)]
pub(crate) enum Support {
    /// Subvolumes can be made, snapshots taken of them, and both deleted.
    Full,
    /// It is no btrfs.
    OtherFilesystem,
    /// It is a btrfs, but making a subvolume and deleting it again failed.
    Refused(SubvolumeError),
}

/// Finds out what can be done in `directory`, by doing it: `scratch` is the name of a subvolume that is made and
/// deleted. What a crash in between leaves is taken for the probe's own at the next.
pub(crate) fn probe(directory: impl AsFd, scratch: &str) -> io::Result<Support> {
    let directory = directory.as_fd();
    if !is_btrfs(directory)? {
        return Ok(Support::OtherFilesystem);
    }
    let attempt = || {
        delete(directory, scratch)?;
        create(directory, scratch)?;
        delete(directory, scratch)
    };
    Ok(attempt().map_or_else(Support::Refused, |_| Support::Full))
}

/// Whether `file` lies on a btrfs.
pub(crate) fn is_btrfs(file: impl AsFd) -> io::Result<bool> {
    // The type of the field differs between machines; the magic number fits all of them.
    #[allow(clippy::cast_sign_loss, reason = "a magic number has no sign")]
    let magic = rustix::fs::fstatfs(file)?.f_type as u64;
    Ok(magic & 0xFFFF_FFFF == BTRFS)
}

/// Makes an empty subvolume. `EEXIST` if there is something of that name.
pub(crate) fn create(directory: impl AsFd, name: &str) -> Result<(), SubvolumeError> {
    sys::create(directory.as_fd(), name).map_err(failed("make the subvolume", name))
}

/// Makes a snapshot of the subvolume whose top directory `source` is: what it held at one instant, including what was
/// written to its files but not to the disk yet. It inherits the limit of `source`. `EINVAL` if `source` is no
/// subvolume's top, `EXDEV` if it lies on another filesystem.
pub(crate) fn snapshot(
    source: impl AsFd,
    directory: impl AsFd,
    name: &str,
    read_only: bool,
) -> Result<(), SubvolumeError> {
    let result = sys::snapshot(directory.as_fd(), name, source.as_fd(), read_only);
    result.map_err(failed("make the snapshot", name))
}

/// The id of the subvolume whose top directory `name` in `directory` is: none if nothing is there. `ENOTDIR` if it is
/// something else, or a link.
pub(crate) fn find(directory: impl AsFd, name: &str) -> Result<Option<SubvolumeId>, SubvolumeError> {
    let failed = failed("look for the subvolume", name);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(found) => found,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    match id(&found).map_err(&failed)? {
        Some(id) => Ok(Some(id)),
        None => Err(failed(io::Error::from_raw_os_error(libc::ENOTDIR))),
    }
}

/// The id of the subvolume whose top directory `directory` is, or none if it is no such.
pub(crate) fn id(directory: impl AsFd) -> io::Result<Option<SubvolumeId>> {
    let directory = directory.as_fd();
    if !is_btrfs(directory)? || !is_top(&rustix::fs::fstat(directory)?) {
        return Ok(None);
    }
    sys::tree_of(directory).map(|id| Some(SubvolumeId(id)))
}

fn is_top(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory && found.st_ino == sys::FIRST_FREE
}

/// The subvolumes that lie in `id`, at any depth, each before those that lie in it.
pub(crate) fn nested(filesystem: impl AsFd, id: SubvolumeId) -> Result<Vec<SubvolumeId>, SubvolumeError> {
    let filesystem = filesystem.as_fd();
    let mut found = Vec::new();
    let mut level = vec![id];
    for _ in 0..DEEPEST {
        let mut next = Vec::new();
        for outer in level {
            let references = sys::search(filesystem, sys::ROOT_TREE, (outer.0, sys::ROOT_REF), 0, usize::MAX);
            let references = references.map_err(failed("list what lies in", outer))?;
            next.extend(references.into_iter().map(|reference| SubvolumeId(reference.offset)));
        }
        if next.is_empty() {
            return Ok(found);
        }
        found.extend(&next);
        level = next;
    }
    Err(failed("list what lies in", id)(io::Error::from_raw_os_error(libc::ELOOP)))
}

/// How many subvolumes lie in the one whose top directory `subvolume` is.
pub(crate) fn count_nested(subvolume: impl AsFd) -> Result<usize, SubvolumeError> {
    let subvolume = subvolume.as_fd();
    match id(subvolume).map_err(failed("look at", "a subvolume"))? {
        Some(id) => nested(subvolume, id).map(|found| found.len()),
        None => Ok(0),
    }
}

/// Deletes the subvolume `name` in `directory` with all that lie in it, and says which it was; none if there was none.
/// Its space is freed in the background.
///
/// What lies in it is deleted by its id, so no path is followed that somebody may change meanwhile.
pub(crate) fn delete(directory: impl AsFd, name: &str) -> Result<Option<SubvolumeId>, SubvolumeError> {
    Ok(delete_all(directory, name)?.first().copied())
}

/// The same, and also says which lay in it.
pub(crate) fn delete_all(directory: impl AsFd, name: &str) -> Result<Vec<SubvolumeId>, SubvolumeError> {
    let directory = directory.as_fd();
    let Some(id) = find(directory, name)? else { return Ok(Vec::new()) };
    let mut all = vec![id];
    all.extend(nested(directory, id)?);
    for inner in all.iter().skip(1).rev() {
        match sys::delete_by_id(directory, inner.0) {
            Err(error) if !is_gone(&error) => return Err(failed("delete", inner)(error)),
            _ => {}
        }
    }
    match sys::delete(directory, name) {
        Err(error) if !is_gone(&error) => Err(failed("delete the subvolume", name)(error)),
        _ => Ok(all),
    }
}

/// Another was faster.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Puts everything that happened to the filesystem's directories and subvolumes on the disk; see above. It takes as long
/// as an fsync(2), and longer where limits count what was written since the last.
pub(crate) fn commit(file: impl AsFd) -> io::Result<()> {
    sys::commit(file.as_fd())
}

/// Whether a subvolume `id` is there, or deleted and not freed yet.
fn exists(filesystem: BorrowedFd<'_>, id: u64) -> io::Result<bool> {
    Ok(!sys::search(filesystem, sys::ROOT_TREE, (id, sys::ROOT_ITEM), 0, 1)?.is_empty())
}
