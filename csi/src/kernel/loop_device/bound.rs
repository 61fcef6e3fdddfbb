//! All loop devices that are bound to what may be an image of ours, as sysfs shows them.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use keelson_host::HostRoot;

use super::{LoopDevice, LoopError, failed, open, queue};
use crate::kernel::sys;

/// A loop device and the file behind it.
#[derive(Clone, Debug)]
pub(crate) struct BoundLoop {
    pub(crate) device: LoopDevice,
    /// The file's path, as when it was bound.
    pub(crate) file: PathBuf,
    /// Whether that file has no name any more.
    pub(crate) deleted: bool,
    /// Device and inode number of the file.
    pub(crate) identity: (u64, u64),
    pub(crate) bytes: u64,
    pub(crate) read_ahead_kib: u64,
    pub(crate) refuses_discards: bool,
}

/// What sysfs appends to the path of a file without a name.
const DELETED: &str = " (deleted)";

/// Every device whose file's path `is_ours`, by number. No other device is opened, and none is changed.
pub(crate) fn bound_to(root: &HostRoot, is_ours: impl Fn(&Path) -> bool) -> Result<Vec<BoundLoop>, LoopError> {
    let blocks = root.join("sys/block");
    let mut found = Vec::new();
    for entry in fs::read_dir(&blocks).map_err(|source| failed("list", &blocks, source))? {
        let entry = entry.map_err(|source| failed("list", &blocks, source))?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else { continue };
        let Ok(shown) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        let shown = shown.trim_end_matches('\n');
        let (file, deleted) = shown.strip_suffix(DELETED).map_or((shown, false), |file| (file, true));
        if is_ours(Path::new(file)) {
            found.extend(look(root, number, PathBuf::from(file), deleted)?);
        }
    }
    found.sort_by_key(|one| one.device.number);
    Ok(found)
}

/// None if the device was let go meanwhile, or has no node in `/dev`.
fn look(root: &HostRoot, number: u32, file: PathBuf, deleted: bool) -> Result<Option<BoundLoop>, LoopError> {
    let node = root.join(format!("dev/loop{number}"));
    let gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENOENT));
    let opened = match open(&node, false) {
        Err(error) if gone(&error.source) => return Ok(None),
        opened => opened?,
    };
    let info = match sys::loop_status(opened.as_fd()) {
        Err(error) if gone(&error) => return Ok(None),
        info => info.map_err(|source| failed("ask for the file behind", &node, source))?,
    };
    let bytes = sys::block_device_bytes(opened.as_fd()).map_err(|source| failed("read the size of", &node, source))?;
    Ok(Some(BoundLoop {
        identity: (info.device, info.inode),
        device: LoopDevice::new(node, number, info.flags),
        file,
        deleted,
        bytes,
        read_ahead_kib: queue::read_ahead(root, number)?,
        refuses_discards: queue::refuses_discards(root, number)?,
    }))
}

/// Lets go of a device if it still is bound to that file and nobody uses it: one that is mounted, or that another device
/// lies on, is busy.
pub(crate) fn let_go(device: &LoopDevice, identity: (u64, u64)) -> Result<(), LoopError> {
    let exclusive = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::EXCL | rustix::fs::OFlags::CLOEXEC;
    let opened = rustix::fs::open(&device.node, exclusive, rustix::fs::Mode::empty())
        .map_err(|error| failed("open", &device.node, error.into()))?;
    match sys::loop_status(opened.as_fd()) {
        Ok(info) if (info.device, info.inode) == identity => {}
        // Somebody let go of it before, and may have bound it anew.
        Ok(_) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
        Err(error) => return Err(failed("ask for the file behind", &device.node, error)),
    }
    match sys::loop_clear(opened.as_fd()) {
        Err(error) if error.raw_os_error() != Some(libc::ENXIO) => Err(failed("let go of", &device.node, error)),
        _ => Ok(()),
    }
}
