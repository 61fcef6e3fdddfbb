//! System calls that neither rustix nor nix has: loop devices, the filesystem's UUID, mount attributes.

use std::{
    ffi::{c_int, c_void},
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
};

/// include/uapi/linux/loop.h
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4C08;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_REMOVE: libc::Ioctl = 0x4C81;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
/// include/uapi/linux/fs.h: `_IOR(0x15, 0, struct fsuuid2)`, `_IOR(0x12, 114, size_t)`
const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
/// `_IOWR('f', 11, struct fiemap)`
const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B;

/// include/uapi/linux/fiemap.h: what isn't written out yet is first.
pub(crate) const FIEMAP_FLAG_SYNC: u32 = 0x1;
pub(crate) const FIEMAP_EXTENT_LAST: u32 = 0x1;
pub(crate) const FIEMAP_EXTENT_UNKNOWN: u32 = 0x2;
pub(crate) const FIEMAP_EXTENT_DELALLOC: u32 = 0x4;
pub(crate) const FIEMAP_EXTENT_ENCODED: u32 = 0x8;
pub(crate) const FIEMAP_EXTENT_DATA_ENCRYPTED: u32 = 0x80;
pub(crate) const FIEMAP_EXTENT_NOT_ALIGNED: u32 = 0x100;
pub(crate) const FIEMAP_EXTENT_DATA_INLINE: u32 = 0x200;
pub(crate) const FIEMAP_EXTENT_DATA_TAIL: u32 = 0x400;
pub(crate) const FIEMAP_EXTENT_UNWRITTEN: u32 = 0x800;
pub(crate) const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
/// How many extents one call of [`fiemap`] gives at most.
pub(crate) const FIEMAP_PAGE: usize = 512;

/// `LO_FLAGS_READ_ONLY`
pub(crate) const LOOP_READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`: the device lets go of its file at the last close.
pub(crate) const LOOP_AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO`
pub(crate) const LOOP_DIRECT_IO: u32 = 16;

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LoopInfo {
    /// Device number of the filesystem that holds the backing file.
    pub(crate) device: u64,
    /// Inode number of the backing file.
    pub(crate) inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    pub(crate) number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(crate) flags: u32,
    /// A label of our choice, NUL-terminated.
    pub(crate) file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    pub(crate) fn zeroed() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config`
#[repr(C)]
struct LoopConfig {
    file: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// The number of a loop device that was free a moment ago.
pub(crate) fn loop_get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    let number = ioctl_value(control, LOOP_CTL_GET_FREE, 0)?;
    u32::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Removes the loop device of that number; `EBUSY` if it is bound or open, `ENODEV` if there is none.
pub(crate) fn loop_remove(control: BorrowedFd<'_>, number: u32) -> io::Result<()> {
    let number = RawFd::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    ioctl_value(control, LOOP_CTL_REMOVE, number).map(drop)
}

/// Binds `file` to a free loop device in one step; `EBUSY` if another was faster. A `block_size` of 0 leaves the choice
/// of its logical blocks to the kernel.
pub(crate) fn loop_configure(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    block_size: u32,
    info: LoopInfo,
) -> io::Result<()> {
    let file = u32::try_from(file.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut config = LoopConfig { file, block_size, info, reserved: [0; 8] };
    ioctl_pointer(device, LOOP_CONFIGURE, &mut config).map(drop)
}

/// What the loop device is bound to; `ENXIO` if to nothing.
pub(crate) fn loop_status(device: BorrowedFd<'_>) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::zeroed();
    ioctl_pointer(device, LOOP_GET_STATUS64, &mut info)?;
    Ok(info)
}

/// Changes the loop device's flags and label.
pub(crate) fn loop_set_status(device: BorrowedFd<'_>, mut info: LoopInfo) -> io::Result<()> {
    ioctl_pointer(device, LOOP_SET_STATUS64, &mut info).map(drop)
}

/// Makes the loop device as large as its file is now.
pub(crate) fn loop_set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(device, LOOP_SET_CAPACITY, 0).map(drop)
}

/// Switches the loop device's direct I/O on or off; `EINVAL` if its file or its block size doesn't allow it.
pub(crate) fn loop_set_direct_io(device: BorrowedFd<'_>, direct_io: bool) -> io::Result<()> {
    ioctl_value(device, LOOP_SET_DIRECT_IO, RawFd::from(direct_io)).map(drop)
}

/// Unbinds the loop device: at once, or at its last close if others have it open.
pub(crate) fn loop_clear(device: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(device, LOOP_CLR_FD, 0).map(drop)
}

/// The size of a block device in bytes.
pub(crate) fn block_device_bytes(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0_u64;
    ioctl_pointer(device, BLKGETSIZE64, &mut bytes)?;
    Ok(bytes)
}

/// The UUID of the filesystem that `file` lies on; `ENOTTY` if it has none or the kernel is older than 6.9.
pub(crate) fn filesystem_uuid(file: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    /// `struct fsuuid2`
    #[repr(C)]
    struct FsUuid {
        length: u8,
        bytes: [u8; 16],
    }
    let mut uuid = FsUuid { length: 0, bytes: [0; 16] };
    ioctl_pointer(file, FS_IOC_GETFSUUID, &mut uuid)?;
    if uuid.length != 16 {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    Ok(uuid.bytes)
}

/// `struct fiemap_extent`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FiemapExtent {
    pub(crate) logical: u64,
    pub(crate) physical: u64,
    pub(crate) bytes: u64,
    reserved64: [u64; 2],
    pub(crate) flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for a page of extents
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; FIEMAP_PAGE],
}

/// The first extents of a file that have bytes in the `length` from `start`; they may begin before and end after.
pub(crate) fn fiemap(file: BorrowedFd<'_>, start: u64, length: u64, flags: u32) -> io::Result<Vec<FiemapExtent>> {
    let extents = [FiemapExtent::default(); FIEMAP_PAGE];
    #[expect(clippy::cast_possible_truncation, reason = "the constant fits")]
    let extent_count = FIEMAP_PAGE as u32;
    let mut map = Fiemap { start, length, flags, mapped_extents: 0, extent_count, reserved: 0, extents };
    ioctl_pointer(file, FS_IOC_FIEMAP, &mut map)?;
    let found = map.mapped_extents.min(extent_count) as usize;
    Ok(map.extents[..found].to_vec())
}

/// `_IOW('f', 16, __u64)`
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;
/// fs/xfs/libxfs/xfs_fs.h: `_IOR('X', 100, struct xfs_fsop_geom_v1)`, `_IOW('X', 110, struct xfs_growfs_data)`
const XFS_IOC_FSGEOMETRY_V1: libc::Ioctl = 0x8070_5864;
const XFS_IOC_FSGROWFSDATA: libc::Ioctl = 0x4010_586E;
/// include/uapi/linux/btrfs.h: `_IOW(0x94, 3, struct btrfs_ioctl_vol_args)`,
/// `_IOWR(0x94, 30, struct btrfs_ioctl_dev_info_args)`
const BTRFS_IOC_RESIZE: libc::Ioctl = 0x5000_9403;
const BTRFS_IOC_DEV_INFO: libc::Ioctl = 0xD000_941E;
/// include/uapi/linux/fs.h: `_IOWR('X', 119, int)`, `_IOWR('X', 120, int)`; the argument is ignored.
const FIFREEZE: libc::Ioctl = 0xC004_5877;
const FITHAW: libc::Ioctl = 0xC004_5878;

/// Grows a mounted ext4 to so many blocks. `EPERM` without `CAP_SYS_RESOURCE`.
pub(crate) fn ext4_resize(root: BorrowedFd<'_>, mut blocks: u64) -> io::Result<()> {
    ioctl_pointer(root, EXT4_IOC_RESIZE_FS, &mut blocks).map(drop)
}

/// `struct xfs_fsop_geom_v1`
#[repr(C)]
#[derive(Default)]
pub(crate) struct XfsGeometry {
    pub(crate) block_bytes: u32,
    unused: [u32; 6],
    pub(crate) inode_percent: u32,
    pub(crate) data_blocks: u64,
    unused_as_well: [u64; 6],
    version: i32,
    pub(crate) flags: u32,
    rest: [u64; 2],
}

/// `XFS_FSOP_GEOM_FLAGS_REFLINK`
pub(crate) const XFS_REFLINK: u32 = 1 << 20;

/// The geometry of a mounted xfs.
pub(crate) fn xfs_geometry(root: BorrowedFd<'_>) -> io::Result<XfsGeometry> {
    let mut geometry = XfsGeometry::default();
    ioctl_pointer(root, XFS_IOC_FSGEOMETRY_V1, &mut geometry)?;
    Ok(geometry)
}

/// `struct xfs_growfs_data`
#[repr(C)]
struct XfsGrow {
    blocks: u64,
    inode_percent: u32,
    padding: u32,
}

/// Grows a mounted xfs to so many blocks.
pub(crate) fn xfs_grow(root: BorrowedFd<'_>, blocks: u64, inode_percent: u32) -> io::Result<()> {
    ioctl_pointer(root, XFS_IOC_FSGROWFSDATA, &mut XfsGrow { blocks, inode_percent, padding: 0 }).map(drop)
}

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct BtrfsVolume {
    file: i64,
    name: [u8; 4088],
}

/// Resizes the first, and with us the only, device of a mounted btrfs.
pub(crate) fn btrfs_resize(root: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let mut arguments = BtrfsVolume { file: 0, name: [0; 4088] };
    for (target, byte) in arguments.name.iter_mut().zip(format!("1:{bytes}").bytes()) {
        *target = byte;
    }
    ioctl_pointer(root, BTRFS_IOC_RESIZE, &mut arguments).map(drop)
}

/// `struct btrfs_ioctl_dev_info_args`
#[repr(C)]
struct BtrfsDevice {
    number: u64,
    uuid: [u8; 16],
    used_bytes: u64,
    bytes: u64,
    rest: [u64; 507],
}

/// What a mounted btrfs uses of its first device, in bytes.
pub(crate) fn btrfs_device_bytes(root: BorrowedFd<'_>) -> io::Result<u64> {
    let mut device = BtrfsDevice { number: 1, uuid: [0; 16], used_bytes: 0, bytes: 0, rest: [0; 507] };
    ioctl_pointer(root, BTRFS_IOC_DEV_INFO, &mut device)?;
    Ok(device.bytes)
}

/// Writes out what the filesystem has in memory, and stops all writing to it. `EBUSY` if that was done before.
pub(crate) fn freeze(root: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(root, FIFREEZE, 0).map(drop)
}

/// Ends what [`freeze`] began; `EINVAL` if nothing did.
pub(crate) fn thaw(root: BorrowedFd<'_>) -> io::Result<()> {
    ioctl_value(root, FITHAW, 0).map(drop)
}

/// Writes all dirty pages of `file` and waits for them (sync_file_range(2)).
pub(crate) fn sync_file_range(file: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    #[expect(unsafe_code, reason = "no crate of ours wraps sync_file_range")]
    // SAFETY: the call reads and writes no memory of this process; the file is open as long as it is borrowed.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// From now on this process survives the signals that ask a process to end.
pub(crate) fn ignore_terminations() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        #[expect(unsafe_code, reason = "no crate of ours wraps signal")]
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
}

/// `MOUNT_ATTR__ATIME`: a number of its own among the bits of `MOUNT_ATTR_*`, which has to be cleared to be set.
const ATIME_BITS: u64 = 0x70;

/// Sets attributes (`MOUNT_ATTR_*`) of the detached mount that `mount` refers to; all others stay.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    /// `struct mount_attr`, include/uapi/linux/mount.h
    #[repr(C)]
    struct MountAttributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let clear = if set & ATIME_BITS == 0 { 0 } else { ATIME_BITS };
    let attributes = MountAttributes { set, clear, propagation: 0, user_namespace: 0 };
    #[expect(unsafe_code, reason = "no crate of ours wraps mount_setattr")]
    // SAFETY: the path is a NUL-terminated constant and the struct outlives the call, whose size is given with it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// An ioctl whose argument is a number.
pub(super) fn ioctl_value(file: BorrowedFd<'_>, request: libc::Ioctl, value: RawFd) -> io::Result<c_int> {
    #[expect(unsafe_code, reason = "no crate of ours wraps these requests")]
    // SAFETY: the requests that come here take a number, so the kernel follows no pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, value) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// An ioctl whose argument is a struct that the kernel reads or fills.
pub(super) fn ioctl_pointer<T>(file: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<c_int> {
    #[expect(unsafe_code, reason = "no crate of ours wraps these requests")]
    // SAFETY: every caller passes the type that its request is defined for, `repr(C)` and valid for any bit pattern,
    // and it outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument).cast::<c_void>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_kernels_sizes() {
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(size_of::<FiemapExtent>(), 56);
        assert_eq!(size_of::<XfsGeometry>(), 112);
        assert_eq!(size_of::<XfsGrow>(), 16);
        assert_eq!(size_of::<BtrfsVolume>(), 4096);
        assert_eq!(size_of::<BtrfsDevice>(), 4096);
        assert_eq!(size_of::<Fiemap>(), 32 + 56 * FIEMAP_PAGE);
    }
}
