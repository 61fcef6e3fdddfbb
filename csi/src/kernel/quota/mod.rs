//! Project quotas of ext4 and xfs: limits of directories.
//!
//! A directory gets a project id that everything made in it inherits; the kernel counts and limits what has the same id.
//! Nothing can be renamed or hard-linked into it from outside (`EXDEV`). statfs(2) in it shows the limits as the size.
//! A write that goes beyond gets `EDQUOT` on ext4 and `ENOSPC` on xfs.
//!
//! xfs must be mounted with `prjquota`; ext4 needs the features `quota` and `project`, too
//! (`mkfs.ext4 -O quota,project`).
//!
//! # Who isn't limited
//!
//! On ext4, a process with CAP_SYS_RESOURCE; containers don't have it unless they are privileged. On either, the
//! owner of a file may change its project id, unless it lives in a user namespace of its own (`hostUsers: false`): the
//! limits protect against accidents, and against Pods in user namespaces.

mod sys;

use std::{
    io,
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd},
};

/// What limits would do in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enforcement {
    /// They hold.
    Enforced,
    /// Files are counted, but nobody is stopped: it is mounted without `prjquota`.
    AccountingOnly,
    /// The filesystem could have project quotas, but isn't mounted with `prjquota`; or the kernel is built without.
    Off,
    /// It is a filesystem without them.
    Unsupported,
}

/// 0 isn't a limit but none, so a limit is at least 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In bytes, rounded up to KiB; none is no limit.
    pub(crate) bytes: Option<u64>,
    /// Files, directories and the like, with the directory itself; none is no limit.
    pub(crate) inodes: Option<u64>,
}

/// What a project takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) used_bytes: u64,
    pub(crate) used_inodes: u64,
    pub(crate) limits: Limits,
}

/// Why a quota could not be read or set.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} project {project}")]
pub(crate) struct QuotaError {
    what: &'static str,
    project: u32,
    pub(crate) source: io::Error,
}

fn failed(what: &'static str, project: u32) -> impl Fn(io::Error) -> QuotaError {
    move |source| QuotaError { what, project, source }
}

/// include/uapi/linux/magic.h: `EXT4_SUPER_MAGIC`, `XFS_SUPER_MAGIC`
const WITH_PROJECTS: [u64; 2] = [0xEF53, 0x5846_5342];

/// What limits would do in the directory that `file` is or lies in.
pub(crate) fn enforcement(file: impl AsFd) -> io::Result<Enforcement> {
    let file = file.as_fd();
    // The type of the field differs between machines; the magic number fits all of them.
    #[allow(clippy::cast_sign_loss, reason = "a magic number has no sign")]
    let magic = rustix::fs::fstatfs(file)?.f_type as u64;
    if !WITH_PROJECTS.contains(&(magic & 0xFFFF_FFFF)) {
        return Ok(Enforcement::Unsupported);
    }
    match sys::state(file) {
        Ok(flags) => Ok(enforcement_of(flags)),
        Err(error) if is_off(&error) => Ok(Enforcement::Off),
        Err(error) => Err(error),
    }
}

fn enforcement_of(flags: u16) -> Enforcement {
    if flags & sys::ACCOUNTED == 0 {
        Enforcement::Off
    } else if flags & sys::ENFORCED == 0 {
        Enforcement::AccountingOnly
    } else {
        Enforcement::Enforced
    }
}

/// ENOSYS: the filesystem has no quotas switched on, or the kernel no code for them; ESRCH: none of this kind.
fn is_off(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::ESRCH | libc::EOPNOTSUPP))
}

/// Puts an empty directory under `project`, with everything that will be made in it. What is in it already keeps its id.
pub(crate) fn assign(directory: impl AsFd, project: u32) -> Result<(), QuotaError> {
    let directory = directory.as_fd();
    let failed = failed("put a directory under", project);
    let mut attributes = sys::attributes(directory).map_err(&failed)?;
    attributes.project = project;
    attributes.flags |= sys::INHERIT;
    sys::set_attributes(directory, attributes).map_err(failed)
}

/// Lets xfs copy shared blocks of a file by `bytes` at a time, as soon as one of them is written to (ioctl_xfs_fsgetxattr(2)).
pub(super) fn copy_by(file: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let mut attributes = sys::attributes(file)?;
    if attributes.flags & sys::COPIES_BY != 0 && attributes.cow_extent_size == bytes {
        return Ok(());
    }
    attributes.flags |= sys::COPIES_BY;
    attributes.cow_extent_size = bytes;
    sys::set_attributes(file, attributes)
}

/// The project that a directory hands down to what is made in it; none if it does not.
#[cfg(test)]
pub(crate) fn assigned(directory: impl AsFd) -> io::Result<Option<u32>> {
    let attributes = match sys::attributes(directory.as_fd()) {
        Ok(attributes) => attributes,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP)) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok((attributes.project != 0 && attributes.flags & sys::INHERIT != 0).then_some(attributes.project))
}

/// Sets both limits of `project`. Limits below what it takes are set all the same: nothing more can be written then.
pub(crate) fn set_limits(file: impl AsFd, project: u32, limits: Limits) -> Result<(), QuotaError> {
    let kib = limits.bytes.map_or(0, |bytes| bytes.div_ceil(1024).max(1));
    let inodes = limits.inodes.map_or(0, |inodes| inodes.max(1));
    sys::set_limits(file.as_fd(), project, kib, inodes).map_err(failed("set the limits of", project))
}

/// Takes the limits of `project` away. The kernel forgets it when its last file is gone.
pub(crate) fn clear(file: impl AsFd, project: u32) -> Result<(), QuotaError> {
    match set_limits(file, project, Limits::default()) {
        // xfs: it never had any.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// What `project` takes, and its limits.
pub(crate) fn quota(file: impl AsFd, project: u32) -> Result<Quota, QuotaError> {
    match sys::quota(file.as_fd(), project) {
        Ok(found) => Ok(quota_of(&found)),
        // xfs: nothing has its id, and it has no limits.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Quota::default()),
        Err(error) => Err(failed("ask for the quota of", project)(error)),
    }
}

fn quota_of(block: &sys::Block) -> Quota {
    let limit = |value: u64| (value != 0).then_some(value);
    let limits = Limits { bytes: limit(block.space_limit.saturating_mul(1024)), inodes: limit(block.inode_limit) };
    Quota { used_bytes: block.space, used_inodes: block.inodes, limits }
}

/// The projects in `range` that the filesystem knows: something has their id, or they have limits. In order.
pub(crate) fn projects(file: impl AsFd, range: RangeInclusive<u32>) -> Result<Vec<u32>, QuotaError> {
    let file = file.as_fd();
    let mut found = Vec::new();
    let mut next = Some(*range.start());
    while let Some(first) = next
        && let Some(block) = next_quota(file, first)?
        && range.contains(&block.id)
    {
        if quota_of(&block) != Quota::default() {
            found.push(block.id);
        }
        next = block.id.checked_add(1);
    }
    Ok(found)
}

fn next_quota(file: BorrowedFd<'_>, first: u32) -> Result<Option<sys::Block>, QuotaError> {
    match sys::next_quota(file, first) {
        Ok(block) => Ok(Some(block)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("list the projects from", first)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn limits_hold_only_where_the_kernel_says_so() {
        assert_eq!(enforcement_of(0x3F), Enforcement::Enforced);
        assert_eq!(enforcement_of(sys::ACCOUNTED | sys::ENFORCED), Enforcement::Enforced);
        assert_eq!(enforcement_of(sys::ACCOUNTED), Enforcement::AccountingOnly);
        assert_eq!(enforcement_of(0x0F), Enforcement::Off, "quotas of users and groups only");
    }

    #[test]
    fn a_missing_quota_is_an_answer_and_a_missing_right_is_an_error() {
        for (number, off) in [(libc::ENOSYS, true), (libc::ESRCH, true), (libc::EPERM, false), (libc::EIO, false)] {
            assert_eq!(is_off(&io::Error::from_raw_os_error(number)), off, "{number}");
        }
    }

    #[test]
    fn a_filesystem_without_projects_is_told_apart() {
        let proc = File::open("/proc").unwrap();
        assert_eq!(enforcement(&proc).unwrap(), Enforcement::Unsupported);
        assert_eq!(assigned(&proc).unwrap(), None);
    }
}
