//! The ioctls of btrfs (include/uapi/linux/btrfs.h, btrfs_tree.h), each on a handle of any file of the filesystem.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use super::super::sys::ioctl_pointer;

/// `BTRFS_FIRST_FREE_OBJECTID`: the inode number of every subvolume's top directory, and the smallest id that a
/// subvolume can have which somebody made.
pub(super) const FIRST_FREE: u64 = 256;

/// `BTRFS_ROOT_TREE_OBJECTID`: the tree that lists all others.
pub(super) const ROOT_TREE: u64 = 1;
/// `BTRFS_QUOTA_TREE_OBJECTID`
pub(super) const QUOTA_TREE: u64 = 8;

/// `BTRFS_ROOT_ITEM_KEY`: (tree, this, generation of the snapshot).
pub(super) const ROOT_ITEM: u32 = 132;
/// `BTRFS_ROOT_REF_KEY`: (outer subvolume, this, subvolume in it).
pub(super) const ROOT_REF: u32 = 156;
/// `BTRFS_QGROUP_STATUS_KEY`: (0, this, 0).
pub(super) const QGROUP_STATUS: u32 = 240;
/// `BTRFS_QGROUP_INFO_KEY`: (0, this, qgroup).
pub(super) const QGROUP_INFO: u32 = 242;
/// `BTRFS_QGROUP_LIMIT_KEY`: (0, this, qgroup).
pub(super) const QGROUP_LIMIT: u32 = 244;

/// `BTRFS_QGROUP_LIMIT_MAX_RFER`
pub(super) const MAX_REFERENCED: u64 = 1;
/// `CLEAR_VALUE` of fs/btrfs/qgroup.c: takes a limit away.
pub(super) const NO_LIMIT: u64 = u64::MAX;

const SUBVOL_CREATE: libc::Ioctl = 0x5000_940E;
const SNAP_CREATE_V2: libc::Ioctl = 0x5000_9417;
const SNAP_DESTROY_V2: libc::Ioctl = 0x5000_943F;
const INO_LOOKUP: libc::Ioctl = 0xD000_9412;
const TREE_SEARCH_V2: libc::Ioctl = 0xC070_9411;
const START_SYNC: libc::Ioctl = 0x8008_9418;
const WAIT_SYNC: libc::Ioctl = 0x4008_9416;
const QUOTA_CTL: libc::Ioctl = 0xC010_9428;
const QGROUP_CREATE: libc::Ioctl = 0x4010_942A;
const QGROUP_LIMIT_SET: libc::Ioctl = 0x8030_942B;
const QUOTA_RESCAN: libc::Ioctl = 0x4040_942C;

/// `BTRFS_SUBVOL_RDONLY`
const READ_ONLY: u64 = 1 << 1;
/// `BTRFS_SUBVOL_SPEC_BY_ID`
const BY_ID: u64 = 1 << 4;
/// `BTRFS_QUOTA_CTL_ENABLE`: full accounting.
const ENABLE_FULL: u64 = 1;

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct CreateArguments {
    file: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`
#[repr(C)]
struct VolumeArguments {
    file: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    /// The name, NUL-terminated; or, with [`BY_ID`], the id in its first eight bytes.
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_ino_lookup_args`
#[repr(C)]
struct LookupArguments {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_search_key`
#[repr(C)]
struct SearchKey {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transaction: u64,
    max_transaction: u64,
    min_kind: u32,
    max_kind: u32,
    /// In: how many are wanted; out: how many were found.
    items: u32,
    unused: [u32; 9],
}

const SEARCH_BYTES: usize = 16 << 10;

/// `struct btrfs_ioctl_search_args_v2` with its buffer.
#[repr(C)]
struct SearchArguments {
    key: SearchKey,
    size: u64,
    buffer: [u8; SEARCH_BYTES],
}

/// `struct btrfs_ioctl_search_header`
const SEARCH_HEADER: usize = 32;

/// `struct btrfs_ioctl_quota_ctl_args`, `struct btrfs_ioctl_qgroup_create_args`
#[repr(C)]
struct QuotaArguments {
    command: u64,
    value: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`
#[repr(C)]
struct LimitArguments {
    qgroup: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved: [u64; 2],
}

/// `struct btrfs_ioctl_quota_rescan_args`
#[repr(C)]
struct RescanArguments {
    flags: u64,
    progress: u64,
    reserved: [u64; 6],
}

/// An item of a tree.
pub(crate) struct Item {
    pub(crate) offset: u64,
    pub(crate) content: Vec<u8>,
}

impl Item {
    /// The `index`th 64-bit number of the content, which is little-endian.
    pub(crate) fn number(&self, index: usize) -> io::Result<u64> {
        bytes_at(&self.content, index * 8).map(u64::from_le_bytes)
    }
}

/// Makes an empty subvolume.
pub(super) fn create(directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut arguments = CreateArguments { file: 0, name: [0; 4088] };
    write_name(&mut arguments.name, name)?;
    ioctl_pointer(directory, SUBVOL_CREATE, &mut arguments).map(drop)
}

/// Makes a snapshot of the subvolume whose top directory `source` is.
pub(super) fn snapshot(
    directory: BorrowedFd<'_>,
    name: &str,
    source: BorrowedFd<'_>,
    read_only: bool,
) -> io::Result<()> {
    let mut arguments = volume_arguments(if read_only { READ_ONLY } else { 0 });
    arguments.file = i64::from(source.as_raw_fd());
    write_name(&mut arguments.name, name)?;
    ioctl_pointer(directory, SNAP_CREATE_V2, &mut arguments).map(drop)
}

/// Deletes the subvolume `name` in `directory`.
pub(super) fn delete(directory: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut arguments = volume_arguments(0);
    write_name(&mut arguments.name, name)?;
    ioctl_pointer(directory, SNAP_DESTROY_V2, &mut arguments).map(drop)
}

/// Deletes the subvolume `id`, wherever it lies; the kernel looks up no path.
pub(super) fn delete_by_id(filesystem: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut arguments = volume_arguments(BY_ID);
    arguments.name[..8].copy_from_slice(&id.to_ne_bytes());
    ioctl_pointer(filesystem, SNAP_DESTROY_V2, &mut arguments).map(drop)
}

/// The id of the subvolume that `file` lies in.
pub(super) fn tree_of(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut arguments = LookupArguments { tree: 0, object: FIRST_FREE, name: [0; 4080] };
    ioctl_pointer(file, INO_LOOKUP, &mut arguments)?;
    Ok(arguments.tree)
}

/// Ends the running transaction and waits until it is on the disk.
///
/// The kernel's thread that ends transactions misses the request if that comes while it is about to sleep after the one
/// before (fs/btrfs/disk-io.c, `transaction_kthread`), and then sleeps on for up to 30 s: so it is asked again.
pub(super) fn commit(filesystem: BorrowedFd<'_>) -> io::Result<()> {
    const AGAIN: Duration = Duration::from_millis(20);
    let start = || {
        let mut transaction = 0_u64;
        ioctl_pointer(filesystem, START_SYNC, &mut transaction)?;
        io::Result::Ok(transaction)
    };
    let mut transaction = start()?;
    thread::scope(|scope| {
        let (waiting, ended) = mpsc::channel::<()>();
        let insist = move || {
            while ended.recv_timeout(AGAIN) == Err(RecvTimeoutError::Timeout) {
                // Who waits hears of what is wrong.
                let _ = start();
            }
        };
        thread::Builder::new().spawn_scoped(scope, insist)?;
        let waited = ioctl_pointer(filesystem, WAIT_SYNC, &mut transaction);
        drop(waiting);
        waited.map(drop)
    })
}

/// The items of one object and kind whose offset isn't below `first`, in order; at most `limit`.
pub(super) fn search(
    filesystem: BorrowedFd<'_>,
    tree: u64,
    (object, kind): (u64, u32),
    first: u64,
    limit: usize,
) -> io::Result<Vec<Item>> {
    let mut found = Vec::new();
    let mut next = Some(first);
    while let Some(offset) = next
        && found.len() < limit
    {
        let mut arguments = Box::new(SearchArguments {
            key: SearchKey {
                tree,
                min_object: object,
                max_object: object,
                min_offset: offset,
                max_offset: u64::MAX,
                min_transaction: 0,
                max_transaction: u64::MAX,
                min_kind: kind,
                max_kind: kind,
                items: u32::try_from(limit - found.len()).unwrap_or(u32::MAX),
                unused: [0; 9],
            },
            size: SEARCH_BYTES as u64,
            buffer: [0; SEARCH_BYTES],
        });
        ioctl_pointer(filesystem, TREE_SEARCH_V2, arguments.as_mut())?;
        let items = parse(&arguments.buffer, arguments.key.items)?;
        next = items.last().and_then(|item| item.offset.checked_add(1));
        found.extend(items);
    }
    Ok(found)
}

/// The items in a buffer of the kernel's: a header each (transaction, object, offset: u64; kind, length: u32), in the
/// machine's byte order, and the content.
pub(crate) fn parse(buffer: &[u8], count: u32) -> io::Result<Vec<Item>> {
    let mut rest = buffer;
    let mut items = Vec::new();
    for _ in 0..count {
        let offset = u64::from_ne_bytes(bytes_at(rest, 16)?);
        let length = usize::try_from(u32::from_ne_bytes(bytes_at(rest, 28)?)).map_err(|_| invalid())?;
        let content = rest.get(SEARCH_HEADER..SEARCH_HEADER + length).ok_or_else(invalid)?;
        items.push(Item { offset, content: content.to_vec() });
        rest = &rest[SEARCH_HEADER + length..];
    }
    Ok(items)
}

/// Switches full accounting on. Nothing changes where quotas are on already, of either kind.
pub(super) fn enable_quota(filesystem: BorrowedFd<'_>) -> io::Result<()> {
    let mut arguments = QuotaArguments { command: ENABLE_FULL, value: 0 };
    ioctl_pointer(filesystem, QUOTA_CTL, &mut arguments).map(drop)
}

/// Starts to count anew; `EINPROGRESS` while that is done already.
pub(super) fn start_rescan(filesystem: BorrowedFd<'_>) -> io::Result<()> {
    let mut arguments = RescanArguments { flags: 0, progress: 0, reserved: [0; 6] };
    ioctl_pointer(filesystem, QUOTA_RESCAN, &mut arguments).map(drop)
}

/// Limits the bytes that a qgroup refers to.
pub(super) fn limit_qgroup(filesystem: BorrowedFd<'_>, qgroup: u64, max_referenced: u64) -> io::Result<()> {
    let flags = MAX_REFERENCED;
    let mut arguments = LimitArguments { qgroup, flags, max_referenced, max_exclusive: 0, reserved: [0; 2] };
    ioctl_pointer(filesystem, QGROUP_LIMIT_SET, &mut arguments).map(drop)
}

/// Removes a qgroup; `EBUSY` while it has a subvolume.
pub(super) fn remove_qgroup(filesystem: BorrowedFd<'_>, qgroup: u64) -> io::Result<()> {
    let mut arguments = QuotaArguments { command: 0, value: qgroup };
    ioctl_pointer(filesystem, QGROUP_CREATE, &mut arguments).map(drop)
}

fn volume_arguments(flags: u64) -> VolumeArguments {
    VolumeArguments { file: 0, transaction: 0, flags, unused: [0; 4], name: [0; 4040] }
}

/// The last byte stays NUL.
fn write_name(target: &mut [u8], name: &str) -> io::Result<()> {
    let is_name = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
    if !is_name || name.len() > 255 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    target[..name.len()].copy_from_slice(name.as_bytes());
    Ok(())
}

fn bytes_at<const N: usize>(bytes: &[u8], start: usize) -> io::Result<[u8; N]> {
    bytes.get(start..start + N).and_then(|bytes| bytes.try_into().ok()).ok_or_else(invalid)
}

fn invalid() -> io::Error {
    io::Error::from(io::ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_kernels_sizes() {
        assert_eq!(size_of::<CreateArguments>(), 4096);
        assert_eq!(size_of::<VolumeArguments>(), 4096);
        assert_eq!(size_of::<LookupArguments>(), 4096);
        assert_eq!(size_of::<SearchKey>(), 104);
        assert_eq!(size_of::<SearchArguments>(), 112 + SEARCH_BYTES);
        assert_eq!(size_of::<QuotaArguments>(), 16);
        assert_eq!(size_of::<LimitArguments>(), 48);
        assert_eq!(size_of::<RescanArguments>(), 64);
    }

    #[test]
    fn what_is_no_name_is_refused_before_the_kernel_sees_it() {
        for name in ["", ".", "..", "a/b", "a\0", &"x".repeat(256)] {
            let error = write_name(&mut [0; 4040], name).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{name:?}");
        }
    }

    #[test]
    fn items_are_read_and_a_torn_buffer_is_an_error() {
        let mut buffer = vec![0_u8; 80];
        buffer[16] = 7;
        buffer[28] = 8;
        buffer[32] = 9;
        buffer[56] = 8;
        let items = parse(&buffer, 2).unwrap();
        assert_eq!((items[0].offset, items[0].number(0).unwrap(), items[1].offset), (7, 9, 8));
        assert!(items[0].number(1).is_err());
        for cut in [8, 31, 39, 60] {
            assert!(parse(&buffer[..cut], 2).is_err(), "{cut}");
        }
    }
}
