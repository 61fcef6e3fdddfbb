//! quotactl_fd(2) for project quotas, and the project id of a file (include/uapi/linux/quota.h, dqblk_xfs.h, fs.h).
//!
//! The kernel serves the generic requests and XFS's for every filesystem with quotas, so one of each kind is enough.
//! `quotactl_fd` came with Linux 5.14, before the oldest kernel that we run on, and needs no path of a device.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::super::sys::ioctl_pointer;

/// `PRJQUOTA`
const PROJECT: libc::c_uint = 2;

const GET_QUOTA: libc::c_uint = 0x80_0007;
const SET_QUOTA: libc::c_uint = 0x80_0008;
const GET_NEXT_QUOTA: libc::c_uint = 0x80_0009;
/// `Q_XGETQSTATV`
const GET_STATE: libc::c_uint = 0x5808;

/// `QIF_BLIMITS | QIF_ILIMITS`
const LIMITS: u32 = 1 | 4;

/// `FS_QSTATV_VERSION1`
const STATE_VERSION: u8 = 1;

const FSGETXATTR: libc::Ioctl = 0x801C_581F;
const FSSETXATTR: libc::Ioctl = 0x401C_5820;

/// `FS_XFLAG_PROJINHERIT`: what is made in the directory gets its project id.
pub(super) const INHERIT: u32 = 0x200;

/// `FS_XFLAG_COWEXTSIZE`
pub(super) const COPIES_BY: u32 = 0x1_0000;

/// `struct fsxattr`
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Attributes {
    pub(super) flags: u32,
    extent_size: u32,
    extents: u32,
    pub(super) project: u32,
    /// In bytes; counts with [`COPIES_BY`].
    pub(super) cow_extent_size: u32,
    padding: [u8; 8],
}

/// `struct if_nextdqblk`; `struct if_dqblk` is the same without the id, in as many bytes. 0 is no limit.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Block {
    /// In KiB (`QIF_DQBLKSIZE`).
    pub(super) space_limit: u64,
    space_soft_limit: u64,
    /// In bytes.
    pub(super) space: u64,
    pub(super) inode_limit: u64,
    inode_soft_limit: u64,
    pub(super) inodes: u64,
    space_time: u64,
    inode_time: u64,
    valid: u32,
    pub(super) id: u32,
}

/// `struct fs_quota_statv`
#[repr(C)]
struct State {
    version: u8,
    padding: u8,
    /// `FS_QUOTA_*`
    flags: u16,
    rest: [u32; 39],
}

/// `FS_QUOTA_PDQ_ACCT`
pub(super) const ACCOUNTED: u16 = 1 << 4;
/// `FS_QUOTA_PDQ_ENFD`
pub(super) const ENFORCED: u16 = 1 << 5;

/// Which quotas the filesystem has; `ENOSYS` if none.
pub(super) fn state(file: BorrowedFd<'_>) -> io::Result<u16> {
    let mut state = State { version: STATE_VERSION, padding: 0, flags: 0, rest: [0; 39] };
    quotactl(file, GET_STATE, 0, &mut state)?;
    Ok(state.flags)
}

pub(super) fn quota(file: BorrowedFd<'_>, project: u32) -> io::Result<Block> {
    let mut block = Block::default();
    quotactl(file, GET_QUOTA, project, &mut block)?;
    Ok(block)
}

/// The quota of `project` or the next larger one that has any; `ENOENT` if there is none.
pub(super) fn next_quota(file: BorrowedFd<'_>, project: u32) -> io::Result<Block> {
    let mut block = Block::default();
    quotactl(file, GET_NEXT_QUOTA, project, &mut block)?;
    Ok(block)
}

pub(super) fn set_limits(file: BorrowedFd<'_>, project: u32, space_kib: u64, inodes: u64) -> io::Result<()> {
    let mut block = Block { space_limit: space_kib, inode_limit: inodes, valid: LIMITS, ..Block::default() };
    quotactl(file, SET_QUOTA, project, &mut block)
}

pub(super) fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    ioctl_pointer(file, FSGETXATTR, &mut attributes)?;
    Ok(attributes)
}

pub(super) fn set_attributes(file: BorrowedFd<'_>, mut attributes: Attributes) -> io::Result<()> {
    ioctl_pointer(file, FSSETXATTR, &mut attributes).map(drop)
}

fn quotactl<T>(file: BorrowedFd<'_>, request: libc::c_uint, id: u32, argument: &mut T) -> io::Result<()> {
    let command = (request << 8) | PROJECT;
    #[expect(unsafe_code, reason = "no crate of ours wraps quotactl_fd")]
    // SAFETY: every caller passes the struct that its request is defined for, `repr(C)`, at least as large, and valid
    // for any bit pattern; it outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, std::ptr::from_mut(argument).cast::<u8>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_kernels_sizes() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<Block>(), 72);
        assert_eq!(size_of::<State>(), 160);
        assert_eq!(std::mem::offset_of!(Block, id), 68);
        assert_eq!(std::mem::offset_of!(State, flags), 2);
    }
}
