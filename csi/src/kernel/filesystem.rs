//! What a filesystem says about itself.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    mount::OpenTreeFlags,
};
use uuid::Uuid;

use super::sys;

/// Free and used space of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Its size in bytes.
    pub(crate) total_bytes: u64,
    /// What an unprivileged process may still write.
    pub(crate) available_bytes: u64,
    /// What is not free.
    pub(crate) used_bytes: u64,
    /// Inodes it can hold; 0 where the filesystem makes them as needed.
    pub(crate) total_inodes: u64,
    /// Inodes not in use.
    pub(crate) available_inodes: u64,
}

/// The usage of the filesystem that `file` lies on.
pub(crate) fn usage(file: impl AsFd) -> io::Result<Usage> {
    let found = rustix::fs::fstatvfs(file)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Usage {
        total_bytes: bytes(found.f_blocks),
        available_bytes: bytes(found.f_bavail),
        used_bytes: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
        total_inodes: found.f_files,
        available_inodes: found.f_ffree,
    })
}

/// The name of the filesystem that `file` lies on, or its magic number where we have no name for it.
pub(crate) fn name(file: impl AsFd) -> io::Result<String> {
    /// include/uapi/linux/magic.h
    const NAMES: [(u64, &str); 5] = [
        (0xEF53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683E, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x794C_7630, "overlay"),
    ];
    // The type of the field differs between machines; the magic number fits all of them.
    #[allow(clippy::cast_sign_loss, reason = "a magic number has no sign")]
    let magic = rustix::fs::fstatfs(file)?.f_type as u64 & 0xFFFF_FFFF;
    let known = NAMES.iter().find(|(number, _)| *number == magic);
    Ok(known.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_owned()))
}

/// A number that the filesystem at `path` has alone on this machine, whichever of its subvolumes is asked: each has a
/// device number of its own.
pub(crate) fn number(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    if super::subvolume::is_btrfs(&file)?
        && let Some(uuid) = uuid(path)?
    {
        let (high, low) = uuid.as_u64_pair();
        return Ok(high ^ low);
    }
    Ok(file.metadata()?.dev())
}

/// Writes a file's data to the disk, and waits for it. What makes them last, its metadata and the disk's own cache, is
/// still to be synced.
pub(crate) fn write_back(file: &File) -> io::Result<()> {
    sys::sync_file_range(file.as_fd())
}

/// Whether the filesystem at `path` can't be written to: its own state, or how it is mounted there.
pub(crate) fn is_read_only(path: &Path) -> io::Result<bool> {
    Ok(rustix::fs::statvfs(path)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Takes the file `name` in `directory` for this process alone, or none if another has it: until the file is closed,
/// which the end of a process does too, if every thread of it can end.
///
/// An open file would keep the filesystem from being unmounted. So it is opened through a mount of our own that nobody
/// sees, where the kernel lets us have one.
pub(crate) fn lock(directory: &Path, name: &str) -> io::Result<Option<File>> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match rustix::mount::open_tree(rustix::fs::CWD, directory, clone) {
        Ok(tree) => rustix::fs::openat(tree, name, flags, Mode::empty()),
        Err(_) => rustix::fs::open(directory.join(name), flags, Mode::empty()),
    };
    let file = File::from(opened?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The UUID of the filesystem that holds `path`, or none: where the filesystem has none (overlayfs), or the kernel
/// can't tell (before 6.9).
pub(crate) fn uuid(path: &Path) -> io::Result<Option<Uuid>> {
    match sys::filesystem_uuid(File::open(path)?.as_fd()) {
        Ok(bytes) => Ok(Some(Uuid::from_bytes(bytes))),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP)) => Ok(None),
        Err(error) => Err(error),
    }
}
